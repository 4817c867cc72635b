//! Somebody who is about to be revoked: a workload with connections to every proxy, on which it asks without a pause and notes
//! when it was answered last.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use harness::{Mesh, tools, wait};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::tls::{FixedSnapshot, PeerRule};
use identity::{BundleSet, PrivateKey, TrustBundle, TrustDomain, X509Svid};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::report::Cut;
use crate::scene::Node;

/// A proxy at which workloads are served.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) proxy: String,
    pub(crate) address: SocketAddr,
    /// The authority of requests.
    pub(crate) host: String,
    pub(crate) path: &'static str,
    /// Server name of its HTTP port.
    pub(crate) http: String,
    /// Of its port with a TCP echo.
    pub(crate) tcp: Option<String>,
    /// Whether a connection ends when its peer is revoked; stock Envoy looks at new ones only.
    pub(crate) judges_open: bool,
    pub(crate) grpc: bool,
}

/// A workload of its own entry.
pub(crate) struct Victim {
    pub(crate) id: String,
    pub(crate) entry: String,
    name: String,
    socket: String,
    workload_api: String,
    holder: Arc<FixedSnapshot>,
}

impl Victim {
    /// Registers a workload below a node's agent and fetches its certificate.
    pub(crate) fn register(mesh: &Mesh, node: &Node, name: &str) -> Result<Self> {
        let id = format!("spiffe://cluster.local/ns/drill/sa/{name}");
        let parent = format!("spiffe://cluster.local/node/{}", node.name);
        let create = ["entry", "create", "--spiffe-id", &id, "--parent-id", &parent, "--selector"];
        let entry = mesh.kasbah(create).arg(format!("launch:name:{name}")).ok()?.stdout.trim().to_owned();
        let socket = node.folder.join("launch.sock").display().to_string();
        let workload_api = format!("unix://{}", node.folder.join("agent.sock").display());
        let nobody = Arc::new(FixedSnapshot { svid: None, bundles: Arc::new(BundleSet::new([])) });
        let victim = Self { id, entry, name: name.to_owned(), socket, workload_api, holder: nobody };
        wait::until("the victim's certificate", FETCH_MAX, || victim.fetch(mesh))
            .map(|holder| Self { holder, ..victim })
    }

