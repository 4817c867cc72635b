//! Gateways: the servers of all `Gateway` documents that select the node, merged by port.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
};

use super::hcm::{self, Side, rds};
use super::inbound::relay;
use super::model::{Named, Protocol};
use super::pb as short;
use super::route_action::{self, Place};
use super::routes::{self, Via, is_listed};
use super::{Scope, authz, route_match, tls, tls_inspector};
use crate::documents::networking::{Gateway, Server};
use crate::documents::rules::host_matches;
use crate::documents::shapes::{ServerTlsMode, labels_match};
use crate::documents::virtual_service::{RouteDestination, VirtualService};
use crate::resources::Type;

/// One server of a gateway document.
#[derive(Clone, Copy)]
struct Own<'a> {
    gateway: &'a Named<Gateway>,
    server: &'a Server,
}

pub(super) fn compile(scope: &mut Scope<'_>) {
    let mut ports: BTreeMap<(u16, &str), Vec<Own<'_>>> = BTreeMap::new();
    for gateway in scope.model.gateways.iter().filter(|gateway| selects(scope, gateway)) {
        for server in &gateway.spec.servers {
            let Ok(port) = u16::try_from(server.port.number) else { continue };
            ports.entry((port, &server.bind)).or_default().push(Own { gateway, server });
        }
    }
    for ((port, bind), servers) in ports {
        listener(scope, port, bind, &servers);
    }
}

/// A gateway of the node's own namespace, or one that names labels; a document without a selector stays at home.
pub(super) fn selects(scope: &Scope<'_>, gateway: &Named<Gateway>) -> bool {
    let labels = &gateway.spec.selector;
    labels_match(labels, &scope.node.labels) && (!labels.is_empty() || gateway.meta.namespace == scope.node.namespace)
}

impl<'a> Own<'a> {
    fn protocol(self) -> Protocol {
        Protocol::of(&self.server.port.protocol, &self.server.port.name)
    }

    /// `namespace/name`, as virtual services call it.
    fn name(self) -> String {
        format!("{}/{}", self.gateway.meta.namespace, self.gateway.meta.name)
    }

    fn ends_tls(self) -> bool {
        let mode = self.server.tls.as_ref().map(|tls| tls.mode);
        self.protocol() == Protocol::Tls
            && !matches!(mode, None | Some(ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough))
    }

    /// HTTP after TLS: what is declared HTTPS; TLS alone carries bytes.
    fn is_https(self) -> bool {
        self.ends_tls() && self.server.port.protocol.eq_ignore_ascii_case("https")
    }

    /// Host names with the namespaces that may attach to them (`*` for all).
    fn hosts(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let own = self.gateway.meta.namespace.as_str();
        self.server.hosts.iter().map(move |host| match host.split_once('/') {
            Some((".", name)) => (own, name),
            Some((namespace, name)) => (namespace, name),
            None => ("*", host.as_str()),
        })
    }

    fn snis(self) -> Vec<String> {
        let names: Vec<String> = self.hosts().map(|(_, name)| name.to_ascii_lowercase()).collect();
        if names.iter().any(|name| name == "*") { Vec::new() } else { names }
    }
}

fn listener(scope: &mut Scope<'_>, port: u16, bind: &str, servers: &[Own<'_>]) {
    let any = short::any_address(scope.node.ip).to_owned();
    let ip = match (bind, scope.node.bind_address) {
        ("", Some(ip)) => ip.to_string(),
        ("", None) => any,
        (bind, _) => bind.to_owned(),
    };
    let real = scope.node.port_map.get(&port).copied().unwrap_or(port);
    let Some(first) = servers.first().copied() else { return };
    let chains = if first.protocol() == Protocol::Tls {
        tls_chains(scope, port, servers)
    } else if first.protocol().is_http() {
        http_chain(scope, port, servers)
    } else {
        tcp_chain(scope, port, servers)
    };
    if chains.is_empty() {
        return;
    }
    let inspected = chains.iter().any(|chain| chain.filter_chain_match.is_some());
    let name = format!("{ip}_{port}");
    let listener = pb::Listener {
        name: name.clone(),
        address: Some(short::address(&ip, real)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: chains,
        listener_filters: if inspected { vec![tls_inspector()] } else { Vec::new() },
        ..Default::default()
    };
    scope.insert(Type::Listener, &name, &listener);
}

/// All plain HTTP servers of a port share one table.
fn http_chain(scope: &mut Scope<'_>, port: u16, servers: &[Own<'_>]) -> Vec<pb::FilterChain> {
    let servers: Vec<Own<'_>> = servers.iter().copied().filter(|own| own.protocol().is_http()).collect();
    let table = format!("http.{port}");
    let hosts = hosts(scope, port, &servers);
    scope.insert(Type::Route, &table, &gateway_table(&table, hosts));
    let manager = hcm::manager(scope, Side::Gateway, &format!("outbound_{table}"), Some(port), rds(&table));
    vec![pb::FilterChain { filters: vec![manager], ..Default::default() }]
}

