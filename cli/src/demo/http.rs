//! What the demo's HTTP answers have in common.

use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

/// JSON with a line end, pleasant in a terminal.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    let body = format!("{value:#}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The answer to an unknown path.
pub(super) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

/// The SPIFFE ID of the peer that the sidecar verified, from its `x-forwarded-client-cert`.
///
/// The header is as good as the sidecar in front, which removes what clients send.
pub(super) fn peer_spiffe_id(headers: &HeaderMap) -> Option<String> {
    let nearest = headers.get_all(XFCC).iter().next_back()?.to_str().ok()?;
    let element = split_quoted(nearest, ',').pop()?;
    let pairs = split_quoted(element, ';');
    let uri = pairs.iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("uri").then_some(value)
    })?;
    let uri = uri.trim().trim_matches('"');
    (!uri.is_empty()).then(|| uri.to_owned())
}

/// `HTTP/1.1`, `HTTP/2`.
pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP",
    }
}

/// Headers as JSON; several lines of one name are joined. `show` picks by name, secrets are never shown.
pub(super) fn headers_json(headers: &HeaderMap, show: impl Fn(&str) -> bool) -> Value {
    let mut shown = Map::new();
    for name in headers.keys().filter(|name| show(name.as_str())) {
        let secret = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE].contains(name);
        let lines = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let value = if secret { "(hidden)".to_owned() } else { lines.collect::<Vec<_>>().join(", ") };
        shown.insert(name.to_string(), value.into());
    }
    Value::Object(shown)
}

/// Splits at `separator` outside of double quotes.
fn split_quoted(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|c: char| {
        if escaped {
            escaped = false;
            return false;
        }
        escaped = quoted && c == '\\';
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

/// Envoy's header for what is known of the client's certificate.
const XFCC: &str = "x-forwarded-client-cert";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(XFCC, line.parse().unwrap());
        }
        peer_spiffe_id(&headers)
    }

    #[test]
    fn the_peer_is_the_uri_of_the_nearest_element() {
        assert_eq!(check(&["By=spiffe://a/me;Hash=00;URI=spiffe://a/peer"]).as_deref(), Some("spiffe://a/peer"));
        assert_eq!(check(&["URI=spiffe://a/far,By=x;URI=spiffe://a/near"]).as_deref(), Some("spiffe://a/near"));
        assert_eq!(check(&["URI=spiffe://a/far", "URI=spiffe://a/near"]).as_deref(), Some("spiffe://a/near"));
        assert_eq!(
            check(&["Subject=\"CN=a,URI=spiffe://a/x;\\\"\";URI=spiffe://a/y"]).as_deref(),
            Some("spiffe://a/y")
        );
    }

    #[test]
    fn without_a_certificate_there_is_no_peer() {
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[""]), None);
        assert_eq!(check(&["By=spiffe://a/me;URI="]), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut headers = HeaderMap::new();
        headers.append("authorization", "Bearer secret".parse().unwrap());
        headers.append("x-a", "1".parse().unwrap());
        headers.append("x-a", "2".parse().unwrap());
        let shown = headers_json(&headers, |_| true);
        assert_eq!(shown, serde_json::json!({"authorization": "(hidden)", "x-a": "1, 2"}));
    }
}
