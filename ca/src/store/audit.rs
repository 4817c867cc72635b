//! The audit trail: who did what, from where, and what was refused.
//!
//! An act is written in the transaction of its effect ([`Store::audited`]); an act without effect leaves no row here.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::{Done, Store, StoreError, column};

/// One act, or several refusals of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditRecord {
    /// Milliseconds since 1970 (12 hex digits), a number, randomness: in the order of time.
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) at: i64,
    pub(crate) actor: String,
    pub(crate) source: String,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) spiffe_id: String,
    /// Reason code of a refusal; empty for what was done.
    pub(crate) reason: String,
    pub(crate) detail: String,
    /// How often, from 1.
    pub(crate) times: i64,
}

/// Which records are wanted; empty texts and zeros ask for nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) since: i64,
    pub(crate) until: i64,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) spiffe_id: String,
    pub(crate) target: String,
}

impl AuditRecord {
    pub(crate) fn is_refusal(&self) -> bool {
        !self.reason.is_empty()
    }
}

impl Store {
    /// The same store, whose next write also writes `record`, if it has an effect.
    pub(crate) fn audited(&self, record: AuditRecord) -> Self {
        Self { audit: Some(record.into()), ..self.clone() }
    }

    /// Writes records that belong to no other write.
    pub(crate) async fn write_audit(&self, records: Vec<AuditRecord>) -> Result<(), StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                for record in &records {
                    insert(conn, record).await?;
                }
                Ok(Done::quiet(()))
            })
        })
        .await
    }

    /// The newest records that fit, newest first, at most `limit`.
    pub(crate) async fn audit(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM audit WHERE ($1 = 0 OR at >= $1) AND ($2 = 0 OR at < $2) \
             AND ($3 = '' OR actor = $3) AND ($4 = '' OR action = $4 OR action LIKE $4 || '.%') \
             AND ($5 = '' OR spiffe_id = $5) AND ($6 = '' OR target = $6) ORDER BY id DESC LIMIT $7"
        );
        let AuditFilter { since, until, actor, action, spiffe_id, target } = filter.clone();
        let query = sqlx::query(AssertSqlSafe(sql)).bind(since).bind(until).bind(actor).bind(action);
        let query = query.bind(spiffe_id).bind(target).bind(i64::from(limit));
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// Forgets what is older than `moment`, and the oldest refusals beyond `refusals_max`: a flood cannot fill the disk.
    pub(crate) async fn forget_audit(&self, moment: i64, refusals_max: u32) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let old = sqlx::query("DELETE FROM audit WHERE at < $1").bind(moment).execute(&mut *conn).await?;
                let sql = "DELETE FROM audit WHERE result = 'refused' AND id <= COALESCE((SELECT id FROM audit \
                           WHERE result = 'refused' ORDER BY id DESC LIMIT 1 OFFSET $1), '')";
                let many = sqlx::query(sql).bind(i64::from(refusals_max)).execute(conn).await?;
                Ok(Done::quiet(old.rows_affected() + many.rows_affected()))
            })
        })
        .await
    }
}

pub(super) async fn insert(conn: &mut AnyConnection, record: &AuditRecord) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO audit ({COLUMNS}, result) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)");
    sqlx::query(AssertSqlSafe(sql))
        .bind(record.id.clone())
        .bind(record.at)
        .bind(record.actor.clone())
        .bind(record.source.clone())
        .bind(record.action.clone())
        .bind(record.target.clone())
        .bind(record.spiffe_id.clone())
        .bind(record.reason.clone())
        .bind(record.detail.clone())
        .bind(record.times)
        .bind(if record.is_refusal() { "refused" } else { "done" })
        .execute(conn)
        .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<AuditRecord, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    Ok(AuditRecord {
        id: text("id")?,
        at: column(row, "at", WHAT)?,
        actor: text("actor")?,
        source: text("source")?,
        action: text("action")?,
        target: text("target")?,
        spiffe_id: text("spiffe_id")?,
        reason: text("reason")?,
        detail: text("detail")?,
        times: column(row, "times", WHAT)?,
    })
}

const WHAT: &str = "audit record";
const COLUMNS: &str = "id, at, actor, source, action, target, spiffe_id, reason, detail, times";
