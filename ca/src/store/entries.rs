//! Rows of registration entries.

use std::collections::BTreeSet;
use std::sync::Arc;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Executor};

use super::audit::{self, AuditRecord};
use super::{Done, Lane, Store, StoreError, column, flag, meta};
use crate::entry::Entry;
use crate::registry::Change;

/// What became of an entry that was to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// It is there.
    New(Arc<Entry>),
    /// One that says the same was there before.
    Same(Arc<Entry>),
    /// The id is taken by one that says something else.
    IdTaken,
}

/// What became of an entry that was to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Updated {
    /// As it is now.
    Done(Arc<Entry>),
    /// Nobody knows the id.
    Unknown,
    /// Another entry says the same.
    Same(Arc<Entry>),
}

/// One of many changes.
pub(crate) enum EntryChange {
    /// By what sees the entry as it is in the database.
    Update(String, Box<dyn FnOnce(&mut Entry) + Send>),
    Create(Entry),
    Delete(String),
}

/// Why one of many changes cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Nobody knows the id.
    Unknown,
    /// Another entry says the same.
    Same,
    /// The id is taken by one that says something else.
    IdTaken,
}

/// What became of many changes: all of them, or the place of the first that cannot be, and none.
pub(crate) type Applied = Result<(), (usize, Hindrance)>;

impl Store {
    /// Makes all of these changes, each with its audit record, or none.
    pub(crate) async fn apply_entries(&self, changes: Vec<(EntryChange, AuditRecord)>) -> Result<Applied, StoreError> {
        self.write_in(Lane::New, move |conn| {
            Box::pin(async move {
                conn.execute("SAVEPOINT entries").await?;
                let mut known = Vec::new();
                for (at, (change, record)) in changes.into_iter().enumerate() {
                    match apply(conn, change).await? {
                        Ok(mut learned) => known.append(&mut learned),
                        Err(hindrance) => {
                            conn.execute("ROLLBACK TO SAVEPOINT entries").await?;
                            conn.execute("RELEASE SAVEPOINT entries").await?;
                            return Ok(Done::quiet(Err((at, hindrance))));
                        }
                    }
                    audit::insert(conn, &record).await?;
                }
                conn.execute("RELEASE SAVEPOINT entries").await?;
                Ok(Done::new(Ok(()), known))
            })
        })
        .await
    }

    /// Creates an entry unless one that says the same exists.
    pub(crate) async fn create_entry(&self, entry: Entry) -> Result<Created, StoreError> {
        self.write_in(Lane::New, move |conn| {
            Box::pin(async move {
                Ok(match create(conn, entry).await? {
                    (created, changes) if changes.is_empty() => Done::quiet(created),
                    (created, changes) => Done::new(created, changes),
                })
            })
        })
        .await
    }

    /// Changes an entry by `change`, which sees it as it is in the database.
    pub(crate) async fn update_entry(
        &self,
        id: &str,
        change: impl FnOnce(&mut Entry) + Send + 'static,
    ) -> Result<Updated, StoreError> {
        let id = id.to_owned();
        self.write(move |conn| {
            Box::pin(async move {
                Ok(match update(conn, &id, change).await? {
                    (updated, changes) if changes.is_empty() => Done::quiet(updated),
                    (updated, changes) => Done::new(updated, changes),
                })
            })
        })
        .await
    }

    /// Deletes an entry; `false` when it is not known.
    pub(crate) async fn delete_entry(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write(move |conn| {
            Box::pin(async move {
                Ok(match remove(conn, id).await? {
                    changes if changes.is_empty() => Done::quiet(false),
                    changes => Done::new(true, changes),
                })
            })
        })
        .await
    }
}

async fn apply(conn: &mut AnyConnection, change: EntryChange) -> Result<Result<Vec<Change>, Hindrance>, StoreError> {
    let (hindrance, changes) = match change {
        EntryChange::Update(id, change) => match update(conn, &id, change).await? {
            (Updated::Done(_), changes) => return Ok(Ok(changes)),
            (Updated::Unknown, changes) => (Hindrance::Unknown, changes),
            (Updated::Same(_), changes) => (Hindrance::Same, changes),
        },
        EntryChange::Create(entry) => match create(conn, entry).await? {
            (Created::New(_), changes) => return Ok(Ok(changes)),
            (Created::Same(_), changes) => (Hindrance::Same, changes),
            (Created::IdTaken, changes) => (Hindrance::IdTaken, changes),
        },
        EntryChange::Delete(id) => (Hindrance::Unknown, remove(conn, id).await?),
    };
    Ok(if changes.is_empty() { Err(hindrance) } else { Ok(changes) })
}

/// Changes an entry inside a transaction that is already open; no changes when it stays as it was.
async fn update(
    conn: &mut AnyConnection,
    id: &str,
    change: impl FnOnce(&mut Entry),
) -> Result<(Updated, Vec<Change>), StoreError> {
    let Some(mut entry) = one(conn, "id", id).await? else { return Ok((Updated::Unknown, Vec::new())) };
    change(&mut entry);
    if let Some(other) = one(conn, "fingerprint", &entry.fingerprint()).await?
        && other.id != id
    {
        return Ok((Updated::Same(Arc::new(other)), Vec::new()));
    }
    entry.revision += 1;
    delete(conn, id).await?;
    insert(conn, &entry).await?;
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    let entry = Arc::new(entry);
    let changes = vec![Change::EntrySet(entry.clone()), Change::EntriesRevision(revision)];
    Ok((Updated::Done(entry), changes))
}

