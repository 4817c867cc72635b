//! The head of a request, field by field (RFC 9113, sections 8.2 and 8.3).

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};

use super::hpack::FIELD_BYTES;

/// What a header block says.
#[derive(Debug)]
pub(super) struct Fields {
    method: Option<Method>,
    path: Option<PathAndQuery>,
    has_scheme: bool,
    has_authority: bool,
    headers: HeaderMap,
    room: usize,
    fault: Option<Fault>,
}

/// Why a head is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    TooLarge,
}

impl Fields {
    /// None yet, of `bytes_max` at most, names, values and 32 bytes each.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            method: None,
            path: None,
            has_scheme: false,
            has_authority: false,
            headers: HeaderMap::new(),
            room: bytes_max,
            fault: None,
        }
    }

    /// Takes one more.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        match self.room.checked_sub(name.len() + value.len() + FIELD_BYTES) {
            Some(room) => self.room = room,
            None => self.fault = Some(Fault::TooLarge),
        }
        if self.fault.is_none() && self.try_take(name, value).is_none() {
            self.fault = Some(Fault::Malformed);
        }
    }

    fn try_take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if name.first() == Some(&b':') {
            return self.take_pseudo(name, value);
        }
        if name.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let name = HeaderName::from_bytes(name).ok()?;
        let outer_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let is_bad = CONNECTION_FIELDS.contains(&name.as_str())
            || (name == header::TE && value != b"trailers")
            || outer_space(value.first())
            || outer_space(value.last());
        if is_bad {
            return None;
        }
        self.headers.try_append(name, HeaderValue::from_bytes(value).ok()?).ok().map(drop)
    }

    /// In front of all others, each once.
    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if !self.headers.is_empty() {
            return None;
        }
        let is_again = match name {
            b":method" => self.method.replace(Method::from_bytes(value).ok()?).is_some(),
            b":path" => self.path.replace(PathAndQuery::try_from(value).ok()?).is_some(),
            b":scheme" => std::mem::replace(&mut self.has_scheme, true),
            // Clients write the path of the socket here, in many forms. It means nothing: nobody else is served.
            b":authority" => std::mem::replace(&mut self.has_authority, true),
            _ => return None,
        };
        (!is_again).then_some(())
    }

    /// The request, without its body, and how long that will be if the client has said so.
    pub(super) fn into_request(self) -> Result<(Request<()>, Option<u64>), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let (Some(method), Some(path), true) = (self.method, self.path, self.has_scheme) else {
            return Err(Fault::Malformed);
        };
        let mut lengths = self.headers.get_all(header::CONTENT_LENGTH).iter();
        let length = match (lengths.next(), lengths.next()) {
            (None, _) => None,
            (Some(length), None) => {
                let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                Some(digits.and_then(|digits| digits.parse().ok()).ok_or(Fault::Malformed)?)
            }
            _ => return Err(Fault::Malformed),
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok((request, length))
    }

    /// Whether this may follow a body.
    pub(super) fn is_trailers(&self) -> bool {
        let has_pseudo = self.method.is_some() || self.path.is_some() || self.has_scheme || self.has_authority;
        self.fault.is_none() && !has_pseudo
    }
}

/// Fields of HTTP/1.1 that speak of the connection.
const CONNECTION_FIELDS: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/s/M?q=1")];

    fn request(fields: &[(&str, &str)]) -> Result<(Request<()>, Option<u64>), Fault> {
        let mut taken = Fields::new(1_000);
        fields.iter().for_each(|(name, value)| taken.take(name.as_bytes(), value.as_bytes()));
        taken.into_request()
    }

    #[test]
    fn a_request_has_its_parts_whatever_the_authority() {
        for authority in ["localhost", "tmp%2Frun%2Fagent.sock", "/run/a_b:c.sock", "", "a b"] {
            let fields =
                [&COMMON[..], &[(":authority", authority), ("te", "trailers"), ("x", "1"), ("x", "2")]].concat();
            let (request, length) = request(&fields).unwrap();
            assert_eq!((request.method(), request.uri().path(), length), (&Method::POST, "/s/M", None));
            assert_eq!(request.headers().get_all("x").iter().count(), 2);
        }
        let (_, length) = request(&[&COMMON[..], &[("content-length", "12")]].concat()).unwrap();
        assert_eq!(length, Some(12));
    }

    #[test]
    fn what_a_head_must_not_have_is_refused() {
        for more in [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("te", "gzip"),
            ("X-Upper", "1"),
            ("bad name", "1"),
            ("", "1"),
            ("x", "a\r\nb"),
            ("x", " a"),
            ("x", "a\t"),
            (":path", "/again"),
            (":method", "GET"),
            (":scheme", "http"),
            (":protocol", "websocket"),
            (":status", "200"),
            ("content-length", "+1"),
            ("content-length", "1, 1"),
            ("content-length", "99999999999999999999"),
        ] {
            let refused = request(&[&COMMON[..], &[more]].concat()).unwrap_err();
            assert_eq!(refused, Fault::Malformed, "{more:?}");
        }
        let late = [COMMON[0], COMMON[1], ("x", "1"), COMMON[2]];
        assert_eq!(request(&late).unwrap_err(), Fault::Malformed, "a pseudo field behind another");
        for missing in 0..3 {
            let mut fields = COMMON.to_vec();
            fields.remove(missing);
            assert_eq!(request(&fields).unwrap_err(), Fault::Malformed);
        }
        let twice = [&COMMON[..], &[("content-length", "1"), ("content-length", "1")]].concat();
        assert_eq!(request(&twice).unwrap_err(), Fault::Malformed);
    }

    #[test]
    fn a_head_is_limited_and_trailers_have_no_pseudo_fields() {
        let long = "x".repeat(500);
        let fields = [&COMMON[..], &[("a", long.as_str()), ("b", long.as_str())]].concat();
        assert_eq!(request(&fields).unwrap_err(), Fault::TooLarge);
        let mut trailers = Fields::new(100);
        trailers.take(b"grpc-status", b"0");
        assert!(trailers.is_trailers());
        let mut trailers = Fields::new(100);
        trailers.take(b":path", b"/");
        assert!(!trailers.is_trailers());
    }
}
