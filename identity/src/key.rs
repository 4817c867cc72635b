//! Private keys of SVIDs and authorities. A key's bytes are never printed and are wiped when the last holder drops it.

mod read;

use std::fmt;
use std::sync::{Arc, OnceLock};

use rcgen::PublicKeyData;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::SpiffeId;
use crate::pem;
use crate::public_key::{Curve, PublicKey};
use crate::signed;

pub use read::KEY_FILE_BYTES_MAX;

/// The kinds of keys that an authority may have, each with the one signature algorithm that it makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyKind {
    /// ECDSA with SHA-256; signatures are DER (RFC 5758).
    #[default]
    #[serde(rename = "P-256")]
    P256,
    /// ECDSA with SHA-384; signatures are DER (RFC 5758).
    #[serde(rename = "P-384")]
    P384,
    /// Ed25519; signatures have 64 bytes (RFC 8032).
    Ed25519,
    /// RSA PKCS#1 v1.5 with SHA-256 (RFC 4055). Keys of this kind are read, never made.
    #[serde(rename = "RSA")]
    Rsa,
}

impl KeyKind {
    /// The kind of a public key; none for kinds that no authority may have.
    pub fn of_spki(der: &[u8]) -> Option<Self> {
        match PublicKey::from_spki_der(der).ok()? {
            PublicKey::Ec { curve: Curve::P256, .. } => Some(Self::P256),
            PublicKey::Ec { curve: Curve::P384, .. } => Some(Self::P384),
            PublicKey::Ec { curve: Curve::P521, .. } => None,
            PublicKey::Ed25519 { .. } => Some(Self::Ed25519),
            PublicKey::Rsa { .. } => Some(Self::Rsa),
        }
    }

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::Ed25519, Self::Rsa].into_iter().find(|kind| kind.as_str() == text)
    }

    pub(crate) fn algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// A private key with its public half. Clones share the same bytes.
///
/// What signatures need is several times the size of the key. It is made for the first signature, because most holders hand a
/// key on and never sign.
#[derive(Clone)]
pub struct PrivateKey(Arc<Inner>);

struct Inner {
    pkcs8: Zeroizing<Vec<u8>>,
    /// As the algorithm writes it, without SubjectPublicKeyInfo around it.
    public: Vec<u8>,
    algorithm: &'static rcgen::SignatureAlgorithm,
    pair: OnceLock<Pair>,
}

/// What signatures need; wiped like the key itself.
struct Pair(rcgen::KeyPair);

impl Drop for Pair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Pair {
    fn from_pkcs8_der(der: &[u8]) -> Result<Self, rcgen::Error> {
        rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).map(Self)
    }
}

impl Inner {
    fn of(Pair(pair): &Pair) -> Self {
        Self {
            pkcs8: Zeroizing::new(pair.serialized_der().to_vec()),
            public: pair.der_bytes().to_vec(),
            algorithm: PublicKeyData::algorithm(pair),
            pair: OnceLock::new(),
        }
    }

    fn pair(&self) -> Result<&rcgen::KeyPair, rcgen::Error> {
        let pair = match self.pair.get() {
            Some(pair) => pair,
            None => {
                let pair = Pair::from_pkcs8_der(&self.pkcs8)?;
                self.pair.get_or_init(|| pair)
            }
        };
        Ok(&pair.0)
    }
}

impl PrivateKey {
    /// Makes a new P-256 key, the default everywhere.
    pub fn generate_p256() -> Result<Self, KeyError> {
        Self::generate(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Makes a new P-384 key, for authorities that want one.
    pub fn generate_p384() -> Result<Self, KeyError> {
        Self::generate(&rcgen::PKCS_ECDSA_P384_SHA384)
    }

    /// Makes a new key of a kind. RSA keys are not made.
    pub fn generate_kind(kind: KeyKind) -> Result<Self, KeyError> {
        if kind == KeyKind::Rsa { Err(KeyError::NotMade) } else { Self::generate(kind.algorithm()) }
    }

    fn generate(algorithm: &'static rcgen::SignatureAlgorithm) -> Result<Self, KeyError> {
        let pair = Pair(rcgen::KeyPair::generate_for(algorithm).map_err(KeyError::Generate)?);
        let inner = Inner::of(&pair);
        // Whoever makes a key asks for a certificate next, which takes a signature.
        let _ = inner.pair.set(pair);
        Ok(Self(Arc::new(inner)))
    }

    /// Reads an unencrypted PKCS#8 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > PKCS8_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        let pair = Pair::from_pkcs8_der(der).map_err(|_| KeyError::Malformed)?;
        Ok(Self(Arc::new(Inner::of(&pair))))
    }

    /// Takes up a key that was read and checked before and kept where nobody else can write, with the SubjectPublicKeyInfo that it had.
    /// Nothing is computed before the first signature: thousands of keys are taken up in no time.
    pub fn kept(pkcs8: Zeroizing<Vec<u8>>, public_key_spki: &[u8]) -> Result<Self, KeyError> {
        if pkcs8.len() > PKCS8_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        let kind = KeyKind::of_spki(public_key_spki).ok_or(KeyError::Malformed)?;
        let public = signed::key_parts(public_key_spki).ok_or(KeyError::Malformed)?.1.to_vec();
        Ok(Self(Arc::new(Inner { pkcs8, public, algorithm: kind.algorithm(), pair: OnceLock::new() })))
    }

    /// The same key without what signatures need, for who will rarely sign with it.
    pub fn at_rest(&self) -> Self {
        let Inner { pkcs8, public, algorithm, pair } = &*self.0;
        if pair.get().is_none() {
            return self.clone();
        }
        let (pkcs8, public) = (pkcs8.clone(), public.clone());
        Self(Arc::new(Inner { pkcs8, public, algorithm, pair: OnceLock::new() }))
    }

    /// Reads a PEM text with a PKCS#8 key.
    pub fn from_pkcs8_pem(text: &[u8]) -> Result<Self, KeyError> {
        match pem::decode_private_key(text) {
            Ok(rustls_pki_types::PrivateKeyDer::Pkcs8(der)) => Self::from_pkcs8_der(der.secret_pkcs8_der()),
            _ => Err(KeyError::Malformed),
        }
    }

    /// The key as PKCS#8. The caller keeps it secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.0.pkcs8
    }

