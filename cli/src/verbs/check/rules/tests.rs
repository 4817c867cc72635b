//! Facts in, verdicts out.

use std::collections::BTreeMap;

use proto::kasbah::ca::v1::Laggard;
use serde_json::json;

use super::*;

const START: u64 = 1_800_000_000;

fn at(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(START + secs)
}

fn text(secs: u64) -> String {
    runtime::clock::rfc3339(at(secs))
}

fn part(name: &str, pages: impl IntoIterator<Item = (&'static str, Value)>) -> Part {
    let pages: BTreeMap<_, _> = pages.into_iter().collect();
    Part { name: name.into(), running: true, restarts: 0, ready: Ok(()), pages }
}

fn authorities(root: u64, signing: u64) -> Value {
    let one = |kind: &str, secs: u64| json!({"id": kind, "kind": kind, "state": "active", "not_before": text(0), "not_after": text(secs)});
    json!({
        "authorities": [one("root", root), one("x509", signing), one("jwt", signing), one("wit", signing)],
        "bundle": {"roots": [{"id": "root", "serial": "7d"}]},
        "own_svid": {"not_before": text(0), "not_after": text(signing)},
    })
}

/// A mesh in which all is well at its start.
fn mesh() -> Facts {
    let ca_status = json!({
        "now": text(0), "database": "OK", "issuance_policy": "OK", "agents": 2, "agents_enforcing_bundle": 2, "bundle_sequence": 3
    });
    let svid = |id: &str, secs: u64| json!({"spiffe_id": id, "not_before": text(0), "not_after": text(secs)});
    let certs = json!({"agent": svid("node", 86_400), "svids": [svid("a", 3600), svid("b", 7200)]});
    let proxy_certs = json!({"certificates": [{"ca_cert": [{"serial_number": "7d"}], "cert_chain": [
        {"path": "/etc/web.pem", "valid_from": text(0), "expiration_time": text(86_400)}]}]});
    let clients = json!({"xds": {"clients": [{"node": "p", "behind": 0, "types": {"lds": {"error": null}}}]}});
    Facts {
        parts: vec![
            part("ca", [("/status", ca_status), ("/certs", authorities(YEAR, 30 * DAY))]),
            part("agent", [("/status", json!({"synced": true, "svids_missing": 0, "entries": 2})), ("/certs", certs)]),
            part("discovery", [("/status", clients), ("/findings", json!([]))]),
            part("ingress", [("/status", json!({"role": "proxy"})), ("/certs", proxy_certs)]),
        ],
        rotations: vec![StatusResponse { phase: "idle".into(), ..StatusResponse::default() }],
        disk: Some((10 << 30, 20 << 30)),
        documents: Some(documents("")),
        identities: Some(vec!["spiffe://cluster.local/ns/default/sa/web".into()]),
    }
}

/// The smallest mesh with a workload, a gateway and a good policy; more can be added.
fn documents(more: &str) -> discovery::Explainer {
    let text = format!("{WRITTEN}{more}");
    let parsed = discovery::documents::parse(std::path::Path::new("mesh.yaml"), &text);
    assert!(parsed.refused.is_empty(), "{:?}", parsed.findings);
    discovery::Explainer::new(parsed.documents, &identity::TrustDomain::parse("cluster.local").unwrap())
}

fn written(facts: &Facts, id: &str, secs: u64) -> (Found, String) {
    let outcomes = judge(facts, at(secs));
    let outcome = outcomes.into_iter().find(|outcome| outcome.check.id == id).unwrap();
    (outcome.found, outcome.value)
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

#[test]
fn a_policy_that_can_never_match_is_told_with_its_line() {
    let mut facts = mesh();
    for (spec, why) in [
        ("{selector: {matchLabels: {app: nobody}}, rules: [{}]}", "selects no workload"),
        ("{rules: [{from: [{source: {principals: [elsewhere.org/ns/a/sa/b]}}]}]}", "elsewhere.org is not known"),
        ("{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}", "no registration entry"),
        ("{rules: [{to: [{operation: {paths: [/a], notPaths: [/a]}}]}]}", "excluded by its opposite"),
        ("{rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}", "no RequestAuthentication"),
        ("{selector: {matchLabels: {app: bytes}}, rules: [{to: [{operation: {methods: [GET]}}]}]}", "carry no HTTP"),
    ] {
        facts.documents = Some(documents(&policy("idle", spec)));
        let (found, value) = written(&facts, "CF-02", 0);
        assert!(found == Found::Warn && value.contains(why) && value.contains("mesh.yaml:"), "{spec}: {value}");
    }
    facts.documents = Some(documents(&policy("all", "{action: DENY, rules: [{}]}")));
    assert!(written(&facts, "CF-02", 0).1.contains("default/all denies everything"));
    facts.documents = None;
    assert_eq!(found(&facts, "CF-02", 0), Found::Unknown);
}

#[test]
fn what_may_match_is_left_alone() {
    let mut facts = mesh();
    for spec in [
        "{rules: [{from: [{source: {principals: ['*/ns/a/sa/b']}}]}]}",
        "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, cluster.local/ns/default/sa/web]}}]}]}",
        "{rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}",
        "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
        "{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}",
    ] {
        facts.documents = Some(documents(&policy("maybe", spec)));
        let (found, value) = written(&facts, "CF-02", 0);
        assert_eq!(found, Found::Ok, "{spec}: {value}");
    }
    facts.identities = None;
    facts.documents =
        Some(documents(&policy("x", "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}")));
    assert_eq!(found(&facts, "CF-02", 0), Found::Ok, "who can be is not known");
}

fn with_issuer(rule: &str) -> Facts {
    let text = format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{name: r}}, spec: {{jwtRules: [{{issuer: 'https://i.example', {rule}}}]}}}}\n"
    );
    Facts { documents: Some(documents(&text)), ..mesh() }
}

