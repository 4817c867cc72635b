//! Making keys, and finding them again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use identity::digest::{hex, sha256};
use identity::key::{KeyKind, PrivateKey};
use identity::signing_key::SigningKey;

use super::desk::{Desk, Keeper};
use super::external::External;
use super::vault::Vault;
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
    /// Keepers elsewhere that the settings name.
    desks: Vec<Arc<Desk>>,
}

impl Places {
    /// # Errors
    /// When there is nothing in the settings about the place of new keys.
    pub(crate) fn of(settings: &CustodySettings) -> Result<Self, AuthoritiesError> {
        let mut desks = Vec::new();
        if let Some(signer) = &settings.external_signer {
            let keeper = || -> Box<dyn Keeper> { Box::new(External::new(signer.clone())) };
            desks.push(Desk::open(Place::ExternalSigner, KEEPERS, keeper));
        }
        if let Some(vault) = &settings.vault_transit {
            let keeper = || -> Box<dyn Keeper> { Box::new(Vault::new(vault.clone())) };
            desks.push(Desk::open(Place::VaultTransit, KEEPERS, keeper));
        }
        #[cfg(feature = "pkcs11")]
        if let Some(token) = &settings.pkcs11 {
            let keeper = || -> Box<dyn Keeper> { Box::new(super::pkcs11::Token::new(token.clone())) };
            desks.push(Desk::open(Place::Pkcs11, KEEPERS, keeper));
        }
        Ok(Self { new_in: settings.keys.place(), kind: settings.key_type, held: Mutex::default(), desks })
    }

    /// Keepers elsewhere.
    pub(crate) fn desks(&self) -> &[Arc<Desk>] {
        &self.desks
    }

    fn desk(&self, place: Place) -> Result<&Arc<Desk>, AuthoritiesError> {
        let found = self.desks.iter().find(|desk| desk.place() == place);
        found.ok_or(AuthoritiesError::PlaceUnknown(place.as_str()))
    }

    /// A key that a keeper elsewhere has, by its name and public half.
    pub(crate) fn remote(&self, place: Place, name: &str, spki: Vec<u8>) -> Result<SigningKey, AuthoritiesError> {
        self.desk(place)?.key(name, spki).map_err(AuthoritiesError::Keeper)
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
        if !self.is_elsewhere() {
            return self.keep(PrivateKey::generate_kind(kind)?);
        }
        let (place, name) = (self.new_in, format!("kasbah-{}", crate::random::uuid()));
        let key = self.desk(place)?.create(&name, kind).map_err(AuthoritiesError::Keeper)?;
        tracing::info!(place = place.as_str(), name, kind = kind.as_str(), "key made by its keeper");
        Ok(Made { key, place, name })
    }

    fn is_elsewhere(&self) -> bool {
        !matches!(self.new_in, Place::Disk | Place::Memory)
    }

    /// Takes a key from elsewhere into custody.
    pub(crate) fn keep(&self, key: PrivateKey) -> Result<Made, AuthoritiesError> {
        let place = self.new_in;
        if self.is_elsewhere() {
            return Err(AuthoritiesError::KeysMadeElsewhere(place.as_str()));
        }
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

/// How many signatures a keeper makes at once.
const KEEPERS: usize = 4;

fn name_of(key: &PrivateKey) -> String {
    hex(&sha256(&key.public_key_spki()))
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("new_in", &self.new_in).field("kind", &self.kind).finish_non_exhaustive()
    }
}
