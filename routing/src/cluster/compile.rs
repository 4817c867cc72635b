//! From the xDS resource to a [`Cluster`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::load_balancing_policies as lb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http_pb;
use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, UInt64Value, value::Kind};

use super::{
    CircuitLimits, Cluster, Discovery, DnsFamily, DnsOptions, LbPolicy, ServiceName, SocketMatch, TcpKeepalive,
    UpstreamHttp, UpstreamProtocol,
};
use crate::config::{
    At, ConfigError, decode, each, is_type, limit, not_supported, number, optional_duration, percent, port, required,
    socket_addr,
};
use crate::endpoint::{Endpoints, text, texts};
use crate::hcm::Http2Options;
use crate::matcher::header_name;
use crate::outlier::OutlierPolicy;
use crate::retry::RetryBudget;
use crate::tls::UpstreamTls;

impl Cluster {
    /// Compiles a cluster resource, or says which field of it cannot be followed.
    pub fn compile(value: &pb::Cluster) -> Result<Self, ConfigError> {
        compile(value).map_err(|error| error.of("Cluster", &value.name))
    }
}

fn compile(value: &pb::Cluster) -> Result<Cluster, ConfigError> {
    if value.transport_socket_matcher.is_some() {
        return not_supported("a matcher tree").at("transport_socket_matcher");
    }
    if !value.filters.is_empty() {
        refuse_filters(&value.filters)?;
    }
    let common_lb = value.common_lb_config.clone().unwrap_or_default();
    let threshold = common_lb.healthy_panic_threshold.as_ref();
    use pb::cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig;
    Ok(Cluster {
        name: value.name.as_str().into(),
        discovery: Discovery::compile(value)?,
        connect_timeout: optional_duration("connect_timeout", value.connect_timeout.as_ref())?
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(CONNECT_TIMEOUT),
        lb: LbPolicy::compile(value)?,
        tls: UpstreamTls::compile(value.transport_socket.as_ref()).at("transport_socket")?,
        http: UpstreamHttp::compile(value)?,
        limits: limits(value, core::RoutingPriority::Default)?,
        high_limits: limits(value, core::RoutingPriority::High)?,
        outlier: value.outlier_detection.as_ref().map(OutlierPolicy::compile).transpose().at("outlier_detection")?,
        bind: bind(value.upstream_bind_config.as_ref()).at("upstream_bind_config")?,
        panic_percent: threshold.map_or(Ok(PANIC_PERCENT), percent).at("common_lb_config.healthy_panic_threshold")?,
        locality_weighted: matches!(common_lb.locality_config_specifier, Some(LocalityWeightedLbConfig(_))),
        keepalive: keepalive(value.upstream_connection_options.as_ref()),
        service: value.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get("istio")).and_then(service),
        socket_matches: each("transport_socket_matches", &value.transport_socket_matches, socket_match)?,
    })
}

fn refuse_filters(filters: &[pb::Filter]) -> Result<(), ConfigError> {
    let harmless =
        |name: &str| matches!(name, "istio.metadata_exchange" | "envoy.filters.network.upstream.metadata_exchange");
    match filters.iter().position(|filter| !harmless(&filter.name)) {
        None => Ok(()),
        Some(index) => not_supported(&format!("the filter {}", filters[index].name)).at_index("filters", index),
    }
}

fn socket_match(value: &pb::cluster::TransportSocketMatch) -> Result<SocketMatch, ConfigError> {
    let labels = value.r#match.as_ref().map(texts).unwrap_or_default();
    Ok(SocketMatch {
        labels: labels.into_iter().collect(),
        tls: UpstreamTls::compile(value.transport_socket.as_ref()).at("transport_socket")?,
    })
}

