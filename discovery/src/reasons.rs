//! Discovery's own reason codes.

use identity::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "ALWAYS_REJECT",
        "The document carries the annotation istio.io/always-reject, which asks for refusal.",
        "Remove the annotation.",
    ),
    doc(
        "ATTRIBUTE_UNKNOWN",
        "A condition names an attribute that does not exist.",
        "Use one of Istio's attributes, such as request.headers[NAME] or request.auth.claims[NAME].",
    ),
    doc("CIDR_INVALID", "A value is neither an IP address nor a CIDR block.", "Write it like 10.0.0.0/8 or 10.1.2.3."),
    doc(
        "CONFLICT",
        "Two parts of the document exclude each other.",
        "Keep the part that is meant; the text names both.",
    ),
    doc(
        "DOCUMENT_DUPLICATE",
        "Two documents have the same kind, namespace and name; the first serves.",
        "Remove one of them, or give it another name.",
    ),
    doc("DUPLICATE_NAME", "A name that must be unique in its list occurs twice.", "Rename one of the two."),
    doc("EMPTY", "A list or block that must say something is empty.", "Fill it in, or remove it."),
    doc("FIELD_MISSING", "A required field is absent.", "Add the field that the text names."),
    doc(
        "FIELD_UNKNOWN",
        "The document has a field that its kind does not have; often a typing error or a wrong indentation.",
        "Correct the name; the text suggests the nearest one.",
    ),
    doc(
        "FILE_UNREADABLE",
        "A file or folder of documents cannot be read, or is too large.",
        "See its owner and mode, and that the folder exists.",
    ),
    doc("HEADER_INVALID", "A header name or value is not one that HTTP permits.", "Correct the header."),
    doc("HOST_DUPLICATE", "A host is claimed twice.", "Keep one of the two."),
    doc("HOST_INVALID", "A host is no DNS name, wildcard or address that is permitted there.", "Correct the host."),
    doc("JWKS_INVALID", "The inline key set cannot be used.", "Give a JWKS document with public keys."),
    doc(
        "JWKS_PRIVATE_KEY",
        "The inline key set holds a private or shared key.",
        "Publish public keys only, and replace the key that was exposed.",
    ),
    doc("KIND_SKIPPED", "The document's kind is not one that discovery reads.", "Nothing, if that is intended."),
    doc("KIND_UNKNOWN", "The API group is known, but has no such kind.", "Correct `kind`."),
    doc("LABEL_INVALID", "A label or selector is not one that Kubernetes permits.", "Correct the label."),
    doc("NAME_INVALID", "The document's name or namespace is no DNS label.", "Use lower-case letters, digits and `-`."),
    doc("NO_EFFECT", "A part of the document can never have an effect.", "Remove it, or correct what it refers to."),
    doc("ONE_OF", "Exactly one of several fields may be set.", "Keep the one that is meant."),
    doc("OUT_OF_RANGE", "A number or duration is outside the range that is permitted.", "See the text for the range."),
    doc("PART_ENDED", "A part of the process ended by itself.", "See the log lines before; restart the process."),
    doc("PORT_INVALID", "A port is not between 1 and 65535, or is used twice.", "Correct the port."),
    doc("PROVIDER_UNKNOWN", "A policy names an extension provider that MeshConfig lacks.", "Define it in MeshConfig."),
    doc(
        "PROVIDER_UNUSABLE",
        "A CUSTOM policy's provider is missing, not a gRPC one, or there are several for one workload; matching requests are refused.",
        "Give the workload exactly one provider of the kind envoyExtAuthzGrpc.",
    ),
    doc("REGEX_INVALID", "A regular expression cannot be compiled.", "Correct it; the syntax is RE2's."),
    doc("ROUTE_UNREACHABLE", "A route stands behind one that already matches everything.", "Reorder the routes."),
    doc(
        "SERVICE_DUPLICATE",
        "A host is defined by two ServiceEntries of one namespace; the older one serves.",
        "Remove one of them.",
    ),
    doc(
        "TEMPLATE_INVALID",
        "A path of an AuthorizationPolicy uses `{*}` or `{**}` in a way that has no meaning.",
        "Use them as whole segments, `{**}` once, and no plain `*` beside them.",
    ),
    doc("TLS_OLD", "A TLS version below 1.2 is asked for.", "Raise it; older versions are broken."),
    doc("TLS_UNVERIFIED", "TLS is used without verifying the server.", "Set caCertificates and subjectAltNames."),
    doc("TYPE_WRONG", "A value has the wrong type.", "See the text for the type that is expected."),
    doc("UNSUPPORTED", "The field exists in the API, but was never implemented.", "Use the field that the text names."),
    doc("VALUE_INVALID", "A value is not one that is permitted there.", "See the text for what is."),
    doc("VALUE_UNKNOWN", "A value is none of the known ones.", "See the text for the known ones."),
    doc("VERSION_UNKNOWN", "The API version is not one that the kind has.", "Use v1, v1beta1 or v1alpha3."),
    doc("WEIGHTS_ZERO", "All weights of a route are zero.", "Give at least one destination a weight."),
    doc(
        "XDS_CLIENTS_MAX",
        "Too many xDS clients are connected to this discovery.",
        "Run another replica, or find the client that opens streams without end.",
    ),
    doc("XDS_NODE_INVALID", "The client's node id cannot be used.", "Correct the node id in the client's bootstrap."),
    doc("XDS_NODE_MISSING", "The client's first request carries no node.", "Set node.id in the client's bootstrap."),
    doc(
        "XDS_NODE_NOT_ALLOWED",
        "The client's certificate names another namespace or service account than its node metadata.",
        "Give the client the identity of its workload, or correct NAMESPACE and SERVICE_ACCOUNT in its metadata.",
    ),
    doc(
        "XDS_REJECTED",
        "A client refused what it was sent; it keeps what it had.",
        "See the client's words in the log line; then the document that the resource comes from.",
    ),
    doc("YAML_INVALID", "The text is no YAML.", "Correct the syntax at the place that is named."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_sorted_and_unique() {
        assert!(REASONS.is_sorted_by(|a, b| a.code < b.code));
    }
}
