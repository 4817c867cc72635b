//! The whole service in one process: real mTLS, real gRPC, port 0.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::data::accesslog::v3::{HttpAccessLogEntry, HttpRequestProperties};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries,
};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, DeniedHttpResponse};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use identity::authority::{LeafProfile, X509Authority};
use identity::tls::PeerRule;
use identity::{BundleSet, PrivateKey, TrustBundle, TrustDomain, X509Svid};
use runtime::logs::LogControl;
use runtime::mtls;
use runtime::shutdown::Shutdown;
use runtime::workload_api::{Identity, IdentitySource, publisher};
use tonic::Code;
use tonic::transport::Channel;

use crate::{Policy, RunError, Settings};

/// Trust domains that trust each other.
struct World(Vec<(TrustDomain, X509Authority)>);

impl World {
    fn new() -> Self {
        let now = runtime::clock::now();
        let authority = |name: &str| {
            let domain = TrustDomain::parse(name).unwrap();
            let root = X509Authority::generate_root(&domain, Duration::from_secs(3_600), now).unwrap();
            (domain, root)
        };
        Self(vec![authority("own.example"), authority("foreign.example")])
    }

    fn identity(&self, domain: usize, path: &str) -> Identity {
        let (name, authority) = &self.0[domain];
        let key = PrivateKey::generate_p256().unwrap();
        let profile = LeafProfile::new(name.with_path(path).unwrap(), Duration::from_secs(600));
        let chain = authority.sign_svid(&key.public_key_spki(), &profile, runtime::clock::now()).unwrap();
        let bundles = self.0.iter().map(|(name, authority)| {
            Arc::new(TrustBundle::from_x509_authorities(name.clone(), [authority.certificate().clone()]).unwrap())
        });
        let svid = Arc::new(X509Svid::from_parts(chain, key).unwrap());
        Identity::new(vec![svid], Arc::new(BundleSet::new(bundles))).unwrap()
    }
}

/// A running service; its folder goes with it.
struct Service {
    world: World,
    dir: PathBuf,
    grpc: String,
    admin: std::net::SocketAddr,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<Result<(), RunError>>,
}

const RULES: &str = "
authorization:
  rules:
    - name: no-admin
      action: deny
      match: {path_prefixes: [/admin], principals: ['spiffe://own.example/ns/x/*']}
      status: 451
      body: not for you
    - name: no-delete
      action: deny
      match: {methods: [DELETE]}
quotas:
  - domain: demo
    limits:
      - {descriptor: [{key: path, value: /limited}], requests: 2, per: hour}
      - {descriptor: [{key: user}], requests: 1, per: hour}
";

impl Service {
    async fn start(name: &str) -> Self {
        let world = World::new();
        let source = IdentitySource::fixed(world.identity(0, "/policy"));
        Self::start_as(name, world, source).await
    }

