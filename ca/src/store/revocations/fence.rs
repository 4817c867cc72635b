//! The fence between a revocation and what was signed before it: a record that comes late is refused, so that nothing of
//! a revoked entry or node is handed out that its revocation did not see.

use std::collections::BTreeMap;

use identity::spiffe_id::SpiffeId;
use sqlx::{AnyConnection, Row};

use crate::store::{Issuance, StoreError, agents, entries};

/// Entries and nodes that were revoked lately, and when.
pub(in crate::store) struct Fence {
    entries: BTreeMap<String, i64>,
    nodes: BTreeMap<String, i64>,
}

/// Reads the fence as it stands in the open transaction; it is all but always empty.
pub(in crate::store) async fn fence(conn: &mut AnyConnection) -> Result<Fence, StoreError> {
    let mut fence = Fence { entries: BTreeMap::new(), nodes: BTreeMap::new() };
    for row in sqlx::query("SELECT kind, name, at FROM revoked_source").fetch_all(conn).await? {
        let (kind, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let names = if kind == "entry" { &mut fence.entries } else { &mut fence.nodes };
        names.insert(name, row.try_get(2)?);
    }
    Ok(fence)
}

impl Fence {
    /// Whether one of the records is for an entry that has ended, or a node that is banned, and not admitted again.
    pub(in crate::store) async fn stops(
        &self,
        conn: &mut AnyConnection,
        rows: &[Issuance],
    ) -> Result<bool, StoreError> {
        for row in rows {
            if let Some(at) = self.entries.get(&row.entry_id) {
                let entry = entries::one(conn, "id", &row.entry_id).await?;
                if entry.is_none_or(|entry| !entry.is_live(*at)) {
                    return Ok(true);
                }
            }
            if self.nodes.contains_key(&row.caller) {
                let id = SpiffeId::parse(&row.caller).map_err(|_| StoreError::Damaged { what: "revoked node" })?;
                if agents::one(conn, &id).await?.is_none_or(|agent| agent.banned) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// How long the fence stands after what it guards against: far longer than a signature is on its way.
pub(super) const KEPT_SECS: i64 = 3_600;
