//! Signed tree heads: the log's word for how long it is and what its root is, in the form of RFC 6962, section 3.5, signed
//! with ECDSA P-256 and SHA-256.

use std::fmt;

use rcgen::SigningKey as _;

use super::{Hash, TransparencyError};
use crate::crypto::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use crate::digest;
use crate::key::{KeyError, PrivateKey};
use crate::public_key::{Curve, PublicKey};

/// What a log says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeHead {
    /// How many leaves it has.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// When it said so, milliseconds since 1970.
    pub timestamp_ms: u64,
}

impl TreeHead {
    /// The bytes that are signed: version 1, type "tree hash", time, size, root.
    pub fn to_signed_bytes(&self) -> [u8; 50] {
        let mut bytes = [0; 50];
        bytes[1] = TREE_HASH;
        bytes[2..10].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        bytes[10..18].copy_from_slice(&self.size.to_be_bytes());
        bytes[18..].copy_from_slice(&self.root);
        bytes
    }
}

/// A tree head with the signature of its log. Only [`LogPublicKey::verify`] says whether it is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTreeHead {
    /// What is said.
    pub head: TreeHead,
    /// Who said it: SHA-256 of the log's public key (SubjectPublicKeyInfo).
    pub log_id: Hash,
    /// ECDSA, DER.
    pub signature: Vec<u8>,
}

/// The key with which a log signs its heads.
pub struct LogKey {
    key: PrivateKey,
    public: LogPublicKey,
}

impl LogKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        Self::from_key(PrivateKey::generate_p256()?)
    }

    /// Takes a stored one.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_key(PrivateKey::from_pkcs8_der(der)?)
    }

    fn from_key(key: PrivateKey) -> Result<Self, KeyError> {
        let public = LogPublicKey::from_spki_der(&key.public_key_spki()).map_err(|_| KeyError::Malformed)?;
        Ok(Self { key, public })
    }

    /// The key as PKCS#8. The caller keeps it secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.key.pkcs8_der()
    }

    /// The public half.
    pub fn public(&self) -> &LogPublicKey {
        &self.public
    }

    /// Signs a head.
    ///
    /// # Errors
    /// When the signature cannot be made.
    pub fn sign(&self, head: TreeHead) -> Result<SignedTreeHead, TransparencyError> {
        let signature = self.key.sign(&head.to_signed_bytes()).map_err(|_| TransparencyError::Signature)?;
        Ok(SignedTreeHead { head, log_id: self.public.id(), signature })
    }

    /// Signs a statement that is no tree head, such as a receipt.
    ///
    /// # Errors
    /// When the signature cannot be made.
    pub fn sign_statement(&self, statement: &[u8]) -> Result<Vec<u8>, TransparencyError> {
        self.key.sign(&statement_bytes(statement)).map_err(|_| TransparencyError::Signature)
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The key by which a log is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPublicKey {
    spki: Vec<u8>,
    point: Vec<u8>,
}

impl LogPublicKey {
    /// Reads a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, TransparencyError> {
        match PublicKey::from_spki_der(der) {
            Ok(PublicKey::Ec { curve: Curve::P256, point }) => Ok(Self { spki: der.to_vec(), point }),
            _ => Err(TransparencyError::Key),
        }
    }

    /// The key as SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The log's name: SHA-256 of the key.
    pub fn id(&self) -> Hash {
        digest::sha256(&self.spki)
    }

    /// Verifies that this log signed `signed`.
    ///
    /// # Errors
    /// When another log did, or nobody.
    pub fn verify(&self, signed: &SignedTreeHead) -> Result<(), TransparencyError> {
        if signed.log_id != self.id() {
            return Err(TransparencyError::OtherLog);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(&signed.head.to_signed_bytes(), &signed.signature)
            .map_err(|_| TransparencyError::Signature)
    }

    /// Verifies that this log signed a statement that is no tree head.
    ///
    /// # Errors
    /// When another log did, or nobody, or the statement was changed.
    pub fn verify_statement(&self, statement: &[u8], signature: &[u8]) -> Result<(), TransparencyError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(&statement_bytes(statement), signature)
            .map_err(|_| TransparencyError::Signature)
    }
}

/// What is signed for a statement: no tree head begins like this.
fn statement_bytes(statement: &[u8]) -> Vec<u8> {
    [STATEMENT, statement].concat()
}

const STATEMENT: &[u8] = b"kasbah statement\0";
const TREE_HASH: u8 = 1;
