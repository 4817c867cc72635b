//! The authorities of a new database, and of one that lacks some: made here, imported, or waiting for an offline root.

use std::time::{Duration, SystemTime};

use identity::authority::X509Authority;
use identity::bundle::TrustBundle;
use identity::import::{Candidate, FILE_BYTES_MAX, Needs, Offer};
use identity::jwt::JwtAuthorityKey;
use identity::key::{KEY_FILE_BYTES_MAX, PrivateKey};
use identity::wit::WitAuthorityKey;
use zeroize::Zeroizing;

use super::adopt::{self, Adoption};
use super::{AuthoritiesError, Keys, trial};
use crate::custody::{ImportFiles, Made, Place, read_file};
use crate::rotation::machine::MEMBERS_MAX;
use crate::settings::Settings;
use crate::store::{
    AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Store, StoreError, StoredAuthorities,
};
use crate::upstream::{Upstream, UpstreamError};

/// Makes what a new database lacks: root, intermediate, JWT key and WIT key appear in one transaction, or not at all.
pub(super) async fn create(
    store: &Store,
    settings: &Settings,
    keys: &Keys,
    upstream: Option<&dyn Upstream>,
    key_check: String,
    based_on: u64,
    now: SystemTime,
) -> Result<(), AuthoritiesError> {
    let mut rows = match &settings.custody.import {
        Some(files) => rows_of_adoption(keys, &import(settings, keys, files, now)?, settings, now)?,
        None if upstream.is_some() => from_above(settings, keys, upstream, now).await?,
        None if settings.custody.offline_root => return Err(AuthoritiesError::NotInstalled),
        None => self_made(settings, keys, FIRST, now)?,
    };
    rows.extend(token_rows(settings, keys, FIRST, now)?);
    let root = rows.first().map(|row| row.id.clone()).unwrap_or_default();
    let key_check = Some(key_check);
    let change = AuthoritiesChange { put: rows, publishes: true, key_check, ..AuthoritiesChange::default() };
    store.change_authorities(change, based_on).await?;
    tracing::info!(trust_domain = %settings.trust_domain, root, "new authority made");
    Ok(())
}

/// The root of the authority above, and an intermediate that it signs.
async fn from_above(
    settings: &Settings,
    keys: &Keys,
    upstream: Option<&dyn Upstream>,
    now: SystemTime,
) -> Result<Vec<AuthorityRow>, AuthoritiesError> {
    let upstream = upstream.ok_or(AuthoritiesError::Missing("upstream authority"))?;
    let begun = std::time::Instant::now();
    let adoption = loop {
        match super::upstream::minted(keys, upstream, settings.ca_ttl, now).await {
            // Its agent may not have given us an identity yet.
            Err(AuthoritiesError::Upstream(UpstreamError::Unreachable(why))) if begun.elapsed() < ABOVE_WAIT_MAX => {
                tracing::info!(why, "waiting for the upstream server");
                tokio::time::sleep(ABOVE_PAUSE).await;
            }
            minted => break minted?,
        }
    };
    rows_of_adoption(keys, &adoption, settings, now)
}

/// A new root, and an intermediate below it.
fn self_made(
    settings: &Settings,
    keys: &Keys,
    published: u64,
    now: SystemTime,
) -> Result<Vec<AuthorityRow>, AuthoritiesError> {
    let (for_root, for_x509) = (keys.places.make()?, keys.places.make()?);
    let root = X509Authority::root_of(&settings.trust_domain, for_root.key.clone(), settings.root_ttl, now)?;
    let intermediate = root.intermediate_of(for_x509.key.clone(), settings.ca_ttl, now)?;
    trial::x509(&intermediate, &bundle_of(&root)?, now)?;
    Ok(vec![
        keys.keep_root(&root, &for_root, AuthorityState::Active, published, now)?,
        keys.keep_intermediate(&intermediate, &for_x509, root.subject_key_id(), now)?,
    ])
}

fn bundle_of(root: &X509Authority) -> Result<TrustBundle, AuthoritiesError> {
    Ok(TrustBundle::from_x509_authorities(root.trust_domain().clone(), [root.certificate().clone()])?)
}

