//! The syncer beside a CA in memory, on paused time.

use identity::TrustDomain;
use runtime::clock::Clock;
use runtime::readiness::Readiness;
use runtime::tasks::TaskSet;

use super::*;
use crate::enforced::{LOOK_PAUSE, Reporter};
use crate::fake::{FakeCa, changed, domain, entry, start};
use crate::node::NodeIdentity;

struct Scene {
    ca: Arc<FakeCa>,
    state: Arc<State>,
    readiness: Readiness,
    report: watch::Receiver<Report>,
    dir: tempfile::TempDir,
    _syncer: TaskSet,
}

impl Scene {
    fn start(prepare: impl FnOnce(&FakeCa)) -> Self {
        let clock = Clock::following_timers(start());
        let ca = FakeCa::new(clock, Duration::from_secs(60));
        prepare(&ca);
        let (dir, readiness) = (tempfile::tempdir().unwrap(), Readiness::new());
        let state = Arc::new(State::new(TrustBundle::new(domain())));
        let (report, (revision, synced)) = (watch::Sender::new(Report::default()), watch::channel(0));
        let reports = report.subscribe();
        let own = Arc::new(NodeIdentity::new(state.clone()));
        let syncer = Syncer {
            ca: ca.clone(),
            state: state.clone(),
            own: own.clone(),
            numbers: Numbers::default(),
            interval: Duration::from_secs(5),
            trust: Arc::new(Trust::for_test(dir.path())),
            resync: Arc::default(),
            report: reports.clone(),
            revision,
            unsynced: Some(readiness.block("first sync")),
            unkept: false,
        };
        let mut tasks = TaskSet::new();
        tasks.spawn("sync", syncer.run(Shutdown::new()));
        let reporter = Reporter {
            state: state.clone(),
            own,
            streams: Arc::default(),
            revision: synced,
            report,
            has_run_before: false,
        };
        tasks.spawn("reporter", reporter.run(Shutdown::new()));
        Self { ca, state, readiness, report: reports, dir, _syncer: tasks }
    }

