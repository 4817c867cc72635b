//! Taking in an authority from elsewhere while the server runs: a root with its key, or an intermediate whose root is
//! elsewhere.
//!
//! A new root is prepared, and the usual rotation moves over to it once every node knows it. An intermediate below the root
//! that signs already takes over at once, as a renewed one does.

use std::time::SystemTime;

use identity::CertificateDer;
use identity::bundle::TrustBundle;
use identity::import::{Candidate, Needs, Offer};
use identity::signing_key::SigningKey;
use identity::summary::CertificateSummary;

use super::steps::{StepError, counted, member_of, retire_intermediate};
use super::{Authorities, AuthoritiesError, Keys, first, rows, trial};
use crate::certifier::secs;
use crate::custody::{Made, Place};
use crate::rotation::machine::{Mode, Step, World};
use crate::store::{
    AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store, StoreError, StoredAuthorities,
};

/// An authority from elsewhere, found fit, with its key in custody.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) candidate: Candidate,
    pub(crate) made: Made,
    /// The row of the key that waited for it.
    pub(crate) request: Option<String>,
}

/// What became of an authority that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adopted {
    pub(crate) id: String,
    pub(crate) root_id: String,
    /// It signs already; otherwise its root is prepared.
    pub(crate) signs: bool,
}

impl Authorities {
    /// Whether what is offered is fit to be an authority here.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub(crate) fn candidate(&self, offer: Offer<'_>, now: SystemTime) -> Result<Candidate, AuthoritiesError> {
        let needs = Needs { trust_domain: &self.keys.trust_domain, now, life_min: self.ttls.svid_max * 2 };
        Ok(Candidate::check(offer, needs)?)
    }

    /// Where new keys are kept.
    pub(crate) fn keys_in(&self) -> Place {
        self.keys.places.new_in()
    }

    /// Takes a key from elsewhere into custody.
    pub(crate) fn keep_key(&self, key: identity::PrivateKey) -> Result<Made, AuthoritiesError> {
        self.keys.places.keep(key)
    }

    /// A CSR for the key that waits for a certificate; `another`: for a new key in its place.
    pub(crate) async fn request(&self, store: &Store, another: bool, now: SystemTime) -> Result<Vec<u8>, StepError> {
        let _one = self.changing.lock().await;
        let stored = store.authorities().await?;
        let (made, change) = first::add_request(&self.keys, &stored, another, now)?;
        store.change_authorities(change, stored.revision).await?;
        self.read(store, now).await?;
        csr_of(&made.key, &self.keys).map_err(StepError::from)
    }

    /// The key that waits for the certificate of a candidate.
    pub(crate) async fn requested(&self, store: &Store, candidate: Candidate) -> Result<Adoption, AuthoritiesError> {
        requested(&self.keys, &store.authorities().await?, candidate)
    }

    /// Takes an authority in; when this answers it is stored, and in force or prepared.
    pub(crate) async fn adopt(
        &self,
        store: &Store,
        adoption: &Adoption,
        mode: Mode,
        now: SystemTime,
    ) -> Result<Adopted, StepError> {
        let _one = self.changing.lock().await;
        for _ in 0..TRIES_MAX {
            let stored = store.authorities().await?;
            let (change, adopted) = self.adoption(store, &stored, adoption, mode, now).await?;
            match store.change_authorities(change, stored.revision).await {
                Err(StoreError::AuthorityChanged) => continue,
                written => written?,
            }
            tracing::info!(id = adopted.id, root = adopted.root_id, signs = adopted.signs, "authority taken in");
            self.read(store, now).await?;
            return Ok(adopted);
        }
        Err(StepError::Busy)
    }

    async fn adoption(
        &self,
        store: &Store,
        stored: &StoredAuthorities,
        adoption: &Adoption,
        mode: Mode,
        now: SystemTime,
    ) -> Result<(AuthoritiesChange, Adopted), StepError> {
        let Adoption { candidate, made, request } = adoption;
        let authority =
            candidate.with_key(&self.keys.trust_domain, made.key.clone()).map_err(AuthoritiesError::from)?;
        let bundle = bundle_of(&self.keys, candidate)?;
        let prepared = AuthorityState::Prepared;
        let (root, intermediate) = if candidate.is_root() {
            let below = identity::PrivateKey::generate_p256().map_err(AuthoritiesError::from)?;
            let below = authority.intermediate_of(below, self.ttls.signing, now).map_err(AuthoritiesError::from)?;
            trial::x509(&below, &bundle, now)?;
            (self.keys.keep_root(&authority, made, prepared, 0, now)?, None)
        } else {
            trial::x509(&authority, &bundle, now)?;
            let root = offline_root(&self.keys, candidate, prepared, 0, now)?;
            let row = self.keys.keep_intermediate(&authority, made, &root.id, now)?;
            (root, Some(row))
        };
        let id = authority.subject_key_id().to_owned();
        let mut adopted = Adopted { id, root_id: root.id.clone(), signs: false };
        let mut change = AuthoritiesChange::default();
        match (stored.rows.iter().find(|row| row.id == root.id), intermediate) {
            (None, intermediate) => {
                change = self.prepare(store, stored, root, mode, now).await?;
                change.put.extend(intermediate.map(|row| AuthorityRow { state: prepared, ..row }));
            }
            (Some(known), _) if known.certificate != root.certificate => {
                return Err(AuthoritiesError::RootKnown(root.id).into());
            }
            (Some(known), Some(row)) if known.state == AuthorityState::Active => {
                retire_intermediate(stored, &mut change);
                change.put.push(row);
                adopted.signs = true;
            }
            // It was trusted only while another one was prepared.
            (Some(known), Some(row)) if known.state == AuthorityState::Old && known.place == Place::Offline => {
                change.put.push(AuthorityRow { state: prepared, ..known.clone() });
                change.put.push(AuthorityRow { state: prepared, ..row });
            }
            (Some(known), Some(row)) if known.state == prepared => {
                change.put.push(AuthorityRow { state: prepared, ..row });
            }
            (Some(_), _) => return Err(AuthoritiesError::RootKnown(root.id).into()),
        }
        change.gone.extend(request.clone());
        Ok((change, adopted))
    }

    /// The change that prepares a root.
    pub(super) async fn prepare(
        &self,
        store: &Store,
        stored: &StoredAuthorities,
        root: AuthorityRow,
        mode: Mode,
        now: SystemTime,
    ) -> Result<AuthoritiesChange, StepError> {
        let nodes = counted(&store.agents_now().await?, secs(now));
        let line = rows::line(stored, AuthorityKind::Root);
        let (step, next_sequence) = (Step::Prepare(member_of(&root), mode), stored.bundle_sequence + 1);
        let world = World { nodes: &nodes, next_sequence, now: secs(now), in_use_until: 0 };
        let moved = line.take(&step, world)?;
        Ok(self.change(AuthorityKind::Root, stored, &line, moved, Some(root), now)?)
    }
}

