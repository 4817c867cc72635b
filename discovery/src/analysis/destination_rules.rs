//! Destination rules: whether TLS knows whom to trust, and whether hosts and subsets exist.

use super::Context;
use super::hosts::Services;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, Workload, selector_text};
use crate::documents::shapes::{Labels, labels_match};

/// TLS without an authority: any certificate will do.
pub(crate) fn authorities(context: &Context<'_>, report: &mut Report) {
    for rule in context.set.of(What::DestinationRule) {
        let policy = rule.spec().get("trafficPolicy");
        let host = rule.spec().get("host").text();
        if trusts_anybody(rule, policy.get("tls")) {
            let mode = policy.path("tls.mode");
            let text = format!("tls.mode {} to {host} trusts any certificate", mode.text());
            report.tell("IST0128", rule, mode, text);
        }
        for port in policy.get("portLevelSettings").items() {
            if trusts_anybody(rule, port.get("tls")) {
                let (mode, number) = (port.path("tls.mode"), port.path("port.number").word());
                let text = format!("tls.mode {} to port {number} of {host} trusts any certificate", mode.text());
                report.tell("IST0129", rule, mode, text);
            }
        }
    }
}

/// A secret's authority only counts for a rule that selects its clients.
fn trusts_anybody(rule: &Resource, tls: View<'_>) -> bool {
    let by_secret = !tls.get("credentialName").text().is_empty() && rule.spec().get("workloadSelector").exists();
    ["SIMPLE", "MUTUAL"].contains(&tls.get("mode").text()) && tls.get("caCertificates").text().is_empty() && !by_secret
}

/// Hosts that nobody serves, and subsets that nobody belongs to.
pub(crate) fn subsets(context: &Context<'_>, report: &mut Report) {
    let services = Services::of(context.set);
    let workloads = workloads::all(context.set);
    let labels: Vec<Labels> = workloads.iter().map(|workload| placed(context, workload)).collect();
    let is_known = workloads.iter().any(|workload| !workload.resource.is_assumed);
    for rule in context.set.of(What::DestinationRule) {
        let spec = rule.spec();
        let host = spec.get("host");
        let found = services.named(host.text(), &rule.namespace, &spec.get("exportTo").texts());
        let Some(service) = found.first() else {
            if !services.is_pattern_of_some(host.text()) {
                report.tell("IST0174", rule, host, format!("nobody serves the host {}", host.text()));
            }
            continue;
        };
        let by_service = if service.resource.what == What::ServiceEntry { &service.selector } else { &Labels::new() };
        for subset in spec.get("subsets").items().filter(|_| is_known) {
            let mut wanted = by_service.clone();
            wanted.extend(subset.get("labels").labels());
            if !labels.iter().any(|labels| labels_match(&wanted, labels)) {
                let name = subset.get("name").text();
                let text = format!("the subset `{name}` ({}) has no workload", selector_text(&wanted));
                report.tell("IST0173", rule, subset, text);
            }
        }
    }
}

/// A workload's labels with those that its node adds.
fn placed(context: &Context<'_>, workload: &Workload<'_>) -> Labels {
    let mut labels = workload.labels.clone();
    let node = workload.pod.get("nodeName").text();
    if node.is_empty() {
        return labels;
    }
    labels.entry("kubernetes.io/hostname".to_owned()).or_insert_with(|| node.to_owned());
    let of_node = context.set.find(What::Node, "", node).map(|node| &node.labels);
    for name in ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"] {
        if let Some(value) = of_node.and_then(|labels| labels.get(name)) {
            labels.entry(name.to_owned()).or_insert_with(|| value.clone());
        }
    }
    labels
}
