//! The rules of the X.509-SVID standard beyond RFC 5280.

use super::contents::{self, KeyUsage, URI_TAG};
use super::extensions::{decoded, is_not_critical};
use super::shape::{Shape, oid};
use super::{Defect, Findings, Role};
use crate::spiffe_id::SpiffeId;

pub(super) fn check(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    check_id(shape, role, findings);
    let usage = decoded(shape, oid::KEY_USAGE, contents::key_usage);
    let unmarked = usage.is_none() || is_not_critical(shape, oid::KEY_USAGE);
    findings.add_if(unmarked, Defect::SvidKeyUsage);
    if role == Role::Leaf {
        let good = |usage: KeyUsage| usage.has_digital_signature() && !usage.has_cert_sign() && !usage.has_crl_sign();
        findings.add_if(!usage.is_some_and(good), Defect::SvidKeyUsage);
        let purposes = decoded(shape, oid::EXTENDED_KEY_USAGE, contents::extended_key_usage);
        let both = |purposes: Vec<&[u8]>| purposes.contains(&SERVER_AUTH) && purposes.contains(&CLIENT_AUTH);
        findings.add_if(!purposes.is_none_or(both), Defect::SvidExtendedKeyUsage);
    }
}

/// A leaf has exactly one URI name, a SPIFFE ID with a path; an authority has at most one, and without a path.
fn check_id(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    let names = decoded(shape, oid::SUBJECT_ALT_NAME, contents::alt_names).unwrap_or_default();
    let mut uris = names.iter().filter(|name| name.tag == URI_TAG).map(|name| name.content);
    let first = uris.next();
    findings.add_if(uris.next().is_some(), Defect::SvidIdTwice);
    let Some(uri) = first else {
        findings.add_if(role == Role::Leaf, Defect::SvidIdMissing);
        return;
    };
    match std::str::from_utf8(uri).ok().and_then(|text| SpiffeId::parse(text).ok()) {
        None => findings.add(Defect::SvidIdInvalid),
        Some(id) if role == Role::Leaf => findings.add_if(id.path().is_empty(), Defect::SvidIdWithoutPath),
        Some(id) => findings.add_if(!id.path().is_empty(), Defect::SvidAuthorityIdWithPath),
    }
}

const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