fn token_rows(
    settings: &Settings,
    keys: &Keys,
    published: u64,
    now: SystemTime,
) -> Result<Vec<AuthorityRow>, AuthoritiesError> {
    let (active, ttl) = (AuthorityState::Active, settings.ca_ttl);
    let (for_jwt, for_wit) = (keys.places.make_for_tokens()?, keys.places.make_for_tokens()?);
    let (jwt, wit) = (JwtAuthorityKey::of(for_jwt.key.clone(), None)?, WitAuthorityKey::of(for_wit.key.clone(), None)?);
    Ok(vec![
        keys.keep_token_key(AuthorityKind::Jwt, jwt.key_id(), &for_jwt, active, published, ttl, now)?,
        keys.keep_token_key(AuthorityKind::Wit, wit.key_id(), &for_wit, active, published, ttl, now)?,
    ])
}

/// The rows of an authority from elsewhere with which a database begins.
fn rows_of_adoption(
    keys: &Keys,
    adoption: &Adoption,
    settings: &Settings,
    now: SystemTime,
) -> Result<Vec<AuthorityRow>, AuthoritiesError> {
    let Adoption { candidate, made, .. } = adoption;
    let authority = candidate.with_key(&settings.trust_domain, made.key.clone())?;
    if !candidate.is_root() {
        let root = adopt::offline_root(keys, candidate, AuthorityState::Active, FIRST, now)?;
        trial::x509(&authority, &adopt::bundle_of(keys, candidate)?, now)?;
        let intermediate = keys.keep_intermediate(&authority, made, &root.id, now)?;
        return Ok(vec![root, intermediate]);
    }
    let below = keys.places.make()?;
    let intermediate = authority.intermediate_of(below.key.clone(), settings.ca_ttl, now)?;
    trial::x509(&intermediate, &bundle_of(&authority)?, now)?;
    Ok(vec![
        keys.keep_root(&authority, made, AuthorityState::Active, FIRST, now)?,
        keys.keep_intermediate(&intermediate, &below, authority.subject_key_id(), now)?,
    ])
}

/// An authority as files name it, checked.
fn import(
    settings: &Settings,
    keys: &Keys,
    files: &ImportFiles,
    now: SystemTime,
) -> Result<Adoption, AuthoritiesError> {
    let read = |path: &std::path::Path, max| {
        read_file(path, max).map_err(|source| AuthoritiesError::ImportFile { path: path.to_owned(), source })
    };
    let optional =
        |path: &Option<std::path::PathBuf>| path.as_deref().map_or(Ok(Vec::new()), |p| read(p, FILE_BYTES_MAX));
    let (certificate, chain, root) =
        (read(&files.certificate, FILE_BYTES_MAX)?, optional(&files.chain)?, optional(&files.root)?);
    let offer = Offer { certificate: &certificate, chain: &chain, root: &root };
    let life_min = settings.svid_ttl_max * 2;
    let candidate = Candidate::check(offer, Needs { trust_domain: &settings.trust_domain, now, life_min })?;
    let passphrase = files.passphrase_file.as_deref().map(|path| read(path, KEY_FILE_BYTES_MAX)).transpose()?;
    let passphrase = passphrase.map(Zeroizing::new);
    let text = Zeroizing::new(read(&files.key, KEY_FILE_BYTES_MAX)?);
    let key = PrivateKey::from_pem(&text, passphrase.as_ref().map(|text| text.trim_ascii()))?;
    Ok(Adoption { candidate, made: keys.places.keep(key)?, request: None })
}

pub(crate) fn has_active(stored: &StoredAuthorities, kind: AuthorityKind) -> bool {
    stored.rows.iter().any(|row| row.kind == kind && row.state == AuthorityState::Active)
}

