//! Keeps the mesh's processes running: starts them, restarts the ones that end (at once, then with growing pauses),
//! writes down what runs for `kasbah status`, and stops all together.
//!
//! The supervisor runs on one thread: each child asks the kernel for a signal when the thread that started it ends, so
//! a killed supervisor leaves nothing behind.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::layout::{Layout, write_atomically};
use crate::exit::Failure;

/// One process to keep running.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Name in status and of the log file, such as `helloworld-sidecar`.
    pub(crate) name: &'static str,
    /// Arguments to our own binary.
    pub(crate) arguments: Vec<String>,
    /// Name for the agent; processes without one are started directly.
    pub(crate) launch_name: Option<&'static str>,
    /// How to see that it is ready.
    pub(crate) ready: Probe,
}

/// How readiness is seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Probe {
    /// `/healthz/ready` of the admin address answers 200.
    Admin(SocketAddr),
    /// The port accepts connections.
    Tcp(SocketAddr),
}

/// What `DIR/run/mesh.json` holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MeshState {
    pub(crate) supervisor_pid: u32,
    pub(crate) version: String,
    /// How long the start took until everything was ready; absent while starting.
    pub(crate) ready_after_ms: Option<u64>,
    pub(crate) processes: Vec<ProcessState>,
}

/// One process as the supervisor knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessState {
    pub(crate) name: String,
    pub(crate) pid: Option<u32>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) listens: Option<SocketAddr>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    pub(crate) log: PathBuf,
}

/// All processes of a mesh.
pub(crate) struct Supervisor {
    layout: Layout,
    binary: PathBuf,
    state: Rc<RefCell<MeshState>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Supervisor {
    pub(crate) fn new(layout: &Layout) -> Result<Self, Failure> {
        let state = MeshState {
            supervisor_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..MeshState::default()
        };
        let binary = std::env::current_exe()?;
        Ok(Self {
            layout: layout.clone(),
            binary,
            state: Rc::new(RefCell::new(state)),
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
        })
    }

    /// Starts a process and keeps it running. Must be called inside a `LocalSet`.
    pub(crate) fn start(&mut self, process: Process) {
        let (admin, listens) = match process.ready {
            Probe::Admin(address) => (Some(address), None),
            Probe::Tcp(address) => (None, Some(address)),
        };
        let log = self.layout.log_of(process.name);
        let index = {
            let mut state = self.state.borrow_mut();
            state.processes.push(ProcessState {
                name: process.name.to_owned(),
                pid: None,
                admin,
                listens,
                restarts: 0,
                last_exit: None,
                log: log.clone(),
            });
            state.processes.len() - 1
        };
        let keeper = Keeper {
            command: self.command_line(&process),
            binary: self.binary.clone(),
            log,
            state: Rc::clone(&self.state),
            state_file: self.layout.state(),
            index,
            stop: self.stop.subscribe(),
        };
        self.tasks.spawn_local(keeper.run());
    }

    fn command_line(&self, process: &Process) -> Vec<String> {
        let Some(name) = process.launch_name else { return process.arguments.clone() };
        let socket = self.layout.socket("launch.sock").display().to_string();
        let mut line: Vec<String> =
            ["run", "--name", name, "--socket", &socket, "--"].iter().map(|s| (*s).to_owned()).collect();
        line.push(self.binary.display().to_string());
        line.extend(process.arguments.iter().cloned());
        line
    }

    /// The state as last known.
    pub(crate) fn state(&self) -> MeshState {
        self.state.borrow().clone()
    }

    /// Notes that everything became ready, for `status` and the waiting `up --detach`.
    pub(crate) fn mark_ready(&self, after: Duration) {
        self.state.borrow_mut().ready_after_ms = u64::try_from(after.as_millis()).ok();
        save(&self.layout.state(), &self.state.borrow());
    }

    /// Stops all processes: asks, waits, ends what remains.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        let _ = std::fs::remove_file(self.layout.state());
    }
}

/// Keeps one process running.
struct Keeper {
    command: Vec<String>,
    binary: PathBuf,
    log: PathBuf,
    state: Rc<RefCell<MeshState>>,
    state_file: PathBuf,
    index: usize,
    stop: watch::Receiver<bool>,
}

impl Keeper {
    async fn run(mut self) {
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            let started = Instant::now();
            let ended = match self.spawn() {
                Ok(mut child) => {
                    self.note(|process| process.pid = child.id());
                    let ended = tokio::select! {
                        status = child.wait() => Some(status),
                        _ = self.stop.wait_for(|stop| *stop) => None,
                    };
                    match ended {
                        Some(status) => describe(status),
                        None => return self.end(child).await,
                    }
                }
                Err(error) => format!("could not be started: {error}"),
            };
            if started.elapsed() > STABLE_AFTER {
                pause = RESTART_PAUSE_MIN;
            }
            self.note(|process| {
                process.pid = None;
                process.restarts += 1;
                process.last_exit = Some(ended);
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.stop.wait_for(|stop| *stop) => return,
            }
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        Command::new(&self.binary)
            .args(&self.command)
            .env(SUPERVISOR_PID, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    async fn end(&self, mut child: Child) {
        if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(STOP_WAIT_MAX, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        self.note(|process| process.pid = None);
    }

    fn note(&self, change: impl FnOnce(&mut ProcessState)) {
        let mut state = self.state.borrow_mut();
        if let Some(process) = state.processes.get_mut(self.index) {
            change(process);
        }
        save(&self.state_file, &state);
    }
}

fn save(file: &Path, state: &MeshState) {
    let Ok(text) = serde_json::to_vec_pretty(state) else { return };
    if let Err(error) = write_atomically(file, &text, 0o600) {
        tracing::warn!(file = %file.display(), %error, "the state of the mesh could not be written");
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("lost: {error}"),
    }
}

/// Called first thing by a process that a supervisor started: it ends with its supervisor.
pub(crate) fn end_with_supervisor() {
    let Some(supervisor) = std::env::var(SUPERVISOR_PID).ok().and_then(|v| v.parse::<i32>().ok()) else { return };
    let signal = Some(rustix::process::Signal::TERM);
    let _ = rustix::process::set_parent_process_death_signal(signal);
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if parent != supervisor {
        // The supervisor was gone before the kernel was asked (or this is a grandchild, which ends with its parent).
        let _ = rustix::process::set_parent_process_death_signal(None);
    }
}

/// Makes `command` end with this process.
pub(crate) fn supervised(command: &mut Command) {
    command.env(SUPERVISOR_PID, std::process::id().to_string());
}

/// The supervisor's process id, in the environment of what it starts.
const SUPERVISOR_PID: &str = "KASBAH_SUPERVISOR_PID";
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(2);
const STABLE_AFTER: Duration = Duration::from_secs(10);
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
