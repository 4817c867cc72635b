//! A real process, killed with SIGKILL under load: what it acknowledged is there afterwards.

use std::process::{Child, Command, Stdio};

use identity::key::PrivateKey;
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::testing::running::{entry_message, svid_of};

const DIR: &str = "KASBAH_CA_TEST_CHILD";

/// Not a test by itself: the process that the other test starts and kills.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    built(&settings(Path::new(&dir))).await.unwrap().run().await.unwrap();
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "server::tests::kill::child", "--nocapture"]).env(DIR, dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn connect(dir: &Path) -> Channel {
    let uri = format!("unix://{}", settings(dir).admin_socket().display());
    let endpoint = Endpoint::from_shared(uri).unwrap();
    let begun = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Creates entries and mints SVIDs until the process is gone; answers what was acknowledged.
async fn load(channel: Channel, worker: usize) -> (Vec<String>, Vec<String>) {
    let (mut entries, mut svids) = (EntryClient::new(channel.clone()), SvidClient::new(channel));
    let (mut ids, mut serials) = (Vec::new(), Vec::new());
    for n in 0.. {
        let wanted = vec![entry_message(&format!("/w/{worker}/{n}"), "/node")];
        let request = BatchCreateEntryRequest { entries: wanted, output_mask: None };
        let Ok(created) = entries.batch_create_entry(request).await else { break };
        ids.push(created.into_inner().results.remove(0).entry.unwrap().id);
        let key = PrivateKey::generate_p256().unwrap();
        let csr = key.csr_der(Some(&id("/web"))).unwrap();
        let Ok(minted) = svids.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await else { break };
        serials.push(svid_of(minted.into_inner().svid.unwrap(), key).serial().to_owned());
    }
    (ids, serials)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let mut child = start(dir.path());
        let channel = connect(dir.path()).await;
        let workers: Vec<_> = (0..8).map(|n| tokio::spawn(load(channel.clone(), round * 100 + n))).collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let server = built(&settings(dir.path())).await.expect("starts again by itself");
        let records = server.certifier.store.issued(1_000_000).await.unwrap();
        let records: std::collections::BTreeSet<_> = records.into_iter().map(|record| record.issuance.serial).collect();
        let mut acknowledged = 0;
        for worker in workers {
            let (ids, serials) = worker.await.unwrap();
            acknowledged += ids.len() + serials.len();
            assert!(ids.iter().all(|id| server.certifier.store.registry().entry(id).is_some()), "an entry is lost");
            assert!(serials.iter().all(|serial| records.contains(serial)), "a record is lost");
        }
        assert!(acknowledged > 20, "round {round}: only {acknowledged} acknowledged");
    }
}
