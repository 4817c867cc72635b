//! The HTTP connection manager of each kind of listener, with its filters in the order in which they run.
//!
//! CUSTOM authorization, tokens, DENY, ALLOW, AUDIT, rate limits, then what routes ask for (CORS, faults), then the router.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::filters::http as filters;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use pb::http_connection_manager as options;

use super::canonical::pack;
use super::pb as short;
use super::{Scope, authz, jwt, logs, network_filter, rate_limit};
use crate::documents::mesh::Normalization;

/// Where connections come from, which decides whom to believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// From the mesh to the own workload.
    Inbound,
    /// From the own workload.
    Outbound,
    /// From anywhere to a gateway.
    Gateway,
}

/// The network filter that speaks HTTP. `port` is the port that policies mean.
pub(super) fn manager(
    scope: &Scope<'_>,
    side: Side,
    stat_prefix: &str,
    port: Option<u16>,
    routes: options::RouteSpecifier,
) -> listener::Filter {
    let filters = match side {
        Side::Inbound => [policy_filters(scope, port), vec![router()]].concat(),
        Side::Outbound => [route_filters(), vec![router()]].concat(),
        Side::Gateway => [policy_filters(scope, port), route_filters(), vec![router()]].concat(),
    };
    let manager = pb::HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: filters,
        route_specifier: Some(routes),
        access_log: logs::http(scope),
        use_remote_address: short::flag(side == Side::Gateway),
        upgrade_configs: vec![options::UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        stream_idle_timeout: Some(short::seconds(STREAM_IDLE_SECS)),
        server_header_transformation: options::ServerHeaderTransformation::PassThrough as i32,
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(short::seconds(CONNECTION_IDLE_SECS)),
            // Some backends read `a_b` as `a-b`; what a policy did not see must not reach them that way.
            headers_with_underscores_action: match side {
                Side::Gateway => core::http_protocol_options::HeadersWithUnderscoresAction::RejectRequest as i32,
                Side::Inbound | Side::Outbound => 0,
            },
            ..Default::default()
        }),
        ..with_paths(scope, with_peer(side))
    };
    network_filter("envoy.filters.network.http_connection_manager", pack(&manager))
}

/// Who the peer was is told by the proxy that saw it, never by the peer.
fn with_peer(side: Side) -> pb::HttpConnectionManager {
    let details = |dns: bool| Some(options::SetCurrentClientCertDetails { uri: true, dns, ..Default::default() });
    let (forward, set) = match side {
        Side::Inbound => (options::ForwardClientCertDetails::SanitizeSet, details(false)),
        Side::Gateway => (options::ForwardClientCertDetails::SanitizeSet, details(true)),
        Side::Outbound => (options::ForwardClientCertDetails::Sanitize, None),
    };
    pb::HttpConnectionManager {
        forward_client_cert_details: forward as i32,
        set_current_client_cert_details: set,
        ..Default::default()
    }
}

/// Paths are normalized before any policy or route sees them.
fn with_paths(scope: &Scope<'_>, manager: pb::HttpConnectionManager) -> pb::HttpConnectionManager {
    use options::PathWithEscapedSlashesAction as Escaped;
    let (normalize, merge, escaped) = match scope.model.config.path_normalization.normalization {
        Normalization::None => (false, false, Escaped::KeepUnchanged),
        Normalization::Default | Normalization::Base => (true, false, Escaped::KeepUnchanged),
        Normalization::MergeSlashes => (true, true, Escaped::KeepUnchanged),
        Normalization::DecodeAndMergeSlashes => (true, true, Escaped::UnescapeAndForward),
    };
    pb::HttpConnectionManager {
        normalize_path: short::flag(normalize),
        merge_slashes: merge,
        path_with_escaped_slashes_action: escaped as i32,
        ..manager
    }
}

fn policy_filters(scope: &Scope<'_>, port: Option<u16>) -> Vec<pb::HttpFilter> {
    let target = authz::Target { namespace: &scope.node.namespace, labels: &scope.node.labels, port };
    let (before, after) = authz::http_filters(scope.model, target);
    let tokens = jwt::filter(scope.model, target).into_iter();
    before.into_iter().chain(tokens).chain(after).chain(rate_limit::filters(scope.model, target)).collect()
}

/// Filters that do nothing until a route asks for them. They are always there, so that such a route changes routes only.
fn route_filters() -> Vec<pb::HttpFilter> {
    vec![
        http_filter(CORS, pack(&filters::cors::v3::Cors::default())),
        http_filter(FAULT, pack(&filters::fault::v3::HttpFault::default())),
    ]
}

pub(super) fn router() -> pb::HttpFilter {
    http_filter("envoy.filters.http.router", pack(&filters::router::v3::Router::default()))
}

pub(super) fn http_filter(name: &str, config: Any) -> pb::HttpFilter {
    let config_type = Some(pb::http_filter::ConfigType::TypedConfig(config));
    pb::HttpFilter { name: name.to_owned(), config_type, ..Default::default() }
}

pub(super) fn rds(name: &str) -> options::RouteSpecifier {
    options::RouteSpecifier::Rds(pb::Rds { config_source: Some(short::ads()), route_config_name: name.to_owned() })
}

pub(super) const CORS: &str = "envoy.filters.http.cors";
pub(super) const FAULT: &str = "envoy.filters.http.fault";
/// A stream may be silent for long (gRPC, WebSocket), but not forever.
const STREAM_IDLE_SECS: u64 = 3600;
const CONNECTION_IDLE_SECS: u64 = 3600;
