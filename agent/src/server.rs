//! The agent as a whole: `build` opens what it serves on, `run` serves until shutdown.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Extensions;
use identity::TrustBundle;
use runtime::admin::{Admin, AdminParts};
use runtime::clock::Clock;
use runtime::listen::{self, ListenError};
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::serve::{self, Limits, LocalStream};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tonic::service::Routes;

use crate::admin::Pages;
use crate::attest::{Attestor, Launches, Process};
use crate::ca::{Ca, GrpcCa, Report};
use crate::caller::{Desk, STREAMS_MAX, STREAMS_PER_PROCESS_MAX};
use crate::enforced::{Reporter, Streams};
use crate::evidence::Source;
use crate::launch;
use crate::metrics::Numbers;
use crate::node::{JoinError, Node, NodeIdentity};
use crate::rotation::Rotator;
use crate::sds::Sds;
use crate::settings::{Settings, SettingsProblem};
use crate::state::State;
use crate::store;
use crate::sync::Syncer;
use crate::tally::Tally;
use crate::workload_api::WorkloadApi;

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
    /// The CA's roots cannot be read.
    #[error("{}: trust_bundle cannot be read; take it from the CA with `kasbah bundle show`", file.display())]
    TrustBundle {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The CA's roots are no certificates.
    #[error("{}: trust_bundle holds no usable roots", file.display())]
    TrustBundleContent {
        /// Which file.
        file: PathBuf,
    },
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
            Self::TrustBundle { .. } | Self::TrustBundleContent { .. } => "BUNDLE_INVALID",
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
    /// A part of it ended.
    #[error("the part `{part}` ended early; its log says why")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

impl RunError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Build(error) => error.reason(),
            Self::Join(error) => error.reason(),
            Self::PartEnded { .. } => "PART_ENDED",
        }
    }
}

/// An agent with its addresses open.
pub struct Agent {
    settings: Settings,
    logs: LogControl,
    state: Arc<State>,
    launches: Arc<Launches>,
    clock: Clock,
    sockets: Sockets,
    has_run_before: bool,
}

struct Sockets {
    workload_api: UnixListener,
    sds: Option<UnixListener>,
    launch: Option<UnixListener>,
    admin: TcpListener,
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
        let (bundle, has_run_before) = self.load_bundle()?;
        let state = Arc::new(State::new(bundle));
        let launches = Arc::new(Launches::load(self.data_dir.join(LAUNCHES_FILE)));
        let open = |path: &PathBuf, mode| listen::unix(path, mode);
        let sockets = Sockets {
            workload_api: open(&self.workload_api, MODE_EVERYONE)?,
            sds: self.sds.as_ref().map(|path| open(path, MODE_EVERYONE)).transpose()?,
            launch: self.launch.as_ref().map(|path| open(path, MODE_OWNER)).transpose()?,
            admin: listen::tcp(self.admin)?,
        };
        Ok(Agent { settings: self, logs, state, launches, clock: Clock::system(), sockets, has_run_before })
    }

    /// The bundle that the CA last published, or the one of the settings: before the first contact, and when that file
    /// was written later, for then somebody who may has told this node what to trust while it slept. Tells also whether
    /// the agent has run before.
    fn load_bundle(&self) -> Result<(TrustBundle, bool), BuildError> {
        let stored = self.load_stored_bundle();
        let modified = |file: &PathBuf| std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
        let given_later = modified(&self.trust_bundle) > modified(&self.data_dir.join(BUNDLE_FILE));
        match (stored, self.load_given_bundle()) {
            (Some(stored), Ok(given)) if given_later => {
                if given.x509_authorities.iter().any(|root| !stored.x509_authorities.contains(root)) {
                    tracing::warn!(file = %self.trust_bundle.display(), "trust_bundle is newer than what is stored, using it");
                    return Ok((given, true));
                }
                Ok((stored, true))
            }
            (Some(stored), _) => Ok((stored, true)),
            (None, given) => Ok((given?, false)),
        }
    }

    fn load_stored_bundle(&self) -> Option<TrustBundle> {
        let stored = self.data_dir.join(BUNDLE_FILE);
        let document = store::read(&stored, BUNDLE_BYTES_MAX).ok().flatten()?;
        match TrustBundle::parse_spiffe_json(self.trust_domain.clone(), &document) {
            Ok(bundle) if !bundle.x509_authorities.is_empty() => return Some(bundle),
            Ok(_) => tracing::warn!(file = %stored.display(), "stored bundle is empty, using trust_bundle"),
            Err(error) => {
                tracing::warn!(file = %stored.display(), %error, "stored bundle is damaged, using trust_bundle");
            }
        }
        None
    }

    fn load_given_bundle(&self) -> Result<TrustBundle, BuildError> {
        let file = self.trust_bundle.clone();
        let text = match store::read(&file, BUNDLE_BYTES_MAX) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(BuildError::TrustBundle { file, source: io::ErrorKind::NotFound.into() }),
            Err(source) => return Err(BuildError::TrustBundle { file, source }),
        };
        let bundle = TrustBundle::from_pem(self.trust_domain.clone(), &text);
        bundle.ok().filter(|bundle| !bundle.x509_authorities.is_empty()).ok_or(BuildError::TrustBundleContent { file })
    }
}

