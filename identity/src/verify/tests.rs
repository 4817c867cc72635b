//! Chains that are good but for one thing, and what is said about it.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::*;
use crate::authority::{LeafProfile, X509Authority};
use crate::bundle::TrustBundle;
use crate::der;
use crate::forge::{self, Blueprint, Signer};
use crate::key::PrivateKey;
use crate::profile::shape::oid;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn unix(offset: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000_u64.checked_add_signed(offset).unwrap()))
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn root(name: &str) -> X509Authority {
    X509Authority::generate_root(&td(name), 24 * HOUR, now()).unwrap()
}

fn bundles(roots: &[(&str, &CertificateDer<'static>)]) -> BundleSet {
    roots
        .iter()
        .map(|(name, root)| Arc::new(TrustBundle::from_x509_authorities(td(name), [(*root).clone()]).unwrap()))
        .collect()
}

fn chain_of(authority: &X509Authority) -> Vec<CertificateDer<'static>> {
    let id = authority.trust_domain().workload("shop", "cart").unwrap();
    let spki = PrivateKey::generate_p256().unwrap().public_key_spki();
    authority.sign_svid(&spki, &LeafProfile::new(id, HOUR), now()).unwrap()
}

/// What a leaf looks like when `change` was applied to a good one, signed by a good CA of the trust domain `td`.
fn verify_changed(change: impl FnOnce(&mut CertificateParams)) -> Result<VerifiedPeer, PeerError> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = rcgen::CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![uri("spiffe://td/ns/shop/sa/cart")];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.is_ca = IsCa::ExplicitNoCa;
    change(&mut leaf);
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &ca).unwrap();
    verify_peer(&[leaf.into()], &bundles(&[("td", ca.der())]), unix(0))
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[track_caller]
fn refused(reason: &str, change: impl FnOnce(&mut CertificateParams)) {
    match verify_changed(change) {
        Ok(peer) => panic!("accepted {peer:?}"),
        Err(error) => assert_eq!(error.reason(), reason, "{error}"),
    }
}

#[test]
fn a_good_leaf_is_accepted() {
    let peer = verify_changed(|_| {}).unwrap();
    assert_eq!(peer.spiffe_id().as_str(), "spiffe://td/ns/shop/sa/cart");
    assert_eq!(peer.fingerprint_sha256(), &digest::sha256(peer.leaf_der()));
    assert_eq!(peer.subject(), "CN=rcgen self signed cert");
}

#[test]
fn x_03_dns_names_beside_the_id_do_no_harm() {
    let peer =
        verify_changed(|leaf| leaf.subject_alt_names.push(SanType::DnsName("cart".try_into().unwrap()))).unwrap();
    assert_eq!(peer.dns_names(), ["cart"]);
}

#[test]
fn x_02_exactly_one_uri_name_is_asked_for() {
    refused("TLS_PEER_NO_SPIFFE_ID", |leaf| leaf.subject_alt_names.clear());
    refused("TLS_PEER_NO_SPIFFE_ID", |leaf| leaf.subject_alt_names = vec![SanType::DnsName("x".try_into().unwrap())]);
    refused("TLS_PEER_NO_SPIFFE_ID", |leaf| leaf.subject_alt_names = vec![uri("https://td/x")]);
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.subject_alt_names.push(uri("spiffe://td/b")));
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.subject_alt_names.push(uri("spiffe://td/ns/shop/sa/cart")));
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.subject_alt_names.push(uri("https://example.org")));
}

#[test]
fn x_16_x_17_the_id_must_be_a_workloads() {
    for bad in
        ["spiffe://td", "spiffe://td/", "spiffe://TD/a", "spiffe://td/a//b", "spiffe://td:1/a", "spiffe://td/a?b"]
    {
        refused("TLS_PEER_NOT_SVID", |leaf| leaf.subject_alt_names = vec![uri(bad)]);
    }
}

#[test]
fn x_07_x_14_x_15_cas_and_signing_keys_are_no_leaves() {
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.key_usages.clear());
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign));
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.key_usages.push(KeyUsagePurpose::CrlSign));
}

#[test]
fn x_12_extended_usages_name_both_sides_or_are_absent() {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    for usages in [vec![ClientAuth], vec![ServerAuth], vec![CodeSigning]] {
        refused("TLS_PEER_NOT_SVID", |leaf| leaf.extended_key_usages = usages);
    }
    assert!(verify_changed(|leaf| leaf.extended_key_usages = vec![ServerAuth, ClientAuth]).is_ok());
}

