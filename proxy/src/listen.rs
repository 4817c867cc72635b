//! The listening sockets: opened as the configuration says, accepted from on the control threads, handed to workers.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use routing::listener::ListenAddress;
use runtime::tasks::TaskSet;
use socket2::{Domain, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::config::Config;
use crate::obs::counters::Counters;
use crate::refusal;
use crate::worker::Workers;

/// All open listeners.
pub(crate) struct Listeners {
    workers: Workers,
    counters: Arc<Counters>,
    connections_max: usize,
    open: BTreeMap<(Arc<str>, SocketAddr), Open>,
    failed: BTreeMap<(Arc<str>, SocketAddr), String>,
}

/// One open address.
struct Open {
    tasks: TaskSet,
    /// With the port that the system chose, if it was to choose.
    address: SocketAddr,
}

impl Listeners {
    pub(crate) fn new(workers: Workers, counters: Arc<Counters>, connections_max: usize) -> Self {
        Self { workers, counters, connections_max, open: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Opens what is new and closes what is gone.
    pub(crate) async fn follow(&mut self, config: &Config) {
        let wanted = wanted(config);
        let gone: Vec<_> = self.open.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in gone {
            if let Some(mut open) = self.open.remove(&key) {
                open.tasks.abort().await;
                tracing::info!(listener = &*key.0, address = %key.1, "listener closed");
            }
        }
        self.failed.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if !self.open.contains_key(&key) {
                self.open_one(key);
            }
        }
    }

    /// Addresses that could not be opened, with why.
    pub(crate) fn failures(&self) -> &BTreeMap<(Arc<str>, SocketAddr), String> {
        &self.failed
    }

    /// The addresses that are open, by listener.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.open.iter().map(|((name, _), open)| (&**name, open.address))
    }

    fn open_one(&mut self, key: (Arc<str>, SocketAddr)) {
        match bind(key.1).and_then(watch) {
            Ok(listener) => {
                let address = listener.get_ref().local_addr().unwrap_or(key.1);
                tracing::info!(listener = &*key.0, %address, "listener open");
                self.failed.remove(&key);
                let (workers, counters, name) = (self.workers.clone(), self.counters.clone(), key.0.clone());
                let mut tasks = TaskSet::new();
                tasks.spawn("accept", accept(listener, workers, counters, name, self.connections_max));
                self.open.insert(key, Open { tasks, address });
            }
            Err(error) => {
                tracing::error!(reason = refusal::LISTENER_BIND_FAILED, listener = &*key.0, address = %key.1, %error, "listener cannot be opened, trying again");
                self.failed.insert(key, error.to_string());
            }
        }
    }
}

fn wanted(config: &Config) -> Vec<(Arc<str>, SocketAddr)> {
    let mut wanted = Vec::new();
    for (name, listener) in &config.listeners {
        let listener = &listener.listener;
        for address in std::iter::once(&listener.address).chain(&listener.additional) {
            match address {
                ListenAddress::Tcp(address) if listener.bind => wanted.push((name.clone(), *address)),
                ListenAddress::Tcp(_) => {}
                ListenAddress::Pipe(path) => {
                    tracing::warn!(reason = refusal::LISTENER_BIND_FAILED, listener = &**name, path = %path.display(), "listeners on a pipe are not served");
                }
            }
        }
    }
    wanted
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[expect(deprecated, reason = "its successor asks for unsafe, and a TcpListener owns its descriptor")]
fn watch(listener: std::net::TcpListener) -> io::Result<AsyncFd<std::net::TcpListener>> {
    AsyncFd::new(listener)
}

/// Accepts for ever. The socket is registered with a runtime only once: that of its worker.
async fn accept(
    listener: AsyncFd<std::net::TcpListener>,
    workers: Workers,
    counters: Arc<Counters>,
    name: Arc<str>,
    connections_max: usize,
) {
    loop {
        let accepted = listener.async_io(tokio::io::Interest::READABLE, std::net::TcpListener::accept).await;
        match accepted {
            Ok((socket, source)) => {
                if socket.set_nonblocking(true).is_err() {
                    continue;
                }
                if !workers.accept(socket, source, name.clone(), connections_max) {
                    counters.refused(refusal::CONNECTIONS_EXHAUSTED);
                    tracing::debug!(reason = refusal::CONNECTIONS_EXHAUSTED, %source, listener = &*name, "connection refused");
                }
            }
            Err(error) => {
                // Out of descriptors or memory: those that are open may end soon.
                tracing::warn!(%error, listener = &*name, fd = listener.get_ref().as_raw_fd(), "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const BACKLOG: i32 = 4096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
