//! Running another program under a time limit, with everything it said.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program about to be run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    name: OsString,
    input: Vec<u8>,
    limit: Duration,
}

/// What a program answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Program {
    /// A program by name or path, with no input and a limit of 30 seconds.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref().to_owned();
        Self { command: Command::new(&name), name, input: Vec::new(), limit: LIMIT }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its working folder.
    #[must_use]
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Gives it something to read on stdin.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, whatever the end is.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than its limit.
    pub fn run(mut self) -> Result<Answer> {
        let mut child = self.spawn_piped()?;
        let stdout = read_all(child.stdout.take());
        let stderr = read_all(child.stderr.take());
        let input = std::mem::take(&mut self.input);
        if let Some(mut stdin) = child.stdin.take() {
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let status = wait(&mut child, self.limit);
        let (stdout, stderr) = (text(stdout), text(stderr));
        match status? {
            Some(status) => Ok(Answer { code: status.code().unwrap_or(-1), stdout, stderr }),
            None => bail!("{} took longer than {:?}; it said: {stdout}{stderr}", self.describe(), self.limit),
        }
    }

    /// Runs it and expects exit code 0.
    ///
    /// # Errors
    /// As [`Program::run`], and when it ends with another exit code.
    pub fn ok(self) -> Result<Answer> {
        let description = self.describe();
        let answer = self.run()?;
        if answer.code != 0 {
            bail!("{description} ended with {}: {}{}", answer.code, answer.stdout, answer.stderr);
        }
        Ok(answer)
    }

    /// Starts it and leaves it running, its output going into `log`; it is ended when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn background(mut self, log: &Path) -> Result<Running> {
        let log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        self.command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let child = self.command.spawn().with_context(|| self.describe())?;
        Ok(Running { child })
    }

    /// The command itself, for who runs it in another way.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    fn spawn_piped(&mut self) -> Result<Child> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().with_context(|| format!("{} cannot be started", self.name.to_string_lossy()))
    }

    fn describe(&self) -> String {
        let args: Vec<_> = self.command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        format!("`{} {}`", self.name.to_string_lossy(), args.join(" "))
    }
}

impl Answer {
    /// Everything it said, stdout first.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Its stdout as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {}", self.said()))
    }
}

/// A program that runs beside the test.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// Closes its stdin and waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit` or ends with another exit code than 0.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        drop(self.child.stdin.take());
        match wait(&mut self.child, limit)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("ended with {status}"),
            None => bail!("did not end within {limit:?}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end; `None` when the limit was reached and the program was ended.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

const LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let error = Program::new("sleep").arg("60").limit(Duration::from_millis(50)).run().unwrap_err();
        assert!(error.to_string().contains("took longer"), "{error}");
    }

    #[test]
    fn input_output_and_exit_code_pass_through() {
        let answer = Program::new("sh").args(["-c", "cat; exit 7"]).input("salaam").run().unwrap();
        assert_eq!((answer.code, answer.stdout.as_str()), (7, "salaam"));
    }
}
