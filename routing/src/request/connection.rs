//! What is known of a downstream connection: addresses, server name and the proven peer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use identity::VerifiedPeer;

/// What is known of a downstream connection; the same for all of its requests.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where the connection comes from; a trusted PROXY header may have said so.
    pub source: SocketAddr,
    /// The address at the other end of the socket.
    pub direct_source: SocketAddr,
    /// Where the client wanted to go: the original destination, or the address it connected to.
    pub destination: SocketAddr,
    /// The server name of the TLS handshake.
    pub sni: Option<Box<str>>,
    /// The negotiated application protocol.
    pub alpn: Option<Box<str>>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The other side's identity, if it was proven.
    pub peer: Option<PeerIdentity>,
}

impl Connection {
    /// A connection in the clear.
    pub fn plain(source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source, direct_source: source, destination, sni: None, alpn: None, tls: false, peer: None }
    }
}

/// Who is on the other side of a connection, proven by the certificate check.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerIdentity(Arc<Facts>);

#[derive(PartialEq, Eq)]
struct Facts {
    uris: Vec<Box<str>>,
    dns_names: Vec<Box<str>>,
    subject: Box<str>,
    serial: Option<Box<str>>,
    fingerprint: Option<Box<str>>,
    not_after: Option<SystemTime>,
}

impl PeerIdentity {
    /// An identity that nobody verified: for explanations, offline evaluation and tests.
    pub fn danger_assume(uri: &str) -> Self {
        Self(Arc::new(Facts {
            uris: vec![uri.into()],
            dns_names: Vec::new(),
            subject: "".into(),
            serial: None,
            fingerprint: None,
            not_after: None,
        }))
    }

    /// The holder of a certificate that the caller has verified against a gateway's own client authority, outside of
    /// any trust domain.
    pub fn danger_web_client(uris: &[&str], dns_names: &[&str], subject: &str, fingerprint: &str) -> Self {
        Self(Arc::new(Facts {
            uris: uris.iter().map(|&uri| uri.into()).collect(),
            dns_names: dns_names.iter().map(|&name| name.into()).collect(),
            subject: subject.into(),
            serial: None,
            fingerprint: Some(fingerprint.into()),
            not_after: None,
        }))
    }

    /// The peer's URI name, a SPIFFE ID inside a mesh; empty if its certificate has none.
    pub fn uri(&self) -> &str {
        self.0.uris.first().map_or("", |uri| uri)
    }

    /// The certificate's serial number in hexadecimal.
    pub fn serial(&self) -> Option<&str> {
        self.0.serial.as_deref()
    }

    /// The certificate's SHA-256 fingerprint in hexadecimal.
    pub fn fingerprint_sha256(&self) -> Option<&str> {
        self.0.fingerprint.as_deref()
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.0.not_after
    }

    /// The certificate's subject; empty for an SVID.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The certificate's DNS names.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.0.dns_names.iter().map(AsRef::as_ref)
    }

    /// Whether one of the names that stand for this peer passes: its URIs and DNS names, or its subject if it has
    /// neither.
    pub fn any_name(&self, mut passes: impl FnMut(&str) -> bool) -> bool {
        let names = || self.0.uris.iter().chain(&self.0.dns_names);
        match names().next() {
            None => passes(&self.0.subject),
            Some(_) => names().any(|name| passes(name)),
        }
    }
}

impl From<&VerifiedPeer> for PeerIdentity {
    fn from(peer: &VerifiedPeer) -> Self {
        let fingerprint: String = peer.fingerprint_sha256().iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Arc::new(Facts {
            uris: vec![peer.spiffe_id().as_str().into()],
            dns_names: peer.dns_names().iter().map(|name| name.as_str().into()).collect(),
            subject: peer.subject().into(),
            serial: Some(peer.leaf_serial().into()),
            fingerprint: Some(fingerprint.into()),
            not_after: Some(peer.not_after()),
        }))
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerIdentity").field(&self.uri()).finish()
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri())
    }
}
