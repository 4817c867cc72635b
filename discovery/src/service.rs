//! The running discovery: watches the folder, publishes generations, serves xDS and the admin pages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Json, Router};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use identity::TrustDomain;
use identity::summary::CertificateSummary;
use identity::tls::{ClientAuth, PeerRule, Snapshot, TlsError};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use runtime::admin::{Admin, AdminParts};
use runtime::listen::{self, ListenError};
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::mtls;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use runtime::workload_api::{self, IdentitySource};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::ads::{AdsServer, Generation, Hub};
use crate::compile::Mesh;
use crate::documents::{Document, Finding};
use crate::folder::Folder;
use crate::settings::Settings;

/// Why discovery does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// An address cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `xds_tls` needs an identity.
    #[error("`xds_tls` needs `workload_api`: the certificate comes from the agent")]
    NoWorkloadApi,
    /// No TLS configuration can be made.
    #[error("xDS over TLS cannot be served")]
    Tls(#[from] TlsError),
    /// A part ended before it was asked to.
    #[error("the part `{part}` ended early")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}

impl RunError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen(error) => error.reason(),
            Self::NoWorkloadApi => "SETTINGS_INVALID",
            Self::Tls(error) => error.reason(),
            Self::Ended { .. } => "PART_ENDED",
        }
    }
}

/// Runs discovery until `shutdown`.
///
/// # Errors
/// When an address or the identity source does not allow it, or a part of it ended early.
pub async fn run(settings: Settings, logs: LogControl, shutdown: Shutdown) -> Result<(), RunError> {
    let plain = settings.xds.map(listen::tcp).transpose()?;
    let tls = settings.xds_tls.map(listen::tcp).transpose()?;
    let (readiness, metrics) = (Readiness::new(), Metrics::new());
    let watcher = Watcher::start(&settings, &metrics);
    let hub = watcher.hub.clone();
    let mut tasks = TaskSet::new();
    let mut source = None;
    if let Some(listener) = tls {
        let socket = settings.workload_api.clone().ok_or(RunError::NoWorkloadApi)?;
        let own = workload_api::watch(socket, shutdown.clone());
        source = Some(own.clone());
        let guard = readiness.block("own identity");
        tasks.spawn("own identity", release_when_known(own.clone(), guard, shutdown.clone()));
        let peers = PeerRule::TrustDomain(settings.trust_domain.clone());
        tasks.spawn("xds_tls", serve_tls(listener, own, peers, hub.clone(), shutdown.clone()));
    }
    if let Some(listener) = plain {
        let router = router(AdsServer::new(hub.clone(), false));
        tasks.spawn("xds", serve::tcp(listener, router, LIMITS, shutdown.clone()));
    }
    let parts = pages(AdminParts::new("discovery", readiness, metrics, logs), &watcher.board, &hub, source);
    tasks.spawn("admin", Admin::build(settings.admin, parts)?.run(shutdown.clone()));
    tasks.spawn("folder", watcher.run(settings.debounce, shutdown.clone()));
    tracing::info!(xds = ?settings.xds, xds_tls = ?settings.xds_tls, admin = %settings.admin, "discovery serves");
    match tasks.run(&shutdown).await {
        Some(ended) => Err(RunError::Ended { part: ended.name }),
        None => Ok(()),
    }
}

fn router(server: AdsServer) -> Router {
    Routes::new(AggregatedDiscoveryServiceServer::new(server)).prepare().into_axum_router()
}

async fn serve_tls(listener: TcpListener, source: IdentitySource, peers: PeerRule, hub: Hub, shutdown: Shutdown) {
    let source: mtls::Source = Arc::new(source);
    let router = router(AdsServer::new(hub, true));
    if let Err(error) = mtls::serve(listener, source, ClientAuth::Required, peers, router, LIMITS, shutdown).await {
        tracing::error!(reason = error.reason(), %error, "xDS over TLS cannot be served");
    }
}

async fn release_when_known(source: IdentitySource, guard: ReadyGuard, shutdown: Shutdown) {
    shutdown.unless(source.wait_ready()).await;
    drop(guard);
    shutdown.requested().await;
}

/// What the admin pages show of the documents.
#[derive(Debug, Default)]
struct Board {
    documents: Vec<Document>,
    findings: Vec<Finding>,
}

type SharedBoard = Arc<Mutex<Board>>;

fn pages(parts: AdminParts, board: &SharedBoard, hub: &Hub, source: Option<IdentitySource>) -> AdminParts {
    let (for_dump, for_findings, for_status) = (Arc::clone(board), Arc::clone(board), Arc::clone(board));
    let (hub_dump, hub_status, hub_sync) = (hub.clone(), hub.clone(), hub.clone());
    parts
        .config_dump(move || {
            let documents: Vec<Value> = locked(&for_dump).documents.iter().map(Document::to_json).collect();
            json!({"generation": hub_dump.current().number, "documents": documents})
        })
        .certs(move || certs(source.as_ref()))
        .status(move || {
            let refused = locked(&for_status).findings.iter().filter(|finding| finding.is_error()).count();
            json!({"documents_refused": refused, "xds": hub_status.status()})
        })
        .routes(
            Router::new()
                .route(
                    "/findings",
                    get(|| async move {
                        let findings = &locked(&for_findings).findings;
                        Json(Value::Array(findings.iter().map(Finding::to_json).collect()))
                    }),
                )
                .route("/syncz", get(|| async move { Json(hub_sync.status()) })),
        )
}

