//! Tokens, rules, quotas and the services that are asked about requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{DataSource, GrpcService, data_source::Specifier};
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission, principal};
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action as LimitAction;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, GenericKey};
use envoy_types::pb::envoy::config::route::v3::{RateLimit as RouteLimit, RouteAction, route::Action};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, ext_authz::Services};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtProvider, JwtRequirement, JwtRequirementOrList, RequirementRule,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::RateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{Empty, UInt32Value};
use http::Request;
use http_body_util::Full;
use identity::jwt::JwtAuthorityKey;
use serde_json::json;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, Streaming};

use super::harness::{Authority, Got, TestProxy, dial, dial_tls, echo, get, http1, http2};
use super::protos::{
    all_to, any, cluster, filter, hcm, host, http_chain, inbound, listener, mtls_chain, route, route_action, router,
    span, speaking_http2, table,
};

fn exact(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ..StringMatcher::default() }
}

/// Rules that permit these principals only.
fn permitting(name: &str, principals: &[&str]) -> Rbac {
    let principal = |id: &&str| Principal {
        identifier: Some(principal::Identifier::Authenticated(principal::Authenticated {
            principal_name: Some(exact(id)),
        })),
    };
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: principals.iter().map(principal).collect(),
        ..Policy::default()
    };
    let rules = Rules {
        action: RbacAction::Allow as i32,
        policies: HashMap::from([(name.to_owned(), policy)]),
        ..Rules::default()
    };
    Rbac { rules: Some(rules), ..Rbac::default() }
}

#[tokio::test]
async fn rules_permit_by_proven_identity_and_name_the_policy_in_the_log() {
    let authority = Authority::new();
    let mut proxy = TestProxy::start().identify(&authority, "helloworld");
    proxy.clusters(&[cluster("in", &[echo().await])]).await;
    let mut manager = hcm(all_to("inbound", "in"));
    let rbac = permitting("ns[default]-policy[only-test]-rule[0]", &["spiffe://cluster.local/ns/default/sa/test"]);
    manager.http_filters = vec![filter("envoy.filters.http.rbac", &rbac), router()];
    let address = proxy.listeners(&[inbound(listener("in", vec![mtls_chain(http_chain(&manager), &[])]))]).await;
    let ask = async |account: &str, alpn: &'static [u8]| -> Got {
        let stream = dial_tls(address, authority.holder(account), "x.test", &[alpn]).await.unwrap();
        match alpn {
            b"h2" => {
                let request = Request::post("http://helloworld/")
                    .header("content-type", "application/grpc")
                    .body(Full::default())
                    .unwrap();
                http2(stream, request).await
            }
            _ => http1(stream, get("/")).await,
        }
    };
    assert_eq!(ask("test", b"http/1.1").await.status, 200);
    let denied = ask("other", b"http/1.1").await;
    assert_eq!((denied.status.as_u16(), denied.header("x-kasbah-reason")), (403, "RBAC_DENIED"));
    let denied = ask("other", b"h2").await;
    assert_eq!((denied.status.as_u16(), denied.header("grpc-status")), (200, "7"));
    let lines = proxy.log_lines(3).await;
    assert!(lines[1].contains("rbac_access_denied_matched_policy[none]"), "{}", lines[1]);
    assert!(proxy.metrics().contains("kasbah_refusals_total{reason=\"RBAC_DENIED\"} 2\n"));
}

struct Tokens {
    key: JwtAuthorityKey,
}

impl Tokens {
    fn new() -> Self {
        Self { key: JwtAuthorityKey::generate().unwrap() }
    }

    fn jwks(&self) -> String {
        json!({"keys": [self.key.public(None).jwk.to_json()]}).to_string()
    }

    fn token(&self, changes: serde_json::Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims =
            json!({"iss": "https://issuer.test", "sub": "somebody", "exp": now + 600, "groups": ["testers"]});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        self.key.sign(claims.as_object().unwrap()).unwrap()
    }
}

/// Istio's form: a token may be missing, but one that is there must be good.
fn jwt_filter(jwks: &str) -> JwtAuthentication {
    let provider = JwtProvider {
        issuer: "https://issuer.test".to_owned(),
        forward: true,
        payload_in_metadata: "payload".to_owned(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(jwks.to_owned())),
            ..DataSource::default()
        })),
        ..JwtProvider::default()
    };
    let requirement = |kind| JwtRequirement { requires_type: Some(kind) };
    let any_of = JwtRequirementOrList {
        requirements: vec![
            requirement(RequiresType::ProviderName("p".to_owned())),
            requirement(RequiresType::AllowMissing(Empty {})),
        ],
    };
    let path = route("/", super::protos::direct(200)).r#match;
    let rule = RequirementRule {
        r#match: path,
        requirement_type: Some(RequirementType::Requires(requirement(RequiresType::RequiresAny(any_of)))),
    };
    JwtAuthentication {
        providers: HashMap::from([("p".to_owned(), provider)]),
        rules: vec![rule],
        ..JwtAuthentication::default()
    }
}

