//! What the agent knows, as immutable snapshots: entries, the SVIDs held for them, bundles.
//!
//! Writers replace the snapshot, streams watch for the next. An expired SVID is in no answer, whatever a snapshot holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use identity::verify::{self, PeerError, VerifiedPeer};
use identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use runtime::clock::Clock;
use runtime::shutdown::Shutdown;
use tokio::sync::watch;

use crate::cache::Stored;
use crate::enforced::Level;
use crate::entry::{Entries, Entry};
use crate::revocations::Revocations;

/// An SVID held for an entry.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) svid: Arc<X509Svid>,
    /// The entry's revision that it was issued under.
    pub(crate) revision: i64,
    /// When its successor will be asked for.
    pub(crate) renew_at: SystemTime,
}

impl Held {
    /// Whether it may be handed out. What begins later than clocks may differ is as little valid here as what has ended.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        self.svid.not_after() > now && self.svid.not_before() <= now + CLOCKS_DIFFER_MAX
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Whether the CA has been heard since this process started.
    pub(crate) synced: bool,
    /// Whether an earlier process left behind what it knew.
    pub(crate) warm: bool,
    /// Its SVIDs are being read.
    restoring: Option<Restoring>,
    pub(crate) entries: Arc<Entries>,
    pub(crate) held: Arc<BTreeMap<String, Held>>,
    /// Entries whose SVIDs a tainted or vanished authority signed: successors are on their way.
    pub(crate) unclean: Arc<BTreeSet<String>>,
    /// Entries whose last SVID ended before its successor came, and when.
    pub(crate) ended: Arc<BTreeMap<String, SystemTime>>,
    pub(crate) bundles: Arc<BundleSet>,
    /// The same without revocation lists, to know the CA by: whoever brings the next lists must not be refused because the
    /// last ones are too old.
    pub(crate) plain: Arc<BundleSet>,
    /// The own trust domain's bundle without what is tainted: what verifies by it needs no replacement.
    pub(crate) untainted: Arc<BundleSet>,
    /// What is revoked; the lists are part of `bundles` too.
    pub(crate) revocations: Arc<Revocations>,
    /// The number of the newest own bundle by which all that is held is clean.
    pub(crate) settled: u64,
}

/// What is to be done when all that an earlier process held is read.
#[derive(Clone, Copy, Debug)]
struct Restoring {
    /// The operator has said meanwhile whom to trust: what is held is judged by that.
    judge: bool,
}

/// The current snapshot and its watchers.
#[derive(Debug)]
pub(crate) struct State {
    trust_domain: TrustDomain,
    current: watch::Sender<Arc<Snapshot>>,
    /// How many wait for the first SVID of an entry.
    waited_for: Mutex<BTreeMap<String, usize>>,
}

/// Somebody waits for the SVIDs of some entries; until this is dropped they come first.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    state: &'a State,
    ids: Vec<String>,
}

impl State {
    /// Nothing known but the bundle that this agent starts with.
    pub(crate) fn new(own: TrustBundle) -> Self {
        let trust_domain = own.trust_domain.clone();
        let untainted = Arc::new(BundleSet::new([Arc::new(own.untainted())]));
        let bundles = Arc::new(BundleSet::new([Arc::new(own)]));
        let first = Snapshot { plain: bundles.clone(), bundles, untainted, ..Snapshot::default() };
        Self { trust_domain, current: watch::Sender::new(Arc::new(first)), waited_for: Mutex::default() }
    }

