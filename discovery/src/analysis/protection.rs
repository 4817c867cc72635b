//! Gaps in protection: what policies seem to guard, and do not.

use identity::TrustDomain;

use super::Context;
use super::aim::Aim;
use super::authorization::{action, conditions, in_mesh, sources};
use super::message::{Report, list};
use super::mutual_tls::Modes;
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::selected;
use crate::compile::{Explainer, Known};
use crate::documents::tree;

/// All of it.
pub(crate) fn gaps(context: &Context<'_>, report: &mut Report) {
    unverifiable(context, report);
    bypassed(context, report);
    never(context, report);
    for policy in context.set.of(What::AuthorizationPolicy) {
        denies_mesh(context, policy, report);
        shadowed(context, policy, report);
        forwarded_address(context, policy, report);
        provider(context, policy, report);
        paths(context, policy, report);
    }
}

/// A policy by paths that are compared as they are written.
fn paths(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let mesh = context.set.mesh().map(|mesh| mesh.root().path("pathNormalization.normalization").text());
    let operations = policy.spec().get("rules").items().flat_map(|rule| rule.get("to").items());
    let operations = operations.map(|to| to.get("operation"));
    let mut lists = operations.flat_map(|operation| [operation.get("paths"), operation.get("notPaths")]);
    if let Some(list) = lists.find(|list| list.exists()).filter(|_| mesh == Some("NONE")) {
        report.tell("KSB0119", policy, list, "it goes by paths, and the mesh does not normalize them");
    }
}

/// A policy that leaves the decision to a provider which the mesh does not have.
fn provider(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let Some(mesh) = context.set.mesh().filter(|_| action(policy) == "CUSTOM") else { return };
    let name = policy.spec().path("provider.name");
    let mut known = mesh.root().get("extensionProviders").items().map(|one| one.get("name").text());
    if !name.text().is_empty() && !known.any(|known| known == name.text()) {
        let text = format!("the mesh configuration has no extensionProvider `{}`", name.text());
        report.tell("IST0101", policy, name, text);
    }
}

/// Services inside the mesh of which nobody knows who has to answer.
fn unverifiable(context: &Context<'_>, report: &mut Report) {
    let entries: Vec<_> = in_mesh(context).into_iter().filter(|one| one.resource.what == What::WorkloadEntry).collect();
    for service in context.set.of(What::ServiceEntry) {
        let spec = service.spec();
        let has_names = spec.get("subjectAltNames").items().next().is_some();
        if spec.get("location").text() != "MESH_INTERNAL" || has_names {
            continue;
        }
        let nameless = |endpoint: View<'_>| endpoint.get("serviceAccount").text().is_empty();
        let endpoints = spec.get("endpoints").items().filter(|endpoint| nameless(*endpoint)).count();
        let selector = spec.path("workloadSelector.labels").labels();
        let selected = selected(&entries, Some(&service.namespace), &selector).filter(|_| !selector.is_empty());
        let nameless: Vec<String> =
            selected.filter(|one| one.service_account.is_empty()).map(|one| one.resource.full_name()).collect();
        if endpoints > 0 {
            let text = format!("{endpoints} endpoint(s) say no serviceAccount, and there are no subjectAltNames");
            report.tell("KSB0113", service, spec.get("endpoints"), text);
        } else if !nameless.is_empty() {
            let text = format!("{} say no serviceAccount, and there are no subjectAltNames", list(&nameless));
            report.tell("KSB0113", service, spec.get("workloadSelector"), text);
        }
    }
}

/// Ports that pass by the proxy of a workload that demands mTLS.
fn bypassed(context: &Context<'_>, report: &mut Report) {
    let modes = Modes::of(context);
    for workload in in_mesh(context).into_iter().filter(|workload| workload.is_pod() && !workload.resource.is_assumed) {
        if modes.at(&workload, None) != "STRICT" {
            continue;
        }
        let network = workload.pod.get("hostNetwork");
        if network.is_true() {
            report.tell(
                "KSB0116",
                workload.resource,
                network,
                "it uses the host's network, where no proxy captures its traffic",
            );
        }
        for name in ["traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/excludeInterfaces"] {
            if let Some(value) = workload.annotations.get(name).filter(|value| !value.trim().is_empty()) {
                let text = format!("{name} leaves `{value}` outside of the proxy, though mTLS is demanded");
                report.tell("KSB0116", workload.resource, workload.resource.name_view(), text);
            }
        }
    }
}

