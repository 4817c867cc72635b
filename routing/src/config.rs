//! Reading xDS resources: one error type that names the resource and the field, and the small conversions every
//! compiler here needs.
//!
//! Whatever is refused is refused whole: a resource either compiles completely or leaves the last good one in force.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf as pb;
use prost::{Message, Name};

/// Why a resource was refused: which one, where in it, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {text}")]
pub struct ConfigError {
    /// The refused resource's kind and name, such as `Listener virtualInbound`.
    pub resource: String,
    /// The path to the field, such as `filter_chains[2].filters[0]`.
    pub field: String,
    /// One sentence about the fault.
    pub text: String,
}

impl ConfigError {
    /// An error at a place that the callers add on the way up.
    pub fn new(text: impl Into<String>) -> Self {
        Self { resource: String::new(), field: String::new(), text: text.into() }
    }

    /// The stable code for logs and answers.
    pub fn reason(&self) -> &'static str {
        "CONFIG_REFUSED"
    }

    /// The same error one level further out in the resource.
    #[must_use]
    pub fn under(mut self, segment: &str) -> Self {
        self.field = match self.field.is_empty() {
            true => segment.to_owned(),
            false if self.field.starts_with('[') => format!("{segment}{}", self.field),
            false => format!("{segment}.{}", self.field),
        };
        self
    }

    /// The same error as part of a named resource.
    #[must_use]
    pub fn of(mut self, kind: &str, name: &str) -> Self {
        if self.resource.is_empty() {
            self.resource = format!("{kind} {name}");
        }
        self
    }
}

/// Adds the place to an error that is on its way up.
pub(crate) trait At<T> {
    fn at(self, segment: &str) -> Result<T, ConfigError>;
    fn at_index(self, segment: &str, index: usize) -> Result<T, ConfigError>;
}

impl<T> At<T> for Result<T, ConfigError> {
    fn at(self, segment: &str) -> Self {
        self.map_err(|error| error.under(segment))
    }

    fn at_index(self, segment: &str, index: usize) -> Self {
        self.map_err(|error| error.under(&format!("{segment}[{index}]")))
    }
}

