//! The agent as a whole: `build` opens what it serves on, `run` serves until shutdown.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use http::Extensions;
use identity::digest;
use runtime::admin::{Admin, AdminParts};
use runtime::clock::{Clock, rfc3339};
use runtime::listen::{self, ListenError};
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::mtls;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::admin::Pages;
use crate::attest::{AttestError, Attestor, Launches, Process, process_of_tcp_peer};
use crate::broker::{self, BrokerSettings};
use crate::ca::{Ca, GrpcCa, Report};
use crate::cache::{self, Cache, CacheError};
use crate::caller::{CALL_LIMITS, DELEGATED_LIMITS, Desk, STREAM_LIMITS};
use crate::enforced::{Reporter, Streams};
use crate::evidence::Source;
use crate::files;
use crate::launch;
use crate::metrics::Numbers;
use crate::node::{JoinError, Node, NodeIdentity};
use crate::rotation::Rotator;
use crate::sds::Sds;
use crate::settings::{Settings, SettingsProblem};
use crate::state::{self, State};
use crate::store;
use crate::sync::Syncer;
use crate::tally::{Tally, TallyLimits};
use crate::trust::{Loaded, Trust, TrustError};
use crate::workload_api::{JwtCache, WorkloadApi};

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The settings cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsProblem),
    /// `data_dir` cannot be used.
    #[error("{}: data_dir cannot be made or used", dir.display())]
    DataDir {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody can be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The offline cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An address cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl BuildError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings(error) => error.reason(),
            Self::DataDir { .. } => "DATA_DIR_UNWRITABLE",
            Self::Trust(error) => error.reason(),
            Self::Cache(error) => error.reason(),
            Self::Listen(error) => error.reason(),
        }
    }
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It cannot join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// It knows nobody to join with.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A part of it ended.
    #[error("the part `{part}` ended early; its log says why")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

impl RunError {
    /// Whether the CA cannot be asked now, so that trying again may help.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Join(error) => error.is_away(),
            Self::Trust(error) => error.is_away(),
            Self::Build(_) | Self::PartEnded { .. } => false,
        }
    }

    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Build(error) => error.reason(),
            Self::Join(error) => error.reason(),
            Self::Trust(error) => error.reason(),
            Self::PartEnded { .. } => "PART_ENDED",
        }
    }
}

/// An agent with its addresses open.
pub struct Agent {
    settings: Settings,
    logs: LogControl,
    state: Arc<State>,
    trust: Arc<Trust>,
    cache: Option<Arc<Cache>>,
    launches: Arc<Launches>,
    clock: Clock,
    admin: TcpListener,
    sockets: Sockets,
    has_run_before: bool,
    /// Ends when what an earlier process held is read and there are random numbers: the generator measures the processor for noise
    /// first, which takes tens of milliseconds.
    prepared: JoinHandle<()>,
}

/// Where processes of this machine ask.
struct Sockets {
    workload_api: UnixListener,
    workload_api_tcp: Option<TcpListener>,
    broker: Option<UnixListener>,
    delegated: Option<UnixListener>,
    sds: Option<UnixListener>,
    launch: Option<UnixListener>,
}

/// What a node became.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// When its SVID ends, RFC 3339.
    pub not_after: String,
}

/// Joins once, without serving: the identity is kept in `data_dir` for the agent that runs later. A node that has joined
/// already stays what it is.
///
/// # Errors
/// When the CA does not let it in, or cannot be asked now.
pub async fn join(settings: &Settings) -> Result<Joined, RunError> {
    settings.validate().map_err(BuildError::from)?;
    let data_dir = &settings.data_dir;
    store::make_dir(data_dir).map_err(|source| BuildError::DataDir { dir: data_dir.clone(), source })?;
    let trust = Arc::new(Trust::of(settings));
    let state = Arc::new(State::new(trust.load().map_err(BuildError::from)?.bundle));
    trust.try_complete(&state).await?;
    let identity = Arc::new(NodeIdentity::new(state.clone()));
    let ca = Arc::new(GrpcCa::new(settings.server.clone(), settings.trust_domain.clone(), identity.clone()));
    let node = node(settings, ca, identity.clone(), trust, Clock::system(), Numbers::default());
    node.try_start().await?;
    let svid = identity.svid().ok_or(JoinError::NoToken)?;
    Ok(Joined { spiffe_id: svid.id().to_string(), not_after: rfc3339(svid.not_after()) })
}

