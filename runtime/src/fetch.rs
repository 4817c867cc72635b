//! Fetching one document from a web server: `http` or `https`, without redirects, with limits on time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tasks::TaskSet;

/// What is fetched, and how.
#[derive(Clone)]
pub struct Fetch<'a> {
    /// `http://…` or `https://…`.
    pub url: &'a str,
    /// How an `https` server is judged; without it `https` is refused.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// A bearer token for the `authorization` header. A secret.
    pub bearer: Option<&'a str>,
    /// The largest body in bytes.
    pub bytes_max: usize,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No URL that can be fetched.
    #[error("`{url}` is no URL that can be fetched: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Nobody answers, or not whom we expect.
    #[error("{host} cannot be reached")]
    Connect {
        /// Whom we called.
        host: String,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The other side does not speak HTTP.
    #[error("{host} does not answer HTTP")]
    Http {
        /// Whom we called.
        host: String,
        /// What failed.
        #[source]
        source: hyper::Error,
    },
    /// Another status than 200.
    #[error("{host} answers {status}")]
    Status {
        /// Whom we called.
        host: String,
        /// Its status.
        status: StatusCode,
    },
    /// The body is too large or breaks off.
    #[error("the answer of {host} is larger than {bytes_max} bytes or breaks off")]
    Body {
        /// Whom we called.
        host: String,
        /// The limit.
        bytes_max: usize,
    },
    /// It takes too long.
    #[error("{host} does not answer within {} s", WAIT_MAX.as_secs())]
    Timeout {
        /// Whom we called.
        host: String,
    },
}

impl FetchError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } => "FETCH_URL_BAD",
            Self::Connect { .. } | Self::Timeout { .. } => "FETCH_UNREACHABLE",
            Self::Http { .. } | Self::Status { .. } | Self::Body { .. } => "FETCH_ANSWER_BAD",
        }
    }
}

impl Fetch<'_> {
    /// `GET`s the document.
    ///
    /// # Errors
    /// When there is no whole answer with status 200 in time.
    pub async fn get(&self) -> Result<Bytes, FetchError> {
        let target = Target::parse(self.url)?;
        if target.is_tls && self.tls.is_none() {
            return Err(FetchError::Url { url: self.url.to_owned(), problem: "https is not possible here" });
        }
        let late = |_| FetchError::Timeout { host: target.host.clone() };
        tokio::time::timeout(WAIT_MAX, self.exchange(&target)).await.map_err(late)?
    }

    async fn exchange(&self, target: &Target) -> Result<Bytes, FetchError> {
        let unreachable = |source| FetchError::Connect { host: target.host.clone(), source };
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(unreachable)?;
        match &self.tls {
            Some(tls) if target.is_tls => {
                let bad = |_| FetchError::Url { url: self.url.to_owned(), problem: "the host is no name" };
                let name = ServerName::try_from(target.host.clone()).map_err(bad)?;
                let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(unreachable)?;
                self.ask(target, stream).await
            }
            _ => self.ask(target, stream).await,
        }
    }

    async fn ask<S>(&self, target: &Target, stream: S) -> Result<Bytes, FetchError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http = |source| FetchError::Http { host: target.host.clone(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let mut tasks = TaskSet::new();
        tasks.spawn("fetch", async move {
            // What goes wrong here is reported by the request.
            let _ = connection.await;
        });
        let mut request = Request::builder().uri(&target.path).header(header::HOST, &target.authority);
        if let Some(token) = self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bad = |_| FetchError::Url { url: self.url.to_owned(), problem: "path or token cannot be sent" };
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).map_err(bad)?).await.map_err(http)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { host: target.host.clone(), status: response.status() });
        }
        let body = Limited::new(response.into_body(), self.bytes_max).collect().await;
        let cut = |_| FetchError::Body { host: target.host.clone(), bytes_max: self.bytes_max };
        Ok(body.map_err(cut)?.to_bytes())
    }
}

struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
    is_tls: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self, FetchError> {
        let bad = |problem| FetchError::Url { url: url.chars().take(URL_SHOWN_MAX).collect(), problem };
        let uri: Uri = url.parse().map_err(|_| bad("it cannot be parsed"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("the scheme is neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("it holds a user name"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        Ok(Self { host, port, authority: authority.to_string(), path, is_tls })
    }
}

/// Whether `url` could be fetched, for settings.
///
/// # Errors
/// When it is no `http` or `https` URL with a host.
pub fn check_url(url: &str) -> Result<(), FetchError> {
    Target::parse(url).map(drop)
}

/// How long a whole exchange may take.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
const URL_SHOWN_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::get;

    use super::*;
    use crate::serve::{self, Limits};
    use crate::shutdown::Shutdown;

    async fn fetch(url: &str, bytes_max: usize) -> Result<Bytes, FetchError> {
        Fetch { url, tls: None, bearer: Some("t0"), bytes_max }.get().await
    }

    #[tokio::test]
    async fn a_document_is_fetched_within_its_limits() {
        let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let answer = |headers: HeaderMap| async move { headers["authorization"].to_str().unwrap().to_owned() };
        let router = Router::new().route("/doc", get(answer));
        let server = tokio::spawn(serve::tcp(listener, router, Limits::default(), shutdown.clone()));
        assert_eq!(fetch(&format!("http://{addr}/doc"), 9).await.unwrap(), "Bearer t0");
        let reason = |error: FetchError| error.reason();
        assert_eq!(reason(fetch(&format!("http://{addr}/doc"), 8).await.unwrap_err()), "FETCH_ANSWER_BAD");
        assert_eq!(reason(fetch(&format!("http://{addr}/none"), 9).await.unwrap_err()), "FETCH_ANSWER_BAD");
        assert_eq!(reason(fetch(&format!("https://{addr}/doc"), 9).await.unwrap_err()), "FETCH_URL_BAD");
        shutdown.trigger();
        server.await.unwrap();
        assert_eq!(reason(fetch(&format!("http://{addr}/doc"), 9).await.unwrap_err()), "FETCH_UNREACHABLE");
    }

    #[test]
    fn what_is_no_url_is_said() {
        for url in ["", "ftp://x/", "/path", "http://", "https://user@host/", "http://a b/"] {
            assert_eq!(check_url(url).unwrap_err().reason(), "FETCH_URL_BAD", "{url}");
        }
        check_url("https://host:8443/bundle?x=1").unwrap();
        check_url("http://[::1]:80").unwrap();
    }
}
