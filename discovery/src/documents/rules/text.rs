//! Checks of texts that many kinds carry: hosts, ports, networks, matches, header names.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::documents::Review;
use crate::documents::shapes::{Destination, Headers, Percent, StringMatch};

/// An address or a network; an address alone is its own network.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    text.parse().ok()
}

pub(super) fn check_cidr(text: &str, path: &str, review: &mut Review<'_>) {
    if parse_cidr(text).is_none() {
        review.error(
            path,
            "CIDR_INVALID",
            format!("`{text}` is neither an IP address nor a network such as 10.0.0.0/8"),
        );
    }
}

pub(super) fn check_port(port: u32, path: &str, review: &mut Review<'_>) {
    if !(1..=65535).contains(&port) {
        review.error(path, "PORT_INVALID", format!("port {port} is not between 1 and 65535"));
    }
}

/// Whether `text` is a DNS label (RFC 1123).
pub(super) fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=LABEL_LEN_MAX).contains(&text.len())
        && text.chars().all(|c| plain(c) || c == '-')
        && text.starts_with(plain)
        && text.ends_with(plain)
}

/// Whether `text` is a DNS name; upper case and underscores are let through, as DNS does.
pub(super) fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label.chars().all(|c| plain(c) || c == '-' || c == '_')
            && label.starts_with(|c: char| plain(c) || c == '_')
            && label.ends_with(|c: char| plain(c) || c == '_')
    };
    (1..=HOST_LEN_MAX).contains(&text.len()) && text.split('.').all(label)
}

/// A DNS name or an IP address; with `wildcard` also `*` and `*.name`.
pub(super) fn check_host(host: &str, wildcard: bool, path: &str, review: &mut Review<'_>) {
    let rest = match host.strip_prefix("*.") {
        Some(rest) if wildcard => rest,
        _ => host,
    };
    let ok = is_dns_name(rest) || host.parse::<IpAddr>().is_ok() || (wildcard && host == "*");
    if !ok {
        review.error(
            path,
            "HOST_INVALID",
            format!("`{host}` is no {}host name", if wildcard { "(wildcard) " } else { "" }),
        );
    }
}

/// Whether `pattern` (`*`, `*.name` or a name) covers `host`, itself perhaps a wildcard.
pub(crate) fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.to_ascii_lowercase(), host.to_ascii_lowercase());
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => pattern == host,
    }
}

pub(super) fn check_regex(pattern: &str, path: &str, review: &mut Review<'_>) {
    if pattern.len() > REGEX_LEN_MAX {
        review.error(path, "REGEX_INVALID", format!("longer than {REGEX_LEN_MAX} characters"));
        return;
    }
    if let Err(error) = regex::Regex::new(pattern) {
        let line = error.to_string();
        let line = line.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        review.error(path, "REGEX_INVALID", format!("`{pattern}` is no regular expression: {line}"));
    }
}

/// Exactly one of exact, prefix, regex, and not empty.
pub(super) fn check_string_match(matcher: &StringMatch, path: &str, review: &mut Review<'_>) {
    if check_one_string(matcher, path, review) == 0 {
        review.error(path, "ONE_OF", "one of `exact`, `prefix`, `regex` is needed");
    }
    for (name, text) in [("exact", &matcher.exact), ("prefix", &matcher.prefix), ("regex", &matcher.regex)] {
        if text.as_deref() == Some("") {
            review.error(format!("{path}.{name}"), "VALUE_INVALID", format!("`{name}` must not be empty"));
        }
    }
}

/// At most one of exact, prefix, regex; returns how many were given.
pub(super) fn check_one_string(matcher: &StringMatch, path: &str, review: &mut Review<'_>) -> usize {
    let given = [matcher.exact.is_some(), matcher.prefix.is_some(), matcher.regex.is_some()];
    let given = given.iter().filter(|given| **given).count();
    if given > 1 {
        review.error(path, "ONE_OF", "only one of `exact`, `prefix`, `regex` may be given");
    }
    if let Some(pattern) = &matcher.regex {
        check_regex(pattern, &format!("{path}.regex"), review);
    }
    given
}

