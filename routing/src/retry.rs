//! When a request is tried again, how long is waited before, and how many retries there may be at once.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds;
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::config::{At, ConfigError, duration, each, limit, number, percent};
use crate::matcher::{HeaderMatcher, Reading, header_name};

/// When a request is tried again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// How many times, after the first try.
    pub attempts: u32,
    /// How long one try may take.
    pub per_try_timeout: Option<Duration>,
    /// How long one try may be silent.
    pub per_try_idle_timeout: Option<Duration>,
    /// Whether endpoints that were tried are avoided while there are others.
    pub avoid_previous_hosts: bool,
    conditions: Conditions,
    statuses: Vec<u16>,
    headers: Vec<HeaderMatcher>,
    request_headers: Vec<HeaderMatcher>,
    backoff_base: Duration,
    backoff_max: Duration,
    reset_headers: Vec<HeaderName>,
    reset_max: Duration,
}

/// What came of one try.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A response.
    Response {
        /// Its status.
        status: StatusCode,
        /// Its headers.
        headers: &'a HeaderMap,
        /// Its gRPC status, if it is known already.
        grpc_status: Option<u16>,
    },
    /// No connection was made.
    ConnectFailure,
    /// The upstream refused the stream before it looked at the request.
    RefusedStream,
    /// The connection broke before anything was sent.
    ResetBeforeRequest,
    /// The stream broke before there was a response.
    Reset,
    /// The try took too long.
    TryTimeout,
}

impl RetryPolicy {
    pub(crate) fn compile(value: &pb::RetryPolicy) -> Result<Self, ConfigError> {
        if value.retry_priority.is_some() || !value.retry_options_predicates.is_empty() {
            return crate::config::not_supported("choosing another priority").at("retry_priority");
        }
        let (base, max) = backoff(value.retry_back_off.as_ref()).at("retry_back_off")?;
        let limited = value.rate_limited_retry_back_off.as_ref();
        let reset_max = limited.and_then(|limited| limited.max_interval.as_ref()).map(duration).transpose();
        Ok(Self {
            attempts: number(value.num_retries.as_ref()).unwrap_or(1),
            per_try_timeout: limit("per_try_timeout", value.per_try_timeout.as_ref())?,
            per_try_idle_timeout: limit("per_try_idle_timeout", value.per_try_idle_timeout.as_ref())?,
            avoid_previous_hosts: value
                .retry_host_predicate
                .iter()
                .any(|predicate| predicate.name.contains("previous_hosts")),
            conditions: Conditions::parse(&value.retry_on).at("retry_on")?,
            statuses: each("retriable_status_codes", &value.retriable_status_codes, |status| {
                u16::try_from(*status).map_err(|_| ConfigError::new("is not an HTTP status"))
            })?,
            headers: each("retriable_headers", &value.retriable_headers, real_header)?,
            request_headers: each("retriable_request_headers", &value.retriable_request_headers, real_header)?,
            backoff_base: base,
            backoff_max: max,
            reset_headers: match limited {
                None => Vec::new(),
                Some(limited) => {
                    let seconds = pb::retry_policy::ResetHeaderFormat::Seconds as i32;
                    let usable = limited.reset_headers.iter().filter(|header| header.format == seconds);
                    usable.map(|header| header_name(&header.name)).collect::<Result<_, _>>().at("reset_headers")?
                }
            },
            reset_max: reset_max.at("rate_limited_retry_back_off.max_interval")?.unwrap_or(RESET_MAX),
        })
    }

    /// Whether requests with these headers are ever tried again.
    pub fn concerns(&self, request: &HeaderMap) -> bool {
        self.request_headers.is_empty() || self.request_headers.iter().any(|test| test.matches_headers(request))
    }

    /// Whether this outcome is one to try again after. How often was tried already is the caller's to count.
    pub fn retries(&self, outcome: &Outcome<'_>) -> bool {
        let any = |conditions: &[Conditions]| conditions.iter().any(|condition| self.conditions.contains(*condition));
        match outcome {
            Outcome::Response { status, headers, grpc_status } => self.retries_response(*status, headers, *grpc_status),
            Outcome::ConnectFailure => any(&[
                Conditions::CONNECT_FAILURE,
                Conditions::RESET,
                Conditions::RESET_BEFORE_REQUEST,
                Conditions::SERVER_ERROR,
                Conditions::GATEWAY_ERROR,
            ]),
            Outcome::RefusedStream => any(&[
                Conditions::REFUSED_STREAM,
                Conditions::RESET,
                Conditions::SERVER_ERROR,
                Conditions::GATEWAY_ERROR,
            ]),
            Outcome::ResetBeforeRequest => any(&[
                Conditions::RESET_BEFORE_REQUEST,
                Conditions::RESET,
                Conditions::SERVER_ERROR,
                Conditions::GATEWAY_ERROR,
            ]),
            Outcome::Reset | Outcome::TryTimeout => {
                any(&[Conditions::RESET, Conditions::SERVER_ERROR, Conditions::GATEWAY_ERROR])
            }
        }
    }

