//! Device certificates: X.509 identities that somebody else gave to a machine, by which a node proves what it is.
//!
//! [`VerifiedDevice`] says that a chain leads to a trusted root; only [`VerifiedDevice::check_possession`] says that the
//! other side also holds the key. Everything that costs time is limited before it begins: the number of certificates,
//! their lengths, and the size of every key.

mod key;
mod pss;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::certificate::X509Certificate;

pub use key::{DeviceKey, DeviceKeyError};

use crate::digest;
use crate::leaf::{self, LeafError};
use crate::public_key::{PublicKey, PublicKeyError};
use crate::spiffe_id::SpiffeId;

/// A device certificate whose chain leads to a trusted root. Only [`VerifiedDevice::verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedDevice {
    leaf: CertificateDer<'static>,
    key: PublicKey,
    issuers: Vec<CertificateDer<'static>>,
    common_name: Option<String>,
    serial: String,
    uris: Vec<String>,
}

/// Which proof a key can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKeyKind {
    /// RSASSA-PSS with SHA-256.
    Rsa,
    /// ECDSA with SHA-256.
    Ecdsa,
}

/// A proof of possession.
#[derive(Clone, Debug)]
pub enum PossessionProof {
    /// RSASSA-PSS with SHA-256 and a salt of any length.
    Rsa(Vec<u8>),
    /// ECDSA with SHA-256: both numbers big-endian, leading zeros or not.
    Ecdsa {
        /// `r`.
        r: Vec<u8>,
        /// `s`.
        s: Vec<u8>,
    },
}

impl VerifiedDevice {
    /// Verifies a chain, leaf first, against `roots`. The leaf must be no CA and be meant for signatures; what else it is
    /// meant for does not matter.
    pub fn verify(
        chain: &[CertificateDer<'_>],
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Self, DeviceError> {
        let (leaf_der, rest) = chain.split_first().ok_or(DeviceError::NoCertificate)?;
        if chain.len() > DEVICE_CHAIN_MAX {
            return Err(DeviceError::ChainTooLong(chain.len()));
        }
        let mut keys = chain.iter().map(key_of).collect::<Result<Vec<_>, _>>()?;
        let leaf = leaf::decode(leaf_der).map_err(DeviceError::Leaf)?;
        check_usage(&leaf)?;
        let names = leaf::names(&leaf).map_err(DeviceError::Leaf)?;
        Ok(Self {
            issuers: path(leaf_der, rest, roots, now)?,
            key: keys.swap_remove(0),
            common_name: leaf.subject().iter_common_name().next().and_then(|name| Some(name.as_str().ok()?.to_owned())),
            serial: digest::hex(without_leading_zeros(leaf.raw_serial())),
            uris: names.uris,
            leaf: leaf_der.clone().into_owned(),
        })
    }

    /// Checks that the other side holds the key: its `proof` is over `message`, which must hold randomness of ours.
    pub fn check_possession(&self, message: &[u8], proof: &PossessionProof) -> Result<(), DeviceError> {
        check_proof(&self.key, message, proof)
    }

    /// Which proof to ask for.
    pub fn key_kind(&self) -> Result<DeviceKeyKind, DeviceError> {
        match self.key {
            PublicKey::Rsa { .. } => Ok(DeviceKeyKind::Rsa),
            PublicKey::Ec { .. } => Ok(DeviceKeyKind::Ecdsa),
            PublicKey::Ed25519 { .. } => Err(DeviceError::KeyKind),
        }
    }

    /// SHA-1 of the leaf in hex, the name that SPIRE gives to such a node. It is a name, not a proof.
    pub fn fingerprint_sha1(&self) -> String {
        digest::sha1_hex_for_names(&self.leaf)
    }

    /// SHA-256 of the leaf in hex.
    pub fn fingerprint_sha256(&self) -> String {
        digest::hex(&digest::sha256(&self.leaf))
    }

    /// SHA-1 of every certificate above the leaf, up to the root, in hex.
    pub fn issuer_fingerprints_sha1(&self) -> Vec<String> {
        self.issuers.iter().map(|issuer| digest::sha1_hex_for_names(issuer)).collect()
    }

    /// The subject's common name.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The serial number in hex, lower case, without leading zeros.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The URI names.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The ID of a leaf that obeys the rules of an X.509-SVID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, DeviceError> {
        leaf::decode_leaf(&self.leaf).map(|leaf| leaf.id).map_err(DeviceError::Leaf)
    }
}

/// The certificates above the leaf in the path that was found, the root last.
fn path(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Vec<CertificateDer<'static>>, DeviceError> {
    let anchor = |root| webpki::anchor_from_trusted_cert(root).map_err(|error| DeviceError::Root(error.to_string()));
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(anchor).collect::<Result<_, _>>()?;
    let refused = |error: webpki::Error| DeviceError::Path(error.to_string());
    let end_entity = EndEntityCert::try_from(leaf).map_err(refused)?;
    let path = end_entity
        .verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, rest, now, AnyUsage, None, None)
        .map_err(refused)?;
    let used = |anchor: &TrustAnchor<'_>| {
        anchor.subject == path.anchor().subject
            && anchor.subject_public_key_info == path.anchor().subject_public_key_info
    };
    let root = anchors.iter().zip(roots).find(|(anchor, _)| used(anchor)).map(|(_, root)| root.clone().into_owned());
    let between = path.intermediate_certificates().map(|certificate| certificate.der().into_owned());
    Ok(between.chain(root).collect())
}

