//! X.509-SVID validation: the only place where a certificate chain becomes a [`VerifiedPeer`].
//!
//! The order of the checks: limits; the leaf's own rules (exactly one URI SAN, a SPIFFE ID with a path, no CA, key usage);
//! the bundle **of the leaf's own trust domain**; the rules for each signing certificate that was sent; then the path to
//! one of that bundle's roots ([`crate::path`]); last, that domain's revocation lists.
//!
//! A chain that verified is remembered by its hash inside the bundle set it verified against, for as long as every
//! certificate of it is valid. The lists are asked each time, and the proof that the peer holds the key is part of each TLS
//! handshake and never remembered.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::BundleSet;
use crate::digest::{self, Sha256};
use crate::leaf::{self, Leaf, LeafError};
use crate::path::{self, PathError, PathRules, Usage};
use crate::profile::{Defect, Grade, Role};
use crate::revocation::{Link, RevocationError};
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// The other side of a connection, proven. Cheap to clone.
#[derive(Clone)]
pub struct VerifiedPeer(Arc<Proven>);

struct Proven {
    leaf: Leaf,
    leaf_der: CertificateDer<'static>,
    fingerprint_sha256: [u8; 32],
    /// The certificates of the path, for revocation lists to be asked about.
    links: Vec<Link>,
    root_id: Arc<str>,
    /// When every certificate that was sent is valid, and the root.
    valid_from: UnixTime,
    valid_until: UnixTime,
}

impl VerifiedPeer {
    /// Who the peer is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.leaf.id
    }

    /// The leaf's serial number, hexadecimal without leading zeros.
    pub fn leaf_serial(&self) -> &str {
        &self.0.leaf.serial
    }

    /// When the leaf starts to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.0.leaf.not_before
    }

    /// When the leaf expires. A connection must not outlive it by much.
    pub fn not_after(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    /// SHA-256 of the leaf's DER.
    pub fn fingerprint_sha256(&self) -> &[u8; 32] {
        &self.0.fingerprint_sha256
    }

    /// The leaf's DER.
    pub fn leaf_der(&self) -> &CertificateDer<'static> {
        &self.0.leaf_der
    }

    /// The leaf's DNS names.
    pub fn dns_names(&self) -> &[String] {
        &self.0.leaf.dns_names
    }

    /// The leaf's subject as RFC 4514 writes it; often empty.
    pub fn subject(&self) -> &str {
        &self.0.leaf.subject
    }

    /// The certificates of the verified path with their issuers, for revocation lists to be asked about.
    pub fn links(&self) -> &[Link] {
        &self.0.links
    }

    /// The root that the path leads to: its subject key identifier in hexadecimal, or the hash of its key.
    pub fn root_id(&self) -> &Arc<str> {
        &self.0.root_id
    }

    fn is_valid_at(&self, now: UnixTime) -> bool {
        self.0.valid_from <= now && now <= self.0.valid_until
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedPeer")
            .field("spiffe_id", self.spiffe_id())
            .field("leaf_serial", &self.leaf_serial())
            .finish_non_exhaustive()
    }
}

impl PartialEq for VerifiedPeer {
    fn eq(&self, other: &Self) -> bool {
        self.0.leaf_der == other.0.leaf_der
    }
}

impl Eq for VerifiedPeer {}

/// Verifies the chain a peer sent, leaf first. A root among the rest does no harm and no good.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let (leaf, rest) = chain.split_first().ok_or(PeerError::NoCertificate)?;
    verify_parts(leaf, rest, bundles, now)
}

/// As [`verify_peer`] for who judges each chain once: nothing is remembered, and so no memory taken.
pub fn verify_once(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let (leaf, rest) = chain.split_first().ok_or(PeerError::NoCertificate)?;
    check_lengths(leaf, rest)?;
    verified_now(leaf, rest, bundles, now)
}

/// As [`verify_peer`], with the leaf apart from the other certificates, as TLS hands them over.
pub(crate) fn verify_parts(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    check_lengths(leaf, rest)?;
    let chain_hash = hash_of(leaf, rest);
    if let Some(peer) = bundles.recall(&chain_hash).filter(|peer| peer.is_valid_at(now)) {
        check_revocation(&peer, bundles, now)?;
        return Ok(peer);
    }
    let peer = verified_now(leaf, rest, bundles, now)?;
    bundles.remember(chain_hash, peer.clone());
    Ok(peer)
}

