//! What browsers ask before they let a page of one origin call another (the Fetch standard's CORS protocol).

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;
use http::{HeaderName, HeaderValue, header};

use crate::config::{At, ConfigError, Fraction, each, flag};
use crate::matcher::StringMatcher;
use crate::request::Request;

/// Which origins may call, and how.
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    origins: Vec<StringMatcher>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    forward_unmatched: bool,
    enabled: Fraction,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsDecision {
    /// It does not come from another origin that may call; it goes on, and so does its answer.
    Pass,
    /// It is a question that may be answered with 200 and these headers.
    Preflight(Vec<(HeaderName, HeaderValue)>),
    /// It is a question from an origin that may not call, to be answered with 403.
    Refuse,
    /// It goes on, and its answer gets these headers.
    Annotate(Vec<(HeaderName, HeaderValue)>),
}

impl CorsPolicy {
    pub(crate) fn compile(value: &pb::CorsPolicy) -> Result<Self, ConfigError> {
        Ok(Self {
            origins: each("allow_origin_string_match", &value.allow_origin_string_match, StringMatcher::compile)?,
            methods: text(&value.allow_methods).at("allow_methods")?,
            headers: text(&value.allow_headers).at("allow_headers")?,
            expose: text(&value.expose_headers).at("expose_headers")?,
            max_age: text(&value.max_age).at("max_age")?,
            credentials: flag(value.allow_credentials.as_ref(), false),
            forward_unmatched: flag(value.forward_not_matching_preflights.as_ref(), true),
            enabled: Fraction::runtime(value.filter_enabled.as_ref(), Fraction::ALL).at("filter_enabled")?,
        })
    }

    /// The older form, inside a route.
    pub(crate) fn compile_route(value: &route::CorsPolicy) -> Result<Self, ConfigError> {
        let enabled = value.enabled_specifier.as_ref().map(|enabled| {
            let route::cors_policy::EnabledSpecifier::FilterEnabled(enabled) = enabled;
            enabled.clone()
        });
        Self::compile(&pb::CorsPolicy {
            allow_origin_string_match: value.allow_origin_string_match.clone(),
            allow_methods: value.allow_methods.clone(),
            allow_headers: value.allow_headers.clone(),
            expose_headers: value.expose_headers.clone(),
            max_age: value.max_age.clone(),
            allow_credentials: value.allow_credentials,
            filter_enabled: enabled,
            forward_not_matching_preflights: value.forward_not_matching_preflights,
            ..Default::default()
        })
    }

    /// What becomes of a request.
    pub fn decide(&self, request: &Request<'_>, dice: u64) -> CorsDecision {
        let Some(origin) = request.headers.get(header::ORIGIN) else { return CorsDecision::Pass };
        if !self.enabled.includes(dice) {
            return CorsDecision::Pass;
        }
        let allowed = self.origins.iter().any(|test| test.matches(origin.as_bytes()));
        match (allowed, request.is_cors_preflight()) {
            (true, true) => CorsDecision::Preflight(self.preflight_headers(origin)),
            (true, false) => CorsDecision::Annotate(self.answer_headers(origin)),
            (false, true) if !self.forward_unmatched => CorsDecision::Refuse,
            (false, _) => CorsDecision::Pass,
        }
    }

    fn preflight_headers(&self, origin: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = self.origin_headers(origin);
        let optional = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
            (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ];
        headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        headers
    }

    fn answer_headers(&self, origin: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = self.origin_headers(origin);
        headers.extend(self.expose.clone().map(|value| (header::ACCESS_CONTROL_EXPOSE_HEADERS, value)));
        headers
    }

    fn origin_headers(&self, origin: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = vec![(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
        if self.credentials {
            headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        headers
    }
}

fn text(value: &str) -> Result<Option<HeaderValue>, ConfigError> {
    match value.is_empty() {
        true => Ok(None),
        false => HeaderValue::from_str(value).map(Some).map_err(|_| ConfigError::new("is not a header value")),
    }
}
