//! What can go wrong at a start gets one clear sentence with its remedy, the right exit code, and leaves nothing behind.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::mesh::{free_port, up};
use harness::{Answer, Mesh, MeshOptions};
use libtest_mimic::Trial;

use crate::trial::{alone, own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("failures::a_second_mesh_in_the_same_folder", a_second_mesh_in_the_same_folder),
        alone("failures::a_taken_ingress_port", a_taken_ingress_port),
        alone("failures::a_folder_that_cannot_be_written", a_folder_that_cannot_be_written),
        own("failures::a_corrupt_database", &[], a_corrupt_database),
        own("failures::a_taken_port_of_a_known_mesh", &[], a_taken_port_of_a_known_mesh),
        own("failures::two_meshes_run_side_by_side", &[], two_meshes_run_side_by_side),
    ]
}

/// One sentence that says what is wrong, one line that says what to do, the exit code of a failure.
fn expect_sentence(answer: &Answer, words: &[&str]) -> Result<()> {
    let said = &answer.stderr;
    ensure!([1, 69, 77].contains(&answer.code), "the exit code is {}: {said}", answer.code);
    let sentences = said.lines().filter(|line| line.starts_with("error: ")).count();
    ensure!(sentences >= 1, "no sentence: {said}");
    ensure!(said.lines().any(|line| line.trim_start().starts_with("to mend it:")), "no remedy: {said}");
    for word in words {
        ensure!(said.contains(word), "{word:?} is not mentioned: {said}");
    }
    ensure!(!said.contains("panicked") && !said.contains("Os {"), "not a sentence for people: {said}");
    Ok(())
}

fn a_second_mesh_in_the_same_folder(mesh: &Mesh) -> Result<()> {
    for more in [&["--detach"][..], &[]] {
        let answer = up(mesh.dir()).args(more).run()?;
        expect_sentence(&answer, &["already runs", &mesh.dir().display().to_string()])?;
    }
    mesh.expect_healthy()
}

fn a_taken_ingress_port() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port().to_string();
    for more in [&["--detach"][..], &[]] {
        let dir = folder.path().join("mesh");
        let answer = up(&dir).args(["--ingress-port", &port]).args(more).run()?;
        expect_sentence(&answer, &[&port, "--ingress-port"])?;
    }
    Ok(())
}

fn a_folder_that_cannot_be_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder")?;
    // The tests may run as root, who may write almost anywhere: a path below a file, and one below /proc.
    for dir in [file.as_path(), &file.join("mesh"), Path::new("/proc/mesh")] {
        for more in [&["--detach"][..], &[]] {
            let answer = up(dir).args(["--ingress-port", &free_port()?.to_string()]).args(more).run()?;
            expect_sentence(&answer, &[&dir.display().to_string(), "--dir"])
                .with_context(|| dir.display().to_string())?;
        }
    }
    Ok(())
}

fn a_corrupt_database(mesh: &mut Mesh) -> Result<()> {
    mesh.down()?;
    let database = find_database(&mesh.dir().join("data/ca"))?;
    for extra in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{extra}", database.display()));
    }
    std::fs::write(&database, vec![0xa5_u8; 64 << 10])?;
    let answer = up(mesh.dir()).args(["--detach", "--ingress-port", &free_port()?.to_string()]).run()?;
    expect_sentence(&answer, &[&database.display().to_string()])
}

/// The SQLite file in the CA's folder.
fn find_database(folder: &Path) -> Result<std::path::PathBuf> {
    for entry in std::fs::read_dir(folder)? {
        let file = entry?.path();
        if std::fs::read(&file).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")) {
            return Ok(file);
        }
    }
    anyhow::bail!("no database in {}", folder.display())
}

fn a_taken_port_of_a_known_mesh(mesh: &mut Mesh) -> Result<()> {
    mesh.down()?;
    let inbound = mesh.address("/workloads/helloworld/inbound")?;
    let holder = TcpListener::bind(inbound)?;
    let answer = up(mesh.dir()).args(["--detach"]).run()?;
    expect_sentence(&answer, &[&inbound.to_string()])?;
    drop(holder);
    mesh.up(&MeshOptions::default())?;
    mesh.expect_healthy()
}

fn two_meshes_run_side_by_side(one: &mut Mesh) -> Result<()> {
    let two = Mesh::start(&MeshOptions::default())?;
    for mesh in [&*one, &two] {
        mesh.expect_healthy()?;
        let http = harness::curl::url("http", mesh.at("/ingress/http")?, "/helloworld");
        harness::curl::get(http).send()?.expect_status(200)?;
    }
    for pointer in ["/workloads/helloworld/address", "/ingress/http", "/ca/grpc", "/agent/workload_api"] {
        ensure!(one.at(pointer)? != two.at(pointer)?, "both have {} as {pointer}", one.at(pointer)?);
    }
    Ok(())
}
