//! Sends a body down an HTTP/2 stream, no faster than the peer takes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(crate) enum PumpError<E> {
    /// The body itself broke off.
    Body(E),
    /// The stream or its connection is gone.
    Stream(#[expect(dead_code, reason = "told by Debug")] h2::Error),
    /// The peer does not want it any more.
    Reset(#[expect(dead_code, reason = "told by Debug")] Reason),
}

/// Sends `body` and ends the stream. A body that breaks off resets the stream; so does a peer that takes nothing for
/// the time of `patience`.
pub(crate) async fn pump<B>(
    body: &mut B,
    stream: &mut SendStream<Bytes>,
    patience: Option<Duration>,
) -> Result<(), PumpError<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => Poll::Ready(Err(ready!(stream.poll_reset(cx)))),
        })
        .await
        .map_err(reset)?;
        match frame {
            None => return stream.send_data(Bytes::new(), true).map_err(PumpError::Stream),
            Some(Err(error)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(PumpError::Body(error));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    if !data.is_empty() {
                        wait_for_room(stream, patience).await?;
                    }
                    stream.send_data(data, last).map_err(PumpError::Stream)?;
                    if last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return stream.send_trailers(trailers).map_err(PumpError::Stream);
                }
            },
        }
    }
}

/// Waits until the peer's window has room. The h2 crate keeps what exceeds it, at most one piece of a body.
/// A peer that opens no window for the time of `patience` loses the stream.
async fn wait_for_room<E>(stream: &mut SendStream<Bytes>, patience: Option<Duration>) -> Result<(), PumpError<E>> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        let room = poll_fn(|cx| stream.poll_capacity(cx));
        let room = match patience {
            None => room.await,
            Some(patience) => match tokio::time::timeout(patience, room).await {
                Ok(room) => room,
                Err(_) => {
                    stream.send_reset(Reason::CANCEL);
                    return Err(PumpError::Reset(Reason::CANCEL));
                }
            },
        };
        match room {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(PumpError::Stream(error)),
            None => return Err(PumpError::Reset(Reason::CANCEL)),
        }
    }
    Ok(())
}

fn reset<E>(found: Result<Reason, h2::Error>) -> PumpError<E> {
    match found {
        Ok(reason) => PumpError::Reset(reason),
        Err(error) => PumpError::Stream(error),
    }
}
