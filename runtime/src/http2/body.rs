//! What a client sends after the head of its request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// The body of a request. Dropping it throws away what still comes.
#[derive(Debug)]
pub struct Incoming(Option<Arc<Inbox>>);

/// The connection ended before the body did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client went away before its request was complete")]
pub struct Interrupted;

/// Where the connection puts it.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    bytes: BytesMut,
    end: Option<Result<(), Interrupted>>,
    /// What the reader has taken and the client has not been told of.
    taken: usize,
    /// Nobody reads any more.
    is_left: bool,
    reader: Option<Waker>,
    /// Whom to tell that there is room again.
    connection: Option<Waker>,
}

impl Incoming {
    /// A request that has none.
    pub(super) fn empty() -> Self {
        Self(None)
    }

    pub(super) fn of(inbox: &Arc<Inbox>) -> Self {
        Self(Some(inbox.clone()))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let Some(inbox) = &self.0 else { return Poll::Ready(None) };
        let mut content = inbox.lock();
        if !content.bytes.is_empty() {
            let bytes = content.bytes.split().freeze();
            content.take(bytes.len());
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match content.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(interrupted)) => Poll::Ready(Some(Err(interrupted))),
            None => {
                content.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|inbox| {
            let content = inbox.lock();
            content.bytes.is_empty() && content.end == Some(Ok(()))
        })
    }

    fn size_hint(&self) -> SizeHint {
        if self.0.is_none() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(inbox) = &self.0 {
            let mut content = inbox.lock();
            content.is_left = true;
            let unread = std::mem::take(&mut content.bytes).len();
            content.take(unread);
        }
    }
}

impl Inbox {
    /// One whose reader wakes `connection` when it has made room.
    pub(super) fn new(connection: Waker) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Content { connection: Some(connection), ..Content::default() })))
    }

    /// Puts in what has come; `padding` is taken at once.
    pub(super) fn put(&self, bytes: &[u8], padding: usize) {
        let mut content = self.lock();
        content.taken += padding;
        if content.is_left {
            content.taken += bytes.len();
        } else {
            content.bytes.extend_from_slice(bytes);
        }
        content.wake_reader();
    }

    /// Nothing more comes.
    pub(super) fn end(&self, how: Result<(), Interrupted>) {
        let mut content = self.lock();
        content.end.get_or_insert(how);
        content.connection = None;
        content.wake_reader();
    }

    /// How much was taken since this was asked last.
    pub(super) fn taken(&self) -> usize {
        std::mem::take(&mut self.lock().taken)
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        // However little it is: all streams share the window of the connection.
        if let Some(connection) = &self.connection {
            connection.wake_by_ref();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
