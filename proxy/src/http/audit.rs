//! A second, strict reader of HTTP/1 requests in front of hyper's.
//!
//! Request smuggling lives where two parsers disagree. This one follows message boundaries by itself and admits
//! only what RFC 9112 calls valid without any leniency: no bare LF or CR, no folded lines, no NUL, one `Host`, one
//! `Content-Length` of plain digits, `Transfer-Encoding` exactly `chunked` and never beside a length. At the first
//! offence the offending byte becomes a NUL, which makes hyper answer 400, and the connection reads no further.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose requests are audited.
#[derive(Debug)]
pub(crate) struct Audited<S> {
    stream: S,
    auditor: Auditor,
    gate: Arc<Gate>,
    spoiled: bool,
}

/// What the two ends of an audited connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The connection became a tunnel: bytes are no requests any more.
    tunnel: AtomicBool,
    /// A request was malformed.
    offended: AtomicBool,
    /// How many heads have begun, and whether the last is unfinished.
    heads: AtomicU32,
    in_head: AtomicBool,
}

impl Gate {
    /// From here on the bytes belong to another protocol.
    pub(crate) fn open_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
    }

    /// The number of the head that has begun and not ended, if there is one.
    pub(crate) fn unfinished_head(&self) -> Option<u32> {
        self.in_head.load(Ordering::Relaxed).then(|| self.heads.load(Ordering::Relaxed))
    }

    /// Whether a malformed request was seen.
    pub(crate) fn offended(&self) -> bool {
        self.offended.load(Ordering::Relaxed)
    }
}

impl<S> Audited<S> {
    pub(crate) fn new(stream: S) -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Self { stream, auditor: Auditor::default(), gate: gate.clone(), spoiled: false }, gate)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Audited<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.spoiled {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.gate.tunnel.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if let Err((at, offence)) = this.auditor.admit(&buf.filled()[before..]) {
            tracing::debug!(?offence, "malformed request");
            buf.filled_mut()[before + at] = 0;
            buf.set_filled(before + at + 1);
            this.spoiled = true;
            this.gate.offended.store(true, Ordering::Relaxed);
        }
        this.gate.heads.store(this.auditor.heads, Ordering::Relaxed);
        this.gate.in_head.store(this.auditor.is_in_head(), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Audited<S> {
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

/// What was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offence {
    RequestLine,
    LineEnd,
    HeaderName,
    HeaderValue,
    Folded,
    Host,
    ContentLength,
    TransferEncoding,
    LengthAndCoding,
    ChunkSize,
    ChunkEnd,
    ChunkExtension,
    Trailer,
}

/// Where in a message the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    /// LF of an empty line before the request line.
    StartLf,
    RequestLine,
    RequestLineLf,
    LineStart,
    Name,
    /// Blanks between colon and value.
    Blank,
    Value,
    ValueLf,
    HeadLf,
    Body(u64),
    ChunkSize,
    ChunkExtension,
    ChunkSizeLf,
    Chunk(u64),
    ChunkCr,
    ChunkLf,
}

/// The headers that frame a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Framing {
    #[default]
    None,
    Host,
    Length,
    Coding,
}

#[derive(Debug, Default)]
struct Auditor {
    at: At,
    name: Kept<20>,
    value: Kept<24>,
    framing: Framing,
    line: Kept<9>,
    line_spaces: u8,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
    in_trailers: bool,
    empty_lines: u8,
    chunk: u64,
    chunk_digits: u8,
    extension_bytes: u32,
    heads: u32,
}

impl Auditor {
    fn is_in_head(&self) -> bool {
        !matches!(self.at, At::Start | At::Body(_) | At::Chunk(_) | At::ChunkSize | At::ChunkCr | At::ChunkLf)
    }