fn verified_now(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let peer = verify_anew(leaf, rest, bundles, now)?;
    check_revocation(&peer, bundles, now)?;
    Ok(peer)
}

/// Asks the revocation lists of the peer's trust domain, also about a peer that was verified a while ago: a process calls
/// this for its live connections when lists have changed.
pub fn check_revocation(peer: &VerifiedPeer, bundles: &BundleSet, now: UnixTime) -> Result<(), PeerError> {
    let Some(revocations) = bundles.revocations(&peer.spiffe_id().trust_domain()) else { return Ok(()) };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    revocations.check(peer.links(), now).map_err(|source| PeerError::Revoked { id: peer.spiffe_id().clone(), source })
}

/// Whether the root that the peer was verified by is still in the bundle of its trust domain.
pub fn is_vouched_for(peer: &VerifiedPeer, bundles: &BundleSet) -> bool {
    bundles.roots(&peer.spiffe_id().trust_domain()).is_some_and(|roots| roots.has(peer.root_id()))
}

fn verify_anew(
    leaf_der: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let leaf = leaf::decode_leaf(leaf_der).map_err(PeerError::Leaf)?;
    let trust_domain = leaf.id.trust_domain();
    let (Some(bundle), Some(roots)) = (bundles.get(&trust_domain), bundles.roots(&trust_domain)) else {
        return Err(PeerError::TrustDomainUnknown { id: leaf.id, trust_domain });
    };
    let rest = without_roots(rest, &bundle.x509_authorities);
    rest.iter().try_for_each(leaf::check_signing_certificate).map_err(PeerError::SigningCertificate)?;
    let path = path::verify_path(leaf_der, &rest, roots, &RULES, now)
        .map_err(|error| PeerError::from_path(leaf.id.clone(), error))?;
    let (valid_from, valid_until) = validity_of(leaf_der, &rest, path.root_valid);
    Ok(VerifiedPeer(Arc::new(Proven {
        leaf,
        fingerprint_sha256: digest::sha256(leaf_der),
        leaf_der: leaf_der.clone().into_owned(),
        root_id: path.links.last().map(Link::issuer_id).unwrap_or_default().into(),
        links: path.links,
        valid_from,
        valid_until,
    })))
}

/// The leaf's extended usage was checked for both directions at once, and revocation comes after memory.
const RULES: PathRules<'static> = PathRules {
    strictness: Grade::Path,
    usage: Usage::Client,
    intermediates_max: CHAIN_CERTIFICATES_MAX - 1,
    revocations: None,
};

/// Roots that a peer sends are of no use: ours come from the bundle, and need not obey the rules for intermediates.
fn without_roots<'a>(rest: &'a [CertificateDer<'a>], roots: &[CertificateDer<'_>]) -> Vec<CertificateDer<'a>> {
    let needed = rest.iter().filter(|certificate| !roots.iter().any(|root| root.as_ref() == certificate.as_ref()));
    needed.map(|certificate| CertificateDer::from(certificate.as_ref())).collect()
}

fn check_lengths(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), PeerError> {
    if rest.len() >= CHAIN_CERTIFICATES_MAX {
        return Err(PeerError::ChainTooLong(rest.len() + 1));
    }
    if std::iter::once(leaf).chain(rest).any(|certificate| certificate.len() > leaf::CERTIFICATE_BYTES_MAX) {
        return Err(PeerError::Leaf(LeafError::TooLong));
    }
    Ok(())
}

fn hash_of(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for certificate in std::iter::once(leaf).chain(rest) {
        hash.update(&(certificate.len() as u64).to_be_bytes());
        hash.update(certificate);
    }
    hash.finish()
}

/// The time in which every certificate is valid; empty when one cannot be read.
fn validity_of(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], root: (u64, u64)) -> (UnixTime, UnixTime) {
    let epoch = UnixTime::since_unix_epoch(Duration::ZERO);
    let forever = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
    let each = std::iter::once(leaf).chain(rest).map(|der| match leaf::decode(der) {
        Ok(certificate) => {
            let (from, until) = leaf::validity(&certificate);
            (crate::unix_time(from), crate::unix_time(until))
        }
        Err(_) => (forever, epoch),
    });
    each.fold((at(root.0), at(root.1)), |(from, until), (next_from, next_until)| {
        (from.max(next_from), until.min(next_until))
    })
}

