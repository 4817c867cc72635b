//! The agent on a machine whose clock is an hour off, from its start or all at once: it hands out nothing that is not valid
//! by that clock, says why, and is back as soon as the clock is right. The CA's clock is right all the time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::program::Running;
use harness::{Skipped, curl, mesh, tools, wait};
use libtest_mimic::Trial;
use runtime::workload_api::{self, Endpoint, IdentityStream};
use serde_json::json;

use crate::site::{self, START_MAX, Site};
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![alone(
        "agent::a_clock_an_hour_off_is_named_nothing_invalid_is_served_and_all_is_well_when_it_is_right",
        an_hour_off,
    )]
}

/// All at the same time, each with an agent of its own.
fn an_hour_off() -> Result<()> {
    let library = &faketime()?;
    let site = &Site::with_agent_svid_ttl(LIFE)?;
    let cases: [(&str, fn(&Machine<'_>) -> Result<()>); 4] = [
        ("starts-ahead", |machine| starts(machine, AHEAD, &["TLS_PEER_EXPIRED", "CLOCK_AHEAD"])),
        ("starts-behind", |machine| starts(machine, BEHIND, &["TLS_PEER_NOT_YET_VALID"])),
        ("jumps-ahead", |machine| jumps(machine, AHEAD, "SVID_ENDED")),
        ("jumps-behind", |machine| jumps(machine, BEHIND, "CLOCK_BEHIND")),
    ];
    std::thread::scope(|scope| {
        let running = cases.map(|(name, case)| {
            scope.spawn(move || {
                let machine = Machine::new(site, library, name)?;
                case(&machine).with_context(|| site.log(name))
            })
        });
        running.into_iter().zip(cases).try_for_each(|(case, (name, _))| {
            case.join().map_err(|_| anyhow::anyhow!("panicked"))?.with_context(|| name.to_owned())
        })
    })
}

/// The library that stands between a program and its clock.
fn faketime() -> Result<String> {
    let asked = tools::system("faketime")?.args(["-m", "-f", "+0s", "printenv", "LD_PRELOAD"]).run()?;
    if asked.code != 0 {
        return Err(Skipped(format!("faketime does not work here: {}", asked.said().trim())).into());
    }
    Ok(asked.stdout.trim().to_owned())
}

/// Wrong from the start: there is no way to the CA, or what it issues is of no use.
fn starts(machine: &Machine<'_>, off: &str, reasons: &[&str]) -> Result<()> {
    machine.set(off)?;
    let _agent = machine.start()?;
    wait::until("the reason", START_MAX, || {
        let said = machine.said()?;
        ensure!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
        machine.expect_refusal(&["AGENT_NOT_READY", "AGENT_UNREACHABLE"])
    })?;
    machine.set(RIGHT)?;
    wait::until("an SVID with the right clock", RECOVERY_MAX, || machine.site.serial(machine.name)).map(drop)
}

/// Set while the agent runs and a workload holds a stream.
fn jumps(machine: &Machine<'_>, off: &str, reason: &str) -> Result<()> {
    machine.set(RIGHT)?;
    let _agent = machine.start()?;
    wait::until("an SVID", START_MAX, || machine.site.serial(machine.name))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Endpoint::parse(&machine.site.endpoint(machine.name))?;
    let mut stream = runtime.block_on(IdentityStream::open(&endpoint))?;
    runtime.block_on(stream.next()).context("no first message")??;
    machine.set(off)?;
    wait::until("a refusal", START_MAX, || machine.expect_refusal(&[reason]))?;
    let metrics = curl::get(curl::url("http", &machine.admin, "/metrics")).send()?.expect_status(200)?.body;
    ensure!(metrics.contains(&format!("refusals_total{{reason=\"{reason}\"}}")), "{metrics}");
    // An open stream ends, or has nothing more to say.
    let more = runtime.block_on(async { tokio::time::timeout(STREAM_WAIT, stream.next()).await });
    ensure!(!matches!(more, Ok(Some(Ok(_)))), "the stream goes on");
    ensure!(off == BEHIND || more.is_ok(), "the stream does not end");
    machine.expect_refusal(&[reason])?;
    ensure!(machine.said()?.contains(reason), "{}", machine.said()?);
    machine.set(RIGHT)?;
    wait::until("an SVID with the right clock", RECOVERY_MAX, || machine.site.serial(machine.name)).map(drop)
}

/// A machine with a clock that can be set.
struct Machine<'a> {
    site: &'a Site,
    library: &'a str,
    name: &'a str,
    admin: String,
}

impl<'a> Machine<'a> {
    fn new(site: &'a Site, library: &'a str, name: &'a str) -> Result<Self> {
        let machine = Self { site, library, name, admin: format!("127.0.0.1:{}", mesh::free_port()?) };
        site.entry_on(&machine.node(), &format!("/{name}"), LIFE)?;
        Ok(machine)
    }

    fn node(&self) -> String {
        format!("spiffe://example.org/node/{}", self.name)
    }

    fn clock(&self) -> PathBuf {
        self.site.path(&format!("{}.clock", self.name))
    }

    /// In one step, so that nobody reads a half.
    fn set(&self, off: &str) -> Result<()> {
        let fresh = self.site.write(&format!("{}.clock.new", self.name), off)?;
        Ok(std::fs::rename(fresh, self.clock())?)
    }

    fn start(&self) -> Result<Running> {
        let settings = self.site.agent_settings(&self.node(), self.name, &json!({"admin": self.admin}))?;
        let program = site::program("agent", &settings).env("LD_PRELOAD", self.library);
        let program = program.env("FAKETIME_TIMESTAMP_FILE", self.clock()).env("FAKETIME_CACHE_DURATION", "1");
        // Timers and the times of files stay what they are: only the time of day is wrong.
        let program = program.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        program.background(&settings.with_extension("log"))
    }

    fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.site.path(&format!("{}.log", self.name)))?)
    }

    fn expect_refusal(&self, reasons: &[&str]) -> Result<()> {
        let endpoint = Endpoint::parse(&self.site.endpoint(self.name))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(workload_api::fetch_x509(&endpoint)) {
            Err(refused) if reasons.contains(&refused.reason().as_str()) => Ok(()),
            Err(refused) => Err(refused.into()),
            Ok(identity) => anyhow::bail!("{} is served", identity.svid().serial()),
        }
    }
}

/// Less than the clocks are apart.
const LIFE: &str = "30m";
const RIGHT: &str = "+0";
const AHEAD: &str = "+3600";
const BEHIND: &str = "-3600";
/// A nap of a clock that may be set, and a little.
const STREAM_WAIT: Duration = Duration::from_secs(13);
/// A nap of a clock that may be set, and a try.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
