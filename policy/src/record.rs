//! An access log entry as one line of JSON, with Istio's field names and a few of ours.
//!
//! Every text is cut at [`FIELD_BYTES_MAX`]; fields without a value are left out.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{Address, RequestMethod, address, socket_address};
use envoy_types::pb::envoy::data::accesslog::v3 as als;
use envoy_types::pb::google::protobuf as wkt;
use serde::Serialize;

/// Who sent an entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reporter<'a> {
    /// The SPIFFE ID of the proxy, proven by its SVID.
    pub spiffe_id: &'a str,
    /// The id its node says it has.
    pub node: &'a str,
    /// The log's name.
    pub log_name: &'a str,
}

/// The line of an HTTP request.
pub fn http_line(reporter: Reporter<'_>, entry: &als::HttpAccessLogEntry) -> String {
    let empty = (
        als::AccessLogCommon::default(),
        als::HttpRequestProperties::default(),
        als::HttpResponseProperties::default(),
    );
    let common = entry.common_properties.as_ref().unwrap_or(&empty.0);
    let request = entry.request.as_ref().unwrap_or(&empty.1);
    let response = entry.response.as_ref().unwrap_or(&empty.2);
    let upstream_time = response.response_headers.get("x-envoy-upstream-service-time");
    line(&Record {
        method: RequestMethod::try_from(request.request_method)
            .ok()
            .filter(|method| *method != RequestMethod::MethodUnspecified)
            .map(|method| method.as_str_name()),
        authority: text(&request.authority),
        path: text(if request.original_path.is_empty() { &request.path } else { &request.original_path }),
        protocol: protocol(entry.protocol_version()),
        response_code: response.response_code.as_ref().map(|code| code.value),
        response_code_details: text(&response.response_code_details),
        bytes_received: Some(request.request_body_bytes),
        bytes_sent: Some(response.response_body_bytes),
        upstream_service_time: upstream_time.and_then(|time| text(time)),
        x_forwarded_for: text(&request.forwarded_for),
        user_agent: text(&request.user_agent),
        request_id: text(&request.request_id),
        ..common_fields(reporter, common)
    })
}

/// The line of a TCP connection.
pub fn tcp_line(reporter: Reporter<'_>, entry: &als::TcpAccessLogEntry) -> String {
    let empty = als::AccessLogCommon::default();
    let common = entry.common_properties.as_ref().unwrap_or(&empty);
    let bytes = entry.connection_properties.as_ref();
    line(&Record {
        protocol: Some("TCP"),
        bytes_received: bytes.map(|bytes| bytes.received_bytes),
        bytes_sent: bytes.map(|bytes| bytes.sent_bytes),
        ..common_fields(reporter, common)
    })
}

#[derive(Debug, Default, Serialize)]
struct Record<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reporter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_flags: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code_details: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_termination_details: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_transport_failure_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_sent: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_service_time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_forwarded_for: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_remote_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_principal: Option<&'a str>,
    /// What the proxy adds: `jwt_principal`, `policy`, `decision`, `reason`, operators' own tags.
    #[serde(flatten)]
    tags: BTreeMap<String, &'a str>,
}

fn common_fields<'a>(reporter: Reporter<'a>, common: &'a als::AccessLogCommon) -> Record<'a> {
    let tls = common.tls_properties.as_ref();
    Record {
        start_time: common.start_time.as_ref().and_then(time),
        reporter: text(reporter.spiffe_id),
        node: text(reporter.node),
        log_name: text(reporter.log_name),
        response_flags: common.response_flags.as_ref().map(flags).filter(|flags| !flags.is_empty()),
        connection_termination_details: text(&common.connection_termination_details),
        upstream_transport_failure_reason: text(&common.upstream_transport_failure_reason),
        duration: common.duration.as_ref().or(common.time_to_last_downstream_tx_byte.as_ref()).map(millis),
        route_name: text(&common.route_name),
        upstream_cluster: text(&common.upstream_cluster),
        upstream_host: common.upstream_remote_address.as_ref().and_then(show),
        upstream_local_address: common.upstream_local_address.as_ref().and_then(show),
        downstream_local_address: common.downstream_local_address.as_ref().and_then(show),
        downstream_remote_address: common.downstream_remote_address.as_ref().and_then(show),
        requested_server_name: tls.and_then(|tls| text(&tls.tls_sni_hostname)),
        peer_principal: tls.and_then(peer_uri).and_then(text),
        tags: tags(common),
        ..Record::default()
    }
}

fn line(record: &Record<'_>) -> String {
    // A struct of texts and numbers always has a JSON form.
    serde_json::to_string(record).unwrap_or_default()
}

