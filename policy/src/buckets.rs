//! Token buckets in memory: at most [`BUCKETS_MAX`], each 24 bytes and a place in the eviction order.
//!
//! A bucket is kept as the moment at which it will be full again. That is exact, needs no timer, and makes an idle
//! bucket (full, so without memory) recognisable. Time is an argument.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::rules::Rate;

/// The buckets of a rate limit service.
#[derive(Debug)]
pub struct Buckets {
    /// When each bucket is full again, in nanoseconds of the caller's clock.
    full_at: HashMap<u128, u64>,
    /// Oldest first; every key of `full_at` stands here once.
    order: VecDeque<u128>,
    hashers: [RandomState; 2],
    buckets_max: usize,
    evictions: u64,
}

/// One bucket to take from.
#[derive(Clone, Copy, Debug)]
pub struct Take<'a> {
    /// The domain.
    pub domain: &'a str,
    /// The descriptor's entries.
    pub entries: &'a [(&'a str, &'a str)],
    /// The bucket's rate.
    pub rate: Rate,
    /// How many requests to take; 0 only looks.
    pub hits: u64,
}

/// How a bucket stands after it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the hits fitted.
    pub fits: bool,
    /// Requests that would pass now.
    pub remaining: u32,
    /// How long until it is full.
    pub full_in: Duration,
    /// How long until as many hits as were asked for would fit; zero if they fit now.
    pub retry_in: Duration,
}

impl Buckets {
    /// No buckets yet, and never more than `buckets_max`.
    pub fn new(buckets_max: usize) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { full_at: HashMap::new(), order: VecDeque::new(), hashers, buckets_max: buckets_max.max(1), evictions: 0 }
    }

    /// Takes from all buckets, or from none if one of them has not enough. Answers how each stands, in the order asked.
    pub fn take_all(&mut self, takes: &[Take<'_>], now: Duration) -> Vec<Standing> {
        let now = nanos(now);
        let mut before = Vec::with_capacity(takes.len());
        let mut standings = Vec::with_capacity(takes.len());
        for take in takes {
            let key = self.key(take);
            let full_at = self.full_at.get(&key).copied().unwrap_or(0).max(now);
            let (standing, after) = ask(take, full_at, now);
            if standing.fits && take.hits > 0 {
                before.push((key, full_at));
                self.set(key, after, now);
            }
            standings.push(standing);
        }
        if standings.iter().any(|standing| !standing.fits) {
            for (key, full_at) in before.into_iter().rev() {
                if let Some(slot) = self.full_at.get_mut(&key) {
                    *slot = full_at;
                }
            }
        }
        standings
    }

    /// How many buckets are remembered.
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }

    /// How many buckets were forgotten before they were full again.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// A name of fixed size. Two random hashes of 64 bits: nobody outside can make two buckets collide.
    fn key(&self, take: &Take<'_>) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(Named(take)));
        (u128::from(high) << 64) | u128::from(low)
    }

    fn set(&mut self, key: u128, full_at: u64, now: u64) {
        if let Some(slot) = self.full_at.get_mut(&key) {
            *slot = full_at;
            return;
        }
        if self.full_at.len() >= self.buckets_max {
            self.evict(now);
        }
        self.full_at.insert(key, full_at);
        self.order.push_back(key);
    }

    /// Forgets one of the [`EVICTION_TRIES_MAX`] oldest buckets: the first that is full again, otherwise the one that
    /// would be full soonest.
    fn evict(&mut self, now: u64) {
        let mut kept: Vec<(u128, u64)> = Vec::with_capacity(EVICTION_TRIES_MAX);
        while kept.len() < EVICTION_TRIES_MAX {
            let Some(key) = self.order.pop_front() else { break };
            let full_at = self.full_at.get(&key).copied().unwrap_or(0);
            if full_at <= now {
                self.full_at.remove(&key);
                self.order.extend(kept.into_iter().map(|(key, _)| key));
                return;
            }
            kept.push((key, full_at));
        }
        let least = kept.iter().enumerate().min_by_key(|(_, (_, full_at))| *full_at).map(|(at, _)| at);
        if let Some(at) = least {
            let (key, _) = kept.remove(at);
            self.full_at.remove(&key);
            self.evictions += 1;
        }
        self.order.extend(kept.into_iter().map(|(key, _)| key));
    }
}