    async fn entries(&self, count: usize) {
        self.state.subscribe().wait_for(|snapshot| snapshot.synced && snapshot.entries.len() == count).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_at_the_next_poll() {
    let scene = Scene::start(|_| ());
    scene.readiness.wait_ready().await;
    let begun = tokio::time::Instant::now();
    scene.ca.entries.lock().unwrap().push(entry("a", "/a", &["unix:uid:1"]));
    scene.entries(1).await;
    assert!(begun.elapsed() <= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_the_ca_is_followed_at_once_and_acknowledged() {
    let (hint, hints) = mpsc::channel(1);
    let mut scene = Scene::start(|ca| *ca.hints.lock().unwrap() = Some(hints));
    scene.readiness.wait_ready().await;
    let begun = tokio::time::Instant::now();
    scene.ca.entries.lock().unwrap().push(entry("a", "/a", &["unix:uid:1"]));
    hint.send(Progress { bundle_sequence: 1, entries_revision: 7, revocations: 0 }).await.unwrap();
    scene.entries(1).await;
    let report = scene.report.wait_for(|report| report.entries_revision == 7).await.unwrap().clone();
    assert_eq!((report.enforced, report.fetched), (1, 1));
    assert!(begun.elapsed() < LOOK_PAUSE * 2);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_can_tell_is_asked_rarely_until_it_cannot() {
    let (hint, hints) = mpsc::channel(1);
    let scene = Scene::start(|ca| *ca.hints.lock().unwrap() = Some(hints));
    scene.readiness.wait_ready().await;
    hint.send(Progress { bundle_sequence: 1, entries_revision: 1, revocations: 0 }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Something that it does not tell.
    scene.ca.entries.lock().unwrap().push(entry("a", "/a", &["unix:uid:1"]));
    let begun = tokio::time::Instant::now();
    scene.entries(1).await;
    assert!((20..=30).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    scene.ca.entries.lock().unwrap().clear();
    let begun = tokio::time::Instant::now();
    drop(hint);
    scene.entries(0).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "the end of the stream is a reason to ask: {:?}",
        begun.elapsed()
    );
    scene.ca.entries.lock().unwrap().push(entry("b", "/b", &["unix:uid:1"]));
    let begun = tokio::time::Instant::now();
    scene.entries(1).await;
    assert!(begun.elapsed() <= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_outage_leaves_what_is_known_and_ends_by_itself() {
    let scene = Scene::start(|ca| ca.entries.lock().unwrap().push(entry("a", "/a", &["unix:uid:1"])));
    scene.entries(1).await;
    scene.ca.set_down(true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(scene.state.current().entries.len(), 1);
    scene.ca.entries.lock().unwrap().clear();
    scene.ca.set_down(false);
    scene.entries(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_bundle_is_served_stored_and_reported() {
    let scene = Scene::start(|_| ());
    scene.readiness.wait_ready().await;
    scene.ca.bundle.lock().unwrap().sequence = 2;
    let own = domain();
    let newer = |snapshot: &Arc<crate::state::Snapshot>| snapshot.bundles.get(&own).unwrap().sequence == 2;
    scene.state.subscribe().wait_for(newer).await.unwrap();
    // What the new bundle led to is told with the next sync.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(*scene.ca.posted.lock().unwrap(), [1, 2]);
    let stored = std::fs::read(scene.dir.path().join("bundle.json")).unwrap();
    assert_eq!(TrustBundle::parse_spiffe_json(domain(), &stored).unwrap().sequence, 2);
}

#[tokio::test(start_paused = true)]
async fn foreign_bundles_come_with_the_entries_that_need_them() {
    let foreign = TrustDomain::parse("other.org").unwrap();
    let scene = Scene::start(|ca| ca.federated.lock().unwrap().push(TrustBundle::new(foreign.clone())));
    scene.readiness.wait_ready().await;
    assert!(scene.state.current().bundles.get(&foreign).is_none());
    let federated = changed(&entry("a", "/a", &["unix:uid:1"]), |entry| {
        entry.federates_with.insert(foreign.clone());
    });
    scene.ca.entries.lock().unwrap().push(federated);
    scene.entries(1).await;
    assert!(scene.state.current().bundles.get(&foreign).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_fetched_at_the_hint_and_reported_as_enforced() {
    let (hint, hints) = mpsc::channel(1);
    let mut scene = Scene::start(|ca| *ca.hints.lock().unwrap() = Some(hints));
    scene.readiness.wait_ready().await;
    let begun = tokio::time::Instant::now();
    scene.ca.revoke(&["0a"]);
    hint.send(Progress { bundle_sequence: 1, entries_revision: 7, revocations: 1 }).await.unwrap();
    let report = scene.report.wait_for(|report| report.revocations == 1).await.unwrap().clone();
    assert_eq!(report.enforced, 1);
    assert!(begun.elapsed() < LOOK_PAUSE * 2);
    let snapshot = scene.state.current();
    assert!(snapshot.revocations.revokes_certificates());
    assert!(snapshot.bundles.revocations(&domain()).is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_hint_a_revocation_is_seen_at_the_next_poll_and_a_bad_list_keeps_the_old_one() {
    let scene = Scene::start(|ca| drop(ca.revoke(&["0a"])));
    scene.readiness.wait_ready().await;
    assert_eq!(scene.state.current().revocations.generation, 1);
    let mut bad = scene.ca.revoke(&["0b"]);
    bad.lists[0].1.truncate(10);
    *scene.ca.revocations.lock().unwrap() = Some(bad);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(scene.state.current().revocations.generation, 1);
    scene.ca.revoke(&["0a", "0b"]);
    let known = |snapshot: &Arc<crate::state::Snapshot>| snapshot.revocations.generation == 3;
    scene.state.subscribe().wait_for(known).await.unwrap();
}

/// A list past its next update refuses everybody; the CA is known all the same, or no newer one would ever come.
#[tokio::test(start_paused = true)]
async fn the_ca_is_known_without_lists() {
    let scene = Scene::start(|ca| drop(ca.revoke(&["0a"])));
    scene.readiness.wait_ready().await;
    let own = NodeIdentity::new(scene.state.clone());
    assert!(scene.state.current().bundles.revocations(&domain()).is_some());
    assert!(identity::tls::Snapshot::bundles(&own).revocations(&domain()).is_none());
    assert_eq!(identity::tls::Snapshot::bundles(&own).len(), scene.state.current().bundles.len());
}
