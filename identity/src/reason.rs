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
        "AUTHORITY_KEY_UNAVAILABLE",
        "The key of the signing authority is kept elsewhere, and its keeper (token, signer, Vault) gives no good signature.",
        "See the authority's log for the keeper's answer; nothing is signed until it is back, and then by itself.",
    ),
    doc(
        "BUNDLE_INVALID",
        "A trust bundle is malformed.",
        "Fetch the bundle again from its trust domain and compare it with the SPIFFE bundle format.",
    ),
    doc(
        "BUNDLE_OTHER_TRUST_DOMAIN",
        "A published bundle is not that of the trust domain it was fetched for.",
        "Compare the trust domain with the one that the endpoint serves; correct the endpoint's URL or the name.",
    ),
    doc(
        "CERT_AKI_MISSING",
        "A certificate that another has signed does not name its issuer's key.",
        "Let the CA write the authority key identifier (RFC 5280, 4.2.1.1).",
    ),
    doc(
        "CERT_AKI_OF_ROOT",
        "A root's authority key identifier is not simply its own key identifier.",
        "Leave it out of roots, or repeat the subject key identifier and nothing else.",
    ),
    doc(
        "CERT_ALGORITHM_MISMATCH",
        "The algorithm within the certificate is another than that beside its signature.",
        "Somebody has changed the certificate, or the CA is faulty; get another.",
    ),
    doc(
        "CERT_ALGORITHM_PARAMETERS",
        "The signature's algorithm has parameters that it must not have, or lacks some.",
        "Let the CA write NULL for RSA and nothing for ECDSA and Ed25519.",
    ),
    doc(
        "CERT_ALGORITHM_WEAK",
        "The certificate is signed with an algorithm that is weak or unknown.",
        "Sign with ECDSA, RSA or Ed25519, and SHA-256 or longer.",
    ),
    doc(
        "CERT_BASIC_CONSTRAINTS_NOT_CRITICAL",
        "An authority's basic constraints are not marked critical.",
        "Mark them (RFC 5280, 4.2.1.9).",
    ),
    doc(
        "CERT_COMMON_NAME",
        "The common name repeats a name or address in another spelling.",
        "Repeat one of the alternative names character for character, or leave the common name out.",
    ),
    doc(
        "CERT_EXTENDED_KEY_USAGE_ANY",
        "The extended key usage permits any use, which web PKI forbids.",
        "Name the uses.",
    ),
    doc(
        "CERT_EXTENDED_KEY_USAGE_CRITICAL",
        "The extended key usage is marked critical, which web PKI forbids.",
        "Do not mark it.",
    ),
    doc(
        "CERT_EXTENDED_KEY_USAGE_OF_ROOT",
        "A root has an extended key usage, which web PKI forbids.",
        "Leave it out of roots.",
    ),
    doc(
        "CERT_EXTENSION_CRITICALITY",
        "An extension is marked critical that must never be.",
        "Do not mark key identifiers and information access.",
    ),
    doc(
        "CERT_EXTENSION_MALFORMED",
        "An extension does not hold what its kind holds.",
        "Correct the CA's profile (RFC 5280, 4.2).",
    ),
    doc("CERT_EXTENSION_TWICE", "An extension is there twice.", "Write each extension once."),
    doc(
        "CERT_EXTENSION_UNKNOWN_CRITICAL",
        "An extension is marked critical and unknown here.",
        "Do not mark it, or do without it.",
    ),
    doc("CERT_ISSUER_EMPTY", "The issuer has no name.", "Give the CA a subject."),
    doc(
        "CERT_KEY_REFUSED",
        "The certificate's key is malformed, too weak or of an unsupported kind.",
        "Use P-256, P-384, P-521, Ed25519, or RSA with 2048 to 8192 bits.",
    ),
    doc(
        "CERT_KEY_SIZE_ODD",
        "The RSA key's size is not a multiple of eight bits, which web PKI forbids.",
        "Make a key of 2048, 3072 or 4096 bits.",
    ),
    doc(
        "CERT_KEY_USAGE_CERT_SIGN",
        "A certificate that is no authority's has the key usage keyCertSign.",
        "Remove the usage, or make it an authority.",
    ),
    doc("CERT_KEY_USAGE_EMPTY", "The key usage names no usage.", "Name one at least."),
    doc(
        "CERT_KEY_USAGE_MISSING",
        "An authority has no key usage.",
        "Give it keyCertSign, and cRLSign if it makes revocation lists.",
    ),
    doc("CERT_KEY_USAGE_NOT_CRITICAL", "The key usage is not marked critical.", "Mark it (RFC 5280, 4.2.1.3)."),
    doc("CERT_KEY_USAGE_NO_CERT_SIGN", "An authority's key usage lacks keyCertSign.", "Add it."),
    doc(
        "CERT_LEAF_IS_AUTHORITY",
        "An authority's certificate stands where a leaf must.",
        "Present a leaf; authorities never identify a workload.",
    ),
    doc(
        "CERT_MALFORMED",
        "The certificate is not strict DER of an X.509 certificate.",
        "Check that it is whole; if it is, the CA is faulty.",
    ),
    doc(
        "CERT_NAMES_ABSENT",
        "A leaf has no alternative names, which web PKI demands whatever the subject says.",
        "Write alternative names; nobody looks for a name in the subject.",
    ),
    doc(
        "CERT_NAMES_CRITICAL",
        "The alternative names are marked critical although there is a subject, which web PKI forbids.",
        "Mark them only beside an empty subject.",
    ),
    doc("CERT_NAMES_EMPTY", "The list of alternative names is empty.", "Write a name, or leave the extension out."),
    doc(
        "CERT_NAMES_MISSING",
        "The subject is empty and there are no alternative names, so that the certificate names nobody.",
        "Write an alternative name.",
    ),
    doc(
        "CERT_NAMES_NOT_CRITICAL",
        "The subject is empty and the alternative names are not marked critical.",
        "Mark them (RFC 5280, 4.2.1.6).",
    ),
    doc(
        "CERT_NAME_CONSTRAINTS_EMPTY",
        "The name constraints constrain nothing.",
        "Write a subtree, or leave the extension out.",
    ),
    doc("CERT_NAME_CONSTRAINTS_IN_LEAF", "A leaf has name constraints.", "Write them into authorities only."),
    doc(
        "CERT_NAME_CONSTRAINTS_MALFORMED",
        "A name constraint is not written as its kind wants it.",
        "Write hosts without wildcard, addresses with a mask whose ones come first, no distances.",
    ),
    doc(
        "CERT_NAME_CONSTRAINTS_NOT_CRITICAL",
        "The name constraints are not marked critical.",
        "Mark them (RFC 5280, 4.2.1.10).",
    ),
    doc(
        "CERT_NAME_MALFORMED",
        "An alternative name is not written as its kind wants it.",
        "Write DNS names of letters, digits and hyphens, addresses of 4 or 16 bytes, absolute URIs.",
    ),
    doc(
        "CERT_NAME_TOO_WIDE",
        "A wildcard stands for all of a top-level domain.",
        "Put the wildcard below a domain of your own.",
    ),
    doc("CERT_NAME_UNDERSCORE", "A DNS name has an underscore.", "Use a hyphen."),
    doc(
        "CERT_NOT_AUTHORITY",
        "A certificate that is no authority's stands where a signing one must.",
        "Check the order of the chain, and the CA's basic constraints.",
    ),
    doc(
        "CERT_PATH_LENGTH",
        "A certificate that signs no others limits the length of paths below it.",
        "Leave the limit out.",
    ),
    doc(
        "CERT_POLICY_CONSTRAINTS",
        "Policy constraints are not marked critical.",
        "Mark them (RFC 5280, 4.2.1.11 and 4.2.1.14).",
    ),
    doc(
        "CERT_REVOKED",
        "The peer's certificate, or one that signed it, is revoked.",
        "Let the peer get a new SVID, unless it was revoked for good reason.",
    ),
    doc(
        "CERT_SERIAL",
        "The serial number is zero, negative, padded, or longer than 20 bytes.",
        "Let the CA give positive random numbers of at most 20 bytes.",
    ),
    doc(
        "CERT_SKI_MISSING",
        "An authority does not say its key's identifier.",
        "Let the CA write the subject key identifier (RFC 5280, 4.2.1.2).",
    ),
    doc("CERT_SUBJECT_EMPTY", "An authority has no name.", "Give it a subject."),
    doc(
        "CERT_TIME_ENCODING",
        "A time is not written as it must be.",
        "Write UTCTime until 2049 and GeneralizedTime from 2050, with seconds, in UTC.",
    ),
    doc("CERT_TOO_LONG", "The certificate is longer than any that is read.", "Use fewer names and extensions."),
    doc(
        "CERT_UNIQUE_ID",
        "The certificate has a unique identifier of issuer or subject.",
        "Leave it out; it is obsolete.",
    ),
    doc("CERT_VALIDITY_REVERSED", "The certificate expires before it starts to be valid.", "Correct the times."),
    doc("CERT_VERSION", "The certificate is not of version 3.", "Let the CA write version 3, which has extensions."),
    doc(
        "CRL_BAD_SIGNATURE",
        "The revocation list is not signed by its issuer's key.",
        "Fetch the list again; if it is whole, it is forged or by another CA.",
    ),
    doc(
        "CRL_EXTENSION_UNSUPPORTED",
        "The revocation list is partial, indirect or a delta, or has another critical extension.",
        "Publish full lists of the CA's own certificates.",
    ),
    doc(
        "CRL_ISSUER_MAY_NOT_SIGN",
        "The revocation list's issuer lacks the key usage cRLSign.",
        "Give the CA's certificate the usage cRLSign.",
    ),
    doc(
        "CRL_MALFORMED",
        "The revocation list is not a well-formed list of version 2.",
        "Check that it is whole; if it is, the CA is faulty.",
    ),
    doc(
        "CRL_NO_NEXT_UPDATE",
        "The revocation list does not say when the next one comes.",
        "Let the CA write nextUpdate.",
    ),
    doc(
        "CRL_NO_NUMBER",
        "The revocation list has no number.",
        "Let the CA write the CRL number, growing with each list.",
    ),
    doc(
        "CRL_OLDER",
        "The revocation list is not newer than the one in use.",
        "Nothing, unless the CA has lost its count: then its numbers must go on above the last.",
    ),
    doc(
        "CRL_TOO_LONG",
        "The revocation list is too long, or there are too many.",
        "Use shorter lifetimes, so that lists stay short.",
    ),
    doc(
        "CRL_WRONG_ISSUER",
        "The revocation list is by another issuer than the certificate it was given with.",
        "Give the certificate of the list's issuer.",
    ),
    doc("CSR_BAD_SIGNATURE", "The CSR is not signed by its own key.", "Make a new CSR with the key it is for."),
    doc(
        "CSR_KEY_REFUSED",
        "The key to be signed is of a kind or size that is not accepted.",
        "Use P-256, P-384, Ed25519, or RSA with at least 2048 bits.",
    ),
    doc("CSR_MALFORMED", "The CSR is not readable PKCS#10.", "Send the CSR as DER, or as PEM where PEM is asked for."),
    doc(
        "DEVICE_CERTIFICATE_MISSING",
        "The evidence of a node holds no certificate.",
        "Name the device's certificate file in the agent's settings, leaf first.",
    ),
    doc(
        "DEVICE_CERTIFICATE_REFUSED",
        "A device certificate is malformed, a CA's, or not meant for signatures.",
        "Use a leaf certificate with the key usage digitalSignature.",
    ),
    doc(
        "DEVICE_CHAIN_TOO_LONG",
        "A device shows more certificates than are read.",
        "Send the leaf and the intermediates that lead to the root, nothing else.",
    ),
    doc(
        "DEVICE_CHAIN_UNTRUSTED",
        "The chain of a device certificate leads to none of the configured roots, or is not valid now.",
        "Add the device CA to ca_bundles of x509pop, send the intermediates, compare the clocks.",
    ),
    doc(
        "DEVICE_KEY_NOT_HELD",
        "The node did not prove that it holds the key of its device certificate.",
        "See that certificate and key of the agent's settings belong together; otherwise somebody shows a foreign certificate.",
    ),
    doc(
        "DEVICE_KEY_UNSUPPORTED",
        "The device's key is of a kind that cannot prove itself.",
        "Use RSA with 2048 to 8192 bits, P-256 or P-521.",
    ),
    doc(
        "DEVICE_ROOT_UNUSABLE",
        "A configured root of device certificates cannot be used.",
        "Check the files named as ca_bundles of x509pop.",
    ),
    doc(
        "IMPORT_CHAIN_INCOMPLETE",
        "A certificate on the way from the imported authority to its root is missing.",
        "Give what stands between by --chain and the root by --root; the message names whose issuer is missing.",
    ),
    doc(
        "IMPORT_EXPIRED",
        "An imported certificate has ended or has not begun.",
        "Import one that is valid now; compare the clocks.",
    ),
    doc(
        "IMPORT_FOREIGN_TRUST_DOMAIN",
        "An imported certificate carries the SPIFFE ID of another trust domain.",
        "Have it issued with the URI of this trust domain, or without a SPIFFE ID.",
    ),
    doc(
        "IMPORT_KEY_MISMATCH",
        "The key does not belong to the imported certificate.",
        "Compare both with openssl x509 -pubkey and openssl pkey -pubout.",
    ),
    doc(
        "IMPORT_KEY_REFUSED",
        "The key of an imported certificate is too weak, too long, or of a kind that clients do not take.",
        "Use P-256, P-384, Ed25519, or RSA with 2048 to 4096 bits.",
    ),
    doc(
        "IMPORT_LIFE_TOO_SHORT",
        "An imported certificate ends too soon to sign anything useful.",
        "Import one that lives longer, or lower ca_ttl.",
    ),
    doc(
        "IMPORT_NOT_A_CA",
        "An imported certificate may not sign others.",
        "Issue it with basicConstraints critical,CA:TRUE and keyUsage critical,keyCertSign,cRLSign.",
    ),
    doc(
        "IMPORT_PATH_LENGTH",
        "The path length of an imported certificate leaves no room for the CAs below it, or the way to the root is too long.",
        "A root needs pathlen 1 or none, an intermediate 0 or none.",
    ),
    doc(
        "IMPORT_SIGNATURE_REFUSED",
        "The signature on an imported certificate does not verify, or is made by a weak algorithm such as SHA-1.",
        "Give the right issuer; have the certificate signed with SHA-256 or better.",
    ),
    doc(
        "IMPORT_UNFIT",
        "An imported certificate cannot be an authority for another reason; the message says which.",
        "Issue it with a subject key identifier and a subject in UTF-8 or printable text.",
    ),
    doc(
        "IMPORT_UNREADABLE",
        "A file to import is no PEM text with certificates.",
        "Give PEM files; openssl x509 -inform DER converts others.",
    ),
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
        "KEY_PASSPHRASE_WRONG",
        "A private key is encrypted, and the passphrase is missing or wrong, or the encryption is not PBES2.",
        "Give the passphrase's file; openssl pkcs8 -topk8 -v2 aes-256-cbc writes a form that is read.",
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
    doc("OCSP_FAILED", "The responder could not sign or look up.", "See the log of the CA."),
    doc(
        "OCSP_MALFORMED",
        "An OCSP request is not what RFC 6960 describes, asks for too many certificates, or has a nonce that is too long.",
        "Correct the client; openssl ocsp makes good ones.",
    ),
    doc("OCSP_TRY_LATER", "The responder cannot look up a certificate at this moment.", "Ask again."),
    doc(
        "OCSP_UNAUTHORIZED",
        "The question is about a certificate of another issuer.",
        "Ask the responder of the certificate's issuer; for certificates of a root see its revocation list.",
    ),
    doc(
        "PEM_INVALID",
        "A PEM text is malformed or lacks what was looked for.",
        "Check that the file is the right one and is complete.",
    ),
    doc("PKCS12_NOT_WRITTEN", "An SVID does not fit into a PKCS#12 file.", "Use the PEM files."),
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
        "SVID_AUTHORITY_ID_WITH_PATH",
        "An authority's SPIFFE ID has a path.",
        "Write the trust domain's own ID, without a path.",
    ),
    doc(
        "SVID_EXTENDED_KEY_USAGE",
        "The extended key usage lacks serverAuth or clientAuth.",
        "Write both, or leave the extension out.",
    ),
    doc(
        "SVID_ID_INVALID",
        "The URI name is not a valid SPIFFE ID.",
        "Write spiffe://TRUST-DOMAIN/PATH: lower-case trust domain, no port, no trailing slash.",
    ),
    doc(
        "SVID_ID_MISSING",
        "There is no URI name, so the certificate identifies no workload.",
        "Write the SPIFFE ID as a URI name.",
    ),
    doc("SVID_ID_TWICE", "There is more than one URI name.", "Write the SPIFFE ID as the only URI name."),
    doc("SVID_ID_WITHOUT_PATH", "A leaf's SPIFFE ID has no path.", "Give the workload an ID with a path."),
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
        "SVID_KEY_USAGE",
        "The key usage is missing, not marked critical, or not that of an SVID.",
        "Leaves have digitalSignature and neither keyCertSign nor cRLSign; mark the extension.",
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
        "TLS_PEER_REVOCATION_UNKNOWN",
        "Whether the peer's certificate is revoked cannot be told: its issuer's list is too old or not usable.",
        "Check that the CA publishes lists and that they reach this process; look at the cause.",
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