    /// Follows `bytes`; the position of the first offence otherwise.
    fn admit(&mut self, bytes: &[u8]) -> Result<(), (usize, Offence)> {
        let mut at = 0;
        while at < bytes.len() {
            match self.at {
                At::Body(left) | At::Chunk(left) => {
                    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    self.skip(left - skipped as u64);
                    at += skipped;
                }
                At::Value if self.framing == Framing::None => {
                    at += self.run_of_value(&bytes[at..]).map_err(|(n, o)| (at + n, o))?;
                }
                _ => {
                    self.step(bytes[at]).map_err(|offence| (at, offence))?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, left: u64) {
        self.at = match self.at {
            At::Chunk(_) if left == 0 => At::ChunkCr,
            At::Chunk(_) => At::Chunk(left),
            _ if left == 0 => At::Start,
            _ => At::Body(left),
        };
    }

    /// The fast way through the value of a header that does not frame anything.
    fn run_of_value(&mut self, bytes: &[u8]) -> Result<usize, (usize, Offence)> {
        match bytes.iter().position(|byte| !is_value(*byte)) {
            None => Ok(bytes.len()),
            Some(end) if bytes[end] == b'\r' => {
                self.at = At::ValueLf;
                Ok(end + 1)
            }
            Some(end) => Err((end, Offence::HeaderValue)),
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), Offence> {
        self.at = match (self.at, byte) {
            (At::Start, b'\r') if self.empty_lines == 0 => At::StartLf,
            (At::StartLf, b'\n') => {
                self.empty_lines = 1;
                At::Start
            }
            (At::Start, _) => {
                *self = Self { at: At::Start, heads: self.heads.wrapping_add(1), ..Self::default() };
                self.request_line(byte)?
            }
            (At::RequestLine, b'\r') => {
                self.end_request_line()?;
                At::RequestLineLf
            }
            (At::RequestLine, _) => self.request_line(byte)?,
            (At::RequestLineLf | At::ValueLf, b'\n') => At::LineStart,
            (At::LineStart, b'\r') => At::HeadLf,
            (At::LineStart, b' ' | b'\t') => return Err(Offence::Folded),
            (At::LineStart, _) => {
                self.name.clear();
                self.name_byte(byte)?
            }
            (At::Name, b':') => {
                self.framing = self.framing_of_name()?;
                self.value.clear();
                At::Blank
            }
            (At::Name, _) => self.name_byte(byte)?,
            (At::Blank, b' ' | b'\t') => At::Blank,
            (At::Blank | At::Value, b'\r') => {
                self.end_header()?;
                At::ValueLf
            }
            (At::Blank | At::Value, byte) if is_value(byte) => {
                self.value.push(byte);
                At::Value
            }
            (At::Blank | At::Value, _) => return Err(Offence::HeaderValue),
            (At::HeadLf, b'\n') => self.end_head()?,
            (At::ChunkSize, _) => self.chunk_size(byte)?,
            (At::ChunkExtension, _) => self.chunk_extension(byte)?,
            (At::ChunkSizeLf, b'\n') => self.begin_chunk(),
            (At::ChunkCr, b'\r') => At::ChunkLf,
            (At::ChunkLf, b'\n') => self.next_chunk(),
            (At::ChunkCr | At::ChunkLf, _) => return Err(Offence::ChunkEnd),
            _ => return Err(Offence::LineEnd),
        };
        Ok(())
    }

    fn request_line(&mut self, byte: u8) -> Result<At, Offence> {
        match byte {
            b' ' => {
                self.line_spaces = self.line_spaces.saturating_add(1);
                self.line.clear();
            }
            b'#' | b'\\' if self.line_spaces == 1 => return Err(Offence::RequestLine),
            0x21..=0x7e => self.line.push(byte),
            _ => return Err(Offence::RequestLine),
        }
        Ok(At::RequestLine)
    }

    fn end_request_line(&self) -> Result<(), Offence> {
        let known = matches!(self.line.bytes(), Some(b"HTTP/1.1" | b"HTTP/1.0"));
        if known && self.line_spaces == 2 { Ok(()) } else { Err(Offence::RequestLine) }
    }

    fn is_http10(&self) -> bool {
        self.line.bytes() == Some(b"HTTP/1.0")
    }

    fn name_byte(&mut self, byte: u8) -> Result<At, Offence> {
        if !is_token(byte) {
            return Err(Offence::HeaderName);
        }
        self.name.push(byte.to_ascii_lowercase());
        Ok(At::Name)
    }

    fn framing_of_name(&self) -> Result<Framing, Offence> {
        let framing = match self.name.bytes() {
            Some(b"host") => Framing::Host,
            Some(b"content-length") => Framing::Length,
            Some(b"transfer-encoding") => Framing::Coding,
            _ => Framing::None,
        };
        if self.in_trailers && framing != Framing::None { Err(Offence::Trailer) } else { Ok(framing) }
    }

    fn end_header(&mut self) -> Result<(), Offence> {
        match self.framing {
            Framing::None => {}
            Framing::Host => self.hosts = self.hosts.saturating_add(1),
            Framing::Length => {
                let value = self.value.bytes().map(<[u8]>::trim_ascii_end).ok_or(Offence::ContentLength)?;
                let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
                if !digits || self.length.is_some() {
                    return Err(Offence::ContentLength);
                }
                self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
            }
            Framing::Coding => {
                let value = self.value.bytes().map(<[u8]>::trim_ascii_end).ok_or(Offence::TransferEncoding)?;
                if !value.eq_ignore_ascii_case(b"chunked") || self.chunked || self.is_http10() {
                    return Err(Offence::TransferEncoding);
                }
                self.chunked = true;
            }
        }
        if self.chunked && self.length.is_some() { Err(Offence::LengthAndCoding) } else { Ok(()) }
    }

    fn end_head(&mut self) -> Result<At, Offence> {
        if self.in_trailers {
            return Ok(At::Start);
        }
        if self.hosts > 1 || (self.hosts == 0 && !self.is_http10()) {
            return Err(Offence::Host);
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => self.next_chunk(),
            (false, Some(length)) if length > 0 => At::Body(length),
            _ => At::Start,
        })
    }

    fn next_chunk(&mut self) -> At {
        (self.chunk, self.chunk_digits) = (0, 0);
        At::ChunkSize
    }

    fn chunk_size(&mut self, byte: u8) -> Result<At, Offence> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b';' if self.chunk_digits > 0 => return Ok(At::ChunkExtension),
            b'\r' if self.chunk_digits > 0 => return Ok(At::ChunkSizeLf),
            _ => return Err(Offence::ChunkSize),
        };
        if self.chunk_digits == CHUNK_DIGITS_MAX {
            return Err(Offence::ChunkSize);
        }
        self.chunk_digits += 1;
        self.chunk = self.chunk << 4 | u64::from(digit);
        Ok(At::ChunkSize)
    }

    fn chunk_extension(&mut self, byte: u8) -> Result<At, Offence> {
        self.extension_bytes += 1;
        match byte {
            b'\r' => Ok(At::ChunkSizeLf),
            byte if is_value(byte) && self.extension_bytes <= EXTENSION_BYTES_MAX => Ok(At::ChunkExtension),
            _ => Err(Offence::ChunkExtension),
        }
    }

    fn begin_chunk(&mut self) -> At {
        if self.chunk > 0 {
            return At::Chunk(self.chunk);
        }
        self.in_trailers = true;
        At::LineStart
    }
}

/// The first bytes of something, and whether it was longer.
#[derive(Debug)]
struct Kept<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Default for Kept<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Kept<N> {
    fn clear(&mut self) {
        self.len = 0;
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(usize::from(self.len)) {
            *slot = byte;
        }
        self.len = self.len.saturating_add(1);
    }

