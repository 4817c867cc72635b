//! Our own bundle endpoint: `GET /` is our bundle, `GET /map` (when switched on) all bundles that we know.
//!
//! It proves itself by the server's SVID (profile `https_spiffe`) at `bundle_endpoint`, and by a certificate of the web
//! (profile `https_web`) at `federation.web_endpoint`, from files or by ACME ([`super::acme`]). Files are followed: a new certificate
//! is taken within a second, a bad one changes nothing. Clients are never asked for a certificate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use identity::bundle::BundleSet;
use identity::tls::{ALPN_H2, ALPN_HTTP11, ClientAuth, SniCertificates, TlsError, certified_key_from_pem, web};
use runtime::readiness::Readiness;
use runtime::serve::{self, Limits, RemoteAddr};
use runtime::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::WebEndpoint;
use super::acme::Acme;
use crate::certifier::Certifier;
use crate::stamp::Stamp;

/// The endpoint's paths.
pub(crate) fn router(certifier: Arc<Certifier>, with_map: bool) -> Router {
    let router = Router::new().route("/", get(bundle));
    let router = if with_map { router.route("/map", get(map)) } else { router };
    router.with_state(certifier)
}

async fn bundle(State(certifier): State<Arc<Certifier>>) -> Response {
    document(certifier.authorities.current().bundle.to_spiffe_json())
}

async fn map(State(certifier): State<Arc<Certifier>>) -> Response {
    let own = certifier.authorities.current().bundle.clone();
    let mut bundles = BundleSet::new([own]);
    certifier.store.registry().all_federated().for_each(|bundle| bundles.insert(bundle.clone()));
    document(bundles.to_spiffe_map_json())
}

fn document(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// Why the certificate of the endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file.
    #[error("{}: the certificate or key of federation.web_endpoint cannot be read", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Its content.
    #[error("{}: the certificate of federation.web_endpoint cannot be used", file.display())]
    Unusable {
        /// The certificate's file.
        file: PathBuf,
        /// Why.
        #[source]
        source: TlsError,
    },
}

impl CertificateError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "WEB_CERTIFICATE_UNREADABLE",
            Self::Unusable { source, .. } => source.reason(),
        }
    }
}

/// The certificate in use, kept up to date.
pub(crate) struct WebCertificate {
    origin: Origin,
    /// None as long as ACME has brought no certificate.
    acceptor: ArcSwapOption<TlsAcceptor>,
}

/// Where it comes from.
#[derive(Debug)]
enum Origin {
    Files { cert_file: PathBuf, key_file: PathBuf },
    Acme(Acme),
}

impl WebCertificate {
    /// Reads files for the first time, or what ACME brought before.
    ///
    /// # Errors
    /// When files cannot be used.
    pub(crate) fn open(settings: WebEndpoint, data_dir: &Path, now: SystemTime) -> Result<Self, CertificateError> {
        let (origin, found) = match settings.acme {
            Some(acme) => {
                let acme = Acme::new(acme, data_dir);
                let found = acme.stored(now).and_then(|pair| acceptor(&pair.chain, &pair.key).ok());
                (Origin::Acme(acme), found)
            }
            None => {
                let (cert_file, key_file) =
                    (settings.cert_file.unwrap_or_default(), settings.key_file.unwrap_or_default());
                let found = read(&cert_file, &key_file)?;
                (Origin::Files { cert_file, key_file }, Some(found))
            }
        };
        Ok(Self { origin, acceptor: ArcSwapOption::new(found.map(Arc::new)) })
    }

    /// Where an ACME server asks for proofs, and what it finds there.
    pub(crate) fn proofs(&self) -> Option<(SocketAddr, Router)> {
        match &self.origin {
            Origin::Acme(acme) => Some((acme.listen(), acme.pages())),
            Origin::Files { .. } => None,
        }
    }

    /// Keeps it up to date, for ever.
    pub(crate) async fn keep(&self, certifier: &Certifier, readiness: &Readiness) {
        match &self.origin {
            Origin::Acme(acme) => acme.keep(self, certifier, readiness).await,
            Origin::Files { cert_file, key_file } => self.keep_read(cert_file, key_file).await,
        }
    }

    /// Serves with another one from now on.
    pub(super) fn take(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        self.acceptor.store(Some(Arc::new(acceptor(chain, key)?)));
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_there(&self) -> bool {
        self.acceptor.load().is_some()
    }

    /// Serves `router` with it, until `shutdown`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, router: Router, shutdown: Shutdown) {
        let establish = |(stream, remote): (TcpStream, SocketAddr)| {
            let acceptor = self.acceptor.load_full();
            async move {
                let Some(acceptor) = acceptor else {
                    tracing::debug!(%remote, reason = "WEB_CERTIFICATE_MISSING", "connection refused");
                    return None;
                };
                match acceptor.accept(stream).await {
                    Ok(stream) => {
                        let mut facts = http::Extensions::new();
                        facts.insert(RemoteAddr(remote));
                        Some((stream, facts))
                    }
                    Err(error) => {
                        tracing::debug!(%remote, %error, reason = "TLS_HANDSHAKE_FAILED", "connection refused");
                        None
                    }
                }
            }
        };
        serve::run(listener, establish, router, Limits::default(), shutdown).await;
    }

    /// Follows the files for ever.
    async fn keep_read(&self, cert_file: &Path, key_file: &Path) {
        let stamps = || [Stamp::of(cert_file), Stamp::of(key_file)];
        let mut seen = stamps();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = stamps();
            if now == seen {
                continue;
            }
            seen = now;
            match read(cert_file, key_file) {
                Ok(acceptor) => {
                    self.acceptor.store(Some(Arc::new(acceptor)));
                    tracing::info!(file = %cert_file.display(), "certificate of the bundle endpoint in force");
                }
                Err(error) => {
                    tracing::error!(reason = error.reason(), error = ?error, "certificate of the bundle endpoint refused, keeping the old one");
                }
            }
        }
    }
}

impl std::fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebCertificate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

fn read(cert_file: &Path, key_file: &Path) -> Result<TlsAcceptor, CertificateError> {
    let load = |file: &Path| {
        std::fs::read(file).map_err(|source| CertificateError::Unreadable { file: file.to_owned(), source })
    };
    let (cert, key) = (load(cert_file)?, load(key_file)?);
    acceptor(&cert, &key).map_err(|source| CertificateError::Unusable { file: cert_file.to_owned(), source })
}

fn acceptor(chain: &[u8], key: &[u8]) -> Result<TlsAcceptor, TlsError> {
    let certificates = SniCertificates::new().with_default(certified_key_from_pem(chain, key)?);
    web::server_config(Arc::new(certificates), ClientAuth::None, b"", &[ALPN_H2, ALPN_HTTP11]).map(TlsAcceptor::from)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
