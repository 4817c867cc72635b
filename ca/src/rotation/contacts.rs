//! What nodes said lately, in memory: when each was heard, which bundle it has fetched, and for whom it waits. It explains
//! a delay; nothing is decided by it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use identity::spiffe_id::SpiffeId;
use tokio::sync::watch;

/// All nodes that were heard since this process started.
#[derive(Debug)]
pub(crate) struct Contacts {
    known: Mutex<BTreeMap<SpiffeId, Contact>>,
    reports: watch::Sender<u64>,
}

/// What is known of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Unix seconds.
    pub(crate) seen_at: i64,
    /// The bundle that its agent has fetched; 0: it did not say.
    pub(crate) fetched: u64,
    /// The revocation lists that it enforces; 0: it did not say.
    pub(crate) revocations: u64,
    /// Workloads on it that have not acknowledged that bundle, as the agent names them.
    pub(crate) waiting_for: Vec<String>,
    /// Whether it says what it enforces at all; SPIRE's agents do not.
    pub(crate) reports: bool,
}

impl Default for Contacts {
    fn default() -> Self {
        Self { known: Mutex::default(), reports: watch::Sender::new(0) }
    }
}

impl Contacts {
    /// The node has proven itself just now.
    pub(crate) fn seen(&self, id: &SpiffeId, now: i64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get_mut(id) {
            Some(contact) => contact.seen_at = now,
            None => {
                known.insert(id.clone(), Contact { seen_at: now, ..Contact::default() });
            }
        }
    }

    /// What the node says of itself beyond what it enforces. Long texts and lists are cut.
    pub(crate) fn said(&self, id: &SpiffeId, fetched: u64, revocations: u64, waiting_for: Vec<String>) {
        let shown = waiting_for.into_iter().take(WAITING_SHOWN_MAX);
        let clean = shown.map(|name| name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect());
        let waiting_for = clean.collect();
        if let Some(contact) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            (contact.fetched, contact.revocations, contact.waiting_for) = (fetched, revocations, waiting_for);
            contact.reports = true;
        }
    }

    /// The node was sent this bundle.
    pub(crate) fn sent(&self, id: &SpiffeId, sequence: u64) {
        if let Some(contact) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            contact.fetched = contact.fetched.max(sequence);
        }
    }

    /// A node's report was written.
    pub(crate) fn reported(&self) {
        self.reports.send_modify(|count| *count += 1);
    }

    /// Changes with every report that was written.
    pub(crate) fn reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    pub(crate) fn of(&self, id: &SpiffeId) -> Contact {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned().unwrap_or_default()
    }

    /// Forgets nodes that are not there any more.
    pub(crate) fn retain(&self, is_known: impl Fn(&SpiffeId) -> bool) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| is_known(id));
    }
}

/// Workloads named for one node.
pub(crate) const WAITING_SHOWN_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::id;

    #[test]
    fn what_a_node_says_is_cut_to_size() {
        let (contacts, node) = (Contacts::default(), id("/spire/agent/join_token/a"));
        contacts.said(&node, 7, 0, vec!["x".into()]);
        assert_eq!(contacts.of(&node), Contact::default(), "who was never seen says nothing");
        contacts.seen(&node, 100);
        contacts.sent(&node, 5);
        let silent = Contact { seen_at: 100, fetched: 5, ..Contact::default() };
        assert_eq!(contacts.of(&node), silent, "who only fetches reports nothing");
        contacts.said(&node, 7, 3, vec!["a\nb".repeat(1000); 100]);
        let contact = contacts.of(&node);
        assert_eq!((contact.seen_at, contact.fetched, contact.waiting_for.len()), (100, 7, WAITING_SHOWN_MAX));
        assert_eq!((contact.revocations, contact.reports), (3, true));
        assert!(contact.waiting_for.iter().all(|name| name.len() == NAME_CHARS_MAX && !name.contains('\n')));
        contacts.retain(|_| false);
        assert_eq!(contacts.of(&node), Contact::default());
    }
}
