//! Something to write, and the caller that waits for it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::AnyConnection;
use tokio::sync::oneshot;

use crate::registry::Change;
use crate::store::audit::{self, AuditRecord};
use crate::store::{Done, Issuance, StoreError, Writing};

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write.
pub(in crate::store) enum Job {
    /// Rows of the issuance record; those of many callers become one statement.
    Issued { rows: Vec<Issuance>, audit: Option<Arc<AuditRecord>>, reply: Reply<()> },
    /// Anything else.
    Work(Box<dyn Work>),
}

impl Job {
    /// `audit` is written together with what `work` writes, if that is anything.
    pub(in crate::store) fn work<T, F>(work: F, audit: Option<Arc<AuditRecord>>, reply: Reply<T>) -> Self
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
    {
        Self::Work(Box::new(Typed { work: Some(work), audit, answer: None, reply: Some(reply) }))
    }
}

/// What a piece of work did beside its own rows.
#[derive(Default)]
pub(in crate::store) struct Effect {
    pub(super) changes: Vec<Change>,
    pub(super) issued: Vec<Issuance>,
}

/// A piece of work without its answer's type.
pub(in crate::store) trait Work: Send {
    /// Does it; the answer is kept until the commit.
    fn perform<'c>(&'c mut self, conn: &'c mut AnyConnection) -> BoxFuture<'c, Result<Effect, StoreError>>;

    /// Answers the caller: its answer, or why there is none.
    fn finish(&mut self, outcome: Result<(), StoreError>);
}

struct Typed<T, F> {
    work: Option<F>,
    audit: Option<Arc<AuditRecord>>,
    answer: Option<T>,
    reply: Option<Reply<T>>,
}

impl<T, F> Work for Typed<T, F>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut AnyConnection) -> Writing<'c, T> + Send + 'static,
{
    fn perform<'c>(&'c mut self, conn: &'c mut AnyConnection) -> BoxFuture<'c, Result<Effect, StoreError>> {
        Box::pin(async move {
            let work = self.work.take().ok_or(StoreError::Closed)?;
            let Done { answer, changes, effect, issued } = work(conn).await?;
            if let Some(record) = self.audit.take().filter(|_| effect) {
                audit::insert(conn, &record).await?;
            }
            self.answer = Some(answer);
            Ok(Effect { changes, issued })
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
