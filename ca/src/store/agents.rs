//! Rows of nodes.

use std::sync::Arc;

use identity::spiffe_id::SpiffeId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::{Done, Issuance, Store, StoreError, column, flag, number};
use crate::agent::Agent;
use crate::registry::Change;

impl Store {
    /// Changes a node by `change`, which sees it as it is in the database; `None` when it is not known.
    pub(crate) async fn change_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut Agent) + Send + 'static,
    ) -> Result<Option<Arc<Agent>>, StoreError> {
        let id = id.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let Some(mut agent) = one(conn, &id).await? else { return Ok(Done::quiet(None)) };
                change(&mut agent);
                put(conn, &agent).await?;
                let agent = Arc::new(agent);
                Ok(Done::new(Some(agent.clone()), vec![Change::AgentSet(agent)]))
            })
        })
        .await
    }

    /// All nodes as the database has them at this moment, whatever other servers wrote.
    pub(crate) async fn agents_now(&self) -> Result<Vec<Agent>, StoreError> {
        let mut conn = self.pool.acquire().await?;
        all(&mut conn).await
    }

    /// Changes a node by `change` for the SVID that `record` is about: both are written, or nothing; `None` when the node
    /// is not known or banned.
    pub(crate) async fn renew_agent(
        &self,
        id: &SpiffeId,
        record: Issuance,
        change: impl FnOnce(&mut Agent) + Send + 'static,
    ) -> Result<Option<Arc<Agent>>, StoreError> {
        self.renew_agent_if(id, record, |_| true, change).await
    }

    /// The same for a node that is still as `admits` wants it at the moment of writing.
    pub(crate) async fn renew_agent_if(
        &self,
        id: &SpiffeId,
        record: Issuance,
        admits: impl FnOnce(&Agent) -> bool + Send + 'static,
        change: impl FnOnce(&mut Agent) + Send + 'static,
    ) -> Result<Option<Arc<Agent>>, StoreError> {
        let id = id.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let known = one(conn, &id).await?.filter(|agent| !agent.banned && admits(agent));
                let Some(mut agent) = known else { return Ok(Done::quiet(None)) };
                change(&mut agent);
                put(conn, &agent).await?;
                let agent = Arc::new(agent);
                Ok(Done::new(Some(agent.clone()), vec![Change::AgentSet(agent)]).issuing(record))
            })
        })
        .await
    }

    /// Forgets a node; `false` when it is not known.
    pub(crate) async fn delete_agent(&self, id: &SpiffeId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let gone = sqlx::query("DELETE FROM agent WHERE id = $1").bind(id.to_string()).execute(conn).await?;
                if gone.rows_affected() == 0 {
                    return Ok(Done::quiet(false));
                }
                Ok(Done::new(true, vec![Change::AgentGone(id)]))
            })
        })
        .await
    }
}

pub(super) async fn all(conn: &mut AnyConnection) -> Result<Vec<Agent>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM agent");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

pub(super) async fn one(conn: &mut AnyConnection, id: &SpiffeId) -> Result<Option<Agent>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM agent WHERE id = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

/// Bans a node inside a transaction that is already open. No change when it was banned before; `None` when nobody knows it.
pub(super) async fn ban(conn: &mut AnyConnection, id: &SpiffeId) -> Result<Option<Vec<Change>>, StoreError> {
    let Some(mut agent) = one(conn, id).await? else { return Ok(None) };
    if agent.banned {
        return Ok(Some(Vec::new()));
    }
    agent.banned = true;
    agent.serial.clear();
    agent.new_serial.clear();
    put(conn, &agent).await?;
    Ok(Some(vec![Change::AgentSet(Arc::new(agent))]))
}

/// Writes a node, known or not.
pub(super) async fn put(conn: &mut AnyConnection, agent: &Agent) -> Result<(), StoreError> {
    let conflict = "UPDATE SET attestation_type = excluded.attestation_type, serial = excluded.serial, \
                    expires_at = excluded.expires_at, new_serial = excluded.new_serial, \
                    new_expires_at = excluded.new_expires_at, selectors = excluded.selectors, \
                    banned = excluded.banned, can_reattest = excluded.can_reattest, version = excluded.version, \
                    bundle_sequence = excluded.bundle_sequence, attested_at = excluded.attested_at, \
                    bundle_since = excluded.bundle_since, seen_at = excluded.seen_at";
    insert(conn, agent, conflict).await.map(drop)
}

/// Writes a node that must not be known; `false` when it is.
pub(super) async fn put_new(conn: &mut AnyConnection, agent: &Agent) -> Result<bool, StoreError> {
    Ok(insert(conn, agent, "NOTHING").await? == 1)
}

async fn insert(conn: &mut AnyConnection, agent: &Agent, on_conflict: &str) -> Result<u64, StoreError> {
    let sql = format!(
        "INSERT INTO agent ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
         ON CONFLICT (id) DO {on_conflict}"
    );
    let selectors = serde_json::to_string(&agent.selectors).map_err(|_| StoreError::Damaged { what: WHAT })?;
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(agent.id.to_string())
        .bind(agent.attestation_type.clone())
        .bind(agent.serial.clone())
        .bind(agent.expires_at)
        .bind(agent.new_serial.clone())
        .bind(agent.new_expires_at)
        .bind(selectors)
        .bind(flag(agent.banned))
        .bind(flag(agent.can_reattest))
        .bind(agent.version.clone())
        .bind(number(agent.bundle_sequence))
        .bind(agent.attested_at)
        .bind(agent.bundle_since)
        .bind(agent.seen_at)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

fn read(row: &AnyRow) -> Result<Agent, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let damaged = || StoreError::Damaged { what: WHAT };
    Ok(Agent {
        id: SpiffeId::parse(&text("id")?).map_err(|_| damaged())?,
        attestation_type: text("attestation_type")?,
        serial: text("serial")?,
        expires_at: int("expires_at")?,
        new_serial: text("new_serial")?,
        new_expires_at: int("new_expires_at")?,
        selectors: serde_json::from_str(&text("selectors")?).map_err(|_| damaged())?,
        banned: int("banned")? != 0,
        can_reattest: int("can_reattest")? != 0,
        version: text("version")?,
        bundle_sequence: int("bundle_sequence")?.unsigned_abs(),
        attested_at: int("attested_at")?,
        bundle_since: int("bundle_since")?,
        seen_at: int("seen_at")?,
    })
}

const WHAT: &str = "node";
const COLUMNS: &str = "id, attestation_type, serial, expires_at, new_serial, new_expires_at, selectors, banned, \
                       can_reattest, version, bundle_sequence, attested_at, bundle_since, seen_at";
