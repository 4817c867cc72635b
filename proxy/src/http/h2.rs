//! HTTP/2 towards downstream, on the h2 crate itself: one task per connection, one per request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use http_body::Body as _;

use super::body::Body;
use super::budget::Budgeted;
use super::exchange;
use super::hcm::HcmState;
use super::pump::pump;
use super::record::Recorded;
use crate::conn::Conn;
use crate::io::Io;
use crate::serve::Rejected;
use crate::worker::conns::Phase;

/// Serves HTTP/2 on `io` until it closes.
pub(crate) async fn serve(conn: Rc<Conn>, hcm: Rc<HcmState>, io: Io) -> Result<(), Rejected> {
    let options = &hcm.config.http2;
    let handshake = Builder::new()
        .max_concurrent_streams(options.concurrent_streams_max.map_or(STREAMS_DEFAULT, |max| max.min(STREAMS_MAX)))
        .initial_window_size(options.stream_window.unwrap_or(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(options.connection_window.unwrap_or(CONNECTION_WINDOW_BYTES))
        .max_header_list_size(hcm.config.limits.headers_bytes_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(Some(RESETS_LOCAL_MAX))
        .handshake::<_, Bytes>(Budgeted::new(io));
    let mut connection = match tokio::time::timeout(PREFACE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(Rejected::new("CLIENT_GONE", error.to_string())),
        Err(_) => return Err(Rejected::new("CLIENT_GONE", "no HTTP/2 preface in time")),
    };
    let mut seen = Phase::Serving;
    loop {
        let accepted = poll_fn(|cx| {
            if let Poll::Ready(phase) = conn.life().poll_beyond(seen, cx) {
                return Poll::Ready(Err(phase));
            }
            connection.poll_accept(cx).map(Ok)
        })
        .await;
        match accepted {
            Ok(Some(Ok((request, respond)))) => {
                tokio::task::spawn_local(stream(conn.clone(), hcm.clone(), request, respond));
                if hcm.config.limits.requests_per_connection_max.is_some_and(|max| conn.requests.get() >= max) {
                    connection.graceful_shutdown();
                }
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "HTTP/2 connection ended");
                return Ok(());
            }
            Ok(None) => return Ok(()),
            Err(Phase::Cut) => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let closed = poll_fn(|cx| connection.poll_closed(cx));
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, closed).await;
                return Ok(());
            }
            Err(phase) => {
                seen = phase;
                connection.graceful_shutdown();
            }
        }
    }
}

/// One request.
async fn stream(conn: Rc<Conn>, hcm: Rc<HcmState>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let patience = hcm.config.timeouts.stream_idle;
    let (head, body) = request.into_parts();
    let mut answer = pin!(exchange::run(&conn, hcm, head, Body::http2(body), None));
    let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await;
    // A client that has gone away cancels what was begun for it.
    if let Some(response) = answered {
        send(response, &mut respond, patience).await;
    }
}

async fn send(response: Response<Recorded>, respond: &mut SendResponse<Bytes>, patience: Option<Duration>) {
    let (head, mut body) = response.into_parts();
    let ended = body.is_end_stream();
    match respond.send_response(Response::from_parts(head, ()), ended) {
        Ok(_) if ended => body.complete(),
        Ok(mut stream) => {
            if let Err(error) = pump(&mut body, &mut stream, patience).await {
                tracing::trace!(?error, "response not sent to its end");
            }
        }
        Err(error) => tracing::debug!(%error, "response cannot be sent"),
    }
}

/// Requests side by side on one connection, unless the listener says otherwise.
const STREAMS_DEFAULT: u32 = 256;
const STREAMS_MAX: u32 = 1024;
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const SEND_BUFFER_BYTES_MAX: usize = 512 * 1024;
/// Requests reset before they were looked at (rapid reset).
const RESETS_PENDING_MAX: usize = 50;
/// Streams that we had to reset because the peer broke the protocol.
const RESETS_LOCAL_MAX: usize = 100;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
