//! A CA and agents in a folder, without a mesh around them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use harness::program::Running;
use harness::{Program, mesh, tools, wait};
use runtime::workload_api::{self, Endpoint};
use serde_json::{Value, json};

/// The folder and the CA.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) grpc: u16,
    pub(crate) ca: Option<Running>,
    agent_svid_ttl: &'static str,
}

impl Site {
    /// A CA whose agents renew their own SVIDs every few seconds.
    pub(crate) fn start() -> Result<Self> {
        Self::with_agent_svid_ttl("20s")
    }

    pub(crate) fn with_agent_svid_ttl(agent_svid_ttl: &'static str) -> Result<Self> {
        let mut site = Self { dir: tempfile::tempdir()?, grpc: mesh::free_port()?, ca: None, agent_svid_ttl };
        // Files are given to other users below.
        std::fs::set_permissions(site.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        site.start_ca()?;
        Ok(site)
    }

    pub(crate) fn start_ca(&mut self) -> Result<()> {
        let settings = json!({
            "trust_domain": "example.org",
            "data_dir": self.path("ca"),
            "grpc": format!("127.0.0.1:{}", self.grpc),
            "admin_socket": self.path("ca.sock"),
            "bundle_file": self.path("bundle.pem"),
            "agent_svid_ttl": self.agent_svid_ttl,
        });
        let file = self.write("ca.yaml", &settings.to_string())?;
        self.ca = Some(role("ca", &file)?);
        wait::until("the CA", START_MAX, || self.verb(["node", "list"]).ok()).map(drop)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.path(name);
        std::fs::write(&file, text)?;
        Ok(file)
    }

    pub(crate) fn verb<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Program {
        let program = Program::new(tools::kasbah()).args(args).env("NO_COLOR", "1");
        program.arg("--socket").arg(self.path("ca.sock"))
    }

    /// An agent with more settings; it joins with a token at its first start.
    pub(crate) fn agent(&self, more: &Value) -> Result<Running> {
        self.agent_of(NODE, "agent", more)
    }

    /// The agent of a node, which keeps everything under the name.
    pub(crate) fn agent_of(&self, node: &str, name: &str, more: &Value) -> Result<Running> {
        role("agent", &self.agent_settings(node, name, more)?)
    }

    /// The file of its settings; beside it lies a token, if it has not been started before.
    pub(crate) fn agent_settings(&self, node: &str, name: &str, more: &Value) -> Result<PathBuf> {
        let token = self.path(&format!("{name}.token"));
        if !self.path(name).exists() {
            self.token(node, name)?;
        }
        let mut settings = json!({
            "trust_domain": "example.org",
            "data_dir": self.path(name),
            "server": format!("127.0.0.1:{}", self.grpc),
            "trust_bundle": self.path("bundle.pem"),
            "join_token_file": token,
            "workload_api": self.path(&format!("{name}.sock")),
            "admin": format!("127.0.0.1:{}", mesh::free_port()?),
            "sync_interval": "1s",
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            settings[name] = value.clone();
        }
        self.write(&format!("{name}.yaml"), &settings.to_string())
    }

    /// A new token for the agent of that name.
    pub(crate) fn token(&self, node: &str, name: &str) -> Result<()> {
        let token = self.verb(["token", "create", "--spiffe-id", node]).ok()?.stdout;
        self.write(&format!("{name}.token"), &token).map(drop)
    }

    /// Where workloads of that agent call.
    pub(crate) fn endpoint(&self, name: &str) -> String {
        format!("unix://{}", self.path(&format!("{name}.sock")).display())
    }

    /// An entry for this user's processes.
    pub(crate) fn entry(&self, path: &str, ttl: &str) -> Result<()> {
        self.entry_on(NODE, path, ttl)
    }

    pub(crate) fn entry_on(&self, node: &str, path: &str, ttl: &str) -> Result<()> {
        let selector = format!("unix:uid:{}", own_uid()?);
        let id = format!("spiffe://example.org{path}");
        let args = ["--spiffe-id", &id, "--parent-id", node, "--selector", &selector, "--x509-svid-ttl", ttl];
        self.verb(["entry", "create"].into_iter().chain(args)).ok().map(drop)
    }

    pub(crate) fn fetch(&self) -> Result<Value> {
        let address = self.endpoint("agent");
        Program::new(tools::kasbah()).args(["agent", "fetch", "x509", "-o", "json", "--socket", &address]).ok()?.json()
    }

    /// The serial of what a workload of that agent gets, which is valid.
    pub(crate) fn serial(&self, name: &str) -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let identity = runtime.block_on(workload_api::fetch_x509(&Endpoint::parse(&self.endpoint(name))?))?;
        let svid = identity.svid();
        ensure!(svid.not_after() > SystemTime::now(), "{} ended at {:?}", svid.serial(), svid.not_after());
        Ok(svid.serial().to_owned())
    }

    pub(crate) fn log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Starts a role; its log lies beside its settings.
pub(crate) fn role(role: &str, settings: &Path) -> Result<Running> {
    program(role, settings).background(&settings.with_extension("log"))
}

/// The same, not started yet.
pub(crate) fn program(role: &str, settings: &Path) -> Program {
    Program::new(tools::kasbah()).args([role, "run", "--config"]).arg(settings)
}

pub(crate) fn own_uid() -> Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

const NODE: &str = "spiffe://example.org/node/local";
pub(crate) const START_MAX: Duration = Duration::from_secs(40);
