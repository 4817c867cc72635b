//! The ADS and SDS clients against fake servers: order, acknowledgements, refusals, reconnects.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, Node, TypedExtensionConfig, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
    spiffe_cert_validator_config,
};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::{Any, value};
use prost::Message;
use runtime::logs::LogControl;
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::harness::{Authority, HOUR, dial, echo, get, http1, settings};
use super::protos::{all_to, any, assignment, eds_cluster, hcm_by_rds, http_chain, listener};
use crate::settings::XdsMode;
use crate::xds::subscription::Kind;
use crate::{Proxy, Settings};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A discovery server that a test leads by hand: it sees each request and says each response.
#[derive(Clone)]
struct Fake {
    delta: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    sotw: mpsc::UnboundedSender<DiscoveryRequest>,
    say_delta: Arc<Mutex<Option<mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>>>>,
    say_sotw: Arc<Mutex<Option<mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>>>>,
}

struct Seen {
    delta: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
    sotw: mpsc::UnboundedReceiver<DiscoveryRequest>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (say, said) = mpsc::unbounded_channel();
        *self.say_sotw.lock().unwrap() = Some(say);
        let (mut stream, seen) = (request.into_inner(), self.sotw.clone());
        tokio::spawn(async move {
            while let Some(Ok(request)) = stream.next().await {
                seen.send(request).unwrap();
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (say, said) = mpsc::unbounded_channel();
        *self.say_delta.lock().unwrap() = Some(say);
        let (mut stream, seen) = (request.into_inner(), self.delta.clone());
        tokio::spawn(async move {
            while let Some(Ok(request)) = stream.next().await {
                seen.send(request).unwrap();
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said))))
    }
}

impl Fake {
    fn new() -> (Self, Seen) {
        let ((delta, seen_delta), (sotw, seen_sotw)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let fake = Self { delta, sotw, say_delta: Arc::default(), say_sotw: Arc::default() };
        (fake, Seen { delta: seen_delta, sotw: seen_sotw })
    }

    async fn serve(&self) -> std::net::SocketAddr {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let service = AggregatedDiscoveryServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(socket)),
        );
        address
    }

    fn say(&self, kind: Kind, nonce: &str, resources: Vec<(&str, Any)>, removed: &[&str]) {
        let resources = resources
            .into_iter()
            .map(|(name, body)| Resource {
                name: name.to_owned(),
                version: nonce.to_owned(),
                resource: Some(body),
                ..Resource::default()
            })
            .collect();
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            system_version_info: nonce.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.say_delta.lock().unwrap().as_ref().unwrap().send(Ok(response)).unwrap();
    }

    fn say_all(&self, kind: Kind, nonce: &str, resources: Vec<Any>) {
        let response = DiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            version_info: nonce.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            ..DiscoveryResponse::default()
        };
        self.say_sotw.lock().unwrap().as_ref().unwrap().send(Ok(response)).unwrap();
    }

    fn hang_up(&self) {
        *self.say_delta.lock().unwrap() = None;
        *self.say_sotw.lock().unwrap() = None;
    }
}

impl Seen {
    async fn delta(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        let request =
            tokio::time::timeout(Duration::from_secs(10), self.delta.recv()).await.expect("a request").unwrap();
        assert_eq!(request.type_url, kind.type_url(), "{request:?}");
        request
    }

    async fn sotw(&mut self, kind: Kind) -> DiscoveryRequest {
        let request =
            tokio::time::timeout(Duration::from_secs(10), self.sotw.recv()).await.expect("a request").unwrap();
        assert_eq!(request.type_url, kind.type_url(), "{request:?}");
        request
    }
}

