//! The signing authorities: made on first start, kept sealed, replaced at half of their life.
//!
//! A self-made root signs intermediates; the active intermediate signs X.509-SVIDs; an ES256 key signs JWT-SVIDs. The
//! root's key is opened only to sign an intermediate. A new JWT key is published well before it signs, so that nobody
//! meets a token whose key is unknown.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::{AuthorityError, X509Authority};
use identity::bundle::{BundleError, BundleSet, TrustBundle};
use identity::jwt::{JwtAuthorityKey, SignError};
use identity::key::{KeyError, PrivateKey};
use identity::pem::{self, PemError};
use identity::seal::{SealError, SealKey};
use identity::spiffe_id::TrustDomain;
use runtime::clock::from_unix_secs;
use tokio::sync::watch;

use crate::certifier::secs;
use crate::key_file::{self, KeyFileError};
use crate::settings::Settings;
use crate::store::{AuthorityKind, AuthorityRow, AuthorityState, Store, StoreError};

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthoritiesError {
    /// The key-encryption key.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An authority that should be there is not.
    #[error("the database holds no {0}; restore it from a backup, or move it away to start a new authority")]
    Missing(&'static str),
    /// A stored authority cannot be used.
    #[error("the stored {0} cannot be used; restore the database from a backup")]
    Unusable(&'static str),
    /// A certificate could not be made or read.
    #[error("the X.509 authority failed")]
    X509(#[from] AuthorityError),
    /// A key could not be made or read.
    #[error("the key of an authority failed")]
    Key(#[from] KeyError),
    /// A JWT key could not be made or read.
    #[error("the JWT authority failed")]
    Jwt(#[from] SignError),
    /// A key could not be sealed or opened.
    #[error("the key of an authority cannot be sealed or opened")]
    Seal(#[from] SealError),
    /// A stored certificate is not readable.
    #[error("a stored certificate is not readable")]
    Pem(#[from] PemError),
    /// The bundle of our own roots.
    #[error("the trust bundle cannot be made")]
    Bundle(#[from] BundleError),
}

impl AuthoritiesError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeyFile(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Missing(_) | Self::Unusable(_) | Self::Pem(_) => "AUTHORITY_INVALID",
            Self::X509(error) => error.reason(),
            Self::Key(_) | Self::Jwt(_) => "AUTHORITY_FAILED",
            Self::Seal(error) => error.reason(),
            Self::Bundle(error) => error.reason(),
        }
    }
}

/// The authorities of a running server.
pub(crate) struct Authorities {
    current: ArcSwap<Signing>,
    bundle_sequence: watch::Sender<u64>,
    seal_key: SealKey,
    trust_domain: TrustDomain,
    ttl: Duration,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

/// What signs at this moment, and what is published.
pub(crate) struct Signing {
    pub(crate) x509: X509Authority,
    pub(crate) x509_id: String,
    pub(crate) jwt: JwtAuthorityKey,
    pub(crate) jwt_not_after: SystemTime,
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) bundles: Arc<BundleSet>,
    pub(crate) facts: Vec<Facts>,
}

/// An authority without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) kind: AuthorityKind,
    pub(crate) state: AuthorityState,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

impl Signing {
    /// The authority of a kind in a state; the newest where there are several.
    pub(crate) fn find(&self, kind: AuthorityKind, state: AuthorityState) -> Option<&Facts> {
        self.facts.iter().rev().find(|facts| facts.kind == kind && facts.state == state)
    }

    /// The end of the root, Unix seconds.
    pub(crate) fn root_not_after(&self) -> i64 {
        self.find(AuthorityKind::Root, AuthorityState::Active).map_or(0, |root| root.not_after)
    }
}

impl Authorities {
    /// Reads the authorities, or makes them when the database is new: root, intermediate and JWT key appear in one
    /// transaction, or not at all.
    pub(crate) async fn load(store: &Store, settings: &Settings, now: SystemTime) -> Result<Self, AuthoritiesError> {
        let (stored, key_file) = (store.authorities().await?, settings.key_file());
        let seal_key = key_file::load(&key_file, stored.key_check.is_none())?;
        if let Some(sealed) = &stored.key_check {
            check_key(&seal_key, sealed, &key_file)?;
        } else {
            match create(store, settings, &seal_key, stored.revision, now).await {
                // Another replica was first: its authorities are everybody's, if our key opens them.
                Err(AuthoritiesError::Store(StoreError::AuthorityChanged)) => (),
                made => made?,
            }
        }
        let stored = store.authorities().await?;
        check_key(&seal_key, stored.key_check.as_deref().unwrap_or_default(), &key_file)?;
        let signing = open(&stored.rows, stored.bundle_sequence, &seal_key, &settings.trust_domain, now)?;
        Ok(Self {
            bundle_sequence: watch::Sender::new(signing.bundle.sequence),
            current: ArcSwap::from_pointee(signing),
            seal_key,
            trust_domain: settings.trust_domain.clone(),
            ttl: settings.ca_ttl,
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// What signs now.
    pub(crate) fn current(&self) -> Arc<Signing> {
        self.current.load_full()
    }

    /// Changes with every change of the bundle.
    pub(crate) fn bundle_sequence(&self) -> watch::Receiver<u64> {
        self.bundle_sequence.subscribe()
    }

    /// Replaces what is half through its life, and drops what has ended. Cheap when there is nothing to do.
    pub(crate) async fn keep_fresh(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let _one = self.changing.lock().await;
        let plan = Plan::new(&self.current().facts, secs(now));
        if plan == Plan::default() {
            return Ok(());
        }
        let stored = store.authorities().await?;
        let (mut rows, based_on) = (stored.rows, stored.revision);
        let mut put = Vec::new();
        if plan.new_x509 {
            retire(&mut rows, AuthorityKind::X509, &mut put);
            let root = self.open_root(&rows)?;
            put.push(seal_x509(&self.seal_key, &root.generate_intermediate(self.ttl, now)?, AuthorityKind::X509, now)?);
        }
        if plan.activate_jwt {
            retire(&mut rows, AuthorityKind::Jwt, &mut put);
        }
        let prepared =
            rows.iter_mut().find(|row| row.kind == AuthorityKind::Jwt && row.state == AuthorityState::Prepared);
        match prepared {
            Some(row) if plan.activate_jwt => {
                row.state = AuthorityState::Active;
                put.push(row.clone());
            }
            _ if plan.new_jwt => {
                let state = if plan.activate_jwt { AuthorityState::Active } else { AuthorityState::Prepared };
                put.push(new_jwt(&self.seal_key, state, self.ttl, now)?);
            }
            _ => (),
        }
        for row in &put {
            tracing::info!(kind = row.kind.as_str(), id = row.id, state = row.state.as_str(), "authority changed");
        }
        store.change_authorities(put, plan.gone.clone(), plan.publishes(), None, based_on).await?;
        self.read(store, now).await
    }

    /// Takes over what another replica changed.
    pub(crate) async fn reload(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let _one = self.changing.lock().await;
        self.read(store, now).await
    }

    async fn read(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let stored = store.authorities().await?;
        let signing = open(&stored.rows, stored.bundle_sequence, &self.seal_key, &self.trust_domain, now)?;
        self.bundle_sequence.send_replace(signing.bundle.sequence);
        self.current.store(Arc::new(signing));
        Ok(())
    }

    fn open_root(&self, rows: &[AuthorityRow]) -> Result<X509Authority, AuthoritiesError> {
        let active = |row: &&AuthorityRow| row.kind == AuthorityKind::Root && row.state == AuthorityState::Active;
        let row = rows.iter().find(active).ok_or(AuthoritiesError::Missing("root"))?;
        open_x509(row, &self.seal_key, &self.trust_domain)
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("facts", &self.current().facts).finish_non_exhaustive()
    }
}

/// What is due.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    new_x509: bool,
    new_jwt: bool,
    activate_jwt: bool,
    gone: Vec<String>,
    gone_jwt: bool,
}

impl Plan {
    fn new(facts: &[Facts], now: i64) -> Self {
        let of = |kind, state| facts.iter().rev().find(move |facts| facts.kind == kind && facts.state == state);
        let mut plan = Self::default();
        if let Some(active) = of(AuthorityKind::X509, AuthorityState::Active) {
            plan.new_x509 = active.spent(now) >= 0.5;
        }
        if let Some(active) = of(AuthorityKind::Jwt, AuthorityState::Active) {
            let prepared = of(AuthorityKind::Jwt, AuthorityState::Prepared);
            plan.new_jwt = prepared.is_none() && active.spent(now) >= 0.5;
            // Everybody had time to see the new key; near the end we cannot wait any longer.
            let seen = prepared.is_some_and(|prepared| prepared.spent(now) >= 1.0 / 12.0);
            plan.activate_jwt = (seen && active.spent(now) >= 5.0 / 6.0) || active.spent(now) >= 0.98;
        }
        for ended in facts.iter().filter(|facts| facts.state != AuthorityState::Active && facts.not_after <= now) {
            plan.gone_jwt |= ended.kind == AuthorityKind::Jwt;
            plan.gone.push(ended.id.clone());
        }
        plan
    }

    /// Whether the bundle changes: intermediates are not part of it.
    fn publishes(&self) -> bool {
        self.new_jwt || self.gone_jwt
    }
}

impl Facts {
    /// How much of the life is over, 0 to 1 and beyond.
    fn spent(&self, now: i64) -> f64 {
        let life = (self.not_after - self.not_before).max(1);
        (now - self.not_before) as f64 / life as f64
    }
}

async fn create(
    store: &Store,
    settings: &Settings,
    key: &SealKey,
    based_on: u64,
    now: SystemTime,
) -> Result<(), AuthoritiesError> {
    let root = X509Authority::generate_root(&settings.trust_domain, settings.root_ttl, now)?;
    let intermediate = root.generate_intermediate(settings.ca_ttl, now)?;
    let rows = vec![
        seal_x509(key, &root, AuthorityKind::Root, now)?,
        seal_x509(key, &intermediate, AuthorityKind::X509, now)?,
        new_jwt(key, AuthorityState::Active, settings.ca_ttl, now)?,
    ];
    let check = STANDARD.encode(key.seal(KEY_CHECK_PURPOSE, KEY_CHECK_TEXT)?);
    store.change_authorities(rows, Vec::new(), true, Some(check), based_on).await?;
    tracing::info!(trust_domain = %settings.trust_domain, root = root.subject_key_id(), "new authority made");
    Ok(())
}

fn check_key(key: &SealKey, sealed: &str, key_file: &Path) -> Result<(), AuthoritiesError> {
    let sealed = STANDARD.decode(sealed).map_err(|_| AuthoritiesError::Unusable("key check"))?;
    match key.open(KEY_CHECK_PURPOSE, &sealed) {
        Ok(text) if text.as_slice() == KEY_CHECK_TEXT => Ok(()),
        _ => Err(KeyFileError::Wrong { path: key_file.to_owned() }.into()),
    }
}

/// The active authority of `kind` becomes an old one.
fn retire(rows: &mut [AuthorityRow], kind: AuthorityKind, put: &mut Vec<AuthorityRow>) {
    for row in rows.iter_mut().filter(|row| row.kind == kind && row.state == AuthorityState::Active) {
        row.state = AuthorityState::Old;
        put.push(row.clone());
    }
}

fn seal_x509(
    key: &SealKey,
    authority: &X509Authority,
    kind: AuthorityKind,
    now: SystemTime,
) -> Result<AuthorityRow, AuthoritiesError> {
    let id = authority.subject_key_id().to_owned();
    Ok(AuthorityRow {
        sealed_key: STANDARD.encode(key.seal(&purpose(kind, &id), authority.key().pkcs8_der())?),
        certificate: pem::certificate(authority.certificate()),
        id,
        kind,
        state: AuthorityState::Active,
        not_before: secs(authority.not_before()),
        not_after: secs(authority.not_after()),
        created_at: secs(now),
    })
}

fn new_jwt(
    key: &SealKey,
    state: AuthorityState,
    ttl: Duration,
    now: SystemTime,
) -> Result<AuthorityRow, AuthoritiesError> {
    let authority = JwtAuthorityKey::generate()?;
    let id = authority.key_id().to_owned();
    Ok(AuthorityRow {
        sealed_key: STANDARD.encode(key.seal(&purpose(AuthorityKind::Jwt, &id), authority.pkcs8_der())?),
        certificate: String::new(),
        id,
        kind: AuthorityKind::Jwt,
        state,
        not_before: secs(now),
        not_after: secs(now + ttl),
        created_at: secs(now),
    })
}

/// Binds a sealed key to its row, so that keys cannot be exchanged in the database.
fn purpose(kind: AuthorityKind, id: &str) -> Vec<u8> {
    format!("authority/{}/{id}", kind.as_str()).into_bytes()
}

fn open(
    rows: &[AuthorityRow],
    sequence: u64,
    key: &SealKey,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Signing, AuthoritiesError> {
    let active = |kind, name| {
        let found = rows.iter().rev().find(|row| row.kind == kind && row.state == AuthorityState::Active);
        found.ok_or(AuthoritiesError::Missing(name))
    };
    open_x509(active(AuthorityKind::Root, "root")?, key, trust_domain)?;
    let x509 = open_x509(active(AuthorityKind::X509, "signing authority")?, key, trust_domain)?;
    let jwt_row = active(AuthorityKind::Jwt, "JWT authority")?;
    let bundle = Arc::new(publish(rows, sequence, key, trust_domain, secs(now))?);
    Ok(Signing {
        x509_id: x509.subject_key_id().to_owned(),
        x509,
        jwt: open_jwt(jwt_row, key)?,
        jwt_not_after: from_unix_secs(jwt_row.not_after),
        bundles: Arc::new(BundleSet::new([bundle.clone()])),
        bundle,
        facts: rows.iter().map(facts).collect(),
    })
}

fn publish(
    rows: &[AuthorityRow],
    sequence: u64,
    key: &SealKey,
    trust_domain: &TrustDomain,
    now: i64,
) -> Result<TrustBundle, AuthoritiesError> {
    let mut bundle = TrustBundle::new(trust_domain.clone());
    bundle.sequence = sequence;
    bundle.refresh_hint = Some(REFRESH_HINT);
    for row in rows.iter().filter(|row| row.not_after > now || row.state == AuthorityState::Active) {
        match row.kind {
            AuthorityKind::Root => {
                for certificate in pem::decode_certificates(row.certificate.as_bytes())? {
                    bundle.add_x509_authority(certificate)?;
                }
            }
            AuthorityKind::Jwt => {
                bundle.jwt_authorities.push(open_jwt(row, key)?.public(Some(from_unix_secs(row.not_after))));
            }
            AuthorityKind::X509 => (),
        }
    }
    Ok(bundle)
}

fn open_x509(row: &AuthorityRow, key: &SealKey, trust_domain: &TrustDomain) -> Result<X509Authority, AuthoritiesError> {
    let chain = pem::decode_certificates(row.certificate.as_bytes())?;
    let private_key = PrivateKey::from_pkcs8_der(&open_key(row, key)?)?;
    Ok(X509Authority::from_parts(trust_domain, chain, private_key)?)
}

fn open_jwt(row: &AuthorityRow, key: &SealKey) -> Result<JwtAuthorityKey, AuthoritiesError> {
    Ok(JwtAuthorityKey::from_pkcs8_der(&row.id, &open_key(row, key)?)?)
}

fn open_key(row: &AuthorityRow, key: &SealKey) -> Result<impl std::ops::Deref<Target = Vec<u8>>, AuthoritiesError> {
    let sealed = STANDARD.decode(&row.sealed_key).map_err(|_| AuthoritiesError::Unusable("sealed key"))?;
    Ok(key.open(&purpose(row.kind, &row.id), &sealed)?)
}

fn facts(row: &AuthorityRow) -> Facts {
    Facts { id: row.id.clone(), kind: row.kind, state: row.state, not_before: row.not_before, not_after: row.not_after }
}

const KEY_CHECK_PURPOSE: &[u8] = b"key check";
const KEY_CHECK_TEXT: &[u8] = b"kasbah";
/// How often others should fetch the bundle.
const REFRESH_HINT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
