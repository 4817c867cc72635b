//! aws-lc-rs.

use aws_lc_rs::constant_time;
pub(crate) use aws_lc_rs::{aead, digest, hmac, rand, signature};
use rustls::crypto::{CryptoProvider, aws_lc_rs as rustls_aws};
use rustls_pki_types::PrivateKeyDer;
use signature::{EcdsaKeyPair, KeyPair as _, ParsedPublicKey, RsaParameters, VerificationAlgorithm};

pub(crate) const ECDSA_P256_SHA512: Option<&dyn VerificationAlgorithm> = Some(&signature::ECDSA_P256_SHA512_ASN1);
pub(crate) const ECDSA_P384_SHA512: Option<&dyn VerificationAlgorithm> = Some(&signature::ECDSA_P384_SHA512_ASN1);
pub(crate) const ECDSA_P521_SHA512_FIXED: Option<&dyn VerificationAlgorithm> =
    Some(&signature::ECDSA_P521_SHA512_FIXED);

pub(crate) const ECDSA_P521_SHA256: Option<&dyn VerificationAlgorithm> = Some(&signature::ECDSA_P521_SHA256_ASN1);

/// A P-256 or P-521 key that signs with SHA-256 in the fixed form, from PKCS#8 or SEC1.
pub(crate) fn ecdsa_pair(der: &PrivateKeyDer<'_>) -> Option<EcdsaKeyPair> {
    let algorithms = [&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &signature::ECDSA_P521_SHA256_FIXED_SIGNING];
    algorithms.into_iter().find_map(|algorithm| match der {
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der()).ok(),
        _ => None,
    })
}

/// How many bytes a signature of this key has.
pub(crate) fn rsa_signature_len(pair: &signature::RsaKeyPair) -> usize {
    pair.public_modulus_len()
}

/// A public key, parsed once for one algorithm.
#[derive(Clone)]
pub(crate) struct ParsedKey(ParsedPublicKey);

impl ParsedKey {
    /// A point of a curve; `None` if it is not on it.
    pub(crate) fn of_point(algorithm: &'static dyn VerificationAlgorithm, point: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(algorithm, point).ok().map(Self)
    }

    /// An RSA key; `None` if it is not one.
    pub(crate) fn of_rsa(parameters: &'static RsaParameters, modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let key = signature::RsaPublicKeyComponents { n: modulus, e: exponent };
        key.to_parsed_public_key(parameters).ok().map(Self)
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(message, signature).is_ok()
    }
}

/// A P-256 key that signs in the fixed form of JOSE.
pub(crate) struct P256Signer(EcdsaKeyPair);

impl P256Signer {
    pub(crate) fn from_pkcs8_der(der: &[u8]) -> Option<Self> {
        EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der).ok().map(Self)
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
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// The hybrid post-quantum key exchange first.
pub(crate) fn tls_provider() -> CryptoProvider {
    let kx_groups = vec![
        rustls_aws::kx_group::X25519MLKEM768,
        rustls_aws::kx_group::X25519,
        rustls_aws::kx_group::SECP256R1,
        rustls_aws::kx_group::SECP384R1,
    ];
    CryptoProvider { kx_groups, ..rustls_aws::default_provider() }
}
