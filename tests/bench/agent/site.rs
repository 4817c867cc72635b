//! The agent under measurement.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::program::Running;
use harness::{Program, mesh, tools};
use proto::spire::api::types;
use runtime::workload_api::{self, Endpoint};
use serde_json::{Value, json};

use crate::ca::{Authority, DOMAIN, Usage, entry, id};

/// An agent that has joined, with one entry for this process.
pub(super) struct Site {
    dir: tempfile::TempDir,
    settings: PathBuf,
    admin: std::net::SocketAddr,
    process: Option<Running>,
}

impl Site {
    pub(super) async fn start(authority: &Authority) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("token"), authority.token(NODE).await?)?;
        std::fs::write(at("bundle.pem"), authority.bundle_pem())?;
        let admin = std::net::SocketAddr::from(([127, 0, 0, 1], mesh::free_port()?));
        let settings = json!({
            "trust_domain": DOMAIN,
            "data_dir": at("data"),
            "server": authority.address(),
            "trust_bundle": at("bundle.pem"),
            "join_token_file": at("token"),
            "workload_api": at("agent.sock"),
            "admin": admin,
        });
        let file = at("agent.yaml");
        std::fs::write(&file, settings.to_string())?;
        let mut site = Self { dir, settings: file, admin, process: None };
        authority.create_entries(vec![site.own_entry("/bench/own")?]).await?;
        site.process = Some(site.spawn()?);
        let began = Instant::now();
        while let Err(error) = workload_api::fetch_x509(&site.endpoint()).await {
            ensure!(began.elapsed() < LIMIT, "the agent does not start: {error}; {}", site.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(site)
    }

    /// An entry for this process.
    pub(super) fn own_entry(&self, path: &str) -> Result<types::Entry> {
        use std::os::unix::fs::MetadataExt;
        let uid = std::fs::metadata("/proc/self")?.uid();
        let selectors = vec![types::Selector { r#type: "unix".into(), value: format!("uid:{uid}") }];
        Ok(types::Entry { selectors, ..entry(path, NODE) })
    }

    /// Entries for others, until the agent holds an SVID of each.
    pub(super) async fn add_workloads(&self, authority: &Authority, count: usize) -> Result<()> {
        let entry = |at: usize| types::Entry {
            spiffe_id: Some(id(&format!("/ns/bench/sa/workload-{at:05}"))),
            selectors: vec![types::Selector { r#type: "launch".into(), value: format!("name:workload-{at:05}") }],
            ..entry("/", NODE)
        };
        let all: Vec<types::Entry> = (0..count).map(entry).collect();
        for some in all.chunks(BATCH) {
            authority.create_entries(some.to_vec()).await?;
        }
        let began = Instant::now();
        while self.status().await?["svids"] != json!(count + 1) {
            ensure!(began.elapsed() < LIMIT, "the SVIDs do not come: {}", self.status().await?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&runtime::ask::get(self.admin, "/status").await?.1)?)
    }

    /// Until the sealed file has come to rest with everything in it.
    pub(super) async fn until_cached(&self, svids: usize) -> Result<()> {
        let file = self.dir.path().join("data/cache.sealed");
        let size = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let (began, mut last) = (Instant::now(), 0);
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = size();
            if now == last && now > svids as u64 * 500 {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "the cache does not come to rest at {now} bytes");
            last = now;
        }
    }

    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// From the start of the process to the first SVID that it serves.
    pub(super) async fn warm_start(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.process = Some(self.spawn()?);
        loop {
            if workload_api::fetch_x509(&self.endpoint()).await.is_ok() {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < LIMIT, "the agent does not serve: {}", self.log());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.dir.path().join("agent.sock").into()
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.as_ref().context("the agent does not run")?.id())
    }

    fn spawn(&self) -> Result<Running> {
        let program = Program::new(tools::kasbah()).args(["agent", "run", "--config"]).arg(&self.settings);
        program.env("KASBAH_LOG", "warn").background(&self.dir.path().join("agent.log"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }
}

pub(super) const NODE: &str = "/node/agent";
const BATCH: usize = 500;
const LIMIT: Duration = Duration::from_secs(300);
