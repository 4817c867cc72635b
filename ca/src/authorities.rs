//! The signing authorities: made on first start, kept sealed, and what of them signs at this moment.
//!
//! A self-made root signs intermediates; the active intermediate signs X.509-SVIDs; an ES256 key signs JWT-SVIDs,
//! another WIT-SVIDs. The root's key is opened only to sign an intermediate. An intermediate is replaced at half of its life, which nobody has
//! to know; roots and JWT keys stand in the bundle and are replaced by the steps of [`crate::rotation`].

mod adopt;
mod append;
mod first;
mod keep;
mod rows;
mod steps;
mod token_keys;
mod trial;
mod upstream;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use identity::authority::{AuthorityError, X509Authority};
use identity::bundle::{BundleError, BundleSet, TrustBundle};
use identity::import::ImportError;
use identity::jwt::{JwtAuthorityKey, SignError};
use identity::key::KeyError;
use identity::pem::PemError;
use identity::seal::{SealError, SealKey};
use identity::wit::WitAuthorityKey;
use tokio::sync::watch;

use crate::certifier::secs;
use crate::custody::kek::Kek;
use crate::custody::{Desk, KeeperError, Place, Places};
use crate::key_file::KeyFileError;
use crate::rotation::machine::{Line, Mode, Node};
use crate::rotation::schedule::Ages;
use crate::settings::Settings;
use crate::store::{AuthorityKind, AuthorityRow, Store, StoreError};
use crate::upstream::{Upstream, UpstreamError};

