//! Keeping foreign bundles up to date: the replica with the lease fetches, and writes down what came of it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use identity::digest;
use identity::spiffe_id::TrustDomain;

use super::Relationship;
use super::error::FetchError;
use crate::api::Caller;
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::refusal::Refusal;
use crate::store::{Fetched, Store};

/// Fetches each bundle when its time has come, for ever; at once when a relationship is new.
pub(crate) async fn keep_polled(certifier: Arc<Certifier>) {
    let mut changed = certifier.store.relationships_changed();
    loop {
        changed.borrow_and_update();
        let due = if may_poll(&certifier) { due(&certifier) } else { Vec::new() };
        let work = stream::iter(due);
        work.for_each_concurrent(FETCHES_AT_ONCE_MAX, |relationship| poll(&certifier, relationship)).await;
        // A pause in any case: what cannot be written down stays due.
        tokio::time::sleep(PAUSE_MIN).await;
        match wait(&certifier) {
            Some(wait) => drop(tokio::time::timeout(wait, changed.changed()).await),
            None => drop(changed.changed().await),
        }
    }
}

/// Fetches the bundle of a trust domain now, in the name of `caller`.
///
/// # Errors
/// When there is no such relationship, or no new bundle; what is known stays.
pub(crate) async fn refresh(certifier: &Certifier, caller: &Caller, domain: &TrustDomain) -> Result<(), Refusal> {
    let relationship = certifier.store.registry().relationship(domain).ok_or(Refusal::RelationshipUnknown)?;
    let store = certifier.acting(caller, act(&relationship));
    fetch(certifier, &store, &relationship).await
}

async fn poll(certifier: &Arc<Certifier>, relationship: Arc<Relationship>) {
    let store = certifier.acting_itself(act(&relationship));
    if let Err(refusal) = fetch(certifier, &store, &relationship).await {
        let trust_domain = &relationship.trust_domain;
        tracing::warn!(%trust_domain, reason = refusal.reason(), error = %refusal, "foreign bundle not fetched, keeping the known one");
    }
}

async fn fetch(certifier: &Certifier, store: &Store, relationship: &Relationship) -> Result<(), Refusal> {
    let known = |id: &identity::spiffe_id::SpiffeId| {
        if id.is_member_of(&certifier.trust_domain) {
            return Some(certifier.authorities.current().bundle.clone());
        }
        certifier.store.registry().federated(&id.trust_domain())
    };
    let outcome = certifier.federation.fetch(relationship, known).await;
    let fetched = store.record_fetch(relationship, outcome, certifier.now_secs(), dice()).await?;
    match fetched {
        Fetched::New { sequence } => {
            tracing::info!(trust_domain = %relationship.trust_domain, sequence, "foreign bundle changed");
            Ok(())
        }
        Fetched::Same => Ok(()),
        Fetched::Gone => Err(Refusal::RelationshipUnknown),
        Fetched::Failed(error) => Err(Refusal::from(error)),
    }
}

fn act(relationship: &Relationship) -> Act {
    Act::new("bundle.refresh", &relationship.trust_domain).detail(&relationship.url)
}

fn may_poll(certifier: &Certifier) -> bool {
    certifier.store.lease().is_held() && certifier.clock_watch.check().is_ok()
}

fn due(certifier: &Certifier) -> Vec<Arc<Relationship>> {
    let (now, registry) = (certifier.now_secs(), certifier.store.registry());
    registry.relationships().filter(|relationship| relationship.state.next_at <= now).cloned().collect()
}

/// Until the next one is due, but not for long: leases move and clocks are set. None when there is nothing to fetch.
fn wait(certifier: &Certifier) -> Option<Duration> {
    let (now, registry) = (certifier.now_secs(), certifier.store.registry());
    let next = registry.relationships().map(|relationship| relationship.state.next_at - now).min()?;
    let next = u64::try_from(next).map_or(PAUSE_MAX, Duration::from_secs);
    Some(next.clamp(PAUSE_MIN, PAUSE_MAX))
}

/// 0 to 1.
pub(super) fn dice() -> f64 {
    f64::from(u32::from_be_bytes(digest::random::<4>())) / f64::from(u32::MAX)
}

impl From<FetchError> for Refusal {
    fn from(error: FetchError) -> Self {
        Self::Federation { reason: error.reason(), text: error.text(), passing: error.is_passing() }
    }
}

/// One slow endpoint must not hold up the others.
const FETCHES_AT_ONCE_MAX: usize = 8;
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
