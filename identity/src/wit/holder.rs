//! The workload's side: the key that a WIT names, and the proofs made with it.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{PROOF_TYPE, proof};
use crate::digest;
use crate::jwk::{self, Jwk};
use crate::jwt::{SignError, TokenKey};
use crate::key::KeyError;
use crate::public_key::{Curve, PublicKey};
use crate::secs_of;
use crate::strict_json;

/// A P-256 key of a workload, for WITs alone.
pub struct WitKey(TokenKey);

impl WitKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self, SignError> {
        TokenKey::generate(header).map(Self)
    }

    /// Takes a stored key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, SignError> {
        TokenKey::load(der, None, header).map(Self)
    }

    /// Reads the whole key as [`Self::private_jwk`] writes it.
    pub fn from_private_jwk(text: &str) -> Result<Self, SignError> {
        let malformed = || SignError::Key(KeyError::Malformed);
        let mut members = strict_json::parse_object(text.as_bytes()).ok_or_else(malformed)?;
        let secret = members.remove("d").and_then(|secret| secret.as_str().map(str::to_owned)).map(Zeroizing::new);
        let secret = secret.and_then(|secret| URL_SAFE_NO_PAD.decode(&*secret).ok()).map(Zeroizing::new);
        let public = Jwk::from_json(&Value::Object(members)).map_err(|_| malformed())?;
        match (public.public_key(), secret) {
            (Some(PublicKey::Ec { curve: Curve::P256, point }), Some(secret)) => {
                TokenKey::from_numbers(&secret, point, header).map(Self)
            }
            _ => Err(malformed()),
        }
    }

    /// The key as PKCS#8. The caller keeps it secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.0.pkcs8_der().unwrap_or_default() // A workload holds its key itself.
    }

    /// The public half as SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> Vec<u8> {
        self.0.public_key().spki_der()
    }

    /// The whole key as a JWK, as the Workload API carries it. The caller keeps it secret.
    pub fn private_jwk(&self) -> Result<Zeroizing<String>, SignError> {
        let secret = self.0.private_scalar()?;
        let mut members = jwk::public_members(self.0.public_key());
        members.insert("alg".to_owned(), json!(ALGORITHM));
        members.insert("kid".to_owned(), json!(self.0.key_id()));
        let public = Value::Object(members).to_string();
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*secret));
        // Written by hand, so that the secret is in no value that is not wiped.
        let mut text = Zeroizing::new(String::with_capacity(public.len() + secret.len() + 8));
        text.push_str(public.strip_suffix('}').unwrap_or_default());
        text.push_str(",\"d\":\"");
        text.push_str(&secret);
        text.push_str("\"}");
        Ok(text)
    }

    /// Proves to `audience` that this workload holds the key of `wit`, for `life` from now. A proof is made for one request.
    pub fn prove(&self, wit: &str, audience: &str, life: Duration, now: SystemTime) -> Result<String, SignError> {
        let end = secs_of(now).saturating_add(life.as_secs());
        let claims = [
            ("aud", json!(audience)),
            ("exp", json!(end)),
            ("jti", json!(URL_SAFE_NO_PAD.encode(digest::random::<16>()))),
            ("wth", json!(proof::hash(wit))),
        ];
        self.0.sign(&claims.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

fn header(_key_id: &str) -> Value {
    json!({ "alg": ALGORITHM, "typ": PROOF_TYPE })
}

impl fmt::Debug for WitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WitKey(redacted)")
    }
}

const ALGORITHM: &str = "ES256";
