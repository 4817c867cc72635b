//! Certificates that are good but for one thing, and the defect that is found.

use super::shape::oid;
use super::*;
use crate::der;
use crate::forge::{self, Blueprint, Signer, dns, key_usage, purpose, sequence, tlv, uri};

#[track_caller]
fn check(role: Role, change: impl FnOnce(&mut Blueprint), expected: &[Defect]) {
    let (issuer, subject) = (Signer::new("issuer"), Signer::new("subject"));
    let mut blueprint = match role {
        Role::Leaf => Blueprint::leaf(&subject.spki()),
        Role::Intermediate | Role::Root => Blueprint::authority(&subject),
    };
    change(&mut blueprint);
    let signer = if role == Role::Root { &subject } else { &issuer };
    assert_eq!(svid_defects(&blueprint.sign_as_it_is_unless_key_id(signer, role), role), expected);
}

impl Blueprint {
    /// A root needs no authority key identifier.
    fn sign_as_it_is_unless_key_id(self, signer: &Signer, role: Role) -> CertificateDer<'static> {
        if role == Role::Root { self.sign_as_it_is(signer) } else { self.sign(signer) }
    }
}

#[track_caller]
fn leaf(change: impl FnOnce(&mut Blueprint), expected: &[Defect]) {
    check(Role::Leaf, change, expected);
}

#[track_caller]
fn intermediate(change: impl FnOnce(&mut Blueprint), expected: &[Defect]) {
    check(Role::Intermediate, change, expected);
}

#[track_caller]
fn root(change: impl FnOnce(&mut Blueprint), expected: &[Defect]) {
    check(Role::Root, change, expected);
}

#[test]
fn good_certificates_have_no_defect() {
    leaf(|_| {}, &[]);
    intermediate(|_| {}, &[]);
    root(|_| {}, &[]);
    intermediate(|ca| ca.set(oid::SUBJECT_ALT_NAME, false, sequence(&[&uri("spiffe://td")])), &[]);
}

#[test]
fn versions_are_three() {
    leaf(|leaf| leaf.version = Vec::new(), &[Defect::Version]);
    leaf(|leaf| leaf.version = tlv(0xa0, &tlv(der::INTEGER, &[1])), &[Defect::Version]);
}

#[test]
fn serials_are_positive_and_of_twenty_bytes_at_most() {
    for bad in [&[0][..], &[0x80], &[0xff, 1], &[0, 1], &[1; 21], &[]] {
        leaf(|leaf| leaf.serial = tlv(der::INTEGER, bad), &[Defect::Serial]);
    }
    for good in [&[1][..], &[0, 0x80], &[0x7f; 20]] {
        leaf(|leaf| leaf.serial = tlv(der::INTEGER, good), &[]);
    }
}

#[test]
fn signature_algorithms_agree_are_strong_and_well_written() {
    let with_null = sequence(&[&forge::ECDSA_SHA256[2..], &[der::NULL, 0]]);
    leaf(|leaf| leaf.outer_algorithm = with_null.clone(), &[Defect::AlgorithmMismatch, Defect::AlgorithmParameters]);
    let sha1 = sequence(&[&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]]);
    leaf(
        |leaf| {
            leaf.outer_algorithm = sha1.clone();
            leaf.inner_algorithm = sha1;
        },
        &[Defect::AlgorithmWeak],
    );
}

#[test]
fn names_of_authorities_are_not_empty() {
    leaf(|leaf| leaf.issuer = Some(sequence(&[])), &[Defect::IssuerEmpty]);
    intermediate(|ca| ca.subject = sequence(&[]), &[Defect::SubjectEmpty]);
}