    async fn start_as(name: &str, world: World, source: IdentitySource) -> Self {
        let dir = std::env::temp_dir().join(format!("kasbah-policy-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("rules.yaml"), RULES).unwrap();
        let policy = Policy::build(settings(&dir), source, LogControl::detached()).await.unwrap();
        let (grpc, admin) = (policy.grpc_addr().unwrap().to_string(), policy.admin_addr().unwrap());
        let shutdown = Shutdown::new();
        let running = tokio::spawn(policy.run(shutdown.clone()));
        Self { world, dir, grpc, admin, shutdown, running }
    }

    fn channel(&self) -> Channel {
        self.channel_as(0, "/gateway")
    }

    fn channel_as(&self, domain: usize, path: &str) -> Channel {
        let source = IdentitySource::fixed(self.world.identity(domain, path));
        mtls::channel(&self.grpc, source, PeerRule::AnyTrusted)
    }

    async fn check(&self, request: CheckRequest) -> Option<DeniedHttpResponse> {
        let answer = AuthorizationClient::new(self.channel()).check(request).await.unwrap().into_inner();
        match answer.http_response.unwrap() {
            HttpResponse::OkResponse(_) => {
                assert_eq!(answer.status.unwrap().code, Code::Ok as i32);
                None
            }
            HttpResponse::DeniedResponse(denied) => {
                assert_eq!(answer.status.unwrap().code, Code::PermissionDenied as i32);
                Some(denied)
            }
            HttpResponse::ErrorResponse(_) => panic!("no answer of ours"),
        }
    }

    async fn admin_json(&self, path: &str) -> serde_json::Value {
        serde_json::from_slice(&runtime::ask::get(self.admin, path).await.unwrap().1).unwrap()
    }

    async fn stop(self) -> String {
        self.shutdown.trigger();
        self.running.await.unwrap().unwrap();
        let log = std::fs::read_to_string(self.dir.join("access.jsonl")).unwrap();
        std::fs::remove_dir_all(&self.dir).unwrap();
        log
    }
}

fn settings(dir: &std::path::Path) -> Settings {
    Settings {
        trust_domain: TrustDomain::parse("own.example").unwrap(),
        grpc: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        workload_api: "/nonexistent".into(),
        rules: dir.join("rules.yaml"),
        access_log: dir.join("access.jsonl"),
        access_log_bytes_max: 1 << 20,
        access_log_files_max: 2,
    }
}

fn request(principal: &str, method: &str, path: &str) -> CheckRequest {
    let http = HttpRequest { method: method.into(), path: path.into(), host: "h".into(), ..Default::default() };
    let attributes = AttributeContext {
        source: Some(Peer { principal: principal.into(), ..Default::default() }),
        request: Some(Request { http: Some(http), ..Default::default() }),
        ..Default::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

fn header(denied: &DeniedHttpResponse, name: &str) -> Option<String> {
    let headers = denied.headers.iter().filter_map(|option| option.header.as_ref());
    headers.filter(|header| header.key == name).map(|header| header.value.clone()).next()
}

async fn ask(client: &mut RateLimitServiceClient<Channel>, entries: &[(&str, &str)]) -> RateLimitResponse {
    let entries = entries.iter().map(|(key, value)| Entry { key: (*key).into(), value: (*value).into() }).collect();
    let descriptors = vec![RateLimitDescriptor { entries, ..Default::default() }];
    let request = RateLimitRequest { domain: "demo".into(), descriptors, hits_addend: 0 };
    client.should_rate_limit(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_denied_request_gets_status_body_and_reason_of_its_rule() {
    let service = Service::start("check").await;
    let denied = service.check(request("spiffe://own.example/ns/x/sa/y", "GET", "/admin?q")).await.unwrap();
    assert_eq!((denied.status.as_ref().unwrap().code, denied.body.as_str()), (451, "not for you"));
    assert_eq!(header(&denied, "x-kasbah-reason").as_deref(), Some("EXT_AUTHZ_DENIED"));
    let plain = service.check(request("", "DELETE", "/")).await.unwrap();
    assert!(plain.status.as_ref().unwrap().code == 403 && plain.body.contains("no-delete"), "{plain:?}");
    assert!(service.check(request("spiffe://own.example/ns/z/sa/y", "GET", "/admin")).await.is_none());
    service.stop().await;
}

#[tokio::test]
async fn a_question_that_says_nothing_is_refused_with_a_reason() {
    let service = Service::start("empty").await;
    let refused = AuthorizationClient::new(service.channel()).check(CheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(runtime::refusal::reason_of(&refused).as_deref(), Some("POLICY_REQUEST_EMPTY"));
    let refused = RateLimitServiceClient::new(service.channel()).should_rate_limit(RateLimitRequest::default()).await;
    assert_eq!(runtime::refusal::reason_of(&refused.unwrap_err()).as_deref(), Some("POLICY_DESCRIPTOR_INVALID"));
    service.stop().await;
}

#[tokio::test]
async fn quotas_hold_and_a_refusal_says_when_to_come_again() {
    let service = Service::start("quota").await;
    let mut client = RateLimitServiceClient::new(service.channel());
    for left in [1, 0] {
        let answer = ask(&mut client, &[("path", "/limited")]).await;
        assert_eq!((answer.overall_code, answer.statuses[0].limit_remaining), (1, left));
    }
    let refused = ask(&mut client, &[("path", "/limited")]).await;
    assert_eq!((refused.overall_code, refused.statuses[0].code), (2, 2));
    let headers: Vec<(&str, &str)> =
        refused.response_headers_to_add.iter().map(|header| (header.key.as_str(), header.value.as_str())).collect();
    assert_eq!(headers[0], ("x-kasbah-reason", "RATE_LIMITED"));
    assert!(headers[1].0 == "retry-after" && headers[1].1.parse::<u32>().unwrap() > 1_700, "{headers:?}");
    for user in ["a", "b"] {
        assert_eq!(ask(&mut client, &[("user", user)]).await.overall_code, 1);
        assert_eq!(ask(&mut client, &[("user", user)]).await.overall_code, 2);
    }
    for _ in 0..5 {
        assert_eq!(ask(&mut client, &[("path", "/free")]).await.overall_code, 1);
    }
    service.stop().await;
}

#[tokio::test]
async fn access_log_lines_are_all_written_when_the_service_ends_under_an_open_stream() {
    let service = Service::start("als").await;
    let mut client = AccessLogServiceClient::new(service.channel());
    let entry = |path: String| HttpAccessLogEntry {
        request: Some(HttpRequestProperties { path, ..Default::default() }),
        ..Default::default()
    };
    let messages = (0..50).map(|n| StreamAccessLogsMessage {
        identifier: (n == 0).then(|| Identifier { log_name: "mesh".into(), ..Default::default() }),
        log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: vec![entry(format!("/{n}")); 2] })),
    });
    // The stream never ends by itself, as a proxy's.
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    for message in messages {
        sender.send(message).await.unwrap();
    }
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let call = tokio::spawn(async move { client.stream_access_logs(stream).await });
    let mut lines = 0;
    while lines < 100 {
        lines = service.admin_json("/status").await["access_log"]["lines"].as_u64().unwrap();
    }
    let log = service.stop().await;
    assert_eq!(log.lines().count(), 100);
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["path"], &last["reporter"], &last["log_name"]),
        (&"/49".into(), &"spiffe://own.example/gateway".into(), &"mesh".into())
    );
    assert!(call.await.unwrap().is_ok(), "the stream is ended in order");
    drop(sender);
}

#[tokio::test]
async fn a_peer_of_another_trust_domain_is_not_served() {
    let service = Service::start("foreign").await;
    let channel = service.channel_as(1, "/gateway");
    assert!(AuthorizationClient::new(channel).check(request("", "GET", "/")).await.is_err());
    assert!(service.check(request("", "GET", "/")).await.is_none());
    service.stop().await;
}

#[tokio::test]
async fn health_answers_the_proxy() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    let service = Service::start("health").await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(service.channel());
    for name in ["", "envoy.service.auth.v3.Authorization", "envoy.service.ratelimit.v3.RateLimitService"] {
        let answer = health.check(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    service.stop().await;
}

#[tokio::test]
async fn the_admin_address_shows_rules_identity_and_counts() {
    let service = Service::start("admin").await;
    service.check(request("", "DELETE", "/")).await.unwrap();
    let status = service.admin_json("/status").await;
    assert_eq!((&status["role"], &status["spiffe_id"]), (&"policy".into(), &"spiffe://own.example/policy".into()));
    assert_eq!((&status["rules"]["authorization_rules"], &status["rules"]["quotas"]), (&2.into(), &2.into()));
    assert_eq!(service.admin_json("/config_dump").await["rules"]["quotas"][0]["domain"], "demo");
    assert_eq!(service.admin_json("/certs").await["svid"]["spiffe_id"], "spiffe://own.example/policy");
    let metrics = runtime::ask::get(service.admin, "/metrics").await.unwrap().1;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in
        ["policy_checks_total{decision=\"deny\"} 1", "policy_rules_generation 1", "policy_access_log_lines_total 0"]
    {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    service.stop().await;
}

#[tokio::test]
async fn without_an_identity_it_is_not_ready_and_says_why() {
    let world = World::new();
    let (publisher, source) = publisher();
    let service = Service::start_as("ready", world, source).await;
    let ready = |addr| async move { runtime::ask::get(addr, "/healthz/ready").await.unwrap() };
    let (status, body) = ready(service.admin).await;
    assert_eq!((status.as_u16(), &body[..]), (503, b"[\"own SVID\"]".as_slice()));
    publisher.publish(service.world.identity(0, "/policy"));
    while ready(service.admin).await.0.as_u16() != 200 {}
    publisher.withdraw();
    while ready(service.admin).await.0.as_u16() != 503 {}
    service.stop().await;
}

#[tokio::test]
async fn bad_rules_or_a_taken_address_end_the_start() {
    let world = World::new();
    let dir = std::env::temp_dir().join(format!("kasbah-policy-{}-refused", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let build = |settings: Settings| {
        Policy::build(settings, IdentitySource::fixed(world.identity(0, "/policy")), LogControl::detached())
    };
    std::fs::write(dir.join("rules.yaml"), "authorization: 5\n").unwrap();
    assert_eq!(build(settings(&dir)).await.unwrap_err().reason(), "POLICY_RULES_INVALID");
    std::fs::write(dir.join("rules.yaml"), "{}\n").unwrap();
    let taken = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let settings = Settings { grpc: taken.local_addr().unwrap(), ..settings(&dir) };
    assert_eq!(build(settings).await.unwrap_err().reason(), "ADDRESS_IN_USE");
    std::fs::remove_dir_all(&dir).unwrap();
}
