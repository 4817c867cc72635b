//! The stage: a demo mesh, two more nodes with an agent, a workload and a sidecar each, and a stock Envoy. Three agents, seven
//! proxies.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::program::Running;
use harness::{Mesh, MeshOptions, mesh, tools, wait};
use serde_json::{Value, json};

/// Everything that runs.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) nodes: Vec<Node>,
    pub(crate) envoy: Envoy,
}

/// A node beside the demo's: an agent, and a workload behind a sidecar.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// Settings, logs and sockets of its agent.
    pub(crate) folder: PathBuf,
    /// Of its workload and its sidecar.
    pub(crate) address: Ipv4Addr,
    pub(crate) agent: Running,
    /// The admin address of its sidecar.
    pub(crate) admin: SocketAddr,
    _workload: Running,
    _sidecar: Running,
}

/// A stock Envoy that calls the mesh and is called by it, until it is told to stop.
pub(crate) struct Envoy {
    process: Running,
    log: PathBuf,
    bootstrap: PathBuf,
}

impl Scene {
    pub(crate) fn set() -> Result<Self> {
        let mesh = Mesh::start(&MeshOptions::default())?;
        let nodes = ["north", "south"].into_iter().enumerate();
        let nodes = nodes.map(|(place, name)| Node::start(&mesh, place, name)).collect::<Result<_>>();
        let nodes = nodes.with_context(|| mesh.logs())?;
        let envoy = Envoy::start(&mesh)?;
        Ok(Self { mesh, nodes, envoy })
    }

    /// A further node by its name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// The address of a service behind a node's sidecar, as the mesh names it.
    pub(crate) fn host(node: &Node) -> String {
        format!("{}.default.svc.cluster.local:9095", node.name)
    }
}

impl Node {
    pub(crate) fn start(mesh: &Mesh, place: usize, name: &'static str) -> Result<Self> {
        let folder = mesh.scratch(name)?;
        let node_id = format!("spiffe://cluster.local/node/{name}");
        let token = mesh.kasbah(["token", "create", "--spiffe-id", &node_id]).ok()?.stdout;
        std::fs::write(folder.join("join-token"), token.trim())?;
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.join("join-token"), owner_only)?;
        let id = format!("spiffe://cluster.local/ns/default/sa/{name}");
        let selector = format!("launch:name:{name}");
        mesh.kasbah(["entry", "create", "--spiffe-id", &id, "--parent-id", &node_id, "--selector", &selector]).ok()?;
        let agent = start_agent(mesh, &folder)?;
        let address = address(mesh, place)?;
        std::fs::write(
            mesh.dir().join(format!("config/{name}.yaml")),
            mesh::workload_documents(name, address, &[(9095, "http"), (9096, "tcp")]),
        )?;
        let serve = ["demo", "serve", "helloworld", "--address", &address.to_string()];
        let workload = mesh.kasbah(serve).background(&folder.join("workload.log"))?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, mesh::free_port()?));
        let settings = sidecar(mesh, name, address, admin, &folder)?;
        let socket = folder.join("launch.sock").display().to_string();
        let command = ["run", "--name", name, "--socket", &socket, "--"];
        let sidecar = mesh.kasbah(command).arg(tools::kasbah()).args(["proxy", "run", "--config"]).arg(settings);
        let sidecar = sidecar.background(&folder.join("sidecar.log"))?;
        Ok(Self { name, folder, address, agent, admin, _workload: workload, _sidecar: sidecar })
    }

    /// Stops or continues the agent, as a machine that sleeps.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        harness::Program::new("kill").args([name, &self.agent.id().to_string()]).ok().map(drop)
    }
}

