//! The root of the whole mesh is replaced under load, twice, and with a CA that is killed between the steps; no request
//! notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::curl;
use harness::mesh::kill;
use harness::{Mesh, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rotation::load_through_all;
use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own(
            "authority_rotation::the_root_changes_everywhere_twice_and_no_request_fails",
            &[],
            changes_everywhere_twice,
        ),
        own("authority_rotation::a_ca_killed_between_the_steps_goes_on", &[], a_killed_ca_goes_on),
        own("authority_rotation::a_step_that_is_not_safe_names_who_lags", &[], a_step_names_who_lags),
        own("authority_rotation::a_plan_changes_nothing_and_a_receipt_can_be_checked", &[], plan_and_receipt),
        own("authority_rotation::a_compromised_root_goes_at_once_and_breaks_only_who_lags", &[], compromised),
    ]
}

fn changes_everywhere_twice(mesh: &mut Mesh) -> Result<()> {
    let load = load_through_all(mesh)?;
    let mut seen = vec![expect_one_root(mesh)?];
    for round in 1..=2 {
        let answer = mesh.kasbah(["ca", "rotate", "--yes", "-o", "json"]).limit(ROTATION_MAX).ok()?;
        ensure!(answer.stderr.contains("done: "), "no progress was shown: {}", answer.stderr);
        let status = answer.json()?;
        ensure!(
            status["phase"] == "idle" && status["authorities"].as_array().is_some_and(|a| a.len() == 1),
            "{status}"
        );
        let root = wait::until("one root everywhere", Duration::from_secs(10), || expect_one_root(mesh))?;
        ensure!(!seen.contains(&root), "round {round}: the root is not a new one");
        seen.push(root);
        load.tally().expect_no_failure().with_context(|| format!("round {round}"))?;
    }
    let jwt = mesh.kasbah(["ca", "rotate", "--kind", "jwt", "--yes", "-o", "json"]).limit(ROTATION_MAX).ok()?.json()?;
    ensure!(jwt["phase"] == "idle", "{jwt}");
    mesh.expect_healthy()?;
    load.stop().expect_no_failure()
}

/// What the CA published, the agent, every proxy, and what their certificates lead to are one root; its serial number.
fn expect_one_root(mesh: &Mesh) -> Result<String> {
    let identity = mesh.write_identity("test")?;
    let published = std::fs::read_to_string(mesh.at("/ca/bundle_file")?)?;
    ensure!(published.matches("BEGIN CERTIFICATE").count() == 1, "not one root: {published}");
    ensure!(std::fs::read_to_string(identity.join("bundle.pem"))? == published, "a workload got another bundle");
    let root = plain(&crate::mtls::x509(&published, &["-serial"])?);
    let proxies = ["/ingress/admin", "/egress/admin", "/workloads/test/admin", "/workloads/helloworld/admin"];
    for pointer in proxies.iter().chain(&["/agent/admin"]) {
        let certs = page(mesh, pointer)?;
        let roots = roots_of(&certs);
        ensure!(roots == [root.as_str()], "{pointer} trusts {roots:?}, not {root}");
    }
    for workload in ["test", "helloworld"] {
        let inbound = mesh.at(&format!("/workloads/{workload}/inbound"))?;
        // Its chain must lead to the new root and to nothing else.
        let answer = crate::mtls::s_client(inbound)?
            .arg("-cert")
            .arg(identity.join("svid.pem"))
            .arg("-key")
            .arg(identity.join("svid.key"))
            .arg("-CAfile")
            .arg(mesh.at("/ca/bundle_file")?)
            .run()?;
        ensure!(answer.said().contains("Verify return code: 0 (ok)"), "{workload}: {}", answer.said());
    }
    Ok(root)
}

/// A serial number as all write it.
fn plain(serial: &str) -> String {
    let hex = serial.rsplit('=').next().unwrap_or_default().trim().replace(':', "").to_lowercase();
    hex.trim_start_matches('0').to_owned()
}

fn page(mesh: &Mesh, pointer: &str) -> Result<Value> {
    curl::get(curl::url("http", mesh.at(pointer)?, "/certs")).send()?.expect_status(200)?.json()
}

/// The serial numbers of the roots on a `/certs` page, of the agent or of a proxy.
fn roots_of(certs: &Value) -> Vec<String> {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of_agent = items(&certs["bundles"]).into_iter().flat_map(|bundle| items(&bundle["roots"]));
    let of_proxy = items(&certs["certificates"]).into_iter().flat_map(|one| items(&one["ca_cert"]));
    let serial = |root: Value| root["serial"].as_str().or_else(|| root["serial_number"].as_str()).map(plain);
    of_agent.chain(of_proxy).filter_map(serial).collect()
}

