//! What the authority knows, in memory: entries, nodes and foreign bundles, indexed for the questions of issuance.
//!
//! The database is the truth; only the writer changes this copy, after a commit and in the order of the commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use identity::bundle::TrustBundle;
use identity::spiffe_id::{SpiffeId, TrustDomain};

use crate::agent::Agent;
use crate::entry::Entry;
use crate::federation::Relationship;

/// A change of the registry that a commit brought.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// An entry is there, or is changed.
    EntrySet(Arc<Entry>),
    /// An entry is gone.
    EntryGone(String),
    /// The new number of the whole set of entries.
    EntriesRevision(u64),
    /// A node is there, or is changed.
    AgentSet(Arc<Agent>),
    /// A node is forgotten.
    AgentGone(SpiffeId),
    /// A foreign bundle is there, or is changed.
    FederatedSet(Arc<TrustBundle>),
    /// A foreign bundle is gone.
    FederatedGone(TrustDomain),
    /// A federation relationship is there, or is changed.
    RelationshipSet(Arc<Relationship>),
    /// A federation relationship is gone.
    RelationshipGone(TrustDomain),
    /// A signing authority is there, is changed or is gone. They are kept elsewhere.
    Authorities,
    /// Something was revoked, or lists were signed. They are kept elsewhere.
    Revocations,
}

/// The indexed copy.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: BTreeMap<String, Arc<Entry>>,
    by_parent: BTreeMap<SpiffeId, BTreeSet<String>>,
    by_id: BTreeMap<SpiffeId, BTreeSet<String>>,
    agents: BTreeMap<SpiffeId, Arc<Agent>>,
    federated: BTreeMap<TrustDomain, Arc<TrustBundle>>,
    relationships: BTreeMap<TrustDomain, Arc<Relationship>>,
    server_id: Option<SpiffeId>,
    entries_revision: u64,
}

