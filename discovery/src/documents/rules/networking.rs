//! Rules of `Gateway`, `DestinationRule`, `ServiceEntry` and `WorkloadEntry`.

use std::net::IpAddr;

use super::text::{check_host, check_port, is_label, is_protocol, parse_cidr};
use super::traffic::{check_policy, check_server_tls};
use super::{check_export_to, check_labels, check_selector};
use crate::documents::Review;
use crate::documents::networking::{
    DestinationRule, Gateway, Location, Port, Resolution, Server, ServiceEntry, WorkloadEntry,
};

pub(super) fn check_gateway(gateway: &Gateway, review: &mut Review<'_>) {
    if gateway.servers.is_empty() {
        review.error("spec.servers", "EMPTY", "at least one server is needed");
    }
    check_labels(&gateway.selector, "spec.selector", review);
    for (index, server) in gateway.servers.iter().enumerate() {
        let at = format!("spec.servers[{index}]");
        check_server(server, &at, review);
        if gateway.servers[..index].iter().any(|earlier| earlier.port.name == server.port.name) {
            review.error(
                format!("{at}.port.name"),
                "DUPLICATE_NAME",
                format!("port name `{}` is used twice", server.port.name),
            );
        }
    }
}

fn check_server(server: &Server, at: &str, review: &mut Review<'_>) {
    check_named_port(&server.port, &format!("{at}.port"), review);
    if server.port.protocol.is_empty() {
        review.error(format!("{at}.port"), "FIELD_MISSING", "`protocol` is required");
    }
    if server.port.target_port.is_some() {
        review.warn(format!("{at}.port.targetPort"), "NO_EFFECT", "`targetPort` has no effect at a Gateway");
    }
    if !server.bind.is_empty() && server.bind.parse::<IpAddr>().is_err() {
        review.error(format!("{at}.bind"), "VALUE_INVALID", format!("`{}` is no IP address", server.bind));
    }
    if server.hosts.is_empty() {
        review.error(format!("{at}.hosts"), "EMPTY", "at least one host is needed");
    }
    for (index, host) in server.hosts.iter().enumerate() {
        let at = format!("{at}.hosts[{index}]");
        let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
        if !matches!(namespace, "*" | ".") && !is_label(namespace) {
            review.error(&at, "NAME_INVALID", format!("`{namespace}` is no namespace"));
        }
        check_host(name, true, &at, review);
    }
    let protocol = server.port.protocol.to_ascii_uppercase();
    match (&server.tls, protocol.as_str()) {
        (None, "HTTPS" | "TLS") => review.error(at, "FIELD_MISSING", format!("{protocol} needs a `tls` block")),
        (Some(tls), "HTTPS" | "TLS") => check_server_tls(tls, &format!("{at}.tls"), review),
        (Some(tls), _) => {
            let rest = crate::documents::shapes::ServerTls { https_redirect: tls.https_redirect, ..Default::default() };
            if *tls != rest || protocol == "TCP" {
                review.error(
                    format!("{at}.tls"),
                    "CONFLICT",
                    format!("a {protocol} port takes no TLS settings but `httpsRedirect`"),
                );
            }
        }
        (None, _) => {}
    }
}

fn check_named_port(port: &Port, at: &str, review: &mut Review<'_>) {
    check_port(port.number, &format!("{at}.number"), review);
    if port.name.is_empty() {
        review.error(at, "FIELD_MISSING", "`name` is required");
    }
    if !port.protocol.is_empty() && !is_protocol(&port.protocol) {
        let text = format!("`{}` is no protocol; use HTTP, HTTPS, HTTP2, GRPC, TCP or TLS", port.protocol);
        review.error(format!("{at}.protocol"), "VALUE_UNKNOWN", text);
    }
}

pub(super) fn check_destination_rule(rule: &DestinationRule, review: &mut Review<'_>) {
    check_host(&rule.host, true, "spec.host", review);
    check_export_to(&rule.export_to, false, review);
    check_selector(rule.workload_selector.as_ref(), "spec.workloadSelector", review);
    let beyond = rule.export_to.iter().any(|entry| entry != ".");
    if rule.workload_selector.is_some() && beyond {
        review.error("spec.exportTo", "CONFLICT", "a rule with `workloadSelector` stays in its own namespace");
    }
    if let Some(policy) = &rule.traffic_policy {
        check_policy(policy, "spec.trafficPolicy", review);
    }
    for (index, subset) in rule.subsets.iter().enumerate() {
        let at = format!("spec.subsets[{index}]");
        if !is_label(&subset.name) {
            review.error(format!("{at}.name"), "NAME_INVALID", format!("`{}` is no subset name", subset.name));
        }
        if rule.subsets[..index].iter().any(|earlier| earlier.name == subset.name) {
            review.error(format!("{at}.name"), "DUPLICATE_NAME", format!("subset `{}` is defined twice", subset.name));
        }
        check_labels(&subset.labels, &format!("{at}.labels"), review);
        if let Some(policy) = &subset.traffic_policy {
            check_policy(policy, &format!("{at}.trafficPolicy"), review);
        }
    }
}

