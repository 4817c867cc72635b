//! Building the role from its settings, and running it.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use identity::spiffe_id::SpiffeIdError;
use identity::tls::{ClientAuth, PeerRule};
use runtime::admin::Admin;
use runtime::clock::{Clock, from_unix_secs};
use runtime::listen::{self, ListenError};
use runtime::logs::LogControl;
use runtime::mtls::{self, Source};
use runtime::readiness::Readiness;
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::address_limits::{self, AddressLimits, ByAddress};
use crate::api::{Api, Origin, ServerFacts};
use crate::attest::Attestors;
use crate::audit::{LocalPeer, Refusals};
use crate::authorities::{Authorities, AuthoritiesError};
use crate::certifier::{Certifier, Ttls, secs};
use crate::clock_watch::ClockWatch;
use crate::document::{DocumentError, FollowedFile, InForce};
use crate::federation::acme::WebHealth;
use crate::federation::endpoint::{self, CertificateError, WebCertificate};
use crate::istio::CsrService;
use crate::log::TransparencyLog;
use crate::metrics::Counts;
use crate::policy::{Policy, PolicyInForce};
use crate::refusal::Refusal;
use crate::renewals::Renewals;
use crate::revocation::{self, Revocations};
use crate::rights::Rights;
use crate::rotation::contacts::Contacts;
use crate::server_svid::ServerSvid;
use crate::service_account::ServiceAccounts;
use crate::settings::{Settings, SettingsProblem};
use crate::store::{self, OpenError, StoreError};
use crate::upstream::Upstream;
use crate::{custody, housekeeping, pages, upstream, web};

