//! What the operator of one proxy process decides; everything about the mesh comes by xDS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind as ProtoKind};
use identity::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};
use serde_json::Map;

pub use crate::xds::subscription::XdsMode;

/// The settings of one proxy.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the proxy is for.
    pub kind: Kind,
    /// Who it says it is towards discovery.
    pub node: NodeSettings,
    /// Where its configuration comes from.
    pub discovery: DiscoverySettings,
    /// The agent's SDS socket, as a path or `unix://` address. Without it the proxy has no identity.
    #[serde(default)]
    pub sds: Option<String>,
    /// The admin address.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// Threads that serve traffic; 0 is one per core.
    #[serde(default)]
    pub workers: usize,
    /// Where requests are logged that the configuration names no own log for, and what `/dev/stdout` means in it:
    /// a path, `stdout`, `stderr` or `none`.
    #[serde(default = "default_access_log")]
    pub access_log: String,
    /// The proxy's own trust domain.
    pub trust_domain: String,
    /// Whether refusals say their reason in the `x-kasbah-reason` header.
    #[serde(default = "default_true")]
    pub reason_header: bool,
    /// How long running requests may take to end at shutdown.
    #[serde(default = "default_drain", with = "humantime_serde")]
    pub drain: Duration,
    /// How long streams and running requests may go on that rest on a root which is being replaced. The last step of the
    /// rotation waits for them.
    #[serde(default = "default_stream_drain", with = "humantime_serde")]
    pub stream_drain: Duration,
    /// Whether TCP and WebSocket streams end when the certificate of their peer expires.
    #[serde(default = "default_true")]
    pub cut_expired_streams: bool,
    /// Connections from downstream at one time, over all listeners.
    #[serde(default = "default_connections")]
    pub connections_max: usize,
}

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Beside one workload.
    Sidecar,
    /// Where traffic enters the mesh.
    Ingress,
    /// Where traffic leaves the mesh.
    Egress,
}

/// Who the proxy says it is towards discovery.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// `sidecar~IP~NAME.NS~NS.svc.cluster.local` or `router~…`.
    pub id: String,
    /// The service cluster; often `APP.NAMESPACE`.
    #[serde(default)]
    pub cluster: String,
    /// Istio's node metadata.
    #[serde(default)]
    pub metadata: Map<String, serde_json::Value>,
}

/// Where configuration comes from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoverySettings {
    /// `host:port`.
    pub address: String,
    /// The SPIFFE ID discovery must prove; without it the connection is plain text.
    #[serde(default)]
    pub peer: Option<String>,
    /// Which form of xDS.
    #[serde(default)]
    pub mode: XdsMode,
}

/// Why settings do not make a proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// `trust_domain` or `discovery.peer` is no SPIFFE name.
    #[error("{setting}: not a valid SPIFFE name")]
    Spiffe {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with it.
        #[source]
        source: identity::spiffe_id::SpiffeIdError,
    },
    /// `discovery.peer` asks for mTLS, which needs an identity.
    #[error("discovery.peer is set but sds is not: without an identity there is no mTLS")]
    NoIdentity,
    /// `node.id` is empty.
    #[error("node.id is empty")]
    NoNode,
}

impl SettingsError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "SETTINGS_INVALID"
    }
}

impl Settings {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When a name is malformed or settings contradict each other.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.own_trust_domain()?;
        if self.discovery_peer()?.is_some() && self.sds.is_none() {
            return Err(SettingsError::NoIdentity);
        }
        if self.node.id.is_empty() { Err(SettingsError::NoNode) } else { Ok(()) }
    }

    pub(crate) fn own_trust_domain(&self) -> Result<TrustDomain, SettingsError> {
        TrustDomain::parse(&self.trust_domain)
            .map_err(|source| SettingsError::Spiffe { setting: "trust_domain", source })
    }

    pub(crate) fn discovery_peer(&self) -> Result<Option<SpiffeId>, SettingsError> {
        let Some(peer) = &self.discovery.peer else { return Ok(None) };
        SpiffeId::parse(peer).map(Some).map_err(|source| SettingsError::Spiffe { setting: "discovery.peer", source })
    }

    pub(crate) fn sds_path(&self) -> Option<PathBuf> {
        self.sds.as_deref().map(|path| path.strip_prefix("unix://").unwrap_or(path).into())
    }

    pub(crate) fn worker_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.workers == 0 { cores } else { self.workers }.clamp(1, WORKERS_MAX)
    }
}

impl NodeSettings {
    /// A text of the metadata.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).and_then(serde_json::Value::as_str)
    }

    /// A label of the workload.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.metadata.get("LABELS").and_then(|labels| labels.get(name)).and_then(serde_json::Value::as_str)
    }

    /// The node as xDS says it.
    pub(crate) fn to_proto(&self) -> Node {
        Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: Some(Struct { fields: self.metadata.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() }),
            user_agent_name: "kasbah".to_owned(),
            client_features: vec!["envoy.lb.does_not_support_overprovisioning".to_owned()],
            ..Node::default()
        }
    }
}

fn to_value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => ProtoKind::NullValue(0),
        serde_json::Value::Bool(value) => ProtoKind::BoolValue(*value),
        serde_json::Value::Number(value) => ProtoKind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => ProtoKind::StringValue(text.clone()),
        serde_json::Value::Array(values) => {
            ProtoKind::ListValue(ListValue { values: values.iter().map(to_value).collect() })
        }
        serde_json::Value::Object(fields) => {
            ProtoKind::StructValue(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() })
        }
    };
    Value { kind: Some(kind) }
}

fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15000))
}

fn default_access_log() -> String {
    "stdout".to_owned()
}

fn default_true() -> bool {
    true
}

fn default_drain() -> Duration {
    Duration::from_secs(5)
}

fn default_stream_drain() -> Duration {
    Duration::from_secs(600)
}

fn default_connections() -> usize {
    50_000
}

const WORKERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(extra: serde_json::Value) -> Settings {
        let mut json = serde_json::json!({
            "kind": "sidecar",
            "node": {"id": "sidecar~10.0.0.1~a.b~b.svc.cluster.local", "metadata": {"LABELS": {"app": "a"}, "NAMESPACE": "b"}},
            "discovery": {"address": "127.0.0.1:15010"},
            "trust_domain": "cluster.local",
        });
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn defaults_are_visible_and_metadata_reaches_the_node() {
        let settings = settings(serde_json::json!({}));
        settings.validate().unwrap();
        assert_eq!((settings.admin.port(), settings.discovery.mode), (15000, XdsMode::Delta));
        assert_eq!((settings.node.text("NAMESPACE"), settings.node.label("app")), (Some("b"), Some("a")));
        let node = settings.node.to_proto();
        assert!(node.metadata.unwrap().fields.contains_key("LABELS"));
    }

    #[test]
    fn mtls_to_discovery_needs_an_identity() {
        let peer = serde_json::json!({"address": "a:1", "peer": "spiffe://cluster.local/ns/s/sa/d"});
        let alone = settings(serde_json::json!({"discovery": peer}));
        assert!(matches!(alone.validate(), Err(SettingsError::NoIdentity)));
        let both = settings(serde_json::json!({"discovery": peer, "sds": "unix:///run/sds.sock"}));
        both.validate().unwrap();
        assert_eq!(both.sds_path().unwrap().to_str(), Some("/run/sds.sock"));
    }
}
