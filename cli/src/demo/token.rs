//! The demo's two token issuers: one for end users, one as Kubernetes has for service accounts.
//!
//! Their keys are kept (0600) below the mesh's data folder, so tokens stay good over restarts. They exist for the demo;
//! a real mesh names its real issuers instead.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use identity::jwk::{self, Jwk};
use identity::jwt::{JwtAuthorityKey, SignError};
use identity::{PrivateKey, digest};
use serde_json::{Map, Value, json};

use crate::up::layout::write_atomically;

/// Issuer of the demo's end users.
pub(crate) const USER_ISSUER: &str = "https://issuer.example.com";
/// Issuer of the demo's service account tokens, named as in a Kubernetes cluster.
pub(crate) const SERVICE_ACCOUNT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Both issuers with their keys.
#[derive(Debug)]
pub(crate) struct Issuers {
    user: JwtAuthorityKey,
    service_account: JwtAuthorityKey,
}

/// A service account and whom its token is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceAccount<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) audience: &'a str,
}

impl Issuers {
    /// Reads the keys that lie in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, TokenError> {
        Ok(Self { user: read(&dir.join(USER_KEY))?, service_account: read(&dir.join(SERVICE_ACCOUNT_KEY))? })
    }

    /// Reads the keys that lie in `dir`, and makes the missing ones.
    pub(crate) fn open_or_create(dir: &Path) -> Result<Self, TokenError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| TokenError::File { file: dir.to_owned(), source })?;
        for name in [USER_KEY, SERVICE_ACCOUNT_KEY] {
            let file = dir.join(name);
            if !file.exists() {
                let pem = PrivateKey::generate_p256()
                    .map_err(|source| TokenError::Key { file: file.clone(), source })?
                    .pkcs8_pem();
                write_atomically(&file, pem.as_bytes(), 0o600).map_err(|source| TokenError::File { file, source })?;
            }
        }
        Self::open(dir)
    }

    /// The end-user issuer's public keys, as a JWKS document.
    pub(crate) fn user_jwks(&self) -> String {
        jwks(&self.user)
    }

    /// The service account issuer's public keys, as a JWKS document.
    pub(crate) fn service_account_jwks(&self) -> String {
        jwks(&self.service_account)
    }

    /// A token of an end user who is in `groups`.
    pub(crate) fn mint_user(&self, groups: &[String], ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
        let mut claims = claims(USER_ISSUER, USER, USER_AUDIENCE, ttl, now)?;
        claims.insert("groups".into(), json!(groups));
        self.user.sign(&claims).map_err(TokenError::Sign)
    }

    /// A service account's token, with the claims of a projected one.
    pub(crate) fn mint_service_account(
        &self,
        account: ServiceAccount<'_>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let ServiceAccount { namespace, name, audience } = account;
        for part in [namespace, name] {
            if !is_kubernetes_name(part) {
                return Err(TokenError::Name { name: part.chars().take(NAME_BYTES_MAX).collect() });
            }
        }
        let subject = format!("system:serviceaccount:{namespace}:{name}");
        let mut claims = claims(SERVICE_ACCOUNT_ISSUER, &subject, audience, ttl, now)?;
        let pod = format!("{name}-demo-0");
        let bound = json!({
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": uid("serviceaccount", namespace, name) },
            "pod": { "name": pod, "uid": uid("pod", namespace, &pod) },
        });
        claims.insert("kubernetes.io".into(), bound);
        self.service_account.sign(&claims).map_err(TokenError::Sign)
    }
}

