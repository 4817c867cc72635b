//! From a cluster's name to an endpoint.

use crate::balance::{Balancer, Pick};
use crate::cluster::{Cluster, Discovery};
use crate::endpoint::{Endpoint, EndpointAddress};
use crate::route::Forward;
use crate::tls::RootsRef;

use super::steps::{Outcome, StepKind, Steps};
use super::{Configuration, End, Sent, SentTls, Visit};

/// Picks an endpoint as the proxy would with nothing in flight.
pub(super) fn send(
    configuration: &Configuration,
    name: &str,
    forward: Option<&Forward>,
    visit: Visit,
    steps: &mut Steps,
) -> Result<End, End> {
    let Some(cluster) = configuration.clusters.get(name) else {
        let (status, reason) = match (name, forward) {
            (BLACK_HOLE, _) => (502, "HOST_NOT_IN_MESH"),
            (_, Some(forward)) => (forward.cluster_not_found.as_u16(), "NO_CLUSTER"),
            (_, None) => (503, "NO_CLUSTER"),
        };
        steps.refuses(StepKind::Cluster, name, "there is no such cluster".to_owned());
        return Err(End::Refused { status: forward.map(|_| status), reason });
    };
    if matches!(cluster.discovery, Discovery::OriginalDst { .. }) {
        steps.passes(StepKind::Cluster, name, "goes where the client wanted to go".to_owned());
        return Ok(sent(name, None, tls_of(cluster, None, &visit), visit));
    }
    let Some(endpoint) = pick(configuration, cluster) else {
        steps.passes(StepKind::Cluster, name, "no endpoint".to_owned());
        steps.refuses(StepKind::Endpoint, "", "none can be used".to_owned());
        return Err(End::Refused { status: forward.map(|_| 503), reason: "NO_HEALTHY_ENDPOINT" });
    };
    let tls = tls_of(cluster, Some(&endpoint), &visit);
    let count = configuration.endpoints_of(cluster).map_or(0, |endpoints| endpoints.all().len());
    steps.passes(StepKind::Cluster, name, format!("{count} endpoints, {}", tls_text(tls.as_ref())));
    let (address, text) = match &endpoint.address {
        EndpointAddress::Ip(address) => (Some(*address), address.to_string()),
        EndpointAddress::Dns { host, port } => (None, format!("{host}:{port}, to be resolved")),
        EndpointAddress::Pipe(path) => (None, path.display().to_string()),
    };
    let outcome = if address.is_some() { Outcome::Passes } else { Outcome::Unknown };
    steps.add(StepKind::Endpoint, endpoint.workload.as_deref().unwrap_or_default(), outcome, text);
    Ok(sent(name, address, tls, visit))
}

fn sent(cluster: &str, address: Option<std::net::SocketAddr>, tls: Option<SentTls>, visit: Visit) -> End {
    End::Sent(Box::new(Sent { cluster: cluster.to_owned(), address, tls, visit }))
}

fn pick(configuration: &Configuration, cluster: &Cluster) -> Option<Endpoint> {
    let endpoints = configuration.endpoints_of(cluster)?;
    let balancer = Balancer::new(cluster, endpoints);
    let index = balancer.pick(&Pick { dice: 0, hash: None, avoid: &[] }, |_| 0, |_| true)?;
    balancer.endpoints().all().get(index).cloned()
}

fn tls_of(cluster: &Cluster, endpoint: Option<&Endpoint>, visit: &Visit) -> Option<SentTls> {
    let tls = match endpoint {
        Some(endpoint) => cluster.tls_for(endpoint),
        None => cluster.tls.as_ref(),
    }?;
    let mesh = matches!(tls.common.validation.roots, RootsRef::Sds { .. });
    let own = (tls.auto_sni || cluster.http.auto_sni).then(|| name_of(&visit.authority));
    Some(SentTls { mesh, sni: own.or_else(|| tls.sni.as_deref().map(str::to_owned)) })
}

/// The host without its port.
fn name_of(authority: &str) -> String {
    crate::request::Host::parse(authority).map_or_else(|_| authority.to_owned(), |host| host.name().to_owned())
}

fn tls_text(tls: Option<&SentTls>) -> String {
    match tls {
        None => "plain text".to_owned(),
        Some(SentTls { mesh: true, sni }) => format!("mTLS, server name {}", sni.as_deref().unwrap_or("-")),
        Some(SentTls { mesh: false, sni }) => format!("TLS, server name {}", sni.as_deref().unwrap_or("-")),
    }
}

/// Istio's name for "outside of the mesh".
const BLACK_HOLE: &str = "BlackHoleCluster";
