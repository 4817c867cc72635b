//! Names: those of the subject, and those that an authority is held to (RFC 5280, sections 4.1.2.6, 4.2.1.6, 4.2.1.10).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::contents::{self, DIRECTORY_TAG, DNS_TAG, EMAIL_TAG, IP_TAG, URI_TAG};
use super::extensions::{decoded, is_not_critical};
use super::shape::{Shape, oid};
use super::{Defect, Findings, Role};
use crate::der::{self, Element, NotDer, Reader};

pub(super) fn check(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    let names = decoded(shape, oid::SUBJECT_ALT_NAME, contents::alt_names);
    findings.add_if(names.as_ref().is_some_and(Vec::is_empty), Defect::NamesEmpty);
    if role == Role::Leaf {
        check_presence(shape, findings);
    }
    let names = names.unwrap_or_default();
    for name in &names {
        check_name(name, findings);
    }
    if role == Role::Leaf {
        let misspelt =
            common_names(shape.subject).map(|common| common.iter().any(|common| is_misspelt(common, &names)));
        findings.add_if(misspelt != Ok(false), Defect::CommonName);
    }
    check_constraints(shape, role, findings);
}

/// A leaf names somebody by its alternative names, which are critical if its subject says nothing, and only then.
fn check_presence(shape: &Shape<'_>, findings: &mut Findings) {
    let critical = shape.extension(oid::SUBJECT_ALT_NAME).map(|extension| extension.critical);
    match (shape.subject.is_empty(), critical) {
        (true, None) => findings.add(Defect::NamesMissing),
        (true, Some(false)) => findings.add(Defect::NamesNotCritical),
        (false, None) => findings.add(Defect::NamesAbsent),
        (false, Some(true)) => findings.add(Defect::NamesCritical),
        (true, Some(true)) | (false, Some(false)) => {}
    }
}

fn check_name(name: &Element<'_>, findings: &mut Findings) {
    let well_formed = match name.tag {
        DNS_TAG => {
            findings.add_if(name.content.contains(&b'_'), Defect::NameUnderscore);
            let below = name.content.strip_prefix(b"*.");
            findings.add_if(below.is_some_and(|domain| !domain.contains(&b'.')), Defect::NameTooWide);
            is_host(below.unwrap_or(name.content))
        }
        EMAIL_TAG => is_mailbox(name.content),
        URI_TAG => is_absolute_uri(name.content),
        IP_TAG => matches!(name.content.len(), 4 | 16),
        _ => true,
    };
    findings.add_if(!well_formed, Defect::NameMalformed);
}

/// A host name by RFC 1034 and 1123, to which an underscore is added, as it has a defect of its own.
fn is_host(name: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        let inside = label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        inside && (1..=LABEL_BYTES_MAX).contains(&label.len()) && label[0] != b'-' && label[label.len() - 1] != b'-'
    };
    name.len() <= HOST_BYTES_MAX && name.split(|byte| *byte == b'.').all(is_label)
}

fn is_mailbox(address: &[u8]) -> bool {
    let mut parts = address.split(|byte| *byte == b'@');
    let (local, host, more) = (parts.next(), parts.next(), parts.next());
    let printable = |local: &[u8]| !local.is_empty() && local.iter().all(u8::is_ascii_graphic);
    more.is_none() && local.is_some_and(printable) && host.is_some_and(is_host)
}

/// "The name MUST NOT be a relative URI … MUST include both a scheme and a scheme-specific-part."
fn is_absolute_uri(uri: &[u8]) -> bool {
    let mut parts = uri.splitn(2, |byte| *byte == b':');
    let (Some([first, scheme @ ..]), Some([_, ..])) = (parts.next(), parts.next()) else { return false };
    let in_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    first.is_ascii_alphabetic() && scheme.iter().all(in_scheme) && uri.iter().all(u8::is_ascii_graphic)
}

