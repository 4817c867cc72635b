//! A Unix socket connection whose HTTP/2 `:authority` cannot offend.
//!
//! gRPC's C core (so Python, C++, Ruby and others) and Java send the percent-encoded or plain path of the socket as
//! `:authority`, which is no authority, and strict HTTP/2 servers reset such a stream. On a Unix socket the name means
//! nothing, so what does not belong into a host name is replaced, byte for byte, before the server sees it. Lengths stay
//! the same, so neither frames nor header compression notice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

/// An accepted connection on a Unix socket.
#[derive(Debug)]
pub struct LocalStream {
    stream: UnixStream,
    scan: Scan,
}

impl LocalStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, scan: Scan::default() }
    }

    /// The process at the other end, as the kernel knew it when it connected.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn peer(&self) -> io::Result<UCred> {
        self.stream.peer_cred()
    }
}

impl AsFd for LocalStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled {
            self.scan.mend(&mut buf.filled_mut()[before..]);
        }
        polled
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
}

/// Where in the client's bytes we are (RFC 9113 frames, RFC 7541 header blocks). Whatever it does not understand it
/// leaves alone: the server judges.
#[derive(Debug, Default)]
struct Scan {
    at: Frame,
    /// Bytes of the preface or frame head seen so far.
    head: [u8; FRAME_HEAD],
    seen: usize,
    block: Block,
}

#[derive(Clone, Copy, Debug, Default)]
enum Frame {
    #[default]
    Preface,
    Head,
    /// The pad length of a HEADERS frame: what follows it, and how much of that is priority.
    PadLength {
        left: usize,
        priority: usize,
    },
    /// Bytes to pass over, then a header block and its padding.
    Skip {
        left: usize,
        then_block: usize,
        padding: usize,
    },
    Block {
        left: usize,
        padding: usize,
    },
    /// Not HTTP/2.
    Foreign,
}

/// Where in a header block we are.
#[derive(Clone, Copy, Debug, Default)]
enum Block {
    #[default]
    Field,
    /// An integer that goes on: whether a string or another field follows it, and whether it decides on the authority.
    Index {
        literal: bool,
    },
    NameLength,
    NameLengthMore(Long),
    Name {
        left: usize,
        matched: Option<usize>,
    },
    ValueLength {
        authority: bool,
    },
    ValueLengthMore {
        authority: bool,
        long: Long,
    },
    Value {
        left: usize,
        mend: bool,
    },
    /// Not understood, or not possible.
    Lost,
}

/// A string length that did not fit into its first byte.
#[derive(Clone, Copy, Debug)]
struct Long {
    value: usize,
    shift: u32,
    huffman: bool,
}

impl Scan {
    fn mend(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes).clamp(1, bytes.len());
            bytes = &mut bytes[used..];
        }
    }

    /// Takes a part of `bytes`; answers how many.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match self.at {
            Frame::Foreign => bytes.len(),
            Frame::Preface => {
                let good = bytes[0] == PREFACE[self.seen];
                self.seen += 1;
                if !good {
                    self.at = Frame::Foreign;
                } else if self.seen == PREFACE.len() {
                    (self.at, self.seen) = (Frame::Head, 0);
                }
                1
            }
            Frame::Head => {
                self.head[self.seen] = bytes[0];
                self.seen += 1;
                if self.seen == FRAME_HEAD {
                    self.seen = 0;
                    self.begin_payload();
                }
                1
            }
            Frame::PadLength { left, priority } => {
                let padding = usize::from(bytes[0]);
                match left.checked_sub(priority + padding) {
                    Some(block) => self.skip(priority, block, padding),
                    None => self.at = Frame::Foreign,
                }
                1
            }
            Frame::Skip { left, then_block, padding } => {
                let used = left.min(bytes.len());
                self.skip(left - used, then_block, padding);
                used
            }
            Frame::Block { left, padding } => {
                let used = left.min(bytes.len());
                self.block.mend(&mut bytes[..used]);
                self.enter_block(left - used, padding);
                used
            }
        }
    }

    fn begin_payload(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        let left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == HEADERS {
            self.block = Block::Field;
            let priority = if flags & FLAG_PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
            match (flags & FLAG_PADDED == 0, left.checked_sub(priority)) {
                (true, Some(block)) => self.skip(priority, block, 0),
                (false, Some(_)) if left > 0 => self.at = Frame::PadLength { left: left - 1, priority },
                _ => self.at = Frame::Foreign,
            }
        } else if kind == CONTINUATION {
            self.enter_block(left, 0);
        } else {
            self.skip(left, 0, 0);
        }
    }

    fn skip(&mut self, left: usize, then_block: usize, padding: usize) {
        if left > 0 {
            self.at = Frame::Skip { left, then_block, padding };
        } else {
            self.enter_block(then_block, padding);
        }
    }

    fn enter_block(&mut self, left: usize, padding: usize) {
        self.at = match (left, padding) {
            (0, 0) => Frame::Head,
            (0, padding) => Frame::Skip { left: padding, then_block: 0, padding: 0 },
            (left, padding) => Frame::Block { left, padding },
        };
    }
}

