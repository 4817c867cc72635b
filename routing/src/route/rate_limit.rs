//! What a rate limit service is asked about: descriptors made of a request's properties.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, metadata_key::path_segment::Segment};
use pb::rate_limit::{action::ActionSpecifier, r#override::OverrideSpecifier};

use crate::config::{At, ConfigError, each, flag, not_supported, number, required};
use crate::matcher::{HeaderKey, HeaderMatcher, QueryMatcher, Reading};
use crate::request::Request;

/// How one descriptor is made.
#[derive(Clone, Debug)]
pub struct RateLimitRule {
    /// Which filter it is for.
    pub stage: u32,
    limit: Option<DescriptorLimit>,
    actions: Vec<DescriptorAction>,
}

/// What a service is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Keys and values.
    pub entries: Vec<(String, String)>,
    /// A limit instead of the service's own.
    pub limit: Option<DescriptorLimit>,
}

/// A limit that the route brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// How many requests.
    pub requests: u32,
    /// In what time, as Envoy's `RateLimitUnit`.
    pub unit: i32,
}

#[derive(Clone, Debug)]
enum DescriptorAction {
    SourceCluster,
    DestinationCluster,
    RemoteAddress,
    MaskedAddress { v4: u8, v6: u8 },
    GenericKey { key: String, value: String },
    Header { header: HeaderKey, key: String, skip_if_absent: bool },
    Param { name: String, key: String, skip_if_absent: bool },
    Headers { key: String, value: String, expect: bool, tests: Vec<HeaderMatcher> },
    Params { key: String, value: String, expect: bool, tests: Vec<QueryMatcher> },
    Metadata { key: String, filter: String, path: Vec<Box<str>>, default: String, skip_if_absent: bool },
}

/// What came of an action.
enum Part {
    Entry(String, String),
    Nothing,
    NoDescriptor,
}

impl RateLimitRule {
    pub(crate) fn compile(value: &pb::RateLimit) -> Result<Self, ConfigError> {
        let limit = match value.limit.as_ref().and_then(|limit| limit.override_specifier.as_ref()) {
            None => None,
            Some(OverrideSpecifier::RateLimit(limit)) => {
                Some(DescriptorLimit { requests: limit.requests_per_unit, unit: limit.unit })
            }
            Some(OverrideSpecifier::DynamicMetadata(_)) => return not_supported("a limit from metadata").at("limit"),
        };
        if value.actions.is_empty() {
            return Err(ConfigError::new("is empty").under("actions"));
        }
        Ok(Self {
            stage: number(value.stage.as_ref()).unwrap_or(0),
            limit,
            actions: each("actions", &value.actions, DescriptorAction::compile)?,
        })
    }

    /// The descriptor of a request on its way to a cluster; none if a part of it is missing.
    pub fn descriptor(&self, request: &Request<'_>, cluster: &str, own_cluster: &str) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.part(request, cluster, own_cluster) {
                Part::Entry(key, value) => entries.push((key, value)),
                Part::Nothing => {}
                Part::NoDescriptor => return None,
            }
        }
        (!entries.is_empty()).then_some(Descriptor { entries, limit: self.limit })
    }
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

impl DescriptorAction {
    fn compile(value: &pb::rate_limit::Action) -> Result<Self, ConfigError> {
        use ActionSpecifier as Pb;
        Ok(match required(value.action_specifier.as_ref())? {
            Pb::SourceCluster(_) => Self::SourceCluster,
            Pb::DestinationCluster(_) => Self::DestinationCluster,
            Pb::RemoteAddress(_) => Self::RemoteAddress,
            Pb::MaskedRemoteAddress(mask) => Self::MaskedAddress {
                v4: mask_len(mask.v4_prefix_mask_len.as_ref(), 32)?,
                v6: mask_len(mask.v6_prefix_mask_len.as_ref(), 128)?,
            },
            Pb::GenericKey(generic) => Self::GenericKey {
                key: or(&generic.descriptor_key, "generic_key"),
                value: generic.descriptor_value.clone(),
            },
            Pb::RequestHeaders(header) => Self::Header {
                header: HeaderKey::parse(&header.header_name).at("request_headers.header_name")?,
                key: header.descriptor_key.clone(),
                skip_if_absent: header.skip_if_absent,
            },
            Pb::QueryParameters(param) => Self::Param {
                name: param.query_parameter_name.clone(),
                key: param.descriptor_key.clone(),
                skip_if_absent: param.skip_if_absent,
            },
            Pb::HeaderValueMatch(test) => Self::Headers {
                key: or(&test.descriptor_key, "header_match"),
                value: test.descriptor_value.clone(),
                expect: flag(test.expect_match.as_ref(), true),
                tests: each("headers", &test.headers, |test| HeaderMatcher::compile(test, Reading::Joined))
                    .at("header_value_match")?,
            },
            Pb::QueryParameterValueMatch(test) => Self::Params {
                key: or(&test.descriptor_key, "query_match"),
                value: test.descriptor_value.clone(),
                expect: flag(test.expect_match.as_ref(), true),
                tests: each("query_parameters", &test.query_parameters, QueryMatcher::compile)
                    .at("query_parameter_value_match")?,
            },
            Pb::Metadata(data) if data.source == 0 => {
                Self::metadata(&data.descriptor_key, data.metadata_key.as_ref(), &data.default_value)
                    .map(|action| action.skipping_absent(data.skip_if_absent))
                    .at("metadata")?
            }
            Pb::DynamicMetadata(data) => {
                Self::metadata(&data.descriptor_key, data.metadata_key.as_ref(), &data.default_value)
                    .at("dynamic_metadata")?
            }
            Pb::Metadata(_) => return not_supported("metadata of routes and clusters").at("metadata.source"),
            Pb::RemoteAddressMatch(_) => return not_supported("a test of the address").at("remote_address_match"),
            Pb::Extension(extension) => return not_supported(&format!("the extension {}", extension.name)),
        })
    }

