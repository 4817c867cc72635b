//! A terminal (a pseudo-terminal) with a program on it: what the program writes, what is typed, how large it is, and whether
//! it is left as it was found.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{self, Termios, Winsize};

use crate::program::Program;
use crate::{tools, wait};

/// A terminal with a program on it.
#[derive(Debug)]
pub struct Terminal {
    ours: File,
    /// The program's side; held so that its settings can be read when the program is gone.
    theirs: Option<File>,
    found: Termios,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

/// How a program on a terminal ended.
#[derive(Clone, Debug)]
pub struct Left {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Everything that was on the terminal, also what was typed and echoed.
    pub seen: String,
    /// Whether the terminal's settings are those from before.
    pub restored: bool,
}

impl Terminal {
    /// Starts a program on a terminal of so many rows and columns. Its stdin, stdout and stderr are the terminal, and Ctrl-C
    /// typed there is a signal to it.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the program cannot be started.
    pub fn start(program: Program, rows: u16, columns: u16) -> Result<Self> {
        let ours = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        pty::grantpt(&ours)?;
        pty::unlockpt(&ours)?;
        let path = pty::ptsname(&ours, Vec::new())?.into_string()?;
        let flags = i32::try_from(OFlags::NOCTTY.bits())?;
        let theirs = File::options().read(true).write(true).custom_flags(flags).open(path)?;
        set_size(&ours, rows, columns)?;
        let found = termios::tcgetattr(&theirs)?;
        let program = program.into_command();
        // Only as the leader of a session a program has a terminal of its own.
        // Whoever runs the tests in the background has Ctrl-C ignored, and so would all that they start.
        let mut command: Command = tools::system("setsid")?
            .args(["--ctty", "env", "--default-signal"])
            .arg(program.get_program())
            .into_command();
        command.args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = program.get_current_dir() {
            command.current_dir(folder);
        }
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs.try_clone()?);
        let child = command.spawn().context("the program on the terminal cannot be started")?;
        let ours = File::from(ours);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let reader = Some(read(ours.try_clone()?, seen.clone()));
        Ok(Self { ours, theirs: Some(theirs), found, seen, reader, child })
    }

    /// Types something.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn types(&mut self, text: &str) -> Result<()> {
        Ok(self.ours.write_all(text.as_bytes())?)
    }

    /// Makes the terminal larger or smaller; the program is told.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.ours, rows, columns)
    }

    /// What was on the terminal so far.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Forgets what was on the terminal so far.
    pub fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits for a text on the terminal.
    ///
    /// # Errors
    /// When it does not come within `limit`; what was there instead is in the text.
    pub fn until(&self, text: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("{text:?} on the terminal"), limit, || {
            let seen = self.seen();
            ensure!(seen.contains(text), "there is {seen:?}");
            Ok(())
        })
    }

    /// The process on the terminal.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn end(mut self, limit: Duration) -> Result<Left> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if began.elapsed() > limit {
                bail!("it goes on after {limit:?}: {:?}", self.seen());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let theirs = self.theirs.take().context("the terminal is gone")?;
        let now = termios::tcgetattr(&theirs)?;
        let restored = format!("{now:?}") == format!("{:?}", self.found);
        // With the last of that side closed the reader comes to an end.
        drop(theirs);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(Left { code: status.code().unwrap_or(-1), seen: self.seen(), restored })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) -> Result<()> {
    Ok(termios::tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

fn read(mut from: File, seen: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        // A terminal that nobody holds any more gives an error.
        while let Ok(count @ 1..) = from.read(&mut some) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&some[..count]);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_reads_what_is_typed_and_hears_ctrl_c() {
        let program = Program::new("sh").args(["-c", "stty size; read line; echo said $line; exec sleep 60"]);
        let mut terminal = Terminal::start(program, 12, 34).unwrap();
        terminal.until("12 34", LIMIT).unwrap();
        terminal.types("salaam\n").unwrap();
        terminal.until("said salaam", LIMIT).unwrap();
        terminal.types("\u{3}").unwrap();
        let left = terminal.end(LIMIT).unwrap();
        assert_eq!((left.code, left.restored), (-1, true), "{left:?}");
    }

    #[test]
    fn a_terminal_that_is_left_changed_is_seen() {
        let left = Terminal::start(Program::new("stty").arg("-echo"), 24, 80).unwrap().end(LIMIT).unwrap();
        assert_eq!((left.code, left.restored), (0, false), "{left:?}");
    }
}
