//! Registration entries that the CA authorized for this node, and the selectors they ask for.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use identity::{SpiffeId, TrustDomain};
use proto::spire::api::types;

use crate::attest::Wanted;

/// A fact that attestation can find, `TYPE:VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Selector {
    kind: String,
    value: String,
}

/// "Who shows these selectors is this SPIFFE ID."
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) spiffe_id: SpiffeId,
    /// Each once, in order.
    pub(crate) selectors: Box<[Selector]>,
    pub(crate) federates_with: BTreeSet<TrustDomain>,
    pub(crate) hint: String,
    /// Its SVID is for a store; no workload gets it.
    pub(crate) store_svid: bool,
    /// The identity may administer the CA or sign: nobody gets it on another's behalf.
    pub(crate) privileged: bool,
    pub(crate) revision: i64,
    pub(crate) created_at: i64,
}

/// All entries of this node. Lists in order take a fraction of the memory of maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    by_id: Box<[Arc<Entry>]>,
    /// The entries for workloads, in the order of their last selectors: a workload can only match those whose last one it shows.
    by_selector: Box<[Arc<Entry>]>,
    wanted: Wanted,
}

/// Why an entry of the CA was left out.
#[derive(Debug, thiserror::Error)]
#[error("entry `{id}`: {field} is bad")]
pub(crate) struct EntryError {
    pub(crate) id: String,
    pub(crate) field: &'static str,
}

