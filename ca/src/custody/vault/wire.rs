//! HTTP/1.1 to one server, over TLS or loopback, with limits; the connection is kept.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::KeeperError;

pub(super) struct Wire {
    address: String,
    ca_file: Option<PathBuf>,
    connection: Option<(Runtime, SendRequest<Full<Bytes>>)>,
}

impl Wire {
    pub(super) fn new(address: String, ca_file: Option<PathBuf>) -> Self {
        Self { address, ca_file, connection: None }
    }

    /// One call below `/v1/`; an answer without a body is `null`. A connection that has broken since is opened anew, once.
    pub(super) fn call(
        &mut self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, KeeperError> {
        let was_connected = self.connection.is_some();
        match self.call_once(method, path, token, body) {
            Err(KeeperError::Away(_)) if was_connected => self.call_once(method, path, token, body),
            answered => answered,
        }
    }

    fn call_once(
        &mut self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, KeeperError> {
        let (host, _, _) = place(&self.address)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(format!("/v1/{path}")).header(header::HOST, host);
        request = request.header(header::CONTENT_TYPE, "application/json").header("x-vault-request", "true");
        if let Some(token) = token {
            request = request.header("x-vault-token", token);
        }
        let request = request.body(Full::from(body)).map_err(|_| refused("the path or token is malformed"))?;
        let (runtime, mut sender) = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let answered = runtime.block_on(async { tokio::time::timeout(CALL_MAX, exchange(&mut sender, request)).await });
        let (status, body) = answered.map_err(|_| away("no answer in time"))??;
        self.connection = Some((runtime, sender));
        judge(status, &body)
    }

    fn connect(&self) -> Result<(Runtime, SendRequest<Full<Bytes>>), KeeperError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| away(&error.to_string()))?;
        let (host, port, tls) = place(&self.address)?;
        let connected = runtime.block_on(async { tokio::time::timeout(CALL_MAX, self.dial(&host, port, tls)).await });
        Ok((runtime, connected.map_err(|_| away("no connection in time"))??))
    }

    async fn dial(&self, host: &str, port: u16, tls: bool) -> Result<SendRequest<Full<Bytes>>, KeeperError> {
        let name = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((name, port)).await.map_err(|error| away(&error.to_string()))?;
        if !tls {
            return established(stream).await;
        }
        let file = self.ca_file.as_deref().ok_or_else(|| refused("`ca_file` is missing"))?;
        let roots = std::fs::read(file).map_err(|error| away(&format!("{}: {error}", file.display())))?;
        let config = identity::tls::web::client_config(&roots, None, &[b"http/1.1"]);
        let config = config.map_err(|error| refused(&error.to_string()))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|_| refused("the host is no name"))?;
        let stream =
            TlsConnector::from(config).connect(name, stream).await.map_err(|error| away(&error.to_string()))?;
        established(stream).await
    }
}

async fn established<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, KeeperError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| away(&error.to_string()))?;
    // It ends with its runtime; what goes wrong on it is told by the request.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), KeeperError> {
    sender.ready().await.map_err(|error| away(&error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| away(&error.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok((status, body.map_err(|_| away("the answer is too long or breaks off"))?.to_bytes()))
}

fn judge(status: StatusCode, body: &[u8]) -> Result<Value, KeeperError> {
    let answer = serde_json::from_slice::<Value>(body).unwrap_or_default();
    if status.is_success() {
        return Ok(answer);
    }
    let errors = answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let text = format!("{} {}", status.as_u16(), errors.collect::<Vec<_>>().join("; "));
    // 429: too busy; 472, 473: a standby; 503: sealed. A version of a key that is not to be used any more is a 500 of OpenBao's,
    // and no outage: other keys sign.
    let busy = [429, 472, 473].contains(&status.as_u16());
    let lasting = (status.is_client_error() && !busy) || text.contains("minimum encryption key version");
    Err(if lasting { KeeperError::Refused(text) } else { KeeperError::Away(format!("Vault answers {text}")) })
}

/// Host, port, and whether TLS is spoken.
pub(in crate::custody) fn place(address: &str) -> Result<(String, u16, bool), KeeperError> {
    let malformed = || refused("the address is not https://HOST:PORT");
    let uri: Uri = address.trim_end_matches('/').parse().map_err(|_| malformed())?;
    let host = uri.host().ok_or_else(malformed)?.to_owned();
    let loopback =
        host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok((host, uri.port_u16().unwrap_or(8200), true)),
        Some("http") if loopback => Ok((host, uri.port_u16().unwrap_or(8200), false)),
        Some("http") => Err(refused("http:// is for loopback addresses only; use https://")),
        _ => Err(malformed()),
    }
}

fn away(why: &str) -> KeeperError {
    KeeperError::Away(format!("Vault cannot be reached: {why}"))
}

fn refused(why: &str) -> KeeperError {
    KeeperError::Refused(why.to_owned())
}

/// Two of them are below what the desk waits.
const CALL_MAX: Duration = Duration::from_secs(2);
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