impl Discovery {
    fn compile(value: &pb::Cluster) -> Result<Self, ConfigError> {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
        let kind = match value.cluster_discovery_type.as_ref() {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(kind)) => {
                DiscoveryType::try_from(*kind).map_err(|_| ConfigError::new("unknown type").under("type"))?
            }
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                return not_supported(&format!("the cluster type {}", custom.name)).at("cluster_type");
            }
        };
        match kind {
            DiscoveryType::Static => load_assignment(value).map(Self::Static),
            DiscoveryType::StrictDns => {
                Ok(Self::StrictDns { targets: load_assignment(value)?, dns: DnsOptions::compile(value)? })
            }
            DiscoveryType::LogicalDns => {
                Ok(Self::LogicalDns { targets: load_assignment(value)?, dns: DnsOptions::compile(value)? })
            }
            DiscoveryType::Eds => {
                let service = value.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
                let service = service.filter(|name| !name.is_empty()).unwrap_or(&value.name);
                Ok(Self::Eds { service: service.into() })
            }
            DiscoveryType::OriginalDst => original_dst(value),
        }
    }
}

fn load_assignment(value: &pb::Cluster) -> Result<Arc<Endpoints>, ConfigError> {
    let empty = Default::default();
    let assignment = value.load_assignment.as_ref().unwrap_or(&empty);
    Endpoints::compile_part(assignment).map(Arc::new).at("load_assignment")
}

fn original_dst(value: &pb::Cluster) -> Result<Discovery, ConfigError> {
    let Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) = &value.lb_config else {
        return Ok(Discovery::OriginalDst { header: None, port_override: None });
    };
    let name = match config.http_header_name.as_str() {
        "" => ORIGINAL_DST_HEADER,
        name => name,
    };
    let header = if config.use_http_header { Some(header_name(name)?) } else { None };
    let port_override = number(config.upstream_port_override.as_ref()).map(port).transpose();
    Ok(Discovery::OriginalDst { header, port_override: port_override.at("original_dst_lb_config")? })
}

impl DnsOptions {
    fn compile(value: &pb::Cluster) -> Result<Self, ConfigError> {
        use pb::cluster::DnsLookupFamily as Family;
        let family = match Family::try_from(value.dns_lookup_family) {
            Ok(Family::Auto) => DnsFamily::Auto,
            Ok(Family::V4Only) => DnsFamily::V4Only,
            Ok(Family::V6Only) => DnsFamily::V6Only,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            Err(_) => return Err(ConfigError::new("unknown family").under("dns_lookup_family")),
        };
        let refresh = limit("dns_refresh_rate", value.dns_refresh_rate.as_ref())?.unwrap_or(DNS_REFRESH);
        Ok(Self { refresh, respect_ttl: value.respect_dns_ttl, family })
    }
}

impl LbPolicy {
    fn compile(value: &pb::Cluster) -> Result<Self, ConfigError> {
        use pb::cluster::LbPolicy as Pb;
        if let Some(policy) = &value.load_balancing_policy {
            return Self::extension(policy).at("load_balancing_policy");
        }
        match Pb::try_from(value.lb_policy) {
            Ok(Pb::RoundRobin | Pb::ClusterProvided) => Ok(Self::RoundRobin),
            Ok(Pb::Random) => Ok(Self::Random),
            Ok(Pb::LeastRequest) => Ok(Self::least_request(match &value.lb_config {
                Some(pb::cluster::LbConfig::LeastRequestLbConfig(config)) => number(config.choice_count.as_ref()),
                _ => None,
            })),
            Ok(Pb::RingHash) => Ok(Self::ring_hash(match &value.lb_config {
                Some(pb::cluster::LbConfig::RingHashLbConfig(config)) => config.minimum_ring_size.as_ref(),
                _ => None,
            })),
            Ok(Pb::Maglev) => Self::maglev(match &value.lb_config {
                Some(pb::cluster::LbConfig::MaglevLbConfig(config)) => config.table_size.as_ref(),
                _ => None,
            }),
            Ok(Pb::LoadBalancingPolicyConfig) => Err(ConfigError::new("is required").under("load_balancing_policy")),
            Err(_) => Err(ConfigError::new("unknown policy").under("lb_policy")),
        }
    }

