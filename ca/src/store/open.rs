//! Opening the database, and saying in one sentence why that cannot be.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Executor, Row};
use tokio::sync::{mpsc, watch};

use super::writer::{JOBS_WAITING_MAX, Writer};
use super::{Store, StoreError, agents, entries, federation, meta};
use crate::registry::{Change, Registry};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is damaged.
    #[error("the database {database} is damaged; restore it from a backup, or move it away to start a new authority")]
    Corrupt {
        /// Which.
        database: String,
        /// What the check found.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The database belongs to another program.
    #[error("the database {database} was not made by kasbah; name another one in the setting `database`")]
    Foreign {
        /// Which.
        database: String,
    },
    /// The database belongs to a newer version.
    #[error("the database {database} was written by another version of kasbah; start that version")]
    Newer {
        /// Which.
        database: String,
        /// What does not fit.
        #[source]
        source: Box<MigrateError>,
    },
    /// The database belongs to another trust domain.
    #[error(
        "the database {database} holds the authority of the trust domain {found}, not {wanted}; \
         correct `trust_domain` or name another database"
    )]
    OtherTrustDomain {
        /// Which.
        database: String,
        /// What it holds.
        found: String,
        /// What the settings say.
        wanted: TrustDomain,
    },
    /// The database cannot be reached or written.
    #[error("the database {database} cannot be opened; see that it exists, is reachable and writable")]
    Unavailable {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The address is of no known kind.
    #[error("the setting `database` must begin with sqlite: or postgres:, not {database}")]
    Unsupported {
        /// What was given.
        database: String,
    },
    /// What is in it cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "DATABASE_CORRUPT",
            Self::Foreign { .. } => "DATABASE_FOREIGN",
            Self::Newer { .. } => "DATABASE_OTHER_VERSION",
            Self::OtherTrustDomain { .. } => "DATABASE_OTHER_TRUST_DOMAIN",
            Self::Unavailable { .. } => "DATABASE_UNAVAILABLE",
            Self::Unsupported { .. } => "DATABASE_UNSUPPORTED",
            Self::Store(error) => error.reason(),
        }
    }
}

/// Which kind of database an address names.
enum Kind {
    Sqlite(PathBuf),
    Postgres,
}

/// Opens `database` (an URL), brings it to the present layout and reads what is in it.
///
/// The second answer is the writer, to be spawned by the caller.
pub(crate) async fn open(
    database: &str,
    trust_domain: &TrustDomain,
    server_id: SpiffeId,
) -> Result<(Store, impl Future<Output = ()> + Send + 'static), OpenError> {
    sqlx::any::install_default_drivers();
    let kind = kind_of(database)?;
    if let Kind::Sqlite(file) = &kind {
        check_header(file, database)?;
    }
    let options: AnyConnectOptions = database.parse().map_err(|source| unusable(database, source))?;
    let options = options.disable_statement_logging();
    // One connection by itself first: a pool would try a damaged database again and again.
    prepare(&options, database, &kind, trust_domain).await?;
    let pool = connect(options, database, &kind).await?;
    let registry = load(&pool, server_id).await?;
    let (entries_revision, revisions) = watch::channel(registry.entries_revision());
    let registry = Arc::new(RwLock::new(registry));
    let (jobs, waiting) = mpsc::channel(JOBS_WAITING_MAX);
    let begin = if matches!(kind, Kind::Sqlite(_)) { "BEGIN IMMEDIATE" } else { "BEGIN" };
    let (evictions, evicted) = watch::channel(0);
    let writer =
        Writer { pool: pool.clone(), begin, jobs: waiting, registry: registry.clone(), entries_revision, evictions };
    Ok((Store { pool, jobs, registry, entries_revision: revisions, evictions: evicted }, writer.run()))
}

/// The URL of an SQLite file.
pub(crate) fn sqlite_url(file: &Path) -> String {
    let mut url = String::from("sqlite://");
    for byte in file.to_string_lossy().bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    url
}

fn kind_of(database: &str) -> Result<Kind, OpenError> {
    if database.starts_with("postgres:") || database.starts_with("postgresql:") {
        return Ok(Kind::Postgres);
    }
    if !database.starts_with("sqlite:") {
        return Err(OpenError::Unsupported { database: shown(database) });
    }
    let options: sqlx::sqlite::SqliteConnectOptions =
        database.parse().map_err(|_| OpenError::Unsupported { database: shown(database) })?;
    Ok(Kind::Sqlite(options.get_filename().to_path_buf()))
}

/// An address without the password it may hold.
pub(crate) fn shown(database: &str) -> String {
    let Some((scheme, rest)) = database.split_once("://") else { return database.to_owned() };
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None if scheme == "sqlite" => rest.to_owned(),
        None => format!("{scheme}://{rest}"),
    }
}

