//! A real process, killed with SIGKILL under load at a random moment, again and again: what it acknowledged is there
//! afterwards, and what is there fits together.
//!
//! `KASBAH_CRASH_ROUNDS` says how often on each database; without it a few times, and fewer on PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::transparency::Frontier;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, CreateJoinTokenRequest, RenewAgentRequest, attest_agent_response,
};
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::key_file;
use crate::store::Store;
use crate::testing::database::{self, Kind};
use crate::testing::running::{entry_message, join_request, snapshot_of, svid_of};

const DIR: &str = "KASBAH_CA_TEST_CHILD";

/// Settings of the process in `dir`, as its parent sees them too.
fn settings_in(dir: &Path) -> Settings {
    let database = std::fs::read_to_string(dir.join("database-url")).ok();
    Settings { database, ..settings(dir) }
}

/// Not a test by itself: the process that the other tests start and kill.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let server = built(&settings_in(dir)).await.unwrap();
    key_file::write_new(&dir.join("grpc"), server.addresses().grpc.to_string().as_bytes(), 0o600).unwrap();
    server.run().await.unwrap();
}

fn start(dir: &Path) -> Child {
    let _ = std::fs::remove_file(dir.join("grpc"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "server::tests::kill::child", "--nocapture"]).env(DIR, dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn connect(dir: &Path) -> Channel {
    let uri = format!("unix://{}", settings(dir).admin_socket().display());
    let endpoint = Endpoint::from_shared(uri).unwrap();
    let begun = Instant::now();
    loop {
        if dir.join("grpc").exists()
            && let Ok(channel) = endpoint.connect().await
        {
            return channel;
        }
        assert!(begun.elapsed() < START_MAX, "the process does not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What one worker was told that it is done.
#[derive(Default)]
struct Acknowledged {
    entries: Vec<String>,
    serials: Vec<String>,
    /// The newest SVID of each node.
    nodes: Vec<Arc<X509Svid>>,
}

/// Registers, issues, joins and renews until the process is gone.
async fn load(dir: PathBuf, local: Channel, worker: usize) -> Acknowledged {
    let mut done = Acknowledged::default();
    let mut step = 0;
    while work(&dir, &local, &format!("{worker}/{step}"), &mut done).await.is_some() {
        step += 1;
    }
    done
}

async fn work(dir: &Path, local: &Channel, name: &str, done: &mut Acknowledged) -> Option<()> {
    let (mut entries, mut svids) = (EntryClient::new(local.clone()), SvidClient::new(local.clone()));
    let wanted = vec![entry_message(&format!("/w/{name}"), "/node")];
    let created =
        entries.batch_create_entry(BatchCreateEntryRequest { entries: wanted, output_mask: None }).await.ok()?;
    done.entries.push(created.into_inner().results.remove(0).entry?.id);
    let key = PrivateKey::generate_p256().unwrap();
    let csr = key.csr_der(Some(&id("/web"))).unwrap();
    let minted = svids.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.ok()?.into_inner();
    done.serials.push(svid_of(minted.svid?, key).serial().to_owned());
    let svid = join(local).await?;
    done.serials.push(svid.serial().to_owned());
    done.nodes.push(svid.clone());
    let renewed = renew(dir, &svid).await?;
    done.serials.push(renewed.serial().to_owned());
    *done.nodes.last_mut()? = renewed;
    Some(())
}

async fn join(local: &Channel) -> Option<Arc<X509Svid>> {
    let mut agents = AgentClient::new(local.clone());
    let request = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: None };
    let token = agents.create_join_token(request).await.ok()?.into_inner().value;
    let key = PrivateKey::generate_p256().unwrap();
    let request = join_request(&token, key.csr_der(None).unwrap());
    let mut answers = agents.attest_agent(tokio_stream::once(request)).await.ok()?.into_inner();
    let attest_agent_response::Step::Result(result) = answers.message().await.ok()??.step? else { return None };
    Some(svid_of(result.svid?, key))
}

async fn renew(dir: &Path, svid: &Arc<X509Svid>) -> Option<Arc<X509Svid>> {
    let addr = std::fs::read_to_string(dir.join("grpc")).ok()?;
    let snapshot = Arc::new(snapshot_of(&dir.join("bundle.pem"), Some(svid)));
    let channel = mtls::channel(&addr, snapshot, PeerRule::exactly(id("/spire/server")));
    let key = PrivateKey::generate_p256().unwrap();
    let params = Some(AgentX509svidParams { csr: key.csr_der(None).unwrap() });
    let renewed = AgentClient::new(channel).renew_agent(RenewAgentRequest { params }).await.ok()?;
    Some(svid_of(renewed.into_inner().svid?, key))
}

async fn open_store(dir: &Path) -> Result<(Store, TaskSet), OpenError> {
    let (store, writing) = store::open(&settings_in(dir).database_url(), &trust_domain(), id("/spire/server")).await?;
    let mut writer = TaskSet::new();
    writer.spawn("writer", writing);
    Ok((store, writer))
}

/// Everything that was ever acknowledged, in all rounds, is there; and everything there fits together.
async fn check(dir: &Path, all: &Acknowledged) {
    let (store, mut writer) = open_store(dir).await.expect("opens by itself");
    let issued = store.issued(u32::MAX).await.unwrap();
    let recorded: BTreeSet<&str> = issued.iter().map(|record| record.issuance.serial.as_str()).collect();
    {
        let registry = store.registry();
        assert!(all.entries.iter().all(|id| registry.entry(id).is_some()), "an entry is lost");
        assert!(all.serials.iter().all(|serial| recorded.contains(serial.as_str())), "a record is lost");
        for svid in &all.nodes {
            let node = registry.agent(svid.id()).expect("a node is lost");
            assert!([&node.serial, &node.new_serial].contains(&&svid.serial().to_owned()), "a renewal is lost");
        }
        // Whether acknowledged or not: no node without the record of its SVID.
        for node in registry.agents() {
            assert!(recorded.contains(node.serial.as_str()), "a node was admitted without a record");
            assert!(
                node.new_serial.is_empty() || recorded.contains(node.new_serial.as_str()),
                "a renewal without record"
            );
        }
        assert_eq!(
            registry.entries_revision(),
            u64::try_from(registry.entry_count()).unwrap(),
            "each entry counted once"
        );
    }
    check_log(&store).await;
    drop(store);
    writer.finished().await;
}

/// The transparency log has a leaf for each record and no other, each says what its record says, and the stored frontier and
/// subtrees are those of the leaves.
async fn check_log(store: &Store) {
    let frontier = store.log_frontier().await.unwrap();
    let size = frontier.size();
    let leaves = store.log_leaves(0, size + 1).await.unwrap();
    let records = store.issued_at_log(0, size + 1).await.unwrap();
    assert_eq!(records.len() as u64, size, "a record without a place in the log, or a place without a record");
    assert_eq!(records.len() as u64, store.issued_count().await.unwrap(), "a record outside of the log");
    let mut grown = Frontier::new();
    let mut subtrees = BTreeMap::new();
    for (record, leaf) in records.iter().zip(&leaves) {
        assert_eq!(record.leaf().hash(), *leaf, "a leaf that says something else than its record");
        grown.append(*leaf, |node, hash| {
            subtrees.insert(node, hash);
        });
    }
    assert_eq!((grown.size(), leaves.len() as u64), (size, size), "more or fewer leaves than the log counts");
    assert_eq!(grown, frontier, "the frontier is not that of the leaves");
    assert_eq!(store.log_nodes(subtrees.keys().copied()).await.unwrap(), subtrees, "a stored subtree is wrong");
}

async fn crash(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    // Remembered in the directory, where the child finds it.
    database::setting_in(dir.path()).await;
    let mut all = Acknowledged::default();
    for round in 0..rounds {
        let mut child = start(dir.path());
        let local = connect(dir.path()).await;
        let worker = |n| tokio::spawn(load(dir.path().to_owned(), local.clone(), round * 100 + n));
        let workers: Vec<_> = (0..WORKERS).map(worker).collect();
        tokio::time::sleep(Duration::from_millis(u64::from(identity::digest::random::<1>()[0]))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for worker in workers {
            let done = worker.await.unwrap();
            all.entries.extend(done.entries);
            all.serials.extend(done.serials);
            all.nodes.extend(done.nodes);
        }
        check(dir.path(), &all).await;
    }
    let count = all.entries.len() + all.serials.len();
    println!("{rounds} crashes, {count} acknowledged, {} nodes, none lost", all.nodes.len());
    assert!(count > rounds, "only {count} acknowledged: the load was none");
}

fn rounds(usual: usize) -> usize {
    std::env::var("KASBAH_CRASH_ROUNDS").ok().map_or(usual, |rounds| rounds.parse().expect("a number of rounds"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    crash(rounds(ROUNDS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_on_postgresql() {
    database::on(Kind::Postgres, crash(rounds(ROUNDS_POSTGRES))).await;
}

const ROUNDS: usize = 24;
const ROUNDS_POSTGRES: usize = 6;
const WORKERS: usize = 4;
const START_MAX: Duration = Duration::from_secs(90);
