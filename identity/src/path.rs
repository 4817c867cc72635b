//! Certification paths: webpki finds them and verifies their signatures, times and constraints; each that it finds has to
//! pass our profile and the revocation lists as well.
//!
//! A path that fails one of our checks does not end the search: another may be good. Work is bounded by webpki's budget of
//! signatures, steps and comparisons, and by [`INTERMEDIATES_MAX`].

use std::cell::RefCell;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};

use crate::profile::shape::Shape;
use crate::profile::{self, Defect, Grade, Role};
use crate::revocation::{Link, RevocationError, RevocationIndex};

/// Certificates that are trusted for themselves, prepared once.
#[derive(Debug, Clone, Default)]
pub struct TrustRoots {
    anchors: Vec<TrustAnchor<'static>>,
    /// One for each anchor.
    roots: Vec<Root>,
}

#[derive(Debug, Clone)]
struct Root {
    der: CertificateDer<'static>,
    /// When it is valid, in seconds since 1970; `None` if that cannot be read.
    valid: Option<(u64, u64)>,
    defects: Vec<Defect>,
    /// As [`Link::issuer_id`] has it; empty for one that can issue nothing readable.
    id: String,
}

impl TrustRoots {
    /// Prepares roots. What is no certificate at all is passed over: it can vouch for nobody.
    pub fn new<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Self {
        let mut prepared = Self::default();
        for der in certificates {
            if let (Ok(anchor), Ok(shape)) = (webpki::anchor_from_trusted_cert(der), Shape::decode(der)) {
                prepared.anchors.push(anchor.to_owned());
                prepared.roots.push(Root {
                    valid: valid(&shape),
                    defects: profile::defects(der, Role::Root),
                    id: Link::new(der, der).map(|link| link.issuer_id()).unwrap_or_default(),
                    der: der.clone().into_owned(),
                });
            }
        }
        prepared
    }

    /// Whether one of them has this identifier.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.roots.iter().any(|root| root.id == id)
    }

    /// Those with the anchor's name, key and constraints.
    fn of(&self, anchor: &TrustAnchor<'_>) -> impl Iterator<Item = &Root> {
        self.anchors.iter().zip(&self.roots).filter(move |(own, _)| *own == anchor).map(|(_, root)| root)
    }
}

fn valid(shape: &Shape<'_>) -> Option<(u64, u64)> {
    let (from, until) = profile::unix_secs(&shape.not_before).zip(profile::unix_secs(&shape.not_after))?;
    Some((u64::try_from(from).unwrap_or(0), u64::try_from(until).ok()?))
}

/// What a path must be like.
#[derive(Debug, Clone, Copy)]
pub struct PathRules<'a> {
    /// Defects up to this grade are refused.
    pub strictness: Grade,
    /// What the leaf is used for.
    pub usage: Usage,
    /// How many certificates may stand between leaf and root.
    pub intermediates_max: usize,
    /// Which certificates are revoked.
    pub revocations: Option<&'a RevocationIndex>,
}

/// What a leaf is used for; its extended key usage, if it has one, must say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Usage {
    Client,
    Server,
}

/// A path that holds, from the leaf up.
#[derive(Debug, Clone)]
pub struct Path {
    /// Each certificate but the root, with its issuer.
    pub links: Vec<Link>,
    /// When the root is valid, in seconds since 1970.
    pub root_valid: (u64, u64),
}

/// Finds a path from the leaf through some of the intermediates to one of the roots.
pub fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &TrustRoots,
    rules: &PathRules<'_>,
    now: UnixTime,
) -> Result<Path, PathError> {
    if intermediates.len() > INTERMEDIATES_MAX {
        return Err(PathError::TooLong);
    }
    check_profile(leaf, Role::Leaf, rules)?;
    let found = RefCell::new(Err(PathError::Untrusted(webpki::Error::UnknownIssuer)));
    let judge = |path: &webpki::VerifiedPath<'_>| {
        let verdict = judge(path, leaf, roots, rules, now);
        let failed = verdict.is_err();
        *found.borrow_mut() = verdict;
        if failed { Err(webpki::Error::UnknownIssuer) } else { Ok(()) }
    };
    let usage = match rules.usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(PathError::Untrusted)?;
    let verified = end_entity
        .verify_for_usage(ALL_VERIFICATION_ALGS, &roots.anchors, intermediates, now, usage, None, Some(&judge))
        .map(drop);
    match (verified, found.into_inner()) {
        (Ok(()), Ok(path)) => Ok(path),
        (Err(webpki::Error::UnknownIssuer) | Ok(()), Err(ours)) => Err(ours),
        (Err(error), _) => Err(PathError::Untrusted(error)),
    }
}

