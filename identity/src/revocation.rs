//! Revocation by certificate revocation lists (RFC 5280, section 5).
//!
//! A [`Crl`] is decoded strictly: version 2, a CRL number, a next update, no extension that changes its meaning. It speaks
//! for one issuing key only: that which has its name and made its signature and may sign lists. A [`RevocationIndex`]
//! holds the newest list of each issuer of one trust domain; a `BundleSet` asks it about each chain, and a process about its
//! live connections.
//!
//! An issuer may have several lists, each for a part of its certificates and with a distribution point of its own.
//! [`OcspRequest`] and `X509Authority::sign_ocsp` are the responder's side of RFC 6960.
//!
//! What has no list is not revoked: short-lived SVIDs need none. A list that is there must be good, or the peer is refused.

mod crl;
mod index;
mod ocsp;

use std::fmt;

use rustls_pki_types::CertificateDer;

pub use crl::{CRL_BYTES_MAX, Crl, CrlError, ENTRIES_MAX, RevocationReason, RevokedCertificate};
pub use index::{RevocationError, RevocationIndex};
pub(crate) use ocsp::NONCE;
pub use ocsp::{
    CertId, CertStatus, OCSP_CERTS_MAX, OCSP_NONCE_BYTES_MAX, OCSP_REQUEST_BYTES_MAX, OcspError, OcspProfile,
    OcspRequest,
};

use crate::digest;
use crate::profile::{self, shape::Shape};

/// A certificate within a verified path, as revocation lists speak of it: by issuer and serial number.
#[derive(Clone)]
pub struct Link {
    serial: Box<[u8]>,
    issuer: Issuer,
}

/// What is known of the key that has signed a certificate of a verified path.
#[derive(Clone)]
struct Issuer {
    name: Box<[u8]>,
    key_id: Option<Box<[u8]>>,
    spki: Box<[u8]>,
    spki_hash: [u8; 32],
    may_sign_lists: bool,
}

impl Link {
    /// The link between a certificate and its issuer; `None` if one of them cannot be read.
    pub(crate) fn new(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Shape::decode(certificate).ok()?;
        Some(Self { serial: without_zeros(certificate.serial).into(), issuer: Issuer::decode(issuer)? })
    }

    /// The issuer's subject key identifier in hexadecimal; the hash of its key where it has none.
    pub(crate) fn issuer_id(&self) -> String {
        digest::hex(self.issuer.key_id.as_deref().unwrap_or(&self.issuer.spki_hash))
    }
}

impl Issuer {
    fn decode(der: &CertificateDer<'_>) -> Option<Self> {
        let shape = Shape::decode(der).ok()?;
        let extension = |oid| shape.extension(oid).map(|extension| extension.value);
        let key_id =
            extension(profile::shape::oid::SUBJECT_KEY_ID).and_then(|value| profile::subject_key_id(value).ok());
        let usage = extension(profile::shape::oid::KEY_USAGE).and_then(|value| profile::key_usage(value).ok());
        Some(Self {
            name: shape.subject.into(),
            key_id: key_id.map(Into::into),
            spki: shape.spki.into(),
            spki_hash: digest::sha256(shape.spki),
            may_sign_lists: usage.is_some_and(profile::KeyUsage::has_crl_sign),
        })
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("serial", &digest::serial_hex(&self.serial)).finish_non_exhaustive()
    }
}

/// Whether a CA certificate may sign revocation lists: its key usage has cRLSign.
pub fn may_sign_lists(der: &CertificateDer<'_>) -> bool {
    Issuer::decode(der).is_some_and(|issuer| issuer.may_sign_lists)
}

/// The serial number in a list's or issuance record's hexadecimal, as bytes; `None` if it is not hexadecimal.
pub fn serial_bytes(hex: &str) -> Option<Vec<u8>> {
    let padded = if hex.len().is_multiple_of(2) { hex.to_owned() } else { format!("0{hex}") };
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let good = !hex.is_empty() && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    good.then(|| padded.as_bytes().chunks(2).map(byte).collect()).flatten()
}

/// A number without leading zeros, so that equal numbers are equal bytes.
fn without_zeros(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[first..]
}

#[cfg(test)]
mod tests;