/// The text, cut at a character; `None` when empty.
fn text(text: &str) -> Option<&str> {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= FIELD_BYTES_MAX).last()?;
    Some(&text[..end])
}

/// The proxy's tags, unless a name of ours is meant, which nobody may overwrite.
fn tags(common: &als::AccessLogCommon) -> BTreeMap<String, &str> {
    let mut sorted: Vec<(&String, &String)> = common.custom_tags.iter().collect();
    sorted.sort();
    let own =
        sorted.into_iter().filter(|(name, _)| !FIELDS.contains(&name.as_str()) && name.len() <= TAG_NAME_BYTES_MAX);
    own.take(TAGS_MAX).filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

fn peer_uri(tls: &als::TlsProperties) -> Option<&str> {
    use als::tls_properties::certificate_properties::subject_alt_name::San;
    let names = &tls.peer_certificate_properties.as_ref()?.subject_alt_name;
    names.iter().find_map(|name| match name.san.as_ref()? {
        San::Uri(uri) => Some(uri.as_str()),
        San::Dns(_) => None,
    })
}

fn protocol(version: als::http_access_log_entry::HttpVersion) -> Option<&'static str> {
    use als::http_access_log_entry::HttpVersion as Version;
    match version {
        Version::ProtocolUnspecified => None,
        Version::Http10 => Some("HTTP/1.0"),
        Version::Http11 => Some("HTTP/1.1"),
        Version::Http2 => Some("HTTP/2"),
        Version::Http3 => Some("HTTP/3"),
    }
}

fn show(address: &Address) -> Option<String> {
    match address.address.as_ref()? {
        address::Address::SocketAddress(socket) => {
            let host = text(&socket.address)?;
            let port = match socket.port_specifier.as_ref() {
                Some(socket_address::PortSpecifier::PortValue(port)) => *port,
                _ => 0,
            };
            Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
        }
        address::Address::Pipe(pipe) => text(&pipe.path).map(str::to_owned),
        address::Address::EnvoyInternalAddress(_) => None,
    }
}

/// RFC 3339 in UTC with milliseconds.
fn time(time: &wkt::Timestamp) -> Option<String> {
    let stamp = jiff::Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(format!("{stamp:.3}"))
}

fn millis(duration: &wkt::Duration) -> u64 {
    let secs = u64::try_from(duration.seconds).unwrap_or(0);
    secs.saturating_mul(1_000).saturating_add(u64::try_from(duration.nanos / 1_000_000).unwrap_or(0))
}

/// Envoy's letters, comma-separated, in its order.
fn flags(flags: &als::ResponseFlags) -> String {
    let all = [
        (flags.failed_local_healthcheck, "LH"),
        (flags.no_healthy_upstream, "UH"),
        (flags.upstream_request_timeout, "UT"),
        (flags.local_reset, "LR"),
        (flags.upstream_remote_reset, "UR"),
        (flags.upstream_connection_failure, "UF"),
        (flags.upstream_connection_termination, "UC"),
        (flags.upstream_overflow, "UO"),
        (flags.no_route_found, "NR"),
        (flags.delay_injected, "DI"),
        (flags.fault_injected, "FI"),
        (flags.rate_limited, "RL"),
        (flags.unauthorized_details.is_some(), "UAEX"),
        (flags.rate_limit_service_error, "RLSE"),
        (flags.downstream_connection_termination, "DC"),
        (flags.upstream_retry_limit_exceeded, "URX"),
        (flags.stream_idle_timeout, "SI"),
        (flags.invalid_envoy_request_headers, "IH"),
        (flags.downstream_protocol_error, "DPE"),
        (flags.upstream_max_stream_duration_reached, "UMSDR"),
        (flags.response_from_cache_filter, "RFCF"),
        (flags.no_filter_config_found, "NFCF"),
        (flags.duration_timeout, "DT"),
        (flags.upstream_protocol_error, "UPE"),
        (flags.no_cluster_found, "NC"),
        (flags.overload_manager, "OM"),
        (flags.dns_resolution_failure, "DF"),
        (flags.downstream_remote_reset, "DR"),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, letters)| *letters).collect::<Vec<_>>().join(",")
}