/// Judges one path whose signatures, times and constraints are good already.
fn judge(
    path: &webpki::VerifiedPath<'_>,
    leaf: &CertificateDer<'_>,
    roots: &TrustRoots,
    rules: &PathRules<'_>,
    now: UnixTime,
) -> Result<Path, PathError> {
    let intermediates: Vec<CertificateDer<'_>> = path.intermediate_certificates().map(webpki::Cert::der).collect();
    if intermediates.len() > rules.intermediates_max {
        return Err(PathError::TooLong);
    }
    intermediates.iter().try_for_each(|certificate| check_profile(certificate, Role::Intermediate, rules))?;
    let mut verdict = Err(PathError::Untrusted(webpki::Error::UnknownIssuer));
    for root in roots.of(path.anchor()) {
        verdict = judge_with(root, leaf, &intermediates, rules, now);
        if verdict.is_ok() {
            break;
        }
    }
    verdict
}

fn judge_with(
    root: &Root,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    rules: &PathRules<'_>,
    now: UnixTime,
) -> Result<Path, PathError> {
    let root_valid = check_root(root, rules, now)?;
    let links = links(leaf, intermediates, &root.der)?;
    check_revocation(&links, rules, now)?;
    Ok(Path { links, root_valid })
}

fn check_profile(certificate: &CertificateDer<'_>, role: Role, rules: &PathRules<'_>) -> Result<(), PathError> {
    first(&profile::defects(certificate, role), role, rules)
}

fn first(defects: &[Defect], role: Role, rules: &PathRules<'_>) -> Result<(), PathError> {
    match defects.iter().find(|defect| defect.grade() <= rules.strictness) {
        Some(defect) => Err(PathError::Defective { role, defect: *defect }),
        None => Ok(()),
    }
}

/// webpki looks at a root's name, key and name constraints only.
fn check_root(root: &Root, rules: &PathRules<'_>, now: UnixTime) -> Result<(u64, u64), PathError> {
    first(&root.defects, Role::Root, rules)?;
    let now = now.as_secs();
    match root.valid {
        Some((from, until)) if from <= now && now <= until => Ok((from, until)),
        Some((from, _)) if now < from => Err(PathError::RootNotYetValid),
        Some(_) => Err(PathError::RootExpired),
        None => Err(PathError::Defective { role: Role::Root, defect: Defect::TimeEncoding }),
    }
}

fn links(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
) -> Result<Vec<Link>, PathError> {
    let subjects = std::iter::once(leaf).chain(intermediates);
    let issuers = intermediates.iter().chain(std::iter::once(root));
    let unreadable = PathError::Defective { role: Role::Intermediate, defect: Defect::Malformed };
    subjects.zip(issuers).map(|(subject, issuer)| Link::new(subject, issuer)).collect::<Option<_>>().ok_or(unreadable)
}

fn check_revocation(links: &[Link], rules: &PathRules<'_>, now: UnixTime) -> Result<(), PathError> {
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
    match rules.revocations {
        Some(revocations) => revocations.check(links, now).map_err(PathError::Revocation),
        None => Ok(()),
    }
}

/// Why there is no good path.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// More certificates than are looked at, or more than the rules allow.
    #[error("the path is too long")]
    TooLong,
    /// A certificate is not as it must be.
    #[error("a certificate of the path is not acceptable")]
    Defective {
        /// Where it stands.
        role: Role,
        /// What is wrong with it.
        #[source]
        defect: Defect,
    },
    /// The root has expired.
    #[error("the root has expired")]
    RootExpired,
    /// The root is not valid yet.
    #[error("the root is not valid yet; compare the clocks")]
    RootNotYetValid,
    /// A certificate is revoked, or that cannot be told.
    #[error("a certificate of the path is revoked, or its revocation list cannot be used")]
    Revocation(#[source] RevocationError),
    /// No path leads to a root.
    #[error("no path leads to a root")]
    Untrusted(#[source] webpki::Error),
}

impl PathError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "TLS_PEER_NOT_SVID",
            Self::Defective { defect, .. } => defect.code(),
            Self::RootExpired | Self::Untrusted(webpki::Error::CertExpired { .. }) => "TLS_PEER_EXPIRED",
            Self::RootNotYetValid | Self::Untrusted(webpki::Error::CertNotValidYet { .. }) => "TLS_PEER_NOT_YET_VALID",
            Self::Revocation(error) => error.reason(),
            Self::Untrusted(_) => "TLS_PEER_UNTRUSTED",
        }
    }
}

/// The most certificates looked at between leaf and root.
pub const INTERMEDIATES_MAX: usize = 64;

#[cfg(test)]
mod tests;
