//! The tests that policies are made of.

use std::net::IpAddr;

use crate::matcher::{Cidr, HeaderMatcher, MetadataMatcher, Reading, StringMatcher, UriTemplate};
use crate::request::{CanonicalPath, Connection, PeerIdentity, Request};

/// A test, possibly made of others.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    Always,
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    /// Needs a request.
    Http(HttpTest, Reading),
    DestinationIp(Cidr),
    DestinationPort(u16, u16),
    ServerName(StringMatcher),
    Peer(PeerTest),
    DirectSource(Cidr),
    Source(Cidr),
    Remote(Cidr),
}

/// A test of a request.
#[derive(Clone, Debug)]
pub(super) enum HttpTest {
    Header(HeaderMatcher),
    Path(StringMatcher),
    Template(UriTemplate),
    Metadata(MetadataMatcher),
}

/// A test of the peer's proven identity.
#[derive(Clone, Debug)]
pub(super) enum PeerTest {
    Present,
    Name(StringMatcher),
    Uri(StringMatcher),
    Dns(StringMatcher),
}

/// What a policy is tried on.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) connection: &'a Connection,
    pub(super) request: Option<&'a Request<'a>>,
    assume_claims: bool,
}

impl<'a> Facts<'a> {
    pub(super) fn request(request: &'a Request<'_>) -> Self {
        Self { connection: request.connection, request: Some(request), assume_claims: false }
    }

    pub(super) fn connection(connection: &'a Connection) -> Self {
        Self { connection, request: None, assume_claims: false }
    }

    pub(super) fn has_claims(&self) -> bool {
        self.request.is_some_and(|request| request.metadata.has_claims())
    }

    /// The same facts, if there were a token with just the claims that help the caller.
    pub(super) fn assuming_claims(self) -> Self {
        Self { assume_claims: true, ..self }
    }

    pub(super) fn remote(&self) -> IpAddr {
        self.request.map_or_else(|| self.connection.source.ip(), |request| request.remote)
    }
}

impl Rule {
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        let connection = facts.connection;
        match self {
            Self::Always => true,
            Self::All(rules) => rules.iter().all(|rule| rule.matches(facts)),
            Self::Any(rules) => rules.iter().any(|rule| rule.matches(facts)),
            Self::Not(rule) => !rule.matches(facts),
            Self::Http(test, reading) => match facts.request {
                Some(request) => test.matches(request, *reading, facts.assume_claims),
                None => *reading == Reading::AnyPasses,
            },
            Self::DestinationIp(range) => range.contains(connection.destination.ip()),
            Self::DestinationPort(first, last) => (*first..=*last).contains(&connection.destination.port()),
            Self::ServerName(test) => test.matches(connection.sni.as_deref().unwrap_or_default().as_bytes()),
            Self::Peer(test) => connection.peer.as_ref().is_some_and(|peer| test.matches(peer)),
            Self::DirectSource(range) => range.contains(connection.direct_source.ip()),
            Self::Source(range) => range.contains(connection.source.ip()),
            Self::Remote(range) => range.contains(facts.remote()),
        }
    }

    pub(super) fn reads_claims(&self) -> bool {
        match self {
            Self::All(rules) | Self::Any(rules) => rules.iter().any(Self::reads_claims),
            Self::Not(rule) => rule.reads_claims(),
            Self::Http(HttpTest::Metadata(test), _) => test.reads_claims(),
            _ => false,
        }
    }
}

impl HttpTest {
    fn matches(&self, request: &Request<'_>, reading: Reading, assume_claims: bool) -> bool {
        match self {
            Self::Header(test) => test.matches(request),
            Self::Path(test) => reads_path(request.path, reading, |path| test.matches(path)),
            Self::Template(test) => reads_path(request.path, reading, |path| test.matches(path)),
            // What helps the caller: passing where the reading is for permitting, failing where it is for denying.
            Self::Metadata(test) if assume_claims && test.reads_claims() => reading == Reading::AllPass,
            Self::Metadata(test) => test.matches(request.metadata),
        }
    }
}

/// Some backends leave `;parameters` away before they look at a path, so both forms count.
fn reads_path(path: &CanonicalPath, reading: Reading, passes: impl Fn(&[u8]) -> bool) -> bool {
    let whole = passes(path.path().as_bytes());
    let bare = path.path_without_parameters().map(str::as_bytes);
    match (reading, bare) {
        (Reading::Joined, _) | (_, None) => whole,
        (Reading::AllPass, Some(bare)) => whole && passes(bare),
        (Reading::AnyPasses, Some(bare)) => whole || passes(bare),
    }
}

impl PeerTest {
    fn matches(&self, peer: &PeerIdentity) -> bool {
        match self {
            Self::Present => true,
            Self::Name(test) => peer.any_name(|name| test.matches(name.as_bytes())),
            Self::Uri(test) => test.matches(peer.uri().as_bytes()),
            Self::Dns(test) => peer.dns_names().any(|name| test.matches(name.as_bytes())),
        }
    }
}
