//! `k8s_psat` and `oidc_jwt`: tokens verified with keys from a file.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::testing::TokenIssuer;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn kubernetes_claims() -> Value {
    json!({
        "iss": "https://kubernetes.example",
        "sub": "system:serviceaccount:spire:agent",
        "aud": ["spire-server"],
        "exp": now() + 600,
        "kubernetes.io": {
            "namespace": "spire",
            "serviceaccount": {"name": "agent", "uid": "sa-uid"},
            "pod": {"name": "agent-x7", "uid": "pod-uid"},
            "node": {"name": "node-1", "uid": "node-uid"},
        },
    })
}

fn kubernetes(issuer: &TokenIssuer, more: &str) -> Attestors {
    build(&format!(
        "k8s_psat: {{clusters: {{prod: {{issuer: 'https://kubernetes.example', jwks_file: '{}', \
         service_accounts: ['spire:agent']{more}}}}}}}",
        issuer.jwks_file().display()
    ))
}

async fn psat(attestors: &Attestors, cluster: &str, token: &str) -> Result<Attested, &'static str> {
    let payload = json!({"cluster": cluster, "token": token}).to_string();
    attest(attestors, "k8s_psat", payload.as_bytes(), &mut Silent).await
}

#[tokio::test]
async fn a_pods_token_makes_its_node() {
    let issuer = TokenIssuer::new();
    let attested = psat(&kubernetes(&issuer, ""), "prod", &issuer.sign(&kubernetes_claims())).await.unwrap();
    assert_eq!(attested.id().path(), "/spire/agent/k8s_psat/prod/node-uid");
    assert!(attested.can_reattest());
    let expected = [
        "agent_node_name:node-1",
        "agent_node_uid:node-uid",
        "agent_ns:spire",
        "agent_pod_name:agent-x7",
        "agent_pod_uid:pod-uid",
        "agent_sa:agent",
        "cluster:prod",
    ];
    assert_eq!(values(&attested), BTreeSet::from(expected));
    let by_pod = kubernetes(&issuer, ", agent_id: pod");
    let attested = psat(&by_pod, "prod", &issuer.sign(&kubernetes_claims())).await.unwrap();
    assert_eq!(attested.id().path(), "/spire/agent/k8s_psat/prod/pod-uid");
}

#[tokio::test]
async fn a_token_that_says_anything_else_is_refused() {
    let issuer = TokenIssuer::new();
    let attestors = kubernetes(&issuer, "");
    let check = async |change: fn(&mut Value)| {
        let mut claims = kubernetes_claims();
        change(&mut claims);
        psat(&attestors, "prod", &issuer.sign(&claims)).await.unwrap_err()
    };
    assert_eq!(check(|c| c["aud"] = json!(["other"])).await, "JWT_WRONG_AUDIENCE");
    assert_eq!(check(|c| c["aud"] = json!([])).await, "JWT_WRONG_AUDIENCE");
    assert_eq!(check(|c| c["aud"] = json!("spire-serve")).await, "JWT_WRONG_AUDIENCE");
    assert_eq!(check(|c| drop(c.as_object_mut().unwrap().remove("aud"))).await, "JWT_WRONG_AUDIENCE");
    assert_eq!(check(|c| c["iss"] = json!("https://elsewhere")).await, "JWT_WRONG_ISSUER");
    assert_eq!(check(|c| c["exp"] = json!(now() - 600)).await, "JWT_EXPIRED");
    assert_eq!(check(|c| drop(c.as_object_mut().unwrap().remove("exp"))).await, "JWT_MALFORMED");
    assert_eq!(check(|c| c["nbf"] = json!(now() + 600)).await, "JWT_NOT_YET_VALID");
    assert_eq!(check(|c| c["sub"] = json!("system:serviceaccount:spire")).await, "TOKEN_SUBJECT_REFUSED");
    assert_eq!(check(|c| c["sub"] = json!("system:serviceaccount:spire:other")).await, "TOKEN_CONTRADICTS_ITSELF");
    let other = |c: &mut Value| {
        c["sub"] = json!("system:serviceaccount:default:agent");
        c["kubernetes.io"]["namespace"] = json!("default");
    };
    assert_eq!(check(other).await, "ACCOUNT_NOT_ALLOWED");
    assert_eq!(check(|c| c["kubernetes.io"]["node"] = Value::Null).await, "TOKEN_UNBOUND");
    assert_eq!(check(|c| drop(c.as_object_mut().unwrap().remove("kubernetes.io"))).await, "TOKEN_UNBOUND");
    for uid in ["", "..", "a/b", "a b", "../../server"] {
        let mut claims = kubernetes_claims();
        claims["kubernetes.io"]["node"]["uid"] = json!(uid);
        let refused = psat(&attestors, "prod", &issuer.sign(&claims)).await.unwrap_err();
        assert_eq!(refused, "NODE_NAME_UNUSABLE", "{uid}");
    }
}

