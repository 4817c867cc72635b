//! Joining and renewing beside a CA in memory, on paused time.

use runtime::tasks::TaskSet;

use super::*;
use crate::fake::{FakeCa, domain, start};

struct Scene {
    ca: Arc<FakeCa>,
    clock: Clock,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let clock = Clock::following_timers(start());
        Self { ca: FakeCa::new(clock, Duration::from_secs(3600)), clock, dir: tempfile::tempdir().unwrap() }
    }

    fn token(&self, token: &str) -> &Self {
        *self.ca.token.lock().unwrap() = Some(token.to_owned());
        std::fs::write(self.dir.path().join("token"), format!("{token}\n")).unwrap();
        self
    }

    /// An agent that starts now, in the same directory.
    fn node(&self) -> Node {
        let state = self.ca.synced_state([]);
        Node {
            ca: self.ca.clone(),
            identity: Arc::new(NodeIdentity::new(state)),
            trust_domain: domain(),
            svid_file: self.dir.path().join("agent.pem"),
            evidence: Source::join_token(self.dir.path().join("token")),
            trust: Arc::new(Trust::for_test(self.dir.path())),
            clock: self.clock,
            numbers: Numbers::default(),
            unstored: AtomicBool::default(),
        }
    }

    /// An agent that joins with a token of Kubernetes.
    fn kubernetes_node(&self) -> Node {
        std::fs::write(self.dir.path().join("psat"), "a.b.c\n").unwrap();
        let (cluster, token_file) = ("prod".into(), self.dir.path().join("psat"));
        let evidence = Source::K8sPsat(crate::settings::KubernetesPsat { cluster, token_file });
        Node { evidence, ..self.node() }
    }

    async fn start(&self) -> Result<Node, JoinError> {
        let node = self.node();
        node.start(&Shutdown::new()).await?;
        Ok(node)
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_joins_once_and_starts_warm_afterwards() {
    let scene = Scene::new();
    let first = scene.token("t").start().await.unwrap();
    let again = scene.start().await.unwrap();
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 1);
    assert_eq!(first.identity.serial(), again.identity.serial());
    assert_eq!(first.identity.svid().unwrap().id().path(), "/spire/agent/join_token/t");
}

#[tokio::test(start_paused = true)]
async fn a_used_token_without_a_stored_svid_is_named_with_the_remedy() {
    let scene = Scene::new();
    scene.token("t").start().await.unwrap();
    std::fs::remove_file(scene.dir.path().join("agent.pem")).unwrap();
    let error = scene.start().await.map(drop).unwrap_err();
    assert_eq!(error.reason(), "JOIN_TOKEN_REFUSED");
    assert!(error.to_string().contains("kasbah token create"));
}

#[tokio::test(start_paused = true)]
async fn without_a_token_the_error_says_how_to_get_one() {
    let error = Scene::new().start().await.map(drop).unwrap_err();
    assert_eq!(error.reason(), "JOIN_NO_TOKEN");
    assert!(error.to_string().contains("kasbah token create"));
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_is_waited_for() {
    let scene = Scene::new();
    scene.token("t").ca.set_down(true);
    let up = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        scene.ca.set_down(false);
    };
    let (joined, ()) = tokio::join!(scene.start(), up);
    assert!(joined.is_ok());
}

