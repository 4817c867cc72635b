//! The authority of a request, in one spelling: lower case, no trailing dot, no empty port.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, header, request::Parts};

/// The host that a request asks for, and its port if it names one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    authority: Box<str>,
    name_len: usize,
    port: Option<u16>,
}

/// Why a host was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There was neither an authority nor a Host header.
    #[error("the request names no host")]
    Missing,
    /// There was more than one Host header.
    #[error("the request has more than one Host header")]
    Duplicate,
    /// Request target and Host header differ.
    #[error("the request target and the Host header name different hosts")]
    Mismatch,
    /// The text is not a host.
    #[error("the host is malformed")]
    Invalid,
}

impl HostError {
    /// The stable code for logs and answers.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "HOST_MISSING",
            Self::Duplicate => "HEADER_DUPLICATE_HOST",
            Self::Mismatch => "HOST_MISMATCH",
            Self::Invalid => "HOST_INVALID",
        }
    }
}

impl Host {
    /// A host as somebody wrote it, which no request of ours would get past [`Self::parse`] with: for offline evaluation.
    pub fn danger_assume(text: &str) -> Self {
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let name_len = if port.is_some() { text.rfind(':').unwrap_or(text.len()) } else { text.len() };
        Self { authority: text.to_ascii_lowercase().into(), name_len, port }
    }

    /// The one host of a request: the target's authority, which a Host header may repeat but not change.
    pub fn of(parts: &Parts) -> Result<Self, HostError> {
        let named = Self::of_headers(&parts.headers)?;
        let target = parts.uri.authority().map(|authority| Self::parse(authority.as_str())).transpose()?;
        match (target, named) {
            (None, None) => Err(HostError::Missing),
            (Some(host), None) | (None, Some(host)) => Ok(host),
            (Some(target), Some(named)) if target.same_place(&named, parts.uri.scheme_str()) => Ok(target),
            (Some(_), Some(_)) => Err(HostError::Mismatch),
        }
    }

    fn of_headers(headers: &HeaderMap) -> Result<Option<Self>, HostError> {
        let mut values = headers.get_all(header::HOST).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HostError::Duplicate);
        }
        value.to_str().map_err(|_| HostError::Invalid).and_then(Self::parse).map(Some)
    }

    /// Reads `name`, `name:port`, an IPv4 address or a bracketed IPv6 address.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Missing);
        }
        if text.len() > HOST_BYTES_MAX {
            return Err(HostError::Invalid);
        }
        let (name, port) = split_port(text)?;
        let mut authority = String::with_capacity(text.len());
        push_canonical_name(name, &mut authority)?;
        let name_len = authority.len();
        if let Some(port) = port {
            // Writing to a string cannot fail.
            let _ = write!(authority, ":{port}");
        }
        Ok(Self { authority: authority.into(), name_len, port })
    }

    /// `name` or `name:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The name without the port; an IPv6 address keeps its brackets.
    pub fn name(&self) -> &str {
        &self.authority[..self.name_len]
    }

    /// The port, if one was named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address, if the name is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.name().trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    fn same_place(&self, other: &Self, scheme: Option<&str>) -> bool {
        let default = match scheme {
            Some("https") => 443,
            _ => 80,
        };
        self.name() == other.name() && self.port.unwrap_or(default) == other.port.unwrap_or(default)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), HostError> {
    let (name, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return Err(HostError::Invalid),
        Some("") => None,
        Some(digits) => Some(parse_port(digits)?),
    };
    Ok((name, port))
}

fn parse_port(digits: &str) -> Result<u16, HostError> {
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::Invalid);
    }
    digits.parse().ok().filter(|port| *port != 0).ok_or(HostError::Invalid)
}

fn push_canonical_name(name: &str, out: &mut String) -> Result<(), HostError> {
    if let Some(inside) = name.strip_prefix('[') {
        let inside = inside.strip_suffix(']').ok_or(HostError::Invalid)?;
        let ip: Ipv6Addr = inside.parse().map_err(|_| HostError::Invalid)?;
        let _ = write!(out, "[{ip}]");
        return Ok(());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.split('.').all(is_label) {
        return Err(HostError::Invalid);
    }
    out.push_str(name);
    out.make_ascii_lowercase();
    Ok(())
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// The longest authority.
pub(crate) const HOST_BYTES_MAX: usize = 262;
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_host_has_one_spelling() {
        for (text, expected) in [
            ("a.test", "a.test"),
            ("Secret.COM", "secret.com"),
            ("a.test.", "a.test"),
            ("a.test:", "a.test"),
            ("a.test.:443", "a.test:443"),
            ("a.test:0443", "a.test:443"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[2001:DB8:0:0::1]:80", "[2001:db8::1]:80"),
            ("[::1]", "[::1]"),
            ("under_score.x", "under_score.x"),
            ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ] {
            assert_eq!(Host::parse(text).unwrap().authority(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "u@a.test",
            "a.test/x",
            "a b",
            "a,b",
            "a.test:x",
            "a.test:65536",
            "a.test:0",
            "a.test:-1",
            "a.test:80:80",
            "a..b",
            ".",
            ".a",
            "a.test..",
            "%2e",
            "a%00b",
            "[fe80::1%eth0]",
            "[::1",
            "::1",
            "[::1]x",
            "bücher.test",
            "*",
            "a.test:443 ",
            "a.test:000443",
            "\u{0}",
        ] {
            assert_eq!(Host::parse(text), Err(HostError::Invalid), "{text}");
        }
        assert_eq!(Host::parse(""), Err(HostError::Missing));
    }

    #[test]
    fn lengths_are_limited_at_the_edge() {
        let name = |len: usize| "a.".repeat(len / 2) + if len % 2 == 1 { "a" } else { "" };
        assert!(Host::parse(&name(NAME_BYTES_MAX)).is_ok());
        assert!(Host::parse(&(name(NAME_BYTES_MAX) + "a")).is_err());
        assert!(Host::parse(&"a".repeat(LABEL_BYTES_MAX)).is_ok());
        assert!(Host::parse(&"a".repeat(LABEL_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn target_and_header_must_agree() {
        let host = |target: &str, headers: &[&str]| {
            let mut request = Request::builder().uri(target);
            for value in headers {
                request = request.header("host", *value);
            }
            Host::of(&request.body(()).unwrap().into_parts().0).map(|host| host.authority().to_owned())
        };
        assert_eq!(host("/", &["a.test"]).unwrap(), "a.test");
        assert_eq!(host("http://a.test/", &[]).unwrap(), "a.test");
        assert_eq!(host("http://a.test/", &["A.test:80"]).unwrap(), "a.test");
        assert_eq!(host("https://a.test:443/", &["a.test"]).unwrap(), "a.test:443");
        assert_eq!(host("http://a.test/", &["b.test"]), Err(HostError::Mismatch));
        assert_eq!(host("/", &["a.test", "a.test"]), Err(HostError::Duplicate));
        assert_eq!(host("/", &[]), Err(HostError::Missing));
        assert_eq!(host("/", &[""]), Err(HostError::Missing));
    }
}
