//! The service over real connections: what a stock client sees on the wire.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use identity::authority::{LeafProfile, X509Authority};
use identity::tls::{ClientAuth, FixedSnapshot, PeerRule};
use identity::{BundleSet, PrivateKey, TrustBundle, X509Svid};
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use runtime::{clock, listen, mtls};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{AdsServer, Generation, Hub};
use crate::compile::Mesh;
use crate::compile::sample::{documents, trust_domain};
use crate::resources::Type;

type Client = AggregatedDiscoveryServiceClient<Channel>;

fn mesh(hosts: &[&str]) -> Mesh {
    let entry = |host: &&str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {host}}}\nspec:\n  hosts: [{host}.test]\n  \
             resolution: STATIC\n  ports: [{{number: 80, name: http}}]\n  endpoints: [{{address: 10.0.0.1}}]\n---\n"
        )
    };
    Mesh::build(&documents(&hosts.iter().map(entry).collect::<String>()), &trust_domain())
}

fn hub(hosts: &[&str]) -> Hub {
    Hub::new(Generation::new(1, mesh(hosts)), &runtime::metrics::Metrics::new())
}

fn routes(hub: &Hub, checked: bool) -> Routes {
    Routes::new(AggregatedDiscoveryServiceServer::new(AdsServer::new(hub.clone(), checked)))
}

/// A server in plain text that ends with the returned guard.
async fn plain(hub: &Hub) -> (Client, Stopping) {
    let listener = listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
    let router = routes(hub, false).prepare().into_axum_router();
    tokio::spawn(serve::tcp(listener, router, Limits::default(), shutdown.clone()));
    let client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
    (client, Stopping(shutdown))
}

struct Stopping(Shutdown);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

fn node(account: &str) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [
        ("NAMESPACE", text("default")),
        ("SERVICE_ACCOUNT", text(account)),
        ("INSTANCE_IPS", text("127.9.9.9")),
        ("INTERCEPTION_MODE", text("NONE")),
    ];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let id = format!("sidecar~127.9.9.9~{account}.default~default.svc.cluster.local");
    Node { id, metadata: Some(Struct { fields }), ..Node::default() }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("an answer")
}

/// A state-of-the-world stream that acknowledges what it is given.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
}

impl Sotw {
    async fn open(client: &mut Client, node: Node) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(DiscoveryRequest { node: Some(node), ..Self::asking(Type::Cluster, &[]) }).await.unwrap();
        let answers = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    fn asking(kind: Type, names: &[&str]) -> DiscoveryRequest {
        let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
        DiscoveryRequest { type_url: kind.url().to_owned(), resource_names, ..Default::default() }
    }

    async fn ask(&self, kind: Type, names: &[&str], nonce: &str) {
        let request = DiscoveryRequest { response_nonce: nonce.to_owned(), ..Self::asking(kind, names) };
        self.requests.send(request).await.unwrap();
    }

    async fn answer(&mut self) -> Result<DiscoveryResponse, tonic::Status> {
        soon(self.answers.message()).await.map(|answer| answer.expect("the stream goes on"))
    }
}

fn kind(answer: &DiscoveryResponse) -> Type {
    Type::of_url(&answer.type_url).unwrap()
}

#[tokio::test]
async fn a_new_generation_reaches_an_open_stream_clusters_first() {
    let hub = hub(&["a"]);
    let (mut client, _stopping) = plain(&hub).await;
    let mut stream = Sotw::open(&mut client, node("w")).await.unwrap();
    let clusters = stream.answer().await.unwrap();
    assert_eq!(clusters.resources.len(), 3, "the service and the two that always are there");
    stream.ask(Type::Cluster, &[], &clusters.nonce).await;
    let names = ["outbound|80||a.test", "outbound|80||b.test"];
    stream.ask(Type::Endpoints, &names, "").await;
    assert_eq!(stream.answer().await.unwrap().resources.len(), 1);
    stream.ask(Type::Route, &["http_proxy"], "").await;
    assert_eq!(kind(&stream.answer().await.unwrap()), Type::Route);

    hub.publish(mesh(&["a", "b"]));
    let mut pushed = Vec::new();
    for _ in 0..3 {
        let answer = stream.answer().await.unwrap();
        pushed.push((kind(&answer), answer.resources.len()));
    }
    assert_eq!(pushed, [(Type::Cluster, 4), (Type::Endpoints, 2), (Type::Route, 1)]);
}