fn tls_chains(scope: &mut Scope<'_>, port: u16, servers: &[Own<'_>]) -> Vec<pb::FilterChain> {
    let mut chains: Vec<pb::FilterChain> = Vec::new();
    for own in servers.iter().copied().filter(|own| own.protocol() == Protocol::Tls) {
        let new = if own.is_https() { vec![https_chain(scope, port, own)] } else { bytes_chains(scope, port, own) };
        for chain in new {
            // The oldest gateway keeps a name that two claim; otherwise the proxy would refuse the whole listener.
            if !chains.iter().any(|other| other.filter_chain_match == chain.filter_chain_match) {
                chains.push(chain);
            }
        }
    }
    chains
}

fn sni_match(names: Vec<String>) -> Option<pb::FilterChainMatch> {
    let transport_protocol = if names.is_empty() { String::new() } else { "tls".to_owned() };
    Some(pb::FilterChainMatch { server_names: names, transport_protocol, ..Default::default() })
}

fn https_chain(scope: &mut Scope<'_>, port: u16, own: Own<'_>) -> pb::FilterChain {
    let Named { meta, .. } = own.gateway;
    let table = format!("https.{port}.{}.{}.{}", own.server.port.name, meta.name, meta.namespace);
    let hosts = hosts(scope, port, &[own]);
    scope.insert(Type::Route, &table, &gateway_table(&table, hosts));
    let manager = hcm::manager(scope, Side::Gateway, &format!("outbound_{table}"), Some(port), rds(&table));
    let tls = own.server.tls.as_ref().and_then(|tls| tls::gateway_downstream(tls, &["h2", "http/1.1"]));
    pb::FilterChain {
        name: table,
        filter_chain_match: sni_match(own.snis()),
        filters: vec![manager],
        transport_socket: tls,
        ..Default::default()
    }
}

/// TLS whose content is not read: passed through by SNI, or ended and relayed as bytes.
fn bytes_chains(scope: &Scope<'_>, port: u16, own: Own<'_>) -> Vec<pb::FilterChain> {
    let gateway = own.name();
    if own.ends_tls() {
        let Some(filters) = tcp_filters(scope, port, &[own]) else { return Vec::new() };
        let tls = own.server.tls.as_ref().and_then(|tls| tls::gateway_downstream(tls, &[]));
        return vec![pb::FilterChain {
            name: format!("tls.{port}.{}", own.server.port.name),
            filter_chain_match: sni_match(own.snis()),
            filters,
            transport_socket: tls,
            ..Default::default()
        }];
    }
    let mut chains = Vec::new();
    for service in scope.model.virtual_services.iter() {
        for rule in &service.spec.tls {
            for matcher in &rule.matches {
                let listed = if matcher.gateways.is_empty() { &service.spec.gateways } else { &matcher.gateways };
                let here = is_listed(listed, &service.meta.namespace, &gateway)
                    && (matcher.port == 0 || matcher.port == u32::from(port))
                    && labels_match(&matcher.source_labels, &scope.node.labels);
                if !here {
                    continue;
                }
                let place = Place { namespace: &service.meta.namespace, port: port.into() };
                let may = |sni: &&String| {
                    own.hosts().any(|(namespace, host)| {
                        (namespace == "*" || namespace == service.meta.namespace) && host_matches(host, sni)
                    })
                };
                let names: Vec<String> =
                    matcher.sni_hosts.iter().filter(may).map(|sni| sni.to_ascii_lowercase()).collect();
                if names.is_empty() {
                    continue;
                }
                // Only a server for all hosts may be bound for all names.
                let names = if names.iter().any(|name| name == "*") { Vec::new() } else { names };
                let filters = with_policies(scope, port, destinations(scope, &rule.route, place));
                let name = format!("{}/{}", service.meta.namespace, service.meta.name);
                chains.push(pb::FilterChain {
                    name,
                    filter_chain_match: sni_match(names),
                    filters,
                    ..Default::default()
                });
            }
        }
    }
    chains
}

fn tcp_chain(scope: &Scope<'_>, port: u16, servers: &[Own<'_>]) -> Vec<pb::FilterChain> {
    let Some(filters) = tcp_filters(scope, port, servers) else { return Vec::new() };
    vec![pb::FilterChain { filters, ..Default::default() }]
}

