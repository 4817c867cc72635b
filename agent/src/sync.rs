//! Keeping entries and bundles as the CA has them: asked for at once when the CA says that something changed, every half a minute
//! while it can say so, and every few seconds while it cannot.
//!
//! When the CA is away, what is known keeps being served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use identity::renewal::retry_wait;
use identity::{BundleSet, TrustBundle};
use runtime::clock::{self, unix_secs};
use runtime::readiness::ReadyGuard;
use runtime::shutdown::Shutdown;
use tokio::sync::{Notify, mpsc, watch};

use crate::ca::{Ca, CaError, Progress, Report};
use crate::dice;
use crate::entry::Entries;
use crate::metrics::{Numbers, Outcome};
use crate::node::NodeIdentity;
use crate::state::State;
use crate::trust::Trust;

/// Syncs with the CA.
pub(crate) struct Syncer {
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) state: Arc<State>,
    /// With whose SVID the CA is asked.
    pub(crate) own: Arc<NodeIdentity>,
    pub(crate) numbers: Numbers,
    pub(crate) interval: Duration,
    /// Keeps the own bundle for the next start.
    pub(crate) trust: Arc<Trust>,
    /// Asks for a sync out of turn.
    pub(crate) resync: Arc<Notify>,
    /// What this node enforces, for the CA.
    pub(crate) report: watch::Receiver<Report>,
    /// The entries revision that was synced.
    pub(crate) revision: watch::Sender<u64>,
    /// Blocks readiness until the first sync.
    pub(crate) unsynced: Option<ReadyGuard>,
    /// Whether the own bundle could not be kept.
    pub(crate) unkept: bool,
}

impl Syncer {
    /// Syncs until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let (told, mut hints) = mpsc::channel(1);
        let (mut listener, is_told) = (runtime::tasks::TaskSet::new(), Arc::new(AtomicBool::default()));
        let listening = Listener { ca: self.ca.clone(), report: self.report.clone(), told, is_told: is_told.clone() };
        listener.spawn("watch", listening.run(self.resync.clone(), shutdown.clone()));
        let (mut failures, mut hinted, mut posted) = (0_u32, Progress::default(), None);
        while !shutdown.is_requested() {
            let Some(outcome) = shutdown.unless(self.sync(hinted, &mut posted)).await else { break };
            let wait = match outcome {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!(failures, "the CA answers again");
                    }
                    failures = 0;
                    // Whoever is told of every change need not ask so often.
                    if is_told.load(Ordering::Relaxed) { self.interval * TOLD_FACTOR } else { self.interval }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, reason = error.reason(), failures, "sync failed, serving what is known");
                    }
                    if error.disowns() {
                        self.own.disown();
                    }
                    self.trust.look_again(&error, &self.state).await;
                    retry_wait(failures, RETRY_WAIT_BASE, self.interval.max(RETRY_WAIT_BASE), dice::roll())
                }
            };
            self.numbers.synced(if failures == 0 { Outcome::ok } else { Outcome::failed });
            tokio::select! {
                () = shutdown.requested() => break,
                Some(hint) = hints.recv() => hinted = hint,
                () = self.resync.notified() => (),
                () = tokio::time::sleep(wait) => (),
            }
        }
        listener.abort().await;
    }

    async fn sync(&mut self, hinted: Progress, posted: &mut Option<u64>) -> Result<(), CaError> {
        // First, because seconds count there.
        self.sync_revocations().await?;
        let before = self.state.current();
        let own = self.ca.bundle().await?;
        let entries = Entries::new(self.ca.entries(&before.entries).await?);
        let bundles = self.bundles(own, &entries, &before.bundles).await;
        let sequence = bundles.get(self.state.trust_domain()).map_or(0, |bundle| bundle.sequence);
        if !before.synced || *before.entries != entries {
            tracing::info!(entries = entries.len(), bundle_sequence = sequence, "entries synced");
        }
        self.state.put_synced(entries, bundles);
        self.unsynced = None;
        let revision = hinted.entries_revision;
        self.revision.send_if_modified(|told| std::mem::replace(told, revision) != revision);
        // For a CA without a watch; what a new bundle leads to is told at the next sync.
        let enforced = self.report.borrow().enforced;
        if enforced > 0 && *posted != Some(enforced) {
            match self.ca.post_status(enforced).await {
                Ok(()) | Err(CaError::Unsupported) => *posted = Some(enforced),
                Err(error) => tracing::debug!(%error, "status not posted"),
            }
        }
        Ok(())
    }

    /// What was revoked since the last time. A CA that does not know the call revokes nothing.
    async fn sync_revocations(&self) -> Result<(), CaError> {
        let known = self.state.current().revocations.clone();
        let news = match self.ca.revocations(known.generation).await {
            Ok(news) => news,
            Err(CaError::Unsupported) => return Ok(()),
            Err(error) => return Err(error),
        };
        if news.generation == known.generation {
            return Ok(());
        }
        let generation = news.generation;
        match known.with(news, i64::try_from(unix_secs(clock::now())).unwrap_or(i64::MAX)) {
            Ok(revocations) => {
                let (lists, tokens) = (revocations.lists().count(), revocations.token_count());
                tracing::info!(generation, lists, tokens, "revocation lists in force");
                self.state.put_revocations(revocations);
            }
            Err(error) => {
                tracing::error!(%error, reason = error.reason(), "revocation lists of the CA not usable, keeping the old ones");
            }
        }
        Ok(())
    }

    /// Own and foreign bundles. A foreign one that cannot be had just now stays as it was.
    async fn bundles(&mut self, own: TrustBundle, entries: &Entries, before: &BundleSet) -> BundleSet {
        let mut bundles = BundleSet::default();
        if before.get(self.state.trust_domain()).is_none_or(|kept| **kept != own) {
            tracing::info!(bundle_sequence = own.sequence, roots = own.x509_authorities.len(), "bundle changed");
            self.keep(&own);
        } else if self.unkept {
            self.keep(&own);
        }
        bundles.insert(Arc::new(own));
        for trust_domain in entries.federated() {
            match self.ca.federated_bundle(&trust_domain).await {
                Ok(Some(bundle)) => bundles.insert(Arc::new(bundle)),
                Ok(None) => tracing::debug!(%trust_domain, "the CA has no bundle of this trust domain"),
                Err(error) => {
                    tracing::warn!(%trust_domain, %error, reason = error.reason(), "federated bundle not synced");
                    if let Some(kept) = before.get(&trust_domain) {
                        bundles.insert(kept.clone());
                    }
                }
            }
        }
        bundles
    }

    /// Stores the own bundle for the next start; what cannot be stored now is at the next sync.
    fn keep(&mut self, own: &TrustBundle) {
        match self.trust.keep(own) {
            Ok(()) if std::mem::take(&mut self.unkept) => tracing::info!("bundle stored again"),
            Ok(()) => (),
            Err(error) => {
                self.numbers.not_written("DATA_DIR_UNWRITABLE");
                if !std::mem::replace(&mut self.unkept, true) {
                    tracing::error!(%error, reason = "DATA_DIR_UNWRITABLE", "bundle not stored, trying again");
                }
            }
        }
    }
}

