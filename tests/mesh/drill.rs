//! The rotation drill of `tests/drill`, with few rotations: three agents, seven proxies, one of them a stock Envoy, under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Program, tools};
use libtest_mimic::Trial;

use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![alone("drill::a_root_rotates_through_sleep_kills_and_aborts_and_no_request_fails", rotation)]
}

fn rotation() -> Result<()> {
    tools::python_program("envoy")?;
    let folder = tempfile::tempdir()?;
    let drill = tools::kasbah().parent().context("no folder of programs")?.join("drill");
    let report = folder.path().join("report");
    let drill = Program::new(drill).args(["rotation", "--rotations", "2", "--report"]).arg(&report);
    let answer = drill.limit(Duration::from_secs(300)).run()?;
    ensure!(answer.code == 0, "{}", answer.said());
    let text = std::fs::read_to_string(report.join("rotation.md"))?;
    for words in
        ["3 agents", "an agent sleeps in the middle", "the CA is killed after `taint`", "aborted after", "Envoy"]
    {
        ensure!(text.contains(words), "no `{words}` in {text}");
    }
    let page = std::fs::read_to_string(report.join("rotation.html"))?;
    ensure!(page.contains("<svg") && page.matches("<rect").count() == 11, "no picture in {page}");
    Ok(())
}
