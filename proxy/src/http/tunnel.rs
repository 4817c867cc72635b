//! Requests that leave HTTP: WebSocket and other admitted upgrades, and CONNECT.
//!
//! Bytes pass only after both sides agreed. A WebSocket goes to its endpoint over an HTTP/1.1 connection of its own; a
//! CONNECT becomes a TCP connection to the endpoint.

use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use routing::format::ResponseFlags;
use routing::route::Selection;

use super::body::Body;
use super::exchange::{Answer, Upgrade, clean_response, edit_response};
use super::forward::Plan;
use super::record::{Hold, Record, Tunneled};
use super::reply::{self, Reply};
use crate::conn::Conn;
use crate::refusal::{self, Refusal};
use crate::relay::{Moved, RelayEnd, relay};
use crate::tcp;
use crate::upstream::cluster::Chosen;
use crate::upstream::dial::ConnFacts;
use crate::upstream::pool::Speak;
use crate::upstream::send::{Answered, Failure, send_http1};
use crate::worker::conns::Phase;

/// Sends an upgrade on, and bytes after it.
pub(crate) async fn run(
    record: &mut Record,
    selection: &Selection<'_>,
    plan: Plan<'_>,
    upgrade: Upgrade,
) -> Result<Answer, Refusal> {
    let dice = record.conn.worker.random.next();
    let chosen = plan.cluster.pick(dice, plan.hash, &[], record.conn.original);
    let chosen = chosen.ok_or_else(Refusal::no_endpoint)?;
    record.endpoint = Some(chosen.index);
    record.attempts = 1;
    let tunnel = async {
        if record.head.method == Method::CONNECT {
            connect(record, &plan, &chosen, upgrade.on).await
        } else {
            websocket(record, selection, &plan, &chosen, upgrade).await
        }
    };
    match plan.deadline {
        None => tunnel.await,
        Some(deadline) => tokio::time::timeout_at(deadline, tunnel).await.unwrap_or_else(|_| Err(Refusal::timeout())),
    }
}

async fn websocket(
    record: &mut Record,
    selection: &Selection<'_>,
    plan: &Plan<'_>,
    chosen: &Chosen,
    upgrade: Upgrade,
) -> Result<Answer, Refusal> {
    let in_flight = plan.cluster.begin(chosen.index);
    let pool = plan.cluster.pool(&record.conn.worker, chosen, plan.outgoing.authority.host());
    let lease = pool.tunnel().await.map_err(|error| refused(record, &Failure::not_connected(&error)))?;
    let mut outgoing = plan.outgoing.clone();
    outgoing.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(protocol) = HeaderValue::from_str(&upgrade.protocol) {
        outgoing.headers.insert(header::UPGRADE, protocol);
    }
    let answered = send_http1(lease, &outgoing, Body::Empty).await.map_err(|failure| refused(record, &failure))?;
    let Answered { mut head, body, mut hold, facts } = answered;
    record.upstream = Some(facts.clone());
    record.first_byte = Some(record.started.elapsed());
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let accepted = head
        .headers
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(upgrade.protocol.as_bytes()));
    if !switched {
        // The answer is an ordinary one; the connection under it is not used again.
        clean_response(&mut head);
        hold.in_flight = Some(in_flight);
        let mut reply = Reply { head, body };
        edit_response(record, selection, plan.weighted, &mut reply);
        return Ok(Answer { reply, hold });
    }
    if !accepted {
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, refusal::UPSTREAM_RESPONSE_INVALID, ResponseFlags::UPE));
    }
    let mut response = http::Response::from_parts(head, ());
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, ()) = response.into_parts();
    head.headers.remove(header::CONNECTION);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let mut reply = Reply { head, body: Body::Empty };
    edit_response(record, selection, plan.weighted, &mut reply);
    let conn = record.conn.clone();
    conn.life().become_stream();
    let tunneled = record.tunneled();
    tokio::task::spawn_local(async move {
        let _in_flight = in_flight;
        if let (Ok(down), Ok(up)) = tokio::join!(upgrade.on, upstream) {
            pass(&conn, &facts, TokioIo::new(down), TokioIo::new(up), &tunneled).await;
        }
        drop(tunneled);
    });
    Ok(Answer { reply, hold: Hold::default() })
}

/// A CONNECT: bytes go to the endpoint as they are.
async fn connect(record: &mut Record, plan: &Plan<'_>, chosen: &Chosen, on: OnUpgrade) -> Result<Answer, Refusal> {
    let in_flight = plan.cluster.begin(chosen.index);
    let dialer = plan.cluster.raw_dialer(&record.conn.worker, chosen, plan.outgoing.authority.host());
    let dialed = dialer.dial(chosen.address, Speak::Http1).await;
    let dialed = dialed.map_err(|error| refused(record, &Failure::not_connected(&error)))?;
    let facts = dialed.facts;
    record.upstream = Some(facts.clone());
    record.first_byte = Some(record.started.elapsed());
    let conn = record.conn.clone();
    conn.life().become_stream();
    let tunneled = record.tunneled();
    let up = dialed.io;
    tokio::task::spawn_local(async move {
        let _in_flight = in_flight;
        if let Ok(down) = on.await {
            pass(&conn, &facts, TokioIo::new(down), up, &tunneled).await;
        }
        drop(tunneled);
    });
    let mut reply = reply::empty(StatusCode::OK);
    reply.head.version = Version::HTTP_11;
    Ok(reply.into())
}

/// Passes bytes until one side ends, or until the connection is to be cut.
async fn pass<A, B>(conn: &Rc<Conn>, facts: &ConnFacts, mut down: A, mut up: B, tunneled: &Tunneled)
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let moved: &Moved = tunneled.moved();
    let passing = relay(&mut down, &mut up, IDLE, HALF_CLOSED, moved);
    tokio::select! {
        end = passing => match end {
            RelayEnd::Closed | RelayEnd::Idle => {}
            RelayEnd::First(error) | RelayEnd::Second(error) => tracing::debug!(%error, "tunnel ended"),
        },
        _ = std::future::poll_fn(|cx| conn.life().poll_beyond(Phase::Draining, cx)) => {}
        () = tcp::left(conn, facts, moved) => tcp::part(&mut down, &mut up).await,
    }
}

fn refused(record: &mut Record, failure: &Failure) -> Refusal {
    record.upstream_failure = failure.peer_reason;
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure.reason, failure.flags).with(failure.details.clone())
}

/// How long a tunnel may be silent.
const IDLE: Duration = Duration::from_secs(3600);
const HALF_CLOSED: Duration = Duration::from_secs(60);
