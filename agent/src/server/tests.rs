//! The whole agent against a CA on the wire: TLS on loopback, real sockets, a real child process.

mod resilience;
mod spire;
mod wire;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use identity::{PrivateKey, X509Svid};
use runtime::workload_api::{Endpoint, fetch_x509};
use tokio::task::JoinHandle;

use super::*;
use crate::ca::CaError;
use crate::cache::CacheSettings;
use crate::client;
use crate::entry::Entries;
use crate::evidence::Evidence;
use crate::fake::{FakeCa, domain, entry, own_entry};
use crate::rotation::Prepared;
use wire::Server;

struct Scene {
    ca: Arc<FakeCa>,
    server: Server,
    dir: tempfile::TempDir,
}

struct Running {
    admin: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
}

impl Scene {
    fn start() -> Self {
        let ca = FakeCa::new(Clock::system(), Duration::from_secs(600));
        let server = Server::start(ca.clone(), "/spire/server");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("roots.pem"), ca.bundle.lock().unwrap().to_pem()).unwrap();
        Self { ca, server, dir }
    }

    fn token(&self, token: &str) -> &Self {
        *self.ca.token.lock().unwrap() = Some(token.to_owned());
        std::fs::write(self.dir.path().join("token"), token).unwrap();
        self
    }

    fn settings(&self) -> Settings {
        let at = |name: &str| self.dir.path().join(name);
        Settings {
            trust_domain: domain(),
            data_dir: at("data"),
            server: self.server.addr.to_string(),
            trust_bundle: Some(at("roots.pem")),
            root_pins: None,
            cache: CacheSettings::default(),
            join_token_file: Some(at("token")),
            x509pop: None,
            k8s_psat: None,
            oidc_jwt: None,
            http_challenge: None,
            workload_api: at("run/agent.sock"),
            workload_api_tcp: None,
            files: Vec::new(),
            kubelet: None,
            broker: None,
            streams_per_process_max: crate::caller::STREAMS_PER_PROCESS_MAX,
            sds: Some(at("run/sds.sock")),
            launch: Some(at("run/launch.sock")),
            admin: "127.0.0.1:0".parse().unwrap(),
            sync_interval: Duration::from_secs(1),
        }
    }

    fn agent(&self) -> Running {
        self.agent_with(|_| ())
    }

    fn agent_with(&self, change: impl FnOnce(&mut Settings)) -> Running {
        let mut settings = self.settings();
        change(&mut settings);
        let agent = settings.build(LogControl::detached()).unwrap();
        let (admin, shutdown) = (agent.admin_addr().unwrap(), Shutdown::new());
        Running { admin, task: tokio::spawn(agent.run(shutdown.clone())), shutdown }
    }

    fn endpoint(&self) -> Endpoint {
        self.settings().workload_api.into()
    }
}

impl Running {
    async fn stop(self) -> Result<(), RunError> {
        self.shutdown.trigger();
        self.task.await.unwrap()
    }

    async fn page(&self, path: &str) -> serde_json::Value {
        let (status, body) = runtime::ask::get(self.admin, path).await.unwrap();
        assert!(status.is_success(), "{status}");
        serde_json::from_slice(&body).unwrap()
    }

