//! X.509 authorities: roots, intermediates, and the SVIDs they sign.
//!
//! What a signed certificate says comes from the profile alone, never from a CSR. Nothing outlives its authority, every
//! certificate has a random serial number unless the profile gives one, SVIDs have exactly one URI SAN, and CA certificates
//! carry the trust domain's own ID.

mod build;
mod crl;
mod ocsp;
mod web;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;

use crate::digest;
use crate::key::{KeyError, PrivateKey};
use crate::leaf::{self, LeafError};
use crate::public_key::{Curve, PublicKey, PublicKeyError};
use crate::signing_key::SigningKey;
use crate::spiffe_id::{SpiffeId, TrustDomain};

pub(crate) use build::csr_params;
pub use crl::{CrlProfile, RevokedSerial};
pub use web::{WebAuthority, WebCertificate};

/// What an X.509-SVID shall say.
#[derive(Debug, Clone)]
pub struct LeafProfile {
    /// Whom it names; the only URI SAN.
    pub id: SpiffeId,
    /// DNS names beside it. The first becomes the common name, for software that looks there.
    pub dns_names: Vec<String>,
    /// IP addresses beside it.
    pub ip_addresses: Vec<IpAddr>,
    /// How long it lives, at most as long as its authority.
    pub ttl: Duration,
    /// How far `not_before` lies in the past, for clocks that are behind.
    pub backdate: Duration,
    /// The serial number; it must not be zero. See [`digest::random_serial`].
    pub serial: [u8; 16],
    /// Where the authority's revocation list can be fetched, if the certificate shall say so.
    pub crl_url: Option<String>,
}

impl LeafProfile {
    /// A profile with the usual backdating and a random serial number.
    pub fn new(id: SpiffeId, ttl: Duration) -> Self {
        Self {
            id,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            ttl,
            backdate: BACKDATE_DEFAULT,
            serial: digest::random_serial(),
            crl_url: None,
        }
    }
}

/// What a CA certificate shall say.
#[derive(Debug, Clone)]
pub struct CaProfile {
    /// How long it lives, at most as long as its authority.
    pub ttl: Duration,
    /// How far `not_before` lies in the past.
    pub backdate: Duration,
    /// How many CAs may stand between it and a leaf; `None` sets no limit.
    pub path_len: Option<u8>,
    /// The serial number; it must not be zero.
    pub serial: [u8; 16],
}

impl CaProfile {
    /// A profile with the usual backdating, a random serial number, and no further CA below.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, backdate: BACKDATE_DEFAULT, path_len: Some(0), serial: digest::random_serial() }
    }
}

/// A CA certificate with its key, ready to sign.
pub struct X509Authority {
    trust_domain: TrustDomain,
    /// The CA's own certificate, then those between it and its root (without the root).
    chain: Vec<CertificateDer<'static>>,
    is_root: bool,
    not_before: SystemTime,
    not_after: SystemTime,
    /// How many CAs may stand below it; `None` sets no limit.
    path_len: Option<u8>,
    subject_key_id: String,
    key: SigningKey,
    issuer: Issuer<'static, SigningKey>,
}

impl X509Authority {
    /// Makes a self-signed root with a new P-256 key.
    pub fn generate_root(trust_domain: &TrustDomain, ttl: Duration, now: SystemTime) -> Result<Self, AuthorityError> {
        Self::root_of(trust_domain, PrivateKey::generate_p256().map_err(AuthorityError::Key)?, ttl, now)
    }

    /// Makes a self-signed root with the given key and no limit to its path length.
    pub fn root_of(
        trust_domain: &TrustDomain,
        key: impl Into<SigningKey>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::self_sign(trust_domain, key, &CaProfile { path_len: None, ..CaProfile::new(ttl) }, now)
    }

    /// Makes a self-signed root with the given key.
    pub fn self_sign(
        trust_domain: &TrustDomain,
        key: impl Into<SigningKey>,
        profile: &CaProfile,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = key.into();
        let validity = build::Validity::new(profile.ttl, profile.backdate, now, None)?;
        let mut params = build::ca_params(trust_domain, &key.public_key_spki(), profile, validity)?;
        build::name_key(&mut params, &key.public_key_spki());
        let certificate = params.self_signed(&key).map_err(unsigned)?;
        Self::from_parts(trust_domain, vec![certificate.into()], key)
    }

    /// Makes an intermediate with a new P-256 key, signed by this authority. One more CA may stand below it.
    pub fn generate_intermediate(&self, ttl: Duration, now: SystemTime) -> Result<Self, AuthorityError> {
        self.intermediate_of(PrivateKey::generate_p256().map_err(AuthorityError::Key)?, ttl, now)
    }

