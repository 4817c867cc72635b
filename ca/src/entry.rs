//! Registration entries: a workload below `parent_id` that has all `selectors` is `spiffe_id`.

use std::collections::BTreeSet;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

/// A fact that attestation found about a node or a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Selector {
    /// Which attestor says so: `unix`, `launch`, …
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What it says: `uid:1000`.
    pub(crate) value: String,
}

impl Selector {
    /// A selector of `kind` with `value`.
    pub(crate) fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }
}

/// Who gets which identity, and with what properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Unique; the creator's choice or a random UUID.
    pub(crate) id: String,
    /// The identity.
    pub(crate) spiffe_id: SpiffeId,
    /// The agent (or alias, or entry) below which it holds.
    pub(crate) parent_id: SpiffeId,
    /// What a workload must show, all of it.
    pub(crate) selectors: BTreeSet<Selector>,
    /// Foreign trust domains whose bundles come with the identity.
    pub(crate) federates_with: BTreeSet<TrustDomain>,
    /// DNS names in the certificate.
    pub(crate) dns_names: Vec<String>,
    /// Tells several identities of one workload apart.
    pub(crate) hint: String,
    /// Seconds; 0: the default.
    pub(crate) x509_svid_ttl: i64,
    /// Seconds; 0: the default.
    pub(crate) jwt_svid_ttl: i64,
    /// The identity may administer the authority.
    pub(crate) admin: bool,
    /// The identity may have a signing authority of its own.
    pub(crate) downstream: bool,
    /// The SVID goes to a store instead of the Workload API.
    pub(crate) store_svid: bool,
    /// The agent makes the X.509-SVID only when asked.
    pub(crate) no_prefetch: bool,
    /// JWT-SVIDs carry a `jti`.
    pub(crate) jwt_jti: bool,
    /// Unix seconds; 0: never.
    pub(crate) expires_at: i64,
    /// Grows with each change of this entry.
    pub(crate) revision: i64,
    /// Unix seconds.
    pub(crate) created_at: i64,
}

impl Entry {
    /// Whether the entry is still in force.
    pub(crate) fn is_live(&self, now: i64) -> bool {
        self.expires_at == 0 || now < self.expires_at
    }

    /// What two entries that say the same have in common.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = format!("{}\n{}", self.spiffe_id, self.parent_id);
        for selector in &self.selectors {
            // A type holds no colon and neither part a line break, so different sets give different texts.
            text.push('\n');
            text.push_str(&selector.kind);
            text.push(':');
            text.push_str(&selector.value);
        }
        crate::random::sha256_hex(text.as_bytes())
    }
}

/// The most selectors of one entry.
pub(crate) const SELECTORS_MAX: usize = 64;
/// The most bytes of a selector's type.
pub(crate) const SELECTOR_TYPE_BYTES_MAX: usize = 64;
/// The most bytes of a selector's value.
pub(crate) const SELECTOR_VALUE_BYTES_MAX: usize = 4096;
/// The most DNS names of one entry.
pub(crate) const DNS_NAMES_MAX: usize = 64;
/// The most foreign trust domains of one entry.
pub(crate) const FEDERATES_WITH_MAX: usize = 64;
/// The most bytes of an entry's id.
pub(crate) const ENTRY_ID_BYTES_MAX: usize = 255;
/// The most bytes of a hint.
pub(crate) const HINT_BYTES_MAX: usize = 1024;
