//! rustls on top of SVIDs and bundles.
//!
//! Mesh connections: TLS 1.3 only, no session resumption (each connection proves both sides anew), the hybrid key exchange
//! X25519MLKEM768 preferred. Identity and trust are read from a [`Snapshot`] at each handshake, so a rotation is a
//! pointer swap and no configuration is ever rebuilt. The server name plays no part in whom we trust: the peer's SPIFFE ID does.
//!
//! [`web`] has the other kind, for the edges of the mesh: certificates for DNS names, TLS 1.2 and 1.3.

pub mod danger;
mod verifier;
pub mod web;

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, CommonState, ServerConfig, SignatureScheme};
use rustls_pki_types::UnixTime;

use crate::bundle::BundleSet;
use crate::crypto;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::svid::X509Svid;
use crate::verify::{self, PeerError, VerifiedPeer};

pub use web::{SniCertificates, certified_key_from_pem};

/// The identity and trust of this moment. Reading must be cheap: it happens in every handshake.
pub trait Snapshot: Send + Sync {
    /// Our own SVID; `None` while there is none yet.
    fn svid(&self) -> Option<Arc<X509Svid>>;

    /// The bundles we trust.
    fn bundles(&self) -> Arc<BundleSet>;
}

impl<S: Snapshot + ?Sized> Snapshot for Arc<S> {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        (**self).svid()
    }

    fn bundles(&self) -> Arc<BundleSet> {
        (**self).bundles()
    }
}

/// A snapshot that never changes: for tests, and for the first contact when there are only roots.
#[derive(Debug, Clone, Default)]
pub struct FixedSnapshot {
    /// Our own SVID.
    pub svid: Option<Arc<X509Svid>>,
    /// The bundles we trust.
    pub bundles: Arc<BundleSet>,
}

impl Snapshot for FixedSnapshot {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        self.svid.clone()
    }

    fn bundles(&self) -> Arc<BundleSet> {
        Arc::clone(&self.bundles)
    }
}

/// Whether a server asks clients for an SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Never asks.
    None,
    /// Asks; a client may have none, but what it sends must verify.
    Optional,
    /// Refuses clients without one.
    Required,
}

/// Which proven peers are expected.
#[derive(Clone)]
pub enum PeerRule {
    /// Any ID of any trust domain that has a bundle.
    AnyTrusted,
    /// Any ID of one trust domain.
    TrustDomain(TrustDomain),
    /// One of these IDs.
    AnyOf(Vec<SpiffeId>),
    /// This ID or any below it, segment by segment.
    Within(SpiffeId),
    /// Whatever the function accepts.
    Matching(Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>),
}

impl PeerRule {
    /// One ID only.
    pub fn exactly(id: SpiffeId) -> Self {
        Self::AnyOf(vec![id])
    }

    /// Whether the rule expects this peer.
    pub fn permits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::AnyTrusted => true,
            Self::TrustDomain(trust_domain) => id.is_member_of(trust_domain),
            Self::AnyOf(ids) => ids.contains(id),
            Self::Within(ancestor) => id.is_within(ancestor),
            Self::Matching(accepts) => accepts(id),
        }
    }
}

impl fmt::Debug for PeerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyTrusted => f.write_str("AnyTrusted"),
            Self::TrustDomain(trust_domain) => f.debug_tuple("TrustDomain").field(trust_domain).finish(),
            Self::AnyOf(ids) => f.debug_tuple("AnyOf").field(ids).finish(),
            Self::Within(ancestor) => f.debug_tuple("Within").field(ancestor).finish(),
            Self::Matching(_) => f.write_str("Matching(..)"),
        }
    }
}

