//! Keys of each kind in each place: they sign, what they sign verifies (by us and by OpenSSL), they are replaced, and they
//! are there again after a restart.

mod imports;
mod offline;
pub(crate) mod openssl;
#[cfg(feature = "pkcs11")]
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use identity::key::KeyKind;
use identity::svid::X509Svid;
use identity::verify::verify_peer;
use proto::kasbah::ca::v1::custody_client::CustodyClient;
use proto::kasbah::ca::v1::rotation_client::RotationClient;
use proto::kasbah::ca::v1::{Kind, ResumeRequest, StartRequest, StatusRequest};
use proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use tonic::transport::Channel;

use super::KeyPlace;
use crate::testing::database::on_each_database;
use crate::testing::running::{Running, id_message, until};
use openssl::OpenSsl;

const WAIT: Duration = Duration::from_secs(60);

async fn start(change: impl FnOnce(&mut super::CustodySettings)) -> Running {
    Running::start_with(|settings| change(&mut settings.custody)).await
}

/// The keys and imports of an authority.
pub(crate) async fn custody(ca: &Running) -> CustodyClient<Channel> {
    CustodyClient::new(ca.local().await)
}

/// Issues, and verifies as a peer would and as OpenSSL does.
pub(crate) async fn issues(ca: &Running) -> Arc<X509Svid> {
    let svid = ca.mint("/cart").await;
    let current = ca.certifier.authorities.current();
    verify_peer(&svid.to_chain(), &current.bundles, identity::unix_time(runtime::clock::now())).unwrap();
    if let Some(openssl) = OpenSsl::find() {
        openssl.verify_strict(&current.bundle.to_pem(), &svid.to_chain());
    }
    svid
}

pub(crate) fn active_root(ca: &Running) -> String {
    let current = ca.certifier.authorities.current();
    current.line(crate::store::AuthorityKind::Root).active().unwrap().id.clone()
}

/// Runs the rotation of the root to its end; one that was prepared goes on.
pub(crate) async fn rotate(ca: &Running) {
    let (before, mut client) = (active_root(ca), RotationClient::new(ca.local().await));
    let status = client.status(StatusRequest { kind: Kind::X509.into() }).await.unwrap().into_inner();
    if status.phase == "idle" {
        client.start(StartRequest { kind: Kind::X509.into(), compromised: false }).await.unwrap();
    } else {
        client.resume(ResumeRequest { kind: Kind::X509.into() }).await.unwrap();
    }
    until("the rotation is at its end", WAIT, async || {
        let status = client.status(StatusRequest { kind: Kind::X509.into() }).await.unwrap().into_inner();
        status.phase == "idle"
    })
    .await;
    assert_ne!(active_root(ca), before, "another root signs");
}

/// An authority whose keys of `key_type` are elsewhere: `place`, and nothing sealed in the database. It signs, its root is
/// replaced, and it is the same after a restart.
pub(crate) async fn signs_is_replaced_and_survives_a_restart(custody: super::CustodySettings, place: super::Place) {
    let kind = custody.key_type;
    let ca = start(|settings| *settings = custody).await;
    issues(&ca).await;
    let rows = ca.certifier.store.authorities().await.unwrap().rows;
    assert!(rows.iter().all(|row| row.place == place && row.sealed_key.is_empty()));
    let request = MintJwtsvidRequest { id: Some(id_message("/cart")), audience: vec!["shop".into()], ttl: 0 };
    let answer = SvidClient::new(ca.local().await).mint_jwtsvid(request).await.unwrap();
    let bundles = ca.certifier.authorities.current().bundles.clone();
    let token = answer.into_inner().svid.unwrap().token;
    identity::jwt::verify_svid(&token, &bundles, "shop", runtime::clock::now()).unwrap();
    rotate(&ca).await;
    issues(&ca).await;
    let root = active_root(&ca);
    let ca = ca.restart().await;
    assert_eq!(active_root(&ca), root, "{kind:?}");
    issues(&ca).await;
    ca.stop().await;
}

/// The kinds of keys that authorities have.
pub(crate) const KINDS: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519];

fn kind_of(svid: &Arc<X509Svid>) -> Option<KeyKind> {
    let issuer = svid.issuers().first().unwrap();
    let bundle = identity::summary::CertificateSummary::decode(issuer).unwrap();
    [("ECDSA P-256", KeyKind::P256), ("ECDSA P-384", KeyKind::P384), ("Ed25519", KeyKind::Ed25519)]
        .into_iter()
        .find(|(name, _)| *name == bundle.key)
        .map(|(_, kind)| kind)
}

