//! The one stream type of the data path: plain or TLS, either end, with bytes that sniffing had to read in front.
//!
//! One enum instead of generics keeps hyper and h2 compiled once each.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::upstream::live::Leash;

/// A socket whose first bytes may have been read already.
#[derive(Debug)]
pub(crate) struct Socket {
    prefix: Bytes,
    tcp: TcpStream,
}

/// A connection, either side.
#[derive(Debug)]
pub(crate) enum Io {
    /// Bare TCP.
    Plain(Socket),
    /// TLS that we accepted.
    Accepted(Box<tokio_rustls::server::TlsStream<Socket>>, Bytes),
    /// TLS that we opened, and what cuts it when the peer is revoked.
    Opened(Box<tokio_rustls::client::TlsStream<Socket>>, Option<Arc<Leash>>),
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream, prefix: Bytes) -> Self {
        Self { prefix, tcp }
    }
}

impl Io {
    /// Puts bytes that were read for sniffing back in front.
    pub(crate) fn unread(self, bytes: Bytes) -> Self {
        match self {
            Self::Accepted(tls, _) => Self::Accepted(tls, bytes),
            Self::Plain(socket) => Self::Plain(Socket { prefix: bytes, ..socket }),
            Self::Opened(tls, leash) => Self::Opened(tls, leash),
        }
    }
}

fn take_prefix(prefix: &mut Bytes, buf: &mut ReadBuf<'_>) -> bool {
    if prefix.is_empty() {
        return false;
    }
    let count = prefix.len().min(buf.remaining());
    buf.put_slice(&prefix[..count]);
    prefix.advance(count);
    true
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if take_prefix(&mut self.prefix, buf) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Accepted(io, prefix) => {
                if take_prefix(prefix, buf) {
                    return Poll::Ready(Ok(()));
                }
                Pin::new(io).poll_read(cx, buf)
            }
            Self::Opened(io, None) => Pin::new(io).poll_read(cx, buf),
            Self::Opened(io, Some(leash)) => {
                leash.check()?;
                let read = Pin::new(io).poll_read(cx, buf);
                if read.is_pending() {
                    leash.wait(cx);
                    // It may have been cut in between.
                    leash.check()?;
                }
                read
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Accepted(io, _) => Pin::new(io).poll_write(cx, buf),
            Self::Opened(io, leash) => {
                leash.as_ref().map_or(Ok(()), |leash| leash.check())?;
                Pin::new(io).poll_write(cx, buf)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Accepted(io, _) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Opened(io, leash) => {
                leash.as_ref().map_or(Ok(()), |leash| leash.check())?;
                Pin::new(io).poll_write_vectored(cx, bufs)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Accepted(io, _) => io.is_write_vectored(),
            Self::Opened(io, _) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Accepted(io, _) => Pin::new(io).poll_flush(cx),
            Self::Opened(io, _) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Accepted(io, _) => Pin::new(io).poll_shutdown(cx),
            Self::Opened(io, _) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
