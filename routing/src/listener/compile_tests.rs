//! Tests of `compile`.

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use envoy_types::util::pack_any;
use http_pb::http_connection_manager::RouteSpecifier;

use super::*;
use crate::hcm::RouteSource;
use crate::request::EscapedSlashes;
use crate::tls::CertificateRef;

fn filter(name: &str, any: Any) -> pb::Filter {
    pb::Filter { name: name.into(), config_type: Some(pb::filter::ConfigType::TypedConfig(any)) }
}

fn tcp() -> pb::Filter {
    let proxy = tcp_pb::TcpProxy {
        cluster_specifier: Some(tcp_pb::tcp_proxy::ClusterSpecifier::Cluster("c".into())),
        ..Default::default()
    };
    filter("tcp", pack_any(proxy))
}

fn manager() -> http_pb::HttpConnectionManager {
    let router = http_pb::HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_pb::http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..Default::default()
    };
    http_pb::HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(http_pb::Rds {
            route_config_name: "80".into(),
            config_source: None,
        })),
        http_filters: vec![router],
        ..Default::default()
    }
}

fn http(manager: http_pb::HttpConnectionManager) -> pb::Filter {
    filter("http", pack_any(manager))
}

fn chain(filters: Vec<pb::Filter>) -> pb::FilterChain {
    pb::FilterChain { name: "chain".into(), filters, ..Default::default() }
}

fn listener(filter_chains: Vec<pb::FilterChain>) -> pb::Listener {
    let socket = core::SocketAddress {
        address: "10.0.0.1".into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(15006)),
        ..Default::default()
    };
    pb::Listener {
        name: "in".into(),
        address: Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) }),
        filter_chains,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        ..Default::default()
    }
}

fn refused(value: &pb::Listener) -> String {
    let error = Listener::compile(value).unwrap_err();
    assert_eq!(error.resource, "Listener in");
    error.field
}

#[test]
fn a_listener_knows_where_and_what() {
    let compiled = Listener::compile(&listener(vec![chain(vec![tcp()])])).unwrap();
    assert_eq!(compiled.address, ListenAddress::Tcp("10.0.0.1:15006".parse().unwrap()));
    assert_eq!((compiled.direction, compiled.bind), (Direction::Inbound, true));
    assert!(matches!(&compiled.chains[0].terminal, Terminal::Tcp(tcp) if &**tcp.cluster(0) == "c"));
}

#[test]
fn tls_and_http_are_compiled_through() {
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig { name: "default".into(), sds_config: None }],
            ..Default::default()
        }),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let mut value = chain(vec![http(manager())]);
    value.transport_socket = Some(core::TransportSocket {
        name: "tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack_any(context))),
    });
    let compiled = Listener::compile(&listener(vec![value])).unwrap();
    let tls = compiled.chains[0].tls.as_ref().unwrap();
    assert!(tls.require_client_certificate);
    assert_eq!(tls.common.certificates, [CertificateRef::Sds { name: "default".into() }]);
    let Terminal::Http(http) = &compiled.chains[0].terminal else { panic!() };
    assert!(matches!(&http.routes, RouteSource::Rds(name) if &**name == "80"));
    assert!(http.path.normalize && http.path.merge_slashes);
    assert_eq!(http.path.escaped_slashes, EscapedSlashes::Refuse);
}

#[test]
fn the_field_that_is_wrong_is_named() {
    let mut late = listener(vec![chain(vec![tcp(), tcp()])]);
    assert_eq!(refused(&late), "filter_chains[0].filters[1]");
    late.filter_chains.clear();
    assert_eq!(refused(&late), "filter_chains");
    assert_eq!(refused(&listener(vec![chain(vec![])])), "filter_chains[0].filters");
    let unknown = Any { type_url: "type.googleapis.com/some.Filter".into(), value: Vec::new() };
    assert_eq!(refused(&listener(vec![chain(vec![filter("x", unknown)])])), "filter_chains[0].filters[0].typed_config");
    let mut no_address = listener(vec![chain(vec![tcp()])]);
    no_address.address = None;
    assert_eq!(refused(&no_address), "address");
}

#[test]
fn the_router_must_come_last() {
    let without = http_pb::HttpConnectionManager { http_filters: Vec::new(), ..manager() };
    assert_eq!(
        refused(&listener(vec![chain(vec![http(without)])])),
        "filter_chains[0].filters[0].typed_config.http_filters"
    );
}

#[test]
fn two_chains_for_the_same_connections_are_refused() {
    let port = |port| pb::FilterChain {
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port: Some(UInt32Value { value: port }),
            ..Default::default()
        }),
        ..chain(vec![tcp()])
    };
    assert_eq!(refused(&listener(vec![port(80), port(81), port(80)])), "filter_chains[2]");
    assert!(Listener::compile(&listener(vec![port(80), port(81)])).is_ok());
}

#[test]
fn what_no_chain_takes_goes_to_the_default_one() {
    let mut value = listener(vec![pb::FilterChain {
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port: Some(UInt32Value { value: 80 }),
            ..Default::default()
        }),
        ..chain(vec![tcp()])
    }]);
    let facts = super::super::ConnectionFacts {
        destination: "1.1.1.1:81".parse().unwrap(),
        source: "2.2.2.2:1".parse().unwrap(),
        direct_source: "2.2.2.2:1".parse().unwrap(),
        sni: None,
        alpn: &[],
        transport: "raw_buffer",
    };
    assert!(Listener::compile(&value).unwrap().pick(&facts).is_none());
    value.default_filter_chain = Some(pb::FilterChain { name: "default".into(), ..chain(vec![tcp()]) });
    assert_eq!(&*Listener::compile(&value).unwrap().pick(&facts).unwrap().name, "default");
}
