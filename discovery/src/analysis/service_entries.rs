//! Service entries: TCP ports that would take every address, and entries that contradict each other.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use super::hosts::{EVERYWHERE, scopes};
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;

/// TCP ports without addresses.
pub(crate) fn addresses(context: &Context<'_>, report: &mut Report) {
    if allocates_addresses(context) {
        return;
    }
    for entry in context.set.of(What::ServiceEntry) {
        let has_status = entry.root().path("status.addresses").items().next().is_some();
        if entry.spec().get("addresses").exists() || has_status {
            continue;
        }
        let is_tcp = |port: &View<'_>| ["", "TCP"].contains(&port.get("protocol").text().to_ascii_uppercase().as_str());
        let ports: Vec<View<'_>> = entry.spec().get("ports").items().filter(is_tcp).collect();
        if let Some(first) = ports.first() {
            let numbers = list(ports.iter().map(|port| port.get("number").word()));
            let text = format!("without addresses, TCP on {numbers} is taken of every address");
            report.tell("IST0134", entry, *first, text);
        }
    }
}

/// Whether proxies give services without addresses some of their own.
fn allocates_addresses(context: &Context<'_>) -> bool {
    let Some(mesh) = context.set.mesh() else { return false };
    let settings = mesh.root().path("defaultConfig.proxyMetadata");
    let is_on = |name| settings.get(name).is_true();
    is_on("ISTIO_META_DNS_CAPTURE") && (is_on("ISTIO_META_DNS_AUTO_ALLOCATE") || is_on("PILOT_ENABLE_IP_AUTOALLOCATE"))
}

/// A port of a host as seen from a namespace.
type Place<'a> = (String, &'a str, u64);

/// One host and port with several protocols.
pub(crate) fn protocols(context: &Context<'_>, report: &mut Report) {
    let said = said(context);
    let mut told: BTreeSet<String> = BTreeSet::new();
    for ((scope, host, port), entries) in &said {
        let everywhere = (scope != EVERYWHERE).then(|| said.get(&(EVERYWHERE.to_owned(), *host, *port))).flatten();
        let entries: Vec<&(String, &Resource)> = entries.iter().chain(everywhere.into_iter().flatten()).collect();
        let protocols: BTreeSet<&String> = entries.iter().map(|(protocol, _)| protocol).collect();
        if protocols.len() < 2 {
            continue;
        }
        let names: BTreeSet<String> = entries.iter().map(|(_, entry)| entry.full_name()).collect();
        let text = format!("{} give port {port} of {host} the protocols {}", list(&names), list(&protocols));
        for (_, entry) in entries {
            if told.insert(entry.full_name()) {
                report.tell("IST0177", entry, entry.name_view(), text.clone());
            }
        }
    }
}

fn said<'a>(context: &Context<'a>) -> BTreeMap<Place<'a>, Vec<(String, &'a Resource)>> {
    let mut said: BTreeMap<Place<'a>, Vec<(String, &Resource)>> = BTreeMap::new();
    for entry in context.set.of(What::ServiceEntry) {
        let spec = entry.spec();
        for scope in scopes(&spec.get("exportTo").texts(), &entry.namespace) {
            for host in spec.get("hosts").texts() {
                for port in spec.get("ports").items() {
                    let Some(number) = port.get("number").number() else { continue };
                    let protocol = port.get("protocol").text().to_ascii_uppercase();
                    said.entry((scope.clone(), host, number)).or_default().push((protocol, entry));
                }
            }
        }
    }
    said
}
