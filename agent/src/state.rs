//! What the agent knows, as immutable snapshots: entries, the SVIDs held for them, bundles.
//!
//! Writers replace the snapshot, streams watch for the next. An expired SVID is in no answer, whatever a snapshot holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use tokio::sync::watch;

use crate::entry::{Entries, Entry};

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
        let bundles = Arc::new(BundleSet::new([Arc::new(own)]));
        let first = Snapshot { bundles, ..Snapshot::default() };
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
                next.bundles = Arc::new(bundles);
            }
            *current = Arc::new(next);
            true
        });
    }

    /// Adds new SVIDs, of entries that are still authorized.
    pub(crate) fn put_held(&self, fresh: Vec<(String, Held)>) {
        if fresh.is_empty() {
            return;
        }
        self.current.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            let mut held = BTreeMap::clone(&next.held);
            held.extend(fresh.into_iter().filter(|(id, _)| next.entries.get(id).is_some()));
            next.held = Arc::new(held);
            *current = Arc::new(next);
        });
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
            *current = Arc::new(next);
            true
        });
    }
}

fn same_bundles(one: &BundleSet, other: &BundleSet) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| one == other)
}

impl Snapshot {
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