/// The key that waits for a certificate.
pub(super) fn waiting(stored: &StoredAuthorities) -> Option<&AuthorityRow> {
    stored.rows.iter().rev().find(|row| row.kind == AuthorityKind::X509 && row.certificate.is_empty())
}

/// The same for the certificate of a candidate.
pub(crate) fn requested(
    keys: &Keys,
    stored: &StoredAuthorities,
    candidate: Candidate,
) -> Result<Adoption, AuthoritiesError> {
    let row = waiting(stored).ok_or(AuthoritiesError::NoRequest)?;
    let made = keys.made(row)?;
    if made.key.public_key_spki() != candidate.public_key_spki() {
        return Err(AuthoritiesError::NoRequest);
    }
    Ok(Adoption { candidate, made, request: Some(row.id.clone()) })
}

/// A CSR, as DER.
pub(crate) fn csr_of(key: &SigningKey, keys: &Keys) -> Result<Vec<u8>, AuthoritiesError> {
    key.ca_csr_der(&keys.trust_domain)
        .map_err(|_| AuthoritiesError::X509(identity::authority::AuthorityError::KeyUnavailable))
}

/// The bundle by which what the candidate signs is judged.
pub(super) fn bundle_of(keys: &Keys, candidate: &Candidate) -> Result<TrustBundle, AuthoritiesError> {
    Ok(TrustBundle::from_x509_authorities(keys.trust_domain.clone(), [candidate.root.clone()])?)
}

/// The root of a candidate, without a key.
pub(super) fn offline_root(
    keys: &Keys,
    candidate: &Candidate,
    state: AuthorityState,
    published: u64,
    now: SystemTime,
) -> Result<AuthorityRow, AuthoritiesError> {
    offline_row(keys, &candidate.root, state, published, now)
}

/// A root without a key.
pub(super) fn offline_row(
    keys: &Keys,
    root: &CertificateDer<'static>,
    state: AuthorityState,
    published: u64,
    now: SystemTime,
) -> Result<AuthorityRow, AuthoritiesError> {
    let summary = CertificateSummary::decode(root).map_err(identity::authority::AuthorityError::Certificate)?;
    let id = summary.subject_key_id.clone().ok_or(identity::authority::AuthorityError::NoSubjectKeyId)?;
    Ok(keys.keep_offline_root(root, id, (summary.not_before(), summary.not_after()), state, published, now))
}

const TRIES_MAX: usize = 3;
