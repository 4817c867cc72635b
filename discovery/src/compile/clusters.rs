//! Clusters: where a node may send requests, and how it speaks to each.

use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use http::http_protocol_options as options;
use pb::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy};

use super::canonical::pack;
use super::model::{ClientView, Model, Protocol, Rule, Service, ServicePort};
use super::names::{BLACK_HOLE, PASSTHROUGH, inbound_cluster, outbound_cluster, sni};
use super::pb as short;
use super::traffic::Traffic;
use super::{Scope, endpoints, peer_authentication, tls};
use crate::documents::networking::{Resolution, Subset};
use crate::documents::shapes::{
    ConnectionPool, H2Upgrade, HttpPool, LoadBalancer, OutlierDetection, SimpleBalancer, TcpKeepalive,
};
use crate::node::NodeKind;
use crate::resources::Type;

/// Every cluster and its endpoints, for all services that the node sees.
pub(super) fn compile(scope: &mut Scope<'_>) {
    let (model, node) = (scope.model, scope.node);
    for service in model.services_for(&node.namespace) {
        let client = ClientView { namespace: &node.namespace, labels: &node.labels };
        let rule = model.destination_rule(&service.host, Some(&service.namespace), &client);
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            outbound(scope, service, port, rule.as_ref(), None);
            for subset in rule.iter().flat_map(|rule| &rule.subsets) {
                outbound(scope, service, port, rule.as_ref(), Some(subset));
            }
        }
    }
    if node.kind != NodeKind::Grpc {
        scope.insert(Type::Cluster, BLACK_HOLE, &of_type(BLACK_HOLE, DiscoveryType::Static));
        let mut passthrough = of_type(PASSTHROUGH, DiscoveryType::OriginalDst);
        passthrough.lb_policy = LbPolicy::ClusterProvided as i32;
        set_protocol(&mut passthrough, Upstream::AsDownstream, None);
        scope.insert(Type::Cluster, PASSTHROUGH, &passthrough);
    }
}

/// `inbound|PORT||`: the workload's own program. What callers upgraded to HTTP/2 reaches it as HTTP/1.1 again, which is
/// all that its port promises; otherwise it is reached in the version that the caller chose.
pub(super) fn inbound(port: u16, ip: IpAddr, protocol: Protocol, upgraded: bool) -> pb::Cluster {
    let name = inbound_cluster(port);
    let mut cluster = of_type(&name, DiscoveryType::Static);
    cluster.load_assignment = Some(endpoints::single(&name, &ip.to_string(), port));
    cluster.circuit_breakers = Some(breakers(None));
    match protocol {
        Protocol::Http if upgraded => set_protocol(&mut cluster, Upstream::Http1, None),
        Protocol::Http => set_protocol(&mut cluster, Upstream::AsDownstream, None),
        Protocol::Http2 => set_protocol(&mut cluster, Upstream::Http2, None),
        Protocol::Tls | Protocol::Tcp | Protocol::Udp => {}
    }
    cluster
}

/// Whether a rule makes callers of this port upgrade HTTP/1.1 to HTTP/2.
pub(super) fn is_upgraded(scope: &Scope<'_>, service: &Service, port: &ServicePort) -> bool {
    let client = ClientView { namespace: &scope.node.namespace, labels: &scope.node.labels };
    let Some(rule) = scope.model.destination_rule(&service.host, Some(&service.namespace), &client) else {
        return false;
    };
    let subsets = rule.subsets.iter().copied().map(Some);
    port.protocol == Protocol::Http
        && std::iter::once(None).chain(subsets).any(|subset| {
            let pool = Traffic::of(rule.policy, subset, port.number).pool;
            upstream_protocol(port.protocol, pool.and_then(|pool| pool.http.as_ref())) == Some(Upstream::Http2)
        })
}

fn of_type(name: &str, kind: DiscoveryType) -> pb::Cluster {
    pb::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        connect_timeout: Some(short::duration(CONNECT_TIMEOUT)),
        ..Default::default()
    }
}

