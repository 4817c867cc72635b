//! What is to be renewed when. No clock, no dice: both are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use identity::renewal::retry_wait;

use super::Prepared;
use crate::entry::Entries;
use crate::state::Held;

/// One job for each entry.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug)]
struct Job {
    revision: i64,
    due: SystemTime,
    failures: u32,
    expires: Option<SystemTime>,
    prepared: Option<Box<Prepared>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Waited,
    Live { expires: SystemTime },
    WarmUp,
}

impl Schedule {
    /// New and changed entries are due at once unless an earlier process left an SVID for them, removed ones forgotten.
    pub(super) fn align(&mut self, entries: &Entries, held: &BTreeMap<String, Held>, now: SystemTime) {
        self.jobs.retain(|id, _| entries.get(id).is_some());
        for entry in entries.iter() {
            let fresh = || {
                let held = held.get(&entry.id);
                let current = held.filter(|held| held.revision == entry.revision);
                Job {
                    revision: entry.revision,
                    due: current.map_or(now, |held| held.renew_at),
                    failures: 0,
                    expires: held.map(|held| held.svid.not_after()),
                    prepared: None,
                }
            };
            let job = self.jobs.entry(entry.id.clone()).or_insert_with(fresh);
            if job.revision != entry.revision {
                (job.revision, job.due, job.failures) = (entry.revision, now, 0);
            }
            if job.failures > 0 {
                // Longer than that is waited only after the clock was set back.
                job.due = job.due.min(now + RETRY_WAIT_MAX);
            }
            // Told once; without this `next` would stay in the past.
            job.expires = job.expires.filter(|expires| *expires > now);
        }
    }

    /// The jobs to do now, not more than `max`: first those that somebody waits for, then renewals by the end of what is
    /// held, last what nobody has asked for yet; the longest due first.
    pub(super) fn due(&self, now: SystemTime, max: usize, waited_for: &BTreeSet<String>) -> Vec<String> {
        let urgency = |id: &String, job: &Job| match (waited_for.contains(id), job.expires) {
            (true, _) => Urgency::Waited,
            (false, Some(expires)) => Urgency::Live { expires },
            (false, None) => Urgency::WarmUp,
        };
        let due = self.jobs.iter().filter(|(_, job)| job.due <= now);
        let mut due: Vec<_> = due.map(|(id, job)| (urgency(id, job), job.due, id)).collect();
        due.sort_unstable();
        due.into_iter().take(max).map(|(_, _, id)| id.clone()).collect()
    }

    /// When there is something to do: the next renewal, or an SVID expires.
    pub(super) fn next(&self) -> Option<SystemTime> {
        self.jobs.values().flat_map(|job| [Some(job.due), job.expires]).flatten().min()
    }

    pub(super) fn renew_now(&mut self, id: &str, now: SystemTime) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.due = job.due.min(now);
        }
    }

    /// The key made beforehand, or a new one; `None` for an unknown job or when the machine makes no keys.
    pub(super) fn take_prepared(&mut self, id: &str) -> Option<Prepared> {
        self.jobs.get_mut(id)?.prepared.take().map_or_else(Prepared::new, |prepared| Some(*prepared))
    }

    /// Makes the keys that will be needed next. Keys are never used twice: a failed attempt gets a new one too.
    pub(super) fn prepare(&mut self) {
        let mut next: Vec<_> = self.jobs.iter().map(|(id, job)| (job.due, id.clone())).collect();
        next.sort_unstable();
        for (_, id) in next.into_iter().take(PREPARED_MAX) {
            if let Some(job) = self.jobs.get_mut(&id).filter(|job| job.prepared.is_none()) {
                job.prepared = Prepared::new().map(Box::new);
            }
        }
    }

    pub(super) fn succeeded(&mut self, id: &str, revision: i64, renew_at: SystemTime, expires: SystemTime) {
        if let Some(job) = self.jobs.get_mut(id) {
            (job.failures, job.expires) = (0, Some(expires));
            // An entry that changed while the CA signed stays due.
            if job.revision == revision {
                job.due = renew_at;
            }
        }
    }

    /// Tries again with back-off, but often enough that a short life still sees several tries.
    pub(super) fn failed(&mut self, id: &str, now: SystemTime, dice: f64) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.failures = job.failures.saturating_add(1);
            let left = job.expires.and_then(|expires| expires.duration_since(now).ok());
            let wait_max = left.map_or(RETRY_WAIT_MAX, |left| (left / 4).clamp(RETRY_WAIT_BASE, RETRY_WAIT_MAX));
            job.due = now + retry_wait(job.failures, RETRY_WAIT_BASE, wait_max, dice);
        }
    }
}

