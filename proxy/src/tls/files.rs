//! Certificates that are files, read again when they change.
//!
//! A file that is missing or broken leaves the last good certificate in force, or none: clients are refused until it is
//! there, and the log says why.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use identity::tls::certified_key_from_pem;
use runtime::shutdown::Shutdown;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::SetupError;

/// A certificate chain and its key in two files.
pub(crate) struct FileCertificate {
    chain: PathBuf,
    key: PathBuf,
    current: ArcSwapOption<CertifiedKey>,
    seen: Mutex<Option<(SystemTime, SystemTime)>>,
}

/// Every certificate file in use.
#[derive(Debug, Default)]
pub(crate) struct CertificateFiles(Mutex<Vec<Weak<FileCertificate>>>);

impl CertificateFiles {
    /// Watches two files; the same two are watched once.
    pub(crate) fn watch(&self, chain: &Path, key: &Path) -> Arc<FileCertificate> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|file| file.strong_count() > 0);
        if let Some(found) = known.iter().filter_map(Weak::upgrade).find(|file| file.chain == chain && file.key == key)
        {
            return found;
        }
        let file = Arc::new(FileCertificate {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current: ArcSwapOption::empty(),
            seen: Mutex::new(None),
        });
        file.refresh();
        known.push(Arc::downgrade(&file));
        file
    }

    /// Looks for changes until shutdown.
    pub(crate) async fn run(self: Arc<Self>, shutdown: Shutdown) {
        while shutdown.unless(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.refresh_all();
        }
    }

    /// Looks for changes now.
    pub(crate) fn refresh_all(&self) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for file in known.iter().filter_map(Weak::upgrade) {
            file.refresh();
        }
    }

    /// The files and the certificates read from them, leaf first.
    pub(crate) fn all(&self) -> Vec<(PathBuf, Option<Arc<CertifiedKey>>)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(Weak::upgrade).map(|file| (file.chain.clone(), file.current.load_full())).collect()
    }
}

impl FileCertificate {
    /// Reads the files again if they are others than before.
    fn refresh(&self) {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified());
        let stamp = modified(&self.chain).ok().zip(modified(&self.key).ok());
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if stamp.is_some() && *seen == stamp {
                return;
            }
            *seen = stamp;
        }
        match self.load() {
            Ok(key) => {
                tracing::info!(chain = %self.chain.display(), "certificate read");
                self.current.store(Some(key));
            }
            Err(error) => {
                let error = crate::xds::sds::chain(&error);
                tracing::warn!(reason = "TLS_CERTIFICATE_INVALID", chain = %self.chain.display(), %error, "certificate cannot be used");
            }
        }
    }

    fn load(&self) -> Result<Arc<CertifiedKey>, SetupError> {
        Ok(certified_key_from_pem(&read(&self.chain)?, &read(&self.key)?)?)
    }
}

impl ResolvesServerCert for FileCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl fmt::Debug for FileCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCertificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    std::fs::read(path).map_err(|source| SetupError::File { path: path.to_owned(), source })
}

/// The machine's own roots, in PEM.
pub(crate) fn system_roots() -> Result<Vec<u8>, SetupError> {
    let found = SYSTEM_ROOTS.iter().find(|path| Path::new(path).exists());
    read(Path::new(found.unwrap_or(&SYSTEM_ROOTS[0])))
}

const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
const LOOK_EVERY: Duration = Duration::from_secs(2);