pub(super) fn is_header_name(name: &str) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    !name.is_empty()
        && name.len() <= HEADER_NAME_LEN_MAX
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
}

pub(super) fn check_header_name(name: &str, path: &str, review: &mut Review<'_>) {
    if !is_header_name(name) {
        review.error(path, "HEADER_INVALID", format!("`{name}` is no header name"));
    }
}

pub(super) fn check_headers(headers: Option<&Headers>, path: &str, review: &mut Review<'_>) {
    let Some(headers) = headers else { return };
    for (side, operations) in headers.operations() {
        let named = operations.set.keys().chain(operations.add.keys()).chain(&operations.remove);
        for name in named {
            check_header_name(name, &format!("{path}.{side}"), review);
            if name.starts_with(':') && name != ":authority" {
                review.error(format!("{path}.{side}"), "HEADER_INVALID", format!("`{name}` cannot be changed here"));
            }
        }
        for (name, value) in operations.set.iter().chain(&operations.add) {
            if value.chars().any(|c| c == '\r' || c == '\n' || c == '\0') {
                review.error(
                    format!("{path}.{side}"),
                    "HEADER_INVALID",
                    format!("the value of `{name}` has control characters"),
                );
            }
        }
    }
}

pub(super) fn check_destination(destination: &Destination, path: &str, review: &mut Review<'_>) {
    let host = &destination.host;
    if host == "*" {
        review.error(format!("{path}.host"), "HOST_INVALID", "`*` cannot be a destination");
    }
    check_host(host, true, &format!("{path}.host"), review);
    if !destination.subset.is_empty() && !is_label(&destination.subset) {
        review.error(format!("{path}.subset"), "NAME_INVALID", format!("`{}` is no subset name", destination.subset));
    }
    if let Some(port) = &destination.port {
        check_port(port.number, &format!("{path}.port.number"), review);
    }
}

pub(super) fn check_percent(percent: Option<&Percent>, path: &str, review: &mut Review<'_>) {
    if let Some(percent) = percent.filter(|percent| !(0.0..=100.0).contains(&percent.value)) {
        review.error(path, "OUT_OF_RANGE", format!("{} is not between 0 and 100", percent.value));
    }
}

/// Protocol names that ports of Gateways and ServiceEntries may carry.
pub(super) fn is_protocol(name: &str) -> bool {
    matches!(
        name.to_ascii_uppercase().as_str(),
        "HTTP"
            | "HTTPS"
            | "GRPC"
            | "GRPC-WEB"
            | "HTTP2"
            | "HTTP_PROXY"
            | "MONGO"
            | "REDIS"
            | "MYSQL"
            | "TCP"
            | "TLS"
            | "UDP"
            | "HBONE"
    )
}

const REGEX_LEN_MAX: usize = 1024;
const HOST_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;
const HEADER_NAME_LEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_names_below_them_only() {
        for (pattern, host, expected) in [
            ("*", "a.b", true),
            ("*.b", "a.b", true),
            ("*.b", "x.a.b", true),
            ("*.b", "b", false),
            ("a.b", "A.B", true),
            ("*.b", "*.a.b", true),
            ("*.a.b", "*.b", false),
        ] {
            assert_eq!(host_matches(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn names_keep_their_limits() {
        assert!(is_label(&"a".repeat(63)) && !is_label(&"a".repeat(64)) && !is_label("-a") && !is_label("A"));
        assert!(is_dns_name("a.b-c.d_e") && !is_dns_name("a..b") && !is_dns_name("a/b") && !is_dns_name(""));
        assert_eq!(parse_cidr("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert!(parse_cidr("10.0.0.0/33").is_none());
    }
}