/// Authorities whose keys were in the memory of an earlier process are replaced at once: nothing else can sign. The old
/// ones stay trusted until their end, as far as there is room.
pub(super) async fn replace_lost(
    store: &Store,
    settings: &Settings,
    keys: &Keys,
    stored: StoredAuthorities,
    now: SystemTime,
) -> Result<StoredAuthorities, AuthoritiesError> {
    let lost = |row: &&AuthorityRow| row.place == Place::Memory && keys.places.held_key(&row.key_name).is_none();
    if !stored.rows.iter().filter(|row| row.state == AuthorityState::Active).any(|row| lost(&row)) {
        return Ok(stored);
    }
    let published = stored.bundle_sequence + 1;
    let mut change = AuthoritiesChange { publishes: true, ..AuthoritiesChange::default() };
    for kind in AuthorityKind::ROTATING {
        let mut of_kind: Vec<&AuthorityRow> = stored.rows.iter().filter(|row| row.kind == kind).filter(lost).collect();
        of_kind.sort_by_key(|row| row.published);
        let over = of_kind.len().saturating_sub(MEMBERS_MAX / 2);
        change.gone.extend(of_kind.iter().take(over).map(|row| row.id.clone()));
        let kept = of_kind.iter().skip(over).filter(|row| row.state != AuthorityState::Tainted);
        change.put.extend(kept.map(|row| AuthorityRow { state: AuthorityState::Old, ..(*row).clone() }));
    }
    let below = stored.rows.iter().filter(|row| row.kind == AuthorityKind::X509).filter(lost);
    change.gone.extend(below.map(|row| row.id.clone()));
    change.put.extend(self_made(settings, keys, published, now)?);
    change.put.extend(token_rows(settings, keys, published, now)?);
    match store.change_authorities(change, stored.revision).await {
        Ok(()) => tracing::warn!(
            reason = "AUTHORITY_KEY_LOST",
            "keys were in memory and are gone: new authorities sign, and nodes that know only the old root join again"
        ),
        Err(StoreError::AuthorityChanged) => (),
        Err(error) => return Err(error.into()),
    }
    Ok(store.authorities().await?)
}

/// A database from before WIT-SVIDs gets their key. It signs at once: nobody holds a WIT that another key signed.
pub(super) async fn add_wit(
    store: &Store,
    settings: &Settings,
    keys: &Keys,
    stored: StoredAuthorities,
    now: SystemTime,
) -> Result<StoredAuthorities, AuthoritiesError> {
    if stored.rows.iter().any(|row| row.kind == AuthorityKind::Wit) {
        return Ok(stored);
    }
    let published = stored.bundle_sequence + 1;
    let made = keys.places.make_for_tokens()?;
    let key = WitAuthorityKey::of(made.key.clone(), None)?;
    let (kind, active) = (AuthorityKind::Wit, AuthorityState::Active);
    let row = keys.keep_token_key(kind, key.key_id(), &made, active, published, settings.ca_ttl, now)?;
    let change = AuthoritiesChange { put: vec![row], publishes: true, ..AuthoritiesChange::default() };
    match store.change_authorities(change, stored.revision).await {
        Ok(()) => tracing::info!(id = key.key_id(), "WIT authority added"),
        // Another replica was first.
        Err(StoreError::AuthorityChanged) => (),
        Err(error) => return Err(error.into()),
    }
    Ok(store.authorities().await?)
}

/// A database that has no authority yet begins with the one that an offline root has signed.
pub(crate) async fn begin_offline(
    store: &Store,
    settings: &Settings,
    keys: &Keys,
    adoption: &Adoption,
    based_on: u64,
    now: SystemTime,
) -> Result<String, AuthoritiesError> {
    let mut put = rows_of_adoption(keys, adoption, settings, now)?;
    put.extend(token_rows(settings, keys, FIRST, now)?);
    let root = put.first().map(|row| row.id.clone()).unwrap_or_default();
    let gone = adoption.request.iter().cloned().collect();
    let change = AuthoritiesChange { put, gone, publishes: true, ..AuthoritiesChange::default() };
    store.change_authorities(change, based_on).await?;
    Ok(root)
}

/// The key that waits for a certificate, made if there is none or another one is wanted, as a change.
pub(crate) fn add_request(
    keys: &Keys,
    stored: &StoredAuthorities,
    another: bool,
    now: SystemTime,
) -> Result<(Made, AuthoritiesChange), AuthoritiesError> {
    let waiting = adopt::waiting(stored);
    if let Some(row) = waiting.filter(|_| !another) {
        return Ok((keys.made(row)?, AuthoritiesChange::default()));
    }
    let made = keys.places.make()?;
    let put = vec![keys.keep_request(&made, now)?];
    let gone = waiting.map(|row| row.id.clone()).into_iter().collect();
    Ok((made, AuthoritiesChange { put, gone, ..AuthoritiesChange::default() }))
}

/// How long a first start waits for the server above.
const ABOVE_WAIT_MAX: Duration = Duration::from_secs(60);
const ABOVE_PAUSE: Duration = Duration::from_millis(500);
/// The first number of a bundle.
const FIRST: u64 = 1;
