//! The one body type of the data path, whatever HTTP version it came by.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::replay::Replay;

/// A message body.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// None.
    #[default]
    Empty,
    /// Bytes of our own.
    Full(Bytes),
    /// From an HTTP/1 connection.
    Http1(Incoming),
    /// From an HTTP/2 stream.
    Http2(RecvStream),
    /// A request body that may be sent again.
    Replay(Replay),
    /// One whose beginning was read already.
    Begun(Bytes, Box<Self>),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the HTTP/1 connection failed")]
    Http1(#[source] hyper::Error),
    #[error("the HTTP/2 stream failed")]
    Http2(#[source] h2::Error),
    #[error("the body was taken over by another attempt")]
    Superseded,
    #[error("the exchange took too long")]
    Late,
}

impl Body {
    /// The body of a request or response that came by HTTP/2.
    pub(crate) fn http2(stream: RecvStream) -> Self {
        if stream.is_end_stream() { Self::Empty } else { Self::Http2(stream) }
    }

    /// The body of a message that came by HTTP/1.
    pub(crate) fn http1(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Http1(incoming) }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::Http1),
            Self::Http2(stream) => poll_stream(stream, cx).map_err(BodyError::Http2),
            Self::Replay(replay) => replay.poll_frame(cx),
            Self::Begun(begun, rest) => {
                let (begun, rest) = (std::mem::take(begun), std::mem::take(&mut **rest));
                *self = rest;
                Poll::Ready(Some(Ok(Frame::data(begun))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(stream) => stream.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Begun(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Http2(_) | Self::Begun(..) => SizeHint::default(),
            Self::Replay(replay) => replay.size_hint(),
        }
    }
}

/// The next frame; the peer may send as much again as soon as it is taken, so that what is in flight stays bounded
/// by the window.
fn poll_stream(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
    if let Some(data) = ready!(stream.poll_data(cx)) {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        return Poll::Ready(Some(Ok(Frame::data(data))));
    }
    Poll::Ready(ready!(stream.poll_trailers(cx)).transpose().map(|trailers| trailers.map(Frame::trailers)))
}
