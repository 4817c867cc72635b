//! Calls of a workload through its sidecar, which is its HTTP proxy.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpStream;

/// A pooled HTTP/1.1 client whose connections all go to the sidecar. Clones share the pool.
#[derive(Clone)]
pub(super) struct Outbound(Client<Sidecar, Empty<Bytes>>);

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The sidecar's reason for refusing, or ours for having no answer.
    pub(super) reason: Option<HeaderValue>,
    /// Who answered, as the sidecar verified it.
    pub(super) server_spiffe_id: Option<String>,
    /// JSON as it is, anything else as a string.
    pub(super) body: Value,
}

/// Connects to the sidecar, whatever host the request is for.
#[derive(Clone)]
struct Sidecar(SocketAddr);

impl Outbound {
    pub(super) fn new(sidecar: SocketAddr) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_MAX).pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        Self(builder.build(Sidecar(sidecar)))
    }

    /// `GET url`, with the trace headers of the request it is made for.
    pub(super) async fn get(&self, url: &'static str, cause: &HeaderMap) -> Answer {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = Uri::from_static(url);
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("kasbah-demo-test"));
        for name in TRACE_HEADERS {
            if let Some(value) = cause.get(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        match tokio::time::timeout(ANSWER_WAIT_MAX, self.exchange(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::none(StatusCode::BAD_GATEWAY, "SIDECAR_UNREACHABLE", &error.to_string()),
            Err(_) => Answer::none(StatusCode::GATEWAY_TIMEOUT, "SIDECAR_TIMEOUT", "no answer in time"),
        }
    }

    async fn exchange(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let response = self.0.request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await?.to_bytes();
        let server = head.headers.get("x-peer-spiffe-id").and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: head.status,
            reason: head.headers.get("x-kasbah-reason").cloned(),
            server_spiffe_id: server.filter(|id| !id.is_empty() && *id != "-").map(str::to_owned),
            body: serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).trim_end().into()),
        })
    }
}

impl Answer {
    fn none(status: StatusCode, reason: &'static str, what: &str) -> Self {
        tracing::warn!(reason, error = what, "no answer through the sidecar");
        Self { status, reason: Some(HeaderValue::from_static(reason)), server_spiffe_id: None, body: what.into() }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_ref().and_then(|reason| reason.to_str().ok())
    }
}

impl tower::Service<Uri> for Sidecar {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let addr = self.0;
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// How long an answer may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(15);
/// The largest answer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Unused connections kept for each host.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// How long they are kept.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// What a workload must pass on so that its calls belong to one trace.
const TRACE_HEADERS: [&str; 4] = ["x-request-id", "traceparent", "tracestate", "b3"];
