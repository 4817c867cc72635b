//! Every role is killed in turn under load: it is started again and all is healthy within five seconds; what only
//! controls is not missed meanwhile, and the CA forgets nothing that it acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::curl::{self, url};
use harness::load::Load;
use harness::mesh::{Role, kill};
use harness::{Mesh, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rotation::load_through_all;
use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own("recovery::a_killed_control_role_is_not_missed", &[], a_killed_control_role_is_not_missed),
        own("recovery::a_killed_proxy_or_workload_is_back_within_five_seconds", &[], a_killed_proxy_is_back),
        own("recovery::a_killed_ca_loses_nothing_it_acknowledged", &[], a_killed_ca_loses_nothing),
        own(
            "recovery::certificates_go_on_after_the_ca_and_agent_were_killed",
            &["--leaf-ttl", "20s"],
            certificates_go_on,
        ),
    ]
}

fn a_killed_control_role_is_not_missed(mesh: &mut Mesh) -> Result<()> {
    let load = load_through_all(mesh)?;
    for role in ["ca", "agent", "discovery", "policy"] {
        kill_and_recover(mesh, role)?;
        load.tally().expect_no_failure().with_context(|| format!("{role} was missed"))?;
    }
    load.stop().expect_no_failure()
}

fn a_killed_proxy_is_back(mesh: &mut Mesh) -> Result<()> {
    let load = load_through_all(mesh)?;
    for role in ["egress", "external"] {
        kill_and_recover(mesh, role)?;
        load.tally().expect_no_failure().with_context(|| format!("{role} is not even on the way"))?;
    }
    for role in ["ingress", "test-sidecar", "helloworld-sidecar", "test", "helloworld"] {
        kill_and_recover(mesh, role)?;
        answers_again(mesh, &load).with_context(|| format!("after {role} was killed"))?;
    }
    let token = mesh.token("testers")?;
    for path in ["/helloworld", "/test", "/test/egress", "/test/egress-direct"] {
        curl::get(url("http", mesh.at("/ingress/http")?, path))
            .bearer(&token)
            .send()?
            .expect_status(200)
            .context(path)?;
    }
    Ok(())
}

/// From now on nothing fails, as long as fifty more requests take.
fn answers_again(mesh: &Mesh, load: &Load) -> Result<()> {
    wait::until("an answer", Duration::from_secs(5), || {
        let token = mesh.token("testers")?;
        curl::get(url("http", mesh.at("/ingress/http")?, "/test")).bearer(&token).send()?.expect_status(200)
    })?;
    // What was on the way when the role came back may still fail.
    wait::until("the last failures to be counted", Duration::from_secs(2), || fifty_more_without_failure(load))
}

fn fifty_more_without_failure(load: &Load) -> Result<()> {
    load.forget();
    wait::until("fifty answers", Duration::from_secs(10), || {
        let tally = load.tally();
        ensure!(tally.answered + tally.failed >= 50, "{} answers", tally.answered);
        Ok(())
    })?;
    load.tally().expect_no_failure()
}

/// Kills a role and waits until all is healthy again, which may take five seconds.
fn kill_and_recover(mesh: &Mesh, name: &str) -> Result<()> {
    let before = role(mesh, name)?;
    let pid = before.pid.with_context(|| format!("{name} does not run"))?;
    kill(u64::from(pid))?;
    wait::until(&format!("a healthy mesh after {name} was killed"), RECOVERY_MAX, || {
        let now = role(mesh, name)?;
        ensure!(now.restarts > before.restarts && now.pid.is_some_and(|new| new != pid), "not started again: {now:?}");
        mesh.expect_healthy()
    })
}

fn role(mesh: &Mesh, name: &str) -> Result<Role> {
    mesh.roles()?.into_iter().find(|role| role.name == name).with_context(|| format!("no role {name}"))
}

