//! Our pair: two more sidecars in a real mesh, with real identities, configured by Istio documents.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::program::Running;
use harness::{Mesh, curl, tools, wait};
use serde_json::json;

use crate::Pair;

/// The host that is asked.
pub(crate) const HOST: &str = "origin.default.svc.cluster.local:9095";

/// Where the origin serves: at the address of the server's sidecar.
pub(crate) fn origin_address(mesh: &Mesh) -> Result<SocketAddr> {
    Ok(SocketAddr::new(neighbour(mesh, "helloworld")?, ORIGIN_PORT))
}

/// Starts both sidecars and waits until a request passes.
pub(crate) fn start(mesh: &Mesh) -> Result<Pair> {
    let server = neighbour(mesh, "helloworld")?;
    let client = neighbour(mesh, "test")?;
    let scratch = mesh.scratch("bench")?;
    silence_access_logs(mesh)?;
    std::fs::write(mesh.dir().join("config/bench-origin.yaml"), DOCUMENTS.replace("${ADDRESS}", &server.to_string()))?;
    let proxies = vec![sidecar(mesh, &scratch, "test", client)?, sidecar(mesh, &scratch, "helloworld", server)?];
    let address = SocketAddr::new(client, OUTBOUND_PORT);
    let url = format!("http://{address}/bench");
    wait::until("a request through our pair", Duration::from_secs(20), || {
        curl::get(&url).header("host", HOST).send()?.expect_status(200)
    })
    .with_context(|| logs(&scratch))?;
    Ok(Pair { name: "kasbah", proxies, address })
}

/// The other pairs write no access logs either.
fn silence_access_logs(mesh: &Mesh) -> Result<()> {
    for entry in std::fs::read_dir(mesh.dir().join("config"))? {
        let file = entry?.path();
        if std::fs::read_to_string(&file).is_ok_and(|text| text.contains("kind: ConfigMap")) {
            std::fs::write(&file, MESH_SETTINGS)?;
        }
    }
    Ok(())
}

fn sidecar(mesh: &Mesh, scratch: &Path, account: &str, address: IpAddr) -> Result<Running> {
    let name = format!("bench-{account}");
    let settings = json!({
        "kind": "sidecar",
        "trust_domain": mesh.at("/trust_domain")?,
        "node": {
            "id": format!("sidecar~{address}~{name}.default~default.svc.cluster.local"),
            "cluster": format!("{name}.default"),
            "metadata": {
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": account,
                "WORKLOAD_NAME": name,
                "LABELS": {"app": name},
                "INSTANCE_IPS": address.to_string(),
                "INTERCEPTION_MODE": "NONE",
            },
        },
        "discovery": {
            "address": mesh.at("/discovery/xds_tls")?,
            "peer": "spiffe://cluster.local/ns/kasbah-system/sa/discovery",
        },
        "sds": mesh.at("/agent/sds")?.trim_start_matches("unix://"),
        "admin": format!("127.0.0.1:{}", harness::mesh::free_port()?),
    });
    let file = scratch.join(format!("{name}.yaml"));
    std::fs::write(&file, serde_json::to_vec_pretty(&settings)?)?;
    mesh.launch(account, tools::kasbah())
        .args(["proxy", "run", "--config"])
        .arg(&file)
        .background(&scratch.join(format!("{name}.log")))
}

/// What both said, for a failed start.
fn logs(scratch: &Path) -> String {
    ["bench-test.log", "bench-helloworld.log"]
        .iter()
        .map(|name| std::fs::read_to_string(scratch.join(name)).unwrap_or_default())
        .collect()
}

/// A free address beside that of a demo workload.
fn neighbour(mesh: &Mesh, workload: &str) -> Result<IpAddr> {
    let address: Ipv4Addr = mesh.at(&format!("/workloads/{workload}/address"))?.parse()?;
    let [a, b, c, d] = address.octets();
    Ok(Ipv4Addr::new(a, b, c, d + 200).into())
}

const ORIGIN_PORT: u16 = 9095;
const OUTBOUND_PORT: u16 = 15001;

const MESH_SETTINGS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    extensionProviders:
      - name: kasbah-policy
        envoyExtAuthzGrpc: {service: policy.kasbah-system.svc.cluster.local, port: 9191}
";

/// The service of the origin, HTTP/2 towards it, and one rule that names the client: what Envoy's pair has, too.
const DOCUMENTS: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bench-origin, namespace: default}
spec:
  hosts: [origin.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9095, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: bench-helloworld}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: bench-origin-v1, namespace: default}
spec:
  address: ${ADDRESS}
  ports: {http: 15006}
  labels: {app: bench-helloworld}
  serviceAccount: helloworld
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bench-origin, namespace: default}
spec:
  host: origin.default.svc.cluster.local
  trafficPolicy:
    connectionPool:
      http: {h2UpgradePolicy: UPGRADE}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bench-origin, namespace: default}
spec:
  selector: {matchLabels: {app: bench-helloworld}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/test]}}]
";