#[test]
fn times_are_written_in_one_way() {
    for bad in [
        tlv(der::GENERALIZED_TIME, b"20270116080000Z"),
        tlv(der::UTC_TIME, b"2701160800Z"),
        tlv(der::UTC_TIME, b"270116080000+0000"),
        tlv(der::UTC_TIME, b"270230080000Z"),
        tlv(der::UTC_TIME, b"27011608000aZ"),
        tlv(der::GENERALIZED_TIME, b"20600116080000.5Z"),
        tlv(der::INTEGER, b"270116080000Z"),
    ] {
        leaf(|leaf| leaf.not_after = bad, &[Defect::TimeEncoding]);
    }
    leaf(|leaf| leaf.not_after = tlv(der::GENERALIZED_TIME, b"99991231235959Z"), &[]);
    leaf(|leaf| leaf.not_before = tlv(der::UTC_TIME, b"700101000000Z"), &[]);
    leaf(|leaf| leaf.not_before = tlv(der::UTC_TIME, b"290101000000Z"), &[Defect::ValidityReversed]);
}

#[test]
fn unique_identifiers_are_a_thing_of_the_past() {
    leaf(|leaf| leaf.unique_ids = tlv(0x81, &[0, 1]), &[Defect::UniqueId]);
}

#[test]
fn keys_are_of_an_accepted_kind() {
    let p192 =
        [0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 1];
    let spki = sequence(&[&p192, &tlv(der::BIT_STRING, &[&[0, 4][..], &[7; 48]].concat())]);
    leaf(|leaf| leaf.spki = spki, &[Defect::KeyRefused]);
    let rsa = |modulus: &[u8]| {
        let numbers = sequence(&[&tlv(der::INTEGER, modulus), &tlv(der::INTEGER, &[1, 0, 1])]);
        let algorithm = [0x30, 0x0d, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
        sequence(&[&algorithm, &tlv(der::BIT_STRING, &[&[0][..], &numbers].concat())])
    };
    leaf(|leaf| leaf.spki = rsa(&[0x7f; 128]), &[Defect::KeyRefused]);
    leaf(|leaf| leaf.spki = rsa(&[0x0f; 257]), &[Defect::KeySizeOdd]);
    leaf(|leaf| leaf.spki = rsa(&[&[0][..], &[0x8f; 256]].concat()), &[]);
}

#[test]
fn extensions_are_known_well_formed_and_not_repeated() {
    let strange = &[0x2a, 3, 4];
    leaf(|leaf| leaf.set(strange, true, vec![5, 0]), &[Defect::ExtensionUnknownCritical]);
    leaf(|leaf| leaf.set(strange, false, vec![5, 0]), &[]);
    leaf(
        |leaf| {
            let again = leaf.extensions[1].clone();
            leaf.extensions.push(again);
        },
        &[Defect::ExtensionTwice],
    );
    leaf(|leaf| leaf.set(oid::AUTHORITY_INFO_ACCESS, false, sequence(&[])), &[Defect::ExtensionMalformed]);
    leaf(|leaf| leaf.set(oid::AUTHORITY_INFO_ACCESS, false, b"text".to_vec()), &[Defect::ExtensionMalformed]);
    leaf(
        |leaf| leaf.set(oid::CRL_DISTRIBUTION_POINTS, false, sequence(&[&sequence(&[])])),
        &[Defect::ExtensionMalformed],
    );
    leaf(|leaf| leaf.set(oid::CERTIFICATE_POLICIES, false, sequence(&[])), &[Defect::ExtensionMalformed]);
}

#[test]
fn a_certificate_may_have_no_more_than_the_most_extensions() {
    let fill = |leaf: &mut Blueprint, count: usize| {
        for n in leaf.extensions.len()..count {
            leaf.set(&[0x2a, 3, n as u8], false, vec![5, 0]);
        }
    };
    leaf(|leaf| fill(leaf, shape::EXTENSIONS_MAX - 1), &[]); // The authority key identifier is added.
    leaf(|leaf| fill(leaf, shape::EXTENSIONS_MAX), &[Defect::Malformed]);
}

#[test]
fn marks_are_as_the_profile_wants_them() {
    let own = |ca: &mut Blueprint| ca.extensions.iter_mut().find(|e| e.0 == oid::SUBJECT_KEY_ID).unwrap().1 = true;
    intermediate(own, &[Defect::ExtensionCriticality]);
    intermediate(
        |ca| ca.extensions.iter_mut().find(|e| e.0 == oid::BASIC_CONSTRAINTS).unwrap().1 = false,
        &[Defect::BasicConstraintsNotCritical],
    );
    intermediate(
        |ca| ca.set(oid::KEY_USAGE, false, key_usage(0x06)),
        &[Defect::KeyUsageNotCritical, Defect::SvidKeyUsage],
    );
    let constraints = sequence(&[&tlv(0x80, &[0])]);
    intermediate(|ca| ca.set(oid::POLICY_CONSTRAINTS, false, constraints), &[Defect::PolicyConstraints]);
    leaf(
        |leaf| leaf.extensions.iter_mut().find(|e| e.0 == oid::SUBJECT_ALT_NAME).unwrap().1 = false,
        &[Defect::NamesNotCritical],
    );
    leaf(
        |leaf| leaf.extensions.iter_mut().find(|e| e.0 == oid::EXTENDED_KEY_USAGE).unwrap().1 = true,
        &[Defect::ExtendedKeyUsageCritical],
    );
}

#[test]
fn key_identifiers_lead_from_certificate_to_issuer() {
    leaf(|leaf| leaf.set(oid::AUTHORITY_KEY_ID, false, sequence(&[])), &[Defect::AuthorityKeyIdMissing]);
    intermediate(|ca| ca.set(oid::AUTHORITY_KEY_ID, false, sequence(&[])), &[Defect::AuthorityKeyIdMissing]);
    intermediate(|ca| ca.remove(oid::SUBJECT_KEY_ID), &[Defect::SubjectKeyIdMissing]);
    root(|root| root.remove(oid::SUBJECT_KEY_ID), &[Defect::SubjectKeyIdMissing]);
    root(
        |root| root.set(oid::AUTHORITY_KEY_ID, false, sequence(&[&tlv(0x80, &[1; 20])])),
        &[Defect::AuthorityKeyIdOfRoot],
    );
    root(
        |root| {
            let own = tlv(0x80, &forge::key_id(&root.spki));
            let serial = tlv(0x82, &[1]);
            let issuer = tlv(0xa1, &dns("td"));
            root.set(oid::AUTHORITY_KEY_ID, false, sequence(&[&own, &issuer, &serial]));
        },
        &[Defect::AuthorityKeyIdOfRoot],
    );
    root(
        |root| {
            let own = tlv(0x80, &forge::key_id(&root.spki));
            root.set(oid::AUTHORITY_KEY_ID, false, sequence(&[&own]));
        },
        &[],
    );
}

#[test]
fn a_root_that_another_has_signed_names_the_other() {
    let (root, other) = (Signer::new("root"), Signer::new("other"));
    let crossed = Blueprint::authority(&root).sign_as_it_is(&other);
    assert_eq!(defects(&crossed, Role::Root), [Defect::AuthorityKeyIdMissing]);
    let mut renamed = Blueprint::authority(&root);
    renamed.issuer = Some(other.name);
    assert_eq!(defects(&renamed.sign_as_it_is(&root), Role::Root), []);
}

#[test]
fn constraints_and_usages_tell_the_same_story() {
    intermediate(|ca| ca.remove(oid::BASIC_CONSTRAINTS), &[Defect::NotAuthority]);
    intermediate(|ca| ca.set(oid::BASIC_CONSTRAINTS, true, sequence(&[])), &[Defect::NotAuthority]);
    intermediate(|ca| ca.remove(oid::KEY_USAGE), &[Defect::KeyUsageMissing, Defect::SvidKeyUsage]);
    intermediate(|ca| ca.set(oid::KEY_USAGE, true, key_usage(0x02)), &[Defect::KeyUsageNoCertSign]);
    intermediate(|ca| ca.set(oid::KEY_USAGE, true, key_usage(0)), &[Defect::KeyUsageEmpty, Defect::KeyUsageNoCertSign]);
    let authority = sequence(&[&tlv(der::BOOLEAN, &[0xff])]);
    leaf(|leaf| leaf.set(oid::BASIC_CONSTRAINTS, true, authority), &[Defect::LeafIsAuthority]);
    leaf(|leaf| leaf.set(oid::KEY_USAGE, true, key_usage(0x84)), &[Defect::KeyUsageCertSign, Defect::SvidKeyUsage]);
    let length = tlv(der::INTEGER, &[0]);
    leaf(|leaf| leaf.set(oid::BASIC_CONSTRAINTS, true, sequence(&[&length])), &[Defect::PathLength]);
    let negative = sequence(&[&tlv(der::BOOLEAN, &[0xff]), &tlv(der::INTEGER, &[0xff])]);
    intermediate(
        |ca| ca.set(oid::BASIC_CONSTRAINTS, true, negative),
        &[Defect::ExtensionMalformed, Defect::NotAuthority],
    );
}

#[test]
fn extended_usages_are_not_empty_and_not_for_roots() {
    let any = tlv(der::OID, &[0x55, 0x1d, 37, 0]);
    leaf(
        |leaf| leaf.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(1), &purpose(2), &any])),
        &[Defect::ExtendedKeyUsageAny],
    );
    leaf(|leaf| leaf.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[])), &[Defect::ExtensionMalformed]);
    root(|root| root.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(1)])), &[Defect::ExtendedKeyUsageOfRoot]);
}

