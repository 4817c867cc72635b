//! One running process, held by pidfd so that a successor with its number is never taken for it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{AttestError, peer_pidfd, pidfds};

/// A process as it was when it connected (or was looked up).
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    uid: u32,
    gid: u32,
    pidfd: Arc<OwnedFd>,
    program: Option<Program>,
}

/// Which file a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Program {
    dev: u64,
    inode: u64,
}

/// A line of `/proc/PID/stat`, as far as it interests us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: i32,
    pub(super) start_ticks: u64,
}

impl Process {
    /// The process at the other end of a Unix socket.
    pub(crate) fn of_peer(socket: impl AsFd) -> Result<Self, AttestError> {
        let peer =
            rustix::net::sockopt::socket_peercred(&socket).map_err(|error| AttestError::Credentials(error.into()))?;
        let pid = peer.pid.as_raw_nonzero().get();
        let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
        if pid <= 0 {
            return Err(AttestError::Invisible);
        }
        match peer_pidfd::of(socket.as_fd()) {
            Ok(pidfd) => Self::held(pid, uid, gid, pidfd),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                // An old kernel: hold the process by number. Should the number have been given to another process
                // since the connect, that one started after us accepting; the socket's owner check below sees it.
                let process = Self::held(pid, uid, gid, open_pidfd(pid)?)?;
                process.check_owner()?;
                Ok(process)
            }
            Err(_) => Err(AttestError::Gone),
        }
    }

    /// The process with this number, for questions of an operator.
    pub(crate) fn open(pid: i32) -> Result<Self, AttestError> {
        let pidfd = open_pidfd(pid)?;
        let status = read_status(pid)?;
        let uid = status_numbers(&status, "Uid:").nth(1).ok_or(AttestError::Gone)?;
        let gid = status_numbers(&status, "Gid:").nth(1).ok_or(AttestError::Gone)?;
        Self::held(pid, uid, gid, pidfd)
    }

    fn held(pid: i32, uid: u32, gid: u32, pidfd: OwnedFd) -> Result<Self, AttestError> {
        let process = Self { pid, uid, gid, pidfd: pidfds::share(pidfd), program: program(pid) };
        process.check_alive()?;
        Ok(process)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    /// When it started, in ticks since the machine did: with its number that names it within one boot.
    pub(super) fn start_ticks(&self) -> Result<u64, AttestError> {
        let found = stat(self.pid)?;
        // It lives, so this was not read of a successor.
        self.check_alive().map(|()| found.start_ticks)
    }

    /// Whether it still lives: its pidfd becomes readable when it ends.
    pub(crate) fn check_alive(&self) -> Result<(), AttestError> {
        let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) => Ok(()),
            _ => Err(AttestError::Gone),
        }
    }

    /// Whether it still runs the program it connected with: a connection must not be kept across `exec` to
    /// borrow the next program's identity.
    pub(crate) fn check_program(&self) -> Result<(), AttestError> {
        match (self.program, program(self.pid)) {
            (Some(then), Some(now)) if then != now => Err(AttestError::ProgramChanged),
            _ => Ok(()),
        }
    }

    pub(super) fn supplementary_gids(&self) -> Result<Vec<u32>, AttestError> {
        Ok(status_numbers(&read_status(self.pid)?, "Groups:").take(GROUPS_MAX).collect())
    }

    fn check_owner(&self) -> Result<(), AttestError> {
        let status = read_status(self.pid)?;
        let owner = status_numbers(&status, "Uid:").any(|uid| uid == self.uid);
        if owner { Ok(()) } else { Err(AttestError::Gone) }
    }
}

/// Parent and start time of a process.
pub(super) fn stat(pid: i32) -> Result<Stat, AttestError> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone_or_unreadable)?;
    parse_stat(&text).ok_or(AttestError::Gone)
}

/// The name of a numeric user or group in a passwd-like file; `None` also when the file is unusually large.
pub(super) fn name_of(file: &str, id: u32) -> Option<String> {
    if fs::metadata(file).ok()?.len() > NAMES_BYTES_MAX {
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, AttestError> {
    let pid = Pid::from_raw(pid).ok_or(AttestError::Gone)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|_| AttestError::Gone)
}

fn program(pid: i32) -> Option<Program> {
    let found = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some(Program { dev: found.dev(), inode: found.ino() })
}

fn read_status(pid: i32) -> Result<String, AttestError> {
    fs::read_to_string(format!("/proc/{pid}/status")).map_err(gone_or_unreadable)
}

fn status_numbers<'a>(status: &'a str, field: &'a str) -> impl Iterator<Item = u32> + 'a {
    let line = status.lines().find_map(move |line| line.strip_prefix(field)).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|number| number.parse().ok())
}

/// The name, field 2, may hold spaces and parentheses: fields are counted after its last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat { parent, start_ticks })
}

fn gone_or_unreadable(error: io::Error) -> AttestError {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) | (_, Some(libc::ESRCH)) => AttestError::Gone,
        _ => AttestError::Proc(error),
    }
}

/// Supplementary groups looked at, as many as selectors can reasonably name.
const GROUPS_MAX: usize = 256;
const NAMES_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_process_name_does_not_shift_the_fields() {
        let text = "42 (a) S 1 (b)) S 7 42 42 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 1 0 987654 1 2";
        assert_eq!(parse_stat(text), Some(Stat { parent: 7, start_ticks: 987_654 }));
        for text in ["", ")", "42 (a", "42 (a) S", "42 (a) S x"] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_found_by_number() {
        assert_eq!(name_of("/etc/passwd", 0).as_deref(), Some("root"));
        assert_eq!(name_of("/etc/passwd", 4_000_000_000), None);
        assert_eq!(name_of("/nonexistent", 0), None);
    }

    #[test]
    fn both_ends_of_a_socket_pair_are_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let process = Process::of_peer(&one).unwrap();
        assert_eq!(u32::try_from(process.pid()).unwrap(), std::process::id());
        assert_eq!(process.uid(), rustix::process::getuid().as_raw());
        process.check_alive().unwrap();
        process.check_program().unwrap();
    }

    #[test]
    fn no_such_process_is_gone() {
        assert_eq!(Process::open(i32::MAX).unwrap_err().reason(), "ATTEST_PROCESS_GONE");
        assert_eq!(Process::open(-1).unwrap_err().reason(), "ATTEST_PROCESS_GONE");
    }
}
