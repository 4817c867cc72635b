//! The request as policy and routes see it: canonical host and path, headers, the connection, verified facts.
//!
//! [`CanonicalPath`] and [`Host`] can be made only by their parsers, and what they hold is what is matched, forwarded
//! and logged. There is no second reading of the same bytes.

mod connection;
mod host;
mod metadata;
mod path;
#[cfg(test)]
pub(crate) mod sample;

pub use connection::{Connection, PeerIdentity};
pub use host::{Host, HostError};
pub use metadata::{JWT_FILTER, Metadata, MetadataValue, TokenClaims};
pub use path::{CanonicalPath, EscapedSlashes, PathError, PathOptions};

use std::net::IpAddr;

use http::{HeaderMap, Method};

/// One request, seen by everything that decides about it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, in the case it was sent.
    pub method: &'a Method,
    /// The authority that was asked for.
    pub host: &'a Host,
    /// Path and query.
    pub path: &'a CanonicalPath,
    /// All headers, hop-by-hop ones included or not as the caller likes.
    pub headers: &'a HeaderMap,
    /// How the client reached us.
    pub scheme: Scheme,
    /// The connection the request came on.
    pub connection: &'a Connection,
    /// The client's address, after trusted hops of `x-forwarded-for`.
    pub remote: IpAddr,
    /// What filters noted about the request, verified claims among it.
    pub metadata: &'a Metadata,
}

impl<'a> Request<'a> {
    /// The first value of a header, if it is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&'a str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the body is gRPC.
    pub fn is_grpc(&self) -> bool {
        let kind = self.header(http::header::CONTENT_TYPE).and_then(|kind| kind.strip_prefix("application/grpc"));
        kind.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    }

    /// Whether this is a browser's question before a cross-origin request.
    pub fn is_cors_preflight(&self) -> bool {
        self.method == Method::OPTIONS
            && self.headers.contains_key(http::header::ORIGIN)
            && self.headers.get(http::header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|value| !value.is_empty())
    }
}

/// How a client reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port a URL of this scheme means when it names none.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}
