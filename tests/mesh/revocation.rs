//! Somebody is revoked in a mesh under load: how long until nobody talks to him any more, and whether anybody else
//! noticed.

#![allow(clippy::print_stdout, reason = "the measured times are part of the test's output")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use harness::curl::{self, url};
use harness::load::{Load, Plan};
use harness::mesh::free_port;
use harness::{Mesh, tools, wait};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::tls::{FixedSnapshot, PeerRule};
use identity::{BundleSet, PrivateKey, TrustBundle, TrustDomain, X509Svid};
use libtest_mimic::Trial;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own("revocation::a_revoked_entry_is_out_everywhere_and_nobody_else_feels_it", &[], a_drill),
        own("revocation::stock_envoy_refuses_a_revoked_client", &[], stock_envoy),
        own("revocation::the_command_line_asks_shows_and_refuses", &[], the_command_line),
    ]
}

/// `GET /helloworld` by way of the ingress gateway: the other identity.
fn load_of_others(mesh: &Mesh) -> Result<Load> {
    let address = mesh.address("/ingress/http")?;
    let request = format!("GET /helloworld HTTP/1.1\r\nhost: {address}");
    let pause = Duration::from_millis(10);
    Ok(Load::start(Plan { address, request, connections: 4, pause, expect: 200 }))
}

fn a_drill(mesh: &mut Mesh) -> Result<()> {
    let load = load_of_others(mesh)?;
    let revoked = Client::of(&mesh.write_identity("test")?, mesh.address("/workloads/helloworld/inbound")?)?;
    let token = mesh.token("testers")?;
    let ask_test = || curl::get(url("http", mesh.at("/ingress/http")?, "/test")).bearer(&token).send();
    ask_test()?.expect_status(200)?;
    let entry = entry_of(mesh, mesh.at("/workloads/test/spiffe_id")?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let watches = runtime.block_on(async {
        anyhow::Ok([
            ("an HTTP/2 connection", tokio::spawn(revoked.clone().http2().await?)),
            ("a WebSocket", tokio::spawn(revoked.clone().websocket().await?)),
            ("a TCP connection", tokio::spawn(revoked.clone().tcp().await?)),
            ("new handshakes", tokio::spawn(revoked.clone().refused())),
        ])
    })?;
    let began = Instant::now();
    let done = mesh.kasbah(["cert", "revoke", "--entry", &entry, "--reason", "keyCompromise", "--yes", "-o", "json"]);
    let done = done.ok()?.json()?;
    let acknowledged = began.elapsed();
    ensure!(done["revoked"].as_u64() >= Some(1) && done["source_ended"] == true, "{done}");
    println!("revoked and acknowledged after {acknowledged:?} (the command as a whole)");
    for (what, watch) in watches {
        let ended = runtime.block_on(async { tokio::time::timeout(OUT_MAX, watch).await });
        let ended = ended.with_context(|| format!("{what} still goes on after {OUT_MAX:?}"))??;
        println!("{what}: over {:?} after the command began", ended.saturating_duration_since(began));
    }
    let took = wait::time_until("the end of calls to the revoked server", OUT_MAX, || {
        let response = ask_test()?;
        ensure!(response.status == 503, "still answered {}", response.status);
        Ok(())
    })?;
    println!("calls to the revoked server: refused {took:?} later at most");
    expect_told(mesh)?;
    let fetched = mesh.launch("test", tools::kasbah()).args(["agent", "fetch", "x509"]).run()?;
    ensure!(fetched.code != 0, "the agent still gives it an SVID: {}", fetched.said());
    std::thread::sleep(Duration::from_secs(1));
    load.stop().expect_no_failure()
}

/// Metrics, status and list say what happened.
fn expect_told(mesh: &Mesh) -> Result<()> {
    for admin in ["/workloads/helloworld/admin", "/ingress/admin"] {
        let metrics = curl::get(url("http", mesh.at(admin)?, "/metrics")).send()?.expect_status(200)?.body;
        ensure!(metrics.contains("kasbah_refusals_total{reason=\"CERT_REVOKED\"}"), "{admin} counted nothing");
    }
    let lists = curl::get(format!("{}/crl", mesh.at("/ca/revocation")?)).send()?.expect_status(200)?.json()?;
    ensure!(lists["lists"].as_array().is_some_and(|lists| lists.len() == 2), "root and intermediate: {lists}");
    wait::until("the node's report", OUT_MAX, || {
        let list = mesh.kasbah(["cert", "revocations", "list", "-o", "json"]).ok()?.json()?;
        ensure!(list["nodes"] == 1 && list["nodes_enforcing"] == 1, "{list}");
        ensure!(list["revocations"].as_array().is_some_and(|all| !all.is_empty()), "{list}");
        Ok(())
    })
}

fn entry_of(mesh: &Mesh, id: &str) -> Result<String> {
    let entries = mesh.kasbah(["entry", "list", "--spiffe-id", id, "-o", "json"]).ok()?.json()?;
    let found = entries.get(0).and_then(|entry| entry.get("id")).and_then(Value::as_str);
    Ok(found.with_context(|| format!("no entry of {id}: {entries}"))?.to_owned())
}

/// A client with an identity of its own, straight at a sidecar's inbound address.
#[derive(Clone)]
struct Client {
    holder: Arc<FixedSnapshot>,
    address: SocketAddr,
}

impl Client {
    fn of(folder: &Path, address: SocketAddr) -> Result<Self> {
        let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| name.to_owned());
        let chain = identity::pem::decode_certificates(&read("svid.pem")?)?;
        let svid = X509Svid::from_parts(chain, PrivateKey::from_pkcs8_pem(&read("svid.key")?)?)?;
        let bundle = TrustBundle::from_pem(TrustDomain::parse("cluster.local")?, &read("bundle.pem")?)?;
        let bundles = Arc::new(BundleSet::new([Arc::new(bundle)]));
        Ok(Self { holder: Arc::new(FixedSnapshot { svid: Some(Arc::new(svid)), bundles }), address })
    }

    async fn connect(&self, port: u16, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
        let config = identity::tls::client_config(self.holder.clone(), PeerRule::AnyTrusted, alpn)?;
        let name = format!("outbound_.{port}_._.helloworld.default.svc.cluster.local");
        let tcp = TcpStream::connect(self.address).await?;
        Ok(tokio_rustls::TlsConnector::from(config).connect(ServerName::try_from(name)?, tcp).await?)
    }

    /// One HTTP/2 request; then the time at which the connection ends.
    async fn http2(self) -> Result<impl Future<Output = Instant> + Send + 'static> {
        let stream = TokioIo::new(self.connect(9095, &[b"h2"]).await?);
        let (mut send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        let conn = tokio::spawn(conn);
        let ask = hyper::Request::get(format!("http://{HOST}/helloworld")).body(Empty::<Bytes>::new())?;
        let answer = send.send_request(ask).await?;
        ensure!(answer.status() == 200, "answered {}", answer.status());
        Ok(async move {
            let _ended = conn.await;
            drop(send);
            Instant::now()
        })
    }

    async fn websocket(self) -> Result<impl Future<Output = Instant> + Send + 'static> {
        let mut stream = self.connect(9095, &[b"http/1.1"]).await?;
        let ask = format!(
            "GET /helloworld/ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Ok(end_of(stream))
    }

    async fn tcp(self) -> Result<impl Future<Output = Instant> + Send + 'static> {
        let mut stream = self.connect(9096, &[]).await?;
        stream.write_all(b"salaam").await?;
        stream.read_exact(&mut [0; 6]).await?;
        Ok(end_of(stream))
    }

    /// Connects anew again and again until that is refused.
    async fn refused(self) -> Instant {
        while self.clone().tcp().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Instant::now()
    }
}