/// The first TCP rule of a virtual service that is bound to one of the servers.
fn tcp_filters(scope: &Scope<'_>, port: u16, servers: &[Own<'_>]) -> Option<Vec<pb::Filter>> {
    let gateways: Vec<String> = servers.iter().map(|own| own.name()).collect();
    for service in &scope.model.virtual_services {
        for rule in &service.spec.tcp {
            let holds = |matcher: Option<&crate::documents::virtual_service::TcpMatch>| {
                let narrowed = matcher.map_or(&[][..], |matcher| &matcher.gateways);
                let listed = if narrowed.is_empty() { &service.spec.gateways[..] } else { narrowed };
                gateways.iter().any(|gateway| is_listed(listed, &service.meta.namespace, gateway))
                    && matcher.is_none_or(|matcher| {
                        (matcher.port == 0 || matcher.port == u32::from(port))
                            && labels_match(&matcher.source_labels, &scope.node.labels)
                    })
            };
            if rule.matches.iter().any(|matcher| holds(Some(matcher))) || (rule.matches.is_empty() && holds(None)) {
                let place = Place { namespace: &service.meta.namespace, port: port.into() };
                return Some(with_policies(scope, port, destinations(scope, &rule.route, place)));
            }
        }
    }
    None
}

fn with_policies(scope: &Scope<'_>, port: u16, last: pb::Filter) -> Vec<pb::Filter> {
    let target = authz::Target { namespace: &scope.node.namespace, labels: &scope.node.labels, port: Some(port) };
    let mut filters = authz::network_filters(scope.model, target);
    filters.push(last);
    filters
}

fn destinations(scope: &Scope<'_>, to: &[RouteDestination], place: Place<'_>) -> pb::Filter {
    let cluster = |to: &RouteDestination| route_action::cluster_of(scope, &to.destination, place);
    match to {
        [only] => {
            let name = cluster(only);
            relay(scope, &name.clone(), ClusterSpecifier::Cluster(name))
        }
        several => {
            let weight = |to: &RouteDestination| u32::try_from(to.weight).unwrap_or_default();
            let clusters = several.iter().filter(|to| weight(to) > 0).map(|to| ClusterWeight {
                name: cluster(to),
                weight: weight(to),
                metadata_match: None,
            });
            let weighted = WeightedCluster { clusters: clusters.collect() };
            relay(scope, "weighted", ClusterSpecifier::WeightedClusters(weighted))
        }
    }
}

/// Virtual hosts of the servers: every virtual service bound to one of them, where its hosts and the server's meet.
fn hosts(scope: &Scope<'_>, port: u16, servers: &[Own<'_>]) -> Vec<route::VirtualHost> {
    let mut merged: BTreeMap<String, (Vec<route::Route>, bool)> = BTreeMap::new();
    for own in servers {
        let gateway = own.name();
        let redirects = own.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
        if redirects {
            for (_, host) in own.hosts() {
                merged.entry(host.to_ascii_lowercase()).or_default().1 = true;
            }
        }
        for service in &scope.model.virtual_services {
            let met = meeting_hosts(*own, service);
            if met.is_empty() || !scope.model.is_exported_virtual_service(service, &scope.node.namespace) {
                continue;
            }
            let routes = routes::of_service(scope, service, Via { gateway: &gateway, port: port.into() });
            if routes.is_empty() {
                continue;
            }
            for host in met {
                let entry = merged.entry(host).or_default();
                entry.0.extend(routes.clone());
                entry.1 |= redirects;
            }
        }
    }
    merged
        .into_iter()
        .map(|(host, (routes, redirects))| {
            let mut own = routes::virtual_host(format!("{host}:{port}"), vec![host], everything_last(routes));
            if redirects {
                own.require_tls = route::virtual_host::TlsRequirementType::All as i32;
            }
            own
        })
        .collect()
}

/// Several virtual services of one host: what takes everything comes last, and only once.
fn everything_last(routes: Vec<route::Route>) -> Vec<route::Route> {
    let takes_all = |route: &route::Route| route.r#match.as_ref() == Some(&route_match::everything());
    let (mut all, mut rest): (Vec<_>, Vec<_>) = routes.into_iter().partition(takes_all);
    all.truncate(1);
    rest.append(&mut all);
    rest
}

/// The more specific of each pair of hosts that overlap.
fn meeting_hosts(own: Own<'_>, service: &Named<VirtualService>) -> Vec<String> {
    let mut met = Vec::new();
    for (namespace, server) in own.hosts() {
        if namespace != "*" && namespace != service.meta.namespace {
            continue;
        }
        for host in &service.spec.hosts {
            let chosen = match (host_matches(server, host), host_matches(host, server)) {
                (true, _) => host,
                (false, true) => server,
                (false, false) => continue,
            };
            let chosen = chosen.to_ascii_lowercase();
            if !met.contains(&chosen) {
                met.push(chosen);
            }
        }
    }
    met
}

/// Clients name a gateway with or without its port.
fn gateway_table(name: &str, hosts: Vec<route::VirtualHost>) -> route::RouteConfiguration {
    route::RouteConfiguration { ignore_port_in_host_matching: true, ..routes::table(name, hosts) }
}