    /// All of it, unless it did not fit.
    fn bytes(&self) -> Option<&[u8]> {
        self.bytes.get(..usize::from(self.len))
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_value(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)
}

/// Digits of a chunk size: 2^60 is more than anybody sends.
const CHUNK_DIGITS_MAX: u8 = 15;
/// Bytes of chunk extensions in one message.
const EXTENSION_BYTES_MAX: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &[u8]) -> Option<Offence> {
        let whole = Auditor::default().admit(text).err().map(|(_, offence)| offence);
        let mut slow = Auditor::default();
        let single = text.iter().find_map(|byte| slow.admit(&[*byte]).err().map(|(_, offence)| offence));
        assert_eq!(whole, single, "split changes the verdict of {:?}", String::from_utf8_lossy(text));
        whole
    }

    fn head(lines: &str) -> Vec<u8> {
        format!("POST /p HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n").into_bytes()
    }

    #[test]
    fn good_messages_follow_each_other() {
        let mut all = Vec::new();
        all.extend(head("Content-Length: 5 \r\n"));
        all.extend(b"GET /\r\n"[..5].iter());
        all.extend(head("Transfer-Encoding: \tChunked \r\n"));
        all.extend(b"5;ext=\"v\"\r\nhello\r\n0A\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\n");
        all.extend(b"\r\n");
        all.extend(head("X-Empty:\r\nx-utf8: \u{e4}\r\n"));
        all.extend(b"GET / HTTP/1.0\r\n\r\n");
        assert_eq!(judge(&all), None);
    }

