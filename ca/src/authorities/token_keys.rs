//! Keys of tokens that other servers of the trust domain sign with: of those below, which publish them here, and of the one
//! above. They stand in the bundle without a private half.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::bundle::JwtAuthority;
use proto::spire::api::types;
use runtime::clock::from_unix_secs;

use super::steps::StepError;
use super::{Authorities, AuthoritiesError};
use crate::certifier::secs;
use crate::custody::Place;
use crate::rotation::machine::MEMBERS_MAX;
use crate::store::{AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store, StoredAuthorities};
use crate::upstream::TokenKeys;

/// A public key of tokens.
#[derive(Clone, Debug)]
pub(crate) struct PublishedKey {
    pub(crate) id: String,
    /// SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
    /// Unix seconds.
    pub(crate) expires_at: i64,
}

impl Authorities {
    /// Takes a key of a server below into the bundle, until its end. The same key again changes nothing.
    pub(crate) async fn publish_key(
        &self,
        store: &Store,
        kind: AuthorityKind,
        key: PublishedKey,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let _one = self.changing.lock().await;
        let stored = store.authorities().await?;
        let row = foreign_row(&stored, kind, &key, now)?;
        match stored.rows.iter().find(|known| known.id == row.id) {
            Some(known) if known.public_key == row.public_key => return Ok(()),
            Some(_) => return Err(AuthoritiesError::KeyRefused("its ID is that of another key").into()),
            None if foreign(&stored, kind).count() >= FOREIGN_KEYS_MAX => {
                return Err(AuthoritiesError::KeyRefused("too many keys of other servers are published").into());
            }
            None => (),
        }
        let change = AuthoritiesChange { put: vec![row], publishes: true, ..AuthoritiesChange::default() };
        store.change_authorities(change, stored.revision).await?;
        Ok(self.read(store, now).await?)
    }

    /// Publishes the keys of the authority above, and no longer those that it has no more.
    pub(crate) async fn follow_token_keys(
        &self,
        store: &Store,
        keys: &TokenKeys,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let _one = self.changing.lock().await;
        let stored = store.authorities().await?;
        let mut change = AuthoritiesChange::default();
        let jwt = keys.jwt.iter().map(|key| PublishedKey {
            id: key.key_id.clone(),
            spki: key.public_key.clone(),
            expires_at: key.expires_at,
        });
        let wit = keys.wit.iter().map(|key| PublishedKey {
            id: key.key_id.clone(),
            spki: key.public_key.clone(),
            expires_at: key.expires_at,
        });
        self.follow_kind(&stored, AuthorityKind::Jwt, jwt.collect(), &mut change, now);
        self.follow_kind(&stored, AuthorityKind::Wit, wit.collect(), &mut change, now);
        if change.put.is_empty() && change.gone.is_empty() {
            return Ok(());
        }
        change.publishes = true;
        store.change_authorities(change, stored.revision).await?;
        Ok(self.read(store, now).await?)
    }

    fn follow_kind(
        &self,
        stored: &StoredAuthorities,
        kind: AuthorityKind,
        keys: Vec<PublishedKey>,
        change: &mut AuthoritiesChange,
        now: SystemTime,
    ) {
        let gone = foreign(stored, kind).filter(|row| !keys.iter().any(|key| key.id == row.id));
        change.gone.extend(gone.map(|row| row.id.clone()));
        let room = FOREIGN_KEYS_MAX.saturating_sub(foreign(stored, kind).count());
        let new = keys.iter().filter(|key| !stored.rows.iter().any(|row| row.id == key.id));
        for key in new.take(room) {
            match foreign_row(stored, kind, key, now) {
                Ok(row) => change.put.push(row),
                // One that has ended, or that we do not know.
                Err(error) => tracing::debug!(id = key.id, error = ?error, "key of the upstream authority passed over"),
            }
        }
    }

    /// Our own keys of tokens, as others are told of them.
    pub(crate) fn own_token_keys(&self) -> TokenKeys {
        let signing = self.current();
        let own = |id: &str| signing.facts.iter().any(|facts| facts.id == id && facts.place != Place::Offline);
        let expires_at = |key: &JwtAuthority| key.expires_at.map_or(0, secs);
        let jwt = signing.bundle.jwt_authorities.iter().filter(|key| own(&key.key_id)).map(|key| types::JwtKey {
            public_key: key.spki_der(),
            key_id: key.key_id.clone(),
            expires_at: expires_at(key),
            tainted: false,
        });
        let wit = signing.bundle.wit_authorities.iter().filter(|key| own(&key.key_id)).map(|key| types::WitKey {
            public_key: key.spki_der(),
            key_id: key.key_id.clone(),
            expires_at: expires_at(key),
            tainted: false,
        });
        TokenKeys { jwt: jwt.collect(), wit: wit.collect() }
    }
}

/// Keys of other servers.
pub(super) fn foreign(stored: &StoredAuthorities, kind: AuthorityKind) -> impl Iterator<Item = &AuthorityRow> {
    stored.rows.iter().filter(move |row| row.kind == kind && row.place == Place::Offline)
}

pub(super) fn foreign_row(
    stored: &StoredAuthorities,
    kind: AuthorityKind,
    key: &PublishedKey,
    now: SystemTime,
) -> Result<AuthorityRow, AuthoritiesError> {
    let PublishedKey { id, spki, expires_at } = key;
    if id.is_empty() || id.len() > KEY_ID_BYTES_MAX {
        return Err(AuthoritiesError::KeyRefused("its ID is empty or too long"));
    }
    if *expires_at <= secs(now) {
        return Err(AuthoritiesError::KeyRefused("it has ended, or never ends"));
    }
    JwtAuthority::from_spki_der(id, spki, Some(from_unix_secs(*expires_at)))
        .map_err(|_| AuthoritiesError::KeyRefused("it is malformed or of an unknown kind"))?;
    Ok(AuthorityRow {
        id: id.clone(),
        kind,
        state: AuthorityState::Old,
        certificate: String::new(),
        place: Place::Offline,
        key_name: String::new(),
        sealed_key: String::new(),
        public_key: STANDARD.encode(spki),
        not_before: secs(now),
        not_after: *expires_at,
        created_at: secs(now),
        issuer_id: String::new(),
        published: stored.bundle_sequence + 1,
        tainted: 0,
    })
}

/// The most keys of a kind from other servers: our own rotations need room, too.
pub(super) const FOREIGN_KEYS_MAX: usize = MEMBERS_MAX / 2;
const KEY_ID_BYTES_MAX: usize = 256;
