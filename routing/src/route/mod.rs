//! Where a request goes: virtual hosts by name, routes in order, actions.
//!
//! Hosts are looked up exact first, then by the longest suffix wildcard, the longest prefix wildcard, and `*`. Within a
//! virtual host the first route that matches wins; nothing more specific further down takes it away.

mod action;
mod domains;
mod edits;
mod forward;
mod hash;
mod matches;
mod rate_limit;
mod weighted;

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;

use crate::config::{At, ConfigError, each, not_supported};
use crate::filters::{FilterOverride, Overrides, RateLimitOverride, VirtualHostLimits, overrides};
use crate::request::{Request, Scheme};
use crate::retry::RetryPolicy;
use domains::Domains;

pub use action::{Action, Direct, Redirect};
pub use edits::{HeaderEdits, PreparedEdits};
pub use forward::{Forward, HostRewrite, Mirror, grpc_timeout};
pub use hash::{HashKey, hash_bytes, mix};
pub use matches::RouteMatch;
pub use rate_limit::{Descriptor, DescriptorLimit, RateLimitRule};
pub use weighted::{ClusterPick, Target, WeightedCluster};

/// All routes of a listener.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// The resource's name.
    pub name: Arc<str>,
    /// The virtual hosts.
    pub hosts: Vec<VirtualHost>,
    domains: Domains,
    ignore_port: bool,
    specific_edits_last: bool,
    request_edits: HeaderEdits,
    response_edits: HeaderEdits,
    overrides: Overrides,
    internal_headers: Vec<http::HeaderName>,
}

/// Routes for some hosts.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// The name, for logs.
    pub name: Arc<str>,
    /// The routes in order.
    pub routes: Vec<Route>,
    /// Whether the upstream is told how often a request was tried.
    pub attempt_count_in_request: bool,
    /// Whether the client is told how often a request was tried.
    pub attempt_count_in_response: bool,
    require_tls: bool,
    request_edits: HeaderEdits,
    response_edits: HeaderEdits,
    overrides: Overrides,
    rate_limits: Vec<RateLimitRule>,
}

/// A match and what becomes of the requests that pass it.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name, for logs.
    pub name: Arc<str>,
    /// What becomes of a request.
    pub action: Action,
    /// The name of the operation in traces.
    pub operation: Option<Arc<str>>,
    matches: RouteMatch,
    request_edits: HeaderEdits,
    response_edits: HeaderEdits,
    overrides: Overrides,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No virtual host is responsible.
    #[error("no virtual host is responsible")]
    Host,
    /// No route matches.
    #[error("no route matches")]
    Path,
    /// The virtual host is only for TLS: redirect to `https`.
    #[error("the host is only reached over TLS")]
    TlsRequired,
}

impl NoRoute {
    /// The stable code for logs and answers.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Host => "HOST_NOT_FOUND",
            Self::Path => "ROUTE_NOT_FOUND",
            Self::TlsRequired => "TLS_REQUIRED",
        }
    }
}

/// The route of a request.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'t> {
    /// Where it was found.
    pub table: &'t RouteTable,
    /// The virtual host.
    pub host: &'t VirtualHost,
    /// The route.
    pub route: &'t Route,
}

impl RouteTable {
    /// Compiles a route resource, or says which field of it cannot be followed.
    pub fn compile(value: &pb::RouteConfiguration) -> Result<Self, ConfigError> {
        Self::compile_part(value).map_err(|error| error.of("RouteConfiguration", &value.name))
    }

    pub(crate) fn compile_part(value: &pb::RouteConfiguration) -> Result<Self, ConfigError> {
        if value.vhds.is_some() {
            return not_supported("discovery of virtual hosts").at("vhds");
        }
        if !value.cluster_specifier_plugins.is_empty() {
            return not_supported("a cluster specifier plugin").at("cluster_specifier_plugins");
        }
        if !value.vhost_header.is_empty() {
            return not_supported("choosing the virtual host by a header").at("vhost_header");
        }
        Ok(Self {
            name: value.name.as_str().into(),
            hosts: each("virtual_hosts", &value.virtual_hosts, |host| VirtualHost::compile(host, value))?,
            domains: Domains::compile(&value.virtual_hosts)?,
            ignore_port: value.ignore_port_in_host_matching,
            specific_edits_last: value.most_specific_header_mutations_wins,
            request_edits: HeaderEdits::request(&value.request_headers_to_add, &value.request_headers_to_remove)?,
            response_edits: HeaderEdits::response(&value.response_headers_to_add, &value.response_headers_to_remove)?,
            overrides: overrides(&value.typed_per_filter_config)?,
            internal_headers: each("internal_only_headers", &value.internal_only_headers, |name| {
                crate::matcher::header_name(name)
            })?,
        })
    }

