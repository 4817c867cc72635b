//! The text form of certificates and keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, CertificateSigningRequestDer, PrivateKeyDer, SubjectPublicKeyInfoDer,
};

/// Writes one certificate as PEM, with a newline at the end.
pub fn certificate(der: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", der)
}

/// Writes certificates one after the other.
pub fn certificates<'a, 'der: 'a>(ders: impl IntoIterator<Item = &'a CertificateDer<'der>>) -> String {
    ders.into_iter().map(certificate).collect()
}

/// Writes any DER under the given label, lines of 64 characters.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..body.len()).step_by(64) {
        text.push_str(&body[start..body.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Reads every certificate of a PEM text. Other sections are passed over; no certificate at all is an error.
pub fn decode_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        if certificates.len() == CERTIFICATES_MAX {
            return Err(PemError::TooMany);
        }
        certificates.push(certificate.map_err(|_| PemError::Malformed)?);
    }
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// Reads the first private key of a PEM text, in any of the three usual forms.
pub fn decode_private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|_| PemError::NoPrivateKey)
}

/// Reads every revocation list of a PEM text; no list at all is an error.
pub(crate) fn decode_crls(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let mut lists = Vec::new();
    for list in CertificateRevocationListDer::pem_slice_iter(text) {
        if lists.len() == CERTIFICATES_MAX {
            return Err(PemError::TooMany);
        }
        lists.push(list.map_err(|_| PemError::Malformed)?);
    }
    if lists.is_empty() { Err(PemError::NoCrl) } else { Ok(lists) }
}

/// Reads the first public key of a PEM text, as SubjectPublicKeyInfo.
pub fn decode_public_key(text: &[u8]) -> Result<Vec<u8>, PemError> {
    SubjectPublicKeyInfoDer::from_pem_slice(text).map(|der| der.to_vec()).map_err(|_| PemError::Malformed)
}

/// The one certificate signing request of a PEM text.
pub fn decode_csr(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, PemError> {
    CertificateSigningRequestDer::from_pem_slice(text).map_err(|_| PemError::NoCsr)
}

/// Why a PEM text could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// A section is broken.
    #[error("the PEM text is malformed")]
    Malformed,
    /// There is no certificate in it.
    #[error("the PEM text holds no certificate")]
    NoCertificate,
    /// There is no unencrypted private key in it.
    #[error("the PEM text holds no unencrypted private key")]
    NoPrivateKey,
    /// There is no CSR in it.
    #[error("the PEM text holds no certificate signing request")]
    NoCsr,
    /// There is no revocation list in it.
    #[error("the PEM text holds no certificate revocation list")]
    NoCrl,
    /// It holds more than [`CERTIFICATES_MAX`] certificates.
    #[error("the PEM text holds more than {CERTIFICATES_MAX} certificates")]
    TooMany,
}

impl PemError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        "PEM_INVALID"
    }
}

/// The most certificates one PEM text may hold.
pub const CERTIFICATES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let ders: Vec<_> = [1_usize, 48, 49, 500].map(|n| CertificateDer::from(vec![7; n])).into();
        let text = certificates(&ders);
        assert_eq!(decode_certificates(text.as_bytes()).unwrap(), ders);
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn an_empty_text_is_an_error() {
        assert_eq!(decode_certificates(b"hello"), Err(PemError::NoCertificate));
        assert!(decode_private_key(b"").is_err());
    }
}
