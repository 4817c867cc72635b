//! `kasbah top`: the mesh live, drawn again and again on a terminal. Rates are differences between two looks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use super::check::{self, Look};
use super::edges::short;
use super::traffic::{self, Edge, Traffic};
use super::{status, wait};
use crate::args::{DirArg, TopArgs};
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::screen::{Event, Screen};
use crate::up::layout::Layout;

/// What one look saw.
struct Sample {
    at: Instant,
    roles: Vec<status::Role>,
    /// Processor time by process.
    cpu: BTreeMap<u32, Duration>,
    traffic: Traffic,
    look: Look,
}

#[derive(Debug, Serialize)]
struct Report {
    time: String,
    roles: Vec<RoleRow>,
    requests_per_second: f64,
    denied_per_second: f64,
    failed_per_second: f64,
    edges: Vec<EdgeRow>,
    certificates: usize,
    /// The certificate that ends first.
    first_end: Option<Value>,
    rotations: Vec<Value>,
    /// What `kasbah check` has to say, without what is well.
    warnings: Vec<Value>,
    silent: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RoleRow {
    name: String,
    pid: Option<u32>,
    ready: bool,
    restarts: u32,
    /// Of one core.
    cpu_percent: Option<f64>,
    memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct EdgeRow {
    source: String,
    destination: String,
    service: String,
    security: String,
    requests_per_second: f64,
}

pub(crate) fn run(args: &TopArgs) -> Result<(), Failure> {
    wait(async {
        if !args.once
            && args.output.output == Format::Table
            && let Some(screen) = Screen::open()?
        {
            return on_screen(args, screen).await;
        }
        one_after_the_other(args).await
    })
}

/// Draws on a terminal until somebody leaves.
async fn on_screen(args: &TopArgs, mut screen: Screen) -> Result<(), Failure> {
    let mut page = format!("kasbah top: the first look lasts {}", output::duration(args.every));
    screen.draw(&page, is_bad);
    let mut before = sample(&args.dir).await?;
    loop {
        let next = async {
            tokio::time::sleep(args.every).await;
            sample(&args.dir).await
        };
        tokio::pin!(next);
        let now = loop {
            tokio::select! {
                now = &mut next => break now?,
                event = screen.event() => match event {
                    Event::Quit => return Ok(()),
                    Event::Redraw => screen.draw(&page, is_bad),
                },
            }
        };
        page = text(&report(&before, &now, SystemTime::now()));
        screen.draw(&page, is_bad);
        before = now;
    }
}

/// Prints to whatever else stdout is: once, or page after page.
async fn one_after_the_other(args: &TopArgs) -> Result<(), Failure> {
    let mut before = sample(&args.dir).await?;
    loop {
        tokio::time::sleep(args.every).await;
        let now = sample(&args.dir).await?;
        let report = report(&before, &now, SystemTime::now());
        let page = || output::marked(&text(&report), is_bad);
        if args.once {
            return output::print(args.output.output, &report, page);
        }
        output::record(args.output.output, &report, page)?;
        if output::is_closed() {
            return Ok(());
        }
        before = now;
    }
}

fn is_bad(line: &str) -> bool {
    line.starts_with(BAD)
}

async fn sample(dir: &DirArg) -> Result<Sample, Failure> {
    let layout = Layout::of(&dir.dir)?;
    let state = status::running(&layout)?;
    let (report, traffic, look) =
        tokio::join!(status::report(&layout, &state), traffic::gather(&state), check::look_at(dir));
    let pids = report.roles.iter().filter_map(|role| role.pid);
    let cpu = pids.filter_map(|pid| Some((pid, cpu_time(pid)?))).collect();
    Ok(Sample { at: Instant::now(), roles: report.roles, cpu, traffic, look: look? })
}

/// Processor time of a process, of its own and the system's (`utime` and `stime` of proc_pid_stat(5)).
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, also parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()?.checked_add(fields.get(12)?.parse().ok()?)?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64))
}

