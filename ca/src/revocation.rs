//! Revocation: what is revoked, the signed lists of it, and answers about single certificates.
//!
//! What always holds:
//!
//! - A revocation counts from its commit on: here at once, elsewhere when the lists have come there.
//! - The number of the lists only grows, over restarts and replicas; each list is good for longer than it stands.
//! - Every authority that may have signed something has a list, empty or not.

mod ocsp;
mod responders;
mod settings;
mod web;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use identity::authority::AuthorityError;
use identity::bundle::BundleSet;
use identity::revocation::RevocationIndex;
use runtime::clock::from_unix_secs;
use tokio::sync::watch;

use crate::certifier::{Certifier, secs};
use crate::pace;
use crate::store::{CRL_PARTITION_MAX, LAST_PART, ListPlan, Lists, StoreError, StoredList};
use ocsp::Answers;
use responders::Responders;

pub use settings::RevocationSettings;
pub(crate) use web::router;

/// What is revoked, in memory.
#[derive(Debug)]
pub(crate) struct Revocations {
    settings: RevocationSettings,
    current: ArcSwap<Current>,
    generation: watch::Sender<u64>,
    /// The bundles to verify callers by, made of these bundles and lists.
    bundles: ArcSwapOption<Judging>,
    responders: Responders,
    answers: Mutex<Answers>,
    /// One at a time.
    refreshing: tokio::sync::Mutex<()>,
    /// Whether what the database had at the last look is listed, and known here.
    settled: AtomicBool,
}

/// The lists at one moment.
#[derive(Debug, Default)]
pub(crate) struct Current {
    pub(crate) lists: Lists,
    index: Arc<RevocationIndex>,
}

#[derive(Debug)]
struct Judging {
    base: Arc<BundleSet>,
    current: Arc<Current>,
    whole: Arc<BundleSet>,
}

impl Revocations {
    pub(crate) fn new(settings: &RevocationSettings) -> Self {
        Self {
            settings: settings.clone(),
            current: ArcSwap::default(),
            generation: watch::Sender::new(0),
            bundles: ArcSwapOption::empty(),
            responders: Responders::default(),
            answers: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            settled: AtomicBool::new(false),
        }
    }

    /// What is revoked now.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Changes with every change of the lists; the number of the newest.
    pub(crate) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The distribution point for certificates of an issuer, if they shall have one.
    pub(crate) fn url_for(&self, issuer_id: &str) -> Option<String> {
        self.settings.in_certificates.then(|| format!("{}/crl/{issuer_id}.crl", self.settings.base_url()))
    }

    /// The bundles with the lists of our own trust domain.
    pub(crate) fn judging(&self, base: &Arc<BundleSet>, certifier: &Certifier) -> Arc<BundleSet> {
        let current = self.current();
        if let Some(known) = &*self.bundles.load()
            && Arc::ptr_eq(&known.base, base)
            && Arc::ptr_eq(&known.current, &current)
        {
            return known.whole.clone();
        }
        let mut whole = BundleSet::clone(base);
        whole.set_revocations(certifier.trust_domain.clone(), current.index.clone());
        let whole = Arc::new(whole);
        self.bundles.store(Some(Arc::new(Judging { base: base.clone(), current, whole: whole.clone() })));
        whole
    }

    fn plan(&self, now: SystemTime) -> ListPlan {
        ListPlan {
            now: secs(now),
            life: i64::try_from(self.settings.crl_life.as_secs()).unwrap_or(i64::MAX),
            part_max: CRL_PARTITION_MAX,
            url: self.settings.base_url(),
        }
    }

    /// Signs what is due and takes up what there is then.
    pub(crate) async fn refresh(&self, certifier: &Certifier) -> Result<(), RefreshError> {
        let _one = self.refreshing.lock().await;
        self.settled.store(false, Ordering::Relaxed);
        let signed = self.sign_due(certifier).await;
        // Also when nothing could be signed: what is revoked counts here.
        let store = &certifier.store;
        if store.crl_number().await? != self.current().lists.number || store.has_unlisted().await? {
            self.reload(certifier).await?;
        }
        self.settled.store(signed?, Ordering::Relaxed);
        Ok(())
    }

    /// The same when time alone may have brought something due.
    pub(crate) async fn keep_fresh(&self, certifier: &Certifier) -> Result<(), RefreshError> {
        let _one = self.refreshing.lock().await;
        // What is revoked here wakes [`keep`]; others may be heard late.
        let asks = certifier.store.is_shared() || !self.settled.load(Ordering::Relaxed);
        if !asks && !self.is_due(certifier) {
            return Ok(());
        }
        self.settled.store(false, Ordering::Relaxed);
        let settled = self.sign_due(certifier).await?;
        if certifier.store.crl_number().await? != self.current().lists.number {
            self.reload(certifier).await?;
        }
        self.settled.store(settled, Ordering::Relaxed);
        Ok(())
    }

    /// Whether time, or a change of the authorities, has brought something due.
    fn is_due(&self, certifier: &Certifier) -> bool {
        let (signing, plan, current) = (certifier.authorities.current(), self.plan(certifier.now()), self.current());
        let has_list = |id: &str| current.list(id, 0).is_some_and(|list| !plan.is_due(list.next_update));
        signing.issuer_ids(plan.now).any(|id| !has_list(id)) || !self.responders.know(&signing, plan.now)
    }