/// What a bucket's name depends on: a changed rate begins a new bucket.
struct Named<'a>(&'a Take<'a>);

impl Hash for Named<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.domain, self.0.entries, self.0.rate).hash(state);
    }
}

/// How the bucket stands, and when it would be full after the hits were taken.
fn ask(take: &Take<'_>, full_at: u64, now: u64) -> (Standing, u64) {
    let unit = u128::from(nanos(take.rate.per.duration()));
    // Rounded up, so that the rate is never exceeded.
    let cost = unit.div_ceil(u128::from(take.rate.requests.max(1)));
    let capacity = cost * u128::from(take.rate.burst);
    let used = u128::from(full_at - now);
    let wanted = used + cost * u128::from(take.hits);
    let fits = wanted <= capacity;
    let used_after = if fits { wanted } else { used };
    let standing = Standing {
        fits,
        remaining: u32::try_from(capacity.saturating_sub(used_after) / cost).unwrap_or(u32::MAX),
        full_in: duration(used_after),
        retry_in: duration(wanted.saturating_sub(capacity)),
    };
    (standing, now.saturating_add(u64::try_from(used_after).unwrap_or(u64::MAX)))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Buckets of one service.
pub const BUCKETS_MAX: usize = 100_000;
/// Buckets looked at to find one that may be forgotten.
const EVICTION_TRIES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Unit;

    const FIVE_A_MINUTE: Rate = Rate { requests: 5, per: Unit::Minute, burst: 5 };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn take<'a>(entries: &'a [(&'a str, &'a str)], rate: Rate) -> Take<'a> {
        Take { domain: "d", entries, rate, hits: 1 }
    }

    fn passes(buckets: &mut Buckets, value: &str, rate: Rate, now: Duration) -> bool {
        buckets.take_all(&[take(&[("k", value)], rate)], now)[0].fits
    }

    #[test]
    fn five_a_minute_are_five_at_once_and_then_one_each_twelve_seconds() {
        let mut buckets = Buckets::new(10);
        let at_once = (0..20).filter(|_| passes(&mut buckets, "a", FIVE_A_MINUTE, secs(100))).count();
        assert_eq!(at_once, 5);
        assert!(!passes(&mut buckets, "a", FIVE_A_MINUTE, secs(111)));
        assert!(passes(&mut buckets, "a", FIVE_A_MINUTE, secs(112)));
        assert!(!passes(&mut buckets, "a", FIVE_A_MINUTE, secs(112)));
    }

    #[test]
    fn no_arrival_sequence_gets_more_than_burst_and_rate() {
        let mut seed = 7_u64;
        for _ in 0..50 {
            let mut dice = |sides: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % sides
            };
            let requests = u32::try_from(dice(9) + 1).unwrap();
            let rate = Rate { requests, per: Unit::Second, burst: u32::try_from(dice(20) + 1).unwrap() };
            let (mut buckets, mut now, mut passed) = (Buckets::new(4), Duration::ZERO, 0_u64);
            for _ in 0..500 {
                now += Duration::from_millis(dice(300));
                passed += u64::from(passes(&mut buckets, "a", rate, now));
                let most = f64::from(rate.burst) + f64::from(rate.requests) * now.as_secs_f64();
                assert!(passed as f64 <= most + 1e-6, "{rate:?}: {passed} in {now:?}");
            }
        }
    }

    #[test]
    fn values_and_rates_have_buckets_of_their_own() {
        let mut buckets = Buckets::new(10);
        let one = Rate { requests: 1, per: Unit::Hour, burst: 1 };
        assert!(passes(&mut buckets, "a", one, secs(1)));
        assert!(!passes(&mut buckets, "a", one, secs(1)));
        assert!(passes(&mut buckets, "b", one, secs(1)));
        assert!(passes(&mut buckets, "a", Rate { burst: 2, ..one }, secs(1)));
    }

    #[test]
    fn a_refused_request_takes_nothing_from_any_bucket() {
        let mut buckets = Buckets::new(10);
        let (one, two) =
            (Rate { requests: 1, per: Unit::Hour, burst: 1 }, Rate { requests: 2, per: Unit::Hour, burst: 2 });
        assert!(passes(&mut buckets, "tight", one, secs(1)));
        for _ in 0..5 {
            let both = buckets.take_all(&[take(&[("k", "wide")], two), take(&[("k", "tight")], one)], secs(1));
            assert_eq!((both[0].fits, both[1].fits), (true, false));
        }
        assert!(passes(&mut buckets, "wide", two, secs(1)));
        assert!(passes(&mut buckets, "wide", two, secs(1)));
    }

    #[test]
    fn the_same_bucket_twice_in_one_request_counts_twice() {
        let mut buckets = Buckets::new(10);
        let one = Rate { requests: 1, per: Unit::Hour, burst: 1 };
        let twice = buckets.take_all(&[take(&[("k", "a")], one), take(&[("k", "a")], one)], secs(1));
        assert_eq!((twice[0].fits, twice[1].fits), (true, false));
        assert!(passes(&mut buckets, "a", one, secs(1)), "the refused request gave its token back");
    }

    #[test]
    fn the_standing_says_what_is_left_and_when_to_come_again() {
        let mut buckets = Buckets::new(10);
        let standing = buckets.take_all(&[Take { hits: 4, ..take(&[], FIVE_A_MINUTE) }], secs(0))[0];
        assert_eq!((standing.remaining, standing.full_in, standing.retry_in), (1, secs(48), secs(0)));
        let refused = buckets.take_all(&[Take { hits: 3, ..take(&[], FIVE_A_MINUTE) }], secs(0))[0];
        assert_eq!((refused.fits, refused.remaining, refused.retry_in), (false, 1, secs(24)));
        let look = buckets.take_all(&[Take { hits: 0, ..take(&[], FIVE_A_MINUTE) }], secs(0))[0];
        assert_eq!((look.fits, look.remaining), (true, 1));
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut buckets = Buckets::new(1);
        let wide = Rate { requests: 1, per: Unit::Day, burst: u32::MAX };
        let takes = [Take { hits: u64::from(u32::MAX), ..take(&[], wide) }, Take { hits: u64::MAX, ..take(&[], wide) }];
        let standings = buckets.take_all(&takes, Duration::MAX);
        assert!(!standings[1].fits);
        let fast = Rate { requests: u32::MAX, per: Unit::Second, burst: 1 };
        assert!(buckets.take_all(&[take(&[("k", "v")], fast)], secs(1))[0].fits);
    }

    #[test]
    fn memory_is_bounded_and_idle_buckets_go_first() {
        let mut buckets = Buckets::new(4);
        let (brief, long) =
            (Rate { requests: 1, per: Unit::Second, burst: 1 }, Rate { requests: 1, per: Unit::Hour, burst: 1 });
        assert!(passes(&mut buckets, "kept", long, secs(0)));
        for value in ["a", "b", "c"] {
            assert!(passes(&mut buckets, value, brief, secs(0)));
        }
        assert!(passes(&mut buckets, "new", long, secs(5)));
        assert_eq!((buckets.len(), buckets.order.len(), buckets.evictions()), (4, 4, 0));
        assert!(!passes(&mut buckets, "kept", long, secs(5)), "an active bucket survives idle ones");
        for value in 0..100 {
            passes(&mut buckets, &value.to_string(), long, secs(6));
        }
        assert_eq!((buckets.len(), buckets.order.len()), (4, 4));
        assert!(buckets.evictions() > 90);
    }
}