fn certs(source: Option<&IdentitySource>) -> Value {
    let Some(svid) = source.and_then(Snapshot::svid) else { return json!({"certificates": []}) };
    let summaries: Vec<Value> =
        svid.chain().filter_map(|der| serde_json::to_value(CertificateSummary::decode(der).ok()?).ok()).collect();
    json!({"certificates": summaries})
}

/// Follows the folder and publishes what it says.
struct Watcher {
    folder: Folder,
    trust_domain: TrustDomain,
    hub: Hub,
    board: SharedBoard,
    metrics: WatchMetrics,
}

#[derive(Clone, Debug, Default)]
struct WatchMetrics {
    accepted: Gauge,
    refused: Gauge,
    changes: Counter,
}

impl Watcher {
    /// Takes the folder in once, so that the first client gets the whole.
    fn start(settings: &Settings, metrics: &Metrics) -> Self {
        let own = WatchMetrics::default();
        metrics.register(|registry| {
            registry.register("galley_documents_accepted", "Documents that serve", own.accepted.clone());
            registry.register("galley_documents_refused", "Findings that refuse a document", own.refused.clone());
            registry.register("pilot_push_triggers", "Changes of the documents taken in", own.changes.clone());
        });
        let mut folder = Folder::new(&settings.config_dir);
        folder.refresh();
        let mesh = Mesh::build(&folder.documents(), &settings.trust_domain);
        let hub = Hub::new(Generation::new(1, mesh), metrics);
        let trust_domain = settings.trust_domain.clone();
        let watcher = Self { folder, trust_domain, hub, board: SharedBoard::default(), metrics: own };
        watcher.show();
        watcher
    }

    /// Looks at the folder again and again; a change is taken in once the folder was quiet for `debounce`.
    async fn run(mut self, debounce: Duration, shutdown: Shutdown) {
        let poll = debounce.clamp(POLL_MIN, POLL_MAX);
        let mut changed_since: Option<Instant> = None;
        let mut fingerprint = self.folder.fingerprint();
        loop {
            if shutdown.unless(tokio::time::sleep(poll)).await.is_none() {
                return;
            }
            let now = self.folder.fingerprint();
            let quiet = now == fingerprint;
            fingerprint = now;
            match changed_since {
                None if self.folder.is_changed() => changed_since = Some(Instant::now()),
                Some(since) if quiet || since.elapsed() > DEBOUNCE_MAX => {
                    changed_since = None;
                    self.take_in();
                }
                _ => {}
            }
        }
    }

    fn take_in(&mut self) {
        if !self.folder.refresh() {
            return;
        }
        let began = Instant::now();
        let documents = self.folder.documents();
        let unchanged = {
            let board = locked(&self.board);
            board.documents.len() == documents.len()
                && board.documents.iter().zip(&documents).all(|(old, new)| old.same_content(new))
        };
        if !unchanged {
            self.metrics.changes.inc();
            let generation = self.hub.publish(Mesh::build(&documents, &self.trust_domain));
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(generation, documents = documents.len(), took_ms, "a new configuration serves");
        }
        self.show();
    }

    /// Brings log, metrics and admin pages up to date.
    fn show(&self) {
        let (documents, findings) = (self.folder.documents(), self.folder.findings());
        let mut board = locked(&self.board);
        for finding in findings.iter().filter(|finding| !board.findings.contains(finding)) {
            let (file, line, column) = (finding.file.display(), finding.line, finding.column);
            let Finding { resource, reason, text, .. } = finding;
            if finding.is_error() {
                tracing::error!(%file, line, column, resource, reason, text, "a document is refused; the last good one keeps serving");
            } else {
                tracing::warn!(%file, line, column, resource, reason, text, "a document has a weakness");
            }
        }
        self.metrics.accepted.set(count(documents.len()));
        self.metrics.refused.set(count(findings.iter().filter(|finding| finding.is_error()).count()));
        *board = Board { documents, findings };
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The board is replaced in one step, so a holder that panicked left it whole.
fn locked(board: &SharedBoard) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Proxies keep one connection for as long as they live.
const LIMITS: Limits = Limits { connections_max: crate::ads::CLIENTS_MAX, ..Limits::DEFAULT };
const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(200);
/// A folder that is never quiet is taken in after this long all the same.
const DEBOUNCE_MAX: Duration = Duration::from_secs(10);
