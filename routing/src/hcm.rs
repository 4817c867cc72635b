//! How requests are read from a connection: codec, filters, identity headers, limits, logs.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::http_connection_manager as options;

use crate::access_log::AccessLog;
use crate::config::{At, ConfigError, each, flag, limit, not_supported, number, optional_duration, percent, required};
use crate::filters::{FilterKind, HttpFilter};
use crate::request::{EscapedSlashes, PathOptions};
use crate::route::RouteTable;

/// Reads requests from a connection and answers them.
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    /// The prefix of its metrics.
    pub stat_prefix: Arc<str>,
    /// Which HTTP is spoken.
    pub codec: Codec,
    /// Where the routes are.
    pub routes: RouteSource,
    /// The filters in order; a router is the last of them.
    pub filters: Vec<HttpFilter>,
    /// What becomes of `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// What we put into `x-forwarded-client-cert` about the peer.
    pub client_cert_details: ClientCertDetails,
    /// Its logs.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Upgrades that are passed on, in lower case, such as `websocket`.
    pub upgrades: Vec<Box<str>>,
    /// How paths are read.
    pub path: PathOptions,
    /// The value of the `server` header that we write; none keeps Envoy's default name away from clients.
    pub server_name: Option<Arc<str>>,
    /// When that header is written.
    pub server_header: ServerHeader,
    /// The value that is added to `via`.
    pub via: Option<Arc<str>>,
    /// Addresses and forwarding headers.
    pub forwarding: Forwarding,
    /// The request's identifier.
    pub request_id: RequestId,
    /// Limits of sizes and counts.
    pub limits: Limits,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// Settings of HTTP/2.
    pub http2: Http2Options,
    /// The share of requests that are traced, in percent; none if tracing is off.
    pub trace_percent: Option<f64>,
    /// Whether HTTP/1.0 is answered.
    pub accept_http10: bool,
    /// What becomes of header names with an underscore.
    pub underscores: Underscores,
}

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Whatever the client begins with.
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where routes are.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// In a route resource of this name.
    Rds(Arc<str>),
    /// Here.
    Inline(Arc<RouteTable>),
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// It is removed.
    Sanitize,
    /// It is passed on if the peer is authenticated.
    ForwardOnly,
    /// The peer is appended if it is authenticated, otherwise the header is removed.
    AppendForward,
    /// It is replaced by the peer.
    SanitizeSet,
    /// It is passed on whoever sent it.
    AlwaysForwardOnly,
}

/// What we tell about the peer in `x-forwarded-client-cert`; `By` and `Hash` are always told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    /// The certificate's subject.
    pub subject: bool,
    /// The certificate.
    pub cert: bool,
    /// The whole chain.
    pub chain: bool,
    /// Its DNS names.
    pub dns: bool,
    /// Its URI name.
    pub uri: bool,
}

/// When the `server` header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always.
    Overwrite,
    /// If the upstream wrote none.
    AppendIfAbsent,
    /// Never.
    PassThrough,
}

/// Addresses and forwarding headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Whether we are an edge, where the connection's own address counts and is put into `x-forwarded-for`.
    pub use_remote_address: bool,
    /// How many proxies in front of us are trusted to have appended to `x-forwarded-for`.
    pub trusted_hops: u32,
    /// Whether nothing is appended to `x-forwarded-for`.
    pub skip_append: bool,
    /// Whether the port is removed from the host before routes are matched.
    pub strip_any_port: bool,
}

/// The request's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Whether one is made where there is none.
    pub generate: bool,
    /// Whether one from outside is kept at an edge.
    pub preserve_external: bool,
    /// Whether the client is told.
    pub in_response: bool,
}

/// Limits of sizes and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all request headers together.
    pub headers_bytes_max: u32,
    /// Number of request headers.
    pub headers_max: u32,
    /// Requests per connection.
    pub requests_per_connection_max: Option<u32>,
}

/// Limits of time; none means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From a request's first byte to its last.
    pub request: Option<Duration>,
    /// From a request's first byte to the end of its headers.
    pub headers: Option<Duration>,
    /// Without a byte in either direction of a stream.
    pub stream_idle: Option<Duration>,
    /// Without a request on a connection.
    pub idle: Option<Duration>,
    /// The life of a connection.
    pub connection: Option<Duration>,
    /// The life of a stream.
    pub stream: Option<Duration>,
    /// Between saying that a connection will end and ending it.
    pub drain: Duration,
}

/// Settings of HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at once on a connection.
    pub concurrent_streams_max: Option<u32>,
    /// The initial window of a stream, in bytes.
    pub stream_window: Option<u32>,
    /// The initial window of a connection, in bytes.
    pub connection_window: Option<u32>,
    /// Whether extended CONNECT is allowed.
    pub allow_connect: bool,
}

/// What becomes of header names with an underscore, which some backends take for a dash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    /// They are passed on.
    Allow,
    /// The request is refused.
    Refuse,
    /// They are removed.
    Drop,
}

