//! Who talks to whom, as the proxies count it: Istio's metrics of every proxy of a mesh, brought together.
//!
//! A connection between two proxies is counted at both ends. What the destination says goes before what the source says: it
//! saw whether the peer proved who it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;

use crate::up::MeshState;

/// One source, one destination, one service, one protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Edge {
    /// The peer's SPIFFE ID, or `unknown`.
    pub(super) source: String,
    /// The workload's SPIFFE ID, or `unknown`.
    pub(super) destination: String,
    /// Host of the service that was asked for.
    pub(super) service: String,
    /// `http`, `grpc` or `tcp`.
    pub(super) protocol: String,
    /// Istio's `connection_security_policy`: `mutual_tls`, `none` or `unknown`.
    pub(super) security: String,
    pub(super) requests: u64,
    /// Requests that were answered 401 or 403.
    pub(super) denied: u64,
    /// Requests that were answered 5xx or not at all.
    pub(super) failed: u64,
    /// TCP connections.
    pub(super) connections: u64,
    /// Which end counted: `source`, `destination`.
    pub(super) reporter: String,
}

/// What the proxies said.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) edges: Vec<Edge>,
    /// Proxies that did not answer, with why.
    pub(super) silent: Vec<String>,
}

/// Asks every proxy of the mesh.
pub(super) async fn gather(state: &MeshState) -> Traffic {
    let asked = state.processes.iter().filter_map(|process| Some((&process.name, process.admin?)));
    let answers = join_all(asked.map(|(name, admin)| async move { (name, metrics(admin).await) })).await;
    let mut traffic = Traffic::default();
    let mut counts = Vec::new();
    for (name, answer) in answers {
        match answer {
            Ok(text) => counts.extend(samples(&text)),
            Err(why) => traffic.silent.push(format!("{name}: {why}")),
        }
    }
    traffic.edges = edges(&counts);
    traffic
}

async fn metrics(admin: SocketAddr) -> Result<String, String> {
    match runtime::ask::get(admin, "/metrics").await {
        Ok((StatusCode::OK, body)) => Ok(String::from_utf8_lossy(&body).into_owned()),
        Ok((status, _)) => Err(format!("answered {status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// One line of a metrics page.
#[derive(Debug, PartialEq)]
pub(super) struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or(UNKNOWN, String::as_str)
    }

    fn count(&self) -> u64 {
        self.value.max(0.0) as u64 // Saturates; NaN is 0.
    }
}

/// The samples of the two metrics that edges are made of.
pub(super) fn samples(page: &str) -> Vec<Sample> {
    let wanted = |line: &&str| line.starts_with(REQUESTS) || line.starts_with(CONNECTIONS);
    page.lines().filter(wanted).filter_map(sample).collect()
}

/// A line of OpenMetrics text: `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            let value = after.split_whitespace().next()?.parse().ok()?;
            return Some(Sample { name: name.to_owned(), labels, value });
        }
        let (label, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(label.to_owned(), value);
        rest = after;
    }
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

/// Samples of all proxies as edges, busiest first.
pub(super) fn edges(samples: &[Sample]) -> Vec<Edge> {
    let mut ends: BTreeMap<[String; 5], Edge> = BTreeMap::new();
    for sample in samples {
        let edge = ends.entry(key(sample)).or_insert_with(|| of(sample));
        if sample.name == CONNECTIONS {
            edge.connections += sample.count();
            continue;
        }
        edge.requests += sample.count();
        match sample.label("response_code") {
            "401" | "403" => edge.denied += sample.count(),
            code if code == "0" || code.starts_with('5') => edge.failed += sample.count(),
            _ => {}
        }
        // One plain request is enough to say that this edge is not closed.
        if sample.label("connection_security_policy") == "none" {
            edge.security = "none".to_owned();
        }
    }
    let mut edges = one_end(ends.into_values().collect());
    edges.sort_by(|a, b| {
        (b.requests + b.connections).cmp(&(a.requests + a.connections)).then_with(|| order(a).cmp(&order(b)))
    });
    edges
}

fn order(edge: &Edge) -> [&str; 4] {
    [&edge.source, &edge.destination, &edge.service, &edge.protocol]
}

/// What both ends counted is left in once: as the destination counted it, or, where that end does not know the service by name,
/// as the source did.
fn one_end(edges: Vec<Edge>) -> Vec<Edge> {
    let by = |reporter: &str| -> Vec<Edge> { edges.iter().filter(|edge| edge.reporter == reporter).cloned().collect() };
    let (sources, destinations) = (by("source"), by("destination"));
    let same =
        |a: &Edge, b: &Edge| (&a.source, &a.destination, &a.protocol) == (&b.source, &b.destination, &b.protocol);
    let nameless = |edge: &Edge| edge.service == UNKNOWN && sources.iter().any(|source| same(source, edge));
    let counted = |edge: &Edge| destinations.iter().any(|other| same(other, edge) && other.service == edge.service);
    let mut left: Vec<Edge> = sources.iter().filter(|edge| !counted(edge)).cloned().collect();
    for edge in &mut left {
        // Whether the peer proved who it is the destination knows better.
        if let Some(seen) = destinations.iter().find(|other| same(other, edge) && nameless(other)) {
            edge.security.clone_from(&seen.security);
        }
    }
    left.extend(destinations.iter().filter(|edge| !nameless(edge)).cloned());
    left
}

fn key(sample: &Sample) -> [String; 5] {
    let edge = of(sample);
    [edge.source, edge.destination, edge.service, edge.protocol, edge.reporter]
}

fn of(sample: &Sample) -> Edge {
    let label = |name| sample.label(name).to_owned();
    Edge {
        source: label("source_principal"),
        destination: label("destination_principal"),
        service: label("destination_service"),
        protocol: label("request_protocol"),
        security: label("connection_security_policy"),
        reporter: label("reporter"),
        ..Edge::default()
    }
}

/// What Istio writes where it does not know.
const UNKNOWN: &str = "unknown";
const REQUESTS: &str = "istio_requests_total";
const CONNECTIONS: &str = "istio_tcp_connections_opened_total";

#[cfg(test)]
mod tests;
