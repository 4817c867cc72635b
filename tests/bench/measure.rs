//! CPU time and memory of processes, and the table.

use std::time::Instant;

use anyhow::{Context, Result};
use harness::load::Tally;

use crate::Pair;
use crate::options::Options;

/// What one round showed.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    /// CPU time of both proxies per request, user and system.
    pub(crate) micros: f64,
    /// Resident memory of both proxies.
    pub(crate) resident_mib: f64,
    /// Requests per second, with the load generator on the same cores.
    pub(crate) rate: u64,
    pub(crate) p50_micros: u128,
    pub(crate) p99_micros: u128,
}

/// A running measurement.
pub(crate) struct Clock {
    began: Instant,
    ticks: u64,
}

impl Clock {
    pub(crate) fn start(pair: &Pair) -> Result<Self> {
        Ok(Self { ticks: ticks(pair)?, began: Instant::now() })
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of a few seconds"
    )]
    pub(crate) fn stop(self, pair: &Pair, tally: &Tally) -> Result<Measurement> {
        let took = self.began.elapsed().as_secs_f64();
        let cpu_secs = (ticks(pair)? - self.ticks) as f64 / TICKS_PER_SECOND;
        let answered = tally.answered.max(1) as f64;
        Ok(Measurement {
            micros: cpu_secs * 1e6 / answered,
            resident_mib: resident_kib(pair)? as f64 / 1024.0,
            rate: (answered / took) as u64,
            p50_micros: tally.percentile(0.50).as_micros(),
            p99_micros: tally.percentile(0.99).as_micros(),
        })
    }
}

/// User and system time of both processes with all their threads.
fn ticks(pair: &Pair) -> Result<u64> {
    let mut sum = 0;
    for proxy in &pair.proxies {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.id())).context(pair.name)?;
        // The name in brackets may hold blanks; the fields behind it do not.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        for at in [11, 12] {
            sum += fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("no times in /proc/PID/stat")?;
        }
    }
    Ok(sum)
}

fn resident_kib(pair: &Pair) -> Result<u64> {
    let mut sum = 0;
    for proxy in &pair.proxies {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).context(pair.name)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        sum += line.trim().trim_end_matches("kB").trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// The measurement in the middle, by CPU time.
pub(crate) fn median(results: &[Measurement]) -> Option<Measurement> {
    let mut sorted = results.to_vec();
    sorted.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    sorted.get(sorted.len() / 2).cloned()
}

/// Where it was measured.
pub(crate) struct Environment {
    processor: String,
    cores: usize,
    kernel: String,
    load: String,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            processor: model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self { processor, cores, kernel, load } = self;
        format!("{cores} × {processor}, Linux {kernel}, load {load}")
    }
}

/// Everything as Markdown.
pub(crate) fn table(options: &Options, environment: &Environment, rows: &[(&str, Measurement)]) -> String {
    let Environment { processor, cores, kernel, load } = environment;
    let mut text = format!(
        "Two proxies in a row, mTLS (TLS 1.3, P-256) and HTTP/2 between them, {} connections of HTTP/1.1 before them, \
         a body of {} bytes.\n\
         {cores} × {processor}, Linux {kernel}, load {load} at the start; median of {} rounds of {:?}, load generator and \
         origin on the same cores.\n\n\
         | pair | CPU µs/request | RSS MiB, both | requests/s | p50 µs | p99 µs |\n|---|---|---|---|---|---|\n",
        options.connections,
        crate::origin::BODY.len(),
        options.rounds,
        options.time,
    );
    for (name, m) in rows {
        text.push_str(&format!(
            "| {name} | {:.1} | {:.1} | {} | {} | {} |\n",
            m.micros, m.resident_mib, m.rate, m.p50_micros, m.p99_micros
        ));
    }
    text
}

/// `USER_HZ`, which Linux fixes for all programs.
const TICKS_PER_SECOND: f64 = 100.0;
