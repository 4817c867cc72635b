//! Administration from elsewhere: over mTLS, by files and by the Workload API, and who may not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Mesh, Program, Skipped, tools, wait};
use libtest_mimic::Trial;
use serde_json::json;

use crate::trial::{alone, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("administration::an_administrator_works_over_mtls", an_administrator_works_over_mtls),
        shared("administration::who_may_not_is_told_who_he_is_and_what_is_missing", who_may_not_is_told),
        shared("administration::what_cannot_be_reached_or_believed_says_so", what_cannot_be_reached_says_so),
        alone("administration::rights_are_checked_and_explained_offline", rights_are_checked_offline),
        alone("administration::local_users_have_what_is_granted_and_approve", local_users_have_what_is_granted),
    ]
}

fn kasbah<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new(tools::kasbah()).args(args).env("NO_COLOR", "1")
}

/// `kasbah ARGS` against the CA's network address with the SVID of `folder`.
fn remote(mesh: &Mesh, folder: &Path, args: &[&str]) -> Result<Program> {
    let files = ["--cert", "svid.pem", "--key", "svid.key", "--bundle", "bundle.pem"];
    Ok(kasbah(args.iter().copied()).args(["--server", mesh.at("/ca/grpc")?]).args(files).in_folder(folder))
}

fn an_administrator_works_over_mtls(mesh: &Mesh) -> Result<()> {
    let entry = mesh
        .kasbah(["entry", "create", "--spiffe-id", "spiffe://cluster.local/ops", "--admin"])
        .args(["--parent-id", "spiffe://cluster.local/node/local", "--selector", "launch:name:ops"])
        .ok()?
        .stdout;
    let outcome = as_administrator(mesh);
    mesh.kasbah(["entry", "delete", entry.trim()]).ok()?;
    outcome
}

fn as_administrator(mesh: &Mesh) -> Result<()> {
    let folder = wait::until("the administrator's SVID", Duration::from_secs(30), || mesh.write_identity("ops"))?;
    let listed = remote(mesh, &folder, &["entry", "list", "-o", "json"])?.ok()?.stdout;
    ensure!(listed.contains("spiffe://cluster.local/ops"), "{listed}");
    for verb in [
        &["node", "list"][..],
        &["bundle", "show"],
        &["bundle", "list"],
        &["federation", "list"],
        &["audit", "list"],
        &["ca", "rotate", "status"],
        &["ca", "approvals", "list"],
        &["token", "create"],
    ] {
        remote(mesh, &folder, verb)?.ok()?;
    }
    // The same as a workload, without files.
    let own =
        mesh.launch("ops", tools::kasbah()).args(["node", "list", "-o", "json", "--server", mesh.at("/ca/grpc")?]);
    let nodes = own.env("SPIFFE_ENDPOINT_SOCKET", mesh.at("/agent/workload_api")?).ok()?.stdout;
    ensure!(nodes.contains("/spire/agent/"), "{nodes}");
    let audit = mesh.kasbah(["audit", "list", "--actor", "spiffe://cluster.local/ops", "-o", "json"]).ok()?.stdout;
    ensure!(audit.contains("token.create"), "{audit}");
    Ok(())
}

fn who_may_not_is_told(mesh: &Mesh) -> Result<()> {
    let folder = mesh.write_identity("test")?;
    let answer = remote(mesh, &folder, &["entry", "list"])?.run()?;
    ensure!(answer.code == 77, "ended with {}: {}", answer.code, answer.said());
    for word in ["spiffe://cluster.local/ns/default/sa/test", "`entry.read`"] {
        ensure!(answer.stderr.contains(word), "no {word} in: {}", answer.stderr);
    }
    Ok(())
}

fn what_cannot_be_reached_says_so(mesh: &Mesh) -> Result<()> {
    let folder = mesh.write_identity("test")?;
    let files = ["--cert", "svid.pem", "--key", "svid.key", "--bundle", "bundle.pem"];
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let answer = kasbah(["entry", "list", "--server", &nobody]).args(files).in_folder(&folder).run()?;
    ensure!(answer.code == 69 && answer.stderr.contains("firewall"), "{}: {}", answer.code, answer.said());
    // Other roots: the CA is not believed.
    std::fs::copy(mesh.at("/ingress/ca_file")?, folder.join("bundle.pem"))?;
    let answer = remote(mesh, &folder, &["entry", "list"])?.run()?;
    ensure!(answer.code == 77 && answer.stderr.contains("TLS_PEER"), "{}: {}", answer.code, answer.said());
    let answer = kasbah(["entry", "list", "--server", mesh.at("/ca/grpc")?]).env("SPIFFE_ENDPOINT_SOCKET", "").run()?;
    ensure!(answer.code == 64 && answer.stderr.contains("--cert"), "{}: {}", answer.code, answer.said());
    let answer = remote(mesh, &folder, &["entry", "list", "--socket", "x"])?.run()?;
    ensure!(answer.code == 64, "both ways at once: {}", answer.said());
    Ok(())
}

