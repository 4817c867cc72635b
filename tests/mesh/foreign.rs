//! An authority that is not ours, as Istio, cert-manager and SPIRE leave it in files, made with openssl; a workload with a
//! certificate of it; and calls between that workload and the mesh, in both directions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use harness::load::{Load, Plan};
use harness::steady::Steady;
use harness::{Mesh, Program, mesh, tools, wait};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::tls::{ClientAuth, FixedSnapshot, PeerRule};
use identity::{BundleSet, PrivateKey, TrustBundle, TrustDomain, X509Svid};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};

/// A root with its key, in files.
pub(crate) struct Foreign {
    pub(crate) folder: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) key: PathBuf,
}

impl Foreign {
    /// `key` is what `openssl req -newkey` takes, `subject` and `extensions` are the root's.
    pub(crate) fn make(mesh: &Mesh, key: &[&str], subject: &str, extensions: &str) -> Result<Self> {
        let folder = mesh.scratch(&format!("foreign{}", subject.replace(['/', '=', ' '], "-")))?;
        let (root, key_file, config) = (folder.join("root.pem"), folder.join("root.key"), folder.join("root.cnf"));
        std::fs::write(&config, format!("[req]\ndistinguished_name=dn\nx509_extensions=ca\n[dn]\n[ca]\n{extensions}"))?;
        let request = openssl(["req", "-x509", "-nodes", "-sha256", "-days", "3650", "-newkey"])?.args(key);
        let request = request.args(["-subj", subject]).arg("-config").arg(&config);
        request.arg("-keyout").arg(&key_file).arg("-out").arg(&root).ok()?;
        Ok(Self { folder, root, key: key_file })
    }

    /// The certificate of a workload, directly below the root, with no subject and the SPIFFE ID as its only name.
    pub(crate) fn issue(&self, id: &str, name: &str, trusted: &[&Path]) -> Result<Arc<FixedSnapshot>> {
        let at = |ending: &str| self.folder.join(format!("{name}.{ending}"));
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:{id}\n"
        );
        std::fs::write(at("ext"), extensions)?;
        let request = openssl(["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])?;
        request.args(["-subj", "/"]).arg("-keyout").arg(at("key")).arg("-out").arg(at("csr")).ok()?;
        let sign = openssl(["x509", "-req", "-days", "1", "-sha256", "-CAcreateserial", "-in"])?.arg(at("csr"));
        let sign = sign.arg("-CA").arg(&self.root).arg("-CAkey").arg(&self.key).arg("-extfile").arg(at("ext"));
        sign.arg("-out").arg(at("pem")).ok()?;
        holder(&at("pem"), &at("key"), trusted)
    }
}

/// A workload with the certificate, key and roots of these files.
pub(crate) fn holder(certificate: &Path, key: &Path, trusted: &[&Path]) -> Result<Arc<FixedSnapshot>> {
    let chain = identity::pem::decode_certificates(&std::fs::read(certificate)?)?;
    let svid = X509Svid::from_parts(chain, PrivateKey::from_pem(&std::fs::read(key)?, None)?)?;
    let mut roots = Vec::new();
    for file in trusted {
        roots.extend(std::fs::read(file)?);
    }
    let bundle = TrustBundle::from_pem(TrustDomain::parse("cluster.local")?, &roots)?;
    let bundles = Arc::new(BundleSet::new([Arc::new(bundle)]));
    Ok(Arc::new(FixedSnapshot { svid: Some(Arc::new(svid)), bundles }))
}

pub(crate) fn openssl<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Program> {
    Ok(tools::system("openssl")?.args(args))
}

/// Calls out of the mesh, again and again: from the `test` sidecar to a workload beside the mesh.
pub(crate) struct OutOf {
    load: Load,
    _server: Server,
}

impl OutOf {
    /// The mesh knows the server as `name`, which is its service account, too; `place` tells addresses apart.
    pub(crate) fn start(mesh: &Mesh, name: &str, place: u32, server: Arc<FixedSnapshot>) -> Result<Self> {
        let test: std::net::Ipv4Addr = mesh.at("/workloads/test/address")?.parse()?;
        let address = std::net::Ipv4Addr::from(u32::from(test) + 40 + place);
        std::fs::write(
            mesh.dir().join(format!("config/{name}.yaml")),
            mesh::workload_documents(name, address, &[(9095, "http")]),
        )?;
        let server = Server::start(SocketAddr::new(address.into(), 15006), server)?;
        let request = format!("GET / HTTP/1.1\r\nhost: {name}.default.svc.cluster.local:9095");
        let address = SocketAddr::new(test.into(), 15001);
        Ok(Self {
            load: Load::start(Plan { address, request, connections: 2, pause: PAUSE, expect: 200 }),
            _server: server,
        })
    }
}

/// What goes on for as long as nobody stops it.
pub(crate) trait Calls {
    /// How many were answered, and how many failed.
    fn counts(&self) -> (u64, u64);
    fn forget(&self);
    fn trouble(&self) -> String;

