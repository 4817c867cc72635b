//! Clusters whose endpoints are names: resolved again and again, outside of the workers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use routing::cluster::{Cluster, Discovery, DnsFamily};
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

/// Resolves the names of a cluster for ever. A failure keeps the addresses of before.
async fn resolve(cluster: Arc<Cluster>, control: Control) {
    let (targets, dns, one) = match &cluster.discovery {
        Discovery::StrictDns { targets, dns } => (targets, *dns, false),
        Discovery::LogicalDns { targets, dns } => (targets, *dns, true),
        Discovery::Static(_) | Discovery::Eds { .. } | Discovery::OriginalDst { .. } => return,
    };
    let mut before: Option<BTreeMap<String, Vec<IpAddr>>> = None;
    loop {
        let mut found = BTreeMap::new();
        let mut failed = false;
        for (host, port) in targets.names().take(NAMES_MAX) {
            match look_up(host, port, dns.family).await {
                Ok(mut addresses) => {
                    addresses.truncate(if one { 1 } else { ADDRESSES_MAX });
                    found.insert(host.to_owned(), addresses);
                }
                Err(error) => {
                    tracing::warn!(reason = "DNS_FAILED", cluster = &*cluster.name, host, %error, "name cannot be resolved");
                    failed = true;
                    let kept = before.as_ref().and_then(|before| before.get(host)).cloned().unwrap_or_default();
                    found.insert(host.to_owned(), kept);
                }
            }
        }
        if before.as_ref() != Some(&found) {
            let endpoints = targets.resolved(|host| found.get(host).cloned().unwrap_or_default());
            before = Some(found);
            control.resolved(&cluster.name, Arc::new(endpoints)).await;
        }
        tokio::time::sleep(if failed { RETRY } else { dns.refresh.max(RETRY) }).await;
    }
}

async fn look_up(host: &str, port: u16, family: DnsFamily) -> std::io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = tokio::net::lookup_host((host, port)).await?.map(|address| address.ip()).collect();
    found.sort_unstable();
    found.dedup();
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = found.iter().partition(|ip| ip.is_ipv4());
    Ok(match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::V4Preferred if !v4.is_empty() => v4,
        DnsFamily::V4Preferred => v6,
        DnsFamily::Auto if !v6.is_empty() => v6,
        DnsFamily::Auto => v4,
        DnsFamily::All => found,
    })
}

const NAMES_MAX: usize = 256;
const ADDRESSES_MAX: usize = 256;
const RETRY: Duration = Duration::from_secs(1);
