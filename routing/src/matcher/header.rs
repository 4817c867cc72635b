//! Tests of request headers, pseudo-headers and query parameters.
//!
//! A header may come several times and may hold a list. How such values are read depends on who asks: routes read them
//! joined by commas, as Envoy does; policy reads them so that a second value can never open what the first would not.

use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderMap, HeaderName, header};
use pb::{header_matcher::HeaderMatchSpecifier, query_parameter_matcher::QueryParameterMatchSpecifier};
use smallvec::SmallVec;

use super::{Regex, StringMatcher};
use crate::config::{At, ConfigError, required};
use crate::request::{Host, Request};

/// How several values of one name are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All values joined by commas, as one.
    Joined,
    /// The test passes if any value, any list item or all of them joined pass: for what denies.
    AnyPasses,
    /// The test passes only if every value does: for what permits.
    AllPass,
}

impl Reading {
    /// The reading on the other side of a negation.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Joined => Self::Joined,
            Self::AnyPasses => Self::AllPass,
            Self::AllPass => Self::AnyPasses,
        }
    }
}

/// A test of one header or pseudo-header.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    key: HeaderKey,
    test: Test,
    invert: bool,
    missing_is_empty: bool,
    reading: Reading,
}

/// What a header name of xDS stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderKey {
    Authority,
    Method,
    Path,
    Scheme,
    Header(HeaderName),
}

#[derive(Clone, Debug)]
enum Test {
    Text(StringMatcher),
    Range(i64, i64),
    Present(bool),
}

impl HeaderKey {
    pub(crate) fn parse(name: &str) -> Result<Self, ConfigError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Self::Authority,
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            name => Self::Header(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| ConfigError::new(format!("`{name}` is not a header name")))?,
            ),
        })
    }

    /// The joined value, as routes, hashes and rate limits read it.
    pub(crate) fn read<'a>(&self, request: &Request<'a>) -> Option<std::borrow::Cow<'a, [u8]>> {
        use std::borrow::Cow;
        match self {
            Self::Authority => Some(Cow::Borrowed(request.host.authority().as_bytes())),
            Self::Method => Some(Cow::Borrowed(request.method.as_str().as_bytes())),
            Self::Path => Some(Cow::Borrowed(request.path.as_str().as_bytes())),
            Self::Scheme => Some(Cow::Borrowed(request.scheme.as_str().as_bytes())),
            Self::Header(name) => joined(request.headers, name),
        }
    }
}

impl HeaderMatcher {
    pub(crate) fn compile(value: &pb::HeaderMatcher, reading: Reading) -> Result<Self, ConfigError> {
        use HeaderMatchSpecifier as Spec;
        let key = HeaderKey::parse(&value.name).at("name")?;
        let test = match value.header_match_specifier.as_ref() {
            None => Test::Present(true),
            Some(Spec::PresentMatch(present)) => Test::Present(*present),
            Some(Spec::RangeMatch(range)) => Test::Range(range.start, range.end),
            Some(Spec::ExactMatch(text)) => Test::Text(StringMatcher::exact(text)),
            Some(Spec::PrefixMatch(text)) => Test::Text(StringMatcher::prefix(text)),
            Some(Spec::SuffixMatch(text)) => Test::Text(StringMatcher::suffix(text)),
            Some(Spec::ContainsMatch(text)) => Test::Text(StringMatcher::contains(text)),
            Some(Spec::SafeRegexMatch(regex)) => {
                Test::Text(StringMatcher::regex(Regex::compile(regex).at("safe_regex_match")?))
            }
            Some(Spec::StringMatch(text)) => Test::Text(StringMatcher::compile(text).at("string_match")?),
        };
        // An inverted test is a negation: what reads "any" outside must read "all" inside.
        let reading = if value.invert_match { reading.negated() } else { reading };
        Ok(Self {
            key,
            test,
            invert: value.invert_match,
            missing_is_empty: value.treat_missing_header_as_empty,
            reading,
        })
    }

