//! What every document begins with: `apiVersion`, `kind`, `metadata`.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::decode::{DecodeError, decode, nearest};
use super::shapes::Labels;
use super::tree::Node;

/// The kinds that discovery reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are Istio's kinds")]
pub enum Kind {
    Gateway,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    WorkloadEntry,
    PeerAuthentication,
    RequestAuthentication,
    AuthorizationPolicy,
    /// ConfigMap `istio` with `data.mesh`.
    MeshConfig,
    RateLimit,
}

/// Name, namespace and labels of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) created: String,
}

/// What the head of a document turned out to be.
#[derive(Debug)]
pub(crate) enum Head {
    Ours(Kind, Meta),
    /// A kind that has no effect here; the text says why.
    Skipped {
        resource: String,
        text: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("`{field}` is required")]
    Missing { field: &'static str },
    #[error("{group} has no kind `{kind}`{}", near.map(|near| format!("; is `{near}` meant?")).unwrap_or_default())]
    UnknownKind { group: String, kind: String, near: Option<&'static str> },
    #[error("{kind} is of {expected}, not of `{found}`")]
    WrongVersion { kind: String, expected: String, found: String },
    #[error("`{name}` is no name: {rule}")]
    BadName { name: String, rule: &'static str },
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl HeadError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "FIELD_MISSING",
            Self::UnknownKind { .. } => "KIND_UNKNOWN",
            Self::WrongVersion { .. } => "VERSION_UNKNOWN",
            Self::BadName { .. } => "NAME_INVALID",
            Self::Decode(error) => error.reason(),
        }
    }

    /// The path of the field that is wrong.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "",
            Self::UnknownKind { .. } => "kind",
            Self::WrongVersion { .. } => "apiVersion",
            Self::BadName { .. } => "metadata.name",
            Self::Decode(_) => "metadata",
        }
    }
}

impl Kind {
    /// The kind's name as documents write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshConfig => "ConfigMap",
            Self::RateLimit => "RateLimit",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) fn read_head(node: &Node) -> Result<Head, HeadError> {
    let version = text_of(node, "apiVersion")?;
    let kind = text_of(node, "kind")?;
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let Some(kinds) = KINDS.iter().find(|kinds| kinds.group == group) else {
        let text = format!("`{kind}` of `{}` is not read here", if group.is_empty() { "core" } else { group });
        return Ok(Head::Skipped { resource: guess_resource(node), text });
    };
    let meta = read_meta(node)?;
    let resource = format!("{kind} {}/{}", meta.namespace, meta.name);
    if let Some((_, found)) = kinds.ours.iter().find(|(name, _)| *name == kind) {
        return checked(*found, meta, kinds, version, resource, node);
    }
    if kinds.others.contains(&kind) || group.is_empty() {
        return Ok(Head::Skipped { resource, text: format!("{kind} has no effect here yet") });
    }
    let names: Vec<&'static str> =
        kinds.ours.iter().map(|(name, _)| *name).chain(kinds.others.iter().copied()).collect();
    Err(HeadError::UnknownKind { group: group.to_owned(), kind: kind.to_owned(), near: nearest(kind, &names) })
}

/// `Kind ns/name`, as far as the document says it.
pub(crate) fn guess_resource(node: &Node) -> String {
    let kind = node.field("kind").and_then(Node::text).unwrap_or("-");
    let meta = node.field("metadata");
    let of = |field| meta.and_then(|meta| meta.field(field)).and_then(Node::text);
    format!("{kind} {}/{}", of("namespace").unwrap_or(NAMESPACE_DEFAULT), of("name").unwrap_or("-"))
}

