//! WIT-SVIDs: tokens that name a workload and the key it holds, of use only together with a proof that it holds it.
//!
//! The standard is SPIFFE's WIT-SVID (incubating), a profile of the WIMSE Workload Identity Token; the proof is a WIMSE
//! Workload Proof Token. What always holds:
//!
//! - a WIT without a proof is accepted nowhere: [`verify`] takes both, and [`VerifiedWit`] comes from it alone;
//! - keys of `use` `wit-svid` verify WITs and nothing else, and no other key verifies a WIT;
//! - `typ` is `wit+jwt`, exactly, so that a WIT never passes for a bearer token, nor a bearer token for a WIT;
//! - the proof is bound to this WIT by its hash, to one audience, and to a short life.

mod holder;
mod issue;
mod proof;

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::bundle::BundleSet;
use crate::jwk::{Jwk, JwkError, JwkSet};
use crate::jwt::jws::{Jws, Profile};
use crate::jwt::{JwtError, JwtExpectations, LEEWAY_DEFAULT, VerifiedClaims, claims};
use crate::spiffe_id::SpiffeId;

pub use holder::WitKey;
pub use issue::{HolderKey, WitAuthorityKey, WitSvid, WitSvidProfile};
pub use proof::ProofWindow;

/// What the caller expects of a WIT and its proof.
#[derive(Debug, Clone)]
pub struct WitExpectations {
    /// Whom the proof must be made for: this verifier, as the protocol names it.
    pub audience: String,
    /// The present.
    pub now: SystemTime,
    /// How far clocks may differ; the standard asks for no more than a couple of minutes.
    pub leeway: Duration,
    /// The longest life, `exp` less `nbf`, of a WIT that says both; `None` accepts any.
    pub life_max: Option<Duration>,
    /// How far in the future a proof may end. See [`PROOF_LIFE_MAX`].
    pub proof_life_max: Duration,
}

impl WitExpectations {
    /// Expectations at a moment: default leeway, WITs of any life, proofs of at most [`PROOF_LIFE_MAX`].
    pub fn at(audience: &str, now: SystemTime) -> Self {
        Self {
            audience: audience.to_owned(),
            now,
            leeway: LEEWAY_DEFAULT,
            life_max: None,
            proof_life_max: PROOF_LIFE_MAX,
        }
    }
}

/// A workload that has shown a WIT and proved to hold its key.
#[derive(Debug, Clone)]
pub struct VerifiedWit {
    id: SpiffeId,
    claims: VerifiedClaims,
    key: Jwk,
    proof: VerifiedClaims,
}

impl VerifiedWit {
    /// Whom the WIT names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.id
    }

    /// The WIT's claims. Its `jti` is for records; it says nothing about replay.
    pub fn claims(&self) -> &VerifiedClaims {
        &self.claims
    }

    /// The key that the workload holds.
    pub fn key(&self) -> &Jwk {
        &self.key
    }

    /// The proof's claims, for what a protocol binds beyond the audience, such as `ath`.
    pub fn proof(&self) -> &VerifiedClaims {
        &self.proof
    }
}

/// Verifies a WIT with the WIT keys of its subject's own trust domain, and the proof with the key that the WIT names.
pub fn verify(wit: &str, proof: &str, bundles: &BundleSet, expect: &WitExpectations) -> Result<VerifiedWit, WitError> {
    let (id, claims) = verify_unproven(wit, bundles, expect)?;
    let key = confirmation_key(claims.claims())?;
    let proof = proof::verify(proof, wit, &key, expect)?;
    Ok(VerifiedWit { id, claims, key, proof })
}

fn verify_unproven(
    wit: &str,
    bundles: &BundleSet,
    expect: &WitExpectations,
) -> Result<(SpiffeId, VerifiedClaims), WitError> {
    let jws = Jws::parse(wit).map_err(WitError::Wit)?;
    if jws.token_type() != Some(WIT_TYPE) {
        return Err(WitError::Malformed("typ is not wit+jwt"));
    }
    if jws.key_id().is_none_or(str::is_empty) {
        return Err(WitError::Malformed("it has no kid"));
    }
    let subject = claims::unverified_subject(&jws).map_err(WitError::Wit)?;
    let id = SpiffeId::parse(&subject).map_err(|error| WitError::Wit(JwtError::Subject(error)))?;
    let trust_domain = id.trust_domain();
    let keys = bundles.wit_keys(&trust_domain).ok_or(WitError::Wit(JwtError::TrustDomainUnknown(trust_domain)))?;
    jws.verify(keys, Profile::Svid).map_err(WitError::Wit)?;
    let times = JwtExpectations { leeway: expect.leeway, ..JwtExpectations::at(expect.now) };
    let claims = claims::check(&jws, &times).map_err(WitError::Wit)?;
    if claims.claims().contains_key("aud") {
        return Err(WitError::Malformed("it has an aud"));
    }
    check_life(&claims, expect)?;
    Ok((id, claims))
}

