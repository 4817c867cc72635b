//! Intermediates of servers below this one.

use std::time::Duration;

use identity::CertificateDer;
use identity::authority::CaProfile;
use identity::csr::Csr;
use identity::digest;

use super::{serial, unsigned};
use crate::certifier::{Certifier, secs};
use crate::random::sha256_hex;
use crate::refusal::Refusal;
use crate::store::{Issuance, IssuanceKind};

/// An intermediate that the caller is entitled to.
#[derive(Clone, Debug)]
pub(crate) struct DownstreamOrder {
    /// None: as long as our own intermediates.
    pub(crate) ttl: Option<Duration>,
    pub(crate) entry_id: String,
    pub(crate) caller: String,
}

impl Certifier {
    /// Signs a CA certificate for the key of `csr`, and answers it with what stands between it and the root when that is on
    /// record. No further CA may stand below it.
    pub(crate) async fn issue_downstream(
        &self,
        order: &DownstreamOrder,
        csr: &Csr,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let (now, signing) = self.signing_now()?;
        let ttl = order.ttl.unwrap_or(self.ttls.ca).min(self.ttls.ca);
        let serial = serial(now);
        let profile = CaProfile { ttl, backdate: self.ttls.backdate(ttl), path_len: Some(0), serial };
        let (id, signer) = (self.trust_domain.id(), &signing.x509);
        let chain = signer.sign_ca(csr.public_key_spki(), &profile, now).map_err(|error| unsigned(&id, error))?;
        let record = Issuance {
            serial: digest::serial_hex(&serial),
            kind: IssuanceKind::Downstream,
            spiffe_id: id.to_string(),
            entry_id: order.entry_id.clone(),
            caller: order.caller.clone(),
            fingerprint: chain.first().map(|own| sha256_hex(own)).unwrap_or_default(),
            authority_id: signer.subject_key_id().to_owned(),
            issued_at: secs(now),
            not_after: secs((now + ttl).min(signer.not_after())),
            log_index: -1,
        };
        self.record(vec![record]).await?;
        Ok(chain)
    }
}
