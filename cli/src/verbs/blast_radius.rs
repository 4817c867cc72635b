//! `kasbah blast-radius`: what an identity can reach by policy, and what it did reach.
//!
//! Policies are judged twice by the engine of `authz eval`, on documents that say more and less than the real ones
//! ([`bounds`]): where even the most generous reading denies, the answer is `no`; where even the strictest allows, `yes`; between them it
//! `depends` on what a request is like. Traffic is what the proxies counted.

mod bounds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use identity::spiffe_id::SpiffeId;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::filters::authz::Evaluator;
use super::traffic::{self, Edge};
use super::{status, wait};
use crate::args::BlastRadiusArgs;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::Layout;

/// A service of the documents.
#[derive(Debug, PartialEq)]
struct Service {
    host: String,
    namespace: String,
    /// Labels of a workload behind it; `None` where no workload of the mesh is.
    labels: Option<Map<String, Value>>,
}

#[derive(Debug, Serialize)]
struct Reach {
    service: String,
    namespace: String,
    /// `yes`, `no`, `depends`; `unjudged` outside the mesh or the documents.
    by_policy: &'static str,
    /// The policies that decide, `namespace/name`.
    policies: Vec<String>,
    requests: u64,
    denied: u64,
    connections: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    spiffe_id: String,
    reach: Vec<Reach>,
    /// Whether the proxies were asked.
    traffic_known: bool,
    silent: Vec<String>,
}

pub(crate) fn run(args: &BlastRadiusArgs) -> Result<(), Failure> {
    let id = super::spiffe_id(&args.id)?;
    let layout = Layout::of(&args.dir.dir)?;
    if args.config.is_empty() && !layout.config().is_dir() {
        let text = format!("there are no documents in {}", layout.config().display());
        return Err(Failure::refused(Exit::Unavailable, "MESH_NOT_RUNNING", text)
            .remedy("name the mesh's folder with --dir DIR or KASBAH_DIR, or the documents with --config PATH"));
    }
    let paths = if args.config.is_empty() { vec![layout.config()] } else { args.config.clone() };
    let documents = read(&paths)?;
    let traffic = match status::running(&layout) {
        Ok(state) => Some(wait(async { Ok(traffic::gather(&state).await) })?),
        Err(failure) => {
            output::message(&format!("traffic is not known: {}", failure.brief()));
            None
        }
    };
    let edges = traffic.as_ref().map(|traffic| traffic.edges.as_slice()).unwrap_or_default();
    let report = Report {
        spiffe_id: args.id.clone(),
        reach: reach(&id, &documents, edges)?,
        traffic_known: traffic.is_some(),
        silent: traffic.map(|traffic| traffic.silent).unwrap_or_default(),
    };
    output::print(args.output.output, &report, || text(&report))
}

/// All documents of the files, which must be good.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files(path)? {
            let bad = |why: String| {
                Failure::new(Exit::Data, format!("{}: {why}", file.display()))
                    .remedy("see `kasbah validate` for what is wrong with it")
            };
            let text = std::fs::read_to_string(&file).map_err(|error| bad(error.to_string()))?;
            let parsed = discovery::documents::parse(&file, &text);
            if let Some(finding) = parsed.findings.iter().find(|finding| finding.is_error()) {
                return Err(bad(finding.reason.to_owned()));
            }
            let read: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| bad(error.to_string()))?;
            documents.extend(read.into_iter().filter(Value::is_object));
        }
    }
    Ok(documents)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
    files.sort();
    Ok(files)
}

/// Every service of the documents, then what else was reached; what can be reached comes first.
fn reach(id: &SpiffeId, documents: &[Value], edges: &[Edge]) -> Result<Vec<Reach>, Failure> {
    let own: Vec<&Edge> = edges.iter().filter(|edge| edge.source == id.to_string()).collect();
    let (generous, strict) = (bounds::generous(documents), bounds::strict(documents));
    let mut reach = Vec::new();
    for service in services(documents) {
        let (by_policy, policies) = judge(id, id.trust_domain_name(), &service, &generous, &strict)?;
        reach.push(with_traffic(service.host, service.namespace, by_policy, policies, &own));
    }
    let known: Vec<String> = reach.iter().map(|one: &Reach| one.service.clone()).collect();
    let mut others: Vec<&str> =
        own.iter().map(|edge| edge.service.as_str()).filter(|s| !known.iter().any(|k| k == s)).collect();
    others.sort_unstable();
    others.dedup();
    reach.extend(
        others.into_iter().map(|host| with_traffic(host.to_owned(), String::new(), UNJUDGED, Vec::new(), &own)),
    );
    let rank = |one: &Reach| ["yes", "depends", UNJUDGED, "no"].iter().position(|word| *word == one.by_policy);
    reach.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.service.cmp(&b.service)));
    Ok(reach)
}

fn with_traffic(
    service: String,
    namespace: String,
    by_policy: &'static str,
    policies: Vec<String>,
    own: &[&Edge],
) -> Reach {
    let count = |of: fn(&Edge) -> u64| own.iter().filter(|edge| edge.service == service).map(|edge| of(edge)).sum();
    let (requests, denied, connections) = (count(|e| e.requests), count(|e| e.denied), count(|e| e.connections));
    Reach { service, namespace, by_policy, policies, requests, denied, connections }
}

