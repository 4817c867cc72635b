//! Device chains and proofs, ours and those of others.

use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::*;
use crate::unix_time;

struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Ca {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        Self { certificate: params.self_signed(&key).unwrap().into(), issuer: Issuer::new(params, key) }
    }

    fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        Self { certificate: params.signed_by(&key, &self.issuer).unwrap().into(), issuer: Issuer::new(params, key) }
    }

    fn device(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = params("device-1");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap().into()
    }
}

fn verify(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Result<VerifiedDevice, DeviceError> {
    VerifiedDevice::verify(chain, roots, unix_time(SystemTime::now()))
}

fn unhex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A device whose certificate nobody asked about, for a key from elsewhere.
fn device_with(spki: &[u8]) -> VerifiedDevice {
    VerifiedDevice {
        leaf: CertificateDer::from(Vec::new()),
        key: PublicKey::from_spki_der(spki).unwrap(),
        issuers: Vec::new(),
        common_name: None,
        serial: String::new(),
        uris: Vec::new(),
    }
}

#[test]
fn a_chain_with_an_intermediate_leads_to_its_root() {
    let (root, key) = (Ca::root("root"), KeyPair::generate().unwrap());
    let between = root.below("between");
    let leaf = between.device(&key, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        params.subject_alt_names = vec![SanType::URI("x509pop://example.org/rack:r7".try_into().unwrap())];
    });
    let other = Ca::root("other");
    let roots = [other.certificate.clone(), root.certificate.clone()];
    let device = verify(&[leaf.clone(), between.certificate.clone()], &roots).unwrap();
    assert_eq!((device.common_name(), device.key_kind()), (Some("device-1"), Ok(DeviceKeyKind::Ecdsa)));
    assert_eq!(device.uris(), ["x509pop://example.org/rack:r7"]);
    let sha1 = |der: &CertificateDer<'_>| digest::sha1_hex_for_names(der);
    assert_eq!(device.issuer_fingerprints_sha1(), [sha1(&between.certificate), sha1(&root.certificate)]);
    assert_eq!((device.fingerprint_sha1(), device.fingerprint_sha256().len()), (sha1(&leaf), 64));
    assert!(
        matches!(verify(std::slice::from_ref(&leaf), &roots), Err(DeviceError::Path(_))),
        "the intermediate is missing"
    );
    assert!(matches!(verify(&[leaf, between.certificate], &roots[..1]), Err(DeviceError::Path(_))));
    assert_eq!(verify(&[], &roots).unwrap_err(), DeviceError::NoCertificate);
}

