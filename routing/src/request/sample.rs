//! A request to test with.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::{CanonicalPath, Connection, Host, Metadata, PeerIdentity, Request, Scheme, TokenClaims};

/// Owns what a [`Request`] borrows.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) method: Method,
    pub(crate) host: Host,
    pub(crate) path: CanonicalPath,
    pub(crate) headers: HeaderMap,
    pub(crate) connection: Connection,
    pub(crate) metadata: Metadata,
    pub(crate) scheme: Scheme,
}

impl Sample {
    pub(crate) fn get(path: &str) -> Self {
        let address = |text: &str| text.parse().unwrap();
        Self {
            method: Method::GET,
            host: Host::parse("a.test").unwrap(),
            path: CanonicalPath::parse(path).unwrap(),
            headers: HeaderMap::new(),
            connection: Connection::plain(address("10.0.0.1:4000"), address("10.0.0.2:80")),
            metadata: Metadata::default(),
            scheme: Scheme::Http,
        }
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        self.host = Host::parse(host).unwrap();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        self
    }

    pub(crate) fn peer(mut self, uri: &str) -> Self {
        self.connection.peer = Some(PeerIdentity::danger_assume(uri));
        self.connection.tls = true;
        self
    }

    pub(crate) fn claims(mut self, claims: Value) -> Self {
        self.metadata.insert_claims(&"payload".into(), TokenClaims::danger_assume(claims));
        self
    }

    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            scheme: self.scheme,
            connection: &self.connection,
            remote: self.connection.source.ip(),
            metadata: &self.metadata,
        }
    }
}
