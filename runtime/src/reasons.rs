//! The reason codes of this crate, for `kasbah help reasons`.

use identity::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc("ADDRESS_BAD", "An address is not HOST:PORT.", "Write for example 127.0.0.1:8081."),
    doc(
        "ADDRESS_IN_USE",
        "Another process serves at the address or socket.",
        "Stop it, or choose another address in the settings.",
    ),
    doc(
        "ADDRESS_NOT_ALLOWED",
        "This user may not open the port.",
        "Choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE.",
    ),
    doc(
        "ADMIN_ANSWER_BAD",
        "An admin address did not answer HTTP, or too much.",
        "See that the address is the admin address of a Kasbah process.",
    ),
    doc(
        "ADMIN_FOREIGN_ORIGIN",
        "A web page tried to change a process through its admin address.",
        "Use kasbah or curl on the machine itself.",
    ),
    doc("ADMIN_PATH_BAD", "The path is no request target.", "Paths start with a slash."),
    doc("ADMIN_UNREACHABLE", "An admin address cannot be reached.", "See whether the process runs: kasbah status."),
    doc(
        "AGENT_BAD_ANSWER",
        "The agent sent what is no SVID, key or bundle.",
        "Look at the agent's log and compare the versions.",
    ),
    doc("AGENT_REFUSED", "The agent refused without a reason code.", "Look at the agent's log."),
    doc(
        "AGENT_UNREACHABLE",
        "The Workload API socket cannot be reached.",
        "See that the agent runs and that SPIFFE_ENDPOINT_SOCKET names its socket.",
    ),
    doc(
        "CLIENT_STUCK",
        "A local client connected and asked nothing, or asked and read none of the answers.",
        "See what the process does; it may be stopped. It can connect again.",
    ),
    doc(
        "FETCH_ANSWER_BAD",
        "A web server did not answer with the document, or too much.",
        "See that the URL is right; the host and its answer stand beside the code.",
    ),
    doc(
        "FETCH_UNREACHABLE",
        "A web server cannot be reached, or is not whom we expect.",
        "See that the URL is right and the server runs.",
    ),
    doc("FETCH_URL_BAD", "A URL cannot be fetched.", "Write http://HOST/PATH or https://HOST/PATH."),
    doc(
        "HANDSHAKE_TIMEOUT",
        "A client connected and did not finish the handshake.",
        "Usually a port scan or a dead network path; nothing to do.",
    ),
    doc(
        "HTTP2_ERROR",
        "A local client broke the rules of HTTP/2; the log names the error code of RFC 9113.",
        "Use a released gRPC library. If it is one, please report it with the log line.",
    ),
    doc(
        "LISTEN_FAILED",
        "An address or socket could not be opened.",
        "Look at the cause; for a socket, see that its directory is writable.",
    ),
    doc("LOG_FILTER_BAD", "A log filter is not understood.", "Write for example info or info,agent=debug."),
    doc(
        "PEER_UNREACHABLE",
        "A part of the mesh does not answer at its address.",
        "See whether it runs and whether the address is right.",
    ),
    doc("SETTINGS_INVALID", "The settings are refused.", "Correct the named line, or the named environment variable."),
    doc("SETTINGS_UNREADABLE", "The settings file cannot be read.", "Name an existing, readable file with --config."),
    doc(
        "SOCKET_PATH_OCCUPIED",
        "Something that is no socket lies at a socket's path.",
        "Move it away, or choose another path.",
    ),
    doc("SOCKET_PATH_TOO_LONG", "A socket path is longer than 107 bytes.", "Choose a shorter directory."),
    doc(
        "TLS_HANDSHAKE_FAILED",
        "A TLS handshake broke off without a clearer reason.",
        "Look at the log of the other side.",
    ),
    doc(
        "WORKLOAD_ENDPOINT_BAD",
        "A Workload API address is malformed.",
        "Write unix:///absolute/path or tcp://IP:PORT.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_lexical_order_and_explained() {
        assert!(REASONS.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(REASONS.iter().all(|doc| doc.cause.ends_with('.') && doc.remedy.ends_with('.')));
    }
}
