//! What happens by itself: authorities are replaced, the bundle file follows, and what ended is forgotten.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::clock::from_unix_secs;
use runtime::readiness::Readiness;

use crate::audit::REFUSALS_KEPT_MAX;
use crate::certifier::Certifier;
use crate::store::StoreError;
use crate::{key_file, pace};

/// Replaces authorities in time and takes the steps of rotations, for ever: now and then, and at once when a node reports
/// or an operator has decided something.
pub(crate) async fn keep_authorities_fresh(certifier: Arc<Certifier>, ca_ttl: Duration) {
    let pause = (ca_ttl / 100).clamp(PAUSE_MIN, PAUSE_MAX);
    let (mut reports, mut changes) = (certifier.contacts.reports(), certifier.authorities.changes());
    loop {
        tokio::select! {
            () = pace::pause(pause) => (),
            _ = reports.changed() => (),
            _ = changes.changed() => (),
        }
        if !certifier.store.lease().is_held() || certifier.clock_watch.check().is_err() {
            continue;
        }
        if let Err(error) = certifier.authorities.keep_fresh(&certifier.store, certifier.now()).await {
            tracing::error!(reason = error.reason(), error = ?error, "authorities not renewed");
        }
    }
}

/// Takes over what was done to the authorities by other replicas, or here for a caller that went away meanwhile, for ever.
pub(crate) async fn follow_authorities(certifier: Arc<Certifier>) {
    let mut changed = certifier.store.authorities_changed();
    while changed.changed().await.is_ok() {
        let followed = loop {
            match certifier.authorities.follow(&certifier.store, certifier.now()).await {
                Ok(followed) => break followed,
                Err(error) => {
                    tracing::error!(reason = error.reason(), error = ?error, "changed authorities not read");
                    tokio::time::sleep(PAUSE_MIN).await;
                }
            }
        };
        if followed {
            tracing::info!(bundle_sequence = certifier.authorities.current().bundle.sequence, "authorities followed");
        }
    }
}

/// Looks at the clock, and not ready while it cannot be believed, for ever. Who finds a jump before signing tells at once.
pub(crate) async fn watch_clock(certifier: Arc<Certifier>, readiness: Readiness) {
    let (mut found, mut block) = (certifier.clock_watch.sound(), None);
    for look in 0_u64.. {
        if block.is_none() || look.is_multiple_of(CLOCK_ASK_EVERY) {
            match certifier.store.server_time().await {
                Ok(Some(now)) => certifier.clock_watch.hear(from_unix_secs(now)),
                Ok(None) => (),
                Err(error) => tracing::debug!(error = ?error, "time of the database server not known"),
            }
        }
        match certifier.clock_watch.check() {
            Ok(()) => block = None,
            Err(_) if block.is_some() => (),
            Err(_) => block = Some(readiness.block("clock: CLOCK_JUMPED")),
        }
        found.mark_unchanged();
        let pause = if block.is_some() { CLOCK_JUMPED_PAUSE } else { CLOCK_PAUSE };
        let _ = tokio::time::timeout_at(pace::next(pause), found.changed()).await;
    }
}

/// Not ready while the database takes no writes, for ever.
pub(crate) async fn tell_health(certifier: Arc<Certifier>, readiness: Readiness) {
    let mut health = certifier.store.health().watch();
    loop {
        let trouble = health.borrow_and_update().clone();
        let _block = trouble.map(|error| readiness.block(format!("database: {}", error.reason())));
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the bundle file whenever the bundle changes, for ever.
pub(crate) async fn keep_bundle_file(certifier: Arc<Certifier>, file: PathBuf) {
    let mut sequence = certifier.authorities.bundle_sequence();
    while sequence.changed().await.is_ok() {
        if let Err(error) = write_bundle_file(&certifier, &file) {
            tracing::error!(reason = "BUNDLE_FILE_UNWRITABLE", path = %file.display(), %error, "bundle file not written");
        }
    }
}

/// Writes the roots as PEM; readers see the old file or the new one, never a part.
pub(crate) fn write_bundle_file(certifier: &Certifier, file: &Path) -> std::io::Result<()> {
    key_file::write_new(file, certifier.authorities.current().bundle.to_pem().as_bytes(), 0o644)
}

/// How long what ended is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Records of SVIDs, after the SVID's end.
    pub(crate) records: Duration,
    /// The audit trail.
    pub(crate) audit: Duration,
}

/// Forgets what ended, for ever.
pub(crate) async fn forget_for_ever(certifier: Arc<Certifier>, kept: Kept) {
    loop {
        pace::pause(FORGET_PAUSE).await;
        if !certifier.store.lease().is_held() || certifier.clock_watch.check().is_err() {
            continue;
        }
        if let Err(error) = forget(&certifier, kept).await {
            tracing::warn!(reason = error.reason(), error = ?error, "ended rows not removed");
        }
    }
}

async fn forget(certifier: &Certifier, kept: Kept) -> Result<(), StoreError> {
    let now = certifier.now_secs();
    certifier.contacts.retain(|id| certifier.store.registry().agent(id).is_some());
    let ended: Vec<String> = {
        let registry = certifier.store.registry();
        registry.entries_after("").filter(|entry| !entry.is_live(now)).map(|entry| entry.id.clone()).collect()
    };
    for id in ended {
        if certifier.store.delete_entry(&id).await? {
            tracing::info!(entry_id = id, "entry ended");
        }
    }
    let before = |kept: Duration| now.saturating_sub(i64::try_from(kept.as_secs()).unwrap_or(i64::MAX));
    let store = &certifier.store;
    // At once, so that they share a transaction.
    let (tokens, records, audit, _, changes, revoked) = tokio::try_join!(
        store.forget_tokens(now),
        store.forget_issued_before(before(kept.records)),
        store.forget_audit(before(kept.audit), REFUSALS_KEPT_MAX),
        store.forget_rotations(before(kept.audit)),
        store.forget_changes(now),
        store.forget_revoked_before(now.saturating_sub(REVOKED_KEPT_SECS)),
    )?;
    tracing::debug!(tokens, records, audit, changes, revoked, "ended rows removed");
    Ok(())
}

/// How long revocations are kept after the end of what is revoked, for verifiers whose clock is behind.
const REVOKED_KEPT_SECS: i64 = 600;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const FORGET_PAUSE: Duration = Duration::from_secs(60);
const CLOCK_PAUSE: Duration = Duration::from_secs(5);
/// While the clock is not believed.
const CLOCK_JUMPED_PAUSE: Duration = Duration::from_secs(1);
/// Every so many of these looks the database server is asked for its own time.
const CLOCK_ASK_EVERY: u64 = 5;
