//! `kasbah status`: the roles of a running mesh, their health, memory and restarts, and the documents that were refused.

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;

use super::{down, wait};
use crate::args::{DirArg, OutputArg};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::Layout;
use crate::up::probe;
use crate::up::{MeshState, supervise::ProcessState};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    dir: std::path::PathBuf,
    version: String,
    supervisor_pid: u32,
    /// Whether every process is ready and no document is refused.
    healthy: bool,
    ready_after_ms: Option<u64>,
    pub(super) roles: Vec<Role>,
    findings: Vec<Value>,
}

#[derive(Debug, Serialize)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) pid: Option<u32>,
    pub(super) ready: bool,
    /// What it waits for, when it is not ready.
    waits_for: Option<String>,
    pub(super) restarts: u32,
    last_exit: Option<String>,
    /// Resident memory; absent when the process is not running.
    pub(super) memory_bytes: Option<u64>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) log: std::path::PathBuf,
}

pub(crate) fn run(dir: &DirArg, output: OutputArg) -> Result<(), Failure> {
    let layout = Layout::of(&dir.dir)?;
    let state = running(&layout)?;
    let report = wait(async { Ok(report(&layout, &state).await) })?;
    output::print(output.output, &report, || table(&report))?;
    if report.healthy { Ok(()) } else { Err(Failure::failed(unhealthy(&report))) }
}

/// The mesh of a folder, if it runs.
pub(super) fn running(layout: &Layout) -> Result<MeshState, Failure> {
    let none = || {
        Failure::new(Exit::Unavailable, format!("no mesh runs in {}", layout.dir.display()))
            .remedy("start one with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR")
    };
    down::supervisor(layout)?.ok_or_else(none)?;
    let text = std::fs::read(layout.state()).map_err(|_| none())?;
    serde_json::from_slice(&text)
        .map_err(|e| Failure::new(Exit::Data, format!("{} is damaged: {e}", layout.state().display())))
}

pub(super) async fn report(layout: &Layout, state: &MeshState) -> Report {
    let mut roles = Vec::new();
    for process in &state.processes {
        roles.push(role(process).await);
    }
    let findings = findings(state).await;
    Report {
        dir: layout.dir.clone(),
        version: state.version.clone(),
        supervisor_pid: state.supervisor_pid,
        healthy: roles.iter().all(|role| role.ready) && !findings.iter().any(is_error),
        ready_after_ms: state.ready_after_ms,
        roles,
        findings,
    }
}

async fn role(process: &ProcessState) -> Role {
    let ready = match process.pid {
        Some(_) => probe::ready(process).await,
        None => Err("it is not running".to_owned()),
    };
    Role {
        name: process.name.clone(),
        pid: process.pid,
        ready: ready.is_ok(),
        waits_for: ready.err(),
        restarts: process.restarts,
        last_exit: process.last_exit.clone(),
        memory_bytes: process.pid.and_then(resident_bytes),
        admin: process.admin,
        log: process.log.clone(),
    }
}

/// The documents that discovery refused, with file, line and column.
async fn findings(state: &MeshState) -> Vec<Value> {
    let discovery = state.processes.iter().find(|p| p.name == "discovery").and_then(|p| p.admin);
    let Some(admin) = discovery else { return Vec::new() };
    match runtime::ask::get(admin, "/findings").await {
        Ok((http::StatusCode::OK, body)) => serde_json::from_slice(&body).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// `VmRSS` of a process.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024)
}

fn table(report: &Report) -> String {
    let rows = report.roles.iter().map(|role| {
        [
            role.name.clone(),
            role.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            if role.ready { "yes".to_owned() } else { "NO".to_owned() },
            role.restarts.to_string(),
            role.memory_bytes.map_or_else(|| "-".to_owned(), memory_text),
            role.admin.map_or_else(|| "-".to_owned(), |admin| admin.to_string()),
        ]
    });
    let mut text = output::table(["ROLE", "PID", "READY", "RESTARTS", "MEMORY", "ADMIN"], rows);
    if let Some(ms) = report.ready_after_ms {
        let took = output::duration(std::time::Duration::from_millis(ms));
        text.push_str(&format!("\n\nready after {took}; logs in {}", report.dir.join("logs").display()));
    }
    for finding in &report.findings {
        let word = if is_error(finding) { "refused" } else { "note" };
        text.push_str(&format!("\n{word}: {}", finding_text(finding)));
    }
    text
}

fn is_error(finding: &Value) -> bool {
    finding.get("level").and_then(Value::as_str) == Some("Error")
}

fn finding_text(finding: &Value) -> String {
    let field = |name: &str| finding.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
    let number = |name: &str| finding.get(name).and_then(Value::as_u64).unwrap_or(0);
    format!(
        "{}:{}:{} {}: {}: {}",
        field("file"),
        number("line"),
        number("column"),
        field("resource"),
        field("code"),
        field("message")
    )
}

pub(super) fn memory_text(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

fn unhealthy(report: &Report) -> String {
    let waiting: Vec<String> = report
        .roles
        .iter()
        .filter(|role| !role.ready)
        .map(|role| format!("{} ({})", role.name, role.waits_for.as_deref().unwrap_or("not ready")))
        .collect();
    match (waiting.is_empty(), report.findings.iter().filter(|f| is_error(f)).count()) {
        (true, count) => format!("{count} document(s) refused; the last good ones keep serving"),
        (false, 0) => format!("not ready: {}", waiting.join("; ")),
        (false, count) => format!("not ready: {}; {count} document(s) refused", waiting.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shown_with_one_decimal() {
        assert_eq!(memory_text(12_897_485), "12.3 MiB");
    }

    #[test]
    fn the_memory_of_this_process_is_read() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
    }
}
