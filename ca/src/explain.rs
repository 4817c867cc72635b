//! Why a workload gets an identity, or why not: the rules of issuance, asked of a copy of the registry.
//!
//! The same code decides here and where SVIDs are issued ([`Registry::is_authorized`]), so an explanation cannot say
//! something else than what happens. The command line brings the copy through the API; nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use proto::spire::api::types;
use serde::Serialize;

use crate::agent::Agent;
use crate::api::{EntryPatch, id_of, selectors_of, whole_mask};
use crate::entry::{Entry, Selector};
use crate::registry::{Change, Registry};
use crate::server::SERVER_PATH;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What the workload shows; without any, selectors are not judged.
    pub selectors: Vec<(String, String)>,
    /// The node that the workload runs on; without one, any node will do.
    pub node: Option<SpiffeId>,
    /// Only entries with this ID.
    pub spiffe_id: Option<SpiffeId>,
}

/// What is answered, one verdict for each entry that is near.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Whether any entry gives an identity.
    pub given: bool,
    /// What holds for the question as a whole, such as that the node is banned.
    pub remarks: Vec<Ground>,
    /// The nearest first.
    pub entries: Vec<Verdict>,
}

/// One entry.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Its id.
    pub entry_id: String,
    /// The identity.
    pub spiffe_id: String,
    /// Below whom it holds.
    pub parent_id: String,
    /// What it asks for.
    pub selectors: Vec<String>,
    /// Whether the workload gets it.
    pub given: bool,
    /// Why not.
    pub grounds: Vec<Ground>,
    /// Nodes that may serve it now.
    pub nodes: Vec<String>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ground {
    /// The stable code.
    pub code: &'static str,
    /// In words.
    pub text: String,
}

/// A copy of what the authority knows.
struct Copy<'a> {
    registry: Registry,
    server_id: SpiffeId,
    question: &'a Question,
    now: i64,
}

/// Explains. What cannot be read is left out.
pub fn explain(
    question: &Question,
    entries: &[types::Entry],
    nodes: &[types::Agent],
    trust_domain: &TrustDomain,
    now: i64,
) -> Explanation {
    let Ok(server_id) = trust_domain.with_path(SERVER_PATH) else {
        return Explanation { given: false, remarks: Vec::new(), entries: Vec::new() };
    };
    let mut registry = Registry::new(server_id.clone());
    for entry in entries.iter().filter_map(|message| entry_of(message, trust_domain)) {
        registry.apply(Change::EntrySet(Arc::new(entry)));
    }
    for node in nodes.iter().filter_map(node_of) {
        registry.apply(Change::AgentSet(Arc::new(node)));
    }
    Copy { registry, server_id, question, now }.explain()
}

