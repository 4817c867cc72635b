//! Rules of `VirtualService`.

use base64::Engine;

use super::text::{
    check_destination, check_header_name, check_headers, check_host, check_one_string, check_percent, check_port,
    check_regex, check_string_match, host_matches,
};
use super::{check_export_to, check_labels};
use crate::documents::Review;
use crate::documents::virtual_service::{
    CorsPolicy, DirectResponse, Fault, HttpMatch, HttpRoute, Redirect, Retries, Rewrite, VirtualService,
};

pub(super) fn check(service: &VirtualService, review: &mut Review<'_>) {
    check_hosts(service, review);
    check_export_to(&service.export_to, false, review);
    if service.http.is_empty() && service.tls.is_empty() && service.tcp.is_empty() {
        review.error("spec", "EMPTY", "one of `http`, `tls`, `tcp` is needed");
    }
    for (index, route) in service.http.iter().enumerate() {
        check_http(service, route, &format!("spec.http[{index}]"), review);
    }
    check_shadowed(service, review);
    for (index, route) in service.tls.iter().enumerate() {
        let at = format!("spec.tls[{index}]");
        if route.matches.is_empty() {
            review.error(&at, "EMPTY", "a TLS route needs at least one match");
        }
        for (index, matcher) in route.matches.iter().enumerate() {
            let at = format!("{at}.match[{index}]");
            if matcher.sni_hosts.is_empty() {
                review.error(&at, "EMPTY", "`sniHosts` needs at least one name");
            }
            for sni in &matcher.sni_hosts {
                check_host(sni, true, &at, review);
                if !service.hosts.iter().any(|host| host_matches(host, sni)) {
                    review.error(&at, "HOST_INVALID", format!("SNI `{sni}` is not within `hosts`"));
                }
            }
            check_labels(&matcher.source_labels, &at, review);
            check_subnets(&matcher.destination_subnets, &at, review);
        }
        let destinations = route.route.iter().map(|to| (&to.destination, to.weight));
        check_destinations(destinations, &at, review);
    }
    for (index, route) in service.tcp.iter().enumerate() {
        let at = format!("spec.tcp[{index}]");
        for (index, matcher) in route.matches.iter().enumerate() {
            let at = format!("{at}.match[{index}]");
            check_labels(&matcher.source_labels, &at, review);
            check_subnets(&matcher.destination_subnets, &at, review);
        }
        let destinations = route.route.iter().map(|to| (&to.destination, to.weight));
        check_destinations(destinations, &at, review);
    }
}

fn check_hosts(service: &VirtualService, review: &mut Review<'_>) {
    let hosts = &service.hosts;
    if hosts.is_empty() && !service.gateways.is_empty() {
        review.error("spec.hosts", "EMPTY", "at least one host is needed");
    }
    let in_mesh = service.gateways.is_empty() || service.gateways.iter().any(|gateway| gateway == "mesh");
    for (index, host) in hosts.iter().enumerate() {
        let at = format!("spec.hosts[{index}]");
        check_host(host, true, &at, review);
        if host == "*" && in_mesh {
            review.error(&at, "HOST_INVALID", "`*` is not allowed in the mesh; name gateways or hosts");
        }
        if let Some(other) = hosts[..index].iter().find(|other| host_matches(other, host) || host_matches(host, other))
        {
            review.error(&at, "HOST_DUPLICATE", format!("`{host}` and `{other}` overlap"));
        }
    }
    for (index, gateway) in service.gateways.iter().enumerate() {
        let at = format!("spec.gateways[{index}]");
        if gateway.is_empty() || gateway.split('/').count() > 2 {
            review.error(
                at,
                "NAME_INVALID",
                format!("`{gateway}` is no gateway; write `namespace/name`, `name` or `mesh`"),
            );
        }
    }
}

fn check_subnets(subnets: &[String], at: &str, review: &mut Review<'_>) {
    for subnet in subnets {
        super::text::check_cidr(subnet, at, review);
    }
}

