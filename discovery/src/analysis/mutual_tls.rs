//! Mutual TLS: servers and clients that disagree, and policies of peers that contradict each other.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use super::aim::Aim;
use super::authorization::{for_nobody, in_mesh};
use super::deployments::leads_to;
use super::hosts::{Service, Services, overlap};
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{Workload, selected};
use crate::compile::model::full_host;

/// All of it.
pub(crate) fn modes(context: &Context<'_>, report: &mut Report) {
    let workloads = in_mesh(context);
    let modes = Modes::of(context);
    several(context, &workloads, report);
    unknown_ports(context, &workloads, report);
    let is_known = workloads.iter().any(|workload| !workload.resource.is_assumed);
    for policy in context.set.of(What::PeerAuthentication).filter(|policy| is_known && is_for_workloads(policy)) {
        for_nobody(context, policy, &workloads, report);
    }
    let services = Services::of(context.set);
    for rule in context.set.of(What::DestinationRule) {
        clients(rule, &services, &workloads, &modes, report);
    }
}

/// Which mode of mTLS holds where.
pub(crate) struct Modes<'a> {
    policies: Vec<(Aim<'a>, &'a Resource)>,
    root: &'a str,
}

impl<'a> Modes<'a> {
    pub(crate) fn of(context: &Context<'a>) -> Self {
        let policies = context.set.of(What::PeerAuthentication).map(|policy| (Aim::of(context.set, policy), policy));
        Self { policies: policies.collect(), root: context.set.root_namespace() }
    }

    /// The mode of a workload, at one of its own ports if there is one.
    pub(crate) fn at(&self, workload: &Workload<'_>, port: Option<u64>) -> &'a str {
        let levels = self.levels(workload);
        let own = levels.first().filter(|policy| is_for_workloads(policy));
        let at_port = own.and_then(|policy| port_mode(policy, port?));
        let said = levels.iter().map(|policy| policy.spec().path("mtls.mode").text());
        let mut said = at_port.into_iter().chain(said).filter(|mode| !["", "UNSET"].contains(mode));
        said.next().unwrap_or("PERMISSIVE")
    }

    /// The policies for a workload: its own one, that of its namespace, that of the mesh; the oldest where there are several.
    fn levels(&self, workload: &Workload<'_>) -> Vec<&'a Resource> {
        let here = |policy: &Resource| policy.namespace == workload.namespace();
        let is_own = |(aim, policy): &&(Aim<'_>, &Resource)| {
            here(policy) && is_for_workloads(policy) && aim.workloads(std::slice::from_ref(workload)).next().is_some()
        };
        let oldest = |policies: Vec<&'a Resource>| policies.into_iter().min_by_key(|policy| age(policy));
        let pick = |wanted: &dyn Fn(&&(Aim<'a>, &'a Resource)) -> bool| {
            oldest(self.policies.iter().filter(|one| wanted(one)).map(|(_, policy)| *policy).collect())
        };
        let own = pick(&|one| is_own(one));
        let of_namespace = pick(&|(_, policy)| here(policy) && !is_for_workloads(policy));
        let of_mesh = pick(&|(_, policy)| policy.namespace == self.root && !is_for_workloads(policy));
        [own, of_namespace, of_mesh].into_iter().flatten().collect()
    }
}

fn is_for_workloads(policy: &Resource) -> bool {
    policy.spec().path("selector.matchLabels").entries().next().is_some()
}

/// By creation, then by name.
fn age(policy: &Resource) -> (String, &str) {
    (policy.root().path("metadata.creationTimestamp").word(), &policy.name)
}

fn port_mode(policy: &Resource, port: u64) -> Option<&str> {
    let mut ports = policy.spec().get("portLevelMtls").entries();
    ports.find(|(number, _)| number.parse() == Ok(port)).map(|(_, mtls)| mtls.get("mode").text())
}

/// Policies of which only the oldest holds.
fn several(context: &Context<'_>, workloads: &[Workload<'_>], report: &mut Report) {
    let mut by_place: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for policy in context.set.of(What::PeerAuthentication) {
        if is_for_workloads(policy) {
            let labels = policy.spec().path("selector.matchLabels").labels();
            for workload in selected(workloads, Some(&policy.namespace), &labels) {
                by_place.entry(workload.resource.title()).or_default().push(policy);
            }
        } else {
            by_place.entry(format!("the namespace {}", policy.namespace)).or_default().push(policy);
        }
    }
    let mut told = BTreeSet::new();
    for (place, policies) in by_place.iter().filter(|(_, policies)| policies.len() > 1) {
        let names: Vec<String> = policies.iter().map(|policy| policy.full_name()).collect();
        for policy in policies.iter().filter(|policy| told.insert((policy.full_name(), names.clone()))) {
            let text = format!("{place} has several PeerAuthentications ({}); only the oldest holds", list(&names));
            report.tell("KSB0102", policy, policy.name_view(), text);
        }
    }
}

/// Modes of ports that nobody has.
fn unknown_ports(context: &Context<'_>, workloads: &[Workload<'_>], report: &mut Report) {
    for policy in context.set.of(What::PeerAuthentication).filter(|policy| is_for_workloads(policy)) {
        let labels = policy.spec().path("selector.matchLabels").labels();
        let meant: Vec<&Workload<'_>> = selected(workloads, Some(&policy.namespace), &labels).collect();
        let ports: Vec<Option<BTreeSet<u64>>> = meant.iter().map(|workload| own_ports(context, workload)).collect();
        // A workload that does not tell its ports may have any.
        let Some(ports) = ports.into_iter().collect::<Option<Vec<_>>>().filter(|ports| !ports.is_empty()) else {
            continue;
        };
        let ports: BTreeSet<u64> = ports.into_iter().flatten().collect();
        for (number, mtls) in policy.spec().get("portLevelMtls").entries() {
            if number.parse().is_ok_and(|number: u64| !ports.contains(&number)) {
                let has = list(ports.iter().map(u64::to_string));
                let text = format!("no selected workload has port {number}; they have {has}");
                report.tell("KSB0103", policy, mtls, text);
            }
        }
    }
}

