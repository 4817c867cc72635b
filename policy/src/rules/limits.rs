//! Which quota a rate limit descriptor falls under.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{Fault, document};

/// The compiled quotas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits(BTreeMap<String, BTreeMap<String, Vec<Limit>>>);

/// One quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// As people name it: `path=/a,user`.
    pub name: String,
    /// How often.
    pub rate: Rate,
    /// Wanted value per entry; `None` is any value, each with a bucket of its own.
    values: Vec<Option<String>>,
}

/// So many requests a unit of time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Requests in one unit, at least 1.
    pub requests: u32,
    /// The unit.
    pub per: Unit,
    /// Requests at once, at least 1.
    pub burst: u32,
}

/// A unit of time for quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One second.
    Second,
    /// One minute.
    Minute,
    /// One hour.
    Hour,
    /// One day.
    Day,
    /// Seven days.
    Week,
    /// Thirty days.
    Month,
    /// 365 days.
    Year,
}

impl Unit {
    /// How long it is.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => DAY_SECS,
            Self::Week => 7 * DAY_SECS,
            Self::Month => 30 * DAY_SECS,
            Self::Year => 365 * DAY_SECS,
        })
    }
}

impl Limits {
    pub(super) fn compile(quotas: Vec<document::Quotas>) -> Result<Self, Fault> {
        let mut limits = Self::default();
        let mut count = 0;
        for quota in quotas {
            if quota.domain.value.is_empty() || quota.domain.value.len() > TEXT_BYTES_MAX {
                return Err(Fault::at(&quota.domain, format!("a domain has 1 to {TEXT_BYTES_MAX} bytes")));
            }
            if limits.0.contains_key(&quota.domain.value) {
                return Err(Fault::at(
                    &quota.domain,
                    format!("a second domain `{}`; put its limits into the first", quota.domain.value),
                ));
            }
            count += quota.limits.len();
            if count > LIMITS_MAX {
                return Err(Fault::at(&quota.domain, format!("more than {LIMITS_MAX} limits in the file")));
            }
            limits.0.insert(quota.domain.value, shapes(quota.limits)?);
        }
        Ok(limits)
    }

    /// The quota for a descriptor: the one with the same keys in the same order that fixes the most values, the first
    /// of several.
    pub fn find(&self, domain: &str, entries: &[(&str, &str)]) -> Option<&Limit> {
        let candidates = self.0.get(domain)?.get(&shape(entries.iter().map(|(key, _)| *key)))?;
        candidates.iter().find(|limit| limit.accepts(entries))
    }

    /// How many quotas there are.
    pub fn len(&self) -> usize {
        self.0.values().flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every quota with its domain.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Limit)> {
        self.0.iter().flat_map(|(domain, shapes)| shapes.values().flatten().map(move |limit| (domain.as_str(), limit)))
    }
}

impl Limit {
    fn compile(raw: document::Limit) -> Result<(String, Self), Fault> {
        let entries = &raw.descriptor.value;
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(Fault::at(&raw.descriptor, format!("a descriptor has 1 to {ENTRIES_MAX} entries")));
        }
        let too_long = |entry: &document::Entry| {
            entry.key.is_empty()
                || entry.key.len() > TEXT_BYTES_MAX
                || entry.value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX)
        };
        if entries.iter().any(too_long) {
            return Err(Fault::at(
                &raw.descriptor,
                format!("a key has 1 to {TEXT_BYTES_MAX} bytes, a value up to {VALUE_BYTES_MAX}"),
            ));
        }
        if raw.requests.value == 0 {
            return Err(Fault::at(&raw.requests, "at least 1; to refuse every request, write a deny rule"));
        }
        if let Some(burst) = raw.burst.as_ref().filter(|burst| burst.value == 0) {
            return Err(Fault::at(burst, "at least 1, or no request would ever pass"));
        }
        let burst = raw.burst.map_or(raw.requests.value, |burst| burst.value);
        let shape = shape(entries.iter().map(|entry| entry.key.as_str()));
        let name = entries.iter().map(show).collect::<Vec<_>>().join(",");
        let rate = Rate { requests: raw.requests.value, per: raw.per, burst };
        Ok((shape, Self { name, rate, values: raw.descriptor.value.into_iter().map(|entry| entry.value).collect() }))
    }

    fn accepts(&self, entries: &[(&str, &str)]) -> bool {
        self.values.len() == entries.len()
            && self
                .values
                .iter()
                .zip(entries)
                .all(|(wanted, (_, value))| wanted.as_ref().is_none_or(|wanted| wanted == value))
    }

    fn fixed(&self) -> usize {
        self.values.iter().filter(|value| value.is_some()).count()
    }
}

