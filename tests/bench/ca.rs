//! What the certificate authority costs: a real process, real gRPC over mutual TLS as agents speak it, CPU time from the
//! kernel's accounting, beside the cryptography alone and beside what others need.

mod authority;
mod callers;
mod fleet;
mod floor;
mod growth;
mod options;
mod process;
mod report;

use anyhow::Result;

pub(crate) use authority::{Authority, DOMAIN, entry, id};
use callers::Work;
use options::Options;
pub(crate) use process::Usage;
use report::{Report, Row};

/// `ca …`: everything in turn. Says whether the goals are met, if that was asked for.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let options = Options::parse(words)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(&options))?;
    report::print(&report, &options);
    Ok(!options.check || report.goals().iter().all(|goal| goal.met))
}

async fn measure(options: &Options) -> Result<Report> {
    let floor = floor::measure(options.time)?;
    let authority = Authority::start().await?;
    tokio::time::sleep(START).await;
    let idle_mib = Usage::of(authority.pid())?.resident_mib;
    let idle_cpu_ms = idle(&authority, options).await?;
    let node = authority.join(NODE).await?;
    let entry = authority.create_entry("/bench/workload", NODE).await?;

    let mut rows = Vec::new();
    for work in [Work::X509 { batch: 1 }, Work::Jwt] {
        for callers in [1, 8, 32] {
            rows.push(median(&authority, &node, &entry, work, callers, options).await?);
        }
    }
    rows.push(median(&authority, &node, &entry, Work::X509 { batch: 50 }, 8, options).await?);
    let memory = callers::issue_many(&authority, &node, &entry, options.certificates).await?;
    let growth = growth::measure(&authority, options.entries_max).await?;
    let fleet = fleet::measure(&authority, options.agents).await?;
    let stop = authority.stop().await?;
    Ok(Report { floor, idle_mib, idle_cpu_ms, rows, memory, growth, fleet, stop })
}

/// CPU time while nobody asks, for a minute.
async fn idle(authority: &Authority, options: &Options) -> Result<f64> {
    let before = Usage::of(authority.pid())?;
    tokio::time::sleep(options.idle).await;
    let used = Usage::of(authority.pid())?.cpu - before.cpu;
    Ok(used.as_secs_f64() * 1e3 * 60.0 / options.idle.as_secs_f64())
}

/// The round in the middle, by CPU time.
async fn median(
    authority: &Authority,
    node: &authority::Svid,
    entry: &str,
    work: Work,
    callers: usize,
    options: &Options,
) -> Result<Row> {
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        let row = callers::measure(authority, node, entry, work, callers, options.time).await?;
        eprintln!("round {round}: {}, {callers} callers: {:.0} µs, {:.0}/s", work.name(), row.micros, row.rate);
        rounds.push(row);
    }
    rounds.sort_by(|one, two| one.micros.total_cmp(&two.micros));
    Ok(rounds.swap_remove(rounds.len() / 2))
}

const NODE: &str = "/node/bench";
/// By then the authority has let go of what only its start needed.
const START: std::time::Duration = std::time::Duration::from_secs(15);
