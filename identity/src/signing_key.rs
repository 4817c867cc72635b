//! The key of an authority: held by this process, or elsewhere (a token, a service) and asked for each signature.
//!
//! What another party signed is verified before it is used, so that a faulty or false one can do no more than refuse.

use std::fmt;
use std::sync::Arc;

use rcgen::PublicKeyData;

use crate::crypto::digest::{self as crypto, digest};
use crate::der::{self, tlv};
use crate::key::{KeyKind, PrivateKey};
use crate::signed::{Signed, key_parts};
use crate::spiffe_id::TrustDomain;

/// A private key that is kept elsewhere. A signature may block, for a bounded time; the caller sees to it that no other
/// work waits behind it.
pub trait RemoteKey: Send + Sync {
    /// Its public half as SubjectPublicKeyInfo, always the same.
    fn public_key_spki(&self) -> &[u8];

    /// Signs a message as [`KeyKind`] says.
    ///
    /// # Errors
    /// When there is no signature within the time that the implementation sets itself. It says why in its own log.
    fn sign(&self, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError>;
}

/// There is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the keeper of the key gave no signature")]
pub struct RemoteKeyError;

/// A key that signs. Clones are the same key.
#[derive(Clone)]
pub struct SigningKey(Arc<Held>);

enum Held {
    Here(PrivateKey),
    Elsewhere(Elsewhere),
}

struct Elsewhere {
    key: Box<dyn RemoteKey>,
    kind: KeyKind,
    /// The bits of the public key, as [`PublicKeyData`] wants them.
    bits: Vec<u8>,
}

impl SigningKey {
    /// Takes a key that is kept elsewhere.
    ///
    /// # Errors
    /// When its public half is of a kind that no authority may have.
    pub fn elsewhere(key: Box<dyn RemoteKey>) -> Result<Self, RemoteKeyError> {
        let spki = key.public_key_spki();
        let kind = KeyKind::of_spki(spki).ok_or(RemoteKeyError)?;
        let bits = key_parts(spki).map(|(_, bits)| bits.to_vec()).ok_or(RemoteKeyError)?;
        Ok(Self(Arc::new(Held::Elsewhere(Elsewhere { key, kind, bits }))))
    }

    /// The key itself, if this process holds it.
    pub fn here(&self) -> Option<&PrivateKey> {
        match &*self.0 {
            Held::Here(key) => Some(key),
            Held::Elsewhere(_) => None,
        }
    }

    /// Its public half as SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> Vec<u8> {
        match &*self.0 {
            Held::Here(key) => key.public_key_spki(),
            Held::Elsewhere(elsewhere) => elsewhere.key.public_key_spki().to_vec(),
        }
    }

    /// Signs a message as [`KeyKind`] says.
    ///
    /// # Errors
    /// When there is no signature, or it does not verify.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        rcgen::SigningKey::sign(self, message).map_err(|_| RemoteKeyError)
    }

    /// A request for a CA certificate of this trust domain for this key (PKCS#10, RFC 2986), as DER.
    ///
    /// # Errors
    /// When there is no signature.
    pub fn ca_csr_der(&self, trust_domain: &TrustDomain) -> Result<Vec<u8>, RemoteKeyError> {
        let params = crate::authority::csr_params(trust_domain, &self.public_key_spki()).map_err(|_| RemoteKeyError)?;
        let request = params.serialize_request(self).map_err(|_| RemoteKeyError)?;
        Ok(request.der().to_vec())
    }
}

impl From<PrivateKey> for SigningKey {
    fn from(key: PrivateKey) -> Self {
        Self(Arc::new(Held::Here(key)))
    }
}

impl PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        match &*self.0 {
            Held::Here(key) => key.der_bytes(),
            Held::Elsewhere(elsewhere) => &elsewhere.bits,
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match &*self.0 {
            Held::Here(key) => PublicKeyData::algorithm(key),
            Held::Elsewhere(elsewhere) => elsewhere.kind.algorithm(),
        }
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match &*self.0 {
            Held::Here(key) => key.sign(message),
            Held::Elsewhere(elsewhere) => elsewhere.sign(message).map_err(|_| rcgen::Error::RemoteKeyError),
        }
    }
}

impl Elsewhere {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        let signature = self.key.sign(self.kind, message)?;
        let signed = Signed { message, algorithm: signature_algorithm(self.kind), signature: &signature };
        if signed.is_by(self.key.public_key_spki()) { Ok(signature) } else { Err(RemoteKeyError) }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Held::Here(_) => f.write_str("SigningKey(here, redacted)"),
            Held::Elsewhere(_) => f.write_str("SigningKey(elsewhere)"),
        }
    }
}

/// What is signed of a message where the keeper of an ECDSA key wants its digest; the message itself for other kinds.
pub fn prehash(kind: KeyKind, message: &[u8]) -> Vec<u8> {
    match kind {
        KeyKind::P256 => digest(&crypto::SHA256, message).as_ref().to_vec(),
        KeyKind::P384 => digest(&crypto::SHA384, message).as_ref().to_vec(),
        KeyKind::Ed25519 | KeyKind::Rsa => message.to_vec(),
    }
}

/// An ECDSA signature in the form of X.509 (RFC 3279, 2.2.3), out of its two numbers one after the other, as PKCS#11 and JOSE
/// have it.
pub fn ecdsa_der(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    tlv(der::SEQUENCE, &[unsigned(r), unsigned(s)].concat())
}

/// A DER INTEGER that is not negative.
fn unsigned(number: &[u8]) -> Vec<u8> {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let number = &number[first..];
    let sign: &[u8] = if number.first().is_none_or(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    tlv(der::INTEGER, &[sign, number].concat())
}

/// The content of the AlgorithmIdentifier of a kind's signatures.
fn signature_algorithm(kind: KeyKind) -> &'static [u8] {
    match kind {
        KeyKind::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        KeyKind::P384 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        KeyKind::Ed25519 => &[0x06, 0x03, 0x2b, 0x65, 0x70],
        KeyKind::Rsa => &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00],
    }
}

#[cfg(test)]
mod tests;
