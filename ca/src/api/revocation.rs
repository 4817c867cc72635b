//! Revoking: what a revocation would hit, the act itself, and what is revoked.

use std::collections::BTreeSet;

use identity::revocation::RevocationReason;
use identity::spiffe_id::SpiffeId;
use proto::kasbah::ca::v1::{
    ListRevocationsRequest, ListRevocationsResponse, PreviewRequest, PreviewResponse, RevocationItem, RevocationTarget,
    RevokeRequest, RevokeResponse, revocation_server, revocation_target,
};
use tonic::{Request, Response, Status};

use super::{AGENT_PATH, Api, Caller};
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::entry::ENTRY_ID_BYTES_MAX;
use crate::refusal::Refusal;
use crate::rights::Permit;
use crate::store::{RevokeAnswer, RevokeTarget, Revoked};

#[tonic::async_trait]
impl revocation_server::Revocation for Api {
    async fn preview(&self, request: Request<PreviewRequest>) -> Result<Response<PreviewResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let target = self.target(request.get_ref().target.as_ref())?;
            self.certifier.preview_revocation(&target, &permit).await
        };
        self.answer("Revocation.Preview", &caller, work).await
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let RevokeRequest { target, reason } = request.get_ref();
            let target = self.target(target.as_ref())?;
            self.certifier.revoke(&caller, &permit, target, reason_of(*reason)?).await
        };
        self.answer("Revocation.Revoke", &caller, work).await
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let ListRevocationsRequest { limit, spiffe_id } = request.get_ref();
            let limit = if *limit == 0 { LISTED_MAX } else { (*limit).min(LISTED_MAX) };
            let found = self.certifier.store.revoked(spiffe_id, limit).await?;
            let (enforced, nodes) = self.certifier.nodes_enforcing_revocations();
            Ok(ListRevocationsResponse {
                items: found.into_iter().map(item).collect(),
                crl_number: self.certifier.revocations.current().lists.number,
                enforced,
                nodes,
            })
        };
        self.answer("Revocation.List", &caller, work).await
    }
}

impl Api {
    fn target(&self, target: Option<&RevocationTarget>) -> Result<RevokeTarget, Refusal> {
        let missing =
            Refusal::Revocation { field: "target", problem: "is missing: name an SVID, identity, entry or node" };
        match target.and_then(|target| target.target.as_ref()).ok_or(missing)? {
            revocation_target::Target::Serial(text) => serial_of(text).map(RevokeTarget::Serial),
            revocation_target::Target::SpiffeId(text) => self.own_id("spiffe_id", text).map(RevokeTarget::Identity),
            revocation_target::Target::EntryId(text) => {
                let fits = (1..=ENTRY_ID_BYTES_MAX).contains(&text.len());
                let refused = Refusal::Revocation { field: "entry_id", problem: "is empty or too long" };
                if fits { Ok(RevokeTarget::Entry(text.clone())) } else { Err(refused) }
            }
            revocation_target::Target::NodeId(text) => {
                let id = self.own_id("node_id", text)?;
                let refused = Refusal::IdRefused { field: "node_id", problem: "is not the ID of an agent" };
                if id.path().starts_with(AGENT_PATH) { Ok(RevokeTarget::Node(id)) } else { Err(refused) }
            }
        }
    }

    fn own_id(&self, field: &'static str, text: &str) -> Result<SpiffeId, Refusal> {
        let id = SpiffeId::parse(text).map_err(|source| Refusal::Id { field, source })?;
        let refused = |problem| Err(Refusal::IdRefused { field, problem });
        if !id.is_member_of(&self.certifier.trust_domain) {
            return refused("is not in the trust domain of this server");
        }
        if id == self.certifier.server_id {
            return refused("is the server itself; replace its authority instead");
        }
        Ok(id)
    }
}

