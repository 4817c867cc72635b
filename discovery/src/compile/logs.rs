//! Access logs: the mesh's file, and the services that it names as default providers.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3 as grpc;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use envoy_types::pb::google::protobuf::Any;

use super::Scope;
use super::canonical::pack;
use super::model::full_host;
use super::names::outbound_cluster;
use super::pb as short;
use crate::documents::mesh::{AccessLogService, ExtensionProvider, FileAccessLog, LogEncoding};

/// The logs of HTTP requests.
pub(super) fn http(scope: &Scope<'_>) -> Vec<pb::AccessLog> {
    let services = providers(scope).filter_map(|provider| provider.envoy_http_als.as_ref());
    let to_services = services.map(|service| {
        let config = grpc::HttpGrpcAccessLogConfig {
            common_config: Some(common(scope, service)),
            additional_request_headers_to_log: service.additional_request_headers_to_log.clone(),
            additional_response_headers_to_log: service.additional_response_headers_to_log.clone(),
            additional_response_trailers_to_log: service.additional_response_trailers_to_log.clone(),
        };
        log("envoy.access_loggers.http_grpc", pack(&config))
    });
    files(scope).into_iter().chain(to_services).collect()
}

/// The logs of TCP connections.
pub(super) fn tcp(scope: &Scope<'_>) -> Vec<pb::AccessLog> {
    let services = providers(scope).filter_map(|provider| provider.envoy_tcp_als.as_ref());
    let to_services = services.map(|service| {
        let config = grpc::TcpGrpcAccessLogConfig { common_config: Some(common(scope, service)) };
        log("envoy.access_loggers.tcp_grpc", pack(&config))
    });
    files(scope).into_iter().chain(to_services).collect()
}

fn providers<'a>(scope: &Scope<'a>) -> impl Iterator<Item = &'a ExtensionProvider> {
    let config = &scope.model.config;
    config.default_providers.access_logging.iter().filter_map(|name| config.provider(name))
}

fn files(scope: &Scope<'_>) -> Vec<pb::AccessLog> {
    let config = &scope.model.config;
    let mut logs = Vec::new();
    if !config.access_log_file.is_empty() {
        logs.push(to_file(&config.access_log_file, mesh_format(scope)));
    }
    for provider in providers(scope) {
        if let Some(own) = &provider.envoy_file_access_log {
            let path = if own.path.is_empty() { STDOUT } else { &own.path };
            logs.push(to_file(path, provider_format(scope, own)));
        }
    }
    logs
}

fn to_file(path: &str, format: core::SubstitutionFormatString) -> pb::AccessLog {
    if path == STDOUT {
        let format = stream::stdout_access_log::AccessLogFormat::LogFormat(format);
        let config = stream::StdoutAccessLog { access_log_format: Some(format) };
        return log("envoy.access_loggers.stdout", pack(&config));
    }
    let format = file::file_access_log::AccessLogFormat::LogFormat(format);
    let config = file::FileAccessLog { path: path.to_owned(), access_log_format: Some(format) };
    log("envoy.access_loggers.file", pack(&config))
}

fn mesh_format(scope: &Scope<'_>) -> core::SubstitutionFormatString {
    let config = &scope.model.config;
    match config.access_log_encoding {
        LogEncoding::Text if config.access_log_format.is_empty() => text(&default_text()),
        LogEncoding::Text => text(&config.access_log_format),
        LogEncoding::Json => {
            let own: Option<BTreeMap<String, String>> = serde_json::from_str(&config.access_log_format).ok();
            json(own.unwrap_or_else(default_fields))
        }
    }
}

fn provider_format(scope: &Scope<'_>, own: &FileAccessLog) -> core::SubstitutionFormatString {
    let mut format = match &own.log_format {
        Some(format) if !format.labels.is_empty() => json(format.labels.clone()),
        Some(crate::documents::mesh::LogFormat { text: Some(line), .. }) => text(line),
        _ => mesh_format(scope),
    };
    format.omit_empty_values = own.omit_empty_values;
    format
}

fn text(line: &str) -> core::SubstitutionFormatString {
    let line = if line.ends_with('\n') { line.to_owned() } else { format!("{line}\n") };
    let format = core::substitution_format_string::Format::TextFormatSource(short::text_source(&line));
    core::SubstitutionFormatString { format: Some(format), ..Default::default() }
}

fn json(fields: BTreeMap<String, String>) -> core::SubstitutionFormatString {
    let fields = fields.iter().map(|(name, value)| (name.as_str(), short::text_value(value)));
    let format = core::substitution_format_string::Format::JsonFormat(short::struct_of(fields));
    core::SubstitutionFormatString { format: Some(format), ..Default::default() }
}

/// The keys that Istio's JSON log has.
fn default_fields() -> BTreeMap<String, String> {
    FIELDS.iter().map(|(name, operator)| ((*name).to_owned(), (*operator).to_owned())).collect()
}

/// The same values on one line.
fn default_text() -> String {
    let operator = |wanted: &str| FIELDS.iter().find(|(name, _)| *name == wanted).map_or("-", |(_, operator)| operator);
    TEXT_ORDER.iter().map(|name| operator(name)).collect::<Vec<_>>().join(" ")
}

fn common(scope: &Scope<'_>, service: &AccessLogService) -> grpc::CommonGrpcAccessLogConfig {
    let host = service.service.rsplit('/').next().unwrap_or(&service.service);
    let host = full_host(host, scope.model.config.root_namespace());
    let log_name = if service.log_name.is_empty() { "http_envoy_accesslog" } else { &service.log_name };
    grpc::CommonGrpcAccessLogConfig {
        log_name: log_name.to_owned(),
        grpc_service: Some(short::grpc_service(outbound_cluster(service.port, "", &host), &host, None)),
        transport_api_version: core::ApiVersion::V3 as i32,
        filter_state_objects_to_log: service.filter_state_objects_to_log.clone(),
        ..Default::default()
    }
}

fn log(name: &str, config: Any) -> pb::AccessLog {
    let config_type = Some(pb::access_log::ConfigType::TypedConfig(config));
    pb::AccessLog { name: name.to_owned(), config_type, ..Default::default() }
}

const STDOUT: &str = "/dev/stdout";

const FIELDS: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    // Beyond Istio's: who called, as proven by its certificate.
    ("peer_principal", "%DOWNSTREAM_PEER_URI_SAN%"),
];

const TEXT_ORDER: &[&str] = &[
    "start_time",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
    "peer_principal",
];
