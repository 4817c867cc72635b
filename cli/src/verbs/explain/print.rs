//! The answers, as people read them.

use super::follow::level;
use super::report::{Document, Hop, Request, Step, Workload};
use crate::output;

pub(super) fn request(report: &Request) -> String {
    let peer = report.peer.as_deref().map(|peer| format!(" from {peer}")).unwrap_or_default();
    let status = report.status.map(|status| format!(" {status}")).unwrap_or_default();
    let reason = report.reason.as_ref().map(|reason| format!(" {reason}")).unwrap_or_default();
    let answer = report.answer.to_uppercase();
    let mut text = format!("{} {}{peer}: {answer}{status}{reason}\n", report.method, report.url);
    if let Some(decided) = &report.decided_by {
        let by = format!("{} {}", decided.step, decided.name);
        text.push_str(&format!("  decided at {} by {}: {}\n", decided.proxy, by.trim_end(), decided.why));
        if let Some(document) = &decided.document {
            text.push_str(&format!("  {}\n", document.text()));
        }
    }
    for hop in &report.hops {
        text.push_str(&format!("\n{} {}, by {}\n", hop.kind, hop.proxy, origin(&hop.source, &hop.differs)));
        text.push_str(&steps(hop));
        text.push('\n');
    }
    for assumed in &report.assumed {
        text.push_str(&format!("\ntaken for granted: {assumed}"));
    }
    text
}

/// What a proxy's configuration was taken from.
fn origin(source: &str, differs: &[String]) -> String {
    match (source, differs) {
        ("documents", _) => "the documents".to_owned(),
        (admin, []) => format!("what it holds ({admin}), as the documents say"),
        (admin, differs) => {
            let more = differs.len().saturating_sub(DIFFERS_TOLD_MAX);
            let mut told = differs.iter().take(DIFFERS_TOLD_MAX).cloned().collect::<Vec<_>>().join("; ");
            if more > 0 {
                told.push_str(&format!("; and {more} more"));
            }
            format!("what it holds ({admin}), which is NOT what the documents say: {told}")
        }
    }
}

fn steps(hop: &Hop) -> String {
    let row = |step: &Step| {
        let outcome = if step.decides { step.outcome.to_uppercase() } else { step.outcome.to_owned() };
        let name = if step.name.is_empty() { "-".to_owned() } else { step.name.clone() };
        [step.step.to_owned(), outcome, name, step.why.clone(), document(step.document.as_ref())]
    };
    output::table(["STEP", "ANSWER", "WHAT", "WHY", "DOCUMENT"], hop.steps.iter().map(row))
}

fn document(document: Option<&Document>) -> String {
    document.map_or_else(|| "-".to_owned(), Document::text)
}

pub(super) fn workload(report: &Workload) -> String {
    let mut text = format!("{} {}, by {}\n", report.kind, report.workload, origin(&report.source, &report.differs));
    let assumed = if report.spiffe_id_assumed { " (a guess: no document names the service account)" } else { "" };
    text.push_str(&format!("{}{assumed}\n", report.spiffe_id.as_deref().unwrap_or("no SPIFFE ID is known")));
    section(&mut text, "LISTENERS", listeners(report));
    section(&mut text, "PORTS", ports(report));
    section(&mut text, "TOKEN RULES", token_rules(report));
    section(&mut text, "POLICIES, IN THE ORDER IN WHICH THEY DECIDE", policies(report));
    section(&mut text, "ROUTES THAT LEAD HERE", routes(report));
    section(&mut text, "WHO MAY CALL", callers(report));
    text
}

fn section(text: &mut String, title: &str, table: Option<String>) {
    if let Some(table) = table {
        text.push_str(&format!("\n{title}\n{table}\n"));
    }
}

fn listeners(report: &Workload) -> Option<String> {
    let rows = report.listeners.iter().map(|one| {
        [one.name.clone(), one.address.clone(), one.filter_chains.to_string(), document(one.document.as_ref())]
    });
    (!report.listeners.is_empty()).then(|| output::table(["NAME", "ADDRESS", "CHAINS", "DOCUMENT"], rows))
}

fn ports(report: &Workload) -> Option<String> {
    let rows = report.ports.iter().map(|port| {
        let mtls = format!("{} by {}", port.mtls, level(port.mtls_of));
        let services = port.services.join(", ");
        [port.port.to_string(), port.protocol.to_owned(), services, mtls, document(port.document.as_ref())]
    });
    let header = ["PORT", "PROTOCOL", "SERVICES", "MTLS", "DOCUMENT"];
    (!report.ports.is_empty()).then(|| output::table(header, rows))
}

fn token_rules(report: &Workload) -> Option<String> {
    let rows = report.jwt.iter().map(|rule| [rule.issuer.clone(), rule.keys.clone(), rule.document.text()]);
    (!report.jwt.is_empty()).then(|| output::table(["ISSUER", "KEYS", "DOCUMENT"], rows))
}

fn policies(report: &Workload) -> Option<String> {
    let mut rows = Vec::new();
    for policy in &report.policies {
        let action = if policy.dry_run { format!("{} (dry run)", policy.action) } else { policy.action.to_owned() };
        if policy.rules.is_empty() {
            let why = "no rules: it never matches".to_owned();
            rows.push([action.clone(), policy.name.clone(), why, policy.document.text()]);
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            let place = Document { line: rule.line, ..policy.document.clone() };
            rows.push([action.clone(), format!("{} rule {at}", policy.name), rule.rule.to_string(), place.text()]);
        }
    }
    (!rows.is_empty()).then(|| output::table(["ACTION", "POLICY", "RULE", "DOCUMENT"], rows))
}

fn routes(report: &Workload) -> Option<String> {
    let rows = report.routes.iter().map(|route| {
        let (host, name, matches) = (route.host.clone(), route.route.clone(), route.matches.clone());
        [route.proxy.clone(), host, name, matches, route.cluster.clone(), document(route.document.as_ref())]
    });
    let header = ["PROXY", "HOST", "ROUTE", "MATCHES", "CLUSTER", "DOCUMENT"];
    (!report.routes.is_empty()).then(|| output::table(header, rows))
}

fn callers(report: &Workload) -> Option<String> {
    let rows = report.callers.iter().map(|caller| {
        let by = if caller.decided_by.is_empty() { "-".to_owned() } else { caller.decided_by.join(", ") };
        [caller.spiffe_id.clone(), caller.may_call.to_owned(), by]
    });
    (!report.callers.is_empty()).then(|| output::table(["SPIFFE ID", "MAY CALL", "DECIDED BY"], rows))
}

/// Differences that are told to people.
const DIFFERS_TOLD_MAX: usize = 5;
