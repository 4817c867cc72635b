//! What a connection speaks, told from its first bytes.
//!
//! Looking never consumes: bytes are peeked first, and what had to be read because one peek was not enough is
//! handed on as a prefix. Everything is bounded by [`SNIFF_BYTES_MAX`] and by the caller's deadline.

pub(crate) mod http;
pub(crate) mod tls;

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use self::http::HttpKind;
use self::tls::ClientHello;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// A TLS client greeting.
    Tls(ClientHello),
    /// Plain HTTP of this kind.
    Http(HttpKind),
    /// Neither.
    Opaque,
}

/// How far a look at the bytes so far has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// Known.
    Known(T),
    /// The bytes so far fit several answers.
    More,
}

/// Looks at the beginning of `socket`. Answers what it is and the bytes that were consumed on the way.
///
/// # Errors
/// When the peer closes or resets before anything is known.
pub(crate) async fn sniff_tcp(socket: &mut TcpStream) -> io::Result<(Sniffed, Bytes)> {
    let mut first = [0_u8; PEEK_BYTES];
    let seen = socket.peek(&mut first).await?;
    if seen == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match first_bytes(&first[..seen]) {
        Verdict::Known(known) => Ok((known, Bytes::new())),
        Verdict::More => read_until(socket, first_bytes, || Sniffed::Opaque).await,
    }
}

/// Looks at the beginning of a stream that cannot be peeked (inside TLS).
///
/// # Errors
/// When the peer closes or resets before anything is known.
pub(crate) async fn sniff_http<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<(HttpKind, Bytes)> {
    read_until(stream, http::kind, || HttpKind::Other).await
}

/// Decides over the first bytes of a plain connection.
fn first_bytes(bytes: &[u8]) -> Verdict<Sniffed> {
    match bytes.first() {
        None => Verdict::More,
        Some(&tls::HANDSHAKE_RECORD) => match tls::client_hello(bytes) {
            Verdict::Known(Some(hello)) => Verdict::Known(Sniffed::Tls(hello)),
            Verdict::Known(None) => Verdict::Known(Sniffed::Opaque),
            Verdict::More => Verdict::More,
        },
        Some(_) => match http::kind(bytes) {
            Verdict::Known(HttpKind::Other) => Verdict::Known(Sniffed::Opaque),
            Verdict::Known(kind) => Verdict::Known(Sniffed::Http(kind)),
            Verdict::More => Verdict::More,
        },
    }
}

async fn read_until<R: AsyncRead + Unpin, T>(
    stream: &mut R,
    decide: fn(&[u8]) -> Verdict<T>,
    give_up: fn() -> T,
) -> io::Result<(T, Bytes)> {
    let mut prefix = BytesMut::with_capacity(PEEK_BYTES);
    loop {
        if stream.read_buf(&mut prefix).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Verdict::Known(known) = decide(&prefix) {
            return Ok((known, prefix.freeze()));
        }
        if prefix.len() >= SNIFF_BYTES_MAX {
            return Ok((give_up(), prefix.freeze()));
        }
    }
}

/// A hello with a post-quantum share is 1.2 to 1.8 KiB: one peek must hold it.
const PEEK_BYTES: usize = 2048;
/// The most bytes that are looked at before a connection is called opaque.
pub(crate) const SNIFF_BYTES_MAX: usize = 18 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn sniffed(parts: &[&[u8]]) -> (io::Result<(Sniffed, Bytes)>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let feed = async {
            for part in parts {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            client.shutdown().await.unwrap();
        };
        let (found, ()) = tokio::join!(sniff_tcp(&mut server), feed);
        let mut rest = Vec::new();
        if let Ok((_, prefix)) = &found {
            rest.extend_from_slice(prefix);
        }
        server.read_to_end(&mut rest).await.unwrap();
        (found, rest)
    }

    #[tokio::test]
    async fn plain_http_is_told_apart_and_no_byte_is_lost() {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".as_slice();
        let (found, rest) = sniffed(&[request]).await;
        assert_eq!(found.unwrap(), (Sniffed::Http(HttpKind::Http1), Bytes::new()));
        assert_eq!(rest, request);
    }

    #[tokio::test]
    async fn a_preface_in_single_bytes_is_still_http2() {
        let bytes: Vec<&[u8]> = http::PREFACE.chunks(1).collect();
        let (found, rest) = sniffed(&bytes).await;
        assert_eq!(found.unwrap().0, Sniffed::Http(HttpKind::Http2));
        assert_eq!(rest, http::PREFACE);
    }

    #[tokio::test]
    async fn unknown_bytes_are_opaque_and_silence_is_an_error() {
        let (found, rest) = sniffed(&[b"\x00\x01binary"]).await;
        assert_eq!(found.unwrap().0, Sniffed::Opaque);
        assert_eq!(rest, b"\x00\x01binary");
        assert!(sniffed(&[]).await.0.is_err());
    }
}
