//! Reads server name and ALPN out of a TLS client greeting (RFC 8446 section 4.1.2) without answering it.
//!
//! Only what chooses a filter chain is read. A greeting may be split over several records; every length is
//! checked against what is there, so hostile bytes can at worst be called "no greeting".

use smallvec::SmallVec;

use super::Verdict;

/// What a client greets with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server name, lower-case.
    pub(crate) server_name: Option<String>,
    /// The protocols offered, most wanted first.
    pub(crate) alpn: SmallVec<[String; 2]>,
}

/// Decodes the greeting at the beginning of `bytes`; `None` when there cannot be one.
pub(crate) fn client_hello(bytes: &[u8]) -> Verdict<Option<ClientHello>> {
    let mut message = SmallVec::<[u8; 2048]>::new();
    let mut rest = bytes;
    loop {
        let Some((header, body)) = rest.split_at_checked(RECORD_HEADER_BYTES) else {
            return if rest.first().is_none_or(|kind| *kind == HANDSHAKE_RECORD) { Verdict::More } else { NO_HELLO };
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != HANDSHAKE_RECORD || header[1] != 3 || len == 0 || len > RECORD_BYTES_MAX {
            return NO_HELLO;
        }
        message.extend_from_slice(&body[..len.min(body.len())]);
        match complete(&message) {
            Verdict::Known(Some(hello)) => return Verdict::Known(decode(hello)),
            Verdict::Known(None) => return NO_HELLO,
            Verdict::More if body.len() < len => return Verdict::More,
            Verdict::More => rest = &body[len..],
        }
    }
}

/// The body of the greeting, when all of it is there.
fn complete(message: &[u8]) -> Verdict<Option<&[u8]>> {
    let Some((header, body)) = message.split_at_checked(4) else {
        return if message.first().is_none_or(|kind| *kind == CLIENT_HELLO) {
            Verdict::More
        } else {
            Verdict::Known(None)
        };
    };
    let len = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if header[0] != CLIENT_HELLO || len > HELLO_BYTES_MAX {
        return Verdict::Known(None);
    }
    body.get(..len).map_or(Verdict::More, |hello| Verdict::Known(Some(hello)))
}

fn decode(hello: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?; // version, random
    reader.vector8()?; // session
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression
    let mut found = ClientHello::default();
    if reader.0.is_empty() {
        return Some(found);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let body = extensions.vector16()?;
        match kind {
            EXT_SERVER_NAME => found.server_name = server_name(body),
            EXT_ALPN => found.alpn = protocols(body)?,
            _ => {}
        }
    }
    Some(found)
}

/// The first host name of the extension; a name that is no plain ASCII host counts as none.
fn server_name(body: &[u8]) -> Option<String> {
    let mut list = Reader(Reader(body).vector16()?);
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.vector16()?;
        if kind == 0 {
            let fits = !name.is_empty()
                && name.len() <= SERVER_NAME_BYTES_MAX
                && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._|".contains(b));
            return fits.then(|| String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    None
}

fn protocols(body: &[u8]) -> Option<SmallVec<[String; 2]>> {
    let mut list = Reader(Reader(body).vector16()?);
    let mut found = SmallVec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if found.len() < ALPN_COUNT_MAX {
            found.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Some(found)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.take(1)?[0]);
        self.take(len)
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.number16()?);
        self.take(len)
    }
}

/// The first byte of a TLS handshake record.
pub(crate) const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER_BYTES: usize = 5;
const RECORD_BYTES_MAX: usize = 1 << 14;
const HELLO_BYTES_MAX: usize = 1 << 14;
const SERVER_NAME_BYTES_MAX: usize = 255;
const ALPN_COUNT_MAX: usize = 16;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;
const NO_HELLO: Verdict<Option<ClientHello>> = Verdict::Known(None);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn greeting(name: &str, alpn: &[&str]) -> Vec<u8> {
        let provider = identity::tls::provider();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn name_and_protocols_are_found_and_every_prefix_asks_for_more() {
        let bytes = greeting("outbound_.9095_._.helloworld.default.svc.cluster.local", &["istio", "h2"]);
        for cut in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..cut]), Verdict::More, "{cut}");
        }
        let Verdict::Known(Some(hello)) = client_hello(&bytes) else { panic!() };
        assert_eq!(hello.server_name.as_deref(), Some("outbound_.9095_._.helloworld.default.svc.cluster.local"));
        assert_eq!(hello.alpn.as_slice(), ["istio", "h2"]);
    }

    #[test]
    fn a_greeting_in_one_byte_records_is_put_together() {
        let bytes = greeting("a.test", &["h2"]);
        let split: Vec<u8> = bytes[5..].iter().flat_map(|b| [22, 3, 1, 0, 1, *b]).collect();
        assert_eq!(client_hello(&split), client_hello(&bytes));
    }

    #[test]
    fn an_address_sends_no_name() {
        let Verdict::Known(Some(hello)) = client_hello(&greeting("127.0.0.1", &[])) else { panic!() };
        assert_eq!(hello, ClientHello::default());
    }

    #[test]
    fn broken_lengths_are_no_greeting_and_never_panic() {
        let bytes = greeting("a.test", &["h2"]);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let _ = client_hello(&broken);
            }
        }
        assert_eq!(client_hello(b"\x16\x03\x01\xff\xff\x01"), NO_HELLO);
        assert_eq!(client_hello(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), NO_HELLO);
    }
}
