//! Keys that are kept elsewhere, with keepers that work, fail and lie.

use std::time::{Duration, SystemTime};

use super::*;
use crate::authority::{CrlProfile, LeafProfile, X509Authority};
use crate::csr::Csr;

enum Mood {
    Good,
    Silent,
    WrongMessage,
    Garbage,
}

struct Keeper {
    key: PrivateKey,
    spki: Vec<u8>,
    mood: Mood,
}

impl RemoteKey for Keeper {
    fn public_key_spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, _kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        let here = SigningKey::from(self.key.clone());
        match self.mood {
            Mood::Good => here.sign(message),
            Mood::Silent => Err(RemoteKeyError),
            Mood::WrongMessage => here.sign(b"another message"),
            Mood::Garbage => Ok(vec![0x30; 70]),
        }
    }
}

fn elsewhere(key: &PrivateKey, mood: Mood) -> SigningKey {
    let keeper = Keeper { key: key.clone(), spki: key.public_key_spki(), mood };
    SigningKey::elsewhere(Box::new(keeper)).unwrap()
}

fn keys() -> Vec<PrivateKey> {
    let made = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519].map(|kind| PrivateKey::generate_kind(kind).unwrap());
    let rsa = PrivateKey::from_pem(include_bytes!("../key/vectors/rsa2048-pkcs1.pem"), None).unwrap();
    made.into_iter().chain([rsa]).collect()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn td() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_keys_elsewhere_sign_verifies_whatever_their_kind() {
    for (key, below) in keys().iter().zip(keys()) {
        let root = X509Authority::root_of(&td(), elsewhere(key, Mood::Good), 9 * HOUR, now()).unwrap();
        let middle = root.intermediate_of(elsewhere(&below, Mood::Good), 4 * HOUR, now()).unwrap();
        let profile = LeafProfile::new(td().workload("a", "b").unwrap(), HOUR);
        let chain = middle.sign_svid(&keys()[0].public_key_spki(), &profile, now()).unwrap();
        let bundle = crate::TrustBundle::from_x509_authorities(td(), [root.certificate().clone()]).unwrap();
        let bundles = crate::BundleSet::new([Arc::new(bundle)]);
        crate::verify::verify_peer(&chain, &bundles, crate::unix_time(now())).unwrap();
        let list = CrlProfile {
            number: 1,
            this_update: now(),
            next_update: now() + HOUR,
            revoked: Vec::new(),
            distribution_point: None,
        };
        middle.sign_crl(&list).unwrap();
        let csr = Csr::decode_der(&elsewhere(key, Mood::Good).ca_csr_der(&td()).unwrap()).unwrap();
        assert_eq!((csr.public_key_spki(), csr.uris()), (&*key.public_key_spki(), &["spiffe://td".to_owned()][..]));
    }
}

#[test]
fn a_keeper_that_fails_or_lies_signs_nothing() {
    for key in keys() {
        for mood in [Mood::Silent, Mood::WrongMessage, Mood::Garbage] {
            let error = X509Authority::root_of(&td(), elsewhere(&key, mood), HOUR, now()).unwrap_err();
            assert_eq!(error.reason(), "AUTHORITY_KEY_UNAVAILABLE");
        }
    }
}

#[test]
fn an_authority_is_taken_up_while_its_keeper_is_away() {
    let key = PrivateKey::generate_p256().unwrap();
    let root = X509Authority::root_of(&td(), key.clone(), HOUR, now()).unwrap();
    let away = X509Authority::from_parts(&td(), root.chain().to_vec(), elsewhere(&key, Mood::Silent)).unwrap();
    let profile = LeafProfile::new(td().workload("a", "b").unwrap(), HOUR);
    let error = away.sign_svid(&key.public_key_spki(), &profile, now()).unwrap_err();
    assert_eq!(error.reason(), "AUTHORITY_KEY_UNAVAILABLE");
}

#[test]
fn keys_are_never_printed() {
    let key = PrivateKey::generate_p256().unwrap();
    let shown = format!("{:?} {:?}", SigningKey::from(key.clone()), elsewhere(&key, Mood::Good));
    assert_eq!(shown, "SigningKey(here, redacted) SigningKey(elsewhere)");
}

#[test]
fn the_numbers_of_a_signature_become_shortest_integers() {
    assert_eq!(ecdsa_der(&[0, 0, 0, 1]), [0x30, 6, 2, 1, 0, 2, 1, 1]);
    assert_eq!(ecdsa_der(&[0x80, 1, 0, 0x7f]), [0x30, 8, 2, 3, 0, 0x80, 1, 2, 1, 0x7f]);
}
