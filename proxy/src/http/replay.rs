//! A request body that is remembered while it is sent, so that another attempt can send it again.
//!
//! Up to [`REPLAY_BYTES_MAX`] are kept; a longer body is sent once. Each attempt holds its own reader; a newer attempt
//! cuts the older ones off, because only one may take from the downstream connection.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::body::{Body, BodyError};
use super::grpc::MessageCount;

/// One attempt's reader.
#[derive(Debug)]
pub(crate) struct Replay {
    shared: Rc<RefCell<Shared>>,
    attempt: u32,
    next: usize,
    sent_trailers: bool,
}

/// The request's own handle, which makes the readers.
#[derive(Debug)]
pub(crate) struct ReplaySource(Rc<RefCell<Shared>>);

#[derive(Debug)]
struct Shared {
    source: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Too long to keep: what was kept is gone.
    overflowed: bool,
    attempt: u32,
    total: u64,
    messages: Option<MessageCount>,
}

impl ReplaySource {
    /// `grpc` says whether messages are to be counted.
    pub(crate) fn new(source: Body, grpc: bool) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            source,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            overflowed: false,
            attempt: 0,
            total: 0,
            messages: grpc.then(MessageCount::default),
        })))
    }

    /// A reader from the beginning, or nothing when the beginning is gone.
    pub(crate) fn reader(&self) -> Option<Replay> {
        let mut shared = self.0.borrow_mut();
        if shared.overflowed {
            return None;
        }
        shared.attempt += 1;
        Some(Replay { shared: self.0.clone(), attempt: shared.attempt, next: 0, sent_trailers: false })
    }

    /// Whether another reader could be made.
    pub(crate) fn is_replayable(&self) -> bool {
        !self.0.borrow().overflowed
    }

    /// gRPC messages taken from downstream so far.
    pub(crate) fn messages(&self) -> u64 {
        self.0.borrow().messages.as_ref().map_or(0, MessageCount::count)
    }

    /// Body bytes taken from downstream so far.
    pub(crate) fn total(&self) -> u64 {
        self.0.borrow().total
    }
}

impl Replay {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if shared.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(data) = shared.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if !shared.ended {
            let frame = ready!(Pin::new(&mut shared.source).poll_frame(cx));
            shared.keep(frame.as_ref());
            self.next = shared.kept.len();
            self.sent_trailers |= shared.trailers.is_some();
            return Poll::Ready(frame);
        }
        let trailers = shared.trailers.clone().filter(|_| !std::mem::replace(&mut self.sent_trailers, true));
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let nothing_kept = self.next >= shared.kept.len() && (shared.trailers.is_none() || self.sent_trailers);
        nothing_kept && (shared.ended || shared.source.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let kept: usize = shared.kept.iter().skip(self.next).map(Bytes::len).sum();
        match shared.source.size_hint().exact() {
            Some(left) if !shared.ended => SizeHint::with_exact(left + kept as u64),
            _ if shared.ended => SizeHint::with_exact(kept as u64),
            _ => SizeHint::default(),
        }
    }
}

impl Shared {
    fn keep(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        match frame {
            None => self.ended = true,
            Some(Err(_)) => self.overflow(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.total += data.len() as u64;
                    if let Some(messages) = &mut self.messages {
                        messages.follow(data);
                    }
                    if self.kept_bytes + data.len() > REPLAY_BYTES_MAX || self.kept.len() == REPLAY_FRAMES_MAX {
                        self.overflow();
                    } else if !self.overflowed {
                        self.kept_bytes += data.len();
                        self.kept.push(data.clone());
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    (self.trailers, self.ended) = (Some(trailers.clone()), true);
                }
            }
        }
    }

    fn overflow(&mut self) {
        self.overflowed = true;
        (self.kept, self.kept_bytes) = (Vec::new(), 0);
    }
}

/// The longest body that can be sent again.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// The most pieces that are kept of it.
const REPLAY_FRAMES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_second_attempt_reads_the_same_and_cuts_off_the_first() {
        let source = ReplaySource::new(Body::Full(Bytes::from_static(b"hello")), false);
        let mut first = Body::Replay(source.reader().unwrap());
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        let second = Body::Replay(source.reader().unwrap());
        assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))));
        assert_eq!(second.collect().await.unwrap().to_bytes(), "hello");
        let third = Body::Replay(source.reader().unwrap());
        assert_eq!(third.size_hint().exact(), Some(5));
        assert_eq!(third.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(source.total(), 5);
    }

    #[tokio::test]
    async fn a_long_body_is_sent_once() {
        let source = ReplaySource::new(Body::Full(vec![0; REPLAY_BYTES_MAX + 1].into()), false);
        let first = Body::Replay(source.reader().unwrap());
        assert!(source.is_replayable());
        assert_eq!(first.collect().await.unwrap().to_bytes().len(), REPLAY_BYTES_MAX + 1);
        assert!(!source.is_replayable());
        assert!(source.reader().is_none());
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_still_kept() {
        let source = ReplaySource::new(Body::Full(vec![0; REPLAY_BYTES_MAX].into()), false);
        Body::Replay(source.reader().unwrap()).collect().await.unwrap();
        assert!(source.is_replayable());
    }
}
