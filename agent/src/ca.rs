//! What the agent asks of the CA. A trait, so that rotation and sync are tested without a network.

mod denied;
mod grpc;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::{CertificateDer, TrustBundle, TrustDomain, renewal};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use crate::enforced::{Configured, Level};
use crate::entry::Entry;
use crate::evidence::Evidence;
use crate::revocations::News;

#[cfg(test)]
pub(crate) use denied::tests::denied_status;
pub(crate) use grpc::{GrpcCa, danger_fetch_bundle};

/// Why a call brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The CA cannot be reached, or is too busy: try again.
    #[error("the CA cannot be reached: {message}")]
    Unavailable {
        /// What the transport says.
        message: String,
        /// Why there is no connection, if there is none.
        reason: Option<&'static str>,
    },
    /// The CA has too much to do, or too much comes from this node's address: try again, but not before.
    #[error("the CA asks to come again later: {message}")]
    Busy {
        /// Its text.
        message: String,
        /// How long it wants to be left alone.
        wait: Duration,
    },
    /// The CA says no.
    #[error("the CA refuses: {message}")]
    Refused {
        /// Its gRPC code.
        code: Code,
        /// Its text.
        message: String,
        /// Its reason code, if it sent one.
        reason: Option<String>,
    },
    /// The CA does not offer the call.
    #[error("the CA does not offer this call")]
    Unsupported,
    /// The CA's fresh SVIDs have ended by this machine's clock.
    #[error("this machine's clock is about {} s ahead of the CA's: correct it (timedatectl, chronyc)", by.as_secs())]
    ClockAhead {
        /// By how much, about.
        by: Duration,
    },
    /// The answer makes no sense.
    #[error("the CA's answer is bad: {what}")]
    BadAnswer {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl CaError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { reason, .. } => reason.unwrap_or("CA_UNAVAILABLE"),
            Self::Busy { .. } => "CA_BUSY",
            Self::Refused { .. } => "CA_REFUSED",
            Self::Unsupported => "CA_UNSUPPORTED",
            Self::ClockAhead { .. } => "CLOCK_AHEAD",
            Self::BadAnswer { .. } => "CA_BAD_ANSWER",
        }
    }

    /// The CA cannot be reached, for a reason in words only.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), reason: None }
    }

    /// How long to wait after so many failures in a row: as it doubles from `base` to `max`, or as long as the CA wants to be left
    /// alone, and then not with everybody else at the same moment.
    pub(crate) fn retry_wait(&self, failures: u32, base: Duration, max: Duration, dice: f64) -> Duration {
        let max = if matches!(self, Self::Busy { .. }) { max.max(BUSY_WAIT_MAX) } else { max };
        let asked = self.asked_wait().mul_f64(1.0 + dice.clamp(0.0, 1.0));
        renewal::retry_wait(failures, base, max, dice).max(asked)
    }

    /// How long the CA wants to be left alone.
    pub(crate) fn asked_wait(&self) -> Duration {
        if let Self::Busy { wait, .. } = self { *wait } else { Duration::ZERO }
    }

    /// The CA's reason code, if it said no and gave one.
    pub(crate) fn refused_because(&self) -> Option<&str> {
        match self {
            Self::Refused { reason, .. } => reason.as_deref(),
            _ => None,
        }
    }

    /// Whether the CA does not know this node by its SVID any more.
    pub(crate) fn disowns(&self) -> bool {
        matches!(
            self.refused_because(),
            Some("AGENT_EXPIRED" | "AGENT_MUST_REATTEST" | "AGENT_NOT_ACTIVE" | "AGENT_NOT_ATTESTED")
        )
    }

    /// Whether the CA spoke and said no.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl From<Status> for CaError {
    fn from(status: Status) -> Self {
        if let Some(error) = runtime::mtls::connect_error_of(&status) {
            return Self::Unavailable { message: error.to_string(), reason: Some(error.reason()) };
        }
        let message: String = status.message().chars().take(MESSAGE_CHARS_MAX).collect();
        match status.code() {
            Code::Unimplemented => Self::Unsupported,
            Code::ResourceExhausted => {
                let hint = tonic_types::StatusExt::get_details_retry_info(&status).and_then(|hint| hint.retry_delay);
                Self::Busy { message, wait: hint.unwrap_or_default().min(HINT_MAX) }
            }
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::FailedPrecondition => {
                let reason = runtime::refusal::reason_of(&status);
                let reason = reason.or_else(|| denied::reason_of(&status).map(str::to_owned));
                Self::Refused { code: status.code(), message, reason }
            }
            _ => Self::unavailable(if message.is_empty() { status.code().to_string() } else { message }),
        }
    }
}

