//! What must not cross a hop, and what a hop adds (RFC 9110 section 7.6, Envoy's header conventions).

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Removes what belongs to one connection only: the standard names and those that `Connection` nominates.
///
/// Runs before anything of ours is added, so that nobody can make this hop or the next one drop a header that it
/// relies on. `te: trailers` is kept, as gRPC needs it.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        strip_nominated(headers);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    headers.remove(&HTTP2_SETTINGS);
    keep_te_trailers(headers);
}

fn strip_nominated(headers: &mut HeaderMap) {
    let mut nominated = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',').take(NOMINATED_MAX) {
            if let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) {
                nominated.push(name);
            }
        }
    }
    headers.remove(header::CONNECTION);
    for name in nominated {
        // `host` and the length frame and route the message; naming them cannot be meant well.
        if name != header::HOST && name != header::CONTENT_LENGTH && name != header::TE {
            headers.remove(name);
        }
    }
}

fn keep_te_trailers(headers: &mut HeaderMap) {
    let Some(te) = headers.get(header::TE) else { return };
    if te == "trailers" {
        return;
    }
    let trailers = headers
        .get_all(header::TE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what only the mesh itself may say. `edge` is for requests from outside it.
pub(crate) fn strip_internal(headers: &mut HeaderMap, edge: bool) {
    headers.remove(&X_KASBAH_REASON);
    headers.remove(&X_ENVOY_ORIGINAL_PATH);
    headers.remove(&X_ENVOY_PEER_METADATA);
    headers.remove(&X_ENVOY_PEER_METADATA_ID);
    if !edge {
        return;
    }
    for name in [
        &X_ENVOY_INTERNAL,
        &X_ENVOY_EXTERNAL_ADDRESS,
        &X_ENVOY_RETRY_ON,
        &X_ENVOY_MAX_RETRIES,
        &X_ENVOY_TIMEOUT,
        &X_ENVOY_PER_TRY_TIMEOUT,
        &X_ENVOY_ATTEMPT_COUNT,
        &X_ENVOY_ORIGINAL_DST_HOST,
        &X_ENVOY_DECORATOR,
    ] {
        headers.remove(name);
    }
}

/// Appends the address of whoever connected.
pub(crate) fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    let mut text = String::with_capacity(48);
    let _ = match headers.get(&X_FORWARDED_FOR) {
        Some(before) => write!(text, "{},{peer}", String::from_utf8_lossy(before.as_bytes())),
        None => write!(text, "{peer}"),
    };
    // Written from visible characters; a value with others is replaced by the address we know.
    let value = HeaderValue::from_str(&text).or_else(|_| HeaderValue::from_str(&peer.to_string()));
    if let Ok(value) = value {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// What a connection proved, in the words of `x-forwarded-client-cert`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientCert<'a> {
    /// Our own identity.
    pub(crate) by: Option<&'a str>,
    /// SHA-256 of the peer's leaf, hex.
    pub(crate) hash: &'a str,
    /// The peer's SPIFFE ID.
    pub(crate) uri: &'a str,
}

impl ClientCert<'_> {
    /// One element of `x-forwarded-client-cert`.
    pub(crate) fn element(&self) -> String {
        let mut text = String::with_capacity(256);
        if let Some(by) = self.by {
            let _ = write!(text, "By={by};");
        }
        let _ = write!(text, "Hash={};Subject=\"\";URI={}", self.hash, self.uri);
        text
    }
}

/// A random request identifier in UUID version 4 form.
pub(crate) fn request_id(high: u64, low: u64) -> HeaderValue {
    let high = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let low = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    let mut text = [0_u8; 36];
    let digits = b"0123456789abcdef";
    let mut at = 0;
    for nibble in 0..32 {
        if matches!(nibble, 8 | 12 | 16 | 20) {
            text[at] = b'-';
            at += 1;
        }
        let word = if nibble < 16 { high } else { low };
        text[at] = digits[(word >> (60 - 4 * (nibble % 16)) & 0xf) as usize];
        at += 1;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Whether a request id from a peer may be kept: short and of harmless characters.
pub(crate) fn request_id_is_sane(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte))
}

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_KASBAH_REASON: HeaderName = HeaderName::from_static("x-kasbah-reason");
pub(crate) const X_ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(crate) const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
pub(crate) const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
pub(crate) const X_ENVOY_DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");
const X_ENVOY_PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
const X_ENVOY_PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const X_ENVOY_MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const X_ENVOY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const X_ENVOY_PER_TRY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const X_ENVOY_ORIGINAL_DST_HOST: HeaderName = HeaderName::from_static("x-envoy-original-dst-host");
/// Names that one `Connection` value may nominate.
const NOMINATED_MAX: usize = 16;
const REQUEST_ID_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn connection_headers_stay_on_their_hop() {
        let mut map = headers(&[
            ("connection", "close, X-Once, host"),
            ("x-once", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("te", "gzip;q=1, trailers"),
            ("host", "a.test"),
            ("x-keep", "1"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("host", "a.test"), ("x-keep", "1")]));
    }

    #[test]
    fn the_edge_removes_what_only_the_mesh_may_say() {
        let mut map =
            headers(&[("x-envoy-original-path", "/z"), ("x-envoy-internal", "true"), ("x-kasbah-reason", "OK")]);
        strip_internal(&mut map, false);
        assert_eq!(map, headers(&[("x-envoy-internal", "true")]));
        strip_internal(&mut map, true);
        assert!(map.is_empty());
    }

    #[test]
    fn the_peer_address_is_appended() {
        let mut map = HeaderMap::new();
        append_forwarded_for(&mut map, [10, 0, 0, 1].into());
        append_forwarded_for(&mut map, [10, 0, 0, 2].into());
        assert_eq!(map, headers(&[("x-forwarded-for", "10.0.0.1,10.0.0.2")]));
    }

    #[test]
    fn request_ids_look_like_uuids_of_version_4() {
        let id = request_id(u64::MAX, 0);
        assert_eq!(id, "ffffffff-ffff-4fff-8000-000000000000");
        assert!(request_id_is_sane(&id));
        assert!(!request_id_is_sane(&HeaderValue::from_static("a b")));
        assert!(!request_id_is_sane(&HeaderValue::from_static("")));
    }

    #[test]
    fn a_client_certificate_is_told_in_envoys_words() {
        let cert = ClientCert { by: Some("spiffe://td/a"), hash: "00ff", uri: "spiffe://td/b" };
        assert_eq!(cert.element(), "By=spiffe://td/a;Hash=00ff;Subject=\"\";URI=spiffe://td/b");
    }
}
