//! A proxy without its control connections: resources go straight into its store, the identity is set by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::Any;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::authority::{CrlProfile, LeafProfile, RevokedSerial, X509Authority};
use identity::revocation::RevocationIndex;
use identity::tls::FixedSnapshot;
use identity::{BundleSet, PrivateKey, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};

use crate::config::Assembler;
use crate::control::Control;
use crate::listen::Listeners;
use crate::obs::counters::Counters;
use crate::process::Process;
use crate::settings::Settings;
use crate::tls::files::CertificateFiles;
use crate::tls::own::OwnIdentity;
use crate::worker::{Threads, Workers};
use crate::xds::ads::Publish;
use crate::xds::subscription::{Item, Kind, Update};

/// An authority for one trust domain.
pub(crate) struct Authority {
    root: X509Authority,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::of("cluster.local")
    }

    pub(crate) fn of(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        Self {
            root: X509Authority::generate_root(&trust_domain, Duration::from_secs(3600), SystemTime::now()).unwrap(),
        }
    }

    pub(crate) fn id(&self, account: &str) -> SpiffeId {
        self.root.trust_domain().workload("default", account).unwrap()
    }

    pub(crate) fn svid(&self, account: &str, ttl: Duration) -> Arc<X509Svid> {
        let key = PrivateKey::generate_p256().unwrap();
        let profile = LeafProfile::new(self.id(account), ttl);
        let chain = self.root.sign_svid(&key.public_key_spki(), &profile, SystemTime::now()).unwrap();
        Arc::new(X509Svid::from_parts(chain, key).unwrap())
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        let roots = [self.root.certificate().clone()];
        Arc::new(TrustBundle::from_x509_authorities(self.root.trust_domain().clone(), roots).unwrap())
    }

    pub(crate) fn bundles(&self) -> Arc<BundleSet> {
        Arc::new(BundleSet::new([self.bundle()]))
    }

    /// The bundles with a list of this number that revokes these SVIDs.
    pub(crate) fn revoking(&self, number: u64, svids: &[&X509Svid]) -> Arc<BundleSet> {
        self.revoking_serials(number, svids.iter().map(|svid| svid.serial()))
    }

    /// The same by serial numbers.
    pub(crate) fn revoking_serials<'a>(
        &self,
        number: u64,
        serials: impl IntoIterator<Item = &'a str>,
    ) -> Arc<BundleSet> {
        let now = SystemTime::now();
        let revoked = serials.into_iter().map(|serial| RevokedSerial {
            serial: identity::revocation::serial_bytes(serial).unwrap(),
            at: now,
            reason: None,
        });
        let profile = CrlProfile {
            number,
            this_update: now,
            next_update: now + HOUR,
            revoked: revoked.collect(),
            distribution_point: None,
        };
        let index = RevocationIndex::decode([self.root.sign_crl(&profile).unwrap()]).unwrap();
        let mut bundles = BundleSet::new([self.bundle()]);
        bundles.set_revocations(self.root.trust_domain().clone(), Arc::new(index));
        Arc::new(bundles)
    }

    /// An identity for a client or server that is not a proxy.
    pub(crate) fn holder(&self, account: &str) -> Arc<FixedSnapshot> {
        Arc::new(FixedSnapshot { svid: Some(self.svid(account, HOUR)), bundles: self.bundles() })
    }
}

/// A running proxy.
pub(crate) struct TestProxy {
    pub(crate) control: Control,
    pub(crate) identity: Arc<OwnIdentity>,
    pub(crate) process: Arc<Process>,
    pub(crate) workers: Workers,
    pub(crate) files: Arc<CertificateFiles>,
    pub(crate) log: tempfile::NamedTempFile,
    threads: Option<Threads>,
    version: u64,
}

