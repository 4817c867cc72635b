//! Who is who: SPIFFE IDs, the documents that prove them, and the checks that turn bytes into proven facts.
//!
//! The crate is pure. It opens no socket and no file and reads no clock: the time is an argument everywhere. The only
//! thing it takes from the machine is randomness for keys, serial numbers and nonces.
//!
//! Two types carry all trust of the system: [`verify::VerifiedPeer`] and [`jwt::VerifiedClaims`]. Neither can be made
//! except by the check it is named after, so policy that asks for one cannot be handed a mere string.
//!
//! | module | holds |
//! |---|---|
//! | [`spiffe_id`] | names: `SpiffeId`, `TrustDomain` |
//! | [`bundle`] | what a trust domain publishes: roots and JWT keys |
//! | [`svid`], [`key`], [`csr`], [`summary`] | documents, their keys, the request for one, a readable view |
//! | [`authority`], [`signing_key`] | signing X.509-SVIDs, and web certificates for gateways; keys that are kept elsewhere |
//! | [`import`] | whether an authority from elsewhere is fit |
//! | [`verify`], [`path`], [`profile`] | X.509-SVID validation, the only maker of `VerifiedPeer`; paths; single certificates |
//! | [`revocation`] | certificate revocation lists |
//! | [`limbo`] | our path validation, for comparison with others |
//! | [`jwt`], [`jwk`], [`public_key`] | JWTs and JWT-SVIDs: verify, sign, keys |
//! | [`wit`] | WIT-SVIDs, and the proofs that make them count |
//! | [`device`] | device certificates and proofs that their key is held |
//! | [`tls`] | rustls configurations on top of all that |
//! | [`transparency`] | the Merkle tree of issuance records, its proofs and signed heads |
//! | [`renewal`], [`seal`], [`digest`], [`pem`], [`pkcs12`], [`strict_json`] | arithmetic, sealing at rest, hashes and randomness, text forms |
//! | [`reason`] | every reason code with its cause and remedy |

pub mod authority;
pub mod bundle;
mod crypto;
pub mod csr;
mod der;
pub mod device;
pub mod digest;
#[cfg(test)]
mod forge;
pub mod import;
pub mod jwk;
pub mod jwt;
pub mod key;
mod leaf;
pub mod limbo;
pub mod path;
pub mod pem;
pub mod pkcs12;
pub mod profile;
pub mod public_key;
pub mod reason;
pub mod renewal;
pub mod revocation;
pub mod seal;
#[cfg(test)]
mod seed_tests;
mod signed;
pub mod signing_key;
pub mod spiffe_id;
pub mod strict_json;
pub mod summary;
pub mod svid;
pub mod tls;
pub mod transparency;
pub mod verify;
pub mod wit;

pub use bundle::{BundleSet, JwtAuthority, TrustBundle};
pub use key::PrivateKey;
pub use leaf::LeafError;
pub use reason::{REASONS, ReasonDoc};
pub use rustls_pki_types::{CertificateDer, UnixTime};
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use svid::X509Svid;
pub use verify::VerifiedPeer;

use std::time::{Duration, SystemTime};

/// A wall-clock time in the form that certificate checks take; times before 1970 become 1970.
pub fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// A count of seconds since 1970 as a time, held within the years 1970 to 9999 that certificates can express.
pub(crate) fn time_from_secs(secs: i64) -> SystemTime {
    let secs = u64::try_from(secs).unwrap_or(0).min(TIME_SECS_MAX);
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

/// Whole seconds since 1970; times before it count as 0.
pub(crate) fn secs_of(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(TIME_SECS_MAX)
}

/// The last second of the year 9999.
const TIME_SECS_MAX: u64 = 253_402_300_799;
