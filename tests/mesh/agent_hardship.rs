//! The agent while the world around it does not behave: the way to the CA, whoever kills it, and a crowd of streams. A
//! workload that asks gets an SVID that is valid, all the time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::wait;
use harness::way::{Way, Weather};
use libtest_mimic::Trial;
use proto::workload::X509svidRequest;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::site::{START_MAX, Site};
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("agent::a_bad_way_to_the_ca_is_not_felt_by_workloads_and_brings_no_storm", a_bad_way),
        alone("agent::an_agent_killed_at_any_moment_needs_no_new_token", killed_at_any_moment),
        alone("agent::a_stream_gives_nothing_to_the_program_that_its_process_becomes", another_program),
        alone("agent::ten_thousand_streams_of_one_process_get_each_rotation_and_no_more_are_let_in", a_crowd),
    ]
}

/// Each in bad weather of its own, all at the same time.
fn a_bad_way() -> Result<()> {
    let site = &Site::with_agent_svid_ttl("1h")?;
    let late = Duration::from_millis(1_500);
    let cases: [(&str, &[Weather]); 6] = [
        ("slow", &[Weather::Slow(late)]),
        ("half", &[Weather::Half]),
        ("reset", &[Weather::Reset]),
        ("silent", &[Weather::Silent]),
        ("away", &[Weather::Away]),
        ("flapping", &[Weather::Away, Weather::Fair]),
    ];
    std::thread::scope(|scope| {
        let agents = cases.map(|(name, weather)| scope.spawn(move || in_bad_weather(site, name, weather)));
        for (agent, (name, _)) in agents.into_iter().zip(cases) {
            let result = agent.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
            result.with_context(|| format!("{name}: {}", site.log(name)))?;
        }
        Ok(())
    })
}

fn in_bad_weather(site: &Site, name: &str, weather: &[Weather]) -> Result<()> {
    let node = format!("spiffe://example.org/node/{name}");
    let way = Way::to(([127, 0, 0, 1], site.grpc).into())?;
    let _agent = site.agent_of(&node, name, &json!({"server": way.address().to_string()}))?;
    site.entry_on(&node, &format!("/{name}"), BAD_WEATHER_LIFE)?;
    let fetch = || site.serial(name);
    wait::until("the first SVID", START_MAX, fetch)?;
    let (stop, fetched) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Asked all the time; the first answer that is not a valid SVID ends the test.
        let asking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fetch()?;
                fetched.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
            anyhow::Ok(())
        });
        let result = live_through(&way, weather, &fetch);
        stop.store(true, Ordering::Relaxed);
        asking.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        result
    })?;
    ensure!(fetched.load(Ordering::Relaxed) > 50, "hardly anybody asked");
    Ok(())
}

/// Bad weather from soon after a renewal until the next one is overdue, then fair weather until that comes.
fn live_through(way: &Way, weather: &[Weather], fetch: &impl Fn() -> Result<String>) -> Result<()> {
    let next = |before: &str| {
        wait::until("the next SVID", Duration::from_secs(12), || {
            let now = fetch()?;
            ensure!(now != before, "still {before}");
            Ok(now)
        })
    };
    let before = next(&fetch()?)?;
    std::thread::sleep(Duration::from_secs(3));
    let (connections, began) = (way.connections(), Instant::now());
    for weather in weather.iter().cycle() {
        if began.elapsed() > BAD_WEATHER {
            break;
        }
        way.set(*weather);
        let alone = if matches!(weather, Weather::Fair | Weather::Away) { Duration::from_secs(1) } else { BAD_WEATHER };
        std::thread::sleep(alone);
    }
    let connections = way.connections() - connections;
    way.set(Weather::Fair);
    ensure!(connections <= CONNECTIONS_MAX, "{connections} connections within {:?}", began.elapsed());
    next(&before).map(drop)
}

