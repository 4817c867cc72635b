//! Certificates for ordinary web clients: a small CA for gateways in demos and tests. Nothing of it enters a trust bundle.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

use super::build::{self, COMMON_NAME_BYTES_MAX, Validity};
use super::{AuthorityError, BACKDATE_DEFAULT};
use crate::digest;
use crate::key::PrivateKey;
use crate::pem;

/// A self-signed CA for server certificates with DNS names and addresses.
pub struct WebAuthority {
    certificate: CertificateDer<'static>,
    key: PrivateKey,
    issuer: Issuer<'static, PrivateKey>,
    valid: (SystemTime, SystemTime),
}

/// A signed certificate with its new key.
#[derive(Debug, Clone)]
pub struct WebCertificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKey,
}

impl WebAuthority {
    /// Makes a CA of the given name.
    pub fn generate(common_name: &str, ttl: Duration, now: SystemTime) -> Result<Self, AuthorityError> {
        let validity = Validity::new(ttl, BACKDATE_DEFAULT, now, None)?;
        let mut params = build::common(validity, digest::random_serial())?;
        let common_name: String = common_name.chars().take(COMMON_NAME_BYTES_MAX / 4).collect();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = PrivateKey::generate_p256().map_err(AuthorityError::Key)?;
        build::name_key(&mut params, &key.public_key_spki());
        let certificate = params.self_signed(&key).map_err(AuthorityError::Build)?.into();
        Self::from_parts(certificate, key)
    }

    /// Takes a stored CA.
    pub fn from_parts(certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let decoded = crate::leaf::decode(&certificate).map_err(AuthorityError::Certificate)?;
        if decoded.public_key().raw != key.public_key_spki() {
            return Err(AuthorityError::KeyMismatch);
        }
        let valid = crate::leaf::validity(&decoded);
        let issuer = Issuer::from_ca_cert_der(&certificate, key.clone()).map_err(AuthorityError::Build)?;
        Ok(Self { certificate, key, issuer, valid })
    }

    /// Signs a server certificate for the given names and addresses. A name may start with `*.`.
    pub fn issue_server(
        &self,
        dns_names: &[String],
        ip_addresses: &[IpAddr],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<WebCertificate, AuthorityError> {
        let mut params = self.params(ttl, now)?;
        build::add_names(&mut params, dns_names, ip_addresses)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// Signs a client certificate with the given common name.
    pub fn issue_client(
        &self,
        common_name: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<WebCertificate, AuthorityError> {
        let mut params = self.params(ttl, now)?;
        let common_name: String = common_name.chars().take(COMMON_NAME_BYTES_MAX / 4).collect();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn params(&self, ttl: Duration, now: SystemTime) -> Result<CertificateParams, AuthorityError> {
        let validity = Validity::new(ttl, BACKDATE_DEFAULT, now, Some(self.valid))?;
        let mut params = build::common(validity, digest::random_serial())?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<WebCertificate, AuthorityError> {
        let key = PrivateKey::generate_p256().map_err(AuthorityError::Key)?;
        build::name_key(&mut params, &key.public_key_spki());
        let certificate = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Build)?.into();
        Ok(WebCertificate { certificate, key })
    }

    /// The CA's certificate, for clients to trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem::certificate(&self.certificate)
    }

    /// The CA's key, to be stored where only its owner reads.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }
}

impl WebCertificate {
    /// The certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem::certificate(&self.certificate)
    }

    /// The key as PEM. The caller keeps it secret.
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        self.key.pkcs8_pem()
    }
}

impl fmt::Debug for WebAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebAuthority").finish_non_exhaustive()
    }
}