impl TestProxy {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut settings = settings();
        settings.access_log = log.path().to_str().unwrap().to_owned();
        change(&mut settings);
        let counters = Arc::new(Counters::default());
        let identity = Arc::new(OwnIdentity::new(counters.clone()));
        let workers_count = settings.worker_count();
        let process = Arc::new(Process::new(settings, identity.clone(), counters.clone()).unwrap());
        let (workers, threads) = Workers::start(&process, workers_count).unwrap();
        let listeners = Listeners::new(workers.clone(), counters.clone(), process.settings.connections_max);
        let files = Arc::new(CertificateFiles::default());
        let assembler = Assembler::new(identity.clone(), files.clone());
        let readiness = runtime::readiness::Readiness::new();
        let control = Control::new(assembler, listeners, workers.clone(), counters, readiness);
        Self { control, identity, process, workers, files, log, threads: Some(threads), version: 0 }
    }

    /// Gives it an SVID and a trust bundle.
    pub(crate) fn identify(self, authority: &Authority, account: &str) -> Self {
        self.identity.set_bundles(authority.bundles());
        self.identity.set_svid(authority.svid(account, HOUR));
        self
    }

    pub(crate) async fn clusters(&mut self, clusters: &[Cluster]) {
        self.take(Kind::Cluster, clusters).await;
    }

    pub(crate) async fn endpoints(&mut self, endpoints: &[ClusterLoadAssignment]) {
        self.take(Kind::Endpoint, endpoints).await;
    }

    pub(crate) async fn routes(&mut self, routes: &[RouteConfiguration]) {
        self.take(Kind::Route, routes).await;
    }

    /// Takes listeners and answers the address of the first.
    pub(crate) async fn listeners(&mut self, listeners: &[Listener]) -> SocketAddr {
        self.take(Kind::Listener, listeners).await;
        self.address(&listeners[0].name)
    }

    /// Takes listeners that are not open yet.
    pub(crate) async fn listeners_without_routes(&mut self, listeners: &[Listener]) {
        self.take(Kind::Listener, listeners).await;
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let open = self.control.open_addresses();
        let found = open.as_array().unwrap().iter().find(|open| open["listener"] == listener).unwrap();
        found["address"].as_str().unwrap().parse().unwrap()
    }

    async fn take<M: Message>(&mut self, kind: Kind, resources: &[M]) {
        self.version += 1;
        let item = |resource: &M| {
            let body = Any { type_url: kind.type_url().to_owned(), value: resource.encode_to_vec() };
            Item { name: None, version: self.version.to_string(), body }
        };
        let update =
            Update { set: resources.iter().map(item).collect(), replaces_all: kind.is_wildcard(), ..Update::default() };
        self.control.store().lock().unwrap().apply(kind, &update).unwrap();
        self.control.publish().await;
    }

    pub(crate) fn metrics(&self) -> String {
        let mut out = String::new();
        self.process.render_metrics(&mut out);
        out
    }

    /// The access log, once it has this many lines.
    pub(crate) async fn log_lines(&self, count: usize) -> Vec<String> {
        for _ in 0..100 {
            let text = std::fs::read_to_string(self.log.path()).unwrap();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no {count} lines in {:?}", std::fs::read_to_string(self.log.path()));
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.workers.drain(Duration::ZERO);
        if let Some(threads) = self.threads.take() {
            threads.join();
        }
    }
}

pub(crate) fn settings() -> Settings {
    serde_json::from_value(serde_json::json!({
        "kind": "sidecar",
        "node": {"id": "sidecar~127.0.0.1~helloworld.default~default.svc.cluster.local",
                 "metadata": {"NAMESPACE": "default", "WORKLOAD_NAME": "helloworld", "LABELS": {"app": "helloworld"}}},
        "discovery": {"address": "127.0.0.1:1"},
        "admin": "127.0.0.1:0",
        "workers": 2,
        "trust_domain": "cluster.local",
    }))
    .unwrap()
}

/// A server that answers with what it was asked: method, path, host, selected headers and body.
pub(crate) async fn echo() -> SocketAddr {
    serve(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut text = format!("{} {} {:?}\n", head.method, head.uri.path_and_query().unwrap(), head.version);
        let host = head.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
        let host = host.or_else(|| head.uri.authority().map(|host| host.to_string()));
        text.push_str(&format!("host: {}\n", host.unwrap_or_default()));
        for (name, value) in &head.headers {
            if name != "host" {
                text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
        }
        text.push('\n');
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&body);
        Response::new(Full::new(Bytes::from(bytes)))
    })
    .await
}

/// A plain server for HTTP/1.1 and HTTP/2.
pub(crate) async fn serve<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

/// What a client got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends one request over HTTP/1.1 on a connection of its own.
pub(crate) async fn http1<S>(stream: S, request: Request<Full<Bytes>>) -> Got
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let conn = tokio::spawn(conn);
    let got = collect(send.send_request(request).await.unwrap()).await;
    drop(send);
    let _ = conn.await;
    got
}

/// Sends one request over HTTP/2 on a connection of its own.
pub(crate) async fn http2<S>(stream: S, request: Request<Full<Bytes>>) -> Got
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let _conn = tokio::spawn(conn);
    collect(send.send_request(request).await.unwrap()).await
}

pub(crate) async fn collect(response: Response<Incoming>) -> Got {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got { status: head.status, headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
}

/// A GET for an origin-form path.
pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "helloworld").body(Full::default()).unwrap()
}

/// A GET as HTTP/2 says it.
pub(crate) fn get2(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://helloworld{path}")).body(Full::default()).unwrap()
}

pub(crate) async fn dial(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Connects with mTLS.
pub(crate) async fn dial_tls(
    address: SocketAddr,
    holder: Arc<FixedSnapshot>,
    sni: &str,
    alpn: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = identity::tls::client_config(holder, identity::tls::PeerRule::AnyTrusted, alpn).unwrap();
    let name = rustls::pki_types::ServerName::try_from(sni.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(config).connect(name, dial(address).await).await
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
