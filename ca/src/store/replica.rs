//! One replica among several on one PostgreSQL: it hears at once that another one changed something, and one of them
//! holds the lease for work that only one should do.
//!
//! The lease is a lock of a session of its own: when the replica dies the server frees it at once. It saves work and
//! noise; that two holders for a moment do no harm is the matter of the transactions.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Connection, Executor};
use tokio::sync::{Notify, watch};

use super::feed::CHANNEL;
use super::open::address::Address;

/// Whether this replica is the one. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Lease(watch::Receiver<bool>);

impl Lease {
    /// Whether it is held now.
    pub(crate) fn is_held(&self) -> bool {
        *self.0.borrow()
    }
}

/// The work of a replica beside the writer's.
pub(super) struct Replica {
    /// None for SQLite, whose only process holds the lease.
    server: Option<PgConnectOptions>,
    wake: Arc<Notify>,
    lease: watch::Sender<bool>,
}

impl Replica {
    pub(super) fn new(address: &Address, wake: Arc<Notify>) -> (Self, Lease) {
        let server = address.postgres_options();
        let (lease, held) = watch::channel(server.is_none());
        (Self { server, wake, lease }, Lease(held))
    }

    /// For ever.
    pub(super) async fn run(self) {
        let Some(server) = self.server else { return std::future::pending().await };
        tokio::join!(hear(&server, &self.wake), look(&self.wake), keep_lease(&server, &self.lease));
    }
}

/// Wakes the writer when another replica says that it changed something.
async fn hear(server: &PgConnectOptions, wake: &Notify) {
    loop {
        if let Err(error) = listen(server, wake).await {
            tracing::warn!(error = ?error, "notifications of other replicas interrupted");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn listen(server: &PgConnectOptions, wake: &Notify) -> Result<(), sqlx::Error> {
    let pool =
        PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER_WAIT_MAX).connect_lazy_with(server.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // Also when the connection was lost: something may have been said meanwhile.
        listener.try_recv().await?;
        wake.notify_one();
    }
}

/// Looks by itself too: a notification may be lost on the way, or swallowed by a connection pooler.
async fn look(wake: &Notify) {
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        wake.notify_one();
    }
}

async fn keep_lease(server: &PgConnectOptions, lease: &watch::Sender<bool>) {
    loop {
        let Err(error) = hold(server, lease).await;
        if lease.send_replace(false) {
            tracing::warn!(error = ?error, "lease lost");
        } else {
            tracing::debug!(error = ?error, "lease not asked for");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn hold(server: &PgConnectOptions, lease: &watch::Sender<bool>) -> Result<Infallible, sqlx::Error> {
    let mut conn = in_time(PgConnection::connect_with(server)).await?;
    for statement in SETUP {
        in_time(conn.execute(*statement)).await?;
    }
    loop {
        if *lease.borrow() {
            in_time(conn.ping()).await?;
        } else if in_time(sqlx::query_scalar::<_, bool>(TAKE).fetch_one(&mut conn)).await? {
            tracing::info!("lease taken: this replica does what only one should do");
            lease.send_replace(true);
        }
        tokio::time::sleep(LEASE_PAUSE).await;
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(ANSWER_WAIT_MAX, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// A machine that vanishes without a word loses its session, and with it the lease, after about twenty seconds. The
/// shared lock says that somebody uses the database.
const SETUP: &[&str] = &[
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 3",
    "SET tcp_keepalives_count = 3",
    "SELECT pg_advisory_lock_shared(1263747656, 3)",
];
const TAKE: &str = "SELECT pg_try_advisory_lock(1263747656, 2)";
const LOOK_PAUSE: Duration = Duration::from_millis(500);
const LEASE_PAUSE: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
