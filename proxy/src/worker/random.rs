//! Dice for picks and identifiers: quick and unpredictable enough to spread load, no source of secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

/// A worker's dice.
#[derive(Debug)]
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// Begins somewhere that the operating system chose.
    pub(crate) fn new() -> Self {
        Self(Cell::new(RandomState::new().hash_one(0_u64)))
    }

    /// A uniformly distributed number (splitmix64).
    pub(crate) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_spread_over_all_bits() {
        let random = Random::new();
        let (mut ones, mut zeros) = (0_u64, u64::MAX);
        for _ in 0..200 {
            let n = random.next();
            ones |= n;
            zeros &= n;
        }
        assert_eq!((ones, zeros), (u64::MAX, 0));
    }
}
