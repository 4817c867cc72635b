//! Refusals: one value per reason, the same code in answer, log and metrics.

use http::StatusCode;
use identity::ReasonDoc;
use routing::format::ResponseFlags;

/// Why a request is answered by the proxy itself.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
    pub(crate) flags: ResponseFlags,
    /// For log and body: a word or a policy's name.
    pub(crate) details: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, reason: &'static str, flags: ResponseFlags) -> Self {
        Self { status, reason, flags, details: String::new() }
    }

    pub(crate) fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    pub(crate) fn malformed(reason: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, ResponseFlags::DPE)
    }

    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, NO_ROUTE, ResponseFlags::NR)
    }

    pub(crate) fn no_cluster(status: StatusCode) -> Self {
        Self::new(status, NO_CLUSTER, ResponseFlags::NC)
    }

    pub(crate) fn no_endpoint() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, NO_HEALTHY_ENDPOINT, ResponseFlags::UH)
    }

    pub(crate) fn overflow() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, UPSTREAM_OVERFLOW, ResponseFlags::UO)
    }

    pub(crate) fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, UPSTREAM_TIMEOUT, ResponseFlags::UT)
    }
}

pub(crate) const NO_ROUTE: &str = "NO_ROUTE";
pub(crate) const NO_CLUSTER: &str = "NO_CLUSTER";
pub(crate) const NO_FILTER_CHAIN: &str = "NO_FILTER_CHAIN";
pub(crate) const HOST_NOT_IN_MESH: &str = "HOST_NOT_IN_MESH";
pub(crate) const NO_HEALTHY_ENDPOINT: &str = "NO_HEALTHY_ENDPOINT";
pub(crate) const UPSTREAM_OVERFLOW: &str = "UPSTREAM_OVERFLOW";
pub(crate) const UPSTREAM_TIMEOUT: &str = "UPSTREAM_TIMEOUT";
pub(crate) const UPSTREAM_CONNECT_FAILED: &str = "UPSTREAM_CONNECT_FAILED";
pub(crate) const UPSTREAM_TLS_FAILED: &str = "UPSTREAM_TLS_FAILED";
pub(crate) const STREAM_IDLE: &str = "STREAM_IDLE";
pub(crate) const UPSTREAM_RESET: &str = "UPSTREAM_RESET";
pub(crate) const UPSTREAM_RESPONSE_INVALID: &str = "UPSTREAM_RESPONSE_INVALID";
pub(crate) const PLAINTEXT_REFUSED: &str = "PLAINTEXT_REFUSED";
pub(crate) const TLS_HANDSHAKE_FAILED: &str = "TLS_HANDSHAKE_FAILED";
pub(crate) const TLS_HANDSHAKE_TIMEOUT: &str = "TLS_HANDSHAKE_TIMEOUT";
pub(crate) const NO_IDENTITY: &str = "NO_IDENTITY";
pub(crate) const SNIFF_TIMEOUT: &str = "SNIFF_TIMEOUT";
pub(crate) const CONNECTIONS_EXHAUSTED: &str = "CONNECTIONS_EXHAUSTED";
pub(crate) const HEADERS_TOO_MANY: &str = "HEADERS_TOO_MANY";
pub(crate) const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";
pub(crate) const UPGRADE_NOT_ALLOWED: &str = "UPGRADE_NOT_ALLOWED";
pub(crate) const BODY_TOO_LARGE: &str = "BODY_TOO_LARGE";
pub(crate) const HTTP_MALFORMED: &str = "HTTP_MALFORMED";
pub(crate) const RATE_LIMITED: &str = "RATE_LIMITED";
pub(crate) const RATE_LIMIT_UNAVAILABLE: &str = "RATE_LIMIT_UNAVAILABLE";
pub(crate) const EXT_AUTHZ_DENIED: &str = "EXT_AUTHZ_DENIED";
pub(crate) const EXT_AUTHZ_UNAVAILABLE: &str = "EXT_AUTHZ_UNAVAILABLE";
pub(crate) const FAULT_INJECTED: &str = "FAULT_INJECTED";
pub(crate) const JWKS_UNAVAILABLE: &str = "JWKS_UNAVAILABLE";
pub(crate) const TLS_REQUIRED: &str = "TLS_REQUIRED";
pub(crate) const LISTENER_BIND_FAILED: &str = "LISTENER_BIND_FAILED";

