//! A mesh of real processes in a folder of its own, started by `kasbah up --detach` and always stopped: by its owner,
//! or, when the test process dies first, by a guard that sees its end.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Answer, Program};
use crate::{tools, wait};

/// How a mesh is started.
#[derive(Clone, Debug, Default)]
pub struct MeshOptions {
    /// More options of `kasbah up`.
    pub options: Vec<String>,
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    folder: Option<TempDir>,
    dir: PathBuf,
    endpoints: Value,
    guard: Option<Child>,
}

/// One process of a mesh, as `kasbah status` sees it.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Its process id while it runs.
    pub pid: Option<u32>,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u64,
    /// Resident memory.
    pub memory_bytes: Option<u64>,
}

impl Mesh {
    /// Starts a mesh in a new folder and waits until it is ready.
    ///
    /// # Errors
    /// When `kasbah up` fails; its messages and the logs are in the text.
    pub fn start(options: &MeshOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kasbah-test-").tempdir()?;
        let dir = folder.path().join("mesh");
        let mut mesh = Self { dir, folder: Some(folder), endpoints: Value::Null, guard: None };
        mesh.guard = Some(mesh.start_guard()?);
        mesh.up(options)?;
        Ok(mesh)
    }

    /// Starts the mesh of this folder, for the first time or again.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub fn up(&mut self, options: &MeshOptions) -> Result<Answer> {
        let port = match self.at("/ingress/http").ok().and_then(|a| a.parse::<SocketAddr>().ok()) {
            Some(address) => address.port(),
            None => free_port()?,
        };
        let answer = up(&self.dir)
            .args(["--detach", "--ingress-port", &port.to_string()])
            .args(&options.options)
            .ok()
            .with_context(|| self.logs())?;
        let text = std::fs::read_to_string(self.dir.join("endpoints.json")).context("no endpoints.json")?;
        self.endpoints = serde_json::from_str(&text)?;
        Ok(answer)
    }

    /// Stops the mesh; its folder stays.
    ///
    /// # Errors
    /// When `kasbah down` fails.
    pub fn down(&self) -> Result<Answer> {
        self.kasbah(["down"]).ok()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A member of `endpoints.json` by JSON pointer, such as `/ingress/http`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn at(&self, pointer: &str) -> Result<&str> {
        let found = self.endpoints.pointer(pointer).and_then(Value::as_str);
        found.with_context(|| format!("endpoints.json has no {pointer}: {}", self.endpoints))
    }

    /// The same as a socket address.
    ///
    /// # Errors
    /// When it is not there or no address.
    pub fn address(&self, pointer: &str) -> Result<SocketAddr> {
        let text = self.at(pointer)?;
        text.parse().with_context(|| format!("{pointer} is no address: {text}"))
    }

    /// `kasbah ARGS` for this mesh.
    pub fn kasbah<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Program {
        Program::new(tools::kasbah()).args(args).env("KASBAH_DIR", &self.dir).env("NO_COLOR", "1")
    }

    /// `kasbah run --name NAME -- PROGRAM …`; the program's arguments follow.
    pub fn launch(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Program {
        self.kasbah(["run", "--name", name, "--"]).arg(program)
    }

    /// An end user's token of a group.
    ///
    /// # Errors
    /// When `kasbah demo token` fails.
    pub fn token(&self, group: &str) -> Result<String> {
        Ok(self.kasbah(["demo", "token", "--group", group]).ok()?.stdout.trim().to_owned())
    }

    /// Writes `svid.pem`, `svid.key` and `bundle.pem` of the workload of that name into a folder.
    ///
    /// # Errors
    /// When the agent gives it none.
    pub fn write_identity(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch(&format!("identity-{name}"))?;
        let write = folder.display().to_string();
        self.launch(name, tools::kasbah()).args(["agent", "fetch", "x509", "--write", &write]).ok()?;
        Ok(folder)
    }

    /// A folder beside the mesh's, for the test's own files.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.dir.with_file_name(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The log of a process so far.
    pub fn log(&self, process: &str) -> String {
        let file = self.dir.join("logs").join(format!("{process}.log"));
        String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
    }

    /// Does something and waits until one of the processes' logs says one of `words` because of it; returns the line.
    ///
    /// # Errors
    /// When `act` fails or no such line comes.
    pub fn log_line_after(&self, logs: &[&str], words: &[&str], act: impl FnOnce() -> Result<()>) -> Result<String> {
        let before: Vec<usize> = logs.iter().map(|log| self.log(log).len()).collect();
        act()?;
        wait::until(&format!("a line with one of {words:?} in {logs:?}"), LOG_WAIT_MAX, || {
            let new = |(log, before): (&&str, &usize)| self.log(log).get(*before..).unwrap_or_default().to_owned();
            let new: String = logs.iter().zip(&before).map(new).collect();
            let line = new.lines().find(|line| words.iter().any(|word| line.contains(word)));
            line.map(str::to_owned).with_context(|| format!("the logs went on with: {new}"))
        })
    }

    /// The processes, as `kasbah status -o json` tells.
    ///
    /// # Errors
    /// When it tells nothing.
    pub fn roles(&self) -> Result<Vec<Role>> {
        let status = self.status()?;
        let roles = status.get("roles").and_then(Value::as_array).context("no roles in the status")?;
        roles.iter().map(Role::read).collect()
    }

    /// What `kasbah status -o json` prints, healthy or not.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn status(&self) -> Result<Value> {
        self.kasbah(["status", "-o", "json"]).run()?.json()
    }

    /// Expects `kasbah status` to call everything healthy.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect_healthy(&self) -> Result<()> {
        let answer = self.kasbah(["status"]).run()?;
        if answer.code != 0 {
            bail!("kasbah status ended with {}: {}", answer.code, answer.said());
        }
        Ok(())
    }

    /// The end of every log, for a failed test's report.
    pub fn logs(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.dir.join("logs")) else { return String::new() };
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        let mut text = format!("\n--- the logs in {} end with:", self.dir.display());
        for file in files {
            let log = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("\n--- {}\n", file.display()));
            text.push_str(&lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n"));
        }
        text
    }

    /// Leaves the folder for a person to look at.
    pub fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
    }

    /// A process that stops the mesh when this one is gone: its stdin then ends.
    fn start_guard(&self) -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", "cat > /dev/null; exec \"$0\" down"]).arg(tools::kasbah()).env("KASBAH_DIR", &self.dir);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("the guard cannot be started")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.down().is_err() {
            self.end_by_force();
        }
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

