//! Whether a CA certificate from elsewhere is fit to be an authority of a trust domain: a root, or an intermediate with what
//! leads from it to its root.
//!
//! Everything that can be seen without signing is looked at here. Whether its signatures are accepted shows a trial.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::authority::{AuthorityError, X509Authority};
use crate::key::KeyKind;
use crate::leaf::{self, LeafError};
use crate::pem::{self, PemError};
use crate::profile::shape::Shape;
use crate::public_key::{PublicKey, PublicKeyError};
use crate::signing_key::SigningKey;
use crate::spiffe_id::TrustDomain;

/// What is offered, as PEM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer<'a> {
    /// The authority's own certificate; others may follow it.
    pub certificate: &'a [u8],
    /// What stands between it and its root; may be empty.
    pub chain: &'a [u8],
    /// Its root; may be empty when the certificate is one, or the root is among the others.
    pub root: &'a [u8],
}

/// What an authority needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Whose authority it is to be.
    pub trust_domain: &'a TrustDomain,
    /// The moment.
    pub now: SystemTime,
    /// How long it must still live.
    pub life_min: Duration,
}

/// An authority that was found fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its own certificate, and what stands between it and the root, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that it leads to; its own certificate if it is one.
    pub root: CertificateDer<'static>,
    /// The kind of its key.
    pub kind: KeyKind,
}

impl Candidate {
    /// Finds the way from the offered certificate to its root, and checks each certificate on it.
    ///
    /// # Errors
    /// Names the first certificate that is not fit, and why.
    pub fn check(offer: Offer<'_>, needs: Needs<'_>) -> Result<Self, ImportError> {
        let mut pool = read("certificate", offer.certificate)?;
        let own = pool.remove(0);
        pool.extend(read_optional("chain", offer.chain)?);
        pool.extend(read_optional("root", offer.root)?);
        let way = way(own, &pool)?;
        for (below, certificate) in way.iter().enumerate() {
            check_certificate(certificate, below, needs)?;
        }
        let kind = kind_of(&way[0])?; // `way` begins with `own`.
        let (root, chain) = way.split_last().ok_or(ImportError::NoRoot(String::new()))?;
        let chain = if chain.is_empty() { vec![root.clone()] } else { chain.to_vec() };
        Ok(Self { chain, root: root.clone(), kind })
    }

    /// Its public key as SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> Vec<u8> {
        leaf::decode(&self.chain[0]).map(|certificate| certificate.public_key().raw.to_vec()).unwrap_or_default()
    }

    /// Whether it is a root.
    pub fn is_root(&self) -> bool {
        self.chain[0] == self.root // `check` makes no empty chain.
    }

    /// The authority, with its key.
    ///
    /// # Errors
    /// When the key is another one's, or the certificate's name cannot be repeated.
    pub fn with_key(
        &self,
        trust_domain: &TrustDomain,
        key: impl Into<SigningKey>,
    ) -> Result<X509Authority, ImportError> {
        X509Authority::from_parts(trust_domain, self.chain.clone(), key).map_err(|error| match error {
            AuthorityError::KeyMismatch => ImportError::KeyMismatch,
            error => ImportError::Unfit { name: name_of(&self.chain[0]), source: error },
        })
    }
}

fn read(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, ImportError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ImportError::TooLong(what));
    }
    pem::decode_certificates(text).map_err(|source| ImportError::Unreadable { what, source })
}

