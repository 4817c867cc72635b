//! Policies that never match, and those that may.

use super::super::sample::{documents, trust_domain};
use super::*;

const SERVICES: &str = "
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: web}, spec: {hosts: [web.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}, {number: 90, name: tcp, protocol: TCP}], workloadSelector: {labels: {app: web}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web-1}, spec: {address: 10.0.0.1, labels: {app: web}, serviceAccount: web}}
---
";

fn idle(policies: &str) -> Vec<(&'static str, u64)> {
    let explainer = Explainer::new(documents(&format!("{SERVICES}{policies}")), &trust_domain());
    let (proxies, ids, domains) = (explainer.proxies(), [], ["friend.org".to_owned()]);
    let known = Known { proxies: &proxies, identities: Some(&ids), trust_domains: &domains };
    explainer.idle(known).into_iter().map(|one| (one.why, one.origin.line)).collect()
}

fn policy(spec: &str) -> String {
    format!("{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}, spec: {spec}}}\n")
}

#[test]
fn the_rule_is_named_and_not_its_neighbours() {
    let policies = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
  - from: [{source: {principals: [elsewhere.org/x]}}]
";
    assert_eq!(idle(policies), [("trust_domain", 12)]);
}

#[test]
fn ports_decide_whether_http_can_be_asked_for() {
    let http =
        |port: &str| policy(&format!("{{rules: [{{to: [{{operation: {{ports: ['{port}'], methods: [GET]}}}}]}}]}}"));
    assert_eq!(idle(&http("80")), []);
    assert_eq!(idle(&http("90")).len(), 1);
    assert_eq!(idle(&http("90"))[0].0, "tcp");
}

#[test]
fn foreign_friends_may_match_and_conditions_may_contradict() {
    let from =
        |principal: &str| policy(&format!("{{rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}"));
    assert_eq!(idle(&from("friend.org/ns/a/sa/b")), []);
    assert_eq!(idle(&from("cluster.local/ns/a/sa/b"))[0].0, "identity");
    let when = |one: &str, other: &str| {
        let condition = |value: &str| format!("{{key: source.namespace, values: ['{value}']}}");
        policy(&format!("{{rules: [{{when: [{}, {}]}}]}}", condition(one), condition(other)))
    };
    assert_eq!(idle(&when("a", "b"))[0].0, "contradiction");
    assert_eq!(idle(&when("a", "a")), []);
    assert_eq!(idle(&when("a*", "ab")), []);
}
