//! How long a change of entries takes to reach a workload's open stream.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use runtime::workload_api::IdentityStream;

use super::{Site, Times};
use crate::ca::Authority;

/// Times from the answer of the authority to the message on the stream.
pub(super) struct Changes {
    pub(super) created: Times,
    pub(super) deleted: Times,
}

pub(super) async fn measure(authority: &Authority, site: &Site, rounds: usize) -> Result<Changes> {
    let mut stream = IdentityStream::open(&site.endpoint()).await?;
    until(&mut stream, 1).await?;
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let ids = authority.create_entries(vec![site.own_entry(&format!("/bench/new-{round}"))?]).await?;
        created.push(until(&mut stream, 2).await?);
        authority.delete_entries(ids).await?;
        deleted.push(until(&mut stream, 1).await?);
    }
    Ok(Changes { created: Times::of(created), deleted: Times::of(deleted) })
}

/// Until the stream shows so many identities.
async fn until(stream: &mut IdentityStream, count: usize) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let next = tokio::time::timeout(LIMIT, stream.next()).await.context("the change does not come")?;
        if next.context("the stream ended")??.svids().len() == count {
            return Ok(began.elapsed());
        }
    }
}

const LIMIT: Duration = Duration::from_secs(30);
