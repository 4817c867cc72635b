//! Restoring: check everything, then fill an empty database, then make sure that nothing old is told twice.
//!
//! Everything that is written is one transaction, on either database: whoever dies in the middle leaves what was there before.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor};

use super::file::Input;
use super::tables::{self, Table};
use super::{BackupError, BackupReport, Found, found};
use crate::custody::kek::Kek;
use crate::server;
use crate::settings::Settings;
use crate::store::{Address, MIGRATIONS, sound, unmigrated};

/// How a backup is restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Lose what is in the database.
    pub force: bool,
    /// The old server was stopped before the backup was made and stays so: nothing was handed out that the backup does
    /// not know.
    pub moved: bool,
}

/// Fills the database of these settings from `file`, which the key file must open.
///
/// # Errors
/// When the file is no whole backup of this authority, the database is not empty, or somebody uses it.
pub async fn restore(settings: &Settings, file: &Path, options: RestoreOptions) -> Result<BackupReport, BackupError> {
    let address = Address::parse(&settings.database_url())?;
    let input = Input::check(file, |header| Ok(Kek::load(settings, false, header.stretching.as_deref())?.key))?;
    check_header(settings, &input, file)?;
    // No authority of this directory runs, and none starts meanwhile.
    let _lock = server::lock_dir(&settings.data_dir).map_err(Box::new)?;
    let mut conn = sound(&address).await?;
    hold(&mut conn, &address).await?;
    let there = tables::all(&mut conn, &address).await?;
    let authority: Option<Found> = found(&mut conn, &address).await?;
    if authority.is_some() && !options.force {
        return Err(BackupError::NotEmpty { database: address.shown() });
    }
    let mut whole = conn.begin().await?;
    clear(&mut whole, &there).await?;
    let migrated = MIGRATIONS.run_to(input.header.schema, &mut *whole).await;
    migrated.map_err(|error| unmigrated(&address, error))?;
    fill(&mut whole, &address, &input).await?;
    MIGRATIONS.run(&mut *whole).await.map_err(|error| unmigrated(&address, error))?;
    if !options.moved {
        let logs = tables::all(&mut whole, &address).await?.iter().any(|table| table.name == LOG_KEY);
        leap(&mut whole, logs).await?;
    }
    whole.commit().await?;
    conn.close().await?;
    let super::Header { trust_domain, schema, made_at, .. } = input.header;
    Ok(BackupReport { trust_domain, schema, made_at, rows: input.rows })
}

fn check_header(settings: &Settings, input: &Input, file: &Path) -> Result<(), BackupError> {
    let header = &input.header;
    if header.trust_domain != settings.trust_domain {
        let found = header.trust_domain.to_string();
        return Err(BackupError::OtherTrustDomain { found, wanted: settings.trust_domain.clone() });
    }
    if !MIGRATIONS.version_exists(header.schema) {
        return Err(BackupError::Newer { file: file.to_owned() });
    }
    Ok(())
}

/// As long as this connection lives no replica can begin, and none may run now.
async fn hold(conn: &mut AnyConnection, address: &Address) -> Result<(), BackupError> {
    if address.is_sqlite() {
        return Ok(());
    }
    let held = crate::store::try_lock(conn, "SELECT pg_try_advisory_lock(1263747656, 3)").await?;
    if held { Ok(()) } else { Err(BackupError::InUse { database: address.shown() }) }
}

/// Removes our tables.
async fn clear(conn: &mut AnyConnection, there: &[Table]) -> Result<(), BackupError> {
    let names = there.iter().map(|table| table.name.as_str()).chain(["change", "_sqlx_migrations"]);
    for name in names {
        conn.execute(AssertSqlSafe(format!("DROP TABLE IF EXISTS {name}"))).await?;
    }
    Ok(())
}

/// Writes every row.
async fn fill(conn: &mut AnyConnection, address: &Address, input: &Input) -> Result<(), BackupError> {
    let there: BTreeMap<String, Table> =
        tables::all(conn, address).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
    for name in there.keys() {
        // The layout itself may bring rows.
        conn.execute(AssertSqlSafe(format!("DELETE FROM {name}"))).await?;
    }
    let (mut name, mut rows): (String, Vec<Map<String, Value>>) = (String::new(), Vec::new());
    for line in input.rows()? {
        let line = line?;
        let full = there.get(&name).is_some_and(|table| rows.len() >= table.rows_max());
        if line.table != name || full {
            insert(conn, &there, &name, &mut rows).await?;
            name = line.table;
        }
        rows.push(line.row);
    }
    insert(conn, &there, &name, &mut rows).await?;
    // Left by a restore of an earlier version, which wrote in several steps.
    conn.execute("DELETE FROM meta WHERE name = 'restoring'").await?;
    Ok(())
}

async fn insert(
    conn: &mut AnyConnection,
    there: &BTreeMap<String, Table>,
    name: &str,
    rows: &mut Vec<Map<String, Value>>,
) -> Result<(), BackupError> {
    if rows.is_empty() {
        return Ok(());
    }
    let misfit = || BackupError::Misfit { table: name.to_owned(), column: "its name".into() };
    there.get(name).ok_or_else(misfit)?.insert(conn, rows).await?;
    rows.clear();
    Ok(())
}

/// What the old server did after the backup is unknown: nothing that it may have told is told again.
async fn leap(conn: &mut AnyConnection, logs: bool) -> Result<(), BackupError> {
    for counter in ["bundle_sequence", "entries_revision", "crl_number"] {
        let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) \
                   DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + $3 AS TEXT)";
        sqlx::query(sql).bind(counter).bind(LEAP.to_string()).bind(LEAP).execute(&mut *conn).await?;
    }
    // Signed anew, with numbers past any that may have been told.
    conn.execute("DELETE FROM crl").await?;
    // May have been used.
    conn.execute("DELETE FROM join_token").await?;
    // A log of the same key with fewer leaves would contradict its own heads.
    if logs {
        conn.execute(AssertSqlSafe(format!("DELETE FROM {LOG_KEY}"))).await?;
    }
    Ok(())
}

/// The table of the key that signs heads of the transparency log.
const LOG_KEY: &str = "log_key";
/// More than any server counts: a billion changes, while numbers in JSON stay exact for millions of restores.
const LEAP: i64 = 1 << 30;
