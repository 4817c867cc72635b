//! Asking a service whether a request may pass (Envoy's `ext_authz`, over gRPC).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::HeaderMutationRules;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use http::{HeaderName, StatusCode, header};

use super::{FilterOverride, GrpcTarget, feature};
use crate::config::{At, ConfigError, Fraction, each, flag, not_supported, required};
use crate::matcher::{MetadataMatcher, Regex, StringMatcher};
use crate::request::Request;

/// Asks a service whether a request may pass.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// The service.
    pub service: GrpcTarget,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether a request passes when the service does not answer.
    pub failure_mode_allow: bool,
    /// Whether the upstream is told, when that happened, by `x-envoy-auth-failure-mode-allowed`.
    pub failure_mode_header: bool,
    /// The answer when the service does not answer.
    pub status_on_error: StatusCode,
    /// How much of the body is sent along; none if nothing.
    pub body: Option<BodyLimit>,
    /// Whether the peer's certificate is sent along.
    pub include_peer_certificate: bool,
    /// Whether the route is picked again after the service changed headers.
    pub clear_route_cache: bool,
    /// Whether headers are sent as bytes rather than as text.
    pub raw_headers: bool,
    /// Which headers the service may change.
    pub mutations: MutationRules,
    /// Filters whose notes are sent along.
    pub metadata_namespaces: Vec<Arc<str>>,
    allowed_headers: Option<Vec<StringMatcher>>,
    disallowed_headers: Vec<StringMatcher>,
    share: Fraction,
    condition: Option<MetadataMatcher>,
    deny_at_disable: bool,
}

/// How much of a body is sent along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimit {
    /// In bytes.
    pub bytes_max: u32,
    /// Whether a longer body is cut; otherwise it is refused.
    pub partial: bool,
    /// Whether it is sent as bytes rather than as text.
    pub as_bytes: bool,
}

/// Which headers a service may change.
#[derive(Clone, Debug, Default)]
pub struct MutationRules {
    routing: bool,
    disallow_all: bool,
    allow: Option<Regex>,
    disallow: Option<Regex>,
    /// Whether a change that is not allowed fails the request instead of being left out.
    pub disallow_is_error: bool,
}

/// What a route changes.
#[derive(Clone, Debug, Default)]
pub struct ExtAuthzOverride {
    /// Facts that are sent along.
    pub context_extensions: BTreeMap<String, String>,
    /// Another limit for the body.
    pub body: Option<BodyLimit>,
    /// Whether the body is not sent.
    pub without_body: bool,
    /// Another service.
    pub service: Option<GrpcTarget>,
}

impl ExtAuthz {
    pub(crate) fn compile(value: &pb::ExtAuthz) -> Result<Self, ConfigError> {
        let service = match required(value.services.as_ref())? {
            pb::ext_authz::Services::GrpcService(service) => GrpcTarget::compile(Some(service)).at("grpc_service")?,
            pb::ext_authz::Services::HttpService(_) => return not_supported("an HTTP service").at("http_service"),
        };
        Ok(Self {
            timeout: service.timeout.unwrap_or(TIMEOUT),
            service,
            failure_mode_allow: value.failure_mode_allow,
            failure_mode_header: value.failure_mode_allow_header_add,
            status_on_error: status(value.status_on_error.as_ref(), StatusCode::FORBIDDEN).at("status_on_error")?,
            body: value.with_request_body.as_ref().map(BodyLimit::compile),
            include_peer_certificate: value.include_peer_certificate,
            clear_route_cache: value.clear_route_cache,
            raw_headers: value.encode_raw_headers,
            mutations: MutationRules::compile(value.decoder_header_mutation_rules.as_ref())
                .at("decoder_header_mutation_rules")?,
            metadata_namespaces: value.metadata_context_namespaces.iter().map(|name| name.as_str().into()).collect(),
            allowed_headers: value.allowed_headers.as_ref().map(string_list).transpose().at("allowed_headers")?,
            disallowed_headers: match &value.disallowed_headers {
                Some(list) => string_list(list).at("disallowed_headers")?,
                None => Vec::new(),
            },
            share: Fraction::runtime(value.filter_enabled.as_ref(), Fraction::ALL).at("filter_enabled")?,
            condition: value
                .filter_enabled_metadata
                .as_ref()
                .map(MetadataMatcher::compile)
                .transpose()
                .at("filter_enabled_metadata")?,
            deny_at_disable: feature(value.deny_at_disable.as_ref(), false),
        })
    }

