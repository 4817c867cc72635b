//! A set of keys parsed once, so that a token costs one signature check and no key parsing.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use super::{Algorithm, JWKS_BYTES_MAX, JWKS_KEYS_MAX, Jwk, JwkError, Material, PRIVATE_MEMBERS};
use crate::crypto::signature::{self, RsaParameters, VerificationAlgorithm};
use crate::crypto::{ECDSA_P521_SHA512_FIXED, ParsedKey, hmac};
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
    verifiers: Verifiers,
}

#[derive(Clone)]
enum Verifier {
    Signature(ParsedKey),
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
        keys.iter().for_each(|key| set.add_json(key, &["sig"]));
        set.drop_misplaced_secrets();
        Ok(set)
    }

    /// Takes keys that somebody hands over himself, as to a tool, instead of publishing them. The public half of a private
    /// key is used. A set that leaves open which key is meant is refused: two keys with one ID, or shared secrets beside
    /// public keys. Keys that cannot verify JWTs are counted in [`Self::ignored`].
    pub fn from_given(keys: &[Value]) -> Result<Self, JwkError> {
        if keys.len() > JWKS_KEYS_MAX {
            return Err(JwkError::TooLong);
        }
        let keys: Vec<Map<String, Value>> = keys.iter().map(public_half).collect::<Result<_, _>>()?;
        let mut key_ids = BTreeSet::new();
        if keys.iter().filter_map(|key| key.get("kid")?.as_str()).any(|key_id| !key_ids.insert(key_id)) {
            return Err(JwkError::KeyIdTwice);
        }
        let secrets = keys.iter().filter(|key| key.get("kty").is_some_and(|kind| kind == "oct")).count();
        if secrets != 0 && secrets != keys.len() {
            return Err(JwkError::Mixed);
        }
        let mut set = Self::default();
        keys.into_iter().for_each(|key| set.add_json(&Value::Object(key), &["sig", "jwt-svid"]));
        Ok(set)
    }

    fn add_json(&mut self, key: &Value, uses: &[&str]) {
        match Jwk::from_json(key) {
            Ok(jwk) if jwk.usage().is_none_or(|usage| uses.contains(&usage)) => self.add(&jwk),
            Ok(_) | Err(_) => self.ignored += 1,
        }
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
        let wanted = |algorithm| jwk.algorithm.is_none_or(|only| only == algorithm);
        let verifiers = match &jwk.material {
            Material::Public(key) => public_verifiers(key, &wanted).ok_or(JwkError::Key(PublicKeyError::Malformed))?,
            Material::Secret(secret) => mac_verifiers(secret, &wanted),
        };
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
                    Verifier::Signature(key) => key.verifies(message, signature),
                    Verifier::Mac(key) => hmac::verify(key, message, signature).is_ok(),
                }
        })
    }
}

fn public_half(key: &Value) -> Result<Map<String, Value>, JwkError> {
    let mut members = key.as_object().ok_or(JwkError::NotAnObject)?.clone();
    members.retain(|name, _| !PRIVATE_MEMBERS.contains(&name.as_str()));
    Ok(members)
}

type Verifiers = Vec<(Algorithm, Verifier)>;
type Wanted<'a> = &'a dyn Fn(Algorithm) -> bool;

/// A verifier for each wanted algorithm that the key can do; `None` for a point that is not on its curve, or
/// whose curve the cryptography library lacks.
fn public_verifiers(key: &PublicKey, wanted: Wanted<'_>) -> Option<Verifiers> {
    let (name, algorithm, point): (_, &'static dyn VerificationAlgorithm, &[u8]) = match key {
        PublicKey::Ec { curve: Curve::P256, point } => (Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED, point),
        PublicKey::Ec { curve: Curve::P384, point } => (Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED, point),
        PublicKey::Ec { curve: Curve::P521, point } => (Algorithm::ES512, ECDSA_P521_SHA512_FIXED?, point),
        PublicKey::Ed25519 { point } => (Algorithm::EdDSA, &signature::ED25519, point),
        PublicKey::Rsa { modulus, exponent } => {
            return rsa_verifiers(modulus, exponent, wanted);
        }
    };
    let key = ParsedKey::of_point(algorithm, point)?;
    Some(if wanted(name) { vec![(name, Verifier::Signature(key))] } else { Vec::new() })
}

fn rsa_verifiers(modulus: &[u8], exponent: &[u8], wanted: Wanted<'_>) -> Option<Verifiers> {
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
        .filter(|(algorithm, _)| wanted(*algorithm))
        .map(|(algorithm, parameters)| {
            Some((algorithm, Verifier::Signature(ParsedKey::of_rsa(parameters, modulus, exponent)?)))
        })
        .collect()
}

/// A secret serves only algorithms whose hash is not longer than itself (RFC 7518, 3.2).
fn mac_verifiers(secret: &[u8], wanted: Wanted<'_>) -> Verifiers {
    let algorithms = [
        (Algorithm::HS256, hmac::HMAC_SHA256, 32),
        (Algorithm::HS384, hmac::HMAC_SHA384, 48),
        (Algorithm::HS512, hmac::HMAC_SHA512, 64),
    ];
    algorithms
        .into_iter()
        .filter(|(name, _, len_min)| secret.len() >= *len_min && wanted(*name))
        .map(|(name, algorithm, _)| (name, Verifier::Mac(Box::new(hmac::Key::new(algorithm, secret)))))
        .collect()
}
