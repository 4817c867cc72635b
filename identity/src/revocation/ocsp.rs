//! Questions about single certificates (OCSP, RFC 6960), as a responder reads them.
//!
//! Signatures of requests are not looked at: everybody may ask. What is not understood is refused as malformed, and a
//! nonce longer than 128 bytes too (RFC 9654, section 2.1).

use std::time::SystemTime;

use super::RevokedCertificate;
use crate::der::{self, NotDer, Reader};
use crate::profile::shape::{self, Shape};
use crate::signed::key_parts;
use crate::{CertificateDer, digest};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OcspRequest {
    certs: Vec<CertId>,
    nonce: Option<Vec<u8>>,
}

/// Which certificate: its serial number, and its issuer by hashes of name and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertId {
    raw: Vec<u8>,
    algorithm: HashAlgorithm,
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    serial: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HashAlgorithm {
    Sha1,
    Sha256,
}

/// What is known of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertStatus {
    /// Issued, and not revoked.
    Good,
    /// Revoked.
    Revoked(RevokedCertificate),
    /// Never issued, as far as is known.
    Unknown,
}

/// The times of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OcspProfile {
    /// Of when the knowledge is.
    pub this_update: SystemTime,
    /// Until when the answer may be used.
    pub next_update: SystemTime,
}

/// Why a request is not answered with a status; each is an answer of its own (RFC 6960, section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OcspError {
    /// The request is not what RFC 6960 describes, or too long.
    #[error("the OCSP request is malformed")]
    Malformed,
    /// The responder failed.
    #[error("the responder failed")]
    Internal,
    /// The responder is busy; asking again later helps.
    #[error("the responder is busy")]
    TryLater,
    /// The responder does not speak for the issuer.
    #[error("the responder does not speak for this issuer")]
    Unauthorized,
}

impl OcspRequest {
    /// Decodes a request in DER.
    ///
    /// # Errors
    /// [`OcspError::Malformed`] when it is none, asks for nothing or for too much.
    pub fn decode(der: &[u8]) -> Result<Self, OcspError> {
        if der.len() > OCSP_REQUEST_BYTES_MAX {
            return Err(OcspError::Malformed);
        }
        let mut request = Reader::whole(der, der::SEQUENCE)?;
        let mut body = request.take(der::SEQUENCE)?.reader();
        request.take_optional(der::context_constructed(0))?;
        request.finish()?;
        if let Some(version) = body.take_optional(der::context_constructed(0))? {
            Reader::new(version.content).take(der::INTEGER).ok().filter(|v| v.content == [0]).ok_or(NotDer)?;
        }
        body.take_optional(der::context_constructed(1))?;
        let mut list = body.take(der::SEQUENCE)?.reader();
        let extensions = body.take_optional(der::context_constructed(2))?;
        body.finish()?;
        let mut certs = Vec::new();
        while !list.at_end() {
            if certs.len() == OCSP_CERTS_MAX {
                return Err(OcspError::Malformed);
            }
            certs.push(CertId::decode(list.take(der::SEQUENCE)?.reader())?);
        }
        let nonce = extensions.map(|found| read_nonce(found.content)).transpose()?.flatten();
        if certs.is_empty() { Err(OcspError::Malformed) } else { Ok(Self { certs, nonce }) }
    }

    /// The certificates that are asked about, at least one.
    pub fn certs(&self) -> &[CertId] {
        &self.certs
    }

    /// What the answer is to repeat.
    pub fn nonce(&self) -> Option<&[u8]> {
        self.nonce.as_deref()
    }
}

impl CertId {
    fn decode(mut request: Reader<'_>) -> Result<Self, NotDer> {
        let whole = request.take(der::SEQUENCE)?;
        request.take_optional(der::context_constructed(0))?;
        request.finish()?;
        let mut fields = whole.reader();
        let algorithm = fields.take(der::SEQUENCE)?.reader().take(der::OID)?.content;
        let algorithm = match algorithm {
            SHA1 => HashAlgorithm::Sha1,
            SHA256 => HashAlgorithm::Sha256,
            _ => return Err(NotDer),
        };
        let (name_hash, key_hash) = (fields.take(der::OCTET_STRING)?.content, fields.take(der::OCTET_STRING)?.content);
        let serial = fields.take(der::INTEGER)?.content;
        fields.finish()?;
        if serial.len() > SERIAL_BYTES_MAX || !der::is_integer(serial) {
            return Err(NotDer);
        }
        Ok(Self {
            raw: whole.raw.to_vec(),
            algorithm,
            name_hash: name_hash.to_vec(),
            key_hash: key_hash.to_vec(),
            serial: serial.to_vec(),
        })
    }

    /// The serial number, hexadecimal without leading zeros.
    pub fn serial(&self) -> String {
        digest::serial_hex(&self.serial)
    }

    /// The question as it was asked.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Whether the certificate that is asked about would be signed by this one.
    pub fn is_by(&self, issuer: &CertificateDer<'_>) -> bool {
        let Ok(shape) = Shape::decode(issuer) else { return false };
        let Some((_, key)) = key_parts(shape.spki) else { return false };
        let name = der::tlv(der::SEQUENCE, shape.subject);
        self.algorithm.hash(&name) == self.name_hash && self.algorithm.hash(key) == self.key_hash
    }
}

impl HashAlgorithm {
    fn hash(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => digest::sha1_for_names(bytes),
            Self::Sha256 => digest::sha256(bytes).to_vec(),
        }
    }
}

fn read_nonce(extensions: &[u8]) -> Result<Option<Vec<u8>>, OcspError> {
    let extensions = shape::extensions(Reader::whole(extensions, der::SEQUENCE)?)?;
    let Some(found) = extensions.iter().find(|extension| extension.oid == NONCE) else { return Ok(None) };
    let mut reader = Reader::new(found.value);
    let nonce = reader.take(der::OCTET_STRING)?.content;
    reader.finish()?;
    let fits = (1..=OCSP_NONCE_BYTES_MAX).contains(&nonce.len());
    if fits { Ok(Some(nonce.to_vec())) } else { Err(OcspError::Malformed) }
}

impl OcspError {
    /// The answer that says so, in DER.
    pub fn response(self) -> Vec<u8> {
        let status = match self {
            Self::Malformed => 1,
            Self::Internal => 2,
            Self::TryLater => 3,
            Self::Unauthorized => 6,
        };
        der::sequence(&[&der::tlv(der::ENUMERATED, &[status])])
    }

    /// The reason code.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "OCSP_MALFORMED",
            Self::Internal => "OCSP_FAILED",
            Self::TryLater => "OCSP_TRY_LATER",
            Self::Unauthorized => "OCSP_UNAUTHORIZED",
        }
    }
}

impl From<NotDer> for OcspError {
    fn from(_: NotDer) -> Self {
        Self::Malformed
    }
}

/// The longest request read.
pub const OCSP_REQUEST_BYTES_MAX: usize = 4096;
/// The most certificates in one request.
pub const OCSP_CERTS_MAX: usize = 16;
/// The longest nonce that is repeated.
pub const OCSP_NONCE_BYTES_MAX: usize = 128;
/// The object identifier of the nonce extension.
pub(crate) const NONCE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 48, 1, 2];
const SERIAL_BYTES_MAX: usize = 21;
const SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];

#[cfg(test)]
mod tests;