impl Agent {
    /// The address of the admin pages.
    ///
    /// # Errors
    /// When the system does not know the socket any more.
    pub fn admin_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.admin.local_addr()
    }

    /// Joins if need be and serves until `shutdown`.
    ///
    /// # Errors
    /// When it cannot join, or a part of it fails.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let (settings, state, clock, has_run_before) = (self.settings, self.state, self.clock, self.has_run_before);
        let (readiness, metrics) = (Readiness::new(), Metrics::new());
        let numbers = Numbers::registered(&metrics);
        let own = Arc::new(NodeIdentity::new(state.clone()));
        let ca: Arc<dyn Ca> =
            Arc::new(GrpcCa::new(settings.server.clone(), settings.trust_domain.clone(), own.clone()));
        let (unjoined, unsynced) = (readiness.block("own SVID"), readiness.block("first sync"));
        let enforced = Arc::new(Streams::default());
        let desk = Arc::new(Desk {
            state: state.clone(),
            ca: ca.clone(),
            attestor: Attestor::new(self.launches.clone()),
            clock,
            numbers: numbers.clone(),
            streams: Tally::new(STREAMS_MAX, STREAMS_PER_PROCESS_MAX),
            enforced: enforced.clone(),
            shutdown: shutdown.clone(),
        });
        let pages =
            Pages { desk: desk.clone(), own: own.clone(), launches: self.launches.clone(), settings: settings.clone() };
        let parts = pages.add_to(AdminParts::new("agent", readiness.clone(), metrics, self.logs));
        let endpoint = launch::endpoint_of(&settings.workload_api);
        let mut tasks = TaskSet::new();
        tasks.spawn("admin", Admin::on(self.sockets.admin, parts).run(shutdown.clone()));
        tasks.spawn("readiness", watch_readiness(state.clone(), own.clone(), clock, readiness, shutdown.clone()));
        tasks.spawn("workload api", serve_workloads(self.sockets.workload_api, workload_api(&desk), desk.clone()));
        if let Some(listener) = self.sockets.sds {
            tasks.spawn("sds", serve_workloads(listener, sds(&desk), desk.clone()));
        }
        if let Some(listener) = self.sockets.launch {
            tasks.spawn("launch", launch::serve(listener, self.launches, endpoint, shutdown.clone()));
        }
        let node = Node {
            ca: ca.clone(),
            identity: own.clone(),
            trust_domain: settings.trust_domain.clone(),
            svid_file: settings.data_dir.join(SVID_FILE),
            evidence: Source::of(&settings),
            clock,
            numbers: numbers.clone(),
        };
        if let Err(error) = node.start(&shutdown).await {
            shutdown.trigger();
            tasks.run(&shutdown).await;
            return Err(error.into());
        }
        drop(unjoined);
        let resync = Arc::new(Notify::new());
        let (report, (revision, synced)) = (watch::Sender::new(Report::default()), watch::channel(0));
        let syncer = Syncer {
            ca: ca.clone(),
            state: state.clone(),
            numbers: numbers.clone(),
            interval: settings.sync_interval,
            bundle_file: settings.data_dir.join(BUNDLE_FILE),
            resync: resync.clone(),
            report: report.subscribe(),
            revision,
            unsynced: Some(unsynced),
        };
        let reporter =
            Reporter { state: state.clone(), own, streams: enforced, revision: synced, report, has_run_before };
        tasks.spawn("reporter", reporter.run(shutdown.clone()));
        tasks.spawn("sync", syncer.run(shutdown.clone()));
        tasks.spawn("rotation", Rotator { ca, state, clock, numbers, resync }.run(shutdown.clone()));
        tasks.spawn("own svid", node.keep_fresh(shutdown.clone()));
        match tasks.run(&shutdown).await {
            Some(ended) => Err(RunError::PartEnded { part: ended.name }),
            None => Ok(()),
        }
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
    let connections = Tally::new(CONNECTIONS_MAX, CONNECTIONS_PER_PROCESS_MAX);
    let establish = |stream: LocalStream| {
        let (connections, numbers) = (connections.clone(), numbers.clone());
        async move {
            let mut facts = Extensions::new();
            match Process::of_peer(&stream) {
                Ok(process) => {
                    let Ok(counted) = connections.count(process.pid()) else {
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
            Some((stream, facts))
        }
    };
    let limits = Limits { connections_max: CONNECTIONS_MAX, ..Limits::default() };
    serve::run(listener, establish, router, limits, shutdown).await;
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
        if snapshot.synced && snapshot.missing(now) == 0 {
            (unissued, missing_since) = (None, None);
        } else if snapshot.synced && unissued.is_none() {
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
const BUNDLE_FILE: &str = "bundle.json";
const LAUNCHES_FILE: &str = "launches.json";
const MODE_EVERYONE: u32 = 0o777;
const MODE_OWNER: u32 = 0o600;
const BUNDLE_BYTES_MAX: u64 = 4 << 20;
const UNISSUED: &str = "SVIDs of all entries";
const GRACE: Duration = Duration::from_secs(10);
const READINESS_INTERVAL: Duration = Duration::from_secs(2);
/// Connections of workloads at once, on each socket.
pub(crate) const CONNECTIONS_MAX: usize = 8192;
/// Connections of one process at once, on each socket.
pub(crate) const CONNECTIONS_PER_PROCESS_MAX: usize = 128;

#[cfg(test)]
mod tests;