pub(crate) use adopt::{Adopted, Adoption, csr_of, requested};
pub(crate) use first::{add_request, begin_offline, has_active};
pub(crate) use rows::{Facts, Keys};
pub(crate) use steps::{Asked, StepError, counted};
pub(crate) use token_keys::PublishedKey;

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
    /// A new authority was tried, and what it signed does not verify.
    #[error("the new {0} was tried, and what it signed does not verify; it is not used")]
    Trial(&'static str),
    /// An authority from elsewhere is not fit.
    #[error("the authority from elsewhere is refused")]
    Import(#[from] ImportError),
    /// A file of an authority from elsewhere.
    #[error("the file {} to import cannot be read", path.display())]
    ImportFile {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A root that is known already, with another certificate or in a state in which it cannot be prepared.
    #[error("the root {0} is known already, and cannot be prepared again")]
    RootKnown(String),
    /// A certificate that no CSR of ours waits for.
    #[error("no CSR of this authority waits for this certificate; make one with `kasbah ca csr`")]
    NoRequest,
    /// The root's key is not here.
    #[error(
        "the key of the root is kept offline; the next authority is prepared by `kasbah ca csr` and `kasbah ca install`, \
         or by `kasbah ca import`"
    )]
    Offline,
    /// No intermediate was installed yet.
    #[error(
        "no intermediate is installed yet; make a CSR with `kasbah ca csr --config FILE`, have the offline root sign it, and \
         run `kasbah ca install --config FILE --cert SIGNED --root ROOT`"
    )]
    NotInstalled,
    /// A key of another server's tokens.
    #[error("the key is not published: {0}")]
    KeyRefused(&'static str),
    /// The authority above.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The keeper of keys did not make one.
    #[error("the keeper of the keys does not do it")]
    Keeper(#[source] KeeperError),
    /// Keys are somewhere that the settings do not name.
    #[error("a key is kept in `{0}`; name it in the section of that name of `custody`")]
    PlaceUnknown(&'static str),
    /// A key from outside cannot be put there.
    #[error("keys are made in `{0}` and cannot be put there; make one with `kasbah ca csr` and have its CSR signed")]
    KeysMadeElsewhere(&'static str),
    /// The authority runs, or ran.
    #[error("the database has an authority already; give the command without --config while it runs")]
    Started,
    /// A key that was in the memory of another process.
    #[error("the key of the {0} was in the memory of a process that is gone")]
    KeyLost(&'static str),
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
            Self::Jwt(SignError::KeyUnavailable) => "AUTHORITY_KEY_UNAVAILABLE",
            Self::Key(_) | Self::Jwt(_) => "AUTHORITY_FAILED",
            Self::Trial(_) => "AUTHORITY_TRIAL_FAILED",
            Self::Import(error) => error.reason(),
            Self::ImportFile { .. } => "IMPORT_FILE_UNREADABLE",
            Self::RootKnown(_) => "IMPORT_ROOT_KNOWN",
            Self::NoRequest => "IMPORT_NO_REQUEST",
            Self::Offline => "AUTHORITY_OFFLINE",
            Self::NotInstalled => "AUTHORITY_NOT_INSTALLED",
            Self::KeyRefused(_) => "BUNDLE_INVALID",
            Self::Upstream(error) => error.reason(),
            Self::Keeper(_) => "AUTHORITY_KEY_UNAVAILABLE",
            Self::PlaceUnknown(_) => "AUTHORITY_KEY_PLACE_UNKNOWN",
            Self::KeysMadeElsewhere(_) => "IMPORT_KEY_PLACE",
            Self::Started => "AUTHORITY_STATE",
            Self::KeyLost(_) => "AUTHORITY_KEY_LOST",
            Self::Seal(error) => error.reason(),
            Self::Bundle(error) => error.reason(),
        }
    }
}

/// The authorities of a running server.
pub(crate) struct Authorities {
    current: ArcSwap<Signing>,
    bundle_sequence: watch::Sender<u64>,
    /// Counts every change, also those that leave the bundle as it is.
    changes: watch::Sender<u64>,
    keys: Keys,
    ttls: Ttls,
    upstream: Option<Arc<dyn Upstream>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

/// How long new authorities live, and what they sign.
#[derive(Clone, Copy, Debug)]
struct Ttls {
    root: Duration,
    /// Of an intermediate, and of a JWT key.
    signing: Duration,
    svid_max: Duration,
}

/// What signs at this moment, and what is published.
pub(crate) struct Signing {
    pub(crate) x509: X509Authority,
    pub(crate) x509_id: String,
    pub(crate) jwt: JwtAuthorityKey,
    pub(crate) jwt_not_after: SystemTime,
    pub(crate) wit: WitAuthorityKey,
    pub(crate) wit_not_after: SystemTime,
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) bundles: Arc<BundleSet>,
    pub(crate) facts: Vec<Facts>,
    /// By kind, what is being done with them.
    pub(crate) lines: BTreeMap<AuthorityKind, Line>,
    /// Intermediates of roots that sign no more, by root: the server's own SVID may need one yet.
    former: BTreeMap<String, X509Authority>,
    /// Where the key of the active root is.
    pub(crate) root_place: Place,
    revision: u64,
}

impl Signing {
    /// The authorities of a kind that stands in the bundle.
    pub(crate) fn line(&self, kind: AuthorityKind) -> &Line {
        static NONE: Line = Line::EMPTY;
        self.lines.get(&kind).unwrap_or(&NONE)
    }

    /// Whether the root that signs is to give way to another one, by more than its age.
    pub(crate) fn is_being_replaced(&self) -> bool {
        let line = self.line(AuthorityKind::Root);
        let running = line.running.as_ref().filter(|running| running.mode != Mode::Age);
        running.is_some_and(|running| line.active().is_some_and(|active| active.id == running.old))
    }

    /// The end of the root, Unix seconds.
    pub(crate) fn root_not_after(&self) -> i64 {
        self.line(AuthorityKind::Root).active().map_or(0, |root| root.not_after)
    }

    /// The root that signs for the server itself: see [`Line::signs_for_server`].
    pub(crate) fn server_root(&self, nodes: &[Node]) -> String {
        let line = self.line(AuthorityKind::Root);
        let active = line.active().map(|root| root.id.clone()).unwrap_or_default();
        let wanted = line.signs_for_server(nodes).map(|root| root.id.clone());
        wanted.filter(|id| self.former.contains_key(id)).unwrap_or(active)
    }

    /// Whether there is one root only that anything can be signed below, so that nodes need not be asked for.
    pub(crate) fn signs_below_one_root(&self) -> bool {
        self.former.is_empty()
    }

    /// The ids of all authorities that sign revocation lists: roots and intermediates that have not ended.
    pub(crate) fn issuer_ids(&self, now: i64) -> impl Iterator<Item = &str> {
        let signs = |facts: &&Facts| facts.signs_lists;
        self.facts.iter().filter(signs).filter(move |facts| facts.not_after > now).map(|facts| facts.id.as_str())
    }

    /// Of these, the intermediates.
    pub(crate) fn intermediate_ids(&self, now: i64) -> impl Iterator<Item = &str> {
        let lives =
            move |facts: &&Facts| facts.kind == AuthorityKind::X509 && facts.signs_lists && facts.not_after > now;
        self.facts.iter().filter(lives).map(|facts| facts.id.as_str())
    }

    /// What signs below a root; the active intermediate for one that has none any more.
    pub(crate) fn below(&self, root_id: &str) -> &X509Authority {
        self.former.get(root_id).unwrap_or(&self.x509)
    }
}

impl Authorities {
    /// Reads the authorities, or makes them when the database is new: root, intermediate, JWT key and WIT key appear in
    /// one transaction, or not at all.
    #[cfg(test)]
    pub(crate) async fn load(store: &Store, settings: &Settings, now: SystemTime) -> Result<Self, AuthoritiesError> {
        Self::load_below(store, settings, None, now).await
    }

    /// The same below the authority above.
    pub(crate) async fn load_below(
        store: &Store,
        settings: &Settings,
        upstream: Option<Arc<dyn Upstream>>,
        now: SystemTime,
    ) -> Result<Self, AuthoritiesError> {
        let stored = store.authorities().await?;
        let kek = Kek::open(settings, stored.key_check.as_deref())?;
        let check_text = kek.check_text()?;
        let places = Places::of(&settings.custody)?;
        let mut keys = Keys { seal: kek.key, trust_domain: settings.trust_domain.clone(), places };
        if stored.key_check.is_none() {
            match first::create(store, settings, &keys, upstream.as_deref(), check_text, stored.revision, now).await {
                // Another replica was first: its authorities are everybody's, if our key opens them.
                Err(AuthoritiesError::Store(StoreError::AuthorityChanged)) => {
                    let theirs = store.authorities().await?.key_check.unwrap_or_default();
                    keys.seal = Kek::open(settings, Some(&theirs))?.key;
                }
                made => made?,
            }
        }
        let stored = store.authorities().await?;
        if settings.custody.offline_root && !has_active(&stored, AuthorityKind::X509) {
            return Err(AuthoritiesError::NotInstalled);
        }
        let stored = first::replace_lost(store, settings, &keys, stored, now).await?;
        let stored = first::add_wit(store, settings, &keys, stored, now).await?;
        let signing = keys.open(&stored, now)?;
        let svid_max = settings.svid_ttl_max.max(settings.jwt_svid_ttl).max(settings.wit_svid_ttl);
        Ok(Self {
            bundle_sequence: watch::Sender::new(signing.bundle.sequence),
            changes: watch::Sender::new(0),
            current: ArcSwap::from_pointee(signing),
            keys,
            ttls: Ttls { root: settings.root_ttl, signing: settings.ca_ttl, svid_max },
            upstream,
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// What seals keys.
    pub(crate) fn seal_key(&self) -> &SealKey {
        &self.keys.seal
    }

    /// The authority above this one.
    pub(crate) fn upstream(&self) -> Option<&Arc<dyn Upstream>> {
        self.upstream.as_ref()
    }

    /// Keepers of keys elsewhere.
    pub(crate) fn desks(&self) -> &[Arc<Desk>] {
        self.keys.places.desks()
    }

    /// What signs now.
    pub(crate) fn current(&self) -> Arc<Signing> {
        self.current.load_full()
    }

    /// Changes with every change of the bundle.
    pub(crate) fn bundle_sequence(&self) -> watch::Receiver<u64> {
        self.bundle_sequence.subscribe()
    }

    /// Changes with every change of any authority.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How early an authority of a kind is replaced.
    fn ages(&self, kind: AuthorityKind) -> Ages {
        let signs = if kind == AuthorityKind::Root { self.ttls.signing } else { self.ttls.svid_max };
        Ages { signs: i64::try_from(signs.as_secs()).unwrap_or(i64::MAX) }
    }

    /// Takes over what another replica changed.
    pub(crate) async fn reload(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let _one = self.changing.lock().await;
        self.read(store, now).await
    }

    /// Takes over what the database has, if that is not known; whether it was not.
    pub(crate) async fn follow(&self, store: &Store, now: SystemTime) -> Result<bool, AuthoritiesError> {
        // What is changed here is read before the lock is free, unless its caller went away.
        let _one = self.changing.lock().await;
        let behind = store.authorities_revision().await? != self.current().revision;
        if behind {
            self.read(store, now).await?;
        }
        Ok(behind)
    }

    /// Every root and intermediate that has not ended and may sign lists, opened to do so. Some from elsewhere may not.
    pub(crate) async fn open_issuers(
        &self,
        store: &Store,
        now: SystemTime,
    ) -> Result<Vec<Arc<X509Authority>>, AuthoritiesError> {
        let rows = store.authorities().await?.rows;
        let signs = |row: &&AuthorityRow| {
            matches!(row.kind, AuthorityKind::Root | AuthorityKind::X509)
                // A key that waits for its certificate has issued nothing.
                && !row.certificate.is_empty()
                && row.not_after > secs(now)
                && self.keys.holds(row)
                && rows::may_sign_lists(row)
        };
        rows.iter().filter(signs).map(|row| self.keys.open_x509(row).map(Arc::new)).collect()
    }

    /// Takes up what the database has.
    async fn read(&self, store: &Store, now: SystemTime) -> Result<(), AuthoritiesError> {
        let stored = store.authorities().await?;
        let signing = self.keys.open(&stored, now)?;
        self.keys.places.retain(|name| stored.rows.iter().any(|row| row.key_name == name));
        let sequence = signing.bundle.sequence;
        self.current.store(Arc::new(signing));
        self.bundle_sequence.send_if_modified(|known| std::mem::replace(known, sequence) != sequence);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("facts", &self.current().facts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
