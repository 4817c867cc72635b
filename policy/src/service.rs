//! The running policy service: its addresses, its tasks, and what its admin address shows.

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitServiceServer;
use identity::summary::CertificateSummary;
use identity::tls::{ClientAuth, PeerRule, Snapshot, TlsError};
use runtime::admin::{Admin, AdminParts};
use runtime::listen::{self, ListenError};
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::mtls;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::serve::Limits;
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use runtime::workload_api::{self, EndpointError, IdentitySource};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::service::{InterceptorLayer, Routes};
use tonic_health::server::health_reporter;

use crate::access_log::AccessLogs;
use crate::authorize::Authorizer;
use crate::caller::Door;
use crate::metrics::PolicyMetrics;
use crate::rate_limit::RateLimiter;
use crate::rules::RulesError;
use crate::rules_file::{RulesFile, RulesInForce};
use crate::settings::Settings;
use crate::sink::{LogFile, LogSink, LogWriter, SinkError};

/// Runs the service until `shutdown`.
///
/// # Errors
/// When settings, rules or addresses do not allow it, or a part of it ended early.
pub async fn run(settings: Settings, logs: LogControl, shutdown: Shutdown) -> Result<(), RunError> {
    let source = workload_api::watch(settings.endpoint()?, shutdown.clone());
    Policy::build(settings, source, logs).await?.run(shutdown).await
}

/// The service with its addresses open.
#[derive(Debug)]
pub struct Policy {
    door: Door,
    source: IdentitySource,
    grpc: TcpListener,
    admin: Admin,
    rules_file: RulesFile,
    rules: RulesInForce,
    sink: LogSink,
    writer: LogWriter,
    metrics: PolicyMetrics,
    readiness: Readiness,
    no_identity: ReadyGuard,
}

impl Policy {
    /// Reads the rules and opens log and addresses; `source` gives the service's own identity.
    ///
    /// # Errors
    /// When one of them is refused.
    pub async fn build(settings: Settings, source: IdentitySource, logs: LogControl) -> Result<Self, RunError> {
        let (readiness, registry, metrics) = (Readiness::new(), Metrics::new(), PolicyMetrics::default());
        metrics.register(&registry);
        let no_identity = readiness.block(NO_IDENTITY);
        let (rules_file, rules) = RulesFile::open(settings.rules.clone(), metrics.clone())?;
        let log = LogFile {
            path: settings.access_log.clone(),
            bytes_max: settings.access_log_bytes_max,
            files_max: settings.access_log_files_max,
        };
        let (sink, writer) = log.open(metrics.clone()).await?;
        let grpc = listen::tcp(settings.grpc)?;
        let door = Door { trust_domain: settings.trust_domain.clone(), metrics: metrics.clone() };
        let parts = AdminParts::new("policy", readiness.clone(), registry, logs);
        let parts = pages(parts, settings, &rules, &source, &metrics);
        let admin = Admin::build(parts.0, parts.1)?;
        Ok(Self { door, source, grpc, admin, rules_file, rules, sink, writer, metrics, readiness, no_identity })
    }

    /// Where it answers gRPC.
    ///
    /// # Errors
    /// When the system does not know the socket any more.
    pub fn grpc_addr(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where it answers operators.
    ///
    /// # Errors
    /// When the system does not know the socket any more.
    pub fn admin_addr(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `shutdown`; then every log line that was taken is written.
    ///
    /// # Errors
    /// When a part ended before it was asked to.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        if let (Ok(grpc), Ok(admin)) = (self.grpc_addr(), self.admin_addr()) {
            tracing::info!(%grpc, %admin, "policy service serves");
        }
        let routes = self.routes(&shutdown).await;
        let mut tasks = TaskSet::new();
        tasks.spawn("grpc", serve(self.grpc, self.source.clone(), self.door, routes, shutdown.clone()));
        tasks.spawn("admin", self.admin.run(shutdown.clone()));
        tasks.spawn("rules", self.rules_file.run(shutdown.clone()));
        tasks.spawn("readiness", follow_identity(self.source, self.readiness, self.no_identity, shutdown.clone()));
        // The writer ends when the last sink goes, which the gRPC server holds.
        drop(self.sink);
        tasks.spawn("access log", self.writer.run());
        match tasks.run(&shutdown).await {
            Some(ended) => Err(RunError::Ended { part: ended.name }),
            None => Ok(()),
        }
    }

    async fn routes(&self, shutdown: &Shutdown) -> Routes {
        let authorizer =
            AuthorizationServer::new(Authorizer { rules: self.rules.clone(), metrics: self.metrics.clone() });
        let limiter = RateLimitServiceServer::new(RateLimiter::new(self.rules.clone(), self.metrics.clone()));
        let logs = AccessLogServiceServer::new(AccessLogs { sink: self.sink.clone(), shutdown: shutdown.clone() });
        let (health, health_service) = health_reporter();
        health.set_serving::<AuthorizationServer<Authorizer>>().await;
        health.set_serving::<RateLimitServiceServer<RateLimiter>>().await;
        health.set_serving::<AccessLogServiceServer<AccessLogs>>().await;
        Routes::new(authorizer).add_service(limiter).add_service(logs).add_service(health_service)
    }
}

