//! A request to sign a key (PKCS#10, RFC 2986).
//!
//! A value of [`Csr`] means: whoever made it held the private key (its own signature verifies), and the key is of an
//! accepted kind and size. Everything else in it is only a wish; what an SVID says is the CA's decision.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;

use crate::crypto::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use crate::crypto::{ECDSA_P256_SHA512, ECDSA_P384_SHA512};
use crate::der::{self, NotDer, Reader};
use crate::pem::{self, PemError};
use crate::public_key::{Curve, PublicKey, PublicKeyError};

/// A verified request.
#[derive(Debug, Clone)]
pub struct Csr {
    public_key: PublicKey,
    public_key_spki: Vec<u8>,
    common_name: Option<String>,
    uris: Vec<String>,
    dns_names: Vec<String>,
}

impl Csr {
    /// Decodes DER and verifies the proof of possession.
    pub fn decode_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLong(der.len()));
        }
        check_wrapper(der).map_err(|_| CsrError::Malformed)?;
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let public_key = PublicKey::from_spki(&info.subject_pki).map_err(CsrError::Key)?;
        verify_possession(&request, &public_key)?;
        let (uris, dns_names) = requested_names(&request)?;
        Ok(Self {
            public_key_spki: info.subject_pki.raw.to_vec(),
            public_key,
            common_name: info.subject.iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned),
            uris,
            dns_names,
        })
    }

    /// Decodes PEM and verifies the proof of possession.
    pub fn decode_pem(text: &[u8]) -> Result<Self, CsrError> {
        if text.len() > 2 * CSR_BYTES_MAX {
            return Err(CsrError::TooLong(text.len()));
        }
        Self::decode_der(&pem::decode_csr(text).map_err(CsrError::Pem)?)
    }

    /// The key to be signed.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The key to be signed, as SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> &[u8] {
        &self.public_key_spki
    }

    /// The common name asked for.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The URIs asked for, unchecked.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The DNS names asked for, unchecked.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }
}

/// What is around the signed part: one way to write it, since no signature protects it.
fn check_wrapper(request: &[u8]) -> Result<(), NotDer> {
    let mut request = Reader::whole(request, der::SEQUENCE)?;
    request.take(der::SEQUENCE)?;
    let mut algorithm = request.take(der::SEQUENCE)?.reader();
    algorithm.take(der::OID)?;
    algorithm.take_optional(der::NULL)?;
    algorithm.finish()?;
    let signature = request.take(der::BIT_STRING)?.content;
    request.finish()?;
    // Signatures are whole bytes.
    if signature.first() == Some(&0) { Ok(()) } else { Err(NotDer) }
}

fn verify_possession(request: &X509CertificationRequest<'_>, key: &PublicKey) -> Result<(), CsrError> {
    let algorithm = verification_algorithm(request, key).ok_or(CsrError::Algorithm)?;
    let key_bytes = &request.certification_request_info.subject_pki.subject_public_key.data;
    UnparsedPublicKey::new(algorithm, key_bytes)
        .verify(request.certification_request_info.raw, &request.signature_value.data)
        .map_err(|_| CsrError::Possession)
}

/// The algorithm that the request names, if it fits the key. SHA-1 and everything exotic fits nothing.
fn verification_algorithm(
    request: &X509CertificationRequest<'_>,
    key: &PublicKey,
) -> Option<&'static dyn VerificationAlgorithm> {
    let oid = &request.signature_algorithm.algorithm;
    let sha256 = *oid == OID_SIG_ECDSA_WITH_SHA256;
    let sha384 = *oid == OID_SIG_ECDSA_WITH_SHA384;
    let sha512 = *oid == OID_SIG_ECDSA_WITH_SHA512;
    match key {
        PublicKey::Ec { curve: Curve::P256, .. } if sha256 => Some(&signature::ECDSA_P256_SHA256_ASN1),
        PublicKey::Ec { curve: Curve::P256, .. } if sha384 => Some(&signature::ECDSA_P256_SHA384_ASN1),
        PublicKey::Ec { curve: Curve::P256, .. } if sha512 => ECDSA_P256_SHA512,
        PublicKey::Ec { curve: Curve::P384, .. } if sha256 => Some(&signature::ECDSA_P384_SHA256_ASN1),
        PublicKey::Ec { curve: Curve::P384, .. } if sha384 => Some(&signature::ECDSA_P384_SHA384_ASN1),
        PublicKey::Ec { curve: Curve::P384, .. } if sha512 => ECDSA_P384_SHA512,
        PublicKey::Rsa { .. } if *oid == OID_PKCS1_SHA256WITHRSA => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        PublicKey::Rsa { .. } if *oid == OID_PKCS1_SHA384WITHRSA => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        PublicKey::Rsa { .. } if *oid == OID_PKCS1_SHA512WITHRSA => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        PublicKey::Ed25519 { .. } if *oid == OID_SIG_ED25519 => Some(&signature::ED25519),
        PublicKey::Ec { .. } | PublicKey::Rsa { .. } | PublicKey::Ed25519 { .. } => None,
    }
}

