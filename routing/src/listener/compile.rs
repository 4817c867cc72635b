//! From the xDS resource to a [`Listener`].

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener as listener_filters;
use envoy_types::pb::envoy::extensions::filters::network as network_filters;
use envoy_types::pb::google::protobuf::Any;
use listener_filters::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, original_src::v3::OriginalSrc,
    proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector,
};
use network_filters::{
    connection_limit::v3::ConnectionLimit, http_connection_manager::v3::HttpConnectionManager as HttpPb,
    rbac::v3::Rbac, sni_cluster::v3::SniCluster, tcp_proxy::v3::TcpProxy as TcpPb,
};

use super::{ChainMatch, Direction, FilterChain, ListenAddress, Listener, ListenerFilter, NetworkFilter, Terminal};
use crate::access_log::AccessLog;
use crate::config::{
    At, ConfigError, decode, each, flag, is_type, limit, not_supported, number, required, socket_addr, type_name,
};
use crate::hcm::HttpConnectionManager;
use crate::rbac::RbacFilter;
use crate::tcp::TcpProxy;
use crate::tls::DownstreamTls;

impl Listener {
    /// Compiles a listener resource, or says which field of it cannot be followed.
    pub fn compile(value: &pb::Listener) -> Result<Self, ConfigError> {
        compile(value).map_err(|error| error.of("Listener", &value.name))
    }
}

fn compile(value: &pb::Listener) -> Result<Listener, ConfigError> {
    refuse_unknown(value)?;
    let chains = each("filter_chains", &value.filter_chains, chain)?;
    let matches = each("filter_chains", &value.filter_chains, |chain| {
        ChainMatch::compile(chain.filter_chain_match.as_ref()).at("filter_chain_match")
    })?;
    refuse_duplicates(&matches)?;
    let default_chain = value.default_filter_chain.as_ref().map(chain).transpose().at("default_filter_chain")?;
    if chains.is_empty() && default_chain.is_none() {
        return Err(ConfigError::new("there is no filter chain").under("filter_chains"));
    }
    let deprecated_bind = value.deprecated_v1.as_ref().and_then(|old| old.bind_to_port.as_ref());
    let filters = each("listener_filters", &value.listener_filters, listener_filter)?;
    Ok(Listener {
        name: value.name.as_str().into(),
        address: required(value.address.as_ref()).and_then(address).at("address")?,
        additional: each("additional_addresses", &value.additional_addresses, |more| {
            required(more.address.as_ref()).and_then(address).at("address")
        })?,
        bind: flag(value.bind_to_port.as_ref(), flag(deprecated_bind, true)),
        use_original_dst: flag(value.use_original_dst.as_ref(), false),
        direction: direction(value.traffic_direction)?,
        filters: filters.into_iter().flatten().collect(),
        filters_timeout: match &value.listener_filters_timeout {
            None => Some(LISTENER_FILTERS_TIMEOUT),
            some => limit("listener_filters_timeout", some.as_ref())?,
        },
        continue_on_timeout: value.continue_on_listener_filters_timeout,
        transparent: flag(value.transparent.as_ref(), false),
        chains,
        default_chain,
        access_logs: AccessLog::compile_all("access_log", &value.access_log)?,
        backlog: number(value.tcp_backlog_size.as_ref()),
        reuse_port: flag(value.enable_reuse_port.as_ref(), true),
        buffer_bytes_max: number(value.per_connection_buffer_limit_bytes.as_ref()),
        matches,
    })
}

fn refuse_unknown(value: &pb::Listener) -> Result<(), ConfigError> {
    if value.filter_chain_matcher.is_some() {
        return not_supported("a matcher tree").at("filter_chain_matcher");
    }
    if value.fcds_config.is_some() {
        return not_supported("discovery of filter chains").at("fcds_config");
    }
    if value.udp_listener_config.is_some() || value.listener_specifier.is_some() {
        return not_supported("a UDP or internal listener");
    }
    if value.api_listener.is_some() {
        return not_supported("an API listener").at("api_listener");
    }
    Ok(())
}

/// Two chains for the same connections would make the answer depend on their order.
fn refuse_duplicates(matches: &[ChainMatch]) -> Result<(), ConfigError> {
    for (index, this) in matches.iter().enumerate() {
        if let Some(other) = matches[..index].iter().position(|other| other == this) {
            let text = format!("takes the same connections as filter_chains[{other}]");
            return Err(ConfigError::new(text).under(&format!("filter_chains[{index}]")));
        }
    }
    Ok(())
}

fn direction(value: i32) -> Result<Direction, ConfigError> {
    match core::TrafficDirection::try_from(value) {
        Ok(core::TrafficDirection::Inbound) => Ok(Direction::Inbound),
        Ok(core::TrafficDirection::Outbound) => Ok(Direction::Outbound),
        Ok(core::TrafficDirection::Unspecified) => Ok(Direction::Unspecified),
        Err(_) => Err(ConfigError::new("unknown direction").under("traffic_direction")),
    }
}

