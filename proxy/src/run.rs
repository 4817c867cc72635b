//! Putting a proxy together and running it until shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use identity::SpiffeId;
use identity::tls::PeerRule;
use runtime::admin::{Admin, AdminParts};
use runtime::clock::Clock;
use runtime::listen::ListenError;
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::admin;
use crate::config::Assembler;
use crate::control::Control;
use crate::listen::Listeners;
use crate::obs::counters::Counters;
use crate::process::Process;
use crate::settings::{Settings, SettingsError};
use crate::tls::files::CertificateFiles;
use crate::tls::own::OwnIdentity;
use crate::worker::{Threads, Workers};
use crate::xds::ads::{Ads, Connect};
use crate::xds::sds::{Sds, chain};

/// Why a proxy does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The settings do not make a proxy.
    #[error("the settings are refused")]
    Settings(#[from] SettingsError),
    /// The admin address cannot be opened.
    #[error("the admin address cannot be opened")]
    Admin(#[from] ListenError),
    /// Threads cannot be made.
    #[error("worker threads cannot be started")]
    Threads(#[source] io::Error),
    /// A part of the proxy ended by itself.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

impl RunError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings(error) => error.reason(),
            Self::Admin(error) => error.reason(),
            Self::Threads(_) => "THREADS_UNAVAILABLE",
            Self::Ended(_) => "PART_ENDED",
        }
    }
}

/// A proxy that is ready to run: its admin address is open, its workers wait for a configuration.
pub struct Proxy {
    settings: Settings,
    process: Arc<Process>,
    identity: Arc<OwnIdentity>,
    files: Arc<CertificateFiles>,
    workers: Workers,
    threads: Threads,
    control: Control,
    readiness: Readiness,
    admin: Admin,
}

/// Builds a proxy and runs it until `shutdown`.
///
/// # Errors
/// When it cannot be built, or a part of it ends by itself.
pub async fn run(settings: Settings, logs: LogControl, shutdown: Shutdown) -> Result<(), RunError> {
    Proxy::build(settings, logs)?.run(shutdown).await
}

impl Proxy {
    /// Opens the admin address and starts the workers. Needs a runtime.
    ///
    /// # Errors
    /// When the settings are refused or the machine does not permit it.
    pub fn build(settings: Settings, logs: LogControl) -> Result<Self, RunError> {
        settings.validate()?;
        let counters = Arc::new(Counters::default());
        let identity = Arc::new(OwnIdentity::new(counters.clone()));
        let process = Process::new(settings.clone(), identity.clone(), counters.clone()).map_err(RunError::Threads)?;
        let process = Arc::new(process);
        let (workers, threads) = Workers::start(&process, settings.worker_count()).map_err(RunError::Threads)?;
        let files = Arc::new(CertificateFiles::default());
        let readiness = Readiness::new();
        let listeners = Listeners::new(workers.clone(), counters.clone(), settings.connections_max);
        let assembler = Assembler::new(identity.clone(), files.clone());
        let control = Control::new(assembler, listeners, workers.clone(), counters, readiness.clone());
        let parts = admin_parts(&settings, &process, &files, &workers, &control, &readiness, logs);
        let admin = Admin::build(settings.admin, parts)?;
        Ok(Self { settings, process, identity, files, workers, threads, control, readiness, admin })
    }

    /// Where the admin address is.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn admin_addr(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// # Errors
    /// When a part ends by itself.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let node = self.settings.node.to_proto();
        let trust_domain = self.settings.own_trust_domain()?;
        let peer = self.settings.discovery_peer()?;
        let mut tasks = TaskSet::new();
        if let Some(socket) = self.settings.sds_path() {
            let counters = self.process.counters.clone();
            let sds = Sds { socket, node: node.clone(), trust_domain, identity: self.identity.clone(), counters };
            tasks.spawn("sds", sds.run(shutdown.clone()));
            let guard = self.readiness.block("own identity");
            tasks.spawn(
                "identity",
                watch_identity(
                    self.identity.clone(),
                    self.workers.clone(),
                    self.readiness.clone(),
                    guard,
                    shutdown.clone(),
                ),
            );
        }
        let connect =
            ToDiscovery { address: self.settings.discovery.address.clone(), peer, identity: self.identity.clone() };
        let ads = Ads::new(
            connect,
            self.control.clone(),
            self.control.store(),
            node,
            self.settings.discovery.mode,
            self.process.counters.clone(),
        );
        tasks.spawn("ads", ads.run(shutdown.clone()));
        tasks.spawn("control", self.control.clone().run(shutdown.clone()));
        tasks.spawn("certificate files", self.files.clone().run(shutdown.clone()));
        let admin_until = Shutdown::new();
        let mut admin = TaskSet::new();
        admin.spawn("admin", self.admin.run(admin_until.clone()));
        tracing::info!(node = self.settings.node.id, workers = self.settings.worker_count(), "proxy runs");
        let ended = tokio::select! {
            () = shutdown.requested() => None,
            ended = tasks.finished() => ended.filter(|_| !shutdown.is_requested()),
        };
        let _draining = self.readiness.block("draining");
        tracing::info!(within = ?self.settings.drain, "proxy drains");
        self.control.close().await;
        self.workers.drain(self.settings.drain);
        shutdown.trigger();
        finish(self.threads, &self.process).await;
        admin_until.trigger();
        tasks.abort().await;
        admin.abort().await;
        ended.map_or(Ok(()), |ended| Err(RunError::Ended(ended.name)))
    }
}