impl Certifier {
    /// Revokes; when it answers, the revocation and its audit record are stored, and the lists are signed if that is possible.
    async fn revoke(
        &self,
        caller: &Caller,
        permit: &Permit,
        target: RevokeTarget,
        reason: RevocationReason,
    ) -> Result<RevokeResponse, Refusal> {
        let (now, name) = (self.now_secs(), target.name());
        let act = Act::new("cert.revoke", &name).detail(format_args!("reason {}", reason.name()));
        let act = match &target {
            RevokeTarget::Identity(id) | RevokeTarget::Node(id) => act.of(id),
            RevokeTarget::Serial(_) | RevokeTarget::Entry(_) => act,
        };
        let outcome = match self.acting(caller, act).revoke(target.clone(), reason.code(), now, permit).await? {
            RevokeAnswer::Done(outcome) => outcome,
            RevokeAnswer::Beyond => return Err(permit.too_narrow()),
            RevokeAnswer::Unknown => return Err(unknown(&target)),
        };
        tracing::warn!(
            what = name,
            revoked = outcome.revoked,
            already = outcome.already,
            caller = caller.name(),
            "revoked"
        );
        if let Err(error) = self.revocations.refresh(self).await {
            tracing::error!(reason = error.reason(), error = ?error, "revocation lists not renewed yet");
        }
        let unlisted = self.store.has_unlisted().await.unwrap_or(true);
        Ok(RevokeResponse {
            revoked: outcome.revoked,
            already: outcome.already,
            source_ended: outcome.source_ended,
            crl_number: if unlisted { 0 } else { self.revocations.current().lists.number },
        })
    }

    async fn preview_revocation(&self, target: &RevokeTarget, permit: &Permit) -> Result<PreviewResponse, Refusal> {
        let now = self.now_secs();
        if !self.store.may_revoke(target, now, permit).await? {
            return Err(permit.too_narrow());
        }
        let rows = self.store.live(target, now, ROWS_LOOKED_AT_MAX).await?;
        let total = self.store.live_count(target, now).await?;
        let ids: BTreeSet<&str> = rows.iter().map(|row| row.spiffe_id.as_str()).collect();
        let (entries, nodes) = self.issuing_again(target, &ids, now);
        Ok(PreviewResponse {
            total: rows.iter().filter(|row| row.revoked_at == 0).count() as u64
                + total.saturating_sub(rows.len() as u64),
            already: rows.iter().filter(|row| row.revoked_at != 0).count() as u64,
            spiffe_ids: ids.iter().take(SHOWN_MAX).map(ToString::to_string).collect(),
            entries,
            nodes,
            items: rows.into_iter().take(SHOWN_MAX).map(item).collect(),
        })
    }

    /// Entries that would issue the identities again, and nodes that may ask them to.
    fn issuing_again(&self, target: &RevokeTarget, ids: &BTreeSet<&str>, now: i64) -> (Vec<String>, Vec<String>) {
        let registry = self.store.registry();
        let ended = |id: &str| matches!(target, RevokeTarget::Entry(entry) if entry == id);
        let again = registry
            .entries_after("")
            .filter(|entry| entry.is_live(now) && ids.contains(entry.spiffe_id.as_str()) && !ended(&entry.id));
        let entries: Vec<_> = again.take(SHOWN_MAX).cloned().collect();
        let banned = |id: &SpiffeId| matches!(target, RevokeTarget::Node(node) if node == id);
        let nodes = registry.agents().filter(|agent| {
            agent.counts(now)
                && !banned(&agent.id)
                && entries.iter().any(|entry| registry.is_authorized(agent, entry, now))
        });
        let nodes = nodes.take(SHOWN_MAX).map(|agent| agent.id.to_string()).collect();
        (entries.iter().map(|entry| entry.id.clone()).collect(), nodes)
    }

    /// How many nodes said that they enforce the newest lists, of all that count.
    pub(crate) fn nodes_enforcing_revocations(&self) -> (u64, u64) {
        let (now, newest) = (self.now_secs(), self.revocations.current().lists.number);
        let registry = self.store.registry();
        let nodes: Vec<_> = registry.agents().filter(|agent| agent.counts(now)).collect();
        let enforcing = nodes.iter().filter(|agent| self.contacts.of(&agent.id).revocations >= newest);
        (enforcing.count() as u64, nodes.len() as u64)
    }
}

