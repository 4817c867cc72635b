//! Rows of calls that wait for a second person's approval. Each step is written with its record in the audit trail.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::audit::{self, AuditRecord};
use super::{Done, Store, StoreError, column};
use crate::rights::approvals::APPROVALS_MAX;

/// A call that waits, or is approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Approval {
    pub(crate) id: String,
    pub(crate) verb: String,
    pub(crate) call: String,
    pub(crate) digest: String,
    pub(crate) requester: String,
    pub(crate) source: String,
    pub(crate) request: String,
    /// Empty: nobody yet.
    pub(crate) approver: String,
    /// Unix seconds.
    pub(crate) requested_at: i64,
    pub(crate) expires_at: i64,
}

/// What became of a call that needs approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was approved; the approval is used up now.
    Granted { approver: String },
    /// It waits under this id.
    Waits { id: String },
    /// Too many wait.
    Full,
}

/// What became of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    Done,
    Unknown,
    /// Who asks does not decide.
    SamePerson,
    /// Somebody has approved it already.
    Already,
}

impl Store {
    /// Uses up the approval of an equal call of the same caller, or writes down that `asked` waits. `records` are for the
    /// request and for the use.
    pub(crate) async fn ask_approval(
        &self,
        asked: Approval,
        records: [AuditRecord; 2],
        now: i64,
    ) -> Result<Asked, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let [requested, mut used] = records;
                forget(conn, now).await?;
                let sql = format!("SELECT {COLUMNS} FROM approval WHERE digest = $1 AND requester = $2");
                let query = sqlx::query(AssertSqlSafe(sql)).bind(asked.digest.clone()).bind(asked.requester.clone());
                let known = query.fetch_optional(&mut *conn).await?.as_ref().map(read).transpose()?;
                match known {
                    Some(known) if known.approver.is_empty() => Ok(Done::quiet(Asked::Waits { id: known.id })),
                    Some(known) => {
                        delete(conn, &known.id).await?;
                        used.target = known.id;
                        used.detail = format!("approved by {}; {}", known.approver, used.detail);
                        audit::insert(conn, &used).await?;
                        Ok(Done::written(Asked::Granted { approver: known.approver }))
                    }
                    None if waiting(conn).await? >= APPROVALS_MAX => Ok(Done::quiet(Asked::Full)),
                    None => {
                        let id = asked.id.clone();
                        insert(conn, asked).await?;
                        audit::insert(conn, &requested).await?;
                        Ok(Done::written(Asked::Waits { id }))
                    }
                }
            })
        })
        .await
    }

    /// Approves, or (with `approve` false) forgets, a call that waits.
    pub(crate) async fn decide_approval(
        &self,
        id: &str,
        person: &str,
        approve: bool,
        now: i64,
    ) -> Result<Decided, StoreError> {
        let (id, person) = (id.to_owned(), person.to_owned());
        self.write(move |conn| {
            Box::pin(async move {
                let Some(found) = one(conn, &id).await?.filter(|found| found.expires_at > now) else {
                    return Ok(Done::quiet(Decided::Unknown));
                };
                if found.requester == person && approve {
                    return Ok(Done::quiet(Decided::SamePerson));
                }
                if !found.approver.is_empty() && approve {
                    return Ok(Done::quiet(Decided::Already));
                }
                if approve {
                    let sql = "UPDATE approval SET approver = $1 WHERE id = $2";
                    sqlx::query(sql).bind(person).bind(id).execute(conn).await?;
                } else {
                    delete(conn, &id).await?;
                }
                Ok(Done::written(Decided::Done))
            })
        })
        .await
    }

    /// What waits or is approved, oldest first.
    pub(crate) async fn approvals(&self, now: i64) -> Result<Vec<Approval>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM approval WHERE expires_at > $1 ORDER BY requested_at, id");
        sqlx::query(AssertSqlSafe(sql)).bind(now).fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

async fn forget(conn: &mut AnyConnection, now: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM approval WHERE expires_at <= $1").bind(now).execute(conn).await?;
    Ok(())
}

async fn waiting(conn: &mut AnyConnection) -> Result<usize, StoreError> {
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM approval").fetch_one(conn).await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

async fn one(conn: &mut AnyConnection, id: &str) -> Result<Option<Approval>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM approval WHERE id = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.to_owned()).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

async fn delete(conn: &mut AnyConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM approval WHERE id = $1").bind(id.to_owned()).execute(conn).await?;
    Ok(())
}

async fn insert(conn: &mut AnyConnection, approval: Approval) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO approval ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");
    sqlx::query(AssertSqlSafe(sql))
        .bind(approval.id)
        .bind(approval.verb)
        .bind(approval.call)
        .bind(approval.digest)
        .bind(approval.requester)
        .bind(approval.source)
        .bind(approval.request)
        .bind(approval.approver)
        .bind(approval.requested_at)
        .bind(approval.expires_at)
        .execute(conn)
        .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<Approval, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    Ok(Approval {
        id: text("id")?,
        verb: text("verb")?,
        call: text("call")?,
        digest: text("digest")?,
        requester: text("requester")?,
        source: text("source")?,
        request: text("request")?,
        approver: text("approver")?,
        requested_at: column(row, "requested_at", WHAT)?,
        expires_at: column(row, "expires_at", WHAT)?,
    })
}

const WHAT: &str = "approval";
const COLUMNS: &str = "id, verb, call, digest, requester, source, request, approver, requested_at, expires_at";
