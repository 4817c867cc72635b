//! Galley: operators' documents, read and validated.
//!
//! A document is accepted only if its schema and its semantic rules hold; otherwise a [`Finding`] says where and why. The
//! kinds are Istio's (`networking.istio.io`, `security.istio.io`), its `MeshConfig` in the ConfigMap `istio`, and our
//! `RateLimit`.
#![allow(
    dead_code,
    reason = "the kinds carry every documented field; FIELDS_WITHOUT_EFFECT lists those not compiled yet"
)]

pub(crate) mod decode;
pub(crate) mod duration;
mod finding;
pub(crate) mod mesh;
mod meta;
pub(crate) mod networking;
pub(crate) mod rules;
pub(crate) mod security;
pub(crate) mod shapes;
pub(crate) mod tree;
pub(crate) mod virtual_service;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use finding::{Finding, Severity};
pub use meta::Kind;

pub(crate) use finding::Review;
pub(crate) use meta::Meta;

use meta::{Head, guess_resource};
use tree::{At, Node};

/// One accepted document.
#[derive(Clone, Debug)]
pub struct Document {
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    pub(crate) spec: Arc<Spec>,
    pub(crate) file: Arc<Path>,
    pub(crate) at: At,
    node: Arc<Node>,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one per document, behind an Arc")]
pub(crate) enum Spec {
    Gateway(networking::Gateway),
    VirtualService(virtual_service::VirtualService),
    DestinationRule(Box<networking::DestinationRule>),
    ServiceEntry(networking::ServiceEntry),
    WorkloadEntry(networking::WorkloadEntry),
    PeerAuthentication(security::PeerAuthentication),
    RequestAuthentication(security::RequestAuthentication),
    AuthorizationPolicy(security::AuthorizationPolicy),
    MeshConfig(Box<mesh::MeshConfig>),
    RateLimit(mesh::RateLimit),
}

impl Document {
    /// `Kind ns/name`.
    #[must_use]
    pub fn resource(&self) -> String {
        resource(self.kind, &self.meta)
    }

    /// The document's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the operator wrote, as JSON, with its place.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "file": self.file.display().to_string(),
            "line": self.at.line,
            "resource": self.resource(),
            "document": self.node.to_json(),
        })
    }

    /// The line of a field, or of the deepest part of its path that exists.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        self.node.locate(path).line
    }

    /// What stands at a path of keys and numbers, as JSON.
    pub(crate) fn json_at(&self, path: &str) -> Option<serde_json::Value> {
        self.node.to_json().pointer(path).cloned()
    }

    /// Whether both say the same, wherever they stand.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        self.kind == other.kind && self.meta == other.meta && self.spec == other.spec
    }
}

fn resource(kind: Kind, meta: &Meta) -> String {
    format!("{kind} {}/{}", meta.namespace, meta.name)
}

/// What one text held: the accepted documents, the names of the refused ones, and everything worth saying.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Accepted documents, in the order of the text.
    pub documents: Vec<Document>,
    /// `Kind ns/name` of documents that were refused, as far as their head could be read.
    pub refused: Vec<String>,
    /// Findings, in the order of the text.
    pub findings: Vec<Finding>,
    /// The text is no YAML: nothing is known about its documents.
    pub unreadable: bool,
}

/// Parses and validates one text, a stream of YAML documents. `file` is only named in findings.
#[must_use]
pub fn parse(file: &Path, text: &str) -> Parsed {
    let file: Arc<Path> = file.into();
    let nodes = match tree::parse_stream(text) {
        Ok(nodes) => nodes,
        Err(error) => {
            let mut review = Review::new(&file, "-".to_owned(), const { &EMPTY });
            review.note_at(Severity::Error, error.at, "YAML_INVALID", error.text);
            return Parsed { findings: review.findings, unreadable: true, ..Parsed::default() };
        }
    };
    let mut parsed = Parsed::default();
    for node in nodes {
        parse_document(&file, node, &mut parsed);
    }
    parsed
}

