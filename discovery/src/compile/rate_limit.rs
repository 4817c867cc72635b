//! `RateLimit` to rate limit filters.

use envoy_types::pb::envoy::config::core::v3::ApiVersion;
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use route::rate_limit::action::ActionSpecifier;
use route::rate_limit::{self as rule, Action};

use super::authz::{Target, is_of};
use super::canonical::pack;
use super::hcm::http_filter;
use super::model::{Model, full_host};
use super::names::outbound_cluster;
use super::pb as short;
use crate::documents::mesh::{Descriptor, RateLimit, RateLimitMatch, RateLimitRule, selects};
use crate::documents::shapes::StringMatch;

/// One filter per document that selects the workload.
pub(super) fn filters(model: &Model, target: Target<'_>) -> Vec<HttpFilter> {
    model
        .rate_limits
        .iter()
        .filter(|limit| is_of(model, &limit.meta.namespace, target.namespace))
        .filter(|limit| selects(limit.spec.selector.as_ref(), target.labels))
        .map(|limit| http_filter("envoy.filters.http.ratelimit", pack(&filter(&limit.spec, &limit.meta.namespace))))
        .collect()
}

fn filter(limit: &RateLimit, namespace: &str) -> pb::RateLimit {
    let host = full_host(&limit.provider.service, namespace);
    let cluster = outbound_cluster(limit.provider.port, "", &host);
    pb::RateLimit {
        domain: limit.domain.clone(),
        timeout: limit.timeout.map(|span| short::duration(span.0)),
        failure_mode_deny: limit.failure_mode_deny,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(short::grpc_service(cluster, &host, None)),
            transport_api_version: ApiVersion::V3 as i32,
        }),
        enable_x_ratelimit_headers: pb::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        rate_limits: limit.rules.iter().map(rules).collect(),
        ..Default::default()
    }
}

fn rules(rule: &RateLimitRule) -> route::RateLimit {
    let mut conditions = headers(&rule.matches);
    let mut actions: Vec<Action> = Vec::new();
    for descriptor in &rule.descriptors {
        // The condition rides on the first fixed entry: without a match there is no descriptor at all.
        let conditions = match descriptor.value {
            Some(_) => std::mem::take(&mut conditions),
            None => Vec::new(),
        };
        actions.push(action(descriptor, conditions));
    }
    if !conditions.is_empty() {
        let matched =
            Descriptor { key: "header_match".to_owned(), value: Some("matched".to_owned()), ..Default::default() };
        actions.insert(0, action(&matched, conditions));
    }
    route::RateLimit { actions, ..Default::default() }
}

fn action(descriptor: &Descriptor, conditions: Vec<route::HeaderMatcher>) -> Action {
    let descriptor_key = descriptor.key.clone();
    let specifier = match (&descriptor.value, &descriptor.header) {
        (Some(value), _) if !conditions.is_empty() => {
            ActionSpecifier::HeaderValueMatch(rule::action::HeaderValueMatch {
                descriptor_value: value.clone(),
                descriptor_key,
                headers: conditions,
                ..Default::default()
            })
        }
        (Some(value), _) => ActionSpecifier::GenericKey(rule::action::GenericKey {
            descriptor_value: value.clone(),
            descriptor_key,
            ..Default::default()
        }),
        (None, Some(name)) => ActionSpecifier::RequestHeaders(rule::action::RequestHeaders {
            header_name: name.clone(),
            descriptor_key,
            ..Default::default()
        }),
        (None, None) => ActionSpecifier::RemoteAddress(rule::action::RemoteAddress::default()),
    };
    Action { action_specifier: Some(specifier) }
}

fn headers(matches: &RateLimitMatch) -> Vec<route::HeaderMatcher> {
    let mut headers = Vec::new();
    if let Some(path) = &matches.path {
        headers.push(short::header(":path", Some(path_matcher(path))));
    }
    if !matches.methods.is_empty() {
        let methods: Vec<String> = matches.methods.iter().map(|method| regex::escape(method)).collect();
        headers.push(short::header(":method", Some(short::pattern(&methods.join("|")))));
    }
    headers
}

/// The header `:path` carries the query, too; a path alone is meant.
fn path_matcher(path: &StringMatch) -> envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
    match (&path.exact, &path.prefix, &path.regex) {
        (Some(text), _, _) => short::pattern(&format!("{}(\\?.*)?", regex::escape(text))),
        (_, Some(text), _) => short::prefix(text),
        (_, _, Some(regex)) => short::pattern(&format!("({regex})(\\?.*)?")),
        (None, None, None) => short::pattern(".*"),
    }
}
