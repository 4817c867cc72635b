//! Documents, templates and plans, without a CA.

use std::collections::BTreeSet;
use std::path::Path;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use proptest::prelude::*;
use proto::spire::api::types::{Agent, Entry, Selector, Spiffeid};

use super::document;
use super::expand::{Desired, expand};
use super::plan::Plan;
use super::template::{Slot, Values, fill};
use crate::ca_client::id_text;

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn desired(text: &str, nodes: &[Agent]) -> Result<Vec<Desired>, String> {
    let documents = document::parse(Path::new("e.yaml"), text).map_err(|problem| problem.to_string())?;
    expand(&documents, &domain(), nodes)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn entries(text: &str) -> Vec<Entry> {
    desired(text, &[]).unwrap().into_iter().map(|desired| desired.entry).collect()
}

fn ids(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| id_text(entry.spiffe_id.as_ref())).collect()
}

fn node(name: &str, selectors: &[(&str, &str)]) -> Agent {
    let selectors =
        selectors.iter().map(|(kind, value)| Selector { r#type: (*kind).into(), value: (*value).into() }).collect();
    Agent {
        id: Some(Spiffeid { trust_domain: "example.org".into(), path: format!("/spire/agent/k8s_psat/prod/{name}") }),
        attestation_type: "k8s_psat".into(),
        selectors,
        ..Agent::default()
    }
}

const WHOLE: &str = "
kind: Entries
owner: shop
vars: {env: prod}
defaults: {parent_id: spiffe://example.org/node/a, x509_svid_ttl: 1h, federates_with: [other.org]}
entries:
  - name: cart
    spiffe_id: spiffe://example.org/${var.env}/cart
    selectors: ['launch:name:cart', 'unix:uid:1000']
    x509_svid_ttl: 20s
    jwt_svid_ttl: 5m
    dns_names: [cart.example.org]
    federates_with: []
    hint: main
    admin: true
    downstream: true
    store_svid: true
    expires_at: 2033-05-18T03:33:20Z
    x509_svid_prefetch: false
    jwt_svid_jti: true
  - spiffe_id: spiffe://example.org/shop
    selectors: ['launch:name:shop']
";

#[test]
fn every_field_of_a_document_reaches_its_entry() {
    let entries = entries(WHOLE);
    assert_eq!(ids(&entries), ["spiffe://example.org/prod/cart", "spiffe://example.org/shop"]);
    let cart = &entries[0];
    assert_eq!((cart.id.as_str(), cart.x509_svid_ttl, cart.jwt_svid_ttl), ("kasbah.shop.cart", 20, 300));
    assert_eq!((cart.hint.as_str(), cart.expires_at), ("main", 2_000_000_000));
    assert!(cart.admin && cart.downstream && cart.store_svid && cart.federates_with.is_empty());
    assert_eq!(cart.dns_names, ["cart.example.org"]);
    let attributes = cart.additional_attributes.unwrap();
    assert!(attributes.disable_x509_svid_prefetch && attributes.jwt_svid_include_jti);
    let shop = &entries[1];
    assert_eq!((shop.x509_svid_ttl, &shop.federates_with[..]), (3600, &["other.org".to_owned()][..]));
    assert!(shop.id.starts_with("kasbah.shop.") && shop.additional_attributes.is_none());
}

#[test]
fn a_fault_is_told_with_its_line_and_column() {
    let check = |text: &str, place: &str, word: &str| {
        let problem = desired(text, &[]).unwrap_err();
        assert!(problem.contains(&format!("e.yaml:{place}")) && problem.contains(word), "{text}\n{problem}");
    };
    let one = |line: &str| {
        format!(
            "kind: Entries\nowner: o\nentries:\n  - spiffe_id: spiffe://example.org/a\n    parent_id: spiffe://example.org/p\n    selectors: ['unix:uid:1']\n    {line}\n"
        )
    };
    check("kind: Entry\nowner: o\n", "1:7", "Entry");
    check("kind: Entries\nowner: a.b\n", "2:8", "owner");
    check("kind: Entries\nowner: o\nentry: []\n", "3:", "entry");
    check(&one("x509_ttl: 1h"), "7:", "x509_ttl");
    check(&one("x509_svid_ttl: soon"), "7:20", "soon");
    check(&one("expires_at: soon"), "7:17", "soon");
    check(&one("name: a/b"), "7:11", "a/b");
    check(&one("hint: ${var.x}"), "7:11", "var.x");
    check(&one("hint: ${var.x"), "7:11", "without");
    check(&one("admin: maybe"), "7:12", "");
    check(&one("for_each: [[1]]"), "7:15", "for_each");
    check(
        "kind: Entries\nowner: o\nentries:\n  - spiffe_id: spiffe://example.org/a\n    selectors: ['unix:uid:1']\n",
        "4:",
        "parent_id",
    );
    check(
        "kind: Entries\nowner: o\nentries:\n  - spiffe_id: http://example.org/a\n    parent_id: spiffe://example.org/p\n    selectors: ['unix:uid:1']\n",
        "4:16",
        "http",
    );
    check(
        "kind: Entries\nowner: o\nentries:\n  - spiffe_id: spiffe://example.org/a\n    parent_id: spiffe://example.org/p\n    selectors: [unix]\n",
        "6:17",
        "unix",
    );
    check("kind: Entries\nowner: o\nentries: [\n", "", "");
}

#[test]
fn two_entries_of_one_name_or_meaning_are_refused() {
    let entry = |name: &str, path: &str| {
        format!(
            "  - {{name: {name}, spiffe_id: 'spiffe://example.org/{path}', parent_id: 'spiffe://example.org/p', selectors: ['unix:uid:1']}}\n"
        )
    };
    let text = |entries: &[String]| format!("kind: Entries\nowner: o\nentries:\n{}", entries.concat());
    assert!(desired(&text(&[entry("a", "a"), entry("b", "b")]), &[]).is_ok());
    assert!(desired(&text(&[entry("a", "a"), entry("a", "b")]), &[]).unwrap_err().contains("e.yaml:5:5: the name"));
    assert!(desired(&text(&[entry("a", "a"), entry("b", "a")]), &[]).unwrap_err().contains("says the same"));
}

#[test]
fn a_template_becomes_one_entry_for_each_value() {
    let text = "
kind: Entries
owner: o
entries:
  - name: web-${each.region}
    for_each: [{region: eu, uid: 1000}, {region: us, uid: 1001}]
    spiffe_id: spiffe://${trust_domain}/region/${each.region}/web
    parent_id: spiffe://example.org/node/${each.region}
    selectors: ['unix:uid:${each.uid}', 'text:a $${each.region}']
  - for_each: [a, 7]
    spiffe_id: spiffe://example.org/job-${each.value}
    parent_id: spiffe://example.org/node/x
    selectors: ['launch:name:${each.value}']
";
    let entries = entries(text);
    let expected =
        ["region/eu/web", "region/us/web", "job-a", "job-7"].map(|path| format!("spiffe://example.org/{path}"));
    assert_eq!(ids(&entries), expected);
    assert_eq!(entries[1].id, "kasbah.o.web-us");
    assert_eq!(entries[1].selectors[0].value, "uid:1001");
    assert_eq!(entries[1].selectors[1].value, "a ${each.region}");
}

#[test]
fn a_template_becomes_one_entry_for_each_node() {
    let text = "
kind: Entries
owner: o
entries:
  - name: proxy-${node.name}
    for_each_node: {attestation_type: k8s_psat, selectors: ['k8s_psat:cluster:prod']}
    spiffe_id: spiffe://example.org/node/${node.selector.k8s_psat:agent_node_name}/proxy
    parent_id: ${node.id}
    selectors: ['unix:uid:1337']
";
    let prod = |name: &str, host: &str| {
        let host = format!("agent_node_name:{host}");
        node(name, &[("k8s_psat", "cluster:prod"), ("k8s_psat", &host)])
    };
    let banned = Agent { banned: true, ..prod("u3", "n3") };
    let nodes = [prod("u1", "n1"), node("u2", &[("k8s_psat", "cluster:test")]), banned];
    let entries: Vec<Entry> = desired(text, &nodes).unwrap().into_iter().map(|desired| desired.entry).collect();
    assert_eq!(ids(&entries), ["spiffe://example.org/node/n1/proxy"]);
    assert_eq!(id_text(entries[0].parent_id.as_ref()), "spiffe://example.org/spire/agent/k8s_psat/prod/u1");
    for host in ["../x", "a/b", "..", "a b", ""] {
        let problem = desired(text, &[prod("u1", host)]).unwrap_err();
        assert!(problem.contains("e.yaml:7:16") && problem.contains("u1"), "{problem}");
    }
    let unnamed = [node("u4", &[("k8s_psat", "cluster:prod")])];
    assert!(desired(text, &unnamed).unwrap_err().contains("no selector"));
}

#[test]
fn the_type_of_a_selector_is_never_a_value() {
    let mut values = Values::default();
    values.set("each.value", "unix");
    assert!(fill("${each.value}:uid:0", Slot::Selector, &values).is_err());
    assert_eq!(fill("launch:name:${each.value}", Slot::Selector, &values).unwrap(), "launch:name:unix");
    values.set("each.value", "a\nunix:uid:0");
    assert!(fill("launch:name:${each.value}", Slot::Selector, &values).is_err());
}

proptest! {
    #[test]
    fn no_value_changes_the_shape_of_an_id(value in "[a-z./%:@#?\\\\$\\{\\} \\PC]{0,12}") {
        let mut values = Values::default();
        values.set("each.value", value.as_str());
        if let Ok(filled) = fill("spiffe://example.org/a/${each.value}/b", Slot::Id, &values) {
            let id = SpiffeId::parse(&filled).unwrap();
            prop_assert_eq!(id.path().split('/').count(), 4);
            prop_assert!(id.path().starts_with("/a/") && id.path().ends_with("/b"));
            prop_assert_eq!(id.trust_domain_name(), "example.org");
        }
    }
}

fn plan(text: &str, existing: &[Entry], prune: bool) -> Plan {
    Plan::make(desired(text, &[]).unwrap(), existing, &BTreeSet::from(["shop".to_owned()]), prune)
}

#[test]
fn what_was_applied_is_unchanged_and_what_differs_is_named() {
    let all = entries(WHOLE);
    let fresh = plan(WHOLE, &[], true);
    assert_eq!((fresh.create.len(), fresh.is_pending()), (2, true));
    let again = plan(WHOLE, &all, true);
    assert_eq!((again.unchanged.len(), again.is_pending()), (2, false));
    let mut changed = all;
    changed[0].x509_svid_ttl = 60;
    changed[0].selectors.pop();
    changed[0].selectors.reverse();
    let update = plan(WHOLE, &changed, true);
    let fields: Vec<&str> = update.update[0].changes.iter().map(|change| change.field).collect();
    assert_eq!(fields, ["selectors", "x509_svid_ttl"]);
    let text = update.text();
    assert!(text.contains("x509_svid_ttl: 1m -> 20s") && text.contains("1 to update"), "{text}");
}

#[test]
fn only_what_carries_the_owners_mark_is_deleted() {
    let mut existing = entries(WHOLE);
    for (id, path) in
        [("kasbah.shop.old", "/old"), ("kasbah.shopping.x", "/x"), ("kasbah.other.y", "/y"), ("shop", "/z")]
    {
        let spiffe_id = Some(Spiffeid { trust_domain: "example.org".into(), path: path.into() });
        existing.push(Entry { id: id.into(), spiffe_id, ..existing[0].clone() });
    }
    let kept = plan(WHOLE, &existing, false);
    assert!(!kept.is_pending() && kept.orphaned.len() == 1);
    let pruned = plan(WHOLE, &existing, true);
    let deleted: Vec<&str> = pruned.delete.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(deleted, ["kasbah.shop.old"]);
}

#[test]
fn an_entry_made_by_hand_that_says_the_same_is_taken_as_it_is() {
    let mut by_hand = entries(WHOLE);
    by_hand[1].id = "0e5b6a0c".into();
    by_hand[1].hint = "old".into();
    let plan = plan(WHOLE, &by_hand, true);
    assert_eq!((plan.create.len(), plan.delete.len(), plan.unchanged.len()), (0, 0, 1));
    assert_eq!((plan.update[0].entry.id.as_str(), plan.update[0].changes[0].field), ("0e5b6a0c", "hint"));
}