/// Builds and runs an agent.
///
/// # Errors
/// When it cannot be built, cannot join, or a part of it fails.
pub async fn run(settings: Settings, logs: LogControl, shutdown: Shutdown) -> Result<(), RunError> {
    settings.build(logs)?.run(shutdown).await
}

impl Settings {
    /// Reads what is stored and opens the addresses. Needs a tokio runtime.
    ///
    /// # Errors
    /// When something on this machine is not as the settings say.
    pub fn build(self, logs: LogControl) -> Result<Agent, BuildError> {
        self.validate()?;
        runtime::process::raise_open_files();
        store::make_dir(&self.data_dir).map_err(|source| BuildError::DataDir { dir: self.data_dir.clone(), source })?;
        store::sweep(&self.data_dir);
        let clock = Clock::system();
        let trust = Arc::new(Trust::of(&self));
        let Loaded { bundle, has_run_before } = trust.load()?;
        let state = Arc::new(State::new(bundle));
        let cache = Cache::open(&self.cache, &self.data_dir, &self.trust_domain)?.map(Arc::new);
        let stored = cache.as_ref().and_then(|cache| cache.load());
        let kept = stored.map(|(stored, kept)| {
            tracing::info!(entries = stored.entries.len(), svids = kept.len(), "serving from the offline cache");
            state.restore(stored);
            (kept, state.clone())
        });
        let prepared = tokio::task::spawn_blocking(move || {
            if let Some((kept, state)) = kept {
                kept.restore(&state, clock);
            }
            let _ = digest::random::<1>();
        });
        let launches = Arc::new(Launches::load(self.data_dir.join(LAUNCHES_FILE)));
        let broker = self.broker.as_ref();
        let open = |path: &PathBuf, mode| listen::unix(path, mode);
        let sockets = Sockets {
            workload_api: open(&self.workload_api, MODE_EVERYONE)?,
            workload_api_tcp: self.workload_api_tcp.map(listen::tcp).transpose()?,
            broker: broker
                .and_then(|broker| broker.socket.as_ref())
                .map(|path| open(path, MODE_EVERYONE))
                .transpose()?,
            delegated: broker
                .and_then(|broker| broker.delegated_socket.as_ref())
                .map(|path| open(path, MODE_EVERYONE))
                .transpose()?,
            sds: self.sds.as_ref().map(|path| open(path, MODE_EVERYONE)).transpose()?,
            launch: self.launch.as_ref().map(|path| open(path, MODE_OWNER)).transpose()?,
        };
        let admin = listen::tcp(self.admin)?;
        Ok(Agent {
            settings: self,
            logs,
            state,
            trust,
            cache,
            launches,
            clock,
            admin,
            sockets,
            has_run_before,
            prepared,
        })
    }
}