#[test]
fn x_13_unknown_critical_extensions_and_doubled_ones_are_refused() {
    let extension = |oid: &[u64], content: &[u8]| {
        let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
        extension.set_criticality(true);
        extension
    };
    refused("TLS_PEER_NOT_SVID", |leaf| leaf.custom_extensions = vec![extension(&[1, 2, 3, 4], &[5, 0])]);
    refused("TLS_PEER_NOT_SVID", |leaf| {
        leaf.custom_extensions = vec![extension(&[2, 5, 29, 15], &[3, 2, 7, 0x80])]; // A second key usage.
    });
}

#[test]
fn x_13_times_are_checked_to_the_second() {
    let root = root("td");
    let chain = chain_of(&root);
    let bundles = bundles(&[("td", root.certificate())]);
    let reason = |offset: i64| verify_peer(&chain, &bundles, unix(offset)).map_err(|error| error.reason()).err();
    assert_eq!(reason(-61), Some("TLS_PEER_NOT_YET_VALID"));
    assert_eq!(reason(-60), None);
    assert_eq!(reason(3600), None);
    assert_eq!(reason(3601), Some("TLS_PEER_EXPIRED"));
    assert_eq!(reason(-61), Some("TLS_PEER_NOT_YET_VALID"), "a remembered chain is no younger");
}

#[test]
fn an_expired_intermediate_is_refused_even_if_remembered() {
    let root = root("td");
    let intermediate = root.generate_intermediate(HOUR, now()).unwrap();
    let mut profile = LeafProfile::new(td("td").workload("a", "b").unwrap(), HOUR);
    profile.backdate = Duration::ZERO;
    let spki = PrivateKey::generate_p256().unwrap().public_key_spki();
    let chain = intermediate.sign_svid(&spki, &profile, now()).unwrap();
    let bundles = bundles(&[("td", root.certificate())]);
    assert!(verify_peer(&chain, &bundles, unix(0)).is_ok());
    assert_eq!(verify_peer(&chain, &bundles, unix(3601)).unwrap_err().reason(), "TLS_PEER_EXPIRED");
}

#[test]
fn x_24_a_root_vouches_for_its_own_trust_domain_only() {
    let (a, b) = (root("a"), root("b"));
    let both = bundles(&[("a", a.certificate()), ("b", b.certificate())]);
    assert!(verify_peer(&chain_of(&a), &both, unix(0)).is_ok());
    assert!(verify_peer(&chain_of(&b), &both, unix(0)).is_ok());
    let crossed = bundles(&[("a", b.certificate()), ("b", a.certificate())]);
    assert_eq!(verify_peer(&chain_of(&a), &crossed, unix(0)).unwrap_err().reason(), "TLS_PEER_UNTRUSTED");
    let only_b = bundles(&[("b", b.certificate())]);
    let error = verify_peer(&chain_of(&a), &only_b, unix(0)).unwrap_err();
    assert_eq!(error.reason(), "TLS_PEER_TRUST_DOMAIN_UNKNOWN");
    assert_eq!(error.claimed_id().unwrap().trust_domain_name(), "a");
}

#[test]
fn x_23_an_empty_bundle_trusts_nobody() {
    let set = BundleSet::new([Arc::new(TrustBundle::new(td("td")))]);
    assert_eq!(verify_peer(&chain_of(&root("td")), &set, unix(0)).unwrap_err().reason(), "TLS_PEER_UNTRUSTED");
}

#[test]
fn a_new_set_forgets_what_the_old_one_verified() {
    let root = root("td");
    let chain = chain_of(&root);
    let mut set = bundles(&[("td", root.certificate())]);
    assert!(verify_peer(&chain, &set, unix(0)).is_ok());
    set.insert(Arc::new(TrustBundle::new(td("td"))));
    assert!(verify_peer(&chain, &set, unix(0)).is_err());
    let clone = set.clone();
    assert!(verify_peer(&chain, &clone, unix(0)).is_err());
}

#[test]
fn a_root_sent_along_changes_nothing() {
    let (root, stranger) = (root("td"), root("td"));
    let mut chain = chain_of(&root);
    chain.push(root.certificate().clone());
    assert!(verify_peer(&chain, &bundles(&[("td", root.certificate())]), unix(0)).is_ok());
    assert!(verify_peer(&chain, &bundles(&[("td", stranger.certificate())]), unix(0)).is_err());
}