struct Running {
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
    admin: std::net::SocketAddr,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let shutdown = Shutdown::new();
        let proxy = Proxy::build(settings, LogControl::detached()).unwrap();
        let admin = proxy.admin_addr().unwrap();
        let until = shutdown.clone();
        let task = tokio::spawn(async move { proxy.run(until).await.unwrap() });
        Self { shutdown, task, admin }
    }

    async fn page(&self, path: &str) -> (u16, String) {
        let got = http1(
            dial(self.admin).await,
            http::Request::get(path).header("host", "localhost").body(Default::default()).unwrap(),
        )
        .await;
        (got.status.as_u16(), got.body)
    }

    async fn wait_ready(&self) {
        for _ in 0..200 {
            if self.page("/healthz/ready").await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not ready: {:?}", self.page("/healthz/ready").await);
    }

    async fn address(&self, listener: &str) -> std::net::SocketAddr {
        let dump: serde_json::Value = serde_json::from_str(&self.page("/config_dump").await.1).unwrap();
        let open = dump["open"].as_array().unwrap().iter().find(|open| open["listener"] == listener).unwrap().clone();
        open["address"].as_str().unwrap().parse().unwrap()
    }

    async fn end(self) {
        self.shutdown.trigger();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("ends").unwrap();
    }
}

fn settings_for(address: std::net::SocketAddr, mode: XdsMode) -> Settings {
    let mut settings = settings();
    settings.discovery.address = address.to_string();
    settings.discovery.mode = mode;
    settings.access_log = "none".to_owned();
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn delta_subscribes_in_order_acknowledges_refuses_and_resumes() {
    let upstream = echo().await;
    let (fake, mut seen) = Fake::new();
    let running = Running::start(settings_for(fake.serve().await, XdsMode::Delta));

    let first = seen.delta(Kind::Cluster).await;
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.node.unwrap().id, settings().node.id);
    assert_eq!(running.page("/healthz/ready").await.0, 503);

    fake.say(Kind::Cluster, "c1", vec![("echo", any(&eds_cluster("echo")))], &[]);
    let ack = seen.delta(Kind::Cluster).await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail, ack.node), ("c1", None, None));
    assert_eq!(seen.delta(Kind::Endpoint).await.resource_names_subscribe, ["echo"]);
    assert_eq!(seen.delta(Kind::Listener).await.resource_names_subscribe, ["*"]);

    fake.say(Kind::Endpoint, "e1", vec![("echo", any(&assignment("echo", &[upstream])))], &[]);
    assert_eq!(seen.delta(Kind::Endpoint).await.response_nonce, "e1");
    let entry = listener("http", vec![http_chain(&hcm_by_rds("r"))]);
    fake.say(Kind::Listener, "l1", vec![("http", any(&entry))], &[]);
    assert_eq!(seen.delta(Kind::Listener).await.response_nonce, "l1");
    assert_eq!(seen.delta(Kind::Route).await.resource_names_subscribe, ["r"]);
    fake.say(Kind::Route, "r1", vec![("r", any(&all_to("r", "echo")))], &[]);
    assert_eq!(seen.delta(Kind::Route).await.response_nonce, "r1");
    running.wait_ready().await;
    let address = running.address("http").await;
    assert_eq!(http1(dial(address).await, get("/")).await.status, 200);

    // One bad resource refuses the whole response, and what was good keeps serving.
    let mut bad = all_to("r", "echo");
    bad.virtual_hosts[0].routes[0].r#match = None;
    fake.say(Kind::Route, "r2", vec![("r", any(&bad))], &[]);
    let nack = seen.delta(Kind::Route).await;
    assert_eq!(nack.response_nonce, "r2");
    let told = nack.error_detail.unwrap().message;
    assert!(told.starts_with("RouteConfiguration r: ") && told.contains("match"), "{told}");
    assert_eq!(http1(dial(address).await, get("/")).await.status, 200);
    assert!(running.page("/metrics").await.1.contains("kasbah_xds_answers_total{type=\"route\",answer=\"nack\"} 1\n"));

    // The stream breaks: serving goes on, and the next stream says what is held.
    fake.hang_up();
    let again = seen.delta(Kind::Cluster).await;
    assert!(again.node.is_some());
    assert_eq!(again.initial_resource_versions.get("echo").map(String::as_str), Some("c1"));
    assert_eq!(seen.delta(Kind::Endpoint).await.initial_resource_versions.get("echo").map(String::as_str), Some("e1"));
    assert_eq!(seen.delta(Kind::Listener).await.initial_resource_versions.len(), 1);
    assert_eq!(seen.delta(Kind::Route).await.initial_resource_versions.get("r").map(String::as_str), Some("r1"));
    assert_eq!(http1(dial(address).await, get("/")).await.status, 200);

    // A listener that is removed closes its address and its routes are not asked for any more.
    fake.say(Kind::Listener, "l2", vec![], &["http"]);
    assert_eq!(seen.delta(Kind::Listener).await.response_nonce, "l2");
    assert_eq!(seen.delta(Kind::Route).await.resource_names_unsubscribe, ["r"]);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_the_world_is_spoken_too() {
    let upstream = echo().await;
    let (fake, mut seen) = Fake::new();
    let running = Running::start(settings_for(fake.serve().await, XdsMode::Sotw));
    assert!(seen.sotw(Kind::Cluster).await.resource_names.is_empty());
    fake.say_all(Kind::Cluster, "1", vec![any(&eds_cluster("echo")), any(&eds_cluster("other"))]);
    assert_eq!(seen.sotw(Kind::Cluster).await.version_info, "1");
    assert_eq!(seen.sotw(Kind::Endpoint).await.resource_names, ["echo", "other"]);
    seen.sotw(Kind::Listener).await;
    fake.say_all(Kind::Endpoint, "1", vec![any(&assignment("echo", &[upstream]))]);
    seen.sotw(Kind::Endpoint).await;
    fake.say_all(Kind::Cluster, "2", vec![any(&eds_cluster("echo"))]);
    assert_eq!(seen.sotw(Kind::Cluster).await.response_nonce, "2");
    assert_eq!(seen.sotw(Kind::Endpoint).await.resource_names, ["echo"]);
    fake.say_all(Kind::Listener, "1", vec![any(&listener("http", vec![http_chain(&hcm_by_rds("r"))]))]);
    seen.sotw(Kind::Listener).await;
    assert_eq!(seen.sotw(Kind::Route).await.resource_names, ["r"]);
    fake.say_all(Kind::Route, "1", vec![any(&all_to("r", "echo"))]);
    seen.sotw(Kind::Route).await;
    running.wait_ready().await;
    assert_eq!(http1(dial(running.address("http").await).await, get("/")).await.status, 200);
    running.end().await;
}

