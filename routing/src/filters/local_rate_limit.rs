//! Quotas that the proxy keeps itself: token buckets.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as types;
use http::StatusCode;

use super::ext_authz::status;
use crate::config::{At, ConfigError, Fraction, duration, each, flag, number, required};
use crate::request::Request;
use crate::route::{Descriptor, HeaderEdits, RateLimitRule, Selection};

/// Quotas that the proxy keeps itself.
#[derive(Clone, Debug)]
pub struct LocalRateLimit {
    /// The prefix of its metrics.
    pub stat_prefix: Box<str>,
    /// The answer when the quota is used up.
    pub status: StatusCode,
    /// The quota of requests that no other bucket counts; none if they are unlimited.
    pub bucket: Option<BucketSpec>,
    /// Quotas of their own for some descriptors.
    pub buckets: Vec<LocalBucket>,
    /// Whether the general bucket counts requests that have one of their own as well.
    pub always_count: bool,
    /// Whether each connection has its own buckets.
    pub per_connection: bool,
    /// Headers of a refusal.
    pub response_edits: HeaderEdits,
    /// Headers to the upstream when the quota is used up but not enforced.
    pub request_edits: HeaderEdits,
    /// Whether clients are told what is left of their quota.
    pub quota_headers: bool,
    stage: u32,
    rules: Vec<RateLimitRule>,
    enabled: Fraction,
    enforced: Fraction,
}

/// A quota for requests with these descriptor entries. An entry without a value stands for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalBucket {
    /// The entries.
    pub entries: Vec<(String, String)>,
    /// The quota.
    pub bucket: BucketSpec,
}

/// How a bucket is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketSpec {
    /// How many tokens it holds.
    pub tokens_max: u32,
    /// How many are added at a time.
    pub tokens_per_fill: u32,
    /// How often.
    pub interval: Duration,
}

impl LocalRateLimit {
    pub(crate) fn compile(value: &pb::LocalRateLimit) -> Result<Self, ConfigError> {
        let buckets = each("descriptors", &value.descriptors, |descriptor| {
            let entries = descriptor.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
            let bucket = required(descriptor.token_bucket.as_ref()).and_then(BucketSpec::compile).at("token_bucket")?;
            Ok(LocalBucket { entries, bucket })
        })?;
        let edits = HeaderEdits::compile;
        Ok(Self {
            stat_prefix: value.stat_prefix.as_str().into(),
            status: status(value.status.as_ref(), StatusCode::TOO_MANY_REQUESTS).at("status")?,
            bucket: value.token_bucket.as_ref().map(BucketSpec::compile).transpose().at("token_bucket")?,
            buckets,
            always_count: flag(value.always_consume_default_token_bucket.as_ref(), true),
            per_connection: value.local_rate_limit_per_downstream_connection,
            response_edits: edits("response_headers_to_add", &value.response_headers_to_add, "", &[])?,
            request_edits: edits(
                "request_headers_to_add_when_not_enforced",
                &value.request_headers_to_add_when_not_enforced,
                "",
                &[],
            )?,
            quota_headers: value.enable_x_ratelimit_headers != 0,
            stage: value.stage,
            rules: each("rate_limits", &value.rate_limits, RateLimitRule::compile)?,
            enabled: Fraction::runtime(value.filter_enabled.as_ref(), Fraction::NONE).at("filter_enabled")?,
            enforced: Fraction::runtime(value.filter_enforced.as_ref(), Fraction::NONE).at("filter_enforced")?,
        })
    }

    /// Whether requests are counted.
    pub fn enabled(&self, dice: u64) -> bool {
        self.enabled.includes(dice)
    }

    /// Whether a used-up quota refuses the request.
    pub fn enforced(&self, dice: u64) -> bool {
        self.enforced.includes(dice)
    }

