//! Sending access log entries to a service (`envoy.service.accesslog.v3`) in batches.
//!
//! A worker gathers entries and sends a batch when enough are there or the time is up, each batch as a call of its own.
//! The buffer is bounded: when the service does not keep up, entries are dropped and counted.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::RequestMethod;
use envoy_types::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use envoy_types::pb::envoy::data::accesslog::v3::response_flags::{Unauthorized, unauthorized};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::CertificateProperties;
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::{
    SubjectAltName, subject_alt_name,
};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, ResponseFlags as FlagsProto,
    TlsProperties,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use envoy_types::pb::google::protobuf::{Timestamp, UInt32Value};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, message};
use routing::access_log::GrpcLog;
use routing::format::{LogContext, ResponseFlags};
use routing::request::PeerIdentity;
use tokio::sync::Notify;

use super::ext_authz::address;
use super::{RpcError, call_encoded};
use crate::worker::state::Worker;

/// The entries of one worker on their way to one service, encoded.
#[derive(Debug)]
pub(crate) struct Entries {
    target: Arc<GrpcLog>,
    worker: Weak<Worker>,
    /// The beginning of every batch: who sends.
    identifier: Bytes,
    waiting: RefCell<Waiting>,
    scheduled: Cell<bool>,
    full: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    count: u64,
}

impl Entries {
    pub(crate) fn new(worker: &Rc<Worker>, target: Arc<GrpcLog>) -> Rc<Self> {
        let node = Some(worker.process.settings.node.to_proto());
        let identifier = Identifier { node, log_name: target.log_name.to_string() };
        let message = StreamAccessLogsMessage { identifier: Some(identifier), log_entries: None };
        Rc::new(Self {
            target,
            worker: Rc::downgrade(worker),
            identifier: message.encode_to_vec().into(),
            waiting: RefCell::default(),
            scheduled: Cell::new(false),
            full: Notify::new(),
        })
    }

