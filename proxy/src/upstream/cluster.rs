//! A cluster as one worker uses it: balancer, pools by endpoint, what is in flight.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use routing::balance::{Balancer, Pick};
use routing::cluster::{Cluster, Discovery, UpstreamProtocol};
use routing::endpoint::{Endpoint, EndpointAddress};
use routing::outlier::{HostHealth, OutlierEvent};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::dial::{ConnFacts, Dialer};
use super::pool::{IDLE_TIMEOUT, Pool, Speak};
use crate::config::ClusterConfig;
use crate::conn::Conn;
use crate::http::hcm::ends;
use crate::obs::labels::{BaseLabels, Reporter, Security, ServiceLabels, Spoken, WorkloadLabels};
use crate::obs::shard::{BaseId, Fast};
use crate::tls::upstream::ClientSide;
use crate::worker::state::Worker;

/// The state of one cluster on one worker.
#[derive(Debug)]
pub(crate) struct ClusterState {
    pub(crate) config: Arc<ClusterConfig>,
    balancer: Balancer,
    pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    in_flight: Box<[Cell<u32>]>,
    health: Box<[Option<Arc<HostHealth>>]>,
    bases: RefCell<HashMap<LabelKey, BaseId, Fast>>,
}

/// What a pool is for, compared in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    address: SocketAddr,
    /// Which of the cluster's TLS settings, by their place.
    tls: Option<usize>,
    requested_name: Option<Box<str>>,
}

/// What decides the labels of a request to this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LabelKey {
    conn: u64,
    endpoint: usize,
    spoken: Spoken,
    proven: bool,
}

/// One request's place among those in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    cluster: Rc<ClusterState>,
    endpoint: usize,
}

/// One request admitted by the cluster's limits.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<ClusterConfig>);

/// The endpoint of an attempt.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) index: usize,
    pub(crate) address: SocketAddr,
}

impl ClusterState {
    /// The state for a configuration, taking over what still fits of the one before.
    pub(crate) fn new(config: Arc<ClusterConfig>, before: Option<&Self>) -> Rc<Self> {
        let endpoints = config.endpoints.all();
        let addresses: Vec<SocketAddr> = endpoints.iter().filter_map(address_of).collect();
        let pools = match before {
            Some(before) if Arc::ptr_eq(&before.config.shared, &config.shared) => {
                let kept = before.pools.borrow();
                let kept = kept.iter().filter(|(key, _)| addresses.contains(&key.address));
                kept.map(|(key, pool)| (key.clone(), pool.clone())).collect()
            }
            _ => HashMap::new(),
        };
        let detector = config.shared.outlier.as_ref();
        let health = endpoints.iter().map(|endpoint| detector.map(|detector| detector.host(&endpoint.address)));
        Rc::new(Self {
            balancer: Balancer::new(&config.cluster, config.endpoints.clone()),
            pools: RefCell::new(pools),
            in_flight: endpoints.iter().map(|_| Cell::new(0)).collect(),
            health: health.collect(),
            bases: RefCell::default(),
            config,
        })
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.config.cluster
    }

    /// The endpoint for a request.
    pub(crate) fn pick(
        &self,
        dice: u64,
        hash: Option<u64>,
        avoid: &[usize],
        original: Option<SocketAddr>,
    ) -> Option<Chosen> {
        if let Discovery::OriginalDst { port_override, .. } = &self.cluster().discovery {
            let mut address = original?;
            address.set_port(port_override.unwrap_or(address.port()));
            return Some(Chosen { index: usize::MAX, address });
        }
        let now = self.config.shared.origin.elapsed();
        let usable = |index: usize| self.health[index].as_ref().is_none_or(|health| !health.is_ejected(now));
        let pick = Pick { dice, hash, avoid };
        let index = self.balancer.pick(&pick, |index| self.in_flight[index].get(), usable)?;
        let address = address_of(self.config.endpoints.all().get(index)?)?;
        Some(Chosen { index, address })
    }

