//! Gateways: whether their proxies exist, whether their ports can be reached, and whether they claim the same hosts.

use std::collections::BTreeSet;

use super::Context;
use super::deployments::{leads_to, selector_of};
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, Workload, selected};
use crate::documents::shapes::Labels;

/// Gateways without proxies, and ports to which no Service leads.
pub(crate) fn ports(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    for gateway in context.set.of(What::Gateway) {
        let selector = gateway.spec().get("selector");
        let labels = selector.labels();
        let proxies: Vec<&Workload<'_>> = selected(&workloads, None, &labels).collect();
        if proxies.is_empty() {
            let text = format!("no workload has the labels {}", selector_of(selector));
            report.tell("IST0101", gateway, selector, text);
        } else if is_behind_service(context, &proxies) {
            unreachable_ports(context, gateway, &proxies, report);
        }
    }
}

/// A proxy outside Kubernetes is reached at its own address.
fn is_behind_service(context: &Context<'_>, proxies: &[&Workload<'_>]) -> bool {
    !context.set.is_outside_kubernetes() && proxies.iter().all(|proxy| proxy.is_pod())
}

fn unreachable_ports(context: &Context<'_>, gateway: &Resource, proxies: &[&Workload<'_>], report: &mut Report) {
    let services = context.set.of(What::Service);
    let before = services.filter(|service| proxies.iter().any(|proxy| leads_to(service, proxy)));
    let open: BTreeSet<u64> = before.flat_map(open_ports).collect();
    for server in gateway.spec().get("servers").items() {
        let number = server.path("port.number");
        let Some(port) = number.number() else { continue };
        if !open.contains(&port) {
            let selector = selector_of(gateway.spec().get("selector"));
            let text = format!("no Service leads to port {port} of the workloads with {selector}");
            report.tell("IST0162", gateway, number, text);
        }
    }
}

/// The ports of a Service and those of the workload that they lead to.
fn open_ports(service: &Resource) -> Vec<u64> {
    let ports = service.spec().get("ports").items();
    let ports = ports.filter(|port| ["", "TCP"].contains(&port.get("protocol").text()));
    ports.flat_map(|port| [port.get("port").number(), port.get("targetPort").number()]).flatten().collect()
}

/// Hosts that several Gateways claim on one port of the same proxies.
pub(crate) fn conflicts(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    let selectors: BTreeSet<Labels> =
        context.set.of(What::Gateway).map(|gateway| gateway.spec().get("selector").labels()).collect();
    let selectors: Vec<Labels> = selectors.into_iter().collect();
    let meeting = meeting(&selectors, &workloads);
    let number = |gateway: &Resource| selectors.binary_search(&gateway.spec().get("selector").labels()).ok();
    let gateways: Vec<(&Resource, Option<usize>)> =
        context.set.of(What::Gateway).map(|gateway| (gateway, number(gateway))).collect();
    for (gateway, selector) in &gateways {
        let is_near = |other: &Option<usize>| other.zip(*selector).is_some_and(|pair| meeting.contains(&pair));
        let same = gateways.iter().filter(|(other, theirs)| !std::ptr::eq(*other, *gateway) && is_near(theirs));
        let same: Vec<&Resource> = same.map(|(other, _)| *other).collect();
        for server in gateway.spec().get("servers").items() {
            let others: BTreeSet<String> =
                same.iter().filter(|other| claims(other, server)).map(|other| other.full_name()).collect();
            if !others.is_empty() {
                let number = server.path("port.number");
                let hosts = list(server.get("hosts").texts());
                let text = format!("port {} is claimed for {hosts} by {}, too", number.word(), list(&others));
                report.tell("IST0145", gateway, number, text);
            }
        }
    }
}

/// Which selectors, by their numbers, select a workload together.
fn meeting(selectors: &[Labels], workloads: &[Workload<'_>]) -> BTreeSet<(usize, usize)> {
    let pairs = (0..selectors.len()).flat_map(|a| (0..selectors.len()).map(move |b| (a, b)));
    pairs.filter(|(a, b)| meet(workloads, &selectors[*a], &selectors[*b])).collect()
}

/// Whether both select a workload together; the same selector does, whoever is selected.
fn meet(workloads: &[Workload<'_>], a: &Labels, b: &Labels) -> bool {
    let agree = a.iter().all(|(name, value)| b.get(name).is_none_or(|theirs| theirs == value));
    if a == b || !agree {
        return agree;
    }
    let mut both = a.clone();
    both.extend(b.clone());
    selected(workloads, None, &both).next().is_some()
}

/// Whether a Gateway has a host of the server on the same port and address.
fn claims(gateway: &Resource, server: View<'_>) -> bool {
    let number = server.path("port.number").number().unwrap_or(0);
    let hosts = server.get("hosts").texts();
    gateway.spec().get("servers").items().any(|other| {
        other.path("port.number").number().unwrap_or(0) == number
            && other.get("bind").text() == server.get("bind").text()
            && other.get("hosts").texts().iter().any(|host| hosts.contains(host))
    })
}