#[test]
fn alternative_names_are_well_written() {
    let spiffe = || uri("spiffe://td/a");
    let with = |name: Vec<u8>| {
        move |leaf: &mut Blueprint| leaf.set(oid::SUBJECT_ALT_NAME, true, sequence(&[&spiffe(), &name]))
    };
    for good in
        [dns("a"), dns("*.a-b.example.com"), tlv(0x87, &[127, 0, 0, 1]), tlv(0x87, &[0; 16]), tlv(0x81, b"a@b.c")]
    {
        leaf(with(good), &[]);
    }
    for bad in [
        dns(""),
        dns("."),
        dns("a."),
        dns(".a"),
        dns("-a"),
        dns("a-"),
        dns("a b"),
        dns("a.*.b"),
        dns("\u{1f600}.com"),
        dns(&"a".repeat(64)),
        tlv(0x87, &[127, 0, 0]),
        tlv(0x87, &[127, 0, 0, 0, 255, 255, 255, 0]),
        tlv(0x81, b"a"),
        tlv(0x81, b"a@b@c"),
    ] {
        leaf(with(bad), &[Defect::NameMalformed]);
    }
    leaf(with(dns("a_b.com")), &[Defect::NameUnderscore]);
    leaf(with(dns("*.com")), &[Defect::NameTooWide]);
    leaf(with(tlv(0x89, b"x")), &[Defect::ExtensionMalformed, Defect::SvidIdMissing]);
    leaf(|leaf| leaf.set(oid::SUBJECT_ALT_NAME, true, sequence(&[])), &[Defect::NamesEmpty, Defect::SvidIdMissing]);
    leaf(|leaf| leaf.remove(oid::SUBJECT_ALT_NAME), &[Defect::NamesMissing, Defect::SvidIdMissing]);
    leaf(|leaf| leaf.subject = forge::common_name("cart"), &[Defect::NamesCritical]);
    leaf(
        |leaf| {
            leaf.subject = forge::common_name("cart");
            leaf.remove(oid::SUBJECT_ALT_NAME);
        },
        &[Defect::NamesAbsent, Defect::SvidIdMissing],
    );
}

