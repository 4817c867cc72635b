//! Telling in time what only an operator can do about keys: in the log, in readiness, and through them to alarms.

use std::sync::Arc;
use std::time::Duration;

use runtime::readiness::{Readiness, ReadyGuard};
use tokio::time::Instant;

use super::renewal::Renewal;
use crate::certifier::Certifier;

/// Watches the intermediate, for ever. A renewal that is due is noted; one that is overdue makes the server unready.
pub(crate) async fn watch_intermediate(certifier: Arc<Certifier>, readiness: Readiness) {
    let mut changes = certifier.authorities.changes();
    let (mut known, mut told) = (Renewal::Automatic, Instant::now());
    let mut _shown: Option<ReadyGuard> = None;
    loop {
        let renewal = certifier.renewal();
        if renewal != known || (renewal.remedy().is_some() && told.elapsed() >= TELL_AGAIN) {
            tell(&certifier, renewal);
            told = Instant::now();
        }
        if renewal != known {
            _shown = match renewal {
                Renewal::Automatic | Renewal::NotYet => None,
                Renewal::Due => Some(readiness.note(renewal.as_str())),
                Renewal::Overdue => Some(readiness.block(format!("intermediate: {}", renewal.as_str()))),
            };
            known = renewal;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => (),
            _ = changes.changed() => (),
        }
    }
}

fn tell(certifier: &Certifier, renewal: Renewal) {
    let signing = certifier.authorities.current();
    let not_after = runtime::clock::rfc3339(signing.x509.not_after());
    let (reason, id) = (renewal.as_str(), &signing.x509_id);
    let remedy = renewal.remedy().unwrap_or_default();
    match renewal {
        Renewal::Automatic | Renewal::NotYet => tracing::info!(id, not_after, "intermediate needs no renewal"),
        Renewal::Due => tracing::warn!(reason, id, not_after, remedy, "intermediate should be renewed"),
        Renewal::Overdue => tracing::error!(reason, id, not_after, remedy, "intermediate ends, SVIDs are cut short"),
    }
}

const LOOK_AGAIN: Duration = Duration::from_secs(5);
const TELL_AGAIN: Duration = Duration::from_secs(6 * 3600);