/// Rules that the compiler knows never to match; other reasons than these have codes of their own.
fn never(context: &Context<'_>, report: &mut Report) {
    let named = context.set.mesh().map(|mesh| mesh.root().get("trustDomain").text()).unwrap_or_default();
    let Ok(trust_domain) = TrustDomain::parse(if named.is_empty() { "cluster.local" } else { named }) else { return };
    let explainer = Explainer::new(context.set.accepted.clone(), &trust_domain);
    let proxies = explainer.proxies();
    let known = Known { proxies: &proxies, identities: None, trust_domains: &[] };
    for idle in explainer.idle(known).into_iter().filter(|idle| ["contradiction", "tcp"].contains(&idle.why)) {
        let origin = &idle.origin;
        if let Some(policy) = context.set.find(What::AuthorizationPolicy, &origin.namespace, &origin.name) {
            report.tell_line(
                "KSB0118",
                policy,
                origin.line + policy.lines_before,
                format!("it never matches: {}", idle.text),
            );
        }
    }
}

/// An ALLOW policy without rules for everybody.
fn denies_mesh(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let aim = Aim::of(context.set, policy);
    let has_rules = policy.spec().get("rules").items().next().is_some();
    let is_wide = policy.namespace == context.set.root_namespace() && aim.labels.is_empty() && !aim.is_by_reference;
    if is_wide && !has_rules && action(policy) == "ALLOW" && policy.root().get("spec").node().is_some() {
        report.tell(
            "KSB0114",
            policy,
            policy.name_view(),
            "it denies every request of the mesh that no other policy allows",
        );
    }
}

/// An ALLOW policy behind one that denies everything.
fn shadowed(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    if action(policy) != "ALLOW" || policy.spec().get("rules").items().next().is_none() {
        return;
    }
    let aim = Aim::of(context.set, policy);
    let denials =
        context.set.of(What::AuthorizationPolicy).filter(|other| action(other) == "DENY" && !is_dry_run(other));
    let mut denials = denials.filter(|other| other.spec().get("rules").items().any(is_unconditional));
    if let Some(denial) = denials.find(|other| Aim::of(context.set, other).covers(&aim)) {
        let text = format!("{} denies everything before it", denial.full_name());
        report.tell("KSB0115", policy, policy.name_view(), text);
    }
}

fn is_dry_run(policy: &Resource) -> bool {
    policy.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true")
}

fn is_unconditional(rule: View<'_>) -> bool {
    ["from", "to", "when"].iter().all(|field| rule.get(field).items().next().is_none())
}

/// Policies by an address that every client can write.
fn forwarded_address(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let of_sources = sources(policy).flat_map(|source| [source.get("remoteIpBlocks"), source.get("notRemoteIpBlocks")]);
    let of_conditions = conditions(policy).map(|condition| condition.get("key"));
    let of_conditions = of_conditions.filter(|key| key.text() == "remote.ip");
    let Some(field) = of_sources.chain(of_conditions).find(|field| field.exists()) else { return };
    if !declares_proxies(context, policy) {
        report.tell("KSB0117", policy, field, "it goes by X-Forwarded-For, and no trusted proxy is declared");
    }
}

/// Whether the mesh, or the workloads of the policy, say how many proxies are before them.
fn declares_proxies(context: &Context<'_>, policy: &Resource) -> bool {
    let is_some =
        |view: View<'_>| view.path("gatewayTopology.numTrustedProxies").number().is_some_and(|count| count > 0);
    let by_mesh = context.set.mesh().is_some_and(|mesh| is_some(mesh.root().get("defaultConfig")));
    let aim = Aim::of(context.set, policy);
    let workloads = in_mesh(context);
    by_mesh
        || aim.workloads(&workloads).any(|workload| {
            let own = workload.annotations.get("proxy.istio.io/config").map(|text| tree::parse_stream(text));
            own.and_then(Result::ok).into_iter().flatten().any(|node| is_some(View::of(&node)))
        })
}
