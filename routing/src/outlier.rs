//! Endpoints that keep failing are left out for a while.
//!
//! Counting is lock-free and shared by all workers. Times are durations since any moment that stays the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;

use crate::config::{ConfigError, flag, number, optional_duration};
use crate::endpoint::{EndpointAddress, Endpoints};

/// When an endpoint is left out, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// So many 5xx in a row; zero means never.
    pub consecutive_5xx: u32,
    /// So many 502, 503 or 504 in a row; zero means never.
    pub consecutive_gateway: u32,
    /// So many failures of our own in a row, if they are counted apart; zero means never.
    pub consecutive_local: u32,
    /// Whether failures of our own, such as connections that are not made, are counted apart.
    pub split_local: bool,
    /// How often endpoints are looked over.
    pub interval: Duration,
    /// How long an endpoint is left out the first time; the n-th time it is n times as long.
    pub base_ejection: Duration,
    /// The longest time.
    pub ejection_max: Duration,
    /// A random time on top, so that endpoints do not come back together.
    pub ejection_jitter: Duration,
    /// At most this share of the endpoints is left out.
    pub ejected_percent_max: u32,
    /// Whether one may be left out even if that share allows none.
    pub always_one: bool,
    enforce_5xx: u32,
    enforce_gateway: u32,
    enforce_local: u32,
}

impl OutlierPolicy {
    pub(crate) fn compile(value: &pb::OutlierDetection) -> Result<Self, ConfigError> {
        let time = |field, value| optional_duration(field, value);
        let base = time("base_ejection_time", value.base_ejection_time.as_ref())?.unwrap_or(BASE_EJECTION);
        Ok(Self {
            consecutive_5xx: number(value.consecutive_5xx.as_ref()).unwrap_or(5),
            consecutive_gateway: number(value.consecutive_gateway_failure.as_ref()).unwrap_or(5),
            consecutive_local: number(value.consecutive_local_origin_failure.as_ref()).unwrap_or(5),
            split_local: value.split_external_local_origin_errors,
            interval: time("interval", value.interval.as_ref())?.unwrap_or(INTERVAL),
            base_ejection: base,
            ejection_max: time("max_ejection_time", value.max_ejection_time.as_ref())?
                .unwrap_or(EJECTION_MAX)
                .max(base),
            ejection_jitter: time("max_ejection_time_jitter", value.max_ejection_time_jitter.as_ref())?
                .unwrap_or_default(),
            ejected_percent_max: number(value.max_ejection_percent.as_ref()).unwrap_or(10).min(100),
            always_one: flag(value.always_eject_one_host.as_ref(), false),
            enforce_5xx: number(value.enforcing_consecutive_5xx.as_ref()).unwrap_or(100),
            enforce_gateway: number(value.enforcing_consecutive_gateway_failure.as_ref()).unwrap_or(0),
            enforce_local: number(value.enforcing_consecutive_local_origin_failure.as_ref()).unwrap_or(100),
        })
    }
}

/// How one endpoint did.
#[derive(Debug, Default)]
pub struct HostHealth {
    errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    times_ejected: AtomicU32,
    /// In nanoseconds; zero if it is not left out.
    ejected_until: AtomicU64,
}

impl HostHealth {
    /// Whether the endpoint is left out at this moment.
    pub fn is_ejected(&self, now: Duration) -> bool {
        self.ejected_until.load(Relaxed) > nanos(now)
    }

    fn failed(counter: &AtomicU32) -> u32 {
        counter.fetch_add(1, Relaxed).saturating_add(1)
    }

    fn succeeded(counter: &AtomicU32) {
        // Reading first keeps the line shared between workers as long as all is well.
        if counter.load(Relaxed) != 0 {
            counter.store(0, Relaxed);
        }
    }
}

/// What an endpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutlierEvent {
    /// It answered with this status.
    Status(u16),
    /// It did not answer: no connection, a broken stream, a timeout.
    LocalFailure,
}

/// An endpoint has just been left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: EjectionCause,
    /// For how long.
    pub duration: Duration,
}

/// Why an endpoint was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    /// Too many 5xx in a row.
    Consecutive5xx,
    /// Too many 502, 503 or 504 in a row.
    ConsecutiveGateway,
    /// Too many failures of our own in a row.
    ConsecutiveLocal,
}

/// Watches the endpoints of one cluster.
#[derive(Debug)]
pub struct OutlierDetector {
    policy: OutlierPolicy,
    hosts: Mutex<BTreeMap<EndpointAddress, Arc<HostHealth>>>,
}

impl OutlierDetector {
    /// A detector that has seen nothing.
    pub fn new(policy: OutlierPolicy) -> Self {
        Self { policy, hosts: Mutex::default() }
    }

