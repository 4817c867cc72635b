//! Asking another process's admin address: one small HTTP/1.1 request over TCP.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::tasks::TaskSet;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody listens there.
    #[error("{addr} cannot be reached; is the process running?")]
    Connect {
        /// Whom we asked.
        addr: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The path is no request target.
    #[error("`{path}` is no request path")]
    Path {
        /// What was given.
        path: String,
    },
    /// The other side does not speak HTTP.
    #[error("{addr} does not answer HTTP")]
    Http {
        /// Whom we asked.
        addr: SocketAddr,
        /// What failed.
        #[source]
        source: hyper::Error,
    },
    /// The answer is too large or breaks off.
    #[error("the answer of {addr} is larger than {ANSWER_BYTES_MAX} bytes or breaks off")]
    Body {
        /// Whom we asked.
        addr: SocketAddr,
    },
    /// The answer takes too long.
    #[error("{addr} does not answer within {} s", WAIT_MAX.as_secs())]
    Timeout {
        /// Whom we asked.
        addr: SocketAddr,
    },
}

impl AskError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } => "ADMIN_UNREACHABLE",
            Self::Path { .. } => "ADMIN_PATH_BAD",
            Self::Http { .. } | Self::Body { .. } => "ADMIN_ANSWER_BAD",
        }
    }
}

/// `GET path`.
///
/// # Errors
/// When there is no complete answer in time. A status other than 200 is an answer.
pub async fn get(addr: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), AskError> {
    ask(addr, Method::GET, path).await
}

/// `POST path` without a body.
///
/// # Errors
/// As [`get`].
pub async fn post(addr: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), AskError> {
    ask(addr, Method::POST, path).await
}

async fn ask(addr: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, Bytes), AskError> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, addr.to_string());
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| AskError::Path { path: path.to_owned() })?;
    tokio::time::timeout(WAIT_MAX, exchange(addr, request)).await.map_err(|_| AskError::Timeout { addr })?
}

async fn exchange(addr: SocketAddr, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Bytes), AskError> {
    let http = |source| AskError::Http { addr, source };
    let stream = TcpStream::connect(addr).await.map_err(|source| AskError::Connect { addr, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let mut tasks = TaskSet::new();
    tasks.spawn("admin connection", async move {
        // What goes wrong here is reported by the request.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(http)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok((status, body.map_err(|_| AskError::Body { addr })?.to_bytes()))
}

/// How long an answer may take.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// The largest answer.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Admin, AdminParts};
    use crate::logs::LogControl;
    use crate::metrics::Metrics;
    use crate::readiness::Readiness;
    use crate::shutdown::Shutdown;

    #[tokio::test]
    async fn an_admin_address_is_asked_and_a_silent_one_named() {
        let readiness = Readiness::new();
        let guard = readiness.block("first sync");
        let parts = AdminParts::new("ca", readiness, Metrics::new(), LogControl::detached());
        let admin = Admin::build("127.0.0.1:0".parse().unwrap(), parts).unwrap();
        let (addr, shutdown) = (admin.local_addr().unwrap(), Shutdown::new());
        let server = tokio::spawn(admin.run(shutdown.clone()));
        assert_eq!(get(addr, "/healthz/ready").await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
        drop(guard);
        assert_eq!(get(addr, "/healthz/ready").await.unwrap(), (StatusCode::OK, Bytes::from("ready\n")));
        assert_eq!(post(addr, "/logging?level=debug").await.unwrap().0, StatusCode::OK);
        assert_eq!(get(addr, "no path").await.unwrap_err().reason(), "ADMIN_PATH_BAD");
        shutdown.trigger();
        server.await.unwrap();
        assert_eq!(get(addr, "/").await.unwrap_err().reason(), "ADMIN_UNREACHABLE");
    }
}
