//! An authority whose keys are with another process: it works, is told apart from a stranger, goes away and comes back.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use identity::key::PrivateKey;
use proto::kasbah::ca::v1::{ImportAuthorityRequest, MakeCsrRequest};
use proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use runtime::shutdown::Shutdown;
use tonic::Status;

use super::*;
use crate::custody::tests::{KINDS, custody, issues, signs_is_replaced_and_survives_a_restart};
use crate::custody::{CustodySettings, KeyPlace, Place};
use crate::testing::database::on_each_database;
use crate::testing::id;
use crate::testing::running::{Running, id_message, reason, settings, until};

const WAIT: Duration = Duration::from_secs(60);

/// A signer on a thread of its own; it is gone, connections and all, when it is stopped.
struct Signer {
    shutdown: Shutdown,
    thread: JoinHandle<()>,
}

impl Signer {
    fn start(dir: &Path) -> Self {
        let (shutdown, keys, socket) = (Shutdown::new(), dir.join("keys"), socket(dir));
        let asked = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                asked.unless(crate::serve_signer(&keys, &socket, 0o600, Shutdown::new())).await;
            });
        });
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(self::socket(dir)).is_err() {
            assert!(begun.elapsed() < WAIT, "the signer does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { shutdown, thread }
    }

    fn kill(self) {
        self.shutdown.trigger();
        self.thread.join().unwrap();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("signer.sock")
}

fn with_signer(dir: &Path) -> CustodySettings {
    let external_signer = Some(ExternalSigner { socket: socket(dir), owner: None });
    CustodySettings { keys: KeyPlace::ExternalSigner, external_signer, ..CustodySettings::default() }
}

async fn start(dir: &Path, kind: KeyKind) -> Running {
    Running::start_with(|settings| settings.custody = CustodySettings { key_type: kind, ..with_signer(dir) }).await
}

async fn mint(ca: &Running) -> Result<(), Status> {
    let key = PrivateKey::generate_p256().unwrap();
    let request = MintX509svidRequest { csr: key.csr_der(Some(&id("/cart"))).unwrap(), ttl: 0 };
    SvidClient::new(ca.local().await).mint_x509svid(request).await.map(drop)
}

async fn mint_jwt(ca: &Running) -> Result<String, Status> {
    let request = MintJwtsvidRequest { id: Some(id_message("/cart")), audience: vec!["shop".into()], ttl: 0 };
    let answer = SvidClient::new(ca.local().await).mint_jwtsvid(request).await?;
    Ok(answer.into_inner().svid.unwrap().token)
}

async fn ready(ca: &Running) -> (http::StatusCode, String) {
    let (status, body) = runtime::ask::get(ca.addresses.admin.unwrap(), "/healthz/ready").await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn keys_of_each_kind_with_a_signer_sign_are_replaced_and_survive_a_restart() {
    for key_type in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::start(dir.path());
        let custody = CustodySettings { key_type, ..with_signer(dir.path()) };
        signs_is_replaced_and_survives_a_restart(custody, Place::ExternalSigner).await;
        signer.kill();
    }
}

async fn while_the_signer_is_away_nothing_is_issued_and_everybody_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::start(dir.path());
    let ca = start(dir.path(), KeyKind::P256).await;
    issues(&ca).await;
    let before = ca.certifier.store.issued_count().await.unwrap();
    signer.kill();
    assert_eq!(reason(mint(&ca).await), "AUTHORITY_KEY_UNAVAILABLE");
    assert_eq!(reason(mint_jwt(&ca).await), "AUTHORITY_KEY_UNAVAILABLE");
    assert_eq!(ca.certifier.store.issued_count().await.unwrap(), before, "nothing on record");
    until("readiness says so", WAIT, async || {
        let (status, text) = ready(&ca).await;
        status == http::StatusCode::SERVICE_UNAVAILABLE && text.contains("external_signer: AUTHORITY_KEY_UNAVAILABLE")
    })
    .await;
    let (_, metrics) = runtime::ask::get(ca.addresses.admin.unwrap(), "/metrics").await.unwrap();
    assert!(String::from_utf8(metrics.to_vec()).unwrap().contains("ca_keys_up 0"));
    let signer = Signer::start(dir.path());
    until("it works again without a restart", WAIT, async || mint(&ca).await.is_ok()).await;
    until("and is ready", WAIT, async || ready(&ca).await.0 == http::StatusCode::OK).await;
    issues(&ca).await;
    ca.stop().await;
    signer.kill();
}

