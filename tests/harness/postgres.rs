//! A PostgreSQL server for one test, started by `tests/postgres` and gone with this value.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::program::Program;
use crate::tools::{Skipped, source};

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    /// Holds its Unix socket and `root.pem`, the root of its certificate.
    pub folder: PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
    url: String,
    script: Child,
}

impl Postgres {
    /// Starts one.
    ///
    /// # Errors
    /// [`Skipped`] when the server is not installed.
    pub fn start() -> Result<Self> {
        let port = crate::mesh::free_port()?;
        let mut command = Command::new(source("postgres"));
        command.arg(port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().context("tests/postgres")?;
        let mut line = String::new();
        BufReader::new(script.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["url", url, folder] => Ok(Self { folder: folder.into(), port, url: (*url).to_owned(), script }),
            ["skipped:", ..] => Err(Skipped(line.trim().trim_start_matches("skipped: ").to_owned()).into()),
            _ => bail!("tests/postgres ended: {line}"),
        }
    }

    /// The URL of a database for the superuser, over the socket.
    pub fn url(&self, database: &str) -> String {
        self.url.replace("DATABASE", database)
    }

    /// What a statement answers.
    ///
    /// # Errors
    /// When it is refused.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let psql = Program::new("psql").arg(format!("host={} port={}", self.folder.display(), self.port));
        let psql = psql.env("PGDATABASE", database).env("PGUSER", "kasbah");
        Ok(psql.args(["-At", "-v", "ON_ERROR_STOP=1", "-c", statement]).ok()?.stdout.trim().to_owned())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
