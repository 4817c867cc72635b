//! What a proxy holds, compiled.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use prost::{Message, Name};

use crate::ConfigError;
use crate::cluster::{Cluster, Discovery, Endpoints};
use crate::listener::{ListenAddress, Listener};
use crate::route::RouteTable;

/// What a proxy holds, compiled.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Listeners by name.
    pub listeners: BTreeMap<Arc<str>, Listener>,
    /// Route tables by name.
    pub routes: BTreeMap<Arc<str>, Arc<RouteTable>>,
    /// Clusters by name.
    pub clusters: BTreeMap<Arc<str>, Cluster>,
    endpoints: BTreeMap<Arc<str>, Arc<Endpoints>>,
}

impl Configuration {
    /// Decodes and compiles resources, each with its type URL. Other types are left out.
    ///
    /// # Errors
    /// The first resource that cannot be followed.
    pub fn compile<'a>(resources: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self, ConfigError> {
        let mut all = Self::default();
        for (url, bytes) in resources {
            let name = url.rsplit('/').next().unwrap_or_default();
            if name == ListenerProto::full_name() {
                let listener = Listener::compile(&decode(bytes)?)?;
                all.listeners.insert(listener.name.clone(), listener);
            } else if name == RouteConfiguration::full_name() {
                let table = RouteTable::compile(&decode(bytes)?)?;
                all.routes.insert(table.name.clone(), Arc::new(table));
            } else if name == ClusterProto::full_name() {
                let cluster = Cluster::compile(&decode(bytes)?)?;
                all.clusters.insert(cluster.name.clone(), cluster);
            } else if name == ClusterLoadAssignment::full_name() {
                let endpoints = Endpoints::compile(&decode(bytes)?)?;
                all.endpoints.insert(endpoints.name.clone(), Arc::new(endpoints));
            }
        }
        Ok(all)
    }

    /// The endpoints of a cluster, as far as they are known without asking anybody; names stay names.
    pub fn endpoints_of(&self, cluster: &Cluster) -> Option<Arc<Endpoints>> {
        match &cluster.discovery {
            Discovery::Static(endpoints) => Some(endpoints.clone()),
            Discovery::Eds { service } => self.endpoints.get(service).cloned(),
            Discovery::StrictDns { targets, .. } | Discovery::LogicalDns { targets, .. } => Some(targets.clone()),
            Discovery::OriginalDst { .. } => None,
        }
    }
}

fn decode<T: Message + Name + Default>(bytes: &[u8]) -> Result<T, ConfigError> {
    T::decode(bytes).map_err(|error| ConfigError::new(format!("does not decode as {}: {error}", T::full_name())))
}

pub(super) fn address_text(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => address.to_string(),
        ListenAddress::Pipe(path) => path.display().to_string(),
    }
}
