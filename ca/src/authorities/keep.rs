//! What happens to the authorities by itself: due steps of rotations, new intermediates, and the end of lives.

use std::time::SystemTime;

use super::steps::{Asked, StepError, counted};
use super::{Authorities, AuthoritiesError};
use crate::certifier::secs;
use crate::custody::Place;
use crate::rotation::machine::{Mode, Phase, Step, World};
use crate::rotation::schedule::Due;
use crate::store::{AuthorityKind, AuthorityState, Store};

impl Authorities {
    /// Does everything that is due. Cheap when there is nothing to do.
    pub(crate) async fn keep_fresh(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let _one = self.changing.lock().await;
        // Of what is changed here the store tells; others may be heard late.
        if store.is_shared() && store.authorities_revision().await? != self.current().revision {
            self.read(store, now).await?;
        }
        for kind in AuthorityKind::ROTATING {
            self.take_due(store, kind, now).await?;
        }
        match self.keep_intermediate(store, now).await {
            // Another server was faster: what it did is taken over.
            Err(StepError::Busy) => self.read(store, now).await,
            kept => tolerate(kept),
        }
    }

    /// Takes the steps of a kind that are due, one after the other.
    async fn take_due(&self, store: &Store, kind: AuthorityKind, now: SystemTime) -> Result<(), AuthoritiesError> {
        for _ in 0..STEPS_MAX {
            let Some(due) = self.due(store, kind, now).await? else { return Ok(()) };
            // The next one comes by an operator's hand; [`crate::custody::renewal`] asks for it.
            if kind == AuthorityKind::Root && due == Due::Prepare && self.current().root_place == Place::Offline {
                return Ok(());
            }
            tracing::info!(kind = kind.as_str(), ?due, "step of a rotation is due");
            let steps = match due {
                Due::Prepare => vec![Asked::Prepare(Mode::Age)],
                Due::Step(step) => vec![Asked::Step(step)],
                Due::Overdue(nodes) => {
                    tracing::error!(
                        kind = kind.as_str(),
                        ?nodes,
                        reason = "ROTATION_OVERDUE",
                        "the authority ends and nodes have not acknowledged the next one; going on without them"
                    );
                    nodes.into_iter().map(|node| Asked::Step(Step::Waive(node))).collect()
                }
            };
            for asked in steps {
                match self.step_alone(store, kind, &asked, now).await {
                    // Another look at the nodes found what the first had not: it is tried again later.
                    // So did one that has no intermediate yet, from an authority elsewhere.
                    Err(StepError::Refused(_) | StepError::Authorities(AuthoritiesError::Offline)) => return Ok(()),
                    Err(StepError::Busy) => return self.read(store, now).await,
                    taken => tolerate(taken)?,
                }
            }
        }
        Ok(())
    }

    async fn due(&self, store: &Store, kind: AuthorityKind, now: SystemTime) -> Result<Option<Due>, AuthoritiesError> {
        let signing = self.current();
        let line = signing.line(kind);
        let nodes = counted(store.registry().agents().map(AsRef::as_ref), secs(now));
        // Tokens are in the hands of whoever got them; nobody can be told to replace them.
        let tainted = line.running.as_ref().filter(|_| kind.signs_tokens() && line.phase() == Phase::Tainted);
        let in_use_until = match tainted {
            Some(running) => store.in_use_until(&running.old, secs(now)).await?,
            None => 0,
        };
        let world = World { nodes: &nodes, next_sequence: signing.bundle.sequence + 1, now: secs(now), in_use_until };
        Ok(self.ages(kind).due(line, world))
    }

    async fn keep_intermediate(&self, store: &Store, now: SystemTime) -> Result<(), StepError> {
        let signing = self.current();
        let of_x509 = || signing.facts.iter().filter(|facts| facts.kind == AuthorityKind::X509);
        let spent = of_x509().any(|facts| facts.state == AuthorityState::Active && facts.spent(secs(now)) >= 0.5);
        if spent && signing.root_place != Place::Offline {
            self.renew_intermediate(store, now).await?;
        }
        if of_x509().any(|facts| facts.state != AuthorityState::Active && facts.not_after <= secs(now)) {
            self.drop_ended(store, now).await?;
        }
        Ok(())
    }
}

/// What another server did at the same time is no trouble of ours.
fn tolerate(outcome: Result<(), StepError>) -> Result<(), AuthoritiesError> {
    match outcome {
        Ok(()) | Err(StepError::Busy | StepError::Refused(_)) => Ok(()),
        Err(StepError::Authorities(error)) => Err(error),
    }
}

/// The most steps of one kind in one go; there is another go soon.
const STEPS_MAX: usize = 8;
