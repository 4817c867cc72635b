//! Sending access log entries to a service (`envoy.service.accesslog.v3`) in batches.
//!
//! A worker gathers entries and sends a batch when enough are there or the time is up, each batch as a call of its own.
//! The buffer is bounded: when the service does not keep up, entries are dropped and counted.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries,
};
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use envoy_types::pb::google::protobuf::{Timestamp, UInt32Value};
use prost::Message;
use routing::access_log::GrpcLog;
use routing::format::{LogContext, ResponseFlags};
use routing::request::PeerIdentity;

use super::call;
use super::ext_authz::address;
use crate::worker::state::Worker;

/// The entries of one worker on their way to one service.
#[derive(Debug)]
pub(crate) struct Entries {
    target: Arc<GrpcLog>,
    worker: Weak<Worker>,
    waiting: RefCell<Vec<HttpAccessLogEntry>>,
    bytes: Cell<usize>,
    scheduled: Cell<bool>,
}

impl Entries {
    pub(crate) fn new(worker: &Rc<Worker>, target: Arc<GrpcLog>) -> Rc<Self> {
        Rc::new(Self {
            target,
            worker: Rc::downgrade(worker),
            waiting: RefCell::default(),
            bytes: Cell::new(0),
            scheduled: Cell::new(false),
        })
    }

    /// Adds an entry.
    pub(crate) fn push(self: &Rc<Self>, context: &LogContext<'_>) {
        let Some(worker) = self.worker.upgrade() else { return };
        if self.waiting.borrow().len() >= ENTRIES_MAX {
            worker.process.counters.log_lines_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let entry = entry(context, &self.target);
        self.bytes.set(self.bytes.get() + entry.encoded_len());
        self.waiting.borrow_mut().push(entry);
        if !self.scheduled.replace(true) {
            let entries = self.clone();
            tokio::task::spawn_local(async move { entries.flush(worker).await });
        }
    }

    /// Sends what is waiting, after the time to gather it.
    async fn flush(self: Rc<Self>, worker: Rc<Worker>) {
        let soon = self.bytes.get() >= self.target.buffer_bytes_max as usize;
        if !soon {
            tokio::time::sleep(self.target.flush_interval.clamp(FLUSH_MIN, FLUSH_MAX)).await;
        }
        self.scheduled.set(false);
        self.bytes.set(0);
        let log_entry = self.waiting.take();
        let count = log_entry.len() as u64;
        let identifier = Identifier {
            node: Some(worker.process.settings.node.to_proto()),
            log_name: self.target.log_name.to_string(),
        };
        let message = StreamAccessLogsMessage {
            identifier: Some(identifier),
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry })),
        };
        let timeout = self.target.service.timeout.unwrap_or(CALL_TIMEOUT);
        let sent = call::<_, StreamAccessLogsResponse>(&worker, &self.target.service, STREAM, &message, timeout).await;
        // The service may end the call without a message; the entries are there all the same.
        if let Err(error) = sent
            && !matches!(error, super::RpcError::Malformed)
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
/// Entries that may wait for one service on one worker.
const ENTRIES_MAX: usize = 10_000;
const FLUSH_MIN: Duration = Duration::from_millis(10);
const FLUSH_MAX: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
