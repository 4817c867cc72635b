//! Virtual hosts and routes, for the mesh and for gateways.

use envoy_types::pb::envoy::config::route::v3 as pb;

use super::model::{Named, full_host};
use super::names::PASSTHROUGH;
use super::pb as short;
use super::route_action::{self, Place};
use super::{Scope, route_match};
use crate::documents::mesh::OutboundMode;
use crate::documents::shapes::labels_match;
use crate::documents::virtual_service::{HttpMatch, VirtualService};

/// The way by which requests come: `mesh` or a gateway `namespace/name`, and its port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Via<'a> {
    pub(super) gateway: &'a str,
    pub(super) port: u32,
}

pub(super) const MESH: &str = "mesh";

/// The routes of a virtual service that hold for this node and way, in the order of the document. Rules behind one that
/// takes everything are left out.
pub(super) fn of_service(scope: &Scope<'_>, service: &Named<VirtualService>, via: Via<'_>) -> Vec<pb::Route> {
    let mut routes = Vec::new();
    let place = Place { namespace: &service.meta.namespace, port: via.port };
    for (index, rule) in service.spec.http.iter().enumerate() {
        if rule.delegate.is_some() {
            continue;
        }
        let unconditional = [None];
        let conditional: Vec<Option<&HttpMatch>> = rule.matches.iter().map(Some).collect();
        let matches = if rule.matches.is_empty() { &unconditional[..] } else { &conditional[..] };
        for matcher in matches.iter().copied().filter(|matcher| holds(scope, service, *matcher, via)) {
            let mut route = pb::Route {
                name: name(service, &rule.name, matcher, index),
                r#match: Some(route_match::compile(matcher)),
                ..Default::default()
            };
            route_action::apply(scope, rule, place, &mut route);
            routes.push(route);
            if route_match::is_everything(matcher) {
                return routes;
            }
        }
    }
    routes
}

/// The rule's own name, with the match's if it has one; else where it stands.
pub(super) fn name(service: &Named<VirtualService>, rule: &str, matcher: Option<&HttpMatch>, index: usize) -> String {
    let part = matcher.map_or("", |matcher| &matcher.name);
    match (rule, part) {
        ("", _) => format!("{}/{}/http[{index}]", service.meta.namespace, service.meta.name),
        (rule, "") => rule.to_owned(),
        (rule, part) => format!("{rule}.{part}"),
    }
}

/// Conditions that are known at compile time: gateway, port, and who the client is.
fn holds(scope: &Scope<'_>, service: &Named<VirtualService>, matcher: Option<&HttpMatch>, via: Via<'_>) -> bool {
    let narrowed = matcher.map_or(&[][..], |matcher| &matcher.gateways);
    let gateways = if narrowed.is_empty() { &service.spec.gateways[..] } else { narrowed };
    is_listed(gateways, &service.meta.namespace, via.gateway)
        && matcher.is_none_or(|matcher| {
            (matcher.port == 0 || matcher.port == via.port)
                && labels_match(&matcher.source_labels, &scope.node.labels)
                && (matcher.source_namespace.is_empty() || matcher.source_namespace == scope.node.namespace)
        })
}

/// Whether a list of gateways has this one; an empty list means the mesh.
pub(super) fn is_listed(gateways: &[String], namespace: &str, wanted: &str) -> bool {
    if gateways.is_empty() {
        return wanted == MESH;
    }
    gateways.iter().any(|gateway| match gateway.as_str() {
        MESH => wanted == MESH,
        full if full.contains('/') => {
            full.strip_prefix("./").map_or(full == wanted, |name| is_named(namespace, name, wanted))
        }
        name => is_named(namespace, name, wanted),
    })
}

fn is_named(namespace: &str, name: &str, wanted: &str) -> bool {
    wanted.split_once('/') == Some((namespace, name))
}

/// The virtual service that answers for `host` in the mesh: the most specific host, then the oldest.
pub(super) fn in_mesh<'a>(scope: &Scope<'a>, host: &str) -> Option<&'a Named<VirtualService>> {
    let candidates = scope.model.virtual_services.iter().filter(|service| is_mesh_wide(scope, service));
    let mut best: Option<((bool, usize), &Named<VirtualService>)> = None;
    for service in candidates {
        let rank = service
            .spec
            .hosts
            .iter()
            .map(|own| full_host(own, &service.meta.namespace))
            .filter(|own| crate::documents::rules::host_matches(own, host))
            .map(|own| (!own.starts_with('*'), own.len()))
            .max();
        // Earlier ones are older and stay when the rank is equal.
        if let Some(rank) = rank.filter(|rank| best.is_none_or(|(known, _)| known < *rank)) {
            best = Some((rank, service));
        }
    }
    best.map(|(_, service)| service)
}

