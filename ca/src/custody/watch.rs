//! Telling in time what only an operator can do about keys: in the log, in readiness, and through them to alarms.

use std::sync::Arc;
use std::time::Duration;

use runtime::readiness::{Readiness, ReadyGuard};
use tokio::time::Instant;

use super::renewal::Renewal;
use crate::certifier::Certifier;
use crate::pace;

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
            // Where the root is here, time alone changes nothing.
            () = pace::pause(LOOK_AGAIN), if renewal != Renewal::Automatic => (),
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

/// Watches the keepers of keys elsewhere, for ever: while one is away the server is not ready.
pub(crate) async fn watch_keepers(certifier: Arc<Certifier>, readiness: Readiness) {
    let mut blocks: Vec<Option<ReadyGuard>> = certifier.authorities.desks().iter().map(|_| None).collect();
    for round in 0_u64.. {
        for (desk, block) in certifier.authorities.desks().iter().zip(&mut blocks) {
            if desk.trouble().is_some() || round.is_multiple_of(LOOK_EVERY) {
                let desk = desk.clone();
                // It blocks; whether it is there is asked next.
                let _ = tokio::task::spawn_blocking(move || desk.look()).await;
            }
            match desk.trouble() {
                None => *block = None,
                Some(_) if block.is_some() => (),
                Some(_) => {
                    let text = format!("keys in {}: AUTHORITY_KEY_UNAVAILABLE", desk.place().as_str());
                    *block = Some(readiness.block(text));
                }
            }
        }
        tokio::time::sleep(KEEPERS_LOOK_AGAIN).await;
    }
}

const KEEPERS_LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Every so many rounds a keeper is looked at that seems well.
const LOOK_EVERY: u64 = 20;
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const TELL_AGAIN: Duration = Duration::from_secs(6 * 3600);
