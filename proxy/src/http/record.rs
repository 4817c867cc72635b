//! What is remembered of one request until its response is sent, and what is told about it then: one metric sample
//! and one line in each access log.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body::{Body as _, Frame, SizeHint};
use routing::format::{LogContext, ResponseFlags};
use routing::request::{Metadata, Request};
use tokio::time::{Instant, Sleep};

use super::body::{Body, BodyError};
use super::canonical::Canonical;
use super::grpc::MessageCount;
use super::hcm::HcmState;
use super::replay::ReplaySource;
use super::reply::GRPC_STATUS;
use crate::conn::Conn;
use crate::obs::labels::{Outcome, Spoken};
use crate::refusal::{self, Refusal};
use crate::relay::Moved;
use crate::upstream::cluster::{Admitted, ClusterState, InFlight};
use crate::upstream::dial::ConnFacts;
use crate::upstream::h1::Lease;
use crate::upstream::h2::Share;
use crate::worker::conns::Running;

/// One request.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) conn: Rc<Conn>,
    pub(crate) hcm: Rc<HcmState>,
    pub(crate) started: Instant,
    start: SystemTime,
    pub(crate) head: Parts,
    pub(crate) canonical: Option<Canonical>,
    pub(crate) metadata: Metadata,
    /// One throw for all shares of this request.
    pub(crate) dice: u64,
    /// Headers that filters want on the response.
    pub(crate) add_to_response: Vec<(HeaderName, HeaderValue)>,
    pub(crate) grpc: bool,
    pub(crate) status: u16,
    pub(crate) flags: ResponseFlags,
    pub(crate) reason: Option<&'static str>,
    pub(crate) details: String,
    pub(crate) policy: Option<Arc<str>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) virtual_host: Option<Arc<str>>,
    pub(crate) cluster: Option<Rc<ClusterState>>,
    pub(crate) cluster_name: Option<Arc<str>>,
    pub(crate) endpoint: Option<usize>,
    pub(crate) upstream: Option<Rc<ConnFacts>>,
    pub(crate) upstream_failure: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) request_body: Option<Rc<ReplaySource>>,
    pub(crate) response_headers: Option<HeaderMap>,
    response_trailers: Option<HeaderMap>,
    grpc_status: Option<u16>,
    bytes_sent: u64,
    messages_sent: MessageCount,
    told: bool,
    tunnel: Option<Rc<Tunnel>>,
    _running: Running,
}

/// What must live as long as the response body does.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// An HTTP/1 connection, to be given back when the response is complete.
    pub(crate) lease: Option<Lease>,
    /// A share of an HTTP/2 connection.
    #[expect(dead_code, reason = "held until the response ends")]
    pub(crate) share: Option<Share>,
    pub(crate) in_flight: Option<InFlight>,
    /// A place within the cluster's limits.
    pub(crate) admitted: Option<Admitted>,
    /// The request body that is still on its way up.
    #[expect(dead_code, reason = "held until the response ends")]
    pub(crate) upload: Option<Upload>,
    /// How long the response may be silent.
    pub(crate) idle: Option<Duration>,
    /// When the whole exchange must be over.
    pub(crate) deadline: Option<Pin<Box<Sleep>>>,
}

/// A request that became a stream of bytes; it is counted and logged when the last handle is gone.
#[derive(Debug, Default)]
struct Tunnel {
    moved: Moved,
    /// The request, once its response was sent.
    record: RefCell<Option<Box<Record>>>,
    ended: Cell<bool>,
}

/// The side of a tunnel that passes bytes.
#[derive(Debug)]
pub(crate) struct Tunneled(Rc<Tunnel>);

impl Tunneled {
    /// What was passed.
    pub(crate) fn moved(&self) -> &Moved {
        &self.0.moved
    }
}

impl Drop for Tunneled {
    fn drop(&mut self) {
        self.0.ended.set(true);
        let record = self.0.record.borrow_mut().take();
        if let Some(mut record) = record {
            record.tell();
        }
    }
}

