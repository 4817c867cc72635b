//! The drills of `tests/drill`, short: three agents, seven proxies, one of them a stock Envoy, under load.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Program, tools};
use libtest_mimic::Trial;

use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("drill::a_root_rotates_through_sleep_kills_and_aborts_and_no_request_fails", rotation),
        alone("drill::whoever_is_revoked_is_cut_at_every_proxy_and_no_request_of_others_fails", revocation),
    ]
}

fn rotation() -> Result<()> {
    let (text, page) = drill("rotation", ["--rotations", "2"])?;
    for words in
        ["3 agents", "an agent sleeps in the middle", "the CA is killed after `taint`", "aborted after", "Envoy"]
    {
        ensure!(text.contains(words), "no `{words}` in {text}");
    }
    expect_no_connection_left(&text)?;
    ensure!(page.contains("<th>stock Envoy") && page.contains("<td>dropped<td>"), "no table of connections in {page}");
    ensure!(page.contains("<svg") && page.matches("<rect").count() == 11, "no picture in {page}");
    Ok(())
}

/// At each drop nothing rests on the old root, before it much did, and streams were opened anew.
fn expect_no_connection_left(text: &str) -> Result<()> {
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let of = |step: &str| -> Vec<&Vec<&str>> { rows.iter().filter(|row| row.get(2) == Some(&step)).collect() };
    // Two rotations, the sleeper, the killed CA, the last one.
    ensure!(of("dropped").len() == 5 && of("end").len() == 5, "not every drop was seen: {text}");
    for row in of("dropped").into_iter().chain(of("end")) {
        let cells = &row[3..row.len() - 1];
        ensure!(cells.len() == 7, "not seven proxies: {row:?}");
        ensure!(cells.iter().all(|cell| cell.starts_with("0 of ") || cell.starts_with("? of ")), "left: {row:?}");
    }
    let first = of("before").first().context("no first row")?.to_vec();
    ensure!(first[3..].iter().filter(|cell| cell.starts_with(|c| ('1'..='9').contains(&c))).count() >= 5, "{first:?}");
    for load in ["TCP 1, kept open", "gRPC stream: test, north", "WebSocket: test, south"] {
        let row = rows.iter().find(|row| row.get(1) == Some(&load)).with_context(|| format!("no {load}: {text}"))?;
        ensure!(row[3] == "0" && row[4].parse::<u64>()? >= 4, "{row:?}");
    }
    Ok(())
}

/// Other tests run beside this one: what is promised of the time is measured by `tests/drill`.
fn revocation() -> Result<()> {
    let (text, page) = drill("revocation", ["--within-ms", "10000"])?;
    for words in ["3 agents", "by its serial number", "an identity is", "an entry is", "a node is", "egress gateway"] {
        ensure!(text.contains(words), "no `{words}` in {text}");
    }
    let cuts = text.lines().filter(|line| line.matches('|').count() == 6).count();
    // Two lines of head; 4 acts at 6 proxies, in 17 ways; the node's own workload.
    ensure!(cuts == 2 + 4 * 17 + 1, "{cuts} lines: {text}");
    ensure!(page.matches("<svg").count() == 2 && page.matches("<rect").count() == 4 + cuts - 2, "no pictures: {page}");
    Ok(())
}

/// Its report, as Markdown and HTML. One drill at a time: each is work enough for the machine.
fn drill(name: &str, options: [&str; 2]) -> Result<(String, String)> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    tools::python_program("envoy")?;
    let folder = tempfile::tempdir()?;
    let drill = tools::kasbah().parent().context("no folder of programs")?.join("drill");
    let report = folder.path().join("report");
    let drill = Program::new(drill).arg(name).args(options).arg("--report").arg(&report);
    let answer = drill.limit(Duration::from_secs(300)).run()?;
    ensure!(answer.code == 0, "{}", answer.said());
    let read = |ending: &str| std::fs::read_to_string(report.join(format!("{name}.{ending}")));
    Ok((read("md")?, read("html")?))
}