async fn end_of(mut stream: TlsStream<TcpStream>) -> Instant {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    Instant::now()
}

/// Envoy with certificates and roots of our SDS, both as plain roots and for its SPIFFE validator, in front of nothing.
fn stock_envoy(mesh: &mut Mesh) -> Result<()> {
    let folder = mesh.scratch("envoy")?;
    let (plain, by_domain) = (free_port()?, free_port()?);
    let bootstrap = folder.join("envoy.json");
    let listeners = [envoy_listener("plain", plain, "ROOTCA"), envoy_listener("spiffe", by_domain, "ALL")];
    std::fs::write(&bootstrap, bootstrap_of(mesh, &listeners)?.to_string())?;
    let log = folder.join("envoy.log");
    let envoy = mesh.launch("helloworld", tools::python_program("envoy")?);
    let envoy = envoy.arg("-c").arg(&bootstrap).args(["--disable-hot-restart", "--concurrency", "1"]);
    let _envoy = envoy.background(&log)?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let (test, other) = (mesh.write_identity("test")?, mesh.write_identity("istio-ingressgateway")?);
    let ask =
        |port: u16, identity: &Path| curl::get(format!("https://127.0.0.1:{port}/")).identity(identity).try_send();
    let answers = |port, identity: &Path| {
        let answer = ask(port, identity)?;
        ensure!(answer.code == 0 && answer.stdout.contains(" 200"), "not answered: {}", answer.said());
        Ok(())
    };
    for port in [plain, by_domain] {
        wait::until("Envoy", Duration::from_secs(30), || answers(port, &test)).with_context(said)?;
        answers(port, &other).with_context(said)?;
    }
    let file = test.join("svid.pem").display().to_string();
    let began = Instant::now();
    mesh.kasbah(["cert", "revoke", &file, "--reason", "keyCompromise", "--yes"]).ok()?;
    for (name, port) in [("plain roots", plain), ("its SPIFFE validator", by_domain)] {
        wait::until("a refusal by Envoy", OUT_MAX, || {
            let answer = ask(port, &test)?;
            ensure!(answer.code != 0, "answered {}", answer.stdout);
            Ok(())
        })
        .with_context(said)?;
        println!("stock Envoy with {name} refuses {:?} after the command began", began.elapsed());
        answers(port, &other).with_context(said)?;
    }
    // Its entry is in force: with a new certificate the workload is itself again.
    let renewed = wait::until("another SVID", OUT_MAX, || {
        let folder = mesh.write_identity("test")?;
        answers(plain, &folder)?;
        Ok(folder)
    })?;
    answers(by_domain, &renewed)
}

