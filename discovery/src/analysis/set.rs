//! The whole set of documents that is analysed together, read from files and folders.
//!
//! A document that is no YAML is reported with its place, and all others count all the same: files are cut at the lines
//! `---` that part documents, so that one bad document spoils no other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::resource::{ROOT_NAMESPACE, Resource, What};
use super::view::View;
use crate::documents::tree::{self, At, Node, Value};
use crate::documents::{self, Document, Finding, Severity};

/// Documents by kind, and what could not be read.
#[derive(Debug, Default)]
pub(crate) struct Set {
    resources: Vec<Resource>,
    by_kind: BTreeMap<What, Vec<usize>>,
    /// What the schema and the rules of single documents say, with the document.
    pub(crate) reviews: Vec<(usize, Finding)>,
    /// The documents that discovery would take.
    pub(crate) accepted: Vec<Document>,
    /// Documents that could not be read at all.
    pub(crate) unreadable: Vec<Finding>,
}

impl Set {
    /// Reads everything below `paths`; `mesh` is a file with the mesh configuration alone.
    pub(crate) fn read(paths: &[PathBuf], mesh: Option<&Path>) -> Self {
        let mut set = Self::default();
        for file in documents::files_of(paths, &mut set.unreadable) {
            set.read_file(&file, false);
        }
        if let Some(mesh) = mesh {
            set.read_file(mesh, true);
        }
        set
    }

    fn read_file(&mut self, file: &Path, is_mesh: bool) {
        match documents::read_file(file) {
            Ok(text) => self.read_text(&file.into(), &text, is_mesh),
            Err(error) => self.unreadable.push(documents::unreadable(file, &error)),
        }
    }

    /// Takes in one text. `is_mesh` says that it is a mesh configuration, which has no head.
    pub(crate) fn read_text(&mut self, file: &Arc<Path>, text: &str, is_mesh: bool) {
        if text.len() > tree::TEXT_BYTES_MAX {
            let text = format!("{} bytes, at most {} are read", text.len(), tree::TEXT_BYTES_MAX);
            return self.refuse(file, At { line: 1, column: 1 }, "FILE_UNREADABLE", text);
        }
        for (lines_before, chunk) in chunks(text) {
            match tree::parse_stream(chunk) {
                Ok(nodes) => {
                    for node in nodes.into_iter().filter(|node| node.value != Value::Null) {
                        self.take(node, file, lines_before, is_mesh);
                    }
                }
                Err(error) => {
                    let at = At { line: error.at.line + lines_before, column: error.at.column };
                    self.refuse(file, at, "YAML_INVALID", error.text);
                }
            }
        }
    }

    fn take(&mut self, node: Node, file: &Arc<Path>, lines_before: u64, is_mesh: bool) {
        let root = View::of(&node);
        let kind = root.get("kind").text();
        if kind.ends_with("List") && root.get("items").exists() {
            for item in root.get("items").items().filter_map(View::node).cloned() {
                self.take_one(item, file, lines_before);
            }
        } else if is_mesh || (kind.is_empty() && is_mesh_config(root)) {
            self.take_mesh(What::MeshConfig, node, file, lines_before);
        } else if kind.is_empty() && root.get("networks").exists() && root.entries().count() == 1 {
            self.take_mesh(What::MeshNetworks, node, file, lines_before);
        } else {
            self.take_one(node, file, lines_before);
        }
    }

    fn take_mesh(&mut self, what: What, node: Node, file: &Arc<Path>, lines_before: u64) {
        let name = if what == What::MeshConfig { "istio" } else { "meshnetworks" };
        self.add(Resource::of_mesh(what, name, node, file, lines_before));
    }

