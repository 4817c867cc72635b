//! Backup and restore: everything in the database as lines of JSON, the same from SQLite and from PostgreSQL.
//!
//! The first line says what it is, the last one how much it was and proves with the key-encryption key that nothing was
//! changed; between them stands a line for each row. Keys of authorities stay sealed, so that a backup is worth nothing
//! without the key file, which is to be kept apart from it.
//!
//! A backup is a moment of the database, taken while the authority runs. What was handed out later is unknown to it;
//! therefore a restore forgets join tokens (they may be used by now), lets the numbers of bundle and entries jump ahead
//! of all that the old server can have told, and gives the transparency log a new key: its old heads may speak of
//! leaves that are lost. A move, where nothing happened after the backup, keeps all that.

mod error;
mod file;
mod restore;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use identity::digest::hex;
use identity::spiffe_id::TrustDomain;
use runtime::clock::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use crate::custody::kek::Kek;
use crate::settings::Settings;
use crate::store::{Address, sound};
use file::Output;
use tables::Table;

pub use error::BackupError;
pub use restore::{RestoreOptions, restore};

/// What a backup holds, or what was restored.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    /// Whose authority it is.
    pub trust_domain: TrustDomain,
    /// Layout of the database.
    pub schema: i64,
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// How many rows.
    pub rows: u64,
}

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kasbah_backup: u32,
    trust_domain: TrustDomain,
    schema: i64,
    made_at: String,
    /// How the passphrase was stretched; none where there is a key file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stretching: Option<String>,
}

/// A row.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    table: String,
    row: Map<String, Value>,
}

/// The last line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    rows: u64,
    sha256: String,
    /// The digest, sealed by the key-encryption key.
    seal: String,
}

/// Writes everything in the database of these settings to `file`, whole or not at all. The authority may run.
///
/// # Errors
/// When the database cannot be read, the key does not belong to it, or the file cannot be written.
pub async fn backup(settings: &Settings, file: &Path) -> Result<BackupReport, BackupError> {
    let address = Address::parse(&settings.database_url())?;
    let mut conn = sound(&address).await?;
    let snapshot = if address.is_sqlite() { "BEGIN" } else { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" };
    conn.execute(snapshot).await?;
    let found = found(&mut conn, &address).await?.ok_or(BackupError::Empty)?;
    if found.trust_domain != settings.trust_domain.as_str() {
        return Err(BackupError::OtherTrustDomain { found: found.trust_domain, wanted: settings.trust_domain.clone() });
    }
    let kek = Kek::open(settings, Some(&found.key_check))?;
    let made_at = rfc3339(runtime::clock::now());
    let (trust_domain, schema) = (settings.trust_domain.clone(), found.schema);
    let header = Header { kasbah_backup: FORMAT, trust_domain, schema, made_at, stretching: kek.stretching() };
    let mut out = Output::create(file)?;
    out.line(&header)?;
    let mut rows = 0;
    for table in tables::all(&mut conn, &address).await? {
        rows += dump(&mut conn, &table, &mut out).await?;
    }
    conn.close().await?;
    let digest = out.digest();
    let seal = STANDARD.encode(kek.key.seal(SEAL_PURPOSE, &digest).map_err(|_| BackupError::Sealing)?);
    out.line(&End { rows, sha256: hex(&digest), seal })?;
    out.finish()?;
    let Header { trust_domain, schema, made_at, .. } = header;
    Ok(BackupReport { trust_domain, schema, made_at, rows })
}

async fn dump(conn: &mut AnyConnection, table: &Table, out: &mut Output) -> Result<u64, BackupError> {
    let sql = format!("SELECT {} FROM {} ORDER BY 1", table.column_list(), table.name);
    let mut found = sqlx::query(AssertSqlSafe(sql)).fetch(conn);
    let mut rows = 0;
    while let Some(row) = found.try_next().await? {
        out.line(&Line { table: table.name.clone(), row: table.read(&row)? })?;
        rows += 1;
    }
    Ok(rows)
}

/// Facts of a database that holds an authority.
struct Found {
    trust_domain: String,
    schema: i64,
    key_check: String,
}

/// What is there; `None` when nothing is.
async fn found(conn: &mut AnyConnection, address: &Address) -> Result<Option<Found>, BackupError> {
    if !tables::all(conn, address).await?.iter().any(|table| table.name == "meta") {
        return Ok(None);
    }
    let mut facts: BTreeMap<String, String> = BTreeMap::new();
    for row in sqlx::query("SELECT name, value FROM meta").fetch_all(&mut *conn).await? {
        facts.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let schema: i64 = conn.fetch_one("SELECT MAX(version) FROM _sqlx_migrations").await?.try_get(0)?;
    let fact = |name: &str| facts.get(name).cloned();
    let (Some(trust_domain), Some(key_check)) = (fact("trust_domain"), fact("key_check")) else { return Ok(None) };
    Ok(Some(Found { trust_domain, schema, key_check }))
}

const FORMAT: u32 = 1;
const SEAL_PURPOSE: &[u8] = b"backup";

#[cfg(test)]
mod tests;
