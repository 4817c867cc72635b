//! Keys in the transit engine of HashiCorp Vault or OpenBao (HTTP API v1): made there, not exportable; signatures are asked for.
//!
//! The token comes from a file, or by AppRole from two; it is renewed when half of its life is over. Every key is used in the
//! version in which it was made, so that a rotation of keys over there changes nothing here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use identity::key::KeyKind;
use identity::pem;
use identity::public_key::PublicKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::desk::{Keeper, KeeperError};
use wire::Wire;

mod wire;

/// Where the transit engine is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultTransit {
    /// `https://HOST:PORT`; `http://` for loopback addresses only.
    pub address: String,
    /// Where the engine is mounted.
    #[serde(default = "default_mount")]
    pub mount: String,
    /// The roots of the server's certificate (PEM).
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Who we are there.
    pub auth: VaultAuth,
}

/// Who we are for Vault. Secrets are in files that only their owner reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum VaultAuth {
    /// A token.
    TokenFile(PathBuf),
    /// An AppRole.
    AppRole {
        /// File with the role's ID.
        role_id_file: PathBuf,
        /// File with the secret ID.
        secret_id_file: PathBuf,
    },
}

fn default_mount() -> String {
    "transit".into()
}

/// A session with Vault.
pub(super) struct Vault {
    settings: VaultTransit,
    wire: Wire,
    token: Option<Token>,
}

struct Token {
    text: Zeroizing<String>,
    /// When it should be renewed; none for one that does not end.
    renew_at: Option<Instant>,
}

impl Vault {
    pub(super) fn new(settings: VaultTransit) -> Self {
        let wire = Wire::new(settings.address.clone(), settings.ca_file.clone());
        Self { settings, wire, token: None }
    }

    /// One call below `/v1/`, with a token that is good for some time yet.
    fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, KeeperError> {
        self.keep_token()?;
        let token = self.token.as_ref().map(|token| token.text.as_str());
        let answered = self.wire.call(&method, path, token, body);
        if matches!(&answered, Err(KeeperError::Refused(why)) if why.starts_with("403")) {
            // Perhaps it was revoked: it is asked for anew, once.
            self.token = None;
            self.keep_token()?;
            let token = self.token.as_ref().map(|token| token.text.as_str());
            return self.wire.call(&method, path, token, body);
        }
        answered
    }

    fn keep_token(&mut self) -> Result<(), KeeperError> {
        match &self.token {
            Some(token) if token.renew_at.is_none_or(|at| Instant::now() < at) => return Ok(()),
            Some(token) => {
                let text = token.text.clone();
                let renewed = self.wire.call(&Method::POST, "auth/token/renew-self", Some(&text), Some(&json!({})));
                if let Ok(renewed) = renewed {
                    self.token = Some(Token { text, renew_at: renewal(&renewed["auth"]["lease_duration"]) });
                    return Ok(());
                }
            }
            None => (),
        }
        self.token = Some(self.log_in()?);
        Ok(())
    }

    fn log_in(&mut self) -> Result<Token, KeeperError> {
        match self.settings.auth.clone() {
            VaultAuth::TokenFile(path) => {
                let text = secret(&path)?;
                let found = self.wire.call(&Method::GET, "auth/token/lookup-self", Some(&text), None)?;
                Ok(Token { text, renew_at: renewal_of_found(&found["data"]) })
            }
            VaultAuth::AppRole { role_id_file, secret_id_file } => {
                let (role, secret) = (secret(&role_id_file)?, secret(&secret_id_file)?);
                let body = json!({ "role_id": role.as_str(), "secret_id": secret.as_str() });
                let answer = self.wire.call(&Method::POST, "auth/approle/login", None, Some(&body))?;
                let text = answer["auth"]["client_token"].as_str().ok_or_else(|| nonsense("the login"))?;
                let text = Zeroizing::new(text.to_owned());
                Ok(Token { text, renew_at: renewal(&answer["auth"]["lease_duration"]) })
            }
        }
    }

