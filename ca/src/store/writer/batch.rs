//! What one transaction holds.

use std::sync::Arc;

use sqlx::{AnyConnection, Executor};

use super::job::{Effect, Job, Reply, Work};
use super::{Memory, Signing};
use crate::registry::Change;
use crate::store::audit::{self, AuditRecord};
use crate::store::feed::Feed;
use crate::store::log::{self, Tail};
use crate::store::{Issuance, IssuanceKind, StoreError, authorities, issuance, meta, records, revocations};

pub(super) struct Batch {
    issued: Vec<Issued>,
    work: Vec<(Box<dyn Work>, Result<(), StoreError>)>,
}

struct Issued {
    rows: Vec<Issuance>,
    audit: Option<Arc<AuditRecord>>,
    reply: Reply<()>,
    outcome: Result<(), StoreError>,
}

/// What the writer remembers from one transaction to the next.
pub(super) struct Known<'a> {
    pub(super) tail: &'a mut Tail,
    pub(super) signing: &'a mut Option<Signing>,
}

impl Batch {
    pub(super) fn sort(jobs: Vec<Job>) -> Self {
        let mut batch = Self { issued: Vec::new(), work: Vec::new() };
        for job in jobs {
            match job {
                Job::Issued { rows, audit, reply } => {
                    batch.issued.push(Issued { rows, audit, reply, outcome: Ok(()) });
                }
                Job::Work(work) => batch.work.push((work, Ok(()))),
            }
        }
        batch
    }

    /// All or nothing of what did not fail by itself; answers what the memory must learn.
    pub(super) async fn commit(
        &mut self,
        conn: &mut AnyConnection,
        begin: &'static str,
        mut feed: Option<&mut Feed>,
        memory: &Memory,
        known: Known<'_>,
    ) -> Result<Vec<Change>, StoreError> {
        if feed.is_none() && self.is_records_alone() {
            return self.commit_records(conn, begin, known).await;
        }
        conn.execute(begin).await?;
        if let Some(feed) = feed.as_deref_mut() {
            // Committed by others before; it is true whatever becomes of us.
            memory.hear(feed.news(conn).await?);
            *known.signing = None;
        }
        if !self.work.is_empty() {
            *known.signing = None;
        }
        let (mut changes, mut rows) = (Vec::new(), Vec::new());
        for (work, outcome) in &mut self.work {
            match perform(&mut **work, conn).await? {
                Ok(Effect { changes: learned, issued }) => {
                    changes.extend(learned);
                    rows.extend(issued);
                }
                Err(error) => *outcome = Err(error),
            }
        }
        self.gather(conn, known.signing, &mut rows).await?;
        log::append(conn, known.tail, &mut rows).await?;
        issuance::insert(conn, &rows).await?;
        let position = match feed.as_deref() {
            Some(feed) => feed.publish(conn, &changes).await?,
            None => 0,
        };
        conn.execute("COMMIT").await?;
        if let Some(feed) = feed {
            feed.advance(position);
        }
        Ok(changes)
    }

    /// Whether there is nothing but records that leave no line in the audit trail.
    fn is_records_alone(&self) -> bool {
        self.work.is_empty() && self.issued.iter().all(|issued| issued.audit.is_none())
    }

    /// The same for records alone, on a database that nobody else writes to: what decides on them can be read before the
    /// transaction.
    async fn commit_records(
        &mut self,
        conn: &mut AnyConnection,
        begin: &'static str,
        known: Known<'_>,
    ) -> Result<Vec<Change>, StoreError> {
        let mut rows = Vec::new();
        self.gather(conn, known.signing, &mut rows).await?;
        if !rows.is_empty() && !records::write_alone(conn, known.tail, &mut rows).await? {
            conn.execute(begin).await?;
            log::append(conn, known.tail, &mut rows).await?;
            issuance::insert(conn, &rows).await?;
            conn.execute("COMMIT").await?;
        }
        Ok(Vec::new())
    }

    /// Gathers the records of what was signed, as long as its authority may sign: on another replica, or while the
    /// signature was made, it may have been replaced. Each becomes a leaf of the transparency log.
    async fn gather(
        &mut self,
        conn: &mut AnyConnection,
        known: &mut Option<Signing>,
        rows: &mut Vec<Issuance>,
    ) -> Result<(), StoreError> {
        if self.issued.is_empty() {
            return Ok(());
        }
        let signing = match known {
            Some(signing) => signing,
            None => known.insert(Signing::read(conn).await?),
        };
        for issued in &mut self.issued {
            if signing.fence.stops(conn, &issued.rows).await? {
                issued.outcome = Err(StoreError::Revoked);
            } else if signing.may_sign(&issued.rows) {
                rows.append(&mut issued.rows);
                if let Some(record) = &issued.audit {
                    audit::insert(conn, record).await?;
                }
            } else {
                issued.outcome = Err(StoreError::AuthorityChanged);
            }
        }
        Ok(())
    }

    /// The first trouble of a single job that may be that of the whole database.
    pub(super) fn trouble(&self) -> Option<&StoreError> {
        self.work.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).find(|error| error.is_trouble())
    }

    pub(super) fn finish(self, outcome: Result<(), StoreError>) {
        for (mut work, own) in self.work {
            work.finish(outcome.clone().and(own));
        }
        for issued in self.issued {
            let _ = issued.reply.send(outcome.clone().and(issued.outcome));
        }
    }
}

impl Signing {
    async fn read(conn: &mut AnyConnection) -> Result<Self, StoreError> {
        Ok(Self { active: authorities::active(conn).await?, fence: revocations::fence(conn).await? })
    }

    /// The server's own SVID may be of an older authority, for nodes that know no newer one.
    fn may_sign(&self, rows: &[Issuance]) -> bool {
        rows.iter().all(|row| row.kind == IssuanceKind::Server || self.active.contains(&row.authority_id))
    }
}

/// The work itself, and whether what was signed for it still counts.
async fn attempt(work: &mut dyn Work, conn: &mut AnyConnection) -> Result<Effect, StoreError> {
    let effect = work.perform(&mut *conn).await?;
    if effect.issued.is_empty() {
        return Ok(effect);
    }
    let signing = Signing::read(conn).await?;
    if signing.fence.stops(conn, &effect.issued).await? {
        return Err(StoreError::Revoked);
    }
    if signing.may_sign(&effect.issued) {
        return Ok(effect);
    }
    Err(StoreError::AuthorityChanged)
}

/// Runs one job so that its failure leaves nothing and spoils no other; the outer error is that of the transaction.
async fn perform(work: &mut dyn Work, conn: &mut AnyConnection) -> Result<Result<Effect, StoreError>, StoreError> {
    conn.execute("SAVEPOINT job").await?;
    match attempt(work, conn).await {
        Ok(effect) => {
            conn.execute("RELEASE SAVEPOINT job").await?;
            Ok(Ok(effect))
        }
        Err(error) => {
            // A full disk ends SQLite's whole transaction; then the cause is more telling than what follows from it.
            conn.execute("ROLLBACK TO SAVEPOINT job").await.map_err(|_| error.clone())?;
            conn.execute("RELEASE SAVEPOINT job").await.map_err(|_| error.clone())?;
            Ok(Err(error))
        }
    }
}

pub(super) async fn probe(conn: &mut AnyConnection, begin: &'static str) -> Result<(), StoreError> {
    conn.execute(begin).await?;
    meta::count_up(conn, meta::PROBES).await?;
    conn.execute("COMMIT").await?;
    Ok(())
}
