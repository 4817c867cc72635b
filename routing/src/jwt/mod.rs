//! Which tokens a request must bring and what becomes of them (Envoy's `jwt_authn`).
//!
//! Signatures, issuers, audiences and times are checked by the caller's verifier; here is decided which token is asked of
//! which provider, and whether the outcome is enough. A token that is there but does not verify never counts as missing.
//! There is no mode that reads claims without verifying them.

mod compile;
mod evaluate;
mod extract;
mod output;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::filters::FilterOverride;
use crate::matcher::StringMatcher;
use crate::request::{Metadata, TokenClaims};
use crate::route::RouteMatch;

pub use evaluate::Expect;

/// Verifies tokens.
#[derive(Clone, Debug)]
pub struct JwtAuthn {
    /// Who issues tokens, by name.
    pub providers: BTreeMap<Arc<str>, Arc<JwtProvider>>,
    rules: Vec<(RouteMatch, Option<Requirement>)>,
    named: BTreeMap<Box<str>, Requirement>,
    bypass_cors_preflight: bool,
    outputs: Vec<HeaderName>,
}

/// Who issues tokens, and where requests carry them.
#[derive(Clone, Debug)]
pub struct JwtProvider {
    /// The provider's name.
    pub name: Arc<str>,
    /// The required `iss`; none if any will do.
    pub issuer: Option<Arc<str>>,
    /// The `aud` of which one is required; none if any will do.
    pub audiences: Vec<Arc<str>>,
    /// Where the keys are.
    pub keys: KeySource,
    /// How far clocks may differ.
    pub clock_skew: Duration,
    /// Whether a token must end.
    pub require_expiration: bool,
    /// How long a token may be valid.
    pub lifetime_max: Option<Duration>,
    /// Whether the token stays in the request.
    pub forward: bool,
    subjects: Option<StringMatcher>,
    locations: Vec<Location>,
    payload_header: Option<(HeaderName, bool)>,
    claim_headers: Vec<(HeaderName, Vec<Box<str>>)>,
    metadata_key: Option<Arc<str>>,
    space_delimited: Arc<[Box<str>]>,
    clear_route_cache: bool,
}

/// Where a provider's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A key set (JWKS) in the configuration.
    Inline(Arc<str>),
    /// A key set in a file.
    File(PathBuf),
    /// A key set to be fetched.
    Remote {
        /// From this URL.
        uri: Arc<str>,
        /// Through this cluster.
        cluster: Arc<str>,
        /// Within this time.
        timeout: Duration,
        /// To be used for so long.
        cache: Duration,
    },
}

/// A place where tokens are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    Header { name: HeaderName, prefix: Box<str> },
    Param(Arc<str>),
    Cookie(Box<str>),
}

/// What a request must bring.
#[derive(Clone, Debug)]
enum Requirement {
    Provider(Arc<JwtProvider>, Option<Vec<Arc<str>>>),
    Any(Vec<Self>),
    All(Vec<Self>),
    AllowMissing,
    AllowMissingOrFailed,
}

/// What a route changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOverride {
    requirement: Box<str>,
}

/// Why a token was refused by the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwtFailure {
    /// The stable code.
    pub reason: &'static str,
}

/// Why a request is answered with 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no acceptable token: {reason}")]
pub struct JwtRefusal {
    /// The stable code.
    pub reason: &'static str,
    /// Whose token it was about.
    pub provider: Option<Arc<str>>,
}

/// A request's tokens, verified, and what changes about the request.
#[derive(Clone, Debug, Default)]
pub struct JwtGrant {
    /// The verified tokens.
    pub tokens: Vec<VerifiedToken>,
    /// Headers to remove: spoofed outputs and tokens that stop here. They go before anything is set.
    pub remove_headers: Vec<HeaderName>,
    /// Headers to set.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Query parameters to remove.
    pub remove_params: Vec<Arc<str>>,
    /// Whether the route is to be picked again, now that claims are known.
    pub clear_route_cache: bool,
}

/// A token that was verified.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    /// By whose keys.
    pub provider: Arc<JwtProvider>,
    /// What it says.
    pub claims: TokenClaims,
}

impl JwtRefusal {
    /// The stable code for logs and answers.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl JwtGrant {
    /// Notes the claims for the filters behind.
    pub fn note(&self, metadata: &mut Metadata) {
        for token in &self.tokens {
            if let Some(key) = &token.provider.metadata_key {
                metadata.insert_claims(key, token.claims.clone());
            }
        }
    }
}

impl JwtOverride {
    pub(crate) fn compile(
        value: &envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::PerRouteConfig,
    ) -> Result<FilterOverride, crate::ConfigError> {
        use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
        match crate::config::required(value.requirement_specifier.as_ref())? {
            RequirementSpecifier::Disabled(true) => Ok(FilterOverride::Disabled),
            RequirementSpecifier::Disabled(false) => Ok(FilterOverride::Enabled),
            RequirementSpecifier::RequirementName(name) => {
                Ok(FilterOverride::Jwt(Self { requirement: name.as_str().into() }))
            }
        }
    }
}

#[cfg(test)]
mod tests;
