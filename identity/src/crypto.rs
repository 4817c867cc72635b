//! The cryptography library behind one small surface. It is aws-lc-rs, unless only the feature `ring` is on.
//!
//! Nothing else in the crate names either library. What ring lacks (P-521, ECDSA of the smaller curves with SHA-512, the
//! hybrid post-quantum key exchange) is `None` or left out here, and is refused where it is met.

#[cfg(feature = "aws-lc-rs")]
mod aws_lc;
#[cfg(not(feature = "aws-lc-rs"))]
mod ring;

#[cfg(feature = "aws-lc-rs")]
use self::aws_lc as library;
#[cfg(not(feature = "aws-lc-rs"))]
use self::ring as library;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("choose a cryptography library: the feature `aws-lc-rs` or the feature `ring`");

pub(crate) use library::{
    ECDSA_P256_SHA512, ECDSA_P384_SHA512, ECDSA_P521_SHA256, ECDSA_P521_SHA512_FIXED, P256Signer, ParsedKey, aead,
    digest, ecdsa_pair, equal, hmac, rand, rsa_signature_len, signature, tls_provider,
};

/// Fills the bytes at random.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    use rand::SecureRandom as _;
    rand::SystemRandom::new().fill(bytes).expect("the system's random generator works");
}
