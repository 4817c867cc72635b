//! What one worker holds: its copy of the configuration, with the states that hang on it.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use routing::access_log::{AccessLog, LogSink};
use routing::hcm::HttpConnectionManager;
use routing::tcp::TcpProxy;
use tokio::time::Instant;

use super::conns::Conns;
use super::random::Random;
use crate::config::Config;
use crate::http::hcm::{HcmState, LogOutput};
use crate::http::jwt::TokenCache;
use crate::obs::labels::{Security, WorkloadLabels};
use crate::obs::log::{LogBuffer, Sink};
use crate::obs::shard::ShardWriter;
use crate::process::Process;
use crate::upstream::cluster::ClusterState;
use crate::upstream::live::Live;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) process: Arc<Process>,
    pub(crate) conns: Rc<Conns>,
    /// Open connections to mesh endpoints.
    pub(crate) upstreams: Rc<Live>,
    pub(crate) series: ShardWriter,
    pub(crate) random: Random,
    pub(crate) tokens: TokenCache,
    config: RefCell<Rc<WorkerConfig>>,
    buffers: RefCell<BTreeMap<Sink, Arc<LogBuffer>>>,
    own_log: OnceCell<Option<Arc<AccessLog>>>,
    own_labels: RefCell<WorkloadLabels>,
    peers: RefCell<HashMap<(WorkloadLabels, bool, Security), u64>>,
}

/// A configuration with this worker's states.
#[derive(Debug)]
pub(crate) struct WorkerConfig {
    pub(crate) config: Arc<Config>,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterState>>>,
    managers: RefCell<HashMap<usize, Rc<HcmState>>>,
    tcp: RefCell<HashMap<usize, (Arc<TcpProxy>, TcpLogs)>>,
}

/// The access logs of a TCP proxy.
type TcpLogs = Rc<[LogOutput]>;

impl Worker {
    pub(crate) fn new(process: Arc<Process>) -> Rc<Self> {
        let config = WorkerConfig {
            config: Arc::default(),
            clusters: RefCell::default(),
            managers: RefCell::default(),
            tcp: RefCell::default(),
        };
        Rc::new(Self {
            conns: Rc::new(Conns::new(process.counters.clone())),
            upstreams: Rc::default(),
            series: ShardWriter::new(process.new_shard()),
            random: Random::new(),
            tokens: TokenCache::default(),
            config: RefCell::new(Rc::new(config)),
            buffers: RefCell::default(),
            own_log: OnceCell::new(),
            own_labels: RefCell::new(process.own_labels.clone()),
            peers: RefCell::default(),
            process,
        })
    }

    /// The configuration of now.
    pub(crate) fn config(&self) -> Rc<WorkerConfig> {
        self.config.borrow().clone()
    }

