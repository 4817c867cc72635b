//! A set of keys parsed once, so that a token costs one signature check and no key parsing.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use serde_json::Value;

use super::{Algorithm, JWKS_BYTES_MAX, JWKS_KEYS_MAX, Jwk, JwkError, Material};
use crate::public_key::{Curve, PublicKey, PublicKeyError};
use crate::strict_json;

/// Keys ready to verify.
#[derive(Clone, Default)]
pub struct JwkSet {
    keys: Vec<VerifyingKey>,
    ignored: usize,
}

/// One key with a verifier for each algorithm it allows.
#[derive(Clone)]
pub(crate) struct VerifyingKey {
    key_id: Option<String>,
    verifiers: Vec<(Algorithm, Verifier)>,
}

#[derive(Clone)]
enum Verifier {
    Signature(ParsedPublicKey),
    Mac(Box<hmac::Key>),
}

impl JwkSet {
    /// Reads a JWKS document. Keys that cannot verify JWTs are passed over and counted in [`Self::ignored`].
    pub fn parse(json: &[u8]) -> Result<Self, JwkError> {
        if json.len() > JWKS_BYTES_MAX {
            return Err(JwkError::TooLong);
        }
        let members = strict_json::parse_object(json).ok_or(JwkError::NotASet)?;
        let keys = members.get("keys").and_then(Value::as_array).ok_or(JwkError::NotASet)?;
        if keys.len() > JWKS_KEYS_MAX {
            return Err(JwkError::TooLong);
        }
        let mut set = Self::default();
        for key in keys {
            match Jwk::from_json(key) {
                Ok(jwk) if matches!(jwk.usage(), None | Some("sig")) => set.add(&jwk),
                Ok(_) | Err(_) => set.ignored += 1,
            }
        }
        set.drop_misplaced_secrets();
        Ok(set)
    }

    /// A shared secret in a published set is no secret, so beside public keys it must not verify anything.
    fn drop_misplaced_secrets(&mut self) {
        if self.keys.iter().any(|key| !key.is_secret()) {
            let before = self.keys.len();
            self.keys.retain(|key| !key.is_secret());
            self.ignored += before - self.keys.len();
        }
    }

    /// A set of the given keys, whatever their `use`. Keys that cannot verify are counted in [`Self::ignored`].
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = &'a Jwk>) -> Self {
        let mut set = Self::default();
        keys.into_iter().for_each(|key| set.add(key));
        set
    }

    fn add(&mut self, jwk: &Jwk) {
        match VerifyingKey::build(jwk) {
            Ok(key) if self.keys.len() < JWKS_KEYS_MAX => self.keys.push(key),
            Ok(_) | Err(_) => self.ignored += 1,
        }
    }

    /// How many keys can verify.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can verify.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys were passed over.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The keys' IDs, for messages.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(|key| key.key_id.as_deref())
    }

    /// The keys that a token may mean: those with its key ID and those without any; all if the token names none.
    pub(crate) fn candidates<'a>(&'a self, key_id: Option<&'a str>) -> impl Iterator<Item = &'a VerifyingKey> {
        self.keys.iter().filter(move |key| match (key_id, key.key_id.as_deref()) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        })
    }
}

impl fmt::Debug for JwkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwkSet")
            .field("key_ids", &self.key_ids().collect::<Vec<_>>())
            .field("len", &self.len())
            .field("ignored", &self.ignored)
            .finish()
    }
}

impl VerifyingKey {
    fn build(jwk: &Jwk) -> Result<Self, JwkError> {
        let mut verifiers = match &jwk.material {
            Material::Public(key) => public_verifiers(key).ok_or(JwkError::Key(PublicKeyError::Malformed))?,
            Material::Secret(secret) => mac_verifiers(secret),
        };
        verifiers.retain(|(algorithm, _)| jwk.algorithm.is_none_or(|only| only == *algorithm));
        if verifiers.is_empty() {
            return Err(JwkError::Unsupported("alg"));
        }
        Ok(Self { key_id: jwk.key_id.clone(), verifiers })
    }

    fn is_secret(&self) -> bool {
        self.verifiers.iter().any(|(_, verifier)| matches!(verifier, Verifier::Mac(_)))
    }

    /// Whether the key may be used with the algorithm at all.
    pub(crate) fn allows(&self, algorithm: Algorithm) -> bool {
        self.verifiers.iter().any(|(allowed, _)| *allowed == algorithm)
    }

    /// Whether the signature is the key's own over the message, by exactly this algorithm.
    pub(crate) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.verifiers.iter().any(|(allowed, verifier)| {
            *allowed == algorithm
                && match verifier {
                    Verifier::Signature(key) => key.verify_sig(message, signature).is_ok(),
                    Verifier::Mac(key) => hmac::verify(key, message, signature).is_ok(),
                }
        })
    }
}

fn public_verifiers(key: &PublicKey) -> Option<Vec<(Algorithm, Verifier)>> {
    let one = |algorithm, key: ParsedPublicKey| vec![(algorithm, Verifier::Signature(key))];
    match key {
        PublicKey::Ec { curve: Curve::P256, point } => {
            Some(one(Algorithm::ES256, ParsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).ok()?))
        }
        PublicKey::Ec { curve: Curve::P384, point } => {
            Some(one(Algorithm::ES384, ParsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).ok()?))
        }
        PublicKey::Ec { curve: Curve::P521, point } => {
            Some(one(Algorithm::ES512, ParsedPublicKey::new(&signature::ECDSA_P521_SHA512_FIXED, point).ok()?))
        }
        PublicKey::Ed25519 { point } => {
            Some(one(Algorithm::EdDSA, ParsedPublicKey::new(&signature::ED25519, point).ok()?))
        }
        PublicKey::Rsa { modulus, exponent } => rsa_verifiers(&RsaPublicKeyComponents { n: modulus, e: exponent }),
    }
}

fn rsa_verifiers(key: &RsaPublicKeyComponents<&Vec<u8>>) -> Option<Vec<(Algorithm, Verifier)>> {
    let algorithms: [(Algorithm, &'static RsaParameters); 6] = [
        (Algorithm::RS256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::RS384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (Algorithm::RS512, &signature::RSA_PKCS1_2048_8192_SHA512),
        (Algorithm::PS256, &signature::RSA_PSS_2048_8192_SHA256),
        (Algorithm::PS384, &signature::RSA_PSS_2048_8192_SHA384),
        (Algorithm::PS512, &signature::RSA_PSS_2048_8192_SHA512),
    ];
    algorithms
        .into_iter()
        .map(|(algorithm, parameters)| {
            Some((algorithm, Verifier::Signature(key.to_parsed_public_key(parameters).ok()?)))
        })
        .collect()
}

/// A secret serves only algorithms whose hash is not longer than itself (RFC 7518, 3.2).
fn mac_verifiers(secret: &[u8]) -> Vec<(Algorithm, Verifier)> {
    let algorithms = [
        (Algorithm::HS256, hmac::HMAC_SHA256, 32),
        (Algorithm::HS384, hmac::HMAC_SHA384, 48),
        (Algorithm::HS512, hmac::HMAC_SHA512, 64),
    ];
    algorithms
        .into_iter()
        .filter(|(_, _, len_min)| secret.len() >= *len_min)
        .map(|(name, algorithm, _)| (name, Verifier::Mac(Box::new(hmac::Key::new(algorithm, secret)))))
        .collect()
}
