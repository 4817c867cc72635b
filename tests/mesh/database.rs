//! The whole mesh with its authority on PostgreSQL, and its way there by backup and restore.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::curl::{self, url};
use harness::mesh::kill;
use harness::postgres::Postgres;
use harness::{Mesh, MeshOptions, wait};
use libtest_mimic::Trial;

use crate::trial::{alone, own};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("database::the_mesh_runs_on_postgresql", the_mesh_runs_on_postgresql),
        own("database::a_backup_of_sqlite_moves_to_postgresql", &[], a_backup_moves),
    ]
}

/// A user with a password and a database of its own, over TLS; answers its URL.
fn owned(server: &Postgres, name: &str) -> Result<String> {
    server.sql("postgres", &format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"))?;
    server.sql("postgres", &format!("CREATE DATABASE {name} OWNER {name}"))?;
    let root = server.folder.join("root.pem");
    let port = server.port;
    Ok(format!(
        "postgres://{name}:{PASSWORD}@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={}",
        root.display()
    ))
}

fn the_mesh_runs_on_postgresql() -> Result<()> {
    let server = Postgres::start()?;
    let database = owned(&server, "mesh")?;
    let mesh = Mesh::start(&MeshOptions { options: vec!["--database".into(), database] })?;
    let answers = || {
        let answer = curl::get(url("http", mesh.at("/ingress/http")?, "/helloworld")).send()?;
        answer.expect_status(200).map(drop)
    };
    wait::until("the demo", Duration::from_secs(10), answers)?;
    mesh.expect_healthy()?;
    let issued: u64 = server.sql("mesh", "SELECT count(*) FROM issuance")?.parse()?;
    ensure!(issued > 5, "{issued} records");
    ensure!(!mesh.dir().join("data/ca/ca.sqlite").exists(), "SQLite is used beside");
    let ca = mesh.roles()?.into_iter().find(|role| role.name == "ca").and_then(|role| role.pid).context("no CA")?;
    kill(u64::from(ca))?;
    wait::until("a healthy mesh after the CA was killed", Duration::from_secs(10), || mesh.expect_healthy())?;
    let logs = std::fs::read_dir(mesh.dir().join("logs"))?;
    for log in logs {
        let text = std::fs::read_to_string(log?.path())?;
        ensure!(!text.contains(PASSWORD), "a log holds the password");
    }
    ensure!(!std::fs::read_to_string(mesh.dir().join("endpoints.json"))?.contains(PASSWORD), "endpoints.json");
    mesh.down()?;
    Ok(())
}

fn a_backup_moves(mesh: &mut Mesh) -> Result<()> {
    let server = Postgres::start()?;
    let database = owned(&server, "moved")?;
    let file = mesh.scratch("backup")?.join("ca.backup");
    let file = file.to_str().context("a path")?;
    // Online: the authority runs.
    mesh.kasbah(["ca", "backup", file]).ok()?;
    mesh.down()?;
    mesh.kasbah(["ca", "backup", file]).ok()?;
    let before = std::fs::read_to_string(mesh.dir().join("run/bundle.pem"))?;
    let refused = mesh.kasbah(["ca", "restore", file]).run()?;
    ensure!(refused.code == 1 && refused.stderr.contains("not empty"), "{}", refused.said());
    mesh.kasbah(["ca", "restore", file, "--database", &database, "--moved"]).ok()?;
    mesh.up(&MeshOptions { options: vec!["--database".into(), database] })?;
    mesh.expect_healthy()?;
    ensure!(std::fs::read_to_string(mesh.dir().join("run/bundle.pem"))? == before, "another root");
    let entries: u64 = server.sql("moved", "SELECT count(*) FROM entry")?.parse()?;
    ensure!(entries > 5, "{entries} entries");
    Ok(())
}

const PASSWORD: &str = "a-very-secret-password";