/// A JWT-SVID or WIT-SVID as the CA issued it.
#[derive(Clone)]
pub(crate) struct TokenSvid {
    pub(crate) token: String,
    pub(crate) issued_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

impl TokenSvid {
    /// The token, fresh from the CA, unless it is over by this machine's clock.
    pub(crate) fn checked(self, now: SystemTime) -> Result<Self, CaError> {
        if self.expires_at > now {
            return Ok(self);
        }
        Err(CaError::ClockAhead { by: now.duration_since(self.issued_at).unwrap_or_default() })
    }
}

impl std::fmt::Debug for TokenSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSvid").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// A certificate chain, leaf first.
pub(crate) type Chain = Vec<CertificateDer<'static>>;

/// An X.509-SVID as the CA issued it.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) chain: Chain,
    /// When the CA advises to renew it.
    pub(crate) renew_at: Option<SystemTime>,
}

/// What the CA says has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) bundle_sequence: u64,
    pub(crate) entries_revision: u64,
    /// Generation of the revocation lists.
    pub(crate) revocations: u64,
}

/// What the agent says about its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The bundle that the node enforces; 0: not known yet.
    pub(crate) enforced: u64,
    /// The entries that it serves.
    pub(crate) entries_revision: u64,
    /// The revocation lists that the node enforces; 0: none yet.
    pub(crate) revocations: u64,
    /// The bundle that the agent has fetched.
    pub(crate) fetched: u64,
    /// Some of those that have not acknowledged it.
    pub(crate) waiting_for: Vec<String>,
    /// What configuration is in force in the proxies here that say so.
    pub(crate) configured: Vec<Configured>,
}

impl Report {
    /// What the node enforces.
    pub(crate) fn level(&self) -> Level {
        Level { bundle: self.enforced, revocations: self.revocations }
    }
}

/// The CA as the agent sees it.
#[tonic::async_trait]
pub(crate) trait Ca: Send + Sync {
    /// Joins with evidence of what this node is.
    async fn attest(&self, evidence: &mut Evidence, csr: Vec<u8>) -> Result<Chain, CaError>;
    /// A new SVID for the agent itself.
    async fn renew_agent(&self, csr: Vec<u8>) -> Result<Chain, CaError>;
    /// All entries of this node. `known` are those of the last time; unchanged ones need not be sent again.
    async fn entries(&self, known: &crate::entry::Entries) -> Result<Vec<Arc<Entry>>, CaError>;
    /// The own trust domain's bundle.
    async fn bundle(&self) -> Result<TrustBundle, CaError>;
    /// A foreign trust domain's bundle; `None` when the CA has none.
    async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<Option<TrustBundle>, CaError>;
    /// What is revoked, as far as it is newer than the generation `known`.
    async fn revocations(&self, known: u64) -> Result<News, CaError>;
    /// New SVIDs, one result for each (entry id, CSR), in order. The CA may take `wait` for them.
    async fn new_x509_svids(
        &self,
        asked: Vec<(String, Vec<u8>)>,
        wait: Duration,
    ) -> Result<Vec<Result<Issued, CaError>>, CaError>;
    /// A JWT-SVID for an entry.
    async fn new_jwt_svid(&self, entry_id: &str, audience: Vec<String>) -> Result<TokenSvid, CaError>;
    /// New WIT-SVIDs, one result for each (entry id, public key as SubjectPublicKeyInfo), in order.
    async fn new_wit_svids(&self, asked: Vec<(String, Vec<u8>)>) -> Result<Vec<Result<TokenSvid, CaError>>, CaError>;
    /// Tells the CA which bundle is enforced here, where no watch does.
    async fn post_status(&self, bundle_sequence: u64) -> Result<(), CaError>;
    /// Listens for changes until the stream ends: each is sent to `changed`, while `report` goes up.
    async fn watch(&self, report: watch::Receiver<Report>, changed: mpsc::Sender<Progress>) -> Result<(), CaError>;
}

/// How long one call may take, and the least that a call for SVIDs near their end may take.
pub(crate) const CALL_WAIT_MAX: Duration = Duration::from_secs(10);
pub(crate) const CALL_WAIT_MIN: Duration = Duration::from_secs(2);
const MESSAGE_CHARS_MAX: usize = 500;
/// How far the pause between attempts grows at a CA that has too much to do.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest wait that the CA may ask for.
const HINT_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
