//! JSON Web Tokens (RFC 7515, RFC 7519, RFC 8725) and JWT-SVIDs.
//!
//! The JOSE layer is our own, small and strict, directly on the cryptography library: general libraries accept members given twice, do
//! not bind the algorithm to the key's curve, or parse the key for every token. What always holds:
//!
//! - only the compact form, base64url without padding, no member given twice, `crit` refused;
//! - the key decides the algorithm: a token cannot ask an RSA key to act as a shared secret;
//! - nothing of a token is believed before its signature verified, except the key ID and (for JWT-SVIDs) the trust
//!   domain, which only choose the keys to verify with;
//! - `exp` is required unless the caller says otherwise, and [`VerifiedClaims`] comes from [`verify`], [`verify_svid`]
//!   and [`crate::wit::verify`] alone.

pub(crate) mod claims;
pub(crate) mod jws;
mod sign;

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::bundle::BundleSet;
use crate::jwk::JwkSet;
use crate::spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};

pub use claims::VerifiedClaims;
pub(crate) use sign::TokenKey;
pub use sign::{JwtAuthorityKey, JwtSvid, JwtSvidProfile, SignError};

/// What the caller expects of a token.
#[derive(Debug, Clone)]
pub struct JwtExpectations {
    /// The one issuer to accept; `None` accepts any.
    pub issuer: Option<String>,
    /// The token must name at least one of these audiences; empty means that the audience does not matter.
    pub audiences: Vec<String>,
    /// The present.
    pub now: SystemTime,
    /// How far clocks may differ. See [`LEEWAY_DEFAULT`].
    pub leeway: Duration,
    /// Whether a token without `exp` is refused (the default).
    pub expiry_required: bool,
}

impl JwtExpectations {
    /// Expectations at a moment: any issuer, any audience, the default leeway, `exp` required.
    pub fn at(now: SystemTime) -> Self {
        Self { issuer: None, audiences: Vec::new(), now, leeway: LEEWAY_DEFAULT, expiry_required: true }
    }

    /// Accepts this issuer only.
    pub fn with_issuer(mut self, issuer: &str) -> Self {
        self.issuer = Some(issuer.to_owned());
        self
    }

    /// Requires one of these audiences.
    pub fn with_audiences<S: Into<String>>(mut self, audiences: impl IntoIterator<Item = S>) -> Self {
        self.audiences = audiences.into_iter().map(Into::into).collect();
        self
    }
}

/// Verifies the signature of any signed object in compact form by one of the keys, and returns what was signed. That is all:
/// `typ` and the payload are the caller's to judge, so this makes no [`VerifiedClaims`].
pub fn verify_signature(object: &str, keys: &JwkSet) -> Result<Vec<u8>, JwtError> {
    let jws = jws::Jws::parse_object(object)?;
    jws.verify(keys, jws::Profile::General)?;
    jws.payload_bytes()
}

/// Verifies a token: its signature by one of the keys, then its times, issuer and audience.
pub fn verify(token: &str, keys: &JwkSet, expect: &JwtExpectations) -> Result<VerifiedClaims, JwtError> {
    let jws = jws::Jws::parse(token)?;
    jws.check_type(jws::Profile::General)?;
    jws.verify(keys, jws::Profile::General)?;
    claims::check(&jws, expect)
}

/// Verifies a JWT-SVID with the keys of its subject's own trust domain, and that it names the audience.
///
/// The result's subject is a valid SPIFFE ID, see [`VerifiedSvid::spiffe_id`]. A missing `kid` is accepted, as the
/// standard leaves it optional; then every JWT key of the domain is tried.
pub fn verify_svid(
    token: &str,
    bundles: &BundleSet,
    audience: &str,
    now: SystemTime,
) -> Result<VerifiedSvid, JwtError> {
    if audience.is_empty() {
        return Err(JwtError::WrongAudience);
    }
    let jws = jws::Jws::parse(token)?;
    jws.check_type(jws::Profile::Svid)?;
    let subject = claims::unverified_subject(&jws)?;
    let id = SpiffeId::parse(&subject).map_err(JwtError::Subject)?;
    let trust_domain = id.trust_domain();
    let Some(keys) = bundles.jwt_keys(&trust_domain) else {
        return Err(JwtError::TrustDomainUnknown(trust_domain));
    };
    jws.verify(keys, jws::Profile::Svid)?;
    let expect = JwtExpectations::at(now).with_audiences([audience]);
    Ok(VerifiedSvid { claims: claims::check(&jws, &expect)?, id })
}

