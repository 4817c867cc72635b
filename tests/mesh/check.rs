//! `kasbah check`: a good mesh is well, each trouble is found and named, and programs get the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, Program, curl, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{alone, own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("check::a_good_mesh_is_well_with_values", a_good_mesh_is_well_with_values),
        own("check::troubles_are_found_named_and_go_away", &[], troubles_are_found_named_and_go_away),
        own("check::policies_in_vain_and_missing_keys_are_told", &[], policies_in_vain_and_missing_keys_are_told),
        alone("check::a_machine_is_looked_at_before_the_start", a_machine_is_looked_at_before_the_start),
        alone("check::without_a_mesh_the_exit_code_says_so", without_a_mesh_the_exit_code_says_so),
    ]
}

fn a_good_mesh_is_well_with_values(mesh: &Mesh) -> Result<()> {
    let report = mesh.kasbah(["check", "-o", "json", "--wait", "20s"]).ok()?.json()?;
    let checks = report["checks"].as_array().context("no checks")?;
    ensure!(report["success"] == true && checks.len() > 20, "{report:#}");
    for check in checks {
        ensure!(check["value"].as_str().is_some_and(|value| !value.is_empty()), "no value: {check}");
        ensure!(check["result"] != "unknown", "{check}");
    }
    let table = mesh.kasbah(["check"]).ok()?.stdout;
    ensure!(table.contains("CA-01") && table.contains("of its life") && !table.contains('\u{1b}'), "{table}");
    let junit = mesh.kasbah(["check", "--only", "CA", "-o", "junit"]).ok()?.stdout;
    ensure!(junit.contains(r#"failures="0""#) && junit.contains(r#"classname="CA-09""#), "{junit}");
    let wrong = mesh.kasbah(["check", "--only", "NO-99"]).run()?;
    ensure!(wrong.code == 64 && wrong.stderr.contains("kasbah help checks"), "{}", wrong.said());
    Ok(())
}

fn result_of(mesh: &Mesh, id: &str) -> Result<(i32, Value)> {
    let answer = mesh.kasbah(["check", "--only", id, "-o", "json"]).run()?;
    let report = answer.json()?;
    Ok((answer.code, report["checks"][0].clone()))
}

fn troubles_are_found_named_and_go_away(mesh: &mut Mesh) -> Result<()> {
    let broken = mesh.dir().join("config/broken.yaml");
    std::fs::write(
        &broken,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {actoin: DENY}\n",
    )?;
    wait::until("the document is refused", LIMIT, || {
        let (code, check) = result_of(mesh, "CF-01")?;
        let named = check["value"].as_str().is_some_and(|value| value.contains("broken.yaml:4"));
        ensure!(code == 1 && check["result"] == "fail" && named && check["remedy"].is_string(), "{code}: {check}");
        Ok(())
    })?;
    std::fs::remove_file(&broken)?;
    wait::until("all is well again", LIMIT, || {
        let (code, check) = result_of(mesh, "CF-01")?;
        ensure!(code == 0, "{check}");
        Ok(())
    })?;
    let policy = mesh.roles()?.into_iter().find(|role| role.name == "policy").and_then(|role| role.pid);
    harness::mesh::kill(policy.context("no policy process")?.into())?;
    wait::until("the restart is told", LIMIT, || {
        let (_, check) = result_of(mesh, "HO-01")?;
        ensure!(check["value"].as_str().is_some_and(|value| value.contains("1 restarts")), "{check}");
        Ok(())
    })?;
    mesh.kasbah(["check", "--wait", "30s"]).limit(LIMIT).ok()?;
    Ok(())
}

fn policies_in_vain_and_missing_keys_are_told(mesh: &mut Mesh) -> Result<()> {
    let idle = mesh.dir().join("config/idle.yaml");
    std::fs::write(&idle, IDLE)?;
    let (code, check) = result_of(mesh, "CF-02")?;
    let value = check["value"].as_str().context("no value")?;
    ensure!(code == 0 && check["result"] == "warn" && check["remedy"].is_string(), "{check}");
    ensure!(value.contains("idle.yaml:8 default/idle") && value.contains("no registration entry gives it"), "{check}");
    ensure!(!value.contains("idle.yaml:7"), "the rule beside it can match: {check}");
    std::fs::remove_file(&idle)?;
    ensure!(result_of(mesh, "CF-02")?.1["result"] == "ok");
    std::fs::write(mesh.dir().join("config/keys.yaml"), KEYS)?;
    ensure!(result_of(mesh, "JW-01")?.1["result"] == "unknown", "nothing was fetched yet");
    let (url, token) = (curl::url("http", mesh.at("/ingress/http")?, "/test"), mesh.token("testers")?);
    wait::until("the missing keys are told", LIMIT, || {
        curl::get(&url).bearer(&token).send()?;
        let (code, check) = result_of(mesh, "JW-01")?;
        let value = check["value"].as_str().context("no value")?;
        ensure!(code == 1 && check["result"] == "fail", "{check}");
        ensure!(value.contains("https://a.example.com: no keys") && value.contains("keys in the document"), "{check}");
        Ok(())
    })
}

fn a_machine_is_looked_at_before_the_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().join("not/yet/there").display().to_string();
    let report = Program::new(tools::kasbah()).args(["check", "--pre", "--dir", &dir, "-o", "json"]).ok()?.json()?;
    ensure!(report["checks"].as_array().is_some_and(|checks| checks.len() == 6), "{report:#}");
    ensure!(!std::path::Path::new(&dir).exists(), "a look leaves nothing behind");
    Ok(())
}

fn without_a_mesh_the_exit_code_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let answer = Program::new(tools::kasbah()).args(["check", "--dir"]).arg(dir.path()).run()?;
    ensure!(answer.code == 69 && answer.stderr.contains("--pre") && answer.stdout.is_empty(), "{}", answer.said());
    let help = Program::new(tools::kasbah()).args(["help", "checks"]).ok()?.stdout;
    ensure!(help.contains("CA-01  root\n  remedy: "), "{help}");
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(60);
const IDLE: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: idle}
spec:
  selector: {matchLabels: {app: test}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/helloworld]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]
";
/// An issuer whose keys are at a host that the mesh does not know. It is asked first: issuers are tried in their order.
const KEYS: &str = "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: keys, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  jwtRules:
  - {issuer: 'https://a.example.com', jwksUri: 'http://keys.example.com/jwks'}
";
