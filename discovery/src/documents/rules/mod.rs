//! Semantic rules of the kinds: what a schema cannot say.
//!
//! The rules are those that Istio's own validation applies to the same documents; a document that breaks one is refused,
//! a doubtful one is accepted with a warning.

mod networking;
mod security;
mod text;
mod traffic;
mod virtual_service;

use super::mesh::{MeshConfig, RateLimit};
use super::shapes::{Labels, MatchLabels};
use super::{Meta, Review, Spec};

pub(crate) use security::brackets;
pub(crate) use text::{host_matches, parse_cidr};
pub(crate) use virtual_service::grpc_status;

use text::{check_host, check_port};

pub(crate) fn check(spec: &Spec, meta: &Meta, review: &mut Review<'_>) {
    match spec {
        Spec::Gateway(gateway) => networking::check_gateway(gateway, review),
        Spec::VirtualService(service) => virtual_service::check(service, review),
        Spec::DestinationRule(rule) => networking::check_destination_rule(rule, review),
        Spec::ServiceEntry(entry) => networking::check_service_entry(entry, review),
        Spec::WorkloadEntry(entry) => networking::check_workload_entry(entry, "spec", review),
        Spec::PeerAuthentication(policy) => security::check_peer_authentication(policy, review),
        Spec::RequestAuthentication(policy) => security::check_request_authentication(policy, review),
        Spec::AuthorizationPolicy(policy) => security::check_authorization_policy(policy, meta, review),
        Spec::RateLimit(limit) => check_rate_limit(limit, review),
        Spec::MeshConfig(_) => {}
    }
}

pub(crate) fn check_mesh(config: &MeshConfig, review: &mut Review<'_>) {
    for (index, provider) in config.extension_providers.iter().enumerate() {
        let at = format!("extensionProviders[{index}]");
        let blocks = [
            provider.envoy_ext_authz_grpc.is_some(),
            provider.envoy_ext_authz_http.is_some(),
            provider.envoy_http_als.is_some(),
            provider.envoy_tcp_als.is_some(),
            provider.envoy_file_access_log.is_some(),
            provider.envoy_otel_als.is_some(),
            provider.prometheus.is_some(),
            provider.opentelemetry.is_some(),
            provider.zipkin.is_some(),
            provider.lightstep.is_some(),
            provider.datadog.is_some(),
            provider.stackdriver.is_some(),
            provider.skywalking.is_some(),
            provider.sds.is_some(),
        ];
        if blocks.iter().filter(|given| **given).count() != 1 {
            review.error(&at, "ONE_OF", format!("provider `{}` needs exactly one provider block", provider.name));
        }
        if config.extension_providers[..index].iter().any(|earlier| earlier.name == provider.name) {
            review.error(&at, "DUPLICATE_NAME", format!("provider `{}` is defined twice", provider.name));
        }
        let services = [
            provider.envoy_ext_authz_grpc.as_ref().map(|block| (&block.service, block.port)),
            provider.envoy_ext_authz_http.as_ref().map(|block| (&block.service, block.port)),
            provider.envoy_http_als.as_ref().map(|block| (&block.service, block.port)),
            provider.envoy_tcp_als.as_ref().map(|block| (&block.service, block.port)),
        ];
        for (service, port) in services.into_iter().flatten() {
            check_host(service.rsplit('/').next().unwrap_or(service), false, &at, review);
            check_port(port, &at, review);
        }
    }
    for name in &config.default_providers.access_logging {
        if config.provider(name).is_none() && name != "envoy" {
            review.error(
                "defaultProviders.accessLogging",
                "PROVIDER_UNKNOWN",
                format!("no extensionProvider `{name}`"),
            );
        }
    }
}

fn check_rate_limit(limit: &RateLimit, review: &mut Review<'_>) {
    check_selector(limit.selector.as_ref(), "spec.selector", review);
    check_host(&limit.provider.service, false, "spec.provider.service", review);
    check_port(limit.provider.port, "spec.provider.port", review);
    if limit.domain.is_empty() {
        review.error("spec.domain", "VALUE_INVALID", "the domain must not be empty");
    }
    if limit.rules.is_empty() {
        review.error("spec.rules", "EMPTY", "at least one rule is needed");
    }
    for (index, rule) in limit.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        if let Some(path) = &rule.matches.path {
            text::check_string_match(path, &format!("{at}.match.path"), review);
        }
        if rule.descriptors.is_empty() {
            review.error(format!("{at}.descriptors"), "EMPTY", "at least one descriptor is needed");
        }
        for (index, descriptor) in rule.descriptors.iter().enumerate() {
            let at = format!("{at}.descriptors[{index}]");
            let sources = [descriptor.value.is_some(), descriptor.header.is_some(), descriptor.remote_address];
            if sources.iter().filter(|given| **given).count() != 1 {
                review.error(&at, "ONE_OF", "exactly one of `value`, `header`, `remoteAddress` is needed");
            }
            if descriptor.key.is_empty() && !descriptor.remote_address {
                review.error(&at, "FIELD_MISSING", "`key` is required");
            }
        }
    }
}

pub(super) fn check_selector(selector: Option<&MatchLabels>, path: &str, review: &mut Review<'_>) {
    if let Some(selector) = selector {
        check_labels(&selector.match_labels, &format!("{path}.matchLabels"), review);
    }
}

pub(super) fn check_labels(labels: &Labels, path: &str, review: &mut Review<'_>) {
    for (key, value) in labels {
        if key.is_empty() {
            review.error(path, "LABEL_INVALID", "a label's key must not be empty");
        }
        if key.contains('*') {
            review.error(path, "LABEL_INVALID", format!("wildcard not allowed in label key `{key}`"));
        }
        if value.contains('*') {
            review.error(path, "LABEL_INVALID", format!("wildcard not allowed in label value `{value}`"));
        }
        if value.len() > LABEL_LEN_MAX {
            review.error(path, "LABEL_INVALID", format!("value of `{key}` is longer than {LABEL_LEN_MAX} characters"));
        }
    }
}

/// `none_allowed`: only services may be hidden from everyone with `~`.
pub(super) fn check_export_to(export_to: &[String], none_allowed: bool, review: &mut Review<'_>) {
    for (index, entry) in export_to.iter().enumerate() {
        let at = format!("spec.exportTo[{index}]");
        if export_to[..index].contains(entry) {
            review.error(&at, "DUPLICATE_NAME", format!("`{entry}` is listed twice"));
        }
        match entry.as_str() {
            "." | "*" => {}
            "~" if none_allowed => {}
            "~" => review.error(&at, "VALUE_INVALID", "`~` is for ServiceEntry only"),
            name if text::is_label(name) => {}
            name => review.error(&at, "NAME_INVALID", format!("`{name}` is no namespace")),
        }
    }
    let has = |entry: &str| export_to.iter().any(|other| other == entry);
    if export_to.len() > 1 && (has("*") || has("~")) {
        review.error("spec.exportTo", "CONFLICT", "`*` or `~` cannot stand beside other entries");
    }
}

const LABEL_LEN_MAX: usize = 253;