#[tokio::test]
async fn a_token_of_another_key_or_none_is_refused() {
    let (issuer, thief) = (TokenIssuer::new(), TokenIssuer::new());
    let attestors = kubernetes(&issuer, "");
    let good = issuer.sign(&kubernetes_claims());
    assert!(psat(&attestors, "prod", &thief.sign(&kubernetes_claims())).await.is_err());
    assert_eq!(psat(&attestors, "test", &good).await.unwrap_err(), "CLUSTER_UNKNOWN");
    let unsigned = |header: Value| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&header), part(&kubernetes_claims()))
    };
    for alg in ["none", "None", "NONE", ""] {
        assert!(psat(&attestors, "prod", &unsigned(json!({"alg": alg}))).await.is_err(), "{alg}");
    }
    let signature = good.rsplit('.').next().unwrap();
    assert!(psat(&attestors, "prod", good.trim_end_matches(signature)).await.is_err(), "signature cut off");
    for junk in [&b""[..], b"{}", b"[]", b"{\"cluster\":\"prod\"}", b"\xff", b"{\"cluster\":7,\"token\":8}"] {
        assert_eq!(attest(&attestors, "k8s_psat", junk, &mut Silent).await.unwrap_err(), "EVIDENCE_MALFORMED");
    }
}

#[tokio::test]
async fn keys_are_read_again_and_without_keys_nobody_attests() {
    let mut issuer = TokenIssuer::new();
    let attestors = kubernetes(&issuer, "");
    assert!(psat(&attestors, "prod", &issuer.sign(&kubernetes_claims())).await.is_ok());
    issuer.rotate();
    let begin = Instant::now();
    while psat(&attestors, "prod", &issuer.sign(&kubernetes_claims())).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the new key is never read");
        tokio::task::yield_now().await;
    }
    let fresh = kubernetes(&issuer, "");
    std::fs::remove_file(issuer.jwks_file()).unwrap();
    let refused = psat(&fresh, "prod", &issuer.sign(&kubernetes_claims())).await;
    assert_eq!(refused.unwrap_err(), "TOKEN_KEYS_UNAVAILABLE");
}

fn oidc(issuer: &TokenIssuer, more: &str) -> Attestors {
    build(&format!(
        "oidc_jwt: {{issuers: {{ci: {{issuer: 'https://ci.example', jwks_file: '{}', audiences: [kasbah], \
         required_claims: {{owner: [us, we]}}{more}}}}}}}",
        issuer.jwks_file().display()
    ))
}

fn oidc_claims() -> Value {
    json!({
        "iss": "https://ci.example", "aud": "kasbah", "sub": "repo:us/app:ref:refs/heads/main", "exp": now() + 600,
        "owner": "us", "repository": "us/app", "run": 17, "teams": ["red", "blue"], "nested": {"a": 1},
    })
}

async fn bearer(attestors: &Attestors, token: &str) -> Result<Attested, &'static str> {
    let payload = json!({"token": token}).to_string();
    attest(attestors, "oidc_jwt", payload.as_bytes(), &mut Silent).await
}

#[tokio::test]
async fn claims_become_selectors_and_the_subject_the_name() {
    let issuer = TokenIssuer::new();
    let mapped = oidc(&issuer, ", selectors: {repository: repo, teams: team, nested: nested, absent: absent}");
    let attested = bearer(&mapped, &issuer.sign(&oidc_claims())).await.unwrap();
    let hash = crate::random::sha256_hex(b"repo:us/app:ref:refs/heads/main");
    assert_eq!(attested.id().path(), format!("/spire/agent/oidc_jwt/ci/{hash}"));
    let expected =
        ["issuer:ci", "ci:sub:repo:us/app:ref:refs/heads/main", "ci:repo:us/app", "ci:team:red", "ci:team:blue"];
    assert_eq!(values(&attested), BTreeSet::from(expected));
    let named = oidc(&issuer, ", can_reattest: false, agent_path_template: 'run-{{ .Claims.run }}'");
    let attested = bearer(&named, &issuer.sign(&oidc_claims())).await.unwrap();
    assert_eq!((attested.id().path(), attested.can_reattest()), ("/spire/agent/oidc_jwt/ci/run-17", false));
    for field in ["repository", "sub", "teams", "nested", "absent"] {
        let named = oidc(&issuer, &format!(", agent_path_template: '{{{{ .Claims.{field} }}}}'"));
        let refused = bearer(&named, &issuer.sign(&oidc_claims())).await;
        assert_eq!(refused.unwrap_err(), "NODE_NAME_UNUSABLE", "{field}");
    }
}

#[tokio::test]
async fn an_issuer_that_speaks_for_others_too_admits_only_ours() {
    let issuer = TokenIssuer::new();
    let attestors = oidc(&issuer, "");
    let check = async |change: fn(&mut Value)| {
        let mut claims = oidc_claims();
        change(&mut claims);
        bearer(&attestors, &issuer.sign(&claims)).await.map(drop)
    };
    assert_eq!(check(|c| c["owner"] = json!("we")).await, Ok(()));
    assert_eq!(check(|c| c["owner"] = json!(["they", "us"])).await, Ok(()));
    assert_eq!(check(|c| c["owner"] = json!("they")).await, Err("CLAIM_REFUSED"));
    assert_eq!(check(|c| c["owner"] = json!("USA")).await, Err("CLAIM_REFUSED"));
    assert_eq!(check(|c| c["owner"] = json!({"us": 1})).await, Err("CLAIM_REFUSED"));
    assert_eq!(check(|c| drop(c.as_object_mut().unwrap().remove("owner"))).await, Err("CLAIM_REFUSED"));
    assert_eq!(check(|c| c["iss"] = json!("https://ci.example/")).await, Err("TOKEN_ISSUER_UNKNOWN"));
    assert_eq!(check(|c| c["aud"] = json!("kasba")).await, Err("JWT_WRONG_AUDIENCE"));
    assert_eq!(check(|c| drop(c.as_object_mut().unwrap().remove("sub"))).await, Err("NODE_NAME_UNUSABLE"));
}