#[tokio::test]
async fn a_signer_of_another_user_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::start(dir.path());
    let mut settings = settings(dir.path());
    settings.custody = with_signer(dir.path());
    settings.custody.external_signer.as_mut().unwrap().owner = Some(crate::custody::own_uid() + 1);
    let refused = settings.build(runtime::logs::LogControl::detached(), Shutdown::new()).await.unwrap_err();
    assert_eq!(refused.reason(), "AUTHORITY_KEY_UNAVAILABLE");
    assert_eq!(std::fs::read_dir(dir.path().join("keys")).unwrap().count(), 0, "it was asked for nothing");
    signer.kill();
}

#[tokio::test]
async fn keys_are_made_at_the_signer_and_never_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::start(dir.path());
    let ca = start(dir.path(), KeyKind::P256).await;
    let now = runtime::clock::now();
    let td = crate::testing::trust_domain();
    let root = identity::authority::X509Authority::generate_root(&td, Duration::from_secs(90 * 86_400), now).unwrap();
    let request = ImportAuthorityRequest {
        certificate: identity::pem::certificate(root.certificate()).into_bytes(),
        private_key: root.key().here().unwrap().pkcs8_der().to_vec(),
        ..ImportAuthorityRequest::default()
    };
    assert_eq!(reason(custody(&ca).await.import_authority(request).await), "IMPORT_KEY_PLACE");
    let count = || std::fs::read_dir(dir.path().join("keys")).unwrap().count();
    let before = count();
    custody(&ca).await.make_csr(MakeCsrRequest { another: false }).await.unwrap();
    assert_eq!(count(), before + 1);
    ca.stop().await;
    signer.kill();
}

#[test]
fn the_signer_takes_no_name_that_leads_elsewhere_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::start(dir.path());
    let mut external = External::new(ExternalSigner { socket: socket(dir.path()), owner: None });
    let long = "x".repeat(129);
    for name in ["", "../x", "a/b", ".hidden", "Upper", "a b", long.as_str()] {
        assert!(matches!(external.create(name, KeyKind::P256), Err(KeeperError::Refused(_))), "{name:?}");
    }
    let public = external.create("a", KeyKind::P256).unwrap();
    assert!(matches!(external.create("a", KeyKind::P256), Err(KeeperError::Refused(_))));
    assert!(matches!(external.create("b", KeyKind::Rsa), Err(KeeperError::Refused(_))));
    assert!(matches!(external.sign("a", KeyKind::P384, b"m"), Err(KeeperError::Refused(_))), "of another kind");
    assert!(matches!(external.sign("unknown", KeyKind::P256, b"m"), Err(KeeperError::Refused(_))));
    assert!(external.sign("a", KeyKind::P256, &[0; 64 * 1024]).is_ok());
    assert!(matches!(external.sign("a", KeyKind::P256, &[0; 64 * 1024 + 1]), Err(KeeperError::Refused(_))));
    external.check().unwrap();
    assert_eq!(KeyKind::of_spki(&public), Some(KeyKind::P256));
    signer.kill();
    assert!(matches!(external.check(), Err(KeeperError::Away(_))));
}

on_each_database! {
    keys_of_each_kind_with_a_signer_sign_are_replaced_and_survive_a_restart,
    while_the_signer_is_away_nothing_is_issued_and_everybody_is_told,
}