/// Why the authority cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsProblem),
    /// The server's own ID does not fit.
    #[error("the trust domain is too long for the server's own SPIFFE ID")]
    ServerId(#[from] SpiffeIdError),
    /// The directory.
    #[error("the directory {} cannot be used; see that it can be made and written by this user", dir.display())]
    DataDir {
        /// Which.
        dir: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses the directory.
    #[error("another certificate authority runs in {}; stop it or choose another `data_dir`", dir.display())]
    Locked {
        /// Which.
        dir: PathBuf,
    },
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The issuance policy or the rights.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The web certificate of the bundle endpoint.
    #[error(transparent)]
    WebCertificate(#[from] CertificateError),
    /// The signing authorities.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The server's own SVID.
    #[error("the server cannot issue its own SVID")]
    OwnSvid(#[source] Refusal),
    /// The bundle file.
    #[error("the bundle file {} cannot be written; see that its directory is writable", file.display())]
    BundleFile {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// An address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system does not know its own address.
    #[error("a socket without an address")]
    Address(#[source] std::io::Error),
    /// A part ended although nobody asked it to.
    #[error("the part `{0}` ended by itself")]
    Ended(&'static str),
}

impl RunError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings(error) => error.reason(),
            Self::ServerId(error) => error.reason(),
            Self::DataDir { .. } => "DATA_DIR_UNUSABLE",
            Self::Locked { .. } => "DATA_DIR_IN_USE",
            Self::Open(error) => error.reason(),
            Self::Document(error) => error.reason(),
            Self::WebCertificate(error) => error.reason(),
            Self::Authorities(error) => error.reason(),
            Self::OwnSvid(error) => error.reason(),
            Self::BundleFile { .. } => "BUNDLE_FILE_UNWRITABLE",
            Self::Listen(error) => error.reason(),
            Self::Address(_) => "LISTEN_FAILED",
            Self::Ended(_) => "PART_ENDED",
        }
    }
}

/// Where a built authority serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// SPIRE server API.
    pub grpc: SocketAddr,
    /// Istio's CSR API.
    pub istio_csr: Option<SocketAddr>,
    /// SPIFFE bundle endpoint.
    pub bundle_endpoint: Option<SocketAddr>,
    /// The same with a certificate of the web.
    pub web_endpoint: Option<SocketAddr>,
    /// Where an ACME server finds proofs for it.
    pub acme: Option<SocketAddr>,
    /// OIDC discovery.
    pub oidc: Option<SocketAddr>,
    /// Revocation lists and OCSP.
    pub revocation: Option<SocketAddr>,
    /// Health and metrics.
    pub admin: Option<SocketAddr>,
    /// Local socket.
    pub admin_socket: PathBuf,
}

/// A built authority: its database is open, its addresses are bound, and its own SVID is issued.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    addresses: Addresses,
    pub(crate) certifier: Arc<Certifier>,
    svid: Arc<ServerSvid>,
    listeners: Listeners,
    admin: Option<Admin>,
    writer: TaskSet,
    readiness: Readiness,
    policy_file: Option<FollowedFile<Policy>>,
    rights_file: Option<FollowedFile<Rights>>,
    facts: Arc<ServerFacts>,
    _lock: File,
}

#[derive(Debug)]
struct Listeners {
    grpc: TcpListener,
    local: UnixListener,
    istio_csr: Option<TcpListener>,
    bundle_endpoint: Option<TcpListener>,
    web_endpoint: Option<(TcpListener, Arc<WebCertificate>)>,
    acme: Option<(TcpListener, Router)>,
    oidc: Option<TcpListener>,
    revocation: Option<TcpListener>,
}

impl Settings {
    /// Opens the database, makes or reads the authorities, and binds the addresses.
    ///
    /// # Errors
    /// When anything of this is not possible; the message says what to do.
    pub async fn build(self, logs: LogControl, shutdown: Shutdown) -> Result<Server, RunError> {
        self.build_with(Clock::system(), logs, shutdown).await
    }

    pub(crate) async fn build_with(
        self,
        clock: Clock,
        logs: LogControl,
        shutdown: Shutdown,
    ) -> Result<Server, RunError> {
        self.check()?;
        let upstream = upstream::open(&self, clock.now()).map_err(AuthoritiesError::from)?;
        self.build_below(upstream, clock, logs, shutdown).await
    }

    pub(crate) async fn build_below(
        self,
        upstream: Option<Arc<dyn Upstream>>,
        clock: Clock,
        logs: LogControl,
        shutdown: Shutdown,
    ) -> Result<Server, RunError> {
        self.check()?;
        let attestors = Attestors::build(&self.node_attestors).map_err(SettingsProblem::from)?;
        let lock = lock_dir(&self.data_dir)?;
        let server_id = self.trust_domain.with_path(SERVER_PATH)?;
        let (store, writing) = store::open(&self.database_url(), &self.trust_domain, server_id.clone()).await?;
        let mut writer = TaskSet::new();
        writer.spawn("database writer", writing);
        let failed = |error| RunError::Authorities(AuthoritiesError::from(error));
        let newest = store.newest_issue().await.map_err(failed)?;
        let clock_watch = ClockWatch::new(clock, from_unix_secs(newest));
        let authorities = Authorities::load_below(&store, &self, upstream, clock.now()).await?;
        let log = TransparencyLog::load(&store, authorities.seal_key(), secs(clock.now())).await?;
        let (policy_file, policy) = open_policy(&self)?;
        let (rights_file, rights) = open_rights(&self)?;
        let certifier = Arc::new(Certifier {
            trust_domain: self.trust_domain.clone(),
            aliases: self.trust_domain_aliases.clone(),
            server_id,
            ttls: Ttls::of(&self),
            jwt_issuer: self.oidc_issuer.clone(),
            attestors,
            address_limits: AddressLimits::new(self.address_limits),
            store,
            authorities,
            log,
            policy,
            rights,
            federation: crate::federation::Client::new(&self.federation),
            web_health: WebHealth::default(),
            revocations: Revocations::new(&self.revocation),
            refusals: Refusals::default(),
            contacts: Contacts::default(),
            renewals: Renewals::default(),
            counts: Counts::default(),
            clock,
            clock_watch,
            shutdown,
        });
        certifier.counts.start_at(certifier.store.issued_count().await.map_err(failed)?);
        match certifier.authorities.keep_fresh(&certifier.store, certifier.now()).await {
            // Another replica that starts at the same time did it.
            Err(AuthoritiesError::Store(StoreError::AuthorityChanged)) => {
                certifier.authorities.reload(&certifier.store, certifier.now()).await?;
            }
            kept => kept?,
        }
        if let Err(error) = certifier.revocations.refresh(&certifier).await {
            tracing::error!(reason = error.reason(), error = ?error, "revocation lists not renewed");
        }
        let svid = Arc::new(ServerSvid::new(certifier.clone(), &self.server_names));
        svid.renew().await.map_err(RunError::OwnSvid)?;
        if let Some(file) = &self.bundle_file {
            let unwritable = |source| RunError::BundleFile { file: file.clone(), source };
            housekeeping::write_bundle_file(&certifier, file).map_err(unwritable)?;
        }
        let server = Server::bind(self, certifier, svid, logs, writer, lock)?;
        Ok(Server { policy_file, rights_file, ..server })
    }
}

impl Server {
    fn bind(
        settings: Settings,
        certifier: Arc<Certifier>,
        svid: Arc<ServerSvid>,
        logs: LogControl,
        writer: TaskSet,
        lock: File,
    ) -> Result<Self, RunError> {
        let optional = |addr: Option<SocketAddr>| addr.map(listen::tcp).transpose();
        let web_endpoint = settings.federation.web_endpoint.clone();
        let web_endpoint =
            web_endpoint.map(|web| open_web_endpoint(web, &settings.data_dir, certifier.now())).transpose()?;
        let proofs = web_endpoint.as_ref().and_then(|(_, certificate)| certificate.proofs());
        let acme = proofs.map(|(addr, pages)| Ok::<_, RunError>((listen::tcp(addr)?, pages))).transpose()?;
        let listeners = Listeners {
            grpc: listen::tcp(settings.grpc)?,
            local: listen::unix(&settings.admin_socket(), socket_mode(&certifier))?,
            istio_csr: optional(settings.istio_csr)?,
            bundle_endpoint: optional(settings.bundle_endpoint)?,
            web_endpoint,
            acme,
            oidc: optional(settings.oidc_listen)?,
            revocation: optional(settings.revocation.listen)?,
        };
        let readiness = Readiness::new();
        let facts = Arc::new(ServerFacts::new(svid.clone(), logs.clone()));
        let parts = pages::admin_parts(&settings, &certifier, &svid, &readiness, logs);
        let admin = settings.admin.map(|addr| Admin::build(addr, parts)).transpose()?;
        let addr_of = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        let addresses = Addresses {
            grpc: listeners.grpc.local_addr().map_err(RunError::Address)?,
            istio_csr: addr_of(&listeners.istio_csr).map_err(RunError::Address)?,
            bundle_endpoint: addr_of(&listeners.bundle_endpoint).map_err(RunError::Address)?,
            web_endpoint: address_of(listeners.web_endpoint.as_ref()).map_err(RunError::Address)?,
            acme: address_of(listeners.acme.as_ref()).map_err(RunError::Address)?,
            oidc: addr_of(&listeners.oidc).map_err(RunError::Address)?,
            revocation: addr_of(&listeners.revocation).map_err(RunError::Address)?,
            admin: admin.as_ref().map(Admin::local_addr).transpose().map_err(RunError::Address)?,
            admin_socket: settings.admin_socket(),
        };
        Ok(Self {
            settings,
            addresses,
            certifier,
            svid,
            listeners,
            admin,
            writer,
            readiness,
            policy_file: None,
            rights_file: None,
            facts,
            _lock: lock,
        })
    }

    /// Where it serves; with port 0 in the settings, the ports that were found.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until the shutdown that it was built with.
    ///
    /// # Errors
    /// When a part ends although nobody asked it to.
    pub async fn run(self) -> Result<(), RunError> {
        let Self {
            settings, addresses, certifier, svid, listeners, admin, mut writer, readiness, facts, _lock, ..
        } = self;
        let (policy_file, rights_file) = (self.policy_file, self.rights_file);
        let shutdown = certifier.shutdown.clone();
        let mut tasks = TaskSet::new();
        let web_certificate = listeners.web_endpoint.as_ref().map(|(_, certificate)| certificate.clone());
        spawn_services(&mut tasks, &settings, &addresses, &certifier, &svid, facts, listeners);
        spawn_chores(&mut tasks, &settings, &certifier, svid, &readiness);
        if let Some(certificate) = web_certificate {
            let (of, readiness, asked) = (certifier.clone(), readiness.clone(), shutdown.clone());
            let kept = async move { asked.unless(certificate.keep(&of, &readiness)).await.unwrap_or_default() };
            tasks.spawn("web certificate", kept);
        }
        if let Some(file) = policy_file {
            let asked = shutdown.clone();
            tasks.spawn("issuance policy", async move { asked.unless(file.keep_read()).await.unwrap_or_default() });
        }
        if let Some(file) = rights_file {
            let asked = shutdown.clone();
            tasks.spawn("rights", async move { asked.unless(file.keep_read()).await.unwrap_or_default() });
        }
        if let Some(admin) = admin {
            tasks.spawn("admin", admin.run(shutdown.clone()));
        }
        let (trust_domain, ready) = (&certifier.trust_domain, readiness.is_ready());
        tracing::info!(%trust_domain, grpc = %addresses.grpc, ready, "certificate authority serves");
        drop(certifier);
        let early = tasks.run(&shutdown).await;
        // The last user of the store is gone; the writer finishes what it has.
        if tokio::time::timeout(WRITER_END_MAX, writer.finished()).await.is_err() {
            writer.abort().await;
        }
        tracing::info!("certificate authority ended");
        early.map_or(Ok(()), |part| Err(RunError::Ended(part.name)))
    }
}

fn spawn_services(
    tasks: &mut TaskSet,
    settings: &Settings,
    addresses: &Addresses,
    certifier: &Arc<Certifier>,
    svid: &Arc<ServerSvid>,
    facts: Arc<ServerFacts>,
    listeners: Listeners,
) {
    let (source, shutdown): (Source, _) = (svid.clone(), certifier.shutdown.clone());
    let door: Arc<dyn mtls::Door> = Arc::new(ByAddress(certifier.clone()));
    let tls = |listener, source, client_auth, router, shutdown| {
        let (door, peers, limits) = (Some(door.clone()), PeerRule::AnyTrusted, Limits::default());
        async move {
            let served = mtls::serve_behind(door, listener, source, client_auth, peers, router, limits, shutdown);
            if let Err(error) = served.await {
                tracing::error!(reason = error.reason(), error = ?error, "service not started");
            }
        }
    };
    let network = Api::new(certifier.clone(), Origin::Network, facts.clone()).router();
    tasks.spawn("grpc", tls(listeners.grpc, source.clone(), ClientAuth::Optional, network, shutdown.clone()));
    let local = Api::new(certifier.clone(), Origin::Local, facts).router();
    let accept = |stream: UnixStream| async move {
        let facts = local_peer(&stream);
        Some((stream, facts))
    };
    tasks.spawn("admin socket", serve::grpc(listeners.local, accept, local, Limits::default(), shutdown.clone()));
    if let Some(listener) = listeners.istio_csr {
        let accounts = ServiceAccounts::new(certifier.trust_domain.clone(), &settings.service_account_issuers);
        let router =
            CsrService::new(certifier.clone(), accounts, settings.istio.clone()).routes().prepare().into_axum_router();
        tasks.spawn("istio csr", tls(listener, source.clone(), ClientAuth::Optional, router, shutdown.clone()));
    }
    let pages = |router| address_limits::pages(certifier.clone(), router);
    if let Some(listener) = listeners.bundle_endpoint {
        let router = pages(endpoint::router(certifier.clone(), settings.federation.serve_map));
        tasks.spawn("bundle endpoint", tls(listener, source.clone(), ClientAuth::None, router, shutdown.clone()));
    }
    if let Some((listener, certificate)) = listeners.web_endpoint {
        let router = pages(endpoint::router(certifier.clone(), settings.federation.serve_map));
        tasks.spawn("web bundle endpoint", certificate.serve(listener, router, shutdown.clone()));
    }
    if let Some((listener, router)) = listeners.acme {
        let router = pages(router);
        tasks.spawn("acme", serve::tcp(listener, router, Limits::default(), shutdown.clone()));
    }
    if let Some(listener) = listeners.revocation {
        let router = pages(revocation::router(certifier.clone()));
        tasks.spawn("revocation", serve::tcp(listener, router, Limits::default(), shutdown.clone()));
    }
    if let (Some(listener), Some(addr)) = (listeners.oidc, addresses.oidc) {
        let issuer = settings.oidc_issuer.clone().unwrap_or_else(|| format!("http://{addr}"));
        let router = pages(web::oidc(certifier.clone(), &issuer));
        tasks.spawn("oidc", serve::tcp(listener, router, Limits::default(), shutdown));
    }
}

fn spawn_chores(
    tasks: &mut TaskSet,
    settings: &Settings,
    certifier: &Arc<Certifier>,
    svid: Arc<ServerSvid>,
    readiness: &Readiness,
) {
    let until = |shutdown: Shutdown, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
        let _ = shutdown.unless(work).await;
    };
    let shutdown = || certifier.shutdown.clone();
    tasks.spawn("own svid", until(shutdown(), Box::pin(async move { svid.keep_fresh().await })));
    let authorities = housekeeping::keep_authorities_fresh(certifier.clone(), settings.ca_ttl);
    tasks.spawn("authorities", until(shutdown(), Box::pin(authorities)));
    let follow = housekeeping::follow_authorities(certifier.clone());
    tasks.spawn("authorities of replicas", until(shutdown(), Box::pin(follow)));
    tasks.spawn("revocation lists", until(shutdown(), Box::pin(revocation::keep(certifier.clone()))));
    let health = housekeeping::tell_health(certifier.clone(), readiness.clone());
    tasks.spawn("database health", until(shutdown(), Box::pin(health)));
    let clock = housekeeping::watch_clock(certifier.clone(), readiness.clone());
    tasks.spawn("clock", until(shutdown(), Box::pin(clock)));
    let intermediate = custody::watch::watch_intermediate(certifier.clone(), readiness.clone());
    if let Some(upstream) = certifier.authorities.upstream().cloned() {
        let follow = upstream::follow::follow(certifier.clone(), upstream);
        tasks.spawn("upstream authority", until(shutdown(), Box::pin(follow)));
    }
    if !certifier.authorities.desks().is_empty() {
        let keepers = custody::watch::watch_keepers(certifier.clone(), readiness.clone());
        tasks.spawn("keepers of keys", until(shutdown(), Box::pin(keepers)));
    }
    tasks.spawn("intermediate", until(shutdown(), Box::pin(intermediate)));
    let federation = crate::federation::keep_polled(certifier.clone());
    tasks.spawn("federation", until(shutdown(), Box::pin(federation)));
    let kept = housekeeping::Kept { records: settings.record_kept, audit: settings.audit_kept };
    let forget = housekeeping::forget_for_ever(certifier.clone(), kept);
    tasks.spawn("housekeeping", until(shutdown(), Box::pin(forget)));
    let (for_audit, asked) = (certifier.clone(), shutdown());
    tasks.spawn("audit", async move { for_audit.refusals.keep_flushed(&for_audit.store, &asked).await });
    if let Some(file) = settings.bundle_file.clone() {
        let keep = housekeeping::keep_bundle_file(certifier.clone(), file);
        tasks.spawn("bundle file", until(shutdown(), Box::pin(keep)));
    }
}

