//! How memory and synchronisation grow with the number of entries. The node has a thousand of them, others have the rest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;

use super::authority::{Authority, Svid, entry};
use super::process::Usage;

/// What a number of entries costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) entries: usize,
    pub(super) resident_mib: f64,
    /// To create one entry, from the last step to this.
    pub(super) create: Duration,
    /// To fetch the node's own entries.
    pub(super) sync: Duration,
    /// How many these are.
    pub(super) synced: usize,
    /// The authority's CPU time for that.
    pub(super) sync_cpu: Duration,
}

pub(super) async fn measure(authority: &Authority, entries_max: usize) -> Result<Vec<Step>> {
    let node = authority.join(NODE).await?;
    let (mut steps, mut created) = (Vec::new(), 0);
    for size in [100, 1_000, 10_000, 100_000].into_iter().filter(|size| *size <= entries_max) {
        let (begun, before) = (Instant::now(), created);
        while created < size {
            let count = BATCH.min(size - created);
            let batch = (created..created + count).map(|n| entry(&format!("/growth/{n}"), parent(n))).collect();
            authority.create_entries(batch).await?;
            created += count;
        }
        let create = begun.elapsed() / u32::try_from(size - before).unwrap_or(1).max(1);
        steps.push(Step { create, ..sync(authority, &node, size).await? });
    }
    Ok(steps)
}

async fn sync(authority: &Authority, node: &Svid, entries: usize) -> Result<Step> {
    let mut client = EntryClient::new(authority.channel(Some(node))).max_decoding_message_size(64 << 20);
    client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.context("the first sync")?;
    let (begun, before) = (Instant::now(), Usage::of(authority.pid())?);
    let mut synced = 0;
    for _ in 0..SYNCS {
        synced =
            client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await?.into_inner().entries.len();
    }
    let (took, after) = (begun.elapsed(), Usage::of(authority.pid())?);
    Ok(Step {
        entries,
        resident_mib: after.resident_mib,
        create: Duration::ZERO,
        sync: took / SYNCS,
        synced,
        sync_cpu: (after.cpu - before.cpu) / SYNCS,
    })
}

fn parent(number: usize) -> &'static str {
    if number < OWN { NODE } else { "/node/others" }
}

const NODE: &str = "/node/growth";
/// Entries of the node that synchronises.
const OWN: usize = 1_000;
const BATCH: usize = 500;
const SYNCS: u32 = 10;