/// An agent's SDS socket with secrets that a test changes.
struct FakeAgent {
    said: Mutex<mpsc::UnboundedReceiver<DiscoveryResponse>>,
    seen: mpsc::UnboundedSender<DiscoveryRequest>,
}

#[tonic::async_trait]
impl SecretDiscoveryService for FakeAgent {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (mut stream, seen) = (request.into_inner(), self.seen.clone());
        tokio::spawn(async move {
            while let Some(Ok(request)) = stream.next().await {
                let _ = seen.send(request);
            }
        });
        let (_, empty) = mpsc::unbounded_channel();
        let said = std::mem::replace(&mut *self.said.lock().unwrap(), empty);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said).map(Ok))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("no delta"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("no fetch"))
    }
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())), ..DataSource::default() })
}

fn svid_secret(authority: &Authority, account: &str) -> Any {
    let svid = authority.svid(account, HOUR);
    let certificate = TlsCertificate {
        certificate_chain: inline(&svid.chain_pem()),
        private_key: inline(&svid.key().pkcs8_pem()),
        ..TlsCertificate::default()
    };
    any(&Secret { name: "default".to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

fn roots_secret(authorities: &[&Authority]) -> Any {
    let domain = |authority: &&Authority| spiffe_cert_validator_config::TrustDomain {
        name: authority.bundle().trust_domain.to_string(),
        trust_bundle: inline(&authority.bundle().to_pem()),
        ..Default::default()
    };
    let config =
        SpiffeCertValidatorConfig { trust_domains: authorities.iter().map(domain).collect(), ..Default::default() };
    let context = CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(any(&config)),
        }),
        ..CertificateValidationContext::default()
    };
    any(&Secret { name: "ROOTCA".to_owned(), r#type: Some(secret::Type::ValidationContext(context)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_from_the_agent_and_bad_ones_do_not_replace_good_ones() {
    let authority = Authority::new();
    let elsewhere = Authority::of("elsewhere.test");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sds.sock");
    let ((say, said), (seen, mut requests)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let agent = FakeAgent { said: Mutex::new(said), seen };
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&socket).unwrap());
    let service = SecretDiscoveryServiceServer::new(agent);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let (fake, mut discovery) = Fake::new();
    let mut settings = settings_for(fake.serve().await, XdsMode::Delta);
    settings.sds = Some(format!("unix://{}", socket.display()));
    let running = Running::start(settings);
    let first = requests.recv().await.unwrap();
    assert_eq!(first.resource_names, ["ROOTCA", "default"]);
    assert!(first.node.is_some());
    let response = |nonce: &str, resources: Vec<Any>| DiscoveryResponse {
        type_url: Kind::Secret.type_url().to_owned(),
        version_info: nonce.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        ..DiscoveryResponse::default()
    };
    assert!(running.page("/healthz/ready").await.1.contains("own identity"));
    say.send(response("1", vec![svid_secret(&authority, "helloworld"), roots_secret(&[&authority, &elsewhere])]))
        .unwrap();
    let ack = requests.recv().await.unwrap();
    assert_eq!((ack.version_info.as_str(), ack.error_detail), ("1", None));
    let certs: serde_json::Value = serde_json::from_str(&running.page("/certs").await.1).unwrap();
    assert_eq!(certs["svid"]["spiffe_id"], "spiffe://cluster.local/ns/default/sa/helloworld");
    assert_eq!(certs["bundles"].as_array().unwrap().len(), 2);
    let serial = certs["certificates"][0]["cert_chain"][0]["serial_number"].clone();
    assert_eq!(certs["svid"]["serial"], serial);

    let broken = Secret {
        name: "default".to_owned(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline("nonsense"),
            private_key: inline("nonsense"),
            ..TlsCertificate::default()
        })),
    };
    say.send(response("2", vec![any(&broken)])).unwrap();
    let nack = requests.recv().await.unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "2"));
    assert!(nack.error_detail.is_some());

    say.send(response("3", vec![svid_secret(&authority, "helloworld")])).unwrap();
    assert_eq!(requests.recv().await.unwrap().version_info, "3");
    let certs: serde_json::Value = serde_json::from_str(&running.page("/certs").await.1).unwrap();
    assert_ne!(certs["svid"]["serial"], serial);
    assert_eq!(certs["bundles"].as_array().unwrap().len(), 2, "roots stay when only the SVID comes");

    discovery.delta(Kind::Cluster).await;
    fake.say(Kind::Cluster, "c", vec![], &[]);
    fake.say(Kind::Listener, "l", vec![], &[]);
    running.wait_ready().await;
    hears_what_is_in_force(&fake, &mut discovery, &mut requests).await;
    running.end().await;
}

