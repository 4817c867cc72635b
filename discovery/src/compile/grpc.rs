//! gRPC libraries that speak xDS themselves: a listener per target `HOST:PORT`, its routes, and the clusters as they are.

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::Scope;
use super::canonical::pack;
use super::hcm::{rds, router};
use super::names::outbound_cluster;
use super::routes;
use crate::resources::Type;

pub(super) fn compile(scope: &mut Scope<'_>) {
    let namespace = scope.node.namespace.clone();
    for service in scope.model.services_for(&namespace) {
        for port in service.ports.iter().filter(|port| port.protocol.is_http()) {
            let route = outbound_cluster(port.number.into(), "", &service.host);
            for alias in service.aliases(&namespace) {
                let target = format!("{alias}:{}", port.number);
                scope.insert(Type::Listener, &target, &listener(&target, &route));
            }
            // The library asks for this table only through the listener of the host; nothing else can match it.
            let host = routes::virtual_host(
                format!("{}:{}", service.host, port.number),
                vec!["*".to_owned()],
                routes::to_service(scope, &service.host, port.number.into()),
            );
            scope.insert(Type::Route, &route, &routes::table(&route, vec![host]));
        }
    }
}

fn listener(target: &str, route: &str) -> pb::Listener {
    let manager = HttpConnectionManager {
        stat_prefix: target.to_owned(),
        http_filters: vec![router()],
        route_specifier: Some(rds(route)),
        ..Default::default()
    };
    pb::Listener {
        name: target.to_owned(),
        api_listener: Some(pb::ApiListener { api_listener: Some(pack(&manager)) }),
        ..Default::default()
    }
}