impl HttpConnectionManager {
    pub(crate) fn compile(value: &pb::HttpConnectionManager) -> Result<Self, ConfigError> {
        let common = value.common_http_protocol_options.unwrap_or_default();
        Ok(Self {
            stat_prefix: value.stat_prefix.as_str().into(),
            codec: Codec::compile(value.codec_type)?,
            routes: RouteSource::compile(value.route_specifier.as_ref())?,
            filters: filters(&value.http_filters)?,
            forward_client_cert: ForwardClientCert::compile(value.forward_client_cert_details)?,
            client_cert_details: ClientCertDetails::compile(value.set_current_client_cert_details.as_ref()),
            access_logs: AccessLog::compile_all("access_log", &value.access_log)?,
            upgrades: upgrades(&value.upgrade_configs)?,
            path: path_options(value)?,
            server_name: Some(value.server_name.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            server_header: ServerHeader::compile(value.server_header_transformation)?,
            via: Some(value.via.as_str()).filter(|via| !via.is_empty()).map(Into::into),
            forwarding: Forwarding::compile(value),
            request_id: RequestId {
                generate: flag(value.generate_request_id.as_ref(), true),
                preserve_external: value.preserve_external_request_id,
                in_response: value.always_set_request_id_in_response,
            },
            limits: Limits {
                headers_bytes_max: number(value.max_request_headers_kb.as_ref()).unwrap_or(60).saturating_mul(1024),
                headers_max: number(common.max_headers_count.as_ref()).unwrap_or(100),
                requests_per_connection_max: number(common.max_requests_per_connection.as_ref()).filter(|max| *max > 0),
            },
            timeouts: Timeouts::compile(value, &common)?,
            http2: Http2Options::compile(value.http2_protocol_options.as_ref()),
            trace_percent: value.tracing.as_ref().map(trace_percent).transpose().at("tracing")?,
            accept_http10: value.http_protocol_options.as_ref().is_some_and(|http1| http1.accept_http_10),
            underscores: Underscores::compile(common.headers_with_underscores_action)?,
        })
    }

    /// Whether this upgrade is passed on, unless a route says otherwise.
    pub fn allows_upgrade(&self, protocol: &str) -> bool {
        self.upgrades.iter().any(|allowed| allowed.eq_ignore_ascii_case(protocol))
    }

    /// Whether WebSockets are passed on, unless a route says otherwise.
    pub fn allows_websocket(&self) -> bool {
        self.allows_upgrade("websocket")
    }
}

impl Codec {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        match options::CodecType::try_from(value) {
            Ok(options::CodecType::Auto) => Ok(Self::Auto),
            Ok(options::CodecType::Http1) => Ok(Self::Http1),
            Ok(options::CodecType::Http2) => Ok(Self::Http2),
            Ok(options::CodecType::Http3) | Err(_) => not_supported("HTTP/3").at("codec_type"),
        }
    }
}

impl RouteSource {
    fn compile(value: Option<&options::RouteSpecifier>) -> Result<Self, ConfigError> {
        match required(value).at("route_specifier")? {
            options::RouteSpecifier::Rds(rds) if rds.route_config_name.is_empty() => {
                Err(ConfigError::new("is required").under("rds.route_config_name"))
            }
            options::RouteSpecifier::Rds(rds) => Ok(Self::Rds(rds.route_config_name.as_str().into())),
            options::RouteSpecifier::RouteConfig(table) => {
                Ok(Self::Inline(Arc::new(RouteTable::compile_part(table).at("route_config")?)))
            }
            options::RouteSpecifier::ScopedRoutes(_) => not_supported("scoped routes").at("scoped_routes"),
        }
    }
}

impl ForwardClientCert {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        use options::ForwardClientCertDetails as Details;
        match Details::try_from(value) {
            Ok(Details::Sanitize) => Ok(Self::Sanitize),
            Ok(Details::ForwardOnly) => Ok(Self::ForwardOnly),
            Ok(Details::AppendForward) => Ok(Self::AppendForward),
            Ok(Details::SanitizeSet) => Ok(Self::SanitizeSet),
            Ok(Details::AlwaysForwardOnly) => Ok(Self::AlwaysForwardOnly),
            Err(_) => Err(ConfigError::new("unknown value").under("forward_client_cert_details")),
        }
    }
}

impl ClientCertDetails {
    fn compile(value: Option<&options::SetCurrentClientCertDetails>) -> Self {
        value.map_or_else(Self::default, |value| Self {
            subject: flag(value.subject.as_ref(), false),
            cert: value.cert,
            chain: value.chain,
            dns: value.dns,
            uri: value.uri,
        })
    }
}