    /// Whether nothing is left to be signed.
    async fn sign_due(&self, certifier: &Certifier) -> Result<bool, RefreshError> {
        if !self.is_due(certifier) && !certifier.store.has_unlisted().await? {
            return Ok(true);
        }
        if certifier.clock_watch.check().is_err() {
            return Ok(false);
        }
        let plan = self.plan(certifier.now());
        for _ in 0..TRIES_MAX {
            // The number first: when an authority goes after it was read here, its last list takes that number.
            let newest = certifier.store.crl_number().await?;
            let issuers = certifier.authorities.open_issuers(&certifier.store, certifier.now()).await?;
            let Some(due) = certifier.store.due_lists(newest, issuers.clone(), plan.clone()).await? else {
                self.responders.take_up(&issuers);
                return Ok(true);
            };
            // Keys elsewhere take their time, long lists too.
            let mut signed = tokio::task::spawn_blocking(move || due.sign()).await.map_err(|_| StoreError::Closed)?;
            let failed = signed.failed.take();
            if signed.is_empty() || certifier.store.publish_lists(signed).await? {
                self.responders.take_up(&issuers);
                if let Some(error) = failed {
                    return Err(RefreshError::Unsigned(error));
                }
                tracing::info!("revocation lists signed");
                return Ok(true);
            }
        }
        // Another replica is quicker each time: it tells what is to be told.
        Ok(false)
    }

    async fn reload(&self, certifier: &Certifier) -> Result<(), RefreshError> {
        let lists = certifier.store.lists().await?;
        let whole = lists.lists.iter().filter(|list| list.part == 0);
        let index = RevocationIndex::decode(whole.map(|list| &list.der)).map_err(RefreshError::List)?;
        let number = lists.number;
        self.current.store(Arc::new(Current { lists, index: Arc::new(index) }));
        self.generation.send_if_modified(|known| std::mem::replace(known, number) != number);
        Ok(())
    }
}

impl Current {
    /// A list of an issuer: the whole one, or a part.
    pub(crate) fn list(&self, issuer_id: &str, part: i64) -> Option<&StoredList> {
        self.lists.lists.iter().find(|list| list.issuer_id == issuer_id && list.part == part)
    }

    /// The last list of an authority that is gone.
    pub(crate) fn last_list(&self, issuer_id: &str) -> Option<&StoredList> {
        self.list(issuer_id, LAST_PART)
    }

    /// The lists that nodes are to have: of each issuer the whole one, or its parts where there are such; and the last one of a
    /// compromised root, which speaks of connections that are open yet.
    pub(crate) fn for_nodes(&self) -> impl Iterator<Item = &StoredList> {
        let in_parts = |id: &str| self.list(id, 1).is_some();
        self.lists
            .lists
            .iter()
            .filter(move |list| list.part == LAST_PART || (list.part == 0) != in_parts(&list.issuer_id))
    }

    /// Whether a certificate or token is revoked, by serial number or hash.
    pub(crate) fn is_revoked(&self, serial: &str) -> bool {
        self.lists.revoked.contains_key(serial)
    }

    /// Revoked tokens that are of use yet, newer than a number: hash and end.
    pub(crate) fn tokens_since(&self, known: u64) -> impl Iterator<Item = (&str, i64)> {
        let tokens = self.lists.revoked.values().filter(|revoked| revoked.kind == "token");
        tokens.filter(move |token| token.number > known).map(|token| (token.serial.as_str(), token.not_after))
    }
}

/// Signs lists when something is revoked, here or by another replica, and before they end; for ever.
pub(crate) async fn keep(certifier: Arc<Certifier>) {
    let mut changed = certifier.store.revocations_changed();
    let mut authorities = certifier.authorities.changes();
    loop {
        let refreshed = tokio::select! {
            _ = changed.changed() => certifier.revocations.refresh(&certifier).await,
            _ = authorities.changed() => certifier.revocations.keep_fresh(&certifier).await,
            () = pace::pause(LOOK_AGAIN) => certifier.revocations.keep_fresh(&certifier).await,
        };
        if let Err(error) = refreshed {
            tracing::error!(reason = error.reason(), error = ?error, "revocation lists not renewed");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Why lists are as they were.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefreshError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authorities(#[from] crate::authorities::AuthoritiesError),
    #[error("a revocation list could not be signed")]
    Unsigned(#[source] AuthorityError),
    #[error("a stored revocation list cannot be read")]
    List(#[source] identity::revocation::CrlError),
}

impl RefreshError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Authorities(error) => error.reason(),
            Self::Unsigned(error) => error.reason(),
            Self::List(error) => error.reason(),
        }
    }
}

fn seconds_until(at: i64, now: i64) -> u64 {
    u64::try_from(at.saturating_sub(now)).unwrap_or(0)
}

fn moment(secs: i64) -> SystemTime {
    from_unix_secs(secs)
}

/// How often lists are signed anew because another list took their number.
const TRIES_MAX: usize = 4;
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

#[cfg(test)]
mod tests;