    /// What its agent gives it now.
    fn fetch(&self, mesh: &Mesh) -> Result<Arc<FixedSnapshot>> {
        let folder = mesh.scratch(&format!("victim-{}", self.name))?;
        let run = ["run", "--name", &self.name, "--socket", &self.socket, "--"];
        let fetch = mesh.kasbah(run).arg(tools::kasbah()).args(["agent", "fetch", "x509", "--write"]).arg(&folder);
        fetch.env("SPIFFE_ENDPOINT_SOCKET", &self.workload_api).ok()?;
        let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| name.to_owned());
        let chain = identity::pem::decode_certificates(&read("svid.pem")?)?;
        let svid = X509Svid::from_parts(chain, PrivateKey::from_pkcs8_pem(&read("svid.key")?)?)?;
        let bundle = TrustBundle::from_pem(TrustDomain::parse("cluster.local")?, &read("bundle.pem")?)?;
        let bundles = Arc::new(BundleSet::new([Arc::new(bundle)]));
        Ok(Arc::new(FixedSnapshot { svid: Some(Arc::new(svid)), bundles }))
    }

    /// The serial number of its certificate, hexadecimal.
    pub(crate) fn serial(&self) -> Result<String> {
        Ok(self.holder.svid.as_ref().context("no certificate")?.serial().to_owned())
    }

    /// It is given another certificate, with which every proxy answers again; how long that takes.
    pub(crate) fn is_itself_again(&self, mesh: &Mesh, doors: &[Door], runtime: &tokio::runtime::Runtime) -> Result<()> {
        let before = self.serial()?;
        wait::until("another certificate that is accepted", FETCH_MAX, || {
            let holder = self.fetch(mesh)?;
            ensure!(holder.svid.as_ref().is_some_and(|svid| svid.serial() != before), "still {before}");
            for door in doors {
                let anew = door.anew(&holder);
                runtime.block_on(anew).with_context(|| format!("{} refuses the new one", door.proxy))?;
            }
            Ok(())
        })
    }

    /// Its agent gives it nothing any more.
    pub(crate) fn is_nobody(&self, mesh: &Mesh) -> Result<()> {
        wait::until("the end of its identity", FETCH_MAX, || match self.fetch(mesh) {
            Ok(_) => bail!("its agent still gives {} a certificate", self.id),
            Err(_) => Ok(()),
        })
    }

    /// No proxy takes its certificate any more.
    pub(crate) fn is_refused(&self, doors: &[Door], runtime: &tokio::runtime::Runtime) -> Result<()> {
        for door in doors {
            ensure!(runtime.block_on(door.anew(&self.holder)).is_err(), "{} accepts {} again", door.proxy, self.id);
        }
        Ok(())
    }

    /// Waits until every proxy takes its certificate.
    pub(crate) fn wait(&self, doors: &[Door], runtime: &tokio::runtime::Runtime) -> Result<()> {
        for door in doors {
            let accepted = || runtime.block_on(door.anew(&self.holder));
            wait::until("the victim to be accepted", FETCH_MAX, accepted).with_context(|| door.proxy.clone())?;
        }
        Ok(())
    }

    /// Begins to ask at all doors, in every way that each knows, until it is cut.
    pub(crate) fn begin(&self, doors: &[Door], runtime: &tokio::runtime::Runtime) -> Vec<Arc<Watch>> {
        let mut watches = Vec::new();
        for door in doors {
            let mut begin = |what, way| {
                let watch = Arc::new(Watch::new(door.proxy.clone(), what));
                runtime.spawn(watch.clone().go_on(door.clone(), self.holder.clone(), way));
                watches.push(watch);
            };
            begin("new connections", Way::Anew);
            if door.judges_open {
                begin("HTTP/2 on one connection", Way::Http);
            }
            if door.judges_open && door.grpc {
                begin("gRPC on one connection", Way::Grpc);
            }
            if door.tcp.is_some() {
                begin("TCP on one connection", Way::Tcp);
            }
        }
        watches
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Anew,
    Http,
    Grpc,
    Tcp,
}

/// What was accepted of somebody at one proxy in one way, until nothing is.
#[derive(Debug)]
pub(crate) struct Watch {
    proxy: String,
    what: &'static str,
    accepted: AtomicU64,
    last: Mutex<Option<Instant>>,
    end: Mutex<Option<String>>,
}

impl Watch {
    pub(crate) fn new(proxy: String, what: &'static str) -> Self {
        Self { proxy, what, accepted: AtomicU64::new(0), last: Mutex::new(None), end: Mutex::new(None) }
    }

    pub(crate) fn note(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(crate) fn end(&self, why: String) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// # Errors
    /// While it was accepted fewer than `count` times, or is cut already.
    pub(crate) fn expect_accepted(&self, count: u64) -> Result<()> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let accepted = self.accepted.load(Ordering::Relaxed);
        if let Some(why) = end {
            bail!("{}, {}: ended after {accepted}: {why}", self.proxy, self.what);
        }
        ensure!(accepted >= count, "{}, {}: {accepted} accepted so far", self.proxy, self.what);
        Ok(())
    }

    /// # Errors
    /// While it goes on.
    pub(crate) fn expect_ended(&self) -> Result<()> {
        let ended = self.end.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        ensure!(ended, "{}, {}: still goes on", self.proxy, self.what);
        Ok(())
    }

