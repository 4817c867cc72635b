//! What authorities sign, read back.

use std::sync::Arc;

use super::*;
use crate::bundle::{BundleSet, TrustBundle};
use crate::csr::Csr;
use crate::summary::CertificateSummary;
use crate::verify::verify_peer;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn td() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

fn cart() -> SpiffeId {
    td().workload("shop", "cart").unwrap()
}

fn root() -> X509Authority {
    X509Authority::generate_root(&td(), 24 * HOUR, now()).unwrap()
}

fn spki() -> Vec<u8> {
    PrivateKey::generate_p256().unwrap().public_key_spki()
}

fn bundles(root: &X509Authority) -> BundleSet {
    let roots = [root.certificate().clone()];
    BundleSet::new([Arc::new(TrustBundle::from_x509_authorities(td(), roots).unwrap())])
}

fn summary(certificate: &CertificateDer<'_>) -> CertificateSummary {
    CertificateSummary::decode(certificate).unwrap()
}

#[test]
fn a_root_signs_svids_that_verify() {
    let root = root();
    let chain = root.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
    assert_eq!(chain.len(), 1);
    let peer = verify_peer(&chain, &bundles(&root), crate::unix_time(now())).unwrap();
    assert_eq!(peer.spiffe_id(), &cart());
}

#[test]
fn an_intermediate_sends_itself_along() {
    let root = root();
    let intermediate = root.generate_intermediate(12 * HOUR, now()).unwrap();
    let downstream = intermediate.generate_intermediate(6 * HOUR, now()).unwrap();
    let chain = downstream.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[1..], *downstream.chain());
    assert!(verify_peer(&chain, &bundles(&root), crate::unix_time(now())).is_ok());
    assert!(verify_peer(&chain[..2], &bundles(&root), crate::unix_time(now())).is_err());
}

#[test]
fn x_01_the_leaf_says_what_the_profile_says() {
    let root = root();
    let key = PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile {
        dns_names: vec!["cart.shop".to_owned(), "*.cart.shop".to_owned()],
        ip_addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        serial: [0x80; 16],
        ..LeafProfile::new(cart(), HOUR)
    };
    let chain = root.sign_svid(&key.public_key_spki(), &profile, now()).unwrap();
    let leaf = summary(&chain[0]);
    assert_eq!((leaf.uris, leaf.dns_names), (vec![cart().to_string()], profile.dns_names));
    assert_eq!(
        (leaf.serial, leaf.subject, leaf.is_authority),
        (digest::hex(&[0x80; 16]), "CN=cart.shop".to_owned(), false)
    );
    assert_eq!((leaf.not_before_unix, leaf.not_after_unix), (1_800_000_000 - 60, 1_800_000_000 + 3600));
    assert_eq!(leaf.authority_key_id.as_deref(), Some(root.subject_key_id()));
    assert!(leaf.subject_key_id.is_some());
}

#[test]
fn x_05_x_09_x_11_x_12_the_leaf_of_a_workload_has_critical_names_and_signature_usages() {
    let chain = root().sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
    let leaf = leaf::decode(&chain[0]).unwrap();
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical, "the subject is empty");
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca, "said explicitly");
}

#[test]
fn x_08_x_10_a_ca_carries_the_trust_domain_and_may_only_sign() {
    let root = root();
    let certificate = leaf::decode(root.certificate()).unwrap();
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    let facts = summary(root.certificate());
    assert_eq!(facts.uris, ["spiffe://td"]);
    assert!(facts.is_authority && facts.subject == facts.issuer && facts.subject.starts_with("CN=Kasbah authority "));
    assert_eq!(facts.subject_key_id.as_deref(), Some(root.subject_key_id()));
}

#[test]
fn nothing_outlives_its_authority() {
    let root = root();
    let intermediate = root.generate_intermediate(1000 * HOUR, now()).unwrap();
    assert_eq!(intermediate.not_after(), root.not_after());
    let chain = intermediate.sign_svid(&spki(), &LeafProfile::new(cart(), 1000 * HOUR), now()).unwrap();
    assert_eq!(summary(&chain[0]).not_after(), root.not_after());
    assert_eq!(summary(&chain[0]).not_before(), root.not_before(), "nor is anything older");
    for late in [root.not_after(), root.not_after() + HOUR, now() - HOUR] {
        let error = root.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), late).unwrap_err();
        assert_eq!(error.reason(), "AUTHORITY_EXPIRED");
    }
}

