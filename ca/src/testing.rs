//! What tests of several modules share.

pub(crate) mod database;
pub(crate) mod running;

use std::collections::BTreeSet;
use std::time::SystemTime;

use identity::bundle::TrustBundle;
use identity::jwt::JwtAuthorityKey;
use identity::spiffe_id::{SpiffeId, TrustDomain};
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::entry::{Entry, Selector};
use crate::settings::ServiceAccountIssuer;

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// The ID with `path` in the trust domain of the tests.
pub(crate) fn id(path: &str) -> SpiffeId {
    trust_domain().with_path(path).unwrap()
}

pub(crate) fn entry(entry_id: &str, spiffe_id: &str, parent_id: &str) -> Entry {
    Entry {
        id: entry_id.into(),
        spiffe_id: id(spiffe_id),
        parent_id: id(parent_id),
        selectors: BTreeSet::from([Selector::new("unix", "uid:1000")]),
        federates_with: BTreeSet::new(),
        dns_names: Vec::new(),
        hint: String::new(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        admin: false,
        downstream: false,
        store_svid: false,
        no_prefetch: false,
        jwt_jti: false,
        expires_at: 0,
        revision: 0,
        created_at: 1,
    }
}

pub(crate) fn agent(path: &str) -> Agent {
    Agent {
        id: id(path),
        attestation_type: "join_token".into(),
        serial: "01".into(),
        expires_at: 2_000_000_000,
        new_serial: String::new(),
        new_expires_at: 0,
        selectors: BTreeSet::new(),
        banned: false,
        can_reattest: false,
        version: String::new(),
        bundle_sequence: 0,
        attested_at: 1,
        bundle_since: 0,
        seen_at: 0,
    }
}

/// An issuer of service account tokens, with its key file in a temporary directory.
pub(crate) struct TokenIssuer {
    dir: tempfile::TempDir,
    key: JwtAuthorityKey,
}

impl TokenIssuer {
    pub(crate) fn new() -> Self {
        let issuer = Self { dir: tempfile::tempdir().unwrap(), key: JwtAuthorityKey::generate().unwrap() };
        issuer.publish();
        issuer
    }

    /// A new key in the place of the old one.
    pub(crate) fn rotate(&mut self) {
        self.key = JwtAuthorityKey::generate().unwrap();
        self.publish();
    }

    fn publish(&self) {
        let mut bundle = TrustBundle::new(trust_domain());
        bundle.jwt_authorities.push(self.key.public(None));
        std::fs::write(self.dir.path().join("jwks.json"), bundle.jwks().to_string()).unwrap();
    }

    pub(crate) fn settings(&self) -> ServiceAccountIssuer {
        ServiceAccountIssuer {
            issuer: "https://kubernetes.example".into(),
            jwks_file: self.dir.path().join("jwks.json"),
            audiences: vec!["istio-ca".into()],
        }
    }

    /// Any claims, signed.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        self.key.sign(claims).unwrap()
    }

    pub(crate) fn jwks_file(&self) -> std::path::PathBuf {
        self.dir.path().join("jwks.json")
    }

    pub(crate) fn token(&self, namespace: &str, name: &str) -> String {
        self.token_with(namespace, name, |_| ())
    }

    pub(crate) fn token_with(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "https://kubernetes.example",
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "aud": ["istio-ca"],
            "iat": now,
            "exp": now + 600,
        });
        let Value::Object(mut claims) = claims else { unreachable!("an object") };
        change(&mut claims);
        self.key.sign(&claims).unwrap()
    }
}
