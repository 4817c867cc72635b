//! `old_svid`: a node comes back with the last SVID that it had, although that has run out or its root has gone.
//!
//! The certificate counts for nothing by itself. It must be, byte for byte, one that the records say was issued to this node,
//! and the node's last; whoever shows it must hold its key; and its end must not lie further back than the settings allow.
//! The node keeps what attestation once found about it.

use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::device::{DeviceKeyKind, check_possession};
use identity::spiffe_id::SpiffeId;
use identity::summary::CertificateSummary;

use super::{AttestError, Attestors, Respondent, World, x509pop};

/// The last SVID of a node, as it shows it.
#[derive(Clone, Debug)]
pub(crate) struct OldSvid {
    certificate: CertificateDer<'static>,
    pub(crate) id: SpiffeId,
    /// Hex, as the records have it.
    pub(crate) serial: String,
    /// SHA-256 of the certificate, hex.
    pub(crate) fingerprint: String,
}

impl Attestors {
    /// Reads an old SVID; everything about it is still to be proven.
    ///
    /// # Errors
    /// When coming back is switched off, or this is no SVID of a node that ended recently enough.
    pub(crate) fn read_old_svid(&self, payload: &[u8], world: &World<'_>) -> Result<OldSvid, AttestError> {
        let age_max = self.old_svid_age_max.ok_or_else(|| AttestError::AttestorUnknown { known: self.names() })?;
        let certificate = x509pop::chain_of(payload)?.into_iter().next();
        let certificate = certificate.ok_or(AttestError::Malformed("holds no certificate"))?;
        let summary = CertificateSummary::decode(&certificate).map_err(|_| AttestError::Malformed("is no SVID"))?;
        let age_ok = !is_too_old(summary.not_after(), world.now, age_max);
        let id = summary
            .spiffe_id
            .filter(|id| id.is_member_of(world.trust_domain) && id.path().starts_with(crate::api::AGENT_PATH));
        let id = id.ok_or(AttestError::OldSvidUnknown)?;
        if !age_ok {
            return Err(AttestError::OldSvidTooOld);
        }
        Ok(OldSvid { certificate, id, serial: summary.serial, fingerprint: summary.fingerprint_sha256 })
    }
}

impl OldSvid {
    /// Has the other side prove that it holds the key.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn prove(&self, respondent: &mut dyn Respondent) -> Result<(), AttestError> {
        let check = |message: &[u8], proof: &_| check_possession(&self.certificate, message, proof);
        x509pop::prove(DeviceKeyKind::Ecdsa, check, respondent).await
    }
}

fn is_too_old(not_after: SystemTime, now: SystemTime, age_max: Duration) -> bool {
    now.duration_since(not_after).is_ok_and(|age| age > age_max)
}

/// The attestor's name.
pub(crate) const NAME: &str = "old_svid";

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_age_is_judged_to_the_second() {
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let day = Duration::from_secs(86_400);
        assert!(!is_too_old(at(1_000_000), at(10), day), "not over yet");
        assert!(!is_too_old(at(1_000_000), at(1_086_400), day));
        assert!(is_too_old(at(1_000_000), at(1_086_401), day));
        assert!(is_too_old(at(1_000_000), at(1_000_001), Duration::ZERO));
    }
}
