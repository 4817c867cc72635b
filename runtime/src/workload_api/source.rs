//! The current identity, shared by everything in a process that needs it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use identity::tls::Snapshot;
use identity::{BundleSet, X509Svid};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What a process is at one moment: at least one SVID, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Identity {
    svids: Vec<Arc<X509Svid>>,
    bundles: Arc<BundleSet>,
}

/// The current identity. Clones share it; it can be handed to [`crate::mtls`].
#[derive(Clone, Debug)]
pub struct IdentitySource {
    shared: Arc<Shared>,
    _task: Option<Arc<AbortOnDrop>>,
}

/// The writing side of a source.
#[derive(Debug)]
pub struct IdentityPublisher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: ArcSwapOption<Identity>,
    /// Counts changes.
    generation: watch::Sender<u64>,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

/// A source without an identity yet, and the side that gives it one.
pub fn publisher() -> (IdentityPublisher, IdentitySource) {
    let shared = Arc::new(Shared { current: ArcSwapOption::empty(), generation: watch::Sender::new(0) });
    (IdentityPublisher(shared.clone()), IdentitySource { shared, _task: None })
}

impl Identity {
    /// `None` when there is no SVID.
    pub fn new(svids: Vec<Arc<X509Svid>>, bundles: Arc<BundleSet>) -> Option<Self> {
        (!svids.is_empty()).then_some(Self { svids, bundles })
    }

    /// The default SVID: the first.
    pub fn svid(&self) -> &Arc<X509Svid> {
        // `new` lets no identity without an SVID come to be.
        &self.svids[0]
    }

    /// All SVIDs, the default one first.
    pub fn svids(&self) -> &[Arc<X509Svid>] {
        &self.svids
    }

    /// The bundles of the own and all federated trust domains.
    pub fn bundles(&self) -> &Arc<BundleSet> {
        &self.bundles
    }
}

impl IdentitySource {
    /// A source that never changes, for tests and tools.
    pub fn fixed(identity: Identity) -> Self {
        let (publisher, source) = publisher();
        publisher.publish(identity);
        source
    }

    /// The identity of this moment.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.shared.current.load_full()
    }

    /// Waits for the next change since the last look through this receiver.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Waits until the identity changes from what it is now.
    pub async fn changed(&self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = self.subscribe().changed().await;
    }

    /// Waits until there is an identity.
    pub async fn wait_ready(&self) -> Arc<Identity> {
        let mut changes = self.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(identity) = self.current() {
                return identity;
            }
            let _ = changes.changed().await;
        }
    }

    pub(super) fn owning(mut self, task: AbortHandle) -> Self {
        self._task = Some(Arc::new(AbortOnDrop(task)));
        self
    }
}

impl IdentityPublisher {
    /// Replaces the identity.
    pub fn publish(&self, identity: Identity) {
        self.0.current.store(Some(Arc::new(identity)));
        self.0.generation.send_modify(|generation| *generation += 1);
    }

    /// Takes the identity away; whether there was one.
    pub fn withdraw(&self) -> bool {
        let had = self.0.current.swap(None).is_some();
        if had {
            self.0.generation.send_modify(|generation| *generation += 1);
        }
        had
    }
}

impl Snapshot for IdentitySource {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        self.shared.current.load().as_ref().map(|identity| identity.svid().clone())
    }

    fn bundles(&self) -> Arc<BundleSet> {
        self.shared.current.load().as_ref().map(|identity| identity.bundles.clone()).unwrap_or_default()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
