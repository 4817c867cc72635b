//! What a `VirtualService` rule does with a request: forward, redirect, answer; and what it changes on the way.

#[cfg(test)]
use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as delay;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy as CorsPb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::google::protobuf::Any;
use pb::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use pb::route_action::{ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy, hash_policy};
use pb::weighted_cluster::{ClusterWeight, cluster_weight};

use super::Scope;
use super::canonical::pack;
use super::hcm::{CORS, FAULT};
use super::model::{ClientView, full_host};
use super::names::outbound_cluster;
use super::pb as short;
use super::traffic::Traffic;
use crate::documents::rules::grpc_status;
use crate::documents::shapes::{Destination, HashCookie, HeaderOperations, Headers};
use crate::documents::virtual_service::{
    Body, CorsPolicy, DerivePort, DirectResponse, Fault, HttpDestination, HttpRoute, Redirect, Retries,
    UnmatchedPreflights,
};
use crate::node::NodeKind;

/// Where a rule stands: whose namespace short names belong to, and the port that requests came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) port: u32,
}

/// Gives `route` everything of `rule` but its match.
pub(super) fn apply(scope: &Scope<'_>, rule: &HttpRoute, place: Place<'_>, route: &mut pb::Route) {
    let mut host = rule.rewrite.as_ref().map(|rewrite| rewrite.authority.clone()).filter(|host| !host.is_empty());
    set_headers(rule.headers.as_ref(), route, &mut host);
    route.action = Some(match (&rule.redirect, &rule.direct_response) {
        (Some(to), _) => pb::route::Action::Redirect(redirect(to, place.port)),
        (_, Some(response)) => pb::route::Action::DirectResponse(direct(response)),
        (None, None) => {
            if let [only] = rule.route.as_slice() {
                set_headers(only.headers.as_ref(), route, &mut host);
            }
            if leaves_mesh(scope, rule, place) {
                // Who called is told inside the mesh only.
                route.request_headers_to_remove.push(CLIENT_CERT.to_owned());
            }
            pb::route::Action::Route(forward(scope, rule, place, host))
        }
    });
    if let Some(cors) = &rule.cors_policy {
        route.typed_per_filter_config.insert(CORS.to_owned(), cors_config(cors));
    }
    if let Some(fault) = &rule.fault {
        route.typed_per_filter_config.insert(FAULT.to_owned(), fault_config(fault));
    }
}

/// Plain forwarding to one cluster with the mesh's defaults.
fn to_cluster(scope: &Scope<'_>, cluster: String) -> pb::RouteAction {
    pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        timeout: Some(short::seconds(0)),
        retry_policy: retry(scope, None),
        ..Default::default()
    }
}

/// Whether a gateway sends the rule's requests to services outside the mesh. Sidecars never pass the header on.
fn leaves_mesh(scope: &Scope<'_>, rule: &HttpRoute, place: Place<'_>) -> bool {
    let is_outside = |to: &HttpDestination| {
        let host = full_host(&to.destination.host, place.namespace);
        scope.model.service(&host, &scope.node.namespace).is_some_and(|service| !service.internal)
    };
    scope.node.kind == NodeKind::Router && rule.route.iter().any(is_outside)
}

/// Straight to a service, for hosts that no virtual service speaks for.
pub(super) fn to_service(scope: &Scope<'_>, host: &str, port: u32) -> pb::RouteAction {
    let mut action = to_cluster(scope, outbound_cluster(port, "", host));
    action.hash_policy = hash(scope, host, "", port);
    action
}

/// The cluster of a destination: its port, else the service's only one, else the port that was asked.
pub(super) fn cluster_of(scope: &Scope<'_>, destination: &Destination, place: Place<'_>) -> String {
    let host = full_host(&destination.host, place.namespace);
    let service = scope.model.service(&host, &scope.node.namespace);
    let only = service.and_then(|service| match service.ports.as_slice() {
        [only] => Some(u32::from(only.number)),
        _ => None,
    });
    let port = destination.port.as_ref().map(|port| port.number).or(only).unwrap_or(place.port);
    outbound_cluster(port, &destination.subset, &host)
}

