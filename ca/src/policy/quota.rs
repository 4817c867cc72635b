//! Quotas: how many SVIDs in how much time, for each identity or each caller by itself.
//!
//! Each bucket is one number, the moment at which it will be full again, so that many of them cost little.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::pattern::PathPattern;
use super::{Ask, PolicyRefusal, Problem};

/// A named limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) name: String,
    pub(super) by: By,
    /// Empty: all identities.
    pub(super) ids: Vec<PathPattern>,
    /// How many at once, and how many in `per`.
    pub(super) limit: u32,
    pub(super) per: Duration,
}

/// What has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum By {
    /// Each identity.
    Identity,
    /// Each node, or other caller.
    Node,
}

impl Quota {
    fn speaks_of(&self, ask: &Ask<'_>) -> bool {
        self.ids.is_empty() || self.ids.iter().any(|id| id.matches(ask.id.path()))
    }

    fn key<'a>(&self, ask: &Ask<'a>) -> &'a str {
        match self.by {
            By::Identity => ask.id.as_str(),
            By::Node => ask.callers.first().map_or("-", String::as_str),
        }
    }

    /// Nanoseconds that one SVID costs.
    fn cost(&self) -> u64 {
        nanos(self.per) / u64::from(self.limit.max(1))
    }

    fn refusal(&self, ask: &Ask<'_>, wait: Duration) -> PolicyRefusal {
        let per = humantime(self.per);
        let text = format!(
            "the quota `{}` of {} in {per} for {} is used up; try again in {}",
            self.name,
            self.limit,
            self.key(ask),
            humantime(wait),
        );
        PolicyRefusal { retry_after: Some(wait), ..PolicyRefusal::new(Problem::Quota, Some(&self.name), text) }
    }
}

/// All buckets that are not full. They outlive a change of the policy.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    hasher: RandomState,
    /// By quota and key: when the bucket is full again, nanoseconds since 1970.
    full_at: Mutex<HashMap<u64, u64>>,
}

impl Buckets {
    /// Takes one out of the bucket of each quota that speaks of `ask`, or out of none when one of them is empty.
    pub(super) fn take(&self, quotas: &[Quota], ask: &Ask<'_>, now: SystemTime) -> Result<(), PolicyRefusal> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos);
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        for quota in quotas.iter().filter(|quota| quota.speaks_of(ask)) {
            let key = self.hasher.hash_one((&quota.name, quota.key(ask)));
            let full = full_at.get(&key).copied().unwrap_or(0).max(now).saturating_add(quota.cost());
            let over = full.saturating_sub(now).saturating_sub(nanos(quota.per));
            if over > 0 {
                return Err(quota.refusal(ask, Duration::from_nanos(over)));
            }
            taken.push((quota, key, full));
        }
        if full_at.len() + taken.len() > BUCKETS_MAX {
            full_at.retain(|_, full| *full > now);
        }
        if let Some((quota, ..)) = taken.first().filter(|_| full_at.len() + taken.len() > BUCKETS_MAX) {
            return Err(quota.refusal(ask, Duration::from_nanos(quota.cost())));
        }
        full_at.extend(taken.into_iter().map(|(_, key, full)| (key, full)));
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole units: `1h`, `90s`, `250ms`.
fn humantime(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0 => format!("{}ms", duration.as_millis().max(1)),
        _ if duration.subsec_nanos() > 0 => format!("{}s", secs + 1),
        _ if secs.is_multiple_of(3600) => format!("{}h", secs / 3600),
        _ if secs.is_multiple_of(60) => format!("{}m", secs / 60),
        _ => format!("{secs}s"),
    }
}

/// Buckets that are not full; beyond that new keys are refused until old buckets have filled up.
const BUCKETS_MAX: usize = 250_000;

#[cfg(test)]
mod tests {
    use identity::spiffe_id::SpiffeId;

    use super::*;

