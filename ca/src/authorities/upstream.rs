//! Roots of the authority above in our own line, and intermediates that it signs.

use std::time::SystemTime;

use identity::import::{Candidate, Needs, Offer};
use identity::pem;

use super::adopt::{Adoption, csr_of};
use super::steps::{Asked, StepError};
use super::{Authorities, AuthoritiesError, Keys};
use crate::certifier::secs;
use crate::custody::Place;
use crate::rotation::machine::{Line, Mode, Step};
use crate::store::{AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store};
use crate::upstream::{Published, Upstream};

impl Authorities {
    /// Publishes roots that are new above, and lets go, step by step, of those that are gone or tainted there.
    pub(crate) async fn follow_roots(
        &self,
        store: &Store,
        published: &Published,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let _one = self.changing.lock().await;
        for (id, certificate) in published.by_id() {
            if self.current().line(ROOT).member(&id).is_some() {
                continue;
            }
            let stored = store.authorities().await?;
            let root = super::adopt::offline_row(&self.keys, certificate, AuthorityState::Prepared, 0, now)?;
            let change = if self.current().line(ROOT).newest(AuthorityState::Prepared).is_none() {
                self.prepare(store, &stored, root, Mode::Steps, now).await?
            } else {
                // One is prepared at a time; others are trusted meanwhile.
                let row = AuthorityRow { state: AuthorityState::Old, published: stored.bundle_sequence + 1, ..root };
                AuthoritiesChange { put: vec![row], publishes: true, ..AuthoritiesChange::default() }
            };
            store.change_authorities(change, stored.revision).await?;
            self.read(store, now).await?;
            tracing::info!(id, "root of the upstream authority published");
        }
        for step in departures(self.current().line(ROOT), published, |id| self.is_offline(id)) {
            match self.step_alone(store, ROOT, &Asked::Step(step), now).await {
                // Nodes have not acknowledged it yet.
                Ok(()) | Err(StepError::Refused(_)) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_offline(&self, id: &str) -> bool {
        self.current().facts.iter().any(|facts| facts.id == id && facts.place == Place::Offline)
    }

    /// Whether the authority above must sign a new intermediate: the present one has lived half of its life, or its root
    /// is tainted or gone, and no newer one waits.
    pub(crate) fn wants_intermediate(&self, published: &Published, now: SystemTime) -> bool {
        let signing = self.current();
        let of_x509 = || signing.facts.iter().filter(|facts| facts.kind == AuthorityKind::X509 && !facts.requested);
        let fresh = |state| of_x509().any(|facts| facts.state == state && facts.spent(secs(now)) < 0.5);
        if fresh(AuthorityState::Prepared) {
            return false;
        }
        let root = signing.line(ROOT).active().map(|root| root.id.as_str()).unwrap_or_default();
        let trusted = published.by_id().any(|(id, _)| id == root) && !published.tainted.contains(root);
        signing.root_place != Place::Offline || !trusted || !fresh(AuthorityState::Active)
    }

    /// Has the authority above sign an intermediate, and takes it in.
    pub(crate) async fn mint(&self, store: &Store, upstream: &dyn Upstream, now: SystemTime) -> Result<(), StepError> {
        let adoption = minted(&self.keys, upstream, self.ttls.signing, now).await?;
        self.adopt(store, &adoption, Mode::Steps, now).await?;
        Ok(())
    }

    /// Lets a root from above sign through the intermediate that waits below it, once every node knows it.
    pub(crate) async fn move_over(
        &self,
        store: &Store,
        published: &Published,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let signing = self.current();
        let Some(prepared) = signing.line(ROOT).newest(AuthorityState::Prepared) else { return Ok(()) };
        let installed = signing.facts.iter().any(|facts| {
            let waits = facts.kind == AuthorityKind::X509 && facts.state == AuthorityState::Prepared;
            waits && !facts.requested && facts.issuer == prepared.id
        });
        if !installed || !published.by_id().any(|(id, _)| id == prepared.id) {
            return Ok(());
        }
        let asked = Asked::Step(Step::Activate(prepared.id.clone()));
        match self.step(store, ROOT, &asked, now).await {
            Ok(()) | Err(StepError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The first intermediate of a new database, or the next one.
pub(super) async fn minted(
    keys: &Keys,
    upstream: &dyn Upstream,
    ttl: std::time::Duration,
    now: SystemTime,
) -> Result<Adoption, AuthoritiesError> {
    let made = keys.places.make()?;
    let minted = upstream.mint(&csr_of(&made.key, keys)?, ttl, now).await?;
    let (certificate, root) = (pem::certificates(&minted.chain), pem::certificates(&minted.roots));
    let offer = Offer { certificate: certificate.as_bytes(), chain: &[], root: root.as_bytes() };
    let needs = Needs { trust_domain: &keys.trust_domain, now, life_min: std::time::Duration::from_secs(1) };
    let candidate = Candidate::check(offer, needs)?;
    if candidate.public_key_spki() != made.key.public_key_spki() {
        return Err(AuthoritiesError::NoRequest);
    }
    Ok(Adoption { candidate, made, request: None })
}

/// The steps that follow from roots which are tainted or gone above.
fn departures(line: &Line, published: &Published, offline: impl Fn(&str) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for member in line.members.iter().filter(|member| offline(&member.id)) {
        let gone = !published.by_id().any(|(id, _)| id == member.id);
        let tainted = published.tainted.contains(&member.id);
        match member.stage {
            AuthorityState::Prepared if gone => steps.push(Step::Abort),
            AuthorityState::Old if gone || tainted => steps.push(Step::Taint(member.id.clone())),
            AuthorityState::Tainted if gone => steps.push(Step::Revoke(member.id.clone())),
            _ => (),
        }
    }
    steps
}

const ROOT: AuthorityKind = AuthorityKind::Root;
