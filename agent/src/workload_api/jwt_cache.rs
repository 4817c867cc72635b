//! JWT-SVIDs already issued, given out again until half of their life is over; and after that still while the CA is away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::ca::{CaError, TokenSvid};
use crate::caller::Desk;
use crate::entry::Entry;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct JwtCache(Mutex<BTreeMap<Key, TokenSvid>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    entry: String,
    revision: i64,
    audience: Vec<String>,
}

impl JwtCache {
    /// A valid JWT-SVID for `entry`.
    pub(crate) async fn fetch(
        &self,
        desk: &Desk,
        entry: &Arc<Entry>,
        audience: &[String],
    ) -> Result<TokenSvid, CaError> {
        let key = Key { entry: entry.id.clone(), revision: entry.revision, audience: audience.to_vec() };
        let now = desk.clock.now();
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let cached = cached.filter(|svid| is_clean(desk, svid, audience));
        if let Some(svid) = cached.as_ref().filter(|svid| is_young(svid, now)) {
            return Ok(svid.clone());
        }
        let issued = desk.ca.new_jwt_svid(&entry.id, audience.to_vec()).await;
        match issued.and_then(|issued| issued.checked(now)) {
            Ok(svid) => {
                self.keep(key, svid.clone(), now);
                Ok(svid)
            }
            Err(error) => {
                cached.filter(|svid| !error.is_refusal() && svid.expires_at > now + LIFE_LEFT_MIN).ok_or(error)
            }
        }
    }

    fn keep(&self, key: Key, svid: TokenSvid, now: SystemTime) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= JWTS_MAX {
            kept.retain(|_, svid| is_young(svid, now));
        }
        if kept.len() >= JWTS_MAX {
            kept.pop_first();
        }
        kept.insert(key, svid);
    }
}

/// Whether it is not revoked, and a key signed it that is neither tainted nor gone.
fn is_clean(desk: &Desk, svid: &TokenSvid, audience: &[String]) -> bool {
    let snapshot = desk.state.current();
    if snapshot.revocations.revokes_token(&svid.token) {
        return false;
    }
    let audience = audience.first().map_or("", String::as_str);
    identity::jwt::verify_svid(&svid.token, &snapshot.untainted, audience, svid.issued_at).is_ok()
}

fn is_young(svid: &TokenSvid, now: SystemTime) -> bool {
    let life = svid.expires_at.duration_since(svid.issued_at).unwrap_or_default();
    now < svid.issued_at + life / 2
}

/// JWT-SVIDs kept.
pub(crate) const JWTS_MAX: usize = 4096;
/// A token that expires sooner is of no use any more.
const LIFE_LEFT_MIN: Duration = Duration::from_secs(5);
