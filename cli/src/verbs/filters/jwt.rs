//! `kasbah jwt verify --lines`: the signature, then the times, the issuer and the audience.

use std::time::{Duration, SystemTime};

use identity::jwt::{self, JwtExpectations};
use identity::strict_json;
use serde_json::{Map, Value};

use super::jws::{KeyCache, reason};
use super::parallel::{self, Answerer};
use crate::exit::Failure;

/// `{"keys":[…],"jwt":"…","issuer":"…","audiences":["…"],"now":"RFC 3339"}` in, `ok SUBJECT` or `err CODE` out.
pub(crate) fn verify() -> Result<(), Failure> {
    parallel::run::<Verifier>()
}

#[derive(Default)]
struct Verifier {
    keys: KeyCache,
}

impl Answerer for Verifier {
    fn answer(&mut self, line: &[u8]) -> String {
        match self.check(line) {
            Ok(subject) => format!("ok {subject}"),
            Err(code) => format!("err {code}"),
        }
    }
}

impl Verifier {
    fn check(&mut self, line: &[u8]) -> Result<String, &'static str> {
        let mut line = strict_json::parse_object(line).ok_or("BAD_JSON")?;
        let keys = self.keys.parse(&mut line)?;
        let expect = expectations(&line).ok_or("BAD_EXPECTATION")?;
        let token = line.get("jwt").and_then(Value::as_str).ok_or("JWT_MALFORMED")?;
        let claims = jwt::verify(token, keys, &expect).map_err(|error| reason(keys, &error))?;
        Ok(claims.subject().map_or_else(|| "-".to_owned(), one_line))
    }
}

/// What the line expects of its token; `None` if a member is not of its kind. No clocks differ where `now` is given, so there
/// is no leeway.
fn expectations(line: &Map<String, Value>) -> Option<JwtExpectations> {
    let member = |name: &str| line.get(name).filter(|value| !value.is_null());
    let now = match member("now") {
        None => SystemTime::now(),
        Some(text) => text.as_str()?.parse::<jiff::Timestamp>().ok()?.into(),
    };
    let issuer = match member("issuer") {
        None => None,
        Some(text) => Some(text.as_str()?.to_owned()),
    };
    let audiences = match member("audiences") {
        None => Vec::new(),
        Some(list) => list.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?,
    };
    Some(JwtExpectations { issuer, audiences, leeway: Duration::ZERO, ..JwtExpectations::at(now) })
}

/// A subject as part of a line: control characters, which could end the line, as JSON writes them.
fn one_line(subject: &str) -> String {
    subject.chars().fold(String::with_capacity(subject.len()), |mut line, c| {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            line.push(c);
        }
        line
    })
}

#[cfg(test)]
mod tests;
