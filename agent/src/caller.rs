//! Who calls, and what it may have: the part that Workload API and SDS share.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use runtime::clock::Clock;
use runtime::refusal;
use runtime::shutdown::Shutdown;
use tokio::sync::watch;
use tonic::{Code, Extensions, Status};

use crate::attest::{AttestError, Attestor, Process, Wanted};
use crate::ca::Ca;
use crate::enforced::{Presence, Streams};
use crate::entry::{Entries, Entry};
use crate::metrics::{Api, ApiLabels, Numbers};
use crate::state::{Held, Snapshot, State};
use crate::tally::{Tally, TallyGuard};

/// What serving workloads needs.
pub(crate) struct Desk {
    pub(crate) state: Arc<State>,
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) attestor: Attestor,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
    pub(crate) streams: Tally,
    /// What each open stream enforces.
    pub(crate) enforced: Arc<Streams>,
    pub(crate) shutdown: Shutdown,
}

/// Why a workload gets nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The process could not be attested.
    #[error("the calling process cannot be attested: {0}")]
    NotAttested(AttestError),
    /// The connection brought no peer process.
    #[error("the calling process is unknown")]
    NoProcess,
    /// No entry matches.
    #[error("no identity issued")]
    NoIdentity,
    /// Entries match, but not the identity asked for.
    #[error("the workload is not entitled to `{id}`")]
    NotEntitled {
        /// What was asked for.
        id: String,
    },
    /// The agent does not know yet.
    #[error("the agent is not ready yet: {what}")]
    NotReady {
        /// What is missing.
        what: &'static str,
    },
    /// Too many streams.
    #[error("too many open streams ({of})")]
    TooManyStreams {
        /// Of whom.
        of: &'static str,
    },
    /// The agent ends.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// The stable code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotAttested(error) => error.reason(),
            Self::NoProcess => "ATTEST_NO_CREDENTIALS",
            Self::NoIdentity => "NO_IDENTITY_ISSUED",
            Self::NotEntitled { .. } => "IDENTITY_NOT_ENTITLED",
            Self::NotReady { .. } => "AGENT_NOT_READY",
            Self::TooManyStreams { .. } => "TOO_MANY_STREAMS",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoIdentity | Self::NotEntitled { .. } => Code::PermissionDenied,
            _ => Code::Unavailable,
        }
    }
}

/// A workload with a call or stream open.
pub(crate) struct Caller {
    process: Arc<Process>,
    /// The entries it matches, and the set of entries they were matched against.
    matched: Option<(Arc<Entries>, Vec<Arc<Entry>>)>,
}

impl Desk {
    /// The process at the other end of the connection that a request came on.
    pub(crate) fn caller(&self, extensions: &Extensions) -> Result<Caller, Status> {
        let process = extensions.get::<Arc<Process>>().cloned().ok_or(Refusal::NoProcess);
        Ok(Caller { process: process.map_err(|refusal| self.refuse(&refusal, None))?, matched: None })
    }

    /// The status for a refusal, logged and counted.
    pub(crate) fn refuse(&self, refusal: &Refusal, caller: Option<&Caller>) -> Status {
        let (reason, pid) = (refusal.reason(), caller.map(|caller| caller.process.pid()));
        tracing::info!(pid, reason, "workload refused");
        self.numbers.refused(reason);
        if let Refusal::NotAttested(_) = refusal {
            self.numbers.not_attested(reason);
        }
        refusal::status(refusal.code(), reason, refusal.to_string())
    }

    /// The entries that the caller matches in `snapshot`; attested anew whenever the entries have changed, and its life
    /// checked every time.
    pub(crate) async fn entries(&self, caller: &mut Caller, snapshot: &Snapshot) -> Result<Vec<Arc<Entry>>, Refusal> {
        let process = caller.process.clone();
        process.check_alive().and_then(|()| process.check_program()).map_err(Refusal::NotAttested)?;
        if let Some((entries, matched)) = &caller.matched
            && Arc::ptr_eq(entries, &snapshot.entries)
        {
            return Ok(matched.clone());
        }
        let wanted: Wanted = snapshot.entries.wanted();
        let workload = self.attestor.attest(&process, wanted).await.map_err(Refusal::NotAttested)?;
        let matched = snapshot.entries.matching(&workload.selectors);
        caller.matched = Some((snapshot.entries.clone(), matched.clone()));
        Ok(matched)
    }

    /// Waits until the caller's entries all are known and at least one has a valid SVID, and answers them all.
    /// The caller of this function has seen `changes` up to the returned snapshot.
    pub(crate) async fn await_entries(
        &self,
        caller: &mut Caller,
        changes: &mut watch::Receiver<Arc<Snapshot>>,
        with_svid: bool,
    ) -> Result<(Arc<Snapshot>, Vec<Arc<Entry>>), Refusal> {
        let deadline = tokio::time::Instant::now() + FIRST_WAIT_MAX;
        loop {
            let snapshot = changes.borrow_and_update().clone();
            let missing = if snapshot.synced {
                let entries = self.entries(caller, &snapshot).await?;
                if entries.is_empty() {
                    return Err(Refusal::NoIdentity);
                }
                if !with_svid || !snapshot.svids_of(&entries, self.clock.now()).is_empty() {
                    return Ok((snapshot, entries));
                }
                "the SVID has not been issued yet"
            } else {
                "the CA has not been reached yet"
            };
            tokio::select! {
                () = self.shutdown.requested() => return Err(Refusal::ShuttingDown),
                () = tokio::time::sleep_until(deadline) => return Err(Refusal::NotReady { what: missing }),
                _ = changes.changed() => (),
            }
        }
    }

    /// Counts a stream of the caller until the guard is dropped.
    pub(crate) fn open_stream(&self, caller: &Caller, api: Api) -> Result<StreamGuard, Status> {
        let counted = self.streams.count(caller.process.pid());
        let counted = counted.map_err(|full| self.refuse(&Refusal::TooManyStreams { of: full.of }, Some(caller)))?;
        let gauge = self.numbers.streams.get_or_create(&ApiLabels { api }).clone();
        gauge.inc();
        Ok(StreamGuard { _counted: counted, gauge, presence: self.enforced.open(caller.process.clone()) })
    }
}

/// The valid SVIDs among `entries`.
pub(crate) fn svids<'a>(
    desk: &Desk,
    snapshot: &'a Snapshot,
    entries: &'a [Arc<Entry>],
) -> Vec<(&'a Arc<Entry>, &'a Held)> {
    snapshot.svids_of(entries, desk.clock.now())
}

/// An open stream, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    _counted: TallyGuard,
    gauge: Gauge,
    /// What it enforces.
    pub(crate) presence: Presence,
}

/// Whose stream it is, as the operator knows them.
pub(crate) fn name_of(entries: &[Arc<Entry>]) -> &str {
    entries.first().map_or("", |entry| entry.spiffe_id.as_str())
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Streams at once, of all workloads together.
pub(crate) const STREAMS_MAX: usize = 10_000;
/// Streams at once of one process.
pub(crate) const STREAMS_PER_PROCESS_MAX: usize = 64;
/// How long a first answer waits for the CA.
pub(crate) const FIRST_WAIT_MAX: Duration = Duration::from_secs(10);
