//! What policies permit, judged by our own engine on the compiled filters.

use serde_json::{Value, json};

use super::super::authorization_filters;
use super::super::sample::{Asked, documents, engine, trust_domain, verdict_of};
use identity::TrustDomain;

fn policy(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: foo}}\nspec:\n{spec}---\n"
    )
}

fn judge(text: &str, asked: &Asked) -> u16 {
    let labels = [("app".to_owned(), "httpbin".to_owned())].into();
    let filters = authorization_filters(&documents(text), &trust_domain(), &[], "foo", &labels);
    verdict_of(&engine(filters), asked).0
}

fn get(path: &str) -> Asked {
    Asked::new("GET", "a.test", path)
}

const PEER: &str = "spiffe://cluster.local/ns/foo/sa/caller";

#[test]
fn without_policies_everything_passes_and_an_empty_allow_stops_everything() {
    assert_eq!(judge("", &get("/")), 200);
    assert_eq!(judge(&policy("{}"), &get("/")), 403);
    assert_eq!(judge(&policy("rules: [{}]"), &get("/")), 200);
    let elsewhere = policy("{}").replace("namespace: foo", "namespace: bar");
    assert_eq!(judge(&elsewhere, &get("/")), 200);
    let root = policy("{}").replace("namespace: foo", "namespace: istio-system");
    assert_eq!(judge(&root, &get("/")), 403);
}

#[test]
fn deny_wins_over_allow() {
    let text = policy("rules: [{}]")
        + &policy("action: DENY\nrules: [{to: [{operation: {paths: [/secret*]}}]}]").replace("name: p", "name: d");
    assert_eq!(judge(&text, &get("/open")), 200);
    assert_eq!(judge(&text, &get("/secret/x")), 403);
}

#[test]
fn claims_and_request_principals_are_read_from_verified_tokens() {
    let text = policy(
        "rules:\n- from: [{source: {requestPrincipals: ['https://issuer.example.com/*']}}]\n  when: [{key: 'request.auth.claims[groups]', values: [testers]}]",
    );
    let with = |claims: Value| get("/").claims(claims);
    let iss = "https://issuer.example.com";
    assert_eq!(judge(&text, &get("/")), 401, "no token where one is wanted");
    assert_eq!(judge(&text, &with(json!({"iss": iss, "sub": "a", "groups": ["testers", "x"]}))), 200);
    assert_eq!(judge(&text, &with(json!({"iss": iss, "sub": "a", "groups": "testers"}))), 200);
    assert_eq!(judge(&text, &with(json!({"iss": iss, "sub": "a", "groups": ["x"]}))), 403);
    assert_eq!(judge(&text, &with(json!({"iss": "https://other", "sub": "a", "groups": ["testers"]}))), 403);
    assert_eq!(judge(&text, &with(json!({"iss": iss, "groups": ["testers"]}))), 403, "a subject is needed");
    let nested = policy("rules: [{when: [{key: 'request.auth.claims[a][b]', values: ['x*']}]}]");
    assert_eq!(judge(&nested, &with(json!({"a": {"b": "xyz"}}))), 200);
    assert_eq!(judge(&nested, &with(json!({"a": {"c": "xyz"}}))), 403);
}

#[test]
fn request_principals_split_at_the_subject() {
    let check = |pattern: &str, iss: &str, sub: &str, expected: u16| {
        let text = policy(&format!("rules: [{{from: [{{source: {{requestPrincipals: ['{pattern}']}}}}]}}]"));
        assert_eq!(judge(&text, &get("/").claims(json!({"iss": iss, "sub": sub}))), expected, "{pattern} {iss} {sub}");
    };
    check("*", "i", "s", 200);
    check("https://i/s", "https://i", "s", 200);
    check("https://i/s", "https://i", "t", 403);
    check("https://i/s*", "https://i", "st", 200);
    check("https://i*", "https://issuer", "s", 200);
    check("https://i*", "http://issuer", "s", 403);
    check("*/s", "anything", "s", 200);
    check("*-tail", "i", "x-tail", 200);
}

#[test]
fn a_refused_host_stays_refused_with_a_port() {
    let text = policy("action: DENY\nrules: [{to: [{operation: {hosts: [bad.test, '*.worse.test']}}]}]");
    for host in ["bad.test", "BAD.test", "bad.test:8080", "x.worse.test:1"] {
        assert_eq!(judge(&text, &Asked::new("GET", host, "/")), 403, "{host}");
    }
    assert_eq!(judge(&text, &Asked::new("GET", "good.test", "/")), 200);
}