    fn take_one(&mut self, node: Node, file: &Arc<Path>, lines_before: u64) {
        let at = node.at;
        let Some(resource) = Resource::read(node, file, lines_before) else {
            let at = At { line: at.line + lines_before, column: at.column };
            return self.refuse(file, at, "FIELD_MISSING", "`kind` is required".to_owned());
        };
        if self.resources.len() >= RESOURCES_MAX {
            let text = format!("more than {RESOURCES_MAX} documents; this one and all after it are left out");
            if self.unreadable.last().is_none_or(|last| last.text != text) {
                self.refuse(file, at, "FILE_UNREADABLE", text);
            }
            return;
        }
        let index = self.resources.len();
        let reviewed = documents::review(file, resource.node().clone());
        self.reviews.extend(reviewed.findings.into_iter().map(|finding| (index, finding)));
        self.accepted.extend(reviewed.documents);
        let inner = if resource.what == What::ConfigMap { mesh_of(&resource) } else { Vec::new() };
        self.add(resource);
        inner.into_iter().for_each(|inner| self.add(inner));
    }

    pub(crate) fn add(&mut self, resource: Resource) {
        self.by_kind.entry(resource.what).or_default().push(self.resources.len());
        self.resources.push(resource);
    }

    fn refuse(&mut self, file: &Path, at: At, reason: &'static str, text: String) {
        self.unreadable.push(Finding {
            file: file.to_owned(),
            line: at.line,
            column: at.column,
            resource: "-".to_owned(),
            severity: Severity::Error,
            reason,
            text,
        });
    }

    /// All documents of a kind, in their order.
    pub(crate) fn of(&self, what: What) -> impl Iterator<Item = &Resource> {
        self.by_kind.get(&what).into_iter().flatten().filter_map(|index| self.resources.get(*index))
    }

    pub(crate) fn all(&self) -> &[Resource] {
        &self.resources
    }

    pub(crate) fn find(&self, what: What, namespace: &str, name: &str) -> Option<&Resource> {
        self.of(what).find(|resource| resource.is(namespace, name))
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Resource> {
        self.find(What::Namespace, "", name)
    }

    /// The mesh configuration; nothing where none is in the set.
    pub(crate) fn mesh(&self) -> Option<&Resource> {
        let configs = || self.of(What::MeshConfig);
        configs().find(|config| config.name == "istio").or_else(|| configs().next())
    }

    /// The namespace whose policies hold everywhere.
    pub(crate) fn root_namespace(&self) -> &str {
        match self.mesh().map(|mesh| mesh.root().get("rootNamespace").text()).unwrap_or_default() {
            "" => ROOT_NAMESPACE,
            namespace => namespace,
        }
    }

    /// Whether the set describes a mesh outside Kubernetes: its workloads are written down, and nothing of Kubernetes is.
    pub(crate) fn is_outside_kubernetes(&self) -> bool {
        let has = |what| self.of(what).any(|resource| !resource.is_assumed);
        has(What::WorkloadEntry) && ![What::Pod, What::Service, What::Deployment, What::Namespace].into_iter().any(has)
    }
}

/// The mesh configuration inside a ConfigMap, as documents of their own.
fn mesh_of(map: &Resource) -> Vec<Resource> {
    let inner = |field: &str, what: What, name: &str| {
        let (key, outer) = map.root().get("data").node()?.entry(field)?;
        let node = tree::parse_stream(outer.text()?).ok()?.into_iter().next()?;
        Some(Resource::of_mesh(what, name, node, &map.file, map.lines_before + key.at.line))
    };
    if map.name != "istio" && !map.name.starts_with("istio-") {
        return Vec::new();
    }
    let name = map.name.clone();
    let mesh = inner("mesh", What::MeshConfig, &name);
    mesh.into_iter().chain(inner("meshNetworks", What::MeshNetworks, "meshnetworks")).collect()
}

/// Whether a document without a head is a mesh configuration.
fn is_mesh_config(root: View<'_>) -> bool {
    let mut fields = root.entries().peekable();
    fields.peek().is_some() && fields.all(|(name, _)| MESH_FIELDS.contains(&name))
}

/// The documents of a text with the number of lines before each. A line that begins with `---` parts documents wherever it
/// stands; what has only remarks and directives belongs to the document after it.
fn chunks(text: &str) -> Vec<(u64, &str)> {
    let mut chunks = Vec::new();
    let (mut begin, mut begin_line, mut offset, mut is_empty) = (0, 0, 0, true);
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        if is_divider(line) && !is_empty {
            chunks.push((begin_line, &text[begin..offset]));
            (begin, begin_line, is_empty) = (offset, number, true);
        }
        let said = line.trim();
        is_empty &= said.is_empty() || said.starts_with(['#', '%']) || said == "---";
        offset += line.len();
    }
    chunks.push((begin_line, &text[begin..]));
    chunks
}

