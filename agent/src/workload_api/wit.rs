//! WIT-SVIDs with their keys, for the workloads that ask for them: issued on demand, pushed again at half-life, and given
//! on while the CA is away.
//!
//! A WIT is used only after a check of our own: it names the entry's identity and our key, and the bundle that workloads
//! have by now verifies it. When the bundle changes so that it no longer does, or marks the authority as tainted, a new one
//! is fetched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use identity::renewal::renew_at;
use identity::wit::{self, WitExpectations, WitKey};
use identity::{BundleSet, SpiffeId};
use proto::workload::{Witsvid, WitsvidResponse};
use runtime::refusal;
use tonic::{Code, Status};

use super::{Answers, fingerprint, select};
use crate::ca::{CaError, TokenSvid};
use crate::caller::{Caller, Desk, Refusal, StreamGuard, name_of};
use crate::dice;
use crate::enforced::Standing;
use crate::entry::Entry;
use crate::metrics::{Holder, Outcome};
use crate::rotation::BATCH_MAX;
use crate::state::Snapshot;

/// The WITs held, by entry. Streams of one workload share them.
#[derive(Debug, Default)]
pub(super) struct WitCache(Mutex<BTreeMap<String, Arc<HeldWit>>>);

#[derive(Debug)]
struct HeldWit {
    key: WitKey,
    svid: TokenSvid,
    revision: i64,
    renew_at: SystemTime,
    /// What verified the WIT last: the bundles, and those without what is tainted.
    verified_by: Mutex<Vec<Arc<BundleSet>>>,
}

/// A message for a workload, and when to look again.
struct Answer {
    message: WitsvidResponse,
    next: SystemTime,
    /// Whether no WIT in it is to be replaced.
    clean: bool,
}

/// The whole state at once and after every change of it; equal messages are not sent again.
pub(super) fn answers(
    desk: Arc<Desk>,
    cache: Arc<WitCache>,
    mut caller: Caller,
    guard: StreamGuard,
    wanted: Option<SpiffeId>,
) -> Answers<WitsvidResponse> {
    Box::pin(async_stream::stream! {
        guard.presence.expect();
        let (mut changes, mut last) = (desk.state.subscribe(), None);
        loop {
            let entitled = Box::pin(desk.await_entries(&mut caller, &mut changes, false)).await;
            let entitled = entitled.and_then(|(snapshot, entries)| Ok((snapshot, select(entries, wanted.as_ref())?)));
            let (snapshot, entries) = match entitled {
                Ok(found) => found,
                Err(refused) => {
                    yield Err(desk.refuse(&refused, Some(&caller)));
                    return;
                }
            };
            guard.presence.name(name_of(&entries));
            let Answer { message, next, clean } = match cache.answer(&desk, &snapshot, &entries).await {
                Ok(answer) => answer,
                Err(error) => {
                    yield Err(not_issued(&error));
                    return;
                }
            };
            let settled = snapshot.level();
            drop(snapshot);
            let print = fingerprint(&message);
            if last.replace(print) != Some(print) {
                yield Ok(message);
            }
            if clean {
                guard.presence.set(Standing::Enforces(settled));
            }
            tokio::select! {
                () = desk.shutdown.requested() => {
                    yield Err(desk.refuse(&Refusal::ShuttingDown, Some(&caller)));
                    return;
                }
                _ = changes.changed() => (),
                () = desk.clock.sleep_until(next) => (),
            }
        }
    })
}

/// A trust domain without WIT keys does not do WIT-SVIDs; the standard then wants both calls unimplemented.
pub(super) fn check_offered(desk: &Desk, snapshot: &Snapshot) -> Result<(), Status> {
    let own = snapshot.bundles.get(desk.state.trust_domain());
    if own.is_some_and(|bundle| !bundle.wit_authorities.is_empty()) {
        return Ok(());
    }
    Err(Status::unimplemented("the trust domain has no WIT authority"))
}

fn not_issued(error: &CaError) -> Status {
    tracing::warn!(%error, reason = error.reason(), "WIT-SVID not issued");
    let code = if matches!(error, CaError::Unsupported) { Code::Unimplemented } else { Code::Unavailable };
    refusal::status(code, error.reason(), format!("the WIT-SVID could not be issued: {error}"))
}

impl WitCache {
    /// A valid WIT of each entry.
    async fn answer(&self, desk: &Desk, snapshot: &Snapshot, entries: &[Arc<Entry>]) -> Result<Answer, CaError> {
        self.forget_gone(snapshot);
        let now = desk.clock.now();
        let stale: Vec<_> = entries.iter().filter(|entry| !self.is_fresh(entry, snapshot, now)).cloned().collect();
        let mut failure = None;
        for entries in stale.chunks(BATCH_MAX) {
            failure = self.renew(desk, snapshot, entries).await.err().or(failure);
        }
        let mut answer = Answer { message: WitsvidResponse::default(), next: now + NEXT_WAIT_MAX, clean: true };
        for entry in entries {
            let held = self.usable(entry, snapshot, desk.clock.now());
            let held = held.ok_or_else(|| failure.clone().unwrap_or(CaError::BadAnswer { what: "no WIT-SVID" }))?;
            let clean = held.is_trusted(entry, &snapshot.untainted, now);
            answer.clean &= clean;
            let due = if clean { held.renew_at } else { now };
            answer.next = answer.next.min(due.max(now + RETRY_WAIT));
            answer.message.svids.push(message(entry, &held)?);
        }
        Ok(answer)
    }

