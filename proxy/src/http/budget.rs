//! A budget for the frames of an HTTP/2 peer that cost us work and carry nothing.
//!
//! The h2 crate bounds resets, empty data and CONTINUATION; PING, SETTINGS and PRIORITY are left. This wrapper
//! follows frame boundaries of what is read and counts those three; a peer that spends more than the budget loses
//! its connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A stream whose incoming HTTP/2 frames are counted.
#[derive(Debug)]
pub(crate) struct Budgeted<S> {
    stream: S,
    frames: Frames,
}

#[derive(Debug)]
struct Frames {
    header: [u8; 9],
    have: usize,
    /// Bytes of the preface or of a payload still to pass.
    skip: usize,
    tokens: u32,
    filled: Option<Instant>,
}

impl<S> Budgeted<S> {
    pub(crate) fn new(stream: S) -> Self {
        let frames = Frames { header: [0; 9], have: 0, skip: PREFACE_BYTES, tokens: FRAMES_BURST_MAX, filled: None };
        Self { stream, frames }
    }
}

impl Frames {
    /// Follows `bytes`; false when the budget is spent.
    fn admit(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return true;
            }
            let taken = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < self.header.len() {
                return true;
            }
            self.have = 0;
            self.skip =
                usize::from(self.header[0]) << 16 | usize::from(self.header[1]) << 8 | usize::from(self.header[2]);
            if matches!(self.header[3], PRIORITY | SETTINGS | PING) && !self.spend() {
                return false;
            }
        }
    }

    fn spend(&mut self) -> bool {
        if self.tokens == 0 {
            let now = Instant::now();
            let since = self.filled.map_or(REFILL_SECS_MAX, |filled| now.duration_since(filled).as_secs());
            if since == 0 {
                return false;
            }
            self.tokens =
                FRAMES_PER_SEC_MAX.saturating_mul(u32::try_from(since).unwrap_or(u32::MAX)).min(FRAMES_BURST_MAX);
            self.filled = Some(now);
        } else if self.tokens == FRAMES_BURST_MAX && self.filled.is_none() {
            self.filled = Some(Instant::now());
        }
        self.tokens -= 1;
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Budgeted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.frames.admit(&buf.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many control frames")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Budgeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const PREFACE_BYTES: usize = 24;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Control frames that may come at once.
const FRAMES_BURST_MAX: u32 = 20_000;
/// Control frames per second once the burst is spent.
const FRAMES_PER_SEC_MAX: u32 = 10_000;
const REFILL_SECS_MAX: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, 0, 0, 0, 0, 1];
        bytes.resize(9 + payload, 0);
        bytes
    }

    fn fresh() -> Frames {
        let mut frames = Budgeted::new(()).frames;
        assert!(frames.admit(&[b'P'; PREFACE_BYTES]));
        frames
    }

    #[test]
    fn data_is_free_and_pings_are_not() {
        let mut frames = fresh();
        for _ in 0..FRAMES_BURST_MAX * 2 {
            assert!(frames.admit(&frame(0, 10)));
        }
        let spent = (0..FRAMES_BURST_MAX * 2).find(|_| !frames.admit(&frame(PING, 8))).unwrap();
        assert!(spent >= FRAMES_BURST_MAX, "{spent}");
    }

    #[test]
    fn frames_in_pieces_are_counted_once() {
        let mut frames = fresh();
        for byte in frame(PING, 8).iter().chain(&frame(0, 300)).chain(&frame(PING, 8)) {
            assert!(frames.admit(&[*byte]));
        }
        assert_eq!(frames.tokens, FRAMES_BURST_MAX - 2);
    }
}