/// Only tokens with the group.
fn testers_only() -> Rbac {
    use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment};
    use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
    use envoy_types::pb::envoy::r#type::matcher::v3::{ListMatcher, MetadataMatcher, ValueMatcher, list_matcher};
    let segment = |key: &str| PathSegment { segment: Some(path_segment::Segment::Key(key.to_owned())) };
    let one = ValueMatcher { match_pattern: Some(ValuePattern::StringMatch(exact("testers"))) };
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one))) };
    let claims = MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: vec![segment("payload"), segment("groups")],
        value: Some(ValueMatcher { match_pattern: Some(ValuePattern::ListMatch(Box::new(list))) }),
        ..MetadataMatcher::default()
    };
    let mut rbac = permitting("ns[default]-policy[testers]-rule[0]", &[]);
    let policy = rbac.rules.as_mut().unwrap().policies.values_mut().next().unwrap();
    #[allow(deprecated, reason = "what Istio sends")]
    let identifier = principal::Identifier::Metadata(claims);
    policy.principals = vec![Principal { identifier: Some(identifier) }];
    rbac
}

#[tokio::test]
async fn a_token_is_asked_for_verified_and_judged() {
    let tokens = Tokens::new();
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let mut manager = hcm(all_to("r", "echo"));
    manager.http_filters = vec![
        filter("envoy.filters.http.jwt_authn", &jwt_filter(&tokens.jwks())),
        filter("envoy.filters.http.rbac", &testers_only()),
        router(),
    ];
    let address = proxy.listeners(&[listener("in", vec![http_chain(&manager)])]).await;
    let good = tokens.token(json!({}));
    let mut broken = good.clone().into_bytes();
    let at = broken.len() - 20;
    broken[at] = if broken[at] == b'A' { b'B' } else { b'A' };
    let broken = String::from_utf8(broken).unwrap();
    let stranger = Tokens::new().token(json!({}));
    for (token, status, reason) in [
        (Some(good.as_str()), 200, ""),
        (Some(good.as_str()), 200, ""),
        (None, 401, "JWT_MISSING"),
        (Some("nonsense"), 401, "JWT_MALFORMED"),
        (Some(broken.as_str()), 401, "JWT_BAD_SIGNATURE"),
        (Some(stranger.as_str()), 401, "JWT_NO_KEY"),
        (Some(tokens.token(json!({"exp": 1000})).as_str()), 401, "JWT_EXPIRED"),
        (Some(tokens.token(json!({"iss": "https://elsewhere.test"})).as_str()), 401, "JWT_WRONG_ISSUER"),
        (Some(tokens.token(json!({"groups": ["others"]})).as_str()), 403, "RBAC_DENIED"),
        (Some(tokens.token(json!({"groups": "testers"})).as_str()), 403, "RBAC_DENIED"),
    ] {
        let mut request = get("/");
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let got = http1(dial(address).await, request).await;
        assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (status, reason), "{token:?}");
        assert_eq!(got.headers.contains_key("www-authenticate"), status == 401);
    }
}

#[tokio::test]
async fn local_quotas_are_shared_by_all_workers() {
    use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
    use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};
    let all = Some(RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 100, denominator: 0 }),
        ..RuntimeFractionalPercent::default()
    });
    let limit = LocalRateLimit {
        stat_prefix: "l".to_owned(),
        token_bucket: Some(TokenBucket {
            max_tokens: 5,
            tokens_per_fill: Some(UInt32Value { value: 5 }),
            fill_interval: Some(span(Duration::from_secs(3600))),
        }),
        filter_enabled: all.clone(),
        filter_enforced: all,
        ..LocalRateLimit::default()
    };
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let mut manager = hcm(all_to("r", "echo"));
    manager.http_filters = vec![filter("envoy.filters.http.local_ratelimit", &limit), router()];
    let address = proxy.listeners(&[listener("in", vec![http_chain(&manager)])]).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(http1(dial(address).await, get("/")).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
}

