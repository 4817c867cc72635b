//! ring.

use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey as PeerKey};
pub(crate) use ring::{aead, digest, hmac, rand, signature};
use rustls::crypto::{CryptoProvider, ring as rustls_ring};
use rustls_pki_types::PrivateKeyDer;
use signature::{EcdsaKeyPair, KeyPair as _, RsaParameters, UnparsedPublicKey, VerificationAlgorithm};

pub(crate) const ECDSA_P256_SHA512: Option<&dyn VerificationAlgorithm> = None;
pub(crate) const ECDSA_P384_SHA512: Option<&dyn VerificationAlgorithm> = None;
pub(crate) const ECDSA_P521_SHA512_FIXED: Option<&dyn VerificationAlgorithm> = None;

pub(crate) const ECDSA_P521_SHA256: Option<&dyn VerificationAlgorithm> = None;

/// A P-256 key that signs with SHA-256 in the fixed form, from PKCS#8.
pub(crate) fn ecdsa_pair(der: &PrivateKeyDer<'_>) -> Option<EcdsaKeyPair> {
    let PrivateKeyDer::Pkcs8(der) = der else { return None };
    let random = rand::SystemRandom::new();
    EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random).ok()
}

/// How many bytes a signature of this key has.
pub(crate) fn rsa_signature_len(pair: &signature::RsaKeyPair) -> usize {
    pair.public().modulus_len()
}

/// A public key for one algorithm. ring parses it at each use.
#[derive(Clone)]
pub(crate) enum ParsedKey {
    Point(UnparsedPublicKey<Vec<u8>>),
    Rsa { parameters: &'static RsaParameters, modulus: Vec<u8>, exponent: Vec<u8> },
}

impl ParsedKey {
    /// A point of a curve; `None` if it is not on it.
    pub(crate) fn of_point(algorithm: &'static dyn VerificationAlgorithm, point: &[u8]) -> Option<Self> {
        let key = Self::Point(UnparsedPublicKey::new(algorithm, point.to_vec()));
        is_on_curve(point).then_some(key)
    }

    /// An RSA key; what it is worth shows when it is used.
    pub(crate) fn of_rsa(parameters: &'static RsaParameters, modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        Some(Self::Rsa { parameters, modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Point(key) => key.verify(message, signature).is_ok(),
            Self::Rsa { parameters, modulus, exponent } => {
                let key = signature::RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(parameters, message, signature).is_ok()
            }
        }
    }
}

/// Whether an uncompressed point lies on its curve: a key agreement with it would fail otherwise. Points in other forms
/// (Ed25519) are looked at when they are used.
fn is_on_curve(point: &[u8]) -> bool {
    let curve = match point.len() {
        65 => &agreement::ECDH_P256,
        97 => &agreement::ECDH_P384,
        _ => return true,
    };
    let Ok(own) = EphemeralPrivateKey::generate(curve, &rand::SystemRandom::new()) else { return false };
    agreement::agree_ephemeral(own, &PeerKey::new(curve, point), |_| ()).is_ok()
}

/// A P-256 key that signs in the fixed form of JOSE.
pub(crate) struct P256Signer(EcdsaKeyPair);

impl P256Signer {
    pub(crate) fn from_pkcs8_der(der: &[u8]) -> Option<Self> {
        let random = rand::SystemRandom::new();
        EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).ok().map(Self)
    }

    /// The public point, uncompressed.
    pub(crate) fn public_point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = self.0.sign(&rand::SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

/// Whether both are equal, in a time that does not tell where they differ.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| std::hint::black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

/// What ring has.
pub(crate) fn tls_provider() -> CryptoProvider {
    rustls_ring::default_provider()
}
