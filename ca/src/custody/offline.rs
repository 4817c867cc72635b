//! Beginning with an offline root: CSR and certificate of the first intermediate, while no authority runs yet.

use std::time::Duration;

use identity::import::{Candidate, Needs, Offer};
use identity::pem;
use runtime::tasks::TaskSet;

use super::kek::Kek;
use super::{Places, own_uid};
use crate::api::{Caller, Who};
use crate::audit::{Act, LocalPeer, Source};
use crate::authorities::{AuthoritiesError, Keys, add_request, begin_offline, csr_of, has_active, requested};
use crate::server::{RunError, SERVER_PATH, lock_dir};
use crate::settings::Settings;
use crate::store::{self, AuthoritiesChange, AuthorityKind, Store, StoredAuthorities};

/// A CSR for the first intermediate, as PEM. Its key is made in custody; asked again, it is the same key unless `another`
/// is wanted.
///
/// # Errors
/// When the database cannot be used, or has an authority already.
pub async fn offline_csr(settings: &Settings, another: bool) -> Result<String, RunError> {
    let opened = Opened::open(settings).await?;
    let made = opened.csr(another).await;
    opened.close().await;
    Ok(made?)
}

/// Installs the certificate that an offline root has signed for the CSR. Answers the root's id.
///
/// # Errors
/// When the certificate is not fit, or not for the key of the CSR.
pub async fn offline_install(settings: &Settings, offer: Offer<'_>) -> Result<String, RunError> {
    let opened = Opened::open(settings).await?;
    let installed = opened.install(settings, offer).await;
    opened.close().await;
    Ok(installed?)
}

/// A database without an authority.
struct Opened {
    store: Store,
    writer: TaskSet,
    keys: Keys,
    stored: StoredAuthorities,
    _lock: std::fs::File,
}

impl Opened {
    async fn open(settings: &Settings) -> Result<Self, RunError> {
        settings.check()?;
        let lock = lock_dir(&settings.data_dir)?;
        let server_id = settings.trust_domain.with_path(SERVER_PATH)?;
        let (store, writing) = store::open(&settings.database_url(), &settings.trust_domain, server_id).await?;
        let mut writer = TaskSet::new();
        writer.spawn("database writer", writing);
        let mut stored = store.authorities().await.map_err(AuthoritiesError::from)?;
        if has_active(&stored, AuthorityKind::Root) {
            return Err(AuthoritiesError::Started.into());
        }
        let kek = Kek::open(settings, stored.key_check.as_deref())?;
        if stored.key_check.is_none() {
            let change = AuthoritiesChange { key_check: Some(kek.check_text()?), ..AuthoritiesChange::default() };
            store.change_authorities(change, stored.revision).await.map_err(AuthoritiesError::from)?;
            stored = store.authorities().await.map_err(AuthoritiesError::from)?;
        }
        let places = Places::of(&settings.custody)?;
        let keys = Keys { seal: kek.key, trust_domain: settings.trust_domain.clone(), places };
        Ok(Self { store, writer, keys, stored, _lock: lock })
    }

    async fn csr(&self, another: bool) -> Result<String, AuthoritiesError> {
        let (made, change) = add_request(&self.keys, &self.stored, another, runtime::clock::now())?;
        if !change.put.is_empty() {
            self.acting("authority.csr").change_authorities(change, self.stored.revision).await?;
        }
        Ok(pem::encode("CERTIFICATE REQUEST", &csr_of(&made.key, &self.keys)?))
    }

    async fn install(&self, settings: &Settings, offer: Offer<'_>) -> Result<String, AuthoritiesError> {
        let now = runtime::clock::now();
        let needs = Needs { trust_domain: &settings.trust_domain, now, life_min: settings.svid_ttl_max * 2 };
        let adoption = requested(&self.keys, &self.stored, Candidate::check(offer, needs)?)?;
        let store = self.acting("authority.install");
        begin_offline(&store, settings, &self.keys, &adoption, self.stored.revision, now).await
    }

    /// The store, whose next write leaves this act in the audit trail.
    fn acting(&self, action: &'static str) -> Store {
        let peer = LocalPeer {
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            uid: own_uid(),
            gid: rustix::process::getegid().as_raw(),
        };
        let caller = Caller { who: Who::Local, source: Source::Process(peer), call: None };
        self.store.audited(Act::new(action, "x509").record(&caller, runtime::clock::now()))
    }

    async fn close(self) {
        let Self { store, mut writer, .. } = self;
        drop(store);
        if tokio::time::timeout(WRITER_END_MAX, writer.finished()).await.is_err() {
            writer.abort().await;
        }
    }
}

const WRITER_END_MAX: Duration = Duration::from_secs(5);
