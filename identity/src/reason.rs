//! Reason codes: the fixed words by which refusals are found in logs, headers, metrics and documentation.

use serde::Serialize;

/// One code with its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReasonDoc {
    /// The code, which never changes once published.
    pub code: &'static str,
    /// What has happened.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "AUTHORITY_EXPIRED",
        "The signing authority is not valid at this moment, or the lifetime asked for is zero.",
        "Rotate the authority, compare the clocks, and check the TTL in the registration entry.",
    ),
    doc(
        "AUTHORITY_FAILED",
        "A certificate could not be written or signed.",
        "Look at the cause in the CA's log; this is a fault of the CA and not of the request.",
    ),
    doc(
        "AUTHORITY_INVALID",
        "The stored authority is not a usable CA of this trust domain, or its key belongs to another certificate.",
        "Check the CA certificate: CA basic constraints, keyCertSign, subject key identifier, the trust domain's ID.",
    ),
    doc(
        "BUNDLE_INVALID",
        "A trust bundle is malformed.",
        "Fetch the bundle again from its trust domain and compare it with the SPIFFE bundle format.",
    ),
    doc("CSR_BAD_SIGNATURE", "The CSR is not signed by its own key.", "Make a new CSR with the key it is for."),
    doc(
        "CSR_KEY_REFUSED",
        "The key to be signed is of a kind or size that is not accepted.",
        "Use P-256, P-384, Ed25519, or RSA with at least 2048 bits.",
    ),
    doc("CSR_MALFORMED", "The CSR is not readable PKCS#10.", "Send the CSR as DER, or as PEM where PEM is asked for."),
    doc(
        "JWKS_AMBIGUOUS",
        "A set of keys leaves open which key is meant: two have one ID, or secrets stand beside public keys.",
        "Give each key an ID of its own, and keep shared secrets out of sets of public keys.",
    ),
    doc("JWKS_MALFORMED", "A key set is not a JWKS document.", "Check the JWKS address of the issuer."),
    doc(
        "JWK_REFUSED",
        "A key of a key set is not accepted.",
        "Publish only public keys: P-256, P-384, P-521, Ed25519, RSA from 2048 bits.",
    ),
    doc(
        "JWT_ALG_NOT_ALLOWED",
        "The token's algorithm is unknown, not allowed here, or not one that its key can do.",
        "Sign with an algorithm that fits the key; JWT-SVIDs take the RS, ES and PS families.",
    ),
    doc("JWT_AUDIENCE_MISSING", "A JWT-SVID was asked for without an audience.", "Name at least one audience."),
    doc(
        "JWT_BAD_SIGNATURE",
        "The token was not signed by the key it names.",
        "Check that the token is whole and that the issuer's key set is current.",
    ),
    doc("JWT_EXPIRED", "The token has expired.", "Get a new token; if it is new, compare the clocks."),
    doc(
        "JWT_MALFORMED",
        "The token is not a well-formed signed JWT of the kind accepted here.",
        "Send a compact JWS with exp and without crit.",
    ),
    doc(
        "JWT_MISSING",
        "A rule asks for a token and the request carries none that was verified.",
        "Send the token as `authorization: Bearer TOKEN`.",
    ),
    doc("JWT_NOT_YET_VALID", "The token's nbf lies in the future.", "Compare the clocks of issuer and verifier."),
    doc(
        "JWT_NO_KEY",
        "No key of the issuer's key set has the token's key ID.",
        "Fetch the issuer's key set again; it may have rotated its keys.",
    ),
    doc("JWT_SIGN_FAILED", "A token could not be signed.", "Look at the cause in the CA's log."),
    doc(
        "JWT_SUBJECT_NOT_SPIFFE_ID",
        "A JWT-SVID's subject is not a SPIFFE ID.",
        "Send a JWT-SVID, not another kind of token.",
    ),
    doc(
        "JWT_TRUST_DOMAIN_UNKNOWN",
        "There is no bundle for the trust domain of the token's subject.",
        "Federate with that trust domain, or correct the token's subject.",
    ),
    doc(
        "JWT_WRONG_AUDIENCE",
        "The token is for another audience.",
        "Ask the issuer for a token with the audience expected here.",
    ),
    doc(
        "JWT_WRONG_ISSUER",
        "The token is from another issuer.",
        "Use a token of the issuer configured here, or configure the other.",
    ),
    doc(
        "KEY_FAILED",
        "A key could not be generated or used.",
        "Look at the cause; the system's cryptography is failing.",
    ),
    doc(
        "KEY_INVALID",
        "A private key is not an unencrypted PKCS#8 key of a supported kind.",
        "Convert it with `openssl pkcs8 -topk8 -nocrypt`.",
    ),
    doc(
        "LOG_HEAD_REFUSED",
        "A tree head was not signed by the key of the transparency log.",
        "Fetch the head and the key again from the CA itself; if it stays so, somebody shows another log.",
    ),
    doc(
        "LOG_HISTORY_CHANGED",
        "The transparency log is not a continuation of what it said before.",
        "Keep both heads as evidence: the log's past was changed, or the database was restored from an old backup.",
    ),
    doc("LOG_LEAF_UNKNOWN", "The transparency log has no such leaf.", "Compare the position with the size of the log."),
    doc(
        "LOG_LEAVES_CHANGED",
        "The leaves or records do not have the hashes that the tree head vouches for.",
        "Keep the file as evidence and export the log again; if it stays so, leaves or records were changed.",
    ),
    doc(
        "LOG_PROOF_INVALID",
        "The proof does not show that the leaf is in the transparency log.",
        "Fetch proof and tree head again, both for the same size.",
    ),
    doc(
        "PEM_INVALID",
        "A PEM text is malformed or lacks what was looked for.",
        "Check that the file is the right one and is complete.",
    ),
    doc(
        "PUBLIC_KEY_REFUSED",
        "A public key is malformed, too weak, or of an unsupported kind.",
        "Use P-256, P-384, P-521, Ed25519, or RSA with 2048 to 8192 bits.",
    ),
    doc(
        "SEAL_KEY_INVALID",
        "The key that seals stored secrets is not 32 bytes long.",
        "Give the file that was made when the store was created.",
    ),
    doc(
        "SEAL_OPEN_FAILED",
        "A stored secret does not open.",
        "Give the sealing key that the store was written with; if that is so, restore the store.",
    ),
    doc(
        "SPIFFE_ID_INVALID",
        "A text is no SPIFFE ID, or no trust domain.",
        "Write spiffe://TRUST-DOMAIN/PATH: lower-case trust domain, no port, no trailing slash.",
    ),
    doc(
        "SVID_INVALID",
        "Certificates given as an SVID break the X.509-SVID rules.",
        "Look at the cause; the CA that signed them must follow the X.509-SVID standard.",
    ),
    doc(
        "SVID_KEY_MISMATCH",
        "The private key does not belong to the certificate.",
        "Give both files of the same issue.",
    ),
    doc(
        "SVID_PROFILE_INVALID",
        "The CA was asked to sign names it must not or cannot sign.",
        "Correct the registration entry: an ID with a path in the CA's own trust domain, well-formed DNS names.",
    ),
    doc(
        "TLS_ALPN_MISMATCH",
        "Client and server have no application protocol in common.",
        "Check that both sides speak the same protocol on this port.",
    ),
    doc(
        "TLS_CERTIFICATE_INVALID",
        "A certificate or key file for TLS is unusable.",
        "Check that the certificate and the key are PEM and belong together.",
    ),
    doc("TLS_CONFIG_INVALID", "TLS cannot be configured as asked.", "Look at the cause."),
    doc(
        "TLS_PEER_CERT_MISSING",
        "The peer sent no certificate although one is required.",
        "Let the client connect through its sidecar, or permit plaintext with mode PERMISSIVE.",
    ),
    doc(
        "TLS_PEER_EXPIRED",
        "The peer's certificate, or one that signed it, has expired.",
        "Check that the peer's agent is running and can reach the CA; compare the clocks.",
    ),
    doc(
        "TLS_PEER_ID_UNEXPECTED",
        "The peer is proven, but it is not the one expected here.",
        "Check which service account the peer runs as, and the expected names in the configuration.",
    ),
    doc(
        "TLS_PEER_INCOMPATIBLE",
        "The peer offers no protocol version or cipher that is accepted.",
        "Let the peer speak TLS 1.3.",
    ),
    doc(
        "TLS_PEER_NAME_MISMATCH",
        "The server's certificate is for another name.",
        "Check the host name and the server's certificate.",
    ),
    doc(
        "TLS_PEER_NOT_SVID",
        "The peer's certificate breaks the X.509-SVID rules.",
        "Look at the cause; the CA that signed it must follow the X.509-SVID standard.",
    ),
    doc(
        "TLS_PEER_NOT_YET_VALID",
        "The peer's certificate, or one that signed it, is not valid yet.",
        "Compare the clocks of both hosts and of the CA.",
    ),
    doc(
        "TLS_PEER_NO_SPIFFE_ID",
        "The peer's certificate carries no SPIFFE ID.",
        "Let the peer use an SVID of the mesh instead of a web certificate.",
    ),
    doc(
        "TLS_PEER_TRUST_DOMAIN_UNKNOWN",
        "There is no bundle for the peer's trust domain.",
        "Federate with that trust domain, or correct the peer's ID.",
    ),
    doc(
        "TLS_PEER_UNTRUSTED",
        "No root that we trust vouches for the peer's certificate.",
        "Check that both sides have the current bundle; after a rotation the agent may not have fetched it yet.",
    ),
    doc(
        "TLS_PROTOCOL_ERROR",
        "What the peer sent is not valid TLS.",
        "Check that the peer speaks TLS on this port, and not plaintext.",
    ),
    doc("TLS_REFUSED_BY_PEER", "The peer ended the handshake with an alert.", "Look at the peer's log for its reason."),
    doc("TLS_SERVER_NAME_INVALID", "A server name in the configuration is not a DNS name.", "Correct the name."),
    doc(
        "WIT_KEY_REFUSED",
        "The key that a WIT-SVID names, or shall name, is not accepted.",
        "Use a public P-256, P-384, P-521 or RSA key from 2048 bits, with an algorithm that fits it.",
    ),
    doc("WIT_LIFE_TOO_LONG", "A WIT-SVID lives longer than the verifier accepts.", "Ask for a shorter life."),
    doc(
        "WIT_MALFORMED",
        "A token is no WIT-SVID.",
        "Send a WIT-SVID: typ wit+jwt, kid, sub, exp and cnf.jwk with alg, and no aud.",
    ),
    doc(
        "WIT_PROOFS_TOO_MANY",
        "The verifier remembers as many proofs of possession as it can, and accepts no further ones for now.",
        "Try again after a minute; let the proofs live shorter.",
    ),
    doc(
        "WIT_PROOF_OF_ANOTHER",
        "The proof of possession was made for another WIT-SVID.",
        "Make the proof for the WIT-SVID that is sent with it.",
    ),
    doc(
        "WIT_PROOF_REFUSED",
        "The proof of possession is malformed, too old, too long-lived, for another audience, or not by the WIT-SVID's key.",
        "Make a new proof for each request, for this verifier, with a life of seconds; compare the clocks.",
    ),
    doc("WIT_PROOF_REPLAYED", "The proof of possession was used before.", "Make a new proof for each request."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_unique_and_explained() {
        assert!(REASONS.is_sorted_by(|a, b| a.code < b.code));
        for reason in REASONS {
            assert!(reason.code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            assert!(reason.cause.ends_with('.') && reason.remedy.ends_with('.'), "{}", reason.code);
        }
    }

    #[test]
    fn every_code_in_the_source_is_documented() {
        let mut files = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for quoted in text.split('"').skip(1).step_by(2) {
                let is_code = quoted.contains('_')
                    && quoted.len() > 6
                    && quoted.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                    && !quoted.starts_with("KASBAH_")
                    && !quoted.starts_with("CARGO_");
                let known = REASONS.iter().any(|reason| reason.code == quoted);
                assert!(!is_code || known, "{quoted} in {} is not in REASONS", path.display());
            }
        }
    }
}
