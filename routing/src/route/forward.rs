//! How a request is sent on.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderMap, StatusCode};

use super::hash::{HashKey, HashPolicy};
use super::matches::RouteMatch;
use super::rate_limit::RateLimitRule;
use super::weighted::{ClusterPick, Target};
use crate::config::{At, ConfigError, Fraction, each, flag, limit, not_supported, optional_duration};
use crate::matcher::{HeaderKey, Substitution};
use crate::request::{CanonicalPath, EscapedSlashes, PathError, PathOptions, Request};
use crate::retry::RetryPolicy;

/// How a request is sent on.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to.
    pub target: Target,
    /// How long the whole exchange may take, all tries together.
    pub timeout: Option<Duration>,
    /// How long the stream may be silent; none leaves it to the listener.
    pub idle_timeout: Option<Duration>,
    /// How long the stream may live.
    pub stream_max: Option<Duration>,
    /// When to try again.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// The answer if the cluster does not exist.
    pub cluster_not_found: StatusCode,
    /// Whether the original host is told in `x-forwarded-host` when it is rewritten.
    pub append_forwarded_host: bool,
    /// Whether the request is of high priority, with limits of its own.
    pub high_priority: bool,
    pub(super) rate_limits: Vec<RateLimitRule>,
    pub(super) include_host_rate_limits: bool,
    grpc_timeout: Option<GrpcTimeout>,
    path: PathRewrite,
    host: HostRule,
    hash: Vec<HashPolicy>,
    upgrades: Vec<(Box<str>, bool)>,
}

/// Who gets a copy of a request.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The share of the requests.
    pub share: Fraction,
    /// Whether the copy's host is marked with `-shadow`.
    pub mark_host: bool,
}

/// What becomes of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite<'a> {
    /// It stays.
    Keep,
    /// It becomes this.
    To(Cow<'a, str>),
    /// It becomes the endpoint's own name.
    EndpointName,
}

#[derive(Clone, Debug)]
enum PathRewrite {
    Keep,
    Prefix(Box<str>),
    Regex(Box<Substitution>),
}

#[derive(Clone, Debug)]
enum HostRule {
    Keep,
    Literal(Box<str>),
    EndpointName,
    Header(HeaderKey),
    Path(Box<Substitution>),
}

/// How the client's `grpc-timeout` counts.
#[derive(Clone, Copy, Debug)]
struct GrpcTimeout {
    max: Option<Duration>,
    offset: Duration,
}

impl Forward {
    pub(super) fn compile(value: &pb::RouteAction) -> Result<Self, ConfigError> {
        if value.path_rewrite_policy.is_some() || !value.path_rewrite.is_empty() {
            return not_supported("rewriting by a template").at("path_rewrite_policy");
        }
        if value.internal_redirect_policy.is_some() {
            return not_supported("following redirects").at("internal_redirect_policy");
        }
        let stream = value.max_stream_duration.unwrap_or_default();
        Ok(Self {
            target: Target::compile(value.cluster_specifier.as_ref())?,
            timeout: match &value.timeout {
                None => Some(TIMEOUT),
                some => limit("timeout", some.as_ref())?,
            },
            idle_timeout: limit("idle_timeout", value.idle_timeout.as_ref())?,
            stream_max: limit("max_stream_duration", stream.max_stream_duration.as_ref())?,
            retry: value.retry_policy.as_ref().map(RetryPolicy::compile).transpose().at("retry_policy")?.map(Arc::new),
            mirrors: each("request_mirror_policies", &value.request_mirror_policies, Mirror::compile)?,
            cluster_not_found: cluster_not_found(value.cluster_not_found_response_code)?,
            append_forwarded_host: value.append_x_forwarded_host,
            high_priority: value.priority == core::RoutingPriority::High as i32,
            rate_limits: each("rate_limits", &value.rate_limits, RateLimitRule::compile)?,
            include_host_rate_limits: flag(value.include_vh_rate_limits.as_ref(), false),
            grpc_timeout: GrpcTimeout::compile(value, &stream)?,
            path: PathRewrite::compile(value)?,
            host: HostRule::compile(value.host_rewrite_specifier.as_ref())?,
            hash: each("hash_policy", &value.hash_policy, HashPolicy::compile)?,
            upgrades: value
                .upgrade_configs
                .iter()
                .map(|upgrade| (upgrade.upgrade_type.as_str().into(), flag(upgrade.enabled.as_ref(), true)))
                .collect(),
        })
    }

