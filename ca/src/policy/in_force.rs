//! The policy of a running authority, with the quotas' counts, which outlive a new policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::spiffe_id::TrustDomain;

use super::quota::Buckets;
use super::{Ask, Policy, PolicyRefusal, Verdict};
use crate::document::{DocumentError, FollowedFile, InForce};

/// What judges now. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyInForce {
    policy: InForce<Policy>,
    buckets: Arc<Buckets>,
}

impl PolicyInForce {
    /// Follows the policy file of the authority of `trust_domain`.
    ///
    /// # Errors
    /// When it is refused as it stands.
    pub(crate) fn open(
        file: PathBuf,
        trust_domain: TrustDomain,
    ) -> Result<(FollowedFile<Policy>, Self), DocumentError> {
        let load = move |file: &Path| {
            let policy = Policy::load(file, trust_domain.as_str())?;
            let (rules, quotas) = policy.counts();
            tracing::info!(file = %file.display(), rules, quotas, "issuance policy in force");
            Ok(policy)
        };
        let file = FollowedFile::open(file, Box::new(load))?;
        let policy = file.in_force();
        Ok((file, Self { policy, buckets: Arc::default() }))
    }

    /// The policy itself.
    pub(crate) fn current(&self) -> Arc<Policy> {
        self.policy.current()
    }

    /// Whether everything is allowed.
    pub(crate) fn is_open(&self) -> bool {
        let policy = self.current();
        policy.rules.is_empty() && policy.quotas.is_empty() && !policy.deny_by_default
    }

    /// What the policy says; an SVID that it allows is counted in its quotas.
    pub(crate) fn judge(&self, ask: &Ask<'_>, now: SystemTime) -> Result<Duration, PolicyRefusal> {
        let policy = self.current();
        match policy.judge(ask) {
            Verdict::Allowed { ttl, .. } if policy.quotas.is_empty() => Ok(ttl),
            Verdict::Allowed { ttl, .. } => self.buckets.take(&policy.quotas, ask, now).map(|()| ttl),
            Verdict::Refused(refusal) => Err(refusal),
        }
    }

    /// Why the file as it stands is not in force, if so.
    pub(crate) fn problem(&self) -> Option<DocumentError> {
        self.policy.problem()
    }
}
