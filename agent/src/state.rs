//! What the agent knows, as immutable snapshots: entries, the SVIDs held for them, bundles.
//!
//! Writers replace the snapshot, streams watch for the next. An expired SVID is in no answer, whatever a snapshot holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use tokio::sync::watch;

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

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Whether the CA has been heard since this process started.
    pub(crate) synced: bool,
    pub(crate) entries: Arc<Entries>,
    pub(crate) held: Arc<BTreeMap<String, Held>>,
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

/// The current snapshot and its watchers.
#[derive(Debug)]
pub(crate) struct State {
    trust_domain: TrustDomain,
    current: watch::Sender<Arc<Snapshot>>,
}

impl State {
    /// Nothing known but the bundle that this agent starts with.
    pub(crate) fn new(own: TrustBundle) -> Self {
        let trust_domain = own.trust_domain.clone();
        let untainted = Arc::new(BundleSet::new([Arc::new(own.untainted())]));
        let bundles = Arc::new(BundleSet::new([Arc::new(own)]));
        let first = Snapshot { plain: bundles.clone(), bundles, untainted, ..Snapshot::default() };
        Self { trust_domain, current: watch::Sender::new(Arc::new(first)) }
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
            }
            if !same_bundles(&next.bundles, &bundles) {
                let own = bundles.get(&self.trust_domain).map(|own| Arc::new(own.untainted()));
                next.untainted = Arc::new(BundleSet::new(own));
                next.plain = Arc::new(bundles);
                next.judge_by_lists(&self.trust_domain);
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
                if next.is_clean(&one.svid) && !next.revokes(&one.svid) {
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
            let kept = next.held.iter().filter(|(_, held)| held.svid.not_after() > now);
            next.held = Arc::new(kept.map(|(id, held)| (id.clone(), held.clone())).collect());
            next.settle(&self.trust_domain);
            *current = Arc::new(next);
            true
        });
    }
}

fn same_bundles(one: &BundleSet, other: &BundleSet) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| one == other)
}

impl Snapshot {
    /// Whether a root vouches for the SVID that is neither tainted nor gone. Time plays no part: whatever was valid once
    /// is judged as of then.
    pub(crate) fn is_clean(&self, svid: &X509Svid) -> bool {
        let then = identity::unix_time(svid.not_before());
        identity::verify::verify_peer(svid.chain(), &self.untainted, then).is_ok()
    }

    /// Whether the SVID, or what signed it, is revoked.
    pub(crate) fn revokes(&self, svid: &X509Svid) -> bool {
        let then = identity::unix_time(svid.not_before());
        let judged = identity::verify::verify_peer(svid.chain(), &self.bundles, then);
        judged.is_err_and(|error| error.reason() == "CERT_REVOKED")
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

    /// The number of the own bundle.
    pub(crate) fn own_sequence(&self, own: &TrustDomain) -> u64 {
        self.bundles.get(own).map_or(0, |bundle| bundle.sequence)
    }

    /// Notes the bundle when nothing that is held is left to be replaced because of it.
    fn settle(&mut self, own: &TrustDomain) {
        if self.synced && self.held.values().all(|held| self.is_clean(&held.svid)) {
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
        held.filter(|(_, held)| held.svid.not_after() > now).collect()
    }

    /// Entries that have no valid SVID yet.
    pub(crate) fn missing(&self, now: SystemTime) -> usize {
        let valid = |entry: &&Arc<Entry>| self.held.get(&entry.id).is_some_and(|held| held.svid.not_after() > now);
        self.entries.len() - self.entries.iter().filter(valid).count()
    }
}
