//! Reading everything that is held in memory.

use std::sync::Arc;

use identity::spiffe_id::SpiffeId;
use sqlx::AnyConnection;

use super::{StoreError, agents, entries, federation, meta};
use crate::registry::{Change, Registry};

pub(super) async fn registry(conn: &mut AnyConnection, server_id: SpiffeId) -> Result<Registry, StoreError> {
    let mut registry = Registry::new(server_id);
    for entry in entries::all(conn).await? {
        registry.apply(Change::EntrySet(Arc::new(entry)));
    }
    for agent in agents::all(conn).await? {
        registry.apply(Change::AgentSet(Arc::new(agent)));
    }
    for bundle in federation::all(conn).await? {
        registry.apply(Change::FederatedSet(Arc::new(bundle)));
    }
    for relationship in federation::relationships(conn).await? {
        registry.apply(Change::RelationshipSet(Arc::new(relationship)));
    }
    registry.apply(Change::EntriesRevision(meta::number(conn, meta::ENTRIES_REVISION).await?));
    Ok(registry)
}
