//! Copies of requests for other clusters, whose answers nobody waits for.

use std::time::Duration;

use http_body_util::BodyExt;
use routing::route::{Forward, mix};

use super::body::Body;
use super::record::Record;
use crate::upstream::send::{Outgoing, send};

/// Sends copies where the route wants them. Only requests without a body are copied.
pub(crate) fn run(record: &Record, forward: &Forward, outgoing: &Outgoing, body: &Body) {
    if forward.mirrors.is_empty() || !body.is_empty() {
        return;
    }
    let worker = &record.conn.worker;
    for (place, mirror) in forward.mirrors.iter().enumerate() {
        if !mirror.share.includes(mix(record.dice.wrapping_add(place as u64))) {
            continue;
        }
        let Some(cluster) = worker.config().cluster(&mirror.cluster) else { continue };
        let mut copy = outgoing.clone();
        if mirror.mark_host
            && let Ok(host) = format!("{}-shadow", copy.authority.host()).parse()
        {
            copy.authority = host;
        }
        let (worker, original) = (worker.clone(), record.conn.original);
        let copied = async move {
            let chosen = cluster.pick(worker.random.next(), None, &[], original)?;
            let pool = cluster.pool(&worker, &chosen, copy.authority.host());
            let answered = send(&pool, cluster.speak(true), &copy, Body::Empty).await.ok()?;
            let mut body = answered.body;
            while body.frame().await?.is_ok() {}
            Some(())
        };
        tokio::task::spawn_local(tokio::time::timeout(MIRROR_TIMEOUT, copied));
    }
}

const MIRROR_TIMEOUT: Duration = Duration::from_secs(15);
