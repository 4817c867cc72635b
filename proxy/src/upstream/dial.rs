//! Opening one connection to an endpoint: TCP, then TLS with the peer proven.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use identity::tls::{self, reason_of_io};
use identity::unix_time;
use routing::cluster::TcpKeepalive;
use routing::request::PeerIdentity;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::live::{Leash, Live};
use super::pool::Speak;
use crate::io::{Io, Socket};
use crate::obs::counters::Counters;
use crate::refusal;
use crate::tls::own::OwnIdentity;
use crate::tls::rests::Side;
use crate::tls::upstream::ClientSide;
use crate::worker::conns::Leaving;

/// How to reach the endpoints of a cluster.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// The local address to connect from.
    pub(crate) bind: Option<SocketAddr>,
    pub(crate) tls: Option<Arc<ClientSide>>,
    /// Requests that a connection may carry.
    pub(crate) requests_max: Option<u32>,
    /// How old a connection may grow.
    pub(crate) age_max: Option<Duration>,
    pub(crate) keepalive: Option<TcpKeepalive>,
    /// The server name of the request, where that is what to ask for.
    pub(crate) requested_name: Option<Box<str>>,
    pub(crate) identity: Arc<OwnIdentity>,
    pub(crate) counters: Arc<Counters>,
    /// Where connections to proven peers are entered.
    pub(crate) live: Rc<Live>,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) io: Io,
    pub(crate) facts: Rc<ConnFacts>,
    /// What to speak on it.
    pub(crate) speaks: Speak,
}

/// What is known of an open connection.
#[derive(Debug)]
pub(crate) struct ConnFacts {
    pub(crate) remote: SocketAddr,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<PeerIdentity>,
    /// Under which SVID of ours it was opened; 0 without TLS.
    generation: Option<u64>,
    retire_at: Option<Instant>,
    leash: Option<Arc<Leash>>,
    /// Requests that it may still carry.
    left: Cell<Option<u32>>,
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot be reached")]
    Connect(#[source] io::Error),
    #[error("connecting took too long")]
    Timeout,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the server's certificate does not bear an expected name")]
    Name,
    #[error("the peer could not be verified")]
    Peer(#[source] identity::verify::PeerError),
    #[error("this proxy has no identity yet")]
    NoIdentity,
    #[error("HTTP/1 could not begin")]
    Http1(#[source] hyper::Error),
    #[error("HTTP/2 could not begin")]
    Http2(#[source] h2::Error),
    #[error("too many requests wait for a connection")]
    TooManyPending,
    #[error("the attempt was given up")]
    Abandoned,
}

impl DialError {
    /// The stable code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Handshake(_) | Self::Name | Self::Peer(_) => refusal::UPSTREAM_TLS_FAILED,
            Self::NoIdentity => refusal::NO_IDENTITY,
            Self::TooManyPending => refusal::UPSTREAM_OVERFLOW,
            Self::Connect(_) | Self::Timeout | Self::Http1(_) | Self::Http2(_) | Self::Abandoned => {
                refusal::UPSTREAM_CONNECT_FAILED
            }
        }
    }

    /// What exactly was wrong with the peer, as far as that has a code.
    pub(crate) fn peer_reason(&self) -> Option<&'static str> {
        match self {
            Self::Handshake(error) => reason_of_io(error),
            Self::Peer(error) => Some(error.reason()),
            _ => None,
        }
    }
}

impl ConnFacts {
    /// Whether the connection may not carry new requests: our SVID is another one now, or the peer's is about to expire,
    /// revoked, or below a root that is gone.
    pub(crate) fn is_retired(&self, generation: u64, now: Instant) -> bool {
        self.generation.is_some_and(|born| born != generation)
            || self.leash.as_ref().is_some_and(|leash| leash.is_spent())
            || self.retire_at.is_some_and(|at| now >= at)
            || self.left.get() == Some(0)
    }

    /// Ready when the connection is being left. For the one who also reads from it.
    pub(crate) fn poll_leaving(&self, cx: &Context<'_>) -> Poll<Leaving> {
        self.leash.as_ref().map_or(Poll::Pending, |leash| leash.poll_leaving(cx))
    }

    /// Counts a request.
    pub(crate) fn begin_request(&self) {
        self.left.set(self.left.get().map(|left| left.saturating_sub(1)));
    }
}

impl Dialer {
    /// The number of our SVID.
    pub(crate) fn generation(&self) -> u64 {
        self.identity.generation()
    }

    /// Whether TLS can settle what is spoken.
    pub(crate) fn negotiates(&self) -> bool {
        self.tls.is_some()
    }

