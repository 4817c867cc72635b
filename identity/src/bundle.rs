//! What a trust domain publishes: the roots of its X.509-SVIDs and the public keys of its JWT-SVIDs and WIT-SVIDs, in the
//! SPIFFE bundle format and its relatives.
//!
//! A bundle belongs to exactly one trust domain. A [`BundleSet`] keeps bundles by name and never merges them, so that a
//! root of one domain can never vouch for an ID of another.

mod json;
mod map;
mod published;
mod set;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::digest;
use crate::jwk::{Jwk, JwkError};
use crate::leaf::LeafError;
use crate::pem::{self, PemError};
use crate::spiffe_id::TrustDomain;

pub use set::BundleSet;

/// One trust domain's public keys and roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// The roots.
    pub x509_authorities: Vec<CertificateDer<'static>>,
    /// The keys that sign JWT-SVIDs.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// The keys that sign WIT-SVIDs. They verify nothing else, and nothing else verifies a WIT-SVID.
    pub wit_authorities: Vec<JwtAuthority>,
    /// Roots (SHA-256 in hexadecimal) and key IDs whose signatures are to be replaced although they still count. Not
    /// part of the published format.
    pub tainted: BTreeSet<String>,
    /// Grows with each change.
    pub sequence: u64,
    /// How often to fetch it.
    pub refresh_hint: Option<Duration>,
}

/// The public half of a key that signs JWT-SVIDs, or WIT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAuthority {
    /// The key's ID, unique within the bundle.
    pub key_id: String,
    /// The key.
    pub jwk: Jwk,
    /// When the key stops being used; not part of the published format.
    pub expires_at: Option<SystemTime>,
}

impl JwtAuthority {
    /// Takes a key as SubjectPublicKeyInfo, as SPIRE's API carries it.
    pub fn from_spki_der(key_id: &str, der: &[u8], expires_at: Option<SystemTime>) -> Result<Self, JwkError> {
        let jwk = Jwk::from_spki_der(Some(key_id), der)?;
        Ok(Self { key_id: key_id.to_owned(), jwk, expires_at })
    }

    /// The key as SubjectPublicKeyInfo. Empty for a key without a public half, which no bundle parser lets in.
    pub fn spki_der(&self) -> Vec<u8> {
        self.jwk.spki_der().unwrap_or_default()
    }
}

