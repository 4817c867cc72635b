//! What is fit, and each thing that is not.

use super::*;
use crate::PrivateKey;
use crate::authority::{CaProfile, LeafProfile};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn td() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

fn needs(trust_domain: &TrustDomain) -> Needs<'_> {
    Needs { trust_domain, now: now(), life_min: HOUR }
}

fn text(certificates: &[CertificateDer<'static>]) -> Vec<u8> {
    pem::certificates(certificates).into_bytes()
}

fn check(certificate: &[u8], chain: &[u8], root: &[u8]) -> Result<Candidate, ImportError> {
    Candidate::check(Offer { certificate, chain, root }, needs(&td()))
}

fn refused(certificate: &[u8], chain: &[u8], root: &[u8]) -> &'static str {
    check(certificate, chain, root).unwrap_err().reason()
}

fn root() -> X509Authority {
    X509Authority::generate_root(&td(), 24 * HOUR, now()).unwrap()
}

#[test]
fn roots_and_intermediates_are_found_fit_in_any_arrangement() {
    let root = root();
    let middle = root.generate_intermediate(20 * HOUR, now()).unwrap();
    let low = middle.generate_intermediate(10 * HOUR, now()).unwrap();
    let (root_pem, chain) = (text(root.chain()), text(low.chain()));
    let alone = check(&root_pem, b"", b"").unwrap();
    assert!(alone.is_root() && alone.chain == *root.chain());
    for found in [
        check(&chain, b"", &root_pem).unwrap(),
        check(&text(&low.chain()[..1]), &text(&low.chain()[1..]), &root_pem).unwrap(),
        check(&[chain.clone(), root_pem.clone()].concat(), b"", b"").unwrap(),
    ] {
        assert!(!found.is_root());
        assert_eq!((found.chain.as_slice(), &found.root), (low.chain(), root.certificate()));
        found.with_key(&td(), low.key().clone()).unwrap();
        let other = PrivateKey::generate_p256().unwrap();
        assert_eq!(found.with_key(&td(), other).unwrap_err().reason(), "IMPORT_KEY_MISMATCH");
    }
}

#[test]
fn what_is_not_fit_is_refused_with_a_code_of_its_own() {
    let root = root();
    let middle = root.generate_intermediate(20 * HOUR, now()).unwrap();
    let root_pem = text(root.chain());
    assert_eq!(refused(b"garbage", b"", b""), "IMPORT_UNREADABLE");
    assert_eq!(refused(&vec![b' '; FILE_BYTES_MAX + 1], b"", b""), "IMPORT_UNREADABLE");
    assert_eq!(refused(&text(&[CertificateDer::from(vec![0x30, 0])]), b"", b""), "IMPORT_UNREADABLE");
    assert_eq!(refused(&text(&middle.chain()[..1]), b"", b""), "IMPORT_CHAIN_INCOMPLETE");
    let key = PrivateKey::generate_p256().unwrap().public_key_spki();
    let leaf = root.sign_svid(&key, &LeafProfile::new(td().workload("a", "b").unwrap(), HOUR), now()).unwrap();
    assert_eq!(refused(&text(&leaf), b"", &root_pem), "IMPORT_NOT_A_CA");
    let other = TrustDomain::parse("other").unwrap();
    let foreign = X509Authority::generate_root(&other, 24 * HOUR, now()).unwrap();
    assert_eq!(refused(&text(foreign.chain()), b"", b""), "IMPORT_FOREIGN_TRUST_DOMAIN");
    let old = X509Authority::generate_root(&td(), HOUR, now() - 2 * HOUR).unwrap();
    assert_eq!(refused(&text(old.chain()), b"", b""), "IMPORT_EXPIRED");
    let early = X509Authority::generate_root(&td(), HOUR, now() + 2 * HOUR).unwrap();
    assert_eq!(refused(&text(early.chain()), b"", b""), "IMPORT_EXPIRED");
    let short = X509Authority::generate_root(&td(), HOUR - Duration::from_secs(1), now()).unwrap();
    assert_eq!(refused(&text(short.chain()), b"", b""), "IMPORT_LIFE_TOO_SHORT");
    let profile = CaProfile { path_len: Some(0), ..CaProfile::new(24 * HOUR) };
    let last = X509Authority::self_sign(&td(), PrivateKey::generate_p256().unwrap(), &profile, now()).unwrap();
    assert_eq!(refused(&text(last.chain()), b"", b""), "IMPORT_PATH_LENGTH");
}

#[test]
fn a_changed_signature_is_refused() {
    let root = root();
    let mut forged = root.certificate().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&text(&[forged.into()]), b"", b""), "IMPORT_SIGNATURE_REFUSED");
    let middle = root.generate_intermediate(20 * HOUR, now()).unwrap();
    let mut forged = middle.certificate().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&text(&[forged.into()]), b"", &text(root.chain())), "IMPORT_SIGNATURE_REFUSED");
}

#[test]
fn a_way_to_the_root_has_its_limit() {
    let profile = |path_len| CaProfile { path_len: Some(path_len), ..CaProfile::new(12 * HOUR) };
    let (mut signer, root_pem) = (root(), Vec::new());
    let root_pem = [root_pem, text(signer.chain())].concat();
    for count in 1..=CHAIN_MAX + 2 {
        let key = PrivateKey::generate_p256().unwrap();
        let chain = signer.sign_ca(&key.public_key_spki(), &profile(9), now()).unwrap();
        let found = check(&text(&chain), b"", &root_pem);
        assert_eq!(found.is_ok(), count <= CHAIN_MAX + 1, "{count}");
        signer = X509Authority::from_parts(&td(), chain, key).unwrap();
    }
}
