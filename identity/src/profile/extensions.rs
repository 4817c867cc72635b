//! Extensions: each once, known if critical, marked as the profile wants, and consistent with each other (RFC 5280,
//! section 4.2).

use super::contents::{self, KeyUsage};
use super::shape::{Extension, Shape, oid};
use super::{Defect, Findings, Role};

pub(super) fn check(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    for (at, extension) in shape.extensions.iter().enumerate() {
        let twice = shape.extensions[..at].iter().any(|earlier| earlier.oid == extension.oid);
        findings.add_if(twice, Defect::ExtensionTwice);
        findings.add_if(extension.critical && !is_known(extension.oid), Defect::ExtensionUnknownCritical);
        findings.add_if(extension.critical && NEVER_CRITICAL.contains(&extension.oid), Defect::ExtensionCriticality);
        findings.add_if(!contents::is_well_formed(extension), Defect::ExtensionMalformed);
    }
    check_key_ids(shape, role, findings);
    check_usage(shape, role, findings);
    check_extended_usage(shape, role, findings);
    check_policies(shape, findings);
}

/// Whether path validation acts upon the extension, or rightly need not.
fn is_known(oid: &[u8]) -> bool {
    ALWAYS_KNOWN.contains(&oid) || NEVER_CRITICAL.contains(&oid)
}

/// Authority and subject key identifiers. A root's own identifier may stand in both, and needs to stand in one.
fn check_key_ids(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    let own = decoded(shape, oid::SUBJECT_KEY_ID, contents::subject_key_id);
    findings.add_if(role != Role::Leaf && own.is_none(), Defect::SubjectKeyIdMissing);
    let issuers = decoded(shape, oid::AUTHORITY_KEY_ID, contents::authority_key_id);
    let issuers_key = issuers.as_ref().and_then(|id| id.key_id);
    let is_root = role == Role::Root && (shape.is_self_issued() || shape.is_self_signed());
    findings.add_if(!is_root && issuers_key.is_none(), Defect::AuthorityKeyIdMissing);
    if let (true, Some(id)) = (is_root, &issuers) {
        let other_key = id.key_id.is_none() || id.key_id != own;
        findings.add_if(id.has_issuer_or_serial || other_key, Defect::AuthorityKeyIdOfRoot);
    }
}

/// Basic constraints and key usage, which must tell the same story.
fn check_usage(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    let constraints = decoded(shape, oid::BASIC_CONSTRAINTS, contents::basic_constraints);
    let is_authority = constraints.as_ref().is_some_and(|constraints| constraints.is_authority);
    let usage = decoded(shape, oid::KEY_USAGE, contents::key_usage);
    findings.add_if(usage.is_some_and(KeyUsage::is_empty), Defect::KeyUsageEmpty);
    findings.add_if(is_not_critical(shape, oid::KEY_USAGE), Defect::KeyUsageNotCritical);
    let signs = usage.is_some_and(KeyUsage::has_cert_sign);
    let has_path_length = constraints.is_some_and(|constraints| constraints.has_path_length);
    findings.add_if(has_path_length && !(is_authority && (signs || usage.is_none())), Defect::PathLength);
    if role == Role::Leaf {
        findings.add_if(is_authority, Defect::LeafIsAuthority);
        findings.add_if(signs && !is_authority, Defect::KeyUsageCertSign);
        return;
    }
    findings.add_if(!is_authority, Defect::NotAuthority);
    findings
        .add_if(is_authority && is_not_critical(shape, oid::BASIC_CONSTRAINTS), Defect::BasicConstraintsNotCritical);
    findings.add_if(usage.is_none(), Defect::KeyUsageMissing);
    findings.add_if(usage.is_some() && !signs, Defect::KeyUsageNoCertSign);
}

fn check_extended_usage(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    if let Some(extension) = shape.extension(oid::EXTENDED_KEY_USAGE) {
        findings.add_if(extension.critical, Defect::ExtendedKeyUsageCritical);
        findings.add_if(role == Role::Root, Defect::ExtendedKeyUsageOfRoot);
        let purposes = contents::extended_key_usage(extension.value).unwrap_or_default();
        findings.add_if(role == Role::Leaf && purposes.contains(&ANY_PURPOSE), Defect::ExtendedKeyUsageAny);
    }
}

fn check_policies(shape: &Shape<'_>, findings: &mut Findings) {
    let unmarked = is_not_critical(shape, oid::POLICY_CONSTRAINTS) || is_not_critical(shape, oid::INHIBIT_ANY_POLICY);
    findings.add_if(unmarked, Defect::PolicyConstraints);
}

pub(super) fn is_not_critical(shape: &Shape<'_>, oid: &[u8]) -> bool {
    shape.extension(oid).is_some_and(|extension| !extension.critical)
}

/// The content of an extension that is there and well-formed.
pub(super) fn decoded<'a, T>(
    shape: &Shape<'a>,
    oid: &[u8],
    decode: impl FnOnce(&'a [u8]) -> Result<T, crate::der::NotDer>,
) -> Option<T> {
    let extension: &Extension<'a> = shape.extension(oid)?;
    decode(extension.value).ok()
}

const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 37, 0];

const ALWAYS_KNOWN: [&[u8]; 9] = [
    oid::KEY_USAGE,
    oid::SUBJECT_ALT_NAME,
    oid::BASIC_CONSTRAINTS,
    oid::NAME_CONSTRAINTS,
    oid::EXTENDED_KEY_USAGE,
    oid::CRL_DISTRIBUTION_POINTS,
    oid::CERTIFICATE_POLICIES,
    oid::POLICY_CONSTRAINTS,
    oid::INHIBIT_ANY_POLICY,
];

/// "Conforming CAs MUST mark this extension as non-critical."
const NEVER_CRITICAL: [&[u8]; 5] = [
    oid::SUBJECT_KEY_ID,
    oid::AUTHORITY_KEY_ID,
    oid::AUTHORITY_INFO_ACCESS,
    oid::SUBJECT_INFO_ACCESS,
    oid::FRESHEST_CRL,
];
