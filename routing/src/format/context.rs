//! What is known about a request or connection when it is logged.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use crate::request::{Metadata, PeerIdentity};

/// What is known about a request or connection. Everything may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogContext<'a> {
    /// When it began.
    pub start: Option<SystemTime>,
    /// How long it took.
    pub duration: Option<Duration>,
    /// Until the request was read to its end.
    pub request_duration: Option<Duration>,
    /// Until the first byte of the response came from upstream.
    pub response_duration: Option<Duration>,
    /// Until the request was sent upstream to its end.
    pub request_tx_duration: Option<Duration>,
    /// From the first byte of the upstream's response to the last one sent down.
    pub response_tx_duration: Option<Duration>,
    /// The method.
    pub method: Option<&'a str>,
    /// Path and query as they are forwarded.
    pub path: Option<&'a str>,
    /// Path and query as the client wrote them.
    pub original_path: Option<&'a str>,
    /// The host.
    pub authority: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: Option<&'a str>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: Option<&'a str>,
    /// The request's headers.
    pub request_headers: Option<&'a HeaderMap>,
    /// The response's headers.
    pub response_headers: Option<&'a HeaderMap>,
    /// The response's trailers.
    pub response_trailers: Option<&'a HeaderMap>,
    /// The status that the client got.
    pub status: Option<u16>,
    /// The gRPC status that the client got.
    pub grpc_status: Option<u16>,
    /// Why it got it: `via_upstream`, or our reason.
    pub details: Option<&'a str>,
    /// What went wrong, in short.
    pub flags: ResponseFlags,
    /// Why the connection ended.
    pub termination_details: Option<&'a str>,
    /// Why TLS with the upstream failed.
    pub upstream_failure: Option<&'a str>,
    /// Why TLS with the client failed.
    pub downstream_failure: Option<&'a str>,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// How many upstream requests were made.
    pub attempts: u32,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// Our address towards it.
    pub upstream_local: Option<SocketAddr>,
    /// Its cluster.
    pub upstream_cluster: Option<&'a str>,
    /// Its proven identity.
    pub upstream_peer: Option<&'a PeerIdentity>,
    /// The TLS version towards it.
    pub upstream_tls_version: Option<&'a str>,
    /// The client's address, after trusted hops.
    pub downstream_remote: Option<SocketAddr>,
    /// The address at the other end of the socket.
    pub downstream_direct_remote: Option<SocketAddr>,
    /// The address that the client connected to.
    pub downstream_local: Option<SocketAddr>,
    /// The client's proven identity.
    pub downstream_peer: Option<&'a PeerIdentity>,
    /// The TLS version with the client.
    pub downstream_tls_version: Option<&'a str>,
    /// The cipher suite with the client.
    pub downstream_tls_cipher: Option<&'a str>,
    /// The identity that we show.
    pub local_identity: Option<&'a str>,
    /// The server name of the handshake.
    pub server_name: Option<&'a str>,
    /// The route.
    pub route: Option<&'a str>,
    /// The virtual host.
    pub virtual_host: Option<&'a str>,
    /// What filters noted.
    pub metadata: Option<&'a Metadata>,
    /// This machine's name.
    pub hostname: Option<&'a str>,
    /// The connection's number.
    pub connection_id: Option<u64>,
    /// The policy that decided.
    pub policy: Option<&'a str>,
    /// `allow` or `deny`.
    pub decision: Option<&'a str>,
    /// Our reason code.
    pub reason: Option<&'a str>,
}

/// What went wrong, as a set of Envoy's response flags.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($bit:literal $name:ident $long:literal $doc:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*

            const NAMES: &[(Self, &'static str, &'static str)] = &[$((Self::$name, stringify!($name), $long)),*];
        }
    };
}

flags! {
    0 LH "FailedLocalHealthCheck" "The local service failed its health check.";
    1 UH "NoHealthyUpstream" "No endpoint was healthy.";
    2 UT "UpstreamRequestTimeout" "The upstream took too long.";
    3 LR "LocalReset" "We reset the upstream stream.";
    4 UR "UpstreamRemoteReset" "The upstream reset the stream.";
    5 UF "UpstreamConnectionFailure" "No connection to the upstream.";
    6 UC "UpstreamConnectionTermination" "The upstream ended the connection.";
    7 UO "UpstreamOverflow" "A circuit breaker was open.";
    8 NR "NoRouteFound" "No route matched.";
    9 DI "DelayInjected" "Delayed on purpose.";
    10 FI "FaultInjected" "Aborted on purpose.";
    11 RL "RateLimited" "The quota was used up.";
    12 UAEX "UnauthorizedExternalService" "The authorisation service refused.";
    13 RLSE "RateLimitServiceError" "The rate limit service did not answer.";
    14 DC "DownstreamConnectionTermination" "The client ended the connection.";
    15 URX "UpstreamRetryLimitExceeded" "All retries were used up.";
    16 SI "StreamIdleTimeout" "The stream was silent for too long.";
    17 IH "InvalidEnvoyRequestHeaders" "A header that steers us was malformed.";
    18 DPE "DownstreamProtocolError" "The client broke the protocol.";
    19 UMSDR "UpstreamMaxStreamDurationReached" "The upstream stream lived too long.";
    20 RFCF "ResponseFromCacheFilter" "From a cache.";
    21 NFCF "NoFilterConfigFound" "A filter's configuration has not arrived.";
    22 DT "DurationTimeout" "The request or connection lived too long.";
    23 UPE "UpstreamProtocolError" "The upstream broke the protocol.";
    24 NC "NoClusterFound" "The cluster does not exist.";
    25 OM "OverloadManagerTerminated" "We had too much to do.";
    26 DF "DnsResolutionFailed" "A name did not resolve.";
    27 DO "DropOverload" "Dropped because the endpoints are overloaded.";
    28 DR "DownstreamRemoteReset" "The client reset the stream.";
}

impl ResponseFlags {
    /// Adds flags.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all of these are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of these is set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, short, _)| *short == name).map(|(flag, ..)| *flag)
    }

    pub(crate) fn all() -> Self {
        Self(u32::MAX)
    }

    pub(crate) fn write_long(self, out: &mut String) {
        self.write(out, |(_, _, long)| long);
    }

    pub(crate) fn write_short(self, out: &mut String) {
        self.write(out, |(_, short, _)| short);
    }

    fn write(self, out: &mut String, name: impl Fn(&(Self, &'static str, &'static str)) -> &'static str) {
        let start = out.len();
        for entry in Self::NAMES.iter().filter(|(flag, ..)| self.contains(*flag)) {
            if out.len() > start {
                out.push(',');
            }
            out.push_str(name(entry));
        }
        if out.len() == start {
            out.push('-');
        }
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write_short(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
