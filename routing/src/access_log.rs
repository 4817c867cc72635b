//! Access logs: where lines go, what they look like, which requests get one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::{SubstitutionFormatString, substitution_format_string};
use envoy_types::pb::envoy::extensions::access_loggers::{file::v3 as file, grpc::v3 as grpc, stream::v3 as stream};
use envoy_types::pb::google::protobuf::{Any, Struct};
use pb::access_log_filter::FilterSpecifier;
use pb::comparison_filter::Op;

use crate::config::{
    At, ConfigError, Fraction, decode, each, is_type, not_supported, number, optional_duration, required, type_name,
};
use crate::filters::GrpcTarget;
use crate::format::{Format, FormatError, JsonFormat, LogContext, ResponseFlags};
use crate::matcher::{HeaderMatcher, Reading};

/// One access log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: LogSink,
    format: LogFormat,
    filter: Option<Filter>,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub enum LogSink {
    /// A file, appended to.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// An access log service; it gets entries instead of lines.
    Grpc(Arc<GrpcLog>),
}

/// An access log service.
#[derive(Clone, Debug)]
pub struct GrpcLog {
    /// The log's name there.
    pub log_name: Arc<str>,
    /// The service.
    pub service: GrpcTarget,
    /// How long entries are gathered.
    pub flush_interval: Duration,
    /// How many bytes of entries are gathered.
    pub buffer_bytes_max: u32,
    /// Request headers that entries hold beside the usual ones.
    pub request_headers: Vec<Box<str>>,
    /// Response headers that entries hold beside the usual ones.
    pub response_headers: Vec<Box<str>>,
    /// Whether entries are of connections instead of requests.
    pub tcp: bool,
}

#[derive(Clone, Debug)]
enum LogFormat {
    Text(Format),
    Json(JsonFormat),
    None,
}

#[derive(Clone, Debug)]
enum Filter {
    Status(Op, u64),
    Duration(Op, u64),
    Flags(ResponseFlags),
    NotHealthCheck,
    Grpc { statuses: Vec<u16>, exclude: bool },
    Header(HeaderMatcher),
    Share(Fraction),
    All(Vec<Self>),
    Any(Vec<Self>),
}

impl AccessLog {
    pub(crate) fn compile_all(field: &str, list: &[pb::AccessLog]) -> Result<Vec<Arc<Self>>, ConfigError> {
        each(field, list, |log| Self::compile(log).map(Arc::new))
    }

    fn compile(value: &pb::AccessLog) -> Result<Self, ConfigError> {
        let pb::access_log::ConfigType::TypedConfig(any) = required(value.config_type.as_ref()).at("typed_config")?;
        let (sink, format) = sink(any).at("typed_config")?;
        let filter = value.filter.as_ref().map(Filter::compile).transpose().at("filter")?;
        Ok(Self { sink, format, filter })
    }

    /// Whether this request gets a line.
    pub fn wants(&self, context: &LogContext<'_>, dice: u64) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.passes(context, dice))
    }

    /// Appends the line with its end. A service gets no lines.
    pub fn render(&self, context: &LogContext<'_>, out: &mut String) {
        match &self.format {
            LogFormat::Text(format) => format.render(context, out),
            LogFormat::Json(format) => {
                format.render(context, out);
                out.push('\n');
            }
            LogFormat::None => {}
        }
    }

    /// A log in Istio's default text format, for a proxy whose configuration names none.
    pub fn default_text(sink: LogSink) -> Result<Self, FormatError> {
        Ok(Self { sink, format: LogFormat::Text(Format::parse(DEFAULT_TEXT)?), filter: None })
    }
}

