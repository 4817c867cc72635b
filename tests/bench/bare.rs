//! The bare pair: hyper and rustls and nothing else, the floor of what a proxy of our kind can cost. No policy, no
//! telemetry, no header rules, no timeouts.

use std::cell::RefCell;
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use harness::{Mesh, Program, curl, mesh, wait};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1 as server1, http2 as server2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Pair;
use crate::ours::HOST;

/// Starts both and waits until a request passes.
pub(crate) fn start(mesh: &Mesh, origin: SocketAddr, client: &Path, server: &Path) -> Result<Pair> {
    let scratch = mesh.scratch("bench")?;
    let local = || -> Result<SocketAddr> { Ok(SocketAddr::from(([127, 0, 0, 1], mesh::free_port()?))) };
    let (address, between) = (local()?, local()?);
    let start = |side: &str, listen: SocketAddr, to: SocketAddr, identity: &Path| {
        Program::new(std::env::current_exe()?)
            .args(["bare-proxy", side, &listen.to_string(), &to.to_string()])
            .arg(identity)
            .background(&scratch.join(format!("bare-{side}.log")))
    };
    let inbound = start("in", between, origin, server)?;
    let outbound = start("out", address, between, client)?;
    wait::until("a request through the bare pair", Duration::from_secs(20), || {
        curl::get(format!("http://{address}/bench")).header("host", HOST).send()?.expect_status(200)
    })?;
    Ok(Pair { name: "bare hyper+rustls", proxies: vec![outbound, inbound], address })
}

/// `bare-proxy in|out LISTEN TO IDENTITY`: one of the two, until stdin ends.
pub(crate) fn serve(words: &[&str]) -> Result<()> {
    let [side, listen, to, identity] = words else { bail!("bare-proxy in|out LISTEN TO IDENTITY") };
    let (listen, to): (SocketAddr, SocketAddr) = (listen.parse()?, to.parse()?);
    let identity = PathBuf::from(identity);
    let listener = std::net::TcpListener::bind(listen)?;
    let side = match *side {
        "in" => Side::In(TlsAcceptor::from(Arc::new(server_tls(&identity)?)), to),
        "out" => Side::Out(TlsConnector::from(Arc::new(client_tls(&identity)?)), to),
        other => bail!("no side {other}"),
    };
    // A thread per core, accepted sockets dealt out in turns.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers: Vec<_> = (0..cores).map(|_| worker(side.clone())).collect::<Result<_>>()?;
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            if let (Ok(stream), Some(worker)) = (stream, workers.get(number % cores)) {
                let _ = worker.send(stream);
            }
        }
    });
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end)?;
    Ok(())
}

#[derive(Clone)]
enum Side {
    In(TlsAcceptor, SocketAddr),
    Out(TlsConnector, SocketAddr),
}

fn worker(side: Side) -> Result<tokio::sync::mpsc::UnboundedSender<std::net::TcpStream>> {
    let (sender, mut sockets) = tokio::sync::mpsc::unbounded_channel::<std::net::TcpStream>();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        LocalSet::new().block_on(&executor, async move {
            let idle = Rc::new(RefCell::new(Idle::default()));
            while let Some(stream) = sockets.recv().await {
                spawn_local(connection(stream, side.clone(), Rc::clone(&idle)));
            }
        });
    });
    Ok(sender)
}

/// Connections towards the origin or the other proxy that wait for a request.
#[derive(Default)]
struct Idle {
    to_origin: Vec<client1::SendRequest<Incoming>>,
    to_proxy: Option<client2::SendRequest<Incoming>>,
}

async fn connection(stream: std::net::TcpStream, side: Side, idle: Rc<RefCell<Idle>>) -> Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let stream = TcpStream::from_std(stream)?;
    match side {
        Side::Out(connector, to) => {
            let service = service_fn(move |request| outbound(request, connector.clone(), to, Rc::clone(&idle)));
            server1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
        }
        Side::In(acceptor, to) => {
            let stream = acceptor.accept(stream).await?;
            let service = service_fn(move |request| inbound(request, to, Rc::clone(&idle)));
            server2::Builder::new(LocalExecutor).serve_connection(TokioIo::new(stream), service).await?;
        }
    }
    Ok(())
}

async fn outbound(
    mut request: Request<Incoming>,
    connector: TlsConnector,
    to: SocketAddr,
    idle: Rc<RefCell<Idle>>,
) -> Result<Response<Incoming>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("http://{HOST}{path}").parse()?;
    *request.version_mut() = hyper::Version::HTTP_2;
    request.headers_mut().remove("host");
    let open = idle.borrow().to_proxy.clone();
    let mut sender = match open {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(ServerName::try_from("origin")?, stream).await?;
            let (sender, connection) = client2::handshake(LocalExecutor, TokioIo::new(stream)).await?;
            spawn_local(connection);
            idle.borrow_mut().to_proxy = Some(sender.clone());
            sender
        }
    };
    Ok(sender.send_request(request).await?)
}

async fn inbound(
    mut request: Request<Incoming>,
    to: SocketAddr,
    idle: Rc<RefCell<Idle>>,
) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = path.parse()?;
    *request.version_mut() = hyper::Version::HTTP_11;
    request.headers_mut().insert("host", HOST.parse()?);
    let open = idle.borrow_mut().to_origin.pop();
    let mut sender = match open {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = client1::handshake(TokioIo::new(stream)).await?;
            spawn_local(connection);
            sender
        }
    };
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    idle.borrow_mut().to_origin.push(sender);
    Ok(Response::from_parts(head, Full::new(body)))
}

#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

fn read_identity(folder: &Path) -> Result<Identity> {
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let file = std::fs::File::open(folder.join(name)).with_context(|| name.to_owned())?;
        Ok(CertificateDer::pem_reader_iter(BufReader::new(file)).collect::<Result<_, _>>()?)
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("bundle.pem")?);
    let key = PrivateKeyDer::from_pem_file(folder.join("svid.key"))?;
    Ok(Identity { chain: certificates("svid.pem")?, key, roots: Arc::new(roots) })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn server_tls(folder: &Path) -> Result<ServerConfig> {
    let Identity { chain, key, roots } = read_identity(folder)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn client_tls(folder: &Path) -> Result<ClientConfig> {
    let Identity { chain, key, roots } = read_identity(folder)?;
    let verifier = Arc::new(ByChain { roots, provider: provider() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Judges the server by its chain: a SPIFFE certificate has no host name.
#[derive(Debug)]
struct ByChain {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByChain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