impl Agent {
    /// The address of the admin pages.
    ///
    /// # Errors
    /// When the system does not know the socket any more.
    pub fn admin_addr(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Joins if need be and serves until `shutdown`.
    ///
    /// # Errors
    /// When it cannot join, or a part of it fails.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let (readiness, metrics) = (Readiness::new(), Metrics::new());
        let numbers = Numbers::registered(&metrics);
        let own = Arc::new(NodeIdentity::new(self.state.clone()));
        let Settings { server, trust_domain, .. } = &self.settings;
        let ca: Arc<dyn Ca> = Arc::new(GrpcCa::new(server.clone(), trust_domain.clone(), own.clone()));
        let desk = self.desk(&ca, &numbers, &shutdown);
        let (settings, state, clock, has_run_before) = (self.settings, self.state, self.clock, self.has_run_before);
        let (unjoined, unsynced) = (readiness.block("own SVID"), readiness.block("first sync"));
        // What an earlier process kept is as good as a sync until it ends.
        let unsynced = (!state.current().warm).then_some(unsynced);
        let pages =
            Pages { desk: desk.clone(), own: own.clone(), launches: self.launches.clone(), settings: settings.clone() };
        let parts = pages.add_to(AdminParts::new("agent", readiness.clone(), metrics, self.logs));
        let mut tasks = TaskSet::new();
        tasks.spawn("admin", Admin::on(self.admin, parts).run(shutdown.clone()));
        tasks.spawn("readiness", watch_readiness(state.clone(), own.clone(), clock, readiness, shutdown.clone()));
        tasks.spawn("expiry", state::expire(state.clone(), clock, shutdown.clone()));
        if let Some(cache) = self.cache {
            tasks.spawn("cache", cache::keep(cache, state.clone(), numbers.clone(), shutdown.clone()));
        }
        spawn_local_apis(&mut tasks, self.sockets, &settings, self.launches, &own, &desk);
        // Workloads are served meanwhile.
        let _ = self.prepared.await;
        for settings in settings.files.clone() {
            let keeper =
                files::Keeper { settings, state: state.clone(), ca: ca.clone(), clock, numbers: numbers.clone() };
            tasks.spawn("files", keeper.run(shutdown.clone()));
        }
        let node = node(&settings, ca.clone(), own.clone(), self.trust.clone(), clock, numbers.clone());
        let trusting = self.trust.complete(&state, &shutdown).await.map_err(RunError::from);
        let started = match trusting {
            Ok(()) => node.start(&shutdown).await.map_err(RunError::from),
            refused => refused,
        };
        if let Err(error) = started {
            shutdown.trigger();
            tasks.run(&shutdown).await;
            return Err(error);
        }
        drop(unjoined);
        let (report, (revision, synced)) = (watch::Sender::new(Report::default()), watch::channel(0));
        let resync = Arc::new(Notify::new());
        let syncer = Syncer {
            ca: ca.clone(),
            state: state.clone(),
            own: own.clone(),
            numbers: numbers.clone(),
            interval: settings.sync_interval,
            trust: self.trust.clone(),
            resync: resync.clone(),
            report: report.subscribe(),
            revision,
            unsynced,
            unkept: false,
        };
        let (streams, rotated) = (desk.enforced.clone(), state.clone());
        let reporter = Reporter { state, own, streams, revision: synced, report, has_run_before };
        tasks.spawn("reporter", reporter.run(shutdown.clone()));
        tasks.spawn("sync", syncer.run(shutdown.clone()));
        tasks.spawn("rotation", Rotator { ca, state: rotated, clock, numbers, resync }.run(shutdown.clone()));
        tasks.spawn("own svid", node.keep_fresh(shutdown.clone()));
        match tasks.run(&shutdown).await {
            Some(ended) => Err(RunError::PartEnded { part: ended.name }),
            None => Ok(()),
        }
    }

    /// What serving workloads needs.
    fn desk(&self, ca: &Arc<dyn Ca>, numbers: &Numbers, shutdown: &Shutdown) -> Arc<Desk> {
        Arc::new(Desk {
            state: self.state.clone(),
            ca: ca.clone(),
            attestor: Attestor::new(self.launches.clone(), self.settings.kubelet.clone()),
            clock: self.clock,
            numbers: numbers.clone(),
            streams: Tally::new(TallyLimits { per_process: self.settings.streams_per_process_max, ..STREAM_LIMITS }),
            calls: Tally::new(CALL_LIMITS),
            delegated: Tally::new(DELEGATED_LIMITS),
            jwts: JwtCache::default(),
            enforced: Arc::new(Streams::default()),
            shutdown: shutdown.clone(),
        })
    }
}

