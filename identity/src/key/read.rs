//! Reading private keys in the forms in which people keep them: PKCS#8 (RFC 5958), plain or encrypted with a passphrase
//! (PBES2, RFC 8018), PKCS#1 (RFC 8017) and SEC1 (RFC 5915).

use ::pkcs8::pkcs5::EncryptionScheme;
use ::pkcs8::pkcs5::pbes2::Kdf;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use zeroize::Zeroizing;

use super::{KeyError, PrivateKey};
use crate::der::{self, NotDer, Reader, tlv};

impl PrivateKey {
    /// Reads the first private key of a PEM text. `passphrase` opens an encrypted one.
    ///
    /// # Errors
    /// When there is no key of a kind that we know, or it cannot be decrypted.
    pub fn from_pem(text: &[u8], passphrase: Option<&[u8]>) -> Result<Self, KeyError> {
        if text.len() > KEY_FILE_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        if let Some(der) = encrypted(text) {
            return Self::decrypt(&der, passphrase.ok_or(KeyError::Encrypted)?);
        }
        match PrivateKeyDer::from_pem_slice(text).map_err(|_| KeyError::Malformed)? {
            PrivateKeyDer::Pkcs8(key) => Self::from_pkcs8_der(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => Self::from_pkcs8_der(&pkcs8(RSA, key.secret_pkcs1_der())?),
            PrivateKeyDer::Sec1(key) => {
                let key = key.secret_sec1_der();
                let curve = curve(key).map_err(|_| KeyError::Malformed)?;
                Self::from_pkcs8_der(&pkcs8(&[EC, curve].concat(), key)?)
            }
            _ => Err(KeyError::Malformed),
        }
    }

    fn decrypt(der: &[u8], passphrase: &[u8]) -> Result<Self, KeyError> {
        // Older ways of encryption are not even parsed.
        let info = ::pkcs8::EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| KeyError::Passphrase)?;
        if !is_affordable(&info.encryption_algorithm) {
            return Err(KeyError::Passphrase);
        }
        let plain = info.decrypt(passphrase).map_err(|_| KeyError::Passphrase)?;
        Self::from_pkcs8_der(plain.as_bytes())
    }
}

/// The content of the first section with an encrypted PKCS#8 key.
fn encrypted(text: &[u8]) -> Option<Vec<u8>> {
    let body = std::str::from_utf8(text).ok()?.split_once(ENCRYPTED_BEGIN)?.1.split_once(ENCRYPTED_END)?.0;
    let section = format!("-----BEGIN PRIVATE KEY-----{body}-----END PRIVATE KEY-----\n");
    let (kind, der) = rustls_pki_types::pem::from_buf(&mut section.as_bytes()).ok()??;
    (kind == SectionKind::PrivateKey).then_some(der)
}

/// Whether the work and the memory that the file asks for are within limits. An unknown way is not.
fn is_affordable(scheme: &EncryptionScheme) -> bool {
    match scheme.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Pbkdf2(kdf)) => kdf.iteration_count <= PBKDF2_ITERATIONS_MAX,
        Some(Kdf::Scrypt(kdf)) => {
            let block = 128 * u64::from(kdf.block_size) * u64::from(kdf.parallelization);
            kdf.cost_parameter.checked_mul(block).is_some_and(|bytes| bytes <= SCRYPT_BYTES_MAX)
        }
        _ => false,
    }
}

/// PKCS#8 of a key in an older form: `SEQUENCE { 0, algorithm, OCTET STRING }`.
fn pkcs8(algorithm: &[u8], key: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if key.len() > super::PKCS8_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let inner = Zeroizing::new(tlv(der::OCTET_STRING, key));
    let whole = [&[der::INTEGER, 1, 0], tlv(der::SEQUENCE, algorithm).as_slice(), &inner].concat();
    let whole = Zeroizing::new(whole);
    Ok(Zeroizing::new(tlv(der::SEQUENCE, &whole)))
}

/// The object identifier of the curve that a SEC1 key names.
fn curve(sec1: &[u8]) -> Result<&[u8], NotDer> {
    let mut key = Reader::whole(sec1, der::SEQUENCE)?;
    key.take(der::INTEGER)?;
    key.take(der::OCTET_STRING)?;
    let parameters = key.take(der::context_constructed(0))?;
    Ok(parameters.reader().take(der::OID)?.raw)
}

/// The longest PEM text with a key that is read.
pub const KEY_FILE_BYTES_MAX: usize = 64 * 1024;
/// The most iterations that a file may ask for: some seconds.
const PBKDF2_ITERATIONS_MAX: u32 = 10_000_000;
/// The most memory that a file may ask for.
const SCRYPT_BYTES_MAX: u64 = 256 << 20;
const ENCRYPTED_BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const ENCRYPTED_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
/// Algorithm identifiers without their outer tag: rsaEncryption with NULL, id-ecPublicKey before its curve.
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

#[cfg(test)]
mod tests;