fn report(before: &Sample, now: &Sample, time: SystemTime) -> Report {
    let took = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let edges: Vec<(Rates, EdgeRow)> = now.traffic.edges.iter().map(|edge| rates(edge, before, took)).collect();
    let sum = |of: fn(&Rates) -> f64| rounded(edges.iter().map(|(rates, _)| of(rates)).sum());
    let bad = |check: &&Value| check["result"] != "ok";
    Report {
        time: runtime::clock::rfc3339(time),
        roles: now.roles.iter().map(|role| role_row(role, before, now, took)).collect(),
        requests_per_second: sum(|rates| rates.requests),
        denied_per_second: sum(|rates| rates.denied),
        failed_per_second: sum(|rates| rates.failed),
        certificates: now.look.svids.len(),
        first_end: now
            .look
            .svids
            .iter()
            .filter_map(|svid| end_of(svid, time))
            .min_by_key(|(end, _)| *end)
            .map(|(_, e)| e),
        rotations: now.look.rotations.iter().map(rotation).collect(),
        warnings: now.look.checks.iter().filter(bad).cloned().collect(),
        silent: now.traffic.silent.clone(),
        edges: busiest(edges),
    }
}

struct Rates {
    requests: f64,
    denied: f64,
    failed: f64,
}

fn rates(edge: &Edge, before: &Sample, took: f64) -> (Rates, EdgeRow) {
    let same = |old: &&Edge| {
        [&old.source, &old.destination, &old.service, &old.protocol, &old.reporter]
            == [&edge.source, &edge.destination, &edge.service, &edge.protocol, &edge.reporter]
    };
    let none = Edge::default();
    let old = before.traffic.edges.iter().find(same).unwrap_or(&none);
    // A proxy that started again counts from zero.
    let rate = |new: u64, old: u64| if new >= old { new - old } else { new } as f64 / took;
    let rates = Rates {
        requests: rate(edge.requests, old.requests),
        denied: rate(edge.denied, old.denied),
        failed: rate(edge.failed, old.failed),
    };
    let row = EdgeRow {
        source: edge.source.clone(),
        destination: edge.destination.clone(),
        service: edge.service.clone(),
        security: edge.security.clone(),
        requests_per_second: rounded(rates.requests),
    };
    (rates, row)
}

fn busiest(edges: Vec<(Rates, EdgeRow)>) -> Vec<EdgeRow> {
    let mut rows: Vec<EdgeRow> = edges.into_iter().map(|(_, row)| row).collect();
    rows.sort_by(|a, b| b.requests_per_second.total_cmp(&a.requests_per_second));
    rows.truncate(EDGES_MAX);
    rows
}

fn role_row(role: &status::Role, before: &Sample, now: &Sample, took: f64) -> RoleRow {
    let used = role.pid.and_then(|pid| Some(now.cpu.get(&pid)?.saturating_sub(*before.cpu.get(&pid)?)));
    RoleRow {
        name: role.name.clone(),
        pid: role.pid,
        ready: role.ready,
        restarts: role.restarts,
        cpu_percent: used.map(|used| rounded(used.as_secs_f64() / took * 100.0)),
        memory_bytes: role.memory_bytes,
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn end_of(svid: &Value, now: SystemTime) -> Option<(SystemTime, Value)> {
    let end = humantime::parse_rfc3339(svid["not_after"].as_str()?).ok()?;
    let left = output::span(end.duration_since(now).unwrap_or_default());
    Some((end, json!({"spiffe_id": svid["spiffe_id"], "not_after": svid["not_after"], "life_left": left})))
}

fn rotation(status: &proto::kasbah::ca::v1::StatusResponse) -> Value {
    json!({
        "kind": status.kind().as_str_name(),
        "phase": status.phase,
        "acknowledged": status.acknowledged,
        "total": status.total,
    })
}

fn text(report: &Report) -> String {
    let mut lines = vec![head(report), String::new(), roles(report)];
    if !report.edges.is_empty() {
        let row = |edge: &EdgeRow| {
            let mtls = if edge.security == "mutual_tls" { "yes" } else { "NO" };
            let rate = format!("{:.1}", edge.requests_per_second);
            [rate, mtls.to_owned(), short(&edge.source), short(&edge.destination), edge.service.clone()]
        };
        let header = ["REQ/S", "MTLS", "SOURCE", "DESTINATION", "SERVICE"];
        lines.extend([String::new(), output::table(header, report.edges.iter().map(row))]);
    }
    lines.push(String::new());
    let warning = |check: &Value| {
        let text = |name: &str| check[name].as_str().unwrap_or("?").to_owned();
        format!("{BAD}{} {}: {}  -> {}", text("id"), text("title"), text("value"), text("remedy"))
    };
    lines.extend(report.warnings.iter().map(warning));
    lines.extend(report.silent.iter().map(|silent| format!("{BAD}no answer from {silent}")));
    if report.warnings.is_empty() && report.silent.is_empty() {
        lines.push("no warnings".to_owned());
    }
    lines.join("\n")
}

fn head(report: &Report) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let first = report.first_end.as_ref().map_or_else(String::new, |end| {
        format!("; the first ends in {} ({})", text(&end["life_left"]), short(&text(&end["spiffe_id"])))
    });
    let busy: Vec<String> = report
        .rotations
        .iter()
        .filter(|rotation| rotation["phase"] != "idle")
        .map(|one| {
            format!("{} {} ({} of {})", text(&one["kind"]), text(&one["phase"]), one["acknowledged"], one["total"])
        })
        .collect();
    let rotation = match (report.rotations.is_empty(), busy.is_empty()) {
        (true, _) => "unknown: the CA does not answer".to_owned(),
        (_, true) => "idle".to_owned(),
        _ => busy.join(", "),
    };
    format!(
        "kasbah top  {}\nrequests {:.1}/s, denied {:.1}/s, failed {:.1}/s\ncertificates {}{first}\nrotation {rotation}",
        report.time,
        report.requests_per_second,
        report.denied_per_second,
        report.failed_per_second,
        report.certificates
    )
}

fn roles(report: &Report) -> String {
    let row = |role: &RoleRow| {
        [
            role.name.clone(),
            if role.ready { "yes".to_owned() } else { "NO".to_owned() },
            role.restarts.to_string(),
            role.cpu_percent.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1} %")),
            role.memory_bytes.map_or_else(|| "-".to_owned(), status::memory_text),
        ]
    };
    output::table(["ROLE", "READY", "RESTARTS", "CPU", "MEMORY"], report.roles.iter().map(row))
}

