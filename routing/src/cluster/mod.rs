//! Clusters: groups of endpoints that do the same, and how they are reached.

mod compile;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

pub use crate::endpoint::Endpoints;

use crate::endpoint::Endpoint;
use crate::outlier::OutlierPolicy;
use crate::retry::RetryBudget;
use crate::tls::UpstreamTls;

/// A group of endpoints that do the same, and how they are reached.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The resource's name.
    pub name: Arc<str>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Duration,
    /// How an endpoint is picked.
    pub lb: LbPolicy,
    /// TLS, unless [`Self::tls_for`] says otherwise for an endpoint.
    pub tls: Option<Arc<UpstreamTls>>,
    /// How HTTP is spoken.
    pub http: UpstreamHttp,
    /// Limits for requests of ordinary priority.
    pub limits: CircuitLimits,
    /// Limits for requests of high priority.
    pub high_limits: CircuitLimits,
    /// When failing endpoints are left out; none if never.
    pub outlier: Option<OutlierPolicy>,
    /// The address to connect from.
    pub bind: Option<SocketAddr>,
    /// If fewer endpoints than this share are healthy, the others are used as well; zero if never.
    pub panic_percent: f64,
    /// Whether localities share requests out by their own weights.
    pub locality_weighted: bool,
    /// TCP keepalive; none leaves it to the system.
    pub keepalive: Option<TcpKeepalive>,
    /// The service it stands for, as Istio tells it.
    pub service: Option<ServiceName>,
    socket_matches: Vec<SocketMatch>,
}

/// TLS for the endpoints that have these labels.
#[derive(Clone, Debug)]
struct SocketMatch {
    labels: Vec<(Box<str>, Box<str>)>,
    tls: Option<Arc<UpstreamTls>>,
}

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// From the cluster itself.
    Static(Arc<Endpoints>),
    /// From the endpoint discovery service.
    Eds {
        /// By this name.
        service: Arc<str>,
    },
    /// From names, of which every address is an endpoint.
    StrictDns {
        /// The names.
        targets: Arc<Endpoints>,
        /// How they are resolved.
        dns: DnsOptions,
    },
    /// From a name, of which one address at a time is the endpoint.
    LogicalDns {
        /// The name.
        targets: Arc<Endpoints>,
        /// How it is resolved.
        dns: DnsOptions,
    },
    /// The original destination is the endpoint.
    OriginalDst {
        /// A header that names it instead.
        header: Option<HeaderName>,
        /// Another port.
        port_override: Option<u16>,
    },
}

/// How names are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsOptions {
    /// How often, if the answer does not say.
    pub refresh: Duration,
    /// Whether the answer may say.
    pub respect_ttl: bool,
    /// Which addresses are wanted.
    pub family: DnsFamily,
}

/// Which addresses are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, or IPv4 if there is none.
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, or IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbPolicy {
    /// One after the other.
    RoundRobin,
    /// The least busy of some that are drawn.
    LeastRequest {
        /// How many.
        choices: u32,
    },
    /// Any.
    Random,
    /// By a hash of the request, on a ring.
    RingHash {
        /// At least so many places on the ring.
        ring_min: u32,
    },
    /// By a hash of the request, in a table.
    Maglev {
        /// Its size, a prime number.
        table: u32,
    },
}

/// How HTTP is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// Which one.
    pub protocol: UpstreamProtocol,
    /// How long a connection may be idle.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may live.
    pub connection_max: Option<Duration>,
    /// How long a stream may live.
    pub stream_max: Option<Duration>,
    /// How many requests a connection may carry.
    pub requests_per_connection_max: Option<u32>,
    /// Settings of HTTP/2.
    pub http2: crate::hcm::Http2Options,
    /// How often an HTTP/2 connection is pinged, and how long the answer may take.
    pub ping: Option<(Duration, Duration)>,
    /// Whether the request's host is the server name to ask for.
    pub auto_sni: bool,
    /// Whether the server's certificate must bear that name.
    pub auto_san: bool,
}

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// The one that the request came by.
    UseDownstream,
    /// The one that TLS negotiates.
    Auto,
}

/// How much may go on at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitLimits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// Retries, if there is no budget.
    pub retries: u32,
    /// Retries as a share of the requests.
    pub retry_budget: Option<RetryBudget>,
}

impl CircuitLimits {
    /// Whether there may be one more retry beside so many requests and retries.
    pub fn admits_retry(&self, active_requests: u32, active_retries: u32) -> bool {
        match &self.retry_budget {
            Some(budget) => budget.admits(active_requests, active_retries),
            None => active_retries < self.retries,
        }
    }
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// How many probes.
    pub probes: Option<u32>,
    /// How long a connection is silent before the first.
    pub time: Option<Duration>,
    /// How long between them.
    pub interval: Option<Duration>,
}

/// The service that a cluster stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its host name.
    pub host: Arc<str>,
    /// Its short name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

impl Cluster {
    /// TLS towards an endpoint: of the first match for its labels, otherwise the cluster's.
    pub fn tls_for(&self, endpoint: &Endpoint) -> Option<&Arc<UpstreamTls>> {
        let has = |(key, value): &(Box<str>, Box<str>)| endpoint.labels.get(key) == Some(value);
        match self.socket_matches.iter().find(|socket| socket.labels.iter().all(has)) {
            Some(socket) => socket.tls.as_ref(),
            None => self.tls.as_ref(),
        }
    }

    /// Every TLS context that an endpoint may be reached by, the cluster's own first.
    pub fn all_tls(&self) -> impl Iterator<Item = &Arc<UpstreamTls>> {
        self.tls.iter().chain(self.socket_matches.iter().filter_map(|socket| socket.tls.as_ref()))
    }
}

#[cfg(test)]
mod tests;
