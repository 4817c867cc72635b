//! The rotator beside a CA in memory, on paused time.

use std::sync::atomic::Ordering;

use identity::TrustBundle;
use identity::authority::X509Authority;
use runtime::tasks::TaskSet;

use super::*;
use crate::fake::{FakeCa, changed, domain, entry, root, start};
use crate::state::CLOCKS_DIFFER_MAX;

struct Scene {
    ca: Arc<FakeCa>,
    state: Arc<State>,
    clock: Clock,
    numbers: Numbers,
    _rotator: TaskSet,
}

const TTL: Duration = Duration::from_secs(20);

impl Scene {
    fn start(entries: impl IntoIterator<Item = Arc<Entry>>) -> Self {
        let clock = Clock::following_timers(start());
        let ca = FakeCa::new(clock, TTL);
        let state = ca.synced_state(entries);
        let numbers = Numbers::default();
        let rotator =
            Rotator { ca: ca.clone(), state: state.clone(), clock, numbers: numbers.clone(), resync: Arc::default() };
        let mut tasks = TaskSet::new();
        tasks.spawn("rotation", rotator.run(Shutdown::new()));
        Self { ca, state, clock, numbers, _rotator: tasks }
    }

    /// The SVID held for `id` as soon as there is one.
    async fn held(&self, id: &str) -> Held {
        let mut changes = self.state.subscribe();
        changes.wait_for(|snapshot| snapshot.held.contains_key(id)).await.unwrap().held[id].clone()
    }

    /// The SVID that replaces the one held for `id`.
    async fn next(&self, id: &str) -> Held {
        let before = self.held(id).await.svid.serial().to_owned();
        let mut changes = self.state.subscribe();
        let found = changes.wait_for(|snapshot| snapshot.held.get(id).is_some_and(|held| held.svid.serial() != before));
        found.await.unwrap().held[id].clone()
    }

    fn publish(&self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        *self.ca.entries.lock().unwrap() = entries.into_iter().collect();
        self.ca.publish(&self.state);
    }
}

