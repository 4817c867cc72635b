//! An X.509-SVID: the certificates that prove an ID, with the key, checked to belong together.
//!
//! What a TLS handshake needs is made for the first one, and later ones only clone a pointer: an agent holds thousands of SVIDs
//! that it hands on and never shows itself.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};
use zeroize::Zeroizing;

use crate::digest;
use crate::key::PrivateKey;
use crate::leaf::{self, Leaf, LeafError};
use crate::pem;
use crate::spiffe_id::SpiffeId;
use crate::tls;
use crate::verify::CHAIN_CERTIFICATES_MAX;

/// A workload's X.509-SVID.
#[derive(Clone)]
pub struct X509Svid {
    facts: Facts,
    leaf_der: CertificateDer<'static>,
    /// The certificates above the leaf; SVIDs of one issuer may share them.
    issuers: Arc<[CertificateDer<'static>]>,
    key: PrivateKey,
    hint: String,
    certified_key: OnceLock<Option<Arc<CertifiedKey>>>,
}

/// What the leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whom it proves.
    pub id: SpiffeId,
    /// Hexadecimal, without leading zeros.
    pub serial: Box<str>,
    /// When it starts to be valid.
    pub not_before: SystemTime,
    /// When it expires.
    pub not_after: SystemTime,
    /// Its DNS names.
    pub dns_names: Box<[String]>,
}

/// An SVID as it was kept; see [`X509Svid::kept`].
pub struct KeptSvid {
    /// What its leaf says.
    pub facts: Facts,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// SubjectPublicKeyInfo (DER) of the leaf and the key.
    pub public_key_spki: Vec<u8>,
}

impl X509Svid {
    /// Puts a chain (leaf first) and its key together. Whether anybody trusts the chain is not asked here.
    pub fn from_parts(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        if chain.len() > CHAIN_CERTIFICATES_MAX {
            return Err(SvidError::ChainTooLong(chain.len()));
        }
        let (leaf_der, issuers) = split(chain)?;
        let leaf = leaf::decode_leaf(&leaf_der).map_err(SvidError::Leaf)?;
        issuers.iter().try_for_each(leaf::check_signing_certificate).map_err(SvidError::SigningCertificate)?;
        if leaf.public_key_spki != key.public_key_spki() {
            return Err(SvidError::KeyMismatch);
        }
        let Leaf { id, serial, not_before, not_after, dns_names, .. } = leaf;
        let (serial, dns_names) = (serial.into(), dns_names.into());
        Ok(Self::of(Facts { id, serial, not_before, not_after, dns_names }, (leaf_der, issuers), key.at_rest()))
    }

    /// Takes up an SVID that was put together before and kept, with what is known of it, where nobody else can write: nothing is
    /// looked at again, and nothing is computed with the key before it is used.
    pub fn kept(kept: KeptSvid) -> Result<Self, SvidError> {
        let key = PrivateKey::kept(kept.pkcs8, &kept.public_key_spki).map_err(|_| SvidError::KeyMismatch)?;
        Ok(Self::of(kept.facts, split(kept.chain)?, key))
    }

    fn of(facts: Facts, (leaf_der, issuers): Split, key: PrivateKey) -> Self {
        Self { facts, leaf_der, issuers, key, hint: String::new(), certified_key: OnceLock::new() }
    }

    /// The same SVID; what lies above its leaf is held in memory only once when `other` has the same.
    pub fn sharing_issuers(mut self, other: &Self) -> Self {
        if self.issuers == other.issuers {
            self.issuers = other.issuers.clone();
        }
        self
    }

    /// The same SVID with an operator's hint of what it is for.
    pub fn with_hint(mut self, hint: &str) -> Self {
        self.hint = hint.to_owned();
        self
    }

    /// Whom it proves.
    pub fn id(&self) -> &SpiffeId {
        &self.facts.id
    }

    /// What the leaf says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.leaf_der).chain(self.issuers.iter())
    }

    /// The same for who keeps it.
    pub fn to_chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain().cloned().collect()
    }

    /// The leaf.
    pub fn leaf_der(&self) -> &CertificateDer<'static> {
        &self.leaf_der
    }

    /// The certificates above the leaf, without the root.
    pub fn issuers(&self) -> &[CertificateDer<'static>] {
        &self.issuers
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// What the SVID is for, if the operator said so.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// When the leaf starts to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// When the leaf expires.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// The leaf's serial number, hexadecimal without leading zeros.
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// The leaf's DNS names.
    pub fn dns_names(&self) -> &[String] {
        &self.facts.dns_names
    }

    /// SHA-256 of the leaf's DER.
    pub fn fingerprint_sha256(&self) -> [u8; 32] {
        digest::sha256(self.leaf_der())
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        pem::certificates(self.chain())
    }

    /// The chain as concatenated DER, as the Workload API carries it.
    pub fn concatenated_der(&self) -> Vec<u8> {
        self.chain().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// Chain and key in the form rustls uses; none when TLS cannot use the key.
    pub fn certified_key(&self) -> Option<&Arc<CertifiedKey>> {
        let make = || {
            let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.pkcs8_der().to_vec()));
            let signing_key = tls::provider().key_provider.load_private_key(der).ok()?;
            Some(Arc::new(CertifiedKey::new(self.to_chain(), signing_key)))
        };
        self.certified_key.get_or_init(make).as_ref()
    }
}

/// A leaf and what lies above it.
type Split = (CertificateDer<'static>, Arc<[CertificateDer<'static>]>);

fn split(chain: Vec<CertificateDer<'static>>) -> Result<Split, SvidError> {
    let mut chain = chain.into_iter();
    let leaf = chain.next().ok_or(SvidError::NoCertificate)?;
    Ok((leaf, chain.collect()))
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("id", self.id())
            .field("serial", &self.serial())
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// Splits concatenated DER certificates, as the Workload API carries chains and bundles.
pub fn split_concatenated_der(mut bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        if certificates.len() == pem::CERTIFICATES_MAX {
            return Err(SvidError::ChainTooLong(certificates.len()));
        }
        let (rest, element) = Any::from_der(bytes).map_err(|_| SvidError::Leaf(LeafError::Malformed))?;
        if element.header.assert_tag(Tag::Sequence).is_err() {
            return Err(SvidError::Leaf(LeafError::Malformed));
        }
        certificates.push(CertificateDer::from(bytes[..bytes.len() - rest.len()].to_vec()));
        bytes = rest;
    }
    Ok(certificates)
}

/// Why certificates and a key are no SVID.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// The chain is longer than peers read.
    #[error("the chain has {0} certificates; peers read at most {CHAIN_CERTIFICATES_MAX}")]
    ChainTooLong(usize),
    /// The leaf breaks a rule.
    #[error("the leaf is not an X.509-SVID")]
    Leaf(#[source] LeafError),
    /// An intermediate breaks a rule.
    #[error("an intermediate breaks the X.509-SVID rules")]
    SigningCertificate(#[source] LeafError),
    /// The key is not the leaf's.
    #[error("the private key does not belong to the leaf")]
    KeyMismatch,
}

impl SvidError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeyMismatch => "SVID_KEY_MISMATCH",
            Self::NoCertificate | Self::ChainTooLong(_) | Self::Leaf(_) | Self::SigningCertificate(_) => "SVID_INVALID",
        }
    }
}
