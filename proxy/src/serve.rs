//! From an accepted socket to the protocol that serves it: original destination, sniffing, filter chain, TLS, the peer
//! proven, connection policy.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use identity::digest::{hex, sha256};
use identity::summary::CertificateSummary;
use identity::tls::{self, reason_of_io};
use identity::{VerifiedPeer, unix_time};
use routing::listener::{ConnectionFacts, FilterChain, ListenerFilter, NetworkFilter, Terminal};
use routing::request::{Connection, PeerIdentity};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::ListenerConfig;
use crate::conn::Conn;
use crate::io::{Io, Socket};
use crate::refusal;
use crate::sniff::http::HttpKind;
use crate::sniff::{self, Sniffed};
use crate::tls::downstream::ServerSide;
use crate::tls::own::Held;
use crate::tls::rests::Side;
use crate::worker::Accepted;
use crate::worker::conns::{Life, Place};
use crate::worker::state::Worker;
use crate::{http, proxy_protocol, tcp};

/// Why a connection is closed before it is served.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) reason: &'static str,
    pub(crate) error: String,
}

impl Rejected {
    pub(crate) fn new(reason: &'static str, error: impl Into<String>) -> Self {
        Self { reason, error: error.into() }
    }
}

/// Serves one accepted socket to its end.
pub(crate) async fn connection(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { socket, source, listener: name, load } = accepted;
    let Ok(tcp) = TcpStream::from_std(socket) else { return };
    let Some(listener) = worker.config().config.listeners.get(&name).cloned() else { return };
    let place = worker.conns.enter(listener.clone(), load);
    let ended = serve(&worker, &listener, place, tcp, source).await;
    if let Err(Rejected { reason, error }) = ended {
        worker.process.counters.refused(reason);
        tracing::info!(reason, %source, listener = &*name, error, "connection refused");
    }
}

async fn serve(
    worker: &Rc<Worker>,
    listener: &Arc<ListenerConfig>,
    place: Place,
    mut tcp: TcpStream,
    direct_source: SocketAddr,
) -> Result<(), Rejected> {
    // A socket that refuses these options works all the same.
    let _ = tcp.set_nodelay(true);
    let _ = socket2::SockRef::from(&tcp).set_keepalive(true);
    let (mut source, mut destination) = (direct_source, destination_of(listener, &tcp));
    let local = tcp.local_addr().unwrap_or(destination);
    for filter in &listener.listener.filters {
        if let ListenerFilter::ProxyProtocol { optional } = filter {
            let told = tokio::time::timeout(PROXY_HEADER_TIMEOUT, proxy_protocol::read(&mut tcp, *optional)).await;
            let told = told.map_err(|_| Rejected::new(refusal::SNIFF_TIMEOUT, "no PROXY header in time"))?;
            if let Some((from, to)) = told.map_err(|error| Rejected::new(refusal::HTTP_MALFORMED, error.to_string()))? {
                (source, destination) = (from, to);
            }
        }
    }
    let (sniffed, prefix) = sniff_first(listener, &mut tcp).await?;
    let chain = pick_chain(listener, &sniffed, source, direct_source, destination)?;
    let mut facts = Connection::plain(source, destination);
    facts.direct_source = direct_source;
    let socket = Socket::new(tcp, prefix);
    let mut proven = None;
    let (io, sniffed) = match listener.server_side(&chain) {
        None => (Io::Plain(socket), sniffed),
        Some(_) if !matches!(sniffed, Sniffed::Tls(_)) => {
            return Err(Rejected::new(refusal::PLAINTEXT_REFUSED, "plain text where TLS is required"));
        }
        Some(server) => {
            // Either of the SVIDs held before and after may be the one that was presented.
            let before = worker.process.identity.held();
            let stream = handshake(worker, server, &chain, socket).await?;
            proven = identify(worker, server, &stream, &before, &mut facts, &place.life)?;
            (Io::Accepted(Box::new(stream), Bytes::new()), Sniffed::Opaque)
        }
    };
    check_connection(&chain, &facts)?;
    let conn = Rc::new(Conn::new(worker.clone(), place, facts, local, proven.as_ref()));
    match &chain.terminal {
        Terminal::Http(hcm) => {
            let hcm = worker.config().hcm(worker, hcm);
            let kind = match sniffed {
                Sniffed::Http(kind) => Some(kind),
                Sniffed::Tls(_) | Sniffed::Opaque => None,
            };
            http::serve(conn, hcm, io, kind).await
        }
        Terminal::Tcp(proxy) => tcp::serve(conn, proxy.clone(), io).await,
    }
}

/// Where the client wanted to go: before a redirection by the kernel, if there was one.
fn destination_of(listener: &ListenerConfig, tcp: &TcpStream) -> SocketAddr {
    let local = tcp.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let captured =
        listener.listener.use_original_dst || listener.listener.filters.contains(&ListenerFilter::OriginalDst);
    if !captured {
        return local;
    }
    let socket = socket2::SockRef::from(tcp);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}

async fn sniff_first(listener: &ListenerConfig, tcp: &mut TcpStream) -> Result<(Sniffed, Bytes), Rejected> {
    if !listener.sniffs {
        return Ok((Sniffed::Opaque, Bytes::new()));
    }
    let patience = listener.listener.filters_timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(SNIFF_TIMEOUT);
    match tokio::time::timeout(patience, sniff::sniff_tcp(tcp)).await {
        Ok(Ok(sniffed)) => Ok(sniffed),
        // Nothing was said, so there is nobody to be refused.
        Ok(Err(error)) => Err(Rejected::new("CLIENT_GONE", error.to_string())),
        Err(_) if listener.listener.continue_on_timeout => Ok((Sniffed::Opaque, Bytes::new())),
        Err(_) => Err(Rejected::new(refusal::SNIFF_TIMEOUT, "the client said nothing")),
    }
}