impl Block {
    fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *self = self.next(byte);
        }
    }

    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Field => Self::begin_field(*byte),
            Self::Index { .. } if *byte & 0x80 != 0 => self,
            Self::Index { literal: false } => Self::Field,
            // An index this large names no static field, so not the authority.
            Self::Index { literal: true } => Self::ValueLength { authority: false },
            Self::NameLength => match *byte & 0x7f {
                0x7f => Self::NameLengthMore(Long { value: 0x7f, shift: 0, huffman: *byte & 0x80 != 0 }),
                left => Self::begin_name(usize::from(left), *byte & 0x80 != 0),
            },
            Self::NameLengthMore(long) => match long.add(*byte) {
                Some((long, true)) => Self::NameLengthMore(long),
                Some((long, false)) => Self::begin_name(long.value, long.huffman),
                None => Self::Lost,
            },
            Self::Name { left, matched } => {
                let matched = matched.filter(|at| AUTHORITY.get(*at) == Some(byte)).map(|at| at + 1);
                match left - 1 {
                    0 => Self::ValueLength { authority: matched == Some(AUTHORITY.len()) },
                    left => Self::Name { left, matched },
                }
            }
            Self::ValueLength { authority } => match *byte & 0x7f {
                0x7f => {
                    let long = Long { value: 0x7f, shift: 0, huffman: *byte & 0x80 != 0 };
                    Self::ValueLengthMore { authority, long }
                }
                left => Self::begin_value(usize::from(left), authority && *byte & 0x80 == 0),
            },
            Self::ValueLengthMore { authority, long } => match long.add(*byte) {
                Some((long, true)) => Self::ValueLengthMore { authority, long },
                Some((long, false)) => Self::begin_value(long.value, authority && !long.huffman),
                None => Self::Lost,
            },
            Self::Value { left, mend } => {
                if mend && !byte.is_ascii_alphanumeric() && !b".-".contains(byte) {
                    *byte = b'-';
                }
                Self::begin_value(left - 1, mend)
            }
            Self::Lost => Self::Lost,
        }
    }

    /// The first byte of a field: its kind and the start of its index.
    fn begin_field(byte: u8) -> Self {
        let (literal, mask) = match byte {
            0x80.. => (false, 0x7f),
            0x40.. => (true, 0x3f),
            0x20.. => (false, 0x1f),
            _ => (true, 0x0f),
        };
        match (literal, byte & mask) {
            (_, index) if index == mask => Self::Index { literal },
            (false, _) => Self::Field,
            (true, 0) => Self::NameLength,
            (true, index) => Self::ValueLength { authority: index == AUTHORITY_INDEX },
        }
    }

    fn begin_name(left: usize, huffman: bool) -> Self {
        match left {
            0 => Self::ValueLength { authority: false },
            left => Self::Name { left, matched: (!huffman).then_some(0) },
        }
    }

    fn begin_value(left: usize, mend: bool) -> Self {
        if left == 0 { Self::Field } else { Self::Value { left, mend } }
    }
}

