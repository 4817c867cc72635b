//! The settings files that `up` writes for its roles, as an operator would write them by hand.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::addresses::{Addresses, loopback};
use super::endpoints::TRUST_DOMAIN;
use super::layout::{Layout, write_atomically};
use crate::exit::Failure;

/// ID under which the demo's node is registered; the parent of all its entries.
pub(crate) const NODE_ID: &str = "spiffe://cluster.local/node/local";
/// Issuer of the demo's projected service account tokens.
pub(crate) use crate::demo::token::SERVICE_ACCOUNT_ISSUER;

/// A demo workload or role with an identity: its launch name and where its SPIFFE ID lies.
pub(crate) struct Identity {
    pub(crate) launch_name: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) account: &'static str,
}

impl Identity {
    pub(crate) fn spiffe_id(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}", self.namespace, self.account)
    }
}

/// Every identity of the demo mesh.
pub(crate) const IDENTITIES: [Identity; 6] = [
    Identity { launch_name: "discovery", namespace: "kasbah-system", account: "discovery" },
    Identity { launch_name: "policy", namespace: "kasbah-system", account: "policy" },
    Identity { launch_name: "helloworld", namespace: "default", account: "helloworld" },
    Identity { launch_name: "test", namespace: "default", account: "test" },
    Identity { launch_name: "istio-ingressgateway", namespace: "istio-system", account: "istio-ingressgateway" },
    Identity { launch_name: "istio-egressgateway", namespace: "istio-system", account: "istio-egressgateway" },
];

/// Writes the settings of every role.
pub(crate) fn write_all(layout: &Layout, addresses: &Addresses, database: Option<&str>) -> Result<(), Failure> {
    std::fs::create_dir_all(layout.run("settings"))?;
    write(layout, "ca", &ca(layout, addresses, database))?;
    write(layout, "agent", &agent(layout, addresses))?;
    write(layout, "discovery", &discovery(layout, addresses))?;
    write(layout, "policy", &policy(layout, addresses))?;
    let helloworld = Node::sidecar("helloworld", addresses.helloworld, addresses.helloworld_admin);
    write(layout, "helloworld-sidecar", &proxy(layout, addresses, &helloworld))?;
    let test = Node::sidecar("test", addresses.test, addresses.test_admin);
    write(layout, "test-sidecar", &proxy(layout, addresses, &test))?;
    write(layout, "ingress", &proxy(layout, addresses, &Node::ingress(addresses)))?;
    write(layout, "egress", &proxy(layout, addresses, &Node::egress(addresses)))
}

fn write(layout: &Layout, process: &str, settings: &Value) -> Result<(), Failure> {
    let text = serde_saphyr::to_string(settings).map_err(anyhow::Error::from)?;
    Ok(write_atomically(&layout.settings_of(process), text.as_bytes(), 0o600)?)
}

fn ca(layout: &Layout, addresses: &Addresses, database: Option<&str>) -> Value {
    let mut settings = json!({
        "trust_domain": TRUST_DOMAIN,
        "data_dir": layout.data("ca"),
        "grpc": loopback(addresses.ca_grpc),
        "istio_csr": loopback(addresses.ca_istio_csr),
        "admin_socket": layout.socket("ca-admin.sock"),
        "bundle_file": layout.run("bundle.pem"),
        "bundle_endpoint": loopback(addresses.ca_bundle_endpoint),
        "oidc_listen": loopback(addresses.ca_oidc),
        "oidc_issuer": format!("http://{}", loopback(addresses.ca_oidc)),
        "revocation": {
            "listen": loopback(addresses.ca_revocation),
            "url": format!("http://{}", loopback(addresses.ca_revocation)),
        },
        "admin": loopback(addresses.ca_admin),
        "server_names": ["localhost", "127.0.0.1", "istiod.istio-system.svc"],
        // Meshes of several folders on this machine may federate.
        "federation": {"allowed_networks": ["127.0.0.0/8"]},
        "service_account_issuers": [{
            "issuer": SERVICE_ACCOUNT_ISSUER,
            "jwks_file": layout.run("service-account-jwks.json"),
            "audiences": ["istio-ca"],
        }],
    });
    if let (Some(url), Some(object)) = (database, settings.as_object_mut()) {
        object.insert("database".into(), url.into());
    }
    settings
}

fn agent(layout: &Layout, addresses: &Addresses) -> Value {
    json!({
        "trust_domain": TRUST_DOMAIN,
        "data_dir": layout.data("agent"),
        "server": loopback(addresses.ca_grpc),
        "trust_bundle": layout.run("bundle.pem"),
        "join_token_file": join_token_file(layout),
        "workload_api": layout.socket("agent.sock"),
        "sds": layout.socket("sds.sock"),
        "launch": layout.socket("launch.sock"),
        "admin": loopback(addresses.agent_admin),
    })
}