/// What schema and rules say of one document.
pub(crate) fn review(file: &Arc<Path>, node: Node) -> Parsed {
    let mut parsed = Parsed::default();
    parse_document(file, node, &mut parsed);
    parsed
}

fn parse_document(file: &Arc<Path>, node: Node, parsed: &mut Parsed) {
    let (kind, meta) = match meta::read_head(&node) {
        Ok(Head::Ours(kind, meta)) => (kind, meta),
        Ok(Head::Skipped { resource, text }) => {
            let mut review = Review::new(file, resource, &node);
            review.warn("", "KIND_SKIPPED", text);
            parsed.findings.append(&mut review.findings);
            return;
        }
        Err(error) => {
            let mut review = Review::new(file, guess_resource(&node), &node);
            let at = match &error {
                meta::HeadError::Decode(error) => error.at.unwrap_or_default(),
                _ => node.locate(error.path()),
            };
            parsed.refused.push(guess_resource(&node));
            review.note_at(Severity::Error, at, error.reason(), error.to_string());
            parsed.findings.append(&mut review.findings);
            return;
        }
    };
    let resource = resource(kind, &meta);
    let mut review = Review::new(file, resource.clone(), &node);
    let spec = read_spec(kind, &meta, &node, &mut review);
    let refused = review.refused();
    parsed.findings.append(&mut review.findings);
    match spec {
        Some(spec) if !refused => {
            let (spec, file, at) = (Arc::new(spec), Arc::clone(file), node.at);
            parsed.documents.push(Document { kind, meta, spec, file, at, node: Arc::new(node) });
        }
        _ => parsed.refused.push(resource),
    }
}

/// Decodes and validates the body; findings go to `review`.
fn read_spec(kind: Kind, meta: &Meta, node: &Node, review: &mut Review<'_>) -> Option<Spec> {
    if kind == Kind::MeshConfig {
        return read_mesh(node, review);
    }
    check_top_level(node, review);
    if meta.annotations.get("istio.io/always-reject").is_some_and(|value| value == "true") {
        review.error("metadata.annotations", "ALWAYS_REJECT", "the annotation istio.io/always-reject asks for refusal");
    }
    let Some(body) = node.field("spec").filter(|body| body.value != tree::Value::Null) else {
        review.error("spec", "FIELD_MISSING", "`spec` is required");
        return None;
    };
    let spec = match kind {
        Kind::Gateway => decode::decode(body).map(Spec::Gateway),
        Kind::VirtualService => decode::decode(body).map(Spec::VirtualService),
        Kind::DestinationRule => decode::decode(body).map(Box::new).map(Spec::DestinationRule),
        Kind::ServiceEntry => decode::decode(body).map(Spec::ServiceEntry),
        Kind::WorkloadEntry => decode::decode(body).map(Spec::WorkloadEntry),
        Kind::PeerAuthentication => decode::decode(body).map(Spec::PeerAuthentication),
        Kind::RequestAuthentication => decode::decode(body).map(Spec::RequestAuthentication),
        Kind::AuthorizationPolicy => decode::decode(body).map(Spec::AuthorizationPolicy),
        Kind::RateLimit => decode::decode(body).map(Spec::RateLimit),
        Kind::MeshConfig => return None,
    };
    match spec {
        Ok(spec) => {
            rules::check(&spec, meta, review);
            Some(spec)
        }
        Err(error) => {
            let at = error.at.unwrap_or(body.at);
            let path = error.path();
            let join = if path.is_empty() { ": " } else { "." };
            review.note_at(Severity::Error, at, error.reason(), format!("spec{join}{error}"));
            None
        }
    }
}