    /// The first policy of the list that is known here, as the list is meant.
    fn extension(value: &pb::LoadBalancingPolicy) -> Result<Self, ConfigError> {
        let configs = value.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref());
        for any in configs.filter_map(|config| config.typed_config.as_ref()) {
            if let Some(policy) = Self::known(any)? {
                return Ok(policy);
            }
        }
        not_supported("every policy of the list")
    }

    fn known(any: &Any) -> Result<Option<Self>, ConfigError> {
        Ok(Some(if is_type::<lb::round_robin::v3::RoundRobin>(any) {
            Self::RoundRobin
        } else if is_type::<lb::random::v3::Random>(any) {
            Self::Random
        } else if is_type::<lb::least_request::v3::LeastRequest>(any) {
            let config: lb::least_request::v3::LeastRequest = decode(any)?;
            Self::least_request(number(config.choice_count.as_ref()))
        } else if is_type::<lb::ring_hash::v3::RingHash>(any) {
            let config: lb::ring_hash::v3::RingHash = decode(any)?;
            Self::ring_hash(config.minimum_ring_size.as_ref())
        } else if is_type::<lb::maglev::v3::Maglev>(any) {
            let config: lb::maglev::v3::Maglev = decode(any)?;
            Self::maglev(config.table_size.as_ref())?
        } else {
            return Ok(None);
        }))
    }

    fn least_request(choices: Option<u32>) -> Self {
        Self::LeastRequest { choices: choices.unwrap_or(2).clamp(2, CHOICES_MAX) }
    }

    fn ring_hash(min: Option<&UInt64Value>) -> Self {
        let min = min.map_or(1024, |min| min.value.min(RING_MAX.into()));
        Self::RingHash { ring_min: u32::try_from(min).unwrap_or(RING_MAX).max(1) }
    }

    fn maglev(size: Option<&UInt64Value>) -> Result<Self, ConfigError> {
        let size = size.map_or_else(|| MAGLEV_TABLE.into(), |size| size.value);
        match u32::try_from(size).ok().filter(|size| *size <= MAGLEV_TABLE_MAX && is_prime(*size)) {
            Some(table) => Ok(Self::Maglev { table }),
            None => {
                Err(ConfigError::new(format!("is a prime number of at most {MAGLEV_TABLE_MAX}")).under("table_size"))
            }
        }
    }
}