fn pick_chain(
    listener: &ListenerConfig,
    sniffed: &Sniffed,
    source: SocketAddr,
    direct_source: SocketAddr,
    destination: SocketAddr,
) -> Result<Arc<FilterChain>, Rejected> {
    let offered: Vec<&str>;
    let (sni, alpn, transport): (Option<&str>, &[&str], &str) = match sniffed {
        Sniffed::Tls(hello) => {
            offered = hello.alpn.iter().map(String::as_str).collect();
            (hello.server_name.as_deref(), &offered, "tls")
        }
        Sniffed::Http(HttpKind::Http2) => (None, &["h2c"], "raw_buffer"),
        Sniffed::Http(_) => (None, &["http/1.1"], "raw_buffer"),
        Sniffed::Opaque => (None, &[], "raw_buffer"),
    };
    let facts = ConnectionFacts { destination, source, direct_source, sni, alpn, transport };
    listener.listener.pick(&facts).cloned().ok_or_else(|| {
        if transport == "raw_buffer" && listener.has_tls() {
            return Rejected::new(refusal::PLAINTEXT_REFUSED, "plain text where TLS is required");
        }
        Rejected::new(refusal::NO_FILTER_CHAIN, format!("no filter chain for server name {sni:?}, protocols {alpn:?}"))
    })
}

async fn handshake(
    worker: &Worker,
    server: &ServerSide,
    chain: &FilterChain,
    socket: Socket,
) -> Result<TlsStream<Socket>, Rejected> {
    let counters = &worker.process.counters;
    counters.handshakes.fetch_add(1, Ordering::Relaxed);
    let accept = TlsAcceptor::from(server.config.clone()).accept(socket);
    let result = tokio::time::timeout(chain.handshake_timeout.unwrap_or(HANDSHAKE_TIMEOUT), accept).await;
    let rejected = match result {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(_)) if server.mesh && worker.process.identity.svid_now().is_none() => {
            Rejected::new(refusal::NO_IDENTITY, "this proxy has no SVID yet")
        }
        Ok(Err(error)) => {
            Rejected::new(reason_of_io(&error).unwrap_or(refusal::TLS_HANDSHAKE_FAILED), crate::xds::sds::chain(&error))
        }
        Err(_) => Rejected::new(refusal::TLS_HANDSHAKE_TIMEOUT, "the handshake took too long"),
    };
    counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    Err(rejected)
}

/// Who the peer is; limits the connection by the certificates of both sides.
fn identify(
    worker: &Worker,
    server: &ServerSide,
    stream: &TlsStream<Socket>,
    before: &Held,
    facts: &mut Connection,
    life: &Life,
) -> Result<Option<VerifiedPeer>, Rejected> {
    let (_, session) = stream.get_ref();
    facts.tls = true;
    facts.sni = session.server_name().map(Into::into);
    facts.alpn = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into());
    if server.require_sni && facts.sni.is_none() {
        return Err(Rejected::new(refusal::NO_FILTER_CHAIN, "no server name where one is required"));
    }
    let now = runtime::clock::now();
    if !server.mesh {
        facts.peer = session.peer_certificates().and_then(<[_]>::first).and_then(|leaf| {
            let summary = CertificateSummary::decode(leaf).ok()?;
            let (uris, names) = (texts(&summary.uris), texts(&summary.dns_names));
            let fingerprint = hex(&sha256(leaf));
            Some(PeerIdentity::danger_web_client(&uris, &names, &summary.subject, &fingerprint))
        });
        return Ok(None);
    }
    let held = worker.process.identity.held();
    let peer = tls::peer_of(session, &held.bundles, unix_time(now))
        .map_err(|error| Rejected::new(error.reason(), error.to_string()))?;
    facts.peer = peer.as_ref().map(PeerIdentity::from);
    let end = |held: &Held| held.svid.as_ref().map(|svid| svid.not_after());
    let ends = [end(&held), end(before), peer.as_ref().map(VerifiedPeer::not_after)];
    let drain_at = ends.into_iter().flatten().min().map(|end| drain_at(end, now));
    let cut_at = peer.as_ref().map(|peer| Instant::now() + peer.not_after().duration_since(now).unwrap_or_default());
    let cut_at = cut_at.filter(|_| worker.process.settings.cut_expired_streams);
    let chain = session.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    let rest = worker.process.counters.rests.enter(Side::Downstream, before.root.clone(), peer.as_ref());
    life.expire(drain_at, cut_at, chain, peer.clone(), rest);
    Ok(peer)
}

/// When a connection begins to drain, so that it ends before a certificate does: a quarter of the remaining life early.
fn drain_at(end: SystemTime, now: SystemTime) -> Instant {
    let left = end.duration_since(now).unwrap_or_default();
    Instant::now() + (left - (left / 4).min(DRAIN_MARGIN_MAX))
}

fn check_connection(chain: &FilterChain, facts: &Connection) -> Result<(), Rejected> {
    for filter in &chain.network {
        if let NetworkFilter::Rbac(rbac) = filter {
            let decision = rbac.decide_connection(facts);
            if !decision.allowed {
                return Err(Rejected::new(decision.reason(), decision.policy.as_deref().unwrap_or("-")));
            }
        }
    }
    Ok(())
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// How long a client may be silent where its first bytes decide.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time before the end of a certificate that a connection begins to drain.
const DRAIN_MARGIN_MAX: Duration = Duration::from_secs(120);
