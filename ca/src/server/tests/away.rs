//! The database is away, full or read-only for a while: nothing is handed out that cannot be recorded, readiness says
//! why, and all goes on by itself afterwards.

use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join_all;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;

use super::*;
use crate::testing::database::{self, Cluster};
use crate::testing::running::{reason, until};

/// How long recovery may take on a busy machine.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// The outcome of one issuance: `OK` or the reason of its refusal.
async fn issue(ca: &Running) -> String {
    let key = identity::key::PrivateKey::generate_p256().unwrap();
    let request = MintX509svidRequest { csr: key.csr_der(Some(&id("/web"))).unwrap(), ttl: 0 };
    match SvidClient::new(ca.local().await).mint_x509svid(request).await {
        Ok(_) => "OK".into(),
        refused => reason(refused),
    }
}

async fn readiness(ca: &Running) -> (http::StatusCode, String) {
    let (status, body) = runtime::ask::get(ca.addresses.admin.unwrap(), "/healthz/ready").await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Issues until it is refused with `expected`, and readiness names it.
async fn expect_refusal(ca: &Running, expected: &str) {
    until(expected, RECOVERY_MAX, async || issue(ca).await == expected).await;
    let (status, body) = readiness(ca).await;
    assert_eq!(status, http::StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains(&format!("database: {expected}")), "{body}");
}

async fn expect_recovery(ca: &Running) {
    until("issuance again", RECOVERY_MAX, async || issue(ca).await == "OK").await;
    until("readiness again", RECOVERY_MAX, async || readiness(ca).await.0 == http::StatusCode::OK).await;
}

#[tokio::test]
async fn a_database_server_that_goes_away_and_comes_back() {
    // Its own server, which no other test needs.
    let Some(_) = database::cluster() else { return };
    let cluster = Cluster::start().unwrap();
    cluster.order("fsync");
    let url = cluster.create().await;
    let ca = Running::start_with(|settings| settings.database = Some(url)).await;
    let entry = ca.entry("/web", "/node").await;
    let minted = ca.mint("/web").await;
    cluster.order("stop");
    expect_refusal(&ca, "STORE_UNAVAILABLE").await;
    // Nobody waits long for the refusal, however many ask.
    let begun = Instant::now();
    assert!(join_all((0..50).map(|_| issue(&ca))).await.iter().all(|outcome| outcome == "STORE_UNAVAILABLE"));
    assert!(begun.elapsed() < RECOVERY_MAX, "{:?}", begun.elapsed());
    cluster.order("start");
    expect_recovery(&ca).await;
    let issued = ca.certifier.store.issued(1_000).await.unwrap();
    assert!(issued.iter().any(|record| record.issuance.serial == minted.serial()), "what was acknowledged is there");
    let ca = ca.restart().await;
    assert!(ca.certifier.store.registry().entry(&entry).is_some());
}

/// A mount of our own that ends with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "none"]).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_room_is_enough_to_go_on() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let disk_dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(disk_dir.path()) else {
        println!("skipped: a small disk cannot be mounted here; the limit of file sizes is tested instead");
        return;
    };
    let database = Some(store::sqlite_url(&disk.0.join("ca.sqlite")));
    let ca = Running::start_in(dir.clone(), Settings { database, ..settings(dir.path()) }).await;
    let entry = ca.entry("/web", "/node").await;
    let filler = disk.0.join("filler");
    fill(&filler);
    expect_refusal(&ca, "STORE_FULL").await;
    let before = ca.certifier.store.issued_count().await.unwrap();
    assert_eq!(issue(&ca).await, "STORE_FULL");
    assert_eq!(ca.certifier.store.issued_count().await.unwrap(), before, "what is refused is not recorded");
    std::fs::remove_file(&filler).unwrap();
    expect_recovery(&ca).await;
    let ca = ca.restart().await;
    assert!(ca.certifier.store.registry().entry(&entry).is_some());
    assert!(ca.certifier.store.issued_count().await.unwrap() > before);
    ca.stop().await;
}

fn fill(file: &Path) {
    use std::io::Write;
    let mut filler = File::create(file).unwrap();
    for block in [1 << 16, 1 << 12, 1 << 8, 1] {
        while filler.write_all(&vec![0; block]).is_ok() {}
    }
}

/// Nobody accepts a certificate that begins in two days, and none lives for two days more.
#[tokio::test]
async fn nothing_is_signed_while_the_clock_has_jumped() {
    static SHIFT: AtomicI64 = AtomicI64::new(0);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let ca = Running::start_at(dir.clone(), settings(dir.path()), Clock::shifted(&SHIFT)).await;
    assert_eq!(issue(&ca).await, "OK");
    let authorities = ca.certifier.authorities.current().facts.clone();
    for shift in [48 * 3600, -48 * 3600] {
        SHIFT.store(shift, Ordering::Relaxed);
        assert_eq!(issue(&ca).await, "CLOCK_JUMPED");
        let blocked = async || readiness(&ca).await.1.contains("clock: CLOCK_JUMPED");
        until("readiness to tell", RECOVERY_MAX, blocked).await;
        SHIFT.store(0, Ordering::Relaxed);
        assert_eq!(issue(&ca).await, "OK");
        until("readiness again", RECOVERY_MAX, async || readiness(&ca).await.0 == http::StatusCode::OK).await;
    }
    assert_eq!(ca.certifier.authorities.current().facts, authorities, "no authority was replaced meanwhile");
    let (_, metrics) = runtime::ask::get(ca.addresses.admin.unwrap(), "/metrics").await.unwrap();
    assert!(String::from_utf8(metrics.to_vec()).unwrap().contains("ca_clock_jumps 2"));
}

/// As after a failover, when the server that we know has become a standby.
#[tokio::test]
async fn a_server_that_turns_read_only_refuses_and_recovers() {
    let Some(_) = database::cluster() else { return };
    let cluster = Cluster::start().unwrap();
    let url = cluster.create().await;
    let ca = Running::start_with(|settings| settings.database = Some(url)).await;
    assert_eq!(issue(&ca).await, "OK");
    cluster.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
    cluster.sql("SELECT pg_reload_conf()").await;
    expect_refusal(&ca, "STORE_READ_ONLY").await;
    cluster.sql("ALTER SYSTEM RESET default_transaction_read_only").await;
    cluster.sql("SELECT pg_reload_conf()").await;
    expect_recovery(&ca).await;
}