impl ServerHeader {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        use options::ServerHeaderTransformation as Transformation;
        match Transformation::try_from(value) {
            Ok(Transformation::Overwrite) => Ok(Self::Overwrite),
            Ok(Transformation::AppendIfAbsent) => Ok(Self::AppendIfAbsent),
            Ok(Transformation::PassThrough) => Ok(Self::PassThrough),
            Err(_) => Err(ConfigError::new("unknown value").under("server_header_transformation")),
        }
    }
}

impl Forwarding {
    fn compile(value: &pb::HttpConnectionManager) -> Self {
        let any_port = matches!(value.strip_port_mode, Some(options::StripPortMode::StripAnyHostPort(true)));
        Self {
            use_remote_address: flag(value.use_remote_address.as_ref(), false),
            trusted_hops: value.xff_num_trusted_hops,
            skip_append: value.skip_xff_append,
            strip_any_port: any_port,
        }
    }
}

impl Timeouts {
    fn compile(value: &pb::HttpConnectionManager, common: &core::HttpProtocolOptions) -> Result<Self, ConfigError> {
        let field = "common_http_protocol_options";
        let defaulting = |name, value: Option<_>, default| match value {
            None => Ok(Some(default)),
            some => limit(name, some),
        };
        Ok(Self {
            request: limit("request_timeout", value.request_timeout.as_ref())?,
            headers: limit("request_headers_timeout", value.request_headers_timeout.as_ref())?,
            stream_idle: defaulting("stream_idle_timeout", value.stream_idle_timeout.as_ref(), STREAM_IDLE_TIMEOUT)?,
            idle: defaulting("idle_timeout", common.idle_timeout.as_ref(), IDLE_TIMEOUT).at(field)?,
            connection: limit("max_connection_duration", common.max_connection_duration.as_ref()).at(field)?,
            stream: limit("max_stream_duration", common.max_stream_duration.as_ref()).at(field)?,
            drain: optional_duration("drain_timeout", value.drain_timeout.as_ref())?.unwrap_or(DRAIN_TIMEOUT),
        })
    }
}

impl Http2Options {
    pub(crate) fn compile(value: Option<&core::Http2ProtocolOptions>) -> Self {
        value.map_or_else(Self::default, |value| Self {
            concurrent_streams_max: number(value.max_concurrent_streams.as_ref()),
            stream_window: number(value.initial_stream_window_size.as_ref()),
            connection_window: number(value.initial_connection_window_size.as_ref()),
            allow_connect: value.allow_connect,
        })
    }
}

impl Underscores {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
        match Action::try_from(value) {
            Ok(Action::Allow) => Ok(Self::Allow),
            Ok(Action::RejectRequest) => Ok(Self::Refuse),
            Ok(Action::DropHeader) => Ok(Self::Drop),
            Err(_) => {
                Err(ConfigError::new("unknown value")
                    .under("common_http_protocol_options.headers_with_underscores_action"))
            }
        }
    }
}

/// The filters in order. The router must be the last one, since nothing behind it would ever run.
fn filters(list: &[pb::HttpFilter]) -> Result<Vec<HttpFilter>, ConfigError> {
    let filters: Vec<HttpFilter> = each("http_filters", list, HttpFilter::compile)?.into_iter().flatten().collect();
    let is_router = |filter: &HttpFilter| matches!(filter.kind, FilterKind::Router(_));
    match filters.split_last() {
        Some((last, others)) if is_router(last) && !others.iter().any(is_router) => Ok(filters),
        _ => Err(ConfigError::new("the router must be the last filter, and the only one").under("http_filters")),
    }
}

fn upgrades(list: &[options::UpgradeConfig]) -> Result<Vec<Box<str>>, ConfigError> {
    let kept = list.iter().filter(|upgrade| flag(upgrade.enabled.as_ref(), true));
    kept.map(|upgrade| match upgrade.filters.is_empty() {
        true => Ok(upgrade.upgrade_type.to_ascii_lowercase().into()),
        false => not_supported("filters of an upgrade").at("upgrade_configs"),
    })
    .collect()
}

/// We are stricter than asked: whoever normalises at all also merges slashes, and what is left open is refused.
fn path_options(value: &pb::HttpConnectionManager) -> Result<PathOptions, ConfigError> {
    use options::PathWithEscapedSlashesAction as Action;
    let escaped_slashes = match Action::try_from(value.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::RejectRequest) => EscapedSlashes::Refuse,
        Ok(Action::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(Action::UnescapeAndRedirect | Action::UnescapeAndForward) => EscapedSlashes::Decode,
        Err(_) => return Err(ConfigError::new("unknown value").under("path_with_escaped_slashes_action")),
    };
    let normalize = flag(value.normalize_path.as_ref(), true);
    Ok(PathOptions { normalize, merge_slashes: true, escaped_slashes })
}

fn trace_percent(value: &options::Tracing) -> Result<f64, ConfigError> {
    value.random_sampling.as_ref().map_or(Ok(100.0), percent).at("random_sampling")
}

const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
