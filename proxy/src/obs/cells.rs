//! Numbers with one writer and any number of readers.
//!
//! Each series belongs to one worker, so an addition is a load and a store, not a locked instruction; the scrape
//! reads whatever is there.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that one thread adds to.
#[derive(Debug, Default)]
pub(crate) struct Cell64(AtomicU64);

impl Cell64 {
    /// Adds; only the owning thread may call it.
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Reads, from any thread.
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution over Envoy's default buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Cell64; BOUNDS.len() + 1],
    /// In thousandths, so that parts of a millisecond add up.
    sum_milli: Cell64,
}

/// A histogram read at one moment; several are added before they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct HistogramSum {
    buckets: [u64; BOUNDS.len() + 1],
    sum_milli: u64,
}

impl Histogram {
    /// Records a span, in milliseconds.
    pub(crate) fn record_span(&self, span: Duration) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.record_milli(micros);
    }

    /// Records a whole number.
    pub(crate) fn record(&self, value: u64) {
        self.record_milli(value.saturating_mul(1000));
    }

    fn record_milli(&self, milli: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < milli);
        self.buckets[at].add(1);
        self.sum_milli.add(milli);
    }

    /// Adds this histogram to `sum`.
    pub(crate) fn read_into(&self, sum: &mut HistogramSum) {
        for (total, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.read();
        }
        sum.sum_milli = sum.sum_milli.wrapping_add(self.sum_milli.read());
    }
}

impl HistogramSum {
    /// Writes the samples of the family `name` with `labels`.
    pub(crate) fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(&self.buckets) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", Milli(*bound));
        }
        below += self.buckets[BOUNDS.len()];
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", Milli(self.sum_milli));
        let _ = writeln!(out, "{name}_count{{{labels}}} {below}");
    }
}

struct Milli(u64);

impl std::fmt::Display for Milli {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 % 1000 {
            0 => write!(f, "{}", self.0 / 1000),
            part => write!(f, "{}.{part:03}", self.0 / 1000),
        }
    }
}

/// Upper bounds in thousandths: 0.5, 1, 5, … as Envoy's default buckets.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let histogram = Histogram::default();
        histogram.record_span(Duration::from_micros(500));
        histogram.record_span(Duration::from_micros(501));
        histogram.record(7_200_000);
        let mut sum = HistogramSum::default();
        histogram.read_into(&mut sum);
        let mut out = String::new();
        sum.write(&mut out, "x", "a=\"b\"");
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.500\"} 1\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"1\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"3600000\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("x_sum{a=\"b\"} 7200001.001\n"), "{out}");
        assert!(out.ends_with("x_count{a=\"b\"} 3\n"), "{out}");
    }
}
