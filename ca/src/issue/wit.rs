//! Issuing WIT-SVIDs: tokens that name a workload and the key it holds.

use std::time::Duration;

use identity::spiffe_id::SpiffeId;
use identity::wit::{HolderKey, WitSvidProfile};

use super::{Admission, IssuedToken, token_unsigned};
use crate::api::Caller;
use crate::audit::Act;
use crate::certifier::{Certifier, Wanted, secs};
use crate::policy::KeyType;
use crate::random::{sha256_hex, uuid};
use crate::refusal::Refusal;
use crate::store::{Issuance, IssuanceKind};

/// A WIT-SVID that the caller is entitled to.
#[derive(Clone, Debug)]
pub(crate) struct WitOrder {
    pub(crate) kind: IssuanceKind,
    pub(crate) id: SpiffeId,
    pub(crate) key: HolderKey,
    pub(crate) ttl: Duration,
    pub(crate) entry_id: String,
    pub(crate) caller: String,
}

/// The key that a request wants bound, with its algorithm.
pub(crate) fn holder_key(public_key: &[u8], algorithm: &str) -> Result<HolderKey, Refusal> {
    HolderKey::from_spki_der(public_key, algorithm).map_err(Refusal::WitKey)
}

impl Certifier {
    /// Issues one token for an administrator: what he lets be issued is an act of his own.
    pub(crate) async fn mint_wit(&self, caller: &Caller, order: WitOrder) -> Result<IssuedToken, Refusal> {
        let (issued, record) = self.sign_wit(order)?;
        let act = Act::new("mint.wit", &record.serial).of(&record.spiffe_id);
        self.record_in(&self.acting(caller, act), vec![record]).await?;
        Ok(issued)
    }

    /// Signs without recording: the caller records, then hands out. Every WIT has a `jti` of its own, under which audits
    /// of relying parties find the record.
    pub(crate) fn sign_wit(&self, order: WitOrder) -> Result<(IssuedToken, Issuance), Refusal> {
        let admission = self.admit_wit(&order)?;
        self.sign_admitted_wit(order, &admission)
    }

    /// Asks the policy; this counts against its quotas.
    pub(crate) fn admit_wit(&self, order: &WitOrder) -> Result<Admission, Refusal> {
        let (now, signing) = self.signing_now()?;
        let left = signing.wit_not_after.duration_since(now).map_err(|_| Refusal::Signing)?;
        let key = order.key.public_key().and_then(KeyType::of);
        let wanted = Wanted { kind: order.kind, id: &order.id, caller: &order.caller, dns_names: &[], key };
        let ttl = self.judge(&wanted, order.ttl)?.min(left);
        Ok(Admission { now, signing, ttl })
    }

    /// Signs what was admitted, without recording.
    pub(crate) fn sign_admitted_wit(
        &self,
        order: WitOrder,
        admission: &Admission,
    ) -> Result<(IssuedToken, Issuance), Refusal> {
        let Admission { now, signing, ttl } = admission;
        let (now, ttl) = (*now, *ttl);
        let (id, backdate) = (order.id.clone(), self.ttls.backdate(ttl));
        let profile = WitSvidProfile { id, key: order.key, ttl, backdate, token_id: Some(uuid()) };
        let signed = signing.wit.sign_svid(&profile, now).map_err(|error| token_unsigned(&order.id, &error))?;
        let (issued_at, expires_at) = (secs(signed.issued_at), secs(signed.expires_at));
        let record = Issuance {
            serial: sha256_hex(signed.token.as_bytes()),
            kind: order.kind,
            spiffe_id: order.id.to_string(),
            entry_id: order.entry_id,
            caller: order.caller,
            authority_id: signing.wit.key_id().to_owned(),
            fingerprint: String::new(),
            issued_at,
            not_after: expires_at,
            log_index: -1,
        };
        Ok((IssuedToken { token: signed.token, issued_at, expires_at }, record))
    }
}
