//! Callers that ask as fast as they are answered, each on a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use identity::key::PrivateKey;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use tonic::transport::Channel;

use super::authority::{Authority, Svid};
use super::process::Usage;
use super::report::{Look, Row};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// X.509-SVIDs, so many in a request.
    X509 { batch: usize },
    /// One JWT-SVID.
    Jwt,
}

impl Work {
    pub(super) fn name(self) -> String {
        match self {
            Self::X509 { batch: 1 } => "X.509-SVID".into(),
            Self::X509 { batch } => format!("X.509-SVID, batches of {batch}"),
            Self::Jwt => "JWT-SVID".into(),
        }
    }

    fn svids(self) -> usize {
        match self {
            Self::X509 { batch } => batch,
            Self::Jwt => 1,
        }
    }
}

struct Caller {
    client: SvidClient<Channel>,
    work: Work,
    params: NewX509svidParams,
}

impl Caller {
    fn new(authority: &Authority, node: &Svid, entry: &str, work: Work) -> Result<Self> {
        let csr = PrivateKey::generate_p256()?.csr_der(None)?;
        let params = NewX509svidParams { entry_id: entry.to_owned(), csr };
        Ok(Self { client: SvidClient::new(authority.channel(Some(node))), work, params })
    }

    async fn ask(&mut self) -> Result<()> {
        match self.work {
            Work::X509 { batch } => {
                let request = BatchNewX509svidRequest { params: vec![self.params.clone(); batch] };
                let results = self.client.batch_new_x509svid(request).await?.into_inner().results;
                let bad = results.iter().find(|result| result.status.as_ref().is_none_or(|status| status.code != 0));
                if let Some(bad) = bad {
                    bail!("refused: {:?}", bad.status);
                }
            }
            Work::Jwt => {
                let request =
                    NewJwtsvidRequest { entry_id: self.params.entry_id.clone(), audience: vec!["bench".into()] };
                self.client.new_jwtsvid(request).await?;
            }
        }
        Ok(())
    }
}

/// One round: all callers at once for `time`, after a second to warm up.
#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
pub(super) async fn measure(
    authority: &Authority,
    node: &Svid,
    entry: &str,
    work: Work,
    callers: usize,
    time: Duration,
) -> Result<Row> {
    let (counting, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let mut caller = Caller::new(authority, node, entry, work)?;
        let (counting, ended) = (counting.clone(), ended.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                caller.ask().await?;
                if counting.load(Ordering::Relaxed) {
                    times.push(begun.elapsed());
                }
            }
            anyhow::Ok(times)
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let (begun, before) = (Instant::now(), Usage::of(authority.pid())?);
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    counting.store(false, Ordering::Relaxed);
    let (took, after) = (begun.elapsed(), Usage::of(authority.pid())?);
    ended.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.extend(task??);
    }
    times.sort();
    let svids = (times.len() * work.svids()).max(1) as f64;
    let percentile = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    Ok(Row {
        work,
        callers,
        micros: (after.cpu - before.cpu).as_secs_f64() * 1e6 / svids,
        rate: svids / took.as_secs_f64(),
        p50: percentile(50),
        p99: percentile(99),
        resident_mib: after.resident_mib,
    })
}

/// Issues `count` certificates in batches and answers the memory on the way, after every tenth of them.
pub(super) async fn issue_many(authority: &Authority, node: &Svid, entry: &str, count: usize) -> Result<Vec<Look>> {
    let mut memory = Vec::new();
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(Caller::new(authority, node, entry, Work::X509 { batch: BATCH })?);
    }
    let (mut issued, mut next) = (0, 0);
    while issued < count {
        let asked = futures_util::future::join_all(callers.iter_mut().map(Caller::ask)).await;
        asked.into_iter().collect::<Result<()>>()?;
        issued += callers.len() * BATCH;
        if issued >= next || issued >= count {
            let Usage { resident_mib, own_mib, .. } = Usage::of(authority.pid())?;
            memory.push(Look { certificates: issued, resident_mib, own_mib });
            next += (count / SAMPLES).max(1);
        }
    }
    Ok(memory)
}

const WARM_UP: Duration = Duration::from_secs(1);
/// Looks at the memory while certificates are issued, beside the first.
const SAMPLES: usize = 10;
const BATCH: usize = 100;