/// Every key is read before any signature is verified, so that an oversized one costs nothing.
fn key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, DeviceError> {
    let certificate = leaf::decode(certificate).map_err(DeviceError::Leaf)?;
    PublicKey::from_spki(certificate.public_key()).map_err(DeviceError::Key)
}

fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), DeviceError> {
    if leaf::is_ca(leaf).map_err(DeviceError::Leaf)? {
        return Err(DeviceError::Leaf(LeafError::Authority));
    }
    let usage = leaf.key_usage().map_err(|_| DeviceError::Leaf(LeafError::Malformed))?;
    match usage {
        Some(usage) if usage.value.digital_signature() => Ok(()),
        _ => Err(DeviceError::Leaf(LeafError::KeyUsage("a device certificate needs digitalSignature"))),
    }
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or_else(|| number.len().saturating_sub(1));
    &number[first..]
}

/// A device certificate may be for servers, clients or anything else.
#[derive(Clone, Copy, Debug)]
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, mut iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        iter.try_for_each(|purpose| purpose.map(drop))
    }
}

fn check_proof(key: &PublicKey, message: &[u8], proof: &PossessionProof) -> Result<(), DeviceError> {
    let holds = match (key, proof) {
        (PublicKey::Rsa { modulus, exponent }, PossessionProof::Rsa(signature)) => {
            pss::verifies(modulus, exponent, message, signature)
        }
        (PublicKey::Ec { curve, point }, PossessionProof::Ecdsa { r, s }) => {
            key::ecdsa_verifies(*curve, point, message, r, s)
        }
        _ => return Err(DeviceError::ProofKind),
    };
    if holds { Ok(()) } else { Err(DeviceError::Possession) }
}

/// Checks that the other side holds the key of `certificate`, whoever issued that: its `proof` is over `message`, which must
/// hold randomness of ours. What the certificate says counts only for who knows it by other means.
pub fn check_possession(
    certificate: &CertificateDer<'_>,
    message: &[u8],
    proof: &PossessionProof,
) -> Result<(), DeviceError> {
    check_proof(&key_of(certificate)?, message, proof)
}

/// Why a device is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No certificate at all.
    #[error("no certificate is shown")]
    NoCertificate,
    /// Too many certificates.
    #[error("{0} certificates are shown; at most {DEVICE_CHAIN_MAX} are read")]
    ChainTooLong(usize),
    /// A certificate breaks a rule.
    #[error("{0}")]
    Leaf(#[source] LeafError),
    /// A key in the chain is not accepted.
    #[error("{0}")]
    Key(#[source] PublicKeyError),
    /// A key that gives no proof we know.
    #[error("the device key is neither RSA nor ECDSA")]
    KeyKind,
    /// No path to a root.
    #[error("the chain leads to no trusted root: {0}")]
    Path(String),
    /// A root of ours is none.
    #[error("a configured root cannot be used: {0}")]
    Root(String),
    /// The proof is of another kind than the key.
    #[error("the proof does not fit the key")]
    ProofKind,
    /// The proof is wrong.
    #[error("the other side does not hold the key")]
    Possession,
}

impl DeviceError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "DEVICE_CERTIFICATE_MISSING",
            Self::ChainTooLong(_) => "DEVICE_CHAIN_TOO_LONG",
            Self::Leaf(_) => "DEVICE_CERTIFICATE_REFUSED",
            Self::Key(error) => error.reason(),
            Self::KeyKind => "DEVICE_KEY_UNSUPPORTED",
            Self::Path(_) => "DEVICE_CHAIN_UNTRUSTED",
            Self::Root(_) => "DEVICE_ROOT_UNUSABLE",
            Self::ProofKind | Self::Possession => "DEVICE_KEY_NOT_HELD",
        }
    }
}

/// The most certificates of a device's chain, the leaf included.
pub const DEVICE_CHAIN_MAX: usize = 8;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