fn one() -> Arc<Entry> {
    entry("a", "/a", &["unix:uid:1"])
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_renewed_at_half_life_with_a_new_key_each_time() {
    let scene = Scene::start([one()]);
    let mut held = scene.held("a").await;
    let mut at = scene.clock.now();
    for _ in 0..5 {
        let next = scene.next("a").await;
        let waited = scene.clock.now().duration_since(at).unwrap();
        // Half of 20 s, ±10 %; a certificate ends on a whole second, which takes up to one second off its life.
        assert!((Duration::from_millis(8_550)..=Duration::from_millis(11_100)).contains(&waited), "{waited:?}");
        assert_ne!(next.svid.key().public_key_spki(), held.svid.key().public_key_spki());
        (held, at) = (next, scene.clock.now());
    }
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_renewed_when_the_ca_advises_if_that_is_not_too_early_or_too_late() {
    for (advice, expected) in [(7_000, 7_000..8_000), (1_000, 8_550..11_100), (17_000, 8_550..11_100)] {
        let scene = Scene::start([]);
        *scene.ca.advice.lock().unwrap() = Some(Duration::from_millis(advice));
        scene.publish([one()]);
        scene.held("a").await;
        let at = scene.clock.now();
        scene.next("a").await;
        let waited = scene.clock.now().duration_since(at).unwrap().as_millis();
        assert!(expected.contains(&waited), "advised {advice}, waited {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_ca_is_away_the_old_svid_serves_until_it_expires_and_not_longer() {
    let scene = Scene::start([one()]);
    let held = scene.held("a").await;
    scene.ca.set_down(true);
    let mut changes = scene.state.subscribe();
    changes.wait_for(|snapshot| !snapshot.held.contains_key("a")).await.unwrap();
    let late = scene.clock.now().duration_since(held.svid.not_after()).unwrap();
    assert!(late < Duration::from_secs(1), "{late:?}");
    scene.ca.set_down(false);
    let down_at = scene.clock.now();
    scene.held("a").await;
    assert!(scene.clock.now().duration_since(down_at).unwrap() <= schedule::RETRY_WAIT_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_not_noticed() {
    let scene = Scene::start([one()]);
    let held = scene.held("a").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    scene.ca.set_down(true);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(scene.held("a").await.svid.serial(), held.svid.serial());
    scene.ca.set_down(false);
    scene.next("a").await;
    assert!(scene.clock.now() < held.svid.not_after());
}

#[tokio::test(start_paused = true)]
async fn a_new_or_changed_entry_gets_its_svid_at_once() {
    let scene = Scene::start([one()]);
    scene.held("a").await;
    let begun = scene.clock.now();
    let both = [changed(&one(), |entry| entry.revision = 1), entry("b", "/b", &["unix:uid:2"])];
    let next = async { scene.next("a").await };
    let (next, ()) = tokio::join!(next, async { scene.publish(both) });
    scene.held("b").await;
    assert_eq!(next.revision, 1);
    assert!(scene.clock.now().duration_since(begun).unwrap() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_removed_entry_loses_its_svid_at_once() {
    let scene = Scene::start([one()]);
    scene.held("a").await;
    scene.publish([]);
    assert!(scene.state.current().held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_svid_whose_issuer_left_the_bundle_is_renewed_at_once() {
    let scene = Scene::start([one()]);
    let held = scene.held("a").await;
    let begun = scene.clock.now();
    let new_root = root(scene.clock);
    *scene.ca.bundle.lock().unwrap() =
        TrustBundle::from_x509_authorities(domain(), [new_root.certificate().clone()]).unwrap();
    *scene.ca.root.lock().unwrap() = new_root;
    let (next, ()) = tokio::join!(scene.next("a"), async { scene.ca.publish(&scene.state) });
    assert_ne!(next.svid.serial(), held.svid.serial());
    assert!(scene.clock.now().duration_since(begun).unwrap() < Duration::from_secs(1));
}

/// Both roots are trusted; `tainted` is marked, and `signs` signs from now on.
fn hand_over(scene: &Scene, sequence: u64, signs: X509Authority, tainted: bool) -> X509Authority {
    let old = std::mem::replace(&mut *scene.ca.root.lock().unwrap(), signs);
    let mut bundle = scene.ca.bundle.lock().unwrap();
    bundle.add_x509_authority(scene.ca.root.lock().unwrap().certificate().clone()).unwrap();
    bundle.sequence = sequence;
    if tainted {
        bundle.taint_x509_authority(old.certificate());
    }
    drop(bundle);
    scene.ca.publish(&scene.state);
    old
}

#[tokio::test(start_paused = true)]
async fn what_a_tainted_authority_signed_is_replaced_at_once_and_only_then_the_bundle_is_settled() {
    let scene = Scene::start([one()]);
    let before = scene.held("a").await;
    assert_eq!(scene.state.current().settled, 1);
    let begun = scene.clock.now();
    hand_over(&scene, 2, root(scene.clock), true);
    let snapshot = scene.state.current();
    assert!(!snapshot.is_clean(&before.svid));
    assert_eq!((snapshot.settled, snapshot.own_sequence(&domain())), (1, 2), "something is left to replace");
    let after = scene.next("a").await;
    assert!(scene.state.current().is_clean(&after.svid));
    assert_eq!(scene.state.current().settled, 2);
    assert!(scene.clock.now().duration_since(begun).unwrap() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_was_on_its_way_when_its_authority_was_tainted_is_not_taken() {
    let scene = Scene::start([one()]);
    let held = scene.held("a").await;
    let old = hand_over(&scene, 2, root(scene.clock), true);
    let fresh = scene.next("a").await;
    // The answer to a question that was asked before.
    let prepared = Prepared::new().unwrap();
    *scene.ca.root.lock().unwrap() = old;
    let late = prepared.csr();
    let late = prepared.into_svid(scene.ca.sign(held.svid.id(), &late)).unwrap();
    let refused = scene.state.put_held(vec![("a".into(), Held { svid: Arc::new(late), ..held })]);
    assert_eq!(refused, ["a"]);
    assert_eq!(scene.state.current().held["a"].svid.serial(), fresh.svid.serial());
    assert_eq!(scene.state.current().settled, 2);
}

#[tokio::test(start_paused = true)]
async fn an_svid_of_another_identity_is_not_taken() {
    let scene = Scene::start([]);
    scene.ca.wrong_id.store(true, Ordering::SeqCst);
    scene.publish([one()]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(scene.state.current().held.is_empty());
    scene.ca.wrong_id.store(false, Ordering::SeqCst);
    assert_eq!(scene.held("a").await.svid.id().path(), "/a");
}

#[tokio::test(start_paused = true)]
async fn many_entries_are_asked_for_in_batches() {
    let count = BATCH_MAX + 10;
    let entries = (0..count).map(|n| entry(&format!("e{n:04}"), &format!("/e/{n}"), &["unix:uid:1"]));
    let scene = Scene::start(entries);
    scene.state.subscribe().wait_for(|snapshot| snapshot.held.len() == count).await.unwrap();
    assert_eq!(*scene.ca.batches.lock().unwrap(), [BATCH_MAX, 10]);
    let ok = crate::metrics::RenewalLabels { of: Holder::workload, outcome: Outcome::ok };
    assert_eq!(scene.numbers.renewals.get_or_create(&ok).get(), count as u64);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_svid_is_dropped_at_once_and_replaced_while_its_entry_is_in_force() {
    let scene = Scene::start([one(), entry("b", "/b", &["unix:uid:2"])]);
    let (held, other) = (scene.held("a").await, scene.held("b").await);
    let begun = scene.clock.now();
    let news = scene.ca.revoke(&[held.svid.serial()]);
    let revocations = scene.state.current().revocations.with(news, 0).unwrap();
    scene.state.put_revocations(revocations);
    let snapshot = scene.state.current();
    assert!(!snapshot.held.contains_key("a") && snapshot.revokes(&held.svid) && !snapshot.revokes(&other.svid));
    let next = scene.held("a").await;
    assert_ne!(next.svid.serial(), held.svid.serial());
    assert!(scene.clock.now().duration_since(begun).unwrap() < Duration::from_secs(1));
    assert_eq!(scene.held("b").await.svid.serial(), other.svid.serial(), "the other is left alone");
    // It never comes back, also not from an answer that was on its way.
    assert_eq!(scene.state.put_held(vec![("a".into(), held)]), ["a"]);
    // A sync with another bundle keeps the lists.
    scene.ca.bundle.lock().unwrap().sequence = 9;
    scene.ca.publish(&scene.state);
    assert!(scene.state.current().bundles.revocations(&domain()).is_some());
}

/// Renewals of workloads' SVIDs that failed so far.
fn failed(scene: &Scene) -> u64 {
    let labels = crate::metrics::RenewalLabels { of: Holder::workload, outcome: Outcome::failed };
    scene.numbers.renewals.get_or_create(&labels).get()
}

#[tokio::test(start_paused = true)]
async fn a_ca_away_for_ten_minutes_with_a_minute_left_is_served_over_to_the_end_and_asked_without_a_storm() {
    let scene = Scene::start([]);
    *scene.ca.ttl.lock().unwrap() = Duration::from_secs(120);
    scene.publish([one()]);
    let held = scene.held("a").await;
    let left = Duration::from_secs(60);
    scene.clock.sleep_until(held.svid.not_after() - left - Duration::from_secs(10)).await;
    scene.ca.set_down(true);
    let gone_at = scene.clock.now();
    scene.clock.sleep_until(held.svid.not_after() - Duration::from_millis(10)).await;
    assert_eq!(scene.state.current().held["a"].svid.serial(), held.svid.serial(), "served to its last second");
    scene.clock.sleep_until(held.svid.not_after() + Duration::from_secs(1)).await;
    assert!(scene.state.current().held.is_empty(), "and no longer");
    scene.clock.sleep_until(gone_at + Duration::from_secs(600)).await;
    let tries = failed(&scene);
    assert!((30..=120).contains(&tries), "{tries} tries within ten minutes");
    scene.ca.set_down(false);
    let back_at = scene.clock.now();
    let fresh = scene.held("a").await;
    assert!(scene.clock.now().duration_since(back_at).unwrap() <= schedule::RETRY_WAIT_MAX);
    assert!(fresh.svid.not_after() > scene.clock.now());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_does_not_answer_is_asked_again_while_there_is_time() {
    let scene = Scene::start([one()]);
    let held = scene.held("a").await;
    scene.ca.silent.store(true, Ordering::SeqCst);
    let mut tries = failed(&scene);
    while failed(&scene) == tries {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = held.svid.not_after().duration_since(scene.clock.now()).unwrap();
    assert!(left > Duration::from_secs(3), "half of what was left is kept for the next try: {left:?}");
    tries = failed(&scene);
    while failed(&scene) == tries {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.ca.silent.store(false, Ordering::SeqCst);
    scene.next("a").await;
    assert!(scene.clock.now() < held.svid.not_after(), "there was no gap");
}

/// A CA whose clock is right beside a rotator whose clock is `secs` off; whether an SVID is held after a while.
async fn holds_with_clock_off(shift: &'static std::sync::atomic::AtomicI64, ttl: Duration) -> Option<Held> {
    let ca = FakeCa::new(Clock::system(), ttl);
    let state = ca.synced_state([one()]);
    let clock = Clock::shifted(shift);
    let (numbers, resync) = (Numbers::default(), Arc::default());
    let rotator = Rotator { ca, state: state.clone(), clock, numbers: numbers.clone(), resync };
    let mut tasks = TaskSet::new();
    tasks.spawn("rotation", rotator.run(Shutdown::new()));
    let tried = |outcome| {
        numbers.renewals.get_or_create(&crate::metrics::RenewalLabels { of: Holder::workload, outcome }).get()
    };
    while tried(Outcome::ok) + tried(Outcome::failed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    state.current().held.get("a").cloned()
}

#[tokio::test]
async fn a_clock_an_hour_behind_holds_what_others_find_valid_and_hands_it_out_when_it_is_right() {
    static SHIFT: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(-3600);
    let held = holds_with_clock_off(&SHIFT, Duration::from_secs(600)).await.unwrap();
    assert!(!held.is_valid(Clock::shifted(&SHIFT).now()) && held.is_valid(Clock::system().now()));
    let second = Duration::from_secs(1);
    let (begin, end) = (held.svid.not_before() - CLOCKS_DIFFER_MAX, held.svid.not_after());
    assert!(held.is_valid(begin) && !held.is_valid(begin - second));
    assert!(held.is_valid(end - second) && !held.is_valid(end));
}

#[tokio::test]
async fn a_clock_an_hour_ahead_is_named_instead_of_serving_what_has_ended_here() {
    static SHIFT: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(3600);
    assert!(holds_with_clock_off(&SHIFT, Duration::from_secs(600)).await.is_none());
    let long = holds_with_clock_off(&SHIFT, Duration::from_secs(4 * 3600)).await;
    assert!(long.is_some(), "a life longer than the difference is served");
    let held = long.unwrap();
    let entry = one();
    let by = check(&held.svid, &entry, held.svid.not_after()).unwrap_err();
    assert_eq!(by.reason(), "CLOCK_AHEAD");
    assert!(by.to_string().contains("timedatectl"), "{by}");
}
