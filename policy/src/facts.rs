//! What the authorization rules may know of a request.

use std::borrow::Cow;

/// One request or connection, as the asking proxy describes it.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The downstream peer's SPIFFE ID, which the asking proxy has verified; empty without one.
    pub principal: &'a str,
    /// The HTTP request, unless it is a bare connection.
    pub http: Option<HttpFacts<'a>>,
}

/// The HTTP part of a request.
#[derive(Clone, Debug)]
pub struct HttpFacts<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Host in lower case without port.
    pub host: String,
    raw_path: &'a str,
    canonical_path: String,
    headers: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> HttpFacts<'a> {
    /// A request with `host` and `path` as they were sent.
    pub fn new(
        method: &'a str,
        host: &str,
        path: &'a str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let raw_path = path.split(['?', '#']).next().unwrap_or_default();
        let headers = headers.into_iter().map(|(name, value)| (lower(name), value)).collect();
        Self { method, host: canonical_host(host), raw_path, canonical_path: canonical_path(raw_path), headers }
    }

    /// The readings of the path: as sent, and as a lenient server might understand it.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        [self.raw_path, self.canonical_path.as_str()].into_iter()
    }

    /// The lines of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Vec<&'a str> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| *value).collect()
    }
}

fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

fn canonical_host(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Percent-decoded once, backslashes as slashes, without empty and dot segments.
fn canonical_path(path: &str) -> String {
    let decoded = percent_decode(path).replace('\\', "/");
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let mut canonical = format!("/{}", kept.join("/"));
    if canonical.len() > 1 && decoded.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = if byte == b'%' { bytes.get(at + 1).zip(bytes.get(at + 2)) } else { None };
        match hex.and_then(|(high, low)| Some((hex_digit(*high)? << 4) | hex_digit(*low)?)) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_servers_disagree_about() {
        for (path, canonical) in [
            ("", "/"),
            ("/a/b", "/a/b"),
            ("//a//b/", "/a/b/"),
            ("/a/./b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/%41%2fb", "/A/b"),
            ("/a%2", "/a%2"),
            ("/a%zz", "/a%zz"),
            ("/%ff", "/\u{fffd}"),
            ("a\\b", "/a/b"),
        ] {
            assert_eq!(canonical_path(path), canonical, "{path}");
        }
    }

    #[test]
    fn hosts_lose_port_case_and_final_dot() {
        for (host, canonical) in
            [("A.b:80", "a.b"), ("a.b.", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")]
        {
            assert_eq!(canonical_host(host), canonical, "{host}");
        }
    }

    #[test]
    fn header_names_are_compared_in_lower_case() {
        let facts = HttpFacts::new("GET", "h", "/?q", [("X-A", "1"), ("x-a", "2")]);
        assert_eq!(facts.header("x-a"), ["1", "2"]);
        assert_eq!(facts.paths().collect::<Vec<_>>(), ["/", "/"]);
    }
}