#[test]
fn keys_of_issuers_are_there_and_fresh() {
    assert_eq!(written(&mesh(), "JW-01", 0), (Found::Ok, "no issuer is trusted".to_owned()));
    assert_eq!(found(&with_issuer(&format!("jwks: '{KEYS}'")), "JW-01", 0), Found::Ok);
    let mut facts = with_issuer("jwksUri: 'http://keys.example/jwks'");
    assert_eq!(found(&facts, "JW-01", 0), Found::Unknown, "no proxy has fetched them");
    let fetched = |keys: Value, at: Option<String>, error: Value| json!({"role": "proxy", "jwks": [{"uri": "http://keys.example/jwks", "keys": keys, "cache_secs": 300, "fetched_at": at, "error": error}]});
    for (page, secs, expected) in [
        (fetched(json!(2), Some(text(0)), Value::Null), 60, Found::Ok),
        (fetched(json!(2), Some(text(0)), json!("status 500")), 60, Found::Warn),
        (fetched(json!(2), Some(text(0)), Value::Null), 3601, Found::Warn),
        (fetched(Value::Null, None, json!("there is no such cluster")), 0, Found::Fail),
    ] {
        set(&mut facts, "ingress", "/status", "", page.clone());
        let (found, value) = written(&facts, "JW-01", secs);
        assert_eq!(found, expected, "{page}: {value}");
        assert!(value.contains("https://i.example"), "{value}");
    }
}

fn found(facts: &Facts, id: &str, secs: u64) -> Found {
    let outcomes = judge(facts, at(secs));
    outcomes.iter().find(|outcome| outcome.check.id == id).unwrap().found
}

fn set(facts: &mut Facts, name: &str, page: &'static str, pointer: &str, value: Value) {
    let part = facts.parts.iter_mut().find(|part| part.name == name).unwrap();
    *part.pages.get_mut(page).unwrap().pointer_mut(pointer).unwrap() = value;
}

#[test]
fn a_good_mesh_is_well_and_every_line_has_a_value() {
    for outcome in judge(&mesh(), at(0)) {
        assert_eq!(outcome.found, Found::Ok, "{outcome:?}");
        assert!(!outcome.value.is_empty(), "{outcome:?}");
    }
}

#[test]
fn ids_are_unique_and_each_is_judged_somewhere() {
    let mut ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
    let judged = judge(&mesh(), at(0)).len() + CHECKS.iter().filter(|check| check.id.starts_with("PRE")).count();
    assert_eq!(judged, count);
}

#[test]
fn lives_are_judged_by_their_share() {
    let facts = mesh();
    for (id, well, warned, failed) in [
        ("CA-02", 15 * DAY, 19 * DAY, 30 * DAY),
        ("CA-09", 20 * DAY, 25 * DAY, 31 * DAY),
        ("ID-02", 2800, 3000, 3600),
        ("ID-03", 60_000, 80_000, 90_000),
        ("IN-01", 60_000, 80_000, 90_000),
    ] {
        assert_eq!(found(&facts, id, well), Found::Ok, "{id}");
        assert_eq!(found(&facts, id, warned), Found::Warn, "{id}");
        assert_eq!(found(&facts, id, failed), Found::Fail, "{id}");
    }
}