    fn quota(name: &str, by: By, limit: u32, secs: u64) -> Quota {
        Quota { name: name.into(), by, ids: Vec::new(), limit, per: Duration::from_secs(secs) }
    }

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(millis)
    }

    struct Asking {
        buckets: Buckets,
        quotas: Vec<Quota>,
    }

    impl Asking {
        fn ask(&self, id: &str, caller: &str, millis: u64) -> Result<(), PolicyRefusal> {
            let id = SpiffeId::parse(id).unwrap();
            let callers = [caller.to_owned()];
            let ask = Ask {
                id: &id,
                callers: &callers,
                kind: "x509",
                ttl: Duration::from_secs(60),
                dns_names: &[],
                key: None,
            };
            self.buckets.take(&self.quotas, &ask, at(millis))
        }
    }

    #[test]
    fn a_bucket_empties_and_fills_with_time() {
        let asking = Asking { buckets: Buckets::default(), quotas: vec![quota("q", By::Identity, 10, 10)] };
        for _ in 0..10 {
            asking.ask("spiffe://td/a", "n", 0).unwrap();
        }
        let refusal = asking.ask("spiffe://td/a", "n", 0).unwrap_err();
        assert_eq!((refusal.reason(), refusal.rule.as_deref()), ("ISSUANCE_QUOTA_EXCEEDED", Some("q")));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
        assert!(refusal.to_string().contains("try again in 1s"), "{refusal}");
        asking.ask("spiffe://td/b", "n", 0).unwrap();
        assert!(asking.ask("spiffe://td/a", "n", 999).is_err());
        asking.ask("spiffe://td/a", "n", 1_000).unwrap();
        assert!(asking.ask("spiffe://td/a", "n", 1_000).is_err());
        let later = (0..100).filter(|_| asking.ask("spiffe://td/a", "n", 3_600_000).is_ok()).count();
        assert_eq!(later, 10, "a full bucket is full, however long it waited");
    }

    #[test]
    fn a_refusal_costs_nothing_in_other_quotas() {
        let quotas = vec![quota("node", By::Node, 100, 10), quota("identity", By::Identity, 1, 10)];
        let asking = Asking { buckets: Buckets::default(), quotas };
        asking.ask("spiffe://td/a", "n", 0).unwrap();
        for _ in 0..1_000 {
            asking.ask("spiffe://td/a", "n", 0).unwrap_err();
        }
        for n in 0..99 {
            asking.ask(&format!("spiffe://td/b{n}"), "n", 0).unwrap();
        }
        assert_eq!(asking.ask("spiffe://td/c", "n", 0).unwrap_err().rule.as_deref(), Some("node"));
        asking.ask("spiffe://td/c", "m", 0).unwrap();
    }

    #[test]
    fn buckets_are_limited_and_full_ones_make_room() {
        let asking = Asking { buckets: Buckets::default(), quotas: vec![quota("q", By::Identity, 1, 10)] };
        {
            let mut full_at = asking.buckets.full_at.lock().unwrap();
            let soon = at(5_000).duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos);
            full_at.extend((0..BUCKETS_MAX as u64).map(|key| (key, soon)));
        }
        assert_eq!(asking.ask("spiffe://td/a", "n", 0).unwrap_err().reason(), "ISSUANCE_QUOTA_EXCEEDED");
        asking.ask("spiffe://td/a", "n", 5_000).unwrap();
        assert_eq!(asking.buckets.full_at.lock().unwrap().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_the_limit_and_what_time_brings(steps in proptest::collection::vec(0_u64..3_000, 1..200)) {
            let asking = Asking { buckets: Buckets::default(), quotas: vec![quota("q", By::Identity, 5, 10)] };
            let (mut now, mut granted) = (0, 0);
            for step in steps {
                now += step;
                granted += u64::from(asking.ask("spiffe://td/a", "n", now).is_ok());
                proptest::prop_assert!(granted <= 5 + now / 2_000, "{granted} by {now} ms");
            }
        }
    }
}
