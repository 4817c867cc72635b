//! The tables, the goals, and what others need.

use std::time::Duration;

use super::callers::Work;
use super::fleet::Fleet;
use super::floor::Floor;
use super::growth::Step;
use super::options::Options;
use crate::measure::Environment;

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) floor: Floor,
    pub(super) idle_mib: f64,
    /// Milliseconds in a minute.
    pub(super) idle_cpu_ms: f64,
    pub(super) rows: Vec<Row>,
    /// In the order of the certificates.
    pub(super) memory: Vec<Look>,
    pub(super) growth: Vec<Step>,
    pub(super) fleet: Option<Fleet>,
    /// From SIGTERM to the end.
    pub(super) stop: Duration,
}

/// One kind of work with one number of callers.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) work: Work,
    pub(super) callers: usize,
    /// The authority's CPU time for an SVID.
    pub(super) micros: f64,
    /// SVIDs in a second.
    pub(super) rate: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) resident_mib: f64,
}

/// Memory after so many certificates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) certificates: usize,
    pub(super) resident_mib: f64,
    /// Without the pages of the program, which come in with what it does for the first time.
    pub(super) own_mib: f64,
}

/// Something we want to reach.
pub(super) struct Goal {
    text: String,
    found: String,
    pub(super) met: bool,
}

impl Report {
    fn row(&self, work: Work, callers: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.work == work && row.callers == callers)
    }

    pub(super) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut goal = |text: String, found: String, met| goals.push(Goal { text, found, met });
        if let Some(batch) = self.rows.iter().find(|row| matches!(row.work, Work::X509 { batch } if batch > 1)) {
            let max = self.floor.x509 * 2.0;
            let text = format!("signer within 2× of the floor ({max:.0} µs), recorded, in batches");
            goal(text, format!("{:.0} µs", batch.micros), batch.micros <= max);
        }
        if let Some(row) = self.row(Work::X509 { batch: 1 }, 32) {
            goal(
                "recorded X.509-SVID ≤ 250 µs with 32 callers".into(),
                format!("{:.0} µs", row.micros),
                row.micros <= 250.0,
            );
            goal("≥ 4,000 in a second with 32 callers".into(), format!("{:.0}/s", row.rate), row.rate >= 4_000.0);
        }
        if let Some(row) = self.row(Work::Jwt, 32) {
            goal("JWT-SVID ≤ 100 µs with 32 callers".into(), format!("{:.0} µs", row.micros), row.micros <= 100.0);
        }
        goal("idle memory ≤ 25 MiB".into(), format!("{:.1} MiB", self.idle_mib), self.idle_mib <= 25.0);
        if let Some((half, from, most)) = second_half(&self.memory) {
            let text =
                format!("own memory flat: after {half} certificates at most {FLAT_MIB_MAX} MiB more for as many again");
            goal(text, format!("{from:.1} → {most:.1} MiB"), most - from <= FLAT_MIB_MAX);
        }
        let found = format!("{:.1} ms", self.idle_cpu_ms);
        goal("idle CPU < 20 ms in a minute".into(), found, self.idle_cpu_ms < 20.0);
        goal(
            "ends within a second of SIGTERM".into(),
            format!("{:.0?}", self.stop),
            self.stop < Duration::from_secs(1),
        );
        goals
    }
}

/// What memory does when the caches of the database are full: how many certificates the first half was, the memory then, and the
/// most that was seen in the second half.
fn second_half(memory: &[Look]) -> Option<(usize, f64, f64)> {
    let all = memory.last()?.certificates;
    let second = &memory[memory.iter().position(|look| look.certificates * 2 >= all)?..];
    let Look { certificates, own_mib, .. } = *second.first()?;
    Some((certificates, own_mib, second.iter().map(|look| look.own_mib).fold(own_mib, f64::max)))
}

/// How much memory may grow while as many certificates are issued again.
const FLAT_MIB_MAX: f64 = 2.0;

