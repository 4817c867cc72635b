//! A readable view of any certificate, for people and admin pages. It decides nothing.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::extensions::ParsedExtension;

use crate::digest;
use crate::leaf::{self, LeafError};
use crate::public_key::PublicKey;
use crate::{secs_of, spiffe_id::SpiffeId};

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateSummary {
    /// The first URI name that is a SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// All URI names.
    pub uris: Vec<String>,
    /// All DNS names.
    pub dns_names: Vec<String>,
    /// Hexadecimal without leading zeros.
    pub serial: String,
    /// As RFC 4514 writes it.
    pub subject: String,
    /// As RFC 4514 writes it.
    pub issuer: String,
    /// Seconds since 1970.
    pub not_before_unix: u64,
    /// Seconds since 1970.
    pub not_after_unix: u64,
    /// Whether it may sign other certificates.
    pub is_authority: bool,
    /// The kind of its key.
    pub key: String,
    /// Hexadecimal.
    pub subject_key_id: Option<String>,
    /// Hexadecimal.
    pub authority_key_id: Option<String>,
    /// SHA-256 of the DER, hexadecimal.
    pub fingerprint_sha256: String,
}

impl CertificateSummary {
    /// Reads a certificate.
    pub fn decode(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let certificate = leaf::decode(der)?;
        let names = leaf::names(&certificate)?;
        let (not_before, not_after) = leaf::validity(&certificate);
        let (mut subject_key_id, mut authority_key_id) = (None, None);
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject_key_id = Some(digest::hex(id.0)),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    authority_key_id = id.key_identifier.as_ref().map(|id| digest::hex(id.0));
                }
                _ => {}
            }
        }
        Ok(Self {
            spiffe_id: names.uris.iter().find_map(|uri| SpiffeId::parse(uri).ok()),
            uris: names.uris,
            dns_names: names.dns_names,
            serial: digest::serial_hex(certificate.raw_serial()),
            subject: leaf::distinguished_name(certificate.subject()),
            issuer: leaf::distinguished_name(certificate.issuer()),
            not_before_unix: secs_of(not_before),
            not_after_unix: secs_of(not_after),
            is_authority: leaf::is_ca(&certificate)?,
            key: PublicKey::from_spki(certificate.public_key()).map_or_else(|_| "unknown".to_owned(), |key| key.kind()),
            subject_key_id,
            authority_key_id,
            fingerprint_sha256: digest::hex(&digest::sha256(der)),
        })
    }

    /// When it starts to be valid.
    pub fn not_before(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(self.not_before_unix)
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(self.not_after_unix)
    }
}
