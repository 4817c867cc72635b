//! Signing certificate revocation lists.

use std::time::SystemTime;

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, KeyIdMethod, RevokedCertParams,
    SerialNumber,
};

use super::{AuthorityError, X509Authority, build};
use crate::revocation::RevocationReason;
use crate::secs_of;

/// What a revocation list shall say.
#[derive(Debug, Clone)]
pub struct CrlProfile {
    /// Greater than that of every earlier list of the same authority.
    pub number: u64,
    /// When the list is made.
    pub this_update: SystemTime,
    /// When the next list will have been made.
    pub next_update: SystemTime,
    /// The revoked certificates of the authority that have not expired. A list without any is meaningful.
    pub revoked: Vec<RevokedSerial>,
    /// Where the list is, for one of several that each hold a part of the authority's certificates (RFC 5280, 5.2.5).
    pub distribution_point: Option<String>,
}

/// One revoked certificate.
#[derive(Debug, Clone)]
pub struct RevokedSerial {
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// Since when.
    pub at: SystemTime,
    /// Why.
    pub reason: Option<RevocationReason>,
}

impl X509Authority {
    /// Signs the list of this authority's revoked certificates, as DER. Its certificate must have cRLSign, as ours do.
    pub fn sign_crl(&self, profile: &CrlProfile) -> Result<Vec<u8>, AuthorityError> {
        if profile.revoked.iter().any(|revoked| revoked.serial.iter().all(|byte| *byte == 0)) {
            return Err(AuthorityError::Serial);
        }
        let params = CertificateRevocationListParams {
            this_update: build::date(secs_of(profile.this_update))?,
            next_update: build::date(secs_of(profile.next_update))?,
            crl_number: SerialNumber::from(profile.number),
            issuing_distribution_point: profile.distribution_point.as_ref().map(|uri| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec![uri.clone()] },
                scope: None,
            }),
            revoked_certs: profile.revoked.iter().map(revoked).collect::<Result<_, _>>()?,
            key_identifier_method: KeyIdMethod::PreSpecified(self.subject_key_id_bytes()),
        };
        let crl = params.signed_by(&self.issuer).map_err(super::unsigned)?;
        Ok(crl.der().to_vec())
    }
}

fn revoked(revoked: &RevokedSerial) -> Result<RevokedCertParams, AuthorityError> {
    Ok(RevokedCertParams {
        serial_number: SerialNumber::from_slice(&revoked.serial),
        revocation_time: build::date(secs_of(revoked.at))?,
        reason_code: revoked.reason.map(reason),
        invalidity_date: None,
    })
}

fn reason(reason: RevocationReason) -> rcgen::RevocationReason {
    match reason {
        RevocationReason::Unspecified => rcgen::RevocationReason::Unspecified,
        RevocationReason::KeyCompromise => rcgen::RevocationReason::KeyCompromise,
        RevocationReason::CaCompromise => rcgen::RevocationReason::CaCompromise,
        RevocationReason::AffiliationChanged => rcgen::RevocationReason::AffiliationChanged,
        RevocationReason::Superseded => rcgen::RevocationReason::Superseded,
        RevocationReason::CessationOfOperation => rcgen::RevocationReason::CessationOfOperation,
        RevocationReason::CertificateHold => rcgen::RevocationReason::CertificateHold,
        RevocationReason::PrivilegeWithdrawn => rcgen::RevocationReason::PrivilegeWithdrawn,
        RevocationReason::AaCompromise => rcgen::RevocationReason::AaCompromise,
    }
}
