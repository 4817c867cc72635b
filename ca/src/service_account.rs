//! Service account tokens: who the caller of the mesh CSR API is, verified offline with the issuer's published keys.

use std::path::PathBuf;
use std::time::SystemTime;

use identity::jwt::{self, JwtError, JwtExpectations, VerifiedClaims};
use identity::spiffe_id::{SpiffeId, TrustDomain};

use crate::jwks_file::{JwksFile, KeysError, Unverified};
use crate::names;
use crate::settings::ServiceAccountIssuer;

/// The issuers whose tokens are accepted.
#[derive(Debug)]
pub(crate) struct ServiceAccounts {
    trust_domain: TrustDomain,
    issuers: Vec<Issuer>,
}

/// A proven service account. Only [`ServiceAccounts::verify`] makes one.
#[derive(Clone, Debug)]
pub(crate) struct ServiceAccount {
    id: SpiffeId,
    subject: String,
    issuer: String,
    /// `NAMESPACE/NAME`.
    account: String,
    /// The node that the token is bound to.
    node: Option<String>,
}

impl ServiceAccount {
    /// Its identity in the mesh.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// As the token names it.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Who issued the token.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `NAMESPACE/NAME`.
    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    /// The node that the token is bound to, if to any.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }
}

/// Why a token does not prove who the caller is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is none.
    #[error("no bearer token is shown")]
    Missing,
    /// More than one.
    #[error("more than one authorization header is shown")]
    Twice,
    /// Nobody here knows the issuer.
    #[error("the token's issuer is not one of service_account_issuers")]
    IssuerUnknown,
    /// The issuer's keys cannot be read now.
    #[error("the keys of the issuer {issuer} cannot be read from {}", file.display())]
    KeysUnavailable {
        /// Whose.
        issuer: String,
        /// From where.
        file: PathBuf,
        /// Why.
        #[source]
        source: KeysError,
    },
    /// The token itself.
    #[error("the token is refused")]
    Refused(#[source] JwtError),
    /// It proves something, but no service account.
    #[error("the token's subject is not system:serviceaccount:NAMESPACE:NAME")]
    Subject,
    /// Two of its claims differ.
    #[error("the token's claims name different service accounts")]
    Contradiction,
}

impl TokenError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "TOKEN_MISSING",
            Self::Twice => "TOKEN_TWICE",
            Self::IssuerUnknown => "TOKEN_ISSUER_UNKNOWN",
            Self::KeysUnavailable { .. } => "TOKEN_KEYS_UNAVAILABLE",
            Self::Refused(error) => error.reason(),
            Self::Subject => "TOKEN_SUBJECT_REFUSED",
            Self::Contradiction => "TOKEN_CONTRADICTS_ITSELF",
        }
    }
}

impl ServiceAccounts {
    pub(crate) fn new(trust_domain: TrustDomain, issuers: &[ServiceAccountIssuer]) -> Self {
        let issuers = issuers
            .iter()
            .map(|settings| Issuer { settings: settings.clone(), keys: JwksFile::new(&settings.jwks_file) });
        Self { trust_domain, issuers: issuers.collect() }
    }

    /// Who shows `token`.
    ///
    /// # Errors
    /// When the token does not prove a service account of a configured issuer for a configured audience.
    pub(crate) fn verify(&self, token: &str, now: SystemTime) -> Result<ServiceAccount, TokenError> {
        // The issuer named by the token only chooses the keys; it is proven by their signature, and checked again.
        let named = jwt::danger_unverified_issuer(token);
        let issuer = named.and_then(|named| self.issuers.iter().find(|known| known.settings.issuer == named));
        let issuer = issuer.ok_or(TokenError::IssuerUnknown)?;
        let expect = JwtExpectations::at(now)
            .with_issuer(&issuer.settings.issuer)
            .with_audiences(issuer.settings.audiences.clone());
        let claims = issuer.keys.verify(token, &expect).map_err(|why| issuer.refuse(why))?;
        let (namespace, name) = account_of(&claims)?;
        let id = self.trust_domain.workload(namespace, name).map_err(|_| TokenError::Subject)?;
        let node = claims.claims().get("kubernetes.io").and_then(|bound| bound.pointer("/node/name")?.as_str());
        Ok(ServiceAccount {
            id,
            subject: format!("{SUBJECT_PREFIX}{namespace}:{name}"),
            issuer: issuer.settings.issuer.clone(),
            account: format!("{namespace}/{name}"),
            node: node.map(str::to_owned),
        })
    }
}

/// An issuer with its keys.
#[derive(Debug)]
struct Issuer {
    settings: ServiceAccountIssuer,
    keys: JwksFile,
}

impl Issuer {
    fn refuse(&self, why: Unverified) -> TokenError {
        match why {
            Unverified::Token(error) => TokenError::Refused(error),
            Unverified::Keys(source) => TokenError::KeysUnavailable {
                issuer: self.settings.issuer.clone(),
                file: self.keys.path().to_owned(),
                source,
            },
        }
    }
}

/// Namespace and name of the service account that proven claims name.
///
/// # Errors
/// When they name none, or two different ones.
pub(crate) fn account_of(claims: &VerifiedClaims) -> Result<(&str, &str), TokenError> {
    let subject = claims.subject().ok_or(TokenError::Subject)?;
    let parts: Vec<&str> = subject.splitn(PARTS_MAX + 1, ':').collect();
    let ["system", "serviceaccount", namespace, name] = parts[..] else { return Err(TokenError::Subject) };
    if !names::is_namespace(namespace) || !names::is_service_account(name) {
        return Err(TokenError::Subject);
    }
    if let Some(kubernetes) = claims.claims().get("kubernetes.io") {
        let told = |path: &str, proven: &str| kubernetes.pointer(path).is_none_or(|told| told.as_str() == Some(proven));
        if !told("/namespace", namespace) || !told("/serviceaccount/name", name) {
            return Err(TokenError::Contradiction);
        }
    }
    Ok((namespace, name))
}

