//! Renewing the workloads' X.509-SVIDs: each when the CA advises or at its half-life with jitter, each time with a new key.
//!
//! [`Schedule`] decides and has the time as an argument; [`Rotator`] acts. A failed renewal leaves the old SVID in
//! place until it expires, and is tried again with back-off.

mod schedule;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::renewal::renew_at_advised;
use identity::{PrivateKey, X509Svid};
use runtime::clock::Clock;
use runtime::shutdown::Shutdown;

use crate::ca::{CALL_WAIT_MAX, CALL_WAIT_MIN, Ca, CaError, Chain, Issued};
use crate::dice;
use crate::entry::Entry;
use crate::metrics::{Holder, Numbers, Outcome};
use crate::state::{Held, Snapshot, State};
use schedule::Schedule;

/// A key with its CSR, made before it is needed.
#[derive(Debug)]
pub(crate) struct Prepared {
    key: PrivateKey,
    csr: Vec<u8>,
}

impl Prepared {
    pub(crate) fn new() -> Option<Self> {
        // The CA takes the identity from the entry, so the CSR says nothing but the key.
        let key = PrivateKey::generate_p256().ok()?;
        let csr = key.csr_der(None).ok()?;
        Some(Self { key: key.at_rest(), csr })
    }

    pub(crate) fn csr(&self) -> Vec<u8> {
        self.csr.clone()
    }

    /// The SVID of `chain`, which must be for our key.
    pub(crate) fn into_svid(self, chain: Chain) -> Result<X509Svid, CaError> {
        X509Svid::from_parts(chain, self.key)
            .map_err(|_| CaError::BadAnswer { what: "a certificate that is no SVID for our key" })
    }
}

/// Keeps every entry's SVID fresh.
pub(crate) struct Rotator {
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
    /// Told when the CA refuses an entry: our list of entries is out of date.
    pub(crate) resync: Arc<tokio::sync::Notify>,
}