fn a_killed_ca_loses_nothing(mesh: &mut Mesh) -> Result<()> {
    let before = mesh.write_identity("test")?;
    let bundle = std::fs::read_to_string(before.join("bundle.pem"))?;
    let acknowledged = entries_while(mesh, || {
        let mut pid = ca_pid(mesh)?;
        for _ in 0..KILLS {
            // Between two kills at least a few registrations are acknowledged.
            std::thread::sleep(Duration::from_millis(300));
            kill(u64::from(pid))?;
            pid = wait::until("the next CA", RECOVERY_MAX, || {
                let new = ca_pid(mesh)?;
                ensure!(new != pid, "still the old one");
                mesh.kasbah(["entry", "list"]).ok()?;
                Ok(new)
            })?;
        }
        Ok(())
    })?;
    ensure!(acknowledged.len() >= KILLS, "only {} registrations were acknowledged", acknowledged.len());
    let listed = entry_ids(&mesh.kasbah(["entry", "list", "-o", "json"]).ok()?.json()?);
    let lost: Vec<&String> = acknowledged.difference(&listed).collect();
    ensure!(lost.is_empty(), "{} of {} acknowledged registrations are lost: {lost:?}", lost.len(), acknowledged.len());
    wait::until("a healthy mesh", RECOVERY_MAX, || mesh.expect_healthy())?;
    let after = mesh.write_identity("test")?;
    ensure!(std::fs::read_to_string(after.join("bundle.pem"))? == bundle, "the root changed");
    issuances_are_recorded(mesh)
}

/// Every certificate that is in use is known to the CA's database by its serial.
fn issuances_are_recorded(mesh: &Mesh) -> Result<()> {
    let answer = mesh
        .launch("helloworld", harness::tools::kasbah())
        .args(["agent", "fetch", "x509", "-o", "json"])
        .ok()?
        .json()?;
    let serial = answer.pointer("/svids/0/serial").and_then(Value::as_str).with_context(|| answer.to_string())?;
    let database = harness::tools::script("database_knows.py")?.arg("--folder").arg(mesh.dir().join("data/ca"));
    database.args(["--serial", serial]).ok()?;
    Ok(())
}

fn ca_pid(mesh: &Mesh) -> Result<u32> {
    role(mesh, "ca")?.pid.context("no CA runs")
}

/// Creates entries one after the other while `act` runs; returns the acknowledged ones.
fn entries_while(mesh: &Mesh, act: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| {
            let mut acknowledged = BTreeSet::new();
            for number in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let id = format!("spiffe://cluster.local/ns/recovery/sa/number-{number}");
                let created = mesh
                    .kasbah(["entry", "create", "--parent-id", "spiffe://cluster.local/node/local"])
                    .args(["--selector", "unix:uid:4294967294", "--spiffe-id", &id, "-o", "json"])
                    .run();
                // An unacknowledged one may or may not be there.
                if let Ok(answer) = created
                    && answer.code == 0
                {
                    acknowledged.extend(answer.json().map(|value| entry_ids(&value)).unwrap_or_default());
                }
            }
            acknowledged
        });
        let result = act();
        done.store(true, Ordering::Relaxed);
        let acknowledged = creating.join().map_err(|_| anyhow::anyhow!("the creator failed"))?;
        result.map(|()| acknowledged)
    })
}

/// The ids of all entries in an answer, however they are wrapped.
fn entry_ids(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(entry_ids).collect(),
        Value::Object(object) => match object.get("id") {
            Some(Value::String(id)) => BTreeSet::from([id.clone()]),
            _ => object.values().filter(|v| v.is_array() || v.is_object()).flat_map(entry_ids).collect(),
        },
        _ => BTreeSet::new(),
    }
}

fn certificates_go_on(mesh: &mut Mesh) -> Result<()> {
    let load = load_through_all(mesh)?;
    for role in ["ca", "agent", "ca"] {
        kill_and_recover(mesh, role)?;
        let identity = mesh.write_identity("test")?;
        let serial = serial_of(mesh, &identity)?;
        wait::until(&format!("the next certificate after {role} was killed"), Duration::from_secs(20), || {
            let now = serial_of(mesh, &identity)?;
            ensure!(now != serial, "still {serial}");
            Ok(())
        })?;
    }
    load.stop().expect_no_failure()
}

fn serial_of(mesh: &Mesh, identity: &std::path::Path) -> Result<String> {
    let leaf = crate::mtls::leaf_of(mesh.at("/workloads/helloworld/inbound")?, identity)?;
    crate::mtls::x509(&leaf, &["-serial"])
}

const RECOVERY_MAX: Duration = Duration::from_secs(5);
const KILLS: usize = 3;