fn outbound(
    scope: &mut Scope<'_>,
    service: &Service,
    port: &ServicePort,
    rule: Option<&Rule<'_>>,
    subset: Option<&Subset>,
) {
    let subset_name = subset.map_or("", |subset| &subset.name);
    let name = outbound_cluster(port.number.into(), subset_name, &service.host);
    let traffic = Traffic::of(rule.and_then(|rule| rule.policy), subset, port.number);
    let mut cluster = of_type(&name, DiscoveryType::Static);
    set_discovery(scope, &mut cluster, service, port, subset);
    set_pool(&mut cluster, scope.model, traffic.pool);
    set_balancer(&mut cluster, scope, traffic.balancer);
    if let Some(outlier) = traffic.outlier {
        set_outlier(&mut cluster, outlier);
    }
    set_socket(&mut cluster, scope, service, port, subset, &traffic);
    if scope.node.kind == NodeKind::Grpc {
        return scope.insert(Type::Cluster, &name, &cluster);
    }
    let upstream = upstream_protocol(port.protocol, traffic.pool.and_then(|pool| pool.http.as_ref()));
    if let Some(upstream) = upstream {
        set_protocol(&mut cluster, upstream, traffic.pool.and_then(|pool| pool.http.as_ref()));
    }
    cluster.metadata = Some(service_metadata(service, subset_name));
    // On loopback addresses every process looks the same; bound to its own, a peer sees who connects.
    if !scope.node.capture && scope.node.ip.is_loopback() {
        let bind = core::BindConfig {
            source_address: Some(short::socket_address(&scope.node.ip.to_string(), 0)),
            ..Default::default()
        };
        cluster.upstream_bind_config = Some(bind);
    }
    scope.insert(Type::Cluster, &name, &cluster);
}

#[allow(deprecated, reason = "DNS settings of the cluster itself are what every supported Envoy reads")]
fn set_discovery(
    scope: &mut Scope<'_>,
    cluster: &mut pb::Cluster,
    service: &Service,
    port: &ServicePort,
    subset: Option<&Subset>,
) {
    let mut assignment = endpoints::assignment(&cluster.name, service, port, subset);
    let kind = match service.resolution {
        Resolution::Static => DiscoveryType::Eds,
        // Only captured traffic has an original destination; a gRPC library or an explicit proxy has none.
        Resolution::None | Resolution::DynamicDns if scope.node.capture && scope.node.kind == NodeKind::Sidecar => {
            DiscoveryType::OriginalDst
        }
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        Resolution::None | Resolution::DynamicDns => DiscoveryType::Eds,
    };
    if matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns) {
        if service.endpoints.is_empty() {
            assignment = endpoints::single(&cluster.name, &service.host, port.number);
        }
        cluster.load_assignment = Some(assignment);
        let refresh = scope.model.config.dns_refresh_rate.map_or(DNS_REFRESH, |span| span.0);
        cluster.dns_refresh_rate = Some(short::duration(refresh));
        cluster.respect_dns_ttl = true;
        cluster.dns_lookup_family = pb::cluster::DnsLookupFamily::All as i32;
    } else if kind == DiscoveryType::Eds {
        let config = pb::cluster::EdsClusterConfig { eds_config: Some(short::ads()), ..Default::default() };
        cluster.eds_cluster_config = Some(config);
        let name = cluster.name.clone();
        scope.insert(Type::Endpoints, &name, &assignment);
    } else {
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    }
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
}

fn set_pool(cluster: &mut pb::Cluster, model: &Model, pool: Option<&ConnectionPool>) {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let timeout = tcp.and_then(|tcp| tcp.connect_timeout).or(model.config.connect_timeout);
    cluster.connect_timeout = Some(short::duration(timeout.map_or(CONNECT_TIMEOUT, |span| span.0)));
    cluster.circuit_breakers = Some(breakers(pool));
    if let Some(keepalive) = tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()) {
        cluster.upstream_connection_options =
            Some(pb::UpstreamConnectionOptions { tcp_keepalive: Some(keepalive_of(keepalive)), ..Default::default() });
    }
}

fn keepalive_of(keepalive: &TcpKeepalive) -> core::TcpKeepalive {
    let secs = |span: Option<crate::documents::duration::Span>| {
        span.and_then(|span| short::uint(u32::try_from(span.0.as_secs()).unwrap_or(u32::MAX)))
    };
    core::TcpKeepalive {
        keepalive_probes: keepalive.probes.and_then(short::uint),
        keepalive_time: secs(keepalive.time),
        keepalive_interval: secs(keepalive.interval),
    }
}