fn status(mesh: &Mesh) -> Result<Value> {
    mesh.kasbah(["ca", "rotate", "status", "-o", "json"]).ok()?.json()
}

fn a_killed_ca_goes_on(mesh: &mut Mesh) -> Result<()> {
    let load = load_through_all(mesh)?;
    let first = expect_one_root(mesh)?;
    for (step, phase) in [("prepare", "prepared"), ("activate", "activated"), ("taint", "tainted"), ("revoke", "idle")]
    {
        wait::until(&format!("a safe moment to {step}"), STEP_MAX, || {
            let status = status(mesh)?;
            ensure!(status["safe_to_proceed"] == true && status["next_step"] == step, "{status}");
            Ok(())
        })?;
        mesh.kasbah(["ca", "rotate", step]).ok()?;
        kill_ca(mesh)?;
        let status = status(mesh)?;
        ensure!(status["phase"] == phase, "after {step} and a kill: {status}");
    }
    let second = wait::until("one root everywhere", STEP_MAX, || expect_one_root(mesh))?;
    ensure!(second != first, "the root is the old one");
    // A whole rotation belongs to the server: it goes on although the server dies in the middle.
    mesh.kasbah(["ca", "rotate", "prepare"]).ok()?;
    let watching = mesh.scratch("rotate")?.join("rotate.log");
    let mut whole = mesh.kasbah(["ca", "rotate", "--yes"]).background(&watching)?;
    wait::until("the server to take over", STEP_MAX, || {
        let status = status(mesh)?;
        ensure!(status["mode"] == "auto" || status["phase"] == "idle", "{status}");
        Ok(())
    })?;
    kill_ca(mesh)?;
    let third = wait::until("one root everywhere", ROTATION_MAX, || {
        let status = status(mesh)?;
        ensure!(status["phase"] == "idle", "{status}");
        expect_one_root(mesh)
    })?;
    ensure!(third != second, "the root is the old one");
    wait::until("the end of the one who watched", STEP_MAX, || {
        ensure!(whole.has_ended(), "still there");
        Ok(())
    })?;
    load.stop().expect_no_failure()
}

/// Kills the CA and waits until the next one answers.
fn kill_ca(mesh: &Mesh) -> Result<()> {
    let pid = ca_pid(mesh)?;
    kill(u64::from(pid))?;
    wait::until("the next CA", STEP_MAX, || {
        ensure!(ca_pid(mesh)? != pid, "still the old one");
        status(mesh).map(drop)
    })
}

fn ca_pid(mesh: &Mesh) -> Result<u32> {
    role_pid(mesh, "ca")
}

fn role_pid(mesh: &Mesh, name: &str) -> Result<u32> {
    mesh.roles()?
        .into_iter()
        .find(|role| role.name == name)
        .and_then(|role| role.pid)
        .with_context(|| format!("no {name}"))
}

/// A second node that never says a word holds everything up, by name; waived or aborted, things go on.
fn a_step_names_who_lags(mesh: &mut Mesh) -> Result<()> {
    expect_one_root(mesh)?;
    let first = std::fs::read_to_string(mesh.at("/ca/bundle_file")?)?;
    let agent = role_pid(mesh, "agent")?;
    let signal = |name: &str| harness::Program::new("kill").args([name, &agent.to_string()]).ok().map(drop);
    signal("-STOP")?;
    let held = (|| {
        mesh.kasbah(["ca", "rotate", "prepare"]).ok()?;
        let refused = mesh.kasbah(["ca", "rotate", "activate"]).run()?;
        ensure!(refused.code == 1, "the code is {}: {}", refused.code, refused.said());
        ensure!(refused.stderr.contains("/spire/agent/join_token/"), "nobody is named: {}", refused.stderr);
        let status = status(mesh)?;
        ensure!(status["safe_to_proceed"] == false && status["acknowledged"] == 0 && status["total"] == 1, "{status}");
        ensure!(status["laggards"].as_array().is_some_and(|laggards| laggards.len() == 1), "{status}");
        let name = status["laggards"][0]["id"].as_str().context("no name")?.to_owned();
        mesh.kasbah(["ca", "rotate", "activate", "--waive", &name]).ok()?;
        mesh.kasbah(["ca", "rotate", "abort"]).ok()?;
        Ok(())
    })();
    signal("-CONT")?;
    held?;
    let status = status(mesh)?;
    ensure!(status["phase"] == "idle", "{status}");
    // The agent that was away during all of it is back, and a rotation now goes through.
    mesh.kasbah(["ca", "rotate", "--yes"]).limit(ROTATION_MAX).ok()?;
    let published = std::fs::read_to_string(mesh.at("/ca/bundle_file")?)?;
    ensure!(!published.contains(first.trim()), "the first root is still there");
    mesh.expect_healthy()
}