    /// Adds an entry.
    pub(crate) fn push(self: &Rc<Self>, context: &LogContext<'_>) {
        let Some(worker) = self.worker.upgrade() else { return };
        let mut waiting = self.waiting.borrow_mut();
        if waiting.bytes.len() >= WAITING_BYTES_MAX {
            worker.process.counters.log_lines_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        message::encode(ENTRY_FIELD, &entry(context, &self.target), &mut waiting.bytes);
        waiting.count += 1;
        if waiting.bytes.len() >= self.target.buffer_bytes_max as usize {
            self.full.notify_one();
        }
        if !self.scheduled.replace(true) {
            let entries = self.clone();
            tokio::task::spawn_local(async move { entries.flush(worker).await });
        }
    }

    /// Sends what is waiting, when it is enough or has waited long enough; ends when nothing is left.
    async fn flush(self: Rc<Self>, worker: Rc<Worker>) {
        loop {
            let pause = self.target.flush_interval.clamp(FLUSH_MIN, FLUSH_MAX);
            let _ = tokio::time::timeout(pause, self.full.notified()).await;
            let Waiting { bytes, count } = self.waiting.take();
            if count == 0 {
                self.scheduled.set(false);
                return;
            }
            self.send(&worker, &bytes, count).await;
        }
    }

    async fn send(&self, worker: &Rc<Worker>, entries: &[u8], count: u64) {
        let mut message = Vec::with_capacity(self.identifier.len() + entries.len() + 16);
        message.extend_from_slice(&self.identifier);
        encode_key(ENTRIES_FIELD, WireType::LengthDelimited, &mut message);
        encode_varint(entries.len() as u64, &mut message);
        message.extend_from_slice(entries);
        let timeout = self.target.service.timeout.unwrap_or(CALL_TIMEOUT);
        let sent =
            call_encoded::<StreamAccessLogsResponse>(worker, &self.target.service, STREAM, &message, timeout).await;
        // The service may end the call without a message; the entries are there all the same.
        if let Err(error) = sent
            && !matches!(error, RpcError::Malformed)
        {
            worker.process.counters.log_lines_dropped.fetch_add(count, Ordering::Relaxed);
            tracing::warn!(%error, count, log = &*self.target.log_name, "access log entries not delivered");
        }
    }
}

fn entry(context: &LogContext<'_>, target: &GrpcLog) -> HttpAccessLogEntry {
    HttpAccessLogEntry {
        common_properties: Some(common(context)),
        protocol_version: match context.protocol {
            Some("HTTP/2") => HttpVersion::Http2,
            Some("HTTP/1.0") => HttpVersion::Http10,
            _ => HttpVersion::Http11,
        } as i32,
        request: Some(request(context, target)),
        response: Some(HttpResponseProperties {
            response_code: context.status.map(|status| UInt32Value { value: status.into() }),
            response_body_bytes: context.bytes_sent,
            response_code_details: context.details.unwrap_or_default().to_owned(),
            response_headers: chosen(context.response_headers, &target.response_headers),
            ..HttpResponseProperties::default()
        }),
    }
}

fn request(context: &LogContext<'_>, target: &GrpcLog) -> HttpRequestProperties {
    let header = |name: &str| {
        let value = context.request_headers.and_then(|headers| headers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    let method = context.method.and_then(RequestMethod::from_str_name).unwrap_or(RequestMethod::MethodUnspecified);
    HttpRequestProperties {
        request_method: method as i32,
        scheme: context.scheme.unwrap_or_default().to_owned(),
        authority: context.authority.unwrap_or_default().to_owned(),
        path: context.path.unwrap_or_default().to_owned(),
        user_agent: header("user-agent"),
        referer: header("referer"),
        forwarded_for: header("x-forwarded-for"),
        request_id: header("x-request-id"),
        original_path: context.original_path.unwrap_or_default().to_owned(),
        request_body_bytes: context.bytes_received,
        request_headers: chosen(context.request_headers, &target.request_headers),
        ..HttpRequestProperties::default()
    }
}

fn chosen(headers: Option<&http::HeaderMap>, names: &[Box<str>]) -> std::collections::HashMap<String, String> {
    let Some(headers) = headers else { return Default::default() };
    let value = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    names.iter().filter_map(|name| Some((name.to_string(), value(name)?))).collect()
}

fn common(context: &LogContext<'_>) -> AccessLogCommon {
    AccessLogCommon {
        sample_rate: 1.0,
        downstream_remote_address: context.downstream_remote.map(address),
        downstream_local_address: context.downstream_local.map(address),
        downstream_direct_remote_address: context.downstream_direct_remote.map(address),
        tls_properties: tls(context),
        start_time: context.start.map(timestamp),
        time_to_first_upstream_rx_byte: context.response_duration.and_then(span),
        time_to_last_downstream_tx_byte: context.duration.and_then(span),
        duration: context.duration.and_then(span),
        upstream_remote_address: context.upstream_host.map(address),
        upstream_local_address: context.upstream_local.map(address),
        upstream_cluster: context.upstream_cluster.unwrap_or_default().to_owned(),
        response_flags: (!context.flags.is_empty()).then(|| flags(context.flags)),
        upstream_transport_failure_reason: context.upstream_failure.unwrap_or_default().to_owned(),
        route_name: context.route.unwrap_or_default().to_owned(),
        upstream_request_attempt_count: context.attempts,
        custom_tags: context.reason.iter().map(|reason| ("kasbah.reason".to_owned(), (*reason).to_owned())).collect(),
        ..AccessLogCommon::default()
    }
}

fn tls(context: &LogContext<'_>) -> Option<TlsProperties> {
    let peer = context.downstream_peer?;
    Some(TlsProperties {
        tls_sni_hostname: context.server_name.unwrap_or_default().to_owned(),
        peer_certificate_properties: Some(certificate(peer)),
        ..TlsProperties::default()
    })
}

fn certificate(peer: &PeerIdentity) -> CertificateProperties {
    let san = SubjectAltName { san: Some(subject_alt_name::San::Uri(peer.uri().to_owned())) };
    CertificateProperties {
        subject_alt_name: vec![san],
        subject: peer.subject().to_owned(),
        ..CertificateProperties::default()
    }
}

fn flags(flags: ResponseFlags) -> FlagsProto {
    let has = |flag| flags.contains(flag);
    FlagsProto {
        no_healthy_upstream: has(ResponseFlags::UH),
        upstream_request_timeout: has(ResponseFlags::UT),
        upstream_remote_reset: has(ResponseFlags::UR),
        upstream_connection_failure: has(ResponseFlags::UF),
        upstream_connection_termination: has(ResponseFlags::UC),
        upstream_overflow: has(ResponseFlags::UO),
        no_route_found: has(ResponseFlags::NR),
        delay_injected: has(ResponseFlags::DI),
        fault_injected: has(ResponseFlags::FI),
        rate_limited: has(ResponseFlags::RL),
        unauthorized_details: has(ResponseFlags::UAEX)
            .then_some(Unauthorized { reason: unauthorized::Reason::ExternalService as i32 }),
        rate_limit_service_error: has(ResponseFlags::RLSE),
        downstream_connection_termination: has(ResponseFlags::DC),
        upstream_retry_limit_exceeded: has(ResponseFlags::URX),
        downstream_protocol_error: has(ResponseFlags::DPE),
        upstream_protocol_error: has(ResponseFlags::UPE),
        no_cluster_found: has(ResponseFlags::NC),
        ..FlagsProto::default()
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

fn span(span: Duration) -> Option<envoy_types::pb::google::protobuf::Duration> {
    Some(envoy_types::pb::google::protobuf::Duration {
        seconds: i64::try_from(span.as_secs()).ok()?,
        nanos: i32::try_from(span.subsec_nanos()).ok()?,
    })
}

const STREAM: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// Encoded entries that may wait for one service on one worker.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// `StreamAccessLogsMessage.http_logs`.
const ENTRIES_FIELD: u32 = 2;
/// `HTTPAccessLogEntries.log_entry`.
const ENTRY_FIELD: u32 = 1;
const FLUSH_MIN: Duration = Duration::from_millis(10);
const FLUSH_MAX: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
