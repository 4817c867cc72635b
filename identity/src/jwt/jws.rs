//! The signed envelope: three base64url parts, a header that is checked before anything else, one signature.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{JwtError, KEYS_TRIED_MAX, TOKEN_BYTES_MAX};
use crate::jwk::{Algorithm, JwkSet};
use crate::strict_json;

/// Which kind of token is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// End-user tokens of any issuer: every algorithm, as far as the key allows it.
    General,
    /// JWT-SVIDs: RS, ES and PS only.
    Svid,
}

/// A token in parts. Nothing in it is believed yet.
#[derive(Debug)]
pub(crate) struct Jws<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    token_type: Option<String>,
    signing_input: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::TooLong(token.len()));
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed("it has no dots"))?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwtError::Malformed("it has only one dot"))?;
        if payload.contains('.') {
            return Err(JwtError::Malformed("it has more than two dots"));
        }
        let header = parse_header(header)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed("signature"))?;
        let algorithm = header_text(&header, "alg")?.ok_or(JwtError::Malformed("the header has no alg"))?;
        Ok(Self {
            algorithm: Algorithm::parse(algorithm).ok_or(JwtError::AlgorithmNotAllowed)?,
            key_id: header_text(&header, "kid")?.map(str::to_owned),
            token_type: header_text(&header, "typ")?.map(str::to_owned),
            signing_input,
            payload,
            signature,
        })
    }

    /// Refuses tokens that say they are of another kind, so that one kind cannot pass for the other (RFC 8725, 3.11).
    pub(crate) fn check_type(&self, profile: Profile) -> Result<(), JwtError> {
        let Some(token_type) = &self.token_type else { return Ok(()) };
        let accepted = match profile {
            Profile::Svid => matches!(token_type.as_str(), "JWT" | "JOSE"),
            Profile::General => {
                let lower = token_type.to_ascii_lowercase();
                matches!(lower.strip_prefix("application/").unwrap_or(&lower), "jwt" | "jose" | "at+jwt")
            }
        };
        if accepted { Ok(()) } else { Err(JwtError::Type) }
    }

    /// Verifies the signature by a key that the token may mean and that allows the token's algorithm.
    pub(crate) fn verify(&self, keys: &JwkSet, profile: Profile) -> Result<(), JwtError> {
        if profile == Profile::Svid && !self.algorithm.is_for_svids() {
            return Err(JwtError::AlgorithmNotAllowed);
        }
        let mut candidates = keys.candidates(self.key_id.as_deref()).peekable();
        if candidates.peek().is_none() {
            return Err(JwtError::NoKey);
        }
        let mut fitting = candidates.filter(|key| key.allows(self.algorithm)).take(KEYS_TRIED_MAX).peekable();
        if fitting.peek().is_none() {
            return Err(JwtError::AlgorithmNotAllowed);
        }
        let message = self.signing_input.as_bytes();
        if fitting.any(|key| key.verifies(self.algorithm, message, &self.signature)) {
            Ok(())
        } else {
            Err(JwtError::BadSignature)
        }
    }

    pub(crate) fn payload_bytes(&self) -> Result<Vec<u8>, JwtError> {
        URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| JwtError::Malformed("payload"))
    }

    pub(crate) fn claims(&self) -> Result<Map<String, Value>, JwtError> {
        let payload = self.payload_bytes()?;
        strict_json::parse_object(&payload).ok_or(JwtError::Malformed("the payload is not one JSON object"))
    }

    pub(crate) fn encoded_payload(&self) -> &'a str {
        self.payload
    }
}

fn parse_header(encoded: &str) -> Result<Map<String, Value>, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| JwtError::Malformed("header"))?;
    let header = strict_json::parse_object(&bytes).ok_or(JwtError::Malformed("the header is not one JSON object"))?;
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(JwtError::Critical);
    }
    Ok(header)
}

fn header_text<'h>(header: &'h Map<String, Value>, name: &'static str) -> Result<Option<&'h str>, JwtError> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwtError::Malformed("a header member is not a text")),
    }
}