/// Where `up` leaves the agent's join token at the first start.
pub(crate) fn join_token_file(layout: &Layout) -> std::path::PathBuf {
    layout.run("join-token")
}

fn discovery(layout: &Layout, addresses: &Addresses) -> Value {
    json!({
        "trust_domain": TRUST_DOMAIN,
        "config_dir": layout.config(),
        "xds": loopback(addresses.discovery_xds),
        "xds_tls": loopback(addresses.discovery_xds_tls),
        "admin": loopback(addresses.discovery_admin),
        "workload_api": layout.socket("agent.sock"),
    })
}

fn policy(layout: &Layout, addresses: &Addresses) -> Value {
    json!({
        "trust_domain": TRUST_DOMAIN,
        "grpc": loopback(addresses.policy_grpc),
        "admin": loopback(addresses.policy_admin),
        "workload_api": layout.socket("agent.sock"),
        "rules": rules_file(layout),
        "access_log": layout.logs().join("access.jsonl"),
    })
}

/// The policy service's rules: not operator documents, so beside `config/`; edited and followed the same way.
pub(crate) fn rules_file(layout: &Layout) -> std::path::PathBuf {
    layout.dir.join("policy").join("rules.yaml")
}

/// What makes one proxy differ from another.
struct Node {
    kind: &'static str,
    name: &'static str,
    namespace: &'static str,
    address: IpAddr,
    admin: u16,
    labels: Value,
    extra: Value,
}

impl Node {
    fn sidecar(name: &'static str, address: IpAddr, admin: u16) -> Self {
        let labels = json!({"app": name, "service.istio.io/canonical-name": name, "version": "v1"});
        Self { kind: "sidecar", name, namespace: "default", address, admin, labels, extra: json!({}) }
    }

    fn ingress(addresses: &Addresses) -> Self {
        Self {
            kind: "ingress",
            name: "istio-ingressgateway",
            namespace: "istio-system",
            address: loopback(0).ip(),
            admin: addresses.ingress_admin,
            labels: json!({"istio": "ingressgateway", "app": "istio-ingressgateway"}),
            extra: json!({
                "BIND_ADDRESS": "127.0.0.1",
                "PORT_MAP": {
                    "80": addresses.ingress_http.to_string(),
                    "443": addresses.ingress_https.to_string(),
                    "9096": addresses.ingress_tcp.to_string(),
                },
            }),
        }
    }

    fn egress(addresses: &Addresses) -> Self {
        Self {
            kind: "egress",
            name: "istio-egressgateway",
            namespace: "istio-system",
            address: addresses.egress,
            admin: addresses.egress_admin,
            labels: json!({"istio": "egressgateway", "app": "istio-egressgateway"}),
            extra: json!({"BIND_ADDRESS": addresses.egress}),
        }
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({
            "NAMESPACE": self.namespace,
            "SERVICE_ACCOUNT": self.name,
            "WORKLOAD_NAME": self.name,
            "LABELS": self.labels,
            "INSTANCE_IPS": self.address,
            "INTERCEPTION_MODE": "NONE",
            "MESH_ID": TRUST_DOMAIN,
            "CLUSTER_ID": "local",
        });
        if let (Some(into), Some(extra)) = (metadata.as_object_mut(), self.extra.as_object()) {
            into.extend(extra.clone());
        }
        metadata
    }
}

fn proxy(layout: &Layout, addresses: &Addresses, node: &Node) -> Value {
    let kind = if node.kind == "sidecar" { "sidecar" } else { "router" };
    let Node { name, namespace, address, .. } = node;
    json!({
        "kind": node.kind,
        "trust_domain": TRUST_DOMAIN,
        "node": {
            "id": format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.{TRUST_DOMAIN}"),
            "cluster": format!("{name}.{namespace}"),
            "metadata": node.metadata(),
        },
        "discovery": {
            "address": loopback(addresses.discovery_xds_tls),
            "peer": format!("spiffe://{TRUST_DOMAIN}/ns/kasbah-system/sa/discovery"),
        },
        "sds": layout.socket("sds.sock"),
        "admin": loopback(node.admin),
        // Nobody waits long for the end of a rotation that is only tried.
        "stream_drain": "4s",
        "access_log": layout.logs().join(format!("{}-access.log", access_log_name(node))),
    })
}

fn access_log_name(node: &Node) -> String {
    match node.kind {
        "sidecar" => format!("{}-sidecar", node.name),
        kind => kind.to_owned(),
    }
}

/// Whether a file is there and holds something.
pub(crate) fn filled(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.len() > 0)
}

/// Seconds of a TTL for the registration API, at least one.
pub(crate) fn ttl_secs(ttl: Duration) -> i32 {
    i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX)
}