fn is_divider(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Most documents of one set.
const RESOURCES_MAX: usize = 20_000;

/// Istio's fields of the mesh configuration.
const MESH_FIELDS: &[&str] = &[
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "ca",
    "caCertificates",
    "configSources",
    "connectTimeout",
    "defaultConfig",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultProviders",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "discoverySelectors",
    "dnsRefreshRate",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "extensionProviders",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "outboundClusterStatName",
    "outboundTrafficPolicy",
    "pathNormalization",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "rootNamespace",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "tlsDefaults",
    "trustDomain",
    "trustDomainAliases",
    "verifyCertificateAtClient",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Set {
        let mut set = Set::default();
        set.read_text(&Path::new("all.yaml").into(), text, false);
        set
    }

    #[test]
    fn one_bad_document_spoils_no_other() {
        let set = read("kind: Pod\nmetadata: {name: a}\n---\na: [\n--- # third\nkind: Pod\nmetadata: {name: b}\n");
        assert_eq!(set.all().iter().map(Resource::title).collect::<Vec<_>>(), ["Pod default/a", "Pod default/b"]);
        let text = set.unreadable[0].to_string();
        assert!(text.starts_with("all.yaml:4:"), "{text}");
        assert_eq!(set.all()[1].line(set.all()[1].name_view().at()), 7);
    }

    #[test]
    fn text_is_cut_where_documents_part() {
        let cut =
            |text: &'static str| chunks(text).into_iter().map(|(line, chunk)| (line, chunk.len())).collect::<Vec<_>>();
        assert_eq!(cut("a: 1\n---\nb: 2\n"), [(0, 5), (1, 9)]);
        assert_eq!(cut("# x\n%YAML 1.2\n---\na: |\n  ---\n---x\n"), [(0, 34)]);
        assert_eq!(cut("a: 1\n---"), [(0, 5), (1, 3)]);
        assert_eq!(cut(""), [(0, 0)]);
    }

    #[test]
    fn lists_and_mesh_configurations_are_taken_apart() {
        let set = read(
            "kind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- 7\n- {kind: Namespace, metadata: {name: m}}\n",
        );
        assert_eq!(set.all().iter().map(Resource::title).collect::<Vec<_>>(), ["Pod default/a", "Namespace m"]);
        assert_eq!(set.unreadable.len(), 1);
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    rootNamespace: root\n";
        let set = read(map);
        assert_eq!(set.root_namespace(), "root");
        let mesh = set.mesh().unwrap();
        assert_eq!(mesh.line(mesh.root().get("rootNamespace").at()), 6);
        assert_eq!(read("defaultConfig: {}\n").mesh().unwrap().title(), "MeshConfig istio-system/istio");
        assert_eq!(read("networks: {a: {}}\n").all()[0].title(), "MeshNetworks istio-system/meshnetworks");
        assert_eq!(read("spec: {}\n").unreadable[0].reason, "FIELD_MISSING");
    }

    #[test]
    fn the_number_of_documents_has_a_limit() {
        let set = read(&"kind: Pod\nmetadata: {name: a}\n---\n".repeat(RESOURCES_MAX + 2));
        assert_eq!((set.all().len(), set.unreadable.len()), (RESOURCES_MAX, 1));
    }
}
