//! Tests of `cluster`.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http_pb;
use envoy_types::pb::google::protobuf::{Duration as DurationPb, Struct, UInt32Value, UInt64Value, Value, value::Kind};
use envoy_types::util::pack_any;
use pb::cluster::{ClusterDiscoveryType, DiscoveryType};

use super::*;
use crate::endpoint::samples;

fn cluster(kind: DiscoveryType) -> pb::Cluster {
    pb::Cluster {
        name: "outbound|80||a.test".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        ..Default::default()
    }
}

fn texts(pairs: &[(&str, &str)]) -> Struct {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    Struct { fields: pairs.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect() }
}

fn tls_socket(sni: &str) -> core::TransportSocket {
    let context = UpstreamTlsContext { sni: sni.into(), ..Default::default() };
    core::TransportSocket {
        name: "tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

#[test]
fn defaults_are_those_of_envoy() {
    let cluster = Cluster::compile(&cluster(DiscoveryType::Eds)).unwrap();
    assert!(matches!(&cluster.discovery, Discovery::Eds { service } if &**service == "outbound|80||a.test"));
    assert_eq!((cluster.lb, cluster.connect_timeout), (LbPolicy::RoundRobin, Duration::from_secs(5)));
    assert_eq!((cluster.limits.requests, cluster.limits.retries), (1024, 3));
    assert_eq!(cluster.http.protocol, UpstreamProtocol::Http1);
    assert!(cluster.tls.is_none() && cluster.outlier.is_none() && cluster.bind.is_none());
}

#[test]
fn tls_depends_on_the_labels_of_the_endpoint() {
    let mut value = cluster(DiscoveryType::Static);
    let socket_match = |labels: &[(&str, &str)], socket| pb::cluster::TransportSocketMatch {
        name: "m".into(),
        r#match: Some(texts(labels)),
        transport_socket: socket,
    };
    value.transport_socket_matches = vec![socket_match(&[("tlsMode", "istio")], Some(tls_socket("mesh")))];
    value.transport_socket = Some(tls_socket("own"));
    let cluster_with_own = Cluster::compile(&value).unwrap();
    value.transport_socket_matches.push(socket_match(&[], None));
    let cluster_with_rest = Cluster::compile(&value).unwrap();

    let plain = samples::endpoint(1);
    let mut mesh = samples::endpoint(2);
    mesh.labels.insert("tlsMode".into(), "istio".into());
    let sni = |cluster: &Cluster, endpoint| cluster.tls_for(endpoint).and_then(|tls| tls.sni.clone());
    assert_eq!(sni(&cluster_with_own, &mesh).as_deref(), Some("mesh"));
    assert_eq!(sni(&cluster_with_own, &plain).as_deref(), Some("own"));
    assert_eq!(sni(&cluster_with_rest, &plain), None);
    assert_eq!(cluster_with_rest.all_tls().count(), 2);
}

#[test]
fn the_http_version_is_chosen_by_the_options() {
    use http_pb::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    for (options, expected) in [
        (explicit(ProtocolConfig::HttpProtocolOptions(Default::default())), UpstreamProtocol::Http1),
        (explicit(ProtocolConfig::Http2ProtocolOptions(Default::default())), UpstreamProtocol::Http2),
        (UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default()), UpstreamProtocol::UseDownstream),
        (UpstreamProtocolOptions::AutoConfig(Default::default()), UpstreamProtocol::Auto),
    ] {
        let mut value = cluster(DiscoveryType::Eds);
        let options = http_pb::HttpProtocolOptions {
            upstream_protocol_options: Some(options),
            common_http_protocol_options: Some(core::HttpProtocolOptions {
                max_requests_per_connection: Some(UInt32Value { value: 1 }),
                idle_timeout: Some(DurationPb { seconds: 0, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        value.typed_extension_protocol_options =
            HashMap::from([("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), pack_any(options))]);
        let http = Cluster::compile(&value).unwrap().http;
        assert_eq!((http.protocol, http.requests_per_connection_max, http.idle_timeout), (expected, Some(1), None));
    }
}

#[test]
fn istios_service_is_read() {
    let mut value = cluster(DiscoveryType::Eds);
    let service = texts(&[("host", "a.test"), ("name", "a"), ("namespace", "ns")]);
    let list = Value {
        kind: Some(Kind::ListValue(envoy_types::pb::google::protobuf::ListValue {
            values: vec![Value { kind: Some(Kind::StructValue(service)) }],
        })),
    };
    value.metadata = Some(core::Metadata {
        filter_metadata: [("istio".to_owned(), Struct { fields: [("services".to_owned(), list)].into() })].into(),
        ..Default::default()
    });
    let expected = ServiceName { host: "a.test".into(), name: "a".into(), namespace: "ns".into() };
    assert_eq!(Cluster::compile(&value).unwrap().service, Some(expected));
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    let mut value = cluster(DiscoveryType::Static);
    value.lb_policy = pb::cluster::LbPolicy::Maglev as i32;
    let size = |value| pb::cluster::MaglevLbConfig { table_size: Some(UInt64Value { value }) };
    value.lb_config = Some(pb::cluster::LbConfig::MaglevLbConfig(size(65_537)));
    assert_eq!(Cluster::compile(&value).unwrap().lb, LbPolicy::Maglev { table: 65_537 });
    value.lb_config = Some(pb::cluster::LbConfig::MaglevLbConfig(size(65_536)));
    assert_eq!(Cluster::compile(&value).unwrap_err().resource, "Cluster outbound|80||a.test");

    let mut value = cluster(DiscoveryType::Static);
    value.connect_timeout = Some(DurationPb { seconds: -1, nanos: 0 });
    assert_eq!(Cluster::compile(&value).unwrap_err().field, "connect_timeout");

    let mut value = cluster(DiscoveryType::Static);
    value.filters = vec![pb::Filter { name: "unknown".into(), ..Default::default() }];
    assert_eq!(Cluster::compile(&value).unwrap_err().field, "filters[0]");
}