impl Copy<'_> {
    fn explain(&self) -> Explanation {
        let near = self.registry.entries_after("").filter(|entry| self.is_near(entry));
        let mut entries: Vec<(Verdict, Arc<Entry>)> = near.map(|entry| (self.judge(entry), entry.clone())).collect();
        mark_hint_clashes(&mut entries);
        entries.sort_by_key(|(verdict, entry)| {
            (!verdict.given, verdict.grounds.len(), entry.created_at, entry.id.clone())
        });
        entries.truncate(VERDICTS_MAX);
        let entries: Vec<Verdict> = entries.into_iter().map(|(verdict, _)| verdict).collect();
        let remarks = self.remarks(&entries);
        Explanation { given: entries.iter().any(|verdict| verdict.given), remarks, entries }
    }

    /// Entries that have something to do with the question; aliases of nodes only when asked for by name.
    fn is_near(&self, entry: &Entry) -> bool {
        if let Some(id) = &self.question.spiffe_id {
            return entry.spiffe_id == *id;
        }
        let shown = self.shown();
        entry.parent_id != self.server_id && (shown.is_empty() || !entry.selectors.is_disjoint(&shown))
    }

    fn shown(&self) -> BTreeSet<Selector> {
        self.question.selectors.iter().map(|(kind, value)| Selector::new(kind, value)).collect()
    }

    fn judge(&self, entry: &Arc<Entry>) -> Verdict {
        let mut grounds = Vec::new();
        if !entry.is_live(self.now) {
            grounds.push(ground("ENTRY_EXPIRED", format!("the entry ended at {}", moment(entry.expires_at))));
        }
        let shown = self.shown();
        if !shown.is_empty() {
            let missing = entry.selectors.difference(&shown).map(text);
            grounds.extend(
                missing.map(|selector| ground("SELECTOR_MISSING", format!("the workload does not show {selector}"))),
            );
        }
        if entry.store_svid {
            grounds.push(ground("SVID_STORED", "its SVID goes to a store, not to the Workload API".into()));
        }
        let serving = self.serving(entry);
        match &self.question.node {
            Some(node) if !serving.contains(node) => grounds.extend(self.why_not_served(entry, node)),
            None if serving.is_empty() => grounds.extend(self.why_nobody_serves(entry)),
            _ => (),
        }
        Verdict {
            entry_id: entry.id.clone(),
            spiffe_id: entry.spiffe_id.to_string(),
            parent_id: entry.parent_id.to_string(),
            selectors: entry.selectors.iter().map(text).collect(),
            given: grounds.is_empty() && self.question.node.as_ref().is_none_or(|node| serving.contains(node)),
            grounds,
            nodes: serving.iter().take(NODES_MAX).map(ToString::to_string).collect(),
        }
    }

    /// Nodes that may serve the entry; its end is another ground.
    fn serving(&self, entry: &Entry) -> BTreeSet<SpiffeId> {
        let lasting = Entry { expires_at: 0, ..entry.clone() };
        let usable = |node: &&Arc<Agent>| !node.banned && node.expires_at.max(node.new_expires_at) > self.now;
        let nodes = self.registry.agents().filter(usable);
        nodes.filter(|node| self.registry.is_authorized(node, &lasting, self.now)).map(|node| node.id.clone()).collect()
    }

    fn why_not_served(&self, entry: &Entry, node: &SpiffeId) -> Vec<Ground> {
        let Some(known) = self.registry.agent(node) else {
            return Vec::new(); // Said once, for the question as a whole.
        };
        let lasting = Entry { expires_at: 0, ..entry.clone() };
        if self.registry.is_authorized(&known, &lasting, self.now) {
            return Vec::new(); // The node itself is the trouble.
        }
        let mut grounds = vec![ground("PARENT_OTHER_NODE", format!("its parent {} is not this node", entry.parent_id))];
        grounds.extend(self.aliases_of(&entry.parent_id).flat_map(|alias| self.alias_grounds(alias, &known)));
        grounds
    }

    fn alias_grounds(&self, alias: &Entry, node: &Agent) -> Vec<Ground> {
        if !alias.is_live(self.now) {
            let text =
                format!("the alias {} (entry {}) ended at {}", alias.spiffe_id, alias.id, moment(alias.expires_at));
            return vec![ground("ALIAS_EXPIRED", text)];
        }
        let missing = alias.selectors.iter().filter(|wanted| !node.has_all(&BTreeSet::from([(*wanted).clone()])));
        let ground_of = |wanted| {
            ground(
                "NODE_SELECTOR_MISSING",
                format!("the alias {} (entry {}) asks the node for {}", alias.spiffe_id, alias.id, text(wanted)),
            )
        };
        missing.map(ground_of).collect()
    }

    fn why_nobody_serves(&self, entry: &Entry) -> Vec<Ground> {
        let parent = &entry.parent_id;
        let said = |text: String| vec![ground("PARENT_UNKNOWN", text)];
        if let Some(node) = self.registry.agent(parent) {
            return self.node_remarks(&node);
        }
        if self.aliases_of(parent).next().is_some() {
            return said(format!("no attested node has the selectors of the alias {parent}"));
        }
        let is_entry = self.registry.entries_after("").any(|above| above.spiffe_id == *parent);
        match is_entry {
            true => said(format!("no attested node may serve its parent {parent}")),
            false => said(format!("its parent {parent} is neither an attested node, nor an alias, nor an entry")),
        }
    }

    fn aliases_of<'b>(&'b self, id: &'b SpiffeId) -> impl Iterator<Item = &'b Arc<Entry>> {
        self.registry.entries_after("").filter(move |entry| entry.spiffe_id == *id && entry.parent_id == self.server_id)
    }

    fn remarks(&self, entries: &[Verdict]) -> Vec<Ground> {
        let mut remarks = Vec::new();
        if let Some(node) = &self.question.node {
            match self.registry.agent(node) {
                Some(node) => remarks.extend(self.node_remarks(&node)),
                None => {
                    remarks.push(ground("NODE_UNKNOWN", format!("no node {node} has attested; see kasbah node list")));
                }
            }
        }
        if entries.is_empty() {
            remarks.push(match &self.question.spiffe_id {
                Some(id) => ground("NO_ENTRY", format!("no entry gives {id}; create one with kasbah entry create")),
                None => ground("NO_ENTRY", "no entry asks for any of these selectors".into()),
            });
        }
        remarks
    }

    fn node_remarks(&self, node: &Agent) -> Vec<Ground> {
        if node.banned {
            return vec![ground("NODE_BANNED", format!("the node {} is banned", node.id))];
        }
        let end = node.expires_at.max(node.new_expires_at);
        if end <= self.now {
            return vec![ground("NODE_EXPIRED", format!("the SVID of the node {} ended at {}", node.id, moment(end)))];
        }
        Vec::new()
    }
}