    /// The pool for an endpoint.
    pub(crate) fn pool(&self, worker: &Worker, chosen: &Chosen, host: &str) -> Rc<Pool> {
        let tls = self.tls_of(chosen.index);
        let requested_name = tls.as_ref().filter(|(_, tls)| tls.auto_sni).map(|_| Box::from(host));
        let key = PoolKey { address: chosen.address, tls: tls.as_ref().map(|(place, _)| *place), requested_name };
        if let Some(pool) = self.pools.borrow().get(&key) {
            return pool.clone();
        }
        let dialer = self.dialer(worker, tls.map(|(_, tls)| tls), key.requested_name.clone());
        let pool = Pool::new(chosen.address, Rc::new(dialer));
        self.pools.borrow_mut().insert(key, pool.clone());
        pool
    }

    fn dialer(&self, worker: &Worker, tls: Option<Arc<ClientSide>>, requested_name: Option<Box<str>>) -> Dialer {
        let cluster = self.cluster();
        Dialer {
            connect_timeout: cluster.connect_timeout,
            idle_timeout: cluster.http.idle_timeout.map_or(IDLE_TIMEOUT, |idle| idle.min(IDLE_TIMEOUT)),
            bind: cluster.bind,
            tls,
            requested_name,
            requests_max: cluster.http.requests_per_connection_max,
            age_max: cluster.http.connection_max,
            keepalive: cluster.keepalive,
            identity: worker.process.identity.clone(),
            counters: worker.process.counters.clone(),
            live: worker.upstreams.clone(),
        }
    }

    fn endpoint(&self, index: usize) -> Option<&Endpoint> {
        self.config.endpoints.all().get(index)
    }

    /// What to speak with the endpoints for a request that came by HTTP/2 or not.
    pub(crate) fn speak(&self, came_by_http2: bool) -> Speak {
        match self.cluster().http.protocol {
            UpstreamProtocol::Http1 => Speak::Http1,
            UpstreamProtocol::Http2 => Speak::Http2,
            UpstreamProtocol::UseDownstream if came_by_http2 => Speak::Http2,
            UpstreamProtocol::UseDownstream => Speak::Http1,
            UpstreamProtocol::Auto => Speak::Negotiated,
        }
    }

    /// Counts a request towards an endpoint.
    pub(crate) fn begin(self: &Rc<Self>, endpoint: usize) -> InFlight {
        if let Some(count) = self.in_flight.get(endpoint) {
            count.set(count.get() + 1);
        }
        InFlight { cluster: self.clone(), endpoint }
    }

    /// Admits a request by the cluster's limits.
    pub(crate) fn admit(&self, high_priority: bool) -> Option<Admitted> {
        let gauge = &self.config.shared.requests;
        let before = gauge.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(self.config.clone());
        let cluster = self.cluster();
        let limits = if high_priority { &cluster.high_limits } else { &cluster.limits };
        (before < limits.requests).then_some(admitted)
    }

    /// Admits a TCP connection by the cluster's limits.
    pub(crate) fn admit_connection(&self) -> Option<Admitted> {
        let before = self.config.shared.requests.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(self.config.clone());
        (before < self.cluster().limits.connections).then_some(admitted)
    }

    /// Admits a retry by the cluster's budget; it must be given back.
    pub(crate) fn admit_retry(&self) -> bool {
        let shared = &self.config.shared;
        let running = shared.retries.fetch_add(1, Ordering::Relaxed);
        let active = shared.requests.load(Ordering::Relaxed);
        let admitted = self.cluster().limits.admits_retry(active, running);
        if !admitted {
            self.retry_ended();
        }
        admitted
    }

    /// Gives the place of a retry back.
    pub(crate) fn retry_ended(&self) {
        self.config.shared.retries.fetch_sub(1, Ordering::Relaxed);
    }

    /// The name of an endpoint, where it has one.
    pub(crate) fn hostname(&self, index: usize) -> Option<&str> {
        self.endpoint(index).map(|endpoint| &*endpoint.hostname).filter(|name| !name.is_empty())
    }

    /// Opens single connections to an endpoint, outside of the pools.
    pub(crate) fn raw_dialer(&self, worker: &Worker, chosen: &Chosen, host: &str) -> Dialer {
        let tls = self.tls_of(chosen.index);
        let requested_name = tls.as_ref().filter(|(_, tls)| tls.auto_sni).map(|_| Box::from(host));
        self.dialer(worker, tls.map(|(_, tls)| tls), requested_name)
    }

    fn tls_of(&self, index: usize) -> Option<(usize, Arc<ClientSide>)> {
        self.endpoint(index).map_or_else(|| self.config.shared.default_tls(), |endpoint| self.config.tls_for(endpoint))
    }

