//! Authorities of the same trust domain that sign elsewhere, trusted while their workloads move here: roots and keys of tokens
//! without private halves. They never sign here, and leave the bundle as old ones do, by taint and revoke.

use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::bundle::{JwtAuthority, TrustBundle};
use identity::import::{Candidate, Needs, Offer};
use identity::pem;
use identity::summary::CertificateSummary;

use super::adopt::offline_row;
use super::steps::StepError;
use super::token_keys::{FOREIGN_KEYS_MAX, PublishedKey, foreign, foreign_row};
use super::{Authorities, AuthoritiesError};
use crate::certifier::secs;
use crate::custody::Place;
use crate::rotation::machine::{MEMBERS_MAX, Refused};
use crate::store::{AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store, StoredAuthorities};

impl Authorities {
    /// Takes the authorities of a bundle into ours. Those that are known or whose life is over change nothing.
    pub(crate) async fn append(&self, store: &Store, bundle: &TrustBundle, now: SystemTime) -> Result<(), StepError> {
        let _one = self.changing.lock().await;
        let stored = store.authorities().await?;
        let mut put = self.new_roots(&stored, bundle, now)?;
        put.extend(self.new_keys(&stored, AuthorityKind::Jwt, &bundle.jwt_authorities, now)?);
        put.extend(self.new_keys(&stored, AuthorityKind::Wit, &bundle.wit_authorities, now)?);
        if put.is_empty() {
            return Ok(());
        }
        for row in &put {
            tracing::info!(kind = row.kind.as_str(), id = row.id, "authority that signs elsewhere is trusted");
        }
        let change = AuthoritiesChange { put, publishes: true, ..AuthoritiesChange::default() };
        store.change_authorities(change, stored.revision).await?;
        Ok(self.read(store, now).await?)
    }

    fn new_roots(
        &self,
        stored: &StoredAuthorities,
        bundle: &TrustBundle,
        now: SystemTime,
    ) -> Result<Vec<AuthorityRow>, StepError> {
        let mut rows = Vec::new();
        for root in bundle.x509_authorities.iter().filter(|root| !has_ended(root, now)) {
            let row = offline_row(&self.keys, root, AuthorityState::Old, FIRST_OF_ALL, now)?;
            match stored.rows.iter().find(|known| known.id == row.id) {
                Some(known) if known.certificate == row.certificate => (),
                Some(_) => return Err(AuthoritiesError::RootKnown(row.id).into()),
                None => {
                    self.check_foreign_root(root, now)?;
                    rows.push(row);
                }
            }
        }
        let elsewhere = |row: &&AuthorityRow| row.kind == AuthorityKind::Root && row.place == Place::Offline;
        if !rows.is_empty() && stored.rows.iter().filter(elsewhere).count() + rows.len() > FOREIGN_ROOTS_MAX {
            return Err(Refused::TooMany.into());
        }
        Ok(rows)
    }

    /// It must be fit to be an authority of this trust domain, as an imported one.
    fn check_foreign_root(&self, root: &CertificateDer<'static>, now: SystemTime) -> Result<(), AuthoritiesError> {
        let text = pem::certificate(root);
        let needs = Needs { trust_domain: &self.keys.trust_domain, now, life_min: Duration::ZERO };
        Candidate::check(Offer { certificate: text.as_bytes(), chain: &[], root: &[] }, needs)?;
        Ok(())
    }

    fn new_keys(
        &self,
        stored: &StoredAuthorities,
        kind: AuthorityKind,
        keys: &[JwtAuthority],
        now: SystemTime,
    ) -> Result<Vec<AuthorityRow>, StepError> {
        let mut rows = Vec::new();
        for key in keys.iter().filter(|key| key.expires_at.is_none_or(|end| end > now)) {
            // A SPIFFE bundle does not say when its keys end.
            let expires_at = secs(key.expires_at.unwrap_or(now + self.ttls.signing));
            let key = PublishedKey { id: key.key_id.clone(), spki: key.spki_der(), expires_at };
            let row = foreign_row(stored, kind, &key, now)?;
            match stored.rows.iter().find(|known| known.id == row.id) {
                Some(known) if known.public_key == row.public_key => (),
                Some(_) => return Err(AuthoritiesError::KeyRefused("its ID is that of another key").into()),
                None => rows.push(row),
            }
        }
        if !rows.is_empty() && foreign(stored, kind).count() + rows.len() > FOREIGN_KEYS_MAX {
            return Err(AuthoritiesError::KeyRefused("too many keys of other servers are published").into());
        }
        Ok(rows)
    }
}

fn has_ended(root: &CertificateDer<'_>, now: SystemTime) -> bool {
    CertificateSummary::decode(root).is_ok_and(|summary| summary.not_after() <= now)
}

/// Before every authority of our own: none that cannot sign may be taken for the one that signed last.
const FIRST_OF_ALL: u64 = 0;
/// The most roots from elsewhere: our own rotations need room, too.
pub(super) const FOREIGN_ROOTS_MAX: usize = MEMBERS_MAX / 2;