fn check_top_level(node: &Node, review: &mut Review<'_>) {
    let tree::Value::Map(entries) = &node.value else { return };
    for (key, _) in entries {
        if !TOP_LEVEL.contains(&key.text.as_str()) {
            let near = decode::nearest(&key.text, TOP_LEVEL);
            let hint = near.map(|near| format!("; is `{near}` meant?")).unwrap_or_default();
            review.note_at(Severity::Error, key.at, "FIELD_UNKNOWN", format!("unknown field `{}`{hint}", key.text));
        }
    }
}

/// The mesh configuration is YAML inside a string; its places are translated to the outer file.
fn read_mesh(node: &Node, review: &mut Review<'_>) -> Option<Spec> {
    let (key, outer) = node.field("data")?.entry("mesh")?;
    let Some(inner) = outer.text() else {
        review.error("data.mesh", "TYPE_WRONG", "a string is expected");
        return None;
    };
    let shift = |at: At| inner_place(key.at, outer.at, at);
    let body = match tree::parse_stream(inner) {
        Ok(mut nodes) => {
            nodes.drain(..).next().unwrap_or_else(|| Node { at: At::default(), value: tree::Value::Map(vec![]) })
        }
        Err(error) => {
            review.note_at(Severity::Error, shift(error.at), "YAML_INVALID", format!("data.mesh: {}", error.text));
            return None;
        }
    };
    match decode::decode::<mesh::MeshConfig>(&body) {
        Ok(config) => {
            let mut inner = Review::new(Path::new(""), String::new(), &body);
            rules::check_mesh(&config, &mut inner);
            for finding in inner.findings {
                let at = shift(At { line: finding.line, column: finding.column });
                review.note_at(finding.severity, at, finding.reason, format!("data.mesh: {}", finding.text));
            }
            Some(Spec::MeshConfig(Box::new(config)))
        }
        Err(error) => {
            let at = shift(error.at.unwrap_or_default());
            review.note_at(Severity::Error, at, error.reason(), format!("data.mesh: {error}"));
            None
        }
    }
}

/// Where a place inside a scalar stands in the whole file; exact for block scalars, which begin below their key.
fn inner_place(key: At, scalar: At, inner: At) -> At {
    if scalar.line <= key.line || inner.line == 0 {
        return scalar;
    }
    At { line: key.line + inner.line, column: scalar.column + inner.column - 1 }
}

/// Reads and validates every document of `paths`: files, and folders with all their `.yaml`, `.yml` and `.json` files.
///
/// A path that cannot be read is a finding too. Documents of one name are reported as warnings here, since alternatives
/// may stand side by side; a running discovery serves the first and refuses the second.
#[must_use]
pub fn validate(paths: &[PathBuf]) -> Vec<Finding> {
    load(paths).1
}

/// As [`validate`], with the accepted documents.
#[must_use]
pub fn load(paths: &[PathBuf]) -> (Vec<Document>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut documents: Vec<Document> = Vec::new();
    for file in files_of(paths, &mut findings) {
        match read_file(&file) {
            Ok(text) => {
                let mut parsed = parse(&file, &text);
                findings.append(&mut parsed.findings);
                documents.append(&mut parsed.documents);
            }
            Err(error) => findings.push(unreadable(&file, &error)),
        }
    }
    for (index, document) in documents.iter().enumerate() {
        if let Some(first) = documents[..index].iter().find(|earlier| same_name(earlier, document)) {
            findings.push(duplicate(first, document, Severity::Warning));
        }
    }
    (documents, findings)
}

pub(crate) fn same_name(a: &Document, b: &Document) -> bool {
    a.kind == b.kind && a.meta.name == b.meta.name && a.meta.namespace == b.meta.namespace
}

pub(crate) fn duplicate(first: &Document, second: &Document, severity: Severity) -> Finding {
    Finding {
        file: second.file.to_path_buf(),
        line: second.at.line,
        column: second.at.column,
        resource: second.resource(),
        severity,
        reason: "DOCUMENT_DUPLICATE",
        text: format!("already defined at {}:{}", first.file.display(), first.at.line),
    }
}