    /// Tells the outlier detector how an endpoint did.
    pub(crate) fn judge(&self, endpoint: usize, event: OutlierEvent, dice: u64) {
        let Some(Some(health)) = self.health.get(endpoint) else { return };
        let Some(detector) = &self.config.shared.outlier else { return };
        let now = self.config.shared.origin.elapsed();
        if let Some(ejection) = detector.record(health, event, now, dice) {
            let address = self.endpoint(endpoint).and_then(address_of);
            tracing::info!(cluster = &*self.cluster().name, ?address, ?ejection, "endpoint ejected");
        }
    }

    /// Drops connections that are of no use any more.
    pub(crate) fn sweep(&self, now: Instant) {
        self.pools.borrow_mut().retain(|_, pool| pool.sweep(now) || Rc::strong_count(pool) > 1);
        self.config.shared.sweep();
    }

    /// The labels of a request to an endpoint of this cluster.
    pub(crate) fn labels(
        &self,
        conn: &Conn,
        spoken: Spoken,
        endpoint: Option<usize>,
        upstream: Option<&ConnFacts>,
    ) -> BaseId {
        let key = LabelKey {
            conn: conn.labels_key,
            endpoint: endpoint.unwrap_or(usize::MAX),
            spoken,
            proven: upstream.is_some_and(|upstream| upstream.peer.is_some()),
        };
        if let Some(base) = self.bases.borrow().get(&key) {
            return *base;
        }
        let base = conn.worker.series.base(self.base_labels(conn, spoken, key.endpoint, upstream));
        let mut bases = self.bases.borrow_mut();
        if bases.len() < BASES_MAX {
            bases.insert(key, base);
        }
        base
    }

    fn base_labels(&self, conn: &Conn, spoken: Spoken, endpoint: usize, upstream: Option<&ConnFacts>) -> BaseLabels {
        let peer = upstream.and_then(|upstream| upstream.peer.as_ref());
        let mut labels = peer.map(|peer| WorkloadLabels::from_spiffe_id(peer.uri())).unwrap_or_default();
        if let Some(workload) = self.endpoint(endpoint).and_then(|endpoint| endpoint.workload.as_deref()) {
            add_workload(&mut labels, workload);
        }
        let (source, destination) = ends(conn, labels);
        let service = self.cluster().service.as_ref().map(|service| ServiceLabels {
            host: Some(service.host.clone()),
            name: Some(service.name.clone()),
            namespace: Some(service.namespace.clone()),
        });
        let security = match (conn.inbound, peer) {
            (true, _) => conn.security,
            (false, Some(_)) => Security::MutualTls,
            (false, None) => Security::Unknown,
        };
        BaseLabels {
            reporter: if conn.inbound { Reporter::Destination } else { Reporter::Source },
            source,
            destination,
            service: service.unwrap_or_default(),
            spoken,
            security,
        }
    }
}

/// Istio's workload metadata of an endpoint: `name;namespace;canonical name;canonical revision;cluster`.
fn add_workload(labels: &mut WorkloadLabels, text: &str) {
    let parts: SmallVec<[Option<Arc<str>>; 5]> =
        text.split(';').map(|part| (!part.is_empty()).then(|| Arc::from(part))).collect();
    let part = |at: usize| parts.get(at).cloned().flatten();
    labels.workload = part(0).or_else(|| labels.workload.take());
    labels.namespace = part(1).or_else(|| labels.namespace.take());
    labels.canonical_service = part(2);
    labels.app = part(2);
    labels.canonical_revision = part(3);
    labels.version = part(3);
    labels.cluster = part(4);
}

/// The address to connect to, for an endpoint that has one.
fn address_of(endpoint: &Endpoint) -> Option<SocketAddr> {
    match &endpoint.address {
        EndpointAddress::Ip(address) => Some(*address),
        EndpointAddress::Dns { host, port } => host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, *port)),
        EndpointAddress::Pipe(_) => None,
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(count) = self.cluster.in_flight.get(self.endpoint) {
            count.set(count.get().saturating_sub(1));
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let gauge: &AtomicU32 = &self.0.shared.requests;
        gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Label sets remembered per cluster; more are found the slow way.
const BASES_MAX: usize = 4096;
