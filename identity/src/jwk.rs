//! JSON Web Keys (RFC 7517, RFC 7518, RFC 8037): one key, and a set of keys ready to verify.
//!
//! A key decides which algorithms it can verify; a token's header only chooses among them. Sets are read leniently as the
//! RFC asks (keys we cannot use are passed over and counted), keys strictly (exact coordinate lengths, no padding, no
//! private members, no RSA key under 2048 bits).

mod set;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::digest;
use crate::public_key::{Curve, PublicKey, PublicKeyError};

pub use set::JwkSet;

/// The signature algorithms of JWTs that we verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of RFC 7518 and RFC 8037")]
pub enum Algorithm {
    ES256,
    ES384,
    ES512,
    EdDSA,
    HS256,
    HS384,
    HS512,
    PS256,
    PS384,
    PS512,
    RS256,
    RS384,
    RS512,
}

impl Algorithm {
    /// Parses the exact name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
        }
    }

    /// Whether JWT-SVIDs and WIT-SVIDs may be signed with it: the RS, ES and PS families.
    pub fn is_for_svids(self) -> bool {
        !matches!(self, Self::EdDSA | Self::HS256 | Self::HS384 | Self::HS512)
    }

    const ALL: [Self; 13] = [
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
    ];
}

/// One key for verifying JWTs. Shared secrets never show in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Jwk {
    pub(crate) key_id: Option<String>,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) usage: Option<String>,
    pub(crate) material: Material,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Material {
    Public(PublicKey),
    Secret(Zeroizing<Vec<u8>>),
}

impl Jwk {
    /// A key from its parts.
    pub fn from_public_key(key_id: Option<&str>, key: PublicKey) -> Self {
        Self { key_id: key_id.map(str::to_owned), algorithm: None, usage: None, material: Material::Public(key) }
    }

    /// A key from SubjectPublicKeyInfo.
    pub fn from_spki_der(key_id: Option<&str>, der: &[u8]) -> Result<Self, JwkError> {
        PublicKey::from_spki_der(der).map(|key| Self::from_public_key(key_id, key)).map_err(JwkError::Key)
    }

    /// Reads a key from its JSON object.
    pub fn from_json(json: &Value) -> Result<Self, JwkError> {
        let members = json.as_object().ok_or(JwkError::NotAnObject)?;
        if PRIVATE_MEMBERS.iter().any(|name| members.contains_key(*name)) {
            return Err(JwkError::Private);
        }
        let text = |name: &'static str| optional_text(members, name);
        let algorithm = match text("alg")? {
            Some(name) => Some(Algorithm::parse(name).ok_or(JwkError::Unsupported("alg"))?),
            None => None,
        };
        check_operations(members)?;
        Ok(Self {
            key_id: text("kid")?.map(str::to_owned),
            algorithm,
            usage: text("use")?.map(str::to_owned),
            material: material_from(members)?,
        })
    }