    /// Its policy.
    pub fn policy(&self) -> &OutlierPolicy {
        &self.policy
    }

    /// The health of an endpoint, to be kept beside it.
    pub fn host(&self, address: &EndpointAddress) -> Arc<HostHealth> {
        let mut hosts = self.hosts();
        match hosts.get(address) {
            Some(host) => host.clone(),
            None => hosts.entry(address.clone()).or_default().clone(),
        }
    }

    /// Forgets endpoints that are no more.
    pub fn retain(&self, endpoints: &Endpoints) {
        self.hosts().retain(|address, _| endpoints.all().iter().any(|endpoint| endpoint.address == *address));
    }

    /// Counts what an endpoint did, and leaves it out if that was too much.
    pub fn record(&self, host: &HostHealth, event: OutlierEvent, now: Duration, dice: u64) -> Option<Ejection> {
        let cause = self.judge(host, event)?;
        let enforced = match cause {
            EjectionCause::Consecutive5xx => self.policy.enforce_5xx,
            EjectionCause::ConsecutiveGateway => self.policy.enforce_gateway,
            EjectionCause::ConsecutiveLocal => self.policy.enforce_local,
        };
        if dice % 100 >= u64::from(enforced) || host.is_ejected(now) {
            return None;
        }
        self.eject(host, now, dice).map(|duration| Ejection { cause, duration })
    }

    fn judge(&self, host: &HostHealth, event: OutlierEvent) -> Option<EjectionCause> {
        let (failed, gateway, local) = match event {
            OutlierEvent::Status(status) => (status >= 500, (502..=504).contains(&status), false),
            OutlierEvent::LocalFailure if self.policy.split_local => (false, false, true),
            OutlierEvent::LocalFailure => (true, true, false),
        };
        if local {
            let count = HostHealth::failed(&host.local_failures);
            return reached(count, self.policy.consecutive_local).then_some(EjectionCause::ConsecutiveLocal);
        }
        HostHealth::succeeded(&host.local_failures);
        let gateway_count = if gateway { HostHealth::failed(&host.gateway_errors) } else { 0 };
        if !gateway {
            HostHealth::succeeded(&host.gateway_errors);
        }
        if !failed {
            HostHealth::succeeded(&host.errors);
            return None;
        }
        let count = HostHealth::failed(&host.errors);
        if reached(count, self.policy.consecutive_5xx) {
            return Some(EjectionCause::Consecutive5xx);
        }
        reached(gateway_count, self.policy.consecutive_gateway).then_some(EjectionCause::ConsecutiveGateway)
    }

    fn eject(&self, host: &HostHealth, now: Duration, dice: u64) -> Option<Duration> {
        let hosts = self.hosts();
        let ejected = hosts.values().filter(|host| host.is_ejected(now)).count();
        let within_share = (ejected + 1) * 100 <= hosts.len() * self.policy.ejected_percent_max as usize;
        let first_one = self.policy.always_one && ejected == 0 && self.policy.ejected_percent_max > 0;
        if !within_share && !first_one {
            return None;
        }
        let times = host.times_ejected.fetch_add(1, Relaxed).saturating_add(1);
        let jitter = nanos(self.policy.ejection_jitter);
        let jitter = Duration::from_nanos(dice.checked_rem(jitter).unwrap_or(0));
        let duration = self.policy.base_ejection.saturating_mul(times).min(self.policy.ejection_max) + jitter;
        host.ejected_until.store(nanos(now.saturating_add(duration)), Relaxed);
        for counter in [&host.errors, &host.gateway_errors, &host.local_failures] {
            counter.store(0, Relaxed);
        }
        Some(duration)
    }

    /// To be called once per interval: who was not left out for a whole interval has one offence less on its record.
    pub fn sweep(&self, now: Duration) {
        for host in self.hosts().values() {
            let until = Duration::from_nanos(host.ejected_until.load(Relaxed));
            if now >= until.saturating_add(self.policy.interval) {
                let _ = host.times_ejected.fetch_update(Relaxed, Relaxed, |times| times.checked_sub(1));
            }
        }
    }

