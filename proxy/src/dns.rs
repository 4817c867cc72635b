//! Clusters whose endpoints are names: resolved again and again, outside of the workers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use routing::cluster::{Cluster, Discovery, Endpoints};
use runtime::tasks::TaskSet;

use crate::config::Config;
use crate::control::Control;

/// The resolvers at work, by cluster.
#[derive(Default)]
pub(crate) struct Resolver {
    tasks: BTreeMap<Arc<str>, (Arc<Cluster>, TaskSet)>,
}

impl Resolver {
    /// Begins for clusters that are new, ends for those that are gone or changed.
    pub(crate) fn follow(&mut self, config: &Config, control: &Control) {
        self.tasks.retain(|name, (cluster, _)| {
            config.clusters.get(name).is_some_and(|now| Arc::ptr_eq(&now.cluster, cluster))
        });
        for (name, cluster) in &config.clusters {
            let cluster = &cluster.cluster;
            if is_by_name(cluster) && !self.tasks.contains_key(name) {
                let mut tasks = TaskSet::new();
                tasks.spawn("resolve", resolve(cluster.clone(), control.clone()));
                self.tasks.insert(name.clone(), (cluster.clone(), tasks));
            }
        }
    }
}

fn is_by_name(cluster: &Cluster) -> bool {
    matches!(cluster.discovery, Discovery::StrictDns { .. } | Discovery::LogicalDns { .. })
}
