//! Asking a running mesh: readiness with progress for people, and the first request through the ingress gateway, which
//! proves that all parts work together.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::StatusCode;
use runtime::ask;
use tokio::net::TcpStream;

use super::layout::Layout;
use super::supervise::{ProcessState, Supervisor};
use crate::exit::{Exit, Failure};
use crate::output;

/// Whether a process is ready now; `Err` says what it still waits for, as far as known.
pub(crate) async fn ready(process: &ProcessState) -> Result<(), String> {
    if let Some(admin) = process.admin {
        return match ask::get(admin, "/healthz/ready").await {
            Ok((StatusCode::OK, _)) => Ok(()),
            Ok((_, body)) => Err(String::from_utf8_lossy(&body).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        };
    }
    match process.listens {
        Some(address) => match TcpStream::connect(address).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{address} does not answer: {error}")),
        },
        None => Ok(()),
    }
}

/// Waiting for a start, with a line per part on stderr.
pub(crate) struct Progress {
    began: Instant,
    reported: BTreeSet<String>,
    layout: Layout,
}

impl Progress {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self { began: Instant::now(), reported: BTreeSet::new(), layout: layout.clone() }
    }

    /// Waits until the named processes are ready. A process that ends before it ever was is a failed start.
    pub(crate) async fn wait_for(&mut self, supervisor: &Supervisor, names: &[&str]) -> Result<(), Failure> {
        loop {
            let mut missing = None;
            for process in supervisor.state().processes.iter().filter(|p| names.contains(&p.name.as_str())) {
                if self.reported.contains(&process.name) {
                    continue;
                }
                if process.restarts > 0 {
                    return Err(self.ended_early(process));
                }
                match ready(process).await {
                    Ok(()) => self.report(&process.name),
                    Err(why) => missing = Some((process.clone(), why)),
                }
            }
            let Some((process, why)) = missing else { return Ok(()) };
            if self.began.elapsed() > START_WAIT_MAX {
                return Err(Failure::new(Exit::Unavailable, format!("{} is not ready: {why}", process.name))
                    .remedy(format!("read its log {}", process.log.display())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the ingress gateway answers the demo's first route from the workload behind it.
    pub(crate) async fn wait_for_first_request(&mut self, ingress: SocketAddr) -> Result<(), Failure> {
        loop {
            let last = match ask::get(ingress, "/helloworld").await {
                Ok((StatusCode::OK, _)) => {
                    self.report("first request through the mesh");
                    return Ok(());
                }
                Ok((status, body)) => format!("answered {status} {}", String::from_utf8_lossy(&body).trim()),
                Err(error) => format!("gave no answer: {error}"),
            };
            if self.began.elapsed() > START_WAIT_MAX {
                // The documents are the user's: a changed demo may well answer differently, so this is no failure.
                output::message(&format!("note: http://{ingress}/helloworld {last}"));
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn report(&mut self, name: &str) {
        self.reported.insert(name.to_owned());
        let after = output::duration(self.began.elapsed());
        let mark = if output::colour() { "\u{1b}[32m✓\u{1b}[0m" } else { "✓" };
        output::message(&format!("{mark} {name} ({after})"));
    }

    fn ended_early(&self, process: &ProcessState) -> Failure {
        let status = process.last_exit.clone().unwrap_or_default();
        let said = last_error(&self.layout, &process.name);
        let text = match &said {
            Some(said) => said.clone(),
            None => format!("{} ended before it was ready ({status})", process.name),
        };
        let failure = Failure::failed(format!("{}: {text}", process.name));
        match said {
            Some(said) if said.contains("to mend it:") => failure,
            _ => failure.remedy(format!("read its log {}", process.log.display())),
        }
    }
}

/// The last `error:` of a process's log, with its cause and its remedy.
fn last_error(layout: &Layout, name: &str) -> Option<String> {
    let text = std::fs::read(layout.log_of(name)).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().rposition(|line| line.starts_with("error: "))?;
    let mut said = lines.get(at)?.trim_start_matches("error: ").to_owned();
    let belongs = |line: &&&str| ["  cause: ", "  to mend it: "].iter().any(|begin| line.starts_with(begin));
    for line in lines.iter().skip(at + 1).take_while(belongs) {
        said.push('\n');
        said.push_str(line);
    }
    Some(said)
}

const START_WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(15);