fn node(
    settings: &Settings,
    ca: Arc<dyn Ca>,
    identity: Arc<NodeIdentity>,
    trust: Arc<Trust>,
    clock: Clock,
    numbers: Numbers,
) -> Node {
    Node {
        ca,
        identity,
        trust_domain: settings.trust_domain.clone(),
        svid_file: settings.data_dir.join(SVID_FILE),
        evidence: Source::of(settings),
        trust,
        clock,
        numbers,
        unstored: AtomicBool::default(),
    }
}

fn spawn_local_apis(
    tasks: &mut TaskSet,
    sockets: Sockets,
    settings: &Settings,
    launches: Arc<Launches>,
    own: &Arc<NodeIdentity>,
    desk: &Arc<Desk>,
) {
    tasks.spawn("workload api", serve_workloads(sockets.workload_api, workload_api(desk), desk.clone()));
    if let Some(listener) = sockets.sds {
        tasks.spawn("sds", serve_workloads(listener, sds(desk), desk.clone()));
    }
    if let Some(listener) = sockets.workload_api_tcp {
        tasks.spawn("workload api tcp", serve_tcp_workloads(listener, workload_api(desk), desk.clone()));
    }
    if let (Some(broker), Some(listener)) = (&settings.broker, sockets.broker) {
        tasks.spawn("broker", serve_brokers(listener, broker.clone(), own.clone(), desk.clone()));
    }
    if let (Some(broker), Some(listener)) = (&settings.broker, sockets.delegated) {
        tasks.spawn("delegated identity", serve_workloads(listener, broker::delegated(desk, broker), desk.clone()));
    }
    if let Some(listener) = sockets.launch {
        let endpoint = launch::endpoint_of(&settings.workload_api);
        tasks.spawn("launch", launch::serve(listener, launches, endpoint, desk.shutdown.clone()));
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("settings", &self.settings).finish_non_exhaustive()
    }
}

pub(crate) fn workload_api(desk: &Arc<Desk>) -> Router {
    Routes::new(WorkloadApi::server(desk.clone())).prepare().into_axum_router()
}

pub(crate) fn sds(desk: &Arc<Desk>) -> Router {
    Routes::new(Sds::server(desk.clone())).prepare().into_axum_router()
}

/// Serves a Unix socket to any process of this machine; requests carry the [`Process`] that connected.
pub(crate) async fn serve_workloads(listener: UnixListener, router: Router, desk: Arc<Desk>) {
    let (shutdown, numbers) = (desk.shutdown.clone(), desk.numbers.clone());
    drop(desk);
    let connections = Tally::new(CONNECTION_LIMITS);
    let establish = |stream: UnixStream| {
        let (connections, numbers) = (connections.clone(), numbers.clone());
        async move {
            let facts = facts_of(Process::of_peer(&stream), &connections, &numbers)?;
            Some((stream, facts))
        }
    };
    serve::grpc(listener, establish, router, LIMITS, shutdown).await;
}

/// The same for a TCP address of the loopback.
pub(crate) async fn serve_tcp_workloads(listener: TcpListener, router: Router, desk: Arc<Desk>) {
    let (shutdown, numbers) = (desk.shutdown.clone(), desk.numbers.clone());
    drop(desk);
    let connections = Tally::new(CONNECTION_LIMITS);
    let establish = |(stream, remote): (TcpStream, SocketAddr)| {
        let (connections, numbers) = (connections.clone(), numbers.clone());
        async move {
            let local = stream.local_addr().ok()?;
            // Looking through all processes takes long enough to leave this thread.
            let found = tokio::task::spawn_blocking(move || process_of_tcp_peer(local, remote)).await;
            let facts = facts_of(found.unwrap_or(Err(AttestError::Gone)), &connections, &numbers)?;
            Some((stream, facts))
        }
    };
    serve::grpc(listener, establish, router, LIMITS, shutdown).await;
}