/// Deletes an entry inside a transaction that is already open; no changes when it is not known.
async fn remove(conn: &mut AnyConnection, id: String) -> Result<Vec<Change>, StoreError> {
    if !delete(conn, &id).await? {
        return Ok(Vec::new());
    }
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    Ok(vec![Change::EntryGone(id), Change::EntriesRevision(revision)])
}

/// Creates `entry` inside a transaction that is already open.
pub(super) async fn create(conn: &mut AnyConnection, mut entry: Entry) -> Result<(Created, Vec<Change>), StoreError> {
    if let Some(same) = one(conn, "fingerprint", &entry.fingerprint()).await? {
        return Ok((Created::Same(Arc::new(same)), Vec::new()));
    }
    if one(conn, "id", &entry.id).await?.is_some() {
        return Ok((Created::IdTaken, Vec::new()));
    }
    entry.revision = 0;
    insert(conn, &entry).await?;
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    let entry = Arc::new(entry);
    let changes = vec![Change::EntrySet(entry.clone()), Change::EntriesRevision(revision)];
    Ok((Created::New(entry), changes))
}

/// Ends an entry inside a transaction that is already open: it issues no more, and is forgotten after a while. No change
/// when it has ended before; `None` when nobody knows it.
pub(super) async fn end(conn: &mut AnyConnection, id: &str, now: i64) -> Result<Option<Vec<Change>>, StoreError> {
    let Some(mut entry) = one(conn, "id", id).await? else { return Ok(None) };
    if !entry.is_live(now) {
        return Ok(Some(Vec::new()));
    }
    (entry.expires_at, entry.revision) = (now, entry.revision + 1);
    delete(conn, id).await?;
    insert(conn, &entry).await?;
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    Ok(Some(vec![Change::EntrySet(Arc::new(entry)), Change::EntriesRevision(revision)]))
}

pub(super) async fn all(conn: &mut AnyConnection) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(format!("SELECT {COLUMNS} FROM entry"))).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

/// `by` is a column with unique values.
pub(super) async fn one(conn: &mut AnyConnection, by: &'static str, value: &str) -> Result<Option<Entry>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM entry WHERE {by} = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(value.to_owned()).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

async fn delete(conn: &mut AnyConnection, id: &str) -> Result<bool, StoreError> {
    let gone = sqlx::query("DELETE FROM entry WHERE id = $1").bind(id.to_owned()).execute(conn).await?;
    Ok(gone.rows_affected() == 1)
}

async fn insert(conn: &mut AnyConnection, entry: &Entry) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO entry (fingerprint, {COLUMNS}) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
    );
    let domains: Vec<&str> = entry.federates_with.iter().map(TrustDomain::as_str).collect();
    sqlx::query(AssertSqlSafe(sql))
        .bind(entry.fingerprint())
        .bind(entry.id.clone())
        .bind(entry.spiffe_id.to_string())
        .bind(entry.parent_id.to_string())
        .bind(list(&entry.selectors)?)
        .bind(list(&domains)?)
        .bind(list(&entry.dns_names)?)
        .bind(entry.hint.clone())
        .bind(entry.x509_svid_ttl)
        .bind(entry.jwt_svid_ttl)
        .bind(flag(entry.admin))
        .bind(flag(entry.downstream))
        .bind(flag(entry.store_svid))
        .bind(flag(entry.no_prefetch))
        .bind(flag(entry.jwt_jti))
        .bind(entry.expires_at)
        .bind(entry.revision)
        .bind(entry.created_at)
        .execute(conn)
        .await?;
    Ok(())
}

fn list<T: serde::Serialize + ?Sized>(values: &T) -> Result<String, StoreError> {
    serde_json::to_string(values).map_err(|_| StoreError::Damaged { what: WHAT })
}

fn read(row: &AnyRow) -> Result<Entry, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let damaged = || StoreError::Damaged { what: WHAT };
    let domains: Vec<String> = serde_json::from_str(&text("federates_with")?).map_err(|_| damaged())?;
    let domains: Result<BTreeSet<_>, _> = domains.iter().map(|name| TrustDomain::parse(name)).collect();
    Ok(Entry {
        id: text("id")?,
        spiffe_id: SpiffeId::parse(&text("spiffe_id")?).map_err(|_| damaged())?,
        parent_id: SpiffeId::parse(&text("parent_id")?).map_err(|_| damaged())?,
        selectors: serde_json::from_str(&text("selectors")?).map_err(|_| damaged())?,
        federates_with: domains.map_err(|_| damaged())?,
        dns_names: serde_json::from_str(&text("dns_names")?).map_err(|_| damaged())?,
        hint: text("hint")?,
        x509_svid_ttl: int("x509_svid_ttl")?,
        jwt_svid_ttl: int("jwt_svid_ttl")?,
        admin: int("admin")? != 0,
        downstream: int("downstream")? != 0,
        store_svid: int("store_svid")? != 0,
        no_prefetch: int("no_prefetch")? != 0,
        jwt_jti: int("jwt_jti")? != 0,
        expires_at: int("expires_at")?,
        revision: int("revision")?,
        created_at: int("created_at")?,
    })
}

const WHAT: &str = "registration entry";
const COLUMNS: &str = "id, spiffe_id, parent_id, selectors, federates_with, dns_names, hint, x509_svid_ttl, \
                       jwt_svid_ttl, admin, downstream, store_svid, no_prefetch, jwt_jti, expires_at, revision, \
                       created_at";
