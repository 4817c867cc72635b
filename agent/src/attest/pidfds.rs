//! One handle for each process, however many connections it has: open files are scarcer than memory on a node with thousands of
//! workloads.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::{fstat, fstatfs};

/// The handles that are held, by what the kernel calls their processes.
#[derive(Debug, Default)]
struct Held {
    known: HashMap<u64, Weak<OwnedFd>>,
    /// At this size those that are gone are forgotten.
    sweep_at: usize,
}

/// The handle that is held on the same process already, or this one.
pub(super) fn share(pidfd: OwnedFd) -> Arc<OwnedFd> {
    let Some(number) = number_of(&pidfd) else { return Arc::new(pidfd) };
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = held.known.get(&number).and_then(Weak::upgrade) {
        return known;
    }
    if held.known.len() >= held.sweep_at {
        held.known.retain(|_, known| known.strong_count() > 0);
        held.sweep_at = (held.known.len() * 2).max(SWEEP_LEAST);
    }
    let pidfd = Arc::new(pidfd);
    held.known.insert(number, Arc::downgrade(&pidfd));
    pidfd
}

/// The number of the process that is never given to another one while the machine runs (pidfs, Linux 6.9 and later, 64 bit).
/// `None` where handles have no such numbers.
fn number_of(pidfd: &OwnedFd) -> Option<u64> {
    let kind = u64::try_from(fstatfs(pidfd).ok()?.f_type).ok()?;
    if cfg!(target_pointer_width = "64") && kind == PID_FS_MAGIC { Some(fstat(pidfd).ok()?.st_ino) } else { None }
}

static HELD: LazyLock<Mutex<Held>> = LazyLock::new(Mutex::default);
/// `PID_FS_MAGIC` of `linux/magic.h`.
const PID_FS_MAGIC: u64 = 0x5049_4446;
const SWEEP_LEAST: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()
    }

    fn open(child: &Child) -> Arc<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        share(pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    #[test]
    fn one_process_has_one_handle_and_another_its_own() {
        let mut children = [sleeper(), sleeper()];
        let [one, again, other] = [open(&children[0]), open(&children[0]), open(&children[1])];
        // A kernel before 6.9 has no numbers to tell processes by: each connection keeps a handle.
        assert_eq!(Arc::ptr_eq(&one, &again), number_of(&one).is_some());
        assert_ne!(one.as_raw_fd(), other.as_raw_fd());
        drop((one, again));
        assert!(open(&children[0]).as_raw_fd() >= 0, "a handle that was closed is made anew");
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn handles_of_processes_that_are_gone_are_forgotten() {
        for _ in 0..3 * SWEEP_LEAST {
            let mut child = Command::new("true").spawn().unwrap();
            drop(open(&child));
            child.wait().unwrap();
        }
        let held = HELD.lock().unwrap();
        assert!(held.known.len() <= 2 * SWEEP_LEAST, "{} are remembered", held.known.len());
    }
}
