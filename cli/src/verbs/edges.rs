//! `kasbah edges`: who talks to whom, with which identities, and whether that is mTLS.

use serde::Serialize;

use super::traffic::{self, Edge, Traffic};
use super::{status, wait};
use crate::args::EdgesArgs;
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::up::layout::Layout;

#[derive(Debug, Serialize)]
struct Report {
    edges: Vec<Edge>,
    /// How many of all edges are not mTLS.
    not_mtls: usize,
    /// Parts that did not answer, with why.
    silent: Vec<String>,
}

pub(crate) fn run(args: &EdgesArgs) -> Result<(), Failure> {
    let layout = Layout::of(&args.dir.dir)?;
    loop {
        let state = status::running(&layout)?;
        let traffic = wait(async { Ok(traffic::gather(&state).await) })?;
        let report = Report::of(traffic, args.plain);
        let page = || output::marked(&text(&report), |line| line.contains(NOT_MTLS) || line.contains(NOT_KNOWN));
        let Some(every) = args.watch else { return output::print(args.output.output, &report, page) };
        match args.output.output {
            Format::Table => output::page(&page()),
            format => output::record(format, &report, page)?,
        }
        if output::is_closed() {
            return Ok(());
        }
        std::thread::sleep(every);
    }
}

impl Report {
    fn of(traffic: Traffic, plain: bool) -> Self {
        let Traffic { mut edges, silent } = traffic;
        let not_mtls = edges.iter().filter(|edge| edge.security != "mutual_tls").count();
        edges.retain(|edge| !plain || edge.security != "mutual_tls");
        Self { edges, not_mtls, silent }
    }
}

fn text(report: &Report) -> String {
    let row = |edge: &Edge| {
        let count = |n: u64| if n == 0 { "-".to_owned() } else { n.to_string() };
        [
            short(&edge.source),
            short(&edge.destination),
            edge.service.clone(),
            edge.protocol.clone(),
            secured(edge).to_owned(),
            count(edge.requests),
            count(edge.denied),
            count(edge.failed),
            count(edge.connections),
        ]
    };
    let header =
        ["SOURCE", "DESTINATION", "SERVICE", "PROTOCOL", "MTLS", "REQUESTS", "DENIED", "FAILED", "CONNECTIONS"];
    let mut text = output::table(header, report.edges.iter().map(row));
    if report.edges.is_empty() {
        "nothing to show: no proxy counted such a request yet".clone_into(&mut text);
    }
    text.push_str(&format!("\n\n{} edges shown, {} not mTLS", report.edges.len(), report.not_mtls));
    for silent in &report.silent {
        text.push_str(&format!("\nno answer from {silent}"));
    }
    text
}

fn secured(edge: &Edge) -> &'static str {
    match edge.security.as_str() {
        "mutual_tls" => "yes",
        "none" => NOT_MTLS.trim(),
        _ => NOT_KNOWN.trim(),
    }
}

/// An identity without the scheme, as policies write it.
pub(super) fn short(id: &str) -> String {
    id.strip_prefix("spiffe://").unwrap_or(id).to_owned()
}

/// The word of a row that is plain text.
const NOT_MTLS: &str = " NO ";
/// The word of a row that nobody calls mTLS.
const NOT_KNOWN: &str = " ? ";

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let edge = |source: &str, security: &str| Edge {
            source: source.into(),
            destination: "spiffe://cluster.local/ns/default/sa/helloworld".into(),
            service: "helloworld.default.svc.cluster.local".into(),
            protocol: "http".into(),
            security: security.into(),
            requests: 12,
            reporter: "destination".into(),
            ..Edge::default()
        };
        let mtls = edge("spiffe://cluster.local/ns/default/sa/test", "mutual_tls");
        let plain = Edge { requests: 0, connections: 3, denied: 0, ..edge("unknown", "none") };
        Report::of(Traffic { edges: vec![mtls, plain], silent: vec!["egress: it is away".into()] }, false)
    }

    #[test]
    fn the_table_is_golden() {
        let expected = "\
SOURCE                            DESTINATION                             SERVICE                               PROTOCOL  MTLS  REQUESTS  DENIED  FAILED  CONNECTIONS
cluster.local/ns/default/sa/test  cluster.local/ns/default/sa/helloworld  helloworld.default.svc.cluster.local  http      yes   12        -       -       -
unknown                           cluster.local/ns/default/sa/helloworld  helloworld.default.svc.cluster.local  http      NO    -         -       -       3

2 edges shown, 1 not mTLS
no answer from egress: it is away";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn the_document_is_golden() {
        let expected = serde_json::json!({
            "edges": [{
                "source": "unknown", "destination": "spiffe://cluster.local/ns/default/sa/helloworld",
                "service": "helloworld.default.svc.cluster.local", "protocol": "http", "security": "none",
                "requests": 0, "denied": 0, "failed": 0, "connections": 3, "reporter": "destination",
            }],
            "not_mtls": 1,
            "silent": ["egress: it is away"],
        });
        let Report { edges, silent, .. } = report();
        assert_eq!(serde_json::to_value(Report::of(Traffic { edges, silent }, true)).unwrap(), expected);
    }
}
