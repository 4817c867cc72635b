//! What a verified token says.

use std::time::SystemTime;

use serde_json::{Map, Number, Value};

use super::jws::Jws;
use super::{JwtError, JwtExpectations};
use crate::{secs_of, time_from_secs};

/// The claims of a token whose signature, times, issuer and audience were checked. Made only by [`super::verify`],
/// [`super::verify_svid`] and [`crate::wit::verify`].
#[derive(Debug, Clone)]
pub struct VerifiedClaims {
    claims: Map<String, Value>,
    audiences: Vec<String>,
    expires_at: Option<SystemTime>,
    encoded_payload: String,
}

impl VerifiedClaims {
    /// All claims, as the token has them.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// One claim that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    /// The subject.
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// The issuer.
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// The audiences, empty if the token names none.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// When the token expires; `None` only where the caller did not require `exp`.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// When the token was issued, if it says so.
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.claims.get("iat").and_then(Value::as_number).map(|number| time_from_secs(whole_secs(number, f64::floor)))
    }

    /// When the token starts to be valid, if it says so.
    pub fn not_before(&self) -> Option<SystemTime> {
        self.claims.get("nbf").and_then(Value::as_number).map(|number| time_from_secs(whole_secs(number, f64::ceil)))
    }

    /// `issuer/subject`, the name that policies call the request principal.
    pub fn request_principal(&self) -> Option<String> {
        Some(format!("{}/{}", self.issuer()?, self.subject()?))
    }

    /// The payload exactly as in the token, base64url.
    pub fn encoded_payload(&self) -> &str {
        &self.encoded_payload
    }
}

/// Checks the claims of a token whose signature has been verified.
pub(crate) fn check(jws: &Jws<'_>, expect: &JwtExpectations) -> Result<VerifiedClaims, JwtError> {
    let claims = jws.claims()?;
    let expires_at = check_times(&claims, expect)?;
    let issuer = text(&claims, "iss", "iss is not a text")?;
    text(&claims, "sub", "sub is not a text")?;
    if expect.issuer.as_deref().is_some_and(|expected| issuer != Some(expected)) {
        return Err(JwtError::WrongIssuer);
    }
    let audiences = audiences(&claims)?;
    if !expect.audiences.is_empty() && !expect.audiences.iter().any(|expected| audiences.contains(expected)) {
        return Err(JwtError::WrongAudience);
    }
    Ok(VerifiedClaims { claims, audiences, expires_at, encoded_payload: jws.encoded_payload().to_owned() })
}

/// The subject before any verification, for choosing the trust domain's keys.
pub(crate) fn unverified_subject(jws: &Jws<'_>) -> Result<String, JwtError> {
    let claims = jws.claims()?;
    let subject = text(&claims, "sub", "sub is not a text")?.ok_or(JwtError::Malformed("it has no sub"))?;
    Ok(subject.to_owned())
}

fn check_times(claims: &Map<String, Value>, expect: &JwtExpectations) -> Result<Option<SystemTime>, JwtError> {
    let now = i64::try_from(secs_of(expect.now)).unwrap_or(i64::MAX);
    let leeway = i64::try_from(expect.leeway.as_secs()).unwrap_or(i64::MAX);
    let expires = date(claims, "exp", f64::floor)?;
    match expires {
        None if expect.expiry_required => return Err(JwtError::Malformed("it has no exp")),
        Some(exp) if now >= exp.saturating_add(leeway) => return Err(JwtError::Expired),
        None | Some(_) => {}
    }
    if date(claims, "nbf", f64::ceil)?.is_some_and(|nbf| nbf > now.saturating_add(leeway)) {
        return Err(JwtError::NotYetValid);
    }
    date(claims, "iat", f64::floor)?;
    Ok(expires.map(time_from_secs))
}

fn date(claims: &Map<String, Value>, name: &str, round: fn(f64) -> f64) -> Result<Option<i64>, JwtError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(Some(whole_secs(number, round))),
        Some(_) => Err(JwtError::Malformed("a date is not a number")),
    }
}

/// Any JSON number as whole seconds; what does not fit becomes the nearest that does.
fn whole_secs(number: &Number, round: fn(f64) -> f64) -> i64 {
    match (number.as_i64(), number.as_f64()) {
        (Some(secs), _) => secs,
        (None, Some(secs)) => round(secs) as i64, // Saturates; serde_json numbers are never NaN.
        (None, None) => i64::MAX,
    }
}

fn text<'c>(claims: &'c Map<String, Value>, name: &str, complaint: &'static str) -> Result<Option<&'c str>, JwtError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwtError::Malformed(complaint)),
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    const COMPLAINT: JwtError = JwtError::Malformed("aud is neither a text nor a list of texts");
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(audience)) => Ok(vec![audience.clone()]),
        Some(Value::Array(list)) => {
            list.iter().map(|audience| audience.as_str().map(str::to_owned).ok_or(COMPLAINT)).collect()
        }
        Some(_) => Err(COMPLAINT),
    }
}
