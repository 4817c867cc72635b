//! One request and its response.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response};
use http_body::Body;

use super::body::{Inbox, Interrupted};
use super::frame::{Code, WINDOW};
use super::outgoing::Outgoing;

/// A stream that has not ended on both sides.
pub(super) struct Stream<B> {
    pub(super) id: u32,
    exchange: Exchange<B>,
    signal: Arc<Signal>,
    waker: Waker,
    /// Where the body of the request goes; `None` when all of it was taken.
    inbox: Option<Arc<Inbox>>,
    /// The client has sent everything.
    has_request: bool,
    /// What is still missing of the length that the client announced.
    announced: Option<u64>,
    /// What we may still send.
    pub(super) window: i64,
    /// What the client may still send.
    room: i64,
    /// All that it has sent.
    pub(super) sent: usize,
    /// What it has sent and nobody has taken.
    held: usize,
    /// What was taken and the client has not been told of.
    untold: usize,
    /// What waits for the window.
    due: Bytes,
    /// What ends the response, once that is known.
    trailers: Option<HeaderMap>,
}

enum Exchange<B> {
    Calling(Calling<B>),
    Answering(B),
    /// Only what is due is left.
    Ending,
}

/// A response that is being made.
pub(super) type Calling<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

/// Says that a stream wants to be looked at.
pub(super) struct Signal {
    is_set: AtomicBool,
    connection: Arc<AtomicWaker>,
}

/// Where a stream has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waits,
    /// All is sent.
    Done,
    /// The response cannot be completed.
    Failed,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            self.connection.wake();
        }
    }
}

impl Signal {
    /// One that is set: a new stream wants to be looked at.
    pub(super) fn new(connection: Arc<AtomicWaker>) -> Arc<Self> {
        Arc::new(Self { is_set: AtomicBool::new(true), connection })
    }
}

impl<B> Stream<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(super) fn new(
        id: u32,
        calling: Calling<B>,
        signal: Arc<Signal>,
        inbox: Option<Arc<Inbox>>,
        announced: Option<u64>,
        window: i64,
    ) -> Self {
        let waker = Waker::from(signal.clone());
        Self {
            id,
            exchange: Exchange::Calling(calling),
            signal,
            waker,
            has_request: inbox.is_none(),
            inbox,
            announced,
            window,
            room: WINDOW,
            sent: 0,
            held: 0,
            untold: 0,
            due: Bytes::new(),
            trailers: None,
        }
    }

    /// Takes a part of the body of which `counted` bytes count against the window. Fails when the client sends what it must not.
    pub(super) fn receive(&mut self, counted: usize, bytes: &[u8], is_last: bool) -> Result<(), Code> {
        let Some(inbox) = self.inbox.as_ref().filter(|_| !self.has_request) else { return Err(Code::StreamClosed) };
        self.room -= i64::try_from(counted).unwrap_or(i64::MAX);
        if self.room < 0 {
            return Err(Code::FlowControl);
        }
        self.sent += counted;
        self.held += counted;
        inbox.put(bytes, counted - bytes.len());
        if let Some(missing) = &mut self.announced {
            *missing = missing.checked_sub(bytes.len() as u64).ok_or(Code::Protocol)?;
        }
        if is_last { self.end_request() } else { Ok(()) }
    }

    /// The client has sent everything.
    pub(super) fn end_request(&mut self) -> Result<(), Code> {
        let Some(inbox) = self.inbox.as_ref().filter(|_| !self.has_request) else { return Err(Code::StreamClosed) };
        let is_whole = self.announced.is_none_or(|missing| missing == 0);
        inbox.end(if is_whole { Ok(()) } else { Err(Interrupted) });
        self.has_request = true;
        if is_whole { Ok(()) } else { Err(Code::Protocol) }
    }

    /// Whether the client has sent everything.
    pub(super) fn has_request(&self) -> bool {
        self.has_request
    }

    /// What it has sent and nobody has taken.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// What was taken and the client may be told: of the stream if that is worth a frame, and of the connection.
    pub(super) fn take_room(&mut self) -> (usize, usize) {
        let Some(inbox) = &self.inbox else { return (0, 0) };
        let taken = inbox.taken();
        self.held = self.held.saturating_sub(taken);
        if self.has_request {
            if self.held == 0 {
                self.inbox = None;
            }
            return (0, taken);
        }
        self.untold += taken;
        if self.untold < ROOM_LEAST {
            return (0, taken);
        }
        self.room += i64::try_from(self.untold).unwrap_or_default();
        (std::mem::take(&mut self.untold), taken)
    }

    /// Whether the client has been told anything.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self.exchange, Exchange::Calling(_))
    }

    /// Whether something has happened since this was asked last.
    pub(super) fn take_signal(&self) -> bool {
        self.signal.is_set.swap(false, Ordering::AcqRel)
    }

    /// Whether it waits for the client to take what is due.
    pub(super) fn is_held_up(&self) -> bool {
        !self.due.is_empty()
    }

    /// Writes what there is, as far as the client takes it.
    pub(super) fn advance(&mut self, out: &mut Outgoing) -> Progress {
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        loop {
            if !self.due.is_empty() {
                let is_last = matches!(self.exchange, Exchange::Ending) && self.trailers.is_none();
                out.data(self.id, &mut self.due, &mut self.window, is_last);
                if !self.due.is_empty() {
                    return Progress::Waits;
                }
                if is_last {
                    return Progress::Done;
                }
            }
            match &mut self.exchange {
                Exchange::Calling(calling) => match calling.as_mut().poll(&mut cx) {
                    Poll::Pending => return Progress::Waits,
                    Poll::Ready(Ok(response)) => {
                        let (head, body) = response.into_parts();
                        let is_all = body.is_end_stream();
                        out.head(self.id, head.status, &head.headers, is_all);
                        if is_all {
                            return Progress::Done;
                        }
                        self.exchange = Exchange::Answering(body);
                    }
                },
                Exchange::Answering(body) => match Pin::new(&mut *body).poll_frame(&mut cx) {
                    Poll::Pending => return Progress::Waits,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            self.due = data;
                            if body.is_end_stream() {
                                self.exchange = Exchange::Ending;
                            }
                        }
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok();
                            self.exchange = Exchange::Ending;
                        }
                    },
                    Poll::Ready(Some(Err(error))) => {
                        let error: Box<dyn Error + Send + Sync> = error.into();
                        tracing::debug!(error, "a response ended early");
                        return Progress::Failed;
                    }
                    Poll::Ready(None) => self.exchange = Exchange::Ending,
                },
                Exchange::Ending => {
                    match self.trailers.take() {
                        Some(trailers) => out.trailers(self.id, &trailers),
                        None => out.end(self.id),
                    }
                    return Progress::Done;
                }
            }
        }
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        if let Some(inbox) = &self.inbox {
            inbox.end(Err(Interrupted));
        }
    }
}

/// Room of fewer bytes is not worth a frame.
pub(super) const ROOM_LEAST: usize = 16_384;