/// Limits; what is not given is as good as unlimited, as it is in Istio.
fn breakers(pool: Option<&ConnectionPool>) -> pb::CircuitBreakers {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let limit = |given: Option<i32>| {
        short::uint(given.and_then(|given| u32::try_from(given).ok()).filter(|given| *given > 0).unwrap_or(u32::MAX))
    };
    let thresholds = pb::circuit_breakers::Thresholds {
        max_connections: limit(tcp.map(|tcp| tcp.max_connections)),
        max_pending_requests: limit(http.map(|http| http.http1_max_pending_requests)),
        max_requests: limit(http.map(|http| http.http2_max_requests)),
        max_retries: limit(http.map(|http| http.max_retries)),
        track_remaining: true,
        ..Default::default()
    };
    pb::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

fn set_balancer(cluster: &mut pb::Cluster, scope: &Scope<'_>, balancer: Option<&LoadBalancer>) {
    if cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    // gRPC libraries refuse a policy that they do not know.
    let default = match scope.node.kind {
        NodeKind::Grpc => LbPolicy::RoundRobin,
        NodeKind::Sidecar | NodeKind::Router => LbPolicy::LeastRequest,
    };
    let hash = balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
    let policy = match (hash, balancer.and_then(|balancer| balancer.simple)) {
        (Some(hash), _) if hash.maglev.is_some() && scope.node.kind != NodeKind::Grpc => LbPolicy::Maglev,
        (Some(_), _) => LbPolicy::RingHash,
        (None, Some(SimpleBalancer::RoundRobin)) => LbPolicy::RoundRobin,
        (None, Some(SimpleBalancer::Random)) if scope.node.kind != NodeKind::Grpc => LbPolicy::Random,
        (None, _) => default,
    };
    cluster.lb_policy = policy as i32;
    let Some(hash) = hash else { return };
    cluster.lb_config = match policy {
        LbPolicy::Maglev => {
            let size = hash.maglev.as_ref().map(|maglev| maglev.table_size).filter(|size| *size > 0);
            let table_size = size.map(|value| envoy_types::pb::google::protobuf::UInt64Value { value });
            Some(LbConfig::MaglevLbConfig(pb::cluster::MaglevLbConfig { table_size }))
        }
        LbPolicy::RingHash => {
            let size = hash.ring_hash.as_ref().map(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
            let value = size.filter(|size| *size > 0).unwrap_or(RING_SIZE);
            let minimum_ring_size = Some(envoy_types::pb::google::protobuf::UInt64Value { value });
            Some(LbConfig::RingHashLbConfig(pb::cluster::RingHashLbConfig { minimum_ring_size, ..Default::default() }))
        }
        _ => None,
    };
}

fn set_outlier(cluster: &mut pb::Cluster, outlier: &OutlierDetection) {
    let percent = |value: i32| u32::try_from(value).ok().filter(|value| *value > 0);
    let mut detection = pb::OutlierDetection {
        interval: outlier.interval.map(|span| short::duration(span.0)),
        base_ejection_time: outlier.base_ejection_time.map(|span| short::duration(span.0)),
        max_ejection_percent: percent(outlier.max_ejection_percent).and_then(short::uint),
        consecutive_5xx: outlier.consecutive_5xx_errors.and_then(short::uint),
        enforcing_success_rate: short::uint(0),
        split_external_local_origin_errors: outlier.split_external_local_origin_errors,
        ..Default::default()
    };
    if let Some(errors) = outlier.consecutive_5xx_errors {
        detection.enforcing_consecutive_5xx = short::uint(if errors > 0 { 100 } else { 0 });
    }
    if let Some(errors) = outlier.consecutive_gateway_errors {
        detection.consecutive_gateway_failure = short::uint(errors);
        detection.enforcing_consecutive_gateway_failure = short::uint(if errors > 0 { 100 } else { 0 });
    }
    if let Some(failures) = outlier.consecutive_local_origin_failures {
        detection.consecutive_local_origin_failure = short::uint(failures);
        detection.enforcing_consecutive_local_origin_failure = short::uint(if failures > 0 { 100 } else { 0 });
    }
    cluster.outlier_detection = Some(detection);
    // Below this share of healthy endpoints ejection is ignored; zero means that it never is.
    let healthy = f64::from(outlier.min_health_percent.clamp(0, 100));
    cluster.common_lb_config = Some(pb::cluster::CommonLbConfig {
        healthy_panic_threshold: Some(envoy_types::pb::envoy::r#type::v3::Percent { value: healthy }),
        ..Default::default()
    });
}

/// Plain text, mTLS or the rule's own TLS.
fn set_socket(
    cluster: &mut pb::Cluster,
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    subset: Option<&Subset>,
    traffic: &Traffic<'_>,
) {
    let identities = identities(service, subset);
    let default_sni = sni(port.number, subset.map_or("", |subset| &subset.name), &service.host);
    if let Some(rule) = traffic.tls {
        // The rule's own TLS goes to every endpoint; a library has no files and no SDS.
        cluster.transport_socket = match scope.node.kind {
            NodeKind::Grpc if rule.mode == crate::documents::shapes::ClientTlsMode::IstioMutual => {
                Some(tls::provider_upstream(&default_sni, &identities))
            }
            NodeKind::Grpc => None,
            NodeKind::Sidecar | NodeKind::Router => tls::rule_upstream(rule, &default_sni, &identities),
        };
        return;
    }
    let wanted = service.internal
        && scope.model.config.auto_mtls()
        && !peer_authentication::is_disabled_for(scope.model, &service.namespace);
    let proven: Vec<bool> = service.endpoints_of(subset).map(|workload| workload.identity.is_some()).collect();
    let (any, all) = (proven.contains(&true), !proven.contains(&false));
    if !wanted || !any {
        return;
    }
    let socket = match scope.node.kind {
        NodeKind::Grpc => tls::provider_upstream(&default_sni, &identities),
        NodeKind::Sidecar | NodeKind::Router => tls::mesh_upstream(&default_sni, &identities),
    };
    if all || scope.node.kind == NodeKind::Grpc {
        cluster.transport_socket = Some(socket);
        return;
    }
    let mode = short::struct_of([(endpoints::TLS_MODE, short::text_value("istio"))]);
    let raw = core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
            &envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer::default(),
        ))),
    };
    let matching = |name: &str, wanted, socket| pb::cluster::TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(wanted),
        transport_socket: Some(socket),
    };
    cluster.transport_socket_matches =
        vec![matching("tlsMode-istio", mode, socket), matching("tlsMode-disabled", short::struct_of([]), raw)];
}

