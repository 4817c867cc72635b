//! Where connections are accepted and which filter chain takes each one.

mod compile;
mod pick;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::hcm::HttpConnectionManager;
use crate::rbac::RbacFilter;
pub use crate::tcp::{TcpCluster, TcpProxy};
use crate::tls::DownstreamTls;

pub use pick::{ChainMatch, ConnectionFacts};

/// An address to accept on and the filter chains behind it.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The resource's name.
    pub name: Arc<str>,
    /// Where to accept.
    pub address: ListenAddress,
    /// Where else to accept.
    pub additional: Vec<ListenAddress>,
    /// Whether to bind at all; a listener that does not is reached only through one that uses original destinations.
    pub bind: bool,
    /// Whether a connection is handed to the listener of its original destination.
    pub use_original_dst: bool,
    /// Towards the workload or away from it.
    pub direction: Direction,
    /// What to find out before a chain is picked, in order.
    pub filters: Vec<ListenerFilter>,
    /// How long finding out may take.
    pub filters_timeout: Option<Duration>,
    /// Whether a connection goes on when that time is over.
    pub continue_on_timeout: bool,
    /// Whether the socket accepts for addresses that are not the machine's own.
    pub transparent: bool,
    /// The chains.
    pub chains: Vec<Arc<FilterChain>>,
    /// The chain for connections that no other takes.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Logs of connections that never reached a chain.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// The kernel's queue of connections that wait to be accepted.
    pub backlog: Option<u32>,
    /// Whether several sockets may share the address.
    pub reuse_port: bool,
    /// How many bytes of a connection may wait to be sent.
    pub buffer_bytes_max: Option<u32>,
    pub(crate) matches: Vec<ChainMatch>,
}

/// An address to accept on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// IP address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Pipe(PathBuf),
}

/// Towards the workload or away from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Gateways.
    Unspecified,
    /// Towards the workload.
    Inbound,
    /// Away from the workload.
    Outbound,
}

/// What to find out about a connection before a chain is picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerFilter {
    /// Whether it is TLS, and its server name and protocols.
    TlsInspector,
    /// Whether it is HTTP, and which version.
    HttpInspector,
    /// Where it was going before it was redirected.
    OriginalDst,
    /// Connect upstream from the client's own address.
    OriginalSrc,
    /// Who is behind the load balancer in front of us.
    ProxyProtocol {
        /// Whether a connection without the header is accepted.
        optional: bool,
    },
}

/// What to do with a connection.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// The chain's name, for logs.
    pub name: Arc<str>,
    /// TLS to terminate, if any.
    pub tls: Option<Arc<DownstreamTls>>,
    /// How long the handshake may take.
    pub handshake_timeout: Option<Duration>,
    /// Filters of connections, in order.
    pub network: Vec<NetworkFilter>,
    /// What takes the connection in the end.
    pub terminal: Terminal,
}

/// A filter of connections.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    /// Authorisation.
    Rbac(Arc<RbacFilter>),
    /// A limit of connections at once.
    ConnectionLimit {
        /// How many.
        max: u64,
    },
    /// The server name of the handshake is the cluster's name.
    SniCluster,
}

/// What takes a connection in the end.
#[derive(Clone, Debug)]
pub enum Terminal {
    /// Requests are read from it.
    Http(Arc<HttpConnectionManager>),
    /// Its bytes are relayed.
    Tcp(Arc<TcpProxy>),
}

impl Listener {
    /// The chain that takes a connection.
    pub fn pick(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        match pick::pick(&self.matches, facts) {
            Some(index) => self.chains.get(index),
            None => self.default_chain.as_ref(),
        }
    }

    /// Every chain, the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// Whether the first bytes must be looked at for a TLS handshake.
    pub fn needs_tls_inspector(&self) -> bool {
        self.filters.contains(&ListenerFilter::TlsInspector)
    }

    /// Whether the first bytes must be looked at for HTTP.
    pub fn needs_http_inspector(&self) -> bool {
        self.filters.contains(&ListenerFilter::HttpInspector)
    }
}
