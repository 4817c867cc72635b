//! The audit trail: acts of administrators, written with their effect, and refusals, gathered so that a flood of them can
//! neither fill the disk nor slow the authority down.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use identity::digest::{hex, random};
use runtime::serve::RemoteAddr;
use runtime::shutdown::Shutdown;
use tokio::sync::Notify;
use tonic::Extensions;

use crate::api::Caller;
use crate::certifier::{Certifier, secs};
use crate::store::{AuditRecord, Store, StoreError};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Over the network.
    Address(SocketAddr),
    /// Over the local socket.
    Process(LocalPeer),
    /// Not known.
    Unknown,
}

/// A process at the local socket, as the kernel knows it; an extension of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalPeer {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Source {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        if let Some(RemoteAddr(address)) = extensions.get::<RemoteAddr>() {
            return Self::Address(*address);
        }
        extensions.get::<LocalPeer>().copied().map_or(Self::Unknown, Self::Process)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Process(LocalPeer { pid, uid, .. }) => write!(f, "pid {pid}, uid {uid}"),
            Self::Unknown => f.write_str("-"),
        }
    }
}

/// What somebody does, for the record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Act {
    /// `entry.create`, `node.ban`, …
    pub(crate) action: &'static str,
    /// To what: an entry's id, a node, a trust domain.
    pub(crate) target: String,
    /// The identity concerned; empty when there is none.
    pub(crate) spiffe_id: String,
    /// More about it, for people.
    pub(crate) detail: String,
}

impl Act {
    /// Of `action` on `target`.
    pub(crate) fn new(action: &'static str, target: impl fmt::Display) -> Self {
        Self { action, target: clipped(&target.to_string()), ..Self::default() }
    }

    /// Concerning this identity.
    pub(crate) fn of(mut self, spiffe_id: impl fmt::Display) -> Self {
        self.spiffe_id = spiffe_id.to_string();
        self
    }

    /// With more words.
    pub(crate) fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = clipped(&detail.to_string());
        self
    }

    pub(crate) fn record(self, caller: &Caller, now: SystemTime) -> AuditRecord {
        self.record_of(caller.name(), caller.source, now)
    }

    fn record_of(self, actor: String, source: Source, now: SystemTime) -> AuditRecord {
        AuditRecord {
            id: record_id(now),
            at: secs(now),
            actor,
            source: source.to_string(),
            action: self.action.into(),
            target: self.target,
            spiffe_id: self.spiffe_id,
            reason: String::new(),
            detail: self.detail,
            times: 1,
        }
    }
}

impl Certifier {
    /// The store, whose next write leaves `act` of `caller` in the audit trail, in the same transaction.
    pub(crate) fn acting(&self, caller: &Caller, act: Act) -> Store {
        self.store.audited(act.record(caller, self.now()))
    }

    /// A record of `act` of `caller`, for a write that brings its own.
    pub(crate) fn record_of(&self, caller: &Caller, act: Act) -> AuditRecord {
        act.record(caller, self.now())
    }

    /// The same for what the authority does by itself.
    pub(crate) fn acting_itself(&self, act: Act) -> Store {
        self.store.audited(act.record_of(self.server_id.to_string(), Source::Unknown, self.now()))
    }

    /// A part of a request was refused.
    pub(crate) fn note_refusal(&self, caller: &Caller, action: &'static str, target: &str, reason: &'static str) {
        self.refusals.add(caller, action, target, reason, self.now());
    }
}

/// Milliseconds, a number that only grows, and randomness: unique, and in the order in which this process made them.
fn record_id(now: SystemTime) -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let millis = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let earliest = u64::try_from(millis & 0xffff_ffff_ffff).unwrap_or_default() << 16;
    let next = |last: u64| earliest.max(last.saturating_add(1));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
    format!("{:016x}{}", next(last.unwrap_or_default()), hex(&random::<8>()))
}

/// Refusals that are not written yet: one row for all of the same kind.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    waiting: Mutex<BTreeMap<Kind, AuditRecord>>,
    something: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    actor: String,
    action: &'static str,
    reason: &'static str,
}

impl Refusals {
    /// Counts a refusal. The first of a kind gives its source and target to the row.
    pub(crate) fn add(
        &self,
        caller: &Caller,
        action: &'static str,
        target: &str,
        reason: &'static str,
        now: SystemTime,
    ) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind = Kind { actor: caller.name(), action, reason };
        if waiting.len() >= KINDS_MAX && !waiting.contains_key(&kind) {
            // So many different ones at once are no accident: who it was in each case is in the log.
            kind.actor = MANY.into();
        }
        if let Some(known) = waiting.get_mut(&kind) {
            known.times += 1;
            return;
        }
        if waiting.len() >= 2 * KINDS_MAX {
            return;
        }
        let mut record = Act::new(action, target).record(caller, now);
        (record.reason, record.actor) = (reason.into(), kind.actor.clone());
        if record.actor == MANY {
            (record.source, record.target) = (String::new(), String::new());
        }
        waiting.insert(kind, record);
        self.something.notify_one();
    }

    /// Writes what waits.
    pub(crate) async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return Ok(());
        }
        store.write_audit(waiting.into_values().collect()).await
    }

    /// Writes every [`FLUSH_EVERY`] what was gathered, until `shutdown` and then once more.
    pub(crate) async fn keep_flushed(&self, store: &Store, shutdown: &Shutdown) {
        while !shutdown.is_requested() {
            let pause = async {
                self.something.notified().await;
                tokio::time::sleep(FLUSH_EVERY).await;
            };
            let _ = shutdown.unless(pause).await;
            if let Err(error) = self.flush(store).await {
                tracing::error!(reason = error.reason(), error = ?error, "refusals not written to the audit trail");
            }
        }
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// The actor of refusals beyond [`KINDS_MAX`].
const MANY: &str = "*";
/// The most kinds of refusals with an actor of their own, between two writes.
const KINDS_MAX: usize = 64;
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// The most refusals that are kept; the oldest go first.
pub(crate) const REFUSALS_KEPT_MAX: u32 = 100_000;
const TEXT_CHARS_MAX: usize = 2_048;

#[cfg(test)]
mod tests;
