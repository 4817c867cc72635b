//! The SPIFFE bundle format: a JWKS whose keys say by `use` what they are for.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use super::{BUNDLE_BYTES_MAX, BUNDLE_KEYS_MAX, BundleError, JwtAuthority, TrustBundle};
use crate::jwk::{self, Jwk};
use crate::public_key::PublicKey;
use crate::spiffe_id::TrustDomain;
use crate::{leaf, strict_json};

pub(super) fn encode(bundle: &TrustBundle) -> Value {
    let x509 = bundle.x509_authorities.iter().map(encode_x509);
    let jwt = bundle.jwt_authorities.iter().map(|authority| Value::Object(encode_key(authority, USE_JWT)));
    let wit = bundle.wit_authorities.iter().map(|authority| Value::Object(encode_key(authority, USE_WIT)));
    let keys: Vec<Value> = x509.chain(jwt).chain(wit).collect();
    let mut document = json!({ "keys": keys, "spiffe_sequence": bundle.sequence });
    if let Some(hint) = bundle.refresh_hint {
        document[REFRESH_HINT] = json!(hint.as_secs());
    }
    document
}

/// A key that signs tokens, with its ID and what it is for.
pub(super) fn encode_key(authority: &JwtAuthority, usage: &str) -> Map<String, Value> {
    let mut members = authority.jwk.to_json();
    members.insert("kid".to_owned(), json!(authority.key_id));
    members.insert("use".to_owned(), json!(usage));
    members
}

/// One root: no `kid`, exactly one certificate. The key's own members are for readers who want them; a root with a kind
/// of key that we do not know has `kty` alone.
fn encode_x509(certificate: &CertificateDer<'static>) -> Value {
    let key = leaf::decode(certificate).ok().and_then(|parsed| PublicKey::from_spki(parsed.public_key()).ok());
    let mut members = match &key {
        Some(key) => jwk::public_members(key),
        None => Map::from_iter([("kty".to_owned(), json!("EC"))]),
    };
    members.insert("use".to_owned(), json!(USE_X509));
    members.insert("x5c".to_owned(), json!([STANDARD.encode(certificate)]));
    Value::Object(members)
}

pub(super) fn decode(trust_domain: TrustDomain, document: &[u8]) -> Result<TrustBundle, BundleError> {
    if document.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::TooLong);
    }
    let members = strict_json::parse_object(document).ok_or(BundleError::Malformed("not one JSON object"))?;
    decode_members(trust_domain, &members)
}

pub(super) fn decode_members(
    trust_domain: TrustDomain,
    members: &Map<String, Value>,
) -> Result<TrustBundle, BundleError> {
    let keys =
        members.get("keys").and_then(Value::as_array).ok_or(BundleError::Malformed("there is no list of keys"))?;
    let mut bundle = TrustBundle::new(trust_domain);
    bundle.sequence = number(members, "spiffe_sequence")?.unwrap_or(0);
    bundle.refresh_hint = number(members, REFRESH_HINT)?.map(Duration::from_secs);
    for key in keys {
        decode_key(&mut bundle, key)?;
    }
    check_key_ids(&bundle)?;
    Ok(bundle)
}

fn number(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, BundleError> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(BundleError::Malformed("spiffe_sequence and spiffe_refresh_hint are whole numbers")),
        },
    }
}

/// Reads one key. A key whose `kty` or `use` is missing or unknown is passed over, as the standard demands.
fn decode_key(bundle: &mut TrustBundle, key: &Value) -> Result<(), BundleError> {
    let members = key.as_object().ok_or(BundleError::Malformed("a key is not an object"))?;
    let known_type = matches!(members.get("kty").and_then(Value::as_str), Some("EC" | "RSA" | "OKP"));
    match members.get("use").and_then(Value::as_str) {
        Some(USE_X509) if known_type => decode_x509(bundle, members),
        Some(USE_JWT) if known_type => decode_token_key(&mut bundle.jwt_authorities, key),
        Some(USE_WIT) if known_type => decode_token_key(&mut bundle.wit_authorities, key),
        Some(_) | None => Ok(()),
    }
}

fn decode_x509(bundle: &mut TrustBundle, members: &Map<String, Value>) -> Result<(), BundleError> {
    let first = match members.get("x5c") {
        Some(Value::Array(values)) => values.first(),
        Some(_) => return Err(BundleError::Malformed("x5c is not a list")),
        None => None,
    };
    let Some(first) = first else { return Ok(()) }; // Without a certificate the key says nothing.
    let text = first.as_str().ok_or(BundleError::Malformed("x5c holds no text"))?;
    let der = STANDARD.decode(text).map_err(|_| BundleError::Malformed("x5c is not base64"))?;
    bundle.add_x509_authority(CertificateDer::from(der))
}

fn decode_token_key(authorities: &mut Vec<JwtAuthority>, key: &Value) -> Result<(), BundleError> {
    let jwk = Jwk::from_json(key).map_err(BundleError::JwtKey)?;
    let key_id = match jwk.key_id() {
        Some(key_id) if !key_id.is_empty() => key_id.to_owned(),
        Some(_) | None => return Err(BundleError::Malformed("a JWT or WIT key has no kid")),
    };
    if authorities.len() == BUNDLE_KEYS_MAX {
        return Err(BundleError::TooLong);
    }
    let jwk = Jwk { usage: None, ..jwk };
    authorities.push(JwtAuthority { key_id, jwk, expires_at: None });
    Ok(())
}

/// Key IDs are unique in the whole bundle, JWT and WIT keys together.
fn check_key_ids(bundle: &TrustBundle) -> Result<(), BundleError> {
    let mut seen = BTreeSet::new();
    match bundle.jwt_authorities.iter().chain(&bundle.wit_authorities).find(|authority| !seen.insert(&authority.key_id))
    {
        Some(authority) => Err(BundleError::KeyIdTwice(authority.key_id.clone())),
        None => Ok(()),
    }
}

const USE_X509: &str = "x509-svid";
pub(super) const REFRESH_HINT: &str = "spiffe_refresh_hint";
pub(super) const USE_JWT: &str = "jwt-svid";
pub(super) const USE_WIT: &str = "wit-svid";
