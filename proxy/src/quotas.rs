//! Token buckets of local rate limits, one set for the whole process, whatever worker a request is on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use routing::filters::{BucketSpec, LocalRateLimit, TokenBucket};

/// All buckets.
#[derive(Debug)]
pub(crate) struct Quotas {
    origin: Instant,
    buckets: Mutex<HashMap<(usize, Option<usize>), (BucketSpec, TokenBucket)>>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { origin: Instant::now(), buckets: Mutex::default() }
    }
}

impl Quotas {
    /// Takes a token from the bucket `index` of a limit, or its common one.
    pub(crate) fn take(&self, limit: &LocalRateLimit, index: Option<usize>, spec: BucketSpec) -> bool {
        let now = self.origin.elapsed();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            // Limits that are gone leave their buckets behind.
            buckets.clear();
        }
        let key = (std::ptr::from_ref(limit) as usize, index);
        let (of, bucket) = buckets.entry(key).or_insert_with(|| (spec, TokenBucket::new(spec, now)));
        if *of != spec {
            // Another limit at the address of one that is gone.
            (*of, *bucket) = (spec, TokenBucket::new(spec, now));
        }
        bucket.take(now)
    }
}

const BUCKETS_MAX: usize = 4096;
