//! Tests of `filters`.

use std::time::Duration;

use ::http::{HeaderName, StatusCode};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, HttpStatus};
use envoy_types::pb::google::protobuf::{BoolValue, Duration as DurationPb};
use envoy_types::util::pack_any;

use super::*;
use crate::request::sample::Sample;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

fn filter(name: &str, any: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    }
}

fn unknown() -> Any {
    Any { type_url: "type.googleapis.com/some.Filter".into(), value: Vec::new() }
}

fn grpc(cluster: &str) -> core::GrpcService {
    core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name: cluster.into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn share(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

#[test]
fn an_unknown_filter_is_refused_unless_it_is_optional_or_only_observes() {
    assert!(HttpFilter::compile(&filter("some", unknown())).is_err());
    let optional = hcm::HttpFilter { is_optional: true, ..filter("some", unknown()) };
    assert!(HttpFilter::compile(&optional).unwrap().is_none());
    assert!(HttpFilter::compile(&filter("istio.stats", unknown())).unwrap().is_none());
    let router = HttpFilter::compile(&filter("r", pack_any(pb::router::v3::Router::default()))).unwrap().unwrap();
    assert!(matches!(router.kind, FilterKind::Router(_)));
    let broken = Any { value: vec![0xff], ..pack_any(pb::router::v3::Router::default()) };
    assert!(HttpFilter::compile(&filter("r", broken)).is_err());
}

#[test]
fn a_route_may_disable_a_filter_in_every_way_there_is() {
    let compile = |any: Any| override_of("f", &any).unwrap();
    let wrapped = FilterConfig { disabled: true, ..Default::default() };
    assert!(matches!(compile(pack_any(wrapped)), Some(FilterOverride::Disabled)));
    let authz = pb::ext_authz::v3::ExtAuthzPerRoute {
        r#override: Some(pb::ext_authz::v3::ext_authz_per_route::Override::Disabled(true)),
    };
    assert!(matches!(compile(pack_any(authz)), Some(FilterOverride::Disabled)));
    assert!(matches!(compile(pack_any(pb::rbac::v3::RbacPerRoute::default())), Some(FilterOverride::Disabled)));
    assert!(override_of("f", &unknown()).is_err());
}

#[test]
fn the_authorisation_service_is_asked_where_watched_rules_matched() {
    let value = pb::ext_authz::v3::ExtAuthz {
        services: Some(pb::ext_authz::v3::ext_authz::Services::GrpcService(grpc("authz"))),
        filter_enabled_metadata: Some(matcher::MetadataMatcher {
            filter: crate::rbac::RBAC_FILTER.into(),
            path: vec![matcher::metadata_matcher::PathSegment {
                segment: Some(matcher::metadata_matcher::path_segment::Segment::Key("p_id".into())),
            }],
            value: Some(matcher::ValueMatcher {
                match_pattern: Some(matcher::value_matcher::MatchPattern::PresentMatch(true)),
            }),
            invert: false,
        }),
        ..Default::default()
    };
    let authz = ExtAuthz::compile(&value).unwrap();
    assert_eq!((authz.status_on_error, authz.failure_mode_allow), (StatusCode::FORBIDDEN, false));

    let mut sample = Sample::get("/");
    assert!(!authz.enabled(&sample.request(), 0));
    sample.metadata.insert_text(crate::rbac::RBAC_FILTER, "p_id", &"policy".into());
    assert!(authz.enabled(&sample.request(), 0));
    assert!(ExtAuthz::compile(&pb::ext_authz::v3::ExtAuthz::default()).is_err());
}

#[test]
fn a_service_never_changes_what_frames_or_proves_a_request() {
    let open = MutationRules::default();
    for (name, expected) in [
        ("x-any", true),
        ("host", false),
        ("content-length", false),
        ("transfer-encoding", false),
        ("x-forwarded-client-cert", false),
    ] {
        assert_eq!(open.permits(&HeaderName::from_static(name)), expected, "{name}");
    }
}

#[test]
fn faults_hit_their_share_of_the_requests() {
    let value = pb::fault::v3::HttpFault {
        delay: Some(common::FaultDelay {
            percentage: share(50),
            fault_delay_secifier: Some(common::fault_delay::FaultDelaySecifier::FixedDelay(DurationPb {
                seconds: 1,
                nanos: 0,
            })),
        }),
        abort: Some(pb::fault::v3::FaultAbort {
            percentage: share(10),
            error_type: Some(pb::fault::v3::fault_abort::ErrorType::HttpStatus(418)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let fault = Fault::compile(&value).unwrap();
    let sample = Sample::get("/");
    let decisions: Vec<_> =
        (0..10_000).map(|dice| fault.decide(&sample.request(), "c", crate::route::mix(dice))).collect();
    let delayed = decisions.iter().filter(|decision| decision.delay == Some(Duration::from_secs(1))).count();
    let aborted = decisions.iter().filter(|decision| decision.abort.is_some()).count();
    assert!((4700..5300).contains(&delayed) && (800..1200).contains(&aborted), "{delayed} {aborted}");

    let elsewhere = Fault::compile(&pb::fault::v3::HttpFault { upstream_cluster: "other".into(), ..value }).unwrap();
    assert_eq!(elsewhere.decide(&sample.request(), "c", 0), FaultDecision::default());
}

#[test]
fn only_allowed_origins_get_an_answer() {
    let exact = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("https://a.test".into())),
        ignore_case: false,
    };
    let value = pb::cors::v3::CorsPolicy {
        allow_origin_string_match: vec![exact],
        allow_methods: "GET,PUT".into(),
        expose_headers: "x-e".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let policy = CorsPolicy::compile(&value).unwrap();
    let strict =
        pb::cors::v3::CorsPolicy { forward_not_matching_preflights: Some(BoolValue { value: false }), ..value };
    let strict = CorsPolicy::compile(&strict).unwrap();
    let from = |origin: &str| Sample::get("/").header("origin", origin);
    let asking = |origin: &str| from(origin).method("OPTIONS").header("access-control-request-method", "PUT");

    assert_eq!(policy.decide(&Sample::get("/").request(), 0), CorsDecision::Pass);
    assert_eq!(policy.decide(&from("https://b.test").request(), 0), CorsDecision::Pass);
    assert_eq!(policy.decide(&asking("https://b.test").request(), 0), CorsDecision::Pass);
    assert_eq!(strict.decide(&asking("https://b.test").request(), 0), CorsDecision::Refuse);
    let CorsDecision::Preflight(headers) = policy.decide(&asking("https://a.test").request(), 0) else { panic!() };
    assert!(headers.iter().any(|(name, value)| name == "access-control-allow-methods" && value == "GET,PUT"));
    let CorsDecision::Annotate(headers) = policy.decide(&from("https://a.test").request(), 0) else { panic!() };
    assert!(headers.iter().any(|(name, value)| name == "access-control-allow-origin" && value == "https://a.test"));
    assert_eq!(headers.len(), 3);
}

#[test]
fn statuses_may_be_left_to_the_default() {
    let status = |code| ext_authz::status(Some(&HttpStatus { code }), StatusCode::FORBIDDEN);
    assert_eq!(status(0).unwrap(), StatusCode::FORBIDDEN);
    assert_eq!(status(429).unwrap(), StatusCode::TOO_MANY_REQUESTS);
    assert!(status(-1).is_err() && status(99).is_err());
}
