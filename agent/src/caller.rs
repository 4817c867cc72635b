//! Who calls, and what it may have: the part that Workload API and SDS share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use runtime::clock::{Clock, rfc3339};
use runtime::refusal;
use runtime::shutdown::Shutdown;
use tokio::sync::watch;
use tonic::{Code, Extensions, Status};

use crate::attest::{AttestError, Attestor, PodReference, Process, Wanted};
use crate::ca::Ca;
use crate::enforced::{Presence, Streams};
use crate::entry::{Entries, Entry, Selector};
use crate::metrics::{Api, ApiLabels, Numbers};
use crate::state::{Held, Snapshot, State};
use crate::tally::{Tally, TallyGuard, TallyLimits};
use crate::workload_api::JwtCache;

/// What serving workloads needs.
pub(crate) struct Desk {
    pub(crate) state: Arc<State>,
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) attestor: Attestor,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
    pub(crate) streams: Tally,
    /// Calls that wait for the CA.
    pub(crate) calls: Tally,
    /// Streams and calls of those who act for others.
    pub(crate) delegated: Tally,
    /// JWT-SVIDs that are still good.
    pub(crate) jwts: JwtCache,
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
    /// What was held has ended, and the CA has not renewed it.
    #[error("the workload's SVID ended at {at} and the CA has not renewed it; see the agent's log for the reason")]
    Ended {
        /// When.
        at: String,
    },
    /// What is held begins in the future of this machine.
    #[error("this machine's clock is about {} s behind: the workload's SVID is not valid yet; correct it (timedatectl, chronyc)", by.as_secs())]
    ClockBehind {
        /// By how much, about.
        by: Duration,
    },
    /// Too many streams.
    #[error("too many open streams ({of})")]
    TooManyStreams {
        /// Of whom.
        of: &'static str,
    },
    /// Too many calls that wait for the CA.
    #[error("too many calls at once ({of})")]
    TooManyCalls {
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
            Self::Ended { .. } => "SVID_ENDED",
            Self::ClockBehind { .. } => "CLOCK_BEHIND",
            Self::TooManyStreams { .. } => "TOO_MANY_STREAMS",
            Self::TooManyCalls { .. } => "TOO_MANY_CALLS",
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

/// A workload with a call or stream open, by itself or through somebody who acts for it.
pub(crate) struct Caller {
    who: Who,
    is_delegated: bool,
    /// The entries it matches, and the set of entries they were matched against.
    matched: Option<(Arc<Entries>, Vec<Arc<Entry>>)>,
}

/// What the workload is.
enum Who {
    Process(Arc<Process>),
    Pod(PodReference),
    /// Facts that somebody trusted has found out.
    Facts(BTreeSet<Selector>),
}

impl Caller {
    fn new(who: Who, is_delegated: bool) -> Self {
        Self { who, is_delegated, matched: None }
    }

    /// A process that somebody acts for.
    pub(crate) fn delegated_process(process: Process) -> Self {
        Self::new(Who::Process(Arc::new(process)), true)
    }

    /// A pod that somebody acts for.
    pub(crate) fn delegated_pod(reference: PodReference) -> Self {
        Self::new(Who::Pod(reference), true)
    }

    /// A workload of which somebody trusted says what it is.
    pub(crate) fn delegated_facts(facts: BTreeSet<Selector>) -> Self {
        Self::new(Who::Facts(facts), true)
    }

    /// Whether somebody acts for it.
    pub(crate) fn is_delegated(&self) -> bool {
        self.is_delegated
    }

    fn pid(&self) -> Option<i32> {
        match &self.who {
            Who::Process(process) => Some(process.pid()),
            Who::Pod(_) | Who::Facts(_) => None,
        }
    }

    /// Answers when the workload has ended, if anybody can tell.
    pub(crate) async fn ended(&self, desk: &Desk) {
        loop {
            tokio::time::sleep(ALIVE_PAUSE).await;
            let is_there = match &self.who {
                Who::Process(process) => process.check_alive().is_ok(),
                Who::Pod(reference) => Box::pin(desk.attestor.pod(reference)).await.is_some(),
                Who::Facts(_) => true,
            };
            if !is_there {
                return;
            }
        }
    }
}

impl Desk {
    /// The process at the other end of the connection that a request came on.
    pub(crate) fn caller(&self, extensions: &Extensions) -> Result<Caller, Status> {
        let process = extensions.get::<Arc<Process>>().cloned().ok_or(Refusal::NoProcess);
        Ok(Caller::new(Who::Process(process.map_err(|refusal| self.refuse(&refusal, None))?), false))
    }

    /// The status for a refusal, logged and counted.
    pub(crate) fn refuse(&self, refusal: &Refusal, caller: Option<&Caller>) -> Status {
        let (reason, pid) = (refusal.reason(), caller.and_then(Caller::pid));
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
        if let Some((entries, matched)) = &caller.matched
            && Arc::ptr_eq(entries, &snapshot.entries)
            && !matches!(caller.who, Who::Pod(_))
        {
            if let Who::Process(process) = &caller.who {
                process.check_alive().and_then(|()| process.check_program()).map_err(Refusal::NotAttested)?;
            }
            return Ok(matched.clone());
        }
        let mut matched = match &caller.who {
            Who::Process(process) => {
                let wanted: Wanted = snapshot.entries.wanted();
                let workload = self.attestor.attest(process, wanted).await.map_err(Refusal::NotAttested)?;
                snapshot.entries.matching(&workload.selectors)
            }
            Who::Pod(reference) => {
                let facts = self.attestor.pod(reference).await;
                snapshot.entries.matching(&facts.ok_or(Refusal::NotAttested(AttestError::Gone))?)
            }
            Who::Facts(facts) => snapshot.entries.matching(facts),
        };
        if caller.is_delegated {
            matched.retain(|entry| !entry.privileged);
        }
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
            let mut waiting = None;
            let missing = if snapshot.is_known() {
                let entries = self.entries(caller, &snapshot).await?;
                if entries.is_empty() {
                    return Err(Refusal::NoIdentity);
                }
                if !snapshot.is_restoring(&entries) {
                    let now = self.clock.now();
                    if !with_svid || !snapshot.svids_of(&entries, now).is_empty() {
                        return Ok((snapshot, entries));
                    }
                    if let Some(at) = snapshot.ended_at(&entries, now) {
                        return Err(Refusal::Ended { at: rfc3339(at) });
                    }
                    if let Some(by) = snapshot.begins_in(&entries, now) {
                        return Err(Refusal::ClockBehind { by });
                    }
                }
                waiting = Some(self.state.wait_for(&entries));
                "the SVID has not been issued yet"
            } else {
                "the CA has not been reached yet"
            };
            tokio::select! {
                () = self.shutdown.requested() => return Err(Refusal::ShuttingDown),
                () = tokio::time::sleep_until(deadline) => return Err(Refusal::NotReady { what: missing }),
                _ = changes.changed() => (),
            }
            drop(waiting);
        }
    }

    /// Counts a stream of the caller until the guard is dropped.
    pub(crate) fn open_stream(&self, caller: &Caller, api: Api) -> Result<StreamGuard, Status> {
        let (process, uid) = match &caller.who {
            Who::Process(process) => (process.clone(), process.uid()),
            // Whoever acts for others is counted as ourselves.
            Who::Pod(_) | Who::Facts(_) => (Arc::new(self.own_process(caller)?), rustix::process::getuid().as_raw()),
        };
        let tally = if caller.is_delegated { &self.delegated } else { &self.streams };
        let counted = tally.count(process.pid(), uid);
        let counted = counted.map_err(|full| self.refuse(&Refusal::TooManyStreams { of: full.of }, Some(caller)))?;
        let gauge = self.numbers.streams.get_or_create(&ApiLabels { api }).clone();
        gauge.inc();
        Ok(StreamGuard { _counted: counted, gauge, presence: self.enforced.open(process) })
    }

    /// Counts a call to the CA on behalf of the caller until the guard is dropped.
    pub(crate) fn count_call(&self, caller: &Caller) -> Result<TallyGuard, Status> {
        let counted = match &caller.who {
            Who::Process(process) if !caller.is_delegated => self.calls.count(process.pid(), process.uid()),
            _ => self.delegated.count(0, rustix::process::getuid().as_raw()),
        };
        counted.map_err(|full| self.refuse(&Refusal::TooManyCalls { of: full.of }, Some(caller)))
    }

    fn own_process(&self, caller: &Caller) -> Result<Process, Status> {
        let own = i32::try_from(std::process::id()).map_err(|_| AttestError::Gone).and_then(Process::open);
        own.map_err(|error| self.refuse(&Refusal::NotAttested(error), Some(caller)))
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
pub(crate) const STREAMS_MAX: usize = 16_384;
/// Streams at once of one user's processes: the others keep room.
pub(crate) const STREAMS_PER_USER_MAX: usize = 12_288;
/// Streams at once of one process.
pub(crate) const STREAMS_PER_PROCESS_MAX: usize = 64;
/// Calls at once that wait for the CA, of all workloads together.
pub(crate) const CALLS_MAX: usize = 1024;
/// Calls at once of one user's processes.
pub(crate) const CALLS_PER_USER_MAX: usize = 512;
/// Calls at once of one process.
pub(crate) const CALLS_PER_PROCESS_MAX: usize = 16;
pub(crate) const STREAM_LIMITS: TallyLimits =
    TallyLimits { total: STREAMS_MAX, per_user: STREAMS_PER_USER_MAX, per_process: STREAMS_PER_PROCESS_MAX };
pub(crate) const CALL_LIMITS: TallyLimits =
    TallyLimits { total: CALLS_MAX, per_user: CALLS_PER_USER_MAX, per_process: CALLS_PER_PROCESS_MAX };
/// Streams and calls at once on behalf of others.
pub(crate) const DELEGATED_MAX: usize = 4096;
pub(crate) const DELEGATED_LIMITS: TallyLimits =
    TallyLimits { total: DELEGATED_MAX, per_user: DELEGATED_MAX, per_process: DELEGATED_MAX };
const ALIVE_PAUSE: Duration = Duration::from_secs(1);
/// How long a first answer waits for the CA.
pub(crate) const FIRST_WAIT_MAX: Duration = Duration::from_secs(10);
