//! One connection: reads frames, runs the streams, writes what they say. Nothing in it grows beyond a fixed size, whatever the
//! client does.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Extensions, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Service, ServiceExt as _};

use super::body::{Inbox, Incoming};
use super::frame::{self, Code, HEAD_BYTES, Head, PAYLOAD_MAX, PREFACE, STREAM_MAX, WINDOW, WINDOW_MAX};
use super::head::{Fault, Fields};
use super::hpack::{Decoder, TABLE_BYTES};
use super::outgoing::Outgoing;
use super::stream::{Progress, ROOM_LEAST, Signal, Stream};
use crate::serve::Limits;

/// A connection with its streams.
pub(super) struct Connection<S, B> {
    service: S,
    facts: Extensions,
    streams_max: usize,
    unanswered_max: usize,
    phase: Phase,
    /// What has come of a frame that is not whole yet.
    partial: Vec<u8>,
    decoder: Decoder,
    block: Option<Block>,
    out: Outgoing,
    streams: Vec<Stream<B>>,
    /// The highest stream of the client so far.
    last: u32,
    /// What streams begin with.
    initial_window: i64,
    /// What the client may still send on all streams together.
    room: i64,
    /// What was taken of it and the client has not been told of.
    taken: usize,
    /// What requests have brought that are not answered yet: whoever answers them may keep it.
    unanswered: usize,
    /// Requests that the client took back before they were answered, less those that were.
    taken_back: u32,
    /// More may be sent than before.
    has_more_room: bool,
    waker: Arc<AtomicWaker>,
    /// When it is closed unless the client does something before.
    deadline: Option<Pin<Box<Sleep>>>,
    greet_until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing but the preface may come.
    New,
    /// Nothing but settings may come.
    Greeted,
    Open,
    /// No new streams.
    Draining,
    /// Everything is said.
    Over,
}

/// A header block whose end is missing.
#[derive(Debug)]
struct Block {
    stream: u32,
    is_last: bool,
    bytes: Vec<u8>,
    /// Frames that it may still have.
    frames: u32,
}