pub(super) fn check_service_entry(entry: &ServiceEntry, review: &mut Review<'_>) {
    if entry.hosts.is_empty() {
        review.error("spec.hosts", "EMPTY", "at least one host is needed");
    }
    for (index, host) in entry.hosts.iter().enumerate() {
        let at = format!("spec.hosts[{index}]");
        check_host(host, true, &at, review);
        if host == "*" {
            review.error(&at, "HOST_INVALID", "`*` cannot be a service");
        }
    }
    check_export_to(&entry.export_to, true, review);
    check_addresses(entry, review);
    check_service_ports(entry, review);
    check_endpoints(entry, review);
    if let Some(selector) = &entry.workload_selector {
        check_labels(&selector.labels, "spec.workloadSelector.labels", review);
    }
}

fn check_addresses(entry: &ServiceEntry, review: &mut Review<'_>) {
    for (index, address) in entry.addresses.iter().enumerate() {
        let at = format!("spec.addresses[{index}]");
        match parse_cidr(address) {
            None => review.error(at, "CIDR_INVALID", format!("`{address}` is neither an IP address nor a network")),
            Some(_) if address.contains('/') && !matches!(entry.resolution, Resolution::None | Resolution::Static) => {
                review.error(at, "CONFLICT", "a network needs `resolution` NONE or STATIC");
            }
            Some(_) => {}
        }
    }
}

fn check_service_ports(entry: &ServiceEntry, review: &mut Review<'_>) {
    if entry.ports.is_empty() {
        review.warn("spec", "NO_EFFECT", "a service without ports is never reached");
    }
    for (index, port) in entry.ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        check_named_port(port, &at, review);
        if let Some(target) = port.target_port {
            check_port(target, &format!("{at}.targetPort"), review);
        }
        let earlier = &entry.ports[..index];
        if earlier.iter().any(|other| other.name == port.name) {
            review.error(format!("{at}.name"), "DUPLICATE_NAME", format!("port name `{}` is used twice", port.name));
        }
        if earlier.iter().any(|other| other.number == port.number) {
            review.error(format!("{at}.number"), "DUPLICATE_NAME", format!("port {} is defined twice", port.number));
        }
    }
}

fn check_endpoints(entry: &ServiceEntry, review: &mut Review<'_>) {
    let endpoints = &entry.endpoints;
    if entry.workload_selector.is_some() && !endpoints.is_empty() {
        review.error("spec.endpoints", "ONE_OF", "`endpoints` and `workloadSelector` exclude each other");
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let at = format!("spec.endpoints[{index}]");
        check_workload_entry(endpoint, &at, review);
        for name in endpoint.ports.keys() {
            if !entry.ports.iter().any(|port| port.name == *name) {
                review.error(format!("{at}.ports"), "PORT_INVALID", format!("the service has no port `{name}`"));
            }
        }
        let is_address = endpoint.address.parse::<IpAddr>().is_ok() || endpoint.address.starts_with("unix://");
        if entry.resolution == Resolution::Static && !endpoint.address.is_empty() && !is_address {
            review.error(format!("{at}.address"), "HOST_INVALID", "STATIC endpoints need IP addresses");
        }
    }
    let wildcard = entry.hosts.iter().any(|host| host.starts_with('*'));
    match entry.resolution {
        Resolution::None if !endpoints.is_empty() => {
            review.error("spec.endpoints", "CONFLICT", "endpoints need `resolution` STATIC or DNS");
        }
        Resolution::Static if endpoints.is_empty() && entry.workload_selector.is_none() => {
            let level = if entry.location == Location::MeshInternal { "" } else { " outside the mesh" };
            review.warn(
                "spec.endpoints",
                "NO_EFFECT",
                format!("STATIC without endpoints or selector: nothing{level} is reached"),
            );
        }
        Resolution::Dns | Resolution::DnsRoundRobin if endpoints.is_empty() && wildcard => {
            review.error("spec.hosts", "HOST_INVALID", "DNS needs full names or endpoints");
        }
        Resolution::DnsRoundRobin if endpoints.len() > 1 => {
            review.error("spec.endpoints", "OUT_OF_RANGE", "DNS_ROUND_ROBIN takes at most one endpoint");
        }
        Resolution::DynamicDns if !wildcard || !entry.addresses.is_empty() || !endpoints.is_empty() => {
            review.error(
                "spec.resolution",
                "CONFLICT",
                "DYNAMIC_DNS needs a wildcard host, no addresses and no endpoints",
            );
        }
        _ => {}
    }
}

pub(super) fn check_workload_entry(entry: &WorkloadEntry, at: &str, review: &mut Review<'_>) {
    if entry.address.is_empty() && entry.network.is_empty() {
        review.error(at, "FIELD_MISSING", "`address` or `network` is required");
    }
    if let Some(socket) = entry.address.strip_prefix("unix://") {
        if !socket.starts_with('/') && !socket.starts_with('@') {
            review.error(format!("{at}.address"), "VALUE_INVALID", "a Unix socket needs an absolute path");
        }
        if !entry.ports.is_empty() {
            review.error(format!("{at}.ports"), "CONFLICT", "a Unix socket has no ports");
        }
    } else if !entry.address.is_empty() {
        check_host(&entry.address, false, &format!("{at}.address"), review);
    }
    for (name, port) in &entry.ports {
        if name.is_empty() {
            review.error(format!("{at}.ports"), "NAME_INVALID", "a port needs a name");
        }
        check_port(*port, &format!("{at}.ports.{name}"), review);
    }
    check_labels(&entry.labels, &format!("{at}.labels"), review);
}
