//! The configuration that workers serve by: immutable, shared, replaced as a whole.
//!
//! Parts that did not change keep their `Arc`, so that what hangs on them (connections, pools, health) goes on
//! undisturbed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use routing::cluster::{Cluster, Discovery, Endpoints};
use routing::endpoint::Endpoint;
use routing::listener::{FilterChain, Listener};
use routing::outlier::OutlierDetector;
use routing::route::RouteTable;
use routing::tls::UpstreamTls;

use crate::tls::SetupError;
use crate::tls::downstream::ServerSide;
use crate::tls::files::CertificateFiles;
use crate::tls::own::OwnIdentity;
use crate::tls::upstream::ClientSide;
use crate::xds::sds::chain;
use crate::xds::store::{Store, eds_name, rds_names};

/// Everything at one generation.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) generation: u64,
    pub(crate) listeners: BTreeMap<Arc<str>, Arc<ListenerConfig>>,
    pub(crate) clusters: HashMap<Arc<str>, Arc<ClusterConfig>>,
    pub(crate) routes: HashMap<Arc<str>, Arc<RouteTable>>,
}

/// A listener with its TLS set up.
#[derive(Debug)]
pub(crate) struct ListenerConfig {
    pub(crate) listener: Arc<Listener>,
    /// The first bytes decide something.
    pub(crate) sniffs: bool,
    tls: Vec<(Arc<FilterChain>, ServerSide)>,
}

/// A cluster with its endpoints of now.
#[derive(Debug)]
pub(crate) struct ClusterConfig {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) shared: Arc<ClusterShared>,
}

/// What all workers share of a cluster, as long as it does not change.
#[derive(Debug)]
pub(crate) struct ClusterShared {
    tls: Vec<(Arc<UpstreamTls>, Arc<ClientSide>)>,
    pub(crate) outlier: Option<OutlierDetector>,
    pub(crate) origin: Instant,
    /// Requests in flight over all workers.
    pub(crate) requests: AtomicU32,
    pub(crate) retries: AtomicU32,
    /// The interval of the last sweep.
    swept: AtomicU64,
}

impl ListenerConfig {
    fn build(
        listener: Arc<Listener>,
        identity: &Arc<OwnIdentity>,
        files: &CertificateFiles,
    ) -> Result<Self, SetupError> {
        let mut tls = Vec::new();
        for chain in listener.all_chains() {
            if let Some(context) = &chain.tls {
                tls.push((chain.clone(), ServerSide::build(context, identity, files)?));
            }
        }
        let sniffs = !tls.is_empty() || listener.needs_tls_inspector() || listener.needs_http_inspector();
        Ok(Self { listener, sniffs, tls })
    }

    /// The TLS of one of its chains.
    pub(crate) fn server_side(&self, chain: &Arc<FilterChain>) -> Option<&ServerSide> {
        self.tls.iter().find(|(of, _)| Arc::ptr_eq(of, chain)).map(|(_, side)| side)
    }

    pub(crate) fn has_tls(&self) -> bool {
        !self.tls.is_empty()
    }
}

impl ClusterShared {
    fn build(cluster: &Cluster, identity: &Arc<OwnIdentity>) -> Result<Self, SetupError> {
        let mut tls = Vec::new();
        for context in cluster.all_tls() {
            tls.push((context.clone(), Arc::new(ClientSide::build(context, cluster.http.auto_sni, identity)?)));
        }
        Ok(Self {
            tls,
            outlier: cluster.outlier.clone().map(OutlierDetector::new),
            origin: Instant::now(),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            swept: AtomicU64::new(0),
        })
    }

    /// Lets endpoints earn their good name back, once per interval whatever worker asks.
    pub(crate) fn sweep(&self) {
        let Some(outlier) = &self.outlier else { return };
        let now = self.origin.elapsed();
        let interval = outlier.policy().interval.as_millis().max(1);
        let turn = u64::try_from(now.as_millis() / interval).unwrap_or(u64::MAX);
        if self.swept.swap(turn, Ordering::Relaxed) != turn {
            outlier.sweep(now);
        }
    }

    /// The TLS of a cluster whose endpoints are not listed.
    pub(crate) fn default_tls(&self) -> Option<(usize, Arc<ClientSide>)> {
        self.tls.first().map(|(_, side)| (0, side.clone()))
    }
}