fn requested_names(request: &X509CertificationRequest<'_>) -> Result<(Vec<String>, Vec<String>), CsrError> {
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::Invalid(..) => return Err(CsrError::Malformed),
                _ => {}
            }
        }
    }
    Ok((uris, dns_names))
}

/// Why a request is refused. Each is permanent: the same bytes will be refused again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Longer than [`CSR_BYTES_MAX`].
    #[error("a CSR has at most {CSR_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// Not PEM, or not a CSR in it.
    #[error("the CSR is not readable PEM")]
    Pem(#[source] PemError),
    /// Not PKCS#10.
    #[error("the CSR is malformed")]
    Malformed,
    /// The key is of a kind or size that is not accepted.
    #[error("the CSR's key is not accepted")]
    Key(#[source] PublicKeyError),
    /// The signature algorithm does not fit the key or is not accepted.
    #[error("the CSR's signature algorithm is not accepted for its key")]
    Algorithm,
    /// The signature does not verify: the sender did not hold the key.
    #[error("the CSR's signature does not verify")]
    Possession,
}

impl CsrError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_) | Self::Pem(_) | Self::Malformed => "CSR_MALFORMED",
            Self::Key(_) | Self::Algorithm => "CSR_KEY_REFUSED",
            Self::Possession => "CSR_BAD_SIGNATURE",
        }
    }
}

/// The longest CSR read, in DER.
pub const CSR_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PrivateKey, SpiffeId};

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()
    }

    #[test]
    fn reads_back_what_a_key_asks_for() {
        let key = PrivateKey::generate_p256().unwrap();
        let der = key.csr_der_with(Some(&id()), &["cart.example.org".to_owned()]).unwrap();
        let csr = Csr::decode_der(&der).unwrap();
        assert_eq!(csr.public_key_spki(), key.public_key_spki());
        assert_eq!((csr.uris(), csr.dns_names()), (&[id().to_string()][..], &["cart.example.org".to_owned()][..]));
        let csr = Csr::decode_pem(pem::encode("CERTIFICATE REQUEST", &der).as_bytes()).unwrap();
        assert_eq!(csr.public_key().spki_der(), key.public_key_spki());
    }

    #[test]
    fn every_accepted_kind_of_key_proves_possession() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            #[cfg(feature = "aws-lc-rs")]
            &rcgen::PKCS_RSA_SHA256,
            #[cfg(feature = "aws-lc-rs")]
            &rcgen::PKCS_RSA_SHA512,
        ] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
            assert!(Csr::decode_der(request.der()).is_ok(), "{algorithm:?}");
        }
    }

    #[test]
    #[cfg(feature = "aws-lc-rs")]
    fn p521_keys_are_refused() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
        assert_eq!(Csr::decode_der(request.der()).unwrap_err(), CsrError::Algorithm);
    }

    #[test]
    fn a_changed_bit_is_refused_wherever_it_is() {
        let key = PrivateKey::generate_p256().unwrap();
        let der = key.csr_der(Some(&id())).unwrap();
        for at in 0..der.len() {
            let mut changed = der.clone();
            for bit in 0..8 {
                changed[at] = der[at] ^ (1 << bit);
                assert!(Csr::decode_der(&changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Csr::decode_der(&der[..at]).is_err(), "cut at {at}");
        }
        assert!(Csr::decode_der(&[der, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_foreign_signature_is_no_proof() {
        let (ours, theirs) = (PrivateKey::generate_p256().unwrap(), PrivateKey::generate_p256().unwrap());
        let mut der = ours.csr_der(None).unwrap();
        let (from, to) = (ours.public_key_spki(), theirs.public_key_spki());
        let at = der.windows(from.len()).position(|window| window == from).unwrap();
        der[at..at + to.len()].copy_from_slice(&to);
        assert_eq!(Csr::decode_der(&der).unwrap_err(), CsrError::Possession);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            proptest::prop_assert!(Csr::decode_der(&bytes).is_err());
        }
    }

    #[test]
    fn oversized_requests_are_refused_unread() {
        assert_eq!(Csr::decode_der(&vec![0x30; CSR_BYTES_MAX + 1]).unwrap_err().reason(), "CSR_MALFORMED");
        assert!(matches!(Csr::decode_pem(b"no pem"), Err(CsrError::Pem(_))));
    }
}