/// Everything as Markdown.
pub(super) fn print(report: &Report, options: &Options) {
    println!("{}; rounds of {:?}, median of {}.\n", Environment::read().line(), options.time, options.rounds);
    println!(
        "A real process with SQLite (`synchronous=FULL`), gRPC over mutual TLS 1.3 (P-256), each caller on its own connection, callers on the same cores.\n"
    );
    let Floor { x509, jwt } = report.floor;
    println!("Floor, in process: CSR check and leaf {x509:.1} µs, token {jwt:.1} µs.\n");
    println!(
        "| work | callers | server CPU µs | per second | p50 ms | p99 ms | RSS MiB |\n|---|---|---|---|---|---|---|"
    );
    for row in &report.rows {
        let Row { callers, micros, rate, resident_mib, .. } = row;
        let (p50, p99) = (millis(row.p50), millis(row.p99));
        println!(
            "| {} | {callers} | {micros:.0} | {rate:.0} | {p50:.2} | {p99:.2} | {resident_mib:.1} |",
            row.work.name()
        );
    }
    println!("\nIdle: {:.1} MiB, {:.1} ms CPU in a minute.", report.idle_mib, report.idle_cpu_ms);
    let look = |look: &Look| format!("{}: {:.1} ({:.1})", look.certificates, look.resident_mib, look.own_mib);
    let memory: Vec<String> = report.memory.iter().map(look).collect();
    println!("Memory (MiB, in brackets its own) after so many certificates: {}.\n", memory.join(", "));
    println!(
        "| entries | RSS MiB | create one, µs | sync ms (entries of the node) | server CPU ms |\n|---|---|---|---|---|"
    );
    for step in &report.growth {
        let (sync, cpu) = (millis(step.sync), millis(step.sync_cpu));
        let Step { entries, resident_mib, synced, .. } = step;
        println!("| {entries} | {resident_mib:.1} | {} | {sync:.2} ({synced}) | {cpu:.2} |", step.create.as_micros());
    }
    if let Some(fleet) = report.fleet {
        println!(
            "\n{} agents connected: {:.1} MiB. A new entry is at half of them after {:.0} ms, at the last after {:.0} ms ({:.0} ms server CPU).",
            fleet.agents,
            fleet.resident_mib,
            millis(fleet.half),
            millis(fleet.last),
            millis(fleet.cpu),
        );
    }
    println!("\nSIGTERM to end: {:.0} ms.\n\n{PEERS}", millis(report.stop));
    println!("| goal | found | |\n|---|---|---|");
    for Goal { text, found, met } in report.goals() {
        println!("| {text} | {found} | {} |", if met { "met" } else { "MISSED" });
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Quoted, not measured in this run.
const PEERS: &str = "\
Others, measured by the authors on 2 cores AMD EPYC (callers on the same cores): SPIRE 1.16-dev (ef8527ec) with SQLite, step-ca
(1c44aeca) with badger, Istio's CA library and gRPC service (86c9f01, plain text, nothing stored).

| work | SPIRE | step-ca | Istio CA |
|---|---|---|---|
| X.509 server CPU µs, 1 / 8 / 32 callers | 980 / 574 / 548 (nothing recorded) | 2,150 / 1,506 / 1,246 (recorded) | 640 / 418 / 388 |
| per second, 8 / 32 callers | 2,794 / 3,188 | 943 / 1,301 | 3,198 / 4,015 |
| p99 with 8 callers | 7.0 ms | 17 ms | 8.2 ms |
| batch of 50, per SVID | 610 µs | – | – |
| JWT-SVID server CPU µs, 1 / 8 callers | 716 / 370 | – | – |
| memory idle / after tens of thousands | 92 / 106 MB | 48 / 197 MB | 56 / 66 MB |
| idle CPU in a minute | 100 ms | 360 ms | 0 |
| sync of 1,002 entries, server CPU | 3.5 ms | – | – |
";