#[test]
fn common_names_are_spelt_as_the_names_they_repeat() {
    let with = |common: &str, name: Vec<u8>| {
        let subject = forge::common_name(common);
        move |leaf: &mut Blueprint| {
            leaf.subject = subject;
            leaf.set(oid::SUBJECT_ALT_NAME, false, sequence(&[&uri("spiffe://td/a"), &name]));
        }
    };
    let four = || tlv(0x87, &[192, 168, 1, 1]);
    for common in ["192.168.1.1", "example.com", "other.example.com", "A workload's name", "größe"] {
        leaf(with(common, four()), &[]);
    }
    for common in ["192.168.001.001", "0xc0a80101", "0xC0.0xA8.0x1.0x1", "2001:DB8::1", "2001:db8:0:0::1"] {
        leaf(with(common, four()), &[Defect::CommonName]);
    }
    leaf(with("example.com", dns("example.com")), &[]);
    leaf(with("Example.com", dns("example.com")), &[Defect::CommonName]);
    leaf(with("größe.example.com", dns("xn--gre-6ka8i.example.com")), &[Defect::CommonName]);
}

#[test]
fn name_constraints_are_for_authorities_and_say_something() {
    let permit = |base: Vec<u8>| sequence(&[&tlv(0xa0, &sequence(&[&base]))]);
    let with = |content: Vec<u8>| move |ca: &mut Blueprint| ca.set(oid::NAME_CONSTRAINTS, true, content);
    for good in [
        dns("example.com"),
        dns(""),
        uri("td"),
        uri(".td"),
        tlv(0x87, &[10, 0, 0, 0, 255, 0, 0, 0]),
        tlv(0x87, &[0; 32]),
        tlv(0x81, b"a@b.c"),
        tlv(0x81, b".b.c"),
        tlv(0xa4, &forge::common_name("x")),
    ] {
        intermediate(with(permit(good)), &[]);
    }
    for bad in [
        dns(".example.com"),
        dns("*.example.com"),
        uri("10.0.0.1"),
        uri("spiffe://td/a b"),
        tlv(0x87, &[10, 0, 0, 0]),
        tlv(0x87, &[10, 0, 0, 0, 255, 0, 255, 0]),
        tlv(0x81, b"a@b@c"),
        tlv(0xa4, b"x"),
    ] {
        intermediate(with(permit(bad)), &[Defect::NameConstraintsMalformed]);
    }
    let distance = sequence(&[&tlv(0xa0, &sequence(&[&dns("a"), &tlv(0x80, &[1])]))]);
    intermediate(with(distance), &[Defect::NameConstraintsMalformed]);
    intermediate(with(sequence(&[])), &[Defect::NameConstraintsEmpty]);
    intermediate(with(sequence(&[&tlv(0xa0, &[]), &tlv(0xa1, &[])])), &[Defect::NameConstraintsEmpty]);
    intermediate(|ca| ca.set(oid::NAME_CONSTRAINTS, false, permit(dns("a"))), &[Defect::NameConstraintsNotCritical]);
    leaf(with(permit(dns("a"))), &[Defect::NameConstraintsInLeaf]);
}