    /// Waits until calls are answered, and forgets what failed before.
    fn wait(&self) -> Result<()> {
        wait::until("calls to be answered", BEGIN_MAX, || {
            self.forget();
            std::thread::sleep(Duration::from_millis(300));
            self.expect_no_failure()
        })
    }

    fn expect_no_failure(&self) -> Result<()> {
        let (answered, failed) = self.counts();
        ensure!(failed == 0 && answered > 0, "{failed} of {} failed: {}", answered + failed, self.trouble());
        Ok(())
    }

    /// From now on no call is answered.
    fn expect_refused(&self) -> Result<()> {
        wait::until("refusals", BEGIN_MAX, || {
            let before = self.counts();
            std::thread::sleep(Duration::from_millis(500));
            let after = self.counts();
            ensure!(before.0 == after.0 && before.1 < after.1, "{before:?}, then {after:?}");
            Ok(())
        })
    }
}

impl Calls for OutOf {
    fn counts(&self) -> (u64, u64) {
        let tally = self.load.tally();
        (tally.answered, tally.failed)
    }

    fn forget(&self) {
        self.load.forget();
    }

    fn trouble(&self) -> String {
        format!("{:?}", self.load.tally().failures)
    }
}

impl Calls for Into {
    fn counts(&self) -> (u64, u64) {
        let seen = self.0.seen();
        (seen.answered, seen.failed)
    }

    fn forget(&self) {
        self.0.forget();
    }

    fn trouble(&self) -> String {
        self.0.seen().trouble
    }
}

/// Calls into the mesh, again and again: of helloworld through its sidecar, on a new connection each time.
pub(crate) struct Into(Steady);

impl Into {
    pub(crate) fn start(mesh: &Mesh, client: Arc<FixedSnapshot>) -> Result<Self> {
        let address = mesh.address("/workloads/helloworld/inbound")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self(Steady::start(PAUSE, move |counts| {
            runtime.block_on(call(address, client.clone()))?;
            counts.answered();
            std::thread::sleep(PAUSE);
            Ok(())
        })))
    }
}

/// One call of helloworld with a certificate of one's own.
async fn call(address: SocketAddr, client: Arc<FixedSnapshot>) -> Result<()> {
    let one = async {
        let config = identity::tls::client_config(client, PeerRule::AnyTrusted, &[b"h2"])?;
        let name = ServerName::try_from("outbound_.9095_._.helloworld.default.svc.cluster.local")?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, TcpStream::connect(address).await?).await?;
        let (mut send, conn) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let conn = tokio::spawn(conn);
        let request = hyper::Request::get("http://helloworld.default.svc.cluster.local/helloworld");
        let answer = send.send_request(request.body(Full::<Bytes>::default())?).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        conn.abort();
        if status == 200 { Ok(()) } else { bail!("answered {status}") }
    };
    tokio::time::timeout(Duration::from_secs(5), one).await?
}

/// A server outside, which asks its callers for their certificates.
struct Server {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: SocketAddr, holder: Arc<FixedSnapshot>) -> Result<Self> {
        let alpn: [&[u8]; 4] = [b"h2", b"istio", b"istio-http/1.1", b"http/1.1"];
        let config = identity::tls::server_config(holder, ClientAuth::Required, PeerRule::AnyTrusted, &alpn)?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = serve(listener, tokio_rustls::TlsAcceptor::from(config)) => (),
                    _ = stopped => (),
                }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor) {
    let answer = |_| async { Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::<Bytes>::from("legacy\n"))) };
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ended = server.serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer)).await;
        });
    }
}

const BEGIN_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
