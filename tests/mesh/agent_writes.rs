//! The agent's files, whatever cuts their writing off: a kill at every single call that changes one, and a disk without
//! room. What is left behind is whole, and the agent that follows serves from it.

#![allow(clippy::print_stdout, reason = "what was hit is told with the test's output")]
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use harness::program::Running;
use harness::{Program, Skipped, curl, mesh, tools, wait};
use identity::{PrivateKey, X509Svid};
use libtest_mimic::Trial;
use serde_json::json;

use crate::site::{self, START_MAX, Site};
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("agent::killed_at_each_of_its_writes_it_comes_back_whole", killed_at_each_write),
        alone("agent::a_full_disk_is_told_and_served_through_and_room_is_enough", full_disk),
    ]
}

/// Where an agent is killed.
#[derive(Clone, Debug)]
struct Point {
    /// `CALL NAME N`, as `preload.c` has it.
    at: String,
    /// In the first start of a node, not when a node that ran before renews what it has.
    is_first: bool,
}

/// Each point is hit by an agent of its own, some at the same time.
fn killed_at_each_write() -> Result<()> {
    let site = &Site::with_agent_svid_ttl(AGENT_LIFE)?;
    let preload = &preload(site)?;
    let points = points(site, preload)?;
    for call in ["open", "write", "fsync", "rename", "unlink", "mkdir", "symlink", "fchmod", "chmod", "rmdir"] {
        let hit = points.iter().any(|point| point.at.starts_with(&format!("{call} ")));
        ensure!(hit || call == "rmdir", "no {call} among {points:?}");
    }
    let (first, later): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| point.is_first);
    println!("{} writes of a first start, {} of a later one", first.len(), later.len());
    // Every worker has made its node before it kills one that has run before.
    let queue = Mutex::new(first.into_iter().chain(later).collect::<VecDeque<_>>());
    std::thread::scope(|scope| {
        let queue = &queue;
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let workers: Vec<_> = (0..WORKERS).map(|at| scope.spawn(move || work(site, preload, at, next))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })
}

fn preload(site: &Site) -> Result<PathBuf> {
    let library = site.path("preload.so");
    let compile = tools::system("cc")?.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library);
    compile.arg(tools::source("mesh/agent_writes/preload.c")).arg("-ldl").ok()?;
    Ok(library)
}

/// All that an agent writes until it is settled, in a folder that is new and then in the same one.
fn points(site: &Site, preload: &Path) -> Result<Vec<Point>> {
    let node = Node::new(site, "observed")?;
    let mut points = Vec::new();
    for is_first in [true, false] {
        let before = node.serials();
        let log = site.path("observed.calls");
        drop(std::fs::remove_file(&log));
        let agent = node.program(preload)?.env("WRITES_LOG", &log).background(&node.log_file())?;
        wait::until("everything written", START_MAX, || {
            node.launch();
            let now = node.serials();
            ensure!(now.iter().zip(&before).all(|(now, before)| now.is_some() && now != before), "{now:?}");
            let written = ["cache.sealed", "cache.key", "bundle.json", "launches.json"];
            ensure!(written.iter().all(|name| node.path(name).exists()), "not all is written");
            node.is_settled()
        })
        .with_context(|| node.log())?;
        drop(agent);
        let mut counts = BTreeMap::<String, usize>::new();
        for line in std::fs::read_to_string(&log)?.lines() {
            let count = counts.entry(line.to_owned()).or_default();
            *count += 1;
            if *count <= REPEATED_MAX {
                points.push(Point { at: format!("{line} {count}"), is_first });
            }
        }
    }
    Ok(points)
}

fn work(site: &Site, preload: &Path, worker: usize, next: impl Fn() -> Option<Point>) -> Result<()> {
    let mut node = Node::new(site, &format!("node-{worker}"))?;
    for round in 0.. {
        let Some(point) = next() else { break };
        if point.is_first {
            node.name = format!("node-{worker}-{round}");
        }
        let hit = kill_at(&node, preload, &point).and_then(|()| comes_back(&node, &point));
        hit.with_context(|| format!("killed at `{}`: {}", point.at, node.log()))?;
    }
    Ok(())
}