/// Its files are whole whenever it dies: it is the same node with the same entries afterwards.
fn killed_at_any_moment() -> Result<()> {
    let mut site = Site::start()?;
    let mut agent = site.agent(&json!({}))?;
    site.entry("/web", "8s")?;
    wait::until("the first SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    std::fs::remove_file(site.path("agent.token"))?;
    for round in 0..12 {
        // Killed, not asked to end: soon after the start, when a sync is stored, when an SVID is renewed.
        std::thread::sleep(Duration::from_millis(170 * round));
        drop(agent);
        agent = site.agent(&json!({}))?;
        wait::until("an SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    }
    let nodes = site.verb(["node", "list", "-o", "json"]).ok()?.json()?;
    ensure!(nodes.as_array().map(Vec::len) == Some(1), "it joined again: {nodes}");
    // Without the CA it still starts with what it had.
    std::thread::sleep(Duration::from_secs(2));
    drop((agent, site.ca.take()));
    let _agent = site.agent(&json!({}))?;
    wait::until("an SVID without a CA", Duration::from_secs(2), || site.fetch()).with_context(|| site.log("agent"))?;
    Ok(())
}

/// An open stream is no inheritance: at the next rotation it ends.
fn another_program() -> Result<()> {
    let site = Site::with_agent_svid_ttl("1h")?;
    let _agent = site.agent(&json!({}))?;
    site.entry("/web", "4s")?;
    wait::until("the first SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    let script = harness::tools::script("exec_keeps_stream.py")?.args(["--seconds", "8"]);
    let got = script.arg("--socket").arg(site.path("agent.sock")).ok()?.json()?;
    ensure!(got == json!({"messages": 0, "ended": true}), "{got}: {}", site.log("agent"));
    ensure!(site.log("agent").contains("ATTEST_PROGRAM_CHANGED"), "{}", site.log("agent"));
    Ok(())
}

/// Many streams on each of many connections; beyond the user's limit they are refused, below it all are served.
fn a_crowd() -> Result<()> {
    let site = Site::with_agent_svid_ttl("1h")?;
    let agent = site.agent(&json!({"streams_per_process_max": PER_USER_MAX}))?;
    site.entry("/web", "30s")?;
    wait::until("the first SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    let before = resident_kib(agent.id())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut crowd, channels) = runtime.block_on(gather(&site.endpoint("agent")))?;
    let open = resident_kib(agent.id())?;
    runtime.block_on(async {
        let rotated = tokio::time::timeout(Duration::from_secs(60), each_gets_another(&mut crowd));
        rotated.await.context("not every stream was told of the rotation")?
    })?;
    drop((crowd, channels));
    drop(runtime);
    let per_stream = open.saturating_sub(before) / CROWD as u64;
    ensure!(per_stream <= 40, "{per_stream} KiB for each stream");
    site.fetch().map(drop)
}

type Stream = tonic::Streaming<proto::workload::X509svidResponse>;

/// The streams, each with its first message read; then more, until the agent says that it is enough.
async fn gather(endpoint: &str) -> Result<(Vec<Stream>, Vec<Channel>)> {
    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let endpoint = endpoint.to_owned();
        opening.spawn(async move {
            let channel = tonic::transport::Endpoint::from_shared(endpoint)?.connect().await?;
            let mut streams = Vec::with_capacity(CROWD / CONNECTIONS);
            for _ in 0..CROWD / CONNECTIONS {
                streams.push(open(channel.clone()).await?);
            }
            anyhow::Ok((channel, streams))
        });
    }
    let (mut crowd, mut channels) = (Vec::with_capacity(CROWD), Vec::new());
    while let Some(opened) = opening.join_next().await {
        let (channel, streams) = opened??;
        channels.push(channel);
        crowd.extend(streams);
    }
    ensure!(crowd.len() == CROWD, "{} streams", crowd.len());
    let mut more = Vec::new();
    let refused = loop {
        match open(channels[more.len() % channels.len()].clone()).await {
            Ok(stream) if more.len() + CROWD < PER_USER_MAX => more.push(stream),
            Ok(_) => anyhow::bail!("more than {PER_USER_MAX} streams were opened"),
            Err(refused) => break refused,
        }
    };
    ensure!(more.len() + CROWD == PER_USER_MAX, "{} streams: {refused:#}", more.len() + CROWD);
    ensure!(format!("{refused:#}").contains("too many open streams"), "{refused:#}");
    more.pop();
    wait_for_room(&channels[0]).await?;
    Ok((crowd, channels))
}

/// A stream that has ended makes room for another.
async fn wait_for_room(channel: &Channel) -> Result<()> {
    let began = Instant::now();
    while let Err(refused) = open(channel.clone()).await {
        ensure!(began.elapsed() < Duration::from_secs(20), "no room again: {refused:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn open(channel: Channel) -> Result<Stream> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let mut stream = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner();
    stream.message().await?.context("no first message")?;
    Ok(stream)
}

async fn each_gets_another(crowd: &mut [Stream]) -> Result<()> {
    for stream in crowd {
        let message = stream.message().await?.context("a stream ended")?;
        ensure!(!message.svids.is_empty(), "a message without an SVID");
    }
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

const BAD_WEATHER_LIFE: &str = "12s";
/// From three seconds after a renewal: past the moment of the next, which is due after half of the life.
const BAD_WEATHER: Duration = Duration::from_secs(5);
/// Within that time, of everything the agent asks the CA for together.
const CONNECTIONS_MAX: usize = 40;
const CROWD: usize = 10_000;
const CONNECTIONS: usize = 100;
/// What the agent allows one user.
const PER_USER_MAX: usize = 12_288;