/// A mesh server's configuration: our SVID, and clients as `client_auth` and `peers` say.
pub fn server_config(
    source: Arc<dyn Snapshot>,
    client_auth: ClientAuth,
    peers: PeerRule,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let resolver = Arc::new(SvidResolver { source: Arc::clone(&source) });
    let clients: Arc<dyn ClientCertVerifier> = match client_auth {
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
        ClientAuth::Optional => Arc::new(verifier::PeerVerifier::new(source, peers, false)),
        ClientAuth::Required => Arc::new(verifier::PeerVerifier::new(source, peers, true)),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(MESH_VERSIONS)
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    forbid_resumption(&mut config);
    Ok(Arc::new(config))
}

/// A mesh client's configuration: our SVID if the server asks for it, and a server that `peers` expects.
pub fn client_config(
    source: Arc<dyn Snapshot>,
    peers: PeerRule,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let resolver = Arc::new(SvidResolver { source: Arc::clone(&source) });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(MESH_VERSIONS)
        .map_err(TlsError::Config)?
        .dangerous() // That is rustls' name for any verifier but its own; ours is stricter.
        .with_custom_certificate_verifier(Arc::new(verifier::PeerVerifier::new(source, peers, true)))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

pub(crate) fn forbid_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

/// Who is on the other side of a finished handshake: `None` if it sent no certificate.
///
/// The handshake has verified the chain already; this verifies it against `bundles` again, which is a look-up unless the
/// bundles have changed since.
pub fn peer_of(conn: &CommonState, bundles: &BundleSet, now: UnixTime) -> Result<Option<VerifiedPeer>, PeerError> {
    match conn.peer_certificates() {
        None | Some([]) => Ok(None),
        Some(chain) => verify::verify_peer(chain, bundles, now).map(Some),
    }
}

/// The reason code of a failed handshake, as far as it has one.
pub fn reason_of(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::NoCertificatesPresented => Some("TLS_PEER_CERT_MISSING"),
        rustls::Error::InvalidCertificate(error) => Some(certificate_reason(error)),
        rustls::Error::AlertReceived(_) => Some("TLS_REFUSED_BY_PEER"),
        rustls::Error::NoApplicationProtocol => Some("TLS_ALPN_MISMATCH"),
        rustls::Error::PeerIncompatible(_) => Some("TLS_PEER_INCOMPATIBLE"),
        rustls::Error::InvalidMessage(_)
        | rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. }
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::DecryptError
        | rustls::Error::PeerSentOversizedRecord => Some("TLS_PROTOCOL_ERROR"),
        _ => None,
    }
}

fn certificate_reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Other(_) => peer_error_in(error).map_or("TLS_PEER_UNTRUSTED", PeerError::reason),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "TLS_PEER_EXPIRED",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "TLS_PEER_NOT_YET_VALID",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "TLS_PEER_NAME_MISMATCH",
        _ => "TLS_PEER_UNTRUSTED",
    }
}

/// Our own error inside a rustls error, with the peer's ID where that was readable.
pub fn peer_error_of(error: &rustls::Error) -> Option<&PeerError> {
    match error {
        rustls::Error::InvalidCertificate(error) => peer_error_in(error),
        _ => None,
    }
}

fn peer_error_in(error: &CertificateError) -> Option<&PeerError> {
    match error {
        CertificateError::Other(other) => other.0.downcast_ref::<PeerError>(),
        _ => None,
    }
}

/// The rustls error inside an I/O error, as asynchronous TLS streams return it.
pub fn rustls_error_of(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

/// The reason code of an I/O error that a TLS stream returned, as far as it has one.
pub fn reason_of_io(error: &std::io::Error) -> Option<&'static str> {
    rustls_error_of(error).and_then(reason_of)
}

/// The cryptography everything uses, by default aws-lc-rs with the hybrid post-quantum key exchange preferred.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(crypto::tls_provider())))
}

/// Gives rustls the current SVID.
struct SvidResolver {
    source: Arc<dyn Snapshot>,
}

impl SvidResolver {
    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.source.svid()?.certified_key().cloned()
    }
}

impl ResolvesServerCert for SvidResolver {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for SvidResolver {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.source.svid().is_some()
    }
}

impl fmt::Debug for SvidResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidResolver")
    }
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// rustls refuses the configuration.
    #[error("the TLS configuration is not possible")]
    Config(#[source] rustls::Error),
    /// A certificate or key is not readable PEM.
    #[error("the certificate or its key is not readable")]
    Pem(#[source] crate::pem::PemError),
    /// The key is not the certificate's, or neither is usable.
    #[error("the certificate and its key cannot be used together")]
    CertifiedKey(#[source] rustls::Error),
    /// A name to serve is malformed.
    #[error("{0:?} is not a DNS name")]
    ServerName(String),
    /// None of the roots is usable.
    #[error("there is no usable root certificate")]
    NoRoots,
    /// The verifier for clients cannot be made.
    #[error("the verifier for client certificates cannot be made")]
    ClientVerifier(#[source] rustls::server::VerifierBuilderError),
    /// The verifier for servers cannot be made.
    #[error("the verifier for server certificates cannot be made")]
    ServerVerifier(#[source] rustls::client::VerifierBuilderError),
}

impl TlsError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Config(_) | Self::ClientVerifier(_) | Self::ServerVerifier(_) => "TLS_CONFIG_INVALID",
            Self::Pem(_) | Self::CertifiedKey(_) | Self::NoRoots => "TLS_CERTIFICATE_INVALID",
            Self::ServerName(_) => "TLS_SERVER_NAME_INVALID",
        }
    }
}

/// ALPN for HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";

/// ALPN for HTTP/1.1.
pub const ALPN_HTTP11: &[u8] = b"http/1.1";

const MESH_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[cfg(test)]
mod tests;
