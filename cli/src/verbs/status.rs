//! `kasbah status`: the roles of a running mesh, their health, memory and restarts, and the documents that were refused.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
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
    /// What it says of itself; absent when it did not answer.
    version: Option<String>,
    certificate: Option<Certificate>,
    /// What discovery knows of a proxy; absent for other roles, and when discovery did not answer.
    configuration: Option<Configuration>,
}

/// The SVID that a role shows to others.
#[derive(Debug, PartialEq, Serialize)]
struct Certificate {
    not_after: String,
    /// Time left, such as `45m`; `expired`.
    life_left: String,
    /// Of its whole life.
    life_left_percent: u8,
}

/// How far a proxy is with its configuration.
#[derive(Debug, PartialEq, Serialize)]
struct Configuration {
    /// `SYNCED`, `STALE` (sent, not acknowledged yet), `ERROR` (refused).
    state: &'static str,
    /// The generation that it was sent last, and how many newer ones there are.
    generation: u64,
    behind: u64,
    /// Each xDS type with the version that was sent and the one that was acknowledged, and why it was refused.
    types: Value,
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
        Failure::refused(Exit::Unavailable, "MESH_NOT_RUNNING", format!("no mesh runs in {}", layout.dir.display()))
            .remedy("start one with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR")
    };
    down::supervisor(layout)?.ok_or_else(none)?;
    let text = std::fs::read(layout.state()).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => down::not_ours(&layout.state(), &error),
        _ => none(),
    })?;
    serde_json::from_slice(&text)
        .map_err(|e| Failure::new(Exit::Data, format!("{} is damaged: {e}", layout.state().display())))
}

pub(super) async fn report(layout: &Layout, state: &MeshState) -> Report {
    let clients = page(admin_of(state, "discovery"), "/syncz").await.unwrap_or_default();
    let now = SystemTime::now();
    let roles = join_all(state.processes.iter().map(|process| role(process, &clients, now))).await;
    let findings = findings(state).await;
    let refused = roles.iter().any(Role::refuses);
    Report {
        dir: layout.dir.clone(),
        version: state.version.clone(),
        supervisor_pid: state.supervisor_pid,
        healthy: roles.iter().all(|role| role.ready) && !findings.iter().any(is_error) && !refused,
        ready_after_ms: state.ready_after_ms,
        roles,
        findings,
    }
}

