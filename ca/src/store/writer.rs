//! The one task that writes: gathers what waits, commits it once, then answers.
//!
//! On a database that several replicas share, each transaction begins by waiting for those of the others, and reads
//! what they changed before it does anything. Transactions therefore happen one after the other over all replicas, as
//! they do on SQLite: what a piece of work reads cannot change before its commit, counters have no gaps, and a log may
//! be appended to.

mod batch;
mod job;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::StoreError;
use super::feed::{Feed, News};
use super::health::Health;
use super::log::Tail;
use super::queue::Waiting;
use super::revocations;
use crate::registry::{Change, Registry};
use batch::{Batch, Known};
pub(super) use job::Job;
#[cfg(test)]
pub(super) use job::{Effect, Work};

/// The state of the writing task.
pub(super) struct Writer {
    pub(super) pool: AnyPool,
    /// Begins a transaction that no other transaction runs beside.
    pub(super) begin: &'static str,
    pub(super) jobs: Waiting,
    /// Says that another replica changed something, or that it is time to look.
    pub(super) wake: Arc<Notify>,
    /// What other replicas change; none when there cannot be any.
    pub(super) feed: Option<Feed>,
    pub(super) memory: Memory,
    /// Where the transparency log ends; not known after a failed transaction.
    pub(super) tail: Tail,
    /// What decides on records of what was signed, where nobody but this writer can change it; not known after any other work.
    pub(super) signing: Option<Signing>,
    pub(super) health: Health,
}

/// Who may sign, and for whom no longer.
pub(super) struct Signing {
    /// Ids of the authorities that may.
    active: std::collections::BTreeSet<String>,
    fence: revocations::Fence,
}

/// What the rest of the process sees of the database.
pub(super) struct Memory {
    pub(super) registry: Arc<RwLock<Registry>>,
    pub(super) entries_revision: watch::Sender<u64>,
    pub(super) evictions: watch::Sender<u64>,
    pub(super) authorities: watch::Sender<u64>,
    pub(super) relationships: watch::Sender<u64>,
    pub(super) revocations: watch::Sender<u64>,
}

impl Writer {
    /// Writes until every [`super::Store`] is gone.
    pub(super) async fn run(mut self) {
        let mut conn = None;
        let mut next_probe = Instant::now();
        loop {
            let ailing = self.health.ails();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_probe), if ailing => {
                    self.probe(&mut conn).await;
                    next_probe = Instant::now() + PROBE_PAUSE;
                }
                () = self.wake.notified(), if self.feed.is_some() && !ailing => self.catch_up(&mut conn).await,
                mut jobs = self.jobs.next() => {
                    if jobs.is_empty() {
                        break;
                    }
                    self.jobs.gather(&mut jobs).await;
                    self.write(&mut conn, jobs).await;
                }
            }
        }
        // Closing waits for every connection to come back.
        drop(conn);
        self.pool.close().await;
    }

    async fn write(&mut self, conn: &mut Option<PoolConnection<Any>>, jobs: Vec<Job>) {
        let mut batch = Batch::sort(jobs);
        // While the database does not answer nobody waits for it again; the probe finds out when it does.
        if let Some(trouble) = self.health.trouble() {
            return batch.finish(Err(trouble));
        }
        let outcome = match connected(&self.pool, conn).await {
            Ok(conn) => {
                let shared = self.feed.is_some();
                let known = Known { tail: &mut self.tail, signing: &mut self.signing };
                let commit = batch.commit(conn, self.begin, self.feed.as_mut(), &self.memory, known);
                in_time(shared, commit).await
            }
            Err(error) => Err(error),
        };
        let failed = outcome.as_ref().err().or_else(|| batch.trouble()).cloned();
        if let Ok(changes) = &outcome {
            self.memory.remember(changes);
        }
        if let Err(error) = &outcome {
            tracing::error!(reason = error.reason(), error = ?error, "transaction failed");
            self.tail = None;
            self.signing = None;
            discard(conn).await;
        }
        batch.finish(outcome.map(drop));
        if let Some(error) = failed.filter(StoreError::is_trouble) {
            self.health.fails(error);
            self.probe(conn).await;
        }
    }

    /// Learns what other replicas changed.
    async fn catch_up(&mut self, conn: &mut Option<PoolConnection<Any>>) {
        let Some(feed) = self.feed.as_mut() else { return };
        let outcome = match connected(&self.pool, conn).await {
            Ok(conn) => in_time(true, feed.news(conn)).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(news) => self.memory.hear(news),
            Err(error) => {
                tracing::warn!(reason = error.reason(), error = ?error, "changes of other replicas not read");
                discard(conn).await;
                self.health.fails(error);
            }
        }
    }

    /// Writes something that nobody needs, to learn whether it can be written.
    async fn probe(&self, conn: &mut Option<PoolConnection<Any>>) {
        let outcome = match connected(&self.pool, conn).await {
            Ok(conn) => in_time(self.feed.is_some(), batch::probe(conn, self.begin)).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => self.health.recovers(),
            Err(error) => {
                discard(conn).await;
                self.health.fails(error);
            }
        }
    }
}

