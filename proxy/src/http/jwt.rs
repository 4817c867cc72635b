//! Verifying tokens for the JWT filter: finding the issuer's keys, and remembering what was verified.
//!
//! A token that verified is remembered by its full text together with the keys and audiences it verified with, so that a
//! change of keys or an expiry is noticed at once. The memory is bounded by two generations.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::jwk::JwkSet;
use routing::jwt::{Expect, JwtFailure, JwtProvider, KeySource};
use routing::request::TokenClaims;
use tokio::time::Instant;

use crate::refusal;
use crate::worker::state::Worker;

/// A worker's keys and verified tokens.
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    young: RefCell<HashMap<Box<str>, Verified>>,
    old: RefCell<HashMap<Box<str>, Verified>>,
    inline: RefCell<HashMap<usize, (Arc<str>, Arc<JwkSet>)>>,
    files: RefCell<HashMap<PathBuf, FileKeys>>,
}

#[derive(Clone, Debug)]
struct Verified {
    claims: TokenClaims,
    expires: Option<SystemTime>,
    keys: Arc<JwkSet>,
    issuer: Option<Arc<str>>,
    audiences: Vec<Arc<str>>,
}

#[derive(Debug)]
struct FileKeys {
    looked: Instant,
    modified: Option<SystemTime>,
    keys: Option<Arc<JwkSet>>,
}

impl TokenCache {
    /// Verifies a token, or remembers that it was.
    pub(crate) fn verify(&self, worker: &Rc<Worker>, expect: &Expect<'_>) -> Result<TokenClaims, JwtFailure> {
        let provider = expect.provider;
        let now = runtime::clock::now();
        let Some(keys) = self.keys(worker, provider) else {
            return Err(JwtFailure { reason: refusal::JWKS_UNAVAILABLE });
        };
        if let Some(claims) = self.recall(expect, &keys, now) {
            return Ok(claims);
        }
        let verified = expect.verify(&keys, now).map_err(|error| {
            let reason = error.reason();
            if reason == "JWT_NO_KEY"
                && let Some(remote) = worker.process.keys.of(&provider.keys)
            {
                remote.refresh();
            }
            JwtFailure { reason }
        })?;
        let expires = verified.expires_at();
        let claims = TokenClaims::from(verified);
        self.remember(expect, claims.clone(), expires, keys);
        Ok(claims)
    }

    fn recall(&self, expect: &Expect<'_>, keys: &Arc<JwkSet>, now: SystemTime) -> Option<TokenClaims> {
        let fits = |known: &Verified| {
            Arc::ptr_eq(&known.keys, keys)
                && known.issuer == expect.provider.issuer
                && known.audiences == expect.audiences
                && known.expires.is_none_or(|end| now <= end + expect.provider.clock_skew)
        };
        if let Some(known) = self.young.borrow().get(expect.token) {
            return fits(known).then(|| known.claims.clone());
        }
        let known = self.old.borrow_mut().remove(expect.token)?;
        let claims = fits(&known).then(|| known.claims.clone())?;
        self.insert(expect.token.into(), known);
        Some(claims)
    }

    fn remember(&self, expect: &Expect<'_>, claims: TokenClaims, expires: Option<SystemTime>, keys: Arc<JwkSet>) {
        if expect.token.len() > REMEMBERED_BYTES_MAX {
            return;
        }
        let audiences = expect.audiences.to_vec();
        let verified = Verified { claims, expires, keys, issuer: expect.provider.issuer.clone(), audiences };
        self.insert(expect.token.into(), verified);
    }

    fn insert(&self, token: Box<str>, verified: Verified) {
        let mut young = self.young.borrow_mut();
        if young.len() >= GENERATION_MAX {
            *self.old.borrow_mut() = std::mem::take(&mut *young);
        }
        young.insert(token, verified);
    }

    fn keys(&self, worker: &Rc<Worker>, provider: &JwtProvider) -> Option<Arc<JwkSet>> {
        match &provider.keys {
            KeySource::Inline(text) => self.inline_keys(text),
            KeySource::File(path) => self.file_keys(path),
            remote @ KeySource::Remote { .. } => {
                let remote = worker.process.keys.of(remote)?;
                remote.begin(worker);
                remote.keys()
            }
        }
    }

    fn inline_keys(&self, text: &Arc<str>) -> Option<Arc<JwkSet>> {
        let mut known = self.inline.borrow_mut();
        // The entry holds the text, so its address is its own as long as the entry is there.
        let address = text.as_ptr() as usize;
        if let Some((_, keys)) = known.get(&address) {
            return Some(keys.clone());
        }
        let keys = match JwkSet::parse(text.as_bytes()) {
            Ok(keys) => Arc::new(keys),
            Err(error) => {
                tracing::warn!(reason = refusal::JWKS_UNAVAILABLE, %error, "the configured keys cannot be used");
                Arc::new(JwkSet::default())
            }
        };
        known.retain(|_, (text, _)| Arc::strong_count(text) > 1);
        known.insert(address, (text.clone(), keys.clone()));
        Some(keys)
    }

    fn file_keys(&self, path: &Path) -> Option<Arc<JwkSet>> {
        let mut files = self.files.borrow_mut();
        let now = Instant::now();
        let known = files.entry(path.to_owned()).or_insert_with(|| FileKeys {
            looked: now.checked_sub(LOOK_EVERY).unwrap_or(now),
            modified: None,
            keys: None,
        });
        if known.keys.is_none() || now.duration_since(known.looked) >= LOOK_EVERY {
            known.looked = now;
            let modified = std::fs::metadata(path).and_then(|found| found.modified()).ok();
            if known.keys.is_none() || modified != known.modified {
                known.modified = modified;
                match std::fs::read(path)
                    .map_err(|error| error.to_string())
                    .and_then(|bytes| JwkSet::parse(&bytes).map_err(|error| error.to_string()))
                {
                    Ok(keys) => known.keys = Some(Arc::new(keys)),
                    Err(error) => {
                        tracing::warn!(reason = refusal::JWKS_UNAVAILABLE, path = %path.display(), error, "keys cannot be read");
                    }
                }
            }
        }
        known.keys.clone()
    }
}

/// Tokens of one generation.
const GENERATION_MAX: usize = 2048;
/// Longer tokens are verified each time.
const REMEMBERED_BYTES_MAX: usize = 8 * 1024;
const LOOK_EVERY: Duration = Duration::from_secs(5);
