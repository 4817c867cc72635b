//! The one place that reads the wall clock.
//!
//! Code that waits for a moment in time takes a [`Clock`], so that a test on tokio's paused time sees
//! the wall clock move together with the timers.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Where a part reads the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    System,
    /// The machine's clock, ahead by a number of seconds.
    Shifted(&'static AtomicI64),
    /// Wall time = `start` + what tokio's (possibly paused) clock has advanced since `origin`.
    Following {
        start: SystemTime,
        origin: tokio::time::Instant,
    },
}

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that begins at `start` and moves with tokio's timers.
    pub fn following_timers(start: SystemTime) -> Self {
        Self(Source::Following { start, origin: tokio::time::Instant::now() })
    }

    /// The machine's clock, set ahead by `secs` (negative: back) as somebody else may do at any time.
    pub const fn shifted(secs: &'static AtomicI64) -> Self {
        Self(Source::Shifted(secs))
    }

    /// Time since some moment, on a clock that nobody sets and that goes on while the machine sleeps.
    pub fn steady(&self) -> Duration {
        match self.0 {
            Source::Following { origin, .. } => origin.elapsed(),
            Source::System | Source::Shifted(_) => since_boot(),
        }
    }

    /// The time of day.
    pub fn now(&self) -> SystemTime {
        match self.0 {
            Source::System => SystemTime::now(),
            Source::Shifted(secs) => {
                let (secs, now) = (secs.load(Ordering::Relaxed), SystemTime::now());
                let by = Duration::from_secs(secs.unsigned_abs());
                if secs < 0 { now - by } else { now + by }
            }
            Source::Following { start, origin } => start + origin.elapsed(),
        }
    }

    /// This moment, to be compared with a later one.
    pub fn moment(&self) -> Moment {
        Moment { wall: self.now(), steady: self.steady() }
    }

    /// Whether somebody has set the clock back since then. What was reckoned by the time of before may then lie far ahead.
    pub fn was_set_back_since(&self, then: Moment) -> bool {
        let expected = then.wall + self.steady().saturating_sub(then.steady);
        expected.duration_since(self.now()).is_ok_and(|back| back > SET_BACK_MIN)
    }

    /// Sleeps until `moment` of the wall clock; at once when it has passed, and not longer than until the clock is set back:
    /// who waits looks again then.
    ///
    /// The wall clock may be set while we wait, therefore no single nap is longer than [`NAP_MAX`].
    pub async fn sleep_until(&self, moment: SystemTime) {
        let begun = self.moment();
        while let Ok(left) = moment.duration_since(self.now()) {
            if left.is_zero() || self.was_set_back_since(begun) {
                return;
            }
            tokio::time::sleep(left.min(NAP_MAX)).await;
        }
    }
}

/// A moment on both clocks: the one that may be set, and the one that nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    steady: Duration,
}

/// Time since the machine was started, its sleep included (`CLOCK_BOOTTIME`).
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

/// The machine's time of day.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Whole seconds since 1970; 0 for earlier moments.
pub fn unix_secs(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The moment `secs` after 1970; negative values count as 1970 and absurd ones as the year 9999.
pub fn from_unix_secs(secs: i64) -> SystemTime {
    let secs = u64::try_from(secs).unwrap_or(0).min(UNIX_SECS_MAX);
    UNIX_EPOCH + Duration::from_secs(secs)
}

/// RFC 3339 in UTC with whole seconds, as every printed time of ours.
pub fn rfc3339(moment: SystemTime) -> String {
    humantime::format_rfc3339_seconds(moment.min(from_unix_secs(i64::MAX))).to_string()
}

/// The longest single nap of [`Clock::sleep_until`].
pub const NAP_MAX: Duration = Duration::from_secs(10);
/// Less than that is a correction and no other time.
const SET_BACK_MIN: Duration = Duration::from_secs(5);
/// 9999-12-31T23:59:59Z, the last moment that RFC 3339 can write.
const UNIX_SECS_MAX: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_following_clock_moves_with_the_timers() {
        let start = from_unix_secs(1_700_000_000);
        let clock = Clock::following_timers(start);
        clock.sleep_until(start + Duration::from_secs(3600)).await;
        assert_eq!(unix_secs(clock.now()), 1_700_003_600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_in_the_past_is_not_waited_for() {
        let clock = Clock::following_timers(from_unix_secs(1_000));
        clock.sleep_until(from_unix_secs(10)).await;
        assert_eq!(unix_secs(clock.now()), 1_000);
    }

    #[test]
    fn a_clock_that_is_set_moves_and_the_steady_one_does_not() {
        static SHIFT: AtomicI64 = AtomicI64::new(0);
        let clock = Clock::shifted(&SHIFT);
        let (wall, steady) = (clock.now(), clock.steady());
        SHIFT.store(-172_800, Ordering::Relaxed);
        assert!(wall.duration_since(clock.now()).unwrap() > Duration::from_secs(172_000));
        assert!(clock.steady() >= steady && clock.steady() - steady < Duration::from_secs(600));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_moment_of_the_time_before_the_clock_was_set_back() {
        static SHIFT: AtomicI64 = AtomicI64::new(3600);
        let clock = Clock::shifted(&SHIFT);
        let (begun, due) = (clock.moment(), clock.now() + Duration::from_millis(1500));
        assert!(!clock.was_set_back_since(begun));
        SHIFT.store(0, Ordering::Relaxed);
        assert!(clock.was_set_back_since(begun));
        assert!(!clock.was_set_back_since(clock.moment()));
        SHIFT.store(3600, Ordering::Relaxed);
        let sleeping = async {
            clock.sleep_until(due).await;
            clock.now() < due
        };
        let (is_early, ()) = tokio::join!(sleeping, async { SHIFT.store(0, Ordering::Relaxed) });
        assert!(is_early, "it looks again soon, not in an hour");
    }

    #[test]
    fn times_are_written_in_utc_and_absurd_ones_do_not_panic() {
        assert_eq!(rfc3339(from_unix_secs(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(from_unix_secs(i64::MAX)), "9999-12-31T23:59:59Z");
        assert_eq!(from_unix_secs(i64::MIN), UNIX_EPOCH);
    }
}