fn forward(scope: &Scope<'_>, rule: &HttpRoute, place: Place<'_>, host: Option<String>) -> pb::RouteAction {
    let mut action = to_cluster(scope, String::new());
    action.cluster_specifier = Some(match rule.route.as_slice() {
        [only] => ClusterSpecifier::Cluster(cluster_of(scope, &only.destination, place)),
        several => ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
            clusters: several.iter().filter(|to| to.weight > 0).map(|to| weighted(scope, to, place)).collect(),
            ..Default::default()
        }),
    });
    action.timeout = Some(short::duration(rule.timeout.map_or(Duration::ZERO, |span| span.0)));
    action.retry_policy = retry(scope, rule.retries.as_ref());
    action.host_rewrite_specifier = host.map(HostRewriteSpecifier::HostRewriteLiteral);
    if let Some(rewrite) = &rule.rewrite {
        action.prefix_rewrite.clone_from(&rewrite.uri);
        action.regex_rewrite = rewrite.uri_regex_rewrite.as_ref().map(|regex| RegexMatchAndSubstitute {
            pattern: Some(short::regex(&regex.pattern)),
            substitution: regex.rewrite.clone(),
        });
    }
    action.request_mirror_policies = mirrors(scope, rule, place);
    if let Some(HttpDestination { destination, .. }) = rule.route.first() {
        let host = full_host(&destination.host, place.namespace);
        let port = destination.port.as_ref().map_or(place.port, |port| port.number);
        action.hash_policy = hash(scope, &host, &destination.subset, port);
    }
    action
}

fn weighted(scope: &Scope<'_>, to: &HttpDestination, place: Place<'_>) -> ClusterWeight {
    let mut edits = pb::Route::default();
    let mut host = None;
    set_headers(to.headers.as_ref(), &mut edits, &mut host);
    ClusterWeight {
        name: cluster_of(scope, &to.destination, place),
        weight: short::uint(u32::try_from(to.weight).unwrap_or_default()),
        request_headers_to_add: edits.request_headers_to_add,
        request_headers_to_remove: edits.request_headers_to_remove,
        response_headers_to_add: edits.response_headers_to_add,
        response_headers_to_remove: edits.response_headers_to_remove,
        host_rewrite_specifier: host.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    }
}

/// Adds header operations; setting the host is a rewrite of the authority, not an operation.
fn set_headers(headers: Option<&Headers>, route: &mut pb::Route, host: &mut Option<String>) {
    let Some(headers) = headers else { return };
    if let Some(request) = &headers.request {
        if let Some((_, name)) = request.set.iter().chain(&request.add).find(|(name, _)| is_host(name)) {
            *host = Some(name.clone());
        }
        route.request_headers_to_add.extend(additions(request));
        route.request_headers_to_remove.extend(removals(request));
    }
    if let Some(response) = &headers.response {
        route.response_headers_to_add.extend(additions(response));
        route.response_headers_to_remove.extend(removals(response));
    }
}

fn is_host(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

fn removals(operations: &HeaderOperations) -> impl Iterator<Item = String> + '_ {
    operations.remove.iter().filter(|name| !is_host(name)).cloned()
}

fn additions(operations: &HeaderOperations) -> impl Iterator<Item = core::HeaderValueOption> + '_ {
    use core::header_value_option::HeaderAppendAction as Append;
    let of = |(name, value): (&String, &String), append: Append| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: name.clone(), value: value.clone(), ..Default::default() }),
        append_action: append as i32,
        ..Default::default()
    };
    let set = operations.set.iter().map(move |entry| of(entry, Append::OverwriteIfExistsOrAdd));
    let add = operations.add.iter().map(move |entry| of(entry, Append::AppendIfExistsOrAdd));
    set.chain(add).filter(|option| option.header.as_ref().is_some_and(|header| !is_host(&header.key)))
}

