//! When to renew, and how long to wait after a failure. Arithmetic only: the dice and the clock are arguments.

use std::time::{Duration, SystemTime};

/// The moment to renew a document valid from `valid_from` to `not_after`: half of its life, ±10 %.
///
/// `jitter` lies in 0..1 and moves the moment from 45 % to 55 % of the life, so that a fleet started together does not
/// renew together. Give as `valid_from` the later of `not_before` and the moment the document arrived: a backdated
/// `not_before` of a short-lived document would otherwise put the moment into the past.
pub fn renew_at(valid_from: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(valid_from).unwrap_or(Duration::ZERO);
    valid_from + life.mul_f64(0.45 + 0.1 * clamp_dice(jitter))
}

/// The same where the authority gave advice: its moment, if that lies between a quarter and two thirds of the life. Any other
/// advice counts for nothing: no authority may make its clients ask all the time, or too late.
pub fn renew_at_advised(
    valid_from: SystemTime,
    not_after: SystemTime,
    advice: Option<SystemTime>,
    jitter: f64,
) -> SystemTime {
    let life = not_after.duration_since(valid_from).unwrap_or(Duration::ZERO);
    let bounds = valid_from + life / 4..=valid_from + life * 2 / 3;
    match advice.filter(|moment| !life.is_zero() && bounds.contains(moment)) {
        Some(moment) => moment,
        None => renew_at(valid_from, not_after, jitter),
    }
}

/// How long to wait after the given number of failures in a row (1 for the first): doubling from `base` up to `max`,
/// then between half and the whole of that by the dice in 0..1.
pub fn retry_wait(failures: u32, base: Duration, max: Duration, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = base.saturating_mul(1_u32 << doublings).min(max);
    full.mul_f64(0.5 + 0.5 * clamp_dice(jitter))
}

fn clamp_dice(jitter: f64) -> f64 {
    if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn renews_at_half_life_give_or_take_ten_percent() {
        assert_eq!(renew_at(at(1000), at(4600), 0.5), at(2800));
        assert_eq!(renew_at(at(0), at(1000), 0.0), at(450));
        assert_eq!(renew_at(at(0), at(1000), 1.0), at(550));
    }

    #[test]
    fn advice_counts_between_a_quarter_and_two_thirds_of_the_life() {
        let advised = |secs| renew_at_advised(at(1000), at(1600), Some(at(secs)), 0.5);
        for good in [1150, 1200, 1300, 1400] {
            assert_eq!(advised(good), at(good));
        }
        for bad in [0, 999, 1000, 1149, 1401, 1600, 1700] {
            assert_eq!(advised(bad), at(1300), "{bad}");
        }
        assert_eq!(renew_at_advised(at(1000), at(1600), None, 0.5), at(1300));
        assert_eq!(renew_at_advised(at(10), at(5), Some(at(10)), 0.5), at(10));
    }

    #[test]
    fn the_moment_stays_within_the_life_for_any_dice() {
        for jitter in [-1.0, 0.0, 0.999, 7.0, f64::NAN, f64::INFINITY] {
            let moment = renew_at(at(100), at(160), jitter);
            assert!(at(100) < moment && moment < at(160));
        }
        assert_eq!(renew_at(at(10), at(5), 0.3), at(10));
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        let secs = Duration::from_secs;
        let waits: Vec<_> = (1..=5).map(|n| retry_wait(n, secs(1), secs(8), 1.0)).collect();
        assert_eq!(waits, [1, 2, 4, 8, 8].map(secs));
        assert_eq!(retry_wait(u32::MAX, secs(1), secs(8), 0.0), secs(4));
    }
}
