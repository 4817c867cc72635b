//! The endpoints of a cluster: addresses, weights, priorities, health, localities.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};

use crate::config::{At, ConfigError, Fraction, each, not_supported, number, port_of, required};

/// The endpoints of a cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// The name they are asked for by.
    pub name: Arc<str>,
    /// How much healthier than it looks a group counts, in percent.
    pub overprovisioning_percent: u32,
    endpoints: Vec<Endpoint>,
    drops: Vec<Fraction>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddress,
    /// Its own name; empty if it has none.
    pub hostname: Arc<str>,
    /// Its share of the requests, relative to the others.
    pub weight: u32,
    /// Its group; zero is asked first.
    pub priority: u32,
    /// Its health, as discovery knows it.
    pub health: Health,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// What decides how it is to be reached (`envoy.transport_socket_match`).
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Istio's description of its workload: name, namespace, canonical service, canonical revision and cluster, parted
    /// by semicolons.
    pub workload: Option<Arc<str>>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointAddress {
    /// An address.
    Ip(SocketAddr),
    /// A name to be resolved.
    Dns {
        /// The name.
        host: Box<str>,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Pipe(PathBuf),
}

/// An endpoint's health, as discovery knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// To be used.
    Healthy,
    /// To be used if there are not enough healthy ones.
    Degraded,
    /// Not to be used.
    Unhealthy,
    /// Not to be used for anything new.
    Draining,
}

/// Where an endpoint runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Part of the zone.
    pub sub_zone: Box<str>,
    /// The locality's share of the requests, relative to the others of its priority; none if it is not said.
    pub weight: Option<u32>,
}

impl Endpoints {
    /// Compiles a load assignment, or says which field of it cannot be followed.
    pub fn compile(value: &pb::ClusterLoadAssignment) -> Result<Self, ConfigError> {
        Self::compile_part(value).map_err(|error| error.of("ClusterLoadAssignment", &value.cluster_name))
    }

    pub(crate) fn compile_part(value: &pb::ClusterLoadAssignment) -> Result<Self, ConfigError> {
        let policy = value.policy.clone().unwrap_or_default();
        let groups = each("endpoints", &value.endpoints, locality_endpoints)?;
        let drops = each("policy.drop_overloads", &policy.drop_overloads, |drop| {
            required(drop.drop_percentage.as_ref()).and_then(Fraction::compile).at("drop_percentage")
        })?;
        Ok(Self {
            name: value.cluster_name.as_str().into(),
            overprovisioning_percent: number(policy.overprovisioning_factor.as_ref())
                .filter(|factor| *factor > 0)
                .unwrap_or(OVERPROVISIONING_PERCENT),
            endpoints: groups.into_iter().flatten().collect(),
            drops,
        })
    }

    /// All of them, in the order of the resource.
    pub fn all(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether discovery wants this request to be dropped, because the endpoints have too much to do.
    pub fn drops(&self, dice: u64) -> bool {
        let mut dice = dice;
        self.drops.iter().any(|share| {
            dice = crate::route::mix(dice);
            share.includes(dice)
        })
    }

    /// The names that have to be resolved, with their ports.
    pub fn names(&self) -> impl Iterator<Item = (&str, u16)> {
        self.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
            EndpointAddress::Dns { host, port } => Some((&**host, *port)),
            EndpointAddress::Ip(_) | EndpointAddress::Pipe(_) => None,
        })
    }

    /// The same endpoints, where each name is replaced by the addresses it resolved to. A name that resolved to nothing
    /// has no endpoint.
    #[must_use]
    pub fn resolved(&self, mut addresses: impl FnMut(&str) -> Vec<IpAddr>) -> Self {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let EndpointAddress::Dns { host, port } = &endpoint.address else {
                endpoints.push(endpoint.clone());
                continue;
            };
            let hostname = if endpoint.hostname.is_empty() { Arc::from(&**host) } else { endpoint.hostname.clone() };
            endpoints.extend(addresses(host).into_iter().map(|ip| Endpoint {
                address: EndpointAddress::Ip(SocketAddr::new(ip, *port)),
                hostname: hostname.clone(),
                ..endpoint.clone()
            }));
        }
        Self { endpoints, ..self.clone() }
    }
}