    /// Writes the key as a JSON object. Shared secrets are left out.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut members = match &self.material {
            Material::Public(key) => public_members(key),
            Material::Secret(_) => Map::from_iter([("kty".to_owned(), json!("oct"))]),
        };
        let optional = [
            ("kid", self.key_id.as_deref()),
            ("alg", self.algorithm.map(Algorithm::as_str)),
            ("use", self.usage.as_deref()),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                members.insert(name.to_owned(), json!(value));
            }
        }
        members
    }

    /// The key's ID.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// What the key is for (`sig`, `jwt-svid`, …).
    pub fn usage(&self) -> Option<&str> {
        self.usage.as_deref()
    }

    /// The same key under another ID.
    pub fn with_key_id(mut self, key_id: &str) -> Self {
        self.key_id = Some(key_id.to_owned());
        self
    }

    /// The same key with another `use`.
    pub fn with_usage(mut self, usage: &str) -> Self {
        self.usage = Some(usage.to_owned());
        self
    }

    /// The one algorithm that the key is for, if it says so.
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.algorithm
    }

    /// The same key for one algorithm.
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// The same key without an ID and without a `use`.
    pub(crate) fn without_labels(mut self) -> Self {
        (self.key_id, self.usage) = (None, None);
        self
    }

    /// The public key; a shared secret has none.
    pub fn public_key(&self) -> Option<&PublicKey> {
        match &self.material {
            Material::Public(key) => Some(key),
            Material::Secret(_) => None,
        }
    }

    /// The key as SubjectPublicKeyInfo; a shared secret has none.
    pub fn spki_der(&self) -> Option<Vec<u8>> {
        self.public_key().map(PublicKey::spki_der)
    }

    /// The algorithm that our own tokens signed with this key carry.
    pub fn default_algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(match &self.material {
            Material::Public(PublicKey::Ec { curve: Curve::P256, .. }) => Algorithm::ES256,
            Material::Public(PublicKey::Ec { curve: Curve::P384, .. }) => Algorithm::ES384,
            Material::Public(PublicKey::Ec { curve: Curve::P521, .. }) => Algorithm::ES512,
            Material::Public(PublicKey::Rsa { .. }) => Algorithm::RS256,
            Material::Public(PublicKey::Ed25519 { .. }) => Algorithm::EdDSA,
            Material::Secret(_) => Algorithm::HS256,
        })
    }
}

impl fmt::Debug for Jwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.public_key().map_or_else(|| "shared secret".to_owned(), PublicKey::kind);
        f.debug_struct("Jwk").field("key_id", &self.key_id).field("kind", &kind).finish_non_exhaustive()
    }
}

/// The thumbprint of a public key (RFC 7638), our default key ID.
pub fn thumbprint(key: &PublicKey) -> String {
    // The members are listed, and so written, in lexical order, as the RFC asks.
    let canonical = Value::Object(public_members(key)).to_string();
    URL_SAFE_NO_PAD.encode(digest::sha256(canonical.as_bytes()))
}

/// The members that describe a public key, in lexical order.
pub(crate) fn public_members(key: &PublicKey) -> Map<String, Value> {
    let base64 = |bytes: &[u8]| json!(URL_SAFE_NO_PAD.encode(bytes));
    let members = match key {
        PublicKey::Ec { curve, point } => {
            let (x, y) = point[1..].split_at(curve.coordinate_len());
            vec![("crv", json!(curve_name(*curve))), ("kty", json!("EC")), ("x", base64(x)), ("y", base64(y))]
        }
        PublicKey::Rsa { modulus, exponent } => {
            vec![("e", base64(exponent)), ("kty", json!("RSA")), ("n", base64(modulus))]
        }
        PublicKey::Ed25519 { point } => {
            vec![("crv", json!("Ed25519")), ("kty", json!("OKP")), ("x", base64(point))]
        }
    };
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn material_from(members: &Map<String, Value>) -> Result<Material, JwkError> {
    let bytes = |name: &'static str| required_bytes(members, name);
    let key = match optional_text(members, "kty")?.ok_or(JwkError::Member("kty"))? {
        "EC" => {
            let curve = curve_from(members)?;
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != curve.coordinate_len() || y.len() != curve.coordinate_len() {
                return Err(JwkError::Member("x"));
            }
            PublicKey::ec(curve, &[&[4], &x[..], &y[..]].concat())
        }
        "RSA" => {
            let (modulus, exponent) = (bytes("n")?, bytes("e")?);
            PublicKey::rsa(&modulus, &exponent)
        }
        "OKP" if optional_text(members, "crv")? == Some("Ed25519") => PublicKey::ed25519(&bytes("x")?),
        "oct" => {
            let secret = Zeroizing::new(bytes("k")?);
            return if secret.len() <= SECRET_BYTES_MAX {
                Ok(Material::Secret(secret))
            } else {
                Err(JwkError::SecretTooLong)
            };
        }
        _ => return Err(JwkError::Unsupported("kty")),
    };
    key.map(Material::Public).map_err(JwkError::Key)
}

fn curve_from(members: &Map<String, Value>) -> Result<Curve, JwkError> {
    let name = optional_text(members, "crv")?.ok_or(JwkError::Member("crv"))?;
    [Curve::P256, Curve::P384, Curve::P521]
        .into_iter()
        .find(|curve| curve_name(*curve) == name)
        .ok_or(JwkError::Unsupported("crv"))
}

fn curve_name(curve: Curve) -> &'static str {
    match curve {
        Curve::P256 => "P-256",
        Curve::P384 => "P-384",
        Curve::P521 => "P-521",
    }
}

