//! Facts about the database itself.

use sqlx::{AnyConnection, Row};

use super::StoreError;

/// The trust domain whose authority this is.
pub(super) const TRUST_DOMAIN: &str = "trust_domain";
/// Grows with every change of any entry.
pub(super) const ENTRIES_REVISION: &str = "entries_revision";
/// Grows with every change of the trust bundle.
pub(super) const BUNDLE_SEQUENCE: &str = "bundle_sequence";
/// Grows with every change of an authority or a rotation.
pub(super) const AUTHORITIES_REVISION: &str = "authorities_revision";
/// A known text, sealed: tells a wrong key-encryption key at once.
pub(super) const KEY_CHECK: &str = "key_check";

/// The number of the newest revocation lists.
pub(super) const CRL_NUMBER: &str = "crl_number";
/// The number of the last line of the table `change`.
pub(super) const CHANGE_NUMBER: &str = "change_number";
/// There when a restore of an earlier version, which was not one transaction, did not end.
pub(super) const RESTORING: &str = "restoring";
/// Written to learn whether the database takes writes.
pub(super) const PROBES: &str = "probes";

pub(super) async fn read(conn: &mut AnyConnection, name: &str) -> Result<Option<String>, StoreError> {
    let row = sqlx::query("SELECT value FROM meta WHERE name = $1").bind(name).fetch_optional(conn).await?;
    row.map(|row| row.try_get(0)).transpose().map_err(StoreError::from)
}

pub(super) async fn write(conn: &mut AnyConnection, name: &str, value: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    sqlx::query(sql).bind(name).bind(value).execute(conn).await?;
    Ok(())
}

/// A counter; 0 when it was never set.
pub(super) async fn number(conn: &mut AnyConnection, name: &str) -> Result<u64, StoreError> {
    let text = read(conn, name).await?.unwrap_or_else(|| "0".into());
    text.parse().map_err(|_| StoreError::Damaged { what: "counter" })
}

/// Counts one further and answers the new number.
pub(super) async fn count_up(conn: &mut AnyConnection, name: &str) -> Result<u64, StoreError> {
    let next = number(conn, name).await? + 1;
    write(conn, name, &next.to_string()).await?;
    Ok(next)
}