    fn metadata(key: &str, path: Option<&MetadataKey>, default: &str) -> Result<Self, ConfigError> {
        let source = required(path).at("metadata_key")?;
        let path = each("path", &source.path, |segment| match required(segment.segment.as_ref())? {
            Segment::Key(key) => Ok(key.as_str().into()),
            Segment::Index(_) => not_supported("an index"),
        })
        .at("metadata_key")?;
        Ok(Self::Metadata {
            key: key.to_owned(),
            filter: source.key.clone(),
            path,
            default: default.to_owned(),
            skip_if_absent: false,
        })
    }

    fn skipping_absent(self, skip: bool) -> Self {
        match self {
            Self::Metadata { key, filter, path, default, .. } => {
                Self::Metadata { key, filter, path, default, skip_if_absent: skip }
            }
            other => other,
        }
    }

    fn part(&self, request: &Request<'_>, cluster: &str, own_cluster: &str) -> Part {
        let entry = |key: &str, value: &str| Part::Entry(key.to_owned(), value.to_owned());
        let absent = |skip: bool| if skip { Part::Nothing } else { Part::NoDescriptor };
        match self {
            Self::SourceCluster => entry("source_cluster", own_cluster),
            Self::DestinationCluster => entry("destination_cluster", cluster),
            Self::RemoteAddress => entry("remote_address", &request.remote.to_canonical().to_string()),
            Self::MaskedAddress { v4, v6 } => masked(request, *v4, *v6),
            Self::GenericKey { key, value } => entry(key, value),
            Self::Header { header, key, skip_if_absent } => match header.read(request) {
                Some(value) => entry(key, &String::from_utf8_lossy(&value)),
                None => absent(*skip_if_absent),
            },
            Self::Param { name, key, skip_if_absent } => {
                match request.path.params().find(|(param, _)| *param == name.as_str()) {
                    Some((_, value)) => entry(key, value),
                    None => absent(*skip_if_absent),
                }
            }
            Self::Headers { key, value, expect, tests } => {
                matched(key, value, *expect == tests.iter().all(|test| test.matches(request)))
            }
            Self::Params { key, value, expect, tests } => {
                matched(key, value, *expect == tests.iter().all(|test| test.matches(request)))
            }
            Self::Metadata { key, filter, path, default, skip_if_absent } => {
                match request.metadata.find(filter, path).map(|value| value.to_text()) {
                    Some(value) if !value.is_empty() => entry(key, &value),
                    _ if !default.is_empty() => entry(key, default),
                    _ => absent(*skip_if_absent),
                }
            }
        }
    }
}

fn matched(key: &str, value: &str, passes: bool) -> Part {
    if passes { Part::Entry(key.to_owned(), value.to_owned()) } else { Part::NoDescriptor }
}

fn masked(request: &Request<'_>, v4: u8, v6: u8) -> Part {
    let ip = request.remote.to_canonical();
    let net = ipnet::IpNet::new(ip, if ip.is_ipv4() { v4 } else { v6 });
    net.map_or(Part::NoDescriptor, |net| Part::Entry("masked_remote_address".to_owned(), net.trunc().to_string()))
}

fn mask_len(value: Option<&envoy_types::pb::google::protobuf::UInt32Value>, max: u8) -> Result<u8, ConfigError> {
    let len = number(value).map_or(Ok(max), u8::try_from);
    len.ok().filter(|len| *len <= max).ok_or_else(|| ConfigError::new("the mask is too long"))
}