fn claims(
    issuer: &str,
    subject: &str,
    audience: &str,
    ttl: Duration,
    now: SystemTime,
) -> Result<Map<String, Value>, TokenError> {
    if ttl > TTL_MAX {
        return Err(TokenError::TooLong);
    }
    let issued = runtime::clock::unix_secs(now);
    // A token of less than a second would be born expired.
    let expires = issued + ttl.as_secs().max(1);
    let members = [
        ("iss", json!(issuer)),
        ("sub", json!(subject)),
        ("aud", json!([audience])),
        ("iat", json!(issued)),
        ("nbf", json!(issued)),
        ("exp", json!(expires)),
        ("jti", json!(digest::hex(&digest::random::<16>()))),
    ];
    Ok(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn read(file: &Path) -> Result<JwtAuthorityKey, TokenError> {
    let pem = std::fs::read(file).map_err(|source| TokenError::File { file: file.to_owned(), source })?;
    let key = PrivateKey::from_pkcs8_pem(&pem).map_err(|source| TokenError::Key { file: file.to_owned(), source })?;
    let public = Jwk::from_spki_der(None, &key.public_key_spki()).ok();
    let key_id = public.as_ref().and_then(Jwk::public_key).map(jwk::thumbprint).unwrap_or_default();
    JwtAuthorityKey::from_pkcs8_der(&key_id, key.pkcs8_der()).map_err(TokenError::Sign)
}

fn jwks(key: &JwtAuthorityKey) -> String {
    let public = key.public(None).jwk.with_usage("sig").to_json();
    format!("{:#}\n", json!({ "keys": [public] }))
}

/// A UID that stays the same for the same object, in the form of a UUID.
fn uid(kind: &str, namespace: &str, name: &str) -> String {
    let hex = digest::hex(&digest::sha256(format!("{kind}/{namespace}/{name}").as_bytes())[..16]);
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

fn is_kubernetes_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(inner)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TokenError {
    #[error("{}: the demo's issuer key cannot be read or written", file.display())]
    File {
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: not a usable key", file.display())]
    Key {
        file: PathBuf,
        #[source]
        source: identity::key::KeyError,
    },
    #[error("the token cannot be signed")]
    Sign(#[source] SignError),
    #[error("`{name}` is no name of a namespace or service account (lower case letters, digits, - and .)")]
    Name { name: String },
    #[error("a demo token lives at most {} days", TTL_MAX.as_secs() / 86_400)]
    TooLong,
}

const USER_KEY: &str = "user-issuer.key";
const SERVICE_ACCOUNT_KEY: &str = "service-account-issuer.key";
/// Who the demo's end user is.
const USER: &str = "demo-user";
/// Whom the demo's end-user tokens are for.
const USER_AUDIENCE: &str = "kasbah-demo";
/// The longest life of a token.
const TTL_MAX: Duration = Duration::from_secs(365 * 86_400);
const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("kasbah-tokens-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn parts(token: &str) -> (Value, Value) {
        let mut parts = token.split('.').map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()));
        (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap())
    }

    #[test]
    fn keys_are_made_once_for_their_owner_alone_and_kept() {
        let folder = Folder::new("kept");
        assert!(matches!(Issuers::open(&folder.0), Err(TokenError::File { .. })));
        let first = Issuers::open_or_create(&folder.0).unwrap();
        let again = Issuers::open(&folder.0).unwrap();
        assert_eq!(first.user_jwks(), again.user_jwks());
        assert_ne!(first.user_jwks(), first.service_account_jwks());
        for name in [USER_KEY, SERVICE_ACCOUNT_KEY] {
            assert_eq!(std::fs::metadata(folder.0.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_user_token_carries_the_groups_and_the_key_id_of_the_published_key() {
        let folder = Folder::new("user");
        let issuers = Issuers::open_or_create(&folder.0).unwrap();
        let token = issuers.mint_user(&["testers".into()], HOUR, now()).unwrap();
        let (header, claims) = parts(&token);
        let jwks: Value = serde_json::from_str(&issuers.user_jwks()).unwrap();
        assert_eq!((&header["alg"], &header["kid"]), (&json!("ES256"), &jwks["keys"][0]["kid"]));
        assert!(jwks["keys"][0].get("d").is_none(), "the private half is not published");
        assert_eq!((&claims["iss"], &claims["groups"]), (&json!(USER_ISSUER), &json!(["testers"])));
        assert_eq!(claims["exp"].as_u64(), Some(NOW.as_secs() + 3_600));
    }

    #[test]
    fn a_service_account_token_has_the_claims_of_a_projected_one() {
        let folder = Folder::new("account");
        let issuers = Issuers::open_or_create(&folder.0).unwrap();
        let account = ServiceAccount { namespace: "shop", name: "cart", audience: "istio-ca" };
        let (_, claims) = parts(&issuers.mint_service_account(account, HOUR, now()).unwrap());
        assert_eq!((&claims["sub"], &claims["aud"]), (&json!("system:serviceaccount:shop:cart"), &json!(["istio-ca"])));
        assert_eq!(claims["iss"], json!(SERVICE_ACCOUNT_ISSUER));
        let bound = &claims["kubernetes.io"];
        assert_eq!((&bound["namespace"], &bound["serviceaccount"]["name"]), (&json!("shop"), &json!("cart")));
        assert_eq!(bound["serviceaccount"]["uid"].as_str().map(str::len), Some(36));
        assert!(bound["pod"]["name"].is_string() && bound["pod"]["uid"].is_string());
    }

    #[test]
    fn a_token_verifies_against_its_own_issuer_only() {
        let folder = Folder::new("verify");
        let issuers = Issuers::open_or_create(&folder.0).unwrap();
        let token = issuers.mint_user(&[], HOUR, now()).unwrap();
        let verifies = |jwks: String| {
            let keys = jwk::JwkSet::parse(jwks.as_bytes()).unwrap();
            let expect = identity::jwt::JwtExpectations::at(now()).with_issuer(USER_ISSUER);
            identity::jwt::verify(&token, &keys, &expect).is_ok()
        };
        assert!(verifies(issuers.user_jwks()));
        assert!(!verifies(issuers.service_account_jwks()));
    }

    #[test]
    fn names_that_would_confuse_the_subject_and_endless_lives_are_refused() {
        let folder = Folder::new("names");
        let issuers = Issuers::open_or_create(&folder.0).unwrap();
        for name in ["", "a:b", "A", "a/b", "-a", "a.", "ä"] {
            let account = ServiceAccount { namespace: "ns", name, audience: "a" };
            assert!(
                matches!(issuers.mint_service_account(account, HOUR, now()), Err(TokenError::Name { .. })),
                "{name}"
            );
        }
        assert!(issuers.mint_user(&[], TTL_MAX, now()).is_ok());
        assert!(matches!(issuers.mint_user(&[], TTL_MAX + HOUR, now()), Err(TokenError::TooLong)));
    }
}