#[test]
fn a_leaf_cannot_sign_a_leaf() {
    let root = root("td");
    let key = PrivateKey::generate_p256().unwrap();
    let id = td("td").workload("shop", "thief").unwrap();
    let thief = root.sign_svid(&key.public_key_spki(), &LeafProfile::new(id, HOUR), now()).unwrap().remove(0);
    let mut forged = CertificateParams::default();
    forged.subject_alt_names = vec![uri("spiffe://td/ns/shop/sa/cart")];
    forged.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let issuer = rcgen::Issuer::from_ca_cert_der(&thief, key).unwrap();
    let forged = forged.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let error = verify_peer(&[forged.into(), thief], &bundles(&[("td", root.certificate())]), unix(0)).unwrap_err();
    assert_eq!(error.reason(), "TLS_PEER_NOT_SVID");
}

/// A chain of root, intermediate and leaf, the intermediate changed by `change`.
fn verify_with_intermediate(change: impl FnOnce(&mut Blueprint)) -> Result<VerifiedPeer, PeerError> {
    let (root, ca) = (Signer::new("root"), Signer::new("ca"));
    let mut intermediate = Blueprint::authority(&ca);
    change(&mut intermediate);
    let leaf = Blueprint::leaf(&Signer::new("leaf").spki());
    let root_certificate = Blueprint::authority(&root).sign_as_it_is(&root);
    let chain = [leaf.sign(&ca), intermediate.sign(&root)];
    verify_peer(&chain, &bundles(&[("td", &root_certificate)]), unix(0))
}

#[test]
fn x_06_a_signing_certificate_names_a_trust_domain_and_no_workload() {
    let with = |id: &str| {
        let names = forge::sequence(&[&forge::uri(id)]);
        verify_with_intermediate(|ca| ca.set(oid::SUBJECT_ALT_NAME, false, names))
    };
    assert!(verify_with_intermediate(|_| {}).is_ok());
    assert!(with("spiffe://td").is_ok());
    assert!(with("https://ca.example.org/about").is_ok());
    assert_eq!(with("spiffe://td/ns/shop/sa/cart").unwrap_err().reason(), "TLS_PEER_NOT_SVID");
}

#[test]
fn x_13_name_constraints_on_uris_are_refused_rather_than_overlooked() {
    for list in [0xa0, 0xa1] {
        let constraint = forge::sequence(&[&forge::tlv(list, &forge::sequence(&[&forge::uri("other")]))]);
        let error = verify_with_intermediate(|ca| ca.set(oid::NAME_CONSTRAINTS, true, constraint)).unwrap_err();
        assert_eq!(error.reason(), "TLS_PEER_UNTRUSTED");
    }
}

#[test]
fn x_13_path_lengths_hold() {
    let (root, upper, lower) = (Signer::new("root"), Signer::new("upper"), Signer::new("lower"));
    let verify = |length: u8| {
        let mut constrained = Blueprint::authority(&upper);
        let authority = [forge::tlv(der::BOOLEAN, &[0xff]), forge::tlv(der::INTEGER, &[length])];
        constrained.set(oid::BASIC_CONSTRAINTS, true, forge::sequence_of(&authority));
        let leaf = Blueprint::leaf(&Signer::new("leaf").spki()).sign(&lower);
        let chain = [leaf, Blueprint::authority(&lower).sign(&upper), constrained.sign(&root)];
        let root_certificate = Blueprint::authority(&root).sign_as_it_is(&root);
        verify_peer(&chain, &bundles(&[("td", &root_certificate)]), unix(0)).map_err(|error| error.reason())
    };
    assert!(verify(1).is_ok());
    assert_eq!(verify(0).unwrap_err(), "TLS_PEER_UNTRUSTED");
}

#[test]
fn an_expired_root_vouches_for_nobody() {
    let root = Signer::new("root");
    let leaf = || Blueprint::leaf(&Signer::new("leaf").spki()).sign(&root);
    let mut expired = Blueprint::authority(&root);
    expired.not_before = forge::tlv(der::UTC_TIME, b"260115080000Z");
    expired.not_after = forge::tlv(der::UTC_TIME, b"270115080100Z"); // A minute after the tests' now.
    let bundles = bundles(&[("td", &expired.sign_as_it_is(&root))]);
    let chain = [leaf()];
    assert!(verify_peer(&chain, &bundles, unix(60)).is_ok());
    assert_eq!(verify_peer(&chain, &bundles, unix(61)).unwrap_err().reason(), "TLS_PEER_EXPIRED", "though remembered");
    assert_eq!(verify_peer(&[leaf()], &bundles, unix(61)).unwrap_err().reason(), "TLS_PEER_EXPIRED");
}

