//! What happened in each rotation: one row a step, written in the step's own transaction, for the receipt.

use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use super::{AuthorityKind, Done, Store, StoreError, column, number};

/// A step that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TakenStep {
    pub(crate) kind: AuthorityKind,
    /// When the rotation began, Unix seconds.
    pub(crate) started_at: i64,
    pub(crate) step: String,
    /// Unix seconds.
    pub(crate) at: i64,
    /// Replaced by whoever asked for it, when somebody did.
    pub(crate) actor: String,
    /// The authority, or the node that was waived.
    pub(crate) target: String,
    /// The bundle that every node had to enforce; 0: none.
    pub(crate) bundle_sequence: u64,
    pub(crate) acknowledged: Vec<Acknowledgement>,
    pub(crate) waived: Vec<String>,
}

/// A node that enforced the bundle that was needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acknowledgement {
    pub(crate) node: String,
    pub(crate) bundle_sequence: u64,
    /// Unix seconds.
    pub(crate) since: i64,
}

/// Writes the row; the caller's transaction is that of the step.
pub(super) async fn insert(conn: &mut AnyConnection, step: TakenStep) -> Result<(), StoreError> {
    let json = |error| {
        tracing::error!(%error, "a step of a rotation cannot be written down");
        StoreError::Damaged { what: WHAT }
    };
    let acknowledged = serde_json::to_string(&step.acknowledged).map_err(json)?;
    let waived = serde_json::to_string(&step.waived).map_err(json)?;
    let sql = "INSERT INTO rotation_step \
               (kind, started_at, number, step, at, actor, target, bundle_sequence, acknowledged, waived) \
               SELECT $1, $2, COALESCE(MAX(number), 0) + 1, $3, $4, $5, $6, $7, $8, $9 FROM rotation_step \
               WHERE kind = $10 AND started_at = $11";
    let query = sqlx::query(sql).bind(step.kind.as_str()).bind(step.started_at).bind(step.step).bind(step.at);
    let query = query.bind(step.actor).bind(step.target).bind(number(step.bundle_sequence)).bind(acknowledged);
    query.bind(waived).bind(step.kind.as_str()).bind(step.started_at).execute(conn).await?;
    Ok(())
}

impl Store {
    /// The steps of the newest rotation of a kind, or of the one that began at `started_at` (0: the newest), in order.
    pub(crate) async fn rotation_steps(
        &self,
        kind: AuthorityKind,
        started_at: i64,
    ) -> Result<Vec<TakenStep>, StoreError> {
        let sql = "SELECT started_at, step, at, actor, target, bundle_sequence, acknowledged, waived FROM rotation_step \
                   WHERE kind = $1 AND started_at = \
                   (SELECT MAX(started_at) FROM rotation_step WHERE kind = $2 AND ($3 = 0 OR started_at = $4)) \
                   ORDER BY number";
        let query = sqlx::query(sql).bind(kind.as_str()).bind(kind.as_str()).bind(started_at).bind(started_at);
        query.fetch_all(&self.pool).await?.iter().map(|row| read(row, kind)).collect()
    }

    /// Forgets rotations that began before `moment`.
    pub(crate) async fn forget_rotations(&self, moment: i64) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM rotation_step WHERE started_at < $1";
                let gone = sqlx::query(sql).bind(moment).execute(conn).await?.rows_affected();
                Ok(Done::quiet(gone))
            })
        })
        .await
    }
}

fn read(row: &AnyRow, kind: AuthorityKind) -> Result<TakenStep, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let damaged = |_| StoreError::Damaged { what: WHAT };
    Ok(TakenStep {
        kind,
        started_at: int("started_at")?,
        step: text("step")?,
        at: int("at")?,
        actor: text("actor")?,
        target: text("target")?,
        bundle_sequence: int("bundle_sequence")?.unsigned_abs(),
        acknowledged: serde_json::from_str(&text("acknowledged")?).map_err(damaged)?,
        waived: serde_json::from_str(&text("waived")?).map_err(damaged)?,
    })
}

const WHAT: &str = "step of a rotation";
