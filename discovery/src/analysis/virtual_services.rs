//! Virtual services: hosts that several claim, destinations and gateways that do not exist, claims that nobody verifies.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use super::hosts::{self, Destination, EVERYWHERE, Services, destinations as destinations_of, overlap, scopes};
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, selected};
use crate::compile::model::full_host;
use crate::documents::shapes::{Labels, labels_match};

/// Hosts inside the mesh that several VirtualServices claim.
pub(crate) fn conflicts(context: &Context<'_>, report: &mut Report) {
    let mut claims: BTreeMap<(String, String), Vec<&Resource>> = BTreeMap::new();
    for service in context.set.of(What::VirtualService).filter(|service| is_for_mesh(service)) {
        for scope in scopes(&service.spec().get("exportTo").texts(), &service.namespace) {
            for host in service.spec().get("hosts").texts() {
                claims.entry((scope.clone(), full_host(host, &service.namespace))).or_default().push(service);
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((scope, host), own) in &claims {
        let mut services = own.clone();
        if scope != EVERYWHERE {
            let everywhere = claims.iter().filter(|((scope, other), _)| scope == EVERYWHERE && overlap(host, other));
            services.extend(everywhere.flat_map(|(_, services)| services));
        }
        let names: BTreeSet<String> = services.iter().map(|service| service.full_name()).collect();
        for service in services.iter().filter(|_| services.len() > 1) {
            if told.insert(service.full_name()) {
                let text = format!("the host {host} is claimed inside the mesh by {}", list(&names));
                report.tell("IST0109", service, service.name_view(), text);
            }
        }
    }
}

fn is_for_mesh(service: &Resource) -> bool {
    let gateways = service.spec().get("gateways").texts();
    gateways.is_empty() || gateways.contains(&MESH)
}

/// Destinations that nobody serves, or of which the port is not known.
pub(crate) fn destinations(context: &Context<'_>, report: &mut Report) {
    let services = Services::of(context.set);
    for service in context.set.of(What::VirtualService) {
        for destination in destinations_of(service.spec()) {
            judge(service, destination, &services, report);
        }
    }
    without_subset(context, report);
}

fn judge(service: &Resource, destination: Destination<'_>, services: &Services<'_>, report: &mut Report) {
    let what = if destination.is_mirror { "mirror" } else { "destination" };
    let host = destination.host();
    let at = destination.view.get("host");
    let found = services.named(host, &service.namespace, &service.spec().get("exportTo").texts());
    if found.is_empty() {
        return report.tell("IST0101", service, at, format!("nobody serves the host {host} of a {what}"));
    }
    let port = destination.view.path("port.number");
    let ports: BTreeSet<u64> = found.iter().flat_map(|one| &one.ports).copied().collect();
    match port.number() {
        Some(number) if !ports.contains(&number) => {
            let text = format!("{host} has no port {number}; it has {}", list(ports.iter().map(u64::to_string)));
            report.tell("IST0101", service, port, text);
        }
        None if ports.len() > 1 && !destination.view.get("port").exists() => {
            let ports = list(ports.iter().map(u64::to_string));
            report.tell(
                "IST0112",
                service,
                at,
                format!("the {what} {host} has several ports ({ports}), and none is named"),
            );
        }
        _ => {}
    }
}

/// Subsets that count inside the mesh and not for what comes by a gateway.
fn without_subset(context: &Context<'_>, report: &mut Report) {
    let mut with_subset: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for service in context.set.of(What::VirtualService) {
        let hosts = service.spec().get("hosts").texts();
        for destination in http_destinations(service.spec()) {
            if !destination.subset().is_empty() && hosts.contains(&destination.host()) {
                with_subset.entry(destination.host()).or_default().insert(service.full_name());
            }
        }
    }
    for service in context.set.of(What::VirtualService) {
        let is_bound = service.spec().get("gateways").items().next().is_some();
        for destination in http_destinations(service.spec()).filter(|one| is_bound && one.subset().is_empty()) {
            for other in with_subset.get(destination.host()).into_iter().flatten() {
                let text = format!("subsets of {} that {other} chooses are not chosen here", destination.host());
                report.tell("IST0140", service, destination.view.get("host"), text);
            }
        }
    }
}

fn http_destinations(spec: View<'_>) -> impl Iterator<Item = Destination<'_>> {
    let routes = spec.get("http").items().flat_map(|rule| rule.get("route").items());
    routes.map(|route| Destination { view: route.get("destination"), is_mirror: false })
}

/// Subsets that no DestinationRule has.
pub(crate) fn subsets(context: &Context<'_>, report: &mut Report) {
    let mut known = BTreeSet::new();
    for rule in context.set.of(What::DestinationRule) {
        let host = hosts::service_name(rule.spec().get("host").text(), &rule.namespace);
        known.extend(rule.spec().get("subsets").items().map(|subset| (host.clone(), subset.get("name").text())));
    }
    for service in context.set.of(What::VirtualService) {
        for destination in destinations_of(service.spec()).into_iter().filter(|one| !one.subset().is_empty()) {
            let host = hosts::service_name(destination.host(), &service.namespace);
            if !known.contains(&(host, destination.subset())) {
                let (subset, host) = (destination.subset(), destination.host());
                let text = format!("no DestinationRule of {host} has the subset `{subset}`");
                report.tell("IST0101", service, destination.view.get("subset"), text);
            }
        }
    }
}

/// Gateways that do not exist, or serve none of the hosts.
pub(crate) fn gateways(context: &Context<'_>, report: &mut Report) {
    for service in context.set.of(What::VirtualService) {
        for name in service.spec().get("gateways").items().filter(|name| name.text() != MESH) {
            if name.text().contains(MADE_GATEWAY) {
                let text = format!("{} is made from a Gateway of the Gateway API", name.text());
                report.tell("IST0165", service, name, text);
                continue;
            }
            bound(context, service, name, report);
        }
    }
}

fn bound(context: &Context<'_>, service: &Resource, name: View<'_>, report: &mut Report) {
    let written = name.text();
    let (namespace, plain) = written.split_once('/').unwrap_or((&service.namespace, written));
    let ours = context.set.find(What::Gateway, namespace, plain);
    let theirs = context.set.find(What::KubeGateway, namespace, plain);
    let served: Vec<String> = match (ours, theirs) {
        (Some(gateway), _) => hosts_for(gateway, &service.namespace),
        (None, Some(gateway)) => listener_hosts(gateway),
        (None, None) => {
            report.tell("IST0101", service, name, format!("there is no Gateway {namespace}/{plain}"));
            Vec::new()
        }
    };
    let hosts = service.spec().get("hosts").texts();
    if !served.iter().any(|served| hosts.iter().any(|host| overlap(served, host))) {
        let text = format!("the Gateway {namespace}/{plain} serves none of {}", list(hosts));
        report.tell("IST0132", service, name, text);
    }
}

/// The hosts that a Gateway serves for VirtualServices of a namespace.
fn hosts_for(gateway: &Resource, namespace: &str) -> Vec<String> {
    let hosts = gateway.spec().get("servers").items().flat_map(|server| server.get("hosts").texts());
    let seen = hosts.filter_map(|host| match host.split_once('/') {
        Some((".", host)) => (gateway.namespace == namespace).then_some(host),
        Some((EVERYWHERE, host)) => Some(host),
        Some((only, host)) => (only == namespace).then_some(host),
        None => Some(host),
    });
    seen.map(str::to_owned).collect()
}

fn listener_hosts(gateway: &Resource) -> Vec<String> {
    let listeners = gateway.spec().get("listeners").items();
    let host = |listener: View<'_>| match listener.get("hostname").text() {
        "" => EVERYWHERE.to_owned(),
        host => host.to_owned(),
    };
    listeners.map(host).collect()
}

/// Routes by claims at gateways where no token is verified.
pub(crate) fn claims(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    let rules: Vec<(&str, Labels)> = context
        .set
        .of(What::RequestAuthentication)
        .map(|rule| (rule.namespace.as_str(), rule.spec().path("selector.matchLabels").labels()))
        .collect();
    for service in context.set.of(What::VirtualService) {
        let Some((claim, at)) = claim_of(service.spec()) else { continue };
        for name in service.spec().get("gateways").texts().into_iter().filter(|name| *name != MESH) {
            let (namespace, plain) = name.split_once('/').unwrap_or((&service.namespace, name));
            let Some(gateway) = context.set.find(What::Gateway, namespace, plain) else { continue };
            let labels = gateway.spec().get("selector").labels();
            let verifies = |proxy: &workloads::Workload<'_>| {
                let here = |of: &str| of == context.set.root_namespace() || of == proxy.namespace();
                rules.iter().any(|(of, labels)| here(of) && labels_match(labels, &proxy.labels))
            };
            for proxy in selected(&workloads, None, &labels).filter(|proxy| !verifies(proxy)) {
                let proxy = proxy.resource.full_name();
                let text =
                    format!("`{claim}` decides at the gateway {namespace}/{plain}, where {proxy} verifies no tokens");
                report.tell("IST0149", service, at, text);
            }
        }
    }
}

/// The first header of a match that means a claim.
fn claim_of(spec: View<'_>) -> Option<(&str, View<'_>)> {
    let matches = spec.get("http").items().flat_map(|rule| rule.get("match").items());
    let headers = matches.flat_map(|one| one.get("headers").entries().chain(one.get("withoutHeaders").entries()));
    let mut claims = headers.filter(|(name, _)| {
        let rest = name.to_ascii_lowercase().strip_prefix(CLAIMS).map(|rest| rest.starts_with(['.', '[']));
        rest == Some(true)
    });
    claims.next()
}

const MESH: &str = "mesh";
const CLAIMS: &str = "@request.auth.claims";
const MADE_GATEWAY: &str = "~istio-autogenerated-k8s-gateway~";