/// Every code of the proxy with cause and remedy.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        NO_ROUTE,
        "no route of the listener matches host and path",
        "see the VirtualService's hosts, gateways and matches; `kasbah explain` shows the path taken",
    ),
    doc(
        NO_CLUSTER,
        "the route names a destination that does not exist",
        "see the destination host and subset; a ServiceEntry or DestinationRule is missing",
    ),
    doc(
        NO_FILTER_CHAIN,
        "no filter chain of the listener fits server name, protocol and address",
        "see the client's SNI and the Gateway's servers",
    ),
    doc(
        HOST_NOT_IN_MESH,
        "the host is no service of the mesh and outbound traffic is limited to the registry",
        "add a ServiceEntry for the host",
    ),
    doc(
        NO_HEALTHY_ENDPOINT,
        "the destination has no endpoint that may be used",
        "see that its workloads run, are healthy and match the subset's labels",
    ),
    doc(
        UPSTREAM_OVERFLOW,
        "a connection or request limit of the destination is reached",
        "raise the DestinationRule's connectionPool limits or add endpoints",
    ),
    doc(
        UPSTREAM_TIMEOUT,
        "the destination did not answer in time",
        "see the destination's health, or raise the route's timeout",
    ),
    doc(UPSTREAM_CONNECT_FAILED, "no connection to the endpoint", "see that the workload listens there"),
    doc(
        UPSTREAM_TLS_FAILED,
        "the endpoint's TLS handshake failed or it proved another identity than expected",
        "see the peer's certificate with `kasbah cert show` and the DestinationRule's subjectAltNames",
    ),
    doc(
        STREAM_IDLE,
        "nothing moved on the stream for its idle time",
        "raise the idle timeout, or send keep-alive messages",
    ),
    doc(UPSTREAM_RESET, "the endpoint broke off before it answered", "see the workload's own log"),
    doc(UPSTREAM_RESPONSE_INVALID, "the endpoint's answer is no valid HTTP", "see the workload"),
    doc(
        PLAINTEXT_REFUSED,
        "plain text on a listener that asks for mTLS",
        "call through a sidecar, or set PeerAuthentication to PERMISSIVE for the time of a migration",
    ),
    doc(TLS_HANDSHAKE_FAILED, "the TLS handshake with the client failed", "see the log line's error"),
    doc(
        TLS_HANDSHAKE_TIMEOUT,
        "the client did not finish its TLS handshake in time",
        "see the network between client and proxy",
    ),
    doc(NO_IDENTITY, "the proxy holds no SVID that it could show", "see the agent's log and the registration entries"),
    doc(
        SNIFF_TIMEOUT,
        "the client said nothing by which its protocol could be told",
        "declare the port as TCP when the server speaks first",
    ),
    doc(CONNECTIONS_EXHAUSTED, "the proxy holds as many connections as it may", "raise connections_max or add proxies"),
    doc(HEADERS_TOO_MANY, "the request has more header fields than the listener admits", "send fewer"),
    doc(
        METHOD_NOT_ALLOWED,
        "the method is not admitted here",
        "CONNECT needs a route that allows it; TRACE is never admitted",
    ),
    doc(UPGRADE_NOT_ALLOWED, "the listener does not admit this protocol upgrade", "only WebSocket is admitted"),
    doc(
        BODY_TOO_LARGE,
        "the body is longer than a filter that looks at it admits",
        "send less, or raise the filter's limit",
    ),
    doc(HTTP_MALFORMED, "the request violates RFC 9112 in a way that smuggling uses", "see the client's HTTP library"),
    doc(RATE_LIMITED, "a rate limit is reached", "wait, or raise the limit"),
    doc(
        RATE_LIMIT_UNAVAILABLE,
        "the rate limit service does not answer and the filter fails closed",
        "see the policy service",
    ),
    doc(EXT_AUTHZ_DENIED, "the external authorization service said no", "see the policy service's rules and log"),
    doc(
        EXT_AUTHZ_UNAVAILABLE,
        "the external authorization service does not answer and the filter fails closed",
        "see the policy service",
    ),
    doc(FAULT_INJECTED, "the route injects faults", "see the VirtualService's fault"),
    doc(JWKS_UNAVAILABLE, "the keys to verify tokens with could not be fetched yet", "see the issuer's JWKS address"),
    doc(TLS_REQUIRED, "the virtual host is served over TLS only", "use https"),
    doc(LISTENER_BIND_FAILED, "a listener's address cannot be opened", "see which process holds it"),
    doc(
        "CONFIG_REFUSED",
        "a configuration resource from discovery is invalid",
        "the log names resource and field; the last good configuration keeps serving",
    ),
    doc("CONFIG_INCOMPLETE", "discovery named a resource that it did not deliver", "see discovery's log"),
    doc("DISCOVERY_UNAVAILABLE", "there is no stream to discovery", "the proxy serves what it holds and tries again"),
    doc(
        "IDENTITY_UNAVAILABLE",
        "there is no stream to the agent's SDS socket",
        "see that the agent runs and the socket's permissions",
    ),
    doc("SECRET_REFUSED", "a secret from the agent is invalid", "see the agent's log"),
];

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_upper_snake_and_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for doc in REASONS {
            assert!(
                doc.code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                doc.code
            );
            assert!(seen.insert(doc.code), "{} twice", doc.code);
        }
    }
}
