//! Proofs of possession (WIMSE Workload Proof Token): a token signed with the key that the WIT names.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{PROOF_TYPE, PROOFS_REMEMBERED_MAX, VerifiedWit, WitError, WitExpectations};
use crate::digest;
use crate::jwk::{Jwk, JwkSet};
use crate::jwt::jws::{Jws, Profile};
use crate::jwt::{JwtExpectations, VerifiedClaims, claims};

/// The proof's form, its signature by the WIT's key, its times, its audience, and that it is for this WIT.
pub(super) fn verify(proof: &str, wit: &str, key: &Jwk, expect: &WitExpectations) -> Result<VerifiedClaims, WitError> {
    let jws = Jws::parse(proof).map_err(WitError::Proof)?;
    if jws.token_type() != Some(PROOF_TYPE) {
        return Err(WitError::ProofMalformed("typ is not wpt+jwt"));
    }
    jws.verify(&JwkSet::from_keys([key]), Profile::Svid).map_err(WitError::Proof)?;
    let expected = JwtExpectations { leeway: expect.leeway, ..JwtExpectations::at(expect.now) }
        .with_audiences([expect.audience.as_str()]);
    let claims = claims::check(&jws, &expected).map_err(WitError::Proof)?;
    if claims.audiences().len() != 1 {
        return Err(WitError::ProofMalformed("it is not for exactly one audience"));
    }
    if claims.text("jti").is_none_or(str::is_empty) {
        return Err(WitError::ProofMalformed("it has no jti"));
    }
    if claims.text("wth") != Some(hash(wit).as_str()) {
        return Err(WitError::ProofOfAnother);
    }
    let end_max = expect.now + expect.proof_life_max + expect.leeway;
    if claims.expires_at().is_none_or(|end| end > end_max) {
        return Err(WitError::ProofLifeTooLong);
    }
    Ok(claims)
}

/// What binds a proof to its WIT: SHA-256 of the WIT's text, base64url.
pub(super) fn hash(wit: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::sha256(wit.as_bytes()))
}

/// The proofs seen by a verifier that accepts each only once. Remembered until none could be accepted any more.
#[derive(Debug, Default)]
pub struct ProofWindow {
    seen: BTreeMap<[u8; 32], SystemTime>,
}

impl ProofWindow {
    /// Takes a proof that verified by `expect`, and refuses it the second time.
    pub fn admit(&mut self, verified: &VerifiedWit, expect: &WitExpectations) -> Result<(), WitError> {
        let end = verified.proof().expires_at().unwrap_or(expect.now) + expect.leeway;
        let print = fingerprint(verified);
        if self.seen.contains_key(&print) {
            return Err(WitError::ProofReplayed);
        }
        if self.seen.len() >= PROOFS_REMEMBERED_MAX {
            self.seen.retain(|_, end| *end > expect.now);
        }
        if self.seen.len() >= PROOFS_REMEMBERED_MAX {
            return Err(WitError::ProofsTooMany);
        }
        self.seen.insert(print, end);
        Ok(())
    }
}

#[cfg(test)]
impl ProofWindow {
    /// As full as it can be, with proofs that end at `end`.
    pub(super) fn full(end: SystemTime) -> Self {
        let print = |n: usize| digest::sha256(&n.to_be_bytes());
        Self { seen: (0..PROOFS_REMEMBERED_MAX).map(|n| (print(n), end)).collect() }
    }
}

/// A proof is told from others of the same key by its `jti`; who signs it anew under the same `jti` repeats it.
fn fingerprint(verified: &VerifiedWit) -> [u8; 32] {
    let mut hash = digest::Sha256::new();
    hash.update(verified.spiffe_id().as_str().as_bytes());
    hash.update(&[0]);
    hash.update(verified.proof().text("jti").unwrap_or_default().as_bytes());
    hash.finish()
}
