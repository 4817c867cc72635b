//! A program with a sidecar: both are children of this process, so both carry the launch name. Signals are passed on to the
//! program; when it ends, the sidecar ends, and this process exits with the program's code. A sidecar that dies is started
//! again.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Heard, SignalKind, signal};

use crate::args::RunArgs;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::{Layout, write_atomically};
use crate::up::{OUTBOUND_PORT, free_host, free_port_near, supervised};
use crate::verbs::wait;

/// Runs the program beside its sidecar; never returns on success, because the exit code is the program's.
pub(super) fn run(args: &RunArgs, program: std::process::Command) -> Result<(), Failure> {
    let plan = Plan::make(args)?;
    let status = wait(watch_over(&plan, program))?;
    std::process::exit(code_of(status));
}

/// Where the sidecar is and what it reads.
struct Plan {
    address: IpAddr,
    admin: u16,
    settings: PathBuf,
    log: PathBuf,
}

impl Plan {
    fn make(args: &RunArgs) -> Result<Self, Failure> {
        let layout = Layout::of(&args.dir.dir)?;
        let endpoints = std::fs::read(layout.endpoints()).ok();
        let endpoints: Value = endpoints.and_then(|text| serde_json::from_slice(&text).ok()).ok_or_else(|| {
            Failure::refused(
                Exit::Unavailable,
                "MESH_NOT_RUNNING",
                format!("no mesh is known in {}", layout.dir.display()),
            )
            .remedy("start one with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR")
        })?;
        let address = match args.address {
            Some(address) => address,
            None => free_host(u64::from(std::process::id()))?,
        };
        let admin = free_port_near(u64::from(std::process::id()))?;
        let name = format!("run-{}-{}", args.name, std::process::id());
        let plan = Self { address, admin, settings: layout.settings_of(&name), log: layout.log_of(&name) };
        let text =
            serde_json::to_vec_pretty(&plan.settings_of(args, &layout, &endpoints)).map_err(anyhow::Error::from)?;
        write_atomically(&plan.settings, &text, 0o600)?;
        Ok(plan)
    }

    fn settings_of(&self, args: &RunArgs, layout: &Layout, endpoints: &Value) -> Value {
        let (name, namespace, address) = (&args.name, &args.namespace, self.address);
        let trust_domain = endpoints["trust_domain"].as_str().unwrap_or_default();
        json!({
            "kind": "sidecar",
            "trust_domain": trust_domain,
            "node": {
                "id": format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.{trust_domain}"),
                "cluster": format!("{name}.{namespace}"),
                "metadata": {
                    "NAMESPACE": namespace,
                    "SERVICE_ACCOUNT": name,
                    "WORKLOAD_NAME": name,
                    "LABELS": {"app": name, "service.istio.io/canonical-name": name},
                    "INSTANCE_IPS": address,
                    "INTERCEPTION_MODE": "NONE",
                    "MESH_ID": trust_domain,
                    "CLUSTER_ID": "local",
                },
            },
            "discovery": {
                "address": endpoints.pointer("/discovery/xds_tls"),
                "peer": format!("spiffe://{trust_domain}/ns/kasbah-system/sa/discovery"),
            },
            "sds": layout.socket("sds.sock"),
            "admin": format!("127.0.0.1:{}", self.admin),
            "access_log": "/dev/null",
        })
    }

    /// The sidecar, which also ends when this process is killed.
    fn start(&self) -> Result<Child, Failure> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["proxy", "run", "--config"]).arg(&self.settings).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A terminal's signals are for the program.
        command.process_group(0);
        supervised(&mut command);
        Ok(command.spawn()?)
    }

    /// Waits until the sidecar serves.
    async fn until_ready(&self, sidecar: &mut Child) -> Result<(), Failure> {
        let admin = (IpAddr::from([127, 0, 0, 1]), self.admin).into();
        let began = Instant::now();
        while !runtime::ask::get(admin, "/healthz/ready").await.is_ok_and(|(status, _)| status == 200) {
            let ended = sidecar.try_wait()?;
            if ended.is_some() || began.elapsed() > READY_WAIT_MAX {
                let what = ended.map_or_else(|| "is not ready".to_owned(), |status| format!("has ended ({status})"));
                return Err(Failure::new(Exit::Unavailable, format!("the sidecar {what}"))
                    .remedy(format!("its log says why: {}", self.log.display())));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.settings);
    }
}

async fn watch_over(plan: &Plan, program: std::process::Command) -> Result<ExitStatus, Failure> {
    let mut signals = Signals::listen()?;
    let mut sidecar = plan.start()?;
    tokio::select! {
        ready = plan.until_ready(&mut sidecar) => ready?,
        signal = signals.next() => return Ok(ExitStatus::from_raw(signal.as_raw())),
    }
    let name = program.get_program().to_owned();
    let mut command = Command::from(program);
    let proxy = format!("http://{}:{OUTBOUND_PORT}", plan.address);
    command.env("http_proxy", &proxy).env("HTTP_PROXY", proxy).env("KASBAH_SIDECAR_ADDRESS", plan.address.to_string());
    let mut child = command.spawn().map_err(|error| super::not_started(&name, &error))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            signal = signals.next() => pass_on(&child, signal),
            ended = sidecar.wait() => {
                output::message(&format!("the sidecar ended ({}), starting it again", ended?));
                tokio::time::sleep(RESTART_PAUSE).await;
                sidecar = plan.start()?;
            }
        }
    };
    end(&mut sidecar).await;
    Ok(status)
}

fn pass_on(child: &Child, signal: Signal) {
    // What the terminal sends, it sends to the program as well.
    let from_terminal = matches!(signal, Signal::INT | Signal::QUIT | Signal::WINCH) && std::io::stdin().is_terminal();
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let (Some(pid), false) = (pid, from_terminal) {
        let _ = kill_process(pid, signal);
    }
}

/// Asks the sidecar to end, which drains it, and makes it end when it does not.
async fn end(sidecar: &mut Child) {
    if let Some(pid) = sidecar.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(END_WAIT_MAX, sidecar.wait()).await.is_err() {
        let _ = sidecar.kill().await;
    }
}

/// As a shell has it: the code, or 128 and the signal's number.
fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1)
}

/// The signals that are the program's business.
struct Signals(Vec<(Signal, Heard)>);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let kinds = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
            (Signal::WINCH, SignalKind::window_change()),
        ];
        let heard = kinds.into_iter().map(|(number, kind)| Ok((number, signal(kind)?)));
        Ok(Self(heard.collect::<std::io::Result<_>>()?))
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, heard) in &mut self.0 {
                if heard.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

const POLL: Duration = Duration::from_millis(20);
const READY_WAIT_MAX: Duration = Duration::from_secs(30);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long the sidecar may drain.
const END_WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let run = |script: &str| std::process::Command::new("sh").args(["-c", script]).status().unwrap();
        assert_eq!(code_of(run("exit 0")), 0);
        assert_eq!(code_of(run("exit 42")), 42);
        assert_eq!(code_of(run("kill -TERM $$")), 143);
        assert_eq!(code_of(run("kill -KILL $$")), 137);
    }
}
