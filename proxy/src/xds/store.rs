//! What discovery has told, compiled: the last good state of every resource.
//!
//! An update is decoded and compiled as a whole before anything of it is kept. A resource that comes again unchanged
//! keeps its compiled form, so that what hangs on it (connections, health) is not disturbed. A cluster that was
//! removed while a route still names it stays until no route does.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use prost::Message;
use routing::cluster::{Cluster, Discovery, Endpoints};
use routing::config::ConfigError;
use routing::hcm::RouteSource;
use routing::listener::{Listener, Terminal};
use routing::route::RouteTable;

use super::subscription::{Kind, Update};

/// One resource.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) version: String,
    /// As it came.
    pub(crate) body: Arc<[u8]>,
    hash: u64,
    pub(crate) compiled: Arc<T>,
}

/// Every resource by name.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) clusters: BTreeMap<String, Entry<Cluster>>,
    pub(crate) endpoints: BTreeMap<String, Entry<Endpoints>>,
    pub(crate) listeners: BTreeMap<String, Entry<Listener>>,
    pub(crate) routes: BTreeMap<String, Entry<RouteTable>>,
    /// Removed, but still named by a route.
    pub(crate) lingering: BTreeMap<String, Arc<Cluster>>,
    answered: BTreeSet<Kind>,
    /// Named, and said or assumed not to exist.
    absent: BTreeSet<(Kind, String)>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        let Self { version, body, hash, compiled } = self;
        Self { version: version.clone(), body: body.clone(), hash: *hash, compiled: compiled.clone() }
    }
}

impl Store {
    /// Takes an update as a whole, or refuses it as a whole. Answers the names of what was set, in its order.
    ///
    /// # Errors
    /// The text for the refusal.
    pub(crate) fn apply(&mut self, kind: Kind, update: &Update) -> Result<Vec<String>, String> {
        let names = match kind {
            Kind::Cluster => {
                let taken =
                    compile(update, &self.clusters, |proto: &ClusterProto| proto.name.clone(), Cluster::compile)?;
                let before = self.clusters.clone();
                let names = merge(&mut self.clusters, taken, update);
                self.linger(before);
                names
            }
            Kind::Endpoint => {
                let name = |proto: &ClusterLoadAssignment| proto.cluster_name.clone();
                let taken = compile(update, &self.endpoints, name, Endpoints::compile)?;
                merge(&mut self.endpoints, taken, update)
            }
            Kind::Listener => {
                let taken =
                    compile(update, &self.listeners, |proto: &ListenerProto| proto.name.clone(), Listener::compile)?;
                merge(&mut self.listeners, taken, update)
            }
            Kind::Route => {
                let name = |proto: &RouteConfiguration| proto.name.clone();
                let taken = compile(update, &self.routes, name, RouteTable::compile)?;
                merge(&mut self.routes, taken, update)
            }
            Kind::Secret => return Err("secrets do not come by ADS here".to_owned()),
        };
        self.answered.insert(kind);
        for name in &names {
            self.absent.remove(&(kind, name.clone()));
        }
        self.absent.extend(update.removed.iter().map(|name| (kind, name.clone())));
        self.forget_unused();
        Ok(names)
    }

    /// Whether a first answer of this kind was taken.
    pub(crate) fn has_answered(&self, kind: Kind) -> bool {
        self.answered.contains(&kind)
    }

    /// The names that are needed of a kind that is subscribed by name.
    pub(crate) fn wanted(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Endpoint => self.all_clusters().filter_map(|cluster| eds_name(cluster)).map(str::to_owned).collect(),
            Kind::Route => self.listeners.values().flat_map(|entry| rds_names(&entry.compiled)).collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether everything that is named was delivered, or is known to be absent.
    pub(crate) fn is_warm(&self) -> bool {
        self.has_answered(Kind::Cluster) && self.has_answered(Kind::Listener) && self.missing().is_empty()
    }

    /// Takes what is missing for absent. Answers whether anything was missing.
    pub(crate) fn stop_waiting(&mut self) -> bool {
        let missing = self.missing();
        for (kind, name) in &missing {
            tracing::warn!(
                reason = "CONFIG_INCOMPLETE",
                kind = kind.word(),
                name,
                "named but not delivered, going on without"
            );
        }
        let any = !missing.is_empty();
        self.absent.extend(missing);
        any
    }

    /// Whether a route table by this name is there or not to be waited for.
    pub(crate) fn route_is_settled(&self, name: &str) -> bool {
        self.routes.contains_key(name) || self.absent.contains(&(Kind::Route, name.to_owned()))
    }

    /// Clusters in force and those that only linger.
    pub(crate) fn all_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values().map(|entry| &entry.compiled).chain(self.lingering.values())
    }

    fn missing(&self) -> Vec<(Kind, String)> {
        let endpoints = self.wanted(Kind::Endpoint).into_iter().filter(|name| !self.endpoints.contains_key(name));
        let routes = self.wanted(Kind::Route).into_iter().filter(|name| !self.routes.contains_key(name));
        let all = endpoints.map(|name| (Kind::Endpoint, name)).chain(routes.map(|name| (Kind::Route, name)));
        all.filter(|named| !self.absent.contains(named)).collect()
    }

