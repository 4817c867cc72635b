//! TLS towards those who connect to us: mesh peers by SPIFFE, or web clients with a certificate of a gateway.

use std::sync::Arc;

use identity::tls::{self, ClientAuth, SniCertificates, certified_key_from_pem, web};
use routing::tls::{CertificateRef, DownstreamTls, RootsRef};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;

use super::files::CertificateFiles;
use super::own::OwnIdentity;
use super::{SetupError, peer_rule, roots_pem};

/// The server side of one filter chain.
#[derive(Clone, Debug)]
pub(crate) struct ServerSide {
    pub(crate) config: Arc<ServerConfig>,
    /// Peers are SPIFFE workloads, proven by our bundles.
    pub(crate) mesh: bool,
    pub(crate) require_sni: bool,
}

impl ServerSide {
    /// Sets it up. Secrets are read at each handshake, so rotation needs no new setup.
    pub(crate) fn build(
        tls: &DownstreamTls,
        identity: &Arc<OwnIdentity>,
        files: &CertificateFiles,
    ) -> Result<Self, SetupError> {
        let alpn: Vec<&[u8]> = tls.common.alpn.iter().map(Vec::as_slice).collect();
        let auth = match (&tls.common.validation.roots, tls.require_client_certificate) {
            (_, true) => ClientAuth::Required,
            (RootsRef::Unset, false) => ClientAuth::None,
            (_, false) => ClientAuth::Optional,
        };
        let mesh = super::is_own(tls.common.certificates.first())?;
        let config = if mesh {
            tls::server_config(identity.clone(), auth, peer_rule(&tls.common.validation), &alpn)?
        } else {
            let roots = if auth == ClientAuth::None { Vec::new() } else { roots_pem(&tls.common)? };
            web::server_config(certificates(tls, files)?, auth, &roots, &alpn)?
        };
        Ok(Self { config, mesh, require_sni: tls.require_sni })
    }
}

/// One certificate for every server name; a chain of its own exists for each name that has another one.
fn certificates(tls: &DownstreamTls, files: &CertificateFiles) -> Result<Arc<dyn ResolvesServerCert>, SetupError> {
    match tls.common.certificates.first() {
        Some(CertificateRef::Files { chain, key }) => Ok(files.watch(chain, key)),
        Some(CertificateRef::Inline { chain, key }) => {
            Ok(Arc::new(SniCertificates::new().with_default(certified_key_from_pem(chain, key.expose())?)))
        }
        Some(CertificateRef::Sds { .. }) | None => Err(SetupError::NotSupported("a listener without a certificate")),
    }
}