/// A task that sends a request body; it ends with the response.
#[derive(Debug)]
pub(crate) struct Upload(pub(crate) tokio::task::AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response body that knows its request.
#[derive(Debug)]
pub(crate) struct Recorded {
    body: Body,
    record: Option<Box<Record>>,
    hold: Hold,
    /// Armed when the body first keeps us waiting.
    silence: Option<Pin<Box<Sleep>>>,
    heard: bool,
}

impl Record {
    pub(crate) fn begin(conn: &Rc<Conn>, hcm: Rc<HcmState>, head: Parts) -> Self {
        conn.requests.set(conn.requests.get().saturating_add(1));
        let grpc = is_grpc(&head.headers);
        Self {
            conn: conn.clone(),
            hcm,
            started: Instant::now(),
            start: runtime::clock::now(),
            head,
            canonical: None,
            metadata: Metadata::default(),
            dice: conn.worker.random.next(),
            add_to_response: Vec::new(),
            grpc,
            status: 0,
            flags: ResponseFlags::default(),
            reason: None,
            details: String::new(),
            policy: None,
            route: None,
            virtual_host: None,
            cluster: None,
            cluster_name: None,
            endpoint: None,
            upstream: None,
            upstream_failure: None,
            attempts: 0,
            first_byte: None,
            request_body: None,
            response_headers: None,
            response_trailers: None,
            grpc_status: None,
            bytes_sent: 0,
            messages_sent: MessageCount::default(),
            told: false,
            tunnel: None,
            _running: conn.life().begin_request(),
        }
    }

    /// The request as policy and routes see it; only after it was made canonical.
    pub(crate) fn request<'a>(&'a self, canonical: &'a Canonical) -> Request<'a> {
        Request {
            method: &self.head.method,
            host: &canonical.host,
            path: &canonical.path,
            headers: &self.head.headers,
            scheme: canonical.scheme,
            connection: &self.conn.facts,
            remote: canonical.remote.ip(),
            metadata: &self.metadata,
        }
    }

    /// Notes that the request was refused.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.conn.worker.process.counters.refused(refusal.reason);
        tracing::info!(
            reason = refusal.reason,
            source = %self.conn.facts.source,
            peer = self.conn.facts.peer.as_ref().map(|peer| peer.uri()),
            details = %refusal.details,
            "request refused"
        );
        self.flags.insert(refusal.flags);
        self.reason = Some(refusal.reason);
        self.details.clone_from(&refusal.details);
    }

    /// Notes how the response begins.
    pub(crate) fn answered(&mut self, status: u16, headers: &HeaderMap) {
        self.status = status;
        if self.grpc {
            self.grpc_status = grpc_status(headers);
        }
        if self.hcm.logs.is_empty() {
            return;
        }
        self.response_headers = Some(headers.clone());
    }

    /// What logs and header edits may say.
    pub(crate) fn context(&self) -> LogContext<'_> {
        let canonical = self.canonical.as_ref();
        let facts = &self.conn.facts;
        LogContext {
            start: Some(self.start),
            duration: Some(self.started.elapsed()),
            response_duration: self.first_byte,
            method: Some(self.head.method.as_str()),
            path: canonical.map(|canonical| canonical.path.as_str()),
            original_path: self.head.uri.path_and_query().map(|path| path.as_str()),
            authority: canonical.map(|canonical| canonical.host.authority()),
            scheme: canonical.map(|canonical| canonical.scheme.as_str()),
            protocol: Some(protocol(self.head.version)),
            request_headers: Some(&self.head.headers),
            response_headers: self.response_headers.as_ref(),
            response_trailers: self.response_trailers.as_ref(),
            status: (self.status != 0).then_some(self.status),
            grpc_status: self.grpc_status,
            details: Some(self.log_details()),
            flags: self.flags,
            upstream_failure: self.upstream_failure,
            bytes_received: self.bytes().0,
            bytes_sent: self.bytes().1,
            attempts: self.attempts,
            upstream_host: self.upstream.as_ref().map(|facts| facts.remote),
            upstream_local: self.upstream.as_ref().and_then(|facts| facts.local),
            upstream_cluster: self.cluster_name.as_deref(),
            upstream_peer: self.upstream.as_ref().and_then(|facts| facts.peer.as_ref()),
            downstream_remote: Some(canonical.map_or(facts.source, |canonical| canonical.remote)),
            downstream_direct_remote: Some(facts.direct_source),
            downstream_local: Some(facts.destination),
            downstream_peer: facts.peer.as_ref(),
            server_name: facts.sni.as_deref(),
            route: self.route.as_deref(),
            virtual_host: self.virtual_host.as_deref(),
            metadata: Some(&self.metadata),
            policy: self.policy.as_deref(),
            decision: self.policy.as_ref().map(|_| if self.reason.is_some() { "deny" } else { "allow" }),
            reason: self.reason,
            ..LogContext::default()
        }
    }

    fn log_details(&self) -> &str {
        match self.reason {
            Some(_) if !self.details.is_empty() => &self.details,
            Some(reason) => reason,
            None if self.upstream.is_some() => "via_upstream",
            None => "direct_response",
        }
    }

    /// From here on the request is a stream of bytes.
    pub(crate) fn tunneled(&mut self) -> Tunneled {
        let tunnel = Rc::new(Tunnel::default());
        self.tunnel = Some(tunnel.clone());
        Tunneled(tunnel)
    }

    fn bytes(&self) -> (u64, u64) {
        match &self.tunnel {
            Some(tunnel) => (tunnel.moved.forth.get(), tunnel.moved.back.get()),
            None => (self.request_body.as_ref().map_or(0, |body| body.total()), self.bytes_sent),
        }
    }

    /// Counts and logs the request; only the first call does.
    pub(crate) fn tell(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        self.count();
        if self.hcm.logs.is_empty() {
            return;
        }
        let dice = self.conn.worker.random.next();
        let context = self.context();
        for log in &self.hcm.logs {
            log.write(&context, dice);
        }
    }

    fn count(&self) {
        let worker = &self.conn.worker;
        let spoken = if self.grpc { Spoken::Grpc } else { Spoken::Http };
        let base = match &self.cluster {
            Some(cluster) => cluster.labels(&self.conn, spoken, self.endpoint, self.upstream.as_deref()),
            None => self.hcm.labels(&self.conn, spoken),
        };
        let flags = flags_label(self.flags);
        let outcome = Outcome { code: self.status, grpc_status: self.grpc_status, flags };
        let series = worker.series.http(base, outcome);
        series.requests.add(1);
        series.duration.record_span(self.started.elapsed());
        let (received, sent) = self.bytes();
        series.request_bytes.record(received);
        series.response_bytes.record(sent);
        if self.grpc {
            series.request_messages.add(self.request_body.as_ref().map_or(0, |body| body.messages()));
            series.response_messages.add(self.messages_sent.count());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.told {
            // The client went away before it had its whole answer.
            self.flags.insert(ResponseFlags::DC);
            self.tell();
        }
    }
}