impl TrustBundle {
    /// An empty bundle, which trusts nothing.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            tainted: BTreeSet::new(),
            sequence: 0,
            refresh_hint: None,
        }
    }

    /// A bundle of the roots in a PEM text.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let certificates = pem::decode_certificates(text).map_err(BundleError::Pem)?;
        Self::from_x509_authorities(trust_domain, certificates)
    }

    /// A bundle of the given roots; each must be a readable certificate. Doubles are dropped.
    pub fn from_x509_authorities(
        trust_domain: TrustDomain,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self::new(trust_domain);
        for certificate in certificates {
            bundle.add_x509_authority(certificate)?;
        }
        Ok(bundle)
    }

    /// Adds a root unless it is there already.
    pub fn add_x509_authority(&mut self, certificate: CertificateDer<'static>) -> Result<(), BundleError> {
        crate::leaf::decode(&certificate).map_err(BundleError::Certificate)?;
        if !self.x509_authorities.contains(&certificate) {
            if self.x509_authorities.len() == BUNDLE_KEYS_MAX {
                return Err(BundleError::TooLong);
            }
            self.x509_authorities.push(certificate);
        }
        Ok(())
    }

    /// Marks a root: what it signed shall be replaced.
    pub fn taint_x509_authority(&mut self, certificate: &CertificateDer<'_>) {
        self.tainted.insert(fingerprint(certificate));
    }

    /// Marks a JWT or WIT key: what it signed shall be replaced.
    pub fn taint_key(&mut self, key_id: &str) {
        self.tainted.insert(key_id.to_owned());
    }

    /// Whether a root is marked.
    pub fn is_x509_tainted(&self, certificate: &CertificateDer<'_>) -> bool {
        self.tainted.contains(&fingerprint(certificate))
    }

    /// Whether a JWT or WIT key is marked.
    pub fn is_key_tainted(&self, key_id: &str) -> bool {
        self.tainted.contains(key_id)
    }

    /// The bundle without what is marked: what verifies by it needs no replacement.
    pub fn untainted(&self) -> Self {
        let mut bundle = self.clone();
        bundle.x509_authorities.retain(|certificate| !self.is_x509_tainted(certificate));
        bundle.jwt_authorities.retain(|authority| !self.is_key_tainted(&authority.key_id));
        bundle.wit_authorities.retain(|authority| !self.is_key_tainted(&authority.key_id));
        bundle.tainted.clear();
        bundle
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        pem::certificates(&self.x509_authorities)
    }

    /// The roots as concatenated DER, as the Workload API carries them.
    pub fn to_concatenated_der(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// The bundle in the SPIFFE bundle format.
    pub fn to_spiffe_json(&self) -> String {
        json::encode(self).to_string()
    }

    /// Reads the SPIFFE bundle format. The document does not name its trust domain; the caller knows it.
    pub fn parse_spiffe_json(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        json::decode(trust_domain, document)
    }

    /// Reads what a bundle endpoint publishes for `trust_domain`: the SPIFFE bundle format, or a bundle map that holds it.
    ///
    /// # Errors
    /// When it is neither, or contradicts the name: see [`BundleError`].
    pub fn parse_published(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        published::decode(trust_domain, document)
    }

    /// The JWT keys as a JWKS for the Workload API (`use` is `jwt-svid`); keys of other uses are left out.
    pub fn jwt_jwks(&self) -> Value {
        jwks(&self.jwt_authorities, json::USE_JWT)
    }

    /// The WIT keys as a JWKS for the Workload API (`use` is `wit-svid`); keys of other uses are left out.
    pub fn wit_jwks(&self) -> Value {
        jwks(&self.wit_authorities, json::USE_WIT)
    }

    /// The JWT keys as an ordinary JWKS, as OIDC discovery publishes them (`use` is `sig`, with `alg`).
    pub fn jwks(&self) -> Value {
        jwks(&self.jwt_authorities, "sig")
    }

    /// Whether both bundles hold the same roots and keys, whatever their order and numbers.
    pub fn has_same_keys(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(ours: &[T], theirs: &[T]) -> bool {
            ours.len() == theirs.len() && ours.iter().all(|item| theirs.contains(item))
        }
        self.trust_domain == other.trust_domain
            && self.tainted == other.tainted
            && same(&self.x509_authorities, &other.x509_authorities)
            && same(&self.jwt_authorities, &other.jwt_authorities)
            && same(&self.wit_authorities, &other.wit_authorities)
    }
}

fn jwks(authorities: &[JwtAuthority], usage: &str) -> Value {
    let keys = authorities.iter().map(|authority| {
        let mut members = json::encode_key(authority, usage);
        if usage == "sig" {
            members.insert("alg".to_owned(), json!(authority.jwk.default_algorithm().as_str()));
        }
        Value::Object(members)
    });
    json!({ "keys": keys.collect::<Vec<_>>() })
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    digest::hex(&digest::sha256(certificate))
}

/// Why a bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The PEM text is not readable.
    #[error("the bundle is not readable PEM")]
    Pem(#[source] PemError),
    /// A root is not a readable certificate.
    #[error("a root of the bundle is not readable")]
    Certificate(#[source] LeafError),
    /// Longer than a bundle may be.
    #[error("the bundle is longer than {BUNDLE_BYTES_MAX} bytes or holds more than {BUNDLE_KEYS_MAX} keys")]
    TooLong,
    /// Not JSON of the right shape.
    #[error("the bundle is malformed: {0}")]
    Malformed(&'static str),
    /// A JWT or WIT key is not accepted.
    #[error("a JWT or WIT key of the bundle is not accepted")]
    JwtKey(#[source] JwkError),
    /// Two keys have the same ID.
    #[error("two keys of the bundle have the ID {0:?}")]
    KeyIdTwice(String),
    /// A bundle map without the trust domain that was asked for.
    #[error("the bundle map has no bundle of {0}")]
    NotInMap(TrustDomain),
    /// A root names another trust domain.
    #[error("a root of the bundle belongs to the trust domain {0}")]
    OtherTrustDomain(String),
}

impl BundleError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotInMap(_) | Self::OtherTrustDomain(_) => "BUNDLE_OTHER_TRUST_DOMAIN",
            _ => "BUNDLE_INVALID",
        }
    }
}

/// The longest bundle document read.
pub const BUNDLE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most roots, the most JWT keys and the most WIT keys in one bundle.
pub const BUNDLE_KEYS_MAX: usize = 1024;

#[cfg(test)]
mod tests;