    /// The same with the given key.
    pub fn intermediate_of(
        &self,
        key: impl Into<SigningKey>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = key.into();
        let profile = CaProfile { path_len: Some(1), ..CaProfile::new(ttl) };
        let chain = self.sign_ca(&key.public_key_spki(), &profile, now)?;
        Self::from_parts(&self.trust_domain, chain, key)
    }

    /// Takes a stored authority: its own certificate first, then those up to its root, which may be left out.
    pub fn from_parts(
        trust_domain: &TrustDomain,
        mut chain: Vec<CertificateDer<'static>>,
        key: impl Into<SigningKey>,
    ) -> Result<Self, AuthorityError> {
        let key = key.into();
        let own = chain.first().ok_or(AuthorityError::NoCertificate)?.clone();
        let facts = build::CaFacts::decode(&own, trust_domain)?;
        if facts.public_key_spki != key.public_key_spki() {
            return Err(AuthorityError::KeyMismatch);
        }
        chain.truncate(if facts.is_root { 1 } else { chain.len() });
        chain.retain(|certificate| *certificate == own || !build::is_self_issued(certificate));
        chain.iter().try_for_each(leaf::check_signing_certificate).map_err(AuthorityError::Certificate)?;
        let issuer = Issuer::from_ca_cert_der(&own, key.clone()).map_err(AuthorityError::Build)?;
        check_issuer_name(&own, &facts.subject_der)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            chain,
            is_root: facts.is_root,
            not_before: facts.not_before,
            not_after: facts.not_after,
            path_len: facts.path_len,
            subject_key_id: facts.subject_key_id,
            key,
            issuer,
        })
    }

    /// Signs an X.509-SVID for a key. The result is the leaf and what stands between it and the root.
    pub fn sign_svid(
        &self,
        public_key_spki: &[u8],
        profile: &LeafProfile,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        if !profile.id.is_member_of(&self.trust_domain) {
            return Err(AuthorityError::ForeignId(profile.id.clone()));
        }
        let validity = self.clamped(profile.ttl, profile.backdate, now)?;
        let params = build::leaf_params(profile, validity)?;
        self.sign(params, public_key_spki)
    }

    /// Signs a CA certificate of the same trust domain for a key, such as a downstream CA's.
    pub fn sign_ca(
        &self,
        public_key_spki: &[u8],
        profile: &CaProfile,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let validity = self.clamped(profile.ttl, profile.backdate, now)?;
        let profile = CaProfile { path_len: self.path_len_below(profile.path_len)?, ..profile.clone() };
        let params = build::ca_params(&self.trust_domain, public_key_spki, &profile, validity)?;
        self.sign(params, public_key_spki)
    }

    /// The path length for a CA below this one: what was asked for, as far as our own allows it.
    fn path_len_below(&self, asked: Option<u8>) -> Result<Option<u8>, AuthorityError> {
        match self.path_len {
            None => Ok(asked),
            Some(0) => Err(AuthorityError::PathLength),
            Some(own) => Ok(Some(asked.map_or(own - 1, |asked| asked.min(own - 1)))),
        }
    }

    fn sign(
        &self,
        mut params: rcgen::CertificateParams,
        public_key_spki: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let key = signable_key(public_key_spki)?;
        build::name_key(&mut params, public_key_spki);
        let certificate = params.signed_by(&key, &self.issuer).map_err(unsigned)?;
        let mut chain = vec![CertificateDer::from(certificate)];
        if !self.is_root {
            chain.extend(self.chain.iter().cloned());
        }
        Ok(chain)
    }

    fn clamped(&self, ttl: Duration, backdate: Duration, now: SystemTime) -> Result<build::Validity, AuthorityError> {
        build::Validity::new(ttl, backdate, now, Some((self.not_before, self.not_after)))
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0] // `from_parts` lets no empty chain in.
    }

    /// Its own certificate and those up to its root, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whether it is a root, so that its certificate belongs into the bundle.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// When it starts to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its subject key identifier in hexadecimal, which names the authority in SPIRE's API.
    pub fn subject_key_id(&self) -> &str {
        &self.subject_key_id
    }

    fn subject_key_id_bytes(&self) -> Vec<u8> {
        let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
        self.subject_key_id.as_bytes().chunks(2).filter_map(byte).collect()
    }

    /// Its private key.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }
}

/// Signs a throw-away leaf with a throw-away key, and compares the issuer's name in it with our own name byte by byte: a
/// name that our encoder writes differently would make every path fail.
fn check_issuer_name(own: &CertificateDer<'_>, subject_der: &[u8]) -> Result<(), AuthorityError> {
    let key = PrivateKey::generate_p256().map_err(AuthorityError::Key)?;
    let issuer = Issuer::from_ca_cert_der(own, &key).map_err(AuthorityError::Build)?;
    let probe = rcgen::CertificateParams::default().signed_by(&key, &issuer).map_err(AuthorityError::Build)?;
    let decoded = leaf::decode(probe.der()).map_err(AuthorityError::Certificate)?;
    if decoded.issuer().as_raw() == subject_der { Ok(()) } else { Err(AuthorityError::SubjectEncoding) }
}

