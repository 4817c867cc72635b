//! What the open connections of each proxy rest on while a root is replaced, read from the proxies themselves.
//!
//! Our proxies say on `/connections` how many mTLS connections they have by the roots of both certificates. Stock Envoy says how
//! many connections it has, and not what they were made with; each of its mesh connections ends at one of our proxies, which
//! counts it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::drill::{LIMIT, rotation_status};
use crate::scene::Scene;

/// A proxy with its admin address.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) name: String,
    admin: SocketAddr,
    is_envoy: bool,
}

/// The connections of one proxy at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// That rest on the root in question; none where the proxy cannot tell.
    pub(crate) old: Option<u64>,
    pub(crate) open: u64,
}

/// All proxies during one step.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) step: String,
    /// When the step was first seen.
    first: Vec<Count>,
    /// The most of the old root.
    pub(crate) most: Vec<u64>,
    /// The last that was seen before the next step.
    pub(crate) last: Vec<Count>,
}

impl Row {
    fn begin(step: &str, seen: Vec<Count>) -> Self {
        let most = seen.iter().map(|count| count.old.unwrap_or_default()).collect();
        Self { step: step.to_owned(), first: seen.clone(), most, last: seen }
    }

    fn go_on(&mut self, seen: Vec<Count>) {
        for (most, count) in self.most.iter_mut().zip(&seen) {
            *most = (*most).max(count.old.unwrap_or_default());
        }
        self.last = seen;
    }

    /// A cell of the report.
    pub(crate) fn cell(&self, place: usize) -> String {
        let Count { old, open } = self.last[place];
        match old {
            None => format!("? of {open}"),
            Some(old) if old == self.most[place] => format!("{old} of {open}"),
            Some(old) => format!("{} → {old} of {open}", self.most[place]),
        }
    }
}

/// The proxies of the scene.
pub(crate) fn proxies(scene: &Scene) -> Result<Vec<Proxy>> {
    let demo = [
        ("ingress", "/ingress/admin"),
        ("egress", "/egress/admin"),
        ("test", "/workloads/test/admin"),
        ("helloworld", "/workloads/helloworld/admin"),
    ];
    let demo = demo
        .into_iter()
        .map(|(name, pointer)| Ok(Proxy { name: name.into(), admin: scene.mesh.address(pointer)?, is_envoy: false }));
    let nodes = scene.nodes.iter().map(|node| Ok(Proxy { name: node.name.into(), admin: node.admin, is_envoy: false }));
    let envoy = Proxy { name: "stock Envoy".into(), admin: scene.envoy.admin()?, is_envoy: true };
    demo.chain(nodes).chain([Ok(envoy)]).collect()
}

/// Plays something and looks at all proxies again and again meanwhile: a row for each step of the rotation that was seen.
pub(crate) fn watched<T>(
    scene: &Scene,
    proxies: &[Proxy],
    root: &str,
    play: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Row>)> {
    let ended = AtomicBool::new(false);
    let first = Row::begin(step(scene, root)?, look(proxies, root)?);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(scene, proxies, root, first, &ended));
        let played = play();
        ended.store(true, Ordering::Relaxed);
        let rows = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        Ok((played?, rows?))
    })
}

/// Waits until nothing rests on the dropped root, and expects that nothing did when it was dropped.
pub(crate) fn expect_gone(proxies: &[Proxy], root: &str, rows: &mut Vec<Row>) -> Result<()> {
    let at_drop = rows.iter().find(|row| row.step == AFTER).context("the drop was not seen")?;
    for (proxy, count) in proxies.iter().zip(&at_drop.first) {
        let left = count.old.unwrap_or_default();
        ensure!(left == 0, "{left} connections of {} rested on the old root when it was dropped", proxy.name);
    }
    let begun = Instant::now();
    loop {
        let seen = look(proxies, root)?;
        let left: u64 = seen.iter().filter_map(|count| count.old).sum();
        if left == 0 {
            rows.push(Row::begin("end", seen));
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            bail!("{left} connections rest on the old root at the end: {rows:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn watch(scene: &Scene, proxies: &[Proxy], root: &str, mut row: Row, ended: &AtomicBool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    loop {
        let last = ended.load(Ordering::Relaxed);
        // While the CA is away, nobody knows of a step.
        if let Ok(step) = step(scene, root) {
            let step = if step == BEFORE && !rows.is_empty() { BACK } else { step };
            let seen = look(proxies, root)?;
            if row.step == step {
                row.go_on(seen);
            } else {
                rows.push(std::mem::replace(&mut row, Row::begin(step, seen)));
            }
            if last {
                rows.push(row);
                return Ok(rows);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The step that was taken last with this root.
fn step(scene: &Scene, root: &str) -> Result<&'static str> {
    let status = rotation_status(scene)?;
    if status["authorities"].as_array().is_some_and(|all| all.iter().all(|one| one["id"] != root)) {
        return Ok(AFTER);
    }
    let phase = status["phase"].as_str().unwrap_or_default();
    Ok(PHASES.into_iter().find(|known| *known == phase).unwrap_or(BEFORE))
}

fn look(proxies: &[Proxy], root: &str) -> Result<Vec<Count>> {
    proxies.iter().map(|proxy| proxy.look(root).with_context(|| proxy.name.clone())).collect()
}

impl Proxy {
    fn look(&self, root: &str) -> Result<Count> {
        if self.is_envoy {
            let stats = get(self.admin, "/stats?filter=(downstream_cx_active|upstream_cx_active)$")?;
            return Ok(Count { old: None, open: stats.lines().filter_map(mesh_connections).sum() });
        }
        let page: Value = serde_json::from_str(&get(self.admin, "/connections")?)?;
        let rows = page["connections"].as_array().with_context(|| format!("no list: {page}"))?;
        let count = |row: &Value| row["count"].as_u64().unwrap_or_default();
        let on = |row: &&Value| row["own_authority"] == root || row["peer_authority"] == root;
        Ok(Count { old: Some(rows.iter().filter(on).map(count).sum()), open: rows.iter().map(count).sum() })
    }
}

/// Connections of Envoy's to and from the mesh: those of its inbound listener, and of the clusters of services.
fn mesh_connections(line: &str) -> Option<u64> {
    let (name, value) = line.rsplit_once(": ")?;
    let inbound = name.starts_with("listener.") && name.contains("_15006.");
    let outbound = name.starts_with("cluster.outbound|");
    (inbound || outbound).then(|| value.parse().ok()).flatten()
}

/// A page of an admin address. Ours are sent whole; Envoy's lengths of chunks are lines of their own, which no statistic is.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.to_owned())
}

const BEFORE: &str = "before";
const AFTER: &str = "dropped";
/// After an abort.
const BACK: &str = "back";
const PHASES: [&str; 3] = ["prepared", "activated", "tainted"];
const LOOK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(10);