    fn public_key(&mut self, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError> {
        let path = format!("{}/keys/{name}", self.settings.mount);
        let answer = self.call(Method::GET, &path, None)?;
        let text = answer["data"]["keys"][VERSION]["public_key"].as_str().ok_or_else(|| nonsense("the key"))?;
        spki(kind, text).ok_or_else(|| nonsense("the public key"))
    }
}

impl Keeper for Vault {
    fn create(&mut self, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError> {
        let kind_there = match kind {
            KeyKind::P256 => "ecdsa-p256",
            KeyKind::P384 => "ecdsa-p384",
            KeyKind::Ed25519 => "ed25519",
            KeyKind::Rsa => return Err(KeeperError::Refused("RSA keys are not made".into())),
        };
        let path = format!("{}/keys/{name}", self.settings.mount);
        let body = json!({ "type": kind_there, "exportable": false, "allow_plaintext_backup": false });
        self.call(Method::POST, &path, Some(&body))?;
        self.public_key(name, kind)
    }

    fn sign(&mut self, name: &str, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, KeeperError> {
        let path = format!("{}/sign/{name}", self.settings.mount);
        let input = STANDARD.encode(message);
        let body = match kind {
            KeyKind::P256 | KeyKind::P384 => json!({
                "input": input,
                "prehashed": false,
                "hash_algorithm": if kind == KeyKind::P256 { "sha2-256" } else { "sha2-384" },
                "marshaling_algorithm": "asn1",
                "key_version": 1,
            }),
            KeyKind::Ed25519 => json!({ "input": input, "key_version": 1 }),
            KeyKind::Rsa => json!({
                "input": input,
                "hash_algorithm": "sha2-256",
                "signature_algorithm": "pkcs1v15",
                "key_version": 1,
            }),
        };
        let answer = self.call(Method::POST, &path, Some(&body))?;
        let signature = answer["data"]["signature"].as_str().and_then(|text| text.strip_prefix("vault:v1:"));
        let signature = signature.ok_or_else(|| nonsense("the signature"))?;
        STANDARD.decode(signature).map_err(|_| nonsense("the signature"))
    }

    fn check(&mut self) -> Result<(), KeeperError> {
        self.call(Method::GET, "auth/token/lookup-self", None).map(drop)
    }
}

/// Whether secrets may travel there.
pub(super) fn check_address(settings: &VaultTransit) -> Result<(), String> {
    let (_, _, tls) = wire::place(&settings.address).map_err(|error| error.to_string())?;
    if tls && settings.ca_file.is_none() {
        return Err("`https://` needs `ca_file`, the roots of the server's certificate".into());
    }
    Ok(())
}

/// ECDSA keys are PEM, Ed25519 keys the 32 bytes in base64.
fn spki(kind: KeyKind, text: &str) -> Option<Vec<u8>> {
    let spki = if kind == KeyKind::Ed25519 {
        PublicKey::ed25519(&STANDARD.decode(text).ok()?).ok()?.spki_der()
    } else {
        pem::decode_public_key(text.as_bytes()).ok()?
    };
    (KeyKind::of_spki(&spki) == Some(kind)).then_some(spki)
}

/// Half of a life of so many seconds from now; none for one without an end.
fn renewal(secs: &Value) -> Option<Instant> {
    let secs = secs.as_u64().filter(|secs| *secs > 0)?;
    Some(Instant::now() + Duration::from_secs(secs) / 2)
}

/// Half of the whole life of a token that was found, which may have been for long: each of the desk's threads finds it by itself, and
/// somebody must renew it in time.
fn renewal_of_found(token: &Value) -> Option<Instant> {
    let left = token["ttl"].as_u64().filter(|secs| *secs > 0)?;
    let whole = token["creation_ttl"].as_u64().unwrap_or(left);
    Some(Instant::now() + Duration::from_secs(left).saturating_sub(Duration::from_secs(whole) / 2))
}

fn secret(path: &std::path::Path) -> Result<Zeroizing<String>, KeeperError> {
    let source = super::SecretSource::File(path.to_owned());
    let bytes = super::kek::secret(&source).map_err(|error| KeeperError::Away(error.to_string()))?;
    Ok(Zeroizing::new(String::from_utf8_lossy(bytes.trim_ascii()).into_owned()))
}

fn nonsense(what: &str) -> KeeperError {
    KeeperError::Away(format!("Vault answers without {what}"))
}

/// The version in which a key was made.
const VERSION: &str = "1";

#[cfg(test)]
mod tests;