    /// Takes over from the virtual host what the route itself does not say.
    pub(super) fn inherit(&mut self, retry: Option<&Arc<RetryPolicy>>, mirrors: &[Mirror]) {
        if self.retry.is_none() {
            self.retry = retry.cloned();
        }
        if self.mirrors.is_empty() {
            self.mirrors = mirrors.to_vec();
        }
    }

    pub(super) fn cluster<'t>(&'t self, request: &Request<'_>, dice: u64) -> Option<ClusterPick<'t>> {
        self.target.pick(request, dice)
    }

    /// Every cluster that requests may be sent to by name; mirrors get copies only.
    pub fn cluster_names(&self) -> impl Iterator<Item = &str> {
        self.target.names().into_iter().map(|name| &**name)
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.target.names().into_iter().chain(self.mirrors.iter().map(|mirror| &mirror.cluster))
    }

    /// The path that is sent on, if it is another one. The outcome of a rewrite is made canonical again.
    pub fn rewrite_path(
        &self,
        request: &Request<'_>,
        matched: &RouteMatch,
    ) -> Result<Option<CanonicalPath>, PathError> {
        let path = request.path.path();
        let mut text = match &self.path {
            PathRewrite::Keep => return Ok(None),
            PathRewrite::Prefix(prefix) => matched.replace_matched(path, prefix).into_owned(),
            PathRewrite::Regex(regex) => regex.apply(path),
        };
        if !text.starts_with('/') {
            text.insert(0, '/');
        }
        if let Some(query) = request.path.query() {
            text.push('?');
            text.push_str(query);
        }
        let options = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::STRICT };
        CanonicalPath::parse_raw(&text, &options).map(Some)
    }

    /// The host that is sent on.
    pub fn rewrite_host<'a>(&'a self, request: &Request<'a>) -> HostRewrite<'a> {
        match &self.host {
            HostRule::Keep => HostRewrite::Keep,
            HostRule::Literal(host) => HostRewrite::To(Cow::Borrowed(host)),
            HostRule::EndpointName => HostRewrite::EndpointName,
            HostRule::Path(regex) => HostRewrite::To(Cow::Owned(regex.apply(request.path.path()))),
            HostRule::Header(key) => {
                let value = key.read(request).and_then(|value| String::from_utf8(value.into_owned()).ok());
                value.filter(|host| !host.is_empty()).map_or(HostRewrite::Keep, |host| HostRewrite::To(host.into()))
            }
        }
    }

    /// How long the whole exchange may take, the client's own `grpc-timeout` considered where that counts.
    pub fn timeout_for(&self, request: &Request<'_>) -> Option<Duration> {
        let Some(rule) = self.grpc_timeout.filter(|_| request.is_grpc()) else { return self.timeout };
        let asked = request.header("grpc-timeout").and_then(parse_grpc_timeout);
        match (asked, rule.max) {
            (None, None) => self.timeout,
            (None, Some(max)) => Some(max),
            (Some(asked), max) => {
                let asked = asked.saturating_sub(rule.offset).max(Duration::from_millis(1));
                Some(max.map_or(asked, |max| max.min(asked)))
            }
        }
    }

    /// What decides the endpoint where that depends on the request.
    pub fn hash_key(&self, request: &Request<'_>, dice: u64) -> HashKey {
        HashKey::of(&self.hash, request, dice)
    }

    /// Whether this upgrade is passed on; `otherwise` is what the listener says.
    pub fn allows_upgrade(&self, protocol: &str, otherwise: bool) -> bool {
        let own = self.upgrades.iter().find(|(name, _)| name.eq_ignore_ascii_case(protocol));
        own.map_or(otherwise, |(_, enabled)| *enabled)
    }
}

