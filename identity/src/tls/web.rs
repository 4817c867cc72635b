//! TLS at the edges of the mesh, where peers are found by DNS name and not by SPIFFE ID: TLS 1.2 and 1.3, no resumption.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::DnsName;

use super::{ClientAuth, TlsError, forbid_resumption, provider};
use crate::pem;

/// Reads a certificate chain and its key, and checks that they belong together.
pub fn certified_key_from_pem(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = pem::decode_certificates(cert_pem).map_err(TlsError::Pem)?;
    let key = pem::decode_private_key(key_pem).map_err(TlsError::Pem)?;
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(TlsError::CertifiedKey)
}

/// Server certificates by server name. A name may start with `*.`, which stands for exactly one label.
#[derive(Clone, Default)]
pub struct SniCertificates {
    by_name: BTreeMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl SniCertificates {
    /// Nothing yet: every client is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a certificate for a name.
    pub fn with_name(mut self, name: &str, certified_key: Arc<CertifiedKey>) -> Result<Self, TlsError> {
        let name = name.to_ascii_lowercase();
        DnsName::try_from(name.strip_prefix("*.").unwrap_or(&name)).map_err(|_| TlsError::ServerName(name.clone()))?;
        self.by_name.insert(name, certified_key);
        Ok(self)
    }

    /// Serves a certificate for every other name, and to clients that send none.
    pub fn with_default(mut self, certified_key: Arc<CertifiedKey>) -> Self {
        self.default = Some(certified_key);
        self
    }

    pub(super) fn pick(&self, server_name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        server_name.and_then(|name| self.pick_by_name(&name.to_ascii_lowercase())).or(self.default.as_ref())
    }

    fn pick_by_name(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.by_name.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }
}

impl ResolvesServerCert for SniCertificates {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pick(client_hello.server_name()).cloned()
    }
}

impl fmt::Debug for SniCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SniCertificates")
            .field("names", &self.by_name.keys().collect::<Vec<_>>())
            .field("has_default", &self.default.is_some())
            .finish()
    }
}

/// A web server's configuration. With `client_auth` other than `None`, clients prove themselves by certificates that
/// the given roots (PEM) vouch for.
pub fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    client_auth: ClientAuth,
    client_roots_pem: &[u8],
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(client_verifier(client_auth, client_roots_pem)?)
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    forbid_resumption(&mut config);
    Ok(Arc::new(config))
}

fn client_verifier(client_auth: ClientAuth, roots_pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    if client_auth == ClientAuth::None {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots(roots_pem)?, provider());
    let builder = if client_auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(TlsError::ClientVerifier)
}

/// A web client's configuration: servers are verified by name against the given roots (PEM).
pub fn client_config(
    roots_pem: &[u8],
    certified_key: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    client_of(roots(roots_pem)?, certified_key, alpn)
}

/// The same against the roots that Mozilla's programme trusts, for servers of the public web.
pub fn public_client_config(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    client_of(Arc::new(roots), None, alpn)
}

fn client_of(
    roots: Arc<RootCertStore>,
    certified_key: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(TlsError::ServerVerifier)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_webpki_verifier(verifier);
    let mut config = match certified_key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(roots_pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(pem::decode_certificates(roots_pem).map_err(TlsError::Pem)?);
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(Arc::new(roots)) }
}
