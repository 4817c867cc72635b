//! Every parser of the crate is fed what fuzzers have found worth keeping elsewhere: nothing panics, and each refusal has a
//! documented code.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::{BundleSet, TrustBundle};
use crate::csr::Csr;
use crate::jwk::JwkSet;
use crate::jwt::{self, JwtExpectations};
use crate::key::PrivateKey;
use crate::path::TrustRoots;
use crate::profile::{self, Profile, Role};
use crate::public_key::PublicKey;
use crate::reason::REASONS;
use crate::revocation::Crl;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::summary::CertificateSummary;
use crate::svid::split_concatenated_der;
use crate::{leaf, limbo, pem, verify};

/// Feeds one input to every parser; what each answers is its code, or `None` where it accepts.
fn answers(bytes: &[u8]) -> Vec<Option<&'static str>> {
    let mut codes = of_certificates(bytes);
    codes.extend(of_documents(bytes));
    codes.extend([
        Crl::decode(bytes).map_err(|error| error.reason()).err(),
        Crl::decode_pem(bytes).map_err(|error| error.reason()).err(),
        Csr::decode_der(bytes).map_err(|error| error.reason()).err(),
        Csr::decode_pem(bytes).map_err(|error| error.reason()).err(),
        PrivateKey::from_pkcs8_der(bytes).map_err(|error| error.reason()).err(),
        PrivateKey::from_pkcs8_pem(bytes).map_err(|error| error.reason()).err(),
        PublicKey::from_spki_der(bytes).map_err(|error| error.reason()).err(),
    ]);
    codes
}

fn of_certificates(bytes: &[u8]) -> Vec<Option<&'static str>> {
    let der = CertificateDer::from(bytes);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let mut codes: Vec<Option<&'static str>> = [Role::Leaf, Role::Intermediate, Role::Root]
        .into_iter()
        .flat_map(|role| profile::svid_defects(&der, role))
        .map(|defect| Some(defect.code()))
        .collect();
    let _ = TrustRoots::new(std::slice::from_ref(&der));
    let pem = pem::certificate(&der);
    codes.extend([
        CertificateSummary::decode(&der).map_err(|error| error.reason()).err(),
        leaf::decode_leaf(&der).map_err(|error| error.reason()).err(),
        leaf::check_signing_certificate(&der).map_err(|error| error.reason()).err(),
        verify::verify_peer(std::slice::from_ref(&der), &BundleSet::default(), now).map_err(|e| e.reason()).err(),
        split_concatenated_der(bytes).map_err(|error| error.reason()).err(),
        pem::decode_certificates(bytes).map_err(|error| error.reason()).err(),
        pem::decode_private_key(bytes).map_err(|error| error.reason()).err(),
        profile::lint(bytes, Profile::Rfc5280).map_err(|error| error.reason()).err(),
        profile::lint(pem.as_bytes(), Profile::Svid).map_err(|error| error.reason()).err(),
    ]);
    codes
}

fn of_documents(bytes: &[u8]) -> Vec<Option<&'static str>> {
    let text = String::from_utf8_lossy(bytes);
    let at = JwtExpectations::at(SystemTime::UNIX_EPOCH);
    let domain = || TrustDomain::parse("td").unwrap();
    let _ = limbo::judge(bytes, UnixTime::since_unix_epoch(Duration::ZERO));
    vec![
        jwt::verify(&text, &JwkSet::default(), &at).map_err(|error| error.reason()).err(),
        JwkSet::parse(bytes).map_err(|error| error.reason()).err(),
        TrustBundle::parse_spiffe_json(domain(), bytes).map_err(|error| error.reason()).err(),
        TrustBundle::from_pem(domain(), bytes).map_err(|error| error.reason()).err(),
        SpiffeId::parse(&text).map_err(|error| error.reason()).err(),
    ]
}

#[track_caller]
fn check(bytes: &[u8]) {
    for code in answers(bytes).into_iter().flatten() {
        assert!(REASONS.iter().any(|reason| reason.code == code), "{code} is not documented");
    }
}

#[test]
fn small_strange_inputs_are_answered() {
    for bytes in
        [&b""[..], &[0x30], &[0x30, 0x80, 0, 0], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0xff; 64], b"{}", b"[]"]
    {
        check(bytes);
    }
    let nested: Vec<u8> =
        (0..2000_u16).rev().flat_map(|n| [&[0x30, 0x82][..], &(n * 4).to_be_bytes()].concat()).collect();
    check(&nested);
    check("[".repeat(100_000).as_bytes());
    check(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n");
}

#[test]
fn seeds_of_other_fuzzers_are_answered() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let folder = std::env::temp_dir().join(format!("kasbah-seeds-{}", std::process::id()));
    let mut seen = 0;
    for archive in ["x509", "crl", "asn1", "pem", "acert"] {
        let archive = Path::new(&corpora).join(format!("fuzz-seeds/openssl-{archive}.tar.xz"));
        std::fs::create_dir_all(&folder).unwrap();
        if !unpack(&archive, &folder) {
            println!("skipped: neither tar with xz nor Python can unpack {}", archive.display());
            return;
        }
        let files = files_below(&folder);
        files.iter().for_each(|file| check(&std::fs::read(file).unwrap()));
        seen += files.len();
        std::fs::remove_dir_all(&folder).unwrap();
    }
    assert!(seen > 1000, "{seen}");
}

/// Unpacks with `tar`, or with the tests' Python where `tar` or `xz` is missing.
fn unpack(archive: &Path, folder: &Path) -> bool {
    let with_tar = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(folder).status();
    if with_tar.is_ok_and(|status| status.success()) {
        return true;
    }
    let python = std::env::var_os("KASBAH_TEST_PYTHON")
        .map_or_else(|| PathBuf::from("python3"), |environment| Path::new(&environment).join("bin/python"));
    let script = "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')";
    Command::new(python).args(["-c", script]).arg(archive).arg(folder).status().is_ok_and(|status| status.success())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
