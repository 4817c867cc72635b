//! Short ways to the messages that every compiler here builds.

use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf as wkt;

use crate::documents::shapes::StringMatch;

pub(super) fn duration(value: Duration) -> wkt::Duration {
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    wkt::Duration { seconds, nanos: value.subsec_nanos().cast_signed() }
}

pub(super) fn seconds(value: u64) -> wkt::Duration {
    duration(Duration::from_secs(value))
}

pub(super) fn uint(value: u32) -> Option<wkt::UInt32Value> {
    Some(wkt::UInt32Value { value })
}

pub(super) fn flag(value: bool) -> Option<wkt::BoolValue> {
    Some(wkt::BoolValue { value })
}

pub(super) fn socket_address(ip: &str, port: u16) -> core::SocketAddress {
    let port = core::socket_address::PortSpecifier::PortValue(port.into());
    core::SocketAddress { address: ip.to_owned(), port_specifier: Some(port), ..Default::default() }
}

pub(super) fn address(ip: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(ip, port))) }
}

/// A Unix socket (`unix:///path`), an IP address or a DNS name.
pub(super) fn endpoint_address(target: &str, port: u16) -> core::Address {
    match target.strip_prefix("unix://") {
        Some(path) => {
            let pipe = core::Pipe { path: path.to_owned(), ..Default::default() };
            core::Address { address: Some(core::address::Address::Pipe(pipe)) }
        }
        None => address(target, port),
    }
}

/// The source that delivers over the stream on which the message itself came.
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..Default::default()
    }
}

pub(super) fn grpc_service(cluster: String, authority: &str, timeout: Option<Duration>) -> core::GrpcService {
    let envoy =
        core::grpc_service::EnvoyGrpc { cluster_name: cluster, authority: authority.to_owned(), ..Default::default() };
    core::GrpcService {
        timeout: timeout.map(duration),
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)),
        ..Default::default()
    }
}

pub(super) fn text_source(text: &str) -> core::DataSource {
    let specifier = core::data_source::Specifier::InlineString(text.to_owned());
    core::DataSource { specifier: Some(specifier), ..Default::default() }
}

pub(super) fn file_source(path: &str) -> core::DataSource {
    let specifier = core::data_source::Specifier::Filename(path.to_owned());
    core::DataSource { specifier: Some(specifier), ..Default::default() }
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), ..Default::default() }
}

pub(super) fn exact(text: &str) -> StringMatcher {
    matcher(MatchPattern::Exact(text.to_owned()))
}

pub(super) fn prefix(text: &str) -> StringMatcher {
    matcher(MatchPattern::Prefix(text.to_owned()))
}

pub(super) fn suffix(text: &str) -> StringMatcher {
    matcher(MatchPattern::Suffix(text.to_owned()))
}

pub(super) fn pattern(text: &str) -> StringMatcher {
    matcher(MatchPattern::SafeRegex(regex(text)))
}

fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

/// A document's match; `None` when it says nothing, which means that the value only has to be there.
pub(super) fn string_match(test: &StringMatch) -> Option<StringMatcher> {
    match (&test.exact, &test.prefix, &test.regex) {
        (Some(text), _, _) => Some(exact(text)),
        (_, Some(text), _) => Some(prefix(text)),
        (_, _, Some(text)) => Some(pattern(text)),
        (None, None, None) => None,
    }
}

pub(super) fn header(name: &str, test: Option<StringMatcher>) -> HeaderMatcher {
    let test = test.map_or(HeaderMatchSpecifier::PresentMatch(true), HeaderMatchSpecifier::StringMatch);
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(test), ..Default::default() }
}

/// A share out of 100, exact to a millionth.
pub(super) fn fraction(percent: f64) -> FractionalPercent {
    let numerator = (percent.clamp(0.0, 100.0) * 10_000.0).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1,000,000")]
    FractionalPercent { numerator: numerator as u32, denominator: DenominatorType::Million as i32 }
}

pub(super) fn runtime_fraction(percent: f64) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent { default_value: Some(fraction(percent)), ..Default::default() }
}

pub(super) fn cidr(network: ipnet::IpNet) -> core::CidrRange {
    core::CidrRange { address_prefix: network.addr().to_string(), prefix_len: uint(network.prefix_len().into()) }
}

pub(super) fn any_address(like: IpAddr) -> &'static str {
    if like.is_ipv6() { "::" } else { "0.0.0.0" }
}

pub(super) fn text_value(text: &str) -> wkt::Value {
    wkt::Value { kind: Some(wkt::value::Kind::StringValue(text.to_owned())) }
}

pub(super) fn struct_of<'a>(fields: impl IntoIterator<Item = (&'a str, wkt::Value)>) -> wkt::Struct {
    wkt::Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Metadata of one filter.
pub(super) fn metadata(filter: &str, fields: wkt::Struct) -> core::Metadata {
    core::Metadata { filter_metadata: [(filter.to_owned(), fields)].into(), ..Default::default() }
}