fn unknown(target: &RevokeTarget) -> Refusal {
    match target {
        RevokeTarget::Entry(_) => Refusal::EntryUnknown,
        RevokeTarget::Node(_) => Refusal::AgentUnknown,
        RevokeTarget::Serial(_) | RevokeTarget::Identity(_) => Refusal::IssuanceUnknown,
    }
}

/// A serial number or SHA-256 as records have it: small letters, no colons, no leading zeros in front of a serial number.
fn serial_of(text: &str) -> Result<String, Refusal> {
    let refused = |problem| Err(Refusal::Revocation { field: "serial", problem });
    let text = text.trim();
    let plain = text.strip_prefix("0x").unwrap_or(text);
    let hex: String = plain.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    if hex.is_empty() || hex.len() > HASH_DIGITS {
        return refused("must be a serial number or a SHA-256");
    }
    if !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return refused("must be hexadecimal");
    }
    if hex.len() == HASH_DIGITS {
        return Ok(hex);
    }
    if hex.len() > SERIAL_DIGITS_MAX {
        return refused("is longer than a serial number and shorter than a SHA-256");
    }
    let even = if hex.len().is_multiple_of(2) { hex } else { format!("0{hex}") };
    let trimmed = even.as_bytes().chunks(2).skip_while(|pair| *pair == b"00").flatten();
    let trimmed: String = trimmed.map(|digit| char::from(*digit)).collect();
    if trimmed.is_empty() { refused("must not be zero") } else { Ok(trimmed) }
}

fn reason_of(code: u32) -> Result<RevocationReason, Refusal> {
    let reason = u8::try_from(code).ok().and_then(RevocationReason::from_code);
    reason
        .ok_or(Refusal::Revocation { field: "reason", problem: "is no CRLReason that can be given (RFC 5280, 5.3.1)" })
}

fn item(row: Revoked) -> RevocationItem {
    RevocationItem {
        serial: row.serial,
        kind: row.kind,
        spiffe_id: row.spiffe_id,
        entry_id: row.entry_id,
        caller: row.caller,
        authority_id: row.authority_id,
        not_after: row.not_after,
        revoked_at: row.revoked_at,
        reason: u32::try_from(row.reason).unwrap_or_default(),
        target: row.target,
    }
}

/// The most revocations of one answer.
const LISTED_MAX: u32 = 1_000;
/// The most items of each kind in a preview.
const SHOWN_MAX: usize = 100;
/// The most records that a preview looks at; the total counts all.
const ROWS_LOOKED_AT_MAX: u32 = 10_000;
const HASH_DIGITS: usize = 64;
/// 20 bytes (RFC 5280, section 4.1.2.2).
const SERIAL_DIGITS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_taken_as_people_write_them() {
        let check = |text: &str| serial_of(text).ok();
        for text in ["a1b2", "A1:B2", "0xA1B2", " 00a1b2 "] {
            assert_eq!(check(text).as_deref(), Some("a1b2"), "{text}");
        }
        assert_eq!(check("1b2").as_deref(), Some("01b2"));
        assert_eq!(check(&"0f".repeat(32)), Some("0f".repeat(32)), "a hash keeps its zeros");
        assert_eq!(check(&"a".repeat(SERIAL_DIGITS_MAX)).map(|s| s.len()), Some(40), "at the edge");
        for bad in ["", "0", "0x", "xyz", "a b", &"a".repeat(41), &"a".repeat(63), &"a".repeat(65)] {
            assert_eq!(serial_of(bad).unwrap_err().reason(), "REVOCATION_INVALID", "{bad}");
        }
    }

    #[test]
    fn reasons_are_those_of_the_standard() {
        assert_eq!(reason_of(1).unwrap(), RevocationReason::KeyCompromise);
        for bad in [7, 8, 11, 300] {
            assert!(reason_of(bad).is_err(), "{bad}");
        }
    }
}
