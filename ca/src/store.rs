//! The database: opening it, one writer for everything that changes, and the memory of what is in it.
//!
//! Every write goes through one task that gathers what waits into one transaction, so that many callers share one
//! flush to the disk, and answers only when that flush is done. SQLite runs in WAL mode with `synchronous=FULL`:
//! an acknowledged write survives the loss of the process and of power. On PostgreSQL several replicas may share a
//! database; their transactions follow one another, and each hears at once what another one changed.

mod agents;
mod approvals;
mod audit;
mod authorities;
mod entries;
mod error;
mod federation;
mod feed;
mod health;
mod issuance;
mod load;
mod log;
mod meta;
mod migrations;
mod open;
mod queue;
mod records;
mod replica;
mod revocations;
mod rotation_steps;
mod tokens;
mod writer;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures_util::future::BoxFuture;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool, Row};
use tokio::sync::{oneshot, watch};

pub(crate) use approvals::{Approval, Asked, Decided};
pub(crate) use audit::{AuditFilter, AuditRecord};
pub(crate) use authorities::{
    Authorities as StoredAuthorities, AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, RotationRow,
};
pub(crate) use entries::{Created, EntryChange, Hindrance, Updated};
pub use error::StoreError;
pub(crate) use federation::{Fetched, Related};
pub(crate) use health::Health;
pub(crate) use issuance::{Issuance, IssuanceKind, Recorded};
pub(crate) use migrations::MIGRATIONS;
pub use open::OpenError;
pub(crate) use open::address::{Address, shown as shown_url, sqlite_url};
pub(crate) use open::check::try_lock;
pub(crate) use open::{open, sound, unmigrated};
pub(crate) use queue::Lane;
pub(crate) use replica::Lease;
pub(crate) use revocations::{
    CRL_PARTITION_MAX, LAST_PART, ListPlan, Lists, RevokeAnswer, RevokeTarget, Revoked, StoredList,
};
pub(crate) use rotation_steps::{Acknowledgement, TakenStep};
pub(crate) use tokens::Admission;

use crate::registry::{Change, Registry};
use queue::{Coming, Queue};
use writer::Job;

/// The database and the memory of it. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: AnyPool,
    jobs: Queue,
    registry: Arc<RwLock<Registry>>,
    entries_revision: watch::Receiver<u64>,
    evictions: watch::Receiver<u64>,
    authorities_changed: watch::Receiver<u64>,
    relationships_changed: watch::Receiver<u64>,
    revocations_changed: watch::Receiver<u64>,
    health: Health,
    lease: Lease,
    /// What the next write is to leave in the audit trail.
    audit: Option<Arc<AuditRecord>>,
    /// Whether other replicas may use the database too.
    shared: bool,
}

/// What a write leaves behind: an answer, and what changes in memory once it is committed.
#[derive(Debug)]
pub(crate) struct Done<T> {
    answer: T,
    changes: Vec<Change>,
    /// Whether there is anything to audit.
    effect: bool,
    /// What was signed for it, recorded in the same transaction.
    issued: Vec<Issuance>,
}

impl<T> Done<T> {
    /// Something has changed.
    pub(crate) fn new(answer: T, changes: Vec<Change>) -> Self {
        Self { answer, changes, effect: true, issued: Vec::new() }
    }

    /// Something has changed, but nothing that the memory knows.
    pub(crate) fn written(answer: T) -> Self {
        Self::new(answer, Vec::new())
    }

    /// Nothing has changed, or nothing that anybody asked for.
    pub(crate) fn quiet(answer: T) -> Self {
        Self { answer, changes: Vec::new(), effect: false, issued: Vec::new() }
    }

    /// The record of what was signed is written with it, or nothing is.
    pub(crate) fn issuing(mut self, record: Issuance) -> Self {
        self.issued.push(record);
        self
    }
}

/// What a piece of writing answers.
pub(crate) type Writing<'c, T> = BoxFuture<'c, Result<Done<T>, StoreError>>;

impl Store {
    /// Runs `work` inside a transaction and answers when that is committed; for what keeps the known alive.
    ///
    /// `work` runs to its end even when the caller goes away. No other transaction, on whichever replica, runs beside
    /// it: what it reads is the newest, and stays so until its commit.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
    {
        self.write_in(Lane::Known, work).await
    }

    /// The same in a lane of choice: what is new waits behind what is known.
    pub(crate) async fn write_in<T, F>(&self, lane: Lane, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.jobs.put(lane, Job::work(work, self.audit.clone(), reply))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Says that a record will follow when its signature is made: the next transaction waits a moment for it. To be dropped right before
    /// [`Self::record`].
    pub(crate) fn coming(&self) -> Coming {
        self.jobs.coming()
    }

    /// Writes down, and adds to the transparency log, what is about to be handed out.
    pub(crate) async fn record(&self, rows: Vec<Issuance>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.put(Lane::Known, Job::Issued { rows, audit: self.audit.clone(), reply })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// What is known, as of the last commit.
    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with every change of any entry.
    pub(crate) fn entries_revision(&self) -> watch::Receiver<u64> {
        self.entries_revision.clone()
    }

    /// Changes whenever a node is banned or forgotten.
    pub(crate) fn evictions(&self) -> watch::Receiver<u64> {
        self.evictions.clone()
    }

    /// Changes whenever the signing authorities were changed, by this replica or another one.
    pub(crate) fn authorities_changed(&self) -> watch::Receiver<u64> {
        self.authorities_changed.clone()
    }

    /// Changes whenever a federation relationship, or its state, does.
    pub(crate) fn relationships_changed(&self) -> watch::Receiver<u64> {
        self.relationships_changed.clone()
    }

    /// Changes whenever something is revoked or lists are signed, by this replica or another one.
    pub(crate) fn revocations_changed(&self) -> watch::Receiver<u64> {
        self.revocations_changed.clone()
    }

    /// Whether writes are taken.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether other replicas may change the database too. Of everything else the writer tells.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this replica does what only one should do.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Who acts: whom the audit trail names for the next write, or the authority itself.
    pub(crate) fn actor(&self) -> String {
        self.audit.as_ref().map_or_else(|| "kasbah".to_owned(), |record| record.actor.clone())
    }

    /// How many writes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.jobs.length()
    }

    /// The time of day on the database server; `None` for SQLite.
    pub(crate) async fn server_time(&self) -> Result<Option<i64>, StoreError> {
        if !self.shared {
            return Ok(None);
        }
        let sql = "SELECT CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)";
        let (now,): (i64,) = sqlx::query_as(sql).fetch_one(&self.pool).await?;
        Ok(Some(now))
    }

    /// Forgets what was kept for replicas that were away for a while.
    pub(crate) async fn forget_changes(&self, now: i64) -> Result<u64, StoreError> {
        self.write(move |conn| Box::pin(async move { Ok(Done::quiet(feed::forget(conn, now).await?)) })).await
    }
}

/// Reads a column, or says which kind of row is damaged.
fn column<'r, T>(row: &'r AnyRow, name: &str, what: &'static str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    row.try_get(name).map_err(|error| {
        tracing::error!(%error, column = name, row = what, "database row not understood");
        StoreError::Damaged { what }
    })
}

fn flag(value: bool) -> i64 {
    i64::from(value)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
