//! Tests of `rbac`.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::UInt32Value;
use pb::{permission, principal};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::request::sample::Sample;

fn text(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn exact(value: &str) -> matcher::StringMatcher {
    text(matcher::string_matcher::MatchPattern::Exact(value.into()))
}

fn permit(rule: permission::Rule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn who(id: principal::Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(id) }
}

fn path(value: &str) -> pb::Permission {
    let prefix = text(matcher::string_matcher::MatchPattern::Prefix(value.into()));
    permit(permission::Rule::UrlPath(matcher::PathMatcher { rule: Some(matcher::path_matcher::Rule::Path(prefix)) }))
}

fn method(value: &str) -> pb::Permission {
    header(":method", value)
}

fn header(name: &str, value: &str) -> pb::Permission {
    permit(permission::Rule::Header(route::HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(exact(value))),
        ..Default::default()
    }))
}

fn peer(uri: &str) -> pb::Principal {
    who(principal::Identifier::Authenticated(principal::Authenticated { principal_name: Some(exact(uri)) }))
}

fn claim(keys: &[&str], value: matcher::ValueMatcher) -> pb::Principal {
    let segment = |key: &&str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key((*key).into())),
    };
    who(principal::Identifier::Metadata(matcher::MetadataMatcher {
        filter: crate::request::JWT_FILTER.into(),
        path: std::iter::once(&"payload").chain(keys).map(segment).collect(),
        value: Some(value),
        invert: false,
    }))
}

fn is(value: &str) -> matcher::ValueMatcher {
    matcher::ValueMatcher { match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(exact(value))) }
}

fn holds(value: &str) -> matcher::ValueMatcher {
    let list =
        matcher::ListMatcher { match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(is(value)))) };
    matcher::ValueMatcher { match_pattern: Some(matcher::value_matcher::MatchPattern::ListMatch(Box::new(list))) }
}

fn anyone() -> pb::Principal {
    who(principal::Identifier::Any(true))
}

fn anything() -> pb::Permission {
    permit(permission::Rule::Any(true))
}

fn not(id: pb::Principal) -> pb::Principal {
    who(principal::Identifier::NotId(Box::new(id)))
}

