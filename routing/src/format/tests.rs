//! Tests of `format`.

use std::time::{Duration, SystemTime};

use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};
use http::{HeaderMap, HeaderValue};

use super::*;
use crate::request::PeerIdentity;

fn rendered(format: &str, context: &LogContext<'_>) -> String {
    let mut out = String::new();
    Format::parse(format).unwrap().render(context, &mut out);
    out
}

#[test]
fn the_default_line_of_istio_is_written() {
    let mut request = HeaderMap::new();
    request.insert("user-agent", HeaderValue::from_static("curl/8"));
    let response =
        HeaderMap::from_iter([("x-envoy-upstream-service-time".parse().unwrap(), HeaderValue::from_static("7"))]);
    let context = LogContext {
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)),
        duration: Some(Duration::from_millis(9)),
        method: Some("GET"),
        path: Some("/a"),
        authority: Some("a.test"),
        protocol: Some("HTTP/1.1"),
        request_headers: Some(&request),
        response_headers: Some(&response),
        status: Some(503),
        flags: ResponseFlags::UF | ResponseFlags::URX,
        details: Some("upstream_reset"),
        bytes_sent: 12,
        upstream_host: Some("10.0.0.1:80".parse().unwrap()),
        upstream_cluster: Some("outbound|80||a.test"),
        route: Some("default"),
        ..LogContext::default()
    };
    let format = concat!(
        "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
        "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
        "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
        "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
        "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% ",
        "%ROUTE_NAME%\n"
    );
    assert_eq!(
        rendered(format, &context),
        "[1970-01-01T00:00:01.500Z] \"GET /a HTTP/1.1\" 503 UF,URX upstream_reset - \"-\" 0 12 9 7 \"-\" \"curl/8\" \"-\" \
         \"a.test\" \"10.0.0.1:80\" outbound|80||a.test - - - - default\n"
    );
}

#[test]
fn what_a_peer_wrote_stays_inside_its_field() {
    let request = HeaderMap::from_iter([(http::header::USER_AGENT, HeaderValue::from_bytes(b"a\"\\\xff\tb").unwrap())]);
    let context =
        LogContext { server_name: Some("x\r\n\u{1b}[0m"), request_headers: Some(&request), ..LogContext::default() };

    assert_eq!(rendered("\"%REQ(USER-AGENT)%\"", &context), "\"a\\\"\\\\\\xff\\x09b\"");
    assert_eq!(rendered("%REQUESTED_SERVER_NAME%", &context), "x\\x0d\\x0a\\x1b[0m");

    let mut header = String::new();
    Format::parse("%REQUESTED_SERVER_NAME%").unwrap().render_header(&context, &mut header);
    assert_eq!(header, "x[0m");
}

#[test]
fn lengths_alternatives_and_percent_signs() {
    let peer = PeerIdentity::danger_assume("spiffe://td/ns/a/sa/b");
    let context = LogContext { downstream_peer: Some(&peer), path: Some("/long/path"), ..LogContext::default() };

    assert_eq!(
        rendered("%REQ(:PATH):5%|100%%|%DOWNSTREAM_PEER_URI_SAN%", &context),
        "/long|100%|spiffe://td/ns/a/sa/b"
    );
    assert_eq!(rendered("%UPSTREAM_PEER_URI_SAN%", &context), "-");
    assert_eq!(rendered("%START_TIME(%Y-%m (x) %s)%", &context), "-");
}

#[test]
fn malformed_formats_are_refused() {
    for (text, expected) in [
        ("a%REQ(x", FormatError::Open(1)),
        ("%REQ", FormatError::Open(0)),
        ("%", FormatError::Open(0)),
        ("%NOTHING%", FormatError::Unknown("NOTHING".into())),
        ("%REQ%", FormatError::Argument("REQ".into())),
        ("%REQ(a b)%", FormatError::Argument("REQ".into())),
        ("%RESP(x):y%", FormatError::Open(0)),
        ("%PROTOCOL(x)%", FormatError::Argument("PROTOCOL".into())),
    ] {
        assert_eq!(Format::parse(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn json_keeps_types_and_escapes() {
    let text = |text: &str| PbValue { kind: Some(Kind::StringValue(text.into())) };
    let nested = Struct { fields: [("m".to_owned(), text("%REQ(:METHOD)%"))].into() };
    let format = Struct {
        fields: [
            ("status".to_owned(), text("%RESPONSE_CODE%")),
            ("sni".to_owned(), text("%REQUESTED_SERVER_NAME%")),
            ("route".to_owned(), text("%ROUTE_NAME%")),
            ("both".to_owned(), text("%RESPONSE_CODE%/%PROTOCOL%")),
            ("nested".to_owned(), PbValue { kind: Some(Kind::StructValue(nested)) }),
            ("one".to_owned(), PbValue { kind: Some(Kind::NumberValue(1.5)) }),
        ]
        .into(),
    };
    let context =
        LogContext { status: Some(200), server_name: Some("a\"\n\u{1}"), method: Some("GET"), ..LogContext::default() };
    let render = |omit| {
        let mut out = String::new();
        JsonFormat::compile(&format, omit).unwrap().render(&context, &mut out);
        serde_json::from_str::<serde_json::Value>(&out).unwrap();
        out
    };
    assert_eq!(
        render(false),
        r#"{"both":"200/-","nested":{"m":"GET"},"one":1.5,"route":null,"sni":"a\"\n\u0001","status":200}"#
    );
    assert!(!render(true).contains("route"));
}