#[test]
fn x_04_wrong_names_are_refused() {
    let root = root();
    let refuse = |profile: &LeafProfile| root.sign_svid(&spki(), profile, now()).unwrap_err().reason();
    let other = SpiffeId::parse("spiffe://other/ns/shop/sa/cart").unwrap();
    assert_eq!(refuse(&LeafProfile::new(other, HOUR)), "SVID_PROFILE_INVALID");
    assert_eq!(refuse(&LeafProfile::new(td().id(), HOUR)), "SVID_PROFILE_INVALID");
    for name in ["", "a b", "-", "a..b", "ümlaut", "x\0y", "*.", "*.*.a"] {
        let profile = LeafProfile { dns_names: vec![name.to_owned()], ..LeafProfile::new(cart(), HOUR) };
        assert_eq!(refuse(&profile), "SVID_PROFILE_INVALID", "{name:?}");
    }
    let profile = LeafProfile { dns_names: vec!["a".to_owned(); NAMES_MAX + 1], ..LeafProfile::new(cart(), HOUR) };
    assert_eq!(refuse(&profile), "SVID_PROFILE_INVALID");
    assert_eq!(refuse(&LeafProfile { serial: [0; 16], ..LeafProfile::new(cart(), HOUR) }), "SVID_PROFILE_INVALID");
    assert_eq!(refuse(&LeafProfile::new(cart(), Duration::ZERO)), "AUTHORITY_EXPIRED");
}

#[test]
fn every_accepted_kind_of_key_is_signed() {
    let root = root();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        #[cfg(feature = "aws-lc-rs")]
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
        let csr = Csr::decode_der(request.der()).unwrap();
        let chain = root.sign_svid(csr.public_key_spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
        assert_eq!(leaf::decode_leaf(&chain[0]).unwrap().public_key_spki, csr.public_key_spki());
    }
    assert_eq!(
        root.sign_svid(b"junk", &LeafProfile::new(cart(), HOUR), now()).unwrap_err().reason(),
        "CSR_KEY_REFUSED"
    );
}

#[test]
fn stored_authorities_sign_on() {
    let root = root();
    let intermediate = root.generate_intermediate(HOUR, now()).unwrap();
    let chain_with_root = [intermediate.chain(), root.chain()].concat();
    for (authority, chain) in [(&root, root.chain().to_vec()), (&intermediate, chain_with_root)] {
        let key = PrivateKey::from_pkcs8_der(authority.key().here().unwrap().pkcs8_der()).unwrap();
        let again = X509Authority::from_parts(&td(), chain, key).unwrap();
        assert_eq!(
            (again.is_root(), again.chain(), again.subject_key_id()),
            (authority.is_root(), authority.chain(), authority.subject_key_id())
        );
        let leaf = again.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
        assert!(verify_peer(&leaf, &bundles(&root), crate::unix_time(now())).is_ok());
    }
}

#[test]
fn unfit_certificates_make_no_authority() {
    let root = root();
    let other_key = PrivateKey::generate_p256().unwrap();
    let build = |td: &str, chain: Vec<CertificateDer<'static>>, key: PrivateKey| {
        X509Authority::from_parts(&TrustDomain::parse(td).unwrap(), chain, key).unwrap_err()
    };
    assert!(matches!(build("td", vec![], other_key.clone()), AuthorityError::NoCertificate));
    assert!(matches!(build("td", root.chain().to_vec(), other_key.clone()), AuthorityError::KeyMismatch));
    assert!(matches!(
        build("other", root.chain().to_vec(), root.key().here().unwrap().clone()),
        AuthorityError::CertificateId(_)
    ));
    let leaf = root.sign_svid(&other_key.public_key_spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
    assert_eq!(build("td", leaf, other_key).reason(), "AUTHORITY_INVALID");
}

#[test]
fn path_lengths_are_kept() {
    let intermediate = root().generate_intermediate(HOUR, now()).unwrap();
    let last = intermediate.generate_intermediate(HOUR, now()).unwrap();
    assert!(matches!(last.generate_intermediate(HOUR, now()), Err(AuthorityError::PathLength)));
    assert!(last.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).is_ok());
}

#[test]
fn a_p384_root_signs_p256_leaves() {
    let key = PrivateKey::generate_p384().unwrap();
    let root = X509Authority::self_sign(&td(), key, &CaProfile::new(HOUR), now()).unwrap();
    let chain = root.sign_svid(&spki(), &LeafProfile::new(cart(), HOUR), now()).unwrap();
    assert!(verify_peer(&chain, &bundles(&root), crate::unix_time(now())).is_ok());
}