/// What the fake services saw.
#[derive(Clone, Default)]
pub(super) struct Service {
    checks: Arc<Mutex<Vec<CheckRequest>>>,
    limits: Arc<Mutex<Vec<RateLimitRequest>>>,
    logs: Arc<Mutex<Vec<StreamAccessLogsMessage>>>,
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(&self, request: tonic::Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
        use envoy_types::pb::envoy::r#type::v3::HttpStatus;
        let request = request.into_inner();
        let http = request.attributes.clone().unwrap().request.unwrap().http.unwrap();
        self.checks.lock().unwrap().push(request);
        if http.path == "/fail" {
            return Err(Status::internal("on purpose"));
        }
        let header = |key: &str, value: &str| HeaderValueOption {
            header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), raw_value: Vec::new() }),
            ..HeaderValueOption::default()
        };
        if http.headers.get("x-ext-authz").is_some_and(|value| value == "allow") {
            let ok = OkHttpResponse {
                headers: vec![header("x-decided", "yes"), header("x-forwarded-client-cert", "URI=spiffe://evil")],
                headers_to_remove: vec!["x-ext-authz".to_owned()],
                response_headers_to_add: vec![header("x-from-policy", "1")],
                ..OkHttpResponse::default()
            };
            return Ok(Response::new(CheckResponse {
                http_response: Some(HttpResponse::OkResponse(ok)),
                ..CheckResponse::default()
            }));
        }
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 403 }),
            headers: vec![header("x-why", "no")],
            body: "denied by policy".to_owned(),
        };
        Ok(Response::new(CheckResponse {
            status: Some(envoy_types::pb::google::rpc::Status { code: 7, ..Default::default() }),
            http_response: Some(HttpResponse::DeniedResponse(denied)),
            ..CheckResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let mut limits = self.limits.lock().unwrap();
        limits.push(request.into_inner());
        let code = if limits.len() > 2 { Code::OverLimit } else { Code::Ok };
        Ok(Response::new(RateLimitResponse { overall_code: code as i32, ..RateLimitResponse::default() }))
    }
}

#[tonic::async_trait]
impl AccessLogService for Service {
    async fn stream_access_logs(
        &self,
        request: tonic::Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            self.logs.lock().unwrap().push(message);
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

impl Service {
    pub(super) async fn start(&self) -> SocketAddr {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(AuthorizationServer::new(self.clone()))
            .add_service(RateLimitServiceServer::new(self.clone()))
            .add_service(AccessLogServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(socket));
        tokio::spawn(server);
        address
    }
}

fn grpc(cluster: &str) -> GrpcService {
    let target = TargetSpecifier::EnvoyGrpc(EnvoyGrpc { cluster_name: cluster.to_owned(), ..EnvoyGrpc::default() });
    GrpcService {
        target_specifier: Some(target),
        timeout: Some(span(Duration::from_secs(2))),
        ..GrpcService::default()
    }
}

fn ext_authz(open: bool) -> ExtAuthz {
    ExtAuthz { services: Some(Services::GrpcService(grpc("policy"))), failure_mode_allow: open, ..ExtAuthz::default() }
}

#[tokio::test]
async fn an_external_service_decides_and_its_silence_is_a_no() {
    let service = Service::default();
    let mut proxy = TestProxy::start();
    let policy = speaking_http2(cluster("policy", &[service.start().await]));
    proxy.clusters(&[cluster("echo", &[echo().await]), policy]).await;
    let manager = |open| {
        let mut manager = hcm(all_to("r", "echo"));
        manager.http_filters = vec![filter("envoy.filters.http.ext_authz", &ext_authz(open)), router()];
        manager
    };
    let closed = listener("closed", vec![http_chain(&manager(false))]);
    let open = listener("open", vec![http_chain(&manager(true))]);
    let closed = proxy.listeners(&[closed, open]).await;
    let open = proxy.address("open");
    let ask = async |address, path: &str, allow: bool| {
        let mut request = get(path);
        if allow {
            request.headers_mut().insert("x-ext-authz", "allow".parse().unwrap());
        }
        http1(dial(address).await, request).await
    };
    let got = ask(closed, "/x?q=1", true).await;
    assert_eq!((got.status.as_u16(), got.header("x-from-policy")), (200, "1"));
    assert!(got.body.contains("x-decided: yes") && !got.body.contains("x-ext-authz"), "{}", got.body);
    assert!(!got.body.contains("evil"), "{}", got.body);
    let seen = service.checks.lock().unwrap()[0].attributes.clone().unwrap().request.unwrap().http.unwrap();
    assert_eq!((seen.method.as_str(), seen.path.as_str(), seen.host.as_str()), ("GET", "/x?q=1", "helloworld"));

    let got = ask(closed, "/x", false).await;
    assert_eq!((got.status.as_u16(), got.header("x-why"), got.body.as_str()), (403, "no", "denied by policy"));
    assert_eq!(got.header("x-kasbah-reason"), "EXT_AUTHZ_DENIED");
    let got = ask(closed, "/fail", true).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (403, "EXT_AUTHZ_UNAVAILABLE"));
    assert_eq!(ask(open, "/fail", true).await.status, 200);
}

#[tokio::test]
async fn a_rate_limit_service_is_asked_with_the_routes_descriptors() {
    let service = Service::default();
    let mut proxy = TestProxy::start();
    let policy = speaking_http2(cluster("policy", &[service.start().await]));
    proxy.clusters(&[cluster("echo", &[echo().await]), policy]).await;
    let limit = RateLimit {
        domain: "demo".to_owned(),
        timeout: Some(span(Duration::from_secs(2))),
        failure_mode_deny: true,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(grpc("policy")),
            ..RateLimitServiceConfig::default()
        }),
        ..RateLimit::default()
    };
    let key = GenericKey { descriptor_value: "all".to_owned(), ..GenericKey::default() };
    let action = LimitAction { action_specifier: Some(ActionSpecifier::GenericKey(key)) };
    let limited = RouteAction {
        rate_limits: vec![RouteLimit { actions: vec![action], ..RouteLimit::default() }],
        ..route_action("echo")
    };
    let routes = vec![route("/limited", Action::Route(limited)), route("/", super::protos::forward("echo"))];
    let mut manager = hcm(table("r", vec![host("all", &["*"], routes)]));
    manager.http_filters = vec![filter("envoy.filters.http.ratelimit", &limit), router()];
    let address = proxy.listeners(&[listener("in", vec![http_chain(&manager)])]).await;
    let mut statuses = Vec::new();
    for path in ["/limited", "/free", "/limited", "/limited"] {
        let got = http1(dial(address).await, get(path)).await;
        statuses.push((got.status.as_u16(), got.header("x-kasbah-reason").to_owned()));
    }
    assert_eq!(statuses[..3].iter().map(|s| s.0).collect::<Vec<_>>(), [200, 200, 200]);
    assert_eq!(statuses[3], (429, "RATE_LIMITED".to_owned()));
    let seen = service.limits.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].domain.as_str(), seen[0].descriptors[0].entries[0].value.as_str()), ("demo", "all"));
}