impl Recorded {
    pub(crate) fn new(body: Body, record: Box<Record>, hold: Hold) -> Self {
        Self { body, record: Some(record), hold, silence: None, heard: false }
    }

    /// The response was sent to its end.
    pub(crate) fn complete(&mut self) {
        if let Some(mut record) = self.record.take() {
            match record.tunnel.clone().filter(|tunnel| !tunnel.ended.get()) {
                Some(tunnel) => *tunnel.record.borrow_mut() = Some(record),
                None => record.tell(),
            }
        }
        if let Some(lease) = self.hold.lease.take() {
            lease.give_back();
        }
        self.hold = Hold::default();
    }

    /// Whether nothing has come for the idle time. The timer is moved on only when it fires.
    fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(idle) = self.hold.idle else { return false };
        let sleep = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        while sleep.as_mut().poll(cx).is_ready() {
            if !std::mem::replace(&mut self.heard, false) {
                return true;
            }
            sleep.as_mut().reset(Instant::now() + idle);
        }
        false
    }

    fn broken(&mut self, flags: ResponseFlags, reason: &'static str) {
        if let Some(mut record) = self.record.take() {
            record.flags.insert(flags);
            record.reason = Some(reason);
            record.tell();
        }
        self.hold = Hold::default();
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(record) = &mut self.record else { return };
        if let Some(data) = frame.data_ref() {
            record.bytes_sent += data.len() as u64;
            if record.grpc {
                record.messages_sent.follow(data);
            }
        }
        if let Some(trailers) = frame.trailers_ref() {
            if record.grpc {
                record.grpc_status = grpc_status(trailers);
            }
            if !record.hcm.logs.is_empty() {
                record.response_trailers = Some(trailers.clone());
            }
        }
    }
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.heard = true;
                this.note(&frame);
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.broken(ResponseFlags::UC, refusal::UPSTREAM_RESET);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let late = this.hold.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
                if late {
                    this.broken(ResponseFlags::UT, refusal::UPSTREAM_TIMEOUT);
                    return Poll::Ready(Some(Err(BodyError::Late)));
                }
                if this.is_silent(cx) {
                    this.broken(ResponseFlags::SI, refusal::STREAM_IDLE);
                    return Poll::Ready(Some(Err(BodyError::Late)));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // HTTP/1 does not ask for a body that it knows to be empty.
        if self.record.is_some() && self.body.is_end_stream() {
            self.complete();
        }
    }
}

/// Whether a message is gRPC, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok().filter(|status| *status <= GRPC_STATUS_MAX)
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// The flags as a label: one of a closed set.
fn flags_label(flags: ResponseFlags) -> &'static str {
    if flags.is_empty() {
        return "-";
    }
    LABELS.iter().find(|(flag, _)| flags.contains(*flag)).map_or("other", |(_, name)| name)
}

const LABELS: [(ResponseFlags, &str); 17] = [
    (ResponseFlags::DC, "DC"),
    (ResponseFlags::UH, "UH"),
    (ResponseFlags::UF, "UF"),
    (ResponseFlags::UO, "UO"),
    (ResponseFlags::NR, "NR"),
    (ResponseFlags::NC, "NC"),
    (ResponseFlags::UT, "UT"),
    (ResponseFlags::UC, "UC"),
    (ResponseFlags::URX, "URX"),
    (ResponseFlags::UAEX, "UAEX"),
    (ResponseFlags::RL, "RL"),
    (ResponseFlags::RLSE, "RLSE"),
    (ResponseFlags::FI, "FI"),
    (ResponseFlags::DI, "DI"),
    (ResponseFlags::DPE, "DPE"),
    (ResponseFlags::UPE, "UPE"),
    (ResponseFlags::UR, "UR"),
];
/// gRPC knows 0 to 16.
const GRPC_STATUS_MAX: u16 = 16;