/// A verified JWT-SVID.
#[derive(Debug, Clone)]
pub struct VerifiedSvid {
    id: SpiffeId,
    claims: VerifiedClaims,
}

impl VerifiedSvid {
    /// Whom the token names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// All claims.
    pub fn claims(&self) -> &VerifiedClaims {
        &self.claims
    }
}

/// The issuer that a token names, **not verified**: only for choosing which keys to verify with.
pub fn danger_unverified_issuer(token: &str) -> Option<String> {
    let jws = jws::Jws::parse(token).ok()?;
    let claims: Map<String, Value> = jws.claims().ok()?;
    claims.get("iss").and_then(Value::as_str).map(str::to_owned)
}

/// The header and the claims that a token shows, **not verified**: only for a person to look at.
///
/// # Errors
/// [`JwtError::TooLong`], or [`JwtError::Malformed`] when it is not three parts of which the first two are JSON objects.
pub fn danger_unverified(token: &str) -> Result<(Map<String, Value>, Map<String, Value>), JwtError> {
    jws::look(token)
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// Longer than [`TOKEN_BYTES_MAX`], or [`JWS_BYTES_MAX`] where any signed object is read.
    #[error("at most {max} bytes are read, this token has {len}")]
    #[expect(missing_docs, reason = "the message says it")]
    TooLong { len: usize, max: usize },
    /// Not a compact JWT; the text says which part is wrong.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The header names extensions that are not understood here.
    #[error("the token's header has crit or b64, which are not supported here")]
    Critical,
    /// The header's type is that of another kind of token.
    #[error("the token's typ is not accepted here")]
    Type,
    /// The algorithm is unknown, not allowed here, or not one the key can do.
    #[error("the token's algorithm is not allowed, or does not fit the key")]
    AlgorithmNotAllowed,
    /// No key of the set is meant by the token.
    #[error("no key of the set has the token's key ID")]
    NoKey,
    /// No candidate key made the signature.
    #[error("the token's signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iss` is missing or another.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// `aud` is missing or names others only.
    #[error("the token is for another audience")]
    WrongAudience,
    /// A JWT-SVID's subject is no SPIFFE ID.
    #[error("the token's subject is not a SPIFFE ID")]
    Subject(#[source] SpiffeIdError),
    /// There is no bundle for the subject's trust domain.
    #[error("no bundle for the trust domain {0}")]
    TrustDomainUnknown(TrustDomain),
}

impl JwtError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::Malformed(_) | Self::Critical | Self::Type => "JWT_MALFORMED",
            Self::AlgorithmNotAllowed => "JWT_ALG_NOT_ALLOWED",
            Self::NoKey => "JWT_NO_KEY",
            Self::BadSignature => "JWT_BAD_SIGNATURE",
            Self::Expired => "JWT_EXPIRED",
            Self::NotYetValid => "JWT_NOT_YET_VALID",
            Self::WrongIssuer => "JWT_WRONG_ISSUER",
            Self::WrongAudience => "JWT_WRONG_AUDIENCE",
            Self::Subject(_) => "JWT_SUBJECT_NOT_SPIFFE_ID",
            Self::TrustDomainUnknown(_) => "JWT_TRUST_DOMAIN_UNKNOWN",
        }
    }
}

/// The longest token read.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The longest signed object read by [`verify_signature`].
pub const JWS_BYTES_MAX: usize = 1024 * 1024;

/// How far clocks may differ unless the caller says otherwise.
pub const LEEWAY_DEFAULT: Duration = Duration::from_secs(60);

/// The most keys tried for one token, when several could be meant.
const KEYS_TRIED_MAX: usize = 16;

#[cfg(test)]
mod tests;