    /// Keeps removed clusters that are still named.
    fn linger(&mut self, before: BTreeMap<String, Entry<Cluster>>) {
        let used = self.used_clusters();
        for (name, entry) in before {
            if !self.clusters.contains_key(&name) && used.contains(&name) {
                self.lingering.insert(name, entry.compiled);
            }
        }
    }

    /// Drops what nobody names any more.
    fn forget_unused(&mut self) {
        if !self.lingering.is_empty() {
            let used = self.used_clusters();
            let clusters = &self.clusters;
            self.lingering.retain(|name, _| used.contains(name) && !clusters.contains_key(name));
        }
        let (endpoints, routes) = (self.wanted(Kind::Endpoint), self.wanted(Kind::Route));
        self.endpoints.retain(|name, _| endpoints.contains(name));
        self.routes.retain(|name, _| routes.contains(name));
        self.absent.retain(|(kind, name)| match kind {
            Kind::Endpoint => endpoints.contains(name),
            Kind::Route => routes.contains(name),
            _ => false,
        });
    }

    fn used_clusters(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for entry in self.routes.values() {
            used.extend(entry.compiled.clusters().into_iter().map(|name| name.to_string()));
        }
        for entry in self.listeners.values() {
            collect_listener_clusters(&entry.compiled, &mut used);
        }
        used
    }
}

/// What the endpoints of a cluster are subscribed by.
pub(crate) fn eds_name(cluster: &Cluster) -> Option<&str> {
    match &cluster.discovery {
        Discovery::Eds { service } => Some(service),
        _ => None,
    }
}

/// The route tables that a listener names.
pub(crate) fn rds_names(listener: &Listener) -> Vec<String> {
    let chains = listener.chains.iter().chain(&listener.default_chain);
    chains
        .filter_map(|chain| match &chain.terminal {
            Terminal::Http(hcm) => match &hcm.routes {
                RouteSource::Rds(name) => Some(name.to_string()),
                RouteSource::Inline(_) => None,
            },
            Terminal::Tcp(_) => None,
        })
        .collect()
}

fn collect_listener_clusters(listener: &Listener, used: &mut BTreeSet<String>) {
    for chain in listener.chains.iter().chain(&listener.default_chain) {
        match &chain.terminal {
            Terminal::Http(hcm) => {
                if let RouteSource::Inline(table) = &hcm.routes {
                    used.extend(table.clusters().into_iter().map(|name| name.to_string()));
                }
            }
            Terminal::Tcp(tcp) => used.extend(tcp.clusters().map(|name| name.to_string())),
        }
    }
}

type Compiled<T> = Vec<(String, Entry<T>)>;

/// Decodes and compiles every resource of an update.
fn compile<P, T>(
    update: &Update,
    held: &BTreeMap<String, Entry<T>>,
    name_of: fn(&P) -> String,
    compile: fn(&P) -> Result<T, ConfigError>,
) -> Result<Compiled<T>, String>
where
    P: Message + Default,
{
    let (mut good, mut bad) = (Vec::with_capacity(update.set.len()), Vec::new());
    for item in &update.set {
        let hash = hash_of(&item.body.value);
        if let Some(name) = &item.name
            && let Some(entry) = held.get(name).filter(|entry| entry.hash == hash)
        {
            good.push((name.clone(), Entry { version: item.version.clone(), ..entry.clone() }));
            continue;
        }
        let proto = match P::decode(item.body.value.as_slice()) {
            Ok(proto) => proto,
            Err(error) => {
                bad.push(format!("{}: {error}", item.name.as_deref().unwrap_or("?")));
                continue;
            }
        };
        let name = name_of(&proto);
        if name.is_empty() {
            bad.push("a resource without a name".to_owned());
        } else if let Some(entry) = held.get(&name).filter(|entry| entry.hash == hash) {
            good.push((name, Entry { version: item.version.clone(), ..entry.clone() }));
        } else {
            match compile(&proto) {
                Ok(compiled) => {
                    let (version, body) = (item.version.clone(), item.body.value.as_slice().into());
                    good.push((name, Entry { version, body, hash, compiled: Arc::new(compiled) }));
                }
                Err(error) => bad.push(error.to_string()),
            }
        }
    }
    if bad.is_empty() {
        return Ok(good);
    }
    bad.truncate(ERRORS_MAX);
    Err(bad.join("; "))
}

fn merge<T>(held: &mut BTreeMap<String, Entry<T>>, taken: Compiled<T>, update: &Update) -> Vec<String> {
    if update.replaces_all {
        held.clear();
    }
    for name in &update.removed {
        held.remove(name);
    }
    let names = taken.iter().map(|(name, _)| name.clone()).collect();
    held.extend(taken);
    names
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Refused resources that are told about in one answer.
const ERRORS_MAX: usize = 10;