type Rules<'a> = &'a [(&'a str, pb::Permission, pb::Principal)];

fn rules(action: pb::rbac::Action, rules: Rules<'_>) -> pb::Rbac {
    let policy = |(name, permission, principal): &(&str, pb::Permission, pb::Principal)| {
        let policy = pb::Policy {
            permissions: vec![permission.clone()],
            principals: vec![principal.clone()],
            ..Default::default()
        };
        ((*name).to_owned(), policy)
    };
    pb::Rbac { action: action as i32, policies: rules.iter().map(policy).collect(), audit_logging_options: None }
}

fn allow(list: Rules<'_>) -> RbacFilter {
    compile(rules(pb::rbac::Action::Allow, list))
}

fn deny(list: Rules<'_>) -> RbacFilter {
    compile(rules(pb::rbac::Action::Deny, list))
}

fn compile(rules: pb::Rbac) -> RbacFilter {
    RbacFilter::compile_http(&http::Rbac { rules: Some(rules), ..Default::default() }).unwrap()
}

const A: &str = "spiffe://td/ns/a/sa/a";
const B: &str = "spiffe://td/ns/a/sa/b";

#[test]
fn allowing_needs_a_match_of_permission_and_principal() {
    let filter = allow(&[("p", path("/admin"), peer(A))]);
    for (sample, expected) in [
        (Sample::get("/admin").peer(A), true),
        (Sample::get("/admin/x").peer(A), true),
        (Sample::get("/admin").peer(B), false),
        (Sample::get("/admin"), false),
        (Sample::get("/other").peer(A), false),
        (Sample::get("/x/../admin").peer(A), true),
    ] {
        let decision = filter.decide(&sample.request());
        assert_eq!(decision.allowed, expected, "{:?}", sample.path);
        assert_eq!(decision.policy.is_some(), expected);
    }
    let refused = filter.decide(&Sample::get("/other").request());
    assert_eq!((refused.reason(), refused.status().as_u16()), ("RBAC_DENIED", 403));
}

#[test]
fn no_rules_allow_all_and_empty_rules_allow_nothing() {
    let none = RbacFilter::compile_http(&http::Rbac::default()).unwrap();
    assert!(none.decide(&Sample::get("/").request()).allowed);
    assert!(!allow(&[]).decide(&Sample::get("/").request()).allowed);
    assert!(deny(&[]).decide(&Sample::get("/").request()).allowed);
}

#[test]
fn a_rule_for_everyone_but_one_also_concerns_those_without_identity() {
    let filter = deny(&[("p", anything(), not(peer(A)))]);
    assert!(filter.decide(&Sample::get("/").peer(A).request()).allowed);
    assert!(!filter.decide(&Sample::get("/").peer(B).request()).allowed);
    assert!(!filter.decide(&Sample::get("/").request()).allowed);
}

#[test]
fn principals_are_compared_as_a_whole() {
    let filter = allow(&[("p", anything(), peer("spiffe://td/ns/a/sa/foo.bar"))]);
    assert!(filter.decide(&Sample::get("/").peer("spiffe://td/ns/a/sa/foo.bar").request()).allowed);
    for other in ["spiffe://td/ns/a/sa/fooxbar", "spiffe://td/ns/a/sa/foo.barx", "spiffe://td.evil/ns/a/sa/foo.bar"] {
        assert!(!filter.decide(&Sample::get("/").peer(other).request()).allowed, "{other}");
    }
}

#[test]
fn claims_are_read_by_path_and_in_lists() {
    let filter = allow(&[
        ("group", anything(), claim(&["groups"], holds("testers"))),
        ("nested", anything(), claim(&["a", "b"], is("c"))),
    ]);
    for (claims, expected) in [
        (json!({"groups": ["x", "testers"]}), Some("group")),
        (json!({"groups": "testers"}), None),
        (json!({"a": {"b": "c"}}), Some("nested")),
        (json!({"a": {"b": ["c"]}}), None),
        (json!({}), None),
    ] {
        let decision = filter.decide(&Sample::get("/").claims(claims.clone()).request());
        assert_eq!(decision.policy.as_deref(), expected, "{claims}");
        assert!(!decision.wanted_claims);
    }
}

#[test]
fn a_refusal_for_want_of_a_token_is_told_apart() {
    let allowing = allow(&[("p", path("/test"), claim(&["groups"], holds("testers")))]);
    let denied = allowing.decide(&Sample::get("/test").request());
    assert_eq!((denied.wanted_claims, denied.reason(), denied.status().as_u16()), (true, "JWT_MISSING", 401));
    assert!(!allowing.decide(&Sample::get("/other").request()).wanted_claims);
    assert!(!allowing.decide(&Sample::get("/test").claims(json!({})).request()).wanted_claims);

    // "Deny whoever has no principal" is the usual way of asking for a token.
    let present =
        matcher::ValueMatcher { match_pattern: Some(matcher::value_matcher::MatchPattern::PresentMatch(true)) };
    let denying = deny(&[("p", path("/test"), not(claim(&["iss"], present)))]);
    let denied = denying.decide(&Sample::get("/test").request());
    assert_eq!((denied.allowed, denied.wanted_claims), (false, true));
    assert!(denying.decide(&Sample::get("/test").claims(json!({"iss": "i"})).request()).allowed);

    let both = deny(&[("p", anything(), not(claim(&["iss"], is("i")))), ("q", anything(), anyone())]);
    assert!(!both.decide(&Sample::get("/").request()).wanted_claims);
}

#[test]
fn ambiguous_paths_are_read_against_the_caller() {
    let denying = deny(&[("p", path("/admin/x"), anyone())]);
    assert!(!denying.decide(&Sample::get("/admin;a=1/x").request()).allowed);
    let allowing = allow(&[("p", path("/public;x"), anyone())]);
    assert!(!allowing.decide(&Sample::get("/public;x/secret").request()).allowed);
}

#[test]
fn plain_connections_are_refused_what_needs_a_request() {
    let connection = Sample::get("/").peer(A).connection;
    assert!(!allow(&[("p", path("/"), peer(A))]).decide_connection(&connection).allowed);
    assert!(!deny(&[("p", path("/"), peer(A))]).decide_connection(&connection).allowed);
    assert!(deny(&[("p", path("/"), peer(B))]).decide_connection(&connection).allowed);
    assert!(allow(&[("p", anything(), peer(A))]).decide_connection(&connection).allowed);
}

#[test]
fn addresses_and_ports_are_tested() {
    let range = |ip: &str, len| CidrRange { address_prefix: ip.into(), prefix_len: Some(UInt32Value { value: len }) };
    let by = |rule, id| allow(&[("p", permit(rule), who(id))]);
    let any = || principal::Identifier::Any(true);
    let sample = Sample::get("/");
    for (filter, expected) in [
        (by(permission::Rule::DestinationPort(80), any()), true),
        (by(permission::Rule::DestinationPort(81), any()), false),
        (by(permission::Rule::DestinationIp(range("10.0.0.0", 24)), any()), true),
        (by(permission::Rule::Any(true), principal::Identifier::RemoteIp(range("10.0.0.1", 32))), true),
        (by(permission::Rule::Any(true), principal::Identifier::DirectRemoteIp(range("10.0.0.9", 32))), false),
    ] {
        assert_eq!(filter.decide(&sample.request()).allowed, expected, "{filter:?}");
    }
}

#[test]
fn watched_rules_never_refuse_but_are_noted() {
    let value = http::Rbac {
        shadow_rules: Some(rules(pb::rbac::Action::Deny, &[("watched", anything(), anyone())])),
        shadow_rules_stat_prefix: "istio_ext_authz_".into(),
        ..Default::default()
    };
    let filter = RbacFilter::compile_http(&value).unwrap();
    let sample = Sample::get("/");
    assert!(filter.decide(&sample.request()).allowed);

    let shadow = filter.shadow(&sample.request()).unwrap();
    let mut metadata = Metadata::default();
    filter.note_shadow(&shadow, &mut metadata);
    let key = [Box::from("istio_ext_authz_shadow_effective_policy_id")];
    assert_eq!(metadata.find(RBAC_FILTER, &key).unwrap().as_str(), Some("watched"));
}

#[test]
fn rules_that_are_not_understood_are_refused() {
    let compile = |permission, principal| {
        let rules = rules(pb::rbac::Action::Allow, &[("p", permission, principal)]);
        RbacFilter::compile_http(&http::Rbac { rules: Some(rules), ..Default::default() })
    };
    let error = compile(pb::Permission { rule: None }, anyone()).unwrap_err();
    assert_eq!(error.field, "rules.policies[\"p\"].permissions[0]");
    assert!(compile(permit(permission::Rule::Any(false)), anyone()).is_err());
    let state = matcher::FilterStateMatcher { key: "other".into(), matcher: None };
    assert!(compile(anything(), who(principal::Identifier::FilterState(state))).is_err());
    let empty = pb::Rbac { policies: HashMap::from([("p".into(), pb::Policy::default())]), ..Default::default() };
    assert!(RbacFilter::compile_http(&http::Rbac { rules: Some(empty), ..Default::default() }).is_err());
}

fn any_permission() -> impl Strategy<Value = pb::Permission> {
    let leaf = prop_oneof![
        Just(anything()),
        prop::sample::select(vec!["/a", "/b"]).prop_map(path),
        prop::sample::select(vec!["GET", "POST"]).prop_map(method),
        prop::sample::select(vec!["x", "y"]).prop_map(|value| header("x-h", value)),
    ];
    leaf.prop_recursive(2, 8, 2, |inner| {
        let set = prop::collection::vec(inner.clone(), 1..3).prop_map(|rules| permission::Set { rules });
        prop_oneof![
            set.clone().prop_map(|set| permit(permission::Rule::AndRules(set))),
            set.prop_map(|set| permit(permission::Rule::OrRules(set))),
            inner.prop_map(|rule| permit(permission::Rule::NotRule(Box::new(rule)))),
        ]
    })
}

fn any_principal() -> impl Strategy<Value = pb::Principal> {
    let leaf = prop_oneof![Just(anyone()), prop::sample::select(vec![A, B]).prop_map(peer)];
    leaf.prop_recursive(2, 4, 1, |inner| inner.prop_map(not))
}

fn any_policies() -> impl Strategy<Value = Vec<(pb::Permission, pb::Principal)>> {
    prop::collection::vec((any_permission(), any_principal()), 0..4)
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let values = prop::collection::vec(prop::sample::select(vec!["x", "y", "x,y"]), 0..3);
    let path = prop::sample::select(vec!["/a", "/b", "/a;p/b", "/c"]);
    let peer = prop::sample::select(vec![None, Some(A), Some(B)]);
    let method = prop::sample::select(vec!["GET", "POST"]);
    (path, peer, method, values).prop_map(|(path, peer, method, values)| {
        let mut sample = Sample::get(path).method(method);
        for value in values {
            sample = sample.header("x-h", value);
        }
        match peer {
            Some(peer) => sample.peer(peer),
            None => sample,
        }
    })
}

fn named(list: &[(pb::Permission, pb::Principal)], reverse: bool) -> Vec<(String, pb::Permission, pb::Principal)> {
    let count = list.len();
    let name = |index: usize| format!("p{}", if reverse { count - index } else { index });
    list.iter().enumerate().map(|(index, (what, who))| (name(index), what.clone(), who.clone())).collect()
}

fn decide(action: pb::rbac::Action, list: &[(String, pb::Permission, pb::Principal)], sample: &Sample) -> bool {
    let borrowed: Vec<_> = list.iter().map(|(name, what, who)| (name.as_str(), what.clone(), who.clone())).collect();
    compile(rules(action, &borrowed)).decide(&sample.request()).allowed
}

proptest! {
    #[test]
    fn the_order_of_policies_does_not_matter(list in any_policies(), sample in any_sample()) {
        for action in [pb::rbac::Action::Allow, pb::rbac::Action::Deny] {
            let forward = decide(action, &named(&list, false), &sample);
            prop_assert_eq!(forward, decide(action, &named(&list, true), &sample));
        }
    }

    #[test]
    fn more_policies_never_take_an_allowance_or_lift_a_denial(list in any_policies(), sample in any_sample()) {
        let fewer = &list[..list.len().saturating_sub(1)];
        let allow = |list: &[_]| decide(pb::rbac::Action::Allow, &named(list, false), &sample);
        let deny = |list: &[_]| decide(pb::rbac::Action::Deny, &named(list, false), &sample);
        prop_assert!(!allow(fewer) || allow(&list));
        prop_assert!(deny(fewer) || !deny(&list));
    }

    #[test]
    fn what_an_allowing_rule_permits_the_same_denying_rule_refuses(list in any_policies(), sample in any_sample()) {
        // Doubtful readings may be refused by both, but nothing is permitted by both.
        let allowed = decide(pb::rbac::Action::Allow, &named(&list, false), &sample);
        let not_denied = decide(pb::rbac::Action::Deny, &named(&list, false), &sample);
        prop_assert!(!(allowed && not_denied));
    }

    #[test]
    fn a_rule_that_names_a_peer_never_permits_without_one(what in any_permission(), sample in any_sample()) {
        let mut sample = sample;
        sample.connection.peer = None;
        prop_assert!(!decide(pb::rbac::Action::Allow, &named(&[(what, peer(A))], false), &sample));
    }
}

fn either(rules: Vec<pb::Permission>) -> pb::Permission {
    permit(permission::Rule::OrRules(permission::Set { rules }))
}

fn one_of(ids: Vec<pb::Principal>) -> pb::Principal {
    who(principal::Identifier::OrIds(principal::Set { ids }))
}

fn whys(filter: &RbacFilter, sample: &Sample) -> Vec<(bool, String)> {
    let tried = filter.try_all(&sample.request());
    let decided = filter.decide(&sample.request());
    assert_eq!(tried.iter().find(|one| one.matched).map(|one| &one.policy), decided.policy.as_ref());
    tried.into_iter().map(|one| (one.matched, one.why)).collect()
}

#[test]
fn what_decides_is_put_into_words() {
    let claims = || claim(&["groups"], holds("testers"));
    let filter = allow(&[
        ("a", either(vec![path("/a"), path("/b")]), one_of(vec![peer(A), peer(B)])),
        ("b", anything(), claims()),
        ("c", path("/c"), not(peer(A))),
    ]);
    let said = |sample: &Sample| whys(&filter, sample).into_iter().map(|(_, why)| why).collect::<Vec<_>>();
    let plain = said(&Sample::get("/x"));
    assert_eq!(plain[0], format!("path /x is none of /a*, /b*; peer is absent, wanted {A} or {B}"));
    assert_eq!(plain[1], "claim groups is absent, wanted testers");
    assert_eq!(plain[2], "path /x is not /c*");
    let known = Sample::get("/b/1").peer(B).claims(json!({"groups": ["users"]}));
    assert_eq!(
        said(&known)[..2],
        [format!("path /b/1 is /b*; peer is {B}"), r#"claim groups ["users"] is not testers"#.into()]
    );
    assert_eq!(said(&Sample::get("/c").peer(A))[2], format!("peer is {A}, which is excluded"));
    assert_eq!(said(&Sample::get("/c"))[2], "path /c is /c*; peer is absent");
    let all = allow(&[("d", anything(), anyone())]);
    assert_eq!(whys(&all, &Sample::get("/")), [(true, "it has no conditions".to_owned())]);
}

#[test]
fn secrets_in_headers_are_not_repeated() {
    let tests = vec![header("authorization", "Basic abc"), header("x-key", "open")];
    let filter = deny(&[("a", either(tests), anyone())]);
    let sample = Sample::get("/").header("authorization", "Bearer secret").header("x-key", &"k".repeat(5000));
    let said = whys(&filter, &sample);
    assert!(!said[0].1.contains("secret") && said[0].1.len() < 600, "{said:?}");
}
