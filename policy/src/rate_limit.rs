//! `envoy.service.ratelimit.v3.RateLimitService`: quotas that all proxies share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HeaderValue;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    self, DescriptorStatus, RateLimit, rate_limit,
};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitService;
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use envoy_types::pb::google::protobuf;
use rate_limit_response::Code::{Ok as Within, OverLimit};
use runtime::refusal;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use crate::buckets::{BUCKETS_MAX, Buckets, Standing, Take};
use crate::metrics::{CodeLabel, PolicyMetrics};
use crate::rules::{Limits, Rate, Unit};
use crate::rules_file::RulesInForce;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct RateLimiter {
    rules: RulesInForce,
    metrics: PolicyMetrics,
    buckets: Arc<Mutex<Buckets>>,
    started: Instant,
}

/// A descriptor that is limited.
struct Limited<'a> {
    position: usize,
    name: String,
    entries: Vec<(&'a str, &'a str)>,
    rate: Rate,
    hits: u64,
}

impl RateLimiter {
    pub(crate) fn new(rules: RulesInForce, metrics: PolicyMetrics) -> Self {
        let buckets = Arc::new(Mutex::new(Buckets::new(BUCKETS_MAX)));
        Self { rules, metrics, buckets, started: Instant::now() }
    }

    fn answer(&self, request: &RateLimitRequest, now: Duration) -> RateLimitResponse {
        let version = self.rules.current();
        let limited = limited(&version.rules.limits, request);
        let takes: Vec<Take<'_>> = limited
            .iter()
            .map(|one| Take { domain: &request.domain, entries: &one.entries, rate: one.rate, hits: one.hits })
            .collect();
        let standings = self.take(&takes, now);
        let mut statuses =
            vec![DescriptorStatus { code: Within as i32, ..Default::default() }; request.descriptors.len()];
        for (one, standing) in limited.iter().zip(&standings) {
            if let Some(status) = statuses.get_mut(one.position) {
                *status = describe(one, standing);
            }
        }
        let retry_in = standings.iter().filter(|standing| !standing.fits).map(|standing| standing.retry_in).max();
        self.metrics.limited(if retry_in.is_some() { CodeLabel::over_limit } else { CodeLabel::ok });
        RateLimitResponse {
            overall_code: if retry_in.is_some() { OverLimit } else { Within } as i32,
            statuses,
            response_headers_to_add: retry_in.map_or_else(Vec::new, refusal_headers),
            ..Default::default()
        }
    }

    fn take(&self, takes: &[Take<'_>], now: Duration) -> Vec<Standing> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buckets.evictions();
        let standings = buckets.take_all(takes, now);
        self.metrics.buckets.set(i64::try_from(buckets.len()).unwrap_or(i64::MAX));
        self.metrics.bucket_evictions.inc_by(buckets.evictions() - before);
        standings
    }
}

#[tonic::async_trait]
impl RateLimitService for RateLimiter {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        if let Err(what) = check(&request) {
            self.metrics.limited(CodeLabel::invalid);
            return Err(refusal::status(Code::InvalidArgument, "POLICY_DESCRIPTOR_INVALID", what));
        }
        Ok(Response::new(self.answer(&request, self.started.elapsed())))
    }
}

fn check(request: &RateLimitRequest) -> Result<(), String> {
    if request.domain.is_empty() {
        return Err("no domain".into());
    }
    if request.descriptors.is_empty() || request.descriptors.len() > DESCRIPTORS_MAX {
        return Err(format!("1 to {DESCRIPTORS_MAX} descriptors, not {}", request.descriptors.len()));
    }
    if request
        .descriptors
        .iter()
        .any(|descriptor| descriptor.entries.is_empty() || descriptor.entries.len() > ENTRIES_MAX)
    {
        return Err(format!("a descriptor has 1 to {ENTRIES_MAX} entries"));
    }
    Ok(())
}

/// The descriptors that a quota, or their own override, limits.
fn limited<'a>(limits: &Limits, request: &'a RateLimitRequest) -> Vec<Limited<'a>> {
    let one = |(position, descriptor): (usize, &'a RateLimitDescriptor)| {
        let entries: Vec<(&str, &str)> =
            descriptor.entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        let found = limits.find(&request.domain, &entries);
        let rate = descriptor.limit.as_ref().and_then(override_rate).or_else(|| found.map(|limit| limit.rate))?;
        let name = found.map_or_else(String::new, |limit| limit.name.clone());
        Some(Limited { position, name, entries, rate, hits: hits(request, descriptor) })
    };
    request.descriptors.iter().enumerate().filter_map(one).collect()
}

/// Negative hits (giving back) are not supported and take nothing.
fn hits(request: &RateLimitRequest, descriptor: &RateLimitDescriptor) -> u64 {
    let of_request = u64::from(request.hits_addend.max(1));
    let wanted = descriptor.hits_addend.as_ref().map_or(of_request, |hits| hits.value);
    if descriptor.is_negative_hits { 0 } else { wanted }
}

fn override_rate(limit: &RateLimitOverride) -> Option<Rate> {
    let per = match limit.unit() {
        RateLimitUnit::Unknown => return None,
        RateLimitUnit::Second => Unit::Second,
        RateLimitUnit::Minute => Unit::Minute,
        RateLimitUnit::Hour => Unit::Hour,
        RateLimitUnit::Day => Unit::Day,
        RateLimitUnit::Month => Unit::Month,
        RateLimitUnit::Year => Unit::Year,
    };
    Some(Rate { requests: limit.requests_per_unit.max(1), per, burst: limit.requests_per_unit })
}

fn describe(one: &Limited<'_>, standing: &Standing) -> DescriptorStatus {
    let unit = match one.rate.per {
        Unit::Second => rate_limit::Unit::Second,
        Unit::Minute => rate_limit::Unit::Minute,
        Unit::Hour => rate_limit::Unit::Hour,
        Unit::Day => rate_limit::Unit::Day,
        Unit::Week => rate_limit::Unit::Week,
        Unit::Month => rate_limit::Unit::Month,
        Unit::Year => rate_limit::Unit::Year,
    };
    DescriptorStatus {
        code: if standing.fits { Within } else { OverLimit } as i32,
        current_limit: Some(RateLimit {
            name: one.name.clone(),
            requests_per_unit: one.rate.requests,
            unit: unit as i32,
        }),
        limit_remaining: standing.remaining,
        duration_until_reset: Some(wire_duration(standing.full_in)),
        quota: None,
    }
}

fn wire_duration(duration: Duration) -> protobuf::Duration {
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(0);
    protobuf::Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos }
}

fn refusal_headers(retry_in: Duration) -> Vec<HeaderValue> {
    let secs = retry_in.as_secs() + u64::from(retry_in.subsec_nanos() > 0);
    let header = |key: &str, value: String| HeaderValue { key: key.into(), value, ..Default::default() };
    vec![header("x-kasbah-reason", "RATE_LIMITED".into()), header("retry-after", secs.max(1).to_string())]
}

/// Descriptors of one question.
const DESCRIPTORS_MAX: usize = 64;
/// Entries of one descriptor.
const ENTRIES_MAX: usize = 32;
