//! What the node agent costs: a real process beside a real authority, CPU time and memory from the kernel's accounting, times
//! as a workload sees them.

mod changes;
mod report;
mod site;
mod streams;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use runtime::workload_api::{self, Endpoint};

use crate::ca::Authority;
use report::{Goal, Report};
use site::Site;

pub(crate) use streams::hold as hold_streams;

/// Options of `agent`.
struct Options {
    workloads: usize,
    streams: usize,
    rounds: usize,
    check: bool,
}

/// `agent …`: everything in turn. Says whether the goals are met, if that was asked for.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let options = Options::parse(words)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(&options))?;
    println!("{}", report.table(options.workloads, options.streams, options.rounds));
    Ok(!options.check || report.goals().iter().all(Goal::is_met))
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { workloads: 1_000, streams: 1_000, rounds: 100, check: false };
        let mut words = words.iter();
        while let Some(name) = words.next() {
            if *name == "--check" {
                options.check = true;
                continue;
            }
            let value = words.next().with_context(|| format!("{name} needs a value"))?.parse()?;
            match *name {
                "--workloads" => options.workloads = value,
                "--streams" => options.streams = value,
                "--rounds" => options.rounds = value,
                _ => bail!("there is no option {name}; see tests/bench/run --help"),
            }
        }
        Ok(options)
    }
}

async fn measure(options: &Options) -> Result<Report> {
    let authority = Authority::start().await?;
    let mut site = Site::start(&authority).await?;
    tokio::time::sleep(START).await;
    let idle = site.usage()?;
    eprintln!("idle: {:.1} MiB, {:.1} its own", idle.resident_mib, idle.own_mib);

    site.add_workloads(&authority, options.workloads).await?;
    tokio::time::sleep(SETTLE).await;
    let full = site.usage()?;
    eprintln!("{} workloads: {:.1} MiB, {:.1} its own", options.workloads, full.resident_mib, full.own_mib);

    let fetch = fetches(&site, options.rounds * 5).await?;
    eprintln!("fetch: {:.0} µs CPU", fetch.cpu_micros);
    let streams = streams::measure(&site, options.streams).await?;
    eprintln!("streams: {:.1} kB each", streams.kb_each);
    let changes = changes::measure(&authority, &site, options.rounds).await?;
    eprintln!("created → SVID: {:?} p99", changes.created.percentile(0.99));

    site.until_cached(options.workloads + 1).await?;
    site.kill();
    authority.stop().await?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(site.warm_start().await?);
        site.kill();
    }
    starts.sort_unstable();
    Ok(Report { idle, full, workloads: options.workloads, fetch, streams, changes, warm_start: starts[STARTS / 2] })
}

/// Connecting, the first SVID, closing; one after the other.
struct Fetch {
    cpu_micros: f64,
    times: Times,
}

#[allow(clippy::cast_precision_loss, reason = "counts of a few hundred")]
async fn fetches(site: &Site, rounds: usize) -> Result<Fetch> {
    let endpoint = site.endpoint();
    fetch(&endpoint).await?;
    let (before, mut times) = (site.usage()?, Vec::with_capacity(rounds));
    for _ in 0..rounds {
        let began = Instant::now();
        fetch(&endpoint).await?;
        times.push(began.elapsed());
    }
    let used = site.usage()?.cpu - before.cpu;
    Ok(Fetch { cpu_micros: used.as_secs_f64() * 1e6 / rounds as f64, times: Times::of(times) })
}

async fn fetch(endpoint: &Endpoint) -> Result<()> {
    Ok(workload_api::fetch_x509(endpoint).await.map(drop)?)
}

/// Measured times, in order.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index below a few thousand"
    )]
    fn percentile(&self, part: f64) -> Duration {
        let at = ((self.0.len() as f64 * part) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied().unwrap_or_default()
    }
}

const SETTLE: Duration = Duration::from_secs(2);
/// By then the agent has let go of what only its start needed.
const START: Duration = Duration::from_secs(15);
const STARTS: usize = 7;
