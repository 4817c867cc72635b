//! Other names of the mesh, while it moves from one trust domain to another: every workload gets their bundles, whatever its
//! entry says.
//!
//! A name's bundle is imported like any foreign one and stays apart: a peer of an alias is judged with the alias's own
//! bundle. What such a peer may do is not decided here, but by policies (`trustDomainAliases` of the mesh's documents).

use std::sync::Arc;

use identity::digest;
use identity::spiffe_id::TrustDomain;

use crate::entry::Entry;
use crate::registry::Registry;

/// The entries as agents are to see them: each federates with every alias whose bundle is known.
pub(crate) fn with_aliases(entries: Vec<Arc<Entry>>, aliases: &[TrustDomain], registry: &Registry) -> Vec<Arc<Entry>> {
    let known: Vec<&TrustDomain> = aliases.iter().filter(|alias| registry.federated(alias).is_some()).collect();
    if known.is_empty() {
        return entries;
    }
    let mark = mark(&known);
    let widened = entries.into_iter().map(|entry| {
        let mut entry = Entry::clone(&entry);
        entry.federates_with.extend(known.iter().map(|alias| (*alias).clone()));
        // Agents ask for an entry again when its revision is another one.
        entry.revision = entry.revision.saturating_add(mark);
        Arc::new(entry)
    });
    widened.collect()
}

/// A number for this set of names, above all numbers that revisions reach by counting.
fn mark(known: &[&TrustDomain]) -> i64 {
    let names: Vec<&str> = known.iter().map(|alias| alias.as_str()).collect();
    let [a, b, c, ..] = digest::sha256(names.join(" ").as_bytes());
    (i64::from(u32::from_be_bytes([0, a, b, c])) + 1) << 32
}
