//! Asking a rate limit service (`envoy.service.ratelimit.v3`) whether there is quota left.

use std::rc::Rc;

use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use http::{HeaderName, HeaderValue};
use routing::filters::RateLimit;
use routing::route::Descriptor;

use super::{RpcError, call};
use crate::worker::state::Worker;

/// What the service said.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// There is quota.
    Within,
    /// There is none; these headers tell the client.
    Over(Vec<(HeaderName, HeaderValue)>),
    /// No usable answer.
    Unavailable,
}

/// Asks the service about a request with these descriptors.
pub(crate) async fn check(
    worker: &Rc<Worker>,
    filter: &RateLimit,
    domain: &str,
    descriptors: Vec<Descriptor>,
) -> Verdict {
    let question = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.into_iter().take(DESCRIPTORS_MAX).map(descriptor).collect(),
        hits_addend: 0,
    };
    let answer: Result<RateLimitResponse, RpcError> =
        call(worker, &filter.service, SHOULD_RATE_LIMIT, &question, filter.timeout).await;
    match answer {
        Ok(answer) if answer.overall_code == Code::OverLimit as i32 => Verdict::Over(told_headers(&answer)),
        Ok(_) => Verdict::Within,
        Err(error) => {
            tracing::warn!(reason = crate::refusal::RATE_LIMIT_UNAVAILABLE, cluster = &*filter.service.cluster, %error, closed = filter.failure_mode_deny, "rate limit service gave no answer");
            Verdict::Unavailable
        }
    }
}

fn descriptor(descriptor: Descriptor) -> RateLimitDescriptor {
    let entries = descriptor.entries.into_iter().map(|(key, value)| Entry { key, value }).collect();
    RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
}

fn told_headers(answer: &RateLimitResponse) -> Vec<(HeaderName, HeaderValue)> {
    let parse = |header: &envoy_types::pb::envoy::config::core::v3::HeaderValue| {
        let name = HeaderName::from_bytes(header.key.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(&header.value).ok()?))
    };
    answer.response_headers_to_add.iter().filter_map(parse).take(HEADERS_MAX).collect()
}

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const DESCRIPTORS_MAX: usize = 32;
const HEADERS_MAX: usize = 16;