#[test]
fn a_root_needs_a_successor_in_time() {
    let mut facts = mesh();
    assert_eq!(found(&facts, "CA-01", 200 * DAY), Found::Ok);
    assert_eq!(found(&facts, "CA-01", 310 * DAY), Found::Warn);
    assert_eq!(found(&facts, "CA-01", 366 * DAY), Found::Fail);
    let prepared =
        json!({"id": "next", "kind": "root", "state": "prepared", "not_before": text(0), "not_after": text(9)});
    let ca = facts.parts.iter_mut().find(|part| part.name == "ca").unwrap();
    ca.pages.get_mut("/certs").unwrap()["authorities"].as_array_mut().unwrap().push(prepared);
    assert_eq!(found(&facts, "CA-01", 310 * DAY), Found::Ok);
}

#[test]
fn what_does_not_answer_is_unknown_and_never_well() {
    let mut facts = mesh();
    for part in &mut facts.parts {
        part.pages.clear();
    }
    facts.rotations.clear();
    (facts.disk, facts.documents) = (None, None);
    let outcomes = judge(&facts, at(0));
    let well: Vec<_> = outcomes.iter().filter(|outcome| outcome.found == Found::Ok).map(|o| o.check.id).collect();
    assert_eq!(well, ["HO-01", "HO-02", "IN-01"], "these need no page");
}

#[test]
fn troubles_are_found_and_named() {
    let mut facts = mesh();
    set(&mut facts, "ca", "/status", "/database", json!("DATABASE_FULL"));
    set(&mut facts, "ca", "/status", "/agents_enforcing_bundle", json!(1));
    set(&mut facts, "ca", "/status", "/now", json!(text(31)));
    set(&mut facts, "agent", "/status", "/svids_missing", json!(1));
    set(&mut facts, "discovery", "/status", "/xds/clients/0/behind", json!(2));
    set(&mut facts, "ingress", "/certs", "/certificates/0/ca_cert/0/serial_number", json!("other"));
    let finding = json!([{"level": "Error", "file": "a.yaml", "line": 3, "code": "X"}]);
    facts.parts[2].pages.insert("/findings", finding);
    facts.parts[0].ready = Err("database".into());
    for id in ["CA-07", "HO-04", "ID-01", "PX-01", "PX-02", "CF-01", "HO-02"] {
        assert_eq!(found(&facts, id, 0), Found::Fail, "{id}");
    }
    assert_eq!(found(&facts, "CA-06", 0), Found::Warn);
    let outcomes = judge(&facts, at(0));
    let value = |id: &str| outcomes.iter().find(|outcome| outcome.check.id == id).unwrap().value.clone();
    assert!(value("CF-01").contains("a.yaml:3 X") && value("PX-02").contains("ingress"), "{outcomes:?}");
}

#[test]
fn a_rotation_is_stuck_when_a_node_lags_for_long() {
    let mut facts = mesh();
    let since = i64::try_from(START).unwrap();
    facts.rotations[0] = StatusResponse {
        phase: "prepared".into(),
        started_at: since,
        laggards: vec![Laggard { since, ..Laggard::default() }],
        ..StatusResponse::default()
    };
    assert_eq!(found(&facts, "CA-05", 15 * 60), Found::Ok);
    assert_eq!(found(&facts, "CA-05", 15 * 60 + 1), Found::Warn);
}

const DAY: u64 = 86_400;
const YEAR: u64 = 365 * DAY;

/// A workload that speaks HTTP and one that speaks bytes.
const WRITTEN: &str = "
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: web}, spec: {hosts: [web.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: web}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web-1}, spec: {address: 10.0.0.1, labels: {app: web}, serviceAccount: web}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: bytes}, spec: {hosts: [bytes.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC,
  ports: [{number: 90, name: tcp, protocol: TCP}], workloadSelector: {labels: {app: bytes}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: bytes-1}, spec: {address: 10.0.0.2, labels: {app: bytes}, serviceAccount: bytes}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: good}, spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]}]}}
";
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"a","x":"qp0i3hGPJfic6Rtg5ykxQyl-Q4y98Ra1gzJeKxMwOfE","y":"gfRjCCupfAQTsdtjOhQ6lvCRWR9kJ_XCvsat1N4dgGQ"}]}"#;