fn redirect(to: &Redirect, port: u32) -> pb::RedirectAction {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier};
    let path = match (to.uri.as_str(), to.prefix_rewrite.as_str()) {
        ("", "") => None,
        ("", prefix) => Some(PathRewriteSpecifier::PrefixRewrite(prefix.to_owned())),
        (uri, _) => Some(PathRewriteSpecifier::PathRedirect(uri.to_owned())),
    };
    let code = match to.redirect_code {
        302 => Code::Found,
        303 => Code::SeeOther,
        307 => Code::TemporaryRedirect,
        308 => Code::PermanentRedirect,
        _ => Code::MovedPermanently,
    };
    pb::RedirectAction {
        host_redirect: to.authority.clone(),
        port_redirect: match (to.port, to.derive_port) {
            (Some(port), _) => port,
            (None, Some(DerivePort::FromRequestPort)) => port,
            (None, _) => 0,
        },
        response_code: code as i32,
        scheme_rewrite_specifier: (!to.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(to.scheme.clone())),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

fn direct(response: &DirectResponse) -> pb::DirectResponseAction {
    use core::data_source::Specifier;
    let specifier = match response.body.as_ref() {
        Some(Body { string: Some(text), .. }) => Some(Specifier::InlineString(text.clone())),
        Some(Body { bytes: Some(base64), .. }) => {
            base64::engine::general_purpose::STANDARD.decode(base64).ok().map(Specifier::InlineBytes)
        }
        _ => None,
    };
    let body = specifier.map(|specifier| core::DataSource { specifier: Some(specifier), ..Default::default() });
    pb::DirectResponseAction { status: response.status, body, ..Default::default() }
}

/// The rule's retries, else the mesh's, else two attempts at what is safe to repeat.
fn retry(scope: &Scope<'_>, own: Option<&Retries>) -> Option<pb::RetryPolicy> {
    let given = own.or(scope.model.config.default_http_retry_policy.as_ref());
    let attempts = given.map_or(ATTEMPTS, |retries| u32::try_from(retries.attempts).unwrap_or_default());
    if attempts == 0 {
        return None;
    }
    let mut policy = pb::RetryPolicy { num_retries: short::uint(attempts), ..Default::default() };
    match given.map(|retries| retries.retry_on.as_str()) {
        None => (policy.retry_on, policy.retriable_status_codes) = (RETRY_ON_MESH.to_owned(), vec![503]),
        Some("") => RETRY_ON.clone_into(&mut policy.retry_on),
        Some(conditions) => (policy.retry_on, policy.retriable_status_codes) = retry_on(conditions),
    }
    let timeout = given.and_then(|retries| retries.per_try_timeout);
    policy.per_try_timeout = timeout.map(|span| short::duration(span.0));
    if given.and_then(|retries| retries.retry_ignore_previous_hosts).unwrap_or(true) {
        policy.retry_host_predicate = vec![previous_hosts()];
        policy.host_selection_retry_max_attempts = HOST_ATTEMPTS;
    }
    let backoff = given.and_then(|retries| retries.backoff).filter(|span| !span.0.is_zero());
    policy.retry_back_off =
        backoff.map(|span| RetryBackOff { base_interval: Some(short::duration(span.0)), max_interval: None });
    Some(policy)
}

/// Splits status codes from conditions, as Envoy wants them.
fn retry_on(conditions: &str) -> (String, Vec<u32>) {
    let (mut names, mut codes) = (Vec::new(), Vec::new());
    for condition in conditions.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        match condition.parse::<u32>() {
            Ok(code) => codes.push(code),
            Err(_) => names.push(condition),
        }
    }
    if !codes.is_empty() && !names.contains(&STATUS_CODES) {
        names.push(STATUS_CODES);
    }
    (names.join(","), codes)
}

fn previous_hosts() -> RetryHostPredicate {
    use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate::default()))),
    }
}

fn mirrors(scope: &Scope<'_>, rule: &HttpRoute, place: Place<'_>) -> Vec<RequestMirrorPolicy> {
    let percent = match (&rule.mirror_percentage, rule.mirror_percent) {
        (Some(percentage), _) => percentage.value,
        (None, Some(percent)) => f64::from(percent),
        (None, None) => 100.0,
    };
    let one = rule.mirror.iter().map(|destination| (destination, percent));
    let several = rule
        .mirrors
        .iter()
        .map(|mirror| (&mirror.destination, mirror.percentage.as_ref().map_or(100.0, |percentage| percentage.value)));
    one.chain(several)
        .filter(|(_, percent)| *percent > 0.0)
        .map(|(destination, percent)| RequestMirrorPolicy {
            cluster: cluster_of(scope, destination, place),
            runtime_fraction: Some(short::runtime_fraction(percent)),
            ..Default::default()
        })
        .collect()
}