/// Bytes of one text.
pub const FIELD_BYTES_MAX: usize = 2_048;
/// Tags of one entry.
const TAGS_MAX: usize = 32;
/// Bytes of a tag's name.
const TAG_NAME_BYTES_MAX: usize = 128;
/// The names of [`Record`].
const FIELDS: &[&str] = &[
    "start_time",
    "reporter",
    "node",
    "log_name",
    "method",
    "authority",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "route_name",
    "upstream_cluster",
    "upstream_host",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "peer_principal",
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const REPORTER: Reporter<'_> = Reporter { spiffe_id: "spiffe://a.b/gw", node: "router~1", log_name: "mesh" };

    fn parse(line: &str) -> Value {
        assert!(!line.contains('\n'), "{line}");
        serde_json::from_str(line).unwrap()
    }

    fn socket(address: &str, port: u32) -> Option<Address> {
        let port_specifier = Some(socket_address::PortSpecifier::PortValue(port));
        let socket = envoy_types::pb::envoy::config::core::v3::SocketAddress {
            address: address.into(),
            port_specifier,
            ..Default::default()
        };
        Some(Address { address: Some(address::Address::SocketAddress(socket)) })
    }

    #[test]
    fn a_request_has_istios_fields_and_the_proven_reporter() {
        let common = als::AccessLogCommon {
            start_time: Some(wkt::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            duration: Some(wkt::Duration { seconds: 1, nanos: 250_000_000 }),
            upstream_cluster: "outbound|9095||h".into(),
            upstream_remote_address: socket("127.0.0.2", 15006),
            downstream_remote_address: socket("::1", 5),
            response_flags: Some(als::ResponseFlags { no_route_found: true, rate_limited: true, ..Default::default() }),
            custom_tags: [("decision", "deny"), ("path", "forged")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Default::default()
        };
        let request = als::HttpRequestProperties {
            request_method: RequestMethod::Get as i32,
            path: "/a?b\nc".into(),
            authority: "h".into(),
            ..Default::default()
        };
        let response =
            als::HttpResponseProperties { response_code: Some(wkt::UInt32Value { value: 403 }), ..Default::default() };
        let entry = als::HttpAccessLogEntry {
            common_properties: Some(common),
            protocol_version: als::http_access_log_entry::HttpVersion::Http2 as i32,
            request: Some(request),
            response: Some(response),
        };
        let expected = json!({
            "start_time": "2023-11-14T22:13:20.005Z", "reporter": "spiffe://a.b/gw", "node": "router~1", "log_name": "mesh",
            "method": "GET", "authority": "h", "path": "/a?b\nc", "protocol": "HTTP/2", "response_code": 403,
            "response_flags": "NR,RL", "bytes_received": 0, "bytes_sent": 0, "duration": 1250,
            "upstream_cluster": "outbound|9095||h", "upstream_host": "127.0.0.2:15006",
            "downstream_remote_address": "[::1]:5", "decision": "deny",
        });
        assert_eq!(parse(&http_line(REPORTER, &entry)), expected);
    }

    #[test]
    fn an_empty_entry_is_still_a_line() {
        let http = parse(&http_line(Reporter::default(), &als::HttpAccessLogEntry::default()));
        assert_eq!(http, json!({"bytes_received": 0, "bytes_sent": 0}));
        let tcp = parse(&tcp_line(Reporter::default(), &als::TcpAccessLogEntry::default()));
        assert_eq!(tcp, json!({"protocol": "TCP"}));
    }

    #[test]
    fn the_peer_is_the_first_uri_of_its_certificate() {
        use als::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name::San};
        let names =
            [San::Dns("x".into()), San::Uri("spiffe://a.b/c".into())].map(|san| SubjectAltName { san: Some(san) });
        let certificate =
            als::tls_properties::CertificateProperties { subject_alt_name: names.into(), ..Default::default() };
        let tls = als::TlsProperties { peer_certificate_properties: Some(certificate), ..Default::default() };
        let common = als::AccessLogCommon { tls_properties: Some(tls), ..Default::default() };
        let connection = Some(als::ConnectionProperties { received_bytes: 1, sent_bytes: 2 });
        let entry = als::TcpAccessLogEntry { common_properties: Some(common), connection_properties: connection };
        let expected =
            json!({"protocol": "TCP", "bytes_received": 1, "bytes_sent": 2, "peer_principal": "spiffe://a.b/c"});
        assert_eq!(parse(&tcp_line(Reporter::default(), &entry)), expected);
    }

    #[test]
    fn long_texts_are_cut_at_a_character_and_absurd_times_left_out() {
        let edge = "é".repeat(FIELD_BYTES_MAX / 2);
        assert_eq!(text(&edge), Some(edge.as_str()));
        assert_eq!(text(&format!("a{edge}")).map(str::len), Some(FIELD_BYTES_MAX - 1));
        assert_eq!(time(&wkt::Timestamp { seconds: i64::MAX, nanos: -5 }), None);
        assert_eq!(millis(&wkt::Duration { seconds: i64::MAX, nanos: i32::MAX }), u64::MAX);
        assert_eq!(millis(&wkt::Duration { seconds: -1, nanos: -1 }), 0);
    }
}
