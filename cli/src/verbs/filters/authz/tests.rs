//! Answers of the filter, to questions of our own and to those that stock Envoy has answered.

use serde_json::{Value, json};

use super::*;

const POLICIES: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - to: [{operation: {methods: [HEAD]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], hosts: [cart.shop]}}]
  - when: [{key: 'request.auth.claims[group]', values: [admins]}]
  - when: [{key: 'request.headers[x-key]', values: [open]}, {key: destination.port, values: ['9095']}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/secret*]}}]
";

fn ask(policies: &str, request: Value) -> String {
    let question = json!({"policies_yaml": policies, "workload": {"namespace": "shop"}, "request": request});
    Evaluator::default().answer(question.to_string().as_bytes())
}

#[test]
fn the_deciding_rule_is_named() {
    let ask = |request: Value| ask(POLICIES, request);
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(ask(json!({"method": "HEAD"})), "allow shop/readers/0");
    assert_eq!(ask(json!({"method": "GET", "peer": web, "host": "cart.shop"})), "allow shop/readers/1");
    assert_eq!(ask(json!({"method": "GET", "peer": web, "host": "cart.shop:80"})), "deny -");
    assert_eq!(ask(json!({"method": "GET", "host": "cart.shop"})), "deny -");
    assert_eq!(ask(json!({"claims": {"iss": "i", "sub": "s", "group": ["admins"]}})), "allow shop/readers/2");
    assert_eq!(ask(json!({"headers": {"x-key": "open"}, "destination_port": 9095})), "allow shop/readers/3");
    assert_eq!(ask(json!({"headers": {"x-key": ["open", "no"]}, "destination_port": 9095})), "deny -");
    assert_eq!(ask(json!({"method": "HEAD", "path": "/secret/1"})), "deny shop/no-secrets/0");
}

#[test]
fn without_policies_everything_is_allowed_by_none() {
    assert_eq!(ask("", json!({})), "allow -");
}

#[test]
fn what_cannot_be_read_is_an_error() {
    for line in ["", "{", "[]", "{\"request\": {}}"] {
        assert_eq!(Evaluator::default().answer(line.as_bytes()), "err BAD_JSON", "{line}");
    }
    let broken = POLICIES.replace("action: DENY", "action: PERHAPS");
    assert!(ask(&broken, json!({})).starts_with("err VALUE_"), "{}", ask(&broken, json!({})));
    assert_eq!(ask("a: [", json!({})), "err YAML_INVALID");
}

#[test]
fn what_the_proxy_refuses_no_policy_allows() {
    for request in [json!({"host": "a b"}), json!({"method": "G ET"}), json!({"path": "no-slash"})] {
        assert_eq!(ask("", request.clone()), "deny -", "{request}");
    }
}

/// Istio's own policies with questions and answers; without outside test data the test is skipped.
pub(in crate::verbs) fn vectors() -> Option<Value> {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA names no folder with outside test data");
        return None;
    };
    let file = Path::new(&corpora).join("authz-vectors/vectors.json");
    Some(serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
}

/// Istio's own policies with the answers of stock Envoy. Only a rule that denies a host is stricter here: it holds on
/// every port of that host.
#[test]
fn envoys_answers_are_ours() {
    let Some(vectors) = vectors() else { return };
    let mut evaluator = Evaluator::default();
    let (mut asked, mut wrong) = (0, Vec::new());
    for case in vectors["cases"].as_array().unwrap() {
        for request in case["requests"].as_array().unwrap() {
            let question = json!({
                "policies_yaml": case["policies_yaml"],
                "workload": vectors["workload"],
                "trust_domain": case["trust_domain"],
                "trust_domain_aliases": case["trust_domain_aliases"],
                "request": request,
            });
            let answer = evaluator.answer(question.to_string().as_bytes());
            let allowed = answer.starts_with("allow ");
            let stricter = request["host"].as_str().unwrap().contains(':') && answer.starts_with("deny ");
            asked += 1;
            if allowed != request["allow"].as_bool().unwrap() && !stricter {
                wrong.push(format!("{}: {request}: {answer}", case["case"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {asked} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(asked > 900, "{asked}");
}
