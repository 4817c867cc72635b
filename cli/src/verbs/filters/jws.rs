//! `kasbah jws verify --lines`: the signature and the key's use, nothing else.

use identity::jwk::{JwkError, JwkSet};
use identity::{jwt, strict_json};
use serde_json::{Map, Value};

use super::parallel::{self, Answerer};
use crate::exit::Failure;

/// `{"keys":[JWK,…],"jws":"…"}` in, `ok` or `err CODE` out.
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
            Ok(()) => "ok".to_owned(),
            Err(code) => format!("err {code}"),
        }
    }
}

impl Verifier {
    fn check(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let mut line = strict_json::parse_object(line).ok_or("BAD_JSON")?;
        let keys = self.keys.parse(&mut line)?;
        let object = line.get("jws").and_then(Value::as_str).ok_or("JWT_MALFORMED")?;
        jwt::verify_signature(object, keys).map(drop).map_err(|error| reason(keys, &error))
    }
}

/// The code of a refusal. Where no key could be used at all, that is what matters.
pub(super) fn reason(keys: &JwkSet, error: &jwt::JwtError) -> &'static str {
    let unusable = keys.is_empty() && keys.ignored() > 0 && *error == jwt::JwtError::NoKey;
    if unusable { "JWK_REFUSED" } else { error.reason() }
}

/// The keys of the previous line, parsed: the next line mostly has the same.
#[derive(Default)]
pub(super) struct KeyCache {
    last: Option<(Value, Result<JwkSet, &'static str>)>,
}

impl KeyCache {
    /// The line's `keys`, ready to verify.
    pub(super) fn parse(&mut self, line: &mut Map<String, Value>) -> Result<&JwkSet, &'static str> {
        let json = line.remove("keys").unwrap_or_default();
        if self.last.as_ref().is_some_and(|(last, _)| *last != json) {
            self.last = None;
        }
        let (_, keys) = self.last.get_or_insert_with(|| {
            let keys = json.as_array().ok_or(JwkError::NotASet).and_then(|keys| JwkSet::from_given(keys));
            (json, keys.map_err(|error| error.reason()))
        });
        keys.as_ref().map_err(|code| *code)
    }
}

#[cfg(test)]
pub(in crate::verbs) mod tests;