#[test]
fn a_long_trust_domain_fits() {
    let td = TrustDomain::parse(&"d".repeat(255)).unwrap();
    let root = X509Authority::generate_root(&td, HOUR, now()).unwrap();
    let id = td.with_path(&format!("/{}", "p".repeat(2048 - 9 - 255 - 1))).unwrap();
    assert_eq!(id.as_str().len(), 2048);
    let chain = root.sign_svid(&spki(), &LeafProfile::new(id.clone(), HOUR), now()).unwrap();
    assert_eq!(leaf::decode_leaf(&chain[0]).unwrap().id, id);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn leaves_keep_their_bounds(ttl in 1_u64..1_000_000, backdate in 0_u64..100_000, age in 0_u64..86_400, path in "/[a-z]{1,8}") {
        let root = root();
        let signed_at = now() + Duration::from_secs(age);
        let id = td().with_path(&path).unwrap();
        let profile = LeafProfile { backdate: Duration::from_secs(backdate), ..LeafProfile::new(id.clone(), Duration::from_secs(ttl)) };
        if let Ok(chain) = root.sign_svid(&spki(), &profile, signed_at) {
            let leaf = leaf::decode_leaf(&chain[0]).unwrap();
            proptest::prop_assert_eq!(leaf.id, id);
            proptest::prop_assert!(leaf.not_before >= root.not_before() && leaf.not_before <= signed_at);
            proptest::prop_assert!(leaf.not_after <= root.not_after() && leaf.not_after <= signed_at + profile.ttl);
            proptest::prop_assert_eq!(leaf.serial, digest::serial_hex(&profile.serial));
        } else {
            proptest::prop_assert!(signed_at >= root.not_after());
        }
    }
}

#[test]
fn keys_are_never_printed() {
    let root = root();
    let text = format!("{root:?} {:?}", WebAuthority::generate("demo", HOUR, now()).unwrap());
    assert!(text.contains("subject_key_id") && !text.to_lowercase().contains("key_pair"));
}

#[test]
fn an_id_of_the_greatest_length_goes_from_request_to_certificate_and_back() {
    let path = "p".repeat(crate::spiffe_id::SPIFFE_ID_BYTES_MAX - "spiffe://td/".len());
    let id = td().with_path(&format!("/{path}")).unwrap();
    let key = PrivateKey::generate_p256().unwrap();
    let csr = Csr::decode_der(&key.csr_der(Some(&id)).unwrap()).unwrap();
    assert_eq!(csr.uris(), [id.as_str()]);
    let root = root();
    let chain = root.sign_svid(csr.public_key_spki(), &LeafProfile::new(id.clone(), HOUR), now()).unwrap();
    let peer = verify_peer(&chain, &bundles(&root), crate::unix_time(now())).unwrap();
    assert_eq!(peer.spiffe_id(), &id);
}

#[test]
fn everything_we_issue_passes_our_own_linter() {
    use crate::profile::{Profile, lint};
    let root = root();
    let intermediate = root.generate_intermediate(HOUR, now()).unwrap();
    let spki = PrivateKey::generate_p256().unwrap().public_key_spki();
    let mut profile = LeafProfile::new(cart(), HOUR);
    let mut chains = vec![root.chain().to_vec(), intermediate.sign_svid(&spki, &profile, now()).unwrap()];
    profile.dns_names = vec!["cart.shop.svc".to_owned(), "*.example.org".to_owned()];
    profile.ip_addresses = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    chains.push(intermediate.sign_svid(&spki, &profile, now()).unwrap());
    chains.push(intermediate.sign_ca(&spki, &CaProfile::new(HOUR), now()).unwrap());
    for chain in &chains {
        assert_eq!(lint(crate::pem::certificates(chain).as_bytes(), Profile::Svid), Ok(Vec::new()));
    }
    let web = WebAuthority::generate("web", HOUR, now()).unwrap();
    let server = web.issue_server(&["a.example.org".to_owned()], &["127.0.0.1".parse().unwrap()], HOUR, now()).unwrap();
    let client = web.issue_client("somebody", HOUR, now()).unwrap();
    for text in [web.certificate_pem(), server.certificate_pem()] {
        assert_eq!(lint(text.as_bytes(), Profile::Rfc5280), Ok(Vec::new()));
    }
    assert_eq!(lint(client.certificate_pem().as_bytes(), Profile::Rfc5280), Ok(Vec::new()));
}

#[test]
fn keys_are_named_by_the_first_method_of_rfc_7093() {
    let root = root();
    let key = PublicKey::from_spki_der(&root.key().public_key_spki()).unwrap();
    let PublicKey::Ec { point, .. } = key else { panic!("another kind of key") };
    assert_eq!(root.subject_key_id(), digest::hex(&digest::sha256(&point)[..20]));
}