    #[test]
    fn framing_tricks_are_refused() {
        for (lines, offence) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Offence::LengthAndCoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Offence::LengthAndCoding),
            ("Transfer-Encoding: xchunked\r\n", Offence::TransferEncoding),
            ("Transfer-Encoding: chunked, identity\r\n", Offence::TransferEncoding),
            ("Transfer-Encoding: gzip, chunked\r\n", Offence::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Offence::TransferEncoding),
            ("Transfer-Encoding : chunked\r\n", Offence::HeaderName),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", Offence::ContentLength),
            ("Content-Length: 1, 1\r\n", Offence::ContentLength),
            ("Content-Length: +1\r\n", Offence::ContentLength),
            ("Content-Length: -1\r\n", Offence::ContentLength),
            ("Content-Length: 0x1\r\n", Offence::ContentLength),
            ("Content-Length:\r\n", Offence::ContentLength),
            ("Content-Length: 18446744073709551617\r\n", Offence::ContentLength),
            ("Host: b.test\r\n", Offence::Host),
            (" folded: 1\r\n", Offence::Folded),
            ("x: a\r\n b\r\n", Offence::Folded),
            ("x: a\nb: c\r\n", Offence::HeaderValue),
            ("x: a\rb\r\n", Offence::LineEnd),
            ("x: a\0b\r\n", Offence::HeaderValue),
            ("no colon\r\n", Offence::HeaderName),
            (": empty\r\n", Offence::HeaderName),
        ] {
            assert_eq!(judge(&head(lines)), Some(offence), "{lines:?}");
        }
    }

    #[test]
    fn request_lines_are_exact() {
        for line in [
            "GET /\r\n",
            "GET / HTTP/1.2\r\n",
            "GET / HTTP/2.0\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET /#f HTTP/1.1\r\n",
            "GET /a\\b HTTP/1.1\r\n",
            "GET /\u{e4} HTTP/1.1\r\n",
            "GET / HTTP/1.1\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            assert!(judge(line.as_bytes()).is_some(), "{line:?}");
        }
        assert_eq!(judge(b"GET / HTTP/1.1\r\n\r\n"), Some(Offence::Host));
    }

    #[test]
    fn chunks_are_exact() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(5000));
        for body in [
            "0x1\r\n",
            "fffffffffffffffff1\r\n",
            "-1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1\na",
            "1;a\nb\r\n",
            "1\r\naa\r\n",
            "1\r\na\n",
            "\r\n",
            "0\r\ncontent-length: 3\r\n\r\n",
            long.as_str(),
        ] {
            let mut text = head("Transfer-Encoding: chunked\r\n");
            text.extend(body.as_bytes());
            assert!(judge(&text).is_some(), "{body:?}");
        }
    }

    #[tokio::test]
    async fn the_reader_gets_a_nul_in_place_of_the_offence() {
        use tokio::io::AsyncReadExt;
        let (mut read, gate) = Audited::new(b"GET / HTTP/1.1\r\nx: a\nb\r\n\r\n".as_slice());
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"GET / HTTP/1.1\r\nx: a\0");
        assert!(gate.offended());
    }

    #[tokio::test]
    async fn a_tunnel_is_not_audited() {
        use tokio::io::AsyncReadExt;
        let (mut read, gate) = Audited::new(b"\x81\x05hello".as_slice());
        gate.open_tunnel();
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\x81\x05hello");
    }
}