pub(crate) fn unreadable(file: &Path, error: &std::io::Error) -> Finding {
    Finding {
        file: file.to_owned(),
        line: 1,
        column: 1,
        resource: "-".to_owned(),
        severity: Severity::Error,
        reason: "FILE_UNREADABLE",
        text: error.to_string(),
    }
}

pub(crate) fn read_file(file: &Path) -> std::io::Result<String> {
    let len = std::fs::metadata(file)?.len();
    if len > tree::TEXT_BYTES_MAX as u64 {
        let text = format!("{len} bytes, at most {} are read", tree::TEXT_BYTES_MAX);
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, text));
    }
    std::fs::read_to_string(file)
}

/// The document files below `paths`, sorted; hidden files and editors' leftovers are left out.
pub(crate) fn files_of(paths: &[PathBuf], findings: &mut Vec<Finding>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => collect(path, 0, &mut files, findings),
            Ok(_) => files.push(path.clone()),
            Err(error) => findings.push(unreadable(path, &error)),
        }
    }
    files
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>, findings: &mut Vec<Finding>) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return findings.push(unreadable(folder, &error)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
        if name.starts_with('.') || files.len() >= FILES_MAX {
            continue;
        }
        if path.is_dir() {
            if depth < FOLDER_DEPTH_MAX {
                collect(&path, depth + 1, files, findings);
            }
        } else if matches!(suffix, "yaml" | "yml" | "json") {
            files.push(path);
        }
    }
}

/// Fields that documents may carry and that do not change what proxies do yet.
pub const FIELDS_WITHOUT_EFFECT: &[&str] = &[
    "VirtualService.http[].match[].statPrefix",
    "VirtualService.http[].delegate",
    "VirtualService.http[].retries.retryRemoteLocalities",
    "VirtualService.tls (for the gateway `mesh`)",
    "VirtualService.tcp (for the gateway `mesh`)",
    "VirtualService.tls[].match[].destinationSubnets",
    "VirtualService.tcp[].match[].destinationSubnets",
    "VirtualService.tcp[].match[].sourceSubnet",
    "DestinationRule.trafficPolicy.connectionPool.tcp.idleTimeout",
    "DestinationRule.trafficPolicy.connectionPool.tcp.maxConnectionDuration",
    "DestinationRule.trafficPolicy.tunnel",
    "DestinationRule.trafficPolicy.proxyProtocol",
    "DestinationRule.trafficPolicy.retryBudget",
    "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting",
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting",
    "DestinationRule.trafficPolicy.loadBalancer.warmup",
    "DestinationRule.trafficPolicy.loadBalancer.warmupDurationSecs",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes",
    "DestinationRule.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes",
    "Gateway.servers[].defaultEndpoint",
    "Gateway.servers[].port.targetPort",
    "Gateway.servers[].tls.caCertCredentialName",
    "ServiceEntry.resolution: DYNAMIC_DNS",
    "WorkloadEntry.locality (told to proxies, but no failover by it)",
    "WorkloadEntry.network",
    "RequestAuthentication.targetRefs (but to a Gateway)",
    "AuthorizationPolicy.targetRefs (but to a Gateway)",
    "MeshConfig.inboundTrafficPolicy",
    "MeshConfig.defaultConfig",
    "MeshConfig.localityLbSetting",
    "MeshConfig.meshMTLS",
    "MeshConfig.tlsDefaults",
    "MeshConfig.extensionProviders[].envoyExtAuthzHttp (matching requests are refused)",
    "MeshConfig.extensionProviders[].envoyOtelAls",
    "MeshConfig.extensionProviders[].prometheus",
    "MeshConfig.extensionProviders[].opentelemetry",
];

static EMPTY: Node = Node { at: At { line: 0, column: 0 }, value: tree::Value::Null };
const TOP_LEVEL: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const FILES_MAX: usize = 10_000;
const FOLDER_DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests;