impl Long {
    /// Adds the next seven bits; whether more follow. `None` when the length is absurd.
    fn add(mut self, byte: u8) -> Option<(Self, bool)> {
        if self.shift > LENGTH_SHIFT_MAX {
            return None;
        }
        self.value += usize::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        Some((self, byte & 0x80 != 0))
    }
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
const AUTHORITY: &[u8] = b":authority";
/// In the static table of header compression.
const AUTHORITY_INDEX: u8 = 1;
/// A string length of more than 28 bits is no header.
const LENGTH_SHIFT_MAX: u32 = 21;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn client(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frames.concat()].concat()
    }

    /// A literal with the static name `:authority`, as gRPC's C core writes it.
    fn authority(value: &str) -> Vec<u8> {
        [&[0x41, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat()
    }

    /// However the bytes arrive, the result is the same.
    fn mended(bytes: &[u8]) -> Vec<u8> {
        let mut whole = bytes.to_vec();
        Scan::default().mend(&mut whole);
        for size in [1, 2, 3, 7, 64] {
            let (mut pieces, mut scan) = (bytes.to_vec(), Scan::default());
            pieces.chunks_mut(size).for_each(|piece| scan.mend(piece));
            assert_eq!(pieces, whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn a_socket_path_becomes_a_host_name_of_the_same_length() {
        let field = |value: &str| [&[0x83, 0x86][..], &authority(value), &[0x44, 2, b'/', b'%']].concat();
        for (sent, seen) in [
            ("tmp%2Frun%2Fagent.sock", "tmp-2Frun-2Fagent.sock"),
            ("/run/a_b:c.sock", "-run-a-b-c.sock"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            let settings = frame(4, 0, &[0; 6]);
            let sent = client(&[settings.clone(), frame(HEADERS, 4, &field(sent))]);
            assert_eq!(mended(&sent), client(&[settings, frame(HEADERS, 4, &field(seen))]));
        }
    }

    #[test]
    fn padding_priority_and_continuation_are_understood() {
        let block = |value: &str| authority(value);
        let padded = |value: &str| [&[3, 9, 9, 9, 9, 9][..], &block(value), b"%%%"].concat();
        let sent = client(&[frame(HEADERS, 4 | FLAG_PADDED | FLAG_PRIORITY, &padded("a%b"))]);
        assert_eq!(mended(&sent), client(&[frame(HEADERS, 4 | FLAG_PADDED | FLAG_PRIORITY, &padded("a-b"))]));
        let split = |value: &str| {
            let block = block(value);
            client(&[frame(HEADERS, 0, &block[..4]), frame(CONTINUATION, 4, &block[4..])])
        };
        assert_eq!(mended(&split("a%b%c")), split("a-b-c"));
    }

    #[test]
    fn a_spelled_out_name_is_recognized_and_others_are_left_alone() {
        let named = |name: &str, value: &str| {
            let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            client(&[frame(HEADERS, 4, &[&[0x00][..], &string(name), &string(value)].concat())])
        };
        assert_eq!(mended(&named(":authority", "a%b")), named(":authority", "a-b"));
        for name in [":authorit", ":authorityy", "x-authority", "", ":path"] {
            assert_eq!(mended(&named(name, "a%b")), named(name, "a%b"), "{name}");
        }
    }

    #[test]
    fn long_values_compressed_values_and_data_are_left_alone() {
        let long = "%".repeat(300);
        let header = [&[0x50, 0x7f, 0xad, 0x01][..], long.as_bytes(), &authority("a%")].concat();
        let seen = [&[0x50, 0x7f, 0xad, 0x01][..], long.as_bytes(), &authority("a-")].concat();
        assert_eq!(mended(&client(&[frame(HEADERS, 4, &header)])), client(&[frame(HEADERS, 4, &seen)]));
        let compressed = client(&[frame(HEADERS, 4, &[0x41, 0x82, b'%', b'/']), frame(0, 1, &authority("a%"))]);
        assert_eq!(mended(&compressed), compressed);
    }

    #[test]
    fn http1_and_nonsense_pass_unchanged() {
        for bytes in [&b"GET /a%2F HTTP/1.1\r\nhost: a%b\r\n\r\n"[..], b"PRI * HTTP/2.1", b""] {
            assert_eq!(mended(bytes), bytes);
        }
        let absurd = client(&[frame(HEADERS, 4, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, b'%'])]);
        assert_eq!(mended(&absurd), absurd);
        let short = client(&[frame(HEADERS, 4 | FLAG_PADDED, &[9, b'%'])]);
        assert_eq!(mended(&short), short);
    }
}
