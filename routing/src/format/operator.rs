//! The operators and their values.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use super::{FormatError, LogContext, ResponseFlags, Style, TimeFormat};
use crate::request::MetadataValue;

/// One operator of a format.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    Request(HeaderRef, Option<HeaderRef>),
    Response(HeaderName, Option<HeaderName>),
    Trailer(HeaderName, Option<HeaderName>),
    StartTime(TimeFormat),
    PeerEnd(TimeFormat),
    Metadata { filter: Box<str>, path: Vec<Box<str>> },
    Plain(fn(&LogContext<'_>) -> Plain),
    Text(for<'a> fn(&LogContext<'a>) -> Option<&'a str>),
}

/// A header of the request, or one of its parts that HTTP/2 writes as a header.
#[derive(Clone, Debug)]
pub(super) enum HeaderRef {
    Method,
    Path,
    Authority,
    Scheme,
    OriginalPath,
    Header(HeaderName),
}

/// A value that borrows nothing.
pub(super) enum Plain {
    None,
    Number(u64),
    Address(SocketAddr),
    Ip(IpAddr),
    Flags(ResponseFlags),
    LongFlags(ResponseFlags),
    Static(&'static str),
}

/// The value of an operator.
pub(super) enum Value<'a> {
    None,
    Text(&'a str),
    Bytes(&'a [u8]),
    Owned(String),
    Plain(Plain),
}

impl Operator {
    pub(super) fn parse(name: &str, argument: Option<&str>) -> Result<Self, FormatError> {
        let malformed = || FormatError::Argument(name.to_owned());
        let header_pair = || header_pair(argument).ok_or_else(malformed);
        match name {
            "REQ" => {
                let (first, second) = split_pair(argument.ok_or_else(malformed)?);
                let parse = |name: &str| HeaderRef::parse(name).ok_or_else(malformed);
                Ok(Self::Request(parse(first)?, second.map(parse).transpose()?))
            }
            "RESP" => header_pair().map(|(first, second)| Self::Response(first, second)),
            "TRAILER" => header_pair().map(|(first, second)| Self::Trailer(first, second)),
            "START_TIME" => TimeFormat::parse(argument).map(Self::StartTime).ok_or_else(malformed),
            "DOWNSTREAM_PEER_CERT_V_END" => TimeFormat::parse(argument).map(Self::PeerEnd).ok_or_else(malformed),
            "DYNAMIC_METADATA" => metadata(argument.ok_or_else(malformed)?).ok_or_else(malformed),
            "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => {
                Ok(Self::Plain(if name == "GRPC_STATUS" && argument != Some("NUMBER") {
                    grpc_name
                } else {
                    grpc_number
                }))
            }
            _ if argument.is_some() => Err(malformed()),
            _ => plain(name)
                .map(Self::Plain)
                .or_else(|| text(name).map(Self::Text))
                .ok_or_else(|| FormatError::Unknown(name.to_owned())),
        }
    }

    pub(super) fn value<'a>(&self, context: &LogContext<'a>) -> Value<'a> {
        match self {
            Self::Request(first, second) => {
                first.value(context).or_else(|| second.as_ref().map_or(Value::None, |second| second.value(context)))
            }
            Self::Response(first, second) => header(context.response_headers, first, second.as_ref()),
            Self::Trailer(first, second) => header(context.response_trailers, first, second.as_ref()),
            Self::StartTime(format) => time(context.start, format),
            Self::PeerEnd(format) => time(context.downstream_peer.and_then(|peer| peer.not_after()), format),
            Self::Metadata { filter, path } => {
                let found = context.metadata.and_then(|metadata| metadata.find(filter, path));
                found.map_or(Value::None, |value| match value {
                    MetadataValue::Text(text) => Value::Text(text),
                    MetadataValue::Json { .. } => {
                        value.as_str().map_or_else(|| Value::Owned(value.to_text()), Value::Text)
                    }
                })
            }
            Self::Plain(read) => Value::Plain(read(context)),
            Self::Text(read) => read(context).map_or(Value::None, Value::Text),
        }
    }
}

impl HeaderRef {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            "x-envoy-original-path" => Self::OriginalPath,
            name => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }

    fn value<'a>(&self, context: &LogContext<'a>) -> Value<'a> {
        let text = match self {
            Self::Method => context.method,
            Self::Path => context.path,
            Self::Authority => context.authority,
            Self::Scheme => context.scheme,
            Self::OriginalPath => context.original_path,
            Self::Header(name) => return header(context.request_headers, name, None),
        };
        text.map_or(Value::None, Value::Text)
    }
}