#[test]
fn principals_of_the_local_domain_follow_its_names() {
    let text = policy("rules: [{from: [{source: {principals: [cluster.local/ns/foo/sa/caller]}}]}]");
    let filters = |domain: &str, aliases: &[String]| {
        let domain = TrustDomain::parse(domain).unwrap();
        engine(authorization_filters(&documents(&text), &domain, aliases, "foo", &[].into()))
    };
    let status = |filters: &[routing::filters::HttpFilter], peer: &str| verdict_of(filters, &get("/").peer(peer)).0;
    let renamed = filters("new.example", &["old.example".to_owned()]);
    assert_eq!(status(&renamed, "spiffe://new.example/ns/foo/sa/caller"), 200);
    assert_eq!(status(&renamed, "spiffe://old.example/ns/foo/sa/caller"), 200);
    assert_eq!(status(&renamed, "spiffe://other.example/ns/foo/sa/caller"), 403);
    assert_eq!(status(&filters("cluster.local", &[]), PEER), 200);
}

#[test]
fn custom_asks_about_matching_requests_only_and_refuses_when_it_cannot() {
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |-\n    extensionProviders:\n    - name: asker\n      envoyExtAuthzGrpc: {service: policy.default.svc.cluster.local, port: 1}\n---\n";
    let custom = policy("action: CUSTOM\nprovider: {name: asker}\nrules: [{to: [{operation: {paths: [/ask]}}]}]");
    let filters = |text: &str| engine(authorization_filters(&documents(text), &trust_domain(), &[], "foo", &[].into()));
    let good = filters(&format!("{mesh}{custom}"));
    assert_eq!(verdict_of(&good, &get("/ask")), (200, true));
    assert_eq!(verdict_of(&good, &get("/other")), (200, false));
    let unknown = filters(&custom);
    assert_eq!(verdict_of(&unknown, &get("/ask")), (403, false));
    assert_eq!(verdict_of(&unknown, &get("/other")), (200, false));
}

#[test]
fn tcp_connections_get_the_stricter_reading() {
    use super::super::model::Model;
    use super::{Target, network_filters};
    let count = |spec: &str| {
        let model = Model::build(&documents(&policy(spec)), &trust_domain());
        let filters = network_filters(&model, Target { namespace: "foo", labels: &[].into(), port: Some(9096) });
        filters.iter().map(|filter| format!("{filter:?}").matches("policy[p]").count()).collect::<Vec<_>>()
    };
    assert_eq!(count("rules: [{to: [{operation: {methods: [GET]}}]}]"), [0], "the rule is dropped, ALLOW stays");
    let filters = count("action: DENY\nrules: [{to: [{operation: {methods: [GET], ports: ['9096']}}]}]");
    assert_eq!(filters.len(), 1, "DENY keeps what can be tested");
}

/// Decisions that stock Envoy recorded for Istio's own policies.
#[test]
fn istios_vectors_get_envoys_answers() {
    let Some(corpora) = crate::testing::corpora() else { return };
    let text = std::fs::read_to_string(corpora.join("authz-vectors/vectors.json")).unwrap();
    let vectors: Value = serde_json::from_str(&text).unwrap();
    let labels = serde_json::from_value(vectors["workload"]["labels"].clone()).unwrap();
    let namespace = vectors["workload"]["namespace"].as_str().unwrap();
    let (mut judged, mut wrong) = (0, Vec::new());
    for case in vectors["cases"].as_array().unwrap() {
        let domain = TrustDomain::parse(case["trust_domain"].as_str().unwrap()).unwrap();
        let aliases: Vec<String> = serde_json::from_value(case["trust_domain_aliases"].clone()).unwrap();
        let documents = documents(case["policies_yaml"].as_str().unwrap());
        let filters = engine(authorization_filters(&documents, &domain, &aliases, namespace, &labels));
        for request in case["requests"].as_array().unwrap() {
            let text = |key: &str| request[key].as_str().unwrap();
            let Some(asked) = Asked::parse(text("method"), text("host"), text("path")) else {
                // Refused before any policy is asked: never more permissive.
                continue;
            };
            let asked = asked.peer(text("peer"));
            judged += 1;
            let (allowed, expected) = (verdict_of(&filters, &asked).0 == 200, request["allow"].as_bool().unwrap());
            // A rule that denies a host denies it on every port here; Envoy compares the text.
            let stricter = text("host").contains(':') && !allowed;
            if allowed != expected && !stricter {
                wrong.push(format!("{}: {request}", case["case"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {judged} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(judged > 900, "{judged}");
}
