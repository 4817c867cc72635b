//! Lists that an authority makes, lists that are wrong in one thing, and what they do to peers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;

use super::*;
use crate::authority::{CrlProfile, LeafProfile, RevokedSerial, X509Authority};
use crate::bundle::{BundleSet, TrustBundle};
use crate::der;
use crate::forge::{self, Signer, extension, sequence, tlv};
use crate::key::PrivateKey;
use crate::profile::shape::oid;
use crate::spiffe_id::TrustDomain;
use crate::verify::{VerifiedPeer, check_revocation, verify_peer};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn unix(at: SystemTime) -> UnixTime {
    crate::unix_time(at)
}

struct Mesh {
    root: X509Authority,
    intermediate: X509Authority,
    chain: Vec<CertificateDer<'static>>,
}

impl Mesh {
    fn new() -> Self {
        let root = X509Authority::generate_root(&TrustDomain::parse("td").unwrap(), 240 * HOUR, now()).unwrap();
        let intermediate = root.generate_intermediate(120 * HOUR, now()).unwrap();
        let chain = leaf_of(&intermediate);
        Self { root, intermediate, chain }
    }

    fn bundles(&self, lists: &[Vec<u8>]) -> BundleSet {
        let td = self.root.trust_domain().clone();
        let bundle = TrustBundle::from_x509_authorities(td.clone(), [self.root.certificate().clone()]).unwrap();
        let mut set = BundleSet::new([Arc::new(bundle)]);
        let lists = lists.iter().map(|der| Crl::decode(der).unwrap());
        set.set_revocations(td, Arc::new(RevocationIndex::new(lists).unwrap()));
        set
    }

    fn verify(&self, lists: &[Vec<u8>], at: SystemTime) -> Result<VerifiedPeer, &'static str> {
        verify_peer(&self.chain, &self.bundles(lists), unix(at)).map_err(|error| error.reason())
    }
}

fn leaf_of(authority: &X509Authority) -> Vec<CertificateDer<'static>> {
    let id = authority.trust_domain().workload("shop", "cart").unwrap();
    let spki = PrivateKey::generate_p256().unwrap().public_key_spki();
    authority.sign_svid(&spki, &LeafProfile::new(id, 48 * HOUR), now()).unwrap()
}