fn split_pair(argument: &str) -> (&str, Option<&str>) {
    argument.split_once('?').map_or((argument, None), |(first, second)| (first, Some(second)))
}

fn header_pair(argument: Option<&str>) -> Option<(HeaderName, Option<HeaderName>)> {
    let (first, second) = split_pair(argument?);
    let parse = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
    Some((parse(first)?, second.map_or(Some(None), |second| parse(second).map(Some))?))
}

fn metadata(argument: &str) -> Option<Operator> {
    let mut parts = argument.split(':');
    let filter = parts.next().filter(|filter| !filter.is_empty())?.into();
    Some(Operator::Metadata { filter, path: parts.map(Into::into).collect() })
}

fn header<'a>(headers: Option<&'a HeaderMap>, first: &HeaderName, second: Option<&HeaderName>) -> Value<'a> {
    let found = headers.and_then(|headers| headers.get(first).or_else(|| headers.get(second?)));
    found.map_or(Value::None, |value| Value::Bytes(value.as_bytes()))
}

fn time<'a>(at: Option<SystemTime>, format: &TimeFormat) -> Value<'a> {
    at.map_or(Value::None, |at| {
        let mut out = String::new();
        format.write(at, &mut out);
        Value::Owned(out)
    })
}

fn millis(duration: Option<Duration>) -> Plain {
    duration.map_or(Plain::None, |duration| Plain::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

fn address(address: Option<SocketAddr>) -> Plain {
    address.map_or(Plain::None, Plain::Address)
}

fn ip(address: Option<SocketAddr>) -> Plain {
    address.map_or(Plain::None, |address| Plain::Ip(address.ip()))
}

fn port(address: Option<SocketAddr>) -> Plain {
    address.map_or(Plain::None, |address| Plain::Number(address.port().into()))
}

fn grpc_status(context: &LogContext<'_>) -> Option<u16> {
    let written = |headers: Option<&HeaderMap>| headers?.get("grpc-status")?.to_str().ok()?.parse().ok();
    context.grpc_status.or_else(|| written(context.response_trailers)).or_else(|| written(context.response_headers))
}

fn grpc_number(context: &LogContext<'_>) -> Plain {
    grpc_status(context).map_or(Plain::None, |status| Plain::Number(status.into()))
}

fn grpc_name(context: &LogContext<'_>) -> Plain {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let name = |status: u16| NAMES.get(usize::from(status)).copied();
    let value = |status: u16| name(status).map_or_else(|| Plain::Number(status.into()), Plain::Static);
    grpc_status(context).map_or(Plain::None, value)
}

fn plain(name: &str) -> Option<fn(&LogContext<'_>) -> Plain> {
    Some(match name {
        "RESPONSE_CODE" => |c| Plain::Number(c.status.unwrap_or(0).into()),
        "RESPONSE_FLAGS" => |c| Plain::Flags(c.flags),
        "RESPONSE_FLAGS_LONG" => |c| Plain::LongFlags(c.flags),
        "BYTES_RECEIVED" => |c| Plain::Number(c.bytes_received),
        "BYTES_SENT" => |c| Plain::Number(c.bytes_sent),
        "DURATION" => |c| millis(c.duration),
        "REQUEST_DURATION" => |c| millis(c.request_duration),
        "RESPONSE_DURATION" => |c| millis(c.response_duration),
        "REQUEST_TX_DURATION" => |c| millis(c.request_tx_duration),
        "RESPONSE_TX_DURATION" => |c| millis(c.response_tx_duration),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => |c| Plain::Number(c.attempts.into()),
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => |c| address(c.upstream_host),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => |c| ip(c.upstream_host),
        "UPSTREAM_REMOTE_PORT" => |c| port(c.upstream_host),
        "UPSTREAM_LOCAL_ADDRESS" => |c| address(c.upstream_local),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => |c| ip(c.upstream_local),
        "UPSTREAM_LOCAL_PORT" => |c| port(c.upstream_local),
        "DOWNSTREAM_REMOTE_ADDRESS" => |c| address(c.downstream_remote),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => |c| ip(c.downstream_remote),
        "DOWNSTREAM_REMOTE_PORT" => |c| port(c.downstream_remote),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => |c| address(c.downstream_direct_remote),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => |c| ip(c.downstream_direct_remote),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => |c| port(c.downstream_direct_remote),
        "DOWNSTREAM_LOCAL_ADDRESS" => |c| address(c.downstream_local),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => |c| ip(c.downstream_local),
        "DOWNSTREAM_LOCAL_PORT" => |c| port(c.downstream_local),
        "CONNECTION_ID" => |c| c.connection_id.map_or(Plain::None, Plain::Number),
        _ => return None,
    })
}

fn text(name: &str) -> Option<for<'a> fn(&LogContext<'a>) -> Option<&'a str>> {
    Some(match name {
        "PROTOCOL" => |c| c.protocol,
        "RESPONSE_CODE_DETAILS" => |c| c.details,
        "CONNECTION_TERMINATION_DETAILS" => |c| c.termination_details,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => |c| c.upstream_failure,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => |c| c.downstream_failure,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => |c| c.upstream_cluster,
        "UPSTREAM_PEER_URI_SAN" => |c| c.upstream_peer.map(|peer| peer.uri()),
        "UPSTREAM_PEER_SUBJECT" => |c| c.upstream_peer.map(|peer| peer.subject()),
        "UPSTREAM_TLS_VERSION" => |c| c.upstream_tls_version,
        "DOWNSTREAM_PEER_URI_SAN" => |c| c.downstream_peer.map(|peer| peer.uri()),
        "DOWNSTREAM_PEER_SUBJECT" => |c| c.downstream_peer.map(|peer| peer.subject()),
        "DOWNSTREAM_PEER_SERIAL" => |c| c.downstream_peer.and_then(|peer| peer.serial()),
        "DOWNSTREAM_PEER_FINGERPRINT_256" => |c| c.downstream_peer.and_then(|peer| peer.fingerprint_sha256()),
        "DOWNSTREAM_LOCAL_URI_SAN" | "UPSTREAM_LOCAL_URI_SAN" => |c| c.local_identity,
        "DOWNSTREAM_TLS_VERSION" => |c| c.downstream_tls_version,
        "DOWNSTREAM_TLS_CIPHER" => |c| c.downstream_tls_cipher,
        "REQUESTED_SERVER_NAME" => |c| c.server_name,
        "ROUTE_NAME" => |c| c.route,
        "VIRTUAL_CLUSTER_NAME" => |_| None,
        "VIRTUAL_HOST_NAME" => |c| c.virtual_host,
        "HOSTNAME" => |c| c.hostname,
        "KASBAH_POLICY" => |c| c.policy,
        "KASBAH_DECISION" => |c| c.decision,
        "KASBAH_REASON" => |c| c.reason,
        _ => return None,
    })
}