/// The agent hears what is in force, which a refused answer is not.
async fn hears_what_is_in_force(
    fake: &Fake,
    discovery: &mut Seen,
    requests: &mut mpsc::UnboundedReceiver<DiscoveryRequest>,
) {
    let bad = Any { type_url: Kind::Listener.type_url().to_owned(), value: vec![255] };
    fake.say(Kind::Listener, "bad", vec![("http", bad)], &[]);
    while discovery.delta.recv().await.unwrap().error_detail.is_none() {}
    fake.say(Kind::Cluster, "d", vec![], &[]);
    let mut told = Vec::new();
    while told.last().is_none_or(|(cds, _)| cds != "d") {
        let ask = requests.recv().await.unwrap();
        assert_eq!((ask.version_info.as_str(), ask.error_detail), ("3", None), "it is no question");
        told.push(configured(&ask.node.unwrap()));
    }
    assert_eq!(told.last().unwrap().1, "l");
}

/// What a request says of clusters and listeners.
fn configured(node: &Node) -> (String, String) {
    let fields = &node.metadata.as_ref().unwrap().fields;
    let Some(value::Kind::StructValue(said)) = &fields[runtime::node_metadata::CONFIGURED].kind else {
        panic!("{fields:?}")
    };
    let version = |kind: &str| match said.fields.get(kind).and_then(|version| version.kind.clone()) {
        Some(value::Kind::StringValue(version)) => version,
        _ => String::new(),
    };
    (version("cds"), version("lds"))
}

#[test]
fn a_secret_is_never_shown() {
    let authority = Authority::new();
    let held =
        crate::tls::own::Held { svid: Some(authority.svid("x", HOUR)), root: None, bundles: authority.bundles() };
    let shown = format!("{held:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains("pkcs8"), "{shown}");
    assert!(Secret::default().encode_to_vec().is_empty());
}
