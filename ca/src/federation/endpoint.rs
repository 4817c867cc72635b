//! Our own bundle endpoint: `GET /` is our bundle, `GET /map` (when switched on) all bundles that we know.
//!
//! It proves itself by the server's SVID (profile `https_spiffe`) at `bundle_endpoint`, and by a certificate of the web
//! (profile `https_web`) at `federation.web_endpoint`. That certificate is followed: a new one is taken within a second, a
//! bad one changes nothing. Clients are never asked for a certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use identity::bundle::BundleSet;
use identity::tls::{ALPN_H2, ALPN_HTTP11, ClientAuth, SniCertificates, TlsError, certified_key_from_pem, web};
use runtime::serve::{self, Limits, RemoteAddr};
use runtime::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::WebEndpoint;
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

/// The certificate in use, kept up to date with its files.
pub(crate) struct WebCertificate {
    settings: WebEndpoint,
    acceptor: ArcSwap<TlsAcceptor>,
}

impl WebCertificate {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(crate) fn open(settings: WebEndpoint) -> Result<Self, CertificateError> {
        let acceptor = ArcSwap::from_pointee(read(&settings)?);
        Ok(Self { settings, acceptor })
    }

    /// Serves `router` with it, until `shutdown`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, router: Router, shutdown: Shutdown) {
        let establish = |(stream, remote): (TcpStream, std::net::SocketAddr)| {
            let acceptor = self.acceptor.load_full();
            async move {
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
    pub(crate) async fn keep_read(self: Arc<Self>) {
        let mut seen = self.stamps();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.stamps();
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.settings) {
                Ok(acceptor) => {
                    self.acceptor.store(Arc::new(acceptor));
                    tracing::info!(file = %self.settings.cert_file.display(), "certificate of the bundle endpoint in force");
                }
                Err(error) => {
                    tracing::error!(reason = error.reason(), error = ?error, "certificate of the bundle endpoint refused, keeping the old one");
                }
            }
        }
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [Stamp::of(&self.settings.cert_file), Stamp::of(&self.settings.key_file)]
    }
}

impl std::fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebCertificate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn read(settings: &WebEndpoint) -> Result<TlsAcceptor, CertificateError> {
    let load = |file: &Path| {
        std::fs::read(file).map_err(|source| CertificateError::Unreadable { file: file.to_owned(), source })
    };
    let (cert, key) = (load(&settings.cert_file)?, load(&settings.key_file)?);
    let unusable = |source| CertificateError::Unusable { file: settings.cert_file.clone(), source };
    let certificates = SniCertificates::new().with_default(certified_key_from_pem(&cert, &key).map_err(unusable)?);
    let config = web::server_config(Arc::new(certificates), ClientAuth::None, b"", &[ALPN_H2, ALPN_HTTP11]);
    config.map(TlsAcceptor::from).map_err(unusable)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
