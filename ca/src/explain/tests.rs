//! Each ground alone, and that explanation and issuance agree.

use proptest::prelude::*;

use super::*;
use crate::api::{agent_message, entry_message};
use crate::testing::{agent, entry, id, trust_domain};

const NODE: &str = "/spire/agent/join_token/a";

fn ask(question: &Question, entries: &[Entry], nodes: &[Agent]) -> Explanation {
    let entries: Vec<_> = entries.iter().map(|entry| entry_message(entry, None)).collect();
    let nodes: Vec<_> = nodes.iter().map(|node| agent_message(node, None)).collect();
    explain(question, &entries, &nodes, &trust_domain(), 1_000)
}

fn shows(selectors: &[&str]) -> Question {
    let selectors = selectors.iter().map(|text| text.split_once(':').unwrap());
    let selectors = selectors.map(|(kind, value)| (kind.to_owned(), value.to_owned())).collect();
    Question { selectors, node: Some(id(NODE)), spiffe_id: None }
}

fn codes(explanation: &Explanation) -> Vec<&'static str> {
    let grounds = explanation.entries.iter().flat_map(|verdict| &verdict.grounds).chain(&explanation.remarks);
    grounds.map(|ground| ground.code).collect()
}

#[test]
fn an_identity_that_is_given_says_so() {
    let found = ask(&shows(&["unix:uid:1000"]), &[entry("e", "/web", NODE)], &[agent(NODE)]);
    assert!(found.given && found.remarks.is_empty(), "{found:?}");
    assert_eq!(found.entries[0].nodes, [id(NODE).to_string()]);
    let by_id = Question { spiffe_id: Some(id("/web")), ..Question::default() };
    assert!(ask(&by_id, &[entry("e", "/web", NODE)], &[agent(NODE)]).given, "without selectors");
}

#[test]
fn each_ground_has_its_code() {
    let check = |question: &Question, entries: &[Entry], nodes: &[Agent], expected: &[&str]| {
        let found = ask(question, entries, nodes);
        assert_eq!((codes(&found).as_slice(), found.given), (expected, false), "{found:?}");
    };
    let (uid, web) = (shows(&["unix:uid:1000"]), entry("e", "/web", NODE));
    let mut two = web.clone();
    two.selectors.insert(Selector::new("launch", "name:web"));
    check(&uid, &[two], &[agent(NODE)], &["SELECTOR_MISSING"]);
    check(&uid, &[Entry { expires_at: 1_000, ..web.clone() }], &[agent(NODE)], &["ENTRY_EXPIRED"]);
    check(&uid, &[Entry { store_svid: true, ..web.clone() }], &[agent(NODE)], &["SVID_STORED"]);
    check(&uid, &[entry("e", "/web", "/spire/agent/join_token/b")], &[agent(NODE)], &["PARENT_OTHER_NODE"]);
    check(&uid, &[], &[agent(NODE)], &["NO_ENTRY"]);
    check(&uid, std::slice::from_ref(&web), &[], &["NODE_UNKNOWN"]);
    check(&uid, std::slice::from_ref(&web), &[Agent { banned: true, ..agent(NODE) }], &["NODE_BANNED"]);
    check(&uid, std::slice::from_ref(&web), &[Agent { expires_at: 1_000, ..agent(NODE) }], &["NODE_EXPIRED"]);
    let alias = Entry {
        selectors: BTreeSet::from([Selector::new("x509pop", "subject:cn:a")]),
        ..entry("n", "/node", SERVER_PATH)
    };
    let below = entry("e", "/web", "/node");
    check(&uid, &[alias.clone(), below.clone()], &[agent(NODE)], &["PARENT_OTHER_NODE", "NODE_SELECTOR_MISSING"]);
    let ended = Entry { expires_at: 1, ..alias };
    check(&uid, &[ended, below], &[agent(NODE)], &["PARENT_OTHER_NODE", "ALIAS_EXPIRED"]);
    let by_id = Question { spiffe_id: Some(id("/web")), ..Question::default() };
    check(&by_id, &[entry("e", "/web", "/node")], &[agent(NODE)], &["PARENT_UNKNOWN"]);
    check(&by_id, &[], &[], &["NO_ENTRY"]);
}

#[test]
fn of_two_identities_with_one_hint_the_older_is_given() {
    let hinted =
        |entry_id: &str, path: &str, created_at| Entry { hint: "db".into(), created_at, ..entry(entry_id, path, NODE) };
    let found = ask(&shows(&["unix:uid:1000"]), &[hinted("a", "/new", 2), hinted("b", "/old", 1)], &[agent(NODE)]);
    assert_eq!(codes(&found), ["HINT_TAKEN"]);
    assert!(found.given && found.entries[0].spiffe_id.ends_with("/old"));
}

proptest! {
    /// Entries, aliases and nodes at random: what is explained as given is exactly what the registry would serve.
    #[test]
    fn explanation_and_issuance_agree(
        made in proptest::collection::vec((0..4_usize, 0..6_usize, 0..3_u8, any::<bool>(), any::<bool>()), 0..8),
        facts in proptest::collection::btree_set(0..3_u8, 0..3),
        banned in any::<bool>(),
    ) {
        let parents = [NODE, "/spire/agent/join_token/b", "/node", SERVER_PATH, "/w0", "/w1"];
        let entries: Vec<Entry> = made.iter().enumerate().map(|(n, (path, parent, uid, expired, node))| {
            let selector = if *node { Selector::new("spiffe_id", id(NODE).to_string()) } else { Selector::new("unix", format!("uid:{uid}")) };
            let spiffe_id = if *path == 3 { "/node".to_owned() } else { format!("/w{path}") };
            Entry {
                selectors: BTreeSet::from([selector]),
                expires_at: if *expired { 1_000 } else { 0 },
                ..entry(&format!("e{n}"), &spiffe_id, parents[*parent])
            }
        }).collect();
        let node = Agent { banned, ..agent(NODE) };
        let selectors: Vec<(String, String)> = facts.iter().map(|uid| ("unix".into(), format!("uid:{uid}"))).collect();
        prop_assume!(!selectors.is_empty());
        let question = Question { selectors, node: Some(id(NODE)), spiffe_id: None };
        let found = ask(&question, &entries, std::slice::from_ref(&node));
        let mut registry = Registry::new(id(SERVER_PATH));
        for entry in &entries {
            registry.apply(Change::EntrySet(Arc::new(entry.clone())));
        }
        let shown: BTreeSet<Selector> = question.selectors.iter().map(|(kind, value)| Selector::new(kind, value)).collect();
        let served = registry.authorized(&node, 1_000);
        let served: BTreeSet<&str> = served.iter()
            .filter(|entry| !banned && entry.parent_id != id(SERVER_PATH) && entry.selectors.is_subset(&shown))
            .map(|entry| entry.id.as_str()).collect();
        let given: BTreeSet<&str> = found.entries.iter().filter(|v| v.given).map(|v| v.entry_id.as_str()).collect();
        prop_assert_eq!(given, served);
    }
}