fn rights_are_checked_offline() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rights.yaml");
    let run = |args: &[&str]| kasbah(args.iter().copied()).in_folder(folder.path()).run();
    std::fs::write(&file, "roles: {pay: {entry.write: [/ns/pay/**]}}\ngrants: [{users: [7], roles: [pay]}]\n")?;
    let answer = run(&["ca", "rights", "check", "rights.yaml"])?;
    ensure!(answer.code == 0 && answer.stdout.contains("1 roles and 1 grants"), "{}", answer.said());
    let explain = ["ca", "rights", "explain", "--file", "rights.yaml", "--subject", "uid:7", "--verb", "entry.write"];
    let ask = |id: &str| run(&[&explain[..], &["--spiffe-id", id, "-o", "json"]].concat());
    let yes = ask("spiffe://td/ns/pay/sa/x")?;
    ensure!(yes.code == 0 && yes.json()?["role"] == "pay", "{}", yes.said());
    let no = ask("spiffe://td/ns/other/sa/x")?;
    ensure!(no.code == 1 && no.json()?["allowed"] == false, "{}", no.said());
    std::fs::write(&file, "roles:\n  pay:\n    entry.write:\n")?;
    let answer = run(&["ca", "rights", "check", "rights.yaml"])?;
    ensure!(answer.code == 65 && answer.stdout.contains("rights.yaml:3:5:"), "{}", answer.said());
    Ok(())
}

/// An authority whose socket everybody may open: the kernel says who each caller is.
fn local_users_have_what_is_granted() -> Result<()> {
    if tools::system("id")?.arg("-u").ok()?.stdout.trim() != "0" {
        return Err(Skipped("only root can be another user".into()).into());
    }
    let folder = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let rights = json!({
        "roles": {"reader": {"entry.read": ["/ns/pay/**"], "authority.rotate": []}},
        "grants": [{"users": [12345], "roles": ["reader"]}],
        "two_person": ["authority.rotate"],
    });
    std::fs::write(file("rights.yaml"), rights.to_string())?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let settings = json!({
        "trust_domain": "td.example",
        "data_dir": file("data"),
        "grpc": format!("127.0.0.1:{port}"),
        "admin_socket": file("admin.sock"),
        "rights_file": file("rights.yaml"),
    });
    std::fs::write(file("ca.yaml"), settings.to_string())?;
    std::fs::copy(tools::kasbah(), file("kasbah"))?;
    let _authority = kasbah(["ca", "run", "--config"]).arg(file("ca.yaml")).background(&file("ca.log"))?;
    let own = |args: &[&str]| kasbah(args.iter().copied()).arg("--socket").arg(file("admin.sock"));
    wait::until("the authority", Duration::from_secs(60), || own(&["entry", "list"]).ok())?;
    let as_user = |uid: u32, args: &[&str]| -> Result<Program> {
        let program = tools::system("setpriv")?.args([&format!("--reuid={uid}"), "--clear-groups"]);
        Ok(program.arg(file("kasbah")).args(args).arg("--socket").arg(file("admin.sock")).in_folder(folder.path()))
    };
    as_user(12345, &["entry", "list"])?.ok()?;
    for (uid, args, missing) in [(12345, ["node", "list"], "`node.read`"), (54321, ["entry", "list"], "uid:54321")] {
        let answer = as_user(uid, &args)?.run()?;
        ensure!(answer.code == 77 && answer.stderr.contains(missing), "{uid} {args:?}: {}", answer.said());
    }
    let asked = own(&["ca", "rotate", "prepare"]).run()?;
    ensure!(asked.code == 1 && asked.stderr.contains("kasbah ca approvals approve"), "{}", asked.said());
    let waiting = as_user(12345, &["ca", "approvals", "list", "-o", "json"])?.ok()?.json()?;
    let id = waiting[0]["id"].as_str().unwrap_or_default();
    let same = own(&["ca", "approvals", "approve", id]).run()?;
    ensure!(same.code == 77, "the same person approved: {}", same.said());
    as_user(12345, &["ca", "approvals", "approve", id])?.ok()?;
    own(&["ca", "rotate", "prepare"]).ok()?;
    Ok(())
}
