//! HTTP/1.1 towards downstream: hyper's codec behind the auditor.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::audit::Audited;
use super::exchange;
use super::hcm::HcmState;
use super::record::Recorded;
use crate::conn::Conn;
use crate::io::Io;
use crate::refusal;
use crate::serve::Rejected;
use crate::worker::conns::Phase;

/// Serves HTTP/1.1 on `io` until it closes.
pub(crate) async fn serve(conn: Rc<Conn>, hcm: Rc<HcmState>, io: Io) -> Result<(), Rejected> {
    let (audited, gate) = Audited::new(io);
    conn.life().watch_heads(gate.clone());
    let head_bytes = usize::try_from(hcm.config.limits.headers_bytes_max).unwrap_or(HEAD_BYTES_MIN);
    let mut builder = Builder::new();
    // The parser's own limit of 100 fields costs nothing; any other one costs an allocation per request.
    if hcm.config.limits.headers_max > PARSER_HEADERS_MAX {
        builder.max_headers(HEADERS_MAX);
    }
    let of_service = (conn.clone(), hcm);
    let service = service_fn(move |request: Request<Incoming>| {
        let (conn, hcm) = of_service.clone();
        async move { Ok::<_, Infallible>(answer(conn, hcm, request).await) }
    });
    let connection = builder
        .max_buf_size(head_bytes.max(HEAD_BYTES_MIN))
        .serve_connection(TokioIo::new(audited), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        // While draining, answers say `connection: close`; only a cut ends the connection from here.
        conn.life().poll_beyond(Phase::Draining, cx).map(|_| Ok(()))
    })
    .await;
    if gate.offended() {
        return Err(Rejected::new(refusal::HTTP_MALFORMED, "a request violates RFC 9112"));
    }
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP/1 connection ended");
    }
    Ok(())
}

async fn answer(conn: Rc<Conn>, hcm: Rc<HcmState>, request: Request<Incoming>) -> Response<Recorded> {
    let last = hcm.config.limits.requests_per_connection_max.is_some_and(|max| conn.requests.get() + 1 >= max);
    let mut response = exchange::run_http1(&conn, hcm, request).await;
    if (last || conn.life().phase() > Phase::Serving) && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// How long the head of a request may take.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Header fields the parser takes unless told otherwise.
const PARSER_HEADERS_MAX: u32 = 100;
/// Header fields the parser takes where the listener's own limit is higher.
const HEADERS_MAX: usize = 256;
const HEAD_BYTES_MIN: usize = 16 * 1024;