    /// When the last was accepted, after `begun`.
    pub(crate) fn cut(&self, begun: Instant) -> Cut {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(begun));
        Cut { proxy: self.proxy.clone(), what: self.what, accepted: self.accepted.load(Ordering::Relaxed), last }
    }

    async fn go_on(self: Arc<Self>, door: Door, holder: Arc<FixedSnapshot>, way: Way) {
        let end = match way {
            Way::Anew => self.go_on_anew(&door, &holder).await,
            Way::Http => self.go_on_asking(&door, &holder, false).await,
            Way::Grpc => self.go_on_asking(&door, &holder, true).await,
            Way::Tcp => self.go_on_echoing(&door, &holder).await,
        };
        self.end(end.err().map_or_else(String::new, |error| format!("{error:#}")));
    }

    async fn go_on_anew(&self, door: &Door, holder: &Arc<FixedSnapshot>) -> Result<()> {
        loop {
            door.anew(holder).await?;
            self.note();
            tokio::time::sleep(PAUSE_ANEW).await;
        }
    }

    async fn go_on_asking(&self, door: &Door, holder: &Arc<FixedSnapshot>, grpc: bool) -> Result<()> {
        let mut send = door.http2(holder).await?;
        loop {
            if grpc {
                door.greet(&mut send).await?;
            } else {
                door.ask(&mut send).await?;
            }
            self.note();
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn go_on_echoing(&self, door: &Door, holder: &Arc<FixedSnapshot>) -> Result<()> {
        let name = door.tcp.clone().context("no TCP port")?;
        let mut stream = connect(door.address, &name, holder, &[]).await?;
        loop {
            stream.write_all(b"salaam").await?;
            stream.read_exact(&mut [0; 6]).await?;
            self.note();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Door {
    /// A connection and a request on it. TLS 1.3 tells a client of its refusal only after the handshake.
    async fn anew(&self, holder: &Arc<FixedSnapshot>) -> Result<()> {
        let one = async {
            let mut send = self.http2(holder).await?;
            self.ask(&mut send).await
        };
        tokio::time::timeout(ANSWER_MAX, one).await?
    }

    async fn http2(&self, holder: &Arc<FixedSnapshot>) -> Result<SendRequest<Full<Bytes>>> {
        let stream = connect(self.address, &self.http, holder, &[b"h2"]).await?;
        let (send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(conn);
        Ok(send)
    }

    /// Whatever the answer says, the proxy has accepted the caller.
    async fn ask(&self, send: &mut SendRequest<Full<Bytes>>) -> Result<()> {
        let request = hyper::Request::get(format!("http://{}{}", self.host, self.path)).body(Full::default())?;
        let answer = tokio::time::timeout(ANSWER_MAX, send.send_request(request)).await??;
        answer.into_body().collect().await?;
        Ok(())
    }

    async fn greet(&self, send: &mut SendRequest<Full<Bytes>>) -> Result<()> {
        let request = hyper::Request::post(format!("http://{}/helloworld.Greeter/SayHello", self.host))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(HELLO))?;
        let answer = tokio::time::timeout(ANSWER_MAX, send.send_request(request)).await??;
        let body = answer.into_body().collect().await?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "gRPC status {status:?}");
        Ok(())
    }
}

async fn connect(
    address: SocketAddr,
    name: &str,
    holder: &Arc<FixedSnapshot>,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>> {
    let config = identity::tls::client_config(holder.clone(), PeerRule::AnyTrusted, alpn)?;
    let tcp = TcpStream::connect(address).await?;
    Ok(tokio_rustls::TlsConnector::from(config).connect(ServerName::try_from(name.to_owned())?, tcp).await?)
}

/// `HelloRequest { name: "drill" }` in a gRPC frame.
const HELLO: &[u8] = b"\0\0\0\0\x07\x0a\x05drill";
const PAUSE: Duration = Duration::from_millis(20);
/// A handshake costs a proxy more than a request.
const PAUSE_ANEW: Duration = Duration::from_millis(50);
const ANSWER_MAX: Duration = Duration::from_secs(5);
const FETCH_MAX: Duration = Duration::from_secs(30);