fn read_optional(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, ImportError> {
    if text.is_empty() { Ok(Vec::new()) } else { read(what, text) }
}

/// The certificates from `own` up to a root, each the issuer of the one before by name and by signature.
fn way(
    own: CertificateDer<'static>,
    pool: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, ImportError> {
    let mut way = vec![own];
    for _ in 0..=CHAIN_MAX + 1 {
        let last = way.last().ok_or(ImportError::NoRoot(String::new()))?.clone();
        let shape = shape(&last)?;
        // First: no signature of a weak key verifies, which would be the wrong thing to say.
        kind_of(&last)?;
        if shape.issuer == shape.subject {
            return if shape.signed.is_by(shape.spki) { Ok(way) } else { Err(ImportError::Signature(name_of(&last))) };
        }
        let named = |der: &&CertificateDer<'static>| Shape::decode(der).is_ok_and(|it| it.subject == shape.issuer);
        let signs = |der: &&CertificateDer<'static>| Shape::decode(der).is_ok_and(|it| shape.signed.is_by(it.spki));
        let issuer = match pool.iter().filter(named).find(signs) {
            Some(issuer) => issuer.clone(),
            None if pool.iter().any(|der| named(&der)) => return Err(ImportError::Signature(name_of(&last))),
            None => return Err(ImportError::NoRoot(name_of(&last))),
        };
        way.push(issuer);
    }
    Err(ImportError::ChainTooLong)
}

fn shape<'a>(der: &'a CertificateDer<'_>) -> Result<Shape<'a>, ImportError> {
    Shape::decode(der).map_err(|_| ImportError::Malformed)
}

/// `below` is how many CAs stand below it on the way to leaves.
fn check_certificate(der: &CertificateDer<'_>, below: usize, needs: Needs<'_>) -> Result<(), ImportError> {
    let name = || name_of(der);
    let certificate = leaf::decode(der).map_err(|_| ImportError::Malformed)?;
    match leaf::check_signing_certificate(der) {
        Ok(()) => (),
        Err(LeafError::NotAuthority | LeafError::KeyUsage(_)) => return Err(ImportError::NotAuthority(name())),
        Err(source) => return Err(ImportError::Unfit { name: name(), source: AuthorityError::Certificate(source) }),
    }
    kind_of(der)?;
    let uris = leaf::names(&certificate).map_err(|_| ImportError::Malformed)?.uris;
    let own_id = needs.trust_domain.id();
    if let Some(foreign) = uris.iter().find(|uri| uri.starts_with("spiffe://") && **uri != *own_id.as_str()) {
        return Err(ImportError::ForeignTrustDomain { name: name(), found: foreign.clone() });
    }
    let constraints = certificate.basic_constraints().map_err(|_| ImportError::Malformed)?;
    let path_len = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    // A root signs an intermediate of ours, also when none was offered.
    let is_root = certificate.subject().as_raw() == certificate.issuer().as_raw();
    let below = if is_root { below.max(1) } else { below };
    if path_len.is_some_and(|len| usize::try_from(len).unwrap_or(usize::MAX) < below) {
        return Err(ImportError::PathLength { name: name(), below });
    }
    let (not_before, not_after) = leaf::validity(&certificate);
    if not_after <= needs.now || needs.now < not_before {
        return Err(ImportError::Expired(name()));
    }
    if not_after < needs.now + needs.life_min {
        return Err(ImportError::LifeTooShort { name: name(), needed: needs.life_min.as_secs() });
    }
    Ok(())
}

fn kind_of(der: &CertificateDer<'_>) -> Result<KeyKind, ImportError> {
    let spki = shape(der)?.spki;
    let weak = |source| ImportError::KeyRefused { name: name_of(der), source };
    match PublicKey::from_spki_der(spki).map_err(weak)? {
        PublicKey::Rsa { modulus, .. } if modulus.len() * 8 > RSA_BITS_MAX => {
            Err(weak(PublicKeyError::RsaSize(modulus.len() * 8)))
        }
        _ => KeyKind::of_spki(spki).ok_or_else(|| weak(PublicKeyError::Unsupported)),
    }
}

fn name_of(der: &CertificateDer<'_>) -> String {
    leaf::decode(der).map_or_else(|_| "?".to_owned(), |certificate| leaf::distinguished_name(certificate.subject()))
}

/// Why an authority from elsewhere is not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// No certificates in a text.
    #[error("the {what} cannot be read")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: PemError,
    },
    /// Longer than any sensible file.
    #[error("the {0} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong(&'static str),
    /// Not a certificate.
    #[error("a certificate is malformed")]
    Malformed,
    /// The key is another one's.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    /// Not a CA certificate.
    #[error(
        "the certificate `{0}` may not sign others: it needs basicConstraints CA:TRUE and the key usage keyCertSign"
    )]
    NotAuthority(String),
    /// A certificate of another trust domain.
    #[error("the certificate `{name}` names {found}, which is not this trust domain")]
    ForeignTrustDomain {
        /// Which.
        name: String,
        /// Whom it names.
        found: String,
    },
    /// The path length is too small.
    #[error("the path length of `{name}` does not allow {below} CA(s) below it")]
    PathLength {
        /// Which.
        name: String,
        /// How many there would be.
        below: usize,
    },
    /// Not valid now.
    #[error("the certificate `{0}` is not valid now")]
    Expired(String),
    /// Not valid for long enough.
    #[error("the certificate `{name}` ends within {needed} s, which is too soon")]
    LifeTooShort {
        /// Which.
        name: String,
        /// Seconds.
        needed: u64,
    },
    /// A key that is weak, or that not every client takes.
    #[error("the key of `{name}` is not accepted: P-256, P-384, Ed25519 and RSA with 2048 to {RSA_BITS_MAX} bits are")]
    KeyRefused {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: PublicKeyError,
    },
    /// The issuer is not among what was offered.
    #[error("the issuer of `{0}` is missing")]
    NoRoot(String),
    /// A signature that does not verify, or of an algorithm that is not accepted.
    #[error("the signature on `{0}` does not verify, or is made in a way that is not accepted (SHA-1, for one)")]
    Signature(String),
    /// More certificates up to the root than clients follow.
    #[error("more than {CHAIN_MAX} certificates stand between the certificate and its root")]
    ChainTooLong,
    /// Something else is wrong with a certificate.
    #[error("the certificate `{name}` is not fit")]
    Unfit {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: AuthorityError,
    },
}

impl ImportError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } | Self::TooLong(_) | Self::Malformed => "IMPORT_UNREADABLE",
            Self::KeyMismatch => "IMPORT_KEY_MISMATCH",
            Self::NotAuthority(_) => "IMPORT_NOT_A_CA",
            Self::ForeignTrustDomain { .. } => "IMPORT_FOREIGN_TRUST_DOMAIN",
            Self::PathLength { .. } | Self::ChainTooLong => "IMPORT_PATH_LENGTH",
            Self::Expired(_) => "IMPORT_EXPIRED",
            Self::LifeTooShort { .. } => "IMPORT_LIFE_TOO_SHORT",
            Self::KeyRefused { .. } => "IMPORT_KEY_REFUSED",
            Self::NoRoot(_) => "IMPORT_CHAIN_INCOMPLETE",
            Self::Signature(_) => "IMPORT_SIGNATURE_REFUSED",
            Self::Unfit { .. } => "IMPORT_UNFIT",
        }
    }
}

/// The most certificates between an authority and its root.
pub const CHAIN_MAX: usize = 3;
/// The longest text with certificates.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// The longest RSA key of an authority: longer ones make each verification slow, and some clients refuse them.
pub const RSA_BITS_MAX: usize = 4096;

#[cfg(test)]
mod tests;