    /// Whether the service is to be asked about this request.
    pub fn enabled(&self, request: &Request<'_>, dice: u64) -> bool {
        self.share.includes(dice) && self.condition.as_ref().is_none_or(|test| test.matches(request.metadata))
    }

    /// Whether a request that the service is not asked about is refused.
    pub fn denies_when_disabled(&self) -> bool {
        self.deny_at_disable
    }

    /// Whether the service is told this header of the request.
    pub fn tells(&self, name: &HeaderName) -> bool {
        let any = |tests: &[StringMatcher]| tests.iter().any(|test| test.matches(name.as_str().as_bytes()));
        self.allowed_headers.as_deref().is_none_or(any) && !any(&self.disallowed_headers)
    }
}

impl BodyLimit {
    fn compile(value: &pb::BufferSettings) -> Self {
        Self { bytes_max: value.max_request_bytes, partial: value.allow_partial_message, as_bytes: value.pack_as_bytes }
    }
}

impl MutationRules {
    fn compile(value: Option<&HeaderMutationRules>) -> Result<Self, ConfigError> {
        let Some(value) = value else { return Ok(Self::default()) };
        let regex = |value: Option<&envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher>| {
            value.map(Regex::compile).transpose()
        };
        Ok(Self {
            routing: flag(value.allow_all_routing.as_ref(), false),
            disallow_all: flag(value.disallow_all.as_ref(), false),
            allow: regex(value.allow_expression.as_ref()).at("allow_expression")?,
            disallow: regex(value.disallow_expression.as_ref()).at("disallow_expression")?,
            disallow_is_error: flag(value.disallow_is_error.as_ref(), false),
        })
    }

    /// Whether the service may change this header. What frames a message or proves who sent it is never open.
    pub fn permits(&self, name: &HeaderName) -> bool {
        let text = name.as_str().as_bytes();
        if is_protected(name) || self.disallow.as_ref().is_some_and(|regex| regex.matches(text)) {
            return false;
        }
        if self.allow.as_ref().is_some_and(|regex| regex.matches(text)) {
            return true;
        }
        !self.disallow_all && (self.routing || name != header::HOST)
    }
}

fn is_protected(name: &HeaderName) -> bool {
    [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::UPGRADE, header::TE].contains(name)
        || name == "x-forwarded-client-cert"
}

impl ExtAuthzOverride {
    pub(crate) fn compile(value: &pb::ExtAuthzPerRoute) -> Result<FilterOverride, ConfigError> {
        match required(value.r#override.as_ref())? {
            pb::ext_authz_per_route::Override::Disabled(true) => Ok(FilterOverride::Disabled),
            pb::ext_authz_per_route::Override::Disabled(false) => Ok(FilterOverride::Enabled),
            pb::ext_authz_per_route::Override::CheckSettings(settings) => {
                Ok(FilterOverride::ExtAuthz(Self::settings(settings).at("check_settings")?))
            }
        }
    }

    fn settings(value: &pb::CheckSettings) -> Result<Self, ConfigError> {
        let service = match value.service_override.as_ref() {
            None => None,
            Some(pb::check_settings::ServiceOverride::GrpcService(service)) => {
                Some(GrpcTarget::compile(Some(service)).at("grpc_service")?)
            }
            Some(_) => return not_supported("an HTTP service").at("http_service"),
        };
        Ok(Self {
            context_extensions: value.context_extensions.clone().into_iter().collect(),
            body: value.with_request_body.as_ref().map(BodyLimit::compile),
            without_body: value.disable_request_body_buffering,
            service,
        })
    }
}

fn string_list(value: &ListStringMatcher) -> Result<Vec<StringMatcher>, ConfigError> {
    each("patterns", &value.patterns, StringMatcher::compile)
}

/// An HTTP status, which may be left unset.
pub(super) fn status(value: Option<&HttpStatus>, default: StatusCode) -> Result<StatusCode, ConfigError> {
    let code = value.map_or(0, |status| status.code);
    if code == 0 {
        return Ok(default);
    }
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    code.ok_or_else(|| ConfigError::new("is not an HTTP status").under("code"))
}

const TIMEOUT: Duration = Duration::from_millis(200);