impl Mesh {
    fn end_by_force(&self) {
        let state = std::fs::read_to_string(self.dir.join("run/mesh.json")).unwrap_or_default();
        let state: Value = serde_json::from_str(&state).unwrap_or_default();
        let supervisor = state.get("supervisor_pid").and_then(Value::as_u64);
        let processes = state.get("processes").and_then(Value::as_array).cloned().unwrap_or_default();
        let children = processes.iter().filter_map(|process| process.get("pid")?.as_u64());
        for pid in supervisor.into_iter().chain(children) {
            let _ = kill(pid);
        }
    }
}

impl Role {
    fn read(value: &Value) -> Result<Self> {
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        Ok(Self {
            name: value.get("name").and_then(Value::as_str).context("a role without a name")?.to_owned(),
            pid: number("pid").and_then(|pid| u32::try_from(pid).ok()),
            ready: value.get("ready").and_then(Value::as_bool).unwrap_or_default(),
            restarts: number("restarts").unwrap_or_default(),
            memory_bytes: number("memory_bytes"),
        })
    }
}

/// `kasbah up --dir DIR`.
pub fn up(dir: &Path) -> Program {
    let dir = dir.display().to_string();
    Program::new(tools::kasbah()).args(["up", "--dir", &dir]).env("NO_COLOR", "1").limit(UP_WAIT_MAX)
}

/// Ends a process at once.
///
/// # Errors
/// When there is no such process.
pub fn kill(pid: u64) -> Result<()> {
    kill_with("KILL", pid)
}

/// Sends a process a signal, such as `TERM`.
///
/// # Errors
/// When there is no such process.
pub fn kill_with(signal: &str, pid: u64) -> Result<()> {
    Program::new("kill").args([&format!("-{signal}"), &pid.to_string()]).ok()?;
    Ok(())
}

/// Documents of a workload beside the demo's: a service `NAME.default.svc.cluster.local`, its service account of the same name, and
/// one workload whose sidecar is at port 15006 of `address`. `ports` have a number and a protocol, which is the port's name.
pub fn workload_documents(name: &str, address: Ipv4Addr, ports: &[(u16, &str)]) -> String {
    let of_service = ports.iter().map(|(number, protocol)| {
        format!("{{number: {number}, name: {protocol}, protocol: {}}}", protocol.to_uppercase())
    });
    let of_service = of_service.collect::<Vec<_>>().join(", ");
    let of_workload = ports.iter().map(|(_, protocol)| format!("{protocol}: 15006")).collect::<Vec<_>>().join(", ");
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{of_service}]
  workloadSelector: {{labels: {{app: {name}}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}-1, namespace: default}}
spec:
  address: {address}
  ports: {{{of_workload}}}
  labels: {{app: {name}}}
  serviceAccount: {name}
"
    )
}

/// A port that is free now, below the range that the kernel hands to outgoing connections.
///
/// # Errors
/// When none is.
pub fn free_port() -> Result<u16> {
    let start = 10_000 + u16::try_from(std::process::id() % 8_000)?;
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    for _ in 0..1_000 {
        let port = start + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}

const UP_WAIT_MAX: Duration = Duration::from_secs(90);
const LOG_WAIT_MAX: Duration = Duration::from_secs(5);
const LOG_LINES_SHOWN: usize = 12;