async fn role(process: &ProcessState, clients: &Value, now: SystemTime) -> Role {
    let ready = match process.pid {
        Some(_) => probe::ready(process).await,
        None => Err("it is not running".to_owned()),
    };
    let (said, certs) = (page(process.admin, "/status").await, page(process.admin, "/certs").await);
    let node = said.as_ref().and_then(|said| said["node"].as_str());
    Role {
        version: said.as_ref().and_then(|said| said["version"].as_str()).map(str::to_owned),
        certificate: certs.as_ref().and_then(|certs| certificate(certs, now)),
        configuration: node.and_then(|node| configuration(clients, node)),
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

impl Role {
    /// Whether it is a proxy that refused what discovery sent.
    fn refuses(&self) -> bool {
        self.configuration.as_ref().is_some_and(|configuration| configuration.state == ERROR)
    }
}

fn admin_of(state: &MeshState, name: &str) -> Option<SocketAddr> {
    state.processes.iter().find(|process| process.name == name)?.admin
}

async fn page(admin: Option<SocketAddr>, path: &str) -> Option<Value> {
    let (status, body) = runtime::ask::get(admin?, path).await.ok()?;
    (status == http::StatusCode::OK).then(|| serde_json::from_slice(&body).ok())?
}

/// The SVID of a role's page, wherever the role shows it.
fn certificate(certs: &Value, now: SystemTime) -> Option<Certificate> {
    let svid = ["/svid", "/own_svid", "/agent"].iter().find_map(|at| certs.pointer(at).filter(|svid| svid.is_object()));
    let times = svid.map(|svid| (moment(&svid["not_before"]), moment(&svid["not_after"])));
    let leaf = &certs["certificates"][0];
    let secs = |name: &str| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(leaf[name].as_u64()?));
    let (begin, end) = times.unwrap_or_else(|| (secs("not_before_unix"), secs("not_after_unix")));
    let (begin, end) = (begin?, end?);
    let (whole, left) = (end.duration_since(begin).ok()?, end.duration_since(now).unwrap_or_default());
    let percent = (left.as_secs_f64() / whole.as_secs_f64().max(1.0) * 100.0).clamp(0.0, 100.0);
    Some(Certificate {
        not_after: runtime::clock::rfc3339(end),
        life_left: if left.is_zero() { "expired".to_owned() } else { output::span(left) },
        life_left_percent: percent as u8, // Between 0 and 100.
    })
}

fn moment(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}

/// What discovery knows of the stream of a node. The newest of several is meant: an older one may not have ended yet.
fn configuration(clients: &Value, node: &str) -> Option<Configuration> {
    let client = clients["clients"].as_array()?.iter().rfind(|client| client["node"] == node)?;
    let types = client["types"].as_object()?;
    let is = |wanted: &str| types.values().any(|kind| kind["state"] == wanted);
    let behind = client["behind"].as_u64().unwrap_or(0);
    let state = match () {
        () if is(ERROR) => ERROR,
        () if is(STALE) || behind > 0 => STALE,
        () => "SYNCED",
    };
    let generation = client["generation"].as_u64().unwrap_or(0);
    Some(Configuration { state, generation, behind, types: client["types"].clone() })
}

/// The documents that discovery refused, with file, line and column.
async fn findings(state: &MeshState) -> Vec<Value> {
    let findings = page(admin_of(state, "discovery"), "/findings").await;
    findings.and_then(|findings| findings.as_array().cloned()).unwrap_or_default()
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
            configuration_text(role.configuration.as_ref()),
            certificate_text(role.certificate.as_ref()),
            role.version.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let header = ["ROLE", "PID", "READY", "RESTARTS", "MEMORY", "ADMIN", "CONFIGURATION", "CERTIFICATE", "VERSION"];
    let mut text = output::table(header, rows);
    if let Some(ms) = report.ready_after_ms {
        let took = output::duration(Duration::from_millis(ms));
        text.push_str(&format!("\n\nready after {took}; logs in {}", report.dir.join("logs").display()));
    }
    for refusal in report.roles.iter().flat_map(refusals) {
        text.push_str(&format!("\n{refusal}"));
    }
    for finding in &report.findings {
        let word = if is_error(finding) { "refused" } else { "note" };
        text.push_str(&format!("\n{word}: {}", finding_text(finding)));
    }
    text
}

fn configuration_text(configuration: Option<&Configuration>) -> String {
    let Some(configuration) = configuration else { return "-".to_owned() };
    format!("{} at {}", configuration.state, configuration.generation)
}

fn certificate_text(certificate: Option<&Certificate>) -> String {
    let Some(certificate) = certificate else { return "-".to_owned() };
    format!("{} ({} %)", certificate.life_left, certificate.life_left_percent)
}

/// Why proxies refused their configuration.
fn refusals(role: &Role) -> Vec<String> {
    let types = role.configuration.iter().filter_map(|configuration| configuration.types.as_object()).flatten();
    let refused = types.filter_map(|(kind, one)| Some((kind, one["error"].as_str()?)));
    refused.map(|(kind, error)| format!("{} refused {kind}: {error}", role.name)).collect()
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
    let refused: Vec<&str> = report.roles.iter().filter(|role| role.refuses()).map(|role| role.name.as_str()).collect();
    match (waiting.is_empty(), report.findings.iter().filter(|f| is_error(f)).count()) {
        (true, 0) => format!("{} refused the configuration; the last good one keeps serving", refused.join(", ")),
        (true, count) => format!("{count} document(s) refused; the last good ones keep serving"),
        (false, 0) => format!("not ready: {}", waiting.join("; ")),
        (false, count) => format!("not ready: {}; {count} document(s) refused", waiting.join("; ")),
    }
}

const ERROR: &str = "ERROR";
const STALE: &str = "STALE";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_proxy_acknowledged_is_told_of_its_newest_stream() {
        let one = |node: &str, generation: u64, state: &str, error: Value| {
            let cds = json!({"state": state, "sent": "2", "acknowledged": "1", "error": error});
            json!({"node": node, "generation": generation, "behind": 0, "types": {"cds": cds}})
        };
        let clients = json!({"clients": [
            one("a", 1, "STALE", Value::Null), one("a", 2, "ERROR", json!("no")), one("b", 2, "SYNCED", Value::Null)]});
        let state = |node| configuration(&clients, node).map(|one| (one.state, one.generation));
        assert_eq!(state("a"), Some(("ERROR", 2)));
        assert_eq!(state("b"), Some(("SYNCED", 2)));
        assert_eq!(state("c"), None);
        assert_eq!(configuration(&Value::Null, "a"), None);
    }

    #[test]
    fn the_life_of_a_certificate_is_found_on_the_page_of_each_role() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let svid = json!({"not_before": "1970-01-01T00:00:00Z", "not_after": "1970-01-01T01:00:00Z"});
        let leaf = json!({"not_before_unix": 0, "not_after_unix": 3600});
        for page in
            [json!({"svid": svid}), json!({"own_svid": svid}), json!({"agent": svid}), json!({"certificates": [leaf]})]
        {
            let found = certificate(&page, at(1800)).unwrap();
            assert_eq!((found.life_left.as_str(), found.life_left_percent), ("30m", 50), "{page}");
        }
        assert_eq!(certificate(&json!({"svid": svid}), at(3600)).unwrap().life_left, "expired");
        assert_eq!(certificate(&json!({"svid": null}), at(0)), None);
    }

    #[test]
    fn memory_is_shown_with_one_decimal() {
        assert_eq!(memory_text(12_897_485), "12.3 MiB");
    }

    #[test]
    fn the_memory_of_this_process_is_read() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
    }
}
