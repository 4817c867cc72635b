//! Requests that are right, and those that are wrong in one thing.

use std::time::Duration;

use super::*;
use crate::TrustDomain;
use crate::authority::X509Authority;
use crate::der::{sequence, tlv};
use crate::revocation::RevocationReason;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn authority() -> X509Authority {
    let domain = TrustDomain::parse("td").unwrap();
    X509Authority::generate_root(&domain, Duration::from_secs(360_000), now()).unwrap()
}

fn cert_id(authority: &X509Authority, algorithm: HashAlgorithm, serial: &[u8]) -> Vec<u8> {
    let shape = Shape::decode(authority.certificate()).unwrap();
    let (_, key) = key_parts(shape.spki).unwrap();
    let oid = if algorithm == HashAlgorithm::Sha1 { SHA1 } else { SHA256 };
    sequence(&[
        &sequence(&[&tlv(der::OID, oid), &tlv(der::NULL, &[])]),
        &tlv(der::OCTET_STRING, &algorithm.hash(&tlv(der::SEQUENCE, shape.subject))),
        &tlv(der::OCTET_STRING, &algorithm.hash(key)),
        &tlv(der::INTEGER, serial),
    ])
}

fn request(certs: &[Vec<u8>], nonce: Option<&[u8]>) -> Vec<u8> {
    let list: Vec<u8> = certs.iter().flat_map(|cert| sequence(&[cert])).collect();
    let nonce = nonce.map_or(Vec::new(), |nonce| {
        let value = tlv(der::OCTET_STRING, &tlv(der::OCTET_STRING, nonce));
        tlv(der::context_constructed(2), &sequence(&[&sequence(&[&tlv(der::OID, NONCE), &value])]))
    });
    sequence(&[&sequence(&[&tlv(der::SEQUENCE, &list), &nonce])])
}

#[test]
fn a_request_names_certificate_issuer_and_nonce() {
    let (authority, other) = (authority(), authority());
    for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Sha256] {
        let asked = request(&[cert_id(&authority, algorithm, &[0, 0x8a, 1])], Some(b"nonce"));
        let read = OcspRequest::decode(&asked).unwrap();
        assert_eq!((read.certs().len(), read.nonce()), (1, Some(&b"nonce"[..])));
        assert_eq!(read.certs()[0].serial(), "8a01");
        assert!(read.certs()[0].is_by(authority.certificate()));
        assert!(!read.certs()[0].is_by(other.certificate()));
    }
}

#[test]
fn limits_hold_at_their_edge() {
    let cert = cert_id(&authority(), HashAlgorithm::Sha1, &[1]);
    let many = |count| OcspRequest::decode(&request(&vec![cert.clone(); count], None));
    assert!(many(OCSP_CERTS_MAX).is_ok());
    assert_eq!(many(OCSP_CERTS_MAX + 1), Err(OcspError::Malformed));
    assert_eq!(many(0), Err(OcspError::Malformed));
    let nonce = |len| OcspRequest::decode(&request(std::slice::from_ref(&cert), Some(&vec![1; len])));
    assert!(nonce(OCSP_NONCE_BYTES_MAX).is_ok());
    assert_eq!(nonce(OCSP_NONCE_BYTES_MAX + 1), Err(OcspError::Malformed));
    assert_eq!(nonce(0), Err(OcspError::Malformed));
    assert_eq!(OcspRequest::decode(&vec![0x30; OCSP_REQUEST_BYTES_MAX + 1]), Err(OcspError::Malformed));
}

#[test]
fn an_answer_is_signed_and_repeats_question_and_nonce() {
    let authority = authority();
    let cert = cert_id(&authority, HashAlgorithm::Sha1, &[9]);
    let asked = OcspRequest::decode(&request(std::slice::from_ref(&cert), Some(b"once"))).unwrap();
    let revoked = RevokedCertificate { at: now(), reason: Some(RevocationReason::KeyCompromise) };
    let profile = OcspProfile { this_update: now(), next_update: now() + Duration::from_secs(300) };
    for status in [CertStatus::Good, CertStatus::Revoked(revoked), CertStatus::Unknown] {
        let answer = authority.sign_ocsp(&asked, &[status], &profile, now()).unwrap();
        assert!(answer.windows(cert.len()).any(|part| part == cert));
        assert!(answer.windows(4).any(|part| part == b"once"));
        assert!(is_signed(&answer, &authority), "{status:?}");
    }
    assert!(authority.sign_ocsp(&asked, &[], &profile, now()).is_err(), "one status for each certificate");
}

/// Whether the response's signature is the authority's.
fn is_signed(response: &[u8], authority: &X509Authority) -> bool {
    let mut outer = Reader::whole(response, der::SEQUENCE).unwrap();
    assert_eq!(outer.take(der::ENUMERATED).unwrap().content, [0]);
    let bytes = outer.take(der::context_constructed(0)).unwrap();
    let mut bytes = Reader::whole(bytes.content, der::SEQUENCE).unwrap();
    bytes.take(der::OID).unwrap();
    let basic = bytes.take(der::OCTET_STRING).unwrap().content;
    let mut basic = Reader::whole(basic, der::SEQUENCE).unwrap();
    let data = basic.take(der::SEQUENCE).unwrap();
    let algorithm = basic.take(der::SEQUENCE).unwrap().content;
    let signature = der::bits(basic.take(der::BIT_STRING).unwrap().content).unwrap();
    let signed = crate::signed::Signed { message: data.raw, algorithm, signature };
    signed.is_by(Shape::decode(authority.certificate()).unwrap().spki)
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_handled(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        proptest::prop_assert!(OcspRequest::decode(&bytes).is_err());
    }
}
