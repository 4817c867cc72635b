//! The one task that writes: gathers what waits, commits it once, then answers.

use std::sync::{Arc, PoisonError, RwLock};

use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Executor};
use tokio::sync::{mpsc, oneshot, watch};

use super::issuance::{self, Issuance};
use super::{Done, StoreError, Writing};
use crate::registry::{Change, Registry};

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write.
pub(super) enum Job {
    /// Rows of the issuance record; those of many callers become one statement.
    Issued(Vec<Issuance>, Reply<()>),
    /// Anything else.
    Work(Box<dyn Work>),
}

impl Job {
    pub(super) fn work<T, F>(work: F, reply: Reply<T>) -> Self
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
    {
        Self::Work(Box::new(Typed { work: Some(work), answer: None, reply: Some(reply) }))
    }
}

/// A piece of work without its answer's type.
pub(super) trait Work: Send {
    /// Does it; the answer is kept until the commit.
    fn perform<'c>(
        &'c mut self,
        conn: &'c mut AnyConnection,
    ) -> futures_util::future::BoxFuture<'c, Result<Vec<Change>, StoreError>>;

    /// Answers the caller: its answer, or why there is none.
    fn finish(&mut self, outcome: Result<(), StoreError>);
}

struct Typed<T, F> {
    work: Option<F>,
    answer: Option<T>,
    reply: Option<Reply<T>>,
}

impl<T, F> Work for Typed<T, F>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
{
    fn perform<'c>(
        &'c mut self,
        conn: &'c mut AnyConnection,
    ) -> futures_util::future::BoxFuture<'c, Result<Vec<Change>, StoreError>> {
        Box::pin(async move {
            let work = self.work.take().ok_or(StoreError::Closed)?;
            let Done { answer, changes } = work(conn).await?;
            self.answer = Some(answer);
            Ok(changes)
        })
    }

    fn finish(&mut self, outcome: Result<(), StoreError>) {
        let answer = outcome.and_then(|()| self.answer.take().ok_or(StoreError::Closed));
        if let Some(reply) = self.reply.take() {
            // The caller may have gone; what is written stays written.
            let _ = reply.send(answer);
        }
    }
}

/// The state of the writing task.
pub(super) struct Writer {
    pub(super) pool: AnyPool,
    pub(super) begin: &'static str,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) registry: Arc<RwLock<Registry>>,
    pub(super) entries_revision: watch::Sender<u64>,
    pub(super) evictions: watch::Sender<u64>,
}

impl Writer {
    /// Writes until every [`super::Store`] is gone.
    pub(super) async fn run(mut self) {
        let mut conn = None;
        while let Some(first) = self.jobs.recv().await {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                batch.push(job);
            }
            self.write(&mut conn, batch).await;
        }
        // Closing waits for every connection to come back.
        drop(conn);
        self.pool.close().await;
    }

    async fn write(&self, conn: &mut Option<PoolConnection<Any>>, batch: Vec<Job>) {
        let mut batch = Batch::sort(batch);
        let outcome = match self.connected(conn).await {
            Ok(conn) => batch.commit(conn, self.begin).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(ref changes) => self.remember(changes),
            Err(ref error) => {
                tracing::error!(reason = error.reason(), error = ?error, "transaction failed");
                // Its state is unknown: let the next batch begin on a fresh connection.
                if let Some(broken) = conn.take() {
                    let _ = broken.close().await;
                }
            }
        }
        batch.finish(outcome.map(drop));
    }

    async fn connected<'a>(
        &self,
        conn: &'a mut Option<PoolConnection<Any>>,
    ) -> Result<&'a mut PoolConnection<Any>, StoreError> {
        match conn {
            Some(conn) => Ok(conn),
            None => Ok(conn.insert(self.pool.acquire().await?)),
        }
    }

    fn remember(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            registry.apply(change.clone());
        }
        let revision = registry.entries_revision();
        drop(registry);
        self.entries_revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        if changes.iter().any(evicts) {
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

/// What one transaction holds.
struct Batch {
    rows: Vec<Issuance>,
    recorded: Vec<Reply<()>>,
    work: Vec<(Box<dyn Work>, Result<(), StoreError>)>,
}

impl Batch {
    fn sort(jobs: Vec<Job>) -> Self {
        let mut batch = Self { rows: Vec::new(), recorded: Vec::new(), work: Vec::new() };
        for job in jobs {
            match job {
                Job::Issued(rows, reply) => {
                    batch.rows.extend(rows);
                    batch.recorded.push(reply);
                }
                Job::Work(work) => batch.work.push((work, Ok(()))),
            }
        }
        batch
    }

    /// All or nothing of what did not fail by itself; answers what the memory must learn.
    async fn commit(&mut self, conn: &mut AnyConnection, begin: &'static str) -> Result<Vec<Change>, StoreError> {
        let mut changes = Vec::new();
        conn.execute(begin).await?;
        for (work, outcome) in &mut self.work {
            conn.execute("SAVEPOINT job").await?;
            match work.perform(&mut *conn).await {
                Ok(learned) => {
                    conn.execute("RELEASE SAVEPOINT job").await?;
                    changes.extend(learned);
                }
                Err(error) => {
                    conn.execute("ROLLBACK TO SAVEPOINT job").await?;
                    conn.execute("RELEASE SAVEPOINT job").await?;
                    *outcome = Err(error);
                }
            }
        }
        issuance::insert(&mut *conn, &self.rows).await?;
        conn.execute("COMMIT").await?;
        Ok(changes)
    }

    fn finish(self, outcome: Result<(), StoreError>) {
        for (mut work, own) in self.work {
            work.finish(outcome.clone().and(own));
        }
        for reply in self.recorded {
            let _ = reply.send(outcome.clone());
        }
    }
}

/// The most jobs of one transaction.
const BATCH_MAX: usize = 256;
/// The most jobs that wait; further callers wait for a place.
pub(super) const JOBS_WAITING_MAX: usize = 1024;
