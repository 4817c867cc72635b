//! Paths that hold but for one thing, and the reason for which they are refused.

use std::time::Duration;

use super::*;
use crate::forge::{self, Blueprint, Signer, dns, purpose, sequence, tlv, uri};
use crate::profile::shape::oid;
use crate::{der, profile};

const NOW: u64 = 1_800_000_000;

struct Chain {
    leaf: Blueprint,
    intermediate: Blueprint,
    root: Blueprint,
    strictness: Grade,
    usage: Usage,
    intermediates_max: usize,
    now: u64,
}

#[track_caller]
fn check(change: impl FnOnce(&mut Chain), expected: Result<usize, &str>) {
    let (root, intermediate, leaf) = (Signer::new("root"), Signer::new("intermediate"), Signer::new("leaf"));
    let mut chain = Chain {
        leaf: Blueprint::leaf(&leaf.spki()),
        intermediate: Blueprint::authority(&intermediate),
        root: Blueprint::authority(&root),
        strictness: Grade::Web,
        usage: Usage::Server,
        intermediates_max: 1,
        now: NOW,
    };
    change(&mut chain);
    let rules = PathRules {
        strictness: chain.strictness,
        usage: chain.usage,
        intermediates_max: chain.intermediates_max,
        revocations: None,
    };
    let found = verify_path(
        &chain.leaf.sign(&intermediate),
        &[chain.intermediate.sign(&root)],
        &TrustRoots::new(&[chain.root.sign_as_it_is(&root)]),
        &rules,
        UnixTime::since_unix_epoch(Duration::from_secs(chain.now)),
    );
    assert_eq!(found.as_ref().map(|path| path.links.len()).map_err(PathError::reason), expected, "{found:?}");
}

#[test]
fn a_good_path_holds() {
    check(|_| {}, Ok(2));
    check(|chain| chain.usage = Usage::Client, Ok(2));
    check(|chain| chain.intermediates_max = 0, Err("TLS_PEER_NOT_SVID"));
}

#[test]
fn each_certificate_of_the_path_is_checked() {
    let unknown = |blueprint: &mut Blueprint| blueprint.set(&[0x2a, 3, 4], true, vec![5, 0]);
    check(|chain| unknown(&mut chain.leaf), Err("CERT_EXTENSION_UNKNOWN_CRITICAL"));
    check(|chain| unknown(&mut chain.intermediate), Err("TLS_PEER_UNTRUSTED"));
    check(|chain| unknown(&mut chain.root), Err("CERT_EXTENSION_UNKNOWN_CRITICAL"));
    let zero = |blueprint: &mut Blueprint| blueprint.serial = tlv(der::INTEGER, &[0]);
    check(|chain| zero(&mut chain.leaf), Err("CERT_SERIAL"));
    check(|chain| zero(&mut chain.intermediate), Err("CERT_SERIAL"));
    check(|chain| zero(&mut chain.root), Err("CERT_SERIAL"));
}

#[test]
fn the_stricter_the_more_defects_are_refused() {
    let zero = |chain: &mut Chain| chain.leaf.serial = tlv(der::INTEGER, &[0]);
    let odd = |chain: &mut Chain| chain.root.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(1)]));
    let at = |strictness, change: &dyn Fn(&mut Chain), expected| {
        check(
            |chain| {
                chain.strictness = strictness;
                change(chain);
            },
            expected,
        );
    };
    at(Grade::Path, &zero, Ok(2));
    at(Grade::Profile, &zero, Err("CERT_SERIAL"));
    at(Grade::Profile, &odd, Ok(2));
    at(Grade::Web, &odd, Err("CERT_EXTENDED_KEY_USAGE_OF_ROOT"));
}

#[test]
fn every_certificate_is_valid_at_the_time_the_root_too() {
    check(|chain| chain.now = NOW - 1, Err("TLS_PEER_NOT_YET_VALID"));
    check(|chain| chain.now = NOW + 86_400, Ok(2));
    check(|chain| chain.now = NOW + 86_401, Err("TLS_PEER_EXPIRED"));
    let early = || tlv(der::UTC_TIME, b"270115075959Z");
    check(|chain| chain.root.not_before = tlv(der::UTC_TIME, b"270115080001Z"), Err("TLS_PEER_NOT_YET_VALID"));
    check(
        |chain| {
            chain.root.not_before = tlv(der::UTC_TIME, b"260115080000Z");
            chain.root.not_after = early();
        },
        Err("TLS_PEER_EXPIRED"),
    );
    check(
        |chain| {
            chain.intermediate.not_before = tlv(der::UTC_TIME, b"260115080000Z");
            chain.intermediate.not_after = early();
        },
        Err("TLS_PEER_EXPIRED"),
    );
}