    fn retries_response(&self, status: StatusCode, headers: &HeaderMap, grpc_status: Option<u16>) -> bool {
        let on = |condition| self.conditions.contains(condition);
        if headers.contains_key("x-envoy-ratelimited") {
            return on(Conditions::RATE_LIMITED);
        }
        let code = status.as_u16();
        (on(Conditions::SERVER_ERROR) && status.is_server_error())
            || (on(Conditions::GATEWAY_ERROR) && (502..=504).contains(&code))
            || (on(Conditions::CONFLICT) && code == 409)
            || (on(Conditions::STATUSES) && self.statuses.contains(&code))
            || (on(Conditions::HEADERS) && self.headers.iter().any(|test| test.matches_headers(headers)))
            || grpc_status.is_some_and(|status| Conditions::of_grpc(status).is_some_and(on))
    }

    /// How long to wait before the n-th retry, counted from one: a random part of a time that doubles.
    pub fn backoff(&self, retry: u32, dice: u64) -> Duration {
        let doublings = retry.saturating_sub(1).min(20);
        let span = self.backoff_base.saturating_mul(1 << doublings).min(self.backoff_max);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(dice.checked_rem(nanos).unwrap_or(0))
    }

    /// How long the upstream asks to wait, if it does and the policy follows it.
    pub fn asked_backoff(&self, headers: &HeaderMap) -> Option<Duration> {
        let asked = self.reset_headers.iter().find_map(|name| headers.get(name)?.to_str().ok()?.parse::<u64>().ok());
        asked.map(Duration::from_secs).filter(|wait| *wait <= self.reset_max)
    }
}

fn real_header(value: &pb::HeaderMatcher) -> Result<HeaderMatcher, ConfigError> {
    let matcher = HeaderMatcher::compile(value, Reading::Joined)?;
    match matcher.is_pseudo() {
        true => crate::config::not_supported("a pseudo-header").at("name"),
        false => Ok(matcher),
    }
}

fn backoff(value: Option<&pb::retry_policy::RetryBackOff>) -> Result<(Duration, Duration), ConfigError> {
    let Some(value) = value else { return Ok((BACKOFF_BASE, BACKOFF_BASE * 10)) };
    let base = crate::config::required(value.base_interval.as_ref()).and_then(duration).at("base_interval")?;
    let base = base.max(Duration::from_millis(1));
    let max = value.max_interval.as_ref().map(duration).transpose().at("max_interval")?;
    match max.unwrap_or(base * 10) {
        max if max < base => Err(ConfigError::new("is less than base_interval").under("max_interval")),
        max => Ok((base, max)),
    }
}

/// A set of conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Conditions(u32);

impl Conditions {
    const SERVER_ERROR: Self = Self(1);
    const GATEWAY_ERROR: Self = Self(1 << 1);
    const RESET: Self = Self(1 << 2);
    const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    const CONNECT_FAILURE: Self = Self(1 << 4);
    const RATE_LIMITED: Self = Self(1 << 5);
    const CONFLICT: Self = Self(1 << 6);
    const REFUSED_STREAM: Self = Self(1 << 7);
    const STATUSES: Self = Self(1 << 8);
    const HEADERS: Self = Self(1 << 9);
    const GRPC_CANCELLED: Self = Self(1 << 10);
    const GRPC_DEADLINE: Self = Self(1 << 11);
    const GRPC_INTERNAL: Self = Self(1 << 12);
    const GRPC_EXHAUSTED: Self = Self(1 << 13);
    const GRPC_UNAVAILABLE: Self = Self(1 << 14);
    const NOTHING: Self = Self(0);

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(Self::named).try_fold(Self::NOTHING, |all, one| Ok(Self(all.0 | one?.0)))
    }

    fn named(name: &str) -> Result<Self, ConfigError> {
        Ok(match name {
            "5xx" => Self::SERVER_ERROR,
            "gateway-error" => Self::GATEWAY_ERROR,
            "reset" => Self::RESET,
            "reset-before-request" => Self::RESET_BEFORE_REQUEST,
            "connect-failure" => Self::CONNECT_FAILURE,
            "envoy-ratelimited" => Self::RATE_LIMITED,
            "retriable-4xx" => Self::CONFLICT,
            "refused-stream" => Self::REFUSED_STREAM,
            "retriable-status-codes" => Self::STATUSES,
            "retriable-headers" => Self::HEADERS,
            "cancelled" => Self::GRPC_CANCELLED,
            "deadline-exceeded" => Self::GRPC_DEADLINE,
            "internal" => Self::GRPC_INTERNAL,
            "resource-exhausted" => Self::GRPC_EXHAUSTED,
            "unavailable" => Self::GRPC_UNAVAILABLE,
            // HTTP/3 is not spoken, so this cannot happen.
            "http3-post-connect-failure" => Self::NOTHING,
            name => return Err(ConfigError::new(format!("`{name}` is not a condition"))),
        })
    }

    fn of_grpc(status: u16) -> Option<Self> {
        match status {
            1 => Some(Self::GRPC_CANCELLED),
            4 => Some(Self::GRPC_DEADLINE),
            8 => Some(Self::GRPC_EXHAUSTED),
            13 => Some(Self::GRPC_INTERNAL),
            14 => Some(Self::GRPC_UNAVAILABLE),
            _ => None,
        }
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// How many retries there may be at once, as a share of the requests that are under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// The share in percent.
    pub percent: f64,
    /// How many there may be in any case.
    pub min: u32,
}