fn address(value: &core::Address) -> Result<ListenAddress, ConfigError> {
    use core::address::Address;
    match required(value.address.as_ref())? {
        Address::SocketAddress(address) => Ok(ListenAddress::Tcp(socket_addr(address).at("socket_address")?)),
        Address::Pipe(pipe) => Ok(ListenAddress::Pipe(pipe.path.as_str().into())),
        Address::EnvoyInternalAddress(_) => not_supported("an internal address"),
    }
}

fn listener_filter(value: &pb::ListenerFilter) -> Result<Option<ListenerFilter>, ConfigError> {
    let any = match value.config_type.as_ref() {
        Some(pb::listener_filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::listener_filter::ConfigType::ConfigDiscovery(_)) => return not_supported("a discovered filter"),
        None => return Ok(Some(well_known(&value.name)?)),
    };
    Ok(Some(if is_type::<TlsInspector>(any) {
        ListenerFilter::TlsInspector
    } else if is_type::<HttpInspector>(any) {
        ListenerFilter::HttpInspector
    } else if is_type::<OriginalDst>(any) {
        ListenerFilter::OriginalDst
    } else if is_type::<OriginalSrc>(any) {
        ListenerFilter::OriginalSrc
    } else if is_type::<ProxyProtocol>(any) {
        let filter: ProxyProtocol = decode(any)?;
        ListenerFilter::ProxyProtocol { optional: filter.allow_requests_without_proxy_protocol }
    } else if is_harmless(&value.name) {
        return Ok(None);
    } else {
        return not_supported(&format!("the listener filter {}", type_name(any)));
    }))
}

fn well_known(name: &str) -> Result<ListenerFilter, ConfigError> {
    match name {
        "envoy.filters.listener.tls_inspector" => Ok(ListenerFilter::TlsInspector),
        "envoy.filters.listener.http_inspector" => Ok(ListenerFilter::HttpInspector),
        "envoy.filters.listener.original_dst" => Ok(ListenerFilter::OriginalDst),
        _ => not_supported(&format!("the listener filter {name}")),
    }
}

fn chain(value: &pb::FilterChain) -> Result<Arc<FilterChain>, ConfigError> {
    let mut network = Vec::new();
    let mut terminal = None;
    for (index, filter) in value.filters.iter().enumerate() {
        if terminal.is_some() {
            return Err(ConfigError::new("follows the filter that takes the connection")).at_index("filters", index);
        }
        match network_filter(filter).at_index("filters", index)? {
            Some(Compiled::Filter(filter)) => network.push(filter),
            Some(Compiled::Terminal(last)) => terminal = Some(last),
            None => {}
        }
    }
    let terminal =
        terminal.ok_or_else(|| ConfigError::new("no filter takes the connection in the end").under("filters"))?;
    Ok(Arc::new(FilterChain {
        name: value.name.as_str().into(),
        tls: DownstreamTls::compile(value.transport_socket.as_ref()).at("transport_socket")?,
        handshake_timeout: limit("transport_socket_connect_timeout", value.transport_socket_connect_timeout.as_ref())?,
        network,
        terminal,
    }))
}

enum Compiled {
    Filter(NetworkFilter),
    Terminal(Terminal),
}

fn network_filter(value: &pb::Filter) -> Result<Option<Compiled>, ConfigError> {
    let any = match value.config_type.as_ref() {
        Some(pb::filter::ConfigType::TypedConfig(any)) => any,
        _ if is_harmless(&value.name) => return Ok(None),
        _ => return Err(ConfigError::new(format!("the filter {} has no typed_config", value.name))),
    };
    typed_network_filter(&value.name, any).at("typed_config")
}

fn typed_network_filter(name: &str, any: &Any) -> Result<Option<Compiled>, ConfigError> {
    Ok(Some(if is_type::<HttpPb>(any) {
        Compiled::Terminal(Terminal::Http(Arc::new(HttpConnectionManager::compile(&decode(any)?)?)))
    } else if is_type::<TcpPb>(any) {
        Compiled::Terminal(Terminal::Tcp(Arc::new(TcpProxy::compile(&decode(any)?)?)))
    } else if is_type::<Rbac>(any) {
        Compiled::Filter(NetworkFilter::Rbac(Arc::new(RbacFilter::compile_network(&decode(any)?)?)))
    } else if is_type::<ConnectionLimit>(any) {
        let value: ConnectionLimit = decode(any)?;
        let max = value.max_connections.as_ref().map_or(u64::MAX, |max| max.value);
        Compiled::Filter(NetworkFilter::ConnectionLimit { max })
    } else if is_type::<SniCluster>(any) {
        Compiled::Filter(NetworkFilter::SniCluster)
    } else if is_harmless(name) {
        return Ok(None);
    } else {
        return not_supported(&format!("the filter {}", type_name(any)));
    }))
}

/// Filters that only observe, and that the proxy does without or in its own way.
fn is_harmless(name: &str) -> bool {
    matches!(
        name,
        "istio.stats"
            | "istio.metadata_exchange"
            | "istio.workload_discovery"
            | "envoy.filters.network.metadata_exchange"
            | "envoy.filters.network.istio_stats"
    )
}

const LISTENER_FILTERS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