/// What a line of warning begins with.
const BAD: &str = "! ";
/// The most edges shown.
const EDGES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests: u64, at: Instant) -> Sample {
        let edge = Edge {
            source: "spiffe://td/a".into(),
            destination: "spiffe://td/b".into(),
            service: "b.svc".into(),
            security: "mutual_tls".into(),
            requests,
            ..Edge::default()
        };
        let svid = json!({"spiffe_id": "spiffe://td/a", "not_after": "2026-01-31T13:00:00Z"});
        let check = json!({"id": "CA-01", "title": "root", "result": "warn", "value": "10d left", "remedy": "rotate"});
        let well = json!({"id": "CA-02", "title": "x", "result": "ok", "value": "y", "remedy": null});
        let look = Look { checks: vec![check, well], rotations: Vec::new(), svids: vec![svid] };
        let traffic = Traffic { edges: vec![edge], silent: Vec::new() };
        Sample { at, roles: Vec::new(), cpu: BTreeMap::new(), traffic, look }
    }

    fn report_of(before: u64, now: u64) -> Report {
        let begun = Instant::now();
        let time = humantime::parse_rfc3339("2026-01-31T12:00:00Z").unwrap();
        report(&sample(before, begun), &sample(now, begun + Duration::from_secs(2)), time)
    }

    #[test]
    fn the_page_is_golden() {
        let expected = "\
kasbah top  2026-01-31T12:00:00Z
requests 5.0/s, denied 0.0/s, failed 0.0/s
certificates 1; the first ends in 1h (td/a)
rotation unknown: the CA does not answer

ROLE  READY  RESTARTS  CPU  MEMORY

REQ/S  MTLS  SOURCE  DESTINATION  SERVICE
5.0    yes   td/a    td/b         b.svc

! CA-01 root: 10d left  -> rotate";
        assert_eq!(text(&report_of(10, 20)), expected);
    }

    #[test]
    fn the_document_is_golden() {
        let document = serde_json::to_value(report_of(10, 20)).unwrap();
        assert_eq!(document["requests_per_second"], 5.0);
        assert_eq!(document["first_end"]["life_left"], "1h");
        assert_eq!(document["warnings"][0]["id"], "CA-01");
        let names: Vec<&String> = document.as_object().unwrap().keys().collect();
        let expected = "certificates denied_per_second edges failed_per_second first_end requests_per_second roles rotations silent time warnings";
        let mut names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn a_proxy_that_started_again_counts_from_zero() {
        assert_eq!(report_of(100, 6).requests_per_second, 3.0);
    }

    #[test]
    fn the_processor_time_of_this_process_is_read() {
        let begun = cpu_time(std::process::id()).unwrap();
        let mut n = 0_u64;
        while cpu_time(std::process::id()).unwrap() <= begun {
            n = std::hint::black_box(n + 1);
        }
    }
}