/// Of several identities with one hint a workload gets the oldest.
fn mark_hint_clashes(entries: &mut [(Verdict, Arc<Entry>)]) {
    entries.sort_by_key(|(_, entry)| (entry.created_at, entry.id.clone()));
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    for (verdict, entry) in entries.iter_mut().filter(|(verdict, entry)| verdict.given && !entry.hint.is_empty()) {
        if let Some(holder) = holders.get(&entry.hint) {
            verdict.given = false;
            verdict
                .grounds
                .push(ground("HINT_TAKEN", format!("the older entry {holder} has the same hint `{}`", entry.hint)));
        } else {
            holders.insert(entry.hint.clone(), entry.id.clone());
        }
    }
}

fn entry_of(message: &types::Entry, domain: &TrustDomain) -> Option<Entry> {
    let patch = EntryPatch::read(message, &whole_mask(), domain, i64::MAX).ok()?;
    patch.into_entry(message.id.clone(), message.created_at).ok()
}

fn node_of(message: &types::Agent) -> Option<Agent> {
    Some(Agent {
        id: id_of("id", message.id.as_ref()).ok()?,
        attestation_type: message.attestation_type.clone(),
        serial: message.x509svid_serial_number.clone(),
        expires_at: message.x509svid_expires_at,
        new_serial: String::new(),
        new_expires_at: 0,
        selectors: if message.selectors.is_empty() {
            BTreeSet::new()
        } else {
            selectors_of(&message.selectors).ok()?
        },
        banned: message.banned,
        can_reattest: message.can_reattest,
        version: String::new(),
        bundle_sequence: 0,
        attested_at: 0,
        bundle_since: 0,
        seen_at: 0,
    })
}

fn ground(code: &'static str, text: String) -> Ground {
    Ground { code, text }
}

fn text(selector: &Selector) -> String {
    format!("{}:{}", selector.kind, selector.value)
}

fn moment(secs: i64) -> String {
    jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |moment| moment.to_string())
}

const VERDICTS_MAX: usize = 50;
const NODES_MAX: usize = 20;

#[cfg(test)]
mod tests;
