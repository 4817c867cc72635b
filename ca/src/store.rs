//! The database: opening it, one writer for everything that changes, and the memory of what is in it.
//!
//! Every write goes through one task that gathers what waits into one transaction, so that many callers share one
//! flush to the disk, and answers only when that flush is done. SQLite runs in WAL mode with `synchronous=FULL`:
//! an acknowledged write survives the loss of the process and of power.

mod agents;
mod authorities;
mod entries;
mod federation;
mod issuance;
mod meta;
mod open;
mod tokens;
mod writer;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures_util::future::BoxFuture;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool, Row};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use authorities::{AuthorityKind, AuthorityRow, AuthorityState};
pub(crate) use entries::{Created, Updated};
pub(crate) use issuance::{Issuance, IssuanceKind};
pub use open::OpenError;
pub(crate) use open::{open, shown as shown_url, sqlite_url};
pub(crate) use tokens::TokenUse;

use crate::registry::{Change, Registry};
use writer::Job;

/// The database and the memory of it. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: AnyPool,
    jobs: mpsc::Sender<Job>,
    registry: Arc<RwLock<Registry>>,
    entries_revision: watch::Receiver<u64>,
    evictions: watch::Receiver<u64>,
}

/// Why a write or a read did not happen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database refused.
    #[error("the database does not take the request")]
    Sql(#[source] Arc<sqlx::Error>),
    /// A row does not say what it should.
    #[error("the database holds a damaged {what}")]
    Damaged {
        /// Kind of the row.
        what: &'static str,
    },
    /// The authority is ending.
    #[error("the authority is shutting down")]
    Closed,
}

impl StoreError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sql(_) => "STORE_UNAVAILABLE",
            Self::Damaged { .. } => "STORE_DAMAGED",
            Self::Closed => "SHUTTING_DOWN",
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

/// What a write leaves behind: an answer, and what changes in memory once it is committed.
#[derive(Debug)]
pub(crate) struct Done<T> {
    answer: T,
    changes: Vec<Change>,
}

impl<T> Done<T> {
    pub(crate) fn new(answer: T, changes: Vec<Change>) -> Self {
        Self { answer, changes }
    }

    /// Nothing that the memory knows has changed.
    pub(crate) fn quiet(answer: T) -> Self {
        Self { answer, changes: Vec::new() }
    }
}

/// What a piece of writing answers.
pub(crate) type Writing<'c, T> = BoxFuture<'c, Result<Done<T>, StoreError>>;

impl Store {
    /// Runs `work` inside a transaction and answers when that is committed.
    ///
    /// `work` runs to its end even when the caller goes away.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::work(work, reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes down what is about to be handed out.
    pub(crate) async fn record(&self, rows: Vec<Issuance>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Issued(rows, reply)).await.map_err(|_| StoreError::Closed)?;
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
