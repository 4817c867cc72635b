//! Following the authority above, for ever: its roots, and intermediates in time.

use std::sync::Arc;
use std::time::Duration;

use super::{Published, TokenKeys, Upstream};
use crate::authorities::{AuthoritiesError, StepError};
use crate::certifier::Certifier;

/// Follows it while this process lives. What fails is tried again, later each time.
pub(crate) async fn follow(certifier: Arc<Certifier>, upstream: Arc<dyn Upstream>) {
    let (mut published, mut changes) = (upstream.published(), certifier.authorities.changes());
    let mut reports = certifier.contacts.reports();
    let (mut failures, mut told) = (0_u32, TokenKeys::default());
    let follow = async {
        loop {
            let known = published.borrow_and_update().clone();
            match once(&certifier, &*upstream, &known, &mut told).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::error!(reason = "UPSTREAM_NOT_FOLLOWED", error = ?error, "upstream authority not followed");
                }
            }
            changes.mark_unchanged();
            let pause = (PAUSE_MIN * 2_u32.saturating_pow(failures.min(8))).min(PAUSE_MAX);
            tokio::select! {
                () = tokio::time::sleep(if failures > 0 { pause } else { PAUSE_MAX }) => (),
                _ = published.changed() => (),
                _ = changes.changed(), if failures == 0 => (),
                _ = reports.changed(), if failures == 0 => (),
            }
        }
    };
    tokio::join!(follow, upstream.keep_following());
}

/// Does all that is due.
pub(crate) async fn once(
    certifier: &Certifier,
    upstream: &dyn Upstream,
    published: &Published,
    told: &mut TokenKeys,
) -> Result<(), StepError> {
    if !certifier.store.lease().is_held() || certifier.clock_watch.check().is_err() {
        return Ok(());
    }
    // Nothing was heard of it yet.
    if published.roots.is_empty() {
        return Ok(());
    }
    let (authorities, store) = (&certifier.authorities, &certifier.store);
    let own = authorities.own_token_keys();
    if own != *told {
        upstream.publish(own.clone()).await.map_err(AuthoritiesError::from)?;
        *told = own;
    }
    authorities.follow_token_keys(store, &published.keys, certifier.now()).await?;
    authorities.follow_roots(store, published, certifier.now()).await?;
    if authorities.wants_intermediate(published, certifier.now()) {
        authorities.mint(store, upstream, certifier.now()).await?;
    }
    authorities.move_over(store, published, certifier.now()).await
}

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