/// A key that says what it may do must say that it may verify, each thing once, and nothing that its `use` contradicts
/// (RFC 7517, 4.3).
fn check_operations(members: &Map<String, Value>) -> Result<(), JwkError> {
    const REFUSED: JwkError = JwkError::Unsupported("key_ops");
    let operations = match members.get("key_ops") {
        None => return Ok(()),
        Some(Value::Array(operations)) => operations,
        Some(_) => return Err(REFUSED),
    };
    let names: Vec<&str> = operations.iter().map(|name| name.as_str().ok_or(REFUSED)).collect::<Result<_, _>>()?;
    let twice = names.iter().enumerate().any(|(at, name)| names[..at].contains(name));
    let signs_only = names.iter().all(|name| matches!(*name, "sign" | "verify"));
    if twice || !names.contains(&"verify") || (members.contains_key("use") && !signs_only) {
        return Err(REFUSED);
    }
    Ok(())
}

fn optional_text<'a>(members: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, JwkError> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwkError::Member(name)),
    }
}

fn required_bytes(members: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, JwkError> {
    let text = optional_text(members, name)?.ok_or(JwkError::Member(name))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JwkError::Member(name))
}

/// Why a JSON text is no key, or no set of keys, that we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwkError {
    /// A key is a JSON object.
    #[error("the key is not a JSON object")]
    NotAnObject,
    /// The set is not JSON of the right shape.
    #[error("the key set is not a JSON object with a list of keys")]
    NotASet,
    /// The set is too long.
    #[error("the key set is longer than {JWKS_BYTES_MAX} bytes or holds more than {JWKS_KEYS_MAX} keys")]
    TooLong,
    /// Two keys of the set have the same ID, so that a token does not say which it means.
    #[error("two keys of the set have the same ID")]
    KeyIdTwice,
    /// The set holds both shared secrets and public keys, so that one could pass for the other.
    #[error("the set mixes shared secrets with public keys")]
    Mixed,
    /// A shared secret is too long.
    #[error("a shared secret has at most {SECRET_BYTES_MAX} bytes")]
    SecretTooLong,
    /// A member is missing or malformed.
    #[error("the key's member {0:?} is missing or malformed")]
    Member(&'static str),
    /// A member has a value that we do not support.
    #[error("the key's member {0:?} has an unsupported value")]
    Unsupported(&'static str),
    /// The key holds private members, so it is no longer secret.
    #[error("the key holds private members; publish only the public half")]
    Private,
    /// The key itself is not accepted.
    #[error("the key is not accepted")]
    Key(#[source] PublicKeyError),
}

impl JwkError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAnObject | Self::NotASet | Self::TooLong => "JWKS_MALFORMED",
            Self::KeyIdTwice | Self::Mixed => "JWKS_AMBIGUOUS",
            Self::Member(_) | Self::Unsupported(_) | Self::Private | Self::Key(_) | Self::SecretTooLong => {
                "JWK_REFUSED"
            }
        }
    }
}

/// The longest key set read.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;

/// The most keys in one set.
pub const JWKS_KEYS_MAX: usize = 256;

/// The longest shared secret read.
pub const SECRET_BYTES_MAX: usize = 1024;

/// What only the holder of a key may know (RFC 7518, 6.2.2 and 6.3.2; RFC 8037).
const PRIVATE_MEMBERS: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

#[cfg(test)]
mod tests;
