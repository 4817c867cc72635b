//! What one node is to be given: xDS resources by type and name, each packed once and versioned by its content.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::compile::canonical_bytes;

/// The resource types served, in the order in which a change is pushed: a cluster before the routes that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Type {
    Cluster,
    Endpoints,
    Listener,
    Route,
}

impl Type {
    pub(crate) const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    pub(crate) fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Short name for logs and metrics, as Istio's.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }

    /// Whether a state-of-the-world answer holds the whole set, so that absence means removal (xDS: CDS and LDS).
    pub(crate) fn is_whole_set(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resource {
    pub(crate) name: String,
    /// Hash of the content: equal content, equal version, whoever compiled it.
    pub(crate) version: String,
    pub(crate) body: Any,
}

/// All resources of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    by_type: BTreeMap<Type, BTreeMap<String, Arc<Resource>>>,
}

impl Resources {
    /// Packs `message` and takes it in; the last of two equal names stays.
    pub(crate) fn insert(&mut self, kind: Type, name: &str, message: &impl Message) {
        let value = canonical_bytes(kind.url(), message.encode_to_vec());
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let version = format!("{:016x}", hasher.finish());
        let body = Any { type_url: kind.url().to_owned(), value };
        let resource = Resource { name: name.to_owned(), version, body };
        self.by_type.entry(kind).or_default().insert(name.to_owned(), Arc::new(resource));
    }

    pub(crate) fn of(&self, kind: Type) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_type.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn get(&self, kind: Type, name: &str) -> Option<&Arc<Resource>> {
        self.by_type.get(&kind)?.get(name)
    }

    /// The version of all resources of a type together.
    pub(crate) fn version(&self, kind: Type) -> String {
        let mut hasher = DefaultHasher::new();
        for resource in self.of(kind) {
            resource.name.hash(&mut hasher);
            resource.version.hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;

    use super::*;

    fn with(name: &str, alt: &str) -> Resources {
        let mut resources = Resources::default();
        let cluster = Cluster { name: name.into(), alt_stat_name: alt.into(), ..Cluster::default() };
        resources.insert(Type::Cluster, name, &cluster);
        resources
    }

    #[test]
    fn the_version_follows_the_content() {
        let version = |r: &Resources| r.get(Type::Cluster, "a").unwrap().version.clone();
        assert_eq!(version(&with("a", "x")), version(&with("a", "x")));
        assert_ne!(version(&with("a", "x")), version(&with("a", "y")));
        assert_ne!(with("a", "x").version(Type::Cluster), with("b", "x").version(Type::Cluster));
    }

    #[test]
    fn a_type_is_known_by_its_url() {
        for kind in Type::ALL {
            assert_eq!(Type::of_url(kind.url()), Some(kind));
        }
        assert_eq!(Type::of_url("type.googleapis.com/x"), None);
    }
}
