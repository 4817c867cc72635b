//! When a bundle is fetched next. Arithmetic only: the moment and the dice are arguments.

use std::time::Duration;

use identity::renewal::retry_wait;

/// The pace of one relationship.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// Pause after a success.
    interval: Duration,
}

impl Schedule {
    /// By the hint of the newest bundle: [`INTERVAL_DEFAULT`] without one, never below [`INTERVAL_MIN`].
    pub(crate) fn of(hint: Option<Duration>) -> Self {
        Self { interval: hint.unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_MIN, INTERVAL_MAX) }
    }

    /// How long to wait after `failures` in a row (0 after a success). The dice (0 to 1) spread many authorities that
    /// began together; a wait is never shorter than the interval.
    pub(crate) fn wait(self, failures: u32, dice: f64) -> Duration {
        if failures == 0 {
            return self.interval + self.interval.mul_f64(JITTER * dice.clamp(0.0, 1.0));
        }
        // The shorter half of what `retry_wait` may answer is still one interval.
        let base = self.interval * 2;
        retry_wait(failures, base, base.max(BACK_OFF_MAX), dice)
    }
}

/// How often without a hint (SPIFFE Federation, section 4).
const INTERVAL_DEFAULT: Duration = Duration::from_secs(300);
/// How often at most.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// A key that is taken back must not be trusted for longer than this because of a hint.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
const BACK_OFF_MAX: Duration = Duration::from_secs(3600);
const JITTER: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_hint_is_followed_within_limits() {
        let wait = |hint: Option<u64>| Schedule::of(hint.map(secs)).wait(0, 0.0);
        assert_eq!(wait(None), secs(300));
        assert_eq!(wait(Some(120)), secs(120));
        assert_eq!(
            (wait(Some(0)), wait(Some(59)), wait(Some(60)), wait(Some(61))),
            (secs(60), secs(60), secs(60), secs(61))
        );
        assert_eq!(wait(Some(u64::MAX)), secs(86_400));
        assert_eq!(Schedule::of(None).wait(0, 1.0), secs(330));
    }

    #[test]
    fn failures_wait_longer_and_never_shorter_than_the_interval() {
        let schedule = Schedule::of(Some(secs(60)));
        assert_eq!((schedule.wait(1, 0.0), schedule.wait(1, 1.0)), (secs(60), secs(120)));
        assert_eq!((schedule.wait(2, 1.0), schedule.wait(3, 1.0)), (secs(240), secs(480)));
        assert_eq!(schedule.wait(u32::MAX, 1.0), secs(3600));
        let slow = Schedule::of(Some(secs(86_400)));
        assert!(slow.wait(9, 0.0) >= secs(86_400));
        assert!(slow.wait(9, f64::NAN) >= secs(86_400));
    }
}
