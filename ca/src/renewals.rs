//! When the holders of SVIDs are advised to renew them: agents keep to it where it lies in bounds
//! ([`identity::renewal::renew_at_advised`]), others do not see it.
//!
//! Who was issued together would renew together, again and again: after a taint or a restart of a fleet, for instance. The
//! authority knows what it has advised and picks, of a few moments around half of the life, the one with the fewest renewals.
//! While the root that signs is being replaced, it advises earlier moments: the more SVIDs lead to the new root when the old one
//! is tainted, the fewer have to be replaced at once then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What was advised: how many renewals will come when. Each replica knows its own.
#[derive(Debug, Default)]
pub(crate) struct Renewals(Mutex<BTreeMap<i64, u32>>);

impl Renewals {
    /// The moment to renew an SVID that is issued `now` and ends at `not_after`, all in Unix seconds; 0 for lives so short that
    /// whole seconds are too coarse. `dice` are as random as a serial number is; `early`: its authority is being replaced.
    pub(crate) fn advise(&self, now: i64, not_after: i64, dice: &[u8], early: bool) -> i64 {
        let (from, until) = if early { EARLY } else { USUAL };
        let life = not_after.saturating_sub(now);
        if life < LIFE_SECS_MIN {
            return 0;
        }
        let moment = |dice: &[u8]| {
            let dice = dice.iter().fold(0.0, |value, byte| (value + f64::from(*byte)) / 256.0);
            // At most the life itself, which is a whole number.
            now.saturating_add((life as f64 * (from + (until - from) * dice)) as i64)
        };
        let mut advised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while advised.first_key_value().is_some_and(|(slot, _)| *slot < now / SLOT_SECS) {
            advised.pop_first();
        }
        let load = |moment: &i64| advised.get(&(moment / SLOT_SECS)).copied().unwrap_or(0);
        let best = dice.chunks(2).take(TRIES).map(moment).min_by_key(load).unwrap_or(now + life / 2);
        let room = advised.len() < SLOTS_MAX;
        match advised.get_mut(&(best / SLOT_SECS)) {
            Some(count) => *count = count.saturating_add(1),
            None if room => {
                advised.insert(best / SLOT_SECS, 1);
            }
            None => (),
        }
        best
    }
}

/// In which part of a life SVIDs are renewed.
const USUAL: (f64, f64) = (0.45, 0.55);
/// The same while the authority is being replaced.
const EARLY: (f64, f64) = (0.3, 0.4);
/// The shortest life that there is advice for.
const LIFE_SECS_MIN: i64 = 60;
/// How many moments are looked at.
const TRIES: usize = 4;
const SLOT_SECS: i64 = 8;
/// The most slots that are counted: a day and a half.
const SLOTS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use identity::digest;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const HOUR: i64 = 3_600;

    fn advised(renewals: &Renewals, early: bool) -> i64 {
        renewals.advise(NOW, NOW + HOUR, &digest::random::<16>(), early)
    }

    #[test]
    fn renewals_of_one_moment_are_spread_evenly_around_half_of_the_life() {
        let renewals = Renewals::default();
        let count = 9_000;
        for _ in 0..count {
            let moment = advised(&renewals, false);
            assert!((NOW + HOUR * 9 / 20..=NOW + HOUR * 11 / 20).contains(&moment), "{moment}");
        }
        let slots = renewals.0.lock().unwrap();
        let mean = count / (HOUR / 10 / SLOT_SECS);
        // By chance alone the fullest of 45 slots would have about a sixth more than the mean.
        let most = i64::from(*slots.values().max().unwrap());
        assert!(most <= mean * 11 / 10, "{most} where {mean} are fair");
    }

    #[test]
    fn while_an_authority_is_replaced_renewals_come_earlier() {
        let renewals = Renewals::default();
        for _ in 0..100 {
            let moment = advised(&renewals, true);
            assert!((NOW + HOUR * 3 / 10..=NOW + HOUR * 2 / 5).contains(&moment), "{moment}");
        }
    }

    #[test]
    fn what_is_past_is_forgotten_and_what_is_kept_is_bounded() {
        let renewals = Renewals::default();
        advised(&renewals, false);
        renewals.advise(NOW + HOUR, NOW + HOUR + 60, &[0; 16], false);
        assert_eq!(renewals.0.lock().unwrap().len(), 1);
        for n in 0..SLOTS_MAX as i64 + 10 {
            renewals.advise(NOW, NOW + 10 * SLOT_SECS * n, &digest::random::<16>(), false);
        }
        assert!(renewals.0.lock().unwrap().len() <= SLOTS_MAX);
        assert_eq!(renewals.advise(NOW, NOW + LIFE_SECS_MIN - 1, &[255; 16], false), 0);
        assert_eq!(renewals.advise(NOW, NOW + LIFE_SECS_MIN, &[255; 16], false), NOW + 32, "at the edge");
        assert_eq!(renewals.advise(i64::MAX - 60, i64::MAX, &[], false), i64::MAX - 30);
    }
}
