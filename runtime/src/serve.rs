//! Serving HTTP/1.1 and HTTP/2 (so also gRPC) on any accepted byte stream, and gRPC on this machine's own sockets, with limits.
//!
//! A tonic service is served as `Routes::into_axum_router()`. What is known about a connection (peer address,
//! peer process, verified peer) is an extension of each of its requests.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower::Service;
use tower::util::ServiceExt;

use crate::http2;
use crate::shutdown::Shutdown;
use crate::tasks::TaskSet;

/// What one server permits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the backlog.
    pub connections_max: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams_max: u32,
    /// How long a client may take to prove itself (TLS) and then to send its first request head.
    pub wait_max: Duration,
    /// [`grpc`] only: what all requests of a connection together may bring before they are answered, in bytes.
    pub unanswered_max: usize,
}

impl Limits {
    /// What a server permits unless somebody says otherwise.
    pub const DEFAULT: Self = Self {
        connections_max: CONNECTIONS_MAX,
        streams_max: STREAMS_MAX,
        wait_max: WAIT_MAX,
        unanswered_max: UNANSWERED_MAX,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A remote TCP address, as an extension of requests served on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr(pub SocketAddr);

/// A listener of either kind.
pub trait Accept: Send + 'static {
    /// What it accepts.
    type Stream: Send + 'static;
    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<Self::Stream> {
        let (stream, remote) = self.accept().await?;
        // Small frames go out at once; a socket that refuses the option works all the same.
        let _ = stream.set_nodelay(true);
        Ok((stream, remote))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves plain HTTP on TCP; requests carry [`RemoteAddr`].
pub async fn tcp(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown) {
    let establish = |(stream, remote): (TcpStream, SocketAddr)| async move {
        let mut facts = Extensions::new();
        facts.insert(RemoteAddr(remote));
        Some((stream, facts))
    };
    run(listener, establish, router, limits, shutdown).await;
}

/// Serves `router` on every connection that `establish` turns into a byte stream with facts about the peer.
///
/// `establish` (the TLS handshake, a look at the peer's credentials) runs in the connection's own task and within
/// [`Limits::wait_max`]; answering `None` closes the connection, the reason is its to log. Ends on `shutdown`, giving
/// running requests [`DRAIN_MAX`].
pub async fn run<A, E, F, S>(listener: A, establish: E, router: Router, limits: Limits, shutdown: Shutdown)
where
    A: Accept,
    E: Fn(A::Stream) -> F,
    F: Future<Output = Option<(S, Extensions)>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let serve = |stream| {
        let (established, router, watcher) = (establish(stream), router.clone(), graceful.watcher());
        async move {
            if let Some((stream, facts)) = establish_within(limits.wait_max, established).await {
                connection(stream, facts, router, limits, watcher).await;
            }
        }
    };
    let mut tasks = accept(listener, serve, limits, &shutdown).await;
    let _ = tokio::time::timeout(DRAIN_MAX, graceful.shutdown()).await;
    tasks.abort().await;
}

/// Serves gRPC on one of this machine's own sockets; as [`run`] in all else. Connections at rest cost a few hundred bytes
/// ([`crate::http2`]).
pub async fn grpc<A, E, F, S, H, B>(listener: A, establish: E, service: H, limits: Limits, shutdown: Shutdown)
where
    A: Accept,
    E: Fn(A::Stream) -> F,
    F: Future<Output = Option<(S, Extensions)>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + 'static,
    H: Service<Request<http2::Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    H::Future: Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let serve = |stream| {
        let (established, service, shutdown) = (establish(stream), service.clone(), shutdown.clone());
        async move {
            if let Some((stream, facts)) = establish_within(limits.wait_max, established).await {
                http2::serve(stream, facts, service, limits, &shutdown).await;
            }
        }
    };
    let mut tasks = accept(listener, serve, limits, &shutdown).await;
    let _ = tokio::time::timeout(DRAIN_MAX, async { while tasks.finished().await.is_some() {} }).await;
    tasks.abort().await;
}

/// Serves each connection in a task of its own until `shutdown`; answers those that are left.
async fn accept<A, C, F>(listener: A, serve: C, limits: Limits, shutdown: &Shutdown) -> TaskSet
where
    A: Accept,
    C: Fn(A::Stream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = TaskSet::new();
    let room = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let accepted = shutdown.unless(async {
            // The semaphore is never closed; if it were, serving without a limit would be wrong.
            let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok((listener.next().await?, permit))
        });
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            // What a connection leaves behind is not kept until the next one comes.
            Some(_) = tasks.finished() => continue,
        };
        let (stream, permit) = match accepted {
            None => return tasks,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                pause_after(&error).await;
                continue;
            }
        };
        let served = serve(stream);
        tasks.spawn("connection", async move {
            served.await;
            drop(permit);
        });
    }
}

async fn establish_within<T>(wait_max: Duration, establish: impl Future<Output = Option<T>>) -> Option<T> {
    let established = tokio::time::timeout(wait_max, establish).await;
    established.unwrap_or_else(|_| {
        tracing::debug!(reason = "HANDSHAKE_TIMEOUT", "connection closed");
        None
    })
}

/// Logs a failed accept and lets the system recover (no files left, for example).
pub async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection<S>(stream: S, facts: Extensions, router: Router, limits: Limits, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().extend(facts.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.wait_max).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_WAIT_MAX);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error, "connection ended");
    }
}

/// Connections at once, unless the caller says otherwise.
pub const CONNECTIONS_MAX: usize = 1024;
/// HTTP/2 streams at once on one connection, unless the caller says otherwise.
pub const STREAMS_MAX: u32 = 1024;
/// How long a handshake, and then the first request head, may take.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// What requests of one local connection may bring before they are answered, unless the caller says otherwise: several messages
/// as large as gRPC takes them (4 MiB).
pub const UNANSWERED_MAX: usize = 16 << 20;
/// The largest request head.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests may take to end after shutdown was asked for.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_WAIT_MAX: Duration = Duration::from_secs(20);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(addr: SocketAddr) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_know_the_remote_address_and_the_server_ends_on_shutdown() {
        let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let router = Router::new()
            .route("/", get(|Extension(remote): Extension<RemoteAddr>| async move { remote.0.ip().to_string() }));
        let server = tokio::spawn(tcp(listener, router, Limits::default(), shutdown.clone()));
        assert!(ask(addr).await.ends_with("127.0.0.1"));
        shutdown.trigger();
        server.await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn one_connection_above_the_limit_waits_for_room() {
        let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let limits = Limits { connections_max: 1, ..Limits::default() };
        let router = Router::new().route("/", get(|| async { "done" }));
        let server = tokio::spawn(tcp(listener, router, limits, shutdown.clone()));
        let idle = TcpStream::connect(addr).await.unwrap();
        let waiting = ask(addr);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
        drop(idle);
        assert!(waiting.await.ends_with("done"));
        shutdown.trigger();
        server.await.unwrap();
    }
}