impl Rotator {
    /// Renews until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut schedule = Schedule::default();
        let mut changes = self.state.subscribe();
        let mut judged = self.state.current();
        loop {
            let (now, snapshot) = (self.clock.now(), changes.borrow_and_update().clone());
            schedule.align(&snapshot.entries, &snapshot.held, now);
            self.renew_untrusted(&mut schedule, &mut judged, &snapshot, now);
            self.state.drop_expired(now);
            self.measure(now);
            let due = schedule.due(now, BATCH_MAX, &self.state.waited_for());
            if !due.is_empty() {
                if shutdown.unless(self.renew(&mut schedule, due)).await.is_none() {
                    return;
                }
                continue;
            }
            let next = schedule.next().unwrap_or(now + IDLE_WAIT_MAX).min(now + IDLE_WAIT_MAX);
            tokio::select! {
                () = shutdown.requested() => return,
                _ = changes.changed() => (),
                () = self.clock.sleep_until(next) => (),
            }
        }
    }

    /// An SVID whose issuer is tainted or has left the bundle, or which is revoked: its successor cannot wait for half-life.
    fn renew_untrusted(
        &self,
        schedule: &mut Schedule,
        judged: &mut Arc<Snapshot>,
        snapshot: &Arc<Snapshot>,
        now: SystemTime,
    ) {
        if !Arc::ptr_eq(&judged.bundles, &snapshot.bundles) {
            for id in snapshot.unclean.iter() {
                tracing::info!(entry = id, reason = "ISSUER_TAINTED", "SVID will be renewed early");
                schedule.renew_now(id, now);
            }
        }
        if !Arc::ptr_eq(&judged.revocations, &snapshot.revocations) {
            for id in judged.held.keys().filter(|id| !snapshot.held.contains_key(*id)) {
                if snapshot.entries.get(id).is_some() {
                    tracing::info!(entry = id, reason = "CERT_REVOKED", "SVID was revoked, a new one is asked for");
                    schedule.renew_now(id, now);
                }
            }
        }
        *judged = snapshot.clone();
    }

    async fn renew(&self, schedule: &mut Schedule, due: Vec<String>) {
        let mut asked = Vec::with_capacity(due.len());
        let mut prepared = Vec::with_capacity(due.len());
        for id in due {
            let Some(ready) = schedule.take_prepared(&id) else { continue };
            asked.push((id.clone(), ready.csr()));
            prepared.push((id, ready));
        }
        let wait = self.call_wait(&asked);
        let answers = match self.ca.new_x509_svids(asked, wait).await {
            Ok(answers) => answers.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::warn!(%error, reason = error.reason(), svids = prepared.len(), "SVIDs not renewed, trying again");
                vec![None; prepared.len()]
            }
        };
        let (now, entries) = (self.clock.now(), self.state.current().entries.clone());
        let mut fresh = Vec::with_capacity(prepared.len());
        let mut before = self.state.current().held.values().next().map(|held| held.svid.clone());
        for ((id, ready), answer) in prepared.into_iter().zip(answers) {
            let outcome = match (answer, entries.get(&id)) {
                (Some(answer), Some(entry)) => self.accept(entry, ready, answer, now, before.as_deref()),
                // The whole call failed and was logged, or the entry has gone in the meantime.
                _ => None,
            };
            self.numbers.renewed(Holder::workload, if outcome.is_some() { Outcome::ok } else { Outcome::failed });
            match outcome {
                Some(held) => {
                    before = Some(held.svid.clone());
                    schedule.succeeded(&id, held.revision, held.renew_at, held.svid.not_after());
                    fresh.push((id, held));
                }
                None => schedule.failed(&id, now, dice::roll()),
            }
        }
        for id in self.state.put_held(fresh) {
            tracing::warn!(
                entry = id,
                reason = "ISSUER_TAINTED",
                "the CA signed with an authority that is not in force here"
            );
            schedule.failed(&id, now, dice::roll());
            self.resync.notify_one();
        }
        schedule.prepare();
    }

    /// How long the CA may take: half of what is left of the SVID that ends first, so that another try is in time.
    fn call_wait(&self, asked: &[(String, Vec<u8>)]) -> Duration {
        let (now, snapshot) = (self.clock.now(), self.state.current());
        let first = asked.iter().filter_map(|(id, _)| snapshot.held.get(id)).map(|held| held.svid.not_after()).min();
        let left = first.and_then(|first| first.duration_since(now).ok());
        left.map_or(CALL_WAIT_MAX, |left| (left / 2).clamp(CALL_WAIT_MIN, CALL_WAIT_MAX))
    }

    fn accept(
        &self,
        entry: &Arc<Entry>,
        ready: Prepared,
        answer: Result<Issued, CaError>,
        now: SystemTime,
        before: Option<&X509Svid>,
    ) -> Option<Held> {
        let advice = answer.as_ref().ok().and_then(|issued| issued.renew_at);
        let svid = answer.and_then(|issued| ready.into_svid(issued.chain));
        match svid.and_then(|svid| check(&svid, entry, now).map(|()| svid)) {
            Ok(svid) => {
                let svid = svid.with_hint(&entry.hint);
                let svid = match before {
                    Some(before) => svid.sharing_issuers(before),
                    None => svid,
                };
                let valid_from = svid.not_before().max(now);
                let renew_at = renew_at_advised(valid_from, svid.not_after(), advice, dice::roll());
                tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), entry = entry.id, "SVID renewed");
                Some(Held { svid: Arc::new(svid), revision: entry.revision, renew_at })
            }
            Err(error) => {
                tracing::warn!(entry = entry.id, %error, reason = error.reason(), "SVID not renewed");
                if error.is_refusal() {
                    self.resync.notify_one();
                }
                None
            }
        }
    }

    fn measure(&self, now: SystemTime) {
        let snapshot = self.state.current();
        let first = snapshot.held.values().map(|held| held.svid.not_after()).min();
        let left = first.and_then(|first| first.duration_since(now).ok()).unwrap_or_default();
        self.numbers.svid_expiry.set(left.as_secs_f64());
        self.numbers.svids.set(i64::try_from(snapshot.held.len()).unwrap_or(i64::MAX));
        self.numbers.entries.set(i64::try_from(snapshot.entries.len()).unwrap_or(i64::MAX));
    }
}

/// The CA must have issued what the entry says, valid now.
fn check(svid: &X509Svid, entry: &Entry, now: SystemTime) -> Result<(), CaError> {
    if *svid.id() != entry.spiffe_id {
        return Err(CaError::BadAnswer { what: "an SVID of another identity" });
    }
    if svid.not_after() <= now {
        // Fresh from the CA and over: the two clocks are further apart than the SVID lives.
        return Err(CaError::ClockAhead { by: now.duration_since(svid.not_before()).unwrap_or_default() });
    }
    Ok(())
}

/// SVIDs asked for in one call.
pub(crate) const BATCH_MAX: usize = 250;
const IDLE_WAIT_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