/// The SPIFFE IDs that endpoints of the cluster may prove.
fn identities(service: &Service, subset: Option<&Subset>) -> Vec<String> {
    let mut names: Vec<String> =
        service.endpoints_of(subset).filter_map(|workload| workload.identity.clone()).collect();
    names.extend(service.sans.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upstream {
    Http1,
    Http2,
    AsDownstream,
}

fn upstream_protocol(protocol: Protocol, pool: Option<&HttpPool>) -> Option<Upstream> {
    let pool = pool.cloned().unwrap_or_default();
    match protocol {
        Protocol::Http2 if pool.h2_upgrade_policy == H2Upgrade::DoNotUpgrade => Some(Upstream::Http1),
        Protocol::Http2 => Some(Upstream::Http2),
        Protocol::Http if pool.h2_upgrade_policy == H2Upgrade::Upgrade => Some(Upstream::Http2),
        Protocol::Http if pool.use_client_protocol => Some(Upstream::AsDownstream),
        Protocol::Http => Some(Upstream::Http1),
        // A gateway ends TLS and speaks HTTP to ports that say `https`, when a rule asks for it.
        Protocol::Tls => Some(if pool.use_client_protocol { Upstream::AsDownstream } else { Upstream::Http1 }),
        Protocol::Tcp | Protocol::Udp => None,
    }
}

fn set_protocol(cluster: &mut pb::Cluster, upstream: Upstream, pool: Option<&HttpPool>) {
    let pool = pool.cloned().unwrap_or_default();
    let positive = |value: i32| u32::try_from(value).ok().filter(|value| *value > 0);
    let alive = pool.http2_keep_alive.as_ref();
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: positive(pool.max_concurrent_streams).and_then(short::uint),
        connection_keepalive: alive.map(|alive| core::KeepaliveSettings {
            interval: alive.interval.map(|span| short::duration(span.0)),
            timeout: alive.timeout.map(|span| short::duration(span.0)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let explicit = |config| options::ExplicitHttpConfig { protocol_config: Some(config) };
    use options::explicit_http_config::ProtocolConfig;
    let protocol = match upstream {
        Upstream::Http1 => options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit(
            ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default()),
        )),
        Upstream::Http2 => {
            options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit(ProtocolConfig::Http2ProtocolOptions(http2)))
        }
        Upstream::AsDownstream => {
            options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(options::UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                http3_protocol_options: None,
            })
        }
    };
    let idle = pool.idle_timeout.map(|span| short::duration(span.0));
    let requests = positive(pool.max_requests_per_connection).and_then(short::uint);
    let common = (idle.is_some() || requests.is_some()).then(|| core::HttpProtocolOptions {
        idle_timeout: idle,
        max_requests_per_connection: requests,
        ..Default::default()
    });
    let all = http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&all));
}

/// What metrics call the service.
fn service_metadata(service: &Service, subset: &str) -> core::Metadata {
    use envoy_types::pb::google::protobuf as wkt;
    let name = service.host.split('.').next().unwrap_or(&service.host);
    let fields = short::struct_of([
        ("host", short::text_value(&service.host)),
        ("name", short::text_value(if service.internal { name } else { &service.host })),
        ("namespace", short::text_value(&service.namespace)),
    ]);
    let entry = wkt::Value { kind: Some(wkt::value::Kind::StructValue(fields)) };
    let list = wkt::Value { kind: Some(wkt::value::Kind::ListValue(wkt::ListValue { values: vec![entry] })) };
    let mut own = short::struct_of([("services", list)]);
    if !subset.is_empty() {
        own.fields.insert("subset".to_owned(), short::text_value(subset));
    }
    short::metadata("istio", own)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_REFRESH: Duration = Duration::from_secs(60);
const RING_SIZE: u64 = 1024;
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