/// The ports of a workload, as far as the set tells them.
fn own_ports(context: &Context<'_>, workload: &Workload<'_>) -> Option<BTreeSet<u64>> {
    if !workload.is_pod() {
        return None;
    }
    let declared = workload.containers().flat_map(|one| one.get("ports").items());
    let mut ports: BTreeSet<u64> = declared.filter_map(|port| port.get("containerPort").number()).collect();
    for service in context.set.of(What::Service).filter(|service| leads_to(service, workload)) {
        for port in service.spec().get("ports").items() {
            let target = port.get("targetPort");
            ports.extend(if target.exists() { target.number() } else { port.get("port").number() });
        }
    }
    (!ports.is_empty()).then_some(ports)
}

/// Clients that speak otherwise than the workloads of the host accept.
fn clients(
    rule: &Resource,
    services: &Services<'_>,
    workloads: &[Workload<'_>],
    modes: &Modes<'_>,
    report: &mut Report,
) {
    let host = full_host(rule.spec().get("host").text(), &rule.namespace);
    let settings = client_tls(rule);
    if settings.is_empty() {
        return;
    }
    for (known, service) in services.all().filter(|(known, _)| overlap(&host, known)) {
        for (port, tls) in settings.iter().copied() {
            for workload in behind(service, workloads) {
                let target = port.and_then(|port| target_of(service, port));
                let accepted = modes.at(workload, target.or(port));
                let mode = tls.get("mode").text();
                let is_wrong = match mode {
                    "DISABLE" | "SIMPLE" | "MUTUAL" => accepted == "STRICT",
                    "ISTIO_MUTUAL" => accepted == "DISABLE",
                    _ => false,
                };
                if is_wrong {
                    let text = format!(
                        "clients of {known} speak {mode}, and {} accepts {accepted} only",
                        workload.resource.full_name()
                    );
                    report.tell("KSB0101", rule, tls.get("mode"), text);
                    break;
                }
            }
        }
    }
}

/// Every TLS setting of a rule, with the port that it is for.
fn client_tls(rule: &Resource) -> Vec<(Option<u64>, View<'_>)> {
    let own = std::iter::once(rule.spec());
    let policies = own.chain(rule.spec().get("subsets").items()).map(|one| one.get("trafficPolicy"));
    let mut found = Vec::new();
    for policy in policies {
        found.push((None, policy.get("tls")));
        let ports = policy.get("portLevelSettings").items();
        found.extend(ports.map(|port| (port.path("port.number").number(), port.get("tls"))));
    }
    found.retain(|(_, tls)| tls.exists());
    found
}

fn behind<'w, 'b>(service: &'b Service<'_>, workloads: &'b [Workload<'w>]) -> impl Iterator<Item = &'b Workload<'w>> {
    let namespace = Some(service.resource.namespace.as_str());
    let is_selecting = !service.selector.is_empty();
    selected(workloads, namespace, &service.selector).filter(move |_| is_selecting)
}

/// The workload's own port behind a port of a service.
fn target_of(service: &Service<'_>, port: u64) -> Option<u64> {
    let number = |one: View<'_>| one.get("port").number().or_else(|| one.get("number").number());
    let mut ports = service.resource.spec().get("ports").items();
    ports.find(|one| number(*one) == Some(port)).and_then(|one| one.get("targetPort").number())
}