/// Nothing was signed: the key is elsewhere and gave no signature, or the content could not be written.
pub(crate) fn unsigned(error: rcgen::Error) -> AuthorityError {
    match error {
        rcgen::Error::RemoteKeyError => AuthorityError::KeyUnavailable,
        error => AuthorityError::Build(error),
    }
}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authority")
            .field("trust_domain", &self.trust_domain)
            .field("subject_key_id", &self.subject_key_id)
            .finish_non_exhaustive()
    }
}

/// A key that may be certified: P-256, P-384, Ed25519, or RSA of at least 2048 bits.
fn signable_key(spki: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    match PublicKey::from_spki_der(spki).map_err(AuthorityError::PublicKey)? {
        PublicKey::Ec { curve: Curve::P521, .. } => Err(AuthorityError::PublicKey(PublicKeyError::Unsupported)),
        PublicKey::Ec { .. } | PublicKey::Rsa { .. } | PublicKey::Ed25519 { .. } => {
            SubjectPublicKeyInfo::from_der(spki).map_err(AuthorityError::Build)
        }
    }
}

/// Why an authority cannot be used, or refuses to sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// There is no certificate.
    #[error("the authority has no certificate")]
    NoCertificate,
    /// A certificate is not fit to sign.
    #[error("a certificate of the authority is not fit to sign others")]
    Certificate(#[source] LeafError),
    /// The certificate names another trust domain, or an ID with a path.
    #[error("the authority's certificate carries {0}, not the ID of the trust domain")]
    CertificateId(String),
    /// The certificate has no subject key identifier.
    #[error("the authority's certificate has no subject key identifier")]
    NoSubjectKeyId,
    /// The certificate's subject is empty or written in a way that we cannot repeat.
    #[error("the authority's subject is empty or cannot be repeated as the issuer of others")]
    SubjectEncoding,
    /// The key is not the certificate's.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    /// The key could not be made.
    #[error("the authority's key cannot be used")]
    Key(#[source] KeyError),
    /// The key is kept elsewhere, and no good signature came from there.
    #[error("the keeper of the authority's key gives no signature")]
    KeyUnavailable,
    /// The public key to be certified is not accepted.
    #[error("the key to be signed is not accepted")]
    PublicKey(#[source] PublicKeyError),
    /// The ID belongs to another trust domain.
    #[error("{0} is not of the authority's trust domain")]
    ForeignId(SpiffeId),
    /// The ID has no path.
    #[error("{0} has no path and cannot name a workload")]
    IdWithoutPath(SpiffeId),
    /// A DNS name is malformed or too long, or there are too many names.
    #[error("the DNS name {0:?} is malformed, or one of more than {NAMES_MAX} names")]
    DnsName(String),
    /// The authority's own path length forbids a CA below it.
    #[error("the authority may sign leaves only, no further CA")]
    PathLength,
    /// The serial number is zero.
    #[error("a serial number must not be zero")]
    Serial,
    /// The authority is not valid now, or the lifetime asked for is zero.
    #[error("the authority is not valid now, or the lifetime asked for is zero")]
    NotValidNow,
    /// A time cannot be expressed in a certificate.
    #[error("the time lies outside of what certificates can express")]
    Time,
    /// The certificate could not be written or signed.
    #[error("the certificate could not be made")]
    Build(#[source] rcgen::Error),
}

impl AuthorityError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PublicKey(_) => "CSR_KEY_REFUSED",
            Self::ForeignId(_) | Self::IdWithoutPath(_) | Self::DnsName(_) | Self::PathLength | Self::Serial => {
                "SVID_PROFILE_INVALID"
            }
            Self::NotValidNow => "AUTHORITY_EXPIRED",
            Self::NoCertificate
            | Self::Certificate(_)
            | Self::CertificateId(_)
            | Self::NoSubjectKeyId
            | Self::SubjectEncoding
            | Self::KeyMismatch => "AUTHORITY_INVALID",
            Self::KeyUnavailable => "AUTHORITY_KEY_UNAVAILABLE",
            Self::Key(_) | Self::Time | Self::Build(_) => "AUTHORITY_FAILED",
        }
    }
}

/// How far `not_before` lies in the past unless the profile says otherwise.
pub const BACKDATE_DEFAULT: Duration = Duration::from_secs(60);

/// The most DNS names, and the most addresses, in one certificate.
pub const NAMES_MAX: usize = 100;

#[cfg(test)]
mod tests;