    /// The key as PKCS#8 PEM. The caller keeps it secret.
    pub fn pkcs8_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", self.pkcs8_der()))
    }

    /// The public half as SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// A CSR for this key, which asks for the given ID (or leaves the choice to the CA).
    pub fn csr_der(&self, id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
        self.csr_der_with(id, &[])
    }

    /// A CSR that also asks for DNS names.
    pub fn csr_der_with(&self, id: Option<&SpiffeId>, dns_names: &[String]) -> Result<Vec<u8>, KeyError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(id) = id {
            let uri = id.as_str().try_into().map_err(KeyError::Csr)?;
            params.subject_alt_names.push(rcgen::SanType::URI(uri));
        }
        for name in dns_names {
            let name = name.as_str().try_into().map_err(KeyError::Csr)?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        let request = params.serialize_request(self.0.pair().map_err(KeyError::Csr)?).map_err(KeyError::Csr)?;
        Ok(request.der().to_vec())
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.pair()?.sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The generator failed.
    #[error("a key could not be generated")]
    Generate(#[source] rcgen::Error),
    /// Not an unencrypted PKCS#8 key of a kind we know.
    #[error("the private key is not an unencrypted PKCS#8 key of a supported kind")]
    Malformed,
    /// Longer than any key we accept.
    #[error("the private key is longer than {PKCS8_BYTES_MAX} bytes")]
    TooLong,
    /// Keys of this kind are not made.
    #[error("keys of this kind are not made; choose P-256, P-384 or Ed25519")]
    NotMade,
    /// The key is encrypted, and there is no passphrase.
    #[error("the private key is encrypted; give its passphrase")]
    Encrypted,
    /// The passphrase is wrong, or the key is encrypted in a way that we do not know.
    #[error("the private key cannot be decrypted: the passphrase is wrong, or the encryption is none of PBES2's")]
    Passphrase,
    /// The CSR could not be written or signed.
    #[error("the certificate signing request could not be made")]
    Csr(#[source] rcgen::Error),
}

impl KeyError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Generate(_) | Self::Csr(_) => "KEY_FAILED",
            Self::Malformed | Self::TooLong | Self::NotMade => "KEY_INVALID",
            Self::Encrypted | Self::Passphrase => "KEY_PASSPHRASE_WRONG",
        }
    }
}

/// The longest PKCS#8 document read; an RSA key of 8192 bits fits.
pub const PKCS8_BYTES_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs8_round_trips() {
        for key in [PrivateKey::generate_p256().unwrap(), PrivateKey::generate_p384().unwrap()] {
            let again = PrivateKey::from_pkcs8_der(key.pkcs8_der()).unwrap();
            assert_eq!(again.public_key_spki(), key.public_key_spki());
            let again = PrivateKey::from_pkcs8_pem(key.pkcs8_pem().as_bytes()).unwrap();
            assert_eq!(again.pkcs8_der(), key.pkcs8_der());
        }
    }

    #[test]
    fn a_kept_key_is_the_same_key() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
            let key = PrivateKey::generate_kind(kind).unwrap();
            let pkcs8 = || Zeroizing::new(key.pkcs8_der().to_vec());
            let kept = PrivateKey::kept(pkcs8(), &key.public_key_spki()).unwrap();
            assert_eq!(kept.public_key_spki(), key.public_key_spki());
            let csr = crate::csr::Csr::decode_der(&kept.csr_der(None).unwrap()).unwrap();
            assert_eq!(csr.public_key_spki(), key.public_key_spki());
            assert_eq!(PrivateKey::kept(pkcs8(), b"no key").unwrap_err().reason(), "KEY_INVALID");
        }
    }

    #[test]
    fn broken_keys_are_refused() {
        let key = PrivateKey::generate_p256().unwrap();
        assert!(PrivateKey::from_pkcs8_der(&key.pkcs8_der()[1..]).is_err());
        assert!(PrivateKey::from_pkcs8_der(&[]).is_err());
        assert!(PrivateKey::from_pkcs8_der(&vec![0; PKCS8_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn keys_are_never_printed() {
        assert_eq!(format!("{:?}", PrivateKey::generate_p256().unwrap()), "PrivateKey(redacted)");
    }
}
