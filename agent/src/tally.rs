//! Counting what each process and each user holds, so that none of them can use up what is there for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A count with three limits. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Tally(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: TallyLimits,
    counts: Mutex<Counts>,
}

/// How much there may be at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TallyLimits {
    pub(crate) total: usize,
    pub(crate) per_user: usize,
    pub(crate) per_process: usize,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_pid: HashMap<i32, usize>,
    by_uid: HashMap<u32, usize>,
}

/// One counted thing.
#[derive(Debug)]
pub(crate) struct TallyGuard {
    tally: Tally,
    pid: i32,
    uid: u32,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// Whose.
    pub(crate) of: &'static str,
}

impl Tally {
    pub(crate) fn new(limits: TallyLimits) -> Self {
        Self(Arc::new(Shared { limits, counts: Mutex::default() }))
    }

    /// Counts one more for process `pid` of user `uid` until the guard is dropped.
    pub(crate) fn count(&self, pid: i32, uid: u32) -> Result<TallyGuard, Full> {
        let limits = self.0.limits;
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= limits.total {
            return Err(Full { of: "of all workloads" });
        }
        if counts.by_pid.get(&pid).copied().unwrap_or(0) >= limits.per_process {
            return Err(Full { of: "of this process" });
        }
        if counts.by_uid.get(&uid).copied().unwrap_or(0) >= limits.per_user {
            return Err(Full { of: "of this user" });
        }
        *counts.by_pid.entry(pid).or_default() += 1;
        *counts.by_uid.entry(uid).or_default() += 1;
        counts.total += 1;
        Ok(TallyGuard { tally: self.clone(), pid, uid })
    }
}

impl Drop for TallyGuard {
    fn drop(&mut self) {
        let mut counts = self.tally.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        lower(&mut counts.by_pid, &self.pid);
        lower(&mut counts.by_uid, &self.uid);
    }
}

fn lower<K: Copy + Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get(key).copied() {
        Some(own) if own > 1 => counts.insert(*key, own - 1),
        _ => counts.remove(key),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_limited_by_process_by_user_and_in_total() {
        let tally = Tally::new(TallyLimits { total: 7, per_user: 4, per_process: 3 });
        let mut held: Vec<_> = (0..3).map(|_| tally.count(1, 1000).unwrap()).collect();
        assert_eq!(tally.count(1, 1000).unwrap_err().of, "of this process");
        held.pop();
        held.push(tally.count(1, 1000).unwrap());
        held.push(tally.count(2, 1000).unwrap());
        assert_eq!(tally.count(3, 1000).unwrap_err().of, "of this user", "more processes are of no use");
        held.extend((0..3).map(|pid| tally.count(100 + pid, 0).unwrap()));
        assert_eq!(tally.count(200, 2000).unwrap_err().of, "of all workloads");
        drop(held);
        let counts = tally.0.counts.lock().unwrap();
        assert_eq!((counts.total, counts.by_pid.len(), counts.by_uid.len()), (0, 0, 0));
    }
}