fn is_prime(number: u32) -> bool {
    let number = u64::from(number);
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

impl UpstreamHttp {
    fn compile(value: &pb::Cluster) -> Result<Self, ConfigError> {
        let field = "typed_extension_protocol_options";
        match value.typed_extension_protocol_options.get(HTTP_OPTIONS) {
            Some(any) => {
                decode::<http_pb::HttpProtocolOptions>(any).and_then(|options| Self::options(&options)).at(field)
            }
            None => Self::older(value),
        }
    }

    fn options(value: &http_pb::HttpProtocolOptions) -> Result<Self, ConfigError> {
        use http_pb::http_protocol_options::{UpstreamProtocolOptions as Kind, explicit_http_config::ProtocolConfig};
        let (protocol, http2) =
            match required(value.upstream_protocol_options.as_ref()).at("upstream_protocol_options")? {
                Kind::ExplicitHttpConfig(explicit) => match required(explicit.protocol_config.as_ref())? {
                    ProtocolConfig::HttpProtocolOptions(_) => (UpstreamProtocol::Http1, None),
                    ProtocolConfig::Http2ProtocolOptions(http2) => (UpstreamProtocol::Http2, Some(http2)),
                    ProtocolConfig::Http3ProtocolOptions(_) => return not_supported("HTTP/3"),
                },
                Kind::UseDownstreamProtocolConfig(config) => {
                    (UpstreamProtocol::UseDownstream, config.http2_protocol_options.as_ref())
                }
                Kind::AutoConfig(config) => (UpstreamProtocol::Auto, config.http2_protocol_options.as_ref()),
            };
        let common = value.common_http_protocol_options.unwrap_or_default();
        Self::build(protocol, http2, &common, value.upstream_http_protocol_options.as_ref())
    }

    /// The form before the options became an extension.
    fn older(value: &pb::Cluster) -> Result<Self, ConfigError> {
        use pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol;
        let http2 = value.http2_protocol_options.as_ref();
        let protocol = match http2 {
            _ if value.protocol_selection == UseDownstreamProtocol as i32 => UpstreamProtocol::UseDownstream,
            Some(_) => UpstreamProtocol::Http2,
            None => UpstreamProtocol::Http1,
        };
        let common = value.common_http_protocol_options.unwrap_or_default();
        let mut http = Self::build(protocol, http2, &common, value.upstream_http_protocol_options.as_ref())?;
        let most = number(value.max_requests_per_connection.as_ref()).filter(|most| *most > 0);
        http.requests_per_connection_max = http.requests_per_connection_max.or(most);
        Ok(http)
    }

    fn build(
        protocol: UpstreamProtocol,
        http2: Option<&core::Http2ProtocolOptions>,
        common: &core::HttpProtocolOptions,
        upstream: Option<&core::UpstreamHttpProtocolOptions>,
    ) -> Result<Self, ConfigError> {
        let ping = http2.and_then(|http2| http2.connection_keepalive.as_ref()).map(ping).transpose();
        Ok(Self {
            protocol,
            idle_timeout: match &common.idle_timeout {
                None => Some(IDLE_TIMEOUT),
                some => limit("idle_timeout", some.as_ref())?,
            },
            connection_max: limit("max_connection_duration", common.max_connection_duration.as_ref())?,
            stream_max: limit("max_stream_duration", common.max_stream_duration.as_ref())?,
            requests_per_connection_max: number(common.max_requests_per_connection.as_ref()).filter(|most| *most > 0),
            http2: Http2Options::compile(http2),
            ping: ping.at("connection_keepalive")?.flatten(),
            auto_sni: upstream.is_some_and(|upstream| upstream.auto_sni),
            auto_san: upstream.is_some_and(|upstream| upstream.auto_san_validation),
        })
    }
}

fn ping(value: &core::KeepaliveSettings) -> Result<Option<(Duration, Duration)>, ConfigError> {
    let interval = limit("interval", value.interval.as_ref())?;
    let timeout = limit("timeout", value.timeout.as_ref())?;
    Ok(interval.zip(timeout))
}

fn limits(value: &pb::Cluster, priority: core::RoutingPriority) -> Result<CircuitLimits, ConfigError> {
    let thresholds = value.circuit_breakers.as_ref().map_or(&[][..], |breakers| &breakers.thresholds);
    let found = thresholds.iter().find(|threshold| threshold.priority == priority as i32);
    let found = found.cloned().unwrap_or_default();
    Ok(CircuitLimits {
        connections: number(found.max_connections.as_ref()).unwrap_or(1024),
        pending: number(found.max_pending_requests.as_ref()).unwrap_or(1024),
        requests: number(found.max_requests.as_ref()).unwrap_or(1024),
        retries: number(found.max_retries.as_ref()).unwrap_or(3),
        retry_budget: found.retry_budget.as_ref().map(RetryBudget::compile).transpose().at("circuit_breakers")?,
    })
}

fn bind(value: Option<&core::BindConfig>) -> Result<Option<std::net::SocketAddr>, ConfigError> {
    let address = value.and_then(|bind| bind.source_address.as_ref());
    address.map(socket_addr).transpose().at("source_address")
}

fn keepalive(value: Option<&pb::UpstreamConnectionOptions>) -> Option<TcpKeepalive> {
    let value = value?.tcp_keepalive.as_ref()?;
    let secs = |value| number(value).map(|secs| Duration::from_secs(secs.into()));
    Some(TcpKeepalive {
        probes: number(value.keepalive_probes.as_ref()),
        time: secs(value.keepalive_time.as_ref()),
        interval: secs(value.keepalive_interval.as_ref()),
    })
}

/// Istio's metadata of a cluster: a list of services, of which the first counts.
fn service(istio: &Struct) -> Option<ServiceName> {
    let Some(Kind::ListValue(ListValue { values })) = istio.fields.get("services")?.kind.as_ref() else { return None };
    let Some(Kind::StructValue(first)) = values.first()?.kind.as_ref() else { return None };
    let part = |key| text(first, key).map(Arc::from);
    Some(ServiceName { host: part("host")?, name: part("name")?, namespace: part("namespace")? })
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const ORIGINAL_DST_HEADER: &str = "x-envoy-original-dst-host";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const DNS_REFRESH: Duration = Duration::from_secs(5);
const PANIC_PERCENT: f64 = 50.0;
const CHOICES_MAX: u32 = 16;
const MAGLEV_TABLE: u32 = 65_537;
/// The largest table of Maglev hashing.
const MAGLEV_TABLE_MAX: u32 = 5_000_011;
/// The most places that are asked for on a ring.
const RING_MAX: u32 = 1 << 20;
