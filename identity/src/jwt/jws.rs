//! The signed envelope (RFC 7515): three base64url parts, a header that is checked before anything else, one signature.
//!
//! Tokens have no extensions: `crit` and `b64` are refused. Other signed objects may have an unencoded payload (RFC 7797),
//! the one extension understood, and then must say so in `crit`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{JWS_BYTES_MAX, JwtError, KEYS_TRIED_MAX, TOKEN_BYTES_MAX};
use crate::jwk::{Algorithm, JwkSet};
use crate::strict_json;

/// Which kind of token is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// End-user tokens of any issuer: every algorithm, as far as the key allows it.
    General,
    /// JWT-SVIDs, WIT-SVIDs and their proofs: RS, ES and PS only.
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
    payload_is_encoded: bool,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Takes a JWT apart.
    pub(crate) fn parse(token: &'a str) -> Result<Self, JwtError> {
        Self::parse_parts(token, TOKEN_BYTES_MAX, |header| {
            let extended = header.contains_key("crit") || header.contains_key("b64");
            if extended { Err(JwtError::Critical) } else { Ok(true) }
        })
    }

    /// Takes any signed object apart.
    pub(crate) fn parse_object(object: &'a str) -> Result<Self, JwtError> {
        let jws = Self::parse_parts(object, JWS_BYTES_MAX, payload_is_encoded)?;
        jws.payload_bytes()?;
        Ok(jws)
    }

    fn parse_parts(
        token: &'a str,
        bytes_max: usize,
        read_extensions: impl Fn(&Map<String, Value>) -> Result<bool, JwtError>,
    ) -> Result<Self, JwtError> {
        if token.len() > bytes_max {
            return Err(JwtError::TooLong { len: token.len(), max: bytes_max });
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed("it has no dots"))?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwtError::Malformed("it has only one dot"))?;
        if payload.contains('.') {
            return Err(JwtError::Malformed("it has more than two dots"));
        }
        let header = decode(header).ok_or(JwtError::Malformed("header"))?;
        let header =
            strict_json::parse_object(&header).ok_or(JwtError::Malformed("the header is not one JSON object"))?;
        let payload_is_encoded = read_extensions(&header)?;
        let algorithm = header_text(&header, "alg")?.ok_or(JwtError::Malformed("the header has no alg"))?;
        Ok(Self {
            algorithm: Algorithm::parse(algorithm).ok_or(JwtError::AlgorithmNotAllowed)?,
            key_id: header_text(&header, "kid")?.map(str::to_owned),
            token_type: header_text(&header, "typ")?.map(str::to_owned),
            signing_input,
            payload,
            payload_is_encoded,
            signature: decode(signature).ok_or(JwtError::Malformed("signature"))?,
        })
    }

    /// The header's `typ`.
    pub(crate) fn token_type(&self) -> Option<&str> {
        self.token_type.as_deref()
    }

    /// The header's `kid`.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
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
        if self.payload_is_encoded {
            return decode(self.payload).ok_or(JwtError::Malformed("payload"));
        }
        // RFC 7797, 5.2: printable, and no dot, which was checked before.
        let printable = self.payload.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
        if printable { Ok(self.payload.as_bytes().to_vec()) } else { Err(JwtError::Malformed("payload")) }
    }

    pub(crate) fn claims(&self) -> Result<Map<String, Value>, JwtError> {
        let payload = self.payload_bytes()?;
        strict_json::parse_object(&payload).ok_or(JwtError::Malformed("the payload is not one JSON object"))
    }

    pub(crate) fn encoded_payload(&self) -> &'a str {
        self.payload
    }
}

/// Reads header and payload of a token of any kind, signed or not.
pub(super) fn look(token: &str) -> Result<(Map<String, Value>, Map<String, Value>), JwtError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(JwtError::TooLong { len: token.len(), max: TOKEN_BYTES_MAX });
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, _] = parts[..] else { return Err(JwtError::Malformed("it has not three parts")) };
    let object = |part| strict_json::parse_object(&decode(part)?);
    let header = object(header).ok_or(JwtError::Malformed("the header is not one JSON object in base64url"))?;
    let payload = object(payload).ok_or(JwtError::Malformed("the payload is not one JSON object in base64url"))?;
    Ok((header, payload))
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// Reads `crit` and `b64`. What is critical must be understood, stand in the header, and be listed once (RFC 7515, 4.1.11);
/// an unencoded payload must be critical (RFC 7797, 6).
fn payload_is_encoded(header: &Map<String, Value>) -> Result<bool, JwtError> {
    let encoded = match header.get("b64") {
        None => true,
        Some(Value::Bool(encoded)) => *encoded,
        Some(_) => return Err(JwtError::Malformed("b64 is neither true nor false")),
    };
    match header.get("crit") {
        None if encoded => Ok(true),
        Some(Value::Array(names)) if header.contains_key("b64") && names[..] == ["b64"] => Ok(encoded),
        None | Some(_) => Err(JwtError::Critical),
    }
}

fn header_text<'h>(header: &'h Map<String, Value>, name: &'static str) -> Result<Option<&'h str>, JwtError> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwtError::Malformed("a header member is not a text")),
    }
}