#[test]
fn limits_hold_at_their_edges() {
    let root = root("td");
    let bundles = bundles(&[("td", root.certificate())]);
    let mut chain = chain_of(&root);
    chain.resize(CHAIN_CERTIFICATES_MAX, root.certificate().clone());
    assert!(verify_peer(&chain, &bundles, unix(0)).is_ok());
    chain.push(root.certificate().clone());
    assert!(matches!(verify_peer(&chain, &bundles, unix(0)), Err(PeerError::ChainTooLong(6))));
    assert!(matches!(verify_peer(&[], &bundles, unix(0)), Err(PeerError::NoCertificate)));
    let huge = CertificateDer::from(vec![0x30; leaf::CERTIFICATE_BYTES_MAX + 1]);
    assert!(matches!(verify_peer(&[huge], &bundles, unix(0)), Err(PeerError::Leaf(LeafError::TooLong))));
}

#[test]
fn no_changed_bit_is_accepted() {
    let root = root("td");
    let chain = chain_of(&root);
    let bundles = bundles(&[("td", root.certificate())]);
    for at in 0..chain[0].len() {
        let mut changed = chain[0].to_vec();
        changed[at] ^= 1;
        assert!(verify_peer(&[changed.into()], &bundles, unix(0)).is_err(), "byte {at}");
    }
}

#[test]
fn memory_of_verified_chains_is_bounded_and_useful() {
    let root = root("td");
    let bundles = bundles(&[("td", root.certificate())]);
    let chain = chain_of(&root);
    let peer = verify_peer(&chain, &bundles, unix(0)).unwrap();
    let again = verify_peer(&chain, &bundles, unix(0)).unwrap();
    assert!(Arc::ptr_eq(&peer.0, &again.0));
    for n in 0..10_000_u64 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        bundles.remember(key, peer.clone());
    }
    let after = verify_peer(&chain, &bundles, unix(0)).unwrap();
    assert!(!Arc::ptr_eq(&peer.0, &after.0));
}

#[test]
fn agrees_with_the_corpus() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let folder = std::path::Path::new(&corpora).join("spiffe/go-spiffe/svid/x509svid/testdata");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read(&path).unwrap();
        let Ok(chain) = crate::pem::decode_certificates(&text) else { continue };
        let good = leaf::decode_leaf(&chain[0]).is_ok()
            && chain[1..].iter().all(|c| leaf::check_signing_certificate(c).is_ok());
        if name.starts_with("good-") || name.starts_with("wrong-leaf") || name.starts_with("wrong-intermediate") {
            assert_eq!(good, name.starts_with("good-"), "{name}");
            seen += 1;
        }
    }
    assert!(seen > 3);
}

#[test]
fn strange_certificates_never_panic() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let file = std::path::Path::new(&corpora).join("x509-limbo/limbo-core.json");
    let limbo: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let set = BundleSet::default();
    for case in limbo["testcases"].as_array().unwrap() {
        let Ok(chain) = crate::pem::decode_certificates(case["peer_certificate"].as_str().unwrap().as_bytes()) else {
            continue;
        };
        let summary = crate::summary::CertificateSummary::decode(&chain[0]);
        assert!(verify_peer(&chain, &set, unix(0)).is_err(), "{summary:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_handled(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let certificate = CertificateDer::from(bytes);
        proptest::prop_assert!(crate::summary::CertificateSummary::decode(&certificate).is_err());
        proptest::prop_assert!(verify_peer(&[certificate], &BundleSet::default(), unix(0)).is_err());
    }
}

#[test]
fn a_peer_names_its_root_and_is_vouched_for_as_long_as_the_bundle_has_it() {
    let (old, new) = (root("td"), root("td"));
    let between = old.generate_intermediate(12 * HOUR, now()).unwrap();
    let of_old = bundles(&[("td", old.certificate())]);
    let peer = verify_peer(&chain_of(&between), &of_old, unix(0)).unwrap();
    assert_eq!(&**peer.root_id(), old.subject_key_id(), "the root above the intermediate");
    assert!(is_vouched_for(&peer, &of_old));
    assert!(!is_vouched_for(&peer, &bundles(&[("td", new.certificate())])));
    assert!(!is_vouched_for(&peer, &bundles(&[("other", old.certificate())])), "another trust domain's root");
}
