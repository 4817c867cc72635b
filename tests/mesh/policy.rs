//! The policy service: one demo rule each of external authorization, rate limit and access log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, wait};
use libtest_mimic::Trial;

use crate::demo::ways;
use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("policy::external_authorization_denies", external_authorization_denies),
        shared("policy::the_sixth_request_of_a_minute_is_429", the_sixth_request_of_a_minute_is_429),
        shared("policy::requests_reach_the_access_log", requests_reach_the_access_log),
    ]
}

fn external_authorization_denies(mesh: &Mesh) -> Result<()> {
    for (_, request) in ways(mesh, "/helloworld")? {
        let response = request.clone().header("x-demo-deny", "true").send()?.expect_status(403)?;
        ensure!(response.body.contains("demo-deny"), "the rule is not named: {}", response.body);
        ensure!(response.reason().starts_with("EXT_AUTHZ"), "the reason is {}", response.reason());
        request.header("x-demo-deny", "false").send()?.expect_status(200)?;
    }
    Ok(())
}

fn the_sixth_request_of_a_minute_is_429(mesh: &Mesh) -> Result<()> {
    let (_, request) = ways(mesh, "/helloworld/limited")?.remove(0);
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let response = request.send()?;
        if response.status == 429 {
            ensure!(response.reason().contains("RATE_LIMIT"), "the reason is {}", response.reason());
        }
        statuses.push(response.status);
    }
    let passed = statuses.iter().filter(|status| **status == 200).count();
    let limited = statuses.iter().filter(|status| **status == 429).count();
    ensure!(passed == 5 && limited == 3, "not five of 200 and then 429: {statuses:?}");
    let (_, other) = ways(mesh, "/helloworld")?.remove(0);
    other.send()?.expect_status(200).context("another path is limited too")?;
    Ok(())
}

fn requests_reach_the_access_log(mesh: &Mesh) -> Result<()> {
    let mark = format!("/helloworld/whoami?mark={}", std::process::id());
    let (_, request) = ways(mesh, &mark)?.remove(0);
    request.send()?.expect_status(200)?;
    let file = mesh.dir().join("logs/access.jsonl");
    wait::until("the request in the access log", Duration::from_secs(15), || {
        let log = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let line = log.lines().find(|line| line.contains(&mark)).context("not there yet")?;
        let entry: serde_json::Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        ensure!(line.contains("200"), "no status: {entry:#}");
        Ok(())
    })
}
