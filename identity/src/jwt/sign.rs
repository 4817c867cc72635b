//! Signing: a JWT authority's key and the JWT-SVIDs it signs.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::bundle::JwtAuthority;
use crate::crypto::P256Signer;
use crate::der::{self, NotDer, Reader};
use crate::jwk::{self, Jwk};
use crate::key::KeyError;
use crate::public_key::{Curve, PublicKey};
use crate::signing_key::SigningKey;
use crate::spiffe_id::SpiffeId;
use crate::{PrivateKey, secs_of, time_from_secs};

/// An ES256 key with the header of the one kind of token that it signs.
pub(crate) struct TokenKey {
    key_id: String,
    signer: Signer,
    public_key: PublicKey,
    encoded_header: String,
}

enum Signer {
    Here { pair: P256Signer, pkcs8: Zeroizing<Vec<u8>> },
    Elsewhere(SigningKey),
}

impl TokenKey {
    /// Makes a new key; `header` makes the header from the key's ID, which is the thumbprint of the public half.
    pub(crate) fn generate(header: fn(&str) -> Value) -> Result<Self, SignError> {
        let key = PrivateKey::generate_p256().map_err(SignError::Key)?;
        Self::load(key.pkcs8_der(), None, header)
    }

    pub(crate) fn load(der: &[u8], key_id: Option<&str>, header: fn(&str) -> Value) -> Result<Self, SignError> {
        let pair = P256Signer::from_pkcs8_der(der).ok_or(SignError::Key(KeyError::Malformed))?;
        let public_key =
            PublicKey::ec(Curve::P256, pair.public_point()).map_err(|_| SignError::Key(KeyError::Malformed))?;
        let key_id = key_id.map_or_else(|| jwk::thumbprint(&public_key), str::to_owned);
        let signer = Signer::Here { pair, pkcs8: Zeroizing::new(der.to_vec()) };
        Ok(Self::assemble(signer, public_key, key_id, header))
    }

    /// Takes a P-256 key, wherever it is kept.
    pub(crate) fn of(key: SigningKey, key_id: Option<&str>, header: fn(&str) -> Value) -> Result<Self, SignError> {
        if let Some(here) = key.here() {
            return Self::load(here.pkcs8_der(), key_id, header);
        }
        let public_key = PublicKey::from_spki_der(&key.public_key_spki()).ok();
        let is_p256 = |key: &PublicKey| matches!(key, PublicKey::Ec { curve: Curve::P256, .. });
        let public_key = public_key.filter(is_p256).ok_or(SignError::Key(KeyError::Malformed))?;
        let key_id = key_id.map_or_else(|| jwk::thumbprint(&public_key), str::to_owned);
        Ok(Self::assemble(Signer::Elsewhere(key), public_key, key_id, header))
    }

    fn assemble(signer: Signer, public_key: PublicKey, key_id: String, header: fn(&str) -> Value) -> Self {
        Self { encoded_header: URL_SAFE_NO_PAD.encode(header(&key_id).to_string()), key_id, signer, public_key }
    }

