//! Bundles by trust domain, with everything a check needs parsed once when a bundle comes in.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{BundleError, TrustBundle, map};
use crate::jwk::JwkSet;
use crate::path::TrustRoots;
use crate::revocation::RevocationIndex;
use crate::spiffe_id::TrustDomain;
use crate::verify::VerifiedPeer;

/// All bundles a process trusts. Meant to be built once and shared behind an `Arc`; a change builds the next set.
#[derive(Default)]
pub struct BundleSet {
    entries: BTreeMap<TrustDomain, Entry>,
    revocations: BTreeMap<TrustDomain, Arc<RevocationIndex>>,
    verified: Mutex<Verified>,
}

#[derive(Clone)]
struct Entry {
    bundle: Arc<TrustBundle>,
    roots: Arc<TrustRoots>,
    jwt_keys: Arc<JwkSet>,
    wit_keys: Arc<JwkSet>,
}

/// Paths that verified against this very set, in two generations: when the younger is full it becomes the older, so that
/// the memory is bounded and peers in use stay known.
#[derive(Default)]
struct Verified {
    young: HashMap<[u8; 32], VerifiedPeer>,
    old: HashMap<[u8; 32], VerifiedPeer>,
}

impl BundleSet {
    /// A set of the given bundles; of two for the same trust domain the later counts.
    pub fn new(bundles: impl IntoIterator<Item = Arc<TrustBundle>>) -> Self {
        let mut set = Self::default();
        bundles.into_iter().for_each(|bundle| set.insert(bundle));
        set
    }

    /// All bundles as a SPIFFE bundle map.
    pub fn to_spiffe_map_json(&self) -> String {
        map::encode(self).to_string()
    }

    /// Reads a SPIFFE bundle map.
    pub fn parse_spiffe_map_json(document: &[u8]) -> Result<Self, BundleError> {
        map::decode(document)
    }

    /// Puts a bundle in the place of its trust domain's former one.
    pub fn insert(&mut self, bundle: Arc<TrustBundle>) {
        let entry = Entry {
            roots: Arc::new(TrustRoots::new(&bundle.x509_authorities)),
            jwt_keys: Arc::new(JwkSet::from_keys(bundle.jwt_authorities.iter().map(|authority| &authority.jwk))),
            wit_keys: Arc::new(JwkSet::from_keys(bundle.wit_authorities.iter().map(|authority| &authority.jwk))),
            bundle,
        };
        self.entries.insert(entry.bundle.trust_domain.clone(), entry);
        self.verified = Mutex::default(); // What was true of the former set need not be of this one.
    }

    /// The bundle of a trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<TrustBundle>> {
        self.entries.get(trust_domain).map(|entry| &entry.bundle)
    }

    /// All bundles, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<TrustBundle>)> {
        self.entries.iter().map(|(trust_domain, entry)| (trust_domain, &entry.bundle))
    }

    /// How many bundles there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The JWT keys of a trust domain, ready to verify.
    pub fn jwt_keys(&self, trust_domain: &TrustDomain) -> Option<&Arc<JwkSet>> {
        self.entries.get(trust_domain).map(|entry| &entry.jwt_keys)
    }

    /// The WIT keys of a trust domain, ready to verify.
    pub fn wit_keys(&self, trust_domain: &TrustDomain) -> Option<&Arc<JwkSet>> {
        self.entries.get(trust_domain).map(|entry| &entry.wit_keys)
    }

    pub(crate) fn roots(&self, trust_domain: &TrustDomain) -> Option<&TrustRoots> {
        self.entries.get(trust_domain).map(|entry| &*entry.roots)
    }

    /// Puts a trust domain's revocation lists in the place of its former ones.
    pub fn set_revocations(&mut self, trust_domain: TrustDomain, revocations: Arc<RevocationIndex>) {
        self.revocations.insert(trust_domain, revocations);
    }

    /// The revocation lists of a trust domain.
    pub fn revocations(&self, trust_domain: &TrustDomain) -> Option<&Arc<RevocationIndex>> {
        self.revocations.get(trust_domain)
    }

    /// What an equal chain of certificates was found to prove before.
    pub(crate) fn recall(&self, chain_hash: &[u8; 32]) -> Option<VerifiedPeer> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = verified.young.get(chain_hash) {
            return Some(peer.clone());
        }
        let peer = verified.old.get(chain_hash)?.clone();
        verified.remember(*chain_hash, peer.clone());
        Some(peer)
    }

    /// Remembers what a chain of certificates proved.
    pub(crate) fn remember(&self, chain_hash: [u8; 32], peer: VerifiedPeer) {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).remember(chain_hash, peer);
    }
}

impl Verified {
    fn remember(&mut self, chain_hash: [u8; 32], peer: VerifiedPeer) {
        if self.young.len() >= PEERS_REMEMBERED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(chain_hash, peer);
    }
}

impl Clone for BundleSet {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), revocations: self.revocations.clone(), verified: Mutex::default() }
    }
}

impl PartialEq for BundleSet {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter()) && self.revocations == other.revocations
    }
}

impl FromIterator<Arc<TrustBundle>> for BundleSet {
    fn from_iter<I: IntoIterator<Item = Arc<TrustBundle>>>(bundles: I) -> Self {
        Self::new(bundles)
    }
}

impl fmt::Debug for BundleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.keys()).finish()
    }
}

/// Verified chains remembered per generation.
const PEERS_REMEMBERED_MAX: usize = 2048;
