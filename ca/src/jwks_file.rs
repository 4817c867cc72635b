//! An issuer's keys in a file (JWKS), read again when the file changes: tokens are verified offline.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use identity::jwk::{JWKS_BYTES_MAX, JwkError, JwkSet};
use identity::jwt::{self, JwtError, JwtExpectations, VerifiedClaims};

use crate::stamp::Stamp;

/// The keys of one issuer.
#[derive(Debug)]
pub(crate) struct JwksFile {
    file: PathBuf,
    keys: Mutex<Option<ReadKeys>>,
}

/// Why a token is not verified.
#[derive(Debug)]
pub(crate) enum Unverified {
    /// The keys cannot be read now.
    Keys(KeysError),
    /// The token itself.
    Token(JwtError),
}

/// Why keys cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file.
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    /// Its size.
    #[error("the file is larger than {JWKS_BYTES_MAX} bytes")]
    TooLarge,
    /// Its content.
    #[error("the file holds no key set")]
    Content(#[source] JwkError),
}

struct ReadKeys {
    set: Arc<JwkSet>,
    stamp: Stamp,
    looked: Instant,
}

impl JwksFile {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), keys: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// Verifies `token` with the keys as they are now.
    pub(crate) fn verify(&self, token: &str, expect: &JwtExpectations) -> Result<VerifiedClaims, Unverified> {
        match jwt::verify(token, &*self.keys(false)?, expect) {
            // The issuer may have a new key since we looked.
            Err(JwtError::NoKey) => Ok(jwt::verify(token, &*self.keys(true)?, expect)?),
            verdict => Ok(verdict?),
        }
    }

    /// The keys; `eager` looks at the file even when that was done a moment ago.
    fn keys(&self, eager: bool) -> Result<Arc<JwkSet>, KeysError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if eager { EAGER_LOOK_PAUSE } else { LOOK_PAUSE };
        if let Some(known) = keys.as_ref().filter(|known| known.looked.elapsed() < pause) {
            return Ok(known.set.clone());
        }
        match (read_if_changed(&self.file, keys.as_ref().map(|known| known.stamp)), keys.as_mut()) {
            (Ok(Some((set, stamp))), _) => {
                tracing::info!(file = %self.file.display(), keys = set.len(), "keys of the issuer read");
                let set = Arc::new(set);
                *keys = Some(ReadKeys { set: set.clone(), stamp, looked: Instant::now() });
                Ok(set)
            }
            (Ok(None), Some(known)) => {
                known.looked = Instant::now();
                Ok(known.set.clone())
            }
            (Err(error), Some(known)) => {
                tracing::warn!(file = %self.file.display(), %error, "issuer's keys not readable, keeping those known");
                known.looked = Instant::now();
                Ok(known.set.clone())
            }
            (Err(error), None) => Err(error),
            (Ok(None), None) => Err(KeysError::File(std::io::ErrorKind::NotFound.into())),
        }
    }
}

impl From<KeysError> for Unverified {
    fn from(error: KeysError) -> Self {
        Self::Keys(error)
    }
}

impl From<JwtError> for Unverified {
    fn from(error: JwtError) -> Self {
        Self::Token(error)
    }
}

fn read_if_changed(file: &Path, known: Option<Stamp>) -> Result<Option<(JwkSet, Stamp)>, KeysError> {
    let found = std::fs::metadata(file).map_err(KeysError::File)?;
    let stamp = Stamp::from(&found);
    if known == Some(stamp) {
        return Ok(None);
    }
    if usize::try_from(found.len()).map_or(true, |length| length > JWKS_BYTES_MAX) {
        return Err(KeysError::TooLarge);
    }
    let content = std::fs::read(file).map_err(KeysError::File)?;
    Ok(Some((JwkSet::parse(&content).map_err(KeysError::Content)?, stamp)))
}

impl std::fmt::Debug for ReadKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadKeys").field("keys", &self.set.len()).finish_non_exhaustive()
    }
}

/// How long a look at the file is good for.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// The same when a token names a key that is not known: tokens cannot make us read the file all the time.
const EAGER_LOOK_PAUSE: Duration = Duration::from_millis(100);
