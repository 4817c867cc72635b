//! Signing WIT-SVIDs.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::{WIT_TYPE, WitError, holder_key};
use crate::bundle::JwtAuthority;
use crate::jwk::{Algorithm, Jwk, JwkError};
use crate::jwt::{SignError, TokenKey};
use crate::public_key::PublicKey;
use crate::signing_key::SigningKey;
use crate::spiffe_id::SpiffeId;
use crate::{secs_of, time_from_secs};

/// A key that signs WIT-SVIDs with ES256, and cannot sign anything else.
pub struct WitAuthorityKey(TokenKey);

impl WitAuthorityKey {
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

    /// The key's ID, which WITs carry as `kid`.
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

    /// Signs a WIT-SVID.
    pub fn sign_svid(&self, profile: &WitSvidProfile, now: SystemTime) -> Result<WitSvid, SignError> {
        let issued = secs_of(now);
        let expires = issued.saturating_add(profile.ttl.as_secs());
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), json!(profile.id.as_str()));
        claims.insert("cnf".to_owned(), json!({ "jwk": profile.key.0.to_json() }));
        claims.insert("exp".to_owned(), json!(expires));
        claims.insert("iat".to_owned(), json!(issued));
        claims.insert("nbf".to_owned(), json!(issued.saturating_sub(profile.backdate.as_secs())));
        if let Some(token_id) = &profile.token_id {
            claims.insert("jti".to_owned(), json!(token_id));
        }
        let time = |secs: u64| time_from_secs(i64::try_from(secs).unwrap_or(i64::MAX));
        Ok(WitSvid {
            token: self.0.sign(&claims)?,
            id: profile.id.clone(),
            issued_at: time(issued),
            expires_at: time(expires),
        })
    }
}

/// No header members but those the standard names.
fn header(key_id: &str) -> Value {
    json!({ "alg": "ES256", "kid": key_id, "typ": WIT_TYPE })
}

impl fmt::Debug for WitAuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WitAuthorityKey").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

/// What a WIT-SVID shall say. There is no `iss`, which would make it look like an OIDC token, and no `aud`.
#[derive(Debug, Clone)]
pub struct WitSvidProfile {
    /// Whom it names.
    pub id: SpiffeId,
    /// The key that the workload holds.
    pub key: HolderKey,
    /// How long it lives.
    pub ttl: Duration,
    /// How long before the present it starts to be valid, for clocks that differ.
    pub backdate: Duration,
    /// The `jti` claim, if one is wanted.
    pub token_id: Option<String>,
}

/// A public key that a WIT may name, with its one algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderKey(Jwk);

impl HolderKey {
    /// The key; it is never a shared secret.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.0.public_key()
    }

    /// Takes a SubjectPublicKeyInfo. An empty algorithm means the usual one of the key's kind.
    pub fn from_spki_der(der: &[u8], algorithm: &str) -> Result<Self, WitError> {
        let key = Jwk::from_spki_der(None, der).map_err(WitError::Key)?;
        let algorithm = match algorithm {
            "" => key.default_algorithm(),
            name => Algorithm::parse(name).ok_or(WitError::Key(JwkError::Unsupported("alg")))?,
        };
        holder_key(key.with_algorithm(algorithm)).map(Self)
    }
}

/// A signed WIT-SVID. Without its key it proves nothing, yet it is not printed.
#[derive(Clone)]
pub struct WitSvid {
    /// The token.
    pub token: String,
    /// Whom it names.
    pub id: SpiffeId,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// When it expires.
    pub expires_at: SystemTime,
}

impl fmt::Debug for WitSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WitSvid").field("id", &self.id).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}
