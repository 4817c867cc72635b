//! The revocation drill: a certificate, an identity, an entry and a node are revoked under load. Each time somebody holds
//! connections to every proxy; when the last of them was answered is what is measured. Nobody else may feel anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{curl, wait};

use crate::Options;
use crate::drill::{Drill, LIMIT};
use crate::report::Act;
use crate::scene::{Node, Scene};
use crate::victim::{Door, Victim, Watch};

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut drill = Drill::set("revocation")?;
    let outcome = drill.revoke_everything(options.within);
    drill.finish(options, outcome)
}

impl Drill {
    fn revoke_everything(&mut self, within: Duration) -> Result<()> {
        std::fs::write(self.scene.mesh.dir().join("config/drill.yaml"), POLICIES)?;
        let stage = Stage { doors: doors(&self.scene)?, runtime: runtime()? };
        self.act("a certificate is revoked by its serial number", |drill| {
            let victim = Victim::register(&drill.scene.mesh, drill.scene.node("north")?, "serial")?;
            let serial = victim.serial()?;
            let mut act = stage.revoke(drill, &victim, &[&serial])?;
            act.steps.push(stage.itself_again(drill, &victim)?);
            Ok(act)
        })?;
        self.act("an identity is revoked", |drill| {
            let victim = Victim::register(&drill.scene.mesh, drill.scene.node("south")?, "identity")?;
            let mut act = stage.revoke(drill, &victim, &["--spiffe-id", &victim.id])?;
            act.steps.push(stage.itself_again(drill, &victim)?);
            Ok(act)
        })?;
        self.act("an entry is revoked", |drill| {
            let victim = Victim::register(&drill.scene.mesh, drill.scene.node("north")?, "entry")?;
            let act = stage.revoke(drill, &victim, &["--entry", &victim.entry])?;
            victim.is_nobody(&drill.scene.mesh)?;
            Ok(act)
        })?;
        self.act("a node is revoked", |drill| stage.revoke_a_node(drill))?;
        let late = self.report.cuts().map(|(_, cut)| cut.last).filter(|last| *last > within).max();
        ensure!(late.is_none(), "accepted for {late:?} after the command began, more than {within:?}");
        Ok(())
    }
}

/// What the acts share.
struct Stage {
    doors: Vec<Door>,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    /// Revokes somebody who is busy at every door.
    fn revoke(&self, drill: &Drill, victim: &Victim, what: &[&str]) -> Result<Act> {
        victim.wait(&self.doors, &self.runtime)?;
        let watches = victim.begin(&self.doors, &self.runtime);
        self.revoke_watched(drill, victim, watches, what)
    }

    fn revoke_watched(&self, drill: &Drill, victim: &Victim, watches: Vec<Arc<Watch>>, what: &[&str]) -> Result<Act> {
        wait::until("the victim to be busy everywhere", LIMIT, || {
            watches.iter().try_for_each(|watch| watch.expect_accepted(BUSY))
        })?;
        let begun = Instant::now();
        let command = drill.scene.mesh.kasbah(["cert", "revoke", "--reason", "keyCompromise", "--yes"]);
        command.args(what).ok()?;
        let acknowledged = begun.elapsed();
        wait::until("the end of all that the victim does", LIMIT, || {
            watches.iter().try_for_each(|watch| watch.expect_ended())
        })?;
        let cuts: Vec<_> = watches.iter().map(|watch| watch.cut(begun)).collect();
        let last = cuts.iter().map(|cut| cut.last).max().unwrap_or_default();
        victim.is_refused(&self.doors, &self.runtime)?;
        let steps = vec![
            ("acknowledged".to_owned(), acknowledged),
            ("until the last was accepted".to_owned(), last.saturating_sub(acknowledged)),
        ];
        Ok(Act { cuts, ..Act::of(steps) })
    }

    fn itself_again(&self, drill: &Drill, victim: &Victim) -> Result<(String, Duration)> {
        let begun = Instant::now();
        victim.is_itself_again(&drill.scene.mesh, &self.doors, &self.runtime)?;
        Ok(("itself again with another certificate".into(), begun.elapsed()))
    }