    /// Serves by `config` from now on.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        let next = Rc::new(self.config().follow(config));
        *self.config.borrow_mut() = next.clone();
        self.conns
            .drain_where(|of| next.config.listeners.get(&of.listener.name).is_none_or(|now| !Arc::ptr_eq(now, of)));
    }

    /// Judges the peers of all connections by the bundles and revocation lists of now, and leaves those that rest on a root
    /// which is being replaced.
    pub(crate) fn judge(&self) {
        let (bundles, now) = (self.process.identity.bundles_now(), identity::unix_time(runtime::clock::now()));
        let stream_drain = self.process.settings.stream_drain;
        self.conns.judge(&bundles, now, stream_drain);
        self.upstreams.judge(&bundles, now, stream_drain, &self.process.counters);
        self.sweep();
    }

    /// Looks after connections, downstream and upstream.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.leave();
        self.conns.sweep(now);
        self.upstreams.sweep(now);
        let config = self.config();
        for cluster in config.clusters.borrow().values() {
            cluster.sweep(now);
        }
    }

    fn leave(&self) {
        let left = self.process.counters.rests.left();
        if !left.is_empty() {
            self.conns.leave(&left, self.process.settings.stream_drain);
            self.upstreams.leave(&left, self.process.settings.stream_drain, &self.process.counters);
        }
    }

    /// The buffer of this worker for a sink.
    pub(crate) fn log_buffer(&self, sink: Sink) -> Arc<LogBuffer> {
        let mut buffers = self.buffers.borrow_mut();
        buffers.entry(sink.clone()).or_insert_with(|| self.process.logs.buffer(sink)).clone()
    }

    /// Where the `/dev/stdout` of a configuration leads; nowhere when the settings want no access log.
    pub(crate) fn stdout_sink(&self) -> Option<Sink> {
        let to = self.process.settings.access_log.as_str();
        (to != "none").then(|| Sink::of(to))
    }

    /// The log for what the configuration names no log for.
    pub(crate) fn own_log(&self) -> Option<&Arc<AccessLog>> {
        let log = self.own_log.get_or_init(|| {
            self.stdout_sink()?;
            // The default format is ours and well-formed.
            AccessLog::default_text(LogSink::Stdout).ok().map(Arc::new)
        });
        log.as_ref()
    }

    /// A number for what a downstream connection adds to labels. Beyond a bound all peers are one.
    pub(crate) fn labels_key(&self, peer: &WorkloadLabels, inbound: bool, security: Security) -> u64 {
        let mut peers = self.peers.borrow_mut();
        let next = peers.len() as u64;
        if next >= PEERS_MAX {
            return PEERS_MAX;
        }
        *peers.entry((peer.clone(), inbound, security)).or_insert(next)
    }

    /// The labels of the workload beside us, with the principal of our SVID.
    pub(crate) fn own_labels(&self) -> WorkloadLabels {
        let mut labels = self.own_labels.borrow_mut();
        if labels.principal.is_none() {
            labels.principal = self.process.identity.svid_now().map(|svid| svid.id().as_str().into());
        }
        labels.clone()
    }
}

impl WorkerConfig {
    /// The next one, taking over the states that still fit.
    fn follow(&self, config: Arc<Config>) -> Self {
        let mut clusters = HashMap::new();
        for (name, state) in self.clusters.borrow().iter() {
            if let Some(now) = config.clusters.get(name) {
                let same = Arc::ptr_eq(now, &state.config);
                let state = if same { state.clone() } else { ClusterState::new(now.clone(), Some(state)) };
                clusters.insert(name.clone(), state);
            }
        }
        let mut managers = self.managers.borrow().clone();
        // Those that only the table holds serve no connection.
        managers.retain(|_, state| Rc::strong_count(state) > 2);
        for state in managers.values() {
            state.follow(&config);
        }
        Self { config, clusters: RefCell::new(clusters), managers: RefCell::new(managers), tcp: RefCell::default() }
    }

    /// The state of a cluster.
    pub(crate) fn cluster(&self, name: &str) -> Option<Rc<ClusterState>> {
        if let Some(state) = self.clusters.borrow().get(name) {
            return Some(state.clone());
        }
        let (name, config) = self.config.clusters.get_key_value(name)?;
        let state = ClusterState::new(config.clone(), None);
        self.clusters.borrow_mut().insert(name.clone(), state.clone());
        Some(state)
    }

    /// The state of a connection manager.
    pub(crate) fn hcm(&self, worker: &Rc<Worker>, config: &Arc<HttpConnectionManager>) -> Rc<HcmState> {
        // The state holds the `Arc`, so the address stays its own.
        let address = Arc::as_ptr(config) as usize;
        let mut managers = self.managers.borrow_mut();
        let make = || Rc::new(HcmState::new(worker, config.clone(), &self.config));
        managers.entry(address).or_insert_with(make).clone()
    }

    /// The access logs of a TCP proxy.
    pub(crate) fn tcp_logs(&self, worker: &Rc<Worker>, proxy: &Arc<TcpProxy>) -> TcpLogs {
        let make = || (proxy.clone(), LogOutput::all(worker, &proxy.access_logs).into());
        self.tcp.borrow_mut().entry(Arc::as_ptr(proxy) as usize).or_insert_with(make).1.clone()
    }
}

/// Peers that have labels of their own on one worker.
const PEERS_MAX: u64 = 4096;