fn open_web_endpoint(
    settings: crate::federation::WebEndpoint,
    data_dir: &Path,
    now: std::time::SystemTime,
) -> Result<(TcpListener, Arc<WebCertificate>), RunError> {
    let listen = settings.listen;
    let certificate = WebCertificate::open(settings, data_dir, now)?;
    Ok((listen::tcp(listen)?, Arc::new(certificate)))
}

fn address_of<T>(served: Option<&(TcpListener, T)>) -> std::io::Result<Option<SocketAddr>> {
    served.map(|(listener, _)| listener.local_addr()).transpose()
}

/// The policy that the settings name, and what follows its file; without one everything that entries allow is allowed.
fn open_policy(settings: &Settings) -> Result<(Option<FollowedFile<Policy>>, PolicyInForce), DocumentError> {
    let Some(file) = settings.policy_file.clone() else { return Ok((None, PolicyInForce::default())) };
    let (file, policy) = PolicyInForce::open(file, settings.trust_domain.clone())?;
    Ok((Some(file), policy))
}

/// The rights that the settings name, and what follows their file; without one administrators alone have any.
fn open_rights(settings: &Settings) -> Result<(Option<FollowedFile<Rights>>, InForce<Rights>), DocumentError> {
    let Some(file) = settings.rights_file.clone() else { return Ok((None, InForce::default())) };
    let file = Rights::follow(file)?;
    let rights = file.in_force();
    Ok((Some(file), rights))
}

/// Where rights speak of local users, all may connect: the kernel says who each is. Otherwise the file keeps them out already.
fn socket_mode(certifier: &Certifier) -> u32 {
    if certifier.rights.current().has_local_users() { 0o666 } else { 0o600 }
}

/// Who is at the other end of the local socket, for the audit trail.
fn local_peer(stream: &UnixStream) -> http::Extensions {
    let mut facts = http::Extensions::new();
    if let Ok(peer) = stream.peer_cred() {
        facts.insert(LocalPeer { pid: peer.pid().unwrap_or(0), uid: peer.uid(), gid: peer.gid() });
    }
    facts
}

/// Makes the directory and holds it for this process: two authorities on one SQLite file would sign apart.
pub(crate) fn lock_dir(dir: &Path) -> Result<File, RunError> {
    let unusable = |source| RunError::DataDir { dir: dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
    let file = File::create(dir.join("ca.lock")).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// The path of the server's own ID.
pub const SERVER_PATH: &str = "/spire/server";
const WRITER_END_MAX: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests;