pub(super) fn is_mesh_wide(scope: &Scope<'_>, service: &Named<VirtualService>) -> bool {
    let listed = is_listed(&service.spec.gateways, &service.meta.namespace, MESH);
    listed && scope.model.is_exported_virtual_service(service, &scope.node.namespace)
}

/// The routes of a service's port in the mesh: its virtual service's, else straight to it.
pub(super) fn to_service(scope: &Scope<'_>, host: &str, port: u32) -> Vec<pb::Route> {
    let via = Via { gateway: MESH, port };
    let own = in_mesh(scope, host).filter(|service| !service.spec.http.is_empty());
    match own {
        Some(service) => of_service(scope, service, via),
        None => vec![straight(scope, host, port)],
    }
}

fn straight(scope: &Scope<'_>, host: &str, port: u32) -> pb::Route {
    pb::Route {
        name: "default".to_owned(),
        r#match: Some(route_match::everything()),
        action: Some(pb::route::Action::Route(route_action::to_service(scope, host, port))),
        ..Default::default()
    }
}

/// What becomes of hosts that the mesh does not know.
pub(super) fn unknown_hosts(scope: &Scope<'_>) -> pb::VirtualHost {
    let (name, action) = match scope.model.config.outbound_traffic_policy.mode {
        OutboundMode::RegistryOnly => {
            let refuse = pb::DirectResponseAction { status: 502, ..Default::default() };
            ("block_all", pb::route::Action::DirectResponse(refuse))
        }
        OutboundMode::AllowAny => {
            let action = pb::RouteAction {
                cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
                timeout: Some(short::seconds(0)),
                ..Default::default()
            };
            ("allow_any", pb::route::Action::Route(action))
        }
    };
    let route = pb::Route {
        name: name.to_owned(),
        r#match: Some(route_match::everything()),
        action: Some(action),
        ..Default::default()
    };
    virtual_host(name.to_owned(), vec!["*".to_owned()], vec![route])
}

pub(super) fn virtual_host(name: String, domains: Vec<String>, routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost { name, domains, routes, include_request_attempt_count: true, ..Default::default() }
}

/// A table whose virtual hosts share no domain: the first keeps it.
pub(super) fn table(name: &str, hosts: Vec<pb::VirtualHost>) -> pb::RouteConfiguration {
    let mut taken = std::collections::BTreeSet::new();
    let mut kept = Vec::with_capacity(hosts.len());
    for mut host in hosts {
        host.domains.retain(|domain| taken.insert(domain.to_ascii_lowercase()));
        if !host.domains.is_empty() {
            kept.push(host);
        }
    }
    pb::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: kept,
        validate_clusters: short::flag(false),
        max_direct_response_body_size_bytes: short::uint(BODY_BYTES_MAX),
        ..Default::default()
    }
}

/// The table of an inbound port: everything goes to the own workload, once more if it was never sent.
pub(super) fn inbound_table(cluster: String, port: u16) -> pb::RouteConfiguration {
    let retry = pb::RetryPolicy {
        retry_on: "reset-before-request".to_owned(),
        num_retries: short::uint(2),
        ..Default::default()
    };
    let action = pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster.clone())),
        timeout: Some(short::seconds(0)),
        retry_policy: Some(retry),
        ..Default::default()
    };
    let route = pb::Route {
        name: "default".to_owned(),
        r#match: Some(route_match::everything()),
        action: Some(pb::route::Action::Route(action)),
        ..Default::default()
    };
    let host = pb::VirtualHost {
        name: format!("inbound|http|{port}"),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    pb::RouteConfiguration {
        name: cluster,
        virtual_hosts: vec![host],
        validate_clusters: short::flag(false),
        ..Default::default()
    }
}

/// As large as a document's own limit on bodies.
const BODY_BYTES_MAX: u32 = 1024 * 1024;