/// The common names of a subject.
fn common_names(subject: &[u8]) -> Result<Vec<&[u8]>, NotDer> {
    let mut found = Vec::new();
    for relative in Reader::new(subject).all()? {
        for attribute in Reader::whole(relative.raw, der::SET)?.all()? {
            let mut reader = Reader::whole(attribute.raw, der::SEQUENCE)?;
            let (kind, value) = (reader.take(der::OID)?, reader.next()?);
            reader.finish()?;
            if kind.content == COMMON_NAME {
                found.push(value.content);
            }
        }
    }
    Ok(found)
}

/// Whether a common name gives a name in another spelling than certificates use: a host beyond ASCII, an address that is
/// not in its one form (RFC 3986, RFC 5952), a DNS name of the certificate in other letters. What it says beyond that is
/// of no importance, as nobody looks for a name there.
fn is_misspelt(common_name: &[u8], names: &[Element<'_>]) -> bool {
    let Ok(text) = std::str::from_utf8(common_name) else { return true };
    if !text.is_ascii() && text.contains('.') && !text.contains(' ') {
        return true;
    }
    if let Some(address) = any_address(text) {
        return address.to_string() != text;
    }
    let mut same = names.iter().filter(|name| name.tag == DNS_TAG && name.content.eq_ignore_ascii_case(common_name));
    same.clone().next().is_some() && !same.any(|name| name.content == common_name)
}

/// An address in whatever spelling: with leading zeros, hexadecimal, as a single number, or not shortened.
fn any_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(address.into());
    }
    let number = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => part.parse::<u32>().ok(),
    };
    let parts: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
    match *parts.as_slice() {
        [whole] if text.starts_with("0x") || text.starts_with("0X") => Some(Ipv4Addr::from(whole).into()),
        [_, _, _, _] => {
            let bytes: Vec<u8> = parts.into_iter().map(u8::try_from).collect::<Result<_, _>>().ok()?;
            <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into())
        }
        _ => None,
    }
}

fn check_constraints(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    if shape.extension(oid::NAME_CONSTRAINTS).is_none() {
        return;
    }
    findings.add_if(role == Role::Leaf, Defect::NameConstraintsInLeaf);
    findings.add_if(is_not_critical(shape, oid::NAME_CONSTRAINTS), Defect::NameConstraintsNotCritical);
    let Some(constraints) = decoded(shape, oid::NAME_CONSTRAINTS, contents::name_constraints) else { return };
    findings.add_if(constraints.has_empty_list, Defect::NameConstraintsEmpty);
    let malformed = constraints.subtrees.iter().any(|subtree| subtree.has_distance || !is_base(&subtree.base));
    findings.add_if(malformed, Defect::NameConstraintsMalformed);
}

/// Whether a subtree's base is written as its kind wants it.
fn is_base(base: &Element<'_>) -> bool {
    let content = base.content;
    let without_dot = content.strip_prefix(b".").unwrap_or(content);
    match base.tag {
        DNS_TAG => content.is_empty() || is_host(content),
        EMAIL_TAG if content.contains(&b'@') => is_mailbox(content),
        EMAIL_TAG => is_host(without_dot),
        URI_TAG => {
            is_host(without_dot) && std::str::from_utf8(content).is_ok_and(|text| text.parse::<Ipv4Addr>().is_err())
        }
        IP_TAG => is_network(content),
        DIRECTORY_TAG => Reader::whole(content, der::SEQUENCE).is_ok(),
        _ => true,
    }
}

/// An address and a mask whose ones come first.
fn is_network(bytes: &[u8]) -> bool {
    if !matches!(bytes.len(), 8 | 32) {
        return false;
    }
    let mask = &bytes[bytes.len() / 2..];
    let ones: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count();
    let partial = mask.get(leading).map_or(0, |byte| byte.leading_ones() as usize);
    leading * 8 + partial == ones
}

const LABEL_BYTES_MAX: usize = 63;
const HOST_BYTES_MAX: usize = 253;
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
