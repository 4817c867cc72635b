//! Which node may issue for which entry.

use std::collections::BTreeSet;

use super::*;
use crate::entry::Selector;
use crate::testing::{agent, entry, id};

fn registry(entries: Vec<Entry>) -> Registry {
    let mut registry = Registry::new(id("/spire/server"));
    for entry in entries {
        registry.apply(Change::EntrySet(Arc::new(entry)));
    }
    registry
}

#[track_caller]
fn check(registry: &Registry, node: &Agent, expected: &[&str]) {
    let found: Vec<String> = registry.authorized(node, NOW).iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(found, expected);
    let asked_singly: Vec<&str> = registry
        .entries_after("")
        .filter(|entry| registry.is_authorized(node, entry, NOW))
        .map(|entry| entry.id.as_str())
        .collect();
    assert_eq!(asked_singly, expected, "asked one by one");
}

fn alias(name: &str, spiffe_id: &str, selectors: &[(&str, &str)]) -> Entry {
    let selectors = selectors.iter().map(|(kind, value)| Selector::new(*kind, *value)).collect();
    Entry { selectors, ..entry(name, spiffe_id, "/spire/server") }
}

const NOW: i64 = 1_000;

#[test]
fn a_node_may_issue_for_what_hangs_below_it() {
    let node = agent("/spire/agent/join_token/one");
    let registry = registry(vec![
        entry("a", "/web", "/spire/agent/join_token/one"),
        entry("b", "/web/child", "/web"),
        entry("c", "/other", "/spire/agent/join_token/two"),
        entry("d", "/orphan", "/nobody"),
    ]);
    check(&registry, &node, &["a", "b"]);
    check(&registry, &agent("/spire/agent/join_token/two"), &["c"]);
    check(&registry, &agent("/spire/agent/join_token/three"), &[]);
}

#[test]
fn an_alias_is_followed_when_the_node_has_all_its_selectors() {
    let node = agent("/spire/agent/join_token/one");
    let own = node.id.to_string();
    let registry = registry(vec![
        alias("alias", "/node/local", &[("spiffe_id", &own)]),
        alias("more", "/node/rack", &[("spiffe_id", &own), ("rack", "7")]),
        entry("a", "/web", "/node/local"),
        entry("b", "/db", "/node/rack"),
    ]);
    check(&registry, &node, &["a"]);
    check(&registry, &agent("/spire/agent/join_token/two"), &[]);
    let racked = Agent { selectors: BTreeSet::from([Selector::new("rack", "7")]), ..node };
    check(&registry, &racked, &["a", "b"]);
}

#[test]
fn an_expired_entry_and_all_below_it_are_out() {
    let gone = Entry { expires_at: NOW, ..entry("a", "/web", "/spire/agent/join_token/one") };
    let registry = registry(vec![gone, entry("b", "/child", "/web")]);
    check(&registry, &agent("/spire/agent/join_token/one"), &[]);
}

#[test]
fn a_circle_of_parents_ends() {
    let registry = registry(vec![entry("a", "/a", "/b"), entry("b", "/b", "/a"), entry("c", "/c", "/c")]);
    check(&registry, &agent("/spire/agent/join_token/one"), &[]);
    check(&registry, &agent("/a"), &["a", "b"]);
}

#[test]
fn changed_and_deleted_entries_leave_no_trace_in_the_indexes() {
    let node = agent("/spire/agent/join_token/one");
    let mut registry = registry(vec![entry("a", "/web", "/spire/agent/join_token/one")]);
    registry.apply(Change::EntrySet(Arc::new(entry("a", "/web", "/elsewhere"))));
    check(&registry, &node, &[]);
    registry.apply(Change::EntryGone("a".into()));
    assert_eq!((registry.entry_count(), registry.by_parent.len(), registry.by_id.len()), (0, 0, 0));
}

#[test]
fn only_a_live_admin_entry_makes_an_administrator() {
    let admin = Entry { admin: true, expires_at: NOW + 1, ..entry("a", "/ops", "/p") };
    let registry = registry(vec![admin, entry("b", "/web", "/p")]);
    assert!(registry.is_admin(&id("/ops"), NOW));
    assert!(!registry.is_admin(&id("/ops"), NOW + 1));
    assert!(!registry.is_admin(&id("/web"), NOW));
}

#[test]
fn pages_begin_after_the_given_id() {
    let registry = registry(vec![entry("a", "/a", "/p"), entry("b", "/b", "/p"), entry("c", "/c", "/p")]);
    let ids = |after: &str| registry.entries_after(after).map(|entry| entry.id.clone()).collect::<Vec<_>>();
    assert_eq!(
        (ids(""), ids("a"), ids("c")),
        (vec!["a".into(), "b".into(), "c".into()], vec!["b".into(), "c".into()], vec![])
    );
}

proptest::proptest! {
    /// Asking upwards for one entry and downwards for all gives the same answer, whatever hangs where.
    #[test]
    fn both_questions_have_one_answer(
        shape in proptest::collection::vec((0..6_usize, 0..8_usize, proptest::bool::ANY, proptest::bool::ANY), 0..12),
    ) {
        const IDS: [&str; 8] =
            ["/a", "/b", "/c", "/d", "/e", "/f", "/spire/agent/join_token/one", "/spire/server"];
        let own = id("/spire/agent/join_token/one").to_string();
        let entries = shape.iter().enumerate().map(|(at, (named, parent, live, mine))| Entry {
            expires_at: if *live { 0 } else { NOW },
            selectors: if *mine {
                BTreeSet::from([Selector::new("spiffe_id", own.clone())])
            } else {
                BTreeSet::from([Selector::new("unix", format!("uid:{at}"))])
            },
            ..entry(&format!("e{at:02}"), IDS[*named], IDS[*parent])
        });
        let registry = registry(entries.collect());
        let node = agent("/spire/agent/join_token/one");
        let all: Vec<String> = registry.authorized(&node, NOW).iter().map(|entry| entry.id.clone()).collect();
        let singly: Vec<String> = registry
            .entries_after("")
            .filter(|entry| registry.is_authorized(&node, entry, NOW))
            .map(|entry| entry.id.clone())
            .collect();
        proptest::prop_assert_eq!(all, singly);
    }
}