#[test]
fn svids_have_one_id_which_is_a_workloads() {
    let with = |uris: &[&str]| {
        let names: Vec<Vec<u8>> = uris.iter().map(|text| uri(text)).collect();
        move |leaf: &mut Blueprint| leaf.set(oid::SUBJECT_ALT_NAME, true, forge::sequence_of(&names))
    };
    leaf(with(&["spiffe://td/a", "spiffe://td/b"]), &[Defect::SvidIdTwice]);
    leaf(with(&["spiffe://td/a", "https://td/b"]), &[Defect::SvidIdTwice]);
    leaf(with(&["spiffe://td"]), &[Defect::SvidIdWithoutPath]);
    for bad in ["https://td/a", "spiffe://TD/a", "spiffe://td/", "spiffe://td:1/a", "spiffe://td/a//b"] {
        leaf(with(&[bad]), &[Defect::SvidIdInvalid]);
    }
    intermediate(with(&["spiffe://td/a"]), &[Defect::SvidAuthorityIdWithPath]);
}

#[test]
fn svids_sign_handshakes_and_nothing_else() {
    leaf(|leaf| leaf.set(oid::KEY_USAGE, true, key_usage(0x82)), &[Defect::SvidKeyUsage]);
    leaf(|leaf| leaf.set(oid::KEY_USAGE, true, key_usage(0x20)), &[Defect::SvidKeyUsage]);
    leaf(|leaf| leaf.remove(oid::KEY_USAGE), &[Defect::SvidKeyUsage]);
    leaf(|leaf| leaf.set(oid::KEY_USAGE, true, key_usage(0xa8)), &[]);
    for one in [1, 2, 3] {
        leaf(
            |leaf| leaf.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(one)])),
            &[Defect::SvidExtendedKeyUsage],
        );
    }
    leaf(|leaf| leaf.remove(oid::EXTENDED_KEY_USAGE), &[]);
}