fn plan_and_receipt(mesh: &mut Mesh) -> Result<()> {
    let before = status(mesh)?;
    let plan = mesh.kasbah(["ca", "rotate", "--plan", "-o", "json"]).ok()?.json()?;
    let steps: Vec<&str> = plan["steps"].as_array().into_iter().flatten().filter_map(|s| s["step"].as_str()).collect();
    ensure!(steps == ["prepare", "activate", "taint", "revoke"] && plan["nodes"] == 1, "{plan:#}");
    ensure!(status(mesh)? == before, "a plan changed something");
    let none = mesh.kasbah(["ca", "rotate", "receipt"]).run()?;
    ensure!(none.code == 1 && none.stderr.contains("on record"), "{}", none.said());
    mesh.kasbah(["ca", "rotate", "--yes"]).limit(ROTATION_MAX).ok()?;
    let receipt = mesh.kasbah(["ca", "rotate", "receipt", "-o", "json"]).ok()?.stdout;
    let file = mesh.scratch("receipt")?.join("receipt.json");
    std::fs::write(&file, &receipt)?;
    let file = file.display().to_string();
    // Anywhere, also without a mesh.
    let verify =
        || harness::Program::new(harness::tools::kasbah()).args(["ca", "rotate", "receipt", "--verify", &file]);
    let checked = verify().args(["-o", "json"]).ok()?.json()?;
    ensure!(checked["verified"] == true && checked["receipt"]["result"] == "done", "{checked:#}");
    let head = mesh.kasbah(["log", "head", "-o", "json"]).ok()?.json()?;
    ensure!(checked["log_id"] == head["log_id"], "{checked:#} and {head:#}");
    let node = mesh.kasbah(["node", "list", "-o", "json"]).ok()?.json()?[0]["id"].clone();
    let activate = &checked["receipt"]["steps"][1];
    ensure!(activate["step"] == "activate" && activate["acknowledged"][0]["node"] == node, "{activate:#}");
    std::fs::write(&file, receipt.replace("activate", "actuvate"))?;
    let forged = verify().run()?;
    ensure!(forged.code == 1 && forged.stderr.contains("does not hold"), "{}", forged.said());
    std::fs::write(&file, "{}")?;
    ensure!(verify().run()?.code == 65, "nonsense is taken for a receipt");
    Ok(())
}

/// The agent sleeps through it. Everybody else has the new root and nothing else a few seconds later.
fn compromised(mesh: &mut Mesh) -> Result<()> {
    let first = std::fs::read_to_string(mesh.at("/ca/bundle_file")?)?;
    let agent = role_pid(mesh, "agent")?;
    let signal = |name: &str| harness::Program::new("kill").args([name, &agent.to_string()]).ok().map(drop);
    signal("-STOP")?;
    let rotate = mesh.kasbah(["ca", "rotate", "--compromised", "--yes", "--grace", "1s"]).limit(ROTATION_MAX).ok();
    signal("-CONT")?;
    let answer = rotate?;
    for words in ["each step waits 1s", "going on without", "done: "] {
        ensure!(answer.stderr.contains(words), "no `{words}` in {}", answer.stderr);
    }
    let published = std::fs::read_to_string(mesh.at("/ca/bundle_file")?)?;
    ensure!(!published.contains(first.trim()), "the first root is still there");
    let receipt = mesh.kasbah(["ca", "rotate", "receipt", "-o", "json"]).ok()?.json()?;
    let document: Value = serde_json::from_str(receipt["document"].as_str().context("no document")?)?;
    let waived = document["steps"].as_array().into_iter().flatten().filter(|step| step["step"] == "waive").count();
    ensure!(waived == 1 && document["result"] == "done", "{document:#}");
    Ok(())
}

const STEP_MAX: Duration = Duration::from_secs(30);
const ROTATION_MAX: Duration = Duration::from_secs(120);
