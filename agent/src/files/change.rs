//! Telling a program that its files have changed: by a signal, or by a command.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// What is done after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfterChange {
    /// A program with its arguments, run as the user that wrote the files; no shell reads it.
    #[serde(default)]
    pub command: Vec<String>,
    /// Holds the number of the process that gets `signal`, in its first line.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
    /// `HUP`, `USR1`, `USR2` or `TERM`.
    #[serde(default = "hup")]
    pub signal: String,
}

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The command fails.
    #[error("{command} ended with {outcome}: {output}")]
    Command {
        /// The program.
        command: String,
        /// How it ended.
        outcome: String,
        /// The beginning of what it said.
        output: String,
    },
    /// There is no process to be told.
    #[error("{}: no process to signal: {problem}", file.display())]
    Signal {
        /// Which file should name it.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl ChangeError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "AFTER_CHANGE_FAILED"
    }
}

impl AfterChange {
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.command.is_empty() && self.pid_file.is_none() {
            return Some("give a command or a pid_file");
        }
        self.number().is_none().then_some("signal: HUP, USR1, USR2 or TERM")
    }

    /// Tells whoever is to be told.
    ///
    /// # Errors
    /// When the command fails or takes too long, or there is no process.
    pub async fn tell(&self) -> Result<(), ChangeError> {
        if let Some(file) = &self.pid_file {
            self.signal(file)?;
        }
        if self.command.is_empty() { Ok(()) } else { run(&self.command).await }
    }

    fn signal(&self, file: &PathBuf) -> Result<(), ChangeError> {
        let failed = |problem: String| ChangeError::Signal { file: file.clone(), problem };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed("its first line is no number".into()))?;
        let signal = self.number().ok_or_else(|| failed("the signal is not known".into()))?;
        kill_process(pid, signal).map_err(|error| failed(error.to_string()))
    }

    fn number(&self) -> Option<Signal> {
        match self.signal.trim_start_matches("SIG") {
            "HUP" => Some(Signal::HUP),
            "USR1" => Some(Signal::USR1),
            "USR2" => Some(Signal::USR2),
            "TERM" => Some(Signal::TERM),
            _ => None,
        }
    }
}

async fn run(command: &[String]) -> Result<(), ChangeError> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let failed = |outcome: String, output: &[u8]| ChangeError::Command {
        command: program.clone(),
        outcome,
        output: String::from_utf8_lossy(output).chars().take(OUTPUT_CHARS_MAX).collect(),
    };
    let mut run = Command::new(program);
    run.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    match tokio::time::timeout(COMMAND_WAIT_MAX, run.output()).await {
        Err(_) => Err(failed(format!("no answer within {} s", COMMAND_WAIT_MAX.as_secs()), b"")),
        Ok(Err(error)) => Err(failed(error.to_string(), b"")),
        Ok(Ok(done)) if done.status.success() => Ok(()),
        Ok(Ok(done)) => Err(failed(done.status.to_string(), &done.stderr)),
    }
}

fn hup() -> String {
    "HUP".into()
}

/// How long a command may take.
pub(crate) const COMMAND_WAIT_MAX: Duration = Duration::from_secs(60);
const OUTPUT_CHARS_MAX: usize = 500;
