//! The role as a whole: its addresses, its start and its end.

mod away;
mod kill;
mod replicas;

use std::time::{Duration, Instant};

use identity::tls::{PeerRule, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::running::{Running, settings};
use crate::testing::{id, trust_domain};

async fn built(settings: &Settings) -> Result<Server, RunError> {
    settings.clone().build(LogControl::detached(), Shutdown::new()).await
}

/// A path of the admin or OIDC address, as JSON.
async fn get(addr: Option<SocketAddr>, path: &str) -> Value {
    let (status, body) = runtime::ask::get(addr.unwrap(), path).await.unwrap();
    assert_eq!(status, http::StatusCode::OK, "{path}");
    serde_json::from_slice(&body).unwrap()
}

async fn fetch_bundle(ca: &Running, request: &str) -> String {
    let addr = ca.addresses.bundle_endpoint.unwrap().to_string();
    let snapshot = Arc::new(ca.snapshot(None));
    let peers = PeerRule::exactly(id("/spire/server"));
    let mut stream = mtls::connect(&addr, snapshot, peers, &[b"http/1.1"]).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn the_bundle_endpoint_answers_one_path_with_the_spiffe_document() {
    let ca = Running::start().await;
    let answer = fetch_bundle(&ca, "GET /").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json"), "{head}");
    let bundle = identity::TrustBundle::parse_spiffe_json(trust_domain(), body.as_bytes()).unwrap();
    assert!(bundle.has_same_keys(&ca.certifier.authorities.current().bundle) || bundle.jwt_authorities.len() == 1);
    assert_eq!((bundle.sequence, bundle.refresh_hint), (1, Some(Duration::from_secs(300))));
    assert!(fetch_bundle(&ca, "GET /other").await.starts_with("HTTP/1.1 404"));
    assert!(fetch_bundle(&ca, "POST /").await.starts_with("HTTP/1.1 405"));
}

async fn discovery_leads_to_the_keys() {
    let ca = Running::start().await;
    let document = get(ca.addresses.oidc, "/.well-known/openid-configuration").await;
    let address = format!("http://{}", ca.addresses.oidc.unwrap());
    assert_eq!(document["issuer"], address);
    assert_eq!(document["jwks_uri"], format!("{address}/keys"));
    let keys = get(ca.addresses.oidc, "/keys").await;
    assert_eq!(keys["keys"][0]["kid"], ca.certifier.authorities.current().jwt.key_id());
    assert_eq!((&keys["keys"][0]["alg"], &keys["keys"][0]["use"]), (&"ES256".into(), &"sig".into()));
    assert!(keys["keys"][0].get("d").is_none());
}

async fn the_admin_address_shows_state_and_no_secret() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let (status, _) = runtime::ask::get(ca.addresses.admin.unwrap(), "/healthz/ready").await.unwrap();
    assert_eq!(status, http::StatusCode::OK);
    let status = get(ca.addresses.admin, "/status").await;
    assert_eq!((&status["role"], &status["agents"], &status["entries"]), (&"ca".into(), &1.into(), &1.into()));
    assert_eq!(status["issued"], 2);
    let certs = get(ca.addresses.admin, "/certs").await;
    assert_eq!(certs["own_svid"]["spiffe_id"], "spiffe://example.org/spire/server");
    assert_eq!(certs["authorities"].as_array().unwrap().len(), 4, "root, intermediate, JWT and WIT");
    let issuance = get(ca.addresses.admin, "/issuance?limit=5").await;
    assert!(issuance.as_array().unwrap().iter().any(|record| record["serial"] == node.serial()));
    let dump = get(ca.addresses.admin, "/config_dump").await;
    assert_eq!(dump["settings"]["trust_domain"], "example.org");
    let (_, metrics) = runtime::ask::get(ca.addresses.admin.unwrap(), "/metrics").await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("issuance_total{kind=\"agent\",result=\"ok\",reason=\"\"} 1"), "{metrics}");
    assert!(metrics.contains("citadel_server_root_cert_expiry_timestamp "), "{metrics}");
}

