//! What goes to the client, in the order it was written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncWrite;

use super::frame::{self, Code, PAYLOAD_MAX, WINDOW};
use super::hpack;

/// Bytes that wait for the socket, and what the client lets us send.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    /// Of the whole connection.
    pub(super) window: i64,
    /// The client wants a smaller table than the standard's, and has not read that ours is empty.
    pub(super) owes_no_table: bool,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), written: 0, window: WINDOW, owes_no_table: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the client should read before it gets more.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() - self.written >= BYTES_MAX
    }

    /// Writes all to `socket`. Says by `Err` that the client is gone, by `has_moved` that it has taken something.
    pub(super) fn poll_flush(
        &mut self,
        mut socket: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
        has_moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match socket.as_mut().poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => self.written += written,
                Poll::Pending => {
                    // A client that reads slowly, but reads, must not make this grow.
                    self.bytes.drain(..std::mem::take(&mut self.written));
                    return Poll::Pending;
                }
            }
            *has_moved = true;
        }
        // A connection at rest holds no memory for it.
        (self.bytes, self.written) = (Vec::new(), 0);
        socket.poll_flush(cx)
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::put(&mut self.bytes, kind, flags, stream, payload);
    }

    pub(super) fn settings(&mut self, settings: &[(u16, u32)]) {
        let each = settings.iter().map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
        self.frame(frame::SETTINGS, 0, 0, &each.collect::<Vec<_>>().concat());
    }

    pub(super) fn reset(&mut self, stream: u32, code: Code) {
        self.frame(frame::RST_STREAM, 0, stream, &(code as u32).to_be_bytes());
    }

    pub(super) fn go_away(&mut self, last: u32, code: Code) {
        self.frame(frame::GOAWAY, 0, 0, &[last.to_be_bytes(), (code as u32).to_be_bytes()].concat());
    }

    /// Lets the client send so much more; stream 0 is the connection.
    pub(super) fn window_update(&mut self, stream: u32, bytes: usize) {
        if let Ok(bytes @ 1..) = u32::try_from(bytes) {
            self.frame(frame::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
        }
    }

    pub(super) fn head(&mut self, stream: u32, status: StatusCode, headers: &HeaderMap, is_all: bool) {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        if std::mem::take(&mut self.owes_no_table) {
            hpack::put_no_table(&mut block);
        }
        hpack::put_status(&mut block, status);
        self.block(stream, block, headers, is_all);
    }

    pub(super) fn trailers(&mut self, stream: u32, trailers: &HeaderMap) {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        if std::mem::take(&mut self.owes_no_table) {
            hpack::put_no_table(&mut block);
        }
        self.block(stream, block, trailers, true);
    }

    fn block(&mut self, stream: u32, mut block: Vec<u8>, headers: &HeaderMap, is_last: bool) {
        for (name, value) in headers {
            hpack::put_field(&mut block, name.as_str().as_bytes(), value.as_bytes());
        }
        let mut parts = block.chunks(PAYLOAD_MAX).peekable();
        let mut kind = frame::HEADERS;
        let mut flags = if is_last { frame::END_STREAM } else { 0 };
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= frame::END_HEADERS;
            }
            self.frame(kind, flags, stream, part);
            (kind, flags) = (frame::CONTINUATION, 0);
        }
    }

    /// Writes as much of `data` as the client takes.
    pub(super) fn data(&mut self, stream: u32, data: &mut Bytes, window: &mut i64, is_last: bool) {
        while !data.is_empty() && !self.is_full() {
            let room = usize::try_from(self.window.min(*window)).unwrap_or(0);
            let length = data.len().min(room).min(PAYLOAD_MAX);
            if length == 0 {
                return;
            }
            let flags = if is_last && length == data.len() { frame::END_STREAM } else { 0 };
            self.frame(frame::DATA, flags, stream, &data[..length]);
            data.advance(length);
            let length = i64::try_from(length).unwrap_or_default();
            (self.window, *window) = (self.window - length, *window - length);
        }
        if data.is_empty() {
            // What it was cut from is not kept.
            *data = Bytes::new();
        }
    }

    /// Ends a response that has no trailers.
    pub(super) fn end(&mut self, stream: u32) {
        self.frame(frame::DATA, frame::END_STREAM, stream, &[]);
    }
}

/// What may wait for a client to read it.
const BYTES_MAX: usize = 32 << 10;
/// Room for the header block of a usual answer.
const BLOCK_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes a little, and then wants to be asked again.
    struct Slow {
        is_ready: bool,
        taken: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.is_ready = !self.is_ready;
            if !self.is_ready {
                return Poll::Pending;
            }
            let taken = bytes.len().min(1_000);
            self.taken += taken;
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_slow_reader_does_not_make_it_grow() {
        let (mut out, mut slow) = (Outgoing::new(), Slow { is_ready: false, taken: 0 });
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut window = 10_000_000;
        out.window = window;
        let (mut data, mut has_moved) = (Bytes::from(vec![0; 2_000_000]), false);
        while slow.taken < 1_500_000 {
            out.data(1, &mut data, &mut window, false);
            assert!(out.poll_flush(Pin::new(&mut slow), &mut cx, &mut has_moved).is_pending());
            assert!(out.bytes.len() <= BYTES_MAX + PAYLOAD_MAX + 100, "{}", out.bytes.len());
        }
    }

    #[test]
    fn a_head_longer_than_a_frame_goes_on_in_another() {
        let mut out = Outgoing::new();
        let mut headers = HeaderMap::new();
        for name in ["a", "b", "c"] {
            headers.insert(name, "x".repeat(8_000).parse().unwrap());
        }
        out.head(7, StatusCode::OK, &headers, true);
        let first = frame::Head::read(&out.bytes).unwrap();
        assert_eq!((first.kind, first.flags, first.length), (frame::HEADERS, frame::END_STREAM, PAYLOAD_MAX));
        let second = frame::Head::read(&out.bytes[frame::HEAD_BYTES + PAYLOAD_MAX..]).unwrap();
        assert_eq!((second.kind, second.flags, second.stream), (frame::CONTINUATION, frame::END_HEADERS, 7));
        assert_eq!(out.bytes.len(), 2 * frame::HEAD_BYTES + first.length + second.length);
    }
}
