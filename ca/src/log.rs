//! The transparency log: what it says of itself, and proofs out of what the writer has stored (RFC 6962).
//!
//! The writer appends in the transaction of the issuance records (`store/log.rs`); here it is only read. A proof reads the
//! few subtree hashes that it consists of, so its cost does not grow with the log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::digest::hex;
use identity::seal::SealKey;
use identity::transparency::{Hash, LogKey, Plan, SignedTreeHead, TransparencyError, TreeHead};

use crate::authorities::AuthoritiesError;
use crate::certifier::{Certifier, secs};
use crate::refusal::Refusal;
use crate::store::{Recorded, Store, StoreError};

/// The log's voice.
#[derive(Debug)]
pub(crate) struct TransparencyLog {
    pub(crate) key: LogKey,
}

/// A leaf, with its record as long as that is kept.
#[derive(Debug)]
pub(crate) struct LogEntry {
    pub(crate) index: u64,
    pub(crate) hash: Hash,
    pub(crate) record: Option<Recorded>,
}

impl TransparencyLog {
    /// Reads the log's key, or makes it when there is none yet.
    pub(crate) async fn load(store: &Store, seal_key: &SealKey, now: i64) -> Result<Self, AuthoritiesError> {
        if store.log_key().await?.is_none() {
            create(store, seal_key, now).await?;
        }
        let (id, sealed) = store.log_key().await?.ok_or(AuthoritiesError::Missing("key of the transparency log"))?;
        Ok(Self { key: open_key(seal_key, &id, &sealed)? })
    }

    /// A signed head of the log as of the last commit.
    pub(crate) async fn head(&self, certifier: &Certifier) -> Result<SignedTreeHead, Refusal> {
        let frontier = certifier.store.log_frontier().await?;
        let timestamp_ms = u64::try_from(secs(certifier.now())).unwrap_or(0) * 1_000;
        let head = TreeHead { size: frontier.size(), root: frontier.root(), timestamp_ms };
        self.key.sign(head).map_err(|_| Refusal::Signing)
    }

    /// The proof that the leaf at `index` is in the tree of `size` leaves.
    pub(crate) async fn inclusion(&self, store: &Store, index: u64, size: u64) -> Result<Vec<Hash>, Refusal> {
        assemble(store, &Plan::inclusion(index, size)?).await
    }

    /// The proof that the tree of `new` leaves continues the tree of `old`.
    pub(crate) async fn consistency(&self, store: &Store, old: u64, new: u64) -> Result<Vec<Hash>, Refusal> {
        assemble(store, &Plan::consistency(old, new)?).await
    }

    /// Leaves from `first` on, at most `limit` and [`ENTRIES_MAX`].
    pub(crate) async fn entries(&self, store: &Store, first: u64, limit: u32) -> Result<Vec<LogEntry>, Refusal> {
        let limit = if limit == 0 { ENTRIES_MAX } else { limit.min(ENTRIES_MAX) };
        let hashes = store.log_leaves(first, u64::from(limit)).await?;
        let records = store.issued_at_log(first, first.saturating_add(u64::from(limit))).await?;
        let mut records = records.into_iter().peekable();
        let entry = |(index, hash): (u64, Hash)| {
            let place = i64::try_from(index).unwrap_or(i64::MAX);
            let record = records.next_if(|record| record.issuance.log_index == place);
            LogEntry { index, hash, record }
        };
        Ok((first..).zip(hashes).map(entry).collect())
    }

    /// The leaf of one SVID. A record that is no longer what was logged is said to be so.
    pub(crate) async fn entry_of(&self, store: &Store, serial: &str) -> Result<LogEntry, Refusal> {
        let record = store.issued_one(serial).await?.ok_or(Refusal::IssuanceUnknown)?;
        let index = u64::try_from(record.issuance.log_index).map_err(|_| Refusal::IssuanceUnknown)?;
        let entry = self.entry_at(store, index).await?;
        if record.leaf().hash() != entry.hash {
            tracing::error!(reason = "LOG_LEAVES_CHANGED", serial, index, "an issuance record was changed");
            return Err(TransparencyError::Record(index).into());
        }
        Ok(entry)
    }

    /// The leaf at a place.
    pub(crate) async fn entry_at(&self, store: &Store, index: u64) -> Result<LogEntry, Refusal> {
        let size = store.log_frontier().await?.size();
        let unknown = TransparencyError::NoSuchLeaf { index, size };
        if index >= size {
            return Err(unknown.into());
        }
        Ok(self.entries(store, index, 1).await?.pop().ok_or(unknown)?)
    }
}

async fn create(store: &Store, seal_key: &SealKey, now: i64) -> Result<(), AuthoritiesError> {
    let key = LogKey::generate()?;
    let id = hex(&key.public().id());
    let sealed = STANDARD.encode(seal_key.seal(&purpose(&id), key.pkcs8_der())?);
    store.add_log_key(&id, &sealed, now).await?;
    tracing::info!(log_id = id, "new transparency log made");
    Ok(())
}

async fn assemble(store: &Store, plan: &Plan) -> Result<Vec<Hash>, Refusal> {
    let nodes = store.log_nodes(plan.nodes()).await?;
    let damaged = StoreError::Damaged { what: "transparency log" };
    plan.assemble(|node| nodes.get(&node).copied()).ok_or(Refusal::Store(damaged))
}

fn open_key(seal_key: &SealKey, id: &str, sealed: &str) -> Result<LogKey, AuthoritiesError> {
    let sealed = STANDARD.decode(sealed).map_err(|_| AuthoritiesError::Unusable("key of the transparency log"))?;
    Ok(LogKey::from_pkcs8_der(&seal_key.open(&purpose(id), &sealed)?)?)
}

/// Binds the sealed key to its row and its use.
fn purpose(id: &str) -> Vec<u8> {
    format!("log/{id}").into_bytes()
}

/// The most leaves of one answer.
pub(crate) const ENTRIES_MAX: u32 = 1_000;

#[cfg(test)]
mod tests;