impl RetryBudget {
    pub(crate) fn compile(value: &thresholds::RetryBudget) -> Result<Self, ConfigError> {
        let share = value.budget_percent.as_ref().map(percent).transpose().at("budget_percent")?;
        Ok(Self {
            percent: share.unwrap_or(BUDGET_PERCENT),
            min: number(value.min_retry_concurrency.as_ref()).unwrap_or(BUDGET_MIN),
        })
    }

    /// Whether there may be one more retry beside so many requests and retries.
    pub fn admits(&self, active_requests: u32, active_retries: u32) -> bool {
        let share = f64::from(active_requests) * self.percent / 100.0;
        f64::from(active_retries) < share.max(f64::from(self.min))
    }
}

const BACKOFF_BASE: Duration = Duration::from_millis(25);
const RESET_MAX: Duration = Duration::from_secs(300);
const BUDGET_PERCENT: f64 = 20.0;
const BUDGET_MIN: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(retry_on: &str) -> RetryPolicy {
        let value =
            pb::RetryPolicy { retry_on: retry_on.into(), retriable_status_codes: vec![418], ..Default::default() };
        RetryPolicy::compile(&value).unwrap()
    }

    fn response(headers: &HeaderMap, status: u16, grpc_status: Option<u16>) -> Outcome<'_> {
        Outcome::Response { status: StatusCode::from_u16(status).unwrap(), headers, grpc_status }
    }

    #[test]
    fn conditions_decide_what_is_tried_again() {
        let none = HeaderMap::new();
        for (retry_on, outcome, expected) in [
            ("5xx", response(&none, 500, None), true),
            ("5xx", response(&none, 404, None), false),
            ("5xx", Outcome::Reset, true),
            ("gateway-error", response(&none, 500, None), false),
            ("gateway-error", response(&none, 503, None), true),
            ("retriable-status-codes", response(&none, 418, None), true),
            ("retriable-4xx", response(&none, 409, None), true),
            ("unavailable", response(&none, 200, Some(14)), true),
            ("cancelled", response(&none, 200, Some(14)), false),
            ("connect-failure", Outcome::ConnectFailure, true),
            ("connect-failure", Outcome::Reset, false),
            ("refused-stream", Outcome::RefusedStream, true),
            ("reset-before-request", Outcome::ResetBeforeRequest, true),
            ("reset-before-request", Outcome::Reset, false),
            ("reset", Outcome::TryTimeout, true),
            ("", Outcome::ConnectFailure, false),
        ] {
            assert_eq!(policy(retry_on).retries(&outcome), expected, "{retry_on} {outcome:?}");
        }
    }

    #[test]
    fn a_refused_quota_is_only_tried_again_where_that_is_said() {
        let limited = HeaderMap::from_iter([("x-envoy-ratelimited".parse().unwrap(), "true".parse().unwrap())]);
        assert!(!policy("5xx").retries(&response(&limited, 503, None)));
        assert!(policy("envoy-ratelimited").retries(&response(&limited, 429, None)));
    }

    #[test]
    fn the_default_of_istio_is_understood_and_nonsense_is_not() {
        let istio = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
        assert!(policy(istio).retries(&Outcome::ConnectFailure));
        let nonsense = pb::RetryPolicy { retry_on: "sometimes".into(), ..Default::default() };
        assert_eq!(RetryPolicy::compile(&nonsense).unwrap_err().field, "retry_on");
    }

    #[test]
    fn the_budget_bounds_amplification() {
        let budget = RetryBudget { percent: 20.0, min: 3 };
        assert!(budget.admits(1, 2) && !budget.admits(1, 3));
        assert!(budget.admits(100, 19) && !budget.admits(100, 20));
    }

    proptest! {
        #[test]
        fn waiting_doubles_within_its_limit(retry in 1u32..100, dice in any::<u64>()) {
            let wait = policy("5xx").backoff(retry, dice);
            prop_assert!(wait < BACKOFF_BASE * 10);
            if retry == 1 {
                prop_assert!(wait < BACKOFF_BASE);
            }
        }
    }
}
