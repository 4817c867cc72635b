//! What nodes said lately, in memory: when each was heard, which bundle it has fetched, and for whom it waits. It explains
//! a delay; nothing is decided by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// What its proxies say is in force there.
    pub(crate) configured: Arc<Vec<Configured>>,
    /// Whether it says what it enforces at all; SPIRE's agents do not.
    pub(crate) reports: bool,
}

/// The configuration that is in force in a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Configured {
    /// SPIFFE ID and process, as the agent names them.
    pub(crate) workload: String,
    /// By kind of resource, discovery's version.
    pub(crate) versions: BTreeMap<String, String>,
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
        let waiting_for = shown.map(|name| clean(&name)).collect();
        if let Some(contact) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            (contact.fetched, contact.revocations, contact.waiting_for) = (fetched, revocations, waiting_for);
            contact.reports = true;
        }
    }

    /// What the node says of its proxies. Long texts and lists are cut.
    pub(crate) fn configured(&self, id: &SpiffeId, configured: Vec<Configured>) {
        let shown = configured.into_iter().take(CONFIGURED_MAX).map(|Configured { workload, versions }| {
            let versions = versions.into_iter().take(KINDS_MAX);
            let versions = versions.map(|(kind, version)| (clean(&kind), clean(&version))).collect();
            Configured { workload: clean(&workload), versions }
        });
        if let Some(contact) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            contact.configured = Arc::new(shown.collect());
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

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

/// Proxies of one node whose configuration is shown, and kinds of resources of each.
pub(crate) const CONFIGURED_MAX: usize = 64;
const KINDS_MAX: usize = 8;
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
        let versions = (0..100).map(|kind| (format!("{kind}\n"), "v".repeat(1000))).collect();
        contacts.configured(&node, vec![Configured { workload: "x\ny".into(), versions }; 1000]);
        let configured = contacts.of(&node).configured;
        assert_eq!((configured.len(), configured[0].versions.len()), (CONFIGURED_MAX, KINDS_MAX));
        assert_eq!((configured[0].workload.as_str(), configured[0].versions["0"].len()), ("xy", NAME_CHARS_MAX));
        contacts.retain(|_| false);
        assert_eq!(contacts.of(&node), Contact::default());
    }
}
