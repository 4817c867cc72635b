//! Connections between parts of the mesh: TLS 1.3, both sides proven by SVID, identity and trust read anew at each
//! handshake so that a rotation needs no restart.

mod door;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Extensions;
use hyper_util::rt::TokioIo;
use identity::tls::{self, ALPN_H2, ALPN_HTTP11, ClientAuth, PeerRule, Snapshot, TlsError};
use identity::{VerifiedPeer, unix_time};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

pub use door::{Door, Pass};

use self::door::Held;
use crate::clock;
use crate::serve::{self, Limits, RemoteAddr};
use crate::shutdown::Shutdown;

/// Where identity and trust come from.
pub type Source = Arc<dyn Snapshot>;

/// Who is at the other end, as an extension of every request served here; `None` when it sent no certificate.
#[derive(Clone, Debug)]
pub struct PeerIdentity(pub Option<VerifiedPeer>);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is no `HOST:PORT`.
    #[error("`{addr}` is not HOST:PORT")]
    Address {
        /// What was given.
        addr: String,
    },
    /// Nobody answers there.
    #[error("{addr} cannot be reached")]
    Tcp {
        /// Whom we called.
        addr: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The two sides do not agree on who they are.
    #[error("the TLS handshake with {addr} failed: {source}")]
    Handshake {
        /// Whom we called.
        addr: String,
        /// What failed.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{addr} does not finish the handshake within {} s", CONNECT_WAIT_MAX.as_secs())]
    Timeout {
        /// Whom we called.
        addr: String,
    },
    /// Our own side is wrong.
    #[error("the TLS configuration is not possible")]
    Config(#[source] TlsError),
}

impl ConnectError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "ADDRESS_BAD",
            Self::Tcp { .. } | Self::Timeout { .. } => "PEER_UNREACHABLE",
            Self::Handshake { source, .. } => tls::reason_of_io(source).unwrap_or("TLS_HANDSHAKE_FAILED"),
            Self::Config(error) => error.reason(),
        }
    }
}

/// Serves gRPC to proven peers; requests carry [`PeerIdentity`] and [`RemoteAddr`].
///
/// # Errors
/// When no TLS configuration can be made.
pub async fn serve_tonic(
    listener: TcpListener,
    source: impl Snapshot + 'static,
    client_auth: ClientAuth,
    routes: Routes,
    shutdown: Shutdown,
) -> Result<(), TlsError> {
    let router = routes.prepare().into_axum_router();
    serve(listener, Arc::new(source), client_auth, PeerRule::AnyTrusted, router, Limits::default(), shutdown).await
}

/// Serves HTTP/1.1 and HTTP/2 to proven peers that `peers` expects; requests carry [`PeerIdentity`] and [`RemoteAddr`].
///
/// # Errors
/// When no TLS configuration can be made.
pub async fn serve(
    listener: TcpListener,
    source: Source,
    client_auth: ClientAuth,
    peers: PeerRule,
    router: Router,
    limits: Limits,
    shutdown: Shutdown,
) -> Result<(), TlsError> {
    serve_behind(None, listener, source, client_auth, peers, router, limits, shutdown).await
}

/// As [`serve`], for those whom the door lets in.
///
/// # Errors
/// When no TLS configuration can be made.
pub async fn serve_behind(
    door: Option<Arc<dyn Door>>,
    listener: TcpListener,
    source: Source,
    client_auth: ClientAuth,
    peers: PeerRule,
    router: Router,
    limits: Limits,
    shutdown: Shutdown,
) -> Result<(), TlsError> {
    let acceptor = TlsAcceptor::from(tls::server_config(source.clone(), client_auth, peers, &[ALPN_H2, ALPN_HTTP11])?);
    let establish = |(stream, remote)| {
        let (acceptor, source, door) = (acceptor.clone(), source.clone(), door.clone());
        async move {
            let pass = match door {
                Some(door) => Some(door.enter(remote)?),
                None => None,
            };
            let (stream, mut facts) = accept(&acceptor, &source, stream, RemoteAddr(remote)).await?;
            match pass {
                Some(pass) if facts.get::<PeerIdentity>().is_some_and(|peer| peer.0.is_some()) => pass.proved(),
                Some(pass) => drop(facts.insert(Held(pass))),
                None => (),
            }
            Some((stream, facts))
        }
    };
    serve::run(listener, establish, router, limits, shutdown).await;
    Ok(())
}

/// As [`serve`], on a Unix socket and to those with an SVID only.
///
/// # Errors
/// When no TLS configuration can be made.
pub async fn serve_local(
    listener: UnixListener,
    source: Source,
    peers: PeerRule,
    router: Router,
    limits: Limits,
    shutdown: Shutdown,
) -> Result<(), TlsError> {
    let config = tls::server_config(source.clone(), ClientAuth::Required, peers, &[ALPN_H2])?;
    let acceptor = TlsAcceptor::from(config);
    let establish = |stream: UnixStream| {
        let (acceptor, source) = (acceptor.clone(), source.clone());
        async move { prove(&acceptor, &source, stream, "local").await }
    };
    serve::grpc(listener, establish, router, limits, shutdown).await;
    Ok(())
}