/// A rule without conditions takes everything; later rules never run.
fn check_shadowed(service: &VirtualService, review: &mut Review<'_>) {
    let everything = service.http.iter().position(|route| route.matches.is_empty());
    if let Some(first) = everything {
        for index in first + 1..service.http.len() {
            let text = format!("never reached: http[{first}] matches every request");
            review.warn(format!("spec.http[{index}]"), "ROUTE_UNREACHABLE", text);
        }
    }
}

fn check_http(service: &VirtualService, route: &HttpRoute, at: &str, review: &mut Review<'_>) {
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let given: Vec<&str> = actions.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if given.len() != 1 {
        let found = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
        review.error(
            at,
            "ONE_OF",
            format!("exactly one of route, redirect, directResponse, delegate is needed; {found} given"),
        );
    }
    if route.route.is_empty() && (route.fault.is_some() && route.delegate.is_none() || route.rewrite.is_some()) {
        review.error(at, "CONFLICT", "`rewrite` and `fault` need `route`");
    }
    for (index, matcher) in route.matches.iter().enumerate() {
        check_match(service, matcher, &format!("{at}.match[{index}]"), review);
    }
    check_destinations(route.route.iter().map(|to| (&to.destination, to.weight)), at, review);
    for (index, to) in route.route.iter().enumerate() {
        check_headers(to.headers.as_ref(), &format!("{at}.route[{index}].headers"), review);
    }
    check_headers(route.headers.as_ref(), &format!("{at}.headers"), review);
    check_mirrors(route, at, review);
    if let Some(redirect) = &route.redirect {
        check_redirect(redirect, &format!("{at}.redirect"), review);
    }
    if let Some(response) = &route.direct_response {
        check_response(response, &format!("{at}.directResponse"), review);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(rewrite, &format!("{at}.rewrite"), review);
    }
    if let Some(retries) = &route.retries {
        check_retries(retries, &format!("{at}.retries"), review);
    }
    if let Some(fault) = &route.fault {
        check_fault(fault, &format!("{at}.fault"), review);
    }
    if let Some(cors) = &route.cors_policy {
        check_cors(cors, &format!("{at}.corsPolicy"), review);
    }
}

fn check_destinations<'a>(
    destinations: impl Iterator<Item = (&'a crate::documents::shapes::Destination, i32)>,
    at: &str,
    review: &mut Review<'_>,
) {
    let (mut count, mut sum) = (0, 0_i64);
    for (index, (destination, weight)) in destinations.enumerate() {
        let at = format!("{at}.route[{index}]");
        check_destination(destination, &format!("{at}.destination"), review);
        if weight < 0 {
            review.error(format!("{at}.weight"), "OUT_OF_RANGE", format!("weight {weight} is negative"));
        }
        count += 1;
        sum += i64::from(weight);
    }
    if count > 1 && sum == 0 {
        review.error(format!("{at}.route"), "WEIGHTS_ZERO", "the weights of several destinations sum up to 0");
    }
    if count == 0 && (at.contains(".tls[") || at.contains(".tcp[")) {
        review.error(at, "EMPTY", "at least one destination is needed");
    }
}

fn check_match(service: &VirtualService, matcher: &HttpMatch, at: &str, review: &mut Review<'_>) {
    let named = [
        ("uri", &matcher.uri),
        ("scheme", &matcher.scheme),
        ("method", &matcher.method),
        ("authority", &matcher.authority),
    ];
    for (name, test) in named {
        if let Some(test) = test {
            check_string_match(test, &format!("{at}.{name}"), review);
        }
    }
    for (field, tests) in [("headers", &matcher.headers), ("withoutHeaders", &matcher.without_headers)] {
        for (name, test) in tests {
            let at = format!("{at}.{field}");
            if let Some(claim) = name.strip_prefix('@') {
                check_claim(service, claim, &at, review);
            } else {
                check_header_name(name, &at, review);
            }
            check_one_string(test, &at, review);
        }
    }
    for (name, test) in &matcher.query_params {
        let at = format!("{at}.queryParams");
        if name.is_empty() {
            review.error(&at, "VALUE_INVALID", "a query parameter needs a name");
        }
        check_one_string(test, &at, review);
    }
    if matcher.port != 0 {
        check_port(matcher.port, &format!("{at}.port"), review);
    }
    check_labels(&matcher.source_labels, &format!("{at}.sourceLabels"), review);
}