impl Memory {
    pub(super) fn remember(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            registry.apply(change.clone());
        }
        let revision = registry.entries_revision();
        drop(registry);
        self.tell(revision, changes.iter().any(evicts));
        if changes.iter().any(relates) {
            self.relationships.send_modify(|count| *count += 1);
        }
        if changes.iter().any(|change| matches!(change, Change::Authorities)) {
            self.authorities.send_modify(|count| *count += 1);
        }
        if changes.iter().any(|change| matches!(change, Change::Revocations)) {
            self.revocations.send_modify(|count| *count += 1);
        }
    }

    /// Takes over what other replicas changed.
    pub(super) fn hear(&self, news: News) {
        match news {
            News::Changes { changes, authorities, revocations } => {
                self.remember(&changes);
                if authorities {
                    self.authorities.send_modify(|count| *count += 1);
                }
                if revocations {
                    self.revocations.send_modify(|count| *count += 1);
                }
            }
            News::Everything(registry) => {
                let revision = registry.entries_revision();
                *self.registry.write().unwrap_or_else(PoisonError::into_inner) = *registry;
                self.tell(revision, true);
                self.relationships.send_modify(|count| *count += 1);
                self.authorities.send_modify(|count| *count += 1);
                self.revocations.send_modify(|count| *count += 1);
            }
        }
    }

    fn tell(&self, revision: u64, evicted: bool) {
        self.entries_revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        if evicted {
            self.evictions.send_modify(|count| *count += 1);
        }
    }
}

fn evicts(change: &Change) -> bool {
    match change {
        Change::AgentGone(_) => true,
        Change::AgentSet(agent) => agent.banned,
        _ => false,
    }
}

fn relates(change: &Change) -> bool {
    matches!(change, Change::RelationshipSet(_) | Change::RelationshipGone(_))
}

async fn connected<'a>(
    pool: &AnyPool,
    conn: &'a mut Option<PoolConnection<Any>>,
) -> Result<&'a mut PoolConnection<Any>, StoreError> {
    match conn {
        Some(conn) => Ok(conn),
        None => Ok(conn.insert(pool.acquire().await?)),
    }
}

/// A server that no longer answers is given up; a disk is waited for, because its answer decides what is true.
async fn in_time<T>(remote: bool, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    if !remote {
        return work.await;
    }
    tokio::time::timeout(ANSWER_WAIT_MAX, work).await.unwrap_or(Err(StoreError::Silent))
}

/// The state of a connection that failed is unknown: the next piece of work begins on a fresh one.
async fn discard(conn: &mut Option<PoolConnection<Any>>) {
    if let Some(broken) = conn.take() {
        let _ = tokio::time::timeout(CLOSE_WAIT_MAX, broken.close()).await;
    }
}

/// How often a database that does not answer is tried.
const PROBE_PAUSE: Duration = Duration::from_millis(250);
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest that a transaction on a database server may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