#[test]
fn authorities_never_stand_for_a_workload() {
    let authority = sequence(&[&tlv(der::BOOLEAN, &[0xff])]);
    check(|chain| chain.leaf.set(oid::BASIC_CONSTRAINTS, true, authority), Err("CERT_LEAF_IS_AUTHORITY"));
    check(|chain| chain.intermediate.remove(oid::BASIC_CONSTRAINTS), Err("TLS_PEER_UNTRUSTED"));
    check(
        |chain| chain.intermediate.set(oid::KEY_USAGE, true, forge::key_usage(0x02)),
        Err("CERT_KEY_USAGE_NO_CERT_SIGN"),
    );
    check(|chain| chain.root.set(oid::KEY_USAGE, true, forge::key_usage(0x02)), Err("CERT_KEY_USAGE_NO_CERT_SIGN"));
}

#[test]
fn path_lengths_and_name_constraints_hold() {
    let none_below = sequence(&[&tlv(der::BOOLEAN, &[0xff]), &tlv(der::INTEGER, &[0])]);
    check(|chain| chain.intermediate.set(oid::BASIC_CONSTRAINTS, true, none_below), Ok(2));
    let permit = |base: Vec<u8>| sequence(&[&tlv(0xa0, &sequence(&[&base]))]);
    let named = |chain: &mut Chain, name: &str| {
        let names = sequence(&[&uri("spiffe://td/a"), &dns(name)]);
        chain.leaf.set(oid::SUBJECT_ALT_NAME, true, names);
        chain.intermediate.set(oid::NAME_CONSTRAINTS, true, permit(dns("example.com")));
    };
    check(|chain| named(chain, "a.example.com"), Ok(2));
    check(|chain| named(chain, "example.org"), Err("TLS_PEER_UNTRUSTED"));
}

#[test]
fn extended_usages_are_those_of_the_peer() {
    let only = |chain: &mut Chain, last| chain.leaf.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(last)]));
    check(|chain| only(chain, 1), Ok(2));
    check(|chain| only(chain, 2), Err("TLS_PEER_UNTRUSTED"));
    check(
        |chain| {
            only(chain, 2);
            chain.usage = Usage::Client;
        },
        Ok(2),
    );
}

#[test]
fn a_bad_path_does_not_hide_a_good_one() {
    let (root, ca, leaf) = (Signer::new("root"), Signer::new("ca"), Signer::new("leaf"));
    let good = Blueprint::authority(&ca).sign(&root);
    let mut bad = Blueprint::authority(&ca);
    bad.serial = tlv(der::INTEGER, &[0]);
    let bad = bad.sign(&root);
    let leaf = Blueprint::leaf(&leaf.spki()).sign(&ca);
    let rules = PathRules { strictness: Grade::Web, usage: Usage::Server, intermediates_max: 1, revocations: None };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let roots = TrustRoots::new(&[Blueprint::authority(&root).sign_as_it_is(&root)]);
    let verify = |pool: &[CertificateDer<'static>]| verify_path(&leaf, pool, &roots, &rules, now).is_ok();
    assert!(verify(&[bad.clone(), good.clone()]) && verify(&[good, bad.clone()]));
    assert!(!verify(&[bad]));
}

#[test]
fn of_two_roots_with_the_same_key_one_is_enough() {
    let (root, leaf) = (Signer::new("root"), Signer::new("leaf"));
    let mut expired = Blueprint::authority(&root);
    expired.not_before = tlv(der::UTC_TIME, b"260115080000Z");
    expired.not_after = tlv(der::UTC_TIME, b"260116080000Z");
    let roots = [expired.sign_as_it_is(&root), Blueprint::authority(&root).sign_as_it_is(&root)];
    let leaf = Blueprint::leaf(&leaf.spki()).sign(&root);
    let rules = PathRules { strictness: Grade::Web, usage: Usage::Server, intermediates_max: 0, revocations: None };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let path = verify_path(&leaf, &[], &TrustRoots::new(&roots), &rules, now).unwrap();
    assert_eq!(path.root_valid, (NOW, NOW + 86_400));
    let error = verify_path(&leaf, &[], &TrustRoots::new(&roots[..1]), &rules, now).unwrap_err();
    assert_eq!(error.reason(), "TLS_PEER_EXPIRED");
}

#[test]
fn the_pool_of_intermediates_is_limited() {
    let ca = Signer::new("ca");
    let certificate = Blueprint::authority(&ca).sign_as_it_is(&ca);
    let leaf = Blueprint::leaf(&Signer::new("leaf").spki()).sign(&ca);
    let roots = TrustRoots::new(std::slice::from_ref(&certificate));
    let rules = PathRules { strictness: Grade::Web, usage: Usage::Server, intermediates_max: 9, revocations: None };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let with = |count| verify_path(&leaf, &vec![certificate.clone(); count], &roots, &rules, now);
    assert!(with(INTERMEDIATES_MAX).is_ok());
    assert!(matches!(with(INTERMEDIATES_MAX + 1), Err(PathError::TooLong)));
}

#[test]
fn what_is_no_certificate_is_no_root() {
    let junk = [CertificateDer::from(&b"text"[..])];
    assert!(TrustRoots::new(&junk).anchors.is_empty());
    assert_eq!(profile::defects(&junk[0], Role::Root), [Defect::Malformed]);
}