impl Mirror {
    pub(super) fn compile(value: &pb::route_action::RequestMirrorPolicy) -> Result<Self, ConfigError> {
        if value.cluster.is_empty() {
            return not_supported("naming a mirror by a header").at("cluster");
        }
        Ok(Self {
            cluster: value.cluster.as_str().into(),
            share: Fraction::runtime(value.runtime_fraction.as_ref(), Fraction::ALL).at("runtime_fraction")?,
            mark_host: !value.disable_shadow_host_suffix_append,
        })
    }
}

impl PathRewrite {
    fn compile(value: &pb::RouteAction) -> Result<Self, ConfigError> {
        match (value.prefix_rewrite.as_str(), value.regex_rewrite.as_ref()) {
            ("", None) => Ok(Self::Keep),
            ("", Some(regex)) => Ok(Self::Regex(Box::new(Substitution::compile(regex).at("regex_rewrite")?))),
            (prefix, None) => Ok(Self::Prefix(prefix.into())),
            (_, Some(_)) => Err(ConfigError::new("excludes prefix_rewrite").under("regex_rewrite")),
        }
    }
}

impl HostRule {
    fn compile(value: Option<&pb::route_action::HostRewriteSpecifier>) -> Result<Self, ConfigError> {
        use pb::route_action::HostRewriteSpecifier as Pb;
        Ok(match value {
            None => Self::Keep,
            Some(Pb::HostRewriteLiteral(host)) => Self::Literal(host.as_str().into()),
            Some(Pb::AutoHostRewrite(auto)) if auto.value => Self::EndpointName,
            Some(Pb::AutoHostRewrite(_)) => Self::Keep,
            Some(Pb::HostRewriteHeader(name)) => Self::Header(HeaderKey::parse(name).at("host_rewrite_header")?),
            Some(Pb::HostRewritePathRegex(regex)) => {
                Self::Path(Box::new(Substitution::compile(regex).at("host_rewrite_path_regex")?))
            }
            Some(Pb::HostRewrite(_)) => return not_supported("a formatted host").at("host_rewrite"),
        })
    }
}

impl GrpcTimeout {
    fn compile(
        value: &pb::RouteAction,
        stream: &pb::route_action::MaxStreamDuration,
    ) -> Result<Option<Self>, ConfigError> {
        let (max, offset) = match (&stream.grpc_timeout_header_max, &value.max_grpc_timeout) {
            (Some(max), _) => (max, stream.grpc_timeout_header_offset.as_ref()),
            (None, Some(max)) => (max, value.grpc_timeout_offset.as_ref()),
            (None, None) => return Ok(None),
        };
        Ok(Some(Self {
            max: limit("max_stream_duration.grpc_timeout_header_max", Some(max))?,
            offset: optional_duration("max_stream_duration.grpc_timeout_header_offset", offset)?.unwrap_or_default(),
        }))
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Reads the client's own limit of a gRPC call, for logs and for servers that want it.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout")?.to_str().ok().and_then(parse_grpc_timeout)
}

fn cluster_not_found(value: i32) -> Result<StatusCode, ConfigError> {
    use pb::route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(value) {
        Ok(Code::ServiceUnavailable) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Code::NotFound) => Ok(StatusCode::NOT_FOUND),
        Ok(Code::InternalServerError) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => Err(ConfigError::new("unknown value").under("cluster_not_found_response_code")),
    }
}

const TIMEOUT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_strictly() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100m", Some(Duration::from_millis(100))),
            ("999999999S", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("1ä", None),
            ("", None),
        ] {
            assert_eq!(parse_grpc_timeout(text), expected, "{text}");
        }
    }
}