fn start_agent(mesh: &Mesh, folder: &Path) -> Result<Running> {
    let at = |file: &str| folder.join(file);
    let admin = format!("127.0.0.1:{}", mesh::free_port()?);
    let settings = json!({
        "trust_domain": "cluster.local",
        "server": mesh.at("/ca/grpc")?,
        "trust_bundle": mesh.at("/ca/bundle_file")?,
        "data_dir": at("agent"),
        "join_token_file": at("join-token"),
        "launch": at("launch.sock"),
        "sds": at("sds.sock"),
        "workload_api": at("agent.sock"),
        "admin": admin,
    });
    std::fs::write(at("agent.yaml"), serde_json::to_vec_pretty(&settings)?)?;
    let agent = mesh.kasbah(["agent", "run", "--config"]).arg(at("agent.yaml")).background(&at("agent.log"))?;
    wait::until("the agent's launch socket", LIMIT, || {
        ensure!(at("launch.sock").exists(), "{}", std::fs::read_to_string(at("agent.log")).unwrap_or_default());
        Ok(())
    })?;
    Ok(agent)
}

/// Loopback addresses that the demo does not use.
fn address(mesh: &Mesh, place: usize) -> Result<Ipv4Addr> {
    let test: Ipv4Addr = mesh.at("/workloads/test/address")?.parse()?;
    Ok(Ipv4Addr::from(u32::from(test) + 20 + u32::try_from(place)?))
}

/// The demo's sidecar settings with another workload in them.
fn sidecar(mesh: &Mesh, name: &str, address: Ipv4Addr, admin: SocketAddr, folder: &Path) -> Result<PathBuf> {
    let of_test = std::fs::read_to_string(mesh.dir().join("run/settings/test-sidecar.yaml"))?;
    let peer = "spiffe://cluster.local/ns/kasbah-system/sa/discovery";
    let discovery = mesh.at("/discovery/xds_tls")?;
    ensure!(of_test.contains(discovery), "another layout of settings: {of_test}");
    let settings = json!({
        "kind": "sidecar",
        "trust_domain": "cluster.local",
        "admin": admin,
        "stream_drain": "4s",
        "access_log": folder.join("access.log"),
        "sds": folder.join("sds.sock"),
        "discovery": {"address": discovery, "peer": peer},
        "node": {
            "id": format!("sidecar~{address}~{name}.default~default.svc.cluster.local"),
            "cluster": format!("{name}.default"),
            "metadata": {
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": name,
                "WORKLOAD_NAME": name,
                "LABELS": {"app": name},
                "INSTANCE_IPS": address.to_string(),
                "INTERCEPTION_MODE": "NONE",
            },
        },
    });
    let file = folder.join("sidecar.yaml");
    std::fs::write(&file, serde_json::to_vec_pretty(&settings)?)?;
    Ok(file)
}

impl Envoy {
    fn start(mesh: &Mesh) -> Result<Self> {
        let folder = mesh.scratch("envoy")?;
        let log = folder.join("report.json");
        let program = tools::script("envoy_sidecars.py")?
            .args(["--mode", "delta", "--hold", "--envoy"])
            .arg(tools::python_program("envoy")?)
            .arg("--kasbah")
            .arg(tools::kasbah())
            .arg("--dir")
            .arg(mesh.dir())
            .arg("--scratch")
            .arg(&folder);
        Ok(Self { process: program.background(&log)?, log, bootstrap: folder.join("envoy-delta.json") })
    }

    /// Its admin address.
    pub(crate) fn admin(&self) -> Result<SocketAddr> {
        let bootstrap: Value = serde_json::from_slice(&std::fs::read(&self.bootstrap)?)?;
        let port = bootstrap.pointer("/admin/address/socket_address/port_value").and_then(Value::as_u64);
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port.context("no admin address of Envoy")?)?)))
    }

    /// Stops it and tells what it has seen: calls both ways, and how many failed.
    pub(crate) fn finish(self) -> Result<Value> {
        self.process.finish(LIMIT).with_context(|| std::fs::read_to_string(&self.log).unwrap_or_default())?;
        let text = std::fs::read_to_string(&self.log)?;
        serde_json::from_str(text.lines().last().unwrap_or_default()).with_context(|| format!("no report: {text}"))
    }
}

const LIMIT: Duration = Duration::from_secs(60);
