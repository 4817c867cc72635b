//! Conditions of a `VirtualService` rule as an Envoy route match.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher, list_matcher, metadata_matcher, value_matcher,
};
use pb::query_parameter_matcher::QueryParameterMatchSpecifier;
use pb::route_match::PathSpecifier;

use super::pb as short;
use crate::documents::rules::brackets;
use crate::documents::shapes::StringMatch;
use crate::documents::virtual_service::HttpMatch;

/// A match without conditions takes everything.
pub(super) fn compile(matcher: Option<&HttpMatch>) -> pb::RouteMatch {
    let Some(matcher) = matcher else { return everything() };
    let mut route = pb::RouteMatch {
        path_specifier: Some(path(matcher.uri.as_ref())),
        case_sensitive: short::flag(!matcher.ignore_uri_case),
        ..Default::default()
    };
    let named = [(":scheme", &matcher.scheme), (":method", &matcher.method), (":authority", &matcher.authority)];
    for (name, test) in named {
        if let Some(test) = test {
            route.headers.push(short::header(name, short::string_match(test)));
        }
    }
    for (tests, wanted) in [(&matcher.headers, true), (&matcher.without_headers, false)] {
        for (name, test) in tests {
            match name.strip_prefix('@') {
                Some(claim) => route.dynamic_metadata.extend(claim_test(claim, test, wanted)),
                None => {
                    let matcher = short::string_match(test);
                    // An absent header is not the one that is excluded.
                    let treat_missing_header_as_empty = !wanted && matcher.is_some();
                    let header = short::header(name, matcher);
                    route.headers.push(pb::HeaderMatcher {
                        invert_match: !wanted,
                        treat_missing_header_as_empty,
                        ..header
                    });
                }
            }
        }
    }
    route.query_parameters = matcher.query_params.iter().map(|(name, test)| query(name, test)).collect();
    route
}

pub(super) fn everything() -> pb::RouteMatch {
    pb::RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// Whether nothing behind a rule with this match can be reached.
pub(super) fn is_everything(matcher: Option<&HttpMatch>) -> bool {
    matcher.is_none_or(|matcher| {
        let path = match matcher.uri.as_ref() {
            None => true,
            Some(StringMatch { prefix: Some(prefix), .. }) => prefix == "/" || prefix.is_empty(),
            Some(StringMatch { regex: Some(regex), .. }) => regex == ".*" || regex == "*",
            Some(_) => false,
        };
        path && matcher.scheme.is_none()
            && matcher.method.is_none()
            && matcher.authority.is_none()
            && matcher.headers.is_empty()
            && matcher.without_headers.is_empty()
            && matcher.query_params.is_empty()
    })
}

fn path(uri: Option<&StringMatch>) -> PathSpecifier {
    match uri {
        Some(StringMatch { exact: Some(text), .. }) => PathSpecifier::Path(text.clone()),
        Some(StringMatch { prefix: Some(text), .. }) => PathSpecifier::Prefix(text.clone()),
        Some(StringMatch { regex: Some(text), .. }) => PathSpecifier::SafeRegex(short::regex(text)),
        _ => PathSpecifier::Prefix("/".to_owned()),
    }
}

fn query(name: &str, test: &StringMatch) -> pb::QueryParameterMatcher {
    let test = short::string_match(test)
        .map_or(QueryParameterMatchSpecifier::PresentMatch(true), QueryParameterMatchSpecifier::StringMatch);
    pb::QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: Some(test) }
}

/// `@request.auth.claims.a.b` or `@request.auth.claims[a][b]`: a claim that equals the value or, as a list, holds it.
fn claim_test(claim: &str, test: &StringMatch, wanted: bool) -> Option<MetadataMatcher> {
    let path = claim.strip_prefix("request.auth.claims")?;
    let names: Vec<&str> = match path.strip_prefix('.') {
        Some(dotted) => dotted.split('.').collect(),
        None => brackets(path)?,
    };
    let matcher = short::string_match(test).unwrap_or_else(|| short::pattern(".*"));
    let value = |pattern| ValueMatcher { match_pattern: Some(pattern) };
    let text = |matcher: StringMatcher| value(value_matcher::MatchPattern::StringMatch(matcher));
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(text(matcher.clone())))) };
    let either = OrMatcher {
        value_matchers: vec![text(matcher), value(value_matcher::MatchPattern::ListMatch(Box::new(list)))],
    };
    let segment = |key: &str| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    Some(MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: std::iter::once(super::CLAIMS_KEY).chain(names).map(segment).collect(),
        value: Some(value(value_matcher::MatchPattern::OrMatch(either))),
        invert: !wanted,
    })
}
