//! Clients that take any server: to look at what it presents, or to fetch what proves itself by another way, such as roots whose
//! fingerprints were given beforehand. Never for anything secret.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{FixedSnapshot, SvidResolver, TlsError};

/// One look at a server. Nothing may be sent over a connection that it made: the server is not verified.
#[derive(Debug)]
pub struct DangerousLook {
    eye: Arc<Eye>,
    config: Arc<ClientConfig>,
}

impl DangerousLook {
    /// Gets ready to look, with TLS 1.2 or 1.3; `identity.svid` is shown to a server that asks for one.
    pub fn new(identity: FixedSnapshot, alpn: &[&[u8]]) -> Result<Self, TlsError> {
        let eye = Arc::new(Eye {
            seen: Mutex::new(Vec::new()),
            algorithms: super::provider().signature_verification_algorithms,
        });
        let client: Arc<dyn ResolvesClientCert> = Arc::new(SvidResolver { source: Arc::new(identity) });
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Config)?
            .dangerous()
            .with_custom_certificate_verifier(eye.clone())
            .with_client_cert_resolver(client);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(Self { eye, config: Arc::new(config) })
    }

    /// For one handshake.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// What the server presented, leaf first; also when it ended the handshake afterwards.
    pub fn seen(&self) -> Vec<CertificateDer<'static>> {
        self.eye.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client configuration that accepts whatever certificate the server shows, as long as it holds the key.
pub fn unverified_client_config(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    DangerousLook::new(FixedSnapshot::default(), alpn).map(|look| look.config())
}

struct Eye {
    seen: Mutex<Vec<CertificateDer<'static>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Eye {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = chain.take(CHAIN_MAX).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for Eye {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Eye")
    }
}

/// The most certificates that are looked at.
const CHAIN_MAX: usize = 16;