/// The peer of a request that was served here.
pub fn peer_of<T>(request: &tonic::Request<T>) -> Option<&VerifiedPeer> {
    request.extensions().get::<PeerIdentity>()?.0.as_ref()
}

/// Connects to `addr` (`HOST:PORT`) and proves both sides; the server must be one that `peers` expects.
///
/// # Errors
/// When there is no connection, or the other side is not who we expect.
pub async fn connect(
    addr: &str,
    source: impl Snapshot + 'static,
    peers: PeerRule,
    alpn: &[&[u8]],
) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    let connector =
        TlsConnector::from(tls::client_config(Arc::new(source), peers, alpn).map_err(ConnectError::Config)?);
    dial(addr, &connector).await
}

/// A gRPC channel to `addr` (`HOST:PORT`) that connects when it is first used, again when the connection is lost, and each
/// time with the identity and trust of that moment.
///
/// An address that is no `HOST:PORT` makes a channel whose calls fail with that reason.
pub fn channel(addr: &str, source: impl Snapshot + 'static, peers: PeerRule) -> Channel {
    channel_with(addr, tls::client_config(Arc::new(source), peers, &[ALPN_H2]), None)
}

/// The same with a limit for each call: for tools, whose users wait.
pub fn channel_within(addr: &str, source: impl Snapshot + 'static, peers: PeerRule, call_wait: Duration) -> Channel {
    channel_with(addr, tls::client_config(Arc::new(source), peers, &[ALPN_H2]), Some(call_wait))
}

/// A gRPC channel to whoever answers at `addr`. Only for fetching what proves itself by another way.
pub fn danger_unverified_channel(addr: &str) -> Channel {
    channel_with(addr, tls::danger::unverified_client_config(&[ALPN_H2]), None)
}

fn channel_with(
    addr: &str,
    config: Result<Arc<rustls::ClientConfig>, TlsError>,
    call_wait: Option<Duration>,
) -> Channel {
    let connector = config.map(TlsConnector::from).map_err(Arc::new);
    let addr: Arc<str> = addr.into();
    let dialer = tower::service_fn(move |_| {
        let (connector, addr) = (connector.clone(), addr.clone());
        async move {
            let connector = connector.map_err(|error| io::Error::other(error.to_string()))?;
            let stream = dial(&addr, &connector).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The name in the URI is only for `:authority`; where to connect is the dialer's business.
    let endpoint = Endpoint::from_static("http://mesh");
    let endpoint = call_wait.into_iter().fold(endpoint, Endpoint::timeout);
    endpoint
        .connect_timeout(CONNECT_WAIT_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_WAIT_MAX)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(dialer)
}

/// The [`ConnectError`] behind a failed call, if that is what failed.
pub fn connect_error_of(status: &Status) -> Option<&ConnectError> {
    let mut error = std::error::Error::source(status)?;
    loop {
        if let Some(found) = error.downcast_ref::<ConnectError>() {
            return Some(found);
        }
        if let Some(found) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            match found.downcast_ref::<ConnectError>() {
                Some(found) => return Some(found),
                None => error = found,
            }
            continue;
        }
        error = error.source()?;
    }
}

async fn accept(
    acceptor: &TlsAcceptor,
    source: &Source,
    stream: TcpStream,
    remote: RemoteAddr,
) -> Option<(server::TlsStream<TcpStream>, Extensions)> {
    let (stream, mut facts) = prove(acceptor, source, stream, remote.0).await?;
    facts.insert(remote);
    Some((stream, facts))
}

/// The handshake, and who the other side proved to be.
async fn prove<S>(
    acceptor: &TlsAcceptor,
    source: &Source,
    stream: S,
    remote: impl std::fmt::Display,
) -> Option<(server::TlsStream<S>, Extensions)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            let reason = tls::reason_of_io(&error).unwrap_or("TLS_HANDSHAKE_FAILED");
            tracing::info!(%remote, reason, %error, "connection refused");
            return None;
        }
    };
    let peer = match tls::peer_of(stream.get_ref().1, &source.bundles(), unix_time(clock::now())) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::info!(%remote, reason = error.reason(), %error, "connection refused");
            return None;
        }
    };
    let mut facts = Extensions::new();
    facts.insert(PeerIdentity(peer));
    Some((stream, facts))
}

async fn dial(addr: &str, connector: &TlsConnector) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    let late = |_| ConnectError::Timeout { addr: addr.to_owned() };
    tokio::time::timeout(CONNECT_WAIT_MAX, shake(addr, connector)).await.map_err(late)?
}

async fn shake(addr: &str, connector: &TlsConnector) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    let bad = || ConnectError::Address { addr: addr.to_owned() };
    let (host, _) = addr.rsplit_once(':').ok_or_else(bad)?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| bad())?;
    let stream =
        TcpStream::connect(addr).await.map_err(|source| ConnectError::Tcp { addr: addr.to_owned(), source })?;
    // A socket that refuses the option works all the same.
    let _ = stream.set_nodelay(true);
    connector.connect(name, stream).await.map_err(|source| ConnectError::Handshake { addr: addr.to_owned(), source })
}

/// How long connecting, handshake included, may take.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
