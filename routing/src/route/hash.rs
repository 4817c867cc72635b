//! What decides the endpoint where equal requests shall meet the same one.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use pb::route_action::hash_policy::PolicySpecifier;

use crate::config::{At, ConfigError, not_supported, optional_duration, required};
use crate::matcher::{HeaderKey, Substitution, cookie_value};
use crate::request::Request;

/// One part of what decides.
#[derive(Clone, Debug)]
pub(super) struct HashPolicy {
    source: Source,
    terminal: bool,
}

#[derive(Clone, Debug)]
enum Source {
    Header(HeaderKey, Option<Box<Substitution>>),
    Cookie { name: Box<str>, path: Box<str>, ttl: Option<Duration> },
    Address,
    Param(Box<str>),
}

/// What decides the endpoint of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashKey {
    /// Equal for requests that shall meet the same endpoint; none if it does not matter.
    pub hash: Option<u64>,
    /// A cookie to give to the client, so that it comes back to the same endpoint.
    pub set_cookie: Option<String>,
}

impl HashPolicy {
    pub(super) fn compile(value: &pb::route_action::HashPolicy) -> Result<Self, ConfigError> {
        let source = match required(value.policy_specifier.as_ref())? {
            PolicySpecifier::Header(header) => {
                let rewrite = header.regex_rewrite.as_ref().map(Substitution::compile).transpose();
                let rewrite = rewrite.at("header.regex_rewrite")?.map(Box::new);
                Source::Header(HeaderKey::parse(&header.header_name).at("header.header_name")?, rewrite)
            }
            PolicySpecifier::Cookie(cookie) => Source::Cookie {
                name: cookie.name.as_str().into(),
                path: cookie.path.as_str().into(),
                ttl: optional_duration("cookie.ttl", cookie.ttl.as_ref())?,
            },
            PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => Source::Address,
            PolicySpecifier::ConnectionProperties(_) => return Err(ConfigError::new("names nothing")),
            PolicySpecifier::QueryParameter(param) => Source::Param(param.name.as_str().into()),
            PolicySpecifier::FilterState(_) => return not_supported("filter state").at("filter_state"),
        };
        Ok(Self { source, terminal: value.terminal })
    }
}

impl HashKey {
    pub(super) fn of(policies: &[HashPolicy], request: &Request<'_>, dice: u64) -> Self {
        let mut key = Self::default();
        for policy in policies {
            if let Some(hash) = policy.source.hash(request, dice, &mut key.set_cookie) {
                // The order of the parts counts, hence the rotation.
                key.hash = Some(key.hash.map_or(hash, |so_far| so_far.rotate_left(1) ^ hash));
            }
            if policy.terminal && key.hash.is_some() {
                break;
            }
        }
        key
    }
}

impl Source {
    fn hash(&self, request: &Request<'_>, dice: u64, set_cookie: &mut Option<String>) -> Option<u64> {
        match self {
            Self::Header(key, None) => key.read(request).map(|value| hash_bytes(&value)),
            Self::Header(key, Some(rewrite)) => {
                let value = key.read(request)?;
                Some(hash_bytes(rewrite.apply(std::str::from_utf8(&value).ok()?).as_bytes()))
            }
            Self::Address => Some(hash_bytes(request.remote.to_canonical().to_string().as_bytes())),
            Self::Param(name) => {
                let param = request.path.params().find(|(key, _)| **key == **name);
                param.map(|(_, value)| hash_bytes(value.as_bytes()))
            }
            Self::Cookie { name, path, ttl } => match cookie_value(request.headers, name) {
                Some(value) => Some(hash_bytes(value.as_bytes())),
                None => {
                    let value = format!("{:016x}", mix(dice));
                    *set_cookie = Some(cookie_line(name, &value, path, (*ttl)?));
                    Some(hash_bytes(value.as_bytes()))
                }
            },
        }
    }
}

fn cookie_line(name: &str, value: &str, path: &str, ttl: Duration) -> String {
    let mut line = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        line.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        line.push_str(&format!("; Path={path}"));
    }
    line.push_str("; HttpOnly");
    line
}

/// A hash that spreads well and is the same on every machine. It is not secret: nothing may depend on its being hard to
/// predict.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// Another throw of the dice out of one that is already used.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