fn check_claim(service: &VirtualService, claim: &str, at: &str, review: &mut Review<'_>) {
    if !claim.starts_with("request.auth.claims") {
        review.error(at, "HEADER_INVALID", format!("`@{claim}` is unknown; `@request.auth.claims.NAME` is meant?"));
    }
    if service.gateways.is_empty() || service.gateways.iter().any(|gateway| gateway == "mesh") {
        review.error(at, "CONFLICT", "routing by JWT claims works at gateways only; `mesh` must not be listed");
    }
}

fn check_mirrors(route: &HttpRoute, at: &str, review: &mut Review<'_>) {
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        review.error(at, "ONE_OF", "`mirror` and `mirrors` exclude each other");
    }
    if let Some(mirror) = &route.mirror {
        check_destination(mirror, &format!("{at}.mirror"), review);
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        check_destination(&mirror.destination, &format!("{at}.mirrors[{index}].destination"), review);
        check_percent(mirror.percentage.as_ref(), &format!("{at}.mirrors[{index}].percentage"), review);
    }
    check_percent(route.mirror_percentage.as_ref(), &format!("{at}.mirrorPercentage"), review);
    if route.mirror_percent.is_some_and(|percent| percent > 100) {
        review.error(format!("{at}.mirrorPercent"), "OUT_OF_RANGE", "more than 100 percent");
    }
}

fn check_redirect(redirect: &Redirect, at: &str, review: &mut Review<'_>) {
    let Redirect { uri, authority, scheme, prefix_rewrite, .. } = redirect;
    if uri.is_empty()
        && authority.is_empty()
        && scheme.is_empty()
        && prefix_rewrite.is_empty()
        && redirect.port.is_none()
    {
        review.error(at, "EMPTY", "a redirect must change `uri`, `authority`, `scheme`, `port` or `prefixRewrite`");
    }
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        review.error(at, "ONE_OF", "`uri` and `prefixRewrite` exclude each other");
    }
    if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        let text = format!("{} is not one of 301, 302, 303, 307, 308", redirect.redirect_code);
        review.error(format!("{at}.redirectCode"), "OUT_OF_RANGE", text);
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        review.error(format!("{at}.scheme"), "VALUE_UNKNOWN", "the scheme is `http` or `https`");
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        review.error(at, "ONE_OF", "`port` and `derivePort` exclude each other");
    }
    if let Some(port) = redirect.port {
        check_port(port, &format!("{at}.port"), review);
    }
}

fn check_response(response: &DirectResponse, at: &str, review: &mut Review<'_>) {
    if !(200..=599).contains(&response.status) {
        review.error(format!("{at}.status"), "OUT_OF_RANGE", format!("{} is not between 200 and 599", response.status));
    }
    let Some(body) = &response.body else { return };
    let len = match (&body.string, &body.bytes) {
        (Some(text), None) => text.len(),
        (None, Some(base64)) => {
            if base64::engine::general_purpose::STANDARD.decode(base64).is_err() {
                review.error(format!("{at}.body.bytes"), "VALUE_INVALID", "no base64");
            }
            base64.len() / 4 * 3
        }
        _ => return review.error(format!("{at}.body"), "ONE_OF", "exactly one of `string`, `bytes` is needed"),
    };
    if len > BODY_LEN_MAX {
        review.error(format!("{at}.body"), "OUT_OF_RANGE", format!("{len} bytes, at most {BODY_LEN_MAX}"));
    } else if len > BODY_LEN_ADVISED_MAX {
        review.warn(format!("{at}.body"), "OUT_OF_RANGE", format!("{len} bytes are held in every proxy"));
    }
}

fn check_rewrite(rewrite: &Rewrite, at: &str, review: &mut Review<'_>) {
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && rewrite.uri_regex_rewrite.is_none() {
        review.error(at, "EMPTY", "a rewrite must change `uri`, `authority` or `uriRegexRewrite`");
    }
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        if !rewrite.uri.is_empty() {
            review.error(at, "ONE_OF", "`uri` and `uriRegexRewrite` exclude each other");
        }
        if regex.pattern.is_empty() || regex.rewrite.is_empty() {
            review.error(format!("{at}.uriRegexRewrite"), "FIELD_MISSING", "`match` and `rewrite` are both required");
        }
        check_regex(&regex.pattern, &format!("{at}.uriRegexRewrite.match"), review);
    }
}