impl Registry {
    /// An empty registry; entries with the parent `server_id` are aliases of nodes.
    pub(crate) fn new(server_id: SpiffeId) -> Self {
        Self { server_id: Some(server_id), ..Self::default() }
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::EntrySet(entry) => self.insert(entry),
            Change::EntryGone(id) => self.remove(&id),
            Change::EntriesRevision(revision) => self.entries_revision = revision,
            Change::AgentSet(agent) => {
                self.agents.insert(agent.id.clone(), agent);
            }
            Change::AgentGone(id) => {
                self.agents.remove(&id);
            }
            Change::FederatedSet(bundle) => {
                self.federated.insert(bundle.trust_domain.clone(), bundle);
            }
            Change::FederatedGone(domain) => {
                self.federated.remove(&domain);
            }
            Change::RelationshipSet(relationship) => {
                self.relationships.insert(relationship.trust_domain.clone(), relationship);
            }
            Change::RelationshipGone(domain) => {
                self.relationships.remove(&domain);
            }
            Change::Authorities | Change::Revocations => (),
        }
    }

    pub(crate) fn entries_revision(&self) -> u64 {
        self.entries_revision
    }

    pub(crate) fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries.get(id).cloned()
    }

    /// Entries in the order of their ids, beginning after `after`.
    pub(crate) fn entries_after<'a>(&'a self, after: &str) -> impl Iterator<Item = &'a Arc<Entry>> {
        use std::ops::Bound;
        let from: (Bound<&str>, Bound<&str>) =
            (if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) }, Bound::Unbounded);
        self.entries.range::<str, _>(from).map(|(_, entry)| entry)
    }

    pub(crate) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn agent(&self, id: &SpiffeId) -> Option<Arc<Agent>> {
        self.agents.get(id).cloned()
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents.values()
    }

    pub(crate) fn federated(&self, domain: &TrustDomain) -> Option<Arc<TrustBundle>> {
        self.federated.get(domain).cloned()
    }

    pub(crate) fn all_federated(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.federated.values()
    }

    pub(crate) fn relationship(&self, domain: &TrustDomain) -> Option<Arc<Relationship>> {
        self.relationships.get(domain).cloned()
    }

    /// In the order of the trust domains.
    pub(crate) fn relationships(&self) -> impl Iterator<Item = &Arc<Relationship>> {
        self.relationships.values()
    }

    /// Whether a live entry makes `id` an administrator.
    pub(crate) fn is_admin(&self, id: &SpiffeId, now: i64) -> bool {
        self.entries_of(&self.by_id, id).any(|entry| entry.admin && entry.is_live(now))
    }

    /// The live entry that makes `id` a server below this one.
    pub(crate) fn downstream(&self, id: &SpiffeId, now: i64) -> Option<Arc<Entry>> {
        self.entries_of(&self.by_id, id).find(|entry| entry.downstream && entry.is_live(now)).cloned()
    }

    /// Every entry that `agent` may issue for: what hangs below its own ID, or below an alias that it has the
    /// selectors of. In the order of the ids.
    pub(crate) fn authorized(&self, agent: &Agent, now: i64) -> Vec<Arc<Entry>> {
        let mut found: BTreeMap<&str, &Arc<Entry>> = BTreeMap::new();
        let mut parents: Vec<&SpiffeId> = vec![&agent.id];
        parents.extend(self.aliases().filter(|a| a.is_live(now) && agent.has_all(&a.selectors)).map(|a| &a.spiffe_id));
        let mut seen: BTreeSet<&SpiffeId> = parents.iter().copied().collect();
        while let Some(parent) = parents.pop() {
            for entry in self.entries_of(&self.by_parent, parent).filter(|entry| entry.is_live(now)) {
                found.insert(&entry.id, entry);
                if seen.insert(&entry.spiffe_id) {
                    parents.push(&entry.spiffe_id);
                }
            }
        }
        found.into_values().cloned().collect()
    }

    /// The same question for one entry, asked upwards so that its cost does not grow with the number of entries.
    pub(crate) fn is_authorized(&self, agent: &Agent, entry: &Entry, now: i64) -> bool {
        if !entry.is_live(now) {
            return false;
        }
        let mut seen: BTreeSet<&SpiffeId> = BTreeSet::new();
        let mut parents: Vec<&SpiffeId> = vec![&entry.parent_id];
        while let Some(parent) = parents.pop() {
            if *parent == agent.id {
                return true;
            }
            if seen.contains(parent) {
                continue;
            }
            for above in self.entries_of(&self.by_id, parent).filter(|above| above.is_live(now)) {
                if self.is_alias(above) {
                    if agent.has_all(&above.selectors) {
                        return true;
                    }
                } else {
                    parents.push(&above.parent_id);
                }
            }
            // All but always the answer is found before anything has to be remembered.
            seen.insert(parent);
        }
        false
    }

    fn is_alias(&self, entry: &Entry) -> bool {
        self.server_id.as_ref() == Some(&entry.parent_id)
    }

    /// The names that alias entries give a node.
    pub(crate) fn aliases_of(&self, id: &SpiffeId, now: i64) -> impl Iterator<Item = &SpiffeId> {
        let agent = self.agent(id);
        self.aliases()
            .filter(move |alias| {
                alias.is_live(now) && agent.as_ref().is_some_and(|agent| agent.has_all(&alias.selectors))
            })
            .map(|alias| &alias.spiffe_id)
    }

    fn aliases(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.server_id.iter().flat_map(|server| self.entries_of(&self.by_parent, server))
    }

    fn entries_of<'a>(
        &'a self,
        index: &'a BTreeMap<SpiffeId, BTreeSet<String>>,
        key: &SpiffeId,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        index.get(key).into_iter().flatten().filter_map(|id| self.entries.get(id))
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        self.remove(&entry.id);
        self.by_parent.entry(entry.parent_id.clone()).or_default().insert(entry.id.clone());
        self.by_id.entry(entry.spiffe_id.clone()).or_default().insert(entry.id.clone());
        self.entries.insert(entry.id.clone(), entry);
    }

    fn remove(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        for (index, key) in [(&mut self.by_parent, &entry.parent_id), (&mut self.by_id, &entry.spiffe_id)] {
            if let Some(ids) = index.get_mut(key) {
                ids.remove(id);
                if ids.is_empty() {
                    index.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
