//! Whether what is at an address is sound and ours, before anything is written to it.

use std::io::Read;
use std::path::Path;

use sqlx::{AnyConnection, Connection, Executor, Row};

use super::OpenError;
use super::address::{Address, Kind};

/// A connection to a database that may be used.
pub(crate) async fn sound(address: &Address) -> Result<AnyConnection, OpenError> {
    if let Kind::Sqlite(file) = &address.kind {
        check_header(file, address)?;
    }
    let options = super::options(address)?;
    let connected = tokio::time::timeout(CONNECT_WAIT_MAX, AnyConnection::connect_with(&options));
    let connected = connected.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let mut conn = connected.map_err(|source| unusable(address, source))?;
    if address.is_sqlite() {
        check_sqlite(&mut conn, address).await?;
    } else {
        check_postgres(&mut conn, address).await?;
    }
    Ok(conn)
}

/// A file that is no SQLite database is told apart before SQLite touches it.
fn check_header(file: &Path, address: &Address) -> Result<(), OpenError> {
    let mut head = [0; SQLITE_MAGIC.len()];
    let Ok(mut opened) = std::fs::File::open(file) else { return Ok(()) };
    let length = opened.metadata().map_or(0, |found| found.len());
    if length == 0 {
        return Ok(());
    }
    match opened.read_exact(&mut head) {
        Ok(()) if head == SQLITE_MAGIC => Ok(()),
        _ => Err(OpenError::Corrupt { database: address.shown(), source: None }),
    }
}

/// Sound, and ours: marked by the application id that a new file gets before its first table.
async fn check_sqlite(conn: &mut AnyConnection, address: &Address) -> Result<(), OpenError> {
    let broken = |source| unusable(address, source);
    let verdict = conn.fetch_one("PRAGMA quick_check(1)").await.map_err(broken)?;
    if verdict.try_get::<String, _>(0).map_err(broken)? != "ok" {
        return Err(OpenError::Corrupt { database: address.shown(), source: None });
    }
    let id: i64 = conn.fetch_one("PRAGMA application_id").await.and_then(|row| row.try_get(0)).map_err(broken)?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    let tables: i64 =
        conn.fetch_one("SELECT count(*) FROM sqlite_master").await.and_then(|row| row.try_get(0)).map_err(broken)?;
    if id != 0 || tables != 0 {
        return Err(OpenError::Foreign { database: address.shown() });
    }
    conn.execute(SET_APPLICATION_ID).await.map_err(broken)?;
    Ok(())
}

/// Writable, and either empty or ours.
async fn check_postgres(conn: &mut AnyConnection, address: &Address) -> Result<(), OpenError> {
    let broken = |source| unusable(address, source);
    let sql = "SELECT CAST(count(*) AS BIGINT), \
               CAST(count(*) FILTER (WHERE tablename IN ('_sqlx_migrations', 'meta', 'authority')) AS BIGINT), \
               current_setting('transaction_read_only') \
               FROM pg_catalog.pg_tables WHERE schemaname = current_schema()";
    let found = conn.fetch_one(sql).await.map_err(broken)?;
    let number = |at: usize| found.try_get::<i64, _>(at).map_err(broken);
    if number(0)? > 0 && number(1)? < 3 {
        // A first start that ended early leaves the table of migrations alone.
        let began = number(0)? == 1 && number(1)? == 1;
        if !began {
            return Err(OpenError::Foreign { database: address.shown() });
        }
    }
    if found.try_get::<String, _>(2).map_err(broken)? == "on" {
        let source = sqlx::Error::Protocol("the server is in read-only mode".into());
        return Err(OpenError::ReadOnly { database: address.shown(), source });
    }
    // Shared among all who use the database; a restore wants it alone.
    let free = try_lock(conn, "SELECT pg_try_advisory_lock_shared(1263747656, 3)").await.map_err(broken)?;
    if free { Ok(()) } else { Err(OpenError::Restoring { database: address.shown() }) }
}

/// Takes a lock of the session. One that has just ended frees its lock a moment later, so a refusal is not believed at
/// once.
pub(crate) async fn try_lock(conn: &mut AnyConnection, sql: &'static str) -> Result<bool, sqlx::Error> {
    let last_try = tokio::time::Instant::now() + LOCK_WAIT_MAX;
    loop {
        if conn.fetch_one(sql).await?.try_get(0)? {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= last_try {
            return Ok(false);
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// Damage, trouble that goes away, and mistakes of the settings are told apart.
pub(super) fn unusable(address: &Address, source: sqlx::Error) -> OpenError {
    let database = address.shown();
    let untrusted = match &source {
        sqlx::Error::Tls(_) => true,
        // What the TLS library says about a certificate arrives as an error of the stream.
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    };
    if untrusted && !address.is_sqlite() {
        return OpenError::Unverified { database, source };
    }
    let code = source.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    if address.is_sqlite() {
        // The low byte of SQLite's extended codes is the primary one.
        return match code.parse::<u32>().map(|code| code & 0xff) {
            Ok(SQLITE_CORRUPT | SQLITE_NOTADB) => OpenError::Corrupt { database, source: Some(source) },
            Ok(SQLITE_READONLY) => OpenError::ReadOnly { database, source },
            _ => OpenError::Unavailable { database, source },
        };
    }
    match code.as_str() {
        "28P01" | "28000" => OpenError::AccessDenied { database, source },
        "3D000" => OpenError::Missing { database, source },
        "42501" | "3F000" => OpenError::NoRights { database, source },
        "25006" => OpenError::ReadOnly { database, source },
        _ => OpenError::Unavailable { database, source },
    }
}

const SQLITE_MAGIC: [u8; 16] = *b"SQLite format 3\0";
/// "KSBH".
const APPLICATION_ID: i64 = 0x4b53_4248;
const SET_APPLICATION_ID: &str = "PRAGMA application_id = 1263747656";
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_NOTADB: u32 = 26;
const SQLITE_READONLY: u32 = 8;
/// How long a server may take to answer at the start.
const LOCK_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(3);
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
const CONNECT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);
