//! What is kept comes back, and what was meddled with does not.

use std::time::Duration;

use runtime::clock::Clock;

use super::*;
use crate::fake::{FakeCa, changed, domain, entry, start};
use crate::metrics::ReasonLabels;
use crate::state::Held;

fn cache(dir: &tempfile::TempDir) -> Cache {
    Cache::open(&CacheSettings::default(), dir.path(), &domain()).unwrap().unwrap()
}

/// What was kept, with the SVIDs, as a start takes it up.
pub(crate) fn kept(cache: &Cache, clock: Clock) -> Option<Arc<Snapshot>> {
    let (stored, svids) = cache.load()?;
    let own = stored.bundles.get(&cache.trust_domain)?;
    let state = State::new(identity::TrustBundle::clone(own));
    state.restore(stored);
    svids.restore(&state, clock);
    Some(state.current())
}

/// Where the head begins.
fn head_of(sealed: &[u8]) -> usize {
    let (rest, length) = sealed.split_last_chunk().unwrap();
    rest.len() - usize::try_from(u64::from_be_bytes(*length)).unwrap()
}

/// A state that holds one SVID of `ttl` for each of `ids`.
fn state(ca: &FakeCa, ids: &[&str]) -> Arc<State> {
    let marked = |id: &&str| {
        changed(&entry(id, &format!("/{id}"), &["unix:uid:1", "unix:gid:2"]), |entry| {
            (entry.hint, entry.revision) = (format!("hint {id}"), 3);
        })
    };
    let state = ca.synced_state(ids.iter().map(marked));
    let entries = state.current().entries.clone();
    let held = entries.iter().map(|entry| {
        let prepared = crate::rotation::Prepared::new().unwrap();
        let chain = ca.sign(&entry.spiffe_id, &prepared.csr());
        let svid = Arc::new(prepared.into_svid(chain).unwrap());
        (entry.id.clone(), Held { renew_at: svid.not_before(), svid, revision: entry.revision })
    });
    assert!(state.put_held(held.collect()).is_empty());
    state
}

