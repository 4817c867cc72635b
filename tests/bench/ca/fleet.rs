//! Many agents, each with its connection and its stream of changes: how long until the last of them has a new entry.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::kasbah::node::v1::WatchRequest;
use proto::kasbah::node::v1::node_client::NodeClient;
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use tokio::sync::mpsc;

use super::authority::{Authority, Svid};
use super::process::Usage;

/// What a new entry costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fleet {
    pub(super) agents: usize,
    /// With all of them connected.
    pub(super) resident_mib: f64,
    /// From the administrator's request to the entry at half of the agents, and at the last.
    pub(super) half: Duration,
    pub(super) last: Duration,
    /// The authority's CPU time for all of it.
    pub(super) cpu: Duration,
}

pub(super) async fn measure(authority: &Authority, agents: usize) -> Result<Option<Fleet>> {
    if agents == 0 {
        return Ok(None);
    }
    let mut tasks = tokio::task::JoinSet::new();
    let (ready, mut readies) = mpsc::channel(agents);
    let (learned, mut learners) = mpsc::channel(agents);
    for _ in 0..agents {
        let svid = authority.join(NODE).await?;
        let channel = authority.channel(Some(&svid));
        let (ready, learned) = (ready.clone(), learned.clone());
        tasks.spawn(agent(channel, svid, ready, learned));
    }
    for _ in 0..agents {
        readies.recv().await.context("an agent gave up")?;
    }
    let (before, begun) = (Usage::of(authority.pid())?, Instant::now());
    authority.create_entry("/fleet/new", NODE).await?;
    let mut times = Vec::new();
    while times.len() < agents {
        let one = tokio::time::timeout(LIMIT, learners.recv()).await.context("not all agents hear of the entry")?;
        times.push(one.context("an agent gave up")?.duration_since(begun));
    }
    times.sort();
    let after = Usage::of(authority.pid())?;
    Ok(Some(Fleet {
        agents,
        resident_mib: before.resident_mib,
        half: times[times.len() / 2],
        last: times[times.len() - 1],
        cpu: after.cpu - before.cpu,
    }))
}

/// Watches, and fetches its entries when told that something changed, until it has one.
async fn agent(
    channel: tonic::transport::Channel,
    _svid: Svid,
    ready: mpsc::Sender<()>,
    learned: mpsc::Sender<Instant>,
) -> Result<()> {
    let mut entries = EntryClient::new(channel.clone());
    let (reports, receiver) = mpsc::channel(1);
    reports.send(WatchRequest { bundle_sequence_enforced: 1, ..WatchRequest::default() }).await?;
    let reports_stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut changes = NodeClient::new(channel).watch(reports_stream).await?.into_inner();
    changes.message().await?.context("the stream ended")?;
    let found = entries.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await?.into_inner();
    ensure!(found.entries.is_empty(), "an entry before there is one");
    ready.send(()).await?;
    loop {
        changes.message().await?.context("the stream ended")?;
        let found = entries.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await?.into_inner();
        if !found.entries.is_empty() {
            learned.send(Instant::now()).await?;
            // Stay connected as an agent would, so that leaving costs the others nothing.
            drop(learned);
            while changes.message().await?.is_some() {}
            return Ok(());
        }
    }
}

const NODE: &str = "/node/fleet";
const LIMIT: Duration = Duration::from_secs(120);
