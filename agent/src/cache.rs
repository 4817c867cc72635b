//! The offline cache: entries, bundles and the SVIDs held, sealed on disk, so that an agent that starts while the CA is away
//! serves at once what is still valid.
//!
//! It is sealed (AES-256-GCM) for this trust domain with a key of its own; a foreign file counts as none, and a damaged part costs its own SVIDs. Losing it
//! costs a round trip to the CA, never an identity: nothing in it outlives the SVIDs' own ends.

mod document;
mod parts;
mod record;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use identity::TrustDomain;
use identity::seal::SealKey;
use runtime::shutdown::Shutdown;
use serde::{Deserialize, Serialize};

use crate::metrics::Numbers;
use crate::state::{Snapshot, State};
use crate::store;

pub(crate) use document::{KeptSvids, Stored};

/// Whether and how the cache is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Off: an agent that starts serves nothing before it has heard the CA.
    pub enabled: bool,
    /// 32 bytes that seal it, such as a systemd credential; made in `data_dir` when left out.
    pub key_file: Option<PathBuf>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { enabled: true, key_file: None }
    }
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The key cannot be read or made.
    #[error("{}: the key of the offline cache cannot be used; 32 bytes are needed (head -c 32 /dev/urandom)", file.display())]
    Key {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cache cannot be written.
    #[error("{}: the offline cache cannot be written", file.display())]
    Write {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CacheError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key { .. } => "CACHE_KEY_BAD",
            Self::Write { .. } => "CACHE_NOT_WRITTEN",
        }
    }
}

/// The sealed file.
#[derive(Debug)]
pub(crate) struct Cache {
    file: PathBuf,
    key: Arc<SealKey>,
    trust_domain: TrustDomain,
}

impl Cache {
    /// The cache of `data_dir`; `None` when it is switched off.
    ///
    /// # Errors
    /// When its key cannot be used.
    pub(crate) fn open(
        settings: &CacheSettings,
        data_dir: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Option<Self>, CacheError> {
        if !settings.enabled {
            return Ok(None);
        }
        let key = match &settings.key_file {
            Some(file) => read_key(file)?.ok_or_else(|| no_key(file, io::ErrorKind::NotFound.into()))?,
            None => own_key(&data_dir.join(KEY_FILE))?,
        };
        let (file, key) = (data_dir.join(CACHE_FILE), Arc::new(key));
        Ok(Some(Self { file, key, trust_domain: trust_domain.clone() }))
    }

    /// What was kept; a file that cannot be used is named and counts as none.
    pub(crate) fn load(&self) -> Option<(Stored, KeptSvids)> {
        let unusable = |error: &dyn std::fmt::Display| {
            tracing::warn!(file = %self.file.display(), %error, reason = "CACHE_DAMAGED", "offline cache not used");
        };
        let file = match File::open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            opened => opened.inspect_err(|error| unusable(error)).ok()?,
        };
        let read = document::decode(file, &self.key, &self.trust_domain, CACHE_BYTES_MAX);
        read.inspect_err(|error| unusable(error)).ok()
    }

    /// Replaces what is kept; on failure the former content stays.
    pub(crate) fn save(&self, snapshot: &Snapshot) -> Result<(), CacheError> {
        let encode = |file: &mut File| document::encode(snapshot, file, &self.key, &self.trust_domain);
        store::write_with(&self.file, encode).map_err(|source| CacheError::Write { file: self.file.clone(), source })
    }
}

/// Writes every change of what is known, not more often than the disk can bear.
pub(crate) async fn keep(cache: Arc<Cache>, state: Arc<State>, numbers: Numbers, shutdown: Shutdown) {
    let mut changes = state.subscribe();
    let mut failing = false;
    loop {
        let due = async {
            match failing {
                true => tokio::time::timeout(RETRY_WAIT, changes.changed()).await.unwrap_or(Ok(())),
                false => changes.changed().await,
            }
        };
        if shutdown.unless(due).await.is_none_or(|changed| changed.is_err()) {
            return;
        }
        // Changes come in swarms; the last of them is what counts. An end in between writes at once.
        let _ = shutdown.unless(tokio::time::sleep(PAUSE_MIN)).await;
        let snapshot = changes.borrow_and_update().clone();
        if !snapshot.synced {
            continue;
        }
        let begun = tokio::time::Instant::now();
        let writer = cache.clone();
        let saved = tokio::task::spawn_blocking(move || writer.save(&snapshot)).await;
        match saved {
            Ok(Err(error)) => {
                numbers.not_written(error.reason());
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, reason = error.reason(), "serving goes on, but a restart would need the CA");
                }
            }
            Err(_) => (),
            Ok(Ok(())) if failing => {
                tracing::info!("offline cache written again");
                failing = false;
            }
            Ok(Ok(())) => (),
        }
        let _ = shutdown.unless(tokio::time::sleep(begun.elapsed() * PAUSE_FACTOR)).await;
    }
}

fn own_key(file: &Path) -> Result<SealKey, CacheError> {
    if let Some(key) = read_key(file)? {
        return Ok(key);
    }
    let key = SealKey::generate();
    store::write(file, key.expose_bytes()).map_err(|source| no_key(file, source))?;
    Ok(key)
}

fn read_key(file: &Path) -> Result<Option<SealKey>, CacheError> {
    let bytes = store::read(file, KEY_BYTES_MAX).map_err(|source| no_key(file, source))?;
    let Some(bytes) = bytes.map(zeroize::Zeroizing::new) else { return Ok(None) };
    SealKey::from_slice(&bytes).map(Some).map_err(|error| no_key(file, io::Error::other(error)))
}

fn no_key(file: &Path, source: io::Error) -> CacheError {
    CacheError::Key { file: file.to_owned(), source }
}

const CACHE_FILE: &str = "cache.sealed";
const KEY_FILE: &str = "cache.key";
const KEY_BYTES_MAX: u64 = 64;
/// The largest cache: 20,000 entries with their SVIDs fit.
pub(crate) const CACHE_BYTES_MAX: u64 = 128 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Between attempts while it cannot be written.
const RETRY_WAIT: Duration = Duration::from_secs(5);
/// Writing takes a twentieth of the time at most.
const PAUSE_FACTOR: u32 = 20;

#[cfg(test)]
pub(crate) mod tests;