    /// How many endpoints are left out at this moment.
    pub fn ejected(&self, now: Duration) -> usize {
        self.hosts().values().filter(|host| host.is_ejected(now)).count()
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<EndpointAddress, Arc<HostHealth>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(count: u32, threshold: u32) -> bool {
    threshold > 0 && count >= threshold
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const BASE_EJECTION: Duration = Duration::from_secs(30);
const EJECTION_MAX: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn detector(change: impl Fn(&mut pb::OutlierDetection)) -> OutlierDetector {
        let mut value = pb::OutlierDetection {
            consecutive_5xx: Some(UInt32Value { value: 3 }),
            max_ejection_percent: Some(UInt32Value { value: 50 }),
            ..Default::default()
        };
        change(&mut value);
        OutlierDetector::new(OutlierPolicy::compile(&value).unwrap())
    }

    fn hosts(detector: &OutlierDetector, count: u16) -> Vec<Arc<HostHealth>> {
        let address = |port| EndpointAddress::Ip(([10, 0, 0, 1], port).into());
        (1..=count).map(|port| detector.host(&address(port))).collect()
    }

    fn fail(detector: &OutlierDetector, host: &HostHealth, times: u32, now: Duration) -> Option<Ejection> {
        (0..times).filter_map(|_| detector.record(host, OutlierEvent::Status(500), now, 0)).last()
    }

    #[test]
    fn failures_in_a_row_eject_and_successes_in_between_do_not() {
        let detector = detector(|_| ());
        let host = &hosts(&detector, 4)[0];
        assert_eq!(fail(&detector, host, 2, secs(1)), None);
        detector.record(host, OutlierEvent::Status(404), secs(1), 0);
        assert_eq!(fail(&detector, host, 2, secs(1)), None);
        let ejection = fail(&detector, host, 1, secs(1)).unwrap();
        assert_eq!(ejection, Ejection { cause: EjectionCause::Consecutive5xx, duration: secs(30) });
        assert!(host.is_ejected(secs(30)) && !host.is_ejected(secs(31)));
    }

    #[test]
    fn the_next_time_is_longer_and_good_conduct_shortens_it() {
        let detector = detector(|_| ());
        let host = &hosts(&detector, 4)[0];
        assert_eq!(fail(&detector, host, 3, secs(0)).unwrap().duration, secs(30));
        assert_eq!(fail(&detector, host, 3, secs(31)).unwrap().duration, secs(60));
        detector.sweep(secs(95));
        assert_eq!(fail(&detector, host, 3, secs(100)).unwrap().duration, secs(90));
        detector.sweep(secs(300));
        detector.sweep(secs(310));
        assert_eq!(fail(&detector, host, 3, secs(320)).unwrap().duration, secs(60));
    }

    #[test]
    fn no_more_than_the_share_is_ejected_but_one_may_be_allowed_always() {
        let half = detector(|_| ());
        let list = hosts(&half, 4);
        let ejected = list.iter().filter(|host| fail(&half, host, 3, secs(0)).is_some()).count();
        assert_eq!((ejected, half.ejected(secs(0))), (2, 2));

        let none = detector(|value| value.max_ejection_percent = Some(UInt32Value { value: 10 }));
        assert!(fail(&none, &hosts(&none, 2)[0], 3, secs(0)).is_none());
        let one = detector(|value| {
            value.max_ejection_percent = Some(UInt32Value { value: 10 });
            value.always_eject_one_host = Some(BoolValue { value: true });
        });
        let list = hosts(&one, 2);
        assert!(fail(&one, &list[0], 3, secs(0)).is_some() && fail(&one, &list[1], 3, secs(0)).is_none());
    }

    #[test]
    fn gateway_errors_and_our_own_failures_have_counters_of_their_own() {
        let gateway = detector(|value| {
            value.consecutive_5xx = Some(UInt32Value { value: 0 });
            value.consecutive_gateway_failure = Some(UInt32Value { value: 2 });
            value.enforcing_consecutive_gateway_failure = Some(UInt32Value { value: 100 });
        });
        let host = &hosts(&gateway, 4)[0];
        assert!(fail(&gateway, host, 5, secs(0)).is_none());
        gateway.record(host, OutlierEvent::Status(503), secs(0), 0);
        let ejection = gateway.record(host, OutlierEvent::LocalFailure, secs(0), 0).unwrap();
        assert_eq!(ejection.cause, EjectionCause::ConsecutiveGateway);

        let split = detector(|value| {
            value.split_external_local_origin_errors = true;
            value.consecutive_local_origin_failure = Some(UInt32Value { value: 2 });
        });
        let host = &hosts(&split, 4)[0];
        let events: Vec<_> = (0..2).map(|_| split.record(host, OutlierEvent::LocalFailure, secs(0), 0)).collect();
        assert!(matches!(events[..], [None, Some(Ejection { cause: EjectionCause::ConsecutiveLocal, .. })]));
    }

    #[test]
    fn endpoints_that_are_gone_are_forgotten() {
        let detector = detector(|_| ());
        hosts(&detector, 4);
        detector.retain(&Endpoints::default());
        assert_eq!(detector.hosts().len(), 0);
    }
}