impl Selector {
    pub(crate) fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    pub(crate) fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl Entry {
    /// From the wire. Selectors must be there: an entry without any would match every process.
    pub(crate) fn decode(wire: types::Entry, trust_domain: &TrustDomain) -> Result<Self, EntryError> {
        let bad = |field| EntryError { id: wire.id.chars().take(ID_SHOWN_MAX).collect(), field };
        if wire.id.is_empty() || wire.id.len() > ID_BYTES_MAX {
            return Err(bad("id"));
        }
        let named = wire.spiffe_id.as_ref().ok_or_else(|| bad("spiffe_id"))?;
        let spiffe_id = decode_id(named).filter(|id| id.is_member_of(trust_domain)).ok_or_else(|| bad("spiffe_id"))?;
        let federated: Result<_, _> =
            wire.federates_with.iter().map(|name| TrustDomain::parse(name.trim_start_matches("spiffe://"))).collect();
        let federates_with = federated.map_err(|_| bad("federates_with"))?;
        if wire.selectors.is_empty() || wire.selectors.len() > SELECTORS_MAX {
            return Err(bad("selectors"));
        }
        if wire.hint.len() > HINT_BYTES_MAX {
            return Err(bad("hint"));
        }
        let selectors = wire.selectors.into_iter().map(|selector| Selector::new(selector.r#type, selector.value));
        Ok(Self {
            id: wire.id,
            spiffe_id,
            selectors: in_order(selectors.collect()),
            federates_with,
            hint: wire.hint,
            store_svid: wire.store_svid,
            privileged: wire.admin || wire.downstream,
            revision: wire.revision_number,
            created_at: wire.created_at,
        })
    }

    /// Whether `facts` has all its selectors.
    fn matches(&self, facts: &BTreeSet<Selector>) -> bool {
        self.selectors.iter().all(|selector| facts.contains(selector))
    }

    /// Oldest first; the first of a workload's entries is its default identity.
    fn order(&self, other: &Self) -> Ordering {
        (self.created_at, &self.id).cmp(&(other.created_at, &other.id))
    }
}

impl Entries {
    pub(crate) fn new(entries: impl IntoIterator<Item = Arc<Entry>>) -> Self {
        let mut by_id: Vec<_> = entries.into_iter().collect();
        by_id.sort_by(|a, b| a.id.cmp(&b.id));
        by_id.dedup_by(|a, b| a.id == b.id);
        let mut by_selector: Vec<_> = by_id.iter().filter(|entry| !entry.store_svid).cloned().collect();
        by_selector.sort_by(|a, b| a.selectors.last().cmp(&b.selectors.last()));
        let wanted = wanted_by(by_id.iter().flat_map(|entry| &entry.selectors));
        Self { by_id: by_id.into(), by_selector: by_selector.into(), wanted }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Arc<Entry>> {
        let at = self.by_id.binary_search_by(|entry| entry.id.as_str().cmp(id)).ok()?;
        self.by_id.get(at)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The entries whose selectors all are among `facts`, oldest first.
    pub(crate) fn matching(&self, facts: &BTreeSet<Selector>) -> Vec<Arc<Entry>> {
        let candidates = facts.iter().flat_map(|fact| self.under(fact));
        let mut found: Vec<_> = candidates.filter(|entry| entry.matches(facts)).cloned().collect();
        found.sort_by(|a, b| a.order(b));
        drop_hint_clashes(&mut found);
        found
    }

    /// The entries for workloads whose last selector this is.
    fn under(&self, fact: &Selector) -> &[Arc<Entry>] {
        let from = self.by_selector.partition_point(|entry| entry.selectors.last() < Some(fact));
        let rest = self.by_selector.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|entry| entry.selectors.last() == Some(fact))).unwrap_or_default()
    }

    /// The costly facts that some entry asks for.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The foreign trust domains that some entry federates with.
    pub(crate) fn federated(&self) -> BTreeSet<TrustDomain> {
        self.by_id.iter().flat_map(|entry| entry.federates_with.iter().cloned()).collect()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.by_id == other.by_id
    }
}

fn wanted_by<'a>(selectors: impl Iterator<Item = &'a Selector>) -> Wanted {
    let mut wanted = Wanted::default();
    for selector in selectors {
        let unix = |prefix: &str| selector.kind == "unix" && selector.value.starts_with(prefix);
        wanted.sha256 |= unix("sha256:");
        wanted.names |= unix("user:") || unix("group:") || unix("supplementary_group:");
        wanted.groups |= unix("supplementary_");
        wanted.cgroup |= ["systemd", "cgroup", "container"].contains(&selector.kind.as_str());
        wanted.pod |= selector.kind == "k8s";
        wanted.launch |= selector.kind == "launch";
    }
    wanted
}

/// As an entry keeps its selectors.
pub(crate) fn in_order(selectors: Vec<Selector>) -> Box<[Selector]> {
    if selectors.is_sorted_by(|one, other| one < other) {
        return selectors.into();
    }
    selectors.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// A SPIFFE ID from its two parts on the wire.
pub(crate) fn decode_id(wire: &types::Spiffeid) -> Option<SpiffeId> {
    TrustDomain::parse(&wire.trust_domain).ok()?.with_path(&wire.path).ok()
}

/// One answer must not give two identities the same hint; the oldest entry keeps it.
fn drop_hint_clashes(entries: &mut Vec<Arc<Entry>>) {
    let mut seen = BTreeSet::new();
    entries.retain(|entry| entry.hint.is_empty() || seen.insert(entry.hint.clone()));
}

/// Entries of one node.
pub(crate) const ENTRIES_MAX: usize = 20_000;
/// Selectors of one entry.
pub(crate) const SELECTORS_MAX: usize = 64;
/// What the Workload API permits.
const HINT_BYTES_MAX: usize = 1024;
const ID_BYTES_MAX: usize = 255;
const ID_SHOWN_MAX: usize = 64;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wire(id: &str, path: &str, selectors: &[&str]) -> types::Entry {
        let selector = |text: &&str| {
            let (kind, value) = text.split_once(':').unwrap();
            types::Selector { r#type: kind.into(), value: value.into() }
        };
        types::Entry {
            id: id.into(),
            spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() }),
            selectors: selectors.iter().map(selector).collect(),
            ..types::Entry::default()
        }
    }

    pub(crate) fn decode(wire: types::Entry) -> Arc<Entry> {
        Arc::new(Entry::decode(wire, &TrustDomain::parse("example.org").unwrap()).unwrap())
    }

    fn facts(texts: &[&str]) -> BTreeSet<Selector> {
        texts.iter().map(|text| text.split_once(':').unwrap()).map(|(kind, value)| Selector::new(kind, value)).collect()
    }

    fn ids(found: &[Arc<Entry>]) -> Vec<&str> {
        found.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn an_entry_matches_when_all_its_selectors_are_shown() {
        let entries = Entries::new([
            decode(wire("user", "/user", &["unix:uid:1"])),
            decode(wire("both", "/both", &["unix:uid:1", "launch:name:a"])),
            decode(wire("other", "/other", &["unix:uid:2"])),
        ]);
        assert_eq!(ids(&entries.matching(&facts(&["unix:uid:1"]))), ["user"]);
        assert_eq!(ids(&entries.matching(&facts(&["unix:uid:1", "launch:name:a", "unix:gid:1"]))), ["both", "user"]);
        assert_eq!(ids(&entries.matching(&facts(&["unix:uid:11"]))), [] as [&str; 0]);
        assert_eq!(ids(&entries.matching(&BTreeSet::new())), [] as [&str; 0]);
    }

    #[test]
    fn an_entry_for_a_store_matches_no_workload() {
        let stored = types::Entry { store_svid: true, ..wire("s", "/s", &["unix:uid:1"]) };
        let marked = types::Entry { admin: true, downstream: true, ..wire("a", "/a", &["unix:uid:1"]) };
        let entries = Entries::new([decode(stored), decode(marked)]);
        assert_eq!(ids(&entries.matching(&facts(&["unix:uid:1"]))), ["a"]);
    }

    #[test]
    fn the_oldest_entry_comes_first_and_keeps_a_disputed_hint() {
        let aged = |id: &str, created_at, hint: &str| {
            decode(types::Entry { created_at, hint: hint.into(), ..wire(id, "/x", &["unix:uid:1"]) })
        };
        let entries = Entries::new([aged("a", 30, "db"), aged("b", 20, ""), aged("c", 10, "db"), aged("d", 20, "")]);
        assert_eq!(ids(&entries.matching(&facts(&["unix:uid:1"]))), ["c", "b", "d"]);
    }

    #[test]
    fn an_entry_without_selectors_or_of_another_trust_domain_is_left_out() {
        let own = TrustDomain::parse("example.org").unwrap();
        assert_eq!(Entry::decode(wire("a", "/a", &[]), &own).unwrap_err().field, "selectors");
        let foreign = TrustDomain::parse("other.org").unwrap();
        assert_eq!(Entry::decode(wire("a", "/a", &["unix:uid:1"]), &foreign).unwrap_err().field, "spiffe_id");
        assert_eq!(Entry::decode(wire("a", "no slash", &["unix:uid:1"]), &own).unwrap_err().field, "spiffe_id");
        assert_eq!(Entry::decode(wire("", "/a", &["unix:uid:1"]), &own).unwrap_err().field, "id");
    }

    #[test]
    fn costly_facts_are_wanted_only_when_asked_for() {
        let entries = |selector: &str| Entries::new([decode(wire("a", "/a", &[selector]))]);
        assert_eq!(entries("unix:uid:1").wanted(), Wanted::default());
        assert!(entries("unix:sha256:ab").wanted().sha256);
        assert!(entries("unix:group:staff").wanted().names && entries("unix:supplementary_group:staff").wanted().names);
        assert!(entries("systemd:id:nginx.service").wanted().cgroup && entries("container:id:ab").wanted().cgroup);
        assert!(entries("k8s:sa:web").wanted().pod && !entries("k8s:sa:web").wanted().cgroup);
        assert!(!entries("launch:sha256:ab").wanted().sha256 && entries("launch:name:web").wanted().launch);
        assert!(entries("unix:supplementary_gid:4").wanted().groups && !entries("unix:gid:4").wanted().groups);
    }
}
