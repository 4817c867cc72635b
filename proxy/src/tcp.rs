//! Connections without HTTP: bytes to an endpoint and back.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use routing::format::{LogContext, ResponseFlags};
use routing::outlier::OutlierEvent;
use routing::tcp::TcpProxy;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::conn::Conn;
use crate::http::hcm::LogOutput;
use crate::io::Io;
use crate::obs::labels::Spoken;
use crate::refusal;
use crate::relay::{Moved, RelayEnd, relay};
use crate::serve::Rejected;
use crate::upstream::cluster::{Admitted, ClusterState, InFlight};
use crate::upstream::dial::{ConnFacts, DialError};
use crate::upstream::pool::Speak;
use crate::worker::conns::Phase;

/// One connection being passed on, as its log line tells it.
struct Story<'a> {
    conn: &'a Conn,
    begun: SystemTime,
    started: Instant,
    cluster: &'a str,
    upstream: Option<Rc<ConnFacts>>,
    moved: Moved,
    flags: ResponseFlags,
    reason: Option<&'static str>,
    details: String,
}

/// An open way to an endpoint.
struct Opened {
    cluster: Rc<ClusterState>,
    endpoint: usize,
    io: Io,
    facts: Rc<ConnFacts>,
    _in_flight: InFlight,
    _admitted: Admitted,
}

/// Why there is none.
struct Failed {
    flags: ResponseFlags,
    reason: &'static str,
    details: String,
}

/// Passes a connection on to its cluster until it ends.
pub(crate) async fn serve(conn: Rc<Conn>, proxy: Arc<TcpProxy>, io: Io) -> Result<(), Rejected> {
    conn.life().become_stream();
    let name = proxy.cluster(conn.worker.random.next());
    let mut story = Story {
        conn: &conn,
        begun: runtime::clock::now(),
        started: Instant::now(),
        cluster: name,
        upstream: None,
        moved: Moved::default(),
        flags: ResponseFlags::default(),
        reason: None,
        details: String::new(),
    };
    let logs = conn.worker.config().tcp_logs(&conn.worker, &proxy);
    let ended = match open(&conn, &proxy, name).await {
        Ok(opened) => {
            pass(&conn, &proxy, opened, io, &mut story).await;
            Ok(())
        }
        Err(failed) => {
            (story.flags, story.reason) = (failed.flags, Some(failed.reason));
            story.details.clone_from(&failed.details);
            Err(Rejected::new(failed.reason, failed.details))
        }
    };
    story.log(&logs);
    ended
}

async fn open(conn: &Rc<Conn>, proxy: &TcpProxy, name: &str) -> Result<Opened, Failed> {
    let failed = |flags, reason, details: &str| Failed { flags, reason, details: details.to_owned() };
    let outside = name == "BlackHoleCluster";
    let cluster = conn.worker.config().cluster(name).ok_or_else(|| match outside {
        true => failed(ResponseFlags::NR, refusal::HOST_NOT_IN_MESH, name),
        false => failed(ResponseFlags::NC, refusal::NO_CLUSTER, name),
    })?;
    let admitted =
        cluster.admit_connection().ok_or_else(|| failed(ResponseFlags::UO, refusal::UPSTREAM_OVERFLOW, name))?;
    let hash = proxy.hash_source_ip.then(|| routing::route::hash_bytes(conn.facts.source.ip().to_string().as_bytes()));
    let mut tried = SmallVec::<[usize; 4]>::new();
    loop {
        let dice = conn.worker.random.next();
        let chosen = cluster.pick(dice, hash, &tried, conn.original).ok_or_else(|| match outside {
            true => failed(ResponseFlags::UH, refusal::HOST_NOT_IN_MESH, name),
            false => failed(ResponseFlags::UH, refusal::NO_HEALTHY_ENDPOINT, name),
        })?;
        let in_flight = cluster.begin(chosen.index);
        let dialer = cluster.raw_dialer(&conn.worker, &chosen, conn.facts.sni.as_deref().unwrap_or_default());
        match dialer.dial(chosen.address, Speak::Http1).await {
            Ok(dialed) => {
                let (io, facts, endpoint) = (dialed.io, dialed.facts, chosen.index);
                return Ok(Opened { cluster, endpoint, io, facts, _in_flight: in_flight, _admitted: admitted });
            }
            Err(error) => {
                cluster.judge(chosen.index, OutlierEvent::LocalFailure, dice);
                tried.push(chosen.index);
                if tried.len() >= proxy.connect_attempts as usize {
                    return Err(unreachable(&error));
                }
            }
        }
    }
}

fn unreachable(error: &DialError) -> Failed {
    let details = crate::xds::sds::chain(error);
    let details = match error.peer_reason() {
        Some(peer) => format!("{peer}: {details}"),
        None => details,
    };
    Failed { flags: ResponseFlags::UF, reason: error.reason(), details }
}

