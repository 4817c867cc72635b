//! Opening the database, and saying in one sentence why that cannot be.

pub(crate) mod address;
pub(crate) mod check;
mod error;

use std::sync::{Arc, RwLock};

use identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::MigrateError;
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Executor, Row as _};
use tokio::sync::{Notify, watch};

use super::feed::Feed;
use super::health::Health;
use super::migrations::MIGRATIONS;
use super::queue::{self, KNOWN_WAITING_MAX, NEW_WAITING_MAX};
use super::replica::Replica;
use super::writer::{Memory, Writer};
use super::{Store, StoreError, load, meta};
use address::{Address, Kind};
use check::unusable;

pub(crate) use check::sound;

pub use error::OpenError;

/// Opens `database` (an URL), brings it to the present layout and reads what is in it.
///
/// The second answer is the writer, to be spawned by the caller.
pub(crate) async fn open(
    database: &str,
    trust_domain: &TrustDomain,
    server_id: SpiffeId,
) -> Result<(Store, impl Future<Output = ()> + Send + 'static), OpenError> {
    let address = Address::parse(database)?;
    // One connection by itself first: a pool would try a damaged database again and again.
    let mut conn = prepare(&address).await?;
    belongs(&mut conn, &address, trust_domain).await?;
    let close = conn.close().await;
    close.map_err(|source| unusable(&address, source))?;
    let pool = connect(&address).await?;
    let (store, writer, replica) = assemble(&address, pool, server_id).await?;
    let work = async move {
        tokio::select! {
            () = writer.run() => (),
            // Waits for ever.
            () = replica.run() => (),
        }
    };
    Ok((store, work))
}

/// The parts that work on an open database.
async fn assemble(
    address: &Address,
    pool: AnyPool,
    server_id: SpiffeId,
) -> Result<(Store, Writer, Replica), OpenError> {
    let mut conn = pool.acquire().await.map_err(StoreError::from)?;
    // Before the rows: what comes between is read twice, which does no harm.
    let position = meta::number(&mut conn, meta::CHANGE_NUMBER).await?;
    let registry = load::registry(&mut conn, server_id.clone()).await?;
    drop(conn);
    let (revision, revisions) = watch::channel(registry.entries_revision());
    let ((evictions, evicted), (authorities, authorities_changed)) = (watch::channel(0), watch::channel(0));
    let (relationships, relationships_changed) = watch::channel(0);
    let (revocations, revocations_changed) = watch::channel(0);
    let registry = Arc::new(RwLock::new(registry));
    let (jobs, waiting) = queue::queue(KNOWN_WAITING_MAX, NEW_WAITING_MAX);
    let (wake, health) = (Arc::new(Notify::new()), Health::new());
    let (replica, lease) = Replica::new(address, wake.clone());
    let memory = Memory {
        registry: registry.clone(),
        entries_revision: revision,
        evictions,
        authorities,
        relationships,
        revocations,
    };
    let writer = Writer {
        pool: pool.clone(),
        begin: if address.is_sqlite() { BEGIN_SQLITE } else { BEGIN_POSTGRES },
        jobs: waiting,
        wake,
        feed: (!address.is_sqlite()).then(|| Feed::new(server_id, position)),
        memory,
        tail: None,
        signing: None,
        health: health.clone(),
    };
    let store = Store {
        pool,
        jobs,
        registry,
        entries_revision: revisions,
        evictions: evicted,
        authorities_changed,
        relationships_changed,
        revocations_changed,
        health,
        lease,
        audit: None,
        shared: !address.is_sqlite(),
    };
    Ok((store, writer, replica))
}

/// Checks the database and brings it to the present layout.
pub(super) async fn prepare(address: &Address) -> Result<AnyConnection, OpenError> {
    let mut conn = sound(address).await?;
    // A new database has no such table.
    let found =
        conn.fetch_one("SELECT MAX(version) FROM _sqlx_migrations").await.and_then(|row| row.try_get::<i64, _>(0));
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    if let Ok(found) = found
        && found < newest
    {
        tracing::info!(
            from = found,
            to = newest,
            "bringing the database to the present layout; millions of records take minutes"
        );
    }
    MIGRATIONS.run(&mut conn).await.map_err(|error| unmigrated(address, error))?;
    Ok(conn)
}

pub(crate) fn unmigrated(address: &Address, error: MigrateError) -> OpenError {
    match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => unusable(address, source),
        error => OpenError::Newer { database: address.shown(), source: Box::new(error) },
    }
}

/// The trust domain of the settings is that of the database; a new one takes it over.
pub(super) async fn belongs(
    conn: &mut AnyConnection,
    address: &Address,
    trust_domain: &TrustDomain,
) -> Result<(), OpenError> {
    match meta::read(conn, meta::TRUST_DOMAIN).await? {
        _ if meta::read(conn, meta::RESTORING).await?.is_some() => {
            Err(OpenError::Restoring { database: address.shown() })
        }
        None => Ok(meta::write(conn, meta::TRUST_DOMAIN, trust_domain.as_str()).await?),
        Some(found) if found == trust_domain.as_str() => Ok(()),
        Some(found) => {
            let wanted = trust_domain.clone();
            Err(OpenError::OtherTrustDomain { database: address.shown(), found, wanted })
        }
    }
}

fn options(address: &Address) -> Result<AnyConnectOptions, OpenError> {
    sqlx::any::install_default_drivers();
    let options: AnyConnectOptions = address.url.parse().map_err(|source| unusable(address, source))?;
    Ok(options.disable_statement_logging())
}

async fn connect(address: &Address) -> Result<AnyPool, OpenError> {
    let setup = if address.is_sqlite() { SETUP_SQLITE } else { SETUP_POSTGRES };
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_WAIT_MAX)
        .after_connect(move |conn, _| {
            Box::pin(async move {
                for statement in setup {
                    conn.execute(*statement).await?;
                }
                Ok(())
            })
        })
        .connect_with(options(address)?)
        .await
        .map_err(|source| unusable(address, source))
}

impl Address {
    /// The same for the driver of PostgreSQL alone; `None` for SQLite.
    pub(super) fn postgres_options(&self) -> Option<sqlx::postgres::PgConnectOptions> {
        let options: sqlx::postgres::PgConnectOptions =
            if self.kind == Kind::Postgres { self.url.parse().ok()? } else { return None };
        Some(options.application_name("kasbah").disable_statement_logging())
    }
}

const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";
/// The lock ends with the transaction. "KSBH", writing.
const BEGIN_POSTGRES: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
                              SELECT CAST(pg_advisory_xact_lock(1263747656, 1) AS TEXT)";
/// The write-ahead log is on the disk before a commit is acknowledged, and does not grow without limit.
const SETUP_SQLITE: &[&str] = &[
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
    // What a statement may have to take back does not go through a file.
    "PRAGMA temp_store = MEMORY",
];
/// A replica that hangs does not hold the others up for ever, and nobody's default makes a commit less than durable.
const SETUP_POSTGRES: &[&str] = &[
    "SET lock_timeout = '8s'",
    "SET idle_in_transaction_session_timeout = '15s'",
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
];
/// One for the writer, the others for readers.
const CONNECTIONS_MAX: u32 = 4;
const CONNECT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(3);
