//! Resources as discovery would send them.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiConfigSource, ConfigSource, Http2ProtocolOptions, SocketAddress,
    TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as NetworkConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfig;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};
use prost::{Message, Name};

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn span(span: Duration) -> envoy_types::pb::google::protobuf::Duration {
    envoy_types::pb::google::protobuf::Duration { seconds: span.as_secs() as i64, nanos: span.subsec_nanos() as i32 }
}

pub(crate) fn address(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

pub(crate) fn assignment(name: &str, addresses: &[SocketAddr]) -> ClusterLoadAssignment {
    let endpoint = |at: &SocketAddr| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(*at)),
            ..Endpoint::default()
        })),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LbEndpoint::default()
    };
    let locality = LocalityLbEndpoints {
        lb_endpoints: addresses.iter().map(endpoint).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    }
}

/// A cluster of fixed addresses that speaks HTTP/1.1.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: Some(span(Duration::from_secs(2))),
        load_assignment: Some(assignment(name, addresses)),
        ..Cluster::default()
    }
}

/// A cluster whose endpoints come by EDS.
pub(crate) fn eds_cluster(name: &str) -> Cluster {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::EdsClusterConfig;
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..EdsClusterConfig::default() }),
        load_assignment: None,
        ..cluster(name, &[])
    }
}

pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

pub(crate) fn speaking_http2(mut cluster: Cluster) -> Cluster {
    let explicit = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), any(&options));
    cluster
}

/// mTLS towards the peer with this SPIFFE ID.
pub(crate) fn with_mtls(mut cluster: Cluster, sni: &str, peer: &str) -> Cluster {
    let san = SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(peer.to_owned())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(mesh_context(vec![san], &[])),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    };
    cluster.transport_socket = Some(tls_socket(any(&context)));
    cluster
}

fn mesh_context(sans: Vec<SubjectAltNameMatcher>, alpn: &[&str]) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![sds("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: sans,
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(sds("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
        ..CommonTlsContext::default()
    }
}

fn sds(name: &str) -> SdsSecretConfig {
    let source = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource::default())),
        ..ConfigSource::default()
    };
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

fn tls_socket(context: Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(context)),
    }
}

/// A filter chain that asks for mTLS by SPIFFE.
pub(crate) fn mtls_chain(mut chain: FilterChain, server_names: &[&str]) -> FilterChain {
    let context = DownstreamTlsContext {
        common_tls_context: Some(mesh_context(Vec::new(), &["h2", "http/1.1"])),
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    };
    chain.transport_socket = Some(tls_socket(any(&context)));
    chain.filter_chain_match = Some(FilterChainMatch {
        server_names: server_names.iter().map(|name| (*name).to_owned()).collect(),
        transport_protocol: "tls".to_owned(),
        ..FilterChainMatch::default()
    });
    chain
}

/// A filter chain that presents a certificate from files.
pub(crate) fn file_tls_chain(mut chain: FilterChain, cert: &std::path::Path, key: &std::path::Path) -> FilterChain {
    use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
    let file = |path: &std::path::Path| DataSource {
        specifier: Some(Specifier::Filename(path.to_str().unwrap().to_owned())),
        ..DataSource::default()
    };
    let certificate = TlsCertificate {
        certificate_chain: Some(file(cert)),
        private_key: Some(file(key)),
        ..TlsCertificate::default()
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: vec![certificate],
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    chain.transport_socket = Some(tls_socket(any(&context)));
    chain
}

/// A listener on a free port of the loopback.
pub(crate) fn listener(name: &str, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(address("127.0.0.1:0".parse().unwrap())),
        filter_chains: chains,
        ..Listener::default()
    }
}

pub(crate) fn inbound(mut listener: Listener) -> Listener {
    use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
    listener.traffic_direction = TrafficDirection::Inbound as i32;
    listener
}

pub(crate) fn http_chain(hcm: &HttpConnectionManager) -> FilterChain {
    network_chain("envoy.filters.network.http_connection_manager", any(hcm))
}

pub(crate) fn tcp_chain(cluster: &str) -> FilterChain {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    network_chain("envoy.filters.network.tcp_proxy", any(&proxy))
}

fn network_chain(name: &str, config: Any) -> FilterChain {
    let filter = Filter { name: name.to_owned(), config_type: Some(NetworkConfig::TypedConfig(config)) };
    FilterChain { filters: vec![filter], ..FilterChain::default() }
}

/// A connection manager with these routes and nothing but the router.
pub(crate) fn hcm(routes: RouteConfiguration) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".to_owned(),
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet as i32,
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        ..HttpConnectionManager::default()
    }
}

pub(crate) fn hcm_by_rds(name: &str) -> HttpConnectionManager {
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: name.to_owned(),
        })),
        ..hcm(RouteConfiguration::default())
    }
}

pub(crate) fn filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(HttpConfig::TypedConfig(any(config))),
        ..HttpFilter::default()
    }
}

pub(crate) fn router() -> HttpFilter {
    filter("envoy.filters.http.router", &Router::default())
}

/// A route table that sends everything to one cluster.
pub(crate) fn all_to(name: &str, cluster: &str) -> RouteConfiguration {
    table(name, vec![host("all", &["*"], vec![route("/", forward(cluster))])])
}

pub(crate) fn table(name: &str, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name: name.to_owned(), virtual_hosts, ..RouteConfiguration::default() }
}

pub(crate) fn host(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
    VirtualHost { name: name.to_owned(), domains, routes, ..VirtualHost::default() }
}

pub(crate) fn route(prefix: &str, action: Action) -> Route {
    let path = RouteMatch { path_specifier: Some(PathSpecifier::Prefix(prefix.to_owned())), ..RouteMatch::default() };
    Route { name: prefix.to_owned(), r#match: Some(path), action: Some(action), ..Route::default() }
}

pub(crate) fn forward(cluster: &str) -> Action {
    Action::Route(route_action(cluster))
}

pub(crate) fn route_action(cluster: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(span(Duration::ZERO)),
        ..RouteAction::default()
    }
}

pub(crate) fn retrying(cluster: &str, retry_on: &str, attempts: u32) -> Action {
    Action::Route(RouteAction {
        retry_policy: Some(RetryPolicy {
            retry_on: retry_on.to_owned(),
            num_retries: Some(UInt32Value { value: attempts }),
            ..RetryPolicy::default()
        }),
        ..route_action(cluster)
    })
}

pub(crate) fn direct(status: u32) -> Action {
    Action::DirectResponse(DirectResponseAction { status, ..DirectResponseAction::default() })
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
