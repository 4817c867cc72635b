//! Failing on purpose: delays and aborts for a share of the requests.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use http::StatusCode;

use crate::config::{At, ConfigError, Fraction, duration, each, not_supported, number, required};
use crate::matcher::{HeaderMatcher, Reading};
use crate::request::Request;

/// Fails on purpose.
#[derive(Clone, Debug)]
pub struct Fault {
    delay: Option<(Fraction, Duration)>,
    abort: Option<(Fraction, Abort)>,
    headers: Vec<HeaderMatcher>,
    cluster: Box<str>,
    /// How many requests may suffer at once.
    pub active_max: Option<u32>,
}

/// An answer instead of the upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This status.
    Http(StatusCode),
    /// This gRPC status.
    Grpc(u32),
}

/// What a request has to suffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultDecision {
    /// First a delay.
    pub delay: Option<Duration>,
    /// Then this answer.
    pub abort: Option<Abort>,
}

impl Fault {
    pub(crate) fn compile(value: &pb::HttpFault) -> Result<Self, ConfigError> {
        if value.response_rate_limit.is_some() {
            return not_supported("slowing responses down").at("response_rate_limit");
        }
        Ok(Self {
            delay: value.delay.as_ref().map(delay).transpose().at("delay")?,
            abort: value.abort.as_ref().map(abort).transpose().at("abort")?,
            headers: each("headers", &value.headers, |header| HeaderMatcher::compile(header, Reading::Joined))?,
            cluster: value.upstream_cluster.as_str().into(),
            active_max: number(value.max_active_faults.as_ref()),
        })
    }

    /// What this request, on its way to a cluster, has to suffer.
    pub fn decide(&self, request: &Request<'_>, cluster: &str, dice: u64) -> FaultDecision {
        let concerned = (self.cluster.is_empty() || *self.cluster == *cluster)
            && self.headers.iter().all(|header| header.matches(request));
        if !concerned {
            return FaultDecision::default();
        }
        // The two shares are drawn apart, so that half delayed and half aborted does not mean the same half.
        FaultDecision {
            delay: self.delay.as_ref().filter(|(share, _)| share.includes(dice)).map(|(_, delay)| *delay),
            abort: self
                .abort
                .as_ref()
                .filter(|(share, _)| share.includes(crate::route::mix(dice)))
                .map(|(_, abort)| abort.clone()),
        }
    }
}

fn delay(value: &common::FaultDelay) -> Result<(Fraction, Duration), ConfigError> {
    use common::fault_delay::FaultDelaySecifier as Delay;
    let share = value.percentage.as_ref().map_or(Ok(Fraction::NONE), Fraction::compile).at("percentage")?;
    match required(value.fault_delay_secifier.as_ref())? {
        Delay::FixedDelay(fixed) => Ok((share, duration(fixed).at("fixed_delay")?)),
        Delay::HeaderDelay(_) => not_supported("a delay that the client chooses"),
    }
}

fn abort(value: &pb::FaultAbort) -> Result<(Fraction, Abort), ConfigError> {
    use pb::fault_abort::ErrorType;
    let share = value.percentage.as_ref().map_or(Ok(Fraction::NONE), Fraction::compile).at("percentage")?;
    let abort = match required(value.error_type.as_ref())? {
        ErrorType::HttpStatus(status) => {
            let status = u16::try_from(*status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            Abort::Http(status.ok_or_else(|| ConfigError::new("is not an HTTP status").under("http_status"))?)
        }
        ErrorType::GrpcStatus(status) => Abort::Grpc(*status),
        ErrorType::HeaderAbort(_) => return not_supported("an abort that the client chooses"),
    };
    Ok((share, abort))
}