impl<S, B> Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// One that closes when the client has not greeted in time.
    pub(super) fn new(service: S, facts: Extensions, limits: Limits) -> Self {
        Self {
            service,
            facts,
            streams_max: usize::try_from(limits.streams_max).unwrap_or(usize::MAX),
            unanswered_max: limits.unanswered_max,
            phase: Phase::New,
            partial: Vec::new(),
            decoder: Decoder::new(),
            block: None,
            out: Outgoing::new(),
            streams: Vec::new(),
            last: 0,
            initial_window: WINDOW,
            room: WINDOW,
            taken: 0,
            unanswered: 0,
            taken_back: 0,
            has_more_room: false,
            waker: Arc::default(),
            deadline: None,
            greet_until: Instant::now() + limits.wait_max,
        }
    }

    /// Whether it takes no more requests.
    pub(super) fn is_ending(&self) -> bool {
        self.phase >= Phase::Draining
    }

    /// Takes no more requests, and ends when those at hand have ended.
    pub(super) fn drain(&mut self) {
        self.out.go_away(self.last, Code::NoError);
        self.phase = Phase::Draining;
    }

    /// Serves until one side has had enough.
    pub(super) fn poll(
        &mut self,
        mut socket: Pin<&mut (impl AsyncRead + AsyncWrite)>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.waker.register(cx.waker());
        let mut has_moved = false;
        for _ in 0..TURNS {
            let flushed = match self.out.poll_flush(socket.as_mut(), cx, &mut has_moved) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            if flushed && self.phase == Phase::Over {
                return match socket.as_mut().poll_shutdown(cx) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => self.poll_deadline(true, has_moved, cx),
                };
            }
            let mut has_read = false;
            if self.phase != Phase::Over && !self.out.is_full() {
                match self.poll_read(socket.as_mut(), cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => has_read = true,
                    Poll::Pending => (),
                }
            }
            self.run_streams();
            if self.phase == Phase::Draining && self.streams.is_empty() {
                self.phase = Phase::Over;
            }
            let has_more = !self.out.is_empty() || self.phase == Phase::Over;
            if !has_read && (!flushed || !has_more) {
                return self.poll_deadline(!flushed, has_moved, cx);
            }
        }
        // Whoever has so much to say lets others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when the client has let us wait too long.
    fn poll_deadline(&mut self, is_stuck: bool, has_moved: bool, cx: &mut Context<'_>) -> Poll<()> {
        if has_moved {
            self.deadline = None;
        }
        let until = match self.phase {
            Phase::New | Phase::Greeted => self.greet_until,
            _ if is_stuck => Instant::now() + STUCK_MAX,
            _ => {
                self.deadline = None;
                return Poll::Pending;
            }
        };
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        std::task::ready!(deadline.as_mut().poll(cx));
        tracing::debug!(reason = "CLIENT_STUCK", "connection closed: the client neither reads nor asks");
        Poll::Ready(())
    }

    fn poll_read(&mut self, socket: Pin<&mut impl AsyncRead>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0_u8; READ_BYTES];
        let mut buffer = ReadBuf::new(&mut space);
        std::task::ready!(socket.poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        if self.partial.is_empty() {
            let used = self.take_frames(read);
            self.partial.extend_from_slice(&read[used..]);
        } else {
            let mut bytes = std::mem::take(&mut self.partial);
            bytes.extend_from_slice(read);
            let used = self.take_frames(&bytes);
            if used < bytes.len() {
                bytes.drain(..used);
                self.partial = bytes;
            }
        }
        Poll::Ready(Ok(read.len()))
    }

    /// Takes all frames that are whole; answers how many bytes they were.
    fn take_frames(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while self.phase != Phase::Over {
            if self.phase == Phase::New {
                if !PREFACE.starts_with(&rest[..rest.len().min(PREFACE.len())]) {
                    self.refuse_protocol(rest);
                    break;
                }
                let Some(behind) = rest.get(PREFACE.len()..) else { break };
                (rest, self.phase) = (behind, Phase::Greeted);
                self.greet();
            }
            let Some(head) = Head::read(rest) else { break };
            let whole = HEAD_BYTES + head.length;
            let taken = match rest.get(HEAD_BYTES..whole) {
                _ if head.length > PAYLOAD_MAX => Err(Code::FrameSize),
                None => break,
                Some(payload) => self.take_frame(head, payload),
            };
            if let Err(code) = taken {
                self.fail(code);
                break;
            }
            rest = &rest[whole..];
        }
        // Whatever follows the end does not matter.
        if self.phase == Phase::Over { bytes.len() } else { bytes.len() - rest.len() }
    }

    fn greet(&mut self) {
        self.out.settings(&[
            // A table would cost each connection that rests its memory, to spare a few bytes on a socket of this machine.
            (frame::HEADER_TABLE_SIZE, 0),
            (frame::MAX_CONCURRENT_STREAMS, u32::try_from(self.streams_max).unwrap_or(u32::MAX)),
            (frame::MAX_HEADER_LIST_SIZE, u32::try_from(HEADERS_BYTES_MAX).unwrap_or(u32::MAX)),
        ]);
    }

    /// Whoever speaks something else is told in what most others understand.
    fn refuse_protocol(&mut self, bytes: &[u8]) {
        if bytes.first().is_some_and(u8::is_ascii_uppercase) {
            self.out.raw(OTHER_PROTOCOL.as_bytes());
        }
        self.phase = Phase::Over;
    }

    fn fail(&mut self, code: Code) {
        tracing::debug!(?code, reason = "HTTP2_ERROR", "connection closed: the client broke the protocol");
        self.out.go_away(self.last, code);
        self.streams.clear();
        self.phase = Phase::Over;
    }

    fn take_frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        let is_settings = head.kind == frame::SETTINGS && !head.has(frame::ACK);
        let continues = self.block.as_ref().is_some_and(|block| block.stream == head.stream);
        let expected = match (self.phase, self.block.is_some()) {
            (Phase::Greeted, _) => is_settings,
            (_, true) => head.kind == frame::CONTINUATION && continues,
            (_, false) => head.kind != frame::CONTINUATION,
        };
        if !expected {
            return Err(Code::Protocol);
        }
        match head.kind {
            frame::DATA => self.take_data(head, payload),
            frame::HEADERS => self.take_headers(head, payload),
            frame::CONTINUATION => self.take_block(payload, head.has(frame::END_HEADERS)),
            frame::PRIORITY if payload.len() != PRIORITY_BYTES => Err(Code::FrameSize),
            frame::PRIORITY if head.stream == 0 => Err(Code::Protocol),
            frame::RST_STREAM => self.take_reset(head, payload),
            frame::SETTINGS => self.take_settings(head, payload),
            frame::PUSH_PROMISE => Err(Code::Protocol),
            frame::PING => self.take_ping(head, payload),
            frame::GOAWAY if head.stream != 0 => Err(Code::Protocol),
            frame::GOAWAY => {
                // The client makes no more requests; those at hand go on.
                self.phase = self.phase.max(Phase::Draining);
                Ok(())
            }
            frame::WINDOW_UPDATE => self.take_window_update(head, payload),
            _ => Ok(()),
        }
    }

    fn take_data(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        self.check_begun(head.stream)?;
        let bytes = head.unpadded(payload).ok_or(Code::Protocol)?;
        self.room -= i64::try_from(payload.len()).unwrap_or(i64::MAX);
        if self.room < 0 {
            return Err(Code::FlowControl);
        }
        let Some(at) = self.place(head.stream) else {
            // Sent before the client knew that the stream is over.
            self.taken += payload.len();
            return Ok(());
        };
        if !self.streams[at].is_answered() {
            self.unanswered += payload.len();
        }
        let received = self.streams[at].receive(payload.len(), bytes, head.has(frame::END_STREAM));
        let fits = if self.unanswered > self.unanswered_max { Err(Code::EnhanceYourCalm) } else { Ok(()) };
        if let Err(code) = received.and(fits) {
            if matches!(code, Code::StreamClosed | Code::FlowControl) {
                // It has not even put it aside.
                self.streams[at].sent += payload.len();
                self.taken += payload.len();
            }
            self.end_stream(at, Some(code));
        }
        Ok(())
    }

    fn take_headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        if head.stream.is_multiple_of(2) {
            return Err(Code::Protocol);
        }
        let mut part = head.unpadded(payload).ok_or(Code::Protocol)?;
        if head.has(frame::WITH_PRIORITY) {
            part = part.get(PRIORITY_BYTES..).ok_or(Code::FrameSize)?;
        }
        let is_last = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.take_fields(head.stream, is_last, part);
        }
        self.block = Some(Block { stream: head.stream, is_last, bytes: Vec::new(), frames: BLOCK_FRAMES_MAX });
        self.take_block(part, false)
    }

    fn take_block(&mut self, part: &[u8], is_end: bool) -> Result<(), Code> {
        let block = self.block.as_mut().ok_or(Code::Protocol)?;
        block.bytes.extend_from_slice(part);
        block.frames = block.frames.checked_sub(1).ok_or(Code::EnhanceYourCalm)?;
        if block.bytes.len() > HEADERS_BYTES_MAX {
            return Err(Code::EnhanceYourCalm);
        }
        match self.block.take_if(|_| is_end) {
            Some(block) => self.take_fields(block.stream, block.is_last, &block.bytes),
            None => Ok(()),
        }
    }

    /// A whole header block. It is read even when nobody wants it: the table has to follow.
    fn take_fields(&mut self, id: u32, is_last: bool, block: &[u8]) -> Result<(), Code> {
        let mut fields = Fields::new(HEADERS_BYTES_MAX);
        self.decoder.decode(block, |name, value| fields.take(name, value)).map_err(|_| Code::Compression)?;
        if id > self.last {
            self.last = id;
            return self.begin_stream(id, is_last, fields);
        }
        // Behind the body, or for a stream that is over.
        if let Some(at) = self.place(id) {
            let ended =
                if is_last && fields.is_trailers() { self.streams[at].end_request() } else { Err(Code::Protocol) };
            if let Err(code) = ended {
                self.end_stream(at, Some(code));
            }
        }
        Ok(())
    }

    fn begin_stream(&mut self, id: u32, is_last: bool, fields: Fields) -> Result<(), Code> {
        if self.phase != Phase::Open {
            // Behind our goodbye, which says that it was not looked at.
            return Ok(());
        }
        if self.streams.len() >= self.streams_max {
            self.out.reset(id, Code::RefusedStream);
            return Ok(());
        }
        let (head, announced) = match fields.into_request() {
            Ok(request) => request,
            Err(fault) => {
                let code = if fault == Fault::TooLarge { Code::EnhanceYourCalm } else { Code::Protocol };
                self.out.reset(id, code);
                return Ok(());
            }
        };
        if is_last && announced.is_some_and(|length| length > 0) {
            self.out.reset(id, Code::Protocol);
            return Ok(());
        }
        let signal = Signal::new(self.waker.clone());
        let inbox = (!is_last).then(|| Inbox::new(Waker::from(signal.clone())));
        let body = inbox.as_ref().map_or_else(Incoming::empty, Incoming::of);
        let mut request = head.map(|()| body);
        *request.extensions_mut() = self.facts.clone();
        let calling = Box::pin(self.service.clone().oneshot(request));
        self.streams.reserve_exact(1);
        self.streams.push(Stream::new(id, calling, signal, inbox, announced, self.initial_window));
        Ok(())
    }

    fn take_reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        self.check_begun(head.stream)?;
        if payload.len() != 4 {
            return Err(Code::FrameSize);
        }
        let Some(at) = self.place(head.stream) else { return Ok(()) };
        if !self.streams[at].is_answered() {
            // Work that is ordered and cancelled again and again, for nothing.
            self.taken_back += 1;
            if self.taken_back > TAKEN_BACK_MAX {
                return Err(Code::EnhanceYourCalm);
            }
        }
        self.end_stream(at, None);
        Ok(())
    }

    fn take_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        if head.stream != 0 {
            return Err(Code::Protocol);
        }
        if head.has(frame::ACK) {
            // Our only settings are in force: the client keeps no table.
            self.decoder.keep_none();
            return if payload.is_empty() { Ok(()) } else { Err(Code::FrameSize) };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Code::FrameSize);
        }
        for [n, m, value @ ..] in settings {
            self.take_setting(u16::from_be_bytes([*n, *m]), u32::from_be_bytes(*value))?;
        }
        self.out.frame(frame::SETTINGS, frame::ACK, 0, &[]);
        if self.phase < Phase::Open {
            (self.phase, self.deadline) = (Phase::Open, None);
        }
        Ok(())
    }

    fn take_setting(&mut self, name: u16, value: u32) -> Result<(), Code> {
        match name {
            frame::HEADER_TABLE_SIZE => {
                self.out.owes_no_table |= usize::try_from(value).is_ok_and(|size| size < TABLE_BYTES);
                Ok(())
            }
            frame::ENABLE_PUSH if value > 1 => Err(Code::Protocol),
            frame::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                if window > WINDOW_MAX {
                    return Err(Code::FlowControl);
                }
                let more = window - std::mem::replace(&mut self.initial_window, window);
                for stream in &mut self.streams {
                    stream.window += more;
                    if stream.window > WINDOW_MAX {
                        return Err(Code::FlowControl);
                    }
                }
                self.has_more_room |= more > 0;
                Ok(())
            }
            // We never send longer ones than every client takes.
            frame::MAX_FRAME_SIZE
                if !(PAYLOAD_MAX..1 << 24).contains(&usize::try_from(value).unwrap_or(usize::MAX)) =>
            {
                Err(Code::Protocol)
            }
            _ => Ok(()),
        }
    }

    fn take_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        match (head.stream, payload.len()) {
            (0, 8) if head.has(frame::ACK) => Ok(()),
            (0, 8) => {
                self.out.frame(frame::PING, frame::ACK, 0, payload);
                Ok(())
            }
            (0, _) => Err(Code::FrameSize),
            _ => Err(Code::Protocol),
        }
    }

    fn take_window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Code> {
        let more = u32::from_be_bytes(payload.try_into().map_err(|_| Code::FrameSize)?) & STREAM_MAX;
        let add = |window: &mut i64| {
            *window += i64::from(more);
            if more == 0 {
                Err(Code::Protocol)
            } else if *window > WINDOW_MAX {
                Err(Code::FlowControl)
            } else {
                Ok(())
            }
        };
        self.has_more_room = true;
        if head.stream == 0 {
            return add(&mut self.out.window);
        }
        self.check_begun(head.stream)?;
        if let Some(at) = self.place(head.stream)
            && let Err(code) = add(&mut self.streams[at].window)
        {
            self.end_stream(at, Some(code));
        }
        Ok(())
    }

    /// Fails for a stream that the client has not begun, or cannot begin.
    fn check_begun(&self, id: u32) -> Result<(), Code> {
        if !id.is_multiple_of(2) && id <= self.last { Ok(()) } else { Err(Code::Protocol) }
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.streams.iter().position(|stream| stream.id == id)
    }

    /// Forgets a stream, and tells the client if there is a reason.
    fn end_stream(&mut self, at: usize, code: Option<Code>) {
        let stream = self.streams.swap_remove(at);
        self.taken += stream.held();
        if !stream.is_answered() {
            self.unanswered = self.unanswered.saturating_sub(stream.sent);
        }
        if let Some(code) = code {
            self.out.reset(stream.id, code);
        }
    }

    /// Looks at every stream that something has happened to.
    fn run_streams(&mut self) {
        let has_more_room = std::mem::take(&mut self.has_more_room);
        let mut at = 0;
        while let Some(stream) = self.streams.get_mut(at) {
            let held_up = stream.is_held_up();
            // One that is held up keeps its signal until it gets on.
            if self.out.is_full() {
                self.has_more_room |= has_more_room;
                break;
            }
            if !stream.take_signal() && !(held_up && (has_more_room || self.out.is_empty())) {
                at += 1;
                continue;
            }
            let was_answered = stream.is_answered();
            let progress = stream.advance(&mut self.out);
            if !was_answered && stream.is_answered() {
                self.taken_back = self.taken_back.saturating_sub(1);
                self.unanswered = self.unanswered.saturating_sub(stream.sent);
            }
            let (of_stream, of_connection) = stream.take_room();
            self.taken += of_connection;
            self.out.window_update(stream.id, of_stream);
            match progress {
                Progress::Waits => at += 1,
                Progress::Failed => self.end_stream(at, Some(Code::Internal)),
                Progress::Done => {
                    // The rest of the request is of no interest (section 8.1).
                    let code = (!stream.has_request()).then_some(Code::NoError);
                    self.end_stream(at, code);
                }
            }
        }
        if self.taken >= ROOM_LEAST {
            let taken = std::mem::take(&mut self.taken);
            self.room += i64::try_from(taken).unwrap_or_default();
            self.out.window_update(0, taken);
        }
    }
}

/// Reads of one connection before others have their turn.
const TURNS: usize = 32;
/// The largest head of a request, as it is sent and as it is read.
const HEADERS_BYTES_MAX: usize = 32 << 10;
/// Frames of one header block.
const BLOCK_FRAMES_MAX: u32 = 16;
const PRIORITY_BYTES: usize = 5;
const READ_BYTES: usize = 4096;
/// How many requests more may be taken back than were answered.
const TAKEN_BACK_MAX: u32 = 100;
/// How long a client may read nothing of what is there for it.
const STUCK_MAX: Duration = Duration::from_secs(50);
const OTHER_PROTOCOL: &str = "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    This socket speaks gRPC over HTTP/2.\n";
