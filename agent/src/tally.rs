//! Counting what each process holds, so that none of them can use up what is there for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A count with two limits. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Tally(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total_max: usize,
    per_process_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_pid: HashMap<i32, usize>,
}

/// One counted thing.
#[derive(Debug)]
pub(crate) struct TallyGuard {
    tally: Tally,
    pid: i32,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// Whose.
    pub(crate) of: &'static str,
}

impl Tally {
    pub(crate) fn new(total_max: usize, per_process_max: usize) -> Self {
        Self(Arc::new(Shared { total_max, per_process_max, counts: Mutex::default() }))
    }

    /// Counts one more for `pid` until the guard is dropped.
    pub(crate) fn count(&self, pid: i32) -> Result<TallyGuard, Full> {
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= self.0.total_max {
            return Err(Full { of: "of all workloads" });
        }
        let own = counts.by_pid.get(&pid).copied().unwrap_or(0);
        if own >= self.0.per_process_max {
            return Err(Full { of: "of this process" });
        }
        counts.by_pid.insert(pid, own + 1);
        counts.total += 1;
        Ok(TallyGuard { tally: self.clone(), pid })
    }
}

impl Drop for TallyGuard {
    fn drop(&mut self) {
        let mut counts = self.tally.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        match counts.by_pid.get(&self.pid).copied() {
            Some(own) if own > 1 => counts.by_pid.insert(self.pid, own - 1),
            _ => counts.by_pid.remove(&self.pid),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_limited_by_process_and_in_total() {
        let tally = Tally::new(5, 3);
        let mut held: Vec<_> = (0..3).map(|_| tally.count(1).unwrap()).collect();
        assert_eq!(tally.count(1).unwrap_err().of, "of this process");
        held.pop();
        held.push(tally.count(1).unwrap());
        held.extend((0..2).map(|pid| tally.count(100 + pid).unwrap()));
        assert_eq!(tally.count(2).unwrap_err().of, "of all workloads");
        drop(held);
        let counts = tally.0.counts.lock().unwrap();
        assert_eq!((counts.total, counts.by_pid.len()), (0, 0));
    }
}