    /// Takes up what an earlier process kept, before anything has been heard from the CA. Its SVIDs follow.
    pub(crate) fn restore(&self, stored: Stored) {
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            let known = |id: &String| stored.entries.get(id).is_some();
            next.unclean = Arc::new(stored.unclean.into_iter().filter(known).collect());
            next.entries = Arc::new(stored.entries);
            let mut bundles = stored.bundles;
            let newer = next.bundles.get(&self.trust_domain).filter(|own| {
                let kept = bundles.get(&self.trust_domain);
                own.x509_authorities.iter().any(|root| kept.is_none_or(|kept| !kept.x509_authorities.contains(root)))
            });
            // The operator has said something else since: that holds, and what is held is judged by it.
            let judge = newer.cloned().map(|own| bundles.insert(own)).is_some();
            next.set_bundles(bundles, &self.trust_domain);
            next.warm = true;
            next.restoring = Some(Restoring { judge });
            *current = Arc::new(next);
        });
    }

    /// The first of the SVIDs that an earlier process kept.
    pub(crate) fn put_restored(&self, some: impl Iterator<Item = (String, Held)>) {
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            Arc::make_mut(&mut next.held).extend(some);
            *current = Arc::new(next);
        });
    }

    /// All of the SVIDs that an earlier process kept.
    pub(crate) fn end_restore(&self, mut all: BTreeMap<String, Held>) {
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            all.retain(|id, _| next.entries.get(id).is_some());
            next.held = Arc::new(all);
            if next.restoring.take().is_some_and(|restoring| restoring.judge) {
                next.judge_all();
            }
            *current = Arc::new(next);
        });
    }

    /// Replaces the own bundle alone: somebody who may has said whom to trust now.
    pub(crate) fn put_own_bundle(&self, own: TrustBundle) {
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            let mut bundles = BundleSet::clone(&next.plain);
            bundles.insert(Arc::new(own));
            next.set_bundles(bundles, &self.trust_domain);
            next.judge_all();
            *current = Arc::new(next);
        });
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Replaces what a sync brought; watchers are told only of a difference.
    pub(crate) fn put_synced(&self, entries: Entries, bundles: BundleSet) {
        self.current.send_if_modified(|current| {
            let same = current.synced && *current.entries == entries && same_bundles(&current.bundles, &bundles);
            if same {
                return false;
            }
            let mut next = Snapshot::clone(current);
            next.synced = true;
            if *next.entries != entries {
                next.entries = Arc::new(entries);
                let (held, entries) = (&next.held, &next.entries);
                let kept = held.iter().filter(|(id, _)| entries.get(id).is_some());
                next.held = Arc::new(kept.map(|(id, held)| (id.clone(), held.clone())).collect());
                let entries = next.entries.clone();
                next.unclean_mut().retain(|id| entries.get(id).is_some());
                next.ended_mut().retain(|id, _| entries.get(id).is_some());
            }
            if !same_bundles(&next.bundles, &bundles) {
                next.set_bundles(bundles, &self.trust_domain);
                next.judge_all();
            }
            next.settle(&self.trust_domain);
            *current = Arc::new(next);
            true
        });
    }

    /// Replaces what is revoked. Revoked SVIDs are dropped.
    pub(crate) fn put_revocations(&self, revocations: Revocations) {
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            next.revocations = Arc::new(revocations);
            next.judge_by_lists(&self.trust_domain);
            let revoked = |held: &Held| next.revokes(&held.svid);
            if next.held.values().any(revoked) {
                let kept = next.held.iter().filter(|(_, held)| !revoked(held));
                next.held = Arc::new(kept.map(|(id, held)| (id.clone(), held.clone())).collect());
                let held = next.held.clone();
                next.unclean_mut().retain(|id| held.contains_key(id));
            }
            next.settle(&self.trust_domain);
            *current = Arc::new(next);
        });
    }

    /// Adds new SVIDs, of entries that are still authorized. One whose authority was tainted or withdrawn while it was on
    /// its way is not taken; answers the entries of such.
    pub(crate) fn put_held(&self, fresh: Vec<(String, Held)>) -> Vec<String> {
        let mut refused = Vec::new();
        if fresh.is_empty() {
            return refused;
        }
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            let mut held = BTreeMap::clone(&next.held);
            for (id, one) in fresh.into_iter().filter(|(id, _)| current.entries.get(id).is_some()) {
                if next.takes(&one.svid) {
                    next.unclean_mut().remove(&id);
                    next.ended_mut().remove(&id);
                    held.insert(id, one);
                } else {
                    refused.push(id);
                }
            }
            next.held = Arc::new(held);
            next.settle(&self.trust_domain);
            *current = Arc::new(next);
        });
        refused
    }

    /// Drops SVIDs that have expired, so that streams end instead of resting on them.
    pub(crate) fn drop_expired(&self, now: SystemTime) {
        self.current.send_if_modified(|current| {
            if !current.held.values().any(|held| held.svid.not_after() <= now) {
                return false;
            }
            let mut next = Snapshot::clone(current);
            let (kept, over): (BTreeMap<_, _>, BTreeMap<_, _>) = next
                .held
                .iter()
                .map(|(id, held)| (id.clone(), held.clone()))
                .partition(|(_, held)| held.svid.not_after() > now);
            next.held = Arc::new(kept);
            for (id, held) in over {
                next.unclean_mut().remove(&id);
                next.ended_mut().insert(id, held.svid.not_after());
            }
            next.settle(&self.trust_domain);
            *current = Arc::new(next);
            true
        });
    }

    /// Notes that somebody waits for SVIDs of `entries`.
    pub(crate) fn wait_for(&self, entries: &[Arc<Entry>]) -> Waiting<'_> {
        let ids: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
        let mut waited_for = self.waited_for.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &ids {
            *waited_for.entry(id.clone()).or_default() += 1;
        }
        drop(waited_for);
        Waiting { state: self, ids }
    }

    /// The entries that somebody waits for.
    pub(crate) fn waited_for(&self) -> BTreeSet<String> {
        self.waited_for.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waited_for = self.state.waited_for.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            if let Some(count) = waited_for.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    waited_for.remove(id);
                }
            }
        }
    }
}

