//! A device's private key, and proofs by ECDSA.

use std::fmt;

use rustls_pki_types::PrivateKeyDer;

use super::PossessionProof;
use crate::crypto::rand::SystemRandom;
use crate::crypto::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, EcdsaKeyPair, RSA_PSS_SHA256, RsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use crate::crypto::{ECDSA_P521_SHA256, ecdsa_pair, rsa_signature_len};
use crate::pem;
use crate::public_key::Curve;

/// The private key of a device certificate, as it lies on a disk. It is never printed.
pub struct DeviceKey(Pair);

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
}

impl DeviceKey {
    /// Reads PKCS#8, PKCS#1 or SEC1 from PEM: RSA, P-256 or P-521. (A P-384 key cannot make the SHA-256 proof that
    /// attestation asks for with our library.)
    pub fn from_pem(text: &[u8]) -> Result<Self, DeviceKeyError> {
        let der = pem::decode_private_key(text).map_err(|_| DeviceKeyError::Malformed)?;
        Self::rsa(&der).or_else(|| ecdsa_pair(&der).map(Pair::Ecdsa)).map(Self).ok_or(DeviceKeyError::Unsupported)
    }

    fn rsa(der: &PrivateKeyDer<'_>) -> Option<Pair> {
        let pair = match der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return None,
        };
        Some(Pair::Rsa(Box::new(pair.ok()?)))
    }

    /// Proves the possession of this key over `message`.
    pub fn prove(&self, message: &[u8]) -> Result<PossessionProof, DeviceKeyError> {
        let random = SystemRandom::new();
        match &self.0 {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; rsa_signature_len(pair)];
                pair.sign(&RSA_PSS_SHA256, &random, message, &mut signature).map_err(|_| DeviceKeyError::Signature)?;
                Ok(PossessionProof::Rsa(signature))
            }
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| DeviceKeyError::Signature)?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                Ok(PossessionProof::Ecdsa { r: r.to_vec(), s: s.to_vec() })
            }
        }
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceKey(redacted)")
    }
}

/// ECDSA with SHA-256 on any of our curves.
pub(super) fn ecdsa_verifies(curve: Curve, point: &[u8], message: &[u8], r: &[u8], s: &[u8]) -> bool {
    let algorithm: Option<&'static dyn VerificationAlgorithm> = match curve {
        Curve::P256 => Some(&ECDSA_P256_SHA256_ASN1),
        Curve::P384 => Some(&ECDSA_P384_SHA256_ASN1),
        Curve::P521 => ECDSA_P521_SHA256,
    };
    let Some(algorithm) = algorithm else { return false };
    let (Some(r), Some(s)) = (der_integer(r, curve), der_integer(s, curve)) else { return false };
    let numbers = [r, s].concat();
    let header = match u8::try_from(numbers.len()) {
        Ok(len @ 0..=0x7f) => vec![0x30, len],
        Ok(len) => vec![0x30, 0x81, len],
        Err(_) => return false,
    };
    UnparsedPublicKey::new(algorithm, point).verify(message, &[header, numbers].concat()).is_ok()
}

/// A DER INTEGER that is not negative and fits the curve.
fn der_integer(number: &[u8], curve: Curve) -> Option<Vec<u8>> {
    let first = number.iter().position(|byte| *byte != 0)?;
    let number = &number[first..];
    if number.len() > curve.coordinate_len() {
        return None;
    }
    let sign: &[u8] = if number[0] & 0x80 != 0 { &[0] } else { &[] };
    let len = u8::try_from(sign.len() + number.len()).ok()?;
    Some([&[0x02, len], sign, number].concat())
}

/// Why a device key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceKeyError {
    /// No PEM with a private key.
    #[error("the file holds no unencrypted private key in PEM form")]
    Malformed,
    /// A kind that cannot prove itself.
    #[error("the private key must be RSA (2048 to 8192 bits), P-256 or P-521")]
    Unsupported,
    /// The library refused.
    #[error("the proof cannot be signed")]
    Signature,
}

impl DeviceKeyError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "KEY_INVALID",
            Self::Unsupported => "DEVICE_KEY_UNSUPPORTED",
            Self::Signature => "KEY_FAILED",
        }
    }
}
