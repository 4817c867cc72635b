//! Tests of `header`.

use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use http::HeaderValue;

use super::*;
use crate::request::sample::Sample;

fn exact(text: &str) -> HeaderMatchSpecifier {
    HeaderMatchSpecifier::StringMatch(matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(text.into())),
        ignore_case: false,
    })
}

fn header(name: &str, spec: HeaderMatchSpecifier) -> pb::HeaderMatcher {
    pb::HeaderMatcher { name: name.into(), header_match_specifier: Some(spec), ..Default::default() }
}

fn compile(value: &pb::HeaderMatcher, reading: Reading) -> HeaderMatcher {
    HeaderMatcher::compile(value, reading).unwrap()
}

fn with_roles(values: &[&'static str]) -> Sample {
    let mut sample = Sample::get("/");
    for value in values {
        sample.headers.append("x-role", HeaderValue::from_static(value));
    }
    sample
}

#[test]
fn a_second_value_never_opens_what_the_first_would_not() {
    for (values, reading, expected) in [
        (&["admin"][..], Reading::AllPass, true),
        (&["admin", "user"], Reading::AllPass, false),
        (&["admin", "admin"], Reading::AllPass, true),
        (&["user,admin"], Reading::AllPass, false),
        (&["user", "admin"], Reading::AnyPasses, true),
        (&["user, admin"], Reading::AnyPasses, true),
        (&["user"], Reading::AnyPasses, false),
        (&["user", "admin"], Reading::Joined, false),
    ] {
        let matcher = compile(&header("x-role", exact("admin")), reading);
        assert_eq!(matcher.matches(&with_roles(values).request()), expected, "{values:?} {reading:?}");
    }
}

#[test]
fn inverting_turns_the_reading_around() {
    let mut value = header("x-role", exact("admin"));
    value.invert_match = true;

    // What denies "everything but admin" denies as soon as one value is something else.
    let denies = compile(&value, Reading::AnyPasses);
    assert!(denies.matches(&with_roles(&["admin", "user"]).request()));
    assert!(!denies.matches(&with_roles(&["admin"]).request()));

    let permits = compile(&value, Reading::AllPass);
    assert!(!permits.matches(&with_roles(&["user", "admin"]).request()));
}

#[test]
fn a_missing_header_passes_only_where_that_is_asked_for() {
    let sample = Sample::get("/");
    for (spec, invert, empty, expected) in [
        (exact("a"), false, false, false),
        (exact("a"), true, false, false),
        (exact("a"), true, true, true),
        (exact(""), false, true, true),
        (HeaderMatchSpecifier::PresentMatch(true), false, false, false),
        (HeaderMatchSpecifier::PresentMatch(true), true, false, true),
        (HeaderMatchSpecifier::PresentMatch(false), false, false, true),
    ] {
        let mut value = header("x-role", spec);
        value.invert_match = invert;
        value.treat_missing_header_as_empty = empty;
        assert_eq!(compile(&value, Reading::Joined).matches(&sample.request()), expected, "{value:?}");
    }
}

#[test]
fn numbers_are_tested_in_half_open_ranges() {
    let value = header("x-role", HeaderMatchSpecifier::RangeMatch(Int64Range { start: 1, end: 5 }));
    for (text, expected) in [("1", true), ("4", true), ("5", false), ("-1", false), ("1x", false)] {
        assert_eq!(compile(&value, Reading::Joined).matches(&with_roles(&[text]).request()), expected, "{text}");
    }
}

#[test]
fn a_host_is_permitted_as_written_and_denied_with_any_port() {
    let name = header(":authority", exact("a.test"));
    let with_port = header(":authority", exact("a.test:443"));
    let check = |value, reading, host: &str| compile(value, reading).matches(&Sample::get("/").host(host).request());
    for reading in [Reading::AllPass, Reading::AnyPasses, Reading::Joined] {
        for host in ["a.test", "A.Test."] {
            assert!(check(&name, reading, host), "{host}");
            assert!(!check(&with_port, reading, host), "{host}");
        }
        assert!(check(&with_port, reading, "a.test:443"));
        assert!(!check(&name, reading, "b.test:443"));
        assert_eq!(check(&name, reading, "a.test:443"), reading == Reading::AnyPasses, "{reading:?}");
    }
}

#[test]
fn cookies_are_found_by_their_whole_name() {
    let mut sample = Sample::get("/");
    sample.headers.append("cookie", HeaderValue::from_static("xtoken=no; token=\"yes\"; token=again"));

    assert_eq!(cookie_value(&sample.headers, "token"), Some("yes"));
    assert_eq!(cookies(&sample.headers, "token").len(), 2);
    assert_eq!(cookie_value(&sample.headers, "tok"), None);
}

#[test]
fn query_parameters_are_tested_by_value_and_presence() {
    let value = |spec| pb::QueryParameterMatcher { name: "q".into(), query_parameter_match_specifier: spec };
    let present = QueryMatcher::compile(&value(None)).unwrap();
    assert!(present.matches(&Sample::get("/?q").request()));
    assert!(!present.matches(&Sample::get("/?qq=1").request()));

    let HeaderMatchSpecifier::StringMatch(one) = exact("1") else { unreachable!() };
    let one = QueryMatcher::compile(&value(Some(QueryParameterMatchSpecifier::StringMatch(one)))).unwrap();
    assert!(one.matches(&Sample::get("/?a=2&q=1").request()));
    assert!(!one.matches(&Sample::get("/?q=2").request()));
}