/// Compiles each item of a repeated field, naming the index of the one that fails.
pub(crate) fn each<T, U>(
    field: &str,
    items: &[T],
    mut compile: impl FnMut(&T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    items.iter().enumerate().map(|(index, item)| compile(item).at_index(field, index)).collect()
}

/// Decodes a typed extension whose type is already known.
pub(crate) fn decode<T: Message + Name + Default>(any: &pb::Any) -> Result<T, ConfigError> {
    if !is_type::<T>(any) {
        return Err(ConfigError::new(format!("expected a {}, found `{}`", T::full_name(), any.type_url)));
    }
    T::decode(any.value.as_slice())
        .map_err(|error| ConfigError::new(format!("does not decode as {}: {error}", T::full_name())))
}

/// Whether a typed extension holds this message; the host part of the type URL does not matter.
pub(crate) fn is_type<T: Name>(any: &pb::Any) -> bool {
    type_name(any) == T::full_name()
}

/// The message name in a type URL.
pub(crate) fn type_name(any: &pb::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

pub(crate) fn required<T>(value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::new("is required"))
}

pub(crate) fn not_supported<T>(what: &str) -> Result<T, ConfigError> {
    Err(ConfigError::new(format!("{what} is not supported")))
}

pub(crate) fn duration(value: &pb::Duration) -> Result<Duration, ConfigError> {
    let secs = u64::try_from(value.seconds).map_err(|_| ConfigError::new("a duration cannot be negative"))?;
    let nanos = u32::try_from(value.nanos).map_err(|_| ConfigError::new("a duration cannot be negative"))?;
    if secs > DURATION_SECS_MAX || nanos >= 1_000_000_000 {
        return Err(ConfigError::new("the duration is out of range"));
    }
    Ok(Duration::new(secs, nanos))
}

/// A duration field where an absent value and zero both mean that there is no limit.
pub(crate) fn limit(field: &str, value: Option<&pb::Duration>) -> Result<Option<Duration>, ConfigError> {
    Ok(optional_duration(field, value)?.filter(|limit| !limit.is_zero()))
}

pub(crate) fn optional_duration(field: &str, value: Option<&pb::Duration>) -> Result<Option<Duration>, ConfigError> {
    value.map(|value| duration(value).at(field)).transpose()
}

pub(crate) fn flag(value: Option<&pb::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(crate) fn number(value: Option<&pb::UInt32Value>) -> Option<u32> {
    value.map(|value| value.value)
}

/// A share of a million, which every fraction of xDS can be expressed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction(u32);

impl Fraction {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Whether this throw of the dice falls inside the share.
    pub fn includes(self, dice: u64) -> bool {
        (dice % 1_000_000) < u64::from(self.0)
    }

    pub(crate) fn compile(value: &FractionalPercent) -> Result<Self, ConfigError> {
        let scale = match DenominatorType::try_from(value.denominator) {
            Ok(DenominatorType::Hundred) => 10_000,
            Ok(DenominatorType::TenThousand) => 100,
            Ok(DenominatorType::Million) => 1,
            Err(_) => return Err(ConfigError::new("unknown denominator").under("denominator")),
        };
        Ok(Self(value.numerator.saturating_mul(scale).min(1_000_000)))
    }

    /// The share of an optional runtime fraction: absent means `default`. Runtime keys have no effect here.
    pub(crate) fn runtime(value: Option<&core::RuntimeFractionalPercent>, default: Self) -> Result<Self, ConfigError> {
        match value.and_then(|value| value.default_value.as_ref()) {
            None => Ok(default),
            Some(value) => Self::compile(value).at("default_value"),
        }
    }
}

pub(crate) fn percent(value: &Percent) -> Result<f64, ConfigError> {
    match (0.0..=100.0).contains(&value.value) {
        true => Ok(value.value),
        false => Err(ConfigError::new("a percentage lies between 0 and 100")),
    }
}

pub(crate) fn port(value: u32) -> Result<u16, ConfigError> {
    u16::try_from(value).map_err(|_| ConfigError::new(format!("{value} is not a port")))
}

/// A socket address written with a literal IP address.
pub(crate) fn socket_addr(value: &core::SocketAddress) -> Result<SocketAddr, ConfigError> {
    if value.protocol != core::socket_address::Protocol::Tcp as i32 {
        return not_supported("any protocol but TCP").at("protocol");
    }
    let ip: IpAddr = value
        .address
        .parse()
        .map_err(|_| ConfigError::new(format!("`{}` is not an IP address", value.address)).under("address"))?;
    Ok(SocketAddr::new(ip, port_of(value)?))
}

pub(crate) fn port_of(value: &core::SocketAddress) -> Result<u16, ConfigError> {
    use core::socket_address::PortSpecifier;
    match &value.port_specifier {
        Some(PortSpecifier::PortValue(value)) => port(*value).at("port_value"),
        Some(PortSpecifier::NamedPort(_)) => not_supported("a named port").at("named_port"),
        None => Ok(0),
    }
}

const DURATION_SECS_MAX: u64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_from_the_outside_in() {
        let error = ConfigError::new("is wrong").under("filters[1]").under("filter_chains[0]").of("Listener", "in");

        assert_eq!(error.to_string(), "Listener in: filter_chains[0].filters[1]: is wrong");
        assert_eq!(error.reason(), "CONFIG_REFUSED");
    }

    #[test]
    fn fractions_of_all_denominators_agree() {
        for (numerator, denominator) in [(25, 0), (2500, 1), (250_000, 2)] {
            let share = Fraction::compile(&FractionalPercent { numerator, denominator }).unwrap();
            assert!(share.includes(249_999));
            assert!(!share.includes(250_000));
        }
        assert!(Fraction::ALL.includes(u64::MAX));
        assert!(!Fraction::NONE.includes(0));
    }

    #[test]
    fn durations_out_of_range_are_refused() {
        assert!(duration(&pb::Duration { seconds: -1, nanos: 0 }).is_err());
        assert!(duration(&pb::Duration { seconds: 1, nanos: 1_000_000_000 }).is_err());
        assert_eq!(duration(&pb::Duration { seconds: 1, nanos: 5 }).unwrap(), Duration::new(1, 5));
    }
}