async fn pass(conn: &Rc<Conn>, proxy: &TcpProxy, opened: Opened, mut down: Io, story: &mut Story<'_>) {
    let Opened { cluster, endpoint, io: mut up, facts, .. } = opened;
    let base = cluster.labels(conn, Spoken::Tcp, Some(endpoint), Some(&facts));
    let series = conn.worker.series.tcp(base);
    series.opened.add(1);
    story.upstream = Some(facts.clone());
    let idle = proxy.idle_timeout.unwrap_or(FOREVER);
    let moving = relay(&mut down, &mut up, idle, HALF_CLOSED, &story.moved);
    let limit = proxy.duration_max.unwrap_or(FOREVER);
    let (flags, details) = tokio::select! {
        end = moving => match end {
            RelayEnd::Closed => (ResponseFlags::default(), String::new()),
            RelayEnd::Idle => (ResponseFlags::SI, "idle_timeout".to_owned()),
            RelayEnd::First(error) => (ResponseFlags::DC, error.to_string()),
            RelayEnd::Second(error) => (ResponseFlags::UC, error.to_string()),
        },
        () = tokio::time::sleep(limit) => (ResponseFlags::DT, "max_duration".to_owned()),
        _ = std::future::poll_fn(|cx| conn.life().poll_beyond(Phase::Draining, cx)) => {
            story.reason = conn.life().cut_for();
            (ResponseFlags::DT, "connection cut".to_owned())
        }
        () = left(conn, &facts, &story.moved) => {
            part(&mut down, &mut up).await;
            (ResponseFlags::DT, "root_replaced".to_owned())
        }
    };
    (story.flags, story.details) = (flags, details);
    series.closed.add(1);
    series.received.add(story.moved.forth.get());
    series.sent.add(story.moved.back.get());
}

/// Ready at a pause of a connection that is being left, on whichever side.
pub(crate) async fn left(conn: &Conn, up: &ConnFacts, moved: &Moved) {
    let leaving = std::future::poll_fn(|cx| match conn.life().poll_leaving(cx) {
        Poll::Ready(leaving) => Poll::Ready(leaving),
        Poll::Pending => up.poll_leaving(cx),
    });
    moved.pause(leaving.await).await;
}

/// Tells both sides in order that this is the end. What one of them says at the same moment is heard and lost, so that the
/// farewell reaches it instead of a reset.
pub(crate) async fn part<A, B>(a: &mut A, b: &mut B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let parting = async { tokio::join!(say_goodbye(a), say_goodbye(b)) };
    // Whoever does not close is closed on.
    let _ = tokio::time::timeout(GOODBYE_MAX, parting).await;
}

async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(stream, &mut tokio::io::sink()).await.map(drop)
}

impl Story<'_> {
    fn log(&self, logs: &[LogOutput]) {
        let facts = &self.conn.facts;
        let upstream = self.upstream.as_deref();
        let context = LogContext {
            start: Some(self.begun),
            duration: Some(self.started.elapsed()),
            details: (!self.details.is_empty()).then_some(&self.details),
            flags: self.flags,
            reason: self.reason,
            bytes_received: self.moved.forth.get(),
            bytes_sent: self.moved.back.get(),
            upstream_host: upstream.map(|facts| facts.remote),
            upstream_local: upstream.and_then(|facts| facts.local),
            upstream_peer: upstream.and_then(|facts| facts.peer.as_ref()),
            upstream_cluster: Some(self.cluster),
            downstream_remote: Some(facts.source),
            downstream_direct_remote: Some(facts.direct_source),
            downstream_local: Some(facts.destination),
            downstream_peer: facts.peer.as_ref(),
            server_name: facts.sni.as_deref(),
            ..LogContext::default()
        };
        let dice = self.conn.worker.random.next();
        for log in logs {
            log.write(&context, dice);
        }
    }
}

/// After one side has closed, how long the other may be silent.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// How long the end of a connection may take to be said.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// Longer than any connection lives.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_close_is_closed_on() {
        let ((mut a, mut left), (mut b, _right)) = (duplex(64), duplex(64));
        let begun = Instant::now();
        part(&mut a, &mut b).await;
        assert_eq!(begun.elapsed().as_millis(), GOODBYE_MAX.as_millis());
        assert_eq!(left.read(&mut [0; 8]).await.unwrap(), 0, "it was told all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn who_closes_is_not_waited_for_and_what_it_says_last_is_let_pass() {
        let ((mut a, mut left), (mut b, right)) = (duplex(64), duplex(64));
        left.write_all(b"one more thing").await.unwrap();
        drop((left, right));
        let begun = Instant::now();
        part(&mut a, &mut b).await;
        assert!(begun.elapsed() < GOODBYE_MAX);
    }
}