fn sink(any: &Any) -> Result<(LogSink, LogFormat), ConfigError> {
    if is_type::<file::FileAccessLog>(any) {
        let value: file::FileAccessLog = decode(any)?;
        return Ok((file_sink(&value.path)?, file_format(value.access_log_format.as_ref())?));
    }
    if is_type::<stream::StdoutAccessLog>(any) {
        let value: stream::StdoutAccessLog = decode(any)?;
        let format =
            value.access_log_format.map(|stream::stdout_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok((LogSink::Stdout, log_format(format.as_ref())?));
    }
    if is_type::<stream::StderrAccessLog>(any) {
        let value: stream::StderrAccessLog = decode(any)?;
        let format =
            value.access_log_format.map(|stream::stderr_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok((LogSink::Stderr, log_format(format.as_ref())?));
    }
    if is_type::<grpc::HttpGrpcAccessLogConfig>(any) {
        return http_grpc(&decode(any)?).map(|log| (log, LogFormat::None));
    }
    if is_type::<grpc::TcpGrpcAccessLogConfig>(any) {
        let value: grpc::TcpGrpcAccessLogConfig = decode(any)?;
        let log = grpc_log(value.common_config.as_ref(), true)?;
        return Ok((LogSink::Grpc(Arc::new(log)), LogFormat::None));
    }
    not_supported(&format!("the access log {}", type_name(any)))
}

fn file_sink(path: &str) -> Result<LogSink, ConfigError> {
    match path {
        "" => Err(ConfigError::new("is required").under("path")),
        "/dev/stdout" => Ok(LogSink::Stdout),
        "/dev/stderr" => Ok(LogSink::Stderr),
        path => Ok(LogSink::File(path.into())),
    }
}

fn file_format(value: Option<&file::file_access_log::AccessLogFormat>) -> Result<LogFormat, ConfigError> {
    use file::file_access_log::AccessLogFormat as Choice;
    match value {
        None => log_format(None),
        Some(Choice::Format(text)) => self::text(text).at("format"),
        Some(Choice::JsonFormat(object)) => json(object, false).at("json_format"),
        Some(Choice::TypedJsonFormat(object)) => json(object, false).at("typed_json_format"),
        Some(Choice::LogFormat(format)) => log_format(Some(format)).at("log_format"),
    }
}

fn log_format(value: Option<&SubstitutionFormatString>) -> Result<LogFormat, ConfigError> {
    use substitution_format_string::Format as Choice;
    let Some(value) = value else { return text(ENVOY_DEFAULT_TEXT) };
    match value.format.as_ref() {
        None => Err(ConfigError::new("is required").under("format")),
        Some(Choice::TextFormat(format)) => text(format).at("text_format"),
        Some(Choice::JsonFormat(object)) => json(object, value.omit_empty_values).at("json_format"),
        Some(Choice::TextFormatSource(_)) => not_supported("a format from elsewhere").at("text_format_source"),
    }
}

fn text(format: &str) -> Result<LogFormat, ConfigError> {
    Format::parse(format).map(LogFormat::Text).map_err(|error| ConfigError::new(error.to_string()))
}

fn json(object: &Struct, omit: bool) -> Result<LogFormat, ConfigError> {
    JsonFormat::compile(object, omit).map(LogFormat::Json).map_err(|error| ConfigError::new(error.to_string()))
}

fn http_grpc(value: &grpc::HttpGrpcAccessLogConfig) -> Result<LogSink, ConfigError> {
    let names = |list: &[String]| list.iter().map(|name| name.to_ascii_lowercase().into()).collect();
    let mut log = grpc_log(value.common_config.as_ref(), false)?;
    log.request_headers = names(&value.additional_request_headers_to_log);
    log.response_headers = names(&value.additional_response_headers_to_log);
    Ok(LogSink::Grpc(Arc::new(log)))
}

fn grpc_log(value: Option<&grpc::CommonGrpcAccessLogConfig>, tcp: bool) -> Result<GrpcLog, ConfigError> {
    let value = required(value).at("common_config")?;
    let interval = optional_duration("buffer_flush_interval", value.buffer_flush_interval.as_ref())?;
    Ok(GrpcLog {
        log_name: value.log_name.as_str().into(),
        service: GrpcTarget::compile(value.grpc_service.as_ref()).at("common_config.grpc_service")?,
        flush_interval: interval.unwrap_or(FLUSH_INTERVAL),
        buffer_bytes_max: number(value.buffer_size_bytes.as_ref()).unwrap_or(FLUSH_BYTES),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        tcp,
    })
}

impl Filter {
    fn compile(value: &pb::AccessLogFilter) -> Result<Self, ConfigError> {
        Ok(match required(value.filter_specifier.as_ref())? {
            FilterSpecifier::StatusCodeFilter(filter) => {
                let (op, value) = comparison(filter.comparison.as_ref()).at("status_code_filter")?;
                Self::Status(op, value)
            }
            FilterSpecifier::DurationFilter(filter) => {
                let (op, value) = comparison(filter.comparison.as_ref()).at("duration_filter")?;
                Self::Duration(op, value)
            }
            FilterSpecifier::NotHealthCheckFilter(_) => Self::NotHealthCheck,
            FilterSpecifier::ResponseFlagFilter(filter) => {
                Self::Flags(flags(&filter.flags).at("response_flag_filter.flags")?)
            }
            FilterSpecifier::GrpcStatusFilter(filter) => Self::Grpc {
                statuses: filter.statuses.iter().filter_map(|status| u16::try_from(*status).ok()).collect(),
                exclude: filter.exclude,
            },
            FilterSpecifier::HeaderFilter(filter) => Self::Header(header(filter).at("header_filter.header")?),
            FilterSpecifier::RuntimeFilter(filter) => {
                let share = filter.percent_sampled.as_ref().map_or(Ok(Fraction::NONE), Fraction::compile);
                Self::Share(share.at("runtime_filter.percent_sampled")?)
            }
            FilterSpecifier::AndFilter(and) => Self::All(each("and_filter.filters", &and.filters, Self::compile)?),
            FilterSpecifier::OrFilter(or) => Self::Any(each("or_filter.filters", &or.filters, Self::compile)?),
            FilterSpecifier::TraceableFilter(_) => return not_supported("a filter for traced requests"),
            FilterSpecifier::MetadataFilter(_) => return not_supported("a filter for metadata"),
            FilterSpecifier::LogTypeFilter(_) => return not_supported("a filter for kinds of entries"),
            FilterSpecifier::ExtensionFilter(_) => return not_supported("a filter extension"),
        })
    }

    fn passes(&self, context: &LogContext<'_>, dice: u64) -> bool {
        match self {
            Self::Status(op, value) => compare(*op, context.status.unwrap_or(0).into(), *value),
            Self::Duration(op, value) => {
                let millis = context.duration.map_or(0, |duration| duration.as_millis());
                compare(*op, u64::try_from(millis).unwrap_or(u64::MAX), *value)
            }
            Self::Flags(flags) => context.flags.intersects(*flags),
            Self::NotHealthCheck => !is_health_check(context),
            Self::Grpc { statuses, exclude } => {
                context.grpc_status.is_some_and(|status| statuses.contains(&status)) != *exclude
            }
            Self::Header(header) => context.request_headers.is_some_and(|headers| header.matches_headers(headers)),
            Self::Share(share) => share.includes(dice),
            Self::All(filters) => filters.iter().all(|filter| filter.passes(context, dice)),
            Self::Any(filters) => filters.iter().any(|filter| filter.passes(context, dice)),
        }
    }
}

fn header(filter: &pb::HeaderFilter) -> Result<HeaderMatcher, ConfigError> {
    let matcher =
        required(filter.header.as_ref()).and_then(|header| HeaderMatcher::compile(header, Reading::Joined))?;
    match matcher.is_pseudo() {
        true => not_supported("a pseudo-header").at("name"),
        false => Ok(matcher),
    }
}

fn flags(names: &[String]) -> Result<ResponseFlags, ConfigError> {
    if names.is_empty() {
        return Ok(ResponseFlags::all());
    }
    let mut all = ResponseFlags::default();
    for name in names {
        let flag = ResponseFlags::named(name);
        all.insert(flag.ok_or_else(|| ConfigError::new(format!("`{name}` is not a response flag")))?);
    }
    Ok(all)
}

fn comparison(value: Option<&pb::ComparisonFilter>) -> Result<(Op, u64), ConfigError> {
    let value = required(value).at("comparison")?;
    let op = Op::try_from(value.op).map_err(|_| ConfigError::new("unknown comparison").under("comparison.op"))?;
    let value = required(value.value.as_ref()).at("comparison.value")?;
    Ok((op, value.default_value.into()))
}

fn compare(op: Op, actual: u64, value: u64) -> bool {
    match op {
        Op::Eq => actual == value,
        Op::Ge => actual >= value,
        Op::Le => actual <= value,
        Op::Ne => actual != value,
    }
}

fn is_health_check(context: &LogContext<'_>) -> bool {
    let agent = context.request_headers.and_then(|headers| headers.get(http::header::USER_AGENT));
    agent.is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/") || agent.as_bytes() == b"Envoy/HC")
}

const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
const FLUSH_BYTES: u32 = 16 * 1024;

const ENVOY_DEFAULT_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n"
);

/// Istio's default text, with the deciding policy and our reason added at its end.
pub const DEFAULT_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% ",
    "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ",
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% ",
    "%DOWNSTREAM_PEER_URI_SAN% %KASBAH_POLICY% %KASBAH_REASON%\n"
);

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::RuntimeUInt32;
    use envoy_types::util::pack_any;

    use super::*;

    fn log(filter: Option<FilterSpecifier>, path: &str) -> Result<AccessLog, ConfigError> {
        let config = file::FileAccessLog { path: path.into(), access_log_format: None };
        AccessLog::compile(&pb::AccessLog {
            name: "log".into(),
            filter: filter.map(|filter| pb::AccessLogFilter { filter_specifier: Some(filter) }),
            config_type: Some(pb::access_log::ConfigType::TypedConfig(pack_any(config))),
        })
    }

    fn status_at_least(status: u32) -> FilterSpecifier {
        let value = RuntimeUInt32 { default_value: status, runtime_key: String::new() };
        let comparison = pb::ComparisonFilter { op: Op::Ge as i32, value: Some(value) };
        FilterSpecifier::StatusCodeFilter(pb::StatusCodeFilter { comparison: Some(comparison) })
    }

    #[test]
    fn filters_choose_what_is_logged() {
        let errors = log(Some(status_at_least(500)), "/log").unwrap();
        let context = |status| LogContext { status: Some(status), ..LogContext::default() };
        assert!(errors.wants(&context(500), 0));
        assert!(!errors.wants(&context(499), 0));
        assert!(log(None, "/log").unwrap().wants(&context(200), 0));
    }

    #[test]
    fn sinks_are_told_apart() {
        assert!(matches!(log(None, "/dev/stdout").unwrap().sink, LogSink::Stdout));
        assert!(matches!(log(None, "/var/log/x").unwrap().sink, LogSink::File(_)));
        assert!(log(None, "").is_err());
    }

    #[test]
    fn the_default_formats_compile() {
        let log = AccessLog::default_text(LogSink::Stdout).unwrap();
        let mut out = String::new();
        log.render(&LogContext::default(), &mut out);
        assert!(out.ends_with("- - -\n"), "{out}");
    }
}
