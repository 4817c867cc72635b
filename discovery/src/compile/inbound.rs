//! The inbound side of a sidecar: TLS by peer authentication, policies, and the way to the own workload.
//!
//! Without capture every port of the workload is reached at one address; the SNI that the mesh's clients send says which
//! port is meant, and a client with another SNI gets the first HTTP port.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use super::canonical::pack;
use super::hcm::{self, Side};
use super::model::{Protocol, Service, ServicePort};
use super::names::{INBOUND_PORT, inbound_cluster, sni};
use super::pb as short;
use super::peer_authentication::{Accepts, accepts};
use super::{Scope, authz, clusters, logs, network_filter, original_dst, routes, tls, tls_inspector};
use crate::resources::Type;

/// One port of the own workload, with the services that lead to it.
pub(super) struct Port<'a> {
    pub(super) number: u16,
    pub(super) protocol: Protocol,
    pub(super) services: Vec<(&'a Service, &'a ServicePort)>,
}

pub(super) fn compile(scope: &mut Scope<'_>) {
    let ports = ports(scope);
    if ports.is_empty() {
        return;
    }
    for port in ports.values() {
        let upgraded = port.services.iter().any(|(service, port)| clusters::is_upgraded(scope, service, port));
        let cluster = clusters::inbound(port.number, scope.node.ip, port.protocol, upgraded);
        scope.insert(Type::Cluster, &cluster.name.clone(), &cluster);
    }
    let chains = if scope.node.capture { captured_chains(scope, &ports) } else { chains(scope, &ports) };
    let ip = if scope.node.capture { short::any_address(scope.node.ip).to_owned() } else { scope.node.ip.to_string() };
    let mut filters = vec![tls_inspector()];
    if scope.node.capture {
        filters.insert(0, original_dst());
    }
    let listener = pb::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(short::address(&ip, INBOUND_PORT)),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains: chains,
        listener_filters: filters,
        use_original_dst: scope.node.capture.then(|| short::flag(true)).flatten(),
        ..Default::default()
    };
    scope.insert(Type::Listener, "virtualInbound", &listener);
}

/// Ports of all services that have this workload as an endpoint, by the workload's own port number.
pub(super) fn ports<'a>(scope: &Scope<'a>) -> BTreeMap<u16, Port<'a>> {
    let ip = scope.node.ip.to_string();
    let mut ports: BTreeMap<u16, Port<'a>> = BTreeMap::new();
    for service in &scope.model.services {
        let is_own = service.namespace == scope.node.namespace
            && service.endpoints.iter().any(|workload| {
                let named = scope.node.service_account.is_empty()
                    || workload.identity.as_ref().is_none_or(|id| id.ends_with(&scope.node.spiffe_path()));
                workload.address == ip && named
            });
        if !is_own {
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let entry = ports.entry(port.target()).or_insert_with(|| Port {
                number: port.target(),
                protocol: port.protocol,
                services: Vec::new(),
            });
            entry.services.push((service, port));
        }
    }
    ports
}

/// Chains told apart by SNI.
fn chains(scope: &Scope<'_>, ports: &BTreeMap<u16, Port<'_>>) -> Vec<pb::FilterChain> {
    let mut chains = Vec::new();
    // A connection that does not say which port it means gets the first HTTP port, else the first.
    let first =
        ports.values().find(|port| port.protocol.is_http()).or_else(|| ports.values().next()).map(|port| port.number);
    let mut taken = std::collections::BTreeSet::new();
    for port in ports.values() {
        let accepts = accepts(scope.model, scope.node, port.number);
        if accepts != Accepts::PlainOnly {
            let mut names: Vec<String> =
                port.services.iter().flat_map(|(service, port)| snis(scope, service, port)).collect();
            names.retain(|name| taken.insert(name.clone()));
            if !names.is_empty() {
                chains.push(chain(scope, port, "", pb::FilterChainMatch { server_names: names, ..tls_match() }));
            }
            if Some(port.number) == first {
                chains.push(chain(scope, port, "default|", tls_match()));
            }
        }
        if accepts != Accepts::MutualTlsOnly && Some(port.number) == first {
            chains.push(chain(scope, port, "plain|", plain_match()));
        }
    }
    chains
}

fn snis(scope: &Scope<'_>, service: &Service, port: &ServicePort) -> Vec<String> {
    let subsets = scope.model.subset_names(&service.host);
    std::iter::once("").chain(subsets).map(|subset| sni(port.number, subset, &service.host)).collect()
}

/// Chains told apart by the port that the client wanted.
fn captured_chains(scope: &Scope<'_>, ports: &BTreeMap<u16, Port<'_>>) -> Vec<pb::FilterChain> {
    let mut chains = Vec::new();
    for port in ports.values() {
        let accepts = accepts(scope.model, scope.node, port.number);
        let destination_port = short::uint(port.number.into());
        if accepts != Accepts::PlainOnly {
            chains.push(chain(scope, port, "", pb::FilterChainMatch { destination_port, ..tls_match() }));
        }
        if accepts != Accepts::MutualTlsOnly {
            chains.push(chain(scope, port, "plain|", pb::FilterChainMatch { destination_port, ..plain_match() }));
        }
    }
    chains
}

fn tls_match() -> pb::FilterChainMatch {
    pb::FilterChainMatch { transport_protocol: "tls".to_owned(), ..Default::default() }
}

fn plain_match() -> pb::FilterChainMatch {
    pb::FilterChainMatch { transport_protocol: "raw_buffer".to_owned(), ..Default::default() }
}

fn chain(scope: &Scope<'_>, port: &Port<'_>, prefix: &str, matcher: pb::FilterChainMatch) -> pb::FilterChain {
    let cluster = inbound_cluster(port.number);
    let is_tls = matcher.transport_protocol == "tls";
    let (filters, alpn): (Vec<pb::Filter>, &[&str]) = if port.protocol.is_http() {
        let table = routes::inbound_table(cluster.clone(), port.number);
        let prefix = format!("inbound_{}", port.number);
        let manager =
            hcm::manager(scope, Side::Inbound, &prefix, Some(port.number), RouteSpecifier::RouteConfig(table));
        (vec![manager], &["h2", "http/1.1"])
    } else {
        let target =
            authz::Target { namespace: &scope.node.namespace, labels: &scope.node.labels, port: Some(port.number) };
        let mut filters = authz::network_filters(scope.model, target);
        filters.push(tcp_proxy(scope, &cluster));
        (filters, &[])
    };
    pb::FilterChain {
        name: format!("{prefix}{cluster}"),
        filter_chain_match: Some(matcher),
        filters,
        transport_socket: is_tls.then(|| tls::mesh_downstream(alpn)),
        ..Default::default()
    }
}

/// The filter that relays bytes to one cluster.
pub(super) fn tcp_proxy(scope: &Scope<'_>, cluster: &str) -> pb::Filter {
    relay(scope, cluster, tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned()))
}

pub(super) fn relay(scope: &Scope<'_>, stat: &str, to: tcp::tcp_proxy::ClusterSpecifier) -> pb::Filter {
    let config = tcp::TcpProxy {
        stat_prefix: stat.to_owned(),
        access_log: logs::tcp(scope),
        cluster_specifier: Some(to),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", pack(&config))
}
