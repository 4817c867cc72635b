//! Authorization policies: that they select somebody, and that the namespaces they name exist.

use super::Context;
use super::aim::Aim;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, Workload, selector_text};

/// Policies for nobody, and for peers from namespaces that do not exist.
pub(crate) fn workloads(context: &Context<'_>, report: &mut Report) {
    let workloads = in_mesh(context);
    let is_known = workloads.iter().any(|workload| !workload.resource.is_assumed);
    for policy in context.set.of(What::AuthorizationPolicy) {
        if is_known || has_pods(context) {
            for_nobody(context, policy, &workloads, report);
        }
        namespaces(context, policy, report);
    }
}

/// Workloads that have a proxy.
pub(crate) fn in_mesh<'a>(context: &Context<'a>) -> Vec<Workload<'a>> {
    let mut workloads = workloads::all(context.set);
    workloads.retain(|workload| workload.is_in_mesh(context.set) || workload.is_ambient());
    workloads
}

fn has_pods(context: &Context<'_>) -> bool {
    context.set.of(What::Pod).any(|pod| !pod.is_assumed)
}

/// A policy that selects no workload. Those for the whole mesh are always for somebody.
pub(crate) fn for_nobody(context: &Context<'_>, policy: &Resource, workloads: &[Workload<'_>], report: &mut Report) {
    let aim = Aim::of(context.set, policy);
    let selector = policy.spec().get("selector");
    let is_mesh_wide = policy.namespace == context.set.root_namespace() && !selector.exists();
    if aim.is_by_reference || is_mesh_wide || aim.workloads(workloads).next().is_some() {
        return;
    }
    let at = if selector.exists() { selector } else { policy.name_view() };
    let text = match aim.labels.is_empty() {
        true => format!("there is no workload of the mesh in {}, so nobody is protected", policy.namespace),
        false => {
            format!("no workload of the mesh has the labels {}, so nobody is protected", selector_text(&aim.labels))
        }
    };
    report.tell("IST0127", policy, at, text);
}

/// Namespaces that no document tells of; where none are told at all, they are kept elsewhere.
fn namespaces(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let known: Vec<&str> = context.set.of(What::Namespace).map(|namespace| namespace.name.as_str()).collect();
    if known.is_empty() {
        return;
    }
    for source in sources(policy) {
        for namespace in source.get("namespaces").items().chain(source.get("notNamespaces").items()) {
            let name = namespace.text();
            if !name.is_empty() && !known.iter().any(|known| is_meant(known, name)) {
                report.tell("IST0101", policy, namespace, format!("there is no namespace {name}"));
            }
        }
    }
}

/// A name with `*` before or after it.
fn is_meant(namespace: &str, pattern: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => namespace.ends_with(end),
        (None, Some(begin)) => namespace.starts_with(begin),
        (None, None) => namespace.eq_ignore_ascii_case(pattern),
    }
}

/// The sources of all rules of a policy.
pub(crate) fn sources(policy: &Resource) -> impl Iterator<Item = View<'_>> {
    let from = policy.spec().get("rules").items().flat_map(|rule| rule.get("from").items());
    from.map(|from| from.get("source"))
}

/// The conditions of all rules of a policy.
pub(crate) fn conditions(policy: &Resource) -> impl Iterator<Item = View<'_>> {
    policy.spec().get("rules").items().flat_map(|rule| rule.get("when").items())
}

/// `ALLOW` where nothing is said.
pub(crate) fn action(policy: &Resource) -> &str {
    match policy.spec().get("action").text() {
        "" => "ALLOW",
        action => action,
    }
}
