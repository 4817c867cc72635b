//! The policy service's own reason codes. `EXT_AUTHZ_DENIED` and `RATE_LIMITED`, which its answers carry as well, are
//! the proxy's.

use identity::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "ACCESS_LOG_WRITE_FAILED",
        "The policy service cannot write its access log file.",
        "See that the folder exists, is writable and has room; lines are lost and counted until then.",
    ),
    doc(
        "POLICY_DESCRIPTOR_INVALID",
        "A proxy asked for a rate limit without a domain, or with too many descriptors or entries.",
        "See the proxy's rate limit configuration.",
    ),
    doc(
        "POLICY_PEER_FOREIGN",
        "The caller has proven an identity, but one of another trust domain.",
        "Let proxies of each trust domain ask a policy service of their own.",
    ),
    doc(
        "POLICY_PEER_UNVERIFIED",
        "The caller has not proven any identity.",
        "Call over mTLS with an SVID; see the proxy's cluster for the policy service.",
    ),
    doc(
        "POLICY_REQUEST_EMPTY",
        "An authorization question without attributes.",
        "See which software asks; Envoy and our proxy always send them.",
    ),
    doc(
        "POLICY_RULES_INVALID",
        "The rules file is no YAML of the expected form, or says something impossible.",
        "Correct it at the line and column that the message names; the last good rules stay in force.",
    ),
    doc(
        "POLICY_RULES_TOO_LARGE",
        "The rules file is larger than rules may be.",
        "Split the rules over several policy services, or match by prefix instead of by list.",
    ),
    doc(
        "POLICY_RULES_UNREADABLE",
        "The rules file does not exist or may not be read.",
        "Put it back, or correct its owner and mode; the last good rules stay in force.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_once() {
        assert!(REASONS.windows(2).all(|pair| pair[0].code < pair[1].code));
    }
}
