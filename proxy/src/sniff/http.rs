//! HTTP/1 or HTTP/2 or neither, from the first bytes (RFC 9113 section 3.4, RFC 9112 section 3).

use super::Verdict;

/// Which HTTP a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HttpKind {
    /// A request line.
    Http1,
    /// The connection preface of HTTP/2.
    Http2,
    /// No HTTP.
    Other,
}

/// Tells which HTTP `bytes` begin with.
///
/// A request line is recognised by a method of upper-case letters and a space; whether it is a valid one is the
/// parser's business.
pub(crate) fn kind(bytes: &[u8]) -> Verdict<HttpKind> {
    if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
        return Verdict::More;
    }
    if bytes.starts_with(PREFACE) {
        return Verdict::Known(HttpKind::Http2);
    }
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'A'..=b'Z' | b'-' if at < METHOD_BYTES_MAX => {}
            b' ' if at > 0 => return Verdict::Known(HttpKind::Http1),
            _ => return Verdict::Known(HttpKind::Other),
        }
    }
    Verdict::More
}

/// What an HTTP/2 client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const METHOD_BYTES_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_kind() {
        for (bytes, expected) in [
            (b"".as_slice(), Verdict::More),
            (b"GE", Verdict::More),
            (b"GET ", Verdict::Known(HttpKind::Http1)),
            (b"PRI * HT", Verdict::More),
            (b"PRI * HTTP/1.1\r\n\r\n", Verdict::Known(HttpKind::Http1)),
            (PREFACE, Verdict::Known(HttpKind::Http2)),
            (b"get / HTTP/1.1", Verdict::Known(HttpKind::Other)),
            (b" GET", Verdict::Known(HttpKind::Other)),
            (b"\x16\x03\x01", Verdict::Known(HttpKind::Other)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Verdict::Known(HttpKind::Other)),
        ] {
            assert_eq!(kind(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