fn check_life(claims: &VerifiedClaims, expect: &WitExpectations) -> Result<(), WitError> {
    let (Some(max), Some(from), Some(to)) = (expect.life_max, claims.not_before(), claims.expires_at()) else {
        return Ok(());
    };
    if to.duration_since(from).is_ok_and(|life| life > max) { Err(WitError::LifeTooLong) } else { Ok(()) }
}

/// The key in `cnf.jwk` (RFC 7800): public, usable, and for one algorithm.
fn confirmation_key(claims: &Map<String, Value>) -> Result<Jwk, WitError> {
    let confirmation =
        claims.get("cnf").and_then(Value::as_object).ok_or(WitError::Malformed("it has no cnf object"))?;
    let json = confirmation.get("jwk").ok_or(WitError::Malformed("its cnf has no jwk"))?;
    let key = Jwk::from_json(json).map_err(WitError::Key)?;
    // The proof names no key ID, and what the key is published for elsewhere does not matter here.
    holder_key(key.without_labels())
}

/// A key that a WIT may name: public, well-formed, with one of the algorithms of SVIDs.
fn holder_key(key: Jwk) -> Result<Jwk, WitError> {
    let allowed = key.algorithm().is_some_and(crate::jwk::Algorithm::is_for_svids);
    if !allowed {
        return Err(WitError::Key(JwkError::Unsupported("alg")));
    }
    if JwkSet::from_keys([&key]).is_empty() {
        return Err(WitError::Key(JwkError::Member("x")));
    }
    Ok(key)
}

/// Why a WIT, or its proof, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitError {
    /// The WIT fails a check that it shares with other tokens.
    #[error("the WIT is refused")]
    Wit(#[source] JwtError),
    /// The WIT is not of the form that the standard demands.
    #[error("the WIT is malformed: {0}")]
    Malformed(&'static str),
    /// The key that the WIT names is not accepted.
    #[error("the key in the WIT's cnf is not accepted")]
    Key(#[source] JwkError),
    /// The WIT lives longer than is accepted here.
    #[error("the WIT lives longer than is accepted here")]
    LifeTooLong,
    /// The proof fails a check that it shares with other tokens.
    #[error("the proof of possession is refused")]
    Proof(#[source] JwtError),
    /// The proof is not of the form that the standard demands.
    #[error("the proof of possession is malformed: {0}")]
    ProofMalformed(&'static str),
    /// The proof was made for another WIT.
    #[error("the proof of possession is for another WIT")]
    ProofOfAnother,
    /// The proof ends too far in the future.
    #[error("the proof of possession lives longer than is accepted here")]
    ProofLifeTooLong,
    /// The proof was used before.
    #[error("the proof of possession was used before")]
    ProofReplayed,
    /// So many proofs are remembered that no more can be told from replays.
    #[error("more than {PROOFS_REMEMBERED_MAX} proofs of possession are in use")]
    ProofsTooMany,
}

impl WitError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wit(error) => error.reason(),
            Self::Malformed(_) => "WIT_MALFORMED",
            Self::Key(_) => "WIT_KEY_REFUSED",
            Self::LifeTooLong => "WIT_LIFE_TOO_LONG",
            Self::Proof(_) | Self::ProofMalformed(_) | Self::ProofLifeTooLong => "WIT_PROOF_REFUSED",
            Self::ProofOfAnother => "WIT_PROOF_OF_ANOTHER",
            Self::ProofReplayed => "WIT_PROOF_REPLAYED",
            Self::ProofsTooMany => "WIT_PROOFS_TOO_MANY",
        }
    }
}

/// The `typ` of a WIT.
const WIT_TYPE: &str = "wit+jwt";

/// The `typ` of a proof.
const PROOF_TYPE: &str = "wpt+jwt";

/// How far in the future a proof may end, unless the caller says otherwise.
pub const PROOF_LIFE_MAX: Duration = Duration::from_secs(120);

/// The most proofs remembered against replay.
pub const PROOFS_REMEMBERED_MAX: usize = 65_536;

#[cfg(test)]
mod tests;