/// Keys that lie ready; more would only take memory.
pub(crate) const PREPARED_MAX: usize = 64;
const RETRY_WAIT_BASE: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
pub(crate) const RETRY_WAIT_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::entry::tests::{decode, wire};

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn entries(revisions: &[(&str, i64)]) -> Entries {
        Entries::new(revisions.iter().map(|(id, revision)| {
            decode(proto::spire::api::types::Entry { revision_number: *revision, ..wire(id, "/x", &["unix:uid:1"]) })
        }))
    }

    #[test]
    fn a_new_entry_is_due_at_once_and_a_renewed_one_at_its_moment() {
        let mut schedule = Schedule::default();
        schedule.align(&entries(&[("a", 0), ("b", 0)]), &BTreeMap::new(), at(100));
        assert_eq!(schedule.due(at(100), 10, &BTreeSet::new()), ["a", "b"]);
        assert_eq!(schedule.due(at(100), 1, &BTreeSet::new()), ["a"]);
        schedule.succeeded("a", 0, at(150), at(200));
        assert_eq!(schedule.due(at(149), 10, &BTreeSet::new()), ["b"]);
        schedule.succeeded("b", 0, at(180), at(260));
        assert_eq!(schedule.next(), Some(at(150)));
        assert_eq!(schedule.due(at(150), 10, &BTreeSet::new()), ["a"]);
    }

    #[test]
    fn a_changed_entry_is_due_again_and_a_removed_one_forgotten() {
        let mut schedule = Schedule::default();
        schedule.align(&entries(&[("a", 0), ("b", 0)]), &BTreeMap::new(), at(0));
        for id in ["a", "b"] {
            schedule.succeeded(id, 0, at(50), at(100));
        }
        schedule.align(&entries(&[("a", 1)]), &BTreeMap::new(), at(10));
        assert_eq!(schedule.due(at(10), 10, &BTreeSet::new()), ["a"]);
        schedule.succeeded("a", 0, at(60), at(110));
        assert_eq!(schedule.due(at(10), 10, &BTreeSet::new()), ["a"], "the SVID was of the old revision");
        schedule.align(&entries(&[]), &BTreeMap::new(), at(20));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn an_expiry_is_told_once() {
        let mut schedule = Schedule::default();
        schedule.align(&entries(&[("a", 0)]), &BTreeMap::new(), at(0));
        schedule.succeeded("a", 0, at(500), at(100));
        assert_eq!(schedule.next(), Some(at(100)));
        schedule.align(&entries(&[("a", 0)]), &BTreeMap::new(), at(100));
        assert_eq!(schedule.next(), Some(at(500)));
    }

    #[test]
    fn failures_back_off_and_a_short_life_is_tried_often() {
        let mut schedule = Schedule::default();
        schedule.align(&entries(&[("a", 0)]), &BTreeMap::new(), at(0));
        let wait = |schedule: &mut Schedule, now: SystemTime| {
            schedule.failed("a", now, 1.0);
            schedule.next().unwrap().duration_since(now).unwrap()
        };
        let waits: Vec<_> = (0..7).map(|_| wait(&mut schedule, at(0)).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        schedule.succeeded("a", 0, at(10), at(20));
        for _ in 0..5 {
            assert!(wait(&mut schedule, at(10)) <= Duration::from_millis(2500));
        }
    }

    #[test]
    fn who_waits_comes_before_live_traffic_and_that_before_warm_up() {
        let mut schedule = Schedule::default();
        let all = entries(&[("a", 0), ("b", 0), ("c", 0), ("d", 0)]);
        schedule.align(&all, &BTreeMap::new(), at(0));
        schedule.succeeded("b", 0, at(10), at(40));
        schedule.succeeded("c", 0, at(10), at(30));
        let waited_for = BTreeSet::from(["d".to_owned()]);
        assert_eq!(schedule.due(at(20), 10, &waited_for), ["d", "c", "b", "a"]);
        assert_eq!(schedule.due(at(20), 1, &waited_for), ["d"]);
        assert_eq!(schedule.due(at(20), 10, &BTreeSet::new()), ["c", "b", "a", "d"]);
    }

    #[test]
    fn keys_lie_ready_for_what_is_due_next_and_not_for_all() {
        let mut schedule = Schedule::default();
        let names: Vec<String> = (0..PREPARED_MAX + 5).map(|at| format!("{at:03}")).collect();
        let all: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 0)).collect();
        schedule.align(&entries(&all), &BTreeMap::new(), at(0));
        for (secs, name) in names.iter().rev().enumerate() {
            schedule.succeeded(name, 0, at(100 + secs as u64), at(1000));
        }
        schedule.prepare();
        let ready: Vec<&String> =
            schedule.jobs.iter().filter(|(_, job)| job.prepared.is_some()).map(|(id, _)| id).collect();
        assert_eq!(ready, names[5..].iter().collect::<Vec<_>>());
        assert!(schedule.take_prepared("000").is_some(), "the others are made when they are needed");
    }
}
