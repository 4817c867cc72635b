//! Selectors of sidecars, telemetries and policies: that they select somebody, and that nobody is selected twice.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, Workload, is_ambient, selected, selector_text};

/// A kind of which each workload has one document at most.
struct Single {
    what: What,
    /// Where its labels are.
    path: &'static str,
    /// Told when several select one workload.
    conflict: &'static str,
}

const SIDECAR: Single = Single { what: What::Sidecar, path: "workloadSelector.labels", conflict: "IST0110" };
const TELEMETRY: Single = Single { what: What::Telemetry, path: "selector.matchLabels", conflict: "IST0159" };

/// Sidecars: selectors, and namespaces with several defaults.
pub(crate) fn sidecars(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    let ineffective = judge(context, &SIDECAR, &workloads, report);
    for (namespace, sidecars) in defaults(context, What::Sidecar, |sidecar| !has_labels(sidecar, SIDECAR.path)) {
        if context.set.namespace(namespace).is_some_and(is_ambient) {
            for sidecar in sidecars.iter().filter(|sidecar| !ineffective.contains(&sidecar.full_name())) {
                let text = format!("the namespace {namespace} is in ambient mode, where there are no sidecars");
                report.tell("IST0167", sidecar, sidecar.name_view(), text);
            }
        } else {
            several("IST0111", namespace, &sidecars, report);
        }
    }
}

/// Telemetries with selectors.
pub(crate) fn telemetries(context: &Context<'_>, report: &mut Report) {
    judge(context, &TELEMETRY, &workloads::all(context.set), report);
}

/// Namespaces with several telemetries without selector.
pub(crate) fn default_telemetries(context: &Context<'_>, report: &mut Report) {
    let is_default = |telemetry: &Resource| {
        !telemetry.spec().get("selector").exists()
            && !["targetRef", "targetRefs"].iter().any(|field| telemetry.spec().get(field).exists())
    };
    for (namespace, telemetries) in defaults(context, What::Telemetry, is_default) {
        several("IST0160", namespace, &telemetries, report);
    }
}

fn has_labels(resource: &Resource, path: &str) -> bool {
    resource.spec().path(path).entries().next().is_some()
}

fn defaults<'a>(
    context: &Context<'a>,
    what: What,
    is_default: impl Fn(&Resource) -> bool,
) -> BTreeMap<&'a str, Vec<&'a Resource>> {
    let mut defaults: BTreeMap<&str, Vec<&Resource>> = BTreeMap::new();
    for resource in context.set.of(what).filter(|resource| is_default(resource)) {
        defaults.entry(&resource.namespace).or_default().push(resource);
    }
    defaults
}

fn several(code: &'static str, namespace: &str, resources: &[&Resource], report: &mut Report) {
    for resource in resources.iter().filter(|_| resources.len() > 1) {
        let others = resources.iter().filter(|other| !std::ptr::eq(**other, *resource));
        let names: Vec<String> = others.map(|other| other.full_name()).collect();
        let text = format!("{} has no selector either, and {namespace} can have one such document", list(names));
        report.tell(code, resource, resource.name_view(), text);
    }
}

/// Tells selectors without workloads and workloads with several documents. Names those that only select ambient workloads.
fn judge(context: &Context<'_>, single: &Single, workloads: &[Workload<'_>], report: &mut Report) -> BTreeSet<String> {
    let mut by_workload: BTreeMap<String, (bool, Vec<&Resource>)> = BTreeMap::new();
    let is_known = workloads.iter().any(|workload| !workload.resource.is_assumed);
    for resource in context.set.of(single.what).filter(|resource| has_labels(resource, single.path)) {
        let labels = resource.spec().path(single.path).labels();
        let found: Vec<&Workload<'_>> = selected(workloads, Some(&resource.namespace), &labels).collect();
        if found.is_empty() && is_known {
            let text = format!("no workload of {} has the labels {}", resource.namespace, selector_text(&labels));
            report.tell("IST0101", resource, resource.spec().path(single.path), text);
        }
        for workload in found {
            let (_, resources) =
                by_workload.entry(workload.resource.title()).or_insert_with(|| (workload.is_ambient(), Vec::new()));
            resources.push(resource);
        }
    }
    tell_conflicts(single, &by_workload, report)
}

fn tell_conflicts(
    single: &Single,
    by_workload: &BTreeMap<String, (bool, Vec<&Resource>)>,
    report: &mut Report,
) -> BTreeSet<String> {
    let (mut told, mut ineffective) = (BTreeSet::new(), BTreeSet::new());
    for (workload, (is_ambient, resources)) in by_workload {
        if single.what == What::Sidecar && *is_ambient {
            for resource in resources.iter().filter(|resource| ineffective.insert(resource.full_name())) {
                let text = format!("{workload} is in ambient mode, where there are no sidecars");
                report.tell("IST0167", resource, resource.name_view(), text);
            }
            continue;
        }
        for resource in resources.iter().filter(|_| resources.len() > 1) {
            let others = resources.iter().filter(|other| !std::ptr::eq(**other, *resource));
            let names: Vec<String> = others.map(|other| other.full_name()).collect();
            // One workload is example enough.
            if told.insert((resource.full_name(), names.clone())) {
                let text = format!("{workload} is selected by {}, too", list(names));
                report.tell(single.conflict, resource, resource.name_view(), text);
            }
        }
    }
    ineffective
}

/// Policies that select pods of gateways of the Gateway API, which only take policies by reference.
pub(crate) fn of_gateways(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    let gateways: Vec<&Workload<'_>> =
        workloads.iter().filter(|workload| workload.labels.contains_key(GATEWAY_NAME)).collect();
    for what in [What::AuthorizationPolicy, What::RequestAuthentication, What::Telemetry, What::WasmPlugin] {
        for policy in context.set.of(what) {
            let spec = policy.spec();
            let selector: View<'_> = spec.get("selector");
            if !selector.exists() || ["targetRef", "targetRefs"].iter().any(|field| spec.get(field).exists()) {
                continue;
            }
            let labels = selector.get("matchLabels").labels();
            let meant = gateways.iter().filter(|pod| pod.namespace() == policy.namespace);
            let meant = meant.filter(|pod| crate::documents::shapes::labels_match(&labels, &pod.labels));
            let names: BTreeSet<&String> = meant.filter_map(|pod| pod.labels.get(GATEWAY_NAME)).collect();
            for name in names {
                let text =
                    format!("it selects the Gateway {}/{name}, where selectors have no effect", policy.namespace);
                report.tell("IST0166", policy, selector, text);
            }
        }
    }
}

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
