//! CUSTOM policies: a shadow RBAC filter finds the requests that match, and the ext_authz filter asks about those.
//!
//! A provider that is missing or unusable, or more than one for a workload, refuses the matching requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as ext;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, StatusCode};

use super::super::canonical::pack;
use super::super::hcm::http_filter;
use super::super::model::{Model, Named, full_host};
use super::super::names::outbound_cluster;
use super::super::pb as short;
use super::{Context, RBAC_HTTP, Target, principal, rule};
use crate::documents::mesh::ExtAuthzGrpc;
use crate::documents::security::{Action, AuthorizationPolicy};

pub(super) fn http_filters(
    model: &Model,
    policies: &[&Named<AuthorizationPolicy>],
    target: Target<'_>,
) -> Vec<HttpFilter> {
    let custom: Vec<_> = custom_of(policies);
    let providers: BTreeSet<&str> = custom.iter().map(|policy| provider_name(policy)).collect();
    let Some(provider) = providers.first().copied() else { return Vec::new() };
    let usable = model.config.provider(provider).and_then(|provider| provider.envoy_ext_authz_grpc.as_ref());
    let prefix = format!("{POLICY_PREFIX}{provider}");
    let mut matching = BTreeMap::new();
    for policy in &custom {
        let prefix = format!("{POLICY_PREFIX}{}-", provider_name(policy));
        rule::policies(&prefix, policy, context(model, policy, target, true), &mut matching);
    }
    match usable.filter(|_| providers.len() == 1) {
        Some(service) => {
            let shadow = http::Rbac {
                shadow_rules: Some(deny(matching)),
                shadow_rules_stat_prefix: SHADOW_PREFIX.to_owned(),
                ..Default::default()
            };
            vec![
                http_filter(RBAC_HTTP, pack(&shadow)),
                http_filter("envoy.filters.http.ext_authz", pack(&ext_authz(model, service, &prefix))),
            ]
        }
        None => {
            tracing::warn!(
                provider,
                reason = "PROVIDER_UNUSABLE",
                "matching requests are refused: exactly one gRPC extensionProvider is needed"
            );
            let refused = matching.into_iter().map(|(name, policy)| (format!("{name}{BAD_SUFFIX}"), policy)).collect();
            let filter = http::Rbac { rules: Some(deny(refused)), ..Default::default() };
            vec![http_filter(RBAC_HTTP, pack(&filter))]
        }
    }
}

/// Nothing asks a service about TCP connections here, so whatever a CUSTOM rule matches there is refused.
pub(super) fn network_rules(
    model: &Model,
    policies: &[&Named<AuthorizationPolicy>],
    target: Target<'_>,
) -> Option<pb::Rbac> {
    let mut matching = BTreeMap::new();
    for policy in custom_of(policies) {
        let prefix = format!("{POLICY_PREFIX}{}-", provider_name(policy));
        rule::policies(&prefix, policy, context(model, policy, target, false), &mut matching);
    }
    (!matching.is_empty()).then(|| deny(matching))
}

fn custom_of<'a>(policies: &[&'a Named<AuthorizationPolicy>]) -> Vec<&'a Named<AuthorizationPolicy>> {
    policies.iter().copied().filter(|policy| policy.spec.action == Action::Custom).collect()
}

fn provider_name(policy: &Named<AuthorizationPolicy>) -> &str {
    policy.spec.provider.as_ref().map_or("", |provider| &provider.name)
}

fn context<'a>(_model: &Model, policy: &'a Named<AuthorizationPolicy>, target: Target<'_>, http: bool) -> Context<'a> {
    // Principals cannot be tested by CUSTOM rules, so that trust domains do not matter.
    Context { http, action: Action::Custom, port: target.port, trust_domains: &[], namespace: &policy.meta.namespace }
}

fn deny(policies: BTreeMap<String, pb::Policy>) -> pb::Rbac {
    pb::Rbac { action: pb::rbac::Action::Deny as i32, policies: policies.into_iter().collect(), ..Default::default() }
}

fn ext_authz(model: &Model, service: &ExtAuthzGrpc, prefix: &str) -> ext::ExtAuthz {
    // `namespace/host` says whose service is meant; the host alone names the cluster.
    let host = service.service.rsplit('/').next().unwrap_or(&service.service);
    let host = full_host(host, model.config.root_namespace());
    let timeout = service.timeout.map_or(TIMEOUT, |span| span.0);
    let cluster = outbound_cluster(service.port, "", &host);
    let body = service.include_request_body_in_check.as_ref();
    ext::ExtAuthz {
        transport_api_version: envoy_types::pb::envoy::config::core::v3::ApiVersion::V3 as i32,
        failure_mode_allow: service.fail_open,
        clear_route_cache: service.clear_route_cache,
        status_on_error: Some(HttpStatus { code: status(&service.status_on_error) }),
        with_request_body: body.map(|body| ext::BufferSettings {
            max_request_bytes: body.max_request_bytes,
            allow_partial_message: body.allow_partial_message,
            pack_as_bytes: body.pack_as_bytes,
        }),
        filter_enabled_metadata: Some(principal::filter_metadata(
            RBAC_HTTP,
            [format!("{SHADOW_PREFIX}shadow_effective_policy_id").as_str()],
            principal::text_value(short::prefix(prefix)),
        )),
        services: Some(ext::ext_authz::Services::GrpcService(short::grpc_service(cluster, &host, Some(timeout)))),
        ..Default::default()
    }
}

/// The code as Envoy's enumeration; 403 if it is none.
fn status(text: &str) -> i32 {
    let code = text.parse::<i32>().ok().and_then(|code| StatusCode::try_from(code).ok());
    code.unwrap_or(StatusCode::Forbidden) as i32
}

const POLICY_PREFIX: &str = "istio-ext-authz-";
const BAD_SUFFIX: &str = "-deny-due-to-bad-CUSTOM-action";
const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// A service that takes longer than this will not answer any more.
const TIMEOUT: Duration = Duration::from_secs(600);
