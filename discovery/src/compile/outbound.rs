//! The outbound side of a sidecar: an explicit HTTP proxy without capture, per-port listeners with it.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;

use super::hcm::{self, Side, rds};
use super::inbound::tcp_proxy;
use super::model::{Service, ServicePort, full_host};
use super::names::{BLACK_HOLE, HTTP_PROXY, OUTBOUND_PORT, PASSTHROUGH, outbound_cluster};
use super::pb as short;
use super::{Scope, original_dst, routes};
use crate::documents::mesh::OutboundMode;
use crate::resources::Type;

pub(super) fn compile(scope: &mut Scope<'_>) {
    if scope.node.capture { captured(scope) } else { explicit(scope) }
}

/// Workloads send their requests here themselves, as to any HTTP proxy.
fn explicit(scope: &mut Scope<'_>) {
    let manager = hcm::manager(scope, Side::Outbound, "outbound_http_proxy", None, rds(HTTP_PROXY));
    let name = format!("{}_{OUTBOUND_PORT}", scope.node.ip);
    let listener = pb::Listener {
        name: name.clone(),
        address: Some(short::address(&scope.node.ip.to_string(), OUTBOUND_PORT)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![pb::FilterChain { filters: vec![manager], ..Default::default() }],
        ..Default::default()
    };
    scope.insert(Type::Listener, &name, &listener);
    let mut hosts = Vec::new();
    for service in scope.model.services_for(&scope.node.namespace) {
        hosts.extend(hosts_of(scope, service));
    }
    hosts.extend(unregistered(scope));
    hosts.push(routes::unknown_hosts(scope));
    scope.insert(Type::Route, HTTP_PROXY, &routes::table(HTTP_PROXY, hosts));
}

/// One virtual host per HTTP port; the bare name means port 80 or else the first.
fn hosts_of(scope: &Scope<'_>, service: &Service) -> Vec<route::VirtualHost> {
    let http: Vec<&ServicePort> = service.ports.iter().filter(|port| port.protocol.is_http()).collect();
    let bare = http.iter().find(|port| port.number == 80).or_else(|| http.first()).map(|port| port.number);
    http.iter()
        .map(|port| {
            let name = format!("{}:{}", service.host, port.number);
            let domains = domains(scope, service, port.number, Some(port.number) == bare);
            routes::virtual_host(name, domains, routes::to_service(scope, &service.host, port.number.into()))
        })
        .collect()
}

fn domains(scope: &Scope<'_>, service: &Service, port: u16, bare: bool) -> Vec<String> {
    let mut names = service.aliases(&scope.node.namespace);
    names.extend(service.addresses.iter().filter(|address| !address.contains('/')).map(|address| bracketed(address)));
    let mut domains: Vec<String> = names.iter().map(|name| format!("{name}:{port}")).collect();
    if bare {
        domains.extend(names);
    }
    domains
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Hosts that only a virtual service knows.
fn unregistered(scope: &Scope<'_>) -> Vec<route::VirtualHost> {
    let mut hosts = BTreeSet::new();
    for service in scope.model.virtual_services.iter().filter(|service| routes::is_mesh_wide(scope, service)) {
        if service.spec.http.is_empty() {
            continue;
        }
        for host in &service.spec.hosts {
            let host = full_host(host, &service.meta.namespace);
            if scope.model.service(&host, &scope.node.namespace).is_none() && host != "*" {
                hosts.insert(host);
            }
        }
    }
    let of = |host: String| {
        let routes = routes::to_service(scope, &host, 80);
        // A wildcard may only be the first part of a domain.
        let domains = if host.starts_with('*') { vec![host.clone()] } else { vec![host.clone(), format!("{host}:80")] };
        routes::virtual_host(format!("{host}:80"), domains, routes)
    };
    hosts.into_iter().map(of).collect()
}

/// Everything that the workload sends arrives at one port; listeners that bind nothing take it by its destination.
fn captured(scope: &mut Scope<'_>) {
    let mut http: BTreeMap<u16, Vec<route::VirtualHost>> = BTreeMap::new();
    let mut tcp: Vec<(&Service, &ServicePort)> = Vec::new();
    let namespace = scope.node.namespace.clone();
    for service in scope.model.services_for(&namespace) {
        for port in &service.ports {
            if port.protocol.is_http() {
                let hosts = http.entry(port.number).or_default();
                let name = format!("{}:{}", service.host, port.number);
                let domains = domains(scope, service, port.number, true);
                let routes = routes::to_service(scope, &service.host, port.number.into());
                hosts.push(routes::virtual_host(name, domains, routes));
            } else {
                tcp.push((service, port));
            }
        }
    }
    let any = short::any_address(scope.node.ip).to_owned();
    for (port, mut hosts) in http {
        hosts.push(routes::unknown_hosts(scope));
        let table = port.to_string();
        scope.insert(Type::Route, &table, &routes::table(&table, hosts));
        let manager = hcm::manager(scope, Side::Outbound, &format!("outbound_{any}_{port}"), None, rds(&table));
        unbound(scope, &any, port, manager);
    }
    for (service, port) in tcp {
        let filter = tcp_proxy(scope, &outbound_cluster(port.number.into(), "", &service.host));
        for address in service.addresses.iter().filter(|address| !address.contains('/')) {
            unbound(scope, address, port.number, filter.clone());
        }
        let taken = scope.resources.get(Type::Listener, &format!("{any}_{}", port.number)).is_some();
        if service.addresses.is_empty() && !taken {
            unbound(scope, &any, port.number, filter);
        }
    }
    rest(scope, &any);
}

fn unbound(scope: &mut Scope<'_>, ip: &str, port: u16, filter: pb::Filter) {
    let name = format!("{ip}_{port}");
    let listener = pb::Listener {
        name: name.clone(),
        address: Some(short::address(ip, port)),
        traffic_direction: TrafficDirection::Outbound as i32,
        bind_to_port: short::flag(false),
        filter_chains: vec![pb::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    scope.insert(Type::Listener, &name, &listener);
}

/// Where captured connections arrive, and what becomes of those that no listener takes.
fn rest(scope: &mut Scope<'_>, any: &str) {
    let cluster = match scope.model.config.outbound_traffic_policy.mode {
        OutboundMode::RegistryOnly => BLACK_HOLE,
        OutboundMode::AllowAny => PASSTHROUGH,
    };
    let chain = pb::FilterChain { filters: vec![tcp_proxy(scope, cluster)], ..Default::default() };
    let listener = pb::Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(short::address(any, OUTBOUND_PORT)),
        traffic_direction: TrafficDirection::Outbound as i32,
        use_original_dst: short::flag(true),
        listener_filters: vec![original_dst()],
        filter_chains: vec![chain],
        ..Default::default()
    };
    scope.insert(Type::Listener, "virtualOutbound", &listener);
}