/// What the subjects of service accounts begin with.
pub(crate) const SUBJECT_PREFIX: &str = "system:serviceaccount:";
const PARTS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::jwks_file::LOOK_PAUSE;
    use crate::testing::{TokenIssuer, trust_domain};

    fn accounts(issuer: &TokenIssuer) -> ServiceAccounts {
        ServiceAccounts::new(trust_domain(), &[issuer.settings()])
    }

    fn check(change: impl FnOnce(&mut Map<String, Value>)) -> Result<String, &'static str> {
        let issuer = TokenIssuer::new();
        let token = issuer.token_with("default", "cart", change);
        let account = accounts(&issuer).verify(&token, SystemTime::now());
        account.map(|account| account.id().to_string()).map_err(|error| error.reason())
    }

    fn set(name: &'static str, value: Value) -> impl FnOnce(&mut Map<String, Value>) {
        move |claims| {
            claims.insert(name.into(), value);
        }
    }

    #[test]
    fn the_subject_becomes_the_identity() {
        assert_eq!(check(|_| ()).unwrap(), "spiffe://example.org/ns/default/sa/cart");
        assert!(check(set("aud", json!("istio-ca"))).is_ok(), "aud as text");
        assert!(check(set("aud", json!(["x", "istio-ca"]))).is_ok(), "aud as list");
    }

    #[test]
    fn the_audience_is_strict() {
        for aud in
            [json!("other"), json!(["other"]), json!([]), json!(""), json!(null), json!("istio-c"), json!("istio-ca2")]
        {
            assert!(check(set("aud", aud.clone())).is_err(), "{aud}");
        }
        assert!(check(|claims| drop(claims.remove("aud"))).is_err(), "no aud");
    }

    #[test]
    fn a_subject_of_another_shape_is_refused() {
        for sub in [
            "",
            "system",
            "system:serviceaccount",
            "system:serviceaccount:default",
            "system:serviceaccount:default:",
            "system:serviceaccount::cart",
            "system:serviceaccount:default:cart:more",
            "system:node:default:cart",
            "system:serviceaccount:a/../b:cart",
            "system:serviceaccount:Default:cart",
            "system:serviceaccount:default:ca rt",
            &format!("system:serviceaccount:{}:cart", "n".repeat(64)),
            &format!("system:serviceaccount:default:{}", "s".repeat(254)),
        ] {
            assert_eq!(check(set("sub", json!(sub))), Err("TOKEN_SUBJECT_REFUSED"), "{sub}");
        }
        assert!(check(set("sub", json!(7))).is_err());
        assert!(check(|claims| drop(claims.remove("sub"))).is_err());
    }

    #[test]
    fn times_and_issuer_are_checked() {
        let past = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 3600;
        assert!(check(set("exp", json!(past))).is_err());
        assert!(check(|claims| drop(claims.remove("exp"))).is_err(), "no exp");
        assert!(check(set("exp", json!("soon"))).is_err());
        assert_eq!(check(set("iss", json!("https://elsewhere"))), Err("TOKEN_ISSUER_UNKNOWN"));
        assert_eq!(check(|claims| drop(claims.remove("iss"))), Err("TOKEN_ISSUER_UNKNOWN"));
    }

    #[test]
    fn claims_that_contradict_each_other_are_refused() {
        let other = json!({"namespace": "kube-system"});
        assert_eq!(check(set("kubernetes.io", other)), Err("TOKEN_CONTRADICTS_ITSELF"));
        let other = json!({"namespace": "default", "serviceaccount": {"name": "admin"}});
        assert_eq!(check(set("kubernetes.io", other)), Err("TOKEN_CONTRADICTS_ITSELF"));
        let same = json!({"namespace": "default", "serviceaccount": {"name": "cart"}, "pod": {"name": "p"}});
        assert!(check(set("kubernetes.io", same)).is_ok());
    }

    #[test]
    fn a_key_of_somebody_else_proves_nothing() {
        let (issuer, thief) = (TokenIssuer::new(), TokenIssuer::new());
        let token = thief.token("default", "cart");
        assert!(accounts(&issuer).verify(&token, SystemTime::now()).is_err());
        for junk in ["", "a", "a.b.c", "a.b", &"x".repeat(100_000)] {
            assert!(accounts(&issuer).verify(junk, SystemTime::now()).is_err());
        }
    }

    #[test]
    fn a_new_key_of_the_issuer_is_found_and_a_broken_file_changes_nothing() {
        let mut issuer = TokenIssuer::new();
        let accounts = accounts(&issuer);
        assert!(accounts.verify(&issuer.token("default", "cart"), SystemTime::now()).is_ok());
        issuer.rotate();
        let pause = Instant::now();
        while accounts.verify(&issuer.token("default", "cart"), SystemTime::now()).is_err() {
            assert!(pause.elapsed() < Duration::from_secs(5), "the new key is never read");
            std::thread::yield_now();
        }
        std::fs::write(&issuer.settings().jwks_file, "{").unwrap();
        std::thread::sleep(LOOK_PAUSE);
        assert!(accounts.verify(&issuer.token("default", "cart"), SystemTime::now()).is_ok());
    }

    #[test]
    fn without_keys_nobody_is_accepted() {
        let issuer = TokenIssuer::new();
        std::fs::remove_file(&issuer.settings().jwks_file).unwrap();
        let error = accounts(&issuer).verify(&issuer.token("default", "cart"), SystemTime::now()).unwrap_err();
        assert_eq!(error.reason(), "TOKEN_KEYS_UNAVAILABLE");
    }
}
