//! Signing answers about single certificates (RFC 6960, section 4.2), as their issuer itself.

use std::time::SystemTime;

use rcgen::PublicKeyData as _;
use time::OffsetDateTime;

use super::{AuthorityError, X509Authority, build};
use crate::der::{self, sequence, tlv};
use crate::profile::shape::Shape;
use crate::revocation::{CertStatus, OcspProfile, OcspRequest, RevokedCertificate};
use crate::secs_of;

impl X509Authority {
    /// Answers a request about certificates of this authority, one status for each, as DER.
    ///
    /// # Errors
    /// When the numbers differ, or the key cannot sign.
    pub fn sign_ocsp(
        &self,
        request: &OcspRequest,
        statuses: &[CertStatus],
        profile: &OcspProfile,
        now: SystemTime,
    ) -> Result<Vec<u8>, AuthorityError> {
        if request.certs().len() != statuses.len() {
            return Err(AuthorityError::Serial);
        }
        let mut singles = Vec::new();
        for (cert, status) in request.certs().iter().zip(statuses) {
            let (this, next) = (time(profile.this_update)?, time(profile.next_update)?);
            let next = tlv(der::context_constructed(0), &next);
            singles.extend(sequence(&[cert.raw(), &status_der(status)?, &this, &next]));
        }
        let nonce = request.nonce().map_or(Vec::new(), |nonce| {
            let value = tlv(der::OCTET_STRING, &tlv(der::OCTET_STRING, nonce));
            let extension = sequence(&[&tlv(der::OID, crate::revocation::NONCE), &value]);
            tlv(der::context_constructed(1), &sequence(&[&extension]))
        });
        let data = sequence(&[&self.responder_name()?, &time(now)?, &tlv(der::SEQUENCE, &singles), &nonce]);
        let signature = self.key.sign(&data).map_err(|_| AuthorityError::KeyUnavailable)?;
        let signature = tlv(der::BIT_STRING, &[&[0], signature.as_slice()].concat());
        let basic = sequence(&[&data, &self.signature_algorithm()?, &signature]);
        let bytes = sequence(&[&tlv(der::OID, BASIC), &tlv(der::OCTET_STRING, &basic)]);
        Ok(sequence(&[&tlv(der::ENUMERATED, &[SUCCESSFUL]), &tlv(der::context_constructed(0), &bytes)]))
    }

    /// ResponderID by name.
    fn responder_name(&self) -> Result<Vec<u8>, AuthorityError> {
        let shape = Shape::decode(self.certificate()).map_err(|_| AuthorityError::SubjectEncoding)?;
        Ok(tlv(der::context_constructed(1), &tlv(der::SEQUENCE, shape.subject)))
    }

    fn signature_algorithm(&self) -> Result<Vec<u8>, AuthorityError> {
        let algorithm = self.key.algorithm();
        let oid: &[u8] = if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
            &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]
        } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
            &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3]
        } else if algorithm == &rcgen::PKCS_ED25519 {
            &[0x2b, 0x65, 0x70]
        } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
            // RSA alone has a parameter, NULL (RFC 4055, section 5).
            let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
            return Ok(sequence(&[&tlv(der::OID, &oid), &tlv(der::NULL, &[])]));
        } else {
            return Err(AuthorityError::Build(rcgen::Error::UnsupportedSignatureAlgorithm));
        };
        Ok(sequence(&[&tlv(der::OID, oid)]))
    }
}

fn status_der(status: &CertStatus) -> Result<Vec<u8>, AuthorityError> {
    Ok(match status {
        CertStatus::Good => tlv(der::context(0), &[]),
        CertStatus::Unknown => tlv(der::context(2), &[]),
        CertStatus::Revoked(RevokedCertificate { at, reason }) => {
            let reason = reason
                .map_or(Vec::new(), |reason| tlv(der::context_constructed(0), &tlv(der::ENUMERATED, &[reason.code()])));
            tlv(der::context_constructed(1), &[time(*at)?, reason].concat())
        }
    })
}

/// A GeneralizedTime in whole seconds.
fn time(at: SystemTime) -> Result<Vec<u8>, AuthorityError> {
    let at: OffsetDateTime = build::date(secs_of(at))?;
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    Ok(tlv(der::GENERALIZED_TIME, text.as_bytes()))
}

/// `id-pkix-ocsp-basic`.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 48, 1, 1];
const SUCCESSFUL: u8 = 0;
