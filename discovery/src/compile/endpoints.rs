//! Endpoints of a cluster, by locality.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::model::{Service, ServicePort, Workload};
use super::pb as short;
use crate::documents::networking::Subset;

/// The assignment of `cluster`: the service's endpoints that belong to the subset.
pub(super) fn assignment(
    cluster: &str,
    service: &Service,
    port: &ServicePort,
    subset: Option<&Subset>,
) -> pb::ClusterLoadAssignment {
    let mut localities: BTreeMap<&str, Vec<pb::LbEndpoint>> = BTreeMap::new();
    for workload in service.endpoints_of(subset) {
        localities.entry(&workload.locality).or_default().push(endpoint(workload, port));
    }
    let endpoints = localities.into_iter().map(|(name, endpoints)| locality(name, endpoints)).collect();
    pb::ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints, ..Default::default() }
}

/// One endpoint that is known by its address alone.
pub(super) fn single(cluster: &str, target: &str, port: u16) -> pb::ClusterLoadAssignment {
    let endpoint = lb_endpoint(short::endpoint_address(target, port), 1, None);
    let endpoints = vec![locality("", vec![endpoint])];
    pb::ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints, ..Default::default() }
}

fn endpoint(workload: &Workload, port: &ServicePort) -> pb::LbEndpoint {
    let address = short::endpoint_address(&workload.address, workload.port(port));
    lb_endpoint(address, workload.weight.max(1), Some(metadata(workload)))
}

fn lb_endpoint(address: core::Address, weight: u32, metadata: Option<core::Metadata>) -> pb::LbEndpoint {
    let endpoint = pb::Endpoint { address: Some(address), ..Default::default() };
    pb::LbEndpoint {
        health_status: core::HealthStatus::Healthy as i32,
        metadata,
        load_balancing_weight: short::uint(weight),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
    }
}

/// Who it is, as Istio tells it to proxies for their metrics, and whether it speaks mTLS.
fn metadata(workload: &Workload) -> core::Metadata {
    let label = |key: &str| workload.labels.get(key).map(String::as_str);
    let canonical = label("service.istio.io/canonical-name").or_else(|| label("app")).unwrap_or(&workload.name);
    let revision = label("service.istio.io/canonical-revision").or_else(|| label("version")).unwrap_or("latest");
    let text = format!("{};{};{canonical};{revision};Kubernetes", workload.name, workload.namespace);
    let mut metadata = short::metadata("istio", short::struct_of([("workload", short::text_value(&text))]));
    if workload.identity.is_some() {
        let mode = short::struct_of([(TLS_MODE, short::text_value("istio"))]);
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), mode);
    }
    metadata
}

fn locality(name: &str, lb_endpoints: Vec<pb::LbEndpoint>) -> pb::LocalityLbEndpoints {
    let mut parts = name.split('/');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let locality = core::Locality { region: part(), zone: part(), sub_zone: part() };
    let weight =
        lb_endpoints.iter().filter_map(|endpoint| endpoint.load_balancing_weight).map(|weight| weight.value).sum();
    pb::LocalityLbEndpoints {
        // gRPC libraries refuse an absent locality and ignore one without weight.
        locality: Some(locality),
        load_balancing_weight: short::uint(weight),
        lb_endpoints,
        ..Default::default()
    }
}

/// The key of endpoint metadata that chooses the transport socket in a cluster with mixed endpoints.
pub(super) const TLS_MODE: &str = "tlsMode";