/// What requests of a connection carry; `None` when its process has too many.
fn facts_of(process: Result<Process, AttestError>, connections: &Tally, numbers: &Numbers) -> Option<Extensions> {
    let mut facts = Extensions::new();
    match process {
        Ok(process) => {
            let Ok(counted) = connections.count(process.pid(), process.uid()) else {
                numbers.refused("TOO_MANY_CONNECTIONS");
                tracing::warn!(pid = process.pid(), reason = "TOO_MANY_CONNECTIONS", "workload refused");
                return None;
            };
            // The count rides with the connection's facts and ends with them.
            facts.insert(Arc::new(counted));
            facts.insert(Arc::new(process));
        }
        Err(error) => {
            // The connection stays, so that its calls are told.
            numbers.not_attested(error.reason());
            tracing::warn!(reason = error.reason(), %error, "peer process not identified");
        }
    }
    Some(facts)
}

async fn serve_brokers(listener: UnixListener, settings: BrokerSettings, own: Arc<NodeIdentity>, desk: Arc<Desk>) {
    let (router, shutdown) = (broker::api(&desk, &settings), desk.shutdown.clone());
    drop(desk);
    let served = mtls::serve_local(listener, own, settings.peers(), router, Limits::default(), shutdown).await;
    if let Err(error) = served {
        tracing::error!(%error, reason = error.reason(), "the Broker API cannot be served");
    }
}

/// Ready when all authorized entries have SVIDs, and the own one is valid. An entry that is new gets a moment's grace, so
/// that registering a workload does not take the node out of service.
async fn watch_readiness(
    state: Arc<State>,
    own: Arc<NodeIdentity>,
    clock: Clock,
    readiness: Readiness,
    shutdown: Shutdown,
) {
    let mut changes = state.subscribe();
    let mut unissued: Option<ReadyGuard> = Some(readiness.block(UNISSUED));
    let mut expired: Option<ReadyGuard> = None;
    let mut missing_since = None;
    loop {
        let (snapshot, now) = (changes.borrow_and_update().clone(), clock.now());
        if snapshot.is_known() && snapshot.missing(now) == 0 {
            (unissued, missing_since) = (None, None);
        } else if snapshot.is_known() && unissued.is_none() {
            let since = *missing_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() >= GRACE {
                unissued = Some(readiness.block(UNISSUED));
            }
        }
        let invalid = own.svid().is_some_and(|svid| svid.not_after() <= now);
        match (invalid, expired.is_some()) {
            (true, false) => expired = Some(readiness.block("own SVID expired")),
            (false, true) => expired = None,
            _ => (),
        }
        tokio::select! {
            () = shutdown.requested() => return,
            _ = changes.changed() => (),
            () = tokio::time::sleep(READINESS_INTERVAL) => (),
        }
    }
}

const SVID_FILE: &str = "agent.pem";
const LAUNCHES_FILE: &str = "launches.json";
const MODE_EVERYONE: u32 = 0o777;
const MODE_OWNER: u32 = 0o600;
const UNISSUED: &str = "SVIDs of all entries";
const GRACE: Duration = Duration::from_secs(10);
const READINESS_INTERVAL: Duration = Duration::from_secs(2);
/// Connections of workloads at once, on each socket.
pub(crate) const CONNECTIONS_MAX: usize = 16_384;
/// Connections of one user's processes at once, on each socket: the others keep room.
pub(crate) const CONNECTIONS_PER_USER_MAX: usize = 12_288;
/// Connections of one process at once, on each socket.
pub(crate) const CONNECTIONS_PER_PROCESS_MAX: usize = 128;
/// Of requests, several of the longest tokens fit at once: a process may have many connections.
const LIMITS: Limits = Limits { connections_max: CONNECTIONS_MAX, unanswered_max: 2 << 20, ..Limits::DEFAULT };
const CONNECTION_LIMITS: TallyLimits = TallyLimits {
    total: CONNECTIONS_MAX,
    per_user: CONNECTIONS_PER_USER_MAX,
    per_process: CONNECTIONS_PER_PROCESS_MAX,
};

#[cfg(test)]
mod tests;
