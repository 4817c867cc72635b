//! Secrets at rest: AES-256-GCM with a random nonce and associated data.
//!
//! The associated data says what the secret is for (table, column, row), so that a sealed value moved elsewhere does not
//! open. The sealed form is `version (1 byte) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`.

mod passphrase;

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

use crate::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use crate::digest;

pub use passphrase::{PASSPHRASE_BYTES_MAX, PASSPHRASE_BYTES_MIN, Stretching};

/// A key that seals and opens.
pub struct SealKey {
    bytes: Zeroizing<[u8; 32]>,
}

impl SealKey {
    /// Takes 32 key bytes.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self { bytes: Zeroizing::new(bytes) };
        bytes.zeroize();
        key
    }

    /// Takes key bytes of any source; they must be 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self::from_bytes).map_err(|_| SealError::KeyLength(bytes.len()))
    }

    /// Makes a new random key.
    pub fn generate() -> Self {
        Self::from_bytes(digest::random())
    }

    /// The key's bytes, to be stored in a file that only its owner reads.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Seals `secret` for the purpose that `associated` names.
    pub fn seal(&self, associated: &[u8], secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let cipher = self.cipher()?;
        let nonce: [u8; NONCE_LEN] = digest::random();
        let unique = Nonce::assume_unique_for_key(nonce); // Random, as there are far fewer secrets than 2^32.
        let mut out = Vec::with_capacity(1 + NONCE_LEN + secret.len() + TAG_LEN);
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(secret);
        match cipher.seal_in_place_separate_tag(unique, Aad::from(associated), &mut out[1 + NONCE_LEN..]) {
            Ok(tag) => {
                out.extend_from_slice(tag.as_ref());
                Ok(out)
            }
            Err(_) => {
                out.zeroize();
                Err(SealError::Cipher)
            }
        }
    }

    /// Opens what [`Self::seal`] made for the same purpose.
    pub fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Malformed)?;
        if *version != VERSION || rest.len() < NONCE_LEN + TAG_LEN {
            return Err(SealError::Malformed);
        }
        let (nonce, body) = rest.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Malformed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let opened = self.cipher()?.open_in_place(nonce, Aad::from(associated), &mut body);
        let len = opened.map_err(|_| SealError::Refused)?.len();
        body.truncate(len);
        Ok(body)
    }

    fn cipher(&self) -> Result<LessSafeKey, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, self.bytes.as_slice()).map_err(|_| SealError::Cipher)?;
        Ok(LessSafeKey::new(key))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(redacted)")
    }
}

/// Seals with the given key. See [`SealKey::seal`].
pub fn seal(key: &SealKey, associated: &[u8], secret: &[u8]) -> Result<Vec<u8>, SealError> {
    key.seal(associated, secret)
}

/// Opens with the given key. See [`SealKey::open`].
pub fn open(key: &SealKey, associated: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    key.open(associated, sealed)
}

/// Why sealing or opening failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// A key must have 32 bytes.
    #[error("a sealing key has 32 bytes, this one has {0}")]
    KeyLength(usize),
    /// A passphrase that can be guessed, or none at all.
    #[error("a passphrase has {PASSPHRASE_BYTES_MIN} to {PASSPHRASE_BYTES_MAX} bytes")]
    Passphrase,
    /// The cipher itself refused to work.
    #[error("the cipher failed")]
    Cipher,
    /// Not a sealed value of a version we know.
    #[error("the value is not sealed, or by a newer version")]
    Malformed,
    /// Another key, another purpose, or changed bytes.
    #[error("the value was sealed with another key or for another purpose, or it was changed")]
    Refused,
}

impl SealError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeyLength(_) | Self::Passphrase => "SEAL_KEY_INVALID",
            Self::Cipher | Self::Malformed | Self::Refused => "SEAL_OPEN_FAILED",
        }
    }
}

const VERSION: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed() {
        let key = SealKey::generate();
        for secret in [&b""[..], b"x", &[7; 5000]] {
            let sealed = seal(&key, b"row 1", secret).unwrap();
            assert_eq!(open(&key, b"row 1", &sealed).unwrap().as_slice(), secret);
            assert_ne!(sealed, seal(&key, b"row 1", secret).unwrap(), "nonces must differ");
        }
    }

    #[test]
    fn refuses_another_key_purpose_or_any_changed_byte() {
        let key = SealKey::generate();
        let sealed = key.seal(b"row 1", b"secret").unwrap();
        assert_eq!(key.open(b"row 2", &sealed), Err(SealError::Refused));
        assert_eq!(SealKey::generate().open(b"row 1", &sealed), Err(SealError::Refused));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(b"row 1", &changed).is_err(), "byte {at}");
            assert!(key.open(b"row 1", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn keys_are_never_printed() {
        let key = SealKey::from_bytes([0x41; 32]);
        assert_eq!(format!("{key:?}"), "SealKey(redacted)");
        assert!(SealKey::from_slice(&[1; 31]).is_err());
    }
}