/// However long the CA is busy, no attempt comes before the CA wants it, and the agent joins when it may.
#[tokio::test(start_paused = true)]
async fn a_ca_that_asks_to_wait_is_left_alone_that_long() {
    let scene = Scene::new();
    *scene.token("t").ca.asked_wait.lock().unwrap() = Some(Duration::from_secs(20));
    let done = async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        *scene.ca.asked_wait.lock().unwrap() = None;
    };
    let (joined, ()) = tokio::join!(scene.start(), done);
    assert!(joined.is_ok());
    assert_left_alone(&scene.ca, Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_svid_waits_as_the_ca_asks() {
    let scene = Scene::new();
    let node = scene.kubernetes_node();
    node.start(&Shutdown::new()).await.unwrap();
    let identity = node.identity.clone();
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    *scene.ca.asked_wait.lock().unwrap() = Some(Duration::from_secs(45));
    scene.ca.evicted.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_left_alone(&scene.ca, Duration::from_secs(45));
    *scene.ca.asked_wait.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(identity.svid().unwrap().not_after() > scene.clock.now());
}

#[track_caller]
fn assert_left_alone(ca: &FakeCa, wait: Duration) {
    let attempts = ca.attempts.lock().unwrap();
    let pauses = attempts.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
    let least = pauses.min().unwrap();
    assert!(least >= wait, "{least:?} between two of {} attempts", attempts.len());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_counts_as_no_svid() {
    let scene = Scene::new();
    std::fs::write(scene.dir.path().join("agent.pem"), "damaged").unwrap();
    assert!(scene.token("t").start().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_expired_while_the_agent_was_off_needs_a_new_token() {
    let scene = Scene::new();
    scene.token("t").start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3601)).await;
    let error = scene.start().await.map(drop).unwrap_err();
    assert_eq!(error.reason(), "AGENT_SVID_EXPIRED");
    assert!(scene.token("t2").start().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_expired_while_the_agent_was_off_brings_it_back_where_the_ca_lets_it() {
    let scene = Scene::new();
    scene.ca.old_svids.store(true, Ordering::SeqCst);
    let first = scene.token("t").start().await.unwrap().identity.svid().unwrap();
    std::fs::remove_file(scene.dir.path().join("token")).unwrap();
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    let back = scene.start().await.unwrap().identity.svid().unwrap();
    assert_eq!(back.id(), first.id());
    assert_ne!(back.key().public_key_spki(), first.key().public_key_spki());
    assert!(back.not_after() > scene.clock.now());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_for_longer_than_its_svid_lives_comes_back_by_itself() {
    let scene = Scene::new();
    scene.ca.old_svids.store(true, Ordering::SeqCst);
    let node = scene.token("t").start().await.unwrap();
    let identity = node.identity.clone();
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    scene.ca.set_down(true);
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    assert!(identity.svid().unwrap().not_after() < scene.clock.now());
    // Renewal needs a valid SVID.
    scene.ca.evicted.store(true, Ordering::SeqCst);
    scene.ca.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(identity.svid().unwrap().not_after() > scene.clock.now(), "it is back without a restart");
    assert_eq!(identity.svid().unwrap().id().path(), "/spire/agent/join_token/t");
}

#[tokio::test(start_paused = true)]
async fn the_own_svid_is_renewed_at_half_life_and_stored() {
    let scene = Scene::new();
    let node = scene.token("t").start().await.unwrap();
    let (identity, first) = (node.identity.clone(), node.identity.serial());
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    tokio::time::sleep(Duration::from_secs(3600 * 44 / 100)).await;
    assert_eq!(identity.serial(), first);
    tokio::time::sleep(Duration::from_secs(3600 * 12 / 100)).await;
    assert_ne!(identity.serial(), first);
    assert_eq!(scene.start().await.unwrap().identity.serial(), identity.serial());
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_half_life_is_overcome_before_the_end() {
    let scene = Scene::new();
    let node = scene.token("t").start().await.unwrap();
    let (identity, first) = (node.identity.clone(), node.identity.svid().unwrap());
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    scene.ca.set_down(true);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(identity.serial().as_deref(), Some(first.serial()));
    scene.ca.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_ne!(identity.serial().as_deref(), Some(first.serial()));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_agent_whose_evidence_may_be_shown_again_comes_back_by_itself() {
    let scene = Scene::new();
    let node = scene.kubernetes_node();
    node.start(&Shutdown::new()).await.unwrap();
    let (identity, first) = (node.identity.clone(), node.identity.serial());
    assert_eq!(identity.svid().unwrap().id().path(), "/spire/agent/k8s_psat/n");
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    scene.ca.evicted.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3600 * 56 / 100)).await;
    assert_ne!(identity.serial(), first);
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 2);
}

/// An evicted agent failed to sync until half of its SVID's life was over, long after its workloads' SVIDs had ended.
#[tokio::test(start_paused = true)]
async fn an_agent_that_hears_that_the_ca_does_not_know_it_comes_back_at_once() {
    let scene = Scene::new();
    let node = scene.kubernetes_node();
    node.start(&Shutdown::new()).await.unwrap();
    let (identity, first) = (node.identity.clone(), node.identity.serial());
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.ca.evicted.store(true, Ordering::SeqCst);
    identity.disown();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(identity.serial(), first);
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 2);
    let second = identity.serial();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(identity.serial(), second, "one new SVID is enough");
}

#[tokio::test(start_paused = true)]
async fn an_agent_cut_off_for_longer_than_its_svid_lives_joins_anew() {
    let scene = Scene::new();
    let node = scene.kubernetes_node();
    node.start(&Shutdown::new()).await.unwrap();
    let identity = node.identity.clone();
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    scene.ca.set_down(true);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert!(identity.svid().unwrap().not_after() < scene.clock.now());
    scene.ca.evicted.store(true, Ordering::SeqCst);
    scene.ca.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(identity.svid().unwrap().not_after() > scene.clock.now(), "it is back without a restart");
}

#[tokio::test(start_paused = true)]
async fn an_evicted_agent_takes_a_new_token_from_its_file_and_shows_no_old_one() {
    let scene = Scene::new();
    let node = scene.token("t").start().await.unwrap();
    let (identity, first) = (node.identity.clone(), node.identity.serial());
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    scene.ca.evicted.store(true, Ordering::SeqCst);
    // The CA would take the old token again; the agent does not offer it.
    *scene.ca.token.lock().unwrap() = Some("t".into());
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(identity.serial(), first);
    scene.token("t2");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_ne!(identity.serial(), first);
    assert_eq!(identity.svid().unwrap().id().path(), "/spire/agent/join_token/t2");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_named_by_its_setting() {
    let scene = Scene::new();
    let node = scene.kubernetes_node();
    std::fs::remove_file(scene.dir.path().join("psat")).unwrap();
    let error = node.start(&Shutdown::new()).await.unwrap_err();
    assert_eq!(error.reason(), "JOIN_EVIDENCE_UNREADABLE");
    assert!(error.to_string().contains("k8s_psat.token_file"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_finds_no_room_is_used_and_stored_as_soon_as_there_is() {
    let scene = Scene::new();
    // What stands where the new file is to be written makes every attempt fail, as no room would.
    let in_the_way = scene.dir.path().join("agent.new");
    std::fs::create_dir_all(in_the_way.join("x")).unwrap();
    let node = scene.token("t").start().await.unwrap();
    let (identity, numbers) = (node.identity.clone(), node.numbers.clone());
    let label = crate::metrics::ReasonLabels { reason: "DATA_DIR_UNWRITABLE" };
    assert_eq!(numbers.write_failures.get_or_create(&label).get(), 1);
    let mut tasks = TaskSet::new();
    tasks.spawn("own", node.keep_fresh(Shutdown::new()));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(numbers.write_failures.get_or_create(&label).get() > 100, "it is tried again all the time");
    std::fs::remove_dir_all(&in_the_way).unwrap();
    tokio::time::sleep(MEASURE_INTERVAL * 2).await;
    assert_eq!(scene.start().await.unwrap().identity.serial(), identity.serial());
}

#[tokio::test(start_paused = true)]
async fn joining_once_without_room_for_the_identity_is_a_failure() {
    let scene = Scene::new();
    std::fs::create_dir_all(scene.dir.path().join("agent.new/x")).unwrap();
    let error = scene.token("t").node().try_start().await.unwrap_err();
    assert_eq!(error.reason(), "DATA_DIR_UNWRITABLE");
}