    /// Opens a connection.
    pub(crate) async fn dial(&self, address: SocketAddr, speak: Speak) -> Result<Dialed, DialError> {
        self.counters.upstream_connects.fetch_add(1, Ordering::Relaxed);
        let dialed = tokio::time::timeout(self.connect_timeout, self.open(address, speak)).await;
        let dialed = dialed.unwrap_or(Err(DialError::Timeout));
        if let Err(error) = &dialed {
            self.counters.upstream_connects_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%address, reason = error.reason(), peer_reason = error.peer_reason(), error = crate::xds::sds::chain(error), "connection to endpoint failed");
        }
        dialed
    }

    fn facts(
        &self,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        peer: Option<PeerIdentity>,
        generation: Option<u64>,
        retire_at: Option<Instant>,
        leash: Option<Arc<Leash>>,
    ) -> ConnFacts {
        let too_old = self.age_max.map(|age| Instant::now() + age);
        let retire_at = [retire_at, too_old].into_iter().flatten().min();
        ConnFacts { remote, local, peer, generation, retire_at, leash, left: Cell::new(self.requests_max) }
    }

    async fn open(&self, address: SocketAddr, speak: Speak) -> Result<Dialed, DialError> {
        let tcp = connect(address, self.bind, self.keepalive).await.map_err(DialError::Connect)?;
        let local = tcp.local_addr().ok();
        let socket = Socket::new(tcp, Bytes::new());
        let Some(tls) = &self.tls else {
            let facts = self.facts(address, local, None, None, None, None);
            let speaks = if speak == Speak::Http2 { Speak::Http2 } else { Speak::Http1 };
            return Ok(Dialed { io: Io::Plain(socket), facts: Rc::new(facts), speaks });
        };
        let generation = self.generation();
        let own = self.identity.held();
        if tls.mesh && own.svid.is_none() {
            return Err(DialError::NoIdentity);
        }
        let name: ServerName<'static> = tls.server_name(self.requested_name.as_deref(), address.ip());
        let stream = TlsConnector::from(tls.config(speak)).connect(name, socket).await.map_err(DialError::Handshake)?;
        let (_, session) = stream.get_ref();
        if !tls.admits(session.peer_certificates()) {
            return Err(DialError::Name);
        }
        let peer = if tls.mesh {
            let now = unix_time(runtime::clock::now());
            tls::peer_of(session, &self.identity.bundles_now(), now).map_err(DialError::Peer)?
        } else {
            None
        };
        let speaks = match (session.alpn_protocol(), speak) {
            (Some(tls::ALPN_H2), _) => Speak::Http2,
            (Some(tls::ALPN_HTTP11), _) | (None, Speak::Negotiated) => Speak::Http1,
            (_, speak) => speak,
        };
        let retire_at = peer.as_ref().map(|peer| retire_at(peer.not_after(), runtime::clock::now()));
        let leash = peer.as_ref().map(|peer| {
            let rest = self.counters.rests.enter(Side::Upstream, own.root.clone(), Some(peer));
            self.live.enter(peer.clone(), address, rest)
        });
        let peer = peer.as_ref().map(PeerIdentity::from);
        let facts = self.facts(address, local, peer, tls.mesh.then_some(generation), retire_at, leash.clone());
        Ok(Dialed { io: Io::Opened(Box::new(stream), leash), facts: Rc::new(facts), speaks })
    }
}

/// A plain TCP connection with the options every one of ours has.
async fn connect(
    address: SocketAddr,
    bind: Option<SocketAddr>,
    keepalive: Option<TcpKeepalive>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(bind) = bind.filter(|bind| bind.is_ipv4() == address.is_ipv4()) {
        socket.bind(bind)?;
    }
    let stream = socket.connect(address).await?;
    // A socket that refuses these options works all the same.
    let _ = stream.set_nodelay(true);
    let options = socket2::SockRef::from(&stream);
    let _ = options.set_keepalive(true);
    if let Some(wanted) = keepalive {
        let _ = options.set_tcp_keepalive(&keepalive_of(wanted));
    }
    Ok(stream)
}

fn keepalive_of(wanted: TcpKeepalive) -> socket2::TcpKeepalive {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    keepalive
}

/// When a connection should carry no new requests: a third of the leaf's remaining life before its end.
fn retire_at(not_after: SystemTime, now: SystemTime) -> Instant {
    let left = not_after.duration_since(now).unwrap_or_default();
    Instant::now() + (left - (left / 3).min(RETIRE_MARGIN_MAX))
}

/// The longest time before the end of a peer's certificate that a connection is retired.
const RETIRE_MARGIN_MAX: Duration = Duration::from_secs(300);