async fn a_restart_changes_nothing_for_those_outside() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let bundle = ca.certifier.authorities.current().bundle.clone();
    let begun = Instant::now();
    let ca = ca.restart().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(*ca.certifier.authorities.current().bundle, *bundle);
    assert!(ca.certifier.store.registry().entry(&entry).is_some());
    assert_eq!(ca.certifier.store.registry().agent(node.id()).unwrap().serial, node.serial());
}

async fn a_second_authority_on_the_same_directory_is_refused() {
    let ca = Running::start().await;
    let mut other = ca.settings.clone();
    other.admin_socket = Some(ca.path("other.sock"));
    let error = built(&other).await.unwrap_err();
    assert_eq!(error.reason(), "DATA_DIR_IN_USE");
    assert!(error.to_string().contains("stop it or choose another"), "{error}");
}

#[tokio::test]
async fn a_corrupt_database_a_taken_port_and_an_unusable_directory_are_one_sentence_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = settings(dir.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    wanted.grpc = taken.local_addr().unwrap();
    assert_eq!(built(&wanted).await.unwrap_err().reason(), "ADDRESS_IN_USE");
    std::fs::write(wanted.data_dir.join("ca.sqlite"), "rubbish rubbish rubbish").unwrap();
    let error = built(&wanted).await.unwrap_err();
    assert_eq!(error.reason(), "DATABASE_CORRUPT");
    assert!(!error.to_string().contains('\n'));
    std::fs::write(dir.path().join("file"), "").unwrap();
    wanted.data_dir = dir.path().join("file/below");
    assert_eq!(built(&wanted).await.unwrap_err().reason(), "DATA_DIR_UNUSABLE");
}

async fn the_directory_and_its_secrets_belong_to_one_user() {
    use std::os::unix::fs::PermissionsExt;
    let ca = Running::start().await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(ca.settings.data_dir.clone()), 0o700);
    assert_eq!(mode(ca.settings.key_file()), 0o600);
    assert_eq!(mode(ca.addresses.admin_socket.clone()), 0o600);
    assert_eq!(mode(ca.path("bundle.pem")), 0o644);
}

async fn the_servers_own_svid_is_replaced_before_it_ends() {
    let ca = Running::start_with(|settings| settings.agent_svid_ttl = Duration::from_secs(2)).await;
    let addr = ca.addresses.grpc.to_string();
    let mut serials = std::collections::BTreeSet::new();
    let begun = Instant::now();
    while serials.len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{serials:?}");
        let snapshot = Arc::new(ca.snapshot(None));
        let stream = mtls::connect(&addr, snapshot, PeerRule::exactly(id("/spire/server")), &[b"h2"]).await.unwrap();
        let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
        serials.insert(identity::summary::CertificateSummary::decode(leaf).unwrap().serial);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn the_bundle_file_follows_the_bundle() {
    let ca = Running::start().await;
    let file = ca.path("bundle.pem");
    std::fs::remove_file(&file).unwrap();
    let later = ca.certifier.now() + ca.settings.ca_ttl / 2 + Duration::from_secs(3600);
    ca.certifier.authorities.keep_fresh(&ca.certifier.store, later).await.unwrap();
    let begun = Instant::now();
    while !file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the file is never written");
        tokio::task::yield_now().await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), ca.certifier.authorities.current().bundle.to_pem());
    assert!(ca.snapshot(None).bundles().get(&trust_domain()).is_some());
}

#[tokio::test]
async fn settings_that_make_no_sense_open_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = settings(dir.path());
    wanted.ca_ttl = Duration::from_secs(10);
    assert_eq!(built(&wanted).await.unwrap_err().reason(), "SETTINGS_INVALID");
    assert!(!wanted.data_dir.exists());
}

crate::testing::database::on_each_database! {
    the_bundle_endpoint_answers_one_path_with_the_spiffe_document,
    discovery_leads_to_the_keys,
    the_admin_address_shows_state_and_no_secret,
    a_restart_changes_nothing_for_those_outside,
    a_second_authority_on_the_same_directory_is_refused,
    the_directory_and_its_secrets_belong_to_one_user,
    the_servers_own_svid_is_replaced_before_it_ends,
    the_bundle_file_follows_the_bundle,
}