    /// The route of a request.
    pub fn pick(&self, request: &Request<'_>, dice: u64) -> Result<Selection<'_>, NoRoute> {
        let host = self.host(request).ok_or(NoRoute::Host)?;
        if host.require_tls && request.scheme == Scheme::Http {
            return Err(NoRoute::TlsRequired);
        }
        let route = host.routes.iter().find(|route| route.matches.matches(request, dice)).ok_or(NoRoute::Path)?;
        Ok(Selection { table: self, host, route })
    }

    /// The virtual host that is responsible for a request.
    pub fn host(&self, request: &Request<'_>) -> Option<&VirtualHost> {
        let host = request.host;
        let found = match self.ignore_port || host.port().is_none() {
            true => self.domains.find(host.name()),
            // The scheme's own port says nothing that its absence would not.
            false if host.port() == Some(request.scheme.default_port()) => {
                self.domains.find_named(host.authority()).or_else(|| self.domains.find(host.name()))
            }
            false => self.domains.find(host.authority()),
        };
        found.and_then(|index| self.hosts.get(index))
    }

    /// Headers that a client must not send.
    pub fn internal_headers(&self) -> &[http::HeaderName] {
        &self.internal_headers
    }

    /// Every cluster that a route may go to by name.
    pub fn clusters(&self) -> BTreeSet<&str> {
        let routes = self.hosts.iter().flat_map(|host| &host.routes);
        routes.filter_map(|route| route.action.as_forward()).flat_map(Forward::clusters).map(|name| &**name).collect()
    }
}

impl VirtualHost {
    fn compile(value: &pb::VirtualHost, table: &pb::RouteConfiguration) -> Result<Self, ConfigError> {
        if value.matcher.is_some() {
            return not_supported("a matcher tree").at("matcher");
        }
        let retry = value.retry_policy.as_ref().map(RetryPolicy::compile).transpose().at("retry_policy")?.map(Arc::new);
        let mirrors = match value.request_mirror_policies.is_empty() {
            true => each("request_mirror_policies", &table.request_mirror_policies, Mirror::compile)?,
            false => each("request_mirror_policies", &value.request_mirror_policies, Mirror::compile)?,
        };
        let mut routes = each("routes", &value.routes, Route::compile)?;
        for forward in routes.iter_mut().filter_map(|route| route.action.as_forward_mut()) {
            forward.inherit(retry.as_ref(), &mirrors);
        }
        Ok(Self {
            name: value.name.as_str().into(),
            routes,
            attempt_count_in_request: value.include_request_attempt_count,
            attempt_count_in_response: value.include_attempt_count_in_response,
            require_tls: value.require_tls != pb::virtual_host::TlsRequirementType::None as i32,
            request_edits: HeaderEdits::request(&value.request_headers_to_add, &value.request_headers_to_remove)?,
            response_edits: HeaderEdits::response(&value.response_headers_to_add, &value.response_headers_to_remove)?,
            overrides: host_overrides(value)?,
            rate_limits: each("rate_limits", &value.rate_limits, RateLimitRule::compile)?,
        })
    }
}

/// The older form of a CORS policy counts as a setting of the filter with the usual name.
fn host_overrides(value: &pb::VirtualHost) -> Result<Overrides, ConfigError> {
    let mut overrides = overrides(&value.typed_per_filter_config)?;
    if let Some(cors) = &value.cors {
        let policy = crate::filters::CorsPolicy::compile_route(cors).at("cors")?;
        overrides.entry(CORS_FILTER.into()).or_insert_with(|| FilterOverride::Cors(Arc::new(policy)));
    }
    Ok(overrides)
}

impl Route {
    fn compile(value: &pb::Route) -> Result<Self, ConfigError> {
        let compiled = Self::compile_unnamed(value);
        match value.name.is_empty() {
            true => compiled,
            false => compiled.at(&format!("(route {})", value.name)),
        }
    }

