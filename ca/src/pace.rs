//! The moments at which chores look whether time has brought something. They are the same for all chores, so that a process at
//! rest wakes once for all of them.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// The next of the moments that lie `every` apart; never later than that from now.
pub(crate) fn next(every: Duration) -> Instant {
    after(*START, Instant::now(), every)
}

/// Waits for it.
pub(crate) async fn pause(every: Duration) {
    tokio::time::sleep_until(next(every)).await;
}

fn after(start: Instant, now: Instant, every: Duration) -> Instant {
    let passed = now.saturating_duration_since(start).as_nanos();
    let since = passed.checked_rem(every.as_nanos()).unwrap_or_default();
    now + every.saturating_sub(Duration::from_nanos(u64::try_from(since).unwrap_or_default()))
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chores_of_different_paces_meet() {
        let start = Instant::now();
        let check = |passed: u64, every: u64, expected: u64| {
            let (passed, every) = (Duration::from_millis(passed), Duration::from_millis(every));
            assert_eq!(after(start, start + passed, every), start + Duration::from_millis(expected));
        };
        check(0, 5_000, 5_000);
        check(4_999, 5_000, 5_000);
        check(5_000, 5_000, 10_000);
        check(5_001, 10_000, 10_000);
        check(61_234, 60_000, 120_000);
        check(10, 0, 10);
        // As when the clock of a test stands still.
        assert_eq!(
            after(start + Duration::from_secs(9), start, Duration::from_secs(5)),
            start + Duration::from_secs(5)
        );
    }
}
