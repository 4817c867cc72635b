//! One document of the set, whatever its kind: what it is, who it is, and where it stands.

use std::path::Path;
use std::sync::Arc;

use super::view::View;
use crate::documents::shapes::Labels;
use crate::documents::tree::{At, Node};

/// The kinds that some analyzer looks at. Kinds of other groups with the same name are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    AuthorizationPolicy,
    ConfigMap,
    CronJob,
    CustomResourceDefinition,
    DaemonSet,
    Deployment,
    DestinationRule,
    EnvoyFilter,
    Gateway,
    GrpcRoute,
    HttpRoute,
    Job,
    KubeGateway,
    MeshConfig,
    MeshNetworks,
    MutatingWebhook,
    Namespace,
    Node,
    Other,
    PeerAuthentication,
    Pod,
    ProxyConfig,
    ReplicaSet,
    RequestAuthentication,
    Secret,
    Service,
    ServiceAccount,
    ServiceEntry,
    Sidecar,
    StatefulSet,
    Telemetry,
    ValidatingWebhook,
    VirtualService,
    WasmPlugin,
    WorkloadEntry,
    WorkloadGroup,
}

impl What {
    /// The kind by its group and name.
    pub(crate) fn of(group: &str, kind: &str) -> Self {
        let known = KINDS.iter().find(|(known, name, _)| *name == kind && group_is(known, group));
        known.map_or(Self::Other, |(_, _, what)| *what)
    }
}

/// Deployments were once in another group.
fn group_is(known: &str, group: &str) -> bool {
    known == group || (known == "apps" && group == "extensions")
}

/// A document.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) what: What,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Empty for kinds without namespaces.
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) file: Arc<Path>,
    /// Lines of the file before the text that the tree's places count from.
    pub(crate) lines_before: u64,
    /// What the mesh has without anybody writing it down; nothing is told about it.
    pub(crate) is_assumed: bool,
    node: Node,
}

impl Resource {
    /// Reads the head, as far as there is one. `None` when the document says no kind.
    pub(crate) fn read(node: Node, file: &Arc<Path>, lines_before: u64) -> Option<Self> {
        let root = View::of(&node);
        let kind = root.get("kind").text().to_owned();
        if kind.is_empty() {
            return None;
        }
        let version = root.get("apiVersion").text();
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let what = What::of(group, &kind);
        let meta = root.get("metadata");
        let has_namespace = !CLUSTER_WIDE.contains(&kind.as_str());
        let namespace = match meta.get("namespace").text() {
            _ if !has_namespace => "",
            "" => "default",
            namespace => namespace,
        };
        Some(Self {
            what,
            namespace: namespace.to_owned(),
            name: meta.get("name").word(),
            labels: meta.get("labels").labels(),
            annotations: meta.get("annotations").labels(),
            file: Arc::clone(file),
            lines_before,
            is_assumed: false,
            kind,
            node,
        })
    }

    /// A document of the mesh as a whole, which has no head of its own.
    pub(crate) fn of_mesh(what: What, name: &str, node: Node, file: &Arc<Path>, lines_before: u64) -> Self {
        let kind = if what == What::MeshConfig { "MeshConfig" } else { "MeshNetworks" };
        Self {
            what,
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: ROOT_NAMESPACE.to_owned(),
            labels: Labels::new(),
            annotations: Labels::new(),
            file: Arc::clone(file),
            lines_before,
            is_assumed: false,
            node,
        }
    }

    pub(crate) fn root(&self) -> View<'_> {
        View::of(&self.node)
    }

    pub(crate) fn spec(&self) -> View<'_> {
        self.root().get("spec")
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// `ns/name`, or the name alone where there are no namespaces.
    pub(crate) fn full_name(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }

    /// `Kind ns/name`.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind, self.full_name())
    }

    pub(crate) fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// The line of a place of this document in its file; 0 when there is none.
    pub(crate) fn line(&self, at: At) -> u64 {
        if at.line == 0 { 0 } else { at.line + self.lines_before }
    }

    /// Where the name stands.
    pub(crate) fn name_view(&self) -> View<'_> {
        self.root().path("metadata.name")
    }

    /// Whether it belongs to the mesh's own machinery, by Istio's labels.
    pub(crate) fn is_control_plane(&self) -> bool {
        self.labels.contains_key("istio") || self.labels.get("release").is_some_and(|release| release == "istio")
    }
}

/// The namespace whose policies hold everywhere, unless the mesh configuration names another.
pub(crate) const ROOT_NAMESPACE: &str = "istio-system";

const CLUSTER_WIDE: &[&str] = &[
    "APIService",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "GatewayClass",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "StorageClass",
    "ValidatingWebhookConfiguration",
];

const KINDS: &[(&str, &str, What)] = &[
    ("", "ConfigMap", What::ConfigMap),
    ("", "Namespace", What::Namespace),
    ("", "Node", What::Node),
    ("", "Pod", What::Pod),
    ("", "Secret", What::Secret),
    ("", "Service", What::Service),
    ("", "ServiceAccount", What::ServiceAccount),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", What::MutatingWebhook),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", What::ValidatingWebhook),
    ("apiextensions.k8s.io", "CustomResourceDefinition", What::CustomResourceDefinition),
    ("apps", "DaemonSet", What::DaemonSet),
    ("apps", "Deployment", What::Deployment),
    ("apps", "ReplicaSet", What::ReplicaSet),
    ("apps", "StatefulSet", What::StatefulSet),
    ("batch", "CronJob", What::CronJob),
    ("batch", "Job", What::Job),
    ("extensions.istio.io", "WasmPlugin", What::WasmPlugin),
    ("gateway.networking.k8s.io", "GRPCRoute", What::GrpcRoute),
    ("gateway.networking.k8s.io", "Gateway", What::KubeGateway),
    ("gateway.networking.k8s.io", "HTTPRoute", What::HttpRoute),
    ("networking.istio.io", "DestinationRule", What::DestinationRule),
    ("networking.istio.io", "EnvoyFilter", What::EnvoyFilter),
    ("networking.istio.io", "Gateway", What::Gateway),
    ("networking.istio.io", "ProxyConfig", What::ProxyConfig),
    ("networking.istio.io", "ServiceEntry", What::ServiceEntry),
    ("networking.istio.io", "Sidecar", What::Sidecar),
    ("networking.istio.io", "VirtualService", What::VirtualService),
    ("networking.istio.io", "WorkloadEntry", What::WorkloadEntry),
    ("networking.istio.io", "WorkloadGroup", What::WorkloadGroup),
    ("security.istio.io", "AuthorizationPolicy", What::AuthorizationPolicy),
    ("security.istio.io", "PeerAuthentication", What::PeerAuthentication),
    ("security.istio.io", "RequestAuthentication", What::RequestAuthentication),
    ("telemetry.istio.io", "Telemetry", What::Telemetry),
];
