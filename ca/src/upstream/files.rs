//! The authority above as files: a certificate, its key, and the bundle of roots.
//!
//! Whoever writes them need not write all at once: a change is looked at when nothing has changed for [`SETTLED`], and what
//! does not fit together leaves the last good state in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use identity::authority::{CaProfile, X509Authority};
use identity::csr::Csr;
use identity::import::{Candidate, FILE_BYTES_MAX, Needs, Offer};
use identity::key::{KEY_FILE_BYTES_MAX, PrivateKey};
use identity::pem;
use identity::spiffe_id::TrustDomain;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Minted, Published, TokenKeys, Upstream, UpstreamError, UpstreamFiles};
use crate::custody::read_file;
use crate::stamp::Stamp;

/// The files, and what was good of them last.
#[derive(Debug)]
pub(crate) struct FilesUpstream {
    trust_domain: TrustDomain,
    files: UpstreamFiles,
    signer: ArcSwap<X509Authority>,
    published: watch::Sender<Arc<Published>>,
}

impl FilesUpstream {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used, or they do not fit together.
    pub(crate) fn open(
        trust_domain: &TrustDomain,
        files: UpstreamFiles,
        now: SystemTime,
    ) -> Result<Self, UpstreamError> {
        let (signer, published) = load(trust_domain, &files, now)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            files,
            signer: ArcSwap::from_pointee(signer),
            published: watch::Sender::new(Arc::new(published)),
        })
    }

    /// Takes over what the files hold now, whole or not at all.
    fn reload(&self) {
        match load(&self.trust_domain, &self.files, runtime::clock::now()) {
            Ok((signer, published)) => {
                tracing::info!(
                    id = signer.subject_key_id(),
                    roots = published.roots.len(),
                    "upstream files taken over"
                );
                self.signer.store(Arc::new(signer));
                let published = Arc::new(published);
                self.published.send_if_modified(|known| {
                    let changed = *known != published;
                    *known = published;
                    changed
                });
            }
            Err(error) => tracing::error!(
                reason = error.reason(),
                error = ?error,
                "upstream files refused, the last good ones stay in force"
            ),
        }
    }

    fn stamps(&self) -> [Option<Stamp>; 3] {
        let UpstreamFiles { certificate, key, bundle, .. } = &self.files;
        [certificate, key, bundle].map(|file| Stamp::of(file))
    }
}

#[tonic::async_trait]
impl Upstream for FilesUpstream {
    async fn mint(&self, csr: &[u8], ttl: Duration, now: SystemTime) -> Result<Minted, UpstreamError> {
        let csr = Csr::decode_der(csr).map_err(UpstreamError::Csr)?;
        let chain = self.signer.load().sign_ca(csr.public_key_spki(), &CaProfile::new(ttl), now);
        let chain = chain.map_err(UpstreamError::Unsigned)?;
        Ok(Minted { chain, roots: self.published.borrow().roots.clone() })
    }

    fn published(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// There is nobody to tell.
    async fn publish(&self, _keys: TokenKeys) -> Result<(), UpstreamError> {
        Ok(())
    }

    async fn keep_following(&self) {
        let mut known = self.stamps();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let mut seen = self.stamps();
            if seen == known {
                continue;
            }
            loop {
                tokio::time::sleep(SETTLED).await;
                let again = self.stamps();
                if again == seen {
                    break;
                }
                seen = again;
            }
            known = seen;
            self.reload();
        }
    }
}

fn load(
    trust_domain: &TrustDomain,
    files: &UpstreamFiles,
    now: SystemTime,
) -> Result<(X509Authority, Published), UpstreamError> {
    let read =
        |path: &PathBuf, max| read_file(path, max).map_err(|source| UpstreamError::File { path: path.clone(), source });
    let (certificate, root) = (read(&files.certificate, FILE_BYTES_MAX)?, read(&files.bundle, FILE_BYTES_MAX)?);
    let needs = Needs { trust_domain, now, life_min: LIFE_MIN };
    let candidate = Candidate::check(Offer { certificate: &certificate, chain: &[], root: &root }, needs)?;
    let text = Zeroizing::new(read(&files.key, KEY_FILE_BYTES_MAX)?);
    let passphrase = files.passphrase_file.as_ref().map(|path| read(path, KEY_FILE_BYTES_MAX)).transpose()?;
    let passphrase = passphrase.map(Zeroizing::new);
    let key = PrivateKey::from_pem(&text, passphrase.as_ref().map(|text| text.trim_ascii()));
    let signer = candidate.with_key(trust_domain, key.map_err(UpstreamError::Key)?)?;
    let trial = PrivateKey::generate_p256().map_err(UpstreamError::Key)?.public_key_spki();
    signer.sign_ca(&trial, &CaProfile::new(LIFE_MIN), now).map_err(UpstreamError::Unsigned)?;
    let unreadable = |source| identity::import::ImportError::Unreadable { what: "bundle", source };
    let roots = pem::decode_certificates(&root).map_err(unreadable)?;
    if !roots.contains(&candidate.root) {
        return Err(identity::import::ImportError::NoRoot("the bundle".into()).into());
    }
    Ok((signer, Published { roots, ..Published::default() }))
}

const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long nothing may have changed.
const SETTLED: Duration = Duration::from_millis(200);
/// How long the certificate must still live to be of any use.
const LIFE_MIN: Duration = Duration::from_secs(60);