fn locality_endpoints(value: &pb::LocalityLbEndpoints) -> Result<Vec<Endpoint>, ConfigError> {
    if value.lb_config.is_some() {
        return not_supported("discovery of a locality's endpoints").at("lb_config");
    }
    let named = value.locality.clone().unwrap_or_default();
    let locality = Arc::new(Locality {
        region: named.region.into(),
        zone: named.zone.into(),
        sub_zone: named.sub_zone.into(),
        weight: number(value.load_balancing_weight.as_ref()),
    });
    each("lb_endpoints", &value.lb_endpoints, |endpoint| compile_endpoint(endpoint, value.priority, &locality))
}

fn compile_endpoint(value: &pb::LbEndpoint, priority: u32, locality: &Arc<Locality>) -> Result<Endpoint, ConfigError> {
    let endpoint = match required(value.host_identifier.as_ref())? {
        pb::lb_endpoint::HostIdentifier::Endpoint(endpoint) => endpoint,
        pb::lb_endpoint::HostIdentifier::EndpointName(_) => return not_supported("a named endpoint"),
    };
    let metadata = value.metadata.as_ref().map(|metadata| &metadata.filter_metadata);
    let part = |key: &str| metadata.and_then(|metadata| metadata.get(key));
    let workload = part("istio").and_then(|istio| text(istio, "workload"));
    Ok(Endpoint {
        address: required(endpoint.address.as_ref()).and_then(address).at("endpoint.address")?,
        hostname: endpoint.hostname.as_str().into(),
        weight: number(value.load_balancing_weight.as_ref()).unwrap_or(1).max(1),
        priority,
        health: Health::compile(value.health_status)?,
        locality: locality.clone(),
        labels: part("envoy.transport_socket_match").map(texts).unwrap_or_default(),
        workload: workload.map(Into::into),
    })
}

impl Health {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        use core::HealthStatus as Pb;
        match Pb::try_from(value) {
            Ok(Pb::Unknown | Pb::Healthy) => Ok(Self::Healthy),
            Ok(Pb::Degraded) => Ok(Self::Degraded),
            Ok(Pb::Unhealthy | Pb::Timeout) => Ok(Self::Unhealthy),
            Ok(Pb::Draining) => Ok(Self::Draining),
            Err(_) => Err(ConfigError::new("unknown health").under("health_status")),
        }
    }
}

fn address(value: &core::Address) -> Result<EndpointAddress, ConfigError> {
    use core::address::Address;
    match required(value.address.as_ref())? {
        Address::Pipe(pipe) => Ok(EndpointAddress::Pipe(pipe.path.as_str().into())),
        Address::EnvoyInternalAddress(_) => not_supported("an internal address"),
        Address::SocketAddress(socket) => {
            let port = port_of(socket).at("socket_address")?;
            if let Ok(ip) = socket.address.parse::<IpAddr>() {
                return Ok(EndpointAddress::Ip(SocketAddr::new(ip, port)));
            }
            match crate::request::Host::parse(&socket.address) {
                Ok(host) if host.port().is_none() => Ok(EndpointAddress::Dns { host: host.name().into(), port }),
                _ => Err(ConfigError::new(format!("`{}` is neither an address nor a name", socket.address))
                    .under("socket_address.address")),
            }
        }
    }
}

pub(crate) fn text<'a>(value: &'a Struct, key: &str) -> Option<&'a str> {
    match value.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The fields of a structure that are texts.
pub(crate) fn texts(value: &Struct) -> BTreeMap<Box<str>, Box<str>> {
    value.fields.keys().filter_map(|key| Some((key.as_str().into(), text(value, key)?.into()))).collect()
}

