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
    facts.disk = None;
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