    /// Another node joins, is busy, and is put out: as a client with a workload of its own, and as a server behind its sidecar.
    fn revoke_a_node(&self, drill: &Drill) -> Result<Act> {
        let mesh = &drill.scene.mesh;
        let known = nodes(&drill.scene)?;
        let node = Node::start(mesh, drill.scene.nodes.len(), "east")?;
        let id = wait::until("the new node", LIMIT, || {
            nodes(&drill.scene)?.difference(&known).next().cloned().context("not there yet")
        })?;
        let victim = Victim::register(mesh, &node, "node")?;
        victim.wait(&self.doors, &self.runtime)?;
        let served = Arc::new(Watch::new("test-sidecar".into(), "requests to a workload of it"));
        let caller = Caller::start(outbound_of_test(&drill.scene)?, Scene::host(&node), served.clone())?;
        let mut watches = victim.begin(&self.doors, &self.runtime);
        watches.push(served);
        let act = self.revoke_watched(drill, &victim, watches, &["--node", &id])?;
        drop(caller);
        // What its agent goes on offering there is worth nothing: every proxy has refused it.
        let banned = mesh.kasbah(["node", "show", &id, "-o", "json"]).ok()?.json()?;
        ensure!(banned["banned"] == true, "not banned: {banned:#}");
        std::fs::remove_file(mesh.dir().join("config/east.yaml"))?;
        Ok(act)
    }
}

/// Calls a workload through a sidecar for as long as that answers 200.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Caller {
    fn start(outbound: SocketAddr, host: String, watch: Arc<Watch>) -> Result<Self> {
        let ask = move || {
            let request = curl::get(format!("http://{outbound}/helloworld")).header("host", &host);
            request.send()?.expect_status(200).map(drop)
        };
        wait::until("the new workload to answer", LIMIT, &ask)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => watch.note(),
                    Err(error) => return watch.end(format!("{error:#}")),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn nodes(scene: &Scene) -> Result<BTreeSet<String>> {
    let list = scene.mesh.kasbah(["node", "list", "-o", "json"]).ok()?.json()?;
    let ids = list.as_array().into_iter().flatten().filter_map(|node| Some(node["id"].as_str()?.to_owned()));
    Ok(ids.collect())
}

fn outbound_of_test(scene: &Scene) -> Result<SocketAddr> {
    Ok(SocketAddr::new(scene.mesh.at("/workloads/test/address")?.parse()?, 15001))
}

/// Every proxy that serves inside the mesh: sidecars of ours, the egress gateway, a stock Envoy.
fn doors(scene: &Scene) -> Result<Vec<Door>> {
    let mesh = &scene.mesh;
    let sidecar = |name: &str, address: SocketAddr, serves_hello: bool| {
        let port = |port: u16| format!("outbound_.{port}_._.{name}.default.svc.cluster.local");
        Door {
            proxy: format!("{name}-sidecar"),
            address,
            host: format!("{name}.default.svc.cluster.local:9095"),
            path: "/helloworld",
            http: port(9095),
            tcp: serves_hello.then(|| port(9096)),
            judges_open: true,
            grpc: serves_hello,
        }
    };
    let mut doors = vec![
        sidecar("helloworld", mesh.address("/workloads/helloworld/inbound")?, true),
        sidecar("test", mesh.address("/workloads/test/inbound")?, false),
    ];
    for node in &scene.nodes {
        doors.push(sidecar(node.name, SocketAddr::new(node.address.into(), 15006), true));
    }
    let external = "external.example.com".to_owned();
    let settings = std::fs::read_to_string(mesh.dir().join("run/settings/egress.yaml"))?;
    let bind =
        settings.lines().find_map(|line| line.trim().strip_prefix("BIND_ADDRESS: ")).context("no BIND_ADDRESS")?;
    let address = SocketAddr::new(bind.trim_matches(['"', '\'']).parse()?, 8443);
    let (host, http) = (external.clone(), external);
    let egress = sidecar("egress", address, false);
    doors.push(Door { proxy: "egress gateway".into(), host, http, path: "/", ..egress });
    let IpAddr::V4(test) = mesh.at("/workloads/test/address")?.parse()? else { anyhow::bail!("not IPv4") };
    let envoy = SocketAddr::new(std::net::Ipv4Addr::from(u32::from(test) + 100).into(), 15006);
    doors.push(Door { proxy: "stock Envoy".into(), judges_open: false, path: "/", ..sidecar("envoy", envoy, false) });
    Ok(doors)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Workloads of the drill may call helloworld as its callers do.
const POLICIES: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: drill, namespace: default}
spec:
  selector: {matchLabels: {app: helloworld}}
  action: ALLOW
  rules: [{from: [{source: {principals: ['cluster.local/ns/drill/*']}}]}]
";
/// How often the victim must have been answered at each door before it is revoked.
const BUSY: u64 = 10;