/// A small disk of its own, filled to the last byte for longer than an SVID lives. A restart then does without what could not be
/// written, and with it as soon as there is room.
fn full_disk() -> Result<()> {
    let site = &Site::with_agent_svid_ttl(LIFE)?;
    let node = Node::new(site, "full")?;
    let disk = SmallDisk::mount(&node.path(""))?;
    site.token(&node.id, &node.name)?;
    let (settings, admin) = node.settings_with_admin()?;
    let agent = site::role("agent", &settings)?;
    let written = || {
        ensure!(node.serials().iter().all(Option::is_some), "{:?}", node.serials());
        ensure!(node.path("cache.sealed").exists() && node.path("bundle.json").exists(), "not all is written");
        Ok(())
    };
    wait::until("everything written", START_MAX, written).with_context(|| node.log())?;
    let (before, cached) = (node.serials(), std::fs::read(node.path("cache.sealed"))?);
    let filler = disk.fill()?;
    let began = Instant::now();
    let mut served = BTreeSet::new();
    while began.elapsed() < FULL || served.len() < 3 {
        ensure!(began.elapsed() < START_MAX, "nothing is renewed: {}", node.log());
        served.insert(site.serial(&node.name).with_context(|| node.log())?);
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        node.serials() == before && std::fs::read(node.path("cache.sealed"))? == cached,
        "what was there is not whole"
    );
    let said = std::fs::read_to_string(node.log_file())?;
    let metrics = curl::get(curl::url("http", &admin, "/metrics")).send()?.expect_status(200)?.body;
    for reason in ["CACHE_NOT_WRITTEN", "DATA_DIR_UNWRITABLE", "FILES_NOT_WRITTEN"] {
        ensure!(said.contains(reason) && said.contains("No space left on device"), "no {reason}: {said}");
        let counted = format!("write_failures_total{{reason=\"{reason}\"}}");
        ensure!(metrics.contains(&counted), "no {counted}: {metrics}");
    }
    curl::get(curl::url("http", &admin, "/healthz/ready")).send()?.expect_status(200).context("it serves")?;
    std::fs::remove_file(filler)?;
    wait::until("what was not written", START_MAX, || {
        let now = node.serials();
        ensure!(now.iter().zip(&before).all(|(now, before)| now != before), "{now:?} {before:?}");
        ensure!(std::fs::read(node.path("cache.sealed"))? != cached, "the former cache");
        node.is_settled()
    })
    .with_context(|| node.log())?;
    drop(agent);
    let _agent = site::role("agent", &settings)?;
    wait::until("an SVID", START_MAX, || site.serial(&node.name)).with_context(|| node.log())?;
    // It serves what it has before it has looked at all of it.
    wait::until("what was stored", START_MAX, || {
        let said = std::fs::read_to_string(node.log_file())?;
        ensure!(said.contains("serving from the offline cache") && said.contains("stored SVID taken up"), "{said}");
        Ok(())
    })
}

/// A disk of two megabytes, which ends with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let mount = tools::system("mount")?.args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "none"]).arg(at).run()?;
        if mount.code != 0 {
            return Err(Skipped(format!("a small disk cannot be mounted here: {}", mount.said().trim())).into());
        }
        Ok(Self(at.to_owned()))
    }

    /// Takes all the room.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path)?;
        for piece in [64 << 10, 4 << 10, 1_usize] {
            while filler.write_all(&vec![0; piece]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Program::new("umount").arg("--lazy").arg(&self.0).run());
    }
}

/// One node and its folder.
struct Node<'a> {
    site: &'a Site,
    name: String,
    id: String,
}

impl<'a> Node<'a> {
    fn new(site: &'a Site, name: &str) -> Result<Self> {
        let id = format!("spiffe://example.org/node/{name}");
        site.entry_on(&id, "/web", LIFE)?;
        Ok(Self { site, name: name.to_owned(), id })
    }

    fn settings(&self) -> Result<PathBuf> {
        Ok(self.settings_with_admin()?.0)
    }

    fn settings_with_admin(&self) -> Result<(PathBuf, String)> {
        let web = json!({"dir": self.path("web"), "spiffe_id": "spiffe://example.org/web"});
        let launch = self.site.path(&format!("{}.launch", self.name));
        let admin = format!("127.0.0.1:{}", mesh::free_port()?);
        let more = json!({"files": [web], "launch": launch, "admin": admin});
        Ok((self.site.agent_settings(&self.id, &self.name, &more)?, admin))
    }

    fn start(&self) -> Result<Running> {
        site::role("agent", &self.settings()?)
    }

    /// An agent whose writes are watched.
    fn program(&self, preload: &Path) -> Result<Program> {
        let program = site::program("agent", &self.settings()?).env("LD_PRELOAD", preload);
        Ok(program.env("WRITES_BELOW", self.site.path(&self.name)))
    }

    /// Has a launch recorded, if the agent is there already.
    fn launch(&self) {
        let program = Program::new(tools::kasbah()).args(["run", "--name", "job", "--wait", "1s", "--socket"]);
        drop(program.arg(self.site.path(&format!("{}.launch", self.name))).args(["--", "true"]).run());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path(&self.name).join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.site.path(&format!("{}.log", self.name))
    }

    fn log(&self) -> String {
        self.site.log(&self.name)
    }

