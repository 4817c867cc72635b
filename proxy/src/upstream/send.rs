//! One attempt to have a request answered by one endpoint.
//!
//! A failure says how far the request came: what never left us can be sent again without a thought, what an endpoint
//! refused to look at too; everything else is for the retry policy.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::SendStream;
use http::header::{self, HeaderValue};
use http::response::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};
use routing::format::ResponseFlags;

use super::dial::{ConnFacts, DialError};
use super::h1::Lease;
use super::h2::Share;
use super::pool::{Checked, Pool, Speak};
use crate::http::body::{Body, BodyError};
use crate::http::pump::{PumpError, pump};
use crate::http::record::{Hold, Upload};
use crate::refusal;

/// A request as it goes to an endpoint, whatever is spoken there.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
}

/// How far a failed attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No connection.
    NotConnected,
    /// Not a byte of the request was sent, because the pooled connection had gone.
    NotSent,
    /// The endpoint said that it did not look at the request.
    Refused,
    /// The connection broke after sending and before a response.
    Sent {
        /// It had carried requests before, so it may have been closing already.
        reused: bool,
    },
    /// No response in the time of this attempt.
    TimedOut,
    /// The client broke off its own request.
    ClientGone,
}

/// An attempt that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) progress: Progress,
    pub(crate) reason: &'static str,
    pub(crate) flags: ResponseFlags,
    pub(crate) peer_reason: Option<&'static str>,
    pub(crate) details: String,
}

/// An attempt that was answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: Parts,
    pub(crate) body: Body,
    pub(crate) hold: Hold,
    pub(crate) facts: Rc<ConnFacts>,
}

impl Failure {
    fn new(progress: Progress, reason: &'static str, flags: ResponseFlags, details: impl Into<String>) -> Self {
        Self { progress, reason, flags, peer_reason: None, details: details.into() }
    }

    pub(crate) fn timed_out() -> Self {
        Self::new(Progress::TimedOut, refusal::UPSTREAM_TIMEOUT, ResponseFlags::UT, "")
    }

    pub(crate) fn not_connected(error: &DialError) -> Self {
        let flags = match error {
            DialError::TooManyPending => ResponseFlags::UO,
            _ => ResponseFlags::UF,
        };
        let mut failure = Self::new(Progress::NotConnected, error.reason(), flags, crate::xds::sds::chain(error));
        failure.peer_reason = error.peer_reason();
        failure
    }

    fn not_sent(details: impl Into<String>) -> Self {
        Self::new(Progress::NotSent, refusal::UPSTREAM_RESET, ResponseFlags::UC, details)
    }

    fn client_gone() -> Self {
        Self::new(Progress::ClientGone, refusal::UPSTREAM_RESET, ResponseFlags::DC, "the client broke off")
    }
}

impl Outgoing {
    fn http1(&self, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        *request.headers_mut() = self.headers.clone();
        if let Ok(host) = HeaderValue::from_str(self.authority.as_str()) {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }

    fn http2(&self) -> Result<Request<()>, http::Error> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(parts)?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// Sends a request over a pooled or new connection of `pool`.
pub(crate) async fn send(pool: &Rc<Pool>, speak: Speak, outgoing: &Outgoing, body: Body) -> Result<Answered, Failure> {
    let checked = match pool.reuse(speak) {
        Some(checked) => checked,
        None => pool.checkout(speak).await.map_err(|error| Failure::not_connected(&error))?,
    };
    match checked {
        Checked::Http1(lease) => send_http1(lease, outgoing, body).await,
        Checked::Http2(share) => send_http2(share, outgoing, body).await,
    }
}

/// Sends a request on an HTTP/1 connection.
pub(crate) async fn send_http1(mut lease: Lease, outgoing: &Outgoing, body: Body) -> Result<Answered, Failure> {
    let reused = lease.reused;
    match lease.send(outgoing.http1(body)).await {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let facts = lease.facts().clone();
            Ok(Answered { head, body: Body::http1(body), hold: Hold { lease: Some(lease), ..Hold::default() }, facts })
        }
        Err(mut failed) => {
            let unsent = failed.take_message().is_some();
            let error = failed.into_error();
            let details = crate::xds::sds::chain(&error);
            if unsent {
                return Err(Failure::not_sent(details));
            }
            if broke_off(&error) {
                return Err(Failure::client_gone());
            }
            let (reason, flags) = match error.is_parse() {
                true => (refusal::UPSTREAM_RESPONSE_INVALID, ResponseFlags::UPE),
                false => (refusal::UPSTREAM_RESET, ResponseFlags::UC),
            };
            Err(Failure::new(Progress::Sent { reused: reused && !error.is_parse() }, reason, flags, details))
        }
    }
}

/// Whether the error is the request body's own.
fn broke_off(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<BodyError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Sends a request on an HTTP/2 connection.
pub(crate) async fn send_http2(mut share: Share, outgoing: &Outgoing, body: Body) -> Result<Answered, Failure> {
    if let Err(error) = poll_fn(|cx| share.send.poll_ready(cx)).await {
        share.mark_dead();
        return Err(Failure::not_sent(error.to_string()));
    }
    let request = outgoing.http2().map_err(|error| Failure::not_sent(error.to_string()))?;
    let (mut response, stream) = match share.send.send_request(request, body.is_empty()) {
        Ok(begun) => begun,
        Err(error) => {
            share.mark_dead();
            return Err(Failure::not_sent(error.to_string()));
        }
    };
    let mut uploading = (!body.is_empty()).then(|| Box::pin(upload(body, stream)));
    let answered = poll_fn(|cx| {
        if let Some(upload) = &mut uploading
            && let Poll::Ready(sent) = upload.as_mut().poll(cx)
        {
            uploading = None;
            if !sent {
                return Poll::Ready(Err(None));
            }
        }
        Pin::new(&mut response).poll(cx).map_err(Some)
    })
    .await;
    match answered {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let upload = uploading.map(|upload| {
                let task = tokio::task::spawn_local(async move {
                    upload.await;
                });
                Upload(task.abort_handle())
            });
            let facts = share.facts.clone();
            let hold = Hold { share: Some(share), upload, ..Hold::default() };
            Ok(Answered { head, body: Body::http2(body), hold, facts })
        }
        Err(None) => Err(Failure::client_gone()),
        Err(Some(error)) => Err(stream_failure(&share, &error)),
    }
}

/// Sends the request body; false when the client broke it off.
async fn upload(mut body: Body, mut stream: SendStream<Bytes>) -> bool {
    // A stream that the endpoint reset is told by the response.
    !matches!(pump(&mut body, &mut stream, None).await, Err(PumpError::Body(_)))
}

fn stream_failure(share: &Share, error: &h2::Error) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let went_away = error.is_go_away() && error.is_remote();
    if error.is_go_away() || error.is_io() {
        share.mark_dead();
    }
    let progress = if refused || went_away { Progress::Refused } else { Progress::Sent { reused: error.is_io() } };
    let (reason, flags) = match error.is_reset() && error.is_remote() {
        true => (refusal::UPSTREAM_RESET, ResponseFlags::UR),
        false if error.is_library() => (refusal::UPSTREAM_RESPONSE_INVALID, ResponseFlags::UPE),
        false => (refusal::UPSTREAM_RESET, ResponseFlags::UC),
    };
    Failure::new(progress, reason, flags, error.to_string())
}
