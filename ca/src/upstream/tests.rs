//! An authority below one in files: it signs by it, follows it, and refuses what does not fit.

mod nested;

use std::time::Duration;

use super::*;
use crate::custody::tests::openssl::OpenSsl;
use crate::custody::tests::{active_root, issues};
use crate::store::AuthorityKind;
use crate::testing::database::on_each_database;
use crate::testing::running::{Running, settings, until};

const WAIT: Duration = Duration::from_secs(60);

fn files(openssl: &OpenSsl) -> UpstreamFiles {
    UpstreamFiles {
        certificate: openssl.path("ca.pem"),
        key: openssl.path("ca.key"),
        passphrase_file: None,
        bundle: openssl.path("bundle.pem"),
    }
}

/// An authority of OpenSSL, with these roots in its bundle.
fn place(openssl: &OpenSsl, name: &str, roots: &[&str]) {
    let bundle: Vec<u8> = roots.iter().flat_map(|root| openssl.read(&format!("{root}.pem"))).collect();
    for (from, to) in [(format!("{name}.pem"), "ca.pem"), (format!("{name}.key"), "ca.key")] {
        openssl.write(to, &openssl.read(&from));
    }
    openssl.write("bundle.pem", &bundle);
}

async fn below(openssl: &OpenSsl) -> Running {
    let upstream = Some(UpstreamSettings { files: Some(files(openssl)), server: None });
    Running::start_with(|settings| settings.upstream = upstream).await
}

fn root_count(ca: &Running) -> usize {
    ca.certifier.authorities.current().bundle.x509_authorities.len()
}

async fn a_database_begins_below_an_authority_in_files_and_follows_it_to_the_next() {
    let Some(openssl) = OpenSsl::find() else { return };
    for (name, kind) in [("one", "P-384"), ("two", "rsa:2048"), ("three", "P-256")] {
        openssl.root(name, kind, "root", 90);
    }
    place(&openssl, "one", &["one"]);
    let ca = below(&openssl).await;
    let first = active_root(&ca);
    issues(&ca).await;
    assert_eq!(root_count(&ca), 1, "no root of our own");
    place(&openssl, "one", &["one", "two"]);
    until("the new root is published", WAIT, async || root_count(&ca) == 2).await;
    assert_eq!(active_root(&ca), first, "and signs nothing yet");
    place(&openssl, "two", &["one", "two"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    issues(&ca).await;
    place(&openssl, "two", &["two"]);
    until("the new root signs, and the old one is gone", WAIT, async || {
        active_root(&ca) != first && root_count(&ca) == 1
    })
    .await;
    issues(&ca).await;
    let second = active_root(&ca);
    let ca = ca.restart().await;
    assert_eq!(active_root(&ca), second);
    issues(&ca).await;
}

async fn what_does_not_fit_leaves_the_last_good_state_in_force() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("one", "P-256", "root", 90);
    openssl.root("two", "P-256", "root", 90);
    place(&openssl, "one", &["one"]);
    let ca = below(&openssl).await;
    let (root, revision) = (active_root(&ca), ca.certifier.store.authorities_revision().await.unwrap());
    for (file, text) in [("ca.pem", "garbage"), ("ca.key", "garbage"), ("bundle.pem", "garbage")] {
        let good = openssl.read(file);
        openssl.write(file, text.as_bytes());
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        openssl.write(file, &good);
    }
    openssl.write("ca.key", &openssl.read("two.key"));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!((active_root(&ca), root_count(&ca)), (root, 1));
    assert_eq!(ca.certifier.store.authorities_revision().await.unwrap(), revision, "nothing was written");
    issues(&ca).await;
}

/// How the file is written says nothing: order, repetition and space between certificates.
async fn the_same_roots_written_otherwise_change_nothing() {
    let Some(openssl) = OpenSsl::find() else { return };
    for name in ["one", "two"] {
        openssl.root(name, "P-256", "root", 90);
    }
    place(&openssl, "one", &["one", "two"]);
    let ca = below(&openssl).await;
    until("both roots are published", WAIT, async || root_count(&ca) == 2).await;
    let certifier = &ca.certifier;
    let before = (certifier.authorities.current().bundle.clone(), active_root(&ca));
    for roots in [&["two", "one"][..], &["one", "two", "one", "two"]] {
        place(&openssl, "one", roots);
        let spaced = [openssl.read("bundle.pem"), b"\n\n".to_vec()].concat();
        openssl.write("bundle.pem", &spaced);
        let again = files::FilesUpstream::open(&certifier.trust_domain, files(&openssl), certifier.now()).unwrap();
        let published = again.published().borrow().clone();
        follow::once(certifier, &again, &published, &mut TokenKeys::default()).await.unwrap();
        let now = certifier.authorities.current().bundle.clone();
        assert_eq!(
            (now.sequence, root_count(&ca), active_root(&ca)),
            (before.0.sequence, 2, before.1.clone()),
            "{roots:?}"
        );
    }
}

async fn an_intermediate_is_renewed_by_the_authority_above_before_it_ends() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("one", "P-256", "root", 90);
    place(&openssl, "one", &["one"]);
    let ca = below(&openssl).await;
    let upstream = open(&ca.settings, runtime::clock::now()).unwrap().unwrap();
    let published = upstream.published().borrow().clone();
    let (authorities, store) = (&ca.certifier.authorities, &ca.certifier.store);
    let before = authorities.current().x509_id.clone();
    assert!(!authorities.wants_intermediate(&published, runtime::clock::now()));
    let later = runtime::clock::now() + Duration::from_secs(16 * 86_400);
    assert!(authorities.wants_intermediate(&published, later), "half of its 30 days is over");
    authorities.mint(store, &*upstream, runtime::clock::now()).await.unwrap();
    assert_ne!(authorities.current().x509_id, before);
    assert_eq!(authorities.current().line(AuthorityKind::Root).members.len(), 1);
    issues(&ca).await;
}

#[tokio::test]
async fn files_that_do_not_fit_together_are_refused_at_the_start() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("one", "P-256", "root", 90);
    openssl.root("two", "P-256", "root", 90);
    let dir = tempfile::tempdir().unwrap();
    let refused = async |code: &str| {
        let mut settings = settings(dir.path());
        settings.upstream = Some(UpstreamSettings { files: Some(files(&openssl)), server: None });
        let error = settings.build(runtime::logs::LogControl::detached(), Default::default()).await.unwrap_err();
        assert_eq!(error.reason(), code, "{error}");
    };
    place(&openssl, "one", &["two"]);
    refused("IMPORT_CHAIN_INCOMPLETE").await;
    place(&openssl, "one", &["one"]);
    openssl.write("ca.key", &openssl.read("two.key"));
    refused("IMPORT_KEY_MISMATCH").await;
    std::fs::remove_file(openssl.path("ca.key")).unwrap();
    refused("UPSTREAM_FILE_UNREADABLE").await;
}

on_each_database! {
    the_same_roots_written_otherwise_change_nothing,
    a_database_begins_below_an_authority_in_files_and_follows_it_to_the_next,
    what_does_not_fit_leaves_the_last_good_state_in_force,
    an_intermediate_is_renewed_by_the_authority_above_before_it_ends,
}