    /// The serials of the agent's SVID and of the one in the files.
    fn serials(&self) -> [Option<String>; 2] {
        let serial = |svid: Result<Option<X509Svid>>| svid.ok().flatten().map(|svid| svid.serial().to_owned());
        [serial(self.own()), serial(self.in_files())]
    }

    /// What the agent keeps for its next start; whole, or not there.
    fn own(&self) -> Result<Option<X509Svid>> {
        let Some(text) = read(&self.path("agent.pem"))? else { return Ok(None) };
        svid(&text, &text).map(Some).context("agent.pem")
    }

    /// What a program finds through `current`; whole, or not there.
    fn in_files(&self) -> Result<Option<X509Svid>> {
        let current = self.path("web/current");
        let Ok(version) = std::fs::read_link(&current) else { return Ok(None) };
        let version = self.path("web").join(version);
        let read = |name| read(&version.join(name))?.with_context(|| format!("no {name} in the version in force"));
        let svid = svid(&read("svid.pem")?, &read("svid.key")?)?;
        let roots = identity::pem::decode_certificates(&read("bundle.pem")?)?;
        ensure!(!roots.is_empty(), "an empty bundle");
        Ok(Some(svid))
    }

    /// Nothing but what is in force lies anywhere.
    fn is_settled(&self) -> Result<()> {
        let names = |folder: &Path| -> Result<Vec<String>> {
            let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
            Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        };
        let (kept, shown) = (names(&self.path(""))?, names(&self.path("web"))?);
        ensure!(!kept.iter().any(|name| name.ends_with(".new")), "{kept:?}");
        let versions = shown.iter().filter(|name| name.starts_with(".version-")).count();
        ensure!(versions == 1 && shown.len() == 5, "{shown:?}");
        Ok(())
    }
}

/// Runs an agent that ends at the point.
fn kill_at(node: &Node<'_>, preload: &Path, point: &Point) -> Result<()> {
    let calls = node.site.path(&format!("{}.calls", node.name));
    drop(std::fs::remove_file(&calls));
    let agent = node.program(preload)?.env("WRITES_KILL", &point.at).env("WRITES_LOG", &calls);
    let mut agent = agent.background(&node.log_file())?;
    wait::until("the kill", KILLED_MAX, || {
        if point.at.contains("launches") {
            node.launch();
        }
        ensure!(agent.has_ended(), "it still runs");
        Ok(())
    })?;
    let calls = std::fs::read_to_string(&calls)?;
    let (last, _) = point.at.rsplit_once(' ').context("no count")?;
    ensure!(calls.lines().last() == Some(last), "it ended elsewhere: {calls}");
    Ok(())
}

/// What the killed one left is whole, and the next one makes it complete.
fn comes_back(node: &Node<'_>, point: &Point) -> Result<()> {
    let (own, _) = (node.own()?, node.in_files()?);
    if own.is_none() {
        ensure!(point.is_first, "its identity is gone");
        // The CA has admitted the node, or not; nobody knows any more.
        node.site.token(&node.id, &node.name)?;
    }
    let _agent = node.start()?;
    let serial = wait::until("a valid SVID", START_MAX, || node.site.serial(&node.name))?;
    wait::until("whole files", START_MAX, || {
        ensure!(node.path("cache.sealed").exists() && node.path("bundle.json").exists(), "not all is written");
        ensure!(node.in_files()?.is_some_and(|svid| svid.not_after() > SystemTime::now()), "no valid file");
        node.is_settled()
    })
    .with_context(|| format!("after {serial}"))?;
    let said = std::fs::read_to_string(node.log_file())?;
    ensure!(!said.to_lowercase().contains("damaged"), "something was damaged: {said}");
    if !point.is_first {
        ensure!(said.contains("serving from the offline cache"), "it began with nothing: {said}");
    }
    Ok(())
}

fn read(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(read.with_context(|| file.display().to_string())?)),
    }
}

/// The certificate with its key; an error when they do not belong together.
fn svid(chain: &[u8], key: &[u8]) -> Result<X509Svid> {
    let key = PrivateKey::from_pkcs8_pem(key)?;
    Ok(X509Svid::from_parts(identity::pem::decode_certificates(chain)?, key)?)
}

const LIFE: &str = "3s";
/// Longer than anybody is away: a node that comes back with an SVID that has ended has one try.
const AGENT_LIFE: &str = "8s";
const WORKERS: usize = 10;
/// The same call on the same file is cut off so often: what follows does not differ.
const REPEATED_MAX: usize = 2;
/// Longer than an SVID lives, so that all that is served afterwards was renewed meanwhile.
const FULL: Duration = Duration::from_secs(5);
const KILLED_MAX: Duration = Duration::from_secs(20);