async fn keys_of_each_kind_on_the_disk_sign_are_replaced_and_survive_a_restart() {
    for kind in KINDS {
        let ca = start(|custody| custody.key_type = kind).await;
        assert_eq!(kind_of(&issues(&ca).await), Some(kind));
        rotate(&ca).await;
        let root = active_root(&ca);
        assert_eq!(kind_of(&issues(&ca).await), Some(kind));
        let ca = ca.restart().await;
        assert_eq!(active_root(&ca), root);
        assert_eq!(kind_of(&issues(&ca).await), Some(kind));
        ca.stop().await;
    }
}

#[tokio::test]
async fn keys_in_memory_never_touch_the_disk_and_each_start_has_new_authorities() {
    for kind in KINDS {
        let ca = start(|custody| (custody.keys, custody.key_type) = (KeyPlace::Memory, kind)).await;
        let before = issues(&ca).await;
        let sealed = ca.certifier.store.authorities().await.unwrap();
        assert!(sealed.rows.iter().all(|row| row.sealed_key.is_empty() && row.place == super::Place::Memory));
        rotate(&ca).await;
        issues(&ca).await;
        let root = active_root(&ca);
        let old_jwt = ca.certifier.authorities.current().jwt.key_id().to_owned();
        let ca = ca.restart().await;
        assert_ne!(active_root(&ca), root, "the key is gone");
        let current = ca.certifier.authorities.current();
        assert_eq!(current.bundle.x509_authorities.len(), 2, "the old root stays trusted until its end");
        assert!(current.bundle.jwt_authorities.iter().any(|key| key.key_id == old_jwt));
        assert_ne!(issues(&ca).await.issuers(), before.issuers());
        ca.stop().await;
    }
}

#[tokio::test]
async fn many_starts_with_keys_in_memory_do_not_fill_the_bundle() {
    let mut ca = start(|custody| custody.keys = KeyPlace::Memory).await;
    for _ in 0..12 {
        ca = ca.restart().await;
    }
    let current = ca.certifier.authorities.current();
    let most = crate::rotation::machine::MEMBERS_MAX / 2 + 1;
    assert_eq!(current.bundle.x509_authorities.len(), most);
    assert!(current.bundle.jwt_authorities.len() <= most && current.bundle.wit_authorities.len() <= most);
    issues(&ca).await;
    rotate(&ca).await;
}

async fn keys_move_from_the_disk_to_memory_and_back_by_the_setting() {
    let ca = start(|_| ()).await;
    let first = active_root(&ca);
    let (dir, mut settings) = (ca.dir(), ca.settings.clone());
    ca.stop().await;
    settings.custody.key_type = KeyKind::P384;
    let ca = Running::start_in(dir, settings).await;
    assert_eq!(active_root(&ca), first, "what signs goes on");
    assert_eq!(kind_of(&issues(&ca).await), Some(KeyKind::P256));
    rotate(&ca).await;
    assert_eq!(kind_of(&issues(&ca).await), Some(KeyKind::P384), "what is made anew is of the new kind");
}

async fn a_passphrase_seals_everything_and_is_needed_at_each_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passphrase");
    crate::key_file::write_new(&file, b"correct horse battery staple\n", 0o600).unwrap();
    let ca = start(|custody| custody.passphrase_file = Some(file.clone())).await;
    let root = active_root(&ca);
    issues(&ca).await;
    assert!(!ca.settings.key_file().exists(), "there is no key file");
    let ca = ca.restart().await;
    assert_eq!(active_root(&ca), root);
    issues(&ca).await;
    let backup = dir.path().join("ca.backup");
    crate::backup(&ca.settings, &backup).await.unwrap();
    let settings = ca.settings.clone();
    let kept = ca.dir();
    ca.stop().await;
    let options = crate::RestoreOptions { force: true, moved: true };
    crate::restore(&settings, &backup, options).await.unwrap();
    crate::key_file::write_new(&file, b"another horse battery staple\n", 0o600).unwrap();
    let refused = settings.clone().build(runtime::logs::LogControl::detached(), Default::default()).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_FILE_WRONG");
    crate::key_file::write_new(&file, b"correct horse battery staple\n", 0o600).unwrap();
    let ca = Running::start_in(kept, settings).await;
    assert_eq!(active_root(&ca), root);
    issues(&ca).await;
}

on_each_database! {
    keys_of_each_kind_on_the_disk_sign_are_replaced_and_survive_a_restart,
    keys_move_from_the_disk_to_memory_and_back_by_the_setting,
    a_passphrase_seals_everything_and_is_needed_at_each_start,
}
