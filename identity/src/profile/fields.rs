//! The basic fields: version, serial number, algorithm, names, validity (RFC 5280, section 4.1).

use time::{Date, Month, PrimitiveDateTime, Time};

use super::{Defect, Findings, Role};
use crate::der::{self, Element, Reader};
use crate::profile::shape::Shape;

pub(super) fn check(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    findings.add_if(shape.version != Some(&[VERSION_3]), Defect::Version);
    findings.add_if(!is_good_serial(shape.serial), Defect::Serial);
    check_algorithm(shape, role, findings);
    findings.add_if(shape.issuer.is_empty(), Defect::IssuerEmpty);
    findings.add_if(role != Role::Leaf && shape.subject.is_empty(), Defect::SubjectEmpty);
    findings.add_if(shape.has_unique_ids, Defect::UniqueId);
    check_validity(shape, findings);
}

/// Positive, of at most 20 bytes, in the shortest form.
fn is_good_serial(serial: &[u8]) -> bool {
    der::is_integer(serial) && serial.len() <= SERIAL_BYTES_MAX && serial[0] & 0x80 == 0 && serial != [0]
}

fn check_algorithm(shape: &Shape<'_>, role: Role, findings: &mut Findings) {
    findings.add_if(shape.inner_algorithm != shape.signed.algorithm, Defect::AlgorithmMismatch);
    if role == Role::Root {
        return; // A root is trusted for itself; nobody verifies the signature it has put under itself.
    }
    match algorithm(shape.signed.algorithm) {
        Algorithm::Good => {}
        Algorithm::BadParameters => findings.add(Defect::AlgorithmParameters),
        Algorithm::Weak => findings.add(Defect::AlgorithmWeak),
    }
}

enum Algorithm {
    Good,
    BadParameters,
    Weak,
}

/// Judges the content of a signature's AlgorithmIdentifier (RFC 4055, RFC 5758, RFC 8410).
fn algorithm(identifier: &[u8]) -> Algorithm {
    let mut reader = Reader::new(identifier);
    let (Ok(oid), parameters) = (reader.take(der::OID), reader.next().ok()) else { return Algorithm::Weak };
    let parameters = parameters.map(|parameters| parameters.raw);
    let good = match oid.content {
        RSA_SHA256 | RSA_SHA384 | RSA_SHA512 => parameters == Some(NULL_DER),
        ECDSA_SHA256 | ECDSA_SHA384 | ECDSA_SHA512 | ED25519 => parameters.is_none(),
        RSA_PSS => parameters.is_some(),
        other if other.starts_with(ML_DSA) => parameters.is_none(),
        _ => return Algorithm::Weak,
    };
    if good && reader.at_end() { Algorithm::Good } else { Algorithm::BadParameters }
}

fn check_validity(shape: &Shape<'_>, findings: &mut Findings) {
    let (from, until) = (unix_secs(&shape.not_before), unix_secs(&shape.not_after));
    findings.add_if(from.is_none() || until.is_none(), Defect::TimeEncoding);
    if let (Some(from), Some(until)) = (from, until) {
        findings.add_if(until < from, Defect::ValidityReversed);
    }
}

/// A time as the profile wants it written, as `YYYYMMDDHHMMSS`: UTCTime until 2049, GeneralizedTime from 2050, both with
/// seconds, without fractions, in UTC.
fn time(element: &Element<'_>) -> Option<String> {
    let text = std::str::from_utf8(element.content).ok()?.strip_suffix('Z')?;
    let full = match (element.tag, text.len()) {
        (der::UTC_TIME, 12) if text < "50" => format!("20{text}"),
        (der::UTC_TIME, 12) => format!("19{text}"),
        (der::GENERALIZED_TIME, 14) if !("1950".."2050").contains(&text) => text.to_owned(),
        _ => return None,
    };
    full.bytes().all(|byte| byte.is_ascii_digit()).then_some(full)
}

/// A time as the profile wants it written, in seconds since 1970.
pub(crate) fn unix_secs(element: &Element<'_>) -> Option<i64> {
    let text = time(element)?;
    let number = |range: std::ops::Range<usize>| text[range].parse::<u8>().ok();
    let month = Month::try_from(number(4..6)?).ok()?;
    let date = Date::from_calendar_date(text[..4].parse().ok()?, month, number(6..8)?).ok()?;
    let time = Time::from_hms(number(8..10)?, number(10..12)?, number(12..14)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

const VERSION_3: u8 = 2;
const SERIAL_BYTES_MAX: usize = 20;
const NULL_DER: &[u8] = &[der::NULL, 0];
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12];
const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// The arc of the NIST signature algorithms; ML-DSA is 17 to 19.
const ML_DSA: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3];
