//! The proxy's own SVID and the bundles it verifies peers with, swapped as a whole.
//!
//! Readers take one `Arc`; a new SVID or bundle is a new value with the next generation. Nothing is ever taken away
//! by a source that is gone: what is held serves until it expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use identity::tls::Snapshot;
use identity::{BundleSet, TrustDomain, X509Svid};
use tokio::sync::watch;

use crate::obs::counters::Counters;

/// What is held at one moment.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) svid: Option<Arc<X509Svid>>,
    /// The root above the SVID, as soon as the bundles have it.
    pub(crate) root: Option<Arc<str>>,
    pub(crate) bundles: Arc<BundleSet>,
}

/// The current identity. Shared by everything that speaks TLS.
#[derive(Debug)]
pub(crate) struct OwnIdentity {
    held: ArcSwap<Held>,
    /// Counts SVIDs and bundle sets: connections opened under older ones are retired.
    generation: AtomicU64,
    changed: watch::Sender<u64>,
    counters: Arc<Counters>,
}

impl OwnIdentity {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        let held = Held { svid: None, root: None, bundles: Arc::new(BundleSet::default()) };
        Self {
            held: ArcSwap::from_pointee(held),
            generation: AtomicU64::new(0),
            changed: watch::channel(0).0,
            counters,
        }
    }

    /// Everything at one moment.
    pub(crate) fn held(&self) -> Arc<Held> {
        self.held.load_full()
    }

    pub(crate) fn svid_now(&self) -> Option<Arc<X509Svid>> {
        self.held.load().svid.clone()
    }

    pub(crate) fn bundles_now(&self) -> Arc<BundleSet> {
        self.held.load().bundles.clone()
    }

    /// The number of the current SVID and bundles.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Follows every change, of SVID or bundles.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether both an SVID and a bundle are there.
    pub(crate) fn is_complete(&self) -> bool {
        let held = self.held.load();
        held.svid.is_some() && !held.bundles.is_empty()
    }

    /// Waits until both are there.
    pub(crate) async fn wait_complete(&self) {
        let mut changes = self.changes();
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = changes.wait_for(|_| self.is_complete()).await;
    }

    /// Puts a new SVID in force.
    pub(crate) fn set_svid(&self, svid: Arc<X509Svid>) {
        let not_after = svid.not_after().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.counters.svid_not_after.store(i64::try_from(not_after).unwrap_or(i64::MAX), Ordering::Relaxed);
        tracing::info!(spiffe_id = svid.id().as_str(), serial = svid.serial(), "SVID in force");
        let root = root_of(&svid, &self.bundles_now());
        self.held.rcu(|held| Held { svid: Some(svid.clone()), root: root.clone(), bundles: held.bundles.clone() });
        self.follow_root(root.as_ref());
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.counters.identity_generation.store(generation, Ordering::Relaxed);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Puts new bundles in force. When only revocation lists differ, connections stay in use: their peers are judged one
    /// by one.
    pub(crate) fn set_bundles(&self, bundles: Arc<BundleSet>) {
        let before = self.bundles_now();
        if *before == *bundles && !bundles.is_empty() {
            return;
        }
        let held = self.held();
        // An SVID keeps its root, also when that is not trusted any more.
        let root = held.root.clone().or_else(|| root_of(held.svid.as_ref()?, &bundles));
        self.held.rcu(|held| Held { svid: held.svid.clone(), root: root.clone(), bundles: bundles.clone() });
        self.follow_root(root.as_ref());
        if before.iter().eq(bundles.iter()) {
            let revoked: usize = bundles.iter().map(|(name, _)| revoked_by(&bundles, name)).sum();
            tracing::info!(revoked, "revocation lists in force");
        } else {
            tracing::info!(trust_domains = bundles.len(), "trust bundles in force");
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Before anything is acknowledged, what rests on another root than our own is known.
    fn follow_root(&self, root: Option<&Arc<str>>) {
        if let Some(root) = root {
            self.counters.rests.move_to(root);
        }
    }
}

/// The root above an SVID. Time plays no part: it is judged as of its beginning.
fn root_of(svid: &X509Svid, bundles: &BundleSet) -> Option<Arc<str>> {
    let then = identity::unix_time(svid.not_before());
    identity::verify::verify_peer(&svid.to_chain(), bundles, then).ok().map(|own| own.root_id().clone())
}

/// How many certificates of a trust domain are revoked.
pub(crate) fn revoked_by(bundles: &BundleSet, name: &TrustDomain) -> usize {
    bundles.revocations(name).map_or(0, |index| index.lists().map(|list| list.len()).sum())
}

impl Snapshot for OwnIdentity {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        self.svid_now()
    }

    fn bundles(&self) -> Arc<BundleSet> {
        self.bundles_now()
    }
}