    /// A key from its private number and its public point, which must belong together.
    pub(crate) fn from_numbers(scalar: &[u8], point: &[u8], header: fn(&str) -> Value) -> Result<Self, SignError> {
        let len = Curve::P256.coordinate_len();
        if scalar.len() != len || point.len() != 1 + 2 * len {
            return Err(SignError::Key(KeyError::Malformed));
        }
        let parts = [P256_PKCS8_TO_SCALAR, scalar, P256_PKCS8_TO_POINT, point];
        let mut pkcs8 = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| pkcs8.extend_from_slice(part));
        let key = Self::load(&pkcs8, None, header)?;
        let same = matches!(&key.public_key, PublicKey::Ec { point: found, .. } if found.as_slice() == point);
        if same { Ok(key) } else { Err(SignError::Key(KeyError::Malformed)) }
    }

    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key as PKCS#8; none for a key that is kept elsewhere.
    pub(crate) fn pkcs8_der(&self) -> Option<&[u8]> {
        match &self.signer {
            Signer::Here { pkcs8, .. } => Some(pkcs8),
            Signer::Elsewhere(_) => None,
        }
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The public half, as a trust bundle carries it.
    pub(crate) fn public(&self, expires_at: Option<SystemTime>) -> JwtAuthority {
        let jwk = Jwk::from_public_key(Some(&self.key_id), self.public_key.clone());
        JwtAuthority { key_id: self.key_id.clone(), jwk, expires_at }
    }

    /// The private number, big-endian, as long as a coordinate.
    pub(crate) fn private_scalar(&self) -> Result<Zeroizing<Vec<u8>>, SignError> {
        let pkcs8 = self.pkcs8_der().ok_or(SignError::Key(KeyError::Malformed))?;
        let scalar = p256_scalar(pkcs8).map_err(|_| SignError::Key(KeyError::Malformed))?;
        Ok(Zeroizing::new(scalar.to_vec()))
    }

    pub(crate) fn sign(&self, claims: &Map<String, Value>) -> Result<String, SignError> {
        let payload = serde_json::to_vec(claims).map_err(SignError::Claims)?;
        let mut token = format!("{}.{}", self.encoded_header, URL_SAFE_NO_PAD.encode(payload));
        let signature = match &self.signer {
            Signer::Here { pair, .. } => pair.sign(token.as_bytes()).ok_or(SignError::Signature)?,
            Signer::Elsewhere(key) => {
                let signature = key.sign(token.as_bytes()).map_err(|_| SignError::KeyUnavailable)?;
                fixed_form(&signature, Curve::P256.coordinate_len()).map_err(|_| SignError::Signature)?
            }
        };
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// An ECDSA signature in the form of JOSE (RFC 7518, 3.4), out of the form of X.509 (RFC 3279, 2.2.3).
fn fixed_form(signature: &[u8], len: usize) -> Result<Vec<u8>, NotDer> {
    let mut numbers = Reader::whole(signature, der::SEQUENCE)?;
    let mut out = Vec::with_capacity(2 * len);
    for _ in 0..2 {
        let number = numbers.take(der::INTEGER)?.content;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        let padding = len.checked_sub(number.len()).ok_or(NotDer)?;
        out.resize(out.len() + padding, 0);
        out.extend_from_slice(number);
    }
    numbers.finish()?;
    Ok(out)
}

/// The private number within PKCS#8 (RFC 5958) of a P-256 key (RFC 5915).
fn p256_scalar(pkcs8: &[u8]) -> Result<&[u8], NotDer> {
    let mut info = Reader::whole(pkcs8, der::SEQUENCE)?;
    info.take(der::INTEGER)?;
    info.take(der::SEQUENCE)?;
    let mut key = Reader::whole(info.take(der::OCTET_STRING)?.content, der::SEQUENCE)?;
    key.take(der::INTEGER)?;
    let scalar = key.take(der::OCTET_STRING)?.content;
    if scalar.len() == Curve::P256.coordinate_len() { Ok(scalar) } else { Err(NotDer) }
}

/// PKCS#8 of a P-256 key up to its private number, and from there to its public point.
const P256_PKCS8_TO_SCALAR: &[u8] = &[
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
];
const P256_PKCS8_TO_POINT: &[u8] = &[0xa1, 0x44, 0x03, 0x42, 0x00];

/// A key that signs JWTs with ES256.
pub struct JwtAuthorityKey(TokenKey);

impl JwtAuthorityKey {
    /// Makes a new key. Its ID is the thumbprint of its public half.
    pub fn generate() -> Result<Self, SignError> {
        TokenKey::generate(header).map(Self)
    }

    /// Takes a stored key under its stored ID.
    pub fn from_pkcs8_der(key_id: &str, der: &[u8]) -> Result<Self, SignError> {
        TokenKey::load(der, Some(key_id), header).map(Self)
    }

    /// Takes a P-256 key, wherever it is kept, under its stored ID, or under the thumbprint of its public half.
    pub fn of(key: impl Into<SigningKey>, key_id: Option<&str>) -> Result<Self, SignError> {
        TokenKey::of(key.into(), key_id, header).map(Self)
    }

    /// The key's ID, which tokens carry as `kid`.
    pub fn key_id(&self) -> &str {
        self.0.key_id()
    }

    /// The key as PKCS#8; none for a key that is kept elsewhere. The caller keeps it secret.
    pub fn pkcs8_der(&self) -> Option<&[u8]> {
        self.0.pkcs8_der()
    }

    /// The public half, as a trust bundle carries it.
    pub fn public(&self, expires_at: Option<SystemTime>) -> JwtAuthority {
        self.0.public(expires_at)
    }

    /// Signs any claims.
    pub fn sign(&self, claims: &Map<String, Value>) -> Result<String, SignError> {
        self.0.sign(claims)
    }

    /// Signs a JWT-SVID.
    pub fn sign_svid(&self, profile: &JwtSvidProfile, now: SystemTime) -> Result<JwtSvid, SignError> {
        if profile.audiences.is_empty() || profile.audiences.iter().any(String::is_empty) {
            return Err(SignError::NoAudience);
        }
        let issued = secs_of(now);
        let expires = issued.saturating_add(profile.ttl.as_secs());
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), json!(profile.id.as_str()));
        claims.insert("aud".to_owned(), json!(profile.audiences));
        claims.insert("exp".to_owned(), json!(expires));
        claims.insert("iat".to_owned(), json!(issued));
        if let Some(issuer) = &profile.issuer {
            claims.insert("iss".to_owned(), json!(issuer));
        }
        if let Some(token_id) = &profile.token_id {
            claims.insert("jti".to_owned(), json!(token_id));
        }
        let time = |secs: u64| time_from_secs(i64::try_from(secs).unwrap_or(i64::MAX));
        Ok(JwtSvid {
            token: self.sign(&claims)?,
            id: profile.id.clone(),
            issued_at: time(issued),
            expires_at: time(expires),
        })
    }
}

