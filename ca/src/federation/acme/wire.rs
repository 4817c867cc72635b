//! HTTP to the ACME server: one connection for each of its few requests, with limits on time and size.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use http::{Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use identity::tls::{ALPN_HTTP11, web};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use runtime::tasks::TaskSet;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How the ACME server is spoken to.
pub(super) struct Wire {
    /// Read at each request.
    roots_file: Option<PathBuf>,
    /// Whether the directory is on loopback, without TLS. Otherwise no address that it names may be: it is not to have us ask what
    /// only this machine may ask.
    is_plain: bool,
}

/// Where a URL leads.
pub(super) struct Target {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "no URL")?;
        let host = uri.host().ok_or("a URL without a host")?.trim_matches(['[', ']']).to_owned();
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => false,
            _ => return Err("neither https:// nor a loopback address"),
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port, is_tls })
    }
}

impl Wire {
    pub(super) fn new(directory_url: &str, roots_file: Option<PathBuf>) -> Self {
        Self { roots_file, is_plain: Target::parse(directory_url).is_ok_and(|directory| !directory.is_tls) }
    }
}

impl HttpClient for Wire {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (roots_file, is_plain) = (self.roots_file.clone(), self.is_plain);
        Box::pin(async move {
            let exchanged = tokio::time::timeout(CALL_WAIT_MAX, exchange(roots_file, is_plain, request)).await;
            exchanged.map_err(|_| other("no answer in time"))?
        })
    }
}

async fn exchange(
    roots_file: Option<PathBuf>,
    is_plain: bool,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Error> {
    let target = Target::parse(&request.uri().to_string()).map_err(other)?;
    if !target.is_tls && !is_plain {
        return Err(other("its directory names an address without TLS"));
    }
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(other)?;
    if !target.is_tls {
        return ask(stream, request).await;
    }
    let config = match roots_file {
        Some(file) => web::client_config(&std::fs::read(file).map_err(other)?, None, &[ALPN_HTTP11]),
        None => web::public_client_config(&[ALPN_HTTP11]),
    };
    let name = ServerName::try_from(target.host).map_err(other)?;
    let stream = TlsConnector::from(config.map_err(other)?).connect(name, stream).await.map_err(other)?;
    ask(stream, request).await
}

async fn ask<S>(stream: S, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(other)?;
    let mut tasks = TaskSet::new();
    tasks.spawn("acme", async move {
        // What goes wrong here is reported by the request.
        let _ = connection.await;
    });
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    request.headers_mut().insert(header::HOST, authority.parse().map_err(other)?);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse()?;
    let (parts, body) = sender.send_request(request).await.map_err(other)?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(Error::Other)?;
    Ok(BytesResponse { parts, body: Box::new(body.to_bytes()) })
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Other(error.into())
}

const CALL_WAIT_MAX: Duration = Duration::from_secs(15);
/// The longest answer; a chain of certificates fits.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server that answers with so many bytes.
    async fn asked(directory: &str, length: usize) -> Result<usize, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let mut tasks = TaskSet::new();
        tasks.spawn("server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.into_bytes(), vec![b'x'; length]].concat()).await;
        });
        let request = Request::builder().uri(url).body(BodyWrapper::default()).unwrap();
        let mut answer = Wire::new(directory, None).request(request).await?;
        Ok(answer.body.into_bytes().await.map_err(Error::Other)?.len())
    }

    #[tokio::test]
    async fn answers_are_taken_up_to_their_limit() {
        assert_eq!(asked("http://127.0.0.1/", ANSWER_BYTES_MAX).await.unwrap(), ANSWER_BYTES_MAX);
        assert!(asked("http://127.0.0.1/", ANSWER_BYTES_MAX + 1).await.is_err());
    }

    #[tokio::test]
    async fn a_server_elsewhere_cannot_have_this_machine_asked() {
        let refused = asked("https://acme.example.net/directory", 1).await.unwrap_err();
        assert!(refused.to_string().contains("without TLS"), "{refused}");
    }
}