async fn serve(listener: TcpListener, source: IdentitySource, door: Door, routes: Routes, shutdown: Shutdown) {
    let peers = PeerRule::TrustDomain(door.trust_domain.clone());
    let router = routes.prepare().into_axum_router().layer(InterceptorLayer::new(door));
    let source: mtls::Source = Arc::new(source);
    if let Err(error) =
        mtls::serve(listener, source, ClientAuth::Required, peers, router, Limits::default(), shutdown).await
    {
        log_tls(&error);
    }
}

fn log_tls(error: &TlsError) {
    tracing::error!(reason = error.reason(), %error, "gRPC cannot be served");
}

/// Not ready as long as there is no identity: no handshake would succeed.
async fn follow_identity(source: IdentitySource, readiness: Readiness, first: ReadyGuard, shutdown: Shutdown) {
    let mut guard = Some(first);
    let mut changes = source.subscribe();
    loop {
        changes.borrow_and_update();
        match (source.svid().is_some(), guard.is_some()) {
            (true, true) => guard = None,
            (false, false) => guard = Some(readiness.block(NO_IDENTITY)),
            _ => (),
        }
        if !matches!(shutdown.unless(changes.changed()).await, Some(Ok(()))) {
            shutdown.requested().await;
            return;
        }
    }
}

/// The admin address and its pages.
fn pages(
    parts: AdminParts,
    settings: Settings,
    rules: &RulesInForce,
    source: &IdentitySource,
    metrics: &PolicyMetrics,
) -> (SocketAddr, AdminParts) {
    let addr = settings.admin;
    let (status_rules, status_source, metrics) = (rules.clone(), source.clone(), metrics.clone());
    let (dump_rules, cert_source, status_settings) = (rules.clone(), source.clone(), settings.clone());
    let parts = parts
        .status(move || status(&status_settings, &status_rules, &status_source, &metrics))
        .config_dump(move || json!({ "settings": settings, "rules": rules_json(&dump_rules) }))
        .certs(move || certs(&cert_source));
    (addr, parts)
}

fn status(settings: &Settings, rules: &RulesInForce, source: &IdentitySource, metrics: &PolicyMetrics) -> Value {
    let version = rules.current();
    let refusal = rules.refusal().map(
        |refusal| json!({ "reason": refusal.reason, "error": refusal.text, "at": runtime::clock::rfc3339(refusal.at) }),
    );
    json!({
        "spiffe_id": source.svid().map(|svid| svid.id().to_string()),
        "rules": {
            "file": settings.rules,
            "generation": version.generation,
            "loaded_at": runtime::clock::rfc3339(version.loaded_at),
            "authorization_rules": version.rules.authorization.len(),
            "quotas": version.rules.limits.len(),
            "refused": refusal,
        },
        "quota_buckets": metrics.buckets.get(),
        "access_log": { "file": settings.access_log, "lines": metrics.log_lines.get(), "dropped": metrics.drops() },
    })
}

fn rules_json(rules: &RulesInForce) -> Value {
    let version = rules.current();
    let authorization: Vec<Value> =
        version.rules.authorization.names().map(|(name, action)| json!({ "name": name, "action": action })).collect();
    let quotas: Vec<Value> = version
        .rules
        .limits
        .iter()
        .map(|(domain, limit)| {
            let rate = limit.rate;
            let per = format!("{:?}", rate.per).to_lowercase();
            json!({ "domain": domain, "descriptor": limit.name, "requests": rate.requests, "per": per, "burst": rate.burst })
        })
        .collect();
    json!({
        "generation": version.generation,
        "default": version.rules.authorization.default_answer(),
        "authorization": authorization,
        "quotas": quotas,
    })
}

fn certs(source: &IdentitySource) -> Value {
    let Some(svid) = source.svid() else { return json!({ "svid": null }) };
    let chain: Vec<Value> = svid
        .chain()
        .filter_map(|certificate| serde_json::to_value(CertificateSummary::decode(certificate).ok()?).ok())
        .collect();
    json!({
        "svid": {
            "spiffe_id": svid.id(),
            "serial": svid.serial(),
            "not_before": runtime::clock::rfc3339(svid.not_before()),
            "not_after": runtime::clock::rfc3339(svid.not_after()),
            "chain": chain,
        },
    })
}

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The Workload API's address is wrong.
    #[error("the setting workload_api is wrong")]
    Endpoint(#[from] EndpointError),
    /// The rules are refused.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The access log cannot be kept.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// An address cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A part of the service ended by itself.
    #[error("the part `{part}` ended early; its last log line says why")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

impl RunError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Endpoint(error) => error.reason(),
            Self::Rules(error) => error.reason(),
            Self::Sink(error) => error.reason(),
            Self::Listen(error) => error.reason(),
            Self::Ended { .. } => "PART_ENDED_EARLY",
        }
    }
}

/// What blocks readiness without an SVID.
const NO_IDENTITY: &str = "own SVID";