#[test]
fn a_leaf_that_is_no_device_is_refused() {
    let (root, key) = (Ca::root("root"), KeyPair::generate().unwrap());
    let refused = |change: fn(&mut CertificateParams)| {
        verify(&[root.device(&key, change)], std::slice::from_ref(&root.certificate)).unwrap_err().reason()
    };
    assert_eq!(refused(|params| params.key_usages.clear()), "DEVICE_CERTIFICATE_REFUSED");
    assert_eq!(
        refused(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        "DEVICE_CERTIFICATE_REFUSED"
    );
    assert_eq!(
        refused(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        "DEVICE_CERTIFICATE_REFUSED"
    );
    assert_eq!(refused(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)), "DEVICE_CHAIN_UNTRUSTED");
    let alone = params("self").self_signed(&key).unwrap();
    assert!(verify(&[alone.der().clone()], std::slice::from_ref(&root.certificate)).is_err());
}

#[test]
fn every_kind_of_key_proves_itself_and_no_other() {
    let root = Ca::root("root");
    let kinds: &[(&'static rcgen::SignatureAlgorithm, DeviceKeyKind)] = &[
        (&rcgen::PKCS_ECDSA_P256_SHA256, DeviceKeyKind::Ecdsa),
        #[cfg(feature = "aws-lc-rs")]
        (&rcgen::PKCS_ECDSA_P521_SHA512, DeviceKeyKind::Ecdsa),
        // ring makes no RSA keys.
        #[cfg(feature = "aws-lc-rs")]
        (&rcgen::PKCS_RSA_SHA256, DeviceKeyKind::Rsa),
    ];
    for &(algorithm, kind) in kinds {
        let (pair, thief) = (KeyPair::generate_for(algorithm).unwrap(), KeyPair::generate_for(algorithm).unwrap());
        let roots = std::slice::from_ref(&root.certificate);
        let device = verify(&[root.device(&pair, |_| ())], roots).unwrap();
        assert_eq!(device.key_kind(), Ok(kind));
        let proof = DeviceKey::from_pem(pair.serialize_pem().as_bytes()).unwrap().prove(b"message").unwrap();
        assert_eq!(device.check_possession(b"message", &proof), Ok(()));
        assert_eq!(device.check_possession(b"massage", &proof), Err(DeviceError::Possession));
        let stolen = DeviceKey::from_pem(thief.serialize_pem().as_bytes()).unwrap().prove(b"message").unwrap();
        assert_eq!(device.check_possession(b"message", &stolen), Err(DeviceError::Possession));
    }
}

#[test]
fn a_proof_of_the_wrong_kind_or_shape_is_refused() {
    let (root, pair) = (Ca::root("root"), KeyPair::generate().unwrap());
    let device = verify(&[root.device(&pair, |_| ())], std::slice::from_ref(&root.certificate)).unwrap();
    assert_eq!(device.check_possession(b"m", &PossessionProof::Rsa(vec![1; 256])), Err(DeviceError::ProofKind));
    let ecdsa = |r: &[u8], s: &[u8]| PossessionProof::Ecdsa { r: r.to_vec(), s: s.to_vec() };
    for proof in [ecdsa(&[], &[]), ecdsa(&[0; 32], &[0; 32]), ecdsa(&[1; 33], &[1; 32]), ecdsa(&[0xff; 32], &[1])] {
        assert_eq!(device.check_possession(b"m", &proof), Err(DeviceError::Possession));
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let device = verify(&[root.device(&ed25519, |_| ())], std::slice::from_ref(&root.certificate)).unwrap();
    assert_eq!(device.key_kind(), Err(DeviceError::KeyKind));
}

#[test]
fn rsa_proofs_of_other_software_have_salts_of_any_length() {
    for (spki, signature) in vectors::SIGNED {
        let (device, good) = (device_with(&unhex(spki)), unhex(signature));
        let check = |message: &[u8], signature: &[u8]| {
            device.check_possession(message, &PossessionProof::Rsa(signature.to_vec())).is_ok()
        };
        assert!(check(b"challenge-and-answer", &good));
        assert!(!check(b"challenge-and-anders", &good));
        for at in [0, 1, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(!check(b"challenge-and-answer", &bad), "byte {at}");
        }
        for bad in [&good[1..], &[], &[0xff; 256][..], &[0; 256][..], &[0; 257][..]] {
            assert!(!check(b"challenge-and-answer", bad));
        }
    }
}

#[test]
fn oversized_keys_and_chains_are_refused_before_they_cost_anything() {
    let (root, pair) = (Ca::root("root"), KeyPair::generate().unwrap());
    let leaf = root.device(&pair, |_| ());
    let roots = std::slice::from_ref(&root.certificate);
    let huge = with_rsa_modulus(&leaf, 16_384);
    let quick = |chain: &[CertificateDer<'_>]| {
        let mut best = (Duration::MAX, "");
        // The best of several runs: the machine is shared.
        for _ in 0..10 {
            let begin = Instant::now();
            let reason = verify(chain, roots).unwrap_err().reason();
            best = best.min((begin.elapsed(), reason));
        }
        assert!(best.0 < Duration::from_millis(10), "{best:?}");
        best.1
    };
    assert_eq!(quick(&vec![leaf.clone(); 100]), "DEVICE_CHAIN_TOO_LONG");
    assert_eq!(quick(std::slice::from_ref(&huge)), "PUBLIC_KEY_REFUSED");
    assert_eq!(quick(&[leaf.clone(), huge]), "PUBLIC_KEY_REFUSED");
    let between: Vec<_> = (0..DEVICE_CHAIN_MAX - 1).map(|n| root.below(&n.to_string()).certificate).collect();
    assert!(verify(&[vec![leaf.clone()], between.clone()].concat(), roots).is_ok(), "at the limit");
    assert!(verify(&[vec![leaf.clone()], between, vec![leaf]].concat(), roots).is_err(), "above it");
}

/// The certificate with an RSA key of `bits` in it, whose signature is therefore wrong.
fn with_rsa_modulus(certificate: &CertificateDer<'_>, bits: usize) -> CertificateDer<'static> {
    let spki = leaf::decode(certificate).unwrap().public_key().raw.to_vec();
    let key = PublicKey::Rsa { modulus: vec![0xc1; bits / 8], exponent: vec![1, 0, 1] }.spki_der();
    let at = certificate.windows(spki.len()).position(|window| window == spki).unwrap();
    let content_of = |at: usize| match certificate[at + 1] {
        short @ ..=0x7f => (at + 2, usize::from(short)),
        0x81 => (at + 3, usize::from(certificate[at + 2])),
        _ => (at + 4, usize::from(u16::from_be_bytes([certificate[at + 2], certificate[at + 3]]))),
    };
    let (body, _) = content_of(0);
    let (fields, len) = content_of(body);
    let before = certificate[fields..at].to_vec();
    let after = certificate[at + spki.len()..fields + len].to_vec();
    let signature = certificate[fields + len..].to_vec();
    let sequence = |content: Vec<u8>| {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82, len[0], len[1]][..], &content].concat()
    };
    CertificateDer::from(sequence([sequence([before, key, after].concat()), signature].concat()))
}