const OVERPROVISIONING_PERCENT: u32 = 140;

#[cfg(test)]
pub(crate) mod samples {
    //! Endpoints to test with.

    use super::*;

    /// One endpoint per weight, on ports from one.
    pub(crate) fn weighted(weights: &[u32]) -> Vec<Endpoint> {
        (1..).zip(weights).map(|(port, weight)| Endpoint { weight: *weight, ..endpoint(port) }).collect()
    }

    pub(crate) fn endpoint(port: u16) -> Endpoint {
        Endpoint {
            address: EndpointAddress::Ip(([10, 0, 0, 1], port).into()),
            hostname: "".into(),
            weight: 1,
            priority: 0,
            health: Health::Healthy,
            locality: Arc::default(),
            labels: BTreeMap::new(),
            workload: None,
        }
    }

    pub(crate) fn set(endpoints: Vec<Endpoint>) -> Arc<Endpoints> {
        Arc::new(Endpoints { overprovisioning_percent: OVERPROVISIONING_PERCENT, endpoints, ..Endpoints::default() })
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{UInt32Value, Value};

    use super::*;

    fn lb_endpoint(host: &str, port: u32) -> pb::LbEndpoint {
        let socket = core::SocketAddress {
            address: host.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        };
        let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
        let endpoint = pb::Endpoint { address: Some(address), ..Default::default() };
        pb::LbEndpoint {
            host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            ..Default::default()
        }
    }

    fn assignment(endpoints: Vec<pb::LbEndpoint>) -> pb::ClusterLoadAssignment {
        pb::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![pb::LocalityLbEndpoints { lb_endpoints: endpoints, priority: 1, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn endpoints_know_weight_health_and_how_to_be_reached() {
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
        let labels = Struct { fields: [("tlsMode".to_owned(), text("istio"))].into() };
        let mut endpoint = lb_endpoint("10.0.0.1", 80);
        endpoint.load_balancing_weight = Some(UInt32Value { value: 7 });
        endpoint.health_status = core::HealthStatus::Draining as i32;
        endpoint.metadata = Some(core::Metadata {
            filter_metadata: [("envoy.transport_socket_match".to_owned(), labels)].into(),
            ..Default::default()
        });
        let endpoints = Endpoints::compile(&assignment(vec![endpoint])).unwrap();

        let endpoint = &endpoints.all()[0];
        assert_eq!((endpoint.weight, endpoint.priority, endpoint.health), (7, 1, Health::Draining));
        assert_eq!(endpoint.labels.get("tlsMode").map(|mode| &**mode), Some("istio"));
    }

    #[test]
    fn names_become_the_addresses_they_resolve_to() {
        let endpoints =
            assignment(vec![lb_endpoint("a.test", 80), lb_endpoint("gone.test", 80), lb_endpoint("::1", 81)]);
        let endpoints = Endpoints::compile(&endpoints).unwrap();
        assert_eq!(endpoints.names().collect::<Vec<_>>(), [("a.test", 80), ("gone.test", 80)]);

        let ips = |host: &str| match host {
            "a.test" => vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            _ => Vec::new(),
        };
        let resolved = endpoints.resolved(ips);
        let addresses: Vec<_> = resolved.all().iter().map(|endpoint| endpoint.address.clone()).collect();
        let expected =
            ["10.0.0.1:80", "10.0.0.2:80", "[::1]:81"].map(|text| EndpointAddress::Ip(text.parse().unwrap()));
        assert_eq!(addresses, expected);
        assert_eq!(&*resolved.all()[0].hostname, "a.test");
    }

    #[test]
    fn a_malformed_address_is_named() {
        let error = Endpoints::compile(&assignment(vec![lb_endpoint("a b", 80)])).unwrap_err();
        assert_eq!(error.resource, "ClusterLoadAssignment c");
        assert_eq!(error.field, "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address");
        assert!(Endpoints::compile(&assignment(vec![lb_endpoint("1.2.3.4", 70_000)])).is_err());
    }
}