/// What the destination's rule wants requests to stick to.
fn hash(scope: &Scope<'_>, host: &str, subset: &str, port: u32) -> Vec<HashPolicy> {
    let service = scope.model.service(host, &scope.node.namespace);
    let client = ClientView { namespace: &scope.node.namespace, labels: &scope.node.labels };
    let namespace = service.map(|service| service.namespace.as_str());
    let Some(rule) = scope.model.destination_rule(host, namespace, &client) else { return Vec::new() };
    let subset = rule.subsets.iter().find(|known| known.name == subset).copied();
    let traffic = Traffic::of(rule.policy, subset, u16::try_from(port).unwrap_or_default());
    let Some(hash) = traffic.balancer.and_then(|balancer| balancer.consistent_hash.as_ref()) else {
        return Vec::new();
    };
    use hash_policy::PolicySpecifier as By;
    let by = match (&hash.http_header_name, &hash.http_cookie, &hash.http_query_parameter_name) {
        (Some(name), _, _) => By::Header(hash_policy::Header { header_name: name.clone(), ..Default::default() }),
        (_, Some(cookie), _) => By::Cookie(hash_cookie(cookie)),
        (_, _, Some(name)) => By::QueryParameter(hash_policy::QueryParameter { name: name.clone() }),
        (None, None, None) => By::ConnectionProperties(hash_policy::ConnectionProperties {
            source_ip: hash.use_source_ip.unwrap_or(true),
        }),
    };
    vec![HashPolicy { terminal: false, policy_specifier: Some(by) }]
}

fn hash_cookie(cookie: &HashCookie) -> hash_policy::Cookie {
    hash_policy::Cookie {
        name: cookie.name.clone(),
        path: cookie.path.clone(),
        ttl: cookie.ttl.map(|span| short::duration(span.0)),
        ..Default::default()
    }
}

fn cors_config(cors: &CorsPolicy) -> Any {
    let old = cors.allow_origin.iter().map(|origin| match origin.as_str() {
        "*" => short::pattern(".*"),
        origin => short::exact(origin),
    });
    let origins = cors.allow_origins.iter().filter_map(short::string_match);
    pack(&CorsPb {
        allow_origin_string_match: old.chain(origins).collect(),
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.map(|span| span.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: cors.allow_credentials.and_then(short::flag),
        filter_enabled: Some(short::runtime_fraction(100.0)),
        forward_not_matching_preflights: short::flag(cors.unmatched_preflights != UnmatchedPreflights::Ignore),
        ..Default::default()
    })
}

fn fault_config(own: &Fault) -> Any {
    let share = |percentage: Option<f64>| short::fraction(percentage.unwrap_or(0.0));
    let delay = own.delay.as_ref().map(|own| delay::FaultDelay {
        percentage: Some(share(
            own.percentage.as_ref().map(|percentage| percentage.value).or_else(|| Some(f64::from(own.percent))),
        )),
        fault_delay_secifier: own
            .fixed_delay
            .map(|span| delay::fault_delay::FaultDelaySecifier::FixedDelay(short::duration(span.0))),
    });
    let abort = own.abort.as_ref().map(|own| {
        let status = own.http_status.and_then(|status| u32::try_from(status).ok());
        let grpc = own.grpc_status.as_deref().and_then(grpc_status);
        fault::FaultAbort {
            percentage: Some(share(own.percentage.as_ref().map(|percentage| percentage.value))),
            error_type: match (status, grpc) {
                (Some(status), _) => Some(fault::fault_abort::ErrorType::HttpStatus(status)),
                (None, Some(grpc)) => Some(fault::fault_abort::ErrorType::GrpcStatus(grpc)),
                (None, None) => None,
            },
            ..Default::default()
        }
    });
    pack(&fault::HttpFault { delay, abort, ..Default::default() })
}

/// Names of header operations, for tests of what a route changes.
#[cfg(test)]
pub(super) fn names(options: &[core::HeaderValueOption]) -> BTreeMap<String, String> {
    options.iter().filter_map(|option| option.header.clone()).map(|header| (header.key, header.value)).collect()
}

const CLIENT_CERT: &str = "x-forwarded-client-cert";
const ATTEMPTS: u32 = 2;
const HOST_ATTEMPTS: i64 = 5;
const STATUS_CODES: &str = "retriable-status-codes";
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";
/// What the mesh retries when neither rule nor mesh settings say anything; the codes are given beside it.
const RETRY_ON_MESH: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