/// Why a peer is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// No certificate at all.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// More certificates than [`CHAIN_CERTIFICATES_MAX`].
    #[error("the peer sent {0} certificates; at most {CHAIN_CERTIFICATES_MAX} are read")]
    ChainTooLong(usize),
    /// The leaf breaks a rule of the X.509-SVID standard.
    #[error("the peer's certificate is not an X.509-SVID")]
    Leaf(#[source] LeafError),
    /// A further certificate is not fit to sign.
    #[error("a signing certificate that the peer sent breaks the X.509-SVID rules")]
    SigningCertificate(#[source] LeafError),
    /// There is no bundle for the peer's trust domain.
    #[error("the peer calls itself {id}, but there is no bundle for the trust domain {trust_domain}")]
    TrustDomainUnknown {
        /// Who the peer says it is.
        id: SpiffeId,
        /// The trust domain of that ID.
        trust_domain: TrustDomain,
    },
    /// A certificate of the path has expired.
    #[error("the certificate of {0}, or one that signed it, has expired")]
    Expired(SpiffeId),
    /// A certificate of the path is not valid yet.
    #[error("the certificate of {0}, or one that signed it, is not valid yet; compare the clocks")]
    NotYetValid(SpiffeId),
    /// No path leads to a root of the peer's trust domain.
    #[error("the peer calls itself {id}, but no root of that trust domain vouches for it")]
    Untrusted {
        /// Who the peer says it is.
        id: SpiffeId,
        /// What the path builder found.
        #[source]
        source: PathError,
    },
    /// A certificate of the path is not as it must be.
    #[error("the peer calls itself {id}, but a certificate of its path is not acceptable")]
    Defective {
        /// Who the peer says it is.
        id: SpiffeId,
        /// Where the certificate stands.
        role: Role,
        /// What is wrong with it.
        #[source]
        defect: Defect,
    },
    /// The peer's certificate is revoked, or whether it is cannot be told.
    #[error("the certificate of {id} is refused by its revocation list")]
    Revoked {
        /// Who the peer is.
        id: SpiffeId,
        /// What the list says.
        #[source]
        source: RevocationError,
    },
    /// The peer is proven, but it is not whom we expect.
    #[error("the peer is {0}, which is not expected here")]
    Unexpected(SpiffeId),
}

impl PeerError {
    fn from_path(id: SpiffeId, error: PathError) -> Self {
        match error {
            PathError::RootExpired | PathError::Untrusted(webpki::Error::CertExpired { .. }) => Self::Expired(id),
            PathError::RootNotYetValid | PathError::Untrusted(webpki::Error::CertNotValidYet { .. }) => {
                Self::NotYetValid(id)
            }
            PathError::Defective { role, defect } => Self::Defective { id, role, defect },
            PathError::Revocation(source) => Self::Revoked { id, source },
            source => Self::Untrusted { id, source },
        }
    }

    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "TLS_PEER_CERT_MISSING",
            Self::Defective { role: Role::Root, .. } => "TLS_PEER_UNTRUSTED",
            Self::ChainTooLong(_) | Self::SigningCertificate(_) | Self::Defective { .. } => "TLS_PEER_NOT_SVID",
            Self::Revoked { source, .. } => source.reason(),
            Self::Leaf(error) => error.reason(),
            Self::TrustDomainUnknown { .. } => "TLS_PEER_TRUST_DOMAIN_UNKNOWN",
            Self::Expired(_) => "TLS_PEER_EXPIRED",
            Self::NotYetValid(_) => "TLS_PEER_NOT_YET_VALID",
            Self::Untrusted { .. } => "TLS_PEER_UNTRUSTED",
            Self::Unexpected(_) => "TLS_PEER_ID_UNEXPECTED",
        }
    }

    /// Who the peer says it is, where that was readable. Proven only in [`Self::Unexpected`].
    pub fn claimed_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::NoCertificate | Self::ChainTooLong(_) | Self::Leaf(_) | Self::SigningCertificate(_) => None,
            Self::TrustDomainUnknown { id, .. } | Self::Untrusted { id, .. } => Some(id),
            Self::Defective { id, .. } | Self::Revoked { id, .. } => Some(id),
            Self::Expired(id) | Self::NotYetValid(id) | Self::Unexpected(id) => Some(id),
        }
    }
}

/// The most certificates read of a peer, the leaf included.
pub const CHAIN_CERTIFICATES_MAX: usize = 5;

#[cfg(test)]
mod tests;