    async fn wait_ready(&self) {
        while runtime::ask::get(self.admin, "/healthz/ready").await.unwrap().0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn an_agent_joins_serves_and_starts_warm_without_its_token() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    let first = fetch_x509(&scene.endpoint()).await.unwrap();
    assert_eq!(first.svid().id().as_str(), "spiffe://example.org/a");
    running.wait_ready().await;
    running.stop().await.unwrap();
    std::fs::remove_file(scene.dir.path().join("token")).unwrap();
    let running = scene.agent();
    let second = fetch_x509(&scene.endpoint()).await.unwrap();
    assert_eq!(first.svid().serial(), second.svid().serial(), "from the cache");
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_advice_of_the_ca_on_renewal_arrives_over_the_wire() {
    let scene = Scene::start();
    let life = *scene.ca.ttl.lock().unwrap();
    *scene.ca.advice.lock().unwrap() = Some(life * 3 / 10);
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    running.wait_ready().await;
    let held = fetch_x509(&scene.endpoint()).await.unwrap();
    let renew_at = running.page("/certs").await["svids"][0]["renew_at"].as_str().unwrap().to_owned();
    // Without advice at most 55 % of the life would be left.
    let left = |tenths| rfc3339(held.svid().not_after() - life * tenths / 10);
    assert!(left(8) < renew_at && renew_at < left(6), "{renew_at}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_admin_pages_show_what_is_held_and_no_key() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    running.wait_ready().await;
    let held = fetch_x509(&scene.endpoint()).await.unwrap();
    let certs = running.page("/certs").await;
    assert_eq!(certs["svids"][0]["serial"], held.svid().serial());
    assert_eq!(certs["svids"][0]["spiffe_id"], "spiffe://example.org/a");
    assert!(certs["svids"][0]["renew_at"].is_string() && certs["bundles"][0]["roots"][0]["serial"].is_string());
    assert_eq!(certs["agent"]["spiffe_id"], "spiffe://example.org/spire/agent/join_token/t");
    let status = running.page("/status").await;
    assert_eq!((&status["entries"], &status["svids_missing"], &status["synced"]), (&1.into(), &0.into(), &true.into()));
    let dump = running.page("/config_dump").await;
    assert_eq!(dump["entries"][0]["id"], "a");
    let metrics = String::from_utf8(runtime::ask::get(running.admin, "/metrics").await.unwrap().1.to_vec()).unwrap();
    for name in ["svid_renewals_total{of=\"workload\",outcome=\"ok\"} 1", "svid_expiry_seconds ", "svids_held 1"] {
        assert!(metrics.contains(name), "{name} not in {metrics}");
    }
    for page in [certs.to_string(), status.to_string(), dump.to_string(), metrics] {
        assert!(!page.contains("PRIVATE"));
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_used_token_ends_the_agent_with_the_remedy() {
    let scene = Scene::start();
    scene.token("t").ca.token.lock().unwrap().take();
    let error = scene.agent().task.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), "JOIN_TOKEN_REFUSED");
    assert!(error.to_string().contains("kasbah token create"), "{error}");
}

#[tokio::test]
async fn an_outage_of_the_ca_is_not_felt_by_workloads() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    running.wait_ready().await;
    scene.server.stop().await;
    assert!(fetch_x509(&scene.endpoint()).await.is_ok());
    assert_eq!(running.page("/status").await["ready"], true);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_starts_while_the_ca_is_away_serves_what_is_still_valid() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    running.wait_ready().await;
    let first = fetch_x509(&scene.endpoint()).await.unwrap();
    wait_for_cache(&scene, 1).await;
    running.stop().await.unwrap();
    scene.server.stop().await;
    let running = scene.agent();
    let second = fetch_x509(&scene.endpoint()).await.unwrap();
    assert_eq!(first.svid().serial(), second.svid().serial());
    running.wait_ready().await;
    let status = running.page("/status").await;
    assert_eq!((&status["synced"], &status["svids"]), (&false.into(), &1.into()));
    running.stop().await.unwrap();
}

/// Until the sealed file holds `count` SVIDs.
async fn wait_for_cache(scene: &Scene, count: usize) {
    let settings = scene.settings();
    let cache = Cache::open(&settings.cache, &settings.data_dir, &settings.trust_domain).unwrap().unwrap();
    while cache::tests::kept(&cache, Clock::system()).is_none_or(|kept| kept.held.len() != count) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn roots_are_trusted_by_fingerprint_and_by_no_other() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let pinned = |fingerprint: String| {
        move |settings: &mut Settings| {
            settings.trust_bundle = None;
            settings.root_pins = Some(crate::trust::RootPins { fingerprints: [fingerprint].into(), url: None });
        }
    };
    let wrong = scene.agent_with(pinned("00".repeat(32))).task.await.unwrap().unwrap_err();
    assert_eq!(wrong.reason(), "ROOT_NOT_PINNED");
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 0, "the token was not shown");
    let root = scene.ca.root.lock().unwrap().certificate().clone();
    let digest = digest::hex(&digest::sha256(&root));
    let running = scene.agent_with(pinned(digest));
    running.wait_ready().await;
    assert_eq!(fetch_x509(&scene.endpoint()).await.unwrap().svid().id().path(), "/a");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_root_that_moved_on_is_found_again_by_the_file_that_was_written_since() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    scene.ca.old_svids.store(true, Ordering::SeqCst);
    let running = scene.agent();
    running.wait_ready().await;
    scene.server.stop().await;
    // The root is replaced while nobody can tell this node.
    let clock = Clock::system();
    let next = crate::fake::root(clock);
    let bundle = identity::TrustBundle::from_x509_authorities(domain(), [next.certificate().clone()]).unwrap();
    *scene.ca.bundle.lock().unwrap() = identity::TrustBundle { sequence: 2, ..bundle };
    *scene.ca.root.lock().unwrap() = next;
    let _again = Server::start_at(scene.ca.clone(), "/spire/server", scene.server.addr);
    let pem = scene.ca.bundle.lock().unwrap().to_pem();
    std::fs::write(scene.dir.path().join("roots.pem"), pem).unwrap();
    while running.page("/status").await["bundle_sequence"] != 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(scene.settings().data_dir.join("withdrawn.json").exists(), "the old root is remembered as withdrawn");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_cache_an_agent_that_starts_while_the_ca_is_away_serves_when_it_is_back() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let off = |settings: &mut Settings| settings.cache.enabled = false;
    let running = scene.agent_with(off);
    running.wait_ready().await;
    running.stop().await.unwrap();
    scene.server.stop().await;
    let running = scene.agent_with(off);
    let endpoint = scene.endpoint();
    let fetching = tokio::spawn(async move { fetch_x509(&endpoint).await });
    let blocked = running.page("/status").await["blocked_by"].clone();
    assert!(blocked.to_string().contains("first sync"), "{blocked}");
    let _again = Server::start_at(scene.ca.clone(), "/spire/server", scene.server.addr);
    assert!(fetching.await.unwrap().is_ok());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_the_ca_is_not_talked_to() {
    let scene = Scene::start();
    let impostor = Server::start(scene.ca.clone(), "/impostor");
    let state = scene.ca.synced_state([]);
    let ca = GrpcCa::new(impostor.addr.to_string(), domain(), Arc::new(NodeIdentity::new(state)));
    let error = ca.attest(&mut Evidence::plain("join_token", b"t"), Prepared::new().unwrap().csr()).await.unwrap_err();
    assert!(matches!(&error, CaError::Unavailable { .. }));
    assert_eq!(error.reason(), "TLS_PEER_ID_UNEXPECTED");
    assert!(scene.ca.joins.load(Ordering::SeqCst) == 0);
}

#[tokio::test]
async fn entries_come_whole_by_difference_or_as_a_list() {
    let scene = Scene::start();
    let state = scene.ca.synced_state([]);
    let own = Arc::new(NodeIdentity::new(state));
    let key = PrivateKey::generate_p256().unwrap();
    let id = domain().with_path("/spire/agent/join_token/t").unwrap();
    let svid = X509Svid::from_parts(scene.ca.sign(&id, &key.csr_der(None).unwrap()), key).unwrap();
    own.set_for_test(svid);
    let ca = GrpcCa::new(scene.server.addr.to_string(), domain(), own);
    let all: Vec<_> = (0..1203).map(|n| entry(&format!("e{n:04}"), &format!("/e/{n}"), &["unix:uid:1"])).collect();
    let expected = Entries::new(all.clone());
    *scene.ca.entries.lock().unwrap() = all;
    for (mode, sent) in [(wire::Mode::Whole, 1203), (wire::Mode::ByDifference, 1203), (wire::Mode::ListOnly, 1203)] {
        scene.server.set_mode(mode);
        let got = Entries::new(ca.entries(&Entries::default()).await.unwrap());
        assert!(got == expected, "{mode:?}");
        assert_eq!(scene.server.entries_sent(), sent, "{mode:?}");
    }
    scene.server.set_mode(wire::Mode::ByDifference);
    let known = Entries::new(expected.iter().skip(3).cloned());
    assert!(Entries::new(ca.entries(&known).await.unwrap()) == expected);
    assert_eq!(scene.server.entries_sent(), 3);
}

/// Not a test: what [`a_launched_child_gets_the_identity_of_its_name`] starts as a process of its own.
#[tokio::test]
async fn launched_child() {
    let Some(dir) = std::env::var_os("KASBAH_TEST_LAUNCH_DIR").map(PathBuf::from) else { return };
    let socket = dir.join("launch.sock");
    let told = client::register_launch(&socket, "helloworld").await.unwrap().workload_api;
    let fetched = client::fetch_x509(&told).await.unwrap();
    println!("IDENTITY {}", fetched.svids[0].id());
    let again = client::register_launch(&socket, "policy").await.unwrap_err();
    println!("REFUSED {}", again.reason());
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launched_child_gets_the_identity_of_its_name() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().extend([
        entry("h", "/ns/default/sa/helloworld", &["launch:name:helloworld"]),
        entry("p", "/ns/kasbah-system/sa/policy", &["launch:name:policy"]),
    ]);
    let running = scene.agent();
    running.wait_ready().await;
    assert!(fetch_x509(&scene.endpoint()).await.unwrap_err().is_no_identity());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "server::tests::launched_child", "--nocapture", "--test-threads=1"]);
    child.env("KASBAH_TEST_LAUNCH_DIR", scene.dir.path().join("run"));
    let mut child = KillOnDrop(child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<String> =
        lines.filter(|line| line.contains("IDENTITY") || line.contains("REFUSED")).take(2).collect();
    assert!(said[0].ends_with("IDENTITY spiffe://example.org/ns/default/sa/helloworld"), "{said:?}");
    assert!(said[1].ends_with("REFUSED LAUNCH_ALREADY_NAMED"), "{said:?}");
    let pid = i32::try_from(child.0.id()).unwrap();
    let who = client::whoami(running.admin, pid).await.unwrap();
    assert!(who.selectors.contains(&"launch:name:helloworld".to_owned()));
    assert_eq!(who.identities[0].entry_id, "h");
    // The agent starts again and still knows what it launched.
    running.stop().await.unwrap();
    let running = scene.agent();
    running.wait_ready().await;
    assert_eq!(client::whoami(running.admin, pid).await.unwrap().identities[0].entry_id, "h");
    drop(child);
    assert_eq!(client::whoami(running.admin, pid).await.unwrap_err().reason(), "ATTEST_PROCESS_GONE");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_command_line_sees_what_a_workload_sees() {
    let scene = Scene::start();
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    let running = scene.agent();
    let address = scene.endpoint().to_string();
    let mut updates = client::watch_x509(&address).await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap().svids[0].id().path(), "/a");
    scene.ca.entries.lock().unwrap().clear();
    assert_eq!(updates.next().await.unwrap().unwrap_err().reason(), "NO_IDENTITY_ISSUED");
    let bad = client::fetch_jwt(&address, &["db".into()], Some("nonsense")).await.unwrap_err();
    assert!(bad.to_string().contains("nonsense") && !bad.is_unreachable());
    running.stop().await.unwrap();
    assert!(client::fetch_x509(&address).await.unwrap_err().is_unreachable());
    assert!(client::register_launch(&scene.dir.path().join("none.sock"), "a").await.unwrap_err().is_unreachable());
    assert_eq!(client::fetch_x509("nonsense").await.unwrap_err().reason(), "WORKLOAD_ENDPOINT_BAD");
}

#[tokio::test]
async fn problems_at_the_start_are_named() {
    let scene = Scene::start();
    let check = |change: fn(&mut Settings)| {
        let mut settings = scene.settings();
        change(&mut settings);
        settings.build(LogControl::detached()).map(drop).unwrap_err().reason()
    };
    assert_eq!(check(|settings| settings.trust_bundle = Some("/nonexistent.pem".into())), "BUNDLE_INVALID");
    assert_eq!(check(|settings| settings.trust_bundle = Some("/etc/passwd".into())), "BUNDLE_INVALID");
    assert_eq!(check(|settings| settings.data_dir = "/proc/nowhere".into()), "DATA_DIR_UNWRITABLE");
    assert_eq!(check(|settings| settings.workload_api = "/etc/passwd".into()), "SOCKET_PATH_OCCUPIED");
    let _first = scene.settings().build(LogControl::detached()).unwrap();
    assert_eq!(check(|_| ()), "ADDRESS_IN_USE");
}