fn envoy_listener(name: &str, port: u16, roots: &str) -> Value {
    let sds = |secret: &str| {
        json!({
            "name": secret,
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                },
            },
        })
    };
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "disable_stateless_session_resumption": true,
                    "common_tls_context": {
                        "tls_certificate_sds_secret_configs": [sds("default")],
                        "validation_context_sds_secret_config": sds(roots),
                    },
                },
            },
            "filters": [{
                "name": "http",
                "typed_config": {
                    "@type": hcm,
                    "stat_prefix": name,
                    "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
                    "route_config": {"virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                    }]},
                },
            }],
        }],
    })
}

fn bootstrap_of(mesh: &Mesh, listeners: &[Value]) -> Result<Value> {
    let sds = mesh.at("/agent/sds")?.trim_start_matches("unix://").to_owned();
    let http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    Ok(json!({
        "node": {"id": "envoy", "cluster": "envoy"},
        "static_resources": {
            "listeners": listeners,
            "clusters": [{
                "name": "sds-grpc",
                "type": "STATIC",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": http2,
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {
                    "cluster_name": "sds-grpc",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": sds}}}}]}],
                },
            }],
        },
    }))
}

fn the_command_line(mesh: &mut Mesh) -> Result<()> {
    let id = mesh.at("/workloads/test/spiffe_id")?;
    let revoke = |args: &[&str]| mesh.kasbah(["cert", "revoke"]).args(args).run();
    let code = |args: &[&str], expected: i32| -> Result<String> {
        let answer = revoke(args)?;
        ensure!(answer.code == expected, "{args:?} ended with {}: {}", answer.code, answer.said());
        Ok(answer.said())
    };
    let asked = code(&["--spiffe-id", id, "--reason", "superseded"], 64)?;
    ensure!(asked.contains("would be revoked") && asked.contains(id) && asked.contains("--yes"), "{asked}");
    let nothing = mesh.kasbah(["cert", "revocations", "list", "-o", "json"]).ok()?.json()?;
    ensure!(nothing["revocations"] == json!([]), "the question has revoked something: {nothing}");
    code(&["--spiffe-id", id, "--reason", "because"], 64)?;
    code(&["--reason", "superseded"], 64)?;
    code(&["abc", "--spiffe-id", id, "--reason", "superseded"], 64)?;
    code(&["xyz", "--reason", "superseded", "--yes"], 65)?;
    code(&["abcd", "--reason", "superseded", "--yes"], 1)?;
    code(&["--spiffe-id", "spiffe://elsewhere/x", "--reason", "superseded", "--yes"], 65)?;
    let first = code(&["--spiffe-id", id, "--reason", "superseded", "--yes", "-o", "json"], 0)?;
    ensure!(first.contains("\"crl_number\""), "{first}");
    let serial = mesh.kasbah(["cert", "revocations", "list", "-o", "json"]).ok()?.json()?;
    let serial = serial["revocations"][0]["serial"].as_str().context("nothing is listed")?.to_owned();
    let again = code(&[&serial, "--reason", "superseded", "--yes"], 0)?;
    ensure!(again.contains("revoked already"), "{again}");
    let trail = mesh.kasbah(["audit", "list", "--action", "cert.revoke", "-o", "json"]).ok()?.json()?;
    let results = trail.as_array().into_iter().flatten().filter_map(|record| record["result"].as_str());
    let done = results.filter(|result| *result == "done").count();
    ensure!(done == 1, "the one act that changed something stands there, and no other: {trail:#}");
    Ok(())
}

const HOST: &str = "helloworld.default.svc.cluster.local";
/// Far more than it should take; what it took is printed.
const OUT_MAX: Duration = Duration::from_secs(20);