/// A file that is no SQLite database is told apart before SQLite touches it.
fn check_header(file: &Path, database: &str) -> Result<(), OpenError> {
    let mut head = [0; SQLITE_MAGIC.len()];
    let Ok(mut opened) = std::fs::File::open(file) else { return Ok(()) };
    let length = opened.metadata().map_or(0, |found| found.len());
    if length == 0 {
        return Ok(());
    }
    match opened.read_exact(&mut head) {
        Ok(()) if head == SQLITE_MAGIC => Ok(()),
        _ => Err(OpenError::Corrupt { database: shown(database), source: None }),
    }
}

async fn connect(options: AnyConnectOptions, database: &str, kind: &Kind) -> Result<AnyPool, OpenError> {
    let sqlite = matches!(kind, Kind::Sqlite(_));
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_WAIT_MAX)
        .after_connect(move |conn, _| {
            Box::pin(async move {
                if sqlite {
                    conn.execute("PRAGMA journal_mode = WAL").await?;
                    conn.execute("PRAGMA synchronous = FULL").await?;
                }
                Ok(())
            })
        })
        .connect_with(options)
        .await
        .map_err(|source| unusable(database, source))
}

async fn prepare(
    options: &AnyConnectOptions,
    database: &str,
    kind: &Kind,
    trust_domain: &TrustDomain,
) -> Result<(), OpenError> {
    let connected = AnyConnection::connect_with(options).await;
    let mut conn = connected.map_err(|source| unusable(database, source))?;
    if matches!(kind, Kind::Sqlite(_)) {
        check_sqlite(&mut conn, database).await?;
    }
    MIGRATIONS.run(&mut conn).await.map_err(|error| match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => unusable(database, source),
        error => OpenError::Newer { database: shown(database), source: Box::new(error) },
    })?;
    match meta::read(&mut conn, meta::TRUST_DOMAIN).await? {
        None => meta::write(&mut conn, meta::TRUST_DOMAIN, trust_domain.as_str()).await?,
        Some(found) if found == trust_domain.as_str() => (),
        Some(found) => {
            let wanted = trust_domain.clone();
            return Err(OpenError::OtherTrustDomain { database: shown(database), found, wanted });
        }
    }
    conn.close().await.map_err(|source| unusable(database, source))
}

/// Sound, and ours: marked by the application id that a new file gets before its first table.
async fn check_sqlite(conn: &mut AnyConnection, database: &str) -> Result<(), OpenError> {
    let broken = |source| unusable(database, source);
    let verdict = conn.fetch_one("PRAGMA quick_check(1)").await.map_err(broken)?;
    if verdict.try_get::<String, _>(0).map_err(broken)? != "ok" {
        return Err(OpenError::Corrupt { database: shown(database), source: None });
    }
    let id: i64 = conn.fetch_one("PRAGMA application_id").await.and_then(|row| row.try_get(0)).map_err(broken)?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    let tables: i64 =
        conn.fetch_one("SELECT count(*) FROM sqlite_master").await.and_then(|row| row.try_get(0)).map_err(broken)?;
    if id != 0 || tables != 0 {
        return Err(OpenError::Foreign { database: shown(database) });
    }
    conn.execute(SET_APPLICATION_ID).await.map_err(broken)?;
    Ok(())
}

/// Damage is told apart from trouble that goes away.
fn unusable(database: &str, source: sqlx::Error) -> OpenError {
    let code = source.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    let database = shown(database);
    // The low byte of SQLite's extended codes is the primary one.
    match code.map(|code| code & 0xff) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => OpenError::Corrupt { database, source: Some(source) },
        _ => OpenError::Unavailable { database, source },
    }
}

async fn load(pool: &AnyPool, server_id: SpiffeId) -> Result<Registry, StoreError> {
    let mut conn = pool.acquire().await?;
    let mut registry = Registry::new(server_id);
    for entry in entries::all(&mut conn).await? {
        registry.apply(Change::EntrySet(Arc::new(entry)));
    }
    for agent in agents::all(&mut conn).await? {
        registry.apply(Change::AgentSet(Arc::new(agent)));
    }
    for bundle in federation::all(&mut conn).await? {
        registry.apply(Change::FederatedSet(Arc::new(bundle)));
    }
    registry.apply(Change::EntriesRevision(meta::number(&mut conn, meta::ENTRIES_REVISION).await?));
    Ok(registry)
}

const SQLITE_MAGIC: [u8; 16] = *b"SQLite format 3\0";
/// "KSBH".
const APPLICATION_ID: i64 = 0x4b53_4248;
const SET_APPLICATION_ID: &str = "PRAGMA application_id = 1263747656";
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_NOTADB: u32 = 26;
/// One for the writer, the others for readers.
const CONNECTIONS_MAX: u32 = 4;
const CONNECT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);