fn services(documents: &[Value]) -> Vec<Service> {
    let entries = documents.iter().filter(|document| document["kind"] == "ServiceEntry");
    let hosts = |entry: &Value| entry.pointer("/spec/hosts").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut services = Vec::new();
    for entry in entries {
        let namespace = namespace_of(entry);
        let labels = entry.pointer("/spec/workloadSelector/labels").and_then(Value::as_object);
        for host in hosts(entry).iter().filter_map(Value::as_str) {
            let labels = labels.map(|selector| workload_labels(documents, &namespace, selector));
            services.push(Service { host: host.to_owned(), namespace: namespace.clone(), labels });
        }
    }
    services
}

/// The labels of the first workload that a selector picks; those of the selector where none is known.
fn workload_labels(documents: &[Value], namespace: &str, selector: &Map<String, Value>) -> Map<String, Value> {
    let workloads = documents.iter().filter(|one| one["kind"] == "WorkloadEntry" && namespace_of(one) == namespace);
    let mut labels = workloads.filter_map(|one| one.pointer("/spec/labels")?.as_object());
    let picked = labels.find(|labels| selector.iter().all(|(name, value)| labels.get(name) == Some(value)));
    picked.unwrap_or(selector).clone()
}

fn namespace_of(document: &Value) -> String {
    document.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default").to_owned()
}

/// Whether policies let an identity call a workload: `yes`, `no`, `depends`, and the policies that decide.
pub(super) fn may_call(
    id: &SpiffeId,
    trust_domain: &str,
    namespace: &str,
    labels: &Map<String, Value>,
    documents: &[Value],
) -> Result<(&'static str, Vec<String>), Failure> {
    let service =
        Service { host: "localhost".to_owned(), namespace: namespace.to_owned(), labels: Some(labels.clone()) };
    judge(id, trust_domain, &service, &bounds::generous(documents), &bounds::strict(documents))
}

fn judge(
    id: &SpiffeId,
    trust_domain: &str,
    service: &Service,
    generous: &str,
    strict: &str,
) -> Result<(&'static str, Vec<String>), Failure> {
    let Some(labels) = &service.labels else { return Ok((UNJUDGED, Vec::new())) };
    let (can, by) = ask(id, trust_domain, service, labels, generous)?;
    let (must, by_strict) = ask(id, trust_domain, service, labels, strict)?;
    let mut policies: Vec<String> = [by, by_strict].into_iter().flatten().collect();
    policies.sort();
    policies.dedup();
    Ok((
        match (can, must) {
            (false, _) => "no",
            (true, true) => "yes",
            (true, false) => "depends",
        },
        policies,
    ))
}

/// Whether policies allow it, and by which one.
fn ask(
    id: &SpiffeId,
    trust_domain: &str,
    service: &Service,
    labels: &Map<String, Value>,
    policies: &str,
) -> Result<(bool, Option<String>), Failure> {
    let labels: BTreeMap<&String, &Value> = labels.iter().collect();
    let question = json!({
        "policies_yaml": policies,
        "workload": {"namespace": service.namespace, "labels": labels},
        "trust_domain": trust_domain,
        "request": {"peer": id.to_string(), "host": service.host},
    });
    let answer = Evaluator::default().answer(question.to_string().as_bytes());
    let policy = answer.split(' ').nth(1).and_then(|name| name.rsplit_once('/')).map(|(policy, _)| policy.to_owned());
    match answer.split(' ').next() {
        Some("allow") => Ok((true, policy)),
        Some("deny") => Ok((false, policy)),
        _ => Err(Failure::new(Exit::Data, format!("the policies cannot be judged: {answer}"))
            .remedy("see `kasbah validate` for what is wrong with them")),
    }
}

fn text(report: &Report) -> String {
    let row = |one: &Reach| {
        let count = |n: u64| if report.traffic_known { n.to_string() } else { "?".to_owned() };
        let policies = if one.policies.is_empty() { "-".to_owned() } else { one.policies.join(", ") };
        let (requests, denied, connections) = (count(one.requests), count(one.denied), count(one.connections));
        [one.service.clone(), one.by_policy.to_owned(), policies, requests, denied, connections]
    };
    let header = ["SERVICE", "BY POLICY", "DECIDED BY", "REQUESTS", "DENIED", "CONNECTIONS"];
    let mut text = output::table(header, report.reach.iter().map(row));
    let of = |word: &str| report.reach.iter().filter(|one| one.by_policy == word).count();
    text.push_str(&format!(
        "\n\n{} can be reached, {} depend on the request, {} cannot, {} not judged",
        of("yes"),
        of("depends"),
        of("no"),
        of(UNJUDGED)
    ));
    for silent in &report.silent {
        text.push_str(&format!("\nno answer from {silent}"));
    }
    text
}

/// Of a service without a workload in the mesh, or that no document names.
const UNJUDGED: &str = "unjudged";

#[cfg(test)]
mod tests;
