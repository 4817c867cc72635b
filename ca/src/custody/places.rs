//! Making keys, and finding them again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use identity::digest::{hex, sha256};
use identity::key::{KeyKind, PrivateKey};
use identity::signing_key::SigningKey;

use super::{CustodySettings, Place};
use crate::authorities::AuthoritiesError;

/// A key, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) key: SigningKey,
    pub(crate) place: Place,
    /// What its keeper calls it; empty on the disk.
    pub(crate) name: String,
}

/// The places that this process reaches.
pub(crate) struct Places {
    new_in: Place,
    kind: KeyKind,
    /// Keys in memory, by the hash of their public halves.
    held: Mutex<BTreeMap<String, PrivateKey>>,
}

impl Places {
    pub(crate) fn of(settings: &CustodySettings) -> Self {
        Self { new_in: settings.keys.place(), kind: settings.key_type, held: Mutex::default() }
    }

    /// Where new keys are.
    pub(crate) fn new_in(&self) -> Place {
        self.new_in
    }

    /// A new key for an X.509 authority.
    pub(crate) fn make(&self) -> Result<Made, AuthoritiesError> {
        self.make_kind(self.kind)
    }

    /// A new key for an authority of tokens: ES256 is what verifiers of JWTs know.
    pub(crate) fn make_for_tokens(&self) -> Result<Made, AuthoritiesError> {
        self.make_kind(KeyKind::P256)
    }

    fn make_kind(&self, kind: KeyKind) -> Result<Made, AuthoritiesError> {
        self.keep(PrivateKey::generate_kind(kind)?)
    }

    /// Takes a key from elsewhere into custody.
    pub(crate) fn keep(&self, key: PrivateKey) -> Result<Made, AuthoritiesError> {
        let place = self.new_in;
        let name = if place == Place::Memory { name_of(&key) } else { String::new() };
        if place == Place::Memory {
            self.held().insert(name.clone(), key.clone());
        }
        Ok(Made { key: key.into(), place, name })
    }

    /// A key in memory.
    pub(crate) fn held_key(&self, name: &str) -> Option<PrivateKey> {
        self.held().get(name).cloned()
    }

    /// Forgets keys in memory that nothing names any more.
    pub(crate) fn retain(&self, named: impl Fn(&str) -> bool) {
        self.held().retain(|name, _| named(name));
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, PrivateKey>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(key: &PrivateKey) -> String {
    hex(&sha256(&key.public_key_spki()))
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("new_in", &self.new_in).field("kind", &self.kind).finish_non_exhaustive()
    }
}
