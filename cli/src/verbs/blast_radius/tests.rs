//! Documents in, what can be reached out.

use super::*;

const TEST: &str = "spiffe://cluster.local/ns/default/sa/test";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

const SERVICES: &str = "
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a, namespace: shop}, spec: {hosts: [a.svc], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: a}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a-1, namespace: shop}, spec: {address: 10.0.0.1, labels: {app: a, version: v1}}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: web, namespace: shop}, spec: {hosts: [web.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}}
---
";

fn documents(policies: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&format!("{SERVICES}{policies}")).unwrap()
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}\n---\n"
    )
}

fn answer(id: &str, policies: &str) -> (&'static str, Vec<String>) {
    let reach = reach(&SpiffeId::parse(id).unwrap(), &documents(policies), &[]).unwrap();
    let one = reach.into_iter().find(|one| one.service == "a.svc").unwrap();
    (one.by_policy, one.policies)
}

fn word(id: &str, spec: &str) -> &'static str {
    answer(id, &policy("p", spec)).0
}

#[test]
fn without_policies_all_can_be_reached_and_an_empty_one_closes() {
    assert_eq!(answer(TEST, "").0, "yes");
    assert_eq!(word(TEST, "{}"), "no");
}

#[test]
fn principals_decide() {
    let spec = "{selector: {matchLabels: {app: a}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/test]}}]}]}";
    assert_eq!(answer(TEST, &policy("p", spec)), ("yes", vec!["shop/p".to_owned()]));
    assert_eq!(word(OTHER, spec), "no");
    let deny = "{action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]}";
    assert_eq!(word(TEST, deny), "no");
    assert_eq!(word("spiffe://cluster.local/ns/shop/sa/x", deny), "yes");
}

#[test]
fn what_only_a_request_can_tell_depends() {
    for spec in [
        "{rules: [{to: [{operation: {paths: [/x]}}]}]}",
        "{rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]}",
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
        "{rules: [{from: [{source: {principals: ['*'], ipBlocks: [10.0.0.0/8]}}]}]}",
        "{action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}",
    ] {
        assert_eq!(word(TEST, spec), "depends", "{spec}");
    }
    let named = "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/test]}}], to: [{operation: {paths: [/x]}}]}]}";
    assert_eq!((word(TEST, named), word(OTHER, named)), ("depends", "no"));
    let either = "{rules: [{to: [{operation: {paths: [/x]}}]}, {}]}";
    assert_eq!(word(TEST, either), "yes");
}

#[test]
fn what_an_asked_service_says_is_not_known() {
    let spec = "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/x]}}]}]}";
    assert_eq!(word(TEST, spec), "depends");
}

#[test]
fn table_and_document_are_golden() {
    let edge =
        |service: &str, requests| Edge { source: TEST.into(), service: service.into(), requests, ..Edge::default() };
    let edges = [edge("a.svc", 4), edge("b.svc", 2), Edge { source: OTHER.into(), ..edge("a.svc", 9) }];
    let report = Report {
        spiffe_id: TEST.into(),
        reach: reach(&SpiffeId::parse(TEST).unwrap(), &documents(""), &edges).unwrap(),
        traffic_known: true,
        silent: Vec::new(),
    };
    let expected = "\
SERVICE      BY POLICY  DECIDED BY  REQUESTS  DENIED  CONNECTIONS
a.svc        yes        -           4         0       0
b.svc        unjudged   -           2         0       0
web.example  unjudged   -           0         0       0

1 can be reached, 0 depend on the request, 0 cannot, 2 not judged";
    assert_eq!(text(&report), expected);
    let document = serde_json::to_value(&report).unwrap();
    let expected = json!({
        "service": "a.svc", "namespace": "shop", "by_policy": "yes", "policies": [],
        "requests": 4, "denied": 0, "connections": 0,
    });
    assert_eq!((&document["reach"][0], &document["traffic_known"]), (&expected, &json!(true)));
}
