//! SDS over its socket, as Envoy uses it; the workload is this test process.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, SpiffeCertValidatorConfig};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::Any;
use identity::{TrustBundle, TrustDomain};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::fake::{Service, changed, domain, entry, own_entry};
use crate::server::sds;

fn service() -> Service {
    let service = Service::start(sds);
    service.publish([own_entry("a", "/a")]).rotate();
    service
}

fn ask(names: &[&str]) -> DiscoveryRequest {
    let resource_names = names.iter().map(ToString::to_string).collect();
    DiscoveryRequest { resource_names, type_url: SECRET_TYPE_URL.into(), ..DiscoveryRequest::default() }
}

fn ack(answer: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { version_info: answer.version_info.clone(), response_nonce: answer.nonce.clone(), ..ask(names) }
}

fn text(source: Option<DataSource>) -> String {
    match source.unwrap().specifier.unwrap() {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn secrets(resources: &[Any]) -> BTreeMap<String, Type> {
    let decode = |any: &Any| {
        assert_eq!(any.type_url, SECRET_TYPE_URL);
        let secret = Secret::decode(any.value.as_slice()).unwrap();
        (secret.name, secret.r#type.unwrap())
    };
    resources.iter().map(decode).collect()
}

fn certificate(secret: &Type) -> (String, String) {
    match secret {
        Type::TlsCertificate(tls) => (text(tls.certificate_chain.clone()), text(tls.private_key.clone())),
        other => panic!("{other:?}"),
    }
}

fn held_pem(service: &Service) -> String {
    service.state.current().held["a"].svid.chain_pem()
}

struct Stream {
    asks: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(service: &Service, first: DiscoveryRequest) -> Self {
        let (asks, requests) = mpsc::channel(8);
        asks.send(first).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(service.channel().await);
        let answers = client.stream_secrets(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { asks, answers }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        self.answers.message().await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn envoy_gets_certificate_key_and_roots_and_each_rotation() {
    let service = service();
    let names = ["default", "ROOTCA"];
    let mut stream = Stream::open(&service, ask(&names)).await;
    let first = stream.next().await;
    let found = secrets(&first.resources);
    let (chain, key) = certificate(&found["default"]);
    assert_eq!(chain, held_pem(&service));
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
    let Type::ValidationContext(context) = &found["ROOTCA"] else { panic!() };
    assert_eq!(text(context.trusted_ca.clone()), service.state.current().bundles.get(&domain()).unwrap().to_pem());
    stream.asks.send(ack(&first, &names)).await.unwrap();
    service.rotate();
    let second = stream.next().await;
    assert_eq!(certificate(&secrets(&second.resources)["default"]).0, held_pem(&service));
    assert_ne!((&first.nonce, &first.version_info), (&second.nonce, &second.version_info));
}

#[tokio::test]
async fn a_bundle_is_enforced_when_the_proxy_has_acknowledged_it() {
    let service = service();
    let names = ["default", "ROOTCA"];
    let mut stream = Stream::open(&service, ask(&names)).await;
    let first = stream.next().await;
    service.desk.enforced.until(0, 1).await;
    stream.asks.send(ack(&first, &names)).await.unwrap();
    service.desk.enforced.until(1, 1).await;
    let another = crate::fake::root(runtime::clock::Clock::system());
    {
        let mut bundle = service.ca.bundle.lock().unwrap();
        bundle.add_x509_authority(another.certificate().clone()).unwrap();
        bundle.sequence = 2;
    }
    service.ca.publish(&service.state);
    let second = stream.next().await;
    assert_eq!(service.state.current().settled, 2);
    service.desk.enforced.until(1, 2).await;
    let mut nack = ack(&second, &names);
    nack.error_detail = Some(envoy_types::pb::google::rpc::Status { message: "no good".into(), ..Default::default() });
    stream.asks.send(nack).await.unwrap();
    while service.desk.numbers.sds_rejects.get() == 0 {
        tokio::task::yield_now().await;
    }
    service.desk.enforced.until(1, 2).await;
    stream.asks.send(ack(&second, &names)).await.unwrap();
    service.desk.enforced.until(2, 2).await;
}

/// The request of a proxy that says whether its connections rest on a root that its SVID has left.
fn resting(ask: DiscoveryRequest, resting: bool) -> DiscoveryRequest {
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
    let value = Value { kind: Some(Kind::BoolValue(resting)) };
    let metadata = Some(Struct { fields: [(runtime::node_metadata::RESTS_ON_LEFT_ROOT.to_owned(), value)].into() });
    let node = envoy_types::pb::envoy::config::core::v3::Node { metadata, ..Default::default() };
    DiscoveryRequest { node: Some(node), ..ask }
}

#[tokio::test]
async fn a_tainted_root_is_held_as_long_as_connections_of_the_proxy_rest_on_it() {
    let service = service();
    let names = ["default", "ROOTCA"];
    let mut stream = Stream::open(&service, ask(&names)).await;
    let first = stream.next().await;
    stream.asks.send(resting(ack(&first, &names), true)).await.unwrap();
    service.desk.enforced.until(1, 1).await; // Nothing is tainted: an older root may be in use as long as it likes.
    let old = crate::fake::root(runtime::clock::Clock::system());
    {
        let mut bundle = service.ca.bundle.lock().unwrap();
        bundle.add_x509_authority(old.certificate().clone()).unwrap();
        bundle.taint_x509_authority(old.certificate());
        bundle.sequence = 2;
    }
    service.ca.publish(&service.state);
    let second = stream.next().await;
    assert_eq!(service.state.current().settled, 2);
    stream.asks.send(resting(ack(&second, &names), true)).await.unwrap();
    service.desk.enforced.until(1, 2).await;
    // The same answer is acknowledged again when the connections are gone.
    stream.asks.send(resting(ack(&second, &names), false)).await.unwrap();
    service.desk.enforced.until(2, 2).await;
}

#[tokio::test]
async fn a_rejected_secret_is_counted_and_the_next_rotation_still_sent() {
    let service = service();
    let mut stream = Stream::open(&service, ask(&["default"])).await;
    let first = stream.next().await;
    let mut nack = ack(&first, &["default"]);
    nack.error_detail = Some(envoy_types::pb::google::rpc::Status { message: "no good".into(), ..Default::default() });
    stream.asks.send(nack).await.unwrap();
    while service.desk.numbers.sds_rejects.get() == 0 {
        tokio::task::yield_now().await;
    }
    service.rotate();
    assert_eq!(certificate(&secrets(&stream.next().await.resources)["default"]).0, held_pem(&service));
}

#[tokio::test]
async fn secrets_are_found_by_spiffe_id_and_trust_domain() {
    let service = service();
    let foreign = TrustDomain::parse("other.org").unwrap();
    service.ca.federated.lock().unwrap().push(TrustBundle::new(foreign.clone()));
    let federated = changed(&own_entry("a", "/a"), |entry| {
        entry.federates_with.insert(foreign.clone());
    });
    service.publish([federated]).rotate();
    let mut client = SecretDiscoveryServiceClient::new(service.channel().await);
    let names = ["spiffe://example.org/a", "spiffe://example.org", "ALL"];
    let found = secrets(&client.fetch_secrets(ask(&names)).await.unwrap().into_inner().resources);
    assert_eq!(certificate(&found["spiffe://example.org/a"]).0, held_pem(&service));
    let domains = |name: &str| {
        let Type::ValidationContext(context) = &found[name] else { panic!() };
        let config = context.custom_validator_config.clone().unwrap();
        assert_eq!(config.name, "envoy.tls.cert_validator.spiffe");
        let config = SpiffeCertValidatorConfig::decode(config.typed_config.unwrap().value.as_slice()).unwrap();
        config.trust_domains.into_iter().map(|domain| domain.name).collect::<Vec<_>>()
    };
    assert_eq!(domains("spiffe://example.org"), ["example.org"]);
    assert_eq!(domains("ALL"), ["example.org", "other.org"]);
    let everything = secrets(&client.fetch_secrets(ask(&[])).await.unwrap().into_inner().resources);
    assert_eq!(everything.len(), 6);
}

#[tokio::test]
async fn what_the_workload_may_not_have_is_refused() {
    let service = service();
    service.publish([own_entry("a", "/a"), entry("c", "/c", &["unix:uid:4000000000"])]).rotate();
    let mut client = SecretDiscoveryServiceClient::new(service.channel().await);
    for name in ["spiffe://example.org/c", "spiffe://other.org", "nonsense"] {
        let status = client.fetch_secrets(ask(&[name])).await.unwrap_err();
        assert_eq!(
            (status.code(), refusal::reason_of(&status).as_deref()),
            (Code::InvalidArgument, Some("SDS_SECRET_UNKNOWN"))
        );
    }
    service.publish([]);
    let status = client.fetch_secrets(ask(&["default"])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_identity_that_is_taken_away_ends_the_stream() {
    let service = service();
    let mut stream = Stream::open(&service, ask(&["default"])).await;
    stream.next().await;
    service.publish([]);
    assert_eq!(stream.answers.message().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_stream_opened_before_the_first_svid_is_answered_when_there_is_one() {
    let service = Service::start(sds);
    let mut stream = Stream::open(&service, ask(&["default"])).await;
    service.publish([own_entry("a", "/a")]);
    service.rotate();
    assert_eq!(certificate(&secrets(&stream.next().await.resources)["default"]).0, held_pem(&service));
}

#[tokio::test]
async fn delta_streams_get_only_what_changed() {
    let service = service();
    let (asks, requests) = mpsc::channel(8);
    let subscribe = DeltaDiscoveryRequest {
        type_url: SECRET_TYPE_URL.into(),
        resource_names_subscribe: vec!["default".into(), "ROOTCA".into()],
        ..DeltaDiscoveryRequest::default()
    };
    asks.send(subscribe).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(service.channel().await);
    let mut answers = client.delta_secrets(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let names = |answer: &DeltaDiscoveryResponse| -> Vec<String> {
        answer.resources.iter().map(|resource| resource.name.clone()).collect()
    };
    assert_eq!(names(&answers.message().await.unwrap().unwrap()), ["ROOTCA", "default"]);
    service.rotate();
    let second = answers.message().await.unwrap().unwrap();
    assert_eq!(names(&second), ["default"]);
    let secret = second.resources[0].resource.clone().unwrap();
    assert_eq!(certificate(&secrets(&[secret])["default"]).0, held_pem(&service));
}

/// Once something is revoked the lists stand beside the roots; a delta stream is sent the roots' secrets alone.
#[tokio::test]
async fn lists_are_pushed_with_the_roots_once_something_is_revoked() {
    let service = service();
    let put = |serials: &[&str]| {
        let news = service.ca.revoke(serials);
        let revocations = service.state.current().revocations.with(news, 0).unwrap();
        service.state.put_revocations(revocations);
    };
    put(&[]);
    let names = ["default", "ROOTCA", "spiffe://example.org"];
    let mut stream = Stream::open(&service, ask(&names)).await;
    let first = stream.next().await;
    let crl = |secret: &Type| match secret {
        Type::ValidationContext(context) => context.crl.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(crl(&secrets(&first.resources)["ROOTCA"]), None, "nothing is revoked");
    stream.asks.send(ack(&first, &names)).await.unwrap();
    let (ask_delta, requests) = mpsc::channel(8);
    let subscribe = DeltaDiscoveryRequest {
        type_url: SECRET_TYPE_URL.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    ask_delta.send(subscribe).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(service.channel().await);
    let mut delta = client.delta_secrets(ReceiverStream::new(requests)).await.unwrap().into_inner();
    assert_eq!(delta.message().await.unwrap().unwrap().resources.len(), 3);
    put(&["0a"]);
    let second = stream.next().await;
    let found = secrets(&second.resources);
    let pem = text(crl(&found["ROOTCA"]));
    assert!(pem.starts_with("-----BEGIN X509 CRL-----"), "{pem}");
    let Type::ValidationContext(context) = &found["spiffe://example.org"] else { panic!() };
    let typed = context.custom_validator_config.clone().unwrap().typed_config.unwrap();
    let config = SpiffeCertValidatorConfig::decode(typed.value.as_slice()).unwrap();
    let bundle = text(config.trust_domains[0].trust_bundle.clone());
    assert!(bundle.contains("BEGIN CERTIFICATE") && bundle.ends_with(&pem), "{bundle}");
    let changed = delta.message().await.unwrap().unwrap();
    let mut sent: Vec<&str> = changed.resources.iter().map(|resource| resource.name.as_str()).collect();
    sent.sort_unstable();
    assert_eq!(sent, ["ROOTCA", "spiffe://example.org"]);
}
