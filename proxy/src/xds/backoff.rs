//! How long to wait before connecting again: doubling, jittered, bounded.

use std::time::Duration;

/// The waits of one connection.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    seed: u64,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self { next: WAIT_MIN, seed: seed | 1 }
    }

    /// The next wait: between half and all of the doubled one before.
    pub(crate) fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = (self.next * 2).min(WAIT_MAX);
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let share = (self.seed >> 11) as f64 / (1_u64 << 53) as f64;
        full.mul_f64(0.5 + share / 2.0)
    }

    /// The connection worked: begin with short waits again.
    pub(crate) fn reset(&mut self) {
        self.next = WAIT_MIN;
    }
}

const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(7);
        let mut full = WAIT_MIN;
        for _ in 0..12 {
            let wait = backoff.wait();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(WAIT_MAX);
        }
        backoff.reset();
        assert!(backoff.wait() <= WAIT_MIN);
    }
}