/// Drops each SVID in the second of its end, whatever else goes on.
pub(crate) async fn expire(state: Arc<State>, clock: Clock, shutdown: Shutdown) {
    let mut changes = state.subscribe();
    loop {
        let now = clock.now();
        state.drop_expired(now);
        let next = changes.borrow_and_update().held.values().map(|held| held.svid.not_after()).min();
        tokio::select! {
            () = shutdown.requested() => return,
            _ = changes.changed() => (),
            () = clock.sleep_until(next.unwrap_or(now + IDLE_WAIT)) => (),
        }
    }
}

fn same_bundles(one: &BundleSet, other: &BundleSet) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| one == other)
}

impl Snapshot {
    /// Whether there is something to answer with: heard from the CA, or kept by an earlier process.
    pub(crate) fn is_known(&self) -> bool {
        self.synced || self.warm
    }

    /// Whether SVIDs of `entries` may yet be read that an earlier process kept.
    pub(crate) fn is_restoring(&self, entries: &[Arc<Entry>]) -> bool {
        self.restoring.is_some() && entries.iter().any(|entry| !self.held.contains_key(&entry.id))
    }

    fn set_bundles(&mut self, bundles: BundleSet, own: &TrustDomain) {
        let untainted = bundles.get(own).map(|own| Arc::new(own.untainted()));
        self.untainted = Arc::new(BundleSet::new(untainted));
        self.plain = Arc::new(bundles);
        self.judge_by_lists(own);
    }

    /// Looks anew at all that is held.
    fn judge_all(&mut self) {
        let unclean = self.held.iter().filter(|(_, held)| !self.is_clean(&held.svid));
        self.unclean = Arc::new(unclean.map(|(id, _)| id.clone()).collect());
    }

    fn unclean_mut(&mut self) -> &mut BTreeSet<String> {
        Arc::make_mut(&mut self.unclean)
    }

    fn ended_mut(&mut self) -> &mut BTreeMap<String, SystemTime> {
        Arc::make_mut(&mut self.ended)
    }

    /// When the last SVID of one of `entries` ended, if none followed.
    pub(crate) fn ended_at(&self, entries: &[Arc<Entry>], now: SystemTime) -> Option<SystemTime> {
        let held = |entry: &Arc<Entry>| self.held.get(&entry.id).map(|held| held.svid.not_after());
        let ended =
            |entry: &Arc<Entry>| self.ended.get(&entry.id).copied().or_else(|| held(entry).filter(|end| *end <= now));
        entries.iter().filter_map(ended).max()
    }

