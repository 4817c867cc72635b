//! Asking a service whether there is quota left (Envoy's rate limit service).

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use http::StatusCode;

use super::GrpcTarget;
use super::ext_authz::status;
use crate::config::{At, ConfigError, Fraction, each, not_supported, required};
use crate::request::Request;
use crate::route::{Descriptor, HeaderEdits, RateLimitRule, Selection};

/// Asks a service whether there is quota left.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Whose quotas.
    pub domain: Arc<str>,
    /// The service.
    pub service: GrpcTarget,
    /// How long it may take.
    pub timeout: Duration,
    /// Which of the routes' rules are meant.
    pub stage: u32,
    /// Whether a request is refused when the service does not answer.
    pub failure_mode_deny: bool,
    /// The answer when the quota is used up.
    pub status: StatusCode,
    /// The answer when the service does not answer and that refuses.
    pub status_on_error: StatusCode,
    /// Whether gRPC clients are told RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// Whether clients are told what is left of their quota.
    pub quota_headers: bool,
    /// Headers of a refusal.
    pub response_edits: HeaderEdits,
    audience: Audience,
    rules: Vec<RateLimitRule>,
    enabled: Fraction,
    enforced: Fraction,
}

/// Whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Internal,
    External,
    Both,
}

/// What a route changes.
#[derive(Clone, Debug)]
pub struct RateLimitOverride {
    /// Another domain.
    pub domain: Option<Arc<str>>,
    /// What becomes of the virtual host's rules.
    pub virtual_host: VirtualHostLimits,
    /// Rules instead of the route's own.
    pub rules: Vec<RateLimitRule>,
}

/// What becomes of a virtual host's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualHostLimits {
    /// They count if the route has none.
    Fallback,
    /// They count as well.
    Include,
    /// They do not count.
    Ignore,
}

impl RateLimit {
    pub(crate) fn compile(value: &pb::RateLimit) -> Result<Self, ConfigError> {
        if value.domain.is_empty() {
            return Err(ConfigError::new("is required").under("domain"));
        }
        let service = required(value.rate_limit_service.as_ref()).at("rate_limit_service")?;
        let timeout = value.timeout.as_ref().map(crate::config::duration).transpose().at("timeout")?;
        Ok(Self {
            domain: value.domain.as_str().into(),
            service: GrpcTarget::compile(service.grpc_service.as_ref()).at("rate_limit_service.grpc_service")?,
            timeout: timeout.unwrap_or(TIMEOUT),
            stage: value.stage,
            failure_mode_deny: value.failure_mode_deny,
            status: status(value.rate_limited_status.as_ref(), StatusCode::TOO_MANY_REQUESTS)
                .at("rate_limited_status")?,
            status_on_error: status(value.status_on_error.as_ref(), StatusCode::INTERNAL_SERVER_ERROR)
                .at("status_on_error")?,
            resource_exhausted: value.rate_limited_as_resource_exhausted,
            quota_headers: value.enable_x_ratelimit_headers != 0,
            response_edits: HeaderEdits::compile("response_headers_to_add", &value.response_headers_to_add, "", &[])?,
            audience: Audience::compile(&value.request_type).at("request_type")?,
            rules: each("rate_limits", &value.rate_limits, RateLimitRule::compile)?,
            enabled: Fraction::runtime(value.filter_enabled.as_ref(), Fraction::ALL).at("filter_enabled")?,
            enforced: Fraction::runtime(value.filter_enforced.as_ref(), Fraction::ALL).at("filter_enforced")?,
        })
    }

    /// Whether the service is to be asked. `internal` says that the request began inside the mesh.
    pub fn enabled(&self, internal: bool, dice: u64) -> bool {
        let counted = match self.audience {
            Audience::Both => true,
            Audience::Internal => internal,
            Audience::External => !internal,
        };
        counted && self.enabled.includes(dice)
    }

    /// Whether a used-up quota refuses the request.
    pub fn enforced(&self, dice: u64) -> bool {
        self.enforced.includes(dice)
    }

    /// What to ask the service about; nothing if it need not be asked.
    pub fn descriptors<'t>(
        &self,
        selection: Option<&Selection<'t>>,
        changed: Option<&'t RateLimitOverride>,
        request: &Request<'_>,
        cluster: &str,
        own_cluster: &str,
    ) -> Vec<Descriptor> {
        let rules = match selection {
            _ if !self.rules.is_empty() => self.rules.iter().collect::<Vec<_>>(),
            None => Vec::new(),
            Some(selection) => selection.rate_limit_rules(changed),
        };
        let counted = rules.into_iter().filter(|rule| rule.stage == self.stage);
        counted.filter_map(|rule| rule.descriptor(request, cluster, own_cluster)).collect()
    }
}

impl Audience {
    fn compile(value: &str) -> Result<Self, ConfigError> {
        match value {
            "" | "both" => Ok(Self::Both),
            "internal" => Ok(Self::Internal),
            "external" => Ok(Self::External),
            _ => not_supported(&format!("`{value}`")),
        }
    }
}

impl RateLimitOverride {
    pub(crate) fn compile(value: &pb::RateLimitPerRoute) -> Result<Self, ConfigError> {
        use pb::rate_limit_per_route::VhRateLimitsOptions as Options;
        let virtual_host = match Options::try_from(value.vh_rate_limits) {
            Ok(Options::Override) => VirtualHostLimits::Fallback,
            Ok(Options::Include) => VirtualHostLimits::Include,
            Ok(Options::Ignore) => VirtualHostLimits::Ignore,
            Err(_) => return Err(ConfigError::new("unknown value").under("vh_rate_limits")),
        };
        Ok(Self {
            domain: Some(value.domain.as_str()).filter(|domain| !domain.is_empty()).map(Into::into),
            virtual_host,
            rules: each("rate_limits", &value.rate_limits, RateLimitRule::compile)?,
        })
    }
}

const TIMEOUT: Duration = Duration::from_millis(20);
