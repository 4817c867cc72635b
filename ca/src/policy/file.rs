//! The policy in force, kept up to date with its file.
//!
//! A file that is refused, or gone, changes nothing: the last good policy stays, and log and status say so.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use identity::spiffe_id::TrustDomain;

use super::quota::Buckets;
use super::{Ask, Policy, PolicyError, PolicyRefusal, Verdict};
use crate::stamp::Stamp;

/// What judges now. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyInForce(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    policy: ArcSwap<Policy>,
    buckets: Buckets,
    problem: Mutex<Option<PolicyError>>,
}

impl PolicyInForce {
    /// The policy itself.
    pub(crate) fn current(&self) -> Arc<Policy> {
        self.0.policy.load_full()
    }

    /// Whether everything is allowed.
    pub(crate) fn is_open(&self) -> bool {
        let policy = self.0.policy.load();
        policy.rules.is_empty() && policy.quotas.is_empty() && !policy.deny_by_default
    }

    /// What the policy says; an SVID that it allows is counted in its quotas.
    pub(crate) fn judge(&self, ask: &Ask<'_>, now: SystemTime) -> Result<Duration, PolicyRefusal> {
        let policy = self.0.policy.load();
        match policy.judge(ask) {
            Verdict::Allowed { ttl, .. } if policy.quotas.is_empty() => Ok(ttl),
            Verdict::Allowed { ttl, .. } => self.0.buckets.take(&policy.quotas, ask, now).map(|()| ttl),
            Verdict::Refused(refusal) => Err(refusal),
        }
    }

    /// Why the file as it stands is not in force, if so.
    pub(crate) fn problem(&self) -> Option<PolicyError> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<PolicyError>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// The file, looked at again and again.
#[derive(Debug)]
pub(crate) struct PolicyFile {
    file: PathBuf,
    trust_domain: TrustDomain,
    seen: Option<Stamp>,
    in_force: PolicyInForce,
}

impl PolicyFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When it is refused: an authority does not begin with a policy that nobody wrote.
    pub(crate) fn open(file: PathBuf, trust_domain: TrustDomain) -> Result<(Self, PolicyInForce), PolicyError> {
        let seen = Stamp::of(&file);
        let policy = Policy::load(&file, trust_domain.as_str())?;
        let in_force = PolicyInForce::default();
        in_force.0.policy.store(Arc::new(policy));
        Ok((Self { file, trust_domain, seen, in_force: in_force.clone() }, in_force))
    }

    /// Follows the file for ever.
    pub(crate) async fn keep_read(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Takes over what the file says now, if it has changed.
    pub(crate) fn look(&mut self) {
        let now = Stamp::of(&self.file);
        if now == self.seen {
            return;
        }
        self.seen = now;
        match Policy::load(&self.file, self.trust_domain.as_str()) {
            Ok(policy) => {
                let (rules, quotas) = policy.counts();
                tracing::info!(file = %self.file.display(), rules, quotas, "issuance policy in force");
                self.in_force.0.policy.store(Arc::new(policy));
                self.in_force.set_problem(None);
            }
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, "issuance policy refused, the last good one stays in force");
                self.in_force.set_problem(Some(error));
            }
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
