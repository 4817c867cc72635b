//! Picking the filter chain of a connection, by Envoy's order: destination port, destination address, server name,
//! transport protocol, application protocol, direct source, source type, source address, source port.
//!
//! At each step the most specific value that fits wins and only the chains that have exactly this value stay. There is
//! no way back: a chain that loses a step is out, even if the winners of the step fail a later one.

use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::listener::v3 as pb;
use pb::filter_chain_match::ConnectionSourceType;
use smallvec::SmallVec;

use crate::config::{At, ConfigError, each, not_supported, number, port};
use crate::matcher::Cidr;

/// What is known of a connection when its chain is picked.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// Where it goes: the original destination, or the local address.
    pub destination: SocketAddr,
    /// Where it comes from.
    pub source: SocketAddr,
    /// The address at the other end of the socket.
    pub direct_source: SocketAddr,
    /// The server name of the handshake.
    pub sni: Option<&'a str>,
    /// The protocols that the client offers, or the one that was recognised: `http/1.0`, `http/1.1`, `h2c`.
    pub alpn: &'a [&'a str],
    /// `tls` or `raw_buffer`.
    pub transport: &'a str,
}

/// When a filter chain takes a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    destination_port: Option<u16>,
    destination: Vec<Cidr>,
    server_names: Vec<Box<str>>,
    transport: Box<str>,
    application_protocols: Vec<Box<str>>,
    direct_source: Vec<Cidr>,
    source_type: SourceType,
    source: Vec<Cidr>,
    source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SourceType {
    #[default]
    Any,
    Local,
    External,
}

impl ChainMatch {
    pub(crate) fn compile(value: Option<&pb::FilterChainMatch>) -> Result<Self, ConfigError> {
        let Some(value) = value else { return Ok(Self::default()) };
        if !value.address_suffix.is_empty() || value.suffix_len.is_some() {
            return not_supported("matching by address suffix").at("address_suffix");
        }
        Ok(Self {
            destination_port: number(value.destination_port.as_ref()).map(port).transpose().at("destination_port")?,
            destination: each("prefix_ranges", &value.prefix_ranges, Cidr::compile)?,
            server_names: each("server_names", &value.server_names, |name| server_name(name))?,
            transport: value.transport_protocol.as_str().into(),
            application_protocols: value.application_protocols.iter().map(|name| name.as_str().into()).collect(),
            direct_source: each("direct_source_prefix_ranges", &value.direct_source_prefix_ranges, Cidr::compile)?,
            source_type: SourceType::compile(value.source_type).at("source_type")?,
            source: each("source_prefix_ranges", &value.source_prefix_ranges, Cidr::compile)?,
            source_ports: each("source_ports", &value.source_ports, |value| port(*value))?,
        })
    }
}

impl SourceType {
    fn compile(value: i32) -> Result<Self, ConfigError> {
        match ConnectionSourceType::try_from(value) {
            Ok(ConnectionSourceType::Any) => Ok(Self::Any),
            Ok(ConnectionSourceType::SameIpOrLoopback) => Ok(Self::Local),
            Ok(ConnectionSourceType::External) => Ok(Self::External),
            Err(_) => Err(ConfigError::new("unknown source type")),
        }
    }
}

fn server_name(name: &str) -> Result<Box<str>, ConfigError> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.contains('*') || rest.is_empty() {
        return Err(ConfigError::new(format!(
            "`{name}` is not a server name; a wildcard stands only for whole labels"
        )));
    }
    Ok(name.to_ascii_lowercase().into())
}

type Candidates = SmallVec<[usize; 16]>;

/// The index of the chain that takes the connection.
pub(super) fn pick(matches: &[ChainMatch], facts: &ConnectionFacts<'_>) -> Option<usize> {
    let mut left: Candidates = (0..matches.len()).collect();
    let at = |index: &usize| &matches[*index];

    keep_best(&mut left, |index| scalar(at(index).destination_port, facts.destination.port()));
    keep_best(&mut left, |index| range(&at(index).destination, facts.destination.ip()));
    keep_best(&mut left, |index| name(&at(index).server_names, facts.sni));
    keep_best(&mut left, |index| transport(&at(index).transport, facts.transport));
    keep_best(&mut left, |index| protocol(&at(index).application_protocols, facts.alpn));
    keep_best(&mut left, |index| range(&at(index).direct_source, facts.direct_source.ip()));
    keep_best(&mut left, |index| source_type(at(index).source_type, facts));
    keep_best(&mut left, |index| range(&at(index).source, facts.source.ip()));
    keep_best(&mut left, |index| one_of(&at(index).source_ports, facts.source.port()));
    left.first().copied()
}

/// Keeps the candidates with the highest score; those without a score are out.
fn keep_best(left: &mut Candidates, score: impl Fn(&usize) -> Option<usize>) {
    if let [only] = left.as_slice() {
        if score(only).is_none() {
            left.clear();
        }
        return;
    }
    let best = left.iter().filter_map(&score).max();
    left.retain(|index| score(index).is_some_and(|score| Some(score) == best));
}

fn scalar(wanted: Option<u16>, actual: u16) -> Option<usize> {
    match wanted {
        None => Some(0),
        Some(wanted) => (wanted == actual).then_some(1),
    }
}

fn one_of(wanted: &[u16], actual: u16) -> Option<usize> {
    match wanted.is_empty() {
        true => Some(0),
        false => wanted.contains(&actual).then_some(1),
    }
}

/// Longer prefixes are better; no range at all is worst.
fn range(ranges: &[Cidr], ip: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    let fitting = ranges.iter().filter(|range| range.contains(ip));
    fitting.map(|range| usize::from(range.prefix_len()) + 1).max()
}

/// The exact name is best, then the longest wildcard.
fn name(names: &[Box<str>], sni: Option<&str>) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let sni = sni?;
    names.iter().filter_map(|name| name_score(name, sni)).max()
}

fn name_score(name: &str, sni: &str) -> Option<usize> {
    match name.strip_prefix('*') {
        None => name.eq_ignore_ascii_case(sni).then_some(usize::MAX),
        Some(suffix) => {
            let start = sni.len().checked_sub(suffix.len()).filter(|start| *start > 0)?;
            sni.get(start..)?.eq_ignore_ascii_case(suffix).then_some(suffix.len())
        }
    }
}

fn transport(wanted: &str, actual: &str) -> Option<usize> {
    match wanted.is_empty() {
        true => Some(0),
        false => (wanted == actual).then_some(1),
    }
}

/// The client's most wanted protocol is best.
fn protocol(wanted: &[Box<str>], offered: &[&str]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    let at = offered.iter().position(|protocol| wanted.iter().any(|wanted| &**wanted == *protocol))?;
    Some(offered.len() - at)
}

fn source_type(wanted: SourceType, facts: &ConnectionFacts<'_>) -> Option<usize> {
    let source = facts.source.ip().to_canonical();
    let local = source.is_loopback() || source == facts.destination.ip().to_canonical();
    match wanted {
        SourceType::Any => Some(0),
        SourceType::Local => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    }
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