fn check_retries(retries: &Retries, at: &str, review: &mut Review<'_>) {
    if retries.attempts < 0 {
        review.error(format!("{at}.attempts"), "OUT_OF_RANGE", format!("{} is negative", retries.attempts));
    }
    let others = retries.per_try_timeout.is_some() || !retries.retry_on.is_empty();
    if retries.attempts == 0 && others {
        review.error(at, "CONFLICT", "`attempts: 0` switches retries off; nothing else may be set");
    }
    for condition in retries.retry_on.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        let is_status = condition.parse::<u16>().is_ok_and(|code| (100..=599).contains(&code));
        if !is_status && !RETRY_ON.contains(&condition) {
            review.error(format!("{at}.retryOn"), "VALUE_UNKNOWN", format!("`{condition}` is no retry condition"));
        }
    }
}

fn check_fault(fault: &Fault, at: &str, review: &mut Review<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() {
        review.error(at, "EMPTY", "`delay` or `abort` is needed");
    }
    if let Some(delay) = &fault.delay {
        let at = format!("{at}.delay");
        if delay.exponential_delay.is_some() {
            review.error(&at, "UNSUPPORTED", "`exponentialDelay` is not supported; use `fixedDelay`");
        } else if delay.fixed_delay.is_none() {
            review.error(&at, "FIELD_MISSING", "`fixedDelay` is required");
        }
        check_percent(delay.percentage.as_ref(), &format!("{at}.percentage"), review);
        if !(0..=100).contains(&delay.percent) {
            review.error(format!("{at}.percent"), "OUT_OF_RANGE", "not between 0 and 100");
        }
    }
    let Some(abort) = &fault.abort else { return };
    let at = format!("{at}.abort");
    check_percent(abort.percentage.as_ref(), &format!("{at}.percentage"), review);
    if abort.http2_error.is_some() {
        review.error(&at, "UNSUPPORTED", "`http2Error` is not supported; use `httpStatus` or `grpcStatus`");
        return;
    }
    match (abort.http_status, abort.grpc_status.as_deref()) {
        (Some(status), None) if (200..=599).contains(&status) => {}
        (Some(status), None) => {
            review.error(format!("{at}.httpStatus"), "OUT_OF_RANGE", format!("{status} is not between 200 and 599"));
        }
        (None, Some(name)) if grpc_status(name).is_some() => {}
        (None, Some(name)) => {
            review.error(format!("{at}.grpcStatus"), "VALUE_UNKNOWN", format!("`{name}` is no gRPC status"));
        }
        _ => review.error(&at, "ONE_OF", "exactly one of `httpStatus`, `grpcStatus` is needed"),
    }
}

fn check_cors(cors: &CorsPolicy, at: &str, review: &mut Review<'_>) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        check_string_match(origin, &format!("{at}.allowOrigins[{index}]"), review);
    }
    for method in &cors.allow_methods {
        if method != "*" && (method.is_empty() || !method.bytes().all(|c| c.is_ascii_uppercase())) {
            review.error(format!("{at}.allowMethods"), "VALUE_INVALID", format!("`{method}` is no method"));
        }
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for name in names {
            check_header_name(name, &format!("{at}.{field}"), review);
        }
    }
    if cors.max_age.is_some_and(|age| age.0.subsec_nanos() != 0) {
        review.error(format!("{at}.maxAge"), "VALUE_INVALID", "whole seconds are needed");
    }
}

/// The number of a gRPC status name.
pub(crate) fn grpc_status(name: &str) -> Option<u32> {
    let index = GRPC_STATUS.iter().position(|known| *known == name)?;
    u32::try_from(index).ok()
}

const GRPC_STATUS: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

const BODY_LEN_MAX: usize = 1024 * 1024;
const BODY_LEN_ADVISED_MAX: usize = 100 * 1024;
