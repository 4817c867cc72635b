//! HTTP filters in the order a listener names them, and what routes change about them.
//!
//! A filter of an unknown type is refused, because leaving out one that protects something would open it. Only a known
//! list of filters that merely observe is left out silently, and whatever the configuration itself calls optional.

mod authorize;
mod cors;
mod ext_authz;
mod fault;
mod grpc;
mod local_rate_limit;
mod rate_limit;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::google::protobuf::Any;

use crate::config::{At, ConfigError, decode, flag, is_type, not_supported, type_name};
use crate::jwt::{JwtAuthn, JwtOverride};
use crate::rbac::RbacFilter;
use crate::route::Selection;

pub use authorize::{Authorization, authorize};
pub use cors::{CorsDecision, CorsPolicy};
pub use ext_authz::{BodyLimit, ExtAuthz, ExtAuthzOverride, MutationRules};
pub use fault::{Abort, Fault, FaultDecision};
pub use grpc::GrpcTarget;
pub use local_rate_limit::{BucketSpec, LocalBucket, LocalRateLimit, TokenBucket};
pub use rate_limit::{RateLimit, RateLimitOverride, VirtualHostLimits};

/// One filter of a listener.
#[derive(Clone, Debug)]
pub struct HttpFilter {
    /// The name by which routes refer to it.
    pub name: Arc<str>,
    /// Whether it runs only where a route enables it.
    pub disabled: bool,
    /// What it does.
    pub kind: FilterKind,
}

impl HttpFilter {
    /// What a route changes about this filter; `None` when the filter does not run there.
    #[allow(clippy::option_option, reason = "the outer says whether it runs, the inner whether something is changed")]
    pub fn on_route<'t>(&self, route: Option<&Selection<'t>>) -> Option<Option<&'t FilterOverride>> {
        let changed = route.and_then(|route| route.override_for(&self.name));
        let off = match changed {
            Some(FilterOverride::Disabled) => true,
            Some(_) => false,
            None => self.disabled,
        };
        (!off).then_some(changed)
    }
}

/// What a filter does.
#[derive(Clone, Debug)]
pub enum FilterKind {
    /// Verifies tokens.
    JwtAuthn(Arc<JwtAuthn>),
    /// Authorises.
    Rbac(Arc<RbacFilter>),
    /// Asks a service to authorise.
    ExtAuthz(Arc<ExtAuthz>),
    /// Asks a service whether there is quota left.
    RateLimit(Arc<RateLimit>),
    /// Keeps quotas itself.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Fails on purpose.
    Fault(Arc<Fault>),
    /// Answers browsers' questions about other origins.
    Cors,
    /// Sends the request on.
    Router(Router),
}

/// Sends the request on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Whether no `x-envoy-` header is added.
    pub suppress_envoy_headers: bool,
}

/// What a route changes about a filter.
#[derive(Clone, Debug)]
pub enum FilterOverride {
    /// The filter does not run.
    Disabled,
    /// The filter runs as it is, although the listener has it disabled.
    Enabled,
    /// Other settings of the authorisation service.
    ExtAuthz(ExtAuthzOverride),
    /// Other settings of the rate limit service.
    RateLimit(RateLimitOverride),
    /// Another quota.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Other rules.
    Rbac(Arc<RbacFilter>),
    /// Another requirement for tokens.
    Jwt(JwtOverride),
    /// Another fault.
    Fault(Arc<Fault>),
    /// The origins that may ask.
    Cors(Arc<CorsPolicy>),
}

/// What one level (table, virtual host, route, weighted cluster) changes, by filter name.
pub type Overrides = BTreeMap<Box<str>, FilterOverride>;

