//! Every reason code of this crate.

use identity::reason::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "CONFIG_REFUSED",
        "A resource of the configuration cannot be followed; the last good one stays in force.",
        "The message names the resource and the field. Correct the document that it was made from.",
    ),
    doc(
        "HEADER_DUPLICATE_HOST",
        "The request has more than one Host header.",
        "Send exactly one. A proxy in front may be adding another.",
    ),
    doc("HOST_INVALID", "The host of the request is malformed.", "Send a name, or an address, and at most a port."),
    doc(
        "HOST_MISMATCH",
        "The request's target and its Host header name different hosts.",
        "Send the same host in both, or only one of them.",
    ),
    doc("HOST_MISSING", "The request names no host.", "Send a Host header, or an :authority with HTTP/2."),
    doc(
        "HOST_NOT_FOUND",
        "No virtual host is responsible for the host of the request.",
        "Compare the host with those of the Gateway, VirtualService or ServiceEntry.",
    ),
    doc(
        "JWT_AMBIGUOUS",
        "The request carries different tokens where one issuer's token is looked for.",
        "Send one token.",
    ),
    doc(
        "JWT_EXPIRATION_MISSING",
        "The token never expires, and its issuer's rule asks for an expiry.",
        "Have the issuer set `exp`.",
    ),
    doc(
        "JWT_LIFETIME_TOO_LONG",
        "The token is valid for longer than its issuer's rule allows, or does not say since when.",
        "Have the issuer shorten the lifetime and set `iat`.",
    ),
    doc(
        "JWT_MISSING",
        "A token is required and the request has none.",
        "Send `Authorization: Bearer TOKEN`, or use the place that the RequestAuthentication names.",
    ),
    doc(
        "JWT_REQUIREMENT_UNKNOWN",
        "The route asks for a requirement of tokens that does not exist.",
        "Correct the route's setting of the token filter.",
    ),
    doc("JWT_SUBJECT_NOT_ALLOWED", "The issuer's rule does not accept the token's subject.", "Check the `sub` claim."),
    doc("JWT_TOO_LONG", "The token is longer than 16 KiB.", "Have the issuer put less into it."),
    doc(
        "PATH_NOT_CANONICAL",
        "The path can be read in more than one way: an encoded slash, a backslash, NUL, a control character, a fragment, \
         or dots that climb above the root.",
        "Send the path in its plain form. Listeners can be told to keep or decode encoded slashes.",
    ),
    doc("PATH_TOO_LONG", "Path and query are longer than 16 KiB.", "Put data into the body."),
    doc(
        "RBAC_DENIED",
        "A policy denies the request, or none permits it.",
        "The log names the policy. `kasbah explain` shows why it decided so.",
    ),
    doc(
        "ROUTE_NOT_FOUND",
        "The host is known, but no route matches the request.",
        "Compare path, method and headers with the routes of the VirtualService.",
    ),
    doc("TLS_REQUIRED", "The host is only reached over TLS.", "Use https."),
];

#[cfg(test)]
mod tests {
    use super::REASONS;

    #[test]
    fn codes_are_sorted_and_unique() {
        assert!(REASONS.windows(2).all(|pair| pair[0].code < pair[1].code));
    }
}