fn list(number: u64, revoked: &[&CertificateDer<'_>]) -> CrlProfile {
    let serial = |der: &&CertificateDer<'_>| Shape::decode(der).unwrap().serial.to_vec();
    let revoked = revoked.iter().map(serial).map(|serial| RevokedSerial {
        serial,
        at: now(),
        reason: Some(RevocationReason::KeyCompromise),
    });
    CrlProfile {
        number,
        this_update: now(),
        next_update: now() + HOUR,
        revoked: revoked.collect(),
        distribution_point: None,
    }
}

#[test]
fn a_list_says_what_its_profile_said() {
    let mesh = Mesh::new();
    let der = mesh.intermediate.sign_crl(&list(7, &[&mesh.chain[0]])).unwrap();
    let crl = Crl::decode(&der).unwrap();
    assert_eq!((crl.number(), crl.len(), crl.is_empty()), (&[7_u8][..], 1, false));
    assert_eq!((crl.this_update(), crl.next_update()), (now(), now() + HOUR));
    let expected = RevokedCertificate { at: now(), reason: Some(RevocationReason::KeyCompromise) };
    assert_eq!(crl.find(Shape::decode(&mesh.chain[0]).unwrap().serial), Some(&expected));
    assert_eq!(crl.find(&[1]), None);
    assert_eq!(crl.verify(mesh.intermediate.certificate()), Ok(()));
    assert_eq!(crl.verify(mesh.root.certificate()), Err(CrlError::Issuer));
    assert_eq!(Crl::decode_pem(crate::pem::encode("X509 CRL", &der).as_bytes()), Ok(vec![crl]));
}

#[test]
fn a_revoked_leaf_is_refused_and_others_are_not() {
    let mesh = Mesh::new();
    let other = leaf_of(&mesh.intermediate);
    let revoked = mesh.intermediate.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap();
    let harmless = mesh.intermediate.sign_crl(&list(1, &[&other[0]])).unwrap();
    assert_eq!(mesh.verify(&[revoked], now()), Err("CERT_REVOKED"));
    assert!(mesh.verify(&[harmless], now()).is_ok());
    assert!(mesh.verify(&[], now()).is_ok());
}

#[test]
fn a_revoked_intermediate_takes_its_leaves_along() {
    let mesh = Mesh::new();
    let revoked = mesh.root.sign_crl(&list(1, &[mesh.intermediate.certificate()])).unwrap();
    assert_eq!(mesh.verify(&[revoked], now()), Err("CERT_REVOKED"));
}

#[test]
fn a_serial_on_the_list_of_another_issuer_means_nothing() {
    let mesh = Mesh::new();
    let sibling = mesh.root.generate_intermediate(HOUR * 2, now()).unwrap();
    let of_sibling = sibling.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap();
    let of_root = mesh.root.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap();
    assert!(mesh.verify(&[of_sibling, of_root], now()).is_ok());
}

#[test]
fn a_list_past_its_next_update_is_of_no_use_but_what_it_revoked_stays_revoked() {
    let mesh = Mesh::new();
    let empty = mesh.intermediate.sign_crl(&list(1, &[])).unwrap();
    let revoked = mesh.intermediate.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap();
    assert!(mesh.verify(std::slice::from_ref(&empty), now() + HOUR).is_ok());
    let late = now() + HOUR + Duration::from_secs(1);
    assert_eq!(mesh.verify(&[empty], late), Err("TLS_PEER_REVOCATION_UNKNOWN"));
    assert_eq!(mesh.verify(&[revoked], late), Err("CERT_REVOKED"));
}

#[test]
fn live_connections_can_be_asked_about_again() {
    let mesh = Mesh::new();
    let mut bundles = mesh.bundles(&[]);
    let peer = verify_peer(&mesh.chain, &bundles, unix(now())).unwrap();
    assert!(check_revocation(&peer, &bundles, unix(now())).is_ok());
    let revoked = Crl::decode(&mesh.intermediate.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap()).unwrap();
    let index = Arc::new(RevocationIndex::new([revoked]).unwrap());
    bundles.set_revocations(mesh.root.trust_domain().clone(), Arc::clone(&index));
    let error = check_revocation(&peer, &bundles, unix(now())).unwrap_err();
    assert_eq!((error.reason(), error.claimed_id()), ("CERT_REVOKED", Some(peer.spiffe_id())));
    assert!(index.check(peer.links(), now()).is_err());
    let again = verify_peer(&mesh.chain, &bundles, unix(now()));
    assert_eq!(again.unwrap_err().reason(), "CERT_REVOKED", "a remembered chain is asked about as well");
}

#[test]
fn lists_of_another_trust_domain_are_not_asked() {
    let mesh = Mesh::new();
    let mut bundles = mesh.bundles(&[]);
    let revoked = Crl::decode(&mesh.intermediate.sign_crl(&list(1, &[&mesh.chain[0]])).unwrap()).unwrap();
    let other = TrustDomain::parse("other").unwrap();
    bundles.set_revocations(other, Arc::new(RevocationIndex::new([revoked]).unwrap()));
    assert!(verify_peer(&mesh.chain, &bundles, unix(now())).is_ok());
}

#[test]
fn only_newer_lists_replace_older_ones() {
    let mesh = Mesh::new();
    let signed = |number| Crl::decode(&mesh.intermediate.sign_crl(&list(number, &[])).unwrap()).unwrap();
    let (old, current, next) = (signed(255), signed(256), signed(257));
    let mut index = RevocationIndex::new([current.clone()]).unwrap();
    assert_eq!(index.insert(old.clone()), Err(CrlError::Older));
    assert_eq!(index.insert(signed(256)), Err(CrlError::Older), "another list of the same number");
    assert_eq!(index.insert(current.clone()), Ok(()), "the very same list");
    assert_eq!(index.insert(next.clone()), Ok(()));
    assert_eq!(index.lists().collect::<Vec<_>>(), [&next]);
    assert_eq!(RevocationIndex::new([next.clone(), old, current]).unwrap().lists().next(), Some(&next));
}

#[test]
fn a_trust_domain_has_so_many_lists_and_no_more() {
    let mut index = RevocationIndex::default();
    for n in 0..crl::LISTS_MAX {
        assert_eq!(index.insert(List::new(&Signer::new(&n.to_string())).decoded().unwrap()), Ok(()));
    }
    assert_eq!(index.insert(List::new(&Signer::new("one more")).decoded().unwrap()), Err(CrlError::TooMany));
}

#[test]
fn lists_for_parts_of_an_issuers_certificates_stand_side_by_side() {
    let mesh = Mesh::new();
    let part = |n: u8, revoked: &[&CertificateDer<'_>]| CrlProfile {
        distribution_point: Some(format!("http://ca/{n}.crl")),
        ..list(7, revoked)
    };
    let sign = |profile: &CrlProfile| mesh.intermediate.sign_crl(profile).unwrap();
    let (one, two) = (sign(&part(1, &[])), sign(&part(2, &[&mesh.chain[0]])));
    assert!(Crl::decode(&one).unwrap().is_partial());
    assert!(!Crl::decode(&sign(&list(7, &[]))).unwrap().is_partial());
    let index = RevocationIndex::decode([&one, &two]).unwrap();
    assert_eq!(index.lists().count(), 2);
    assert!(mesh.verify(std::slice::from_ref(&one), now()).is_ok());
    assert_eq!(mesh.verify(&[one, two], now()), Err("CERT_REVOKED"));
}

#[test]
fn a_distribution_point_says_where_and_nothing_else() {
    let root = Signer::new("root");
    let with = |critical, value: &[u8]| {
        let mut list = List::new(&root);
        list.extensions.push(extension(oid::ISSUING_DISTRIBUTION_POINT, critical, value));
        list.decoded().map(|crl| crl.is_partial())
    };
    let name = tlv(0xa0, &tlv(0xa0, &forge::uri("http://ca/1.crl")));
    let (user_only, indirect) = (tlv(0x81, &[0xff]), tlv(0x84, &[0xff]));
    assert_eq!(with(true, &sequence(&[&name])), Ok(true));
    for bad in [sequence(&[&name, &user_only]), sequence(&[&name, &indirect]), sequence(&[&user_only]), sequence(&[])] {
        assert_eq!(with(true, &bad), Err(CrlError::ExtensionUnsupported));
    }
    assert_eq!(with(false, &sequence(&[&name])), Err(CrlError::ExtensionUnsupported));
}

#[test]
fn reasons_have_the_names_and_codes_of_the_standard() {
    for reason in RevocationReason::ALL {
        assert_eq!(RevocationReason::parse(reason.name()), Some(reason));
        assert_eq!(RevocationReason::from_code(reason.code()), Some(reason));
    }
    assert_eq!(RevocationReason::parse("key-compromise"), Some(RevocationReason::KeyCompromise));
    assert_eq!(RevocationReason::parse("1"), Some(RevocationReason::KeyCompromise));
    for bad in ["", "8", "removeFromCRL", "7", "compromised"] {
        assert_eq!(RevocationReason::parse(bad), None, "{bad}");
    }
}

#[test]
fn serial_numbers_are_read_from_hexadecimal() {
    assert_eq!(serial_bytes("a1b"), Some(vec![0x0a, 0x1b]));
    assert_eq!(serial_bytes("00ff"), Some(vec![0, 0xff]));
    for bad in ["", "xy", "1 2", "+1"] {
        assert_eq!(serial_bytes(bad), None, "{bad}");
    }
}

#[test]
fn an_authority_signs_no_impossible_list() {
    let mesh = Mesh::new();
    let mut reversed = list(1, &[]);
    reversed.next_update = reversed.this_update;
    assert!(mesh.intermediate.sign_crl(&reversed).is_err());
    let mut zero = list(1, &[]);
    zero.revoked.push(RevokedSerial { serial: vec![0], at: now(), reason: None });
    assert!(mesh.intermediate.sign_crl(&zero).is_err());
}

#[test]
fn the_issuer_of_a_list_needs_crl_sign() {
    let (root, leaf) = (Signer::new("root"), Signer::new("leaf"));
    let crl = List::new(&root).decoded().unwrap();
    let mut authority = forge::Blueprint::authority(&root);
    assert_eq!(crl.verify(&authority.clone().sign_as_it_is(&root)), Ok(()));
    authority.set(oid::KEY_USAGE, true, forge::key_usage(0x04));
    let certificate = authority.clone().sign_as_it_is(&root);
    assert_eq!(crl.verify(&certificate), Err(CrlError::IssuerMayNotSign));
    let index = RevocationIndex::new([crl]).unwrap();
    let leaf = forge::Blueprint::leaf(&leaf.spki()).sign(&root);
    let link = Link::new(&leaf, &certificate).unwrap();
    assert_eq!(index.check([&link], now()), Err(RevocationError::List(CrlError::IssuerMayNotSign)));
}

#[test]
fn a_forged_list_that_names_the_key_is_refused_and_one_that_does_not_is_not_ours() {
    let (root, thief) = (Signer::new("root"), Signer::new("root"));
    let certificate = forge::Blueprint::authority(&root).sign_as_it_is(&root);
    let leaf = forge::Blueprint::leaf(&Signer::new("leaf").spki()).sign(&root);
    let link = Link::new(&leaf, &certificate).unwrap();
    let mut forged = List::new(&thief);
    let index = RevocationIndex::new([forged.decoded().unwrap()]).unwrap();
    assert_eq!(index.check([&link], now()), Ok(()), "it names the thief's key");
    forged.extensions.retain(|extension| !contains(extension, oid::AUTHORITY_KEY_ID));
    let index = RevocationIndex::new([forged.decoded().unwrap()]).unwrap();
    assert_eq!(index.check([&link], now()), Ok(()), "it names no key, and is not signed by ours");
    forged.extensions.push(key_id_extension(&root));
    let index = RevocationIndex::new([forged.decoded().unwrap()]).unwrap();
    assert_eq!(index.check([&link], now()), Err(RevocationError::List(CrlError::BadSignature)));
}

#[test]
fn malformed_lists_are_refused_with_a_code() {
    let root = Signer::new("root");
    let refused = |change: &dyn Fn(&mut List<'_>)| {
        let mut list = List::new(&root);
        change(&mut list);
        list.decoded().unwrap_err().reason()
    };
    assert!(List::new(&root).decoded().is_ok());
    assert_eq!(refused(&|list| list.version = Vec::new()), "CRL_MALFORMED");
    assert_eq!(refused(&|list| list.next_update = Vec::new()), "CRL_NO_NEXT_UPDATE");
    assert_eq!(refused(&|list| list.this_update = tlv(der::UTC_TIME, b"2701150800Z")), "CRL_MALFORMED");
    assert_eq!(refused(&|list| list.extensions.truncate(1)), "CRL_NO_NUMBER");
    assert_eq!(refused(&|list| list.extensions.clear()), "CRL_NO_NUMBER");
    assert_eq!(
        refused(&|list| list.outer_algorithm = sequence(&[&tlv(der::OID, &[0x2b, 0x65, 0x70])])),
        "CRL_MALFORMED"
    );
    let delta = extension(&[0x55, 0x1d, 27], true, &tlv(der::INTEGER, &[1]));
    assert_eq!(refused(&|list| list.extensions.push(delta.clone())), "CRL_EXTENSION_UNSUPPORTED");
    let critical_number = extension(oid::CRL_NUMBER, true, &tlv(der::INTEGER, &[1]));
    assert_eq!(refused(&|list| list.extensions[1] = critical_number.clone()), "CRL_EXTENSION_UNSUPPORTED");
    let negative = extension(oid::CRL_NUMBER, false, &tlv(der::INTEGER, &[0x80]));
    assert_eq!(refused(&|list| list.extensions[1] = negative.clone()), "CRL_MALFORMED");
    let again = extension(oid::CRL_NUMBER, false, &tlv(der::INTEGER, &[2]));
    assert_eq!(refused(&|list| list.extensions.push(again.clone())), "CRL_MALFORMED");
    let indirect = extension(&[0x55, 0x1d, 29], true, &sequence(&[]));
    let entry = |extension: &[u8]| {
        sequence(&[&tlv(der::INTEGER, &[5]), &tlv(der::UTC_TIME, b"270115080000Z"), &sequence(&[extension])])
    };
    assert_eq!(refused(&|list| list.revoked = sequence(&[&entry(&indirect)])), "CRL_EXTENSION_UNSUPPORTED");
    let reason = extension(oid::REASON_CODE, false, &tlv(der::ENUMERATED, &[8]));
    assert_eq!(refused(&|list| list.revoked = sequence(&[&entry(&reason)])), "CRL_MALFORMED");
    assert_eq!(Crl::decode(&vec![0; CRL_BYTES_MAX + 1]), Err(CrlError::TooLong));
    assert_eq!(Crl::decode_pem(b"text"), Err(CrlError::Malformed));
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn key_id_extension(signer: &Signer) -> Vec<u8> {
    extension(oid::AUTHORITY_KEY_ID, false, &sequence(&[&tlv(0x80, &forge::key_id(&signer.spki()))]))
}

/// The parts of a list, each as it will be written.
struct List<'a> {
    signer: &'a Signer,
    version: Vec<u8>,
    outer_algorithm: Vec<u8>,
    this_update: Vec<u8>,
    next_update: Vec<u8>,
    revoked: Vec<u8>,
    extensions: Vec<Vec<u8>>,
}

impl<'a> List<'a> {
    fn new(signer: &'a Signer) -> Self {
        let number = extension(oid::CRL_NUMBER, false, &tlv(der::INTEGER, &[1]));
        Self {
            signer,
            version: tlv(der::INTEGER, &[1]),
            outer_algorithm: forge::ECDSA_SHA256.to_vec(),
            this_update: tlv(der::UTC_TIME, b"270115080000Z"),
            next_update: tlv(der::UTC_TIME, b"270116080000Z"),
            revoked: Vec::new(),
            extensions: vec![key_id_extension(signer), number],
        }
    }

    fn decoded(&self) -> Result<Crl, CrlError> {
        let extensions = match self.extensions.as_slice() {
            [] => Vec::new(),
            some => tlv(0xa0, &forge::sequence_of(some)),
        };
        let body = sequence(&[
            &self.version,
            forge::ECDSA_SHA256,
            &self.signer.name,
            &self.this_update,
            &self.next_update,
            &self.revoked,
            &extensions,
        ]);
        Crl::decode(&self.signer.sign(&body, &self.outer_algorithm))
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_handled(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        proptest::prop_assert!(Crl::decode(&bytes).is_err());
    }
}