#[tokio::test(start_paused = true)]
async fn what_is_known_and_held_comes_back_whole() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let state = state(&ca, &["a", "b"]);
    cache(&dir).save(&state.current()).unwrap();
    let before = state.current();
    let stored = kept(&cache(&dir), clock).unwrap();
    assert!(*stored.entries == *before.entries);
    assert_eq!(stored.bundles.get(&domain()), before.bundles.get(&domain()));
    for (id, held) in stored.held.iter() {
        let old = &before.held[id];
        assert_eq!((held.svid.facts(), held.svid.to_chain()), (old.svid.facts(), old.svid.to_chain()));
        assert_eq!(held.svid.key().pkcs8_der(), old.svid.key().pkcs8_der());
        assert_eq!((held.revision, held.renew_at), (old.revision, old.renew_at));
    }
    assert_eq!(stored.held.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_meanwhile_does_not_come_back() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    cache(&dir).save(&state(&ca, &["a"]).current()).unwrap();
    tokio::time::advance(Duration::from_secs(601)).await;
    let stored = kept(&cache(&dir), clock).unwrap();
    assert_eq!((stored.entries.len(), stored.held.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_file_of_others_damaged_or_under_another_key_is_not_used_and_shows_nothing() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let state = state(&ca, &["a"]);
    assert!(cache(&dir).load().is_none(), "no file yet");
    cache(&dir).save(&state.current()).unwrap();
    let file = dir.path().join(CACHE_FILE);
    let sealed = std::fs::read(&file).unwrap();
    let held = &state.current().held["a"].svid;
    for clear in [held.key().pkcs8_der(), b"spiffe://", b"unix"] {
        assert!(!sealed.windows(clear.len()).any(|window| window == clear), "{clear:?} can be read on disk");
    }
    for at in [0, 1, 30, sealed.len() / 2, sealed.len() - 20, sealed.len() - 1] {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        std::fs::write(&file, changed).unwrap();
        let held = kept(&cache(&dir), clock).map_or(0, |kept| kept.held.len());
        assert_eq!(held, 0, "byte {at} changed");
    }
    std::fs::write(&file, &sealed[..sealed.len() - 20]).unwrap();
    assert!(cache(&dir).load().is_none(), "cut short");
    std::fs::write(&file, &sealed).unwrap();
    let other = TrustDomain::parse("other.org").unwrap();
    assert!(Cache::open(&CacheSettings::default(), dir.path(), &other).unwrap().unwrap().load().is_none());
    assert!(cache(&dir).load().is_some());
    std::fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    assert!(cache(&dir).load().is_none(), "the key is lost");
}

#[tokio::test(start_paused = true)]
async fn keys_are_32_bytes_from_a_file_that_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credential");
    let settings = CacheSettings { enabled: true, key_file: Some(file.clone()) };
    let open = || Cache::open(&settings, dir.path(), &domain());
    assert_eq!(open().unwrap_err().reason(), "CACHE_KEY_BAD");
    for (len, good) in [(31, false), (32, true), (33, false)] {
        std::fs::write(&file, vec![7; len]).unwrap();
        assert_eq!(open().is_ok(), good, "{len} bytes");
    }
    let off = CacheSettings { enabled: false, ..CacheSettings::default() };
    assert!(Cache::open(&off, dir.path(), &domain()).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn each_change_is_written_and_a_full_disk_leaves_what_was_there() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let (state, shutdown, numbers) = (state(&ca, &["a"]), Shutdown::new(), Numbers::default());
    let mut tasks = runtime::tasks::TaskSet::new();
    tasks.spawn("cache", keep(Arc::new(cache(&dir)), state.clone(), numbers.clone(), shutdown.clone()));
    tokio::task::yield_now().await;
    *ca.entries.lock().unwrap() = vec![entry("a", "/a", &["unix:uid:1"]), entry("b", "/b", &["unix:uid:1"])];
    ca.publish(&state);
    let entries = || cache(&dir).load().map_or(0, |(stored, _)| stored.entries.len());
    while entries() != 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What stands where the new file is to be written makes every attempt fail, as no room would.
    std::fs::create_dir(dir.path().join("cache.new")).unwrap();
    std::fs::write(dir.path().join("cache.new/x"), "x").unwrap();
    let error = cache(&dir).save(&state.current()).unwrap_err();
    assert_eq!(error.reason(), "CACHE_NOT_WRITTEN");
    ca.entries.lock().unwrap().pop();
    ca.publish(&state);
    let failed = || numbers.write_failures.get_or_create(&ReasonLabels { reason: "CACHE_NOT_WRITTEN" }).get();
    while failed() == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(entries(), 2, "what was written before stays");
    std::fs::remove_dir_all(dir.path().join("cache.new")).unwrap();
    while entries() != 1 {
        // Nothing changes any more; room is enough.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    shutdown.trigger();
    tasks.run(&shutdown).await;
}

#[tokio::test(start_paused = true)]
async fn thousands_come_back_from_many_parts_and_a_damaged_part_costs_its_own_alone() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let ids: Vec<String> = (0..700).map(|number| format!("entry-{number:04}")).collect();
    let state = state(&ca, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    cache(&dir).save(&state.current()).unwrap();
    let before = state.current();
    let stored = kept(&cache(&dir), clock).unwrap();
    assert!(*stored.entries == *before.entries && stored.held.len() == before.held.len());
    assert!(stored.held.iter().all(|(id, held)| held.svid.leaf_der() == before.held[id].svid.leaf_der()));

    let file = dir.path().join(CACHE_FILE);
    let mut sealed = std::fs::read(&file).unwrap();
    let last = head_of(&sealed) - 10;
    sealed[last] ^= 1;
    std::fs::write(&file, &sealed).unwrap();
    let rest = kept(&cache(&dir), clock).unwrap();
    let lost = ids.iter().filter(|id| !rest.held.contains_key(*id)).count();
    assert!((1..200).contains(&lost), "{lost} of 700 are lost");
    assert!(rest.held.keys().all(|id| before.held.contains_key(id)) && rest.entries.len() == 700);
}

#[tokio::test(start_paused = true)]
async fn parts_of_another_file_or_place_do_not_open() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let file = dir.path().join(CACHE_FILE);
    let state = state(&ca, &["a"]);
    let [one, other] = [(); 2].map(|()| {
        cache(&dir).save(&state.current()).unwrap();
        std::fs::read(&file).unwrap()
    });
    assert_eq!(one.len(), other.len());
    // The head of one file with the parts of another that says the same.
    std::fs::write(&file, [&other[..head_of(&other)], &one[head_of(&one)..]].concat()).unwrap();
    assert!(cache(&dir).load().is_none());
    std::fs::write(&file, &one).unwrap();
    assert_eq!(kept(&cache(&dir), clock).unwrap().held.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_gets_its_own_before_all_are_read_and_all_of_its_own() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::following_timers(start()));
    let ca = FakeCa::new(clock, Duration::from_secs(600));
    let ids: Vec<String> = (0..700).map(|number| format!("entry-{number:04}")).collect();
    let before = state(&ca, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    cache(&dir).save(&before.current()).unwrap();
    let (stored, svids) = cache(&dir).load().unwrap();
    let state = State::new(identity::TrustBundle::clone(stored.bundles.get(&domain()).unwrap()));
    state.restore(stored);
    let known = state.current();
    let [first, last] = ["entry-0010", "entry-0690"].map(|id| known.entries.get(id).unwrap().clone());
    let both = [first, last];
    assert!(known.is_restoring(&both));
    let waiting = state.wait_for(&both);
    let mut changes = state.subscribe();
    svids.restore(&state, clock);
    drop(waiting);
    let now = changes.borrow_and_update().clone();
    assert!(!now.is_restoring(&both) && now.svids_of(&both, clock.now()).len() == 2 && now.held.len() == 700);
}
