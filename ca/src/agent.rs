//! Nodes that have attested, as the authority remembers them.

use std::collections::BTreeSet;

use identity::spiffe_id::SpiffeId;

use crate::entry::Selector;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    /// `spiffe://TD/spire/agent/ATTESTOR/…`.
    pub(crate) id: SpiffeId,
    /// The attestor that knew it, such as `join_token`.
    pub(crate) attestation_type: String,
    /// Serial (hex) of the SVID in use.
    pub(crate) serial: String,
    /// Its end, Unix seconds.
    pub(crate) expires_at: i64,
    /// Serial of an SVID that was issued but not yet seen in use; empty: none.
    pub(crate) new_serial: String,
    /// Its end, Unix seconds.
    pub(crate) new_expires_at: i64,
    /// What node attestation found.
    pub(crate) selectors: BTreeSet<Selector>,
    /// Refused for good.
    pub(crate) banned: bool,
    /// Whether the attestor lets it come back after its SVID has run out.
    pub(crate) can_reattest: bool,
    /// What the node says it runs.
    pub(crate) version: String,
    /// The newest bundle that the node said it enforces.
    pub(crate) bundle_sequence: u64,
    /// Unix seconds.
    pub(crate) attested_at: i64,
    /// Since when it enforces `bundle_sequence`, Unix seconds.
    pub(crate) bundle_since: i64,
    /// When something of it was last written down, Unix seconds.
    pub(crate) seen_at: i64,
}

impl Agent {
    /// Whether the node takes part in the trust domain: attested, not banned, and with an SVID that is not over.
    pub(crate) fn counts(&self, now: i64) -> bool {
        !self.banned && self.expires_at.max(self.new_expires_at) > now
    }

    /// Whether the node may use `entry_selectors` of an alias: it has all of them, its own ID being one.
    pub(crate) fn has_all(&self, entry_selectors: &BTreeSet<Selector>) -> bool {
        entry_selectors.iter().all(|wanted| {
            self.selectors.contains(wanted) || (wanted.kind == "spiffe_id" && wanted.value == self.id.as_str())
        })
    }
}
