//! Deployments: services before them that disagree, and programs that run as the proxy's user.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, PROXY_CONTAINER, TEMPLATES, Workload, is_selected, selector_text};

/// Ports of several services that lead to one deployment in contradictory ways.
pub(crate) fn services(context: &Context<'_>, report: &mut Report) {
    let workloads = workloads::all(context.set);
    let deployments = workloads.iter().filter(|workload| workload.resource.what == What::Deployment);
    for workload in deployments.filter(|workload| !is_waypoint(workload.resource) && workload.is_in_mesh(context.set)) {
        let services: Vec<&Resource> =
            context.set.of(What::Service).filter(|service| leads_to(service, workload)).collect();
        protocols(workload.resource, &services, report);
        target_ports(workload.resource, &services, report);
    }
}

fn is_waypoint(deployment: &Resource) -> bool {
    deployment.labels.get("gateway.istio.io/managed").is_some_and(|by| by == "istio.io-mesh-controller")
}

/// Whether a Service selects the workload.
pub(crate) fn leads_to(service: &Resource, workload: &Workload<'_>) -> bool {
    let selector = service.spec().get("selector");
    service.namespace == workload.namespace()
        && selector.entries().next().is_some()
        && is_selected(selector, &workload.labels)
}

fn protocols(deployment: &Resource, services: &[&Resource], report: &mut Report) {
    let mut by_port: BTreeMap<u64, (BTreeSet<&str>, BTreeSet<String>)> = BTreeMap::new();
    for service in services {
        for port in service.spec().get("ports").items() {
            let Some(number) = port.get("port").number() else { continue };
            let (protocols, names) = by_port.entry(number).or_default();
            let protocol = port.get("protocol").text();
            protocols.insert(if protocol.is_empty() { "TCP" } else { protocol });
            names.insert(service.full_name());
        }
    }
    for (port, (protocols, names)) in by_port.iter().filter(|(_, (protocols, _))| protocols.len() > 1) {
        let text = format!("the services {} give port {port} the protocols {}", list(names), list(protocols));
        report.tell("IST0116", deployment, deployment.name_view(), text);
    }
}

fn target_ports(deployment: &Resource, services: &[&Resource], report: &mut Report) {
    let mut by_target: BTreeMap<String, (BTreeSet<u64>, BTreeSet<String>)> = BTreeMap::new();
    for service in services {
        for port in service.spec().get("ports").items() {
            let Some(number) = port.get("port").number() else { continue };
            let target = match port.get("targetPort").word() {
                target if target.is_empty() || target == "0" => number.to_string(),
                target => target,
            };
            let (numbers, names) = by_target.entry(target).or_default();
            numbers.insert(number);
            names.insert(service.full_name());
        }
    }
    for (target, (numbers, names)) in by_target.iter().filter(|(_, (numbers, _))| numbers.len() > 1) {
        let numbers = list(numbers.iter().map(u64::to_string));
        let text = format!("the services {} lead to port {target} from the ports {numbers}", list(names));
        report.tell("IST0137", deployment, deployment.name_view(), text);
    }
}

/// Programs with the user of the proxy, whose traffic nobody captures.
pub(crate) fn user(context: &Context<'_>, report: &mut Report) {
    for (what, path) in TEMPLATES {
        for resource in context.set.of(*what).filter(|resource| !resource.is_control_plane()) {
            let template = if path.is_empty() { resource.root() } else { resource.root().path(path) };
            let pod = template.get("spec");
            let users = users(pod);
            if let Some((_, at)) = users.first() {
                let whose = list(users.iter().map(|(whose, _)| whose));
                let text =
                    format!("{whose} runs as user {PROXY_USER}, which is the proxy's: its traffic passes by the proxy");
                report.tell("IST0144", resource, *at, text);
            }
        }
    }
}

/// The parts of a pod that run as the proxy's user, but for the proxy.
fn users(pod: View<'_>) -> Vec<(String, View<'_>)> {
    let all = std::iter::once(("the pod".to_owned(), pod));
    let containers = pod.get("containers").items().map(|one| (one.get("name").text(), one));
    let containers = containers.filter(|(name, _)| ![PROXY_CONTAINER, "istio-operator"].contains(name));
    let all = all.chain(containers.map(|(name, one)| (format!("the container `{name}`"), one)));
    let users = all.map(|(whose, one)| (whose, one.path("securityContext.runAsUser")));
    users.filter(|(_, user)| user.number() == Some(PROXY_USER)).collect()
}

/// The selector of a document as text, for sentences.
pub(crate) fn selector_of(selector: View<'_>) -> String {
    selector_text(&selector.labels())
}

const PROXY_USER: u64 = 1337;
