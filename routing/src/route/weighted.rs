//! Which cluster gets a request.

use std::borrow::Cow;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use pb::route_action::ClusterSpecifier;

use super::edits::HeaderEdits;
use crate::config::{At, ConfigError, each, not_supported, number, required};
use crate::filters::{Overrides, overrides};
use crate::matcher::HeaderKey;
use crate::request::Request;

/// How the cluster is chosen.
#[derive(Clone, Debug)]
pub enum Target {
    /// Always this one.
    Cluster(Arc<str>),
    /// The one that a header names.
    Header(HeaderRef),
    /// One of several, by weight.
    Weighted {
        /// The choices.
        clusters: Vec<WeightedCluster>,
        /// The sum of their weights.
        total: u64,
    },
}

/// A header that names a cluster.
#[derive(Clone, Debug)]
pub struct HeaderRef(HeaderKey);

/// One of several clusters.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Its share.
    pub weight: u32,
    /// The host that it is asked for.
    pub host: Option<Arc<str>>,
    pub(super) request_edits: HeaderEdits,
    pub(super) response_edits: HeaderEdits,
    pub(super) overrides: Overrides,
}

/// The cluster that gets a request.
#[derive(Clone, Debug)]
pub struct ClusterPick<'t> {
    /// Its name.
    pub name: Cow<'t, str>,
    /// The choice it was, if it was one of several.
    pub weighted: Option<&'t WeightedCluster>,
}

impl Target {
    pub(super) fn compile(value: Option<&ClusterSpecifier>) -> Result<Self, ConfigError> {
        match required(value).at("cluster_specifier")? {
            ClusterSpecifier::Cluster(name) if name.is_empty() => Err(ConfigError::new("is required").under("cluster")),
            ClusterSpecifier::Cluster(name) => Ok(Self::Cluster(name.as_str().into())),
            ClusterSpecifier::ClusterHeader(name) => {
                HeaderKey::parse(name).at("cluster_header").map(|key| Self::Header(HeaderRef(key)))
            }
            ClusterSpecifier::WeightedClusters(list) => Self::weighted(list).at("weighted_clusters"),
            ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
                not_supported("a cluster specifier plugin")
            }
        }
    }

    fn weighted(list: &pb::WeightedCluster) -> Result<Self, ConfigError> {
        let clusters = each("clusters", &list.clusters, WeightedCluster::compile)?;
        match clusters.iter().map(|cluster| u64::from(cluster.weight)).sum() {
            0 => Err(ConfigError::new("the weights add up to nothing")),
            total => Ok(Self::Weighted { clusters, total }),
        }
    }

    pub(super) fn pick<'t>(&'t self, request: &Request<'_>, dice: u64) -> Option<ClusterPick<'t>> {
        match self {
            Self::Cluster(name) => Some(ClusterPick { name: Cow::Borrowed(name), weighted: None }),
            Self::Header(header) => {
                let value = header.0.read(request)?;
                let name = std::str::from_utf8(&value).ok().filter(|name| !name.is_empty())?;
                Some(ClusterPick { name: Cow::Owned(name.to_owned()), weighted: None })
            }
            Self::Weighted { clusters, total } => {
                let weighted = by_weight(clusters, dice % total)?;
                Some(ClusterPick { name: Cow::Borrowed(&weighted.cluster), weighted: Some(weighted) })
            }
        }
    }

    /// The clusters that it may be, with their weights; none if a header names it.
    pub(crate) fn choices(&self) -> Vec<(&str, u32)> {
        match self {
            Self::Cluster(name) => vec![(name, 1)],
            Self::Header(_) => Vec::new(),
            Self::Weighted { clusters, .. } => clusters.iter().map(|one| (&*one.cluster, one.weight)).collect(),
        }
    }

    pub(super) fn names(&self) -> Vec<&Arc<str>> {
        match self {
            Self::Cluster(name) => vec![name],
            Self::Header(_) => Vec::new(),
            Self::Weighted { clusters, .. } => clusters.iter().map(|cluster| &cluster.cluster).collect(),
        }
    }
}

fn by_weight(clusters: &[WeightedCluster], mut at: u64) -> Option<&WeightedCluster> {
    clusters.iter().find(|cluster| match at.checked_sub(cluster.weight.into()) {
        None => true,
        Some(rest) => {
            at = rest;
            false
        }
    })
}

impl WeightedCluster {
    fn compile(value: &pb::weighted_cluster::ClusterWeight) -> Result<Self, ConfigError> {
        use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        if value.name.is_empty() {
            return not_supported("naming a weighted cluster by a header").at("name");
        }
        Ok(Self {
            cluster: value.name.as_str().into(),
            weight: number(value.weight.as_ref()).unwrap_or(0),
            host: value
                .host_rewrite_specifier
                .as_ref()
                .map(|HostRewriteSpecifier::HostRewriteLiteral(host)| host.as_str().into()),
            request_edits: HeaderEdits::request(&value.request_headers_to_add, &value.request_headers_to_remove)?,
            response_edits: HeaderEdits::response(&value.response_headers_to_add, &value.response_headers_to_remove)?,
            overrides: overrides(&value.typed_per_filter_config)?,
        })
    }
}