impl HttpFilter {
    /// None means that the filter has no effect here and is left out.
    ///
    /// # Errors
    /// When the filter, or something in its configuration, is not known here.
    pub fn compile(value: &pb::HttpFilter) -> Result<Option<Self>, ConfigError> {
        let kind = match value.config_type.as_ref() {
            Some(pb::http_filter::ConfigType::TypedConfig(any)) => FilterKind::compile(&value.name, any),
            Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) => not_supported("a discovered filter"),
            None => FilterKind::well_known(&value.name),
        };
        match kind {
            Ok(Some(kind)) => Ok(Some(Self { name: value.name.as_str().into(), disabled: value.disabled, kind })),
            Ok(None) => Ok(None),
            Err(_) if value.is_optional => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl FilterKind {
    fn compile(name: &str, any: &Any) -> Result<Option<Self>, ConfigError> {
        Self::compile_known(any).and_then(|kind| match kind {
            Some(kind) => Ok(Some(kind)),
            None if is_harmless(name, type_name(any)) => Ok(None),
            None => not_supported(&format!("the filter {name} of type {}", type_name(any))),
        })
    }

    fn compile_known(any: &Any) -> Result<Option<Self>, ConfigError> {
        Ok(Some(if is_type::<http::jwt_authn::v3::JwtAuthentication>(any) {
            Self::JwtAuthn(Arc::new(JwtAuthn::compile(&decode(any)?)?))
        } else if is_type::<http::rbac::v3::Rbac>(any) {
            Self::Rbac(Arc::new(RbacFilter::compile_http(&decode(any)?)?))
        } else if is_type::<http::ext_authz::v3::ExtAuthz>(any) {
            Self::ExtAuthz(Arc::new(ExtAuthz::compile(&decode(any)?)?))
        } else if is_type::<http::ratelimit::v3::RateLimit>(any) {
            Self::RateLimit(Arc::new(RateLimit::compile(&decode(any)?)?))
        } else if is_type::<http::local_ratelimit::v3::LocalRateLimit>(any) {
            Self::LocalRateLimit(Arc::new(LocalRateLimit::compile(&decode(any)?)?))
        } else if is_type::<http::fault::v3::HttpFault>(any) {
            Self::Fault(Arc::new(Fault::compile(&decode(any)?)?))
        } else if is_type::<http::cors::v3::Cors>(any) {
            Self::Cors
        } else if is_type::<http::router::v3::Router>(any) {
            let router: http::router::v3::Router = decode(any)?;
            Self::Router(Router { suppress_envoy_headers: router.suppress_envoy_headers })
        } else {
            return Ok(None);
        }))
    }

    fn well_known(name: &str) -> Result<Option<Self>, ConfigError> {
        match name {
            "envoy.filters.http.router" => Ok(Some(Self::Router(Router::default()))),
            "envoy.filters.http.cors" => Ok(Some(Self::Cors)),
            name if is_harmless(name, "") => Ok(None),
            name => not_supported(&format!("the filter {name} without a typed_config")),
        }
    }
}

/// Filters that only observe, or whose work the proxy does without them.
fn is_harmless(name: &str, type_name: &str) -> bool {
    let by_name = matches!(
        name,
        "istio.stats"
            | "istio.metadata_exchange"
            | "istio.alpn"
            | "istio_authn"
            | "istio.workload_metadata"
            | "waypoint_downstream_peer_metadata"
            | "waypoint_upstream_peer_metadata"
            | "envoy.filters.http.grpc_stats"
            | "envoy.filters.http.grpc_web"
    );
    let by_type = matches!(
        type_name,
        "stats.PluginConfig"
            | "io.istio.http.peer_metadata.Config"
            | "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
            | "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"
            | "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"
            | "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
    );
    by_name || by_type
}

/// Compiles the `typed_per_filter_config` of one level.
pub(crate) fn overrides(values: &HashMap<String, Any>) -> Result<Overrides, ConfigError> {
    let mut out = Overrides::new();
    for (name, any) in values {
        let compiled = override_of(name, any).at(&format!("typed_per_filter_config[\"{name}\"]"))?;
        if let Some(compiled) = compiled {
            out.insert(name.as_str().into(), compiled);
        }
    }
    Ok(out)
}

fn override_of(name: &str, any: &Any) -> Result<Option<FilterOverride>, ConfigError> {
    if !is_type::<FilterConfig>(any) {
        return typed_override(name, any);
    }
    let wrapper: FilterConfig = decode(any)?;
    match wrapper.config.as_ref() {
        _ if wrapper.disabled => Ok(Some(FilterOverride::Disabled)),
        None => Ok(Some(FilterOverride::Enabled)),
        Some(inner) => match typed_override(name, inner) {
            Err(_) if wrapper.is_optional => Ok(None),
            compiled => compiled,
        },
    }
}

fn typed_override(name: &str, any: &Any) -> Result<Option<FilterOverride>, ConfigError> {
    Ok(Some(if is_type::<http::ext_authz::v3::ExtAuthzPerRoute>(any) {
        ExtAuthzOverride::compile(&decode(any)?)?
    } else if is_type::<http::ratelimit::v3::RateLimitPerRoute>(any) {
        FilterOverride::RateLimit(RateLimitOverride::compile(&decode(any)?)?)
    } else if is_type::<http::local_ratelimit::v3::LocalRateLimit>(any) {
        FilterOverride::LocalRateLimit(Arc::new(LocalRateLimit::compile(&decode(any)?)?))
    } else if is_type::<http::rbac::v3::RbacPerRoute>(any) {
        let value: http::rbac::v3::RbacPerRoute = decode(any)?;
        match value.rbac.as_ref() {
            None => FilterOverride::Disabled,
            Some(rbac) => FilterOverride::Rbac(Arc::new(RbacFilter::compile_http(rbac).at("rbac")?)),
        }
    } else if is_type::<http::jwt_authn::v3::PerRouteConfig>(any) {
        JwtOverride::compile(&decode(any)?)?
    } else if is_type::<http::fault::v3::HttpFault>(any) {
        FilterOverride::Fault(Arc::new(Fault::compile(&decode(any)?)?))
    } else if is_type::<http::cors::v3::CorsPolicy>(any) {
        FilterOverride::Cors(Arc::new(CorsPolicy::compile(&decode(any)?)?))
    } else if is_harmless(name, type_name(any)) {
        return Ok(None);
    } else {
        return not_supported(&format!("a route's setting of type {}", type_name(any)));
    }))
}

/// Whether an optional feature flag of a runtime is on.
pub(crate) fn feature(
    value: Option<&envoy_types::pb::envoy::config::core::v3::RuntimeFeatureFlag>,
    default: bool,
) -> bool {
    value.map_or(default, |value| flag(value.default_value.as_ref(), default))
}

#[cfg(test)]
mod tests;