    /// Whether a root vouches for the SVID that is neither tainted nor gone. Time plays no part: whatever was valid once
    /// is judged as of then.
    pub(crate) fn is_clean(&self, svid: &X509Svid) -> bool {
        judge(svid, &self.untainted).is_ok()
    }

    /// Whether the SVID, or what signed it, is revoked.
    pub(crate) fn revokes(&self, svid: &X509Svid) -> bool {
        judge(svid, &self.bundles).is_err_and(|error| error.reason() == REVOKED)
    }

    /// Whether the SVID is clean and not revoked.
    fn takes(&self, svid: &X509Svid) -> bool {
        let revoked = |peer: &VerifiedPeer| {
            let checked = verify::check_revocation(peer, &self.bundles, identity::unix_time(svid.not_before()));
            checked.is_err_and(|error| error.reason() == REVOKED)
        };
        judge(svid, &self.untainted).is_ok_and(|peer| !revoked(&peer))
    }

    /// Has everything that verifies by the bundles heed the lists.
    fn judge_by_lists(&mut self, own: &TrustDomain) {
        let mut bundles = BundleSet::clone(&self.plain);
        bundles.set_revocations(own.clone(), self.revocations.index.clone());
        self.bundles = Arc::new(bundles);
    }

    /// What a workload enforces that has got all of this.
    pub(crate) fn level(&self) -> Level {
        Level { bundle: self.settled, revocations: self.revocations.generation }
    }

    /// Whether a root of the own bundle is on its way out.
    pub(crate) fn has_tainted_root(&self, own: &TrustDomain) -> bool {
        let tainted = |own: &Arc<TrustBundle>| own.x509_authorities.iter().any(|root| own.is_x509_tainted(root));
        self.plain.get(own).is_some_and(tainted)
    }

    /// The number of the own bundle.
    pub(crate) fn own_sequence(&self, own: &TrustDomain) -> u64 {
        self.bundles.get(own).map_or(0, |bundle| bundle.sequence)
    }

    /// Notes the bundle when nothing that is held is left to be replaced because of it.
    fn settle(&mut self, own: &TrustDomain) {
        if self.synced && self.unclean.is_empty() {
            self.settled = self.own_sequence(own);
        }
    }

    /// The valid SVIDs of `entries`, in their order.
    pub(crate) fn svids_of<'a>(
        &'a self,
        entries: &'a [Arc<Entry>],
        now: SystemTime,
    ) -> Vec<(&'a Arc<Entry>, &'a Held)> {
        let held = entries.iter().filter_map(|entry| Some((entry, self.held.get(&entry.id)?)));
        held.filter(|(_, held)| held.is_valid(now)).collect()
    }

    /// How far in the future by this machine's clock the SVIDs of `entries` begin, if that is why none is valid.
    pub(crate) fn begins_in(&self, entries: &[Arc<Entry>], now: SystemTime) -> Option<Duration> {
        let held = entries.iter().filter_map(|entry| self.held.get(&entry.id)).filter(|held| !held.is_valid(now));
        held.filter_map(|held| held.svid.not_before().duration_since(now).ok()).min()
    }

    /// Entries that have no valid SVID yet.
    pub(crate) fn missing(&self, now: SystemTime) -> usize {
        let valid = |entry: &&Arc<Entry>| self.held.get(&entry.id).is_some_and(|held| held.is_valid(now));
        self.entries.len() - self.entries.iter().filter(valid).count()
    }
}

/// Each SVID is judged once by each set: to remember thousands of answers would take more memory than the SVIDs.
fn judge(svid: &X509Svid, bundles: &BundleSet) -> Result<VerifiedPeer, PeerError> {
    verify::verify_once(&svid.to_chain(), bundles, identity::unix_time(svid.not_before()))
}

/// By how much the clocks of this machine and of the CA may differ.
pub(crate) const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(60);
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// The code of a certificate on a list.
const REVOKED: &str = "CERT_REVOKED";