/// Limits by the keys of their descriptors, those that fix the most values first.
fn shapes(limits: Vec<document::Limit>) -> Result<BTreeMap<String, Vec<Limit>>, Fault> {
    let mut shapes = BTreeMap::<String, Vec<Limit>>::new();
    for raw in limits {
        let (shape, limit) = Limit::compile(raw)?;
        shapes.entry(shape).or_default().push(limit);
    }
    for limits in shapes.values_mut() {
        limits.sort_by_key(|limit| std::cmp::Reverse(limit.fixed()));
    }
    Ok(shapes)
}

/// The keys with their lengths, so that no two sequences of keys look alike.
fn shape<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(|key| format!("{}:{key};", key.len())).collect()
}

fn show(entry: &document::Entry) -> String {
    entry.value.as_ref().map_or_else(|| entry.key.clone(), |value| format!("{}={value}", entry.key))
}

const DAY_SECS: u64 = 86_400;
/// Limits in one file.
const LIMITS_MAX: usize = 10_000;
/// Entries of one descriptor.
const ENTRIES_MAX: usize = 16;
/// Bytes of a domain or key.
const TEXT_BYTES_MAX: usize = 128;
/// Bytes of a wanted value.
const VALUE_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Rules;
    use super::*;

    const RULES: &str = "
quotas:
  - domain: d
    limits:
      - {descriptor: [{key: path}], requests: 10, per: second}
      - {descriptor: [{key: path, value: /a}], requests: 1, per: minute, burst: 3}
      - {descriptor: [{key: path, value: /a}, {key: user}], requests: 2, per: hour}
";

    fn check(domain: &str, entries: &[(&str, &str)]) -> Option<String> {
        let rules = Rules::parse(Path::new("r.yaml"), RULES).unwrap();
        rules.limits.find(domain, entries).map(|limit| limit.name.clone())
    }

    #[test]
    fn the_most_specific_limit_of_the_same_keys_is_taken() {
        assert_eq!(check("d", &[("path", "/a")]).as_deref(), Some("path=/a"));
        assert_eq!(check("d", &[("path", "/b")]).as_deref(), Some("path"));
        assert_eq!(check("d", &[("path", "/a"), ("user", "x")]).as_deref(), Some("path=/a,user"));
    }

    #[test]
    fn other_domains_keys_orders_and_values_are_not_limited() {
        assert_eq!(check("e", &[("path", "/a")]), None);
        assert_eq!(check("d", &[("user", "x"), ("path", "/a")]), None);
        assert_eq!(check("d", &[("path", "/b"), ("user", "x")]), None);
        assert_eq!(check("d", &[]), None);
    }

    #[test]
    fn keys_cannot_be_confused_by_their_text() {
        assert_ne!(shape(["a;1:b"].into_iter()), shape(["a", "b"].into_iter()));
    }

    #[test]
    fn the_burst_is_the_number_of_requests_unless_given() {
        let rules = Rules::parse(Path::new("r.yaml"), RULES).unwrap();
        let rates: Vec<(u32, u32)> =
            rules.limits.iter().map(|(_, limit)| (limit.rate.requests, limit.rate.burst)).collect();
        assert_eq!(rates, [(1, 3), (10, 10), (2, 2)]);
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let text = |entries: usize, burst: u32| {
            let entries: Vec<String> = (0..entries).map(|n| format!("{{key: k{n}}}")).collect();
            format!(
                "quotas: [{{domain: d, limits: [{{descriptor: [{}], requests: 1, per: day, burst: {burst}}}]}}]",
                entries.join(", ")
            )
        };
        let parse = |text: &str| Rules::parse(Path::new("r.yaml"), text).map_err(|error| error.to_string());
        assert!(parse(&text(ENTRIES_MAX, 1)).is_ok());
        assert!(parse(&text(ENTRIES_MAX + 1, 1)).unwrap_err().contains("1 to 16"));
        assert!(parse(&text(0, 1)).unwrap_err().contains("1 to 16"));
        assert!(parse(&text(1, 0)).unwrap_err().contains("at least 1"));
        let twice = "quotas: [{domain: d, limits: []}, {domain: d, limits: []}]";
        assert!(parse(twice).unwrap_err().contains("second domain"));
        let many = |count: usize| {
            let limit = "{descriptor: [{key: k}], requests: 1, per: day}";
            format!("quotas: [{{domain: d, limits: [{}]}}]", vec![limit; count].join(", "))
        };
        assert!(parse(&many(LIMITS_MAX)).is_ok());
        assert!(parse(&many(LIMITS_MAX + 1)).unwrap_err().contains("10000"));
    }
}