    /// New keys, and WITs for them; what the CA refuses keeps its former one. Answers the last failure.
    async fn renew(&self, desk: &Desk, snapshot: &Snapshot, entries: &[Arc<Entry>]) -> Result<(), CaError> {
        let keys = entries.iter().map(|_| WitKey::generate()).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|_| CaError::BadAnswer { what: "no key could be made" })?;
        let asked = entries.iter().zip(&keys).map(|(entry, key)| (entry.id.clone(), key.public_key_spki())).collect();
        let issued = desk.ca.new_wit_svids(asked).await?;
        let mut outcome = Ok(());
        for ((entry, key), svid) in entries.iter().zip(keys).zip(issued) {
            let now = desk.clock.now();
            let held = svid.and_then(|svid| HeldWit::check(entry, key, svid.checked(now)?, snapshot, now));
            desk.numbers.renewed(Holder::workload, if held.is_ok() { Outcome::ok } else { Outcome::failed });
            match held {
                Ok(held) => {
                    tracing::info!(spiffe_id = %entry.spiffe_id, entry = entry.id, "WIT-SVID renewed");
                    self.held().insert(entry.id.clone(), Arc::new(held));
                }
                Err(error) => {
                    tracing::warn!(entry = entry.id, %error, reason = error.reason(), "WIT-SVID not renewed");
                    if error.is_refusal() {
                        self.held().remove(&entry.id);
                    }
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    fn is_fresh(&self, entry: &Entry, snapshot: &Snapshot, now: SystemTime) -> bool {
        self.usable(entry, snapshot, now).is_some_and(|held| {
            let young = now < held.renew_at && held.revision == entry.revision;
            young && held.is_trusted(entry, &snapshot.untainted, now)
        })
    }

    /// What is held for the entry, if it can still be used.
    fn usable(&self, entry: &Entry, snapshot: &Snapshot, now: SystemTime) -> Option<Arc<HeldWit>> {
        let held = self.held().get(&entry.id).cloned()?;
        let revoked = snapshot.revocations.revokes_token(&held.svid.token);
        (!revoked && held.svid.expires_at > now + LIFE_LEFT_MIN && held.is_trusted(entry, &snapshot.bundles, now))
            .then_some(held)
    }

    fn forget_gone(&self, snapshot: &Snapshot) {
        self.held().retain(|id, _| snapshot.entries.get(id).is_some());
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<HeldWit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldWit {
    /// Takes what the CA issued, if it is what was asked for.
    fn check(
        entry: &Entry,
        key: WitKey,
        svid: TokenSvid,
        snapshot: &Snapshot,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let renew_at = renew_at(svid.issued_at.max(now), svid.expires_at, dice::roll());
        let held = Self { key, svid, revision: entry.revision, renew_at, verified_by: Mutex::default() };
        if held.is_trusted(entry, &snapshot.bundles, now) {
            Ok(held)
        } else {
            Err(CaError::BadAnswer { what: "a WIT-SVID that does not verify" })
        }
    }

    /// Whether `bundles` verify the WIT, and it names the entry's identity and our key: we show it to ourselves.
    fn is_trusted(&self, entry: &Entry, bundles: &Arc<BundleSet>, now: SystemTime) -> bool {
        let mut verified_by = self.verified_by.lock().unwrap_or_else(PoisonError::into_inner);
        if verified_by.iter().any(|known| Arc::ptr_eq(known, bundles)) {
            return true;
        }
        let Ok(proof) = self.key.prove(&self.svid.token, OURSELVES, PROOF_LIFE, now) else { return false };
        match wit::verify(&self.svid.token, &proof, bundles, &WitExpectations::at(OURSELVES, now)) {
            Ok(verified) if *verified.spiffe_id() == entry.spiffe_id => {
                if verified_by.len() == 2 {
                    verified_by.remove(0);
                }
                verified_by.push(bundles.clone());
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::info!(entry = entry.id, %error, reason = error.reason(), "WIT-SVID cannot be used");
                false
            }
        }
    }
}

fn message(entry: &Entry, held: &HeldWit) -> Result<Witsvid, CaError> {
    let key = held.key.private_jwk().map_err(|_| CaError::BadAnswer { what: "the key cannot be written" })?;
    Ok(Witsvid {
        spiffe_id: entry.spiffe_id.to_string(),
        wit_svid: held.svid.token.clone(),
        wit_svid_key: key.to_string(),
        hint: entry.hint.clone(),
    })
}

/// The audience of proofs that the agent makes for itself.
const OURSELVES: &str = "kasbah:agent";
const PROOF_LIFE: Duration = Duration::from_secs(10);
/// A WIT that expires sooner is of no use any more.
const LIFE_LEFT_MIN: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY_WAIT: Duration = Duration::from_secs(5);
const NEXT_WAIT_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
