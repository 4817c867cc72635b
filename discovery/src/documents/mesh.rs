//! Mesh-wide settings: the ConfigMap `istio` that carries Istio's `MeshConfig` as YAML text, and our `RateLimit` kind.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::duration::Span;
use super::shapes::{Labels, MatchLabels, StringMatch};
use super::virtual_service::Retries;

/// The data of a ConfigMap; only the mesh's own is read further.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConfigMapData {
    pub(crate) mesh: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct MeshConfig {
    pub(crate) trust_domain: Option<String>,
    pub(crate) trust_domain_aliases: Vec<String>,
    pub(crate) root_namespace: Option<String>,
    pub(crate) enable_auto_mtls: Option<bool>,
    pub(crate) outbound_traffic_policy: TrafficMode,
    pub(crate) access_log_file: String,
    pub(crate) access_log_format: String,
    pub(crate) access_log_encoding: LogEncoding,
    pub(crate) extension_providers: Vec<ExtensionProvider>,
    pub(crate) default_providers: DefaultProviders,
    pub(crate) default_http_retry_policy: Option<Retries>,
    pub(crate) connect_timeout: Option<Span>,
    pub(crate) path_normalization: PathNormalization,
    pub(crate) default_service_export_to: Vec<String>,
    pub(crate) default_virtual_service_export_to: Vec<String>,
    pub(crate) default_destination_rule_export_to: Vec<String>,
    pub(crate) dns_refresh_rate: Option<Span>,
    // Accepted, without effect.
    pub(crate) inbound_traffic_policy: IgnoredAny,
    pub(crate) default_config: IgnoredAny,
    pub(crate) ca_certificates: IgnoredAny,
    pub(crate) certificates: IgnoredAny,
    pub(crate) config_sources: IgnoredAny,
    pub(crate) disable_envoy_listener_log: IgnoredAny,
    pub(crate) discovery_selectors: IgnoredAny,
    pub(crate) enable_envoy_access_log_service: IgnoredAny,
    pub(crate) enable_prometheus_merge: IgnoredAny,
    pub(crate) enable_tracing: IgnoredAny,
    pub(crate) h2_upgrade_policy: IgnoredAny,
    pub(crate) inbound_cluster_stat_name: IgnoredAny,
    pub(crate) ingress_class: IgnoredAny,
    pub(crate) ingress_controller_mode: IgnoredAny,
    pub(crate) ingress_selector: IgnoredAny,
    pub(crate) ingress_service: IgnoredAny,
    pub(crate) locality_lb_setting: IgnoredAny,
    #[serde(rename = "meshMTLS")]
    pub(crate) mesh_mtls: IgnoredAny,
    pub(crate) outbound_cluster_stat_name: IgnoredAny,
    pub(crate) protocol_detection_timeout: IgnoredAny,
    pub(crate) proxy_http_port: IgnoredAny,
    pub(crate) proxy_inbound_listen_port: IgnoredAny,
    pub(crate) proxy_listen_port: IgnoredAny,
    pub(crate) service_settings: IgnoredAny,
    pub(crate) service_scope_configs: IgnoredAny,
    pub(crate) service_entry_visibility: IgnoredAny,
    pub(crate) default_traffic_policy: IgnoredAny,
    pub(crate) tcp_keepalive: IgnoredAny,
    pub(crate) tls_defaults: IgnoredAny,
    pub(crate) verify_certificate_at_client: IgnoredAny,
    pub(crate) ca: IgnoredAny,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TrafficMode {
    pub(crate) mode: OutboundMode,
    pub(crate) egress_proxy: IgnoredAny,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OutboundMode {
    RegistryOnly,
    #[default]
    AllowAny,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum LogEncoding {
    #[default]
    #[serde(rename = "TEXT")]
    Text,
    #[serde(rename = "JSON")]
    Json,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PathNormalization {
    pub(crate) normalization: Normalization,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Normalization {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DefaultProviders {
    pub(crate) tracing: Vec<String>,
    pub(crate) metrics: Vec<String>,
    pub(crate) access_logging: Vec<String>,
}

/// One named provider. Exactly one of the blocks is to be given.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtensionProvider {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    #[serde(default)]
    pub(crate) envoy_ext_authz_http: Option<ExtAuthzHttp>,
    #[serde(default)]
    pub(crate) envoy_http_als: Option<AccessLogService>,
    #[serde(default)]
    pub(crate) envoy_tcp_als: Option<AccessLogService>,
    #[serde(default)]
    pub(crate) envoy_file_access_log: Option<FileAccessLog>,
    #[serde(default)]
    pub(crate) envoy_otel_als: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) prometheus: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) opentelemetry: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) zipkin: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) lightstep: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) datadog: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) stackdriver: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) skywalking: Option<IgnoredAny>,
    #[serde(default)]
    pub(crate) sds: Option<IgnoredAny>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtAuthzGrpc {
    pub(crate) service: String,
    pub(crate) port: u32,
    #[serde(default)]
    pub(crate) timeout: Option<Span>,
    #[serde(default)]
    pub(crate) fail_open: bool,
    #[serde(default)]
    pub(crate) clear_route_cache: bool,
    #[serde(default)]
    pub(crate) status_on_error: String,
    #[serde(default)]
    pub(crate) include_request_body_in_check: Option<RequestBody>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtAuthzHttp {
    pub(crate) service: String,
    pub(crate) port: u32,
    #[serde(default)]
    pub(crate) timeout: Option<Span>,
    #[serde(default)]
    pub(crate) path_prefix: String,
    #[serde(default)]
    pub(crate) fail_open: bool,
    #[serde(default)]
    pub(crate) clear_route_cache: bool,
    #[serde(default)]
    pub(crate) status_on_error: String,
    #[serde(default)]
    pub(crate) include_headers_in_check: Vec<String>,
    #[serde(default)]
    pub(crate) include_request_headers_in_check: Vec<String>,
    #[serde(default)]
    pub(crate) include_additional_headers_in_check: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) include_request_body_in_check: Option<RequestBody>,
    #[serde(default)]
    pub(crate) headers_to_upstream_on_allow: Vec<String>,
    #[serde(default)]
    pub(crate) headers_to_downstream_on_deny: Vec<String>,
    #[serde(default)]
    pub(crate) headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RequestBody {
    pub(crate) max_request_bytes: u32,
    pub(crate) allow_partial_message: bool,
    pub(crate) pack_as_bytes: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AccessLogService {
    pub(crate) service: String,
    pub(crate) port: u32,
    #[serde(default)]
    pub(crate) log_name: String,
    #[serde(default)]
    pub(crate) filter_state_objects_to_log: Vec<String>,
    #[serde(default)]
    pub(crate) additional_request_headers_to_log: Vec<String>,
    #[serde(default)]
    pub(crate) additional_response_headers_to_log: Vec<String>,
    #[serde(default)]
    pub(crate) additional_response_trailers_to_log: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FileAccessLog {
    pub(crate) path: String,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) omit_empty_values: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LogFormat {
    pub(crate) text: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl MeshConfig {
    pub(crate) fn root_namespace(&self) -> &str {
        self.root_namespace.as_deref().unwrap_or("istio-system")
    }

    pub(crate) fn auto_mtls(&self) -> bool {
        self.enable_auto_mtls.unwrap_or(true)
    }

    pub(crate) fn provider(&self, name: &str) -> Option<&ExtensionProvider> {
        self.extension_providers.iter().find(|provider| provider.name == name)
    }
}

/// `kasbah.dev/v1alpha1 RateLimit`: ask a rate limit service about requests of the selected workloads.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RateLimit {
    #[serde(default)]
    pub(crate) selector: Option<MatchLabels>,
    pub(crate) provider: RateLimitProvider,
    pub(crate) domain: String,
    #[serde(default)]
    pub(crate) failure_mode_deny: bool,
    #[serde(default)]
    pub(crate) timeout: Option<Span>,
    pub(crate) rules: Vec<RateLimitRule>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RateLimitProvider {
    pub(crate) service: String,
    pub(crate) port: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RateLimitRule {
    #[serde(rename = "match")]
    pub(crate) matches: RateLimitMatch,
    pub(crate) descriptors: Vec<Descriptor>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RateLimitMatch {
    pub(crate) path: Option<StringMatch>,
    pub(crate) methods: Vec<String>,
}

/// One entry of the descriptor: a fixed value, or one taken from the request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Descriptor {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    pub(crate) header: Option<String>,
    pub(crate) remote_address: bool,
}

/// A selector without labels selects everything.
pub(crate) fn selects(selector: Option<&MatchLabels>, labels: &Labels) -> bool {
    selector.is_none_or(|selector| super::shapes::labels_match(&selector.match_labels, labels))
}
