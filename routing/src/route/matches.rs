//! What has to be true of a request for a route to take it.

use std::borrow::Cow;
use std::fmt;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use http::Method;

use crate::config::{At, ConfigError, Fraction, decode, each, flag, not_supported, required};
use crate::matcher::{
    HeaderMatcher, MetadataMatcher, QueryMatcher, Reading, Regex, StringMatcher, UriTemplate, cookie_value,
};
use crate::request::{Request, Scheme};

/// What has to be true of a request.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    path: PathTest,
    fold_case: bool,
    share: Option<Fraction>,
    headers: Vec<HeaderMatcher>,
    params: Vec<QueryMatcher>,
    cookies: Vec<CookieTest>,
    metadata: Vec<MetadataMatcher>,
    grpc: bool,
    peer: Option<PeerTest>,
}

#[derive(Clone, Debug)]
enum PathTest {
    Prefix(Box<str>),
    SeparatedPrefix(Box<str>),
    Exact(Box<str>),
    Regex(Regex),
    Template(UriTemplate),
    Connect,
}

#[derive(Clone, Debug)]
struct CookieTest {
    name: Box<str>,
    test: StringMatcher,
    invert: bool,
}

#[derive(Clone, Copy, Debug)]
struct PeerTest {
    presented: Option<bool>,
    validated: Option<bool>,
}

impl RouteMatch {
    pub(crate) fn compile(value: &pb::RouteMatch) -> Result<Self, ConfigError> {
        if !value.filter_state.is_empty() {
            return not_supported("a test of filter state").at("filter_state");
        }
        let share = value.runtime_fraction.as_ref();
        let share = share.map(|share| Fraction::runtime(Some(share), Fraction::ALL)).transpose();
        Ok(Self {
            path: PathTest::compile(value.path_specifier.as_ref())?,
            fold_case: !flag(value.case_sensitive.as_ref(), true),
            share: share.at("runtime_fraction")?,
            headers: each("headers", &value.headers, |header| HeaderMatcher::compile(header, Reading::Joined))?,
            params: each("query_parameters", &value.query_parameters, QueryMatcher::compile)?,
            cookies: each("cookies", &value.cookies, CookieTest::compile)?,
            metadata: each("dynamic_metadata", &value.dynamic_metadata, MetadataMatcher::compile)?,
            grpc: value.grpc.is_some(),
            peer: value.tls_context.as_ref().map(|tls| PeerTest {
                presented: tls.presented.as_ref().map(|value| value.value),
                validated: tls.validated.as_ref().map(|value| value.value),
            }),
        })
    }

    /// Whether it all is true.
    pub fn matches(&self, request: &Request<'_>, dice: u64) -> bool {
        self.path.matches(request, self.fold_case)
            && (!self.grpc || request.is_grpc())
            && self.headers.iter().all(|test| test.matches(request))
            && self.params.iter().all(|test| test.matches(request))
            && self.cookies.iter().all(|test| test.matches(request))
            && self.metadata.iter().all(|test| test.matches(request.metadata))
            && self.peer.is_none_or(|test| test.matches(request))
            && self.share.is_none_or(|share| share.includes(dice))
    }

    /// The path with the part that this match is about replaced.
    pub(super) fn replace_matched<'p>(&self, path: &'p str, with: &'p str) -> Cow<'p, str> {
        let matched = match &self.path {
            PathTest::Prefix(prefix) | PathTest::SeparatedPrefix(prefix) => prefix.len().min(path.len()),
            PathTest::Exact(_) | PathTest::Regex(_) | PathTest::Template(_) | PathTest::Connect => path.len(),
        };
        match path.get(matched..) {
            Some("") | None => Cow::Borrowed(with),
            Some(rest) => Cow::Owned(format!("{with}{rest}")),
        }
    }
}

/// As people read it: `/a*`, `/a`, and what else it asks for.
impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            PathTest::Prefix(prefix) if **prefix == *"/" => f.write_str("any path"),
            PathTest::Prefix(prefix) => write!(f, "{prefix}*"),
            PathTest::SeparatedPrefix(prefix) => write!(f, "{prefix} and {prefix}/*"),
            PathTest::Exact(exact) => f.write_str(exact),
            PathTest::Regex(regex) => write!(f, "{regex:?}"),
            PathTest::Template(template) => write!(f, "{template}"),
            PathTest::Connect => f.write_str("CONNECT"),
        }?;
        for test in &self.headers {
            let not = if test.is_inverted() { "not " } else { "" };
            write!(f, ", {} {not}{}", test.subject(), test.wanted())?;
        }
        let more = self.params.len() + self.cookies.len() + self.metadata.len() + usize::from(self.peer.is_some());
        if more > 0 {
            write!(f, ", and {more} further tests")?;
        }
        f.write_str(if self.grpc { ", gRPC only" } else { "" })
    }
}

impl PathTest {
    fn compile(value: Option<&pb::route_match::PathSpecifier>) -> Result<Self, ConfigError> {
        use pb::route_match::PathSpecifier as Pb;
        Ok(match required(value).at("path_specifier")? {
            Pb::Prefix(prefix) => Self::Prefix(prefix.as_str().into()),
            Pb::Path(path) => Self::Exact(path.as_str().into()),
            Pb::SafeRegex(regex) => Self::Regex(Regex::compile(regex).at("safe_regex")?),
            Pb::PathSeparatedPrefix(prefix) if !prefix.starts_with('/') || prefix.ends_with('/') => {
                return Err(
                    ConfigError::new("begins with a slash and does not end with one").under("path_separated_prefix")
                );
            }
            Pb::PathSeparatedPrefix(prefix) => Self::SeparatedPrefix(prefix.as_str().into()),
            Pb::ConnectMatcher(_) => Self::Connect,
            Pb::PathMatchPolicy(extension) => {
                let config: UriTemplateMatchConfig =
                    required(extension.typed_config.as_ref()).and_then(decode).at("path_match_policy")?;
                Self::Template(UriTemplate::parse(&config.path_template).at("path_match_policy.path_template")?)
            }
        })
    }

    fn matches(&self, request: &Request<'_>, fold: bool) -> bool {
        let path = request.path.path();
        match self {
            Self::Connect => request.method == Method::CONNECT,
            Self::Prefix(prefix) => begins(path, prefix, fold),
            Self::SeparatedPrefix(prefix) => {
                begins(path, prefix, fold) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Exact(exact) if fold => path.eq_ignore_ascii_case(exact),
            Self::Exact(exact) => path == &**exact,
            Self::Regex(regex) => regex.matches(path.as_bytes()),
            Self::Template(template) => template.matches(path.as_bytes()),
        }
    }
}

fn begins(path: &str, prefix: &str, fold: bool) -> bool {
    match fold {
        false => path.starts_with(prefix),
        true => path.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)),
    }
}

impl CookieTest {
    fn compile(value: &pb::CookieMatcher) -> Result<Self, ConfigError> {
        let test = required(value.string_match.as_ref()).and_then(StringMatcher::compile).at("string_match")?;
        Ok(Self { name: value.name.as_str().into(), test, invert: value.invert_match })
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let value = cookie_value(request.headers, &self.name);
        value.is_some_and(|value| self.test.matches(value.as_bytes())) != self.invert
    }
}

impl PeerTest {
    /// Only verified certificates are known here, so presented and validated are the same.
    fn matches(self, request: &Request<'_>) -> bool {
        let proven = request.scheme == Scheme::Https && request.connection.peer.is_some();
        [self.presented, self.validated].into_iter().flatten().all(|wanted| wanted == proven)
    }
}