    fn compile_unnamed(value: &pb::Route) -> Result<Self, ConfigError> {
        let matches = crate::config::required(value.r#match.as_ref()).and_then(RouteMatch::compile).at("match")?;
        let mut overrides = overrides(&value.typed_per_filter_config)?;
        if let Some(pb::route::Action::Route(action)) = &value.action
            && let Some(cors) = &action.cors
        {
            let policy = crate::filters::CorsPolicy::compile_route(cors).at("route.cors")?;
            overrides.entry(CORS_FILTER.into()).or_insert_with(|| FilterOverride::Cors(Arc::new(policy)));
        }
        let operation = value.decorator.as_ref().map(|decorator| decorator.operation.as_str());
        Ok(Self {
            name: value.name.as_str().into(),
            action: Action::compile(value.action.as_ref())?,
            operation: operation.filter(|operation| !operation.is_empty()).map(Into::into),
            matches,
            request_edits: HeaderEdits::request(&value.request_headers_to_add, &value.request_headers_to_remove)?,
            response_edits: HeaderEdits::response(&value.response_headers_to_add, &value.response_headers_to_remove)?,
            overrides,
        })
    }

    /// What has to be true of a request.
    pub fn matches(&self) -> &RouteMatch {
        &self.matches
    }
}

impl<'t> Selection<'t> {
    /// How the request is sent on, if it is.
    pub fn forward(&self) -> Option<&'t Forward> {
        self.route.action.as_forward()
    }

    /// The cluster that gets the request; none if it is not sent on or names none.
    pub fn cluster(&self, request: &Request<'_>, dice: u64) -> Option<ClusterPick<'t>> {
        self.forward()?.cluster(request, dice)
    }

    /// Changes of the request's headers, in order.
    pub fn request_edits(&self, weighted: Option<&'t WeightedCluster>) -> impl Iterator<Item = &'t HeaderEdits> {
        let weighted = weighted.map(|weighted| &weighted.request_edits);
        self.ordered([
            weighted,
            Some(&self.route.request_edits),
            Some(&self.host.request_edits),
            Some(&self.table.request_edits),
        ])
    }

    /// Changes of the response's headers, in order.
    pub fn response_edits(&self, weighted: Option<&'t WeightedCluster>) -> impl Iterator<Item = &'t HeaderEdits> {
        let weighted = weighted.map(|weighted| &weighted.response_edits);
        self.ordered([
            weighted,
            Some(&self.route.response_edits),
            Some(&self.host.response_edits),
            Some(&self.table.response_edits),
        ])
    }

    fn ordered(&self, mut edits: [Option<&'t HeaderEdits>; 4]) -> impl Iterator<Item = &'t HeaderEdits> + use<'t> {
        if self.table.specific_edits_last {
            edits.reverse();
        }
        edits.into_iter().flatten().filter(|edits| !edits.is_empty())
    }

    /// What the most specific of route, virtual host and table changes about a filter.
    pub fn override_for(&self, filter: &str) -> Option<&'t FilterOverride> {
        let levels = [&self.route.overrides, &self.host.overrides, &self.table.overrides];
        levels.into_iter().find_map(|level| level.get(filter))
    }

    /// Like [`Self::override_for`], where the weighted cluster that was picked is asked first.
    pub fn override_with(&self, filter: &str, weighted: Option<&'t WeightedCluster>) -> Option<&'t FilterOverride> {
        weighted.and_then(|weighted| weighted.overrides.get(filter)).or_else(|| self.override_for(filter))
    }

    pub(crate) fn rate_limit_rules(&self, changed: Option<&'t RateLimitOverride>) -> Vec<&'t RateLimitRule> {
        let forward = self.forward();
        let own = match changed {
            Some(changed) if !changed.rules.is_empty() => &changed.rules[..],
            _ => forward.map_or(&[][..], |forward| &forward.rate_limits),
        };
        let with_host = match changed.map(|changed| changed.virtual_host) {
            Some(VirtualHostLimits::Include) => true,
            Some(VirtualHostLimits::Ignore) => false,
            Some(VirtualHostLimits::Fallback) | None => {
                own.is_empty() || forward.is_some_and(|forward| forward.include_host_rate_limits)
            }
        };
        let host = if with_host { &self.host.rate_limits[..] } else { &[] };
        own.iter().chain(host).collect()
    }
}

const CORS_FILTER: &str = "envoy.filters.http.cors";

#[cfg(test)]
mod tests;