/// Waits for the workers and for the last log lines.
async fn finish(threads: Threads, process: &Arc<Process>) {
    let process = process.clone();
    let joined = tokio::task::spawn_blocking(move || {
        threads.join();
        process.logs.finish();
    });
    if joined.await.is_err() {
        tracing::error!("the workers could not be waited for");
    }
}

fn admin_parts(
    settings: &Settings,
    process: &Arc<Process>,
    files: &Arc<CertificateFiles>,
    workers: &Workers,
    control: &Control,
    readiness: &Readiness,
    logs: LogControl,
) -> AdminParts {
    let metrics = Metrics::new();
    let of_metrics = process.clone();
    metrics.add_source(Arc::new(move |out| of_metrics.render_metrics(out)));
    let (of_dump, of_resources, of_status) = (control.clone(), control.clone(), control.clone());
    let (of_node, of_keys, of_rests) = (process.clone(), process.clone(), process.counters.rests.clone());
    let (of_certs, files, workers) = (process.clone(), files.clone(), workers.clone());
    let (kind, node, identity) = (settings.kind, settings.node.id.clone(), process.identity.clone());
    AdminParts::new("proxy", readiness.clone(), metrics, logs)
        .config_dump(move || admin::config_dump(&of_dump))
        .page("/resources", move || admin::resources(&of_node, &of_resources))
        .page("/connections", move || of_rests.page())
        .certs(move || admin::certs(&of_certs, &files))
        .status(move || {
            json!({
                "kind": kind,
                "node": node,
                "spiffe_id": identity.svid_now().map(|svid| svid.id().to_string()),
                "generation": of_status.current().generation,
                "connections": workers.connections(),
                "open": of_status.open_addresses(),
                "jwks": of_keys.keys.status(),
            })
        })
}

/// The way to discovery: mTLS with our own identity, or plain text where no peer is named.
struct ToDiscovery {
    address: String,
    peer: Option<SpiffeId>,
    identity: Arc<OwnIdentity>,
}

impl Connect for ToDiscovery {
    async fn connect(&mut self) -> Result<Channel, String> {
        match &self.peer {
            Some(peer) => {
                if !self.identity.is_complete() {
                    self.identity.wait_complete().await;
                }
                Ok(runtime::mtls::channel(&self.address, self.identity.clone(), PeerRule::exactly(peer.clone())))
            }
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).map_err(|e| chain(&e))?;
                endpoint.http2_keep_alive_interval(KEEP_ALIVE).connect().await.map_err(|e| chain(&e))
            }
        }
    }
}

/// Lifts the block when the identity is there, sets it again when the SVID has run out, and has peers judged anew when
/// trust changes.
async fn watch_identity(
    identity: Arc<OwnIdentity>,
    workers: Workers,
    readiness: Readiness,
    guard: ReadyGuard,
    shutdown: Shutdown,
) {
    let mut guard = Some(guard);
    let clock = Clock::system();
    let mut changes = identity.changes();
    loop {
        let not_after = identity.svid_now().map(|svid| svid.not_after()).filter(|_| identity.is_complete());
        match not_after {
            Some(end) if end > clock.now() => guard = None,
            Some(_) if guard.is_none() => {
                tracing::error!(reason = "SVID_EXPIRED", "the SVID has expired and the agent sent no new one");
                guard = Some(readiness.block("own identity: SVID expired"));
            }
            _ => {}
        }
        workers.judge();
        let expiry = not_after.filter(|end| *end > clock.now());
        tokio::select! {
            () = shutdown.requested() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(clock, expiry) => {}
        }
    }
}

async fn sleep_until(clock: Clock, moment: Option<SystemTime>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(20);