impl ClusterConfig {
    /// The TLS towards an endpoint, with its place among the cluster's.
    pub(crate) fn tls_for(&self, endpoint: &Endpoint) -> Option<(usize, Arc<ClientSide>)> {
        let wanted = self.cluster.tls_for(endpoint)?;
        let place = self.shared.tls.iter().position(|(context, _)| Arc::ptr_eq(context, wanted))?;
        Some((place, self.shared.tls[place].1.clone()))
    }
}

/// Builds the next configuration from what discovery told and what names resolved to.
#[derive(Debug)]
pub(crate) struct Assembler {
    identity: Arc<OwnIdentity>,
    files: Arc<CertificateFiles>,
    current: Arc<Config>,
    /// Addresses of clusters that are resolved by name.
    resolved: HashMap<String, Arc<Endpoints>>,
}

impl Assembler {
    pub(crate) fn new(identity: Arc<OwnIdentity>, files: Arc<CertificateFiles>) -> Self {
        Self { identity, files, current: Arc::default(), resolved: HashMap::new() }
    }

    /// Notes what the names of a cluster resolved to.
    pub(crate) fn set_resolved(&mut self, cluster: &str, endpoints: Arc<Endpoints>) {
        self.resolved.insert(cluster.to_owned(), endpoints);
    }

    /// The next configuration.
    pub(crate) fn assemble(&mut self, store: &Store) -> Arc<Config> {
        let clusters: HashMap<_, _> = store
            .all_clusters()
            .filter_map(|cluster| Some((cluster.name.clone(), self.cluster(cluster, store)?)))
            .collect();
        self.resolved.retain(|name, _| clusters.contains_key(name.as_str()));
        let listeners = store
            .listeners
            .values()
            .filter_map(|entry| Some((entry.compiled.name.clone(), self.listener(&entry.compiled, store)?)))
            .collect();
        let routes = store.routes.values().map(|entry| (entry.compiled.name.clone(), entry.compiled.clone())).collect();
        self.current = Arc::new(Config { generation: self.current.generation + 1, listeners, clusters, routes });
        self.current.clone()
    }

    /// A listener; the one before while its routes have not come yet.
    fn listener(&self, listener: &Arc<Listener>, store: &Store) -> Option<Arc<ListenerConfig>> {
        let before = self.current.listeners.get(&listener.name);
        if let Some(same) = before.filter(|before| Arc::ptr_eq(&before.listener, listener)) {
            return Some(same.clone());
        }
        if rds_names(listener).iter().any(|name| !store.route_is_settled(name)) {
            return before.cloned();
        }
        match ListenerConfig::build(listener.clone(), &self.identity, &self.files) {
            Ok(built) => Some(Arc::new(built)),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(
                    reason = "CONFIG_REFUSED",
                    listener = &*listener.name,
                    error,
                    "listener cannot be set up, keeping the one before"
                );
                before.cloned()
            }
        }
    }

    fn cluster(&self, cluster: &Arc<Cluster>, store: &Store) -> Option<Arc<ClusterConfig>> {
        let before = self.current.clusters.get(&cluster.name);
        let endpoints = self.endpoints(cluster, store);
        let shared = match before.filter(|before| Arc::ptr_eq(&before.cluster, cluster)) {
            Some(before) => match &endpoints {
                Some(endpoints) if !Arc::ptr_eq(&before.endpoints, endpoints) => before.shared.clone(),
                _ => return Some(before.clone()),
            },
            None => match ClusterShared::build(cluster, &self.identity) {
                Ok(shared) => Arc::new(shared),
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(
                        reason = "CONFIG_REFUSED",
                        cluster = &*cluster.name,
                        error,
                        "cluster cannot be set up, keeping the one before"
                    );
                    return before.cloned();
                }
            },
        };
        // Endpoints that have not come yet do not take away the ones of the same cluster before.
        let endpoints = endpoints.or_else(|| before.map(|before| before.endpoints.clone())).unwrap_or_default();
        if let Some(outlier) = &shared.outlier {
            outlier.retain(&endpoints);
        }
        Some(Arc::new(ClusterConfig { cluster: cluster.clone(), endpoints, shared }))
    }

    fn endpoints(&self, cluster: &Cluster, store: &Store) -> Option<Arc<Endpoints>> {
        match &cluster.discovery {
            Discovery::Static(endpoints) => Some(endpoints.clone()),
            Discovery::Eds { .. } => {
                eds_name(cluster).and_then(|name| store.endpoints.get(name)).map(|entry| entry.compiled.clone())
            }
            Discovery::StrictDns { .. } | Discovery::LogicalDns { .. } => self.resolved.get(&*cluster.name).cloned(),
            Discovery::OriginalDst { .. } => None,
        }
    }
}