#[test]
fn what_is_not_strict_der_is_malformed() {
    let signer = Signer::new("ca");
    let good = Blueprint::leaf(&signer.spki()).sign(&signer);
    assert_eq!(defects(&good, Role::Leaf), []);
    for bad in [&good[..good.len() - 1], &[&good[..], &[0]].concat(), &[], b"text"] {
        assert_eq!(defects(&CertificateDer::from(bad), Role::Leaf), [Defect::Malformed]);
    }
    let huge = CertificateDer::from(vec![0x30; CERTIFICATE_BYTES_MAX + 1]);
    assert_eq!(defects(&huge, Role::Leaf), [Defect::TooLong]);
}

#[test]
fn a_certificate_claims_a_role() {
    let (root, ca) = (Signer::new("root"), Signer::new("ca"));
    assert_eq!(claimed_role(&Blueprint::authority(&root).sign(&root)), Role::Root);
    assert_eq!(claimed_role(&Blueprint::authority(&ca).sign(&root)), Role::Intermediate);
    assert_eq!(claimed_role(&Blueprint::leaf(&ca.spki()).sign(&root)), Role::Leaf);
    assert_eq!(claimed_role(&CertificateDer::from(&b"text"[..])), Role::Leaf);
}

proptest::proptest! {
    #[test]
    fn no_change_of_a_byte_makes_it_panic(at in 0_usize..400, byte in proptest::num::u8::ANY) {
        let signer = Signer::new("ca");
        let mut der = Blueprint::leaf(&signer.spki()).sign(&signer).to_vec();
        let at = at % der.len();
        der[at] = byte;
        for role in [Role::Leaf, Role::Intermediate, Role::Root] {
            let _ = svid_defects(&CertificateDer::from(&der[..]), role);
        }
    }
}

#[test]
fn linting_names_what_is_wrong_in_any_certificate_of_a_chain() {
    let ca = Signer::new("ca");
    let pem = |chain: &[CertificateDer<'_>]| pem::certificates(chain).into_bytes();
    let leaf = Blueprint::leaf(&Signer::new("leaf").spki()).sign(&ca);
    let authority = Blueprint::authority(&ca).sign_as_it_is(&ca);
    let chain = [leaf.clone(), authority.clone()];
    assert_eq!(lint(&pem(&chain), Profile::Svid), Ok(Vec::new()));
    assert_eq!(lint(&pem(std::slice::from_ref(&authority)), Profile::Svid), Ok(Vec::new()));
    let misplaced = lint(&pem(&[leaf.clone(), leaf]), Profile::Svid).unwrap();
    assert!(misplaced.contains(&Defect::NotAuthority), "{misplaced:?}");
    let mut web = Blueprint::leaf(&ca.spki());
    web.set(oid::SUBJECT_ALT_NAME, true, sequence(&[&dns("a")]));
    let web = pem(&[web.sign(&ca)]);
    assert_eq!(lint(&web, Profile::Svid), Ok(vec![Defect::SvidIdMissing]));
    assert_eq!(lint(&web, Profile::Rfc5280), Ok(Vec::new()));
    assert_eq!(lint(b"text", Profile::Svid), Err(PemError::NoCertificate));
}

#[test]
fn linting_agrees_with_the_names_of_the_corpus() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let folder = std::path::Path::new(&corpora).join("spiffe/go-spiffe/svid/x509svid/testdata");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let found = lint(&std::fs::read(&path).unwrap(), Profile::Svid);
        if ["good-", "wrong-", "corrupt-"].iter().any(|start| name.starts_with(start)) {
            assert_eq!(found == Ok(Vec::new()), name.starts_with("good-"), "{name}: {found:?}");
            seen += 1;
        }
    }
    assert!(seen > 3);
}