fn checked(
    kind: Kind,
    meta: Meta,
    kinds: &Kinds,
    version: &str,
    resource: String,
    node: &Node,
) -> Result<Head, HeadError> {
    if !kinds.versions.contains(&version) {
        return Err(HeadError::WrongVersion {
            kind: kind.name().to_owned(),
            expected: kinds
                .versions
                .iter()
                .map(|known| format!("`{}/{known}`", kinds.group))
                .collect::<Vec<_>>()
                .join(" or "),
            found: format!("{}/{version}", kinds.group),
        });
    }
    let is_mesh = meta.name == "istio" && node.field("data").is_some_and(|data| data.field("mesh").is_some());
    if kind == Kind::MeshConfig && !is_mesh {
        let text = "only the ConfigMap `istio` with `data.mesh` is read".to_owned();
        return Ok(Head::Skipped { resource, text });
    }
    if let Some(rule) = name_fault(&meta.name) {
        return Err(HeadError::BadName { name: meta.name, rule });
    }
    Ok(Head::Ours(kind, meta))
}

fn text_of<'a>(node: &'a Node, field: &'static str) -> Result<&'a str, HeadError> {
    node.field(field).and_then(Node::text).filter(|text| !text.is_empty()).ok_or(HeadError::Missing { field })
}

fn read_meta(node: &Node) -> Result<Meta, HeadError> {
    let Some(meta) = node.field("metadata") else { return Err(HeadError::Missing { field: "metadata" }) };
    let meta: RawMeta = decode(meta)?;
    if meta.name.is_empty() && meta.generate_name.is_empty() {
        return Err(HeadError::Missing { field: "metadata.name" });
    }
    Ok(Meta {
        name: if meta.name.is_empty() { format!("{}0", meta.generate_name) } else { meta.name },
        namespace: if meta.namespace.is_empty() { NAMESPACE_DEFAULT.to_owned() } else { meta.namespace },
        labels: meta.labels,
        annotations: meta.annotations,
        created: meta.creation_timestamp.unwrap_or_default(),
    })
}

/// The rule of Kubernetes names that `name` breaks.
fn name_fault(name: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let allowed = name.chars().all(|c| plain(c) || c == '-' || c == '.');
    match () {
        () if name.len() > NAME_LEN_MAX => Some("longer than 253 characters"),
        () if !allowed => Some("only lower-case letters, digits, `-` and `.` are allowed"),
        () if !name.starts_with(plain) || !name.ends_with(plain) => {
            Some("it must begin and end with a letter or digit")
        }
        () => None,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "fields that Kubernetes writes are accepted and not used")]
struct RawMeta {
    name: String,
    namespace: String,
    labels: Labels,
    annotations: Labels,
    generate_name: String,
    creation_timestamp: Option<String>,
    generation: IgnoredAny,
    resource_version: IgnoredAny,
    uid: IgnoredAny,
    self_link: IgnoredAny,
    finalizers: IgnoredAny,
    owner_references: IgnoredAny,
    managed_fields: IgnoredAny,
    deletion_timestamp: IgnoredAny,
    deletion_grace_period_seconds: IgnoredAny,
    cluster_name: IgnoredAny,
}

struct Kinds {
    group: &'static str,
    versions: &'static [&'static str],
    ours: &'static [(&'static str, Kind)],
    others: &'static [&'static str],
}

const KINDS: &[Kinds] = &[
    Kinds {
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        ours: &[
            ("Gateway", Kind::Gateway),
            ("VirtualService", Kind::VirtualService),
            ("DestinationRule", Kind::DestinationRule),
            ("ServiceEntry", Kind::ServiceEntry),
            ("WorkloadEntry", Kind::WorkloadEntry),
        ],
        others: &["Sidecar", "EnvoyFilter", "WorkloadGroup", "ProxyConfig"],
    },
    Kinds {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        ours: &[
            ("PeerAuthentication", Kind::PeerAuthentication),
            ("RequestAuthentication", Kind::RequestAuthentication),
            ("AuthorizationPolicy", Kind::AuthorizationPolicy),
        ],
        others: &[],
    },
    Kinds { group: "kasbah.dev", versions: &["v1alpha1"], ours: &[("RateLimit", Kind::RateLimit)], others: &[] },
    Kinds { group: "", versions: &["v1"], ours: &[("ConfigMap", Kind::MeshConfig)], others: &[] },
];

pub(crate) const NAMESPACE_DEFAULT: &str = "default";
const NAME_LEN_MAX: usize = 253;