    /// The index of the request's own bucket in `buckets`; none if only the general one counts.
    pub fn own_bucket(
        &self,
        selection: Option<&Selection<'_>>,
        request: &Request<'_>,
        cluster: &str,
        own_cluster: &str,
    ) -> Option<usize> {
        if self.buckets.is_empty() {
            return None;
        }
        let rules = match selection {
            Some(selection) if self.rules.is_empty() => selection.rate_limit_rules(None),
            _ => self.rules.iter().collect(),
        };
        let counted = rules.into_iter().filter(|rule| rule.stage == self.stage);
        counted
            .filter_map(|rule| rule.descriptor(request, cluster, own_cluster))
            .find_map(|descriptor| self.buckets.iter().position(|bucket| bucket.counts(&descriptor)))
    }
}

impl LocalBucket {
    fn counts(&self, descriptor: &Descriptor) -> bool {
        let same = |(wanted, actual): (&(String, String), &(String, String))| {
            wanted.0 == actual.0 && (wanted.1.is_empty() || wanted.1 == actual.1)
        };
        self.entries.len() == descriptor.entries.len() && self.entries.iter().zip(&descriptor.entries).all(same)
    }
}

impl BucketSpec {
    fn compile(value: &types::TokenBucket) -> Result<Self, ConfigError> {
        let interval = required(value.fill_interval.as_ref()).and_then(duration).at("fill_interval")?;
        if interval.is_zero() || value.max_tokens == 0 {
            return Err(ConfigError::new("a bucket holds tokens and is filled at some interval"));
        }
        let tokens_per_fill = number(value.tokens_per_fill.as_ref()).unwrap_or(1).max(1);
        Ok(Self { tokens_max: value.max_tokens, tokens_per_fill, interval })
    }
}

/// A bucket of tokens. Times count from any fixed moment and must not go back.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    spec: BucketSpec,
    tokens: u32,
    filled_at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(spec: BucketSpec, now: Duration) -> Self {
        Self { spec, tokens: spec.tokens_max, filled_at: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    /// How many tokens are left.
    pub fn left(&self) -> u32 {
        self.tokens
    }

    /// How long until tokens are added.
    pub fn next_fill(&self, now: Duration) -> Duration {
        (self.filled_at + self.spec.interval).saturating_sub(now)
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at).as_nanos();
        let fills = passed / self.spec.interval.as_nanos().max(1);
        if fills == 0 {
            return;
        }
        let added = fills.saturating_mul(u128::from(self.spec.tokens_per_fill));
        let tokens = u128::from(self.tokens).saturating_add(added).min(u128::from(self.spec.tokens_max));
        self.tokens = u32::try_from(tokens).unwrap_or(self.spec.tokens_max);
        let whole = self.spec.interval.as_nanos().saturating_mul(fills);
        self.filled_at += Duration::from_nanos(u64::try_from(whole).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPEC: BucketSpec = BucketSpec { tokens_max: 5, tokens_per_fill: 2, interval: Duration::from_secs(1) };

    #[test]
    fn a_bucket_empties_and_is_filled_again() {
        let mut bucket = TokenBucket::new(SPEC, Duration::ZERO);
        assert!((0..5).all(|_| bucket.take(Duration::ZERO)));
        assert!(!bucket.take(Duration::from_millis(999)));
        assert_eq!(bucket.next_fill(Duration::from_millis(600)), Duration::from_millis(400));
        assert!(bucket.take(Duration::from_secs(1)) && bucket.take(Duration::from_secs(1)));
        assert!(!bucket.take(Duration::from_secs(1)));
        assert_eq!((bucket.take(Duration::from_secs(3600)), bucket.left()), (true, 4));
    }

    proptest! {
        #[test]
        fn no_arrivals_get_more_than_burst_and_rate(gaps in prop::collection::vec(0u64..2000, 1..200)) {
            let mut bucket = TokenBucket::new(SPEC, Duration::ZERO);
            let (mut now, mut taken) = (Duration::ZERO, 0u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                taken += u64::from(bucket.take(now));
                prop_assert!(taken <= 5 + 2 * now.as_secs());
            }
        }
    }
}
