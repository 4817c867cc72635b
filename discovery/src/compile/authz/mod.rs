//! `AuthorizationPolicy` to RBAC and ext_authz filters, with Istio's meaning.
//!
//! CUSTOM asks first, then any matching DENY refuses, then, if there is an ALLOW policy at all, one must match. What
//! cannot be expressed (HTTP fields on a TCP port, an unusable provider) degrades towards denial, never towards access.

mod condition;
mod custom;
mod principal;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;

use super::canonical::pack;
use super::hcm::http_filter;
use super::model::{Model, Named};
use crate::documents::mesh::selects;
use crate::documents::security::{Action, AuthorizationPolicy};
use crate::documents::shapes::{Labels, TargetRef};

/// The workload that policies are compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
    /// The port, when it is known beforehand and the connection's own does not tell it.
    pub(crate) port: Option<u16>,
}

/// What rules are compiled with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) http: bool,
    pub(super) action: Action,
    pub(super) port: Option<u16>,
    pub(super) trust_domains: &'a [String],
    pub(super) namespace: &'a str,
}

/// The filters of an HTTP connection, in two parts: those that run before tokens are verified, and those after.
pub(crate) fn http_filters(model: &Model, target: Target<'_>) -> (Vec<HttpFilter>, Vec<HttpFilter>) {
    let policies = selected(model, target);
    let before = custom::http_filters(model, &policies, target);
    let after = [Action::Deny, Action::Allow, Action::Audit]
        .into_iter()
        .filter_map(|action| rules_of(model, &policies, target, action, true))
        .map(|(rules, shadow, prefix)| {
            let filter =
                http::Rbac { rules, shadow_rules: shadow, shadow_rules_stat_prefix: prefix, ..Default::default() };
            http_filter(RBAC_HTTP, pack(&filter))
        })
        .collect();
    (before, after)
}

/// The filters of a TCP connection.
pub(crate) fn network_filters(model: &Model, target: Target<'_>) -> Vec<listener::Filter> {
    let policies = selected(model, target);
    let custom = custom::network_rules(model, &policies, target).map(|rules| (Some(rules), None, String::new()));
    let plain = [Action::Deny, Action::Allow, Action::Audit]
        .into_iter()
        .filter_map(|action| rules_of(model, &policies, target, action, false));
    custom
        .into_iter()
        .chain(plain)
        .map(|(rules, shadow, prefix)| {
            let filter = network::Rbac {
                rules,
                shadow_rules: shadow,
                shadow_rules_stat_prefix: prefix,
                stat_prefix: "tcp.".to_owned(),
                ..Default::default()
            };
            super::network_filter(RBAC_NETWORK, pack(&filter))
        })
        .collect()
}

/// Policies of the workload's namespace and of the root namespace that select it.
pub(super) fn selected<'a>(model: &'a Model, target: Target<'_>) -> Vec<&'a Named<AuthorizationPolicy>> {
    model.authorization_policies.iter().filter(|policy| is_for(model, policy, target)).collect()
}

/// Whether a policy selects a workload.
pub(super) fn is_for(model: &Model, policy: &Named<AuthorizationPolicy>, target: Target<'_>) -> bool {
    let spec = &policy.spec;
    is_of(model, &policy.meta.namespace, target.namespace)
        && concerns(spec.target_ref.as_ref(), &spec.target_refs, target.labels)
            .unwrap_or_else(|| selects(spec.selector.as_ref(), target.labels))
}

pub(super) fn is_of(model: &Model, policy_namespace: &str, namespace: &str) -> bool {
    policy_namespace == namespace || policy_namespace == model.config.root_namespace()
}

/// Whether a policy with targets means this workload; `None` when it has no targets. Gateways of the Gateway API carry
/// their name as a label; other targets are not known here, and such a policy concerns nobody.
pub(super) fn concerns(one: Option<&TargetRef>, many: &[TargetRef], labels: &Labels) -> Option<bool> {
    if one.is_none() && many.is_empty() {
        return None;
    }
    let own = labels.get("gateway.networking.k8s.io/gateway-name");
    Some(one.into_iter().chain(many).any(|target| target.kind == "Gateway" && own == Some(&target.name)))
}

type Rules = (Option<pb::Rbac>, Option<pb::Rbac>, String);

/// The enforced and the dry-run rules of one action; `None` when no policy has it.
fn rules_of(
    model: &Model,
    policies: &[&Named<AuthorizationPolicy>],
    target: Target<'_>,
    action: Action,
    http: bool,
) -> Option<Rules> {
    let domains = model.trust_domains();
    let of_action: Vec<_> = policies.iter().filter(|policy| policy.spec.action == action).collect();
    if of_action.is_empty() {
        return None;
    }
    let (mut enforced, mut shadow) = (BTreeMap::new(), BTreeMap::new());
    let (mut any_enforced, mut any_shadow) = (false, false);
    for policy in of_action {
        let dry = action != Action::Audit && is_dry_run(policy);
        (any_enforced, any_shadow) = (any_enforced || !dry, any_shadow || dry);
        let context =
            Context { http, action, port: target.port, trust_domains: &domains, namespace: &policy.meta.namespace };
        let to = if dry { &mut shadow } else { &mut enforced };
        rule::policies("", policy, context, to);
    }
    let rbac = |policies: BTreeMap<String, pb::Policy>| pb::Rbac {
        action: match action {
            Action::Allow => pb::rbac::Action::Allow,
            Action::Deny | Action::Custom => pb::rbac::Action::Deny,
            Action::Audit => pb::rbac::Action::Log,
        } as i32,
        policies: policies.into_iter().collect(),
        ..Default::default()
    };
    let prefix = match (any_shadow, action) {
        (true, Action::Deny) => "istio_dry_run_deny_",
        (true, _) => "istio_dry_run_allow_",
        (false, _) => "",
    };
    Some((any_enforced.then(|| rbac(enforced)), any_shadow.then(|| rbac(shadow)), prefix.to_owned()))
}

pub(super) fn is_dry_run(policy: &Named<AuthorizationPolicy>) -> bool {
    policy.meta.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true")
}

const RBAC_HTTP: &str = "envoy.filters.http.rbac";
const RBAC_NETWORK: &str = "envoy.filters.network.rbac";