/// No header members but those the JWT-SVID standard names.
fn header(key_id: &str) -> Value {
    json!({ "alg": "ES256", "kid": key_id, "typ": "JWT" })
}

impl fmt::Debug for JwtAuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthorityKey").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

/// What a JWT-SVID shall say.
#[derive(Debug, Clone)]
pub struct JwtSvidProfile {
    /// Whom it names.
    pub id: SpiffeId,
    /// Whom it is for; at least one.
    pub audiences: Vec<String>,
    /// How long it lives.
    pub ttl: Duration,
    /// The `iss` claim, if one is wanted.
    pub issuer: Option<String>,
    /// The `jti` claim, if one is wanted.
    pub token_id: Option<String>,
}

/// A signed JWT-SVID. The token is a bearer secret and not printed.
#[derive(Clone)]
pub struct JwtSvid {
    /// The token.
    pub token: String,
    /// Whom it names.
    pub id: SpiffeId,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// When it expires.
    pub expires_at: SystemTime,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Why a token could not be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The key could not be made or read.
    #[error("the JWT key cannot be used")]
    Key(#[source] KeyError),
    /// The claims cannot be written as JSON.
    #[error("the claims cannot be written")]
    Claims(#[source] serde_json::Error),
    /// The signature could not be made.
    #[error("the token could not be signed")]
    Signature,
    /// The key is kept elsewhere, and no good signature came from there.
    #[error("the keeper of the key gives no signature")]
    KeyUnavailable,
    /// A JWT-SVID needs at least one audience, and none may be empty.
    #[error("a JWT-SVID needs at least one audience that is not empty")]
    NoAudience,
}

impl SignError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key(error) => error.reason(),
            Self::Claims(_) | Self::Signature => "JWT_SIGN_FAILED",
            Self::KeyUnavailable => "AUTHORITY_KEY_UNAVAILABLE",
            Self::NoAudience => "JWT_AUDIENCE_MISSING",
        }
    }
}