/// Holds the CA's watch stream open; a CA that has none is asked again now and then, it may be upgraded.
struct Listener {
    ca: Arc<dyn Ca>,
    report: watch::Receiver<Report>,
    told: mpsc::Sender<Progress>,
    /// Whether the stream is open, as far as anybody knows.
    is_told: Arc<AtomicBool>,
}

impl Listener {
    async fn run(self, resync: Arc<Notify>, shutdown: Shutdown) {
        let mut failures = 0;
        while !shutdown.is_requested() {
            let begun = tokio::time::Instant::now();
            self.is_told.store(true, Ordering::Relaxed);
            let watched = self.ca.watch(self.report.clone(), self.told.clone());
            let Some(outcome) = shutdown.unless(watched).await else { return };
            self.is_told.store(false, Ordering::Relaxed);
            // What happens while nobody listens is found by asking.
            resync.notify_one();
            if begun.elapsed() > WATCH_PROVEN {
                failures = 0;
            }
            failures += 1;
            let wait = match outcome {
                Err(CaError::Unsupported) => WATCH_UNSUPPORTED_WAIT,
                _ => retry_wait(failures, RETRY_WAIT_BASE, WATCH_RETRY_MAX, dice::roll()),
            };
            if shutdown.unless(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }
}

/// How much more rarely the CA is asked while its watch stream is open: should it keep something to itself, that is found all the same.
const TOLD_FACTOR: u32 = 6;
const RETRY_WAIT_BASE: Duration = Duration::from_millis(250);
const WATCH_RETRY_MAX: Duration = Duration::from_secs(5);
const WATCH_PROVEN: Duration = Duration::from_secs(10);
const WATCH_UNSUPPORTED_WAIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
