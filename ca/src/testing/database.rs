//! The databases of the tests: SQLite files, and databases on a PostgreSQL cluster that this process starts and that
//! ends with it.
//!
//! A test is a plain async function; `on_each_database!` makes two tests of it. Inside, [`url_in`] is the database of a
//! folder, of the kind that the test runs on.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use sqlx::{AnyConnection, Connection, Executor};

use crate::store::sqlite_url;

/// On which kind of database a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

tokio::task_local! {
    static KIND: Kind;
}

/// Makes of each named async function a test on SQLite and one on PostgreSQL.
macro_rules! on_each_database {
    ($($test:ident),* $(,)?) => { $(
        mod $test {
            #[tokio::test]
            async fn sqlite() {
                crate::testing::database::on(crate::testing::database::Kind::Sqlite, super::$test()).await;
            }

            #[tokio::test]
            async fn postgresql() {
                crate::testing::database::on(crate::testing::database::Kind::Postgres, super::$test()).await;
            }
        }
    )* };
}
pub(crate) use on_each_database;

/// Runs `test` on this kind of database, or says why it cannot run here.
pub(crate) async fn on(kind: Kind, test: impl Future<Output = ()>) {
    if kind == Kind::Postgres && cluster().is_none() {
        return;
    }
    KIND.scope(kind, test).await;
}

/// The kind that the running test is for.
pub(crate) fn kind() -> Kind {
    KIND.try_with(|kind| *kind).unwrap_or(Kind::Sqlite)
}

/// The database of a folder: the same for the same folder, else a new one.
pub(crate) async fn url_in(dir: &Path) -> String {
    setting_in(dir).await.unwrap_or_else(|| sqlite_url(&dir.join("ca.sqlite")))
}

/// The same as the setting `database`, which is not needed for SQLite.
pub(crate) async fn setting_in(dir: &Path) -> Option<String> {
    if kind() == Kind::Sqlite {
        return None;
    }
    let known = dir.join("database-url");
    if let Ok(url) = std::fs::read_to_string(&known) {
        return Some(url);
    }
    let url = cluster().expect("`on` looked").create().await;
    std::fs::write(&known, &url).unwrap();
    Some(url)
}

/// A connection of the test's own.
pub(crate) async fn connect(url: &str) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect(url).await.unwrap()
}

/// The cluster of this process; without one the test is skipped, which CI does not accept.
pub(crate) fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    match CLUSTER.get_or_init(Cluster::start) {
        Ok(cluster) => Some(cluster),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI runs every test: {why}");
            println!("skipped: {why}");
            None
        }
    }
}

/// A PostgreSQL server of our own, started by `tests/postgres`.
pub(crate) struct Cluster {
    /// With the name `DATABASE` in the place of a database's.
    url: String,
    /// With the root certificate of the server.
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    pipe: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _script: Child,
}

impl Cluster {
    pub(crate) fn start() -> Result<Self, String> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/postgres");
        let mut command = Command::new(script);
        command.arg(port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().map_err(|error| format!("tests/postgres does not start: {error}"))?;
        let (stdin, stdout) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        lines.read_line(&mut line).map_err(|error| error.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["url", url, folder] => Ok(Self {
                url: (*url).to_owned(),
                folder: PathBuf::from(folder),
                port,
                pipe: Mutex::new((stdin, lines)),
                _script: script,
            }),
            ["skipped:", ..] => Err(line.trim().trim_start_matches("skipped: ").to_owned()),
            _ => Err(format!("tests/postgres ended: {line}")),
        }
    }

    /// `stop`, `start` or `fsync`.
    pub(crate) fn order(&self, order: &str) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipe.0, "{order}").unwrap();
        let mut answer = String::new();
        pipe.1.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{order}");
    }

    /// The URL of a database, for its owner over the socket.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url.replace("DATABASE", database)
    }

    /// A new database; answers its URL.
    pub(crate) async fn create(&self) -> String {
        let name = format!("t{}", crate::random::uuid().replace('-', ""));
        self.sql(&format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Runs a statement as the superuser.
    pub(crate) async fn sql(&self, statement: &str) {
        let mut conn = connect(&self.url("postgres")).await;
        conn.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.unwrap();
        conn.close().await.unwrap();
    }
}