#[tokio::test]
async fn an_access_log_service_gets_entries_in_batches() {
    use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
    use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{
        CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig,
    };
    let service = Service::default();
    let mut proxy = TestProxy::start();
    let policy = speaking_http2(cluster("policy", &[service.start().await]));
    proxy.clusters(&[cluster("echo", &[echo().await]), policy]).await;
    let config = HttpGrpcAccessLogConfig {
        common_config: Some(CommonGrpcAccessLogConfig {
            log_name: "mesh".to_owned(),
            grpc_service: Some(grpc("policy")),
            buffer_flush_interval: Some(span(Duration::from_millis(50))),
            ..CommonGrpcAccessLogConfig::default()
        }),
        ..HttpGrpcAccessLogConfig::default()
    };
    let mut manager = hcm(all_to("r", "echo"));
    manager.access_log = vec![AccessLog {
        name: "envoy.access_loggers.http_grpc".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&config))),
        ..AccessLog::default()
    }];
    let address = proxy.listeners(&[listener("in", vec![http_chain(&manager)])]).await;
    let request =
        Request::post("/logged").header("host", "a.test").body(Full::new(Bytes::from_static(b"12345"))).unwrap();
    assert_eq!(http1(dial(address).await, request).await.status, 200);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let logs = service.logs.lock().unwrap();
        let Some(message) = logs.first() else { continue };
        assert_eq!(message.identifier.as_ref().unwrap().log_name, "mesh");
        let Some(LogEntries::HttpLogs(entries)) = &message.log_entries else { panic!("{message:?}") };
        let (request, response) =
            (entries.log_entry[0].request.clone().unwrap(), entries.log_entry[0].response.clone().unwrap());
        assert_eq!(
            (request.path.as_str(), request.authority.as_str(), request.request_body_bytes),
            ("/logged", "a.test", 5)
        );
        assert_eq!(response.response_code.unwrap().value, 200);
        return;
    }
    panic!("no entries came");
}

/// `none` once was the name of a file in the working folder.
#[tokio::test]
async fn no_access_log_is_no_file_called_none() {
    use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
    use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
    let mut proxy = TestProxy::with(|settings| settings.access_log = "none".to_owned());
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let (mut said, unsaid) = (hcm(all_to("r", "echo")), hcm(all_to("r", "echo")));
    said.access_log = vec![AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&StdoutAccessLog::default()))),
        ..AccessLog::default()
    }];
    for (name, manager) in [("said", &said), ("unsaid", &unsaid)] {
        let address = proxy.listeners(&[listener(name, vec![http_chain(manager)])]).await;
        let request = Request::get("/").header("host", "a.test").body(Full::new(Bytes::new())).unwrap();
        assert_eq!(http1(dial(address).await, request).await.status, 200);
    }
    // Its end writes what is left to write.
    drop(proxy);
    assert!(!std::path::Path::new("none").exists());
}