#[tokio::test]
async fn a_delta_stream_gets_what_changed_and_what_is_gone() {
    let hub = hub(&["a", "b"]);
    let (mut client, _stopping) = plain(&hub).await;
    let (requests, receiver) = mpsc::channel(16);
    let url = Type::Cluster.url().to_owned();
    let first = DeltaDiscoveryRequest { node: Some(node("w")), type_url: url, ..Default::default() };
    requests.send(first).await.unwrap();
    let mut answers: Streaming<DeltaDiscoveryResponse> =
        client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut next = async || soon(answers.message()).await.unwrap().expect("the stream goes on");
    assert_eq!(next().await.resources.len(), 4);
    hub.publish(mesh(&["b"]));
    let answer = next().await;
    assert_eq!((answer.resources.len(), answer.removed_resources), (0, vec!["outbound|80||a.test".to_owned()]));
}

#[tokio::test]
async fn every_stream_of_one_client_has_its_own_state() {
    let hub = hub(&["a"]);
    let (mut client, _stopping) = plain(&hub).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(Sotw::open(&mut client, node("w")).await.unwrap());
    }
    for stream in &mut streams {
        assert_eq!(stream.answer().await.unwrap().resources.len(), 3);
    }
    assert_eq!(hub.status()["clients"].as_array().unwrap().len(), 20);
}

#[tokio::test]
async fn a_first_request_without_a_node_is_refused() {
    let hub = hub(&[]);
    let (mut client, _stopping) = plain(&hub).await;
    let mut stream = Sotw::open(&mut client, Node::default()).await.unwrap();
    let refusal = stream.answer().await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
}

/// What a workload of the mesh shows and trusts.
fn snapshot(authority: &X509Authority, path: &str) -> FixedSnapshot {
    let key = PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile::new(trust_domain().with_path(path).unwrap(), Duration::from_secs(600));
    let chain = authority.sign_svid(&key.public_key_spki(), &profile, clock::now()).unwrap();
    let bundle = TrustBundle::from_x509_authorities(trust_domain(), [authority.certificate().clone()]).unwrap();
    let svid = Arc::new(X509Svid::from_parts(chain, key).unwrap());
    FixedSnapshot { svid: Some(svid), bundles: Arc::new(BundleSet::new([Arc::new(bundle)])) }
}

#[tokio::test]
async fn over_mtls_a_client_may_only_be_the_node_of_its_own_identity() {
    let authority = X509Authority::generate_root(&trust_domain(), Duration::from_secs(3600), clock::now()).unwrap();
    let listener = listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let (address, stopping) = (listener.local_addr().unwrap(), Stopping(Shutdown::new()));
    let server = snapshot(&authority, "/ns/kasbah-system/sa/discovery");
    let routes = routes(&hub(&["a"]), true);
    let serving = mtls::serve_tonic(listener, server, ClientAuth::Required, routes, stopping.0.clone());
    tokio::spawn(async move { serving.await.unwrap() });
    let source = snapshot(&authority, "/ns/default/sa/honest");
    let mut client = Client::new(mtls::channel(&address.to_string(), source, PeerRule::AnyTrusted));

    let mut honest = Sotw::open(&mut client, node("honest")).await.unwrap();
    assert_eq!(honest.answer().await.unwrap().resources.len(), 3);
    let mut thief = Sotw::open(&mut client, node("victim")).await.unwrap();
    let refusal = thief.answer().await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert_eq!(runtime::refusal::reason_of(&refusal).as_deref(), Some("XDS_NODE_NOT_ALLOWED"));
}
