//! `DIR/endpoints.json`: every address of the running mesh, for programs. Field names are a promise.

use serde_json::{Value, json};

use super::addresses::{Addresses, INBOUND_PORT, WORKLOAD_PORT, loopback};
use super::layout::{Layout, write_atomically};
use crate::demo::token::USER_ISSUER;
use crate::exit::Failure;

/// Trust domain of the demo mesh.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// Writes the file atomically.
pub(crate) fn write(layout: &Layout, addresses: &Addresses) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(&document(layout, addresses)).map_err(anyhow::Error::from)?;
    Ok(write_atomically(&layout.endpoints(), &text, 0o644)?)
}

fn document(layout: &Layout, addresses: &Addresses) -> Value {
    let local = |port: u16| loopback(port).to_string();
    let unix = |name: &str| format!("unix://{}", layout.socket(name).display());
    let workload = |name: &str, ip: std::net::IpAddr, admin: u16| {
        json!({
            "address": ip.to_string(),
            "inbound": format!("{ip}:{INBOUND_PORT}"),
            "admin": local(admin),
            "spiffe_id": format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/{name}"),
        })
    };
    json!({
        "trust_domain": TRUST_DOMAIN,
        "ingress": {
            "http": local(addresses.ingress_http),
            "https": local(addresses.ingress_https),
            "tcp": local(addresses.ingress_tcp),
            "ca_file": layout.run("ingress-ca.pem"),
            "admin": local(addresses.ingress_admin),
        },
        "egress": {"admin": local(addresses.egress_admin)},
        "ca": {
            "grpc": local(addresses.ca_grpc),
            "istio_csr": local(addresses.ca_istio_csr),
            "admin_socket": layout.socket("ca-admin.sock"),
            "bundle_file": layout.run("bundle.pem"),
            "bundle_endpoint": format!("https://{}", local(addresses.ca_bundle_endpoint)),
            "oidc": format!("http://{}", local(addresses.ca_oidc)),
            "revocation": format!("http://{}", local(addresses.ca_revocation)),
            "admin": local(addresses.ca_admin),
        },
        "agent": {
            "workload_api": unix("agent.sock"),
            "sds": unix("sds.sock"),
            "admin": local(addresses.agent_admin),
        },
        "discovery": {
            "xds": local(addresses.discovery_xds),
            "xds_tls": local(addresses.discovery_xds_tls),
            "admin": local(addresses.discovery_admin),
        },
        "policy": {"grpc": local(addresses.policy_grpc), "admin": local(addresses.policy_admin)},
        "workloads": {
            "helloworld": workload("helloworld", addresses.helloworld, addresses.helloworld_admin),
            "test": workload("test", addresses.test, addresses.test_admin),
        },
        "external": {
            "host": "external.example.com",
            "address": format!("{}:{WORKLOAD_PORT}", addresses.external),
        },
        "jwt": {"issuer": USER_ISSUER, "jwks_file": layout.run("jwks.json")},
    })
}
