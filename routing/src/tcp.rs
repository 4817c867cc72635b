//! Relaying a connection's bytes: which cluster gets them and how long it may be silent.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use crate::access_log::AccessLog;
use crate::config::{At, ConfigError, limit, not_supported, number, required};

/// Relays a connection's bytes.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    /// The prefix of its metrics.
    pub stat_prefix: Arc<str>,
    /// Which cluster gets the connection.
    pub cluster: TcpCluster,
    /// How long both directions may be silent.
    pub idle_timeout: Option<Duration>,
    /// How long the connection may last.
    pub duration_max: Option<Duration>,
    /// How many endpoints to try.
    pub connect_attempts: u32,
    /// Whether the client's address decides the endpoint.
    pub hash_source_ip: bool,
    /// Its logs.
    pub access_logs: Vec<Arc<AccessLog>>,
}

/// Which cluster gets a connection.
#[derive(Clone, Debug)]
pub enum TcpCluster {
    /// Always this one.
    One(Arc<str>),
    /// One of several by weight.
    Weighted(Vec<(Arc<str>, u32)>),
}

impl TcpProxy {
    pub(crate) fn compile(value: &pb::TcpProxy) -> Result<Self, ConfigError> {
        if value.tunneling_config.is_some() {
            return not_supported("tunnelling over HTTP").at("tunneling_config");
        }
        Ok(Self {
            stat_prefix: value.stat_prefix.as_str().into(),
            cluster: TcpCluster::compile(value).at("cluster_specifier")?,
            idle_timeout: match &value.idle_timeout {
                None => Some(IDLE_TIMEOUT),
                some => limit("idle_timeout", some.as_ref())?,
            },
            duration_max: limit(
                "max_downstream_connection_duration",
                value.max_downstream_connection_duration.as_ref(),
            )?,
            connect_attempts: number(value.max_connect_attempts.as_ref()).unwrap_or(1).max(1),
            hash_source_ip: value
                .hash_policy
                .iter()
                .any(|policy| matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))),
            access_logs: AccessLog::compile_all("access_log", &value.access_log)?,
        })
    }

    /// The cluster that gets a connection.
    pub fn cluster(&self, dice: u64) -> &Arc<str> {
        match &self.cluster {
            TcpCluster::One(name) => name,
            TcpCluster::Weighted(choices) => pick_weighted(choices, dice),
        }
    }

    /// Every cluster that may get a connection.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        match &self.cluster {
            TcpCluster::One(name) => std::slice::from_ref(name).iter().chain(None).collect::<Vec<_>>(),
            TcpCluster::Weighted(choices) => choices.iter().map(|(name, _)| name).collect(),
        }
        .into_iter()
    }
}

impl TcpCluster {
    fn compile(value: &pb::TcpProxy) -> Result<Self, ConfigError> {
        use pb::tcp_proxy::ClusterSpecifier;
        match required(value.cluster_specifier.as_ref())? {
            ClusterSpecifier::Cluster(name) => Ok(Self::One(name.as_str().into())),
            ClusterSpecifier::WeightedClusters(list) => {
                let choices: Vec<(Arc<str>, u32)> =
                    list.clusters.iter().map(|choice| (choice.name.as_str().into(), choice.weight)).collect();
                match choices.iter().any(|(_, weight)| *weight > 0) {
                    true => Ok(Self::Weighted(choices)),
                    false => Err(ConfigError::new("the weights add up to nothing").under("weighted_clusters")),
                }
            }
        }
    }
}

fn pick_weighted(choices: &[(Arc<str>, u32)], dice: u64) -> &Arc<str> {
    let total: u64 = choices.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut at = dice % total.max(1);
    for (name, weight) in choices {
        match at.checked_sub(u64::from(*weight)) {
            None => return name,
            Some(rest) => at = rest,
        }
    }
    &choices[choices.len() - 1].0
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_share_connections_out() {
        let choices = [("a".into(), 1), ("b".into(), 0), ("c".into(), 3)];
        let picked: Vec<&str> = (0..8).map(|dice| &**pick_weighted(&choices, dice)).collect();
        assert_eq!(picked, ["a", "c", "c", "c", "a", "c", "c", "c"]);
    }
}