impl<'a> Value<'a> {
    fn or_else(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::None => other(),
            some => some,
        }
    }

    /// Appends the value, at most so many of its bytes.
    pub(super) fn write(&self, style: Style, len_max: Option<usize>, out: &mut String) {
        let start = out.len();
        match self {
            Self::None | Self::Text("") => {}
            Self::Text(text) => write_peer(text.as_bytes(), style, out),
            Self::Bytes(bytes) => write_peer(bytes, style, out),
            Self::Owned(text) => write_peer(text.as_bytes(), style, out),
            Self::Plain(plain) => plain.write(out),
        }
        if out.len() == start && style != Style::Header {
            out.push('-');
        }
        if let Some(max) = len_max.filter(|max| out.len() - start > *max) {
            let mut end = start + max;
            while !out.is_char_boundary(end) {
                end -= 1;
            }
            out.truncate(end);
        }
    }
}

impl Plain {
    pub(super) fn write(&self, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::None => Ok(()),
            Self::Number(number) => write!(out, "{number}"),
            Self::Address(address) => write!(out, "{address}"),
            Self::Ip(ip) => write!(out, "{ip}"),
            Self::Static(text) => out.write_str(text),
            Self::Flags(flags) => {
                flags.write_short(out);
                Ok(())
            }
            Self::LongFlags(flags) => {
                flags.write_long(out);
                Ok(())
            }
        };
    }
}

/// Text that a peer may have chosen.
fn write_peer(bytes: &[u8], style: Style, out: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match (style, c) {
                (Style::Raw, c) => out.push(c),
                (Style::Header, c) => out.extend(Some(c).filter(|c| !c.is_control())),
                (Style::Line, '"' | '\\') => out.extend(['\\', c]),
                (Style::Line, c) if c.is_control() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                (Style::Line, c) => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}
