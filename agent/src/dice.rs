//! Chance for jitter, so that a fleet that started together does not renew together.

/// A number from 0 up to 1.
pub(crate) fn roll() -> f64 {
    f64::from(u32::from_le_bytes(identity::digest::random::<4>())) / f64::from(u32::MAX)
}