    /// Whether the request passes.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        match &self.key {
            HeaderKey::Authority => self.passes_host(request.host) != self.invert,
            HeaderKey::Method => self.passes(request.method.as_str().as_bytes()) != self.invert,
            HeaderKey::Path => self.passes(request.path.as_str().as_bytes()) != self.invert,
            HeaderKey::Scheme => self.passes(request.scheme.as_str().as_bytes()) != self.invert,
            HeaderKey::Header(name) => self.matches_header(request.headers, name),
        }
    }

    /// Whether the headers pass, for a test of a real header.
    pub(crate) fn matches_headers(&self, headers: &HeaderMap) -> bool {
        match &self.key {
            HeaderKey::Header(name) => self.matches_header(headers, name),
            HeaderKey::Authority | HeaderKey::Method | HeaderKey::Path | HeaderKey::Scheme => false,
        }
    }

    /// Whether the test is of a part of the request line.
    pub(crate) fn is_pseudo(&self) -> bool {
        !matches!(self.key, HeaderKey::Header(_))
    }

    /// What is tested, in words: `host`, `method`, `header x-a`.
    pub(crate) fn subject(&self) -> String {
        match &self.key {
            HeaderKey::Authority => "host".to_owned(),
            HeaderKey::Method => "method".to_owned(),
            HeaderKey::Path => "path and query".to_owned(),
            HeaderKey::Scheme => "scheme".to_owned(),
            HeaderKey::Header(name) => format!("header {name}"),
        }
    }

    /// The value that the request has; what opens doors elsewhere is not repeated.
    pub(crate) fn found(&self, request: &Request<'_>) -> Option<String> {
        let value = self.key.read(request)?;
        match &self.key {
            HeaderKey::Header(name) if SECRET_HEADERS.contains(&name.as_str()) => Some("(not shown)".to_owned()),
            _ => Some(String::from_utf8_lossy(&value).into_owned()),
        }
    }

    /// The test, as operators write it.
    pub(crate) fn wanted(&self) -> String {
        match &self.test {
            Test::Text(text) => text.to_string(),
            Test::Range(start, end) => format!("{start} to {end}"),
            Test::Present(true) => "*".to_owned(),
            Test::Present(false) => "absent".to_owned(),
        }
    }

    /// Whether the outcome is turned around.
    pub(crate) fn is_inverted(&self) -> bool {
        self.invert
    }

    /// What permits means the authority as it is written, as Envoy does. For what denies a host passes without its port,
    /// too, so that `a.test:443` is not a way around a rule for `a.test`.
    fn passes_host(&self, host: &Host) -> bool {
        let bare = self.reading == Reading::AnyPasses && host.port().is_some();
        self.passes(host.authority().as_bytes()) || (bare && self.passes(host.name().as_bytes()))
    }

    fn matches_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { return self.matches_missing() };
        if let Test::Present(present) = self.test {
            return present != self.invert;
        }
        let first = first.as_bytes();
        let passes = match values.next() {
            None if self.reading != Reading::AnyPasses => self.passes(first),
            None => self.passes(first) || self.passes_list_item(first),
            Some(_) => self.passes_several(headers, name),
        };
        passes != self.invert
    }

    fn matches_missing(&self) -> bool {
        match self.test {
            Test::Present(present) => present == self.invert,
            Test::Text(_) | Test::Range(..) => self.missing_is_empty && self.passes(b"") != self.invert,
        }
    }

    fn passes_several(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let values = || headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        let joined = || joined(headers, name).is_some_and(|value| self.passes(&value));
        match self.reading {
            Reading::Joined => joined(),
            Reading::AllPass => values().all(|value| self.passes(value)),
            Reading::AnyPasses => values().any(|value| self.passes(value) || self.passes_list_item(value)) || joined(),
        }
    }

    fn passes_list_item(&self, value: &[u8]) -> bool {
        value.contains(&b',') && value.split(|byte| *byte == b',').any(|item| self.passes(item.trim_ascii()))
    }

    fn passes(&self, value: &[u8]) -> bool {
        match &self.test {
            Test::Text(test) => test.matches(value),
            Test::Present(present) => *present,
            Test::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// Headers whose values are not repeated in explanations.
const SECRET_HEADERS: &[&str] = &["authorization", "cookie", "proxy-authorization", "x-api-key"];

/// All values of a header joined by commas; one value is borrowed.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<std::borrow::Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else { return Some(first.into()) };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(all.into())
}

/// A test of one query parameter.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    name: Box<str>,
    test: Option<StringMatcher>,
    present: bool,
}

impl QueryMatcher {
    pub(crate) fn compile(value: &pb::QueryParameterMatcher) -> Result<Self, ConfigError> {
        use QueryParameterMatchSpecifier as Spec;
        if value.name.is_empty() {
            return Err(ConfigError::new("is required").under("name"));
        }
        let (test, present) = match value.query_parameter_match_specifier.as_ref() {
            Some(Spec::StringMatch(text)) => (Some(StringMatcher::compile(text).at("string_match")?), true),
            Some(Spec::PresentMatch(present)) => (None, *present),
            None => (None, true),
        };
        Ok(Self { name: value.name.as_str().into(), test, present })
    }

    /// Whether the first parameter of this name passes.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        let value = request.path.params().find(|(name, _)| **name == *self.name).map(|(_, value)| value);
        match (&self.test, value) {
            (None, value) => value.is_some() == self.present,
            (Some(_), None) => false,
            (Some(test), Some(value)) => test.matches(value.as_bytes()),
        }
    }
}

/// The first cookie of this name.
pub(crate) fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    cookies(headers, name).into_iter().next()
}

/// Every cookie of this name.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> SmallVec<[&'a str; 2]> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim_ascii().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
        .collect()
}

/// Compiles a header name that must not be a pseudo-header.
pub(crate) fn header_name(name: &str) -> Result<HeaderName, ConfigError> {
    required(HeaderName::from_bytes(name.as_bytes()).ok())
        .map_err(|_| ConfigError::new(format!("`{name}` is not a header name")))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
