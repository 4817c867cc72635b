//! What is known of one xDS client, from the `Node` message of its first request (Istio's node id and metadata).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

/// What the client is, which decides what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeKind {
    /// A proxy beside a workload.
    Sidecar,
    /// A gateway.
    Router,
    /// A gRPC library that speaks xDS itself (`xds:///`).
    Grpc,
}

/// The facts that configuration depends on. Two clients with equal facts get equal configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeFacts {
    pub(crate) id: String,
    pub(crate) kind: NodeKind,
    pub(crate) ip: IpAddr,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// The workload's name.
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether traffic is captured (`INTERCEPTION_MODE` other than `NONE`).
    pub(crate) capture: bool,
    /// Where a gateway listens; every address when absent.
    pub(crate) bind_address: Option<IpAddr>,
    /// The ports that a gateway really binds, by the port its documents name.
    pub(crate) port_map: BTreeMap<u16, u16>,
}

/// Why a node is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("the first request of a stream must carry `node` with an `id`")]
    Missing,
    #[error("the node id is longer than {NODE_ID_BYTES_MAX} bytes")]
    TooLong,
}

impl NodeFacts {
    /// Reads a node: id `TYPE~IP~NAME.NAMESPACE~DOMAIN` where it has that shape, metadata before id.
    pub(crate) fn of(node: &Node) -> Result<Self, NodeError> {
        if node.id.is_empty() {
            return Err(NodeError::Missing);
        }
        if node.id.len() > NODE_ID_BYTES_MAX {
            return Err(NodeError::TooLong);
        }
        let empty = Struct::default();
        let metadata = node.metadata.as_ref().unwrap_or(&empty);
        let parts: Vec<&str> = node.id.split('~').collect();
        let part = |index: usize| parts.get(index).copied().unwrap_or_default();
        let (name_in_id, namespace_in_id) = part(2).rsplit_once('.').unwrap_or_else(|| (part(2), ""));
        let kind = match (text(metadata, "GENERATOR").as_deref(), part(0)) {
            (Some("grpc"), _) => NodeKind::Grpc,
            (_, "router") => NodeKind::Router,
            (_, "sidecar") => NodeKind::Sidecar,
            _ if node.user_agent_name.starts_with("gRPC") => NodeKind::Grpc,
            _ => NodeKind::Sidecar,
        };
        let first_ip = text(metadata, "INSTANCE_IPS").and_then(|ips| ips.split(',').next()?.trim().parse().ok());
        let or = |key: &str, otherwise: &str| text(metadata, key).unwrap_or_else(|| otherwise.to_owned());
        Ok(Self {
            id: node.id.clone(),
            kind,
            ip: first_ip.or_else(|| part(1).parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            namespace: or("NAMESPACE", if namespace_in_id.is_empty() { "default" } else { namespace_in_id }),
            service_account: or("SERVICE_ACCOUNT", ""),
            name: or("WORKLOAD_NAME", name_in_id),
            labels: strings(metadata, "LABELS"),
            capture: text(metadata, "INTERCEPTION_MODE").as_deref() != Some("NONE"),
            bind_address: text(metadata, "BIND_ADDRESS").and_then(|ip| ip.parse().ok()),
            port_map: strings(metadata, "PORT_MAP")
                .iter()
                .filter_map(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)))
                .collect(),
        })
    }

    /// The SPIFFE path `/ns/NAMESPACE/sa/ACCOUNT` that a peer with this node must have.
    pub(crate) fn spiffe_path(&self) -> String {
        format!("/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

fn text(metadata: &Struct, key: &str) -> Option<String> {
    match &metadata.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    }
}

fn strings(metadata: &Struct, key: &str) -> BTreeMap<String, String> {
    let Some(Value { kind: Some(Kind::StructValue(fields)) }) = metadata.fields.get(key) else {
        return BTreeMap::new();
    };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    fields.fields.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

/// The longest node id.
pub(crate) const NODE_ID_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    #[test]
    fn an_istio_node_id_tells_kind_address_and_namespace() {
        let node =
            Node { id: "router~127.0.0.9~gw.istio-system~istio-system.svc.cluster.local".into(), ..Node::default() };
        let facts = NodeFacts::of(&node).unwrap();
        assert_eq!(facts.kind, NodeKind::Router);
        assert_eq!((facts.ip.to_string().as_str(), facts.name.as_str()), ("127.0.0.9", "gw"));
        assert_eq!(facts.namespace, "istio-system");
        assert!(facts.capture);
    }

    #[test]
    fn metadata_goes_before_the_id() {
        let ports = Struct { fields: [("80".to_owned(), value("8080"))].into() };
        let fields = [
            ("NAMESPACE".to_owned(), value("shop")),
            ("SERVICE_ACCOUNT".to_owned(), value("cart")),
            ("INTERCEPTION_MODE".to_owned(), value("NONE")),
            ("INSTANCE_IPS".to_owned(), value("127.1.2.3,127.1.2.4")),
            ("PORT_MAP".to_owned(), Value { kind: Some(Kind::StructValue(ports)) }),
        ];
        let node = Node {
            id: "sidecar~10.0.0.1~x.y~z".into(),
            metadata: Some(Struct { fields: fields.into() }),
            ..Node::default()
        };
        let facts = NodeFacts::of(&node).unwrap();
        assert_eq!(facts.spiffe_path(), "/ns/shop/sa/cart");
        assert_eq!(facts.ip.to_string(), "127.1.2.3");
        assert!(!facts.capture);
        assert_eq!(facts.port_map.get(&80), Some(&8080));
    }

    #[test]
    fn a_stream_without_a_node_is_refused() {
        assert_eq!(NodeFacts::of(&Node::default()), Err(NodeError::Missing));
        let long = Node { id: "x".repeat(NODE_ID_BYTES_MAX + 1), ..Node::default() };
        assert_eq!(NodeFacts::of(&long), Err(NodeError::TooLong));
    }
}
