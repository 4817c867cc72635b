//! `kasbah down`: asks the supervisor of a mesh to stop and waits until it has.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::DirArg;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::Layout;

pub(crate) fn run(dir: &DirArg) -> Result<(), Failure> {
    let layout = Layout::of(&dir.dir)?;
    let Some(pid) = supervisor(&layout)? else {
        output::message(&format!("no mesh runs in {}", layout.dir.display()));
        return Ok(());
    };
    kill_process(pid, Signal::TERM).map_err(|error| {
        Failure::new(Exit::Denied, format!("process {} cannot be asked to stop: {error}", pid.as_raw_nonzero()))
            .remedy("run `kasbah down` as the user who started the mesh")
    })?;
    let asked = Instant::now();
    while supervisor(&layout)?.is_some() {
        if asked.elapsed() > STOP_WAIT_MAX {
            return Err(Failure::failed(format!("process {} has not stopped", pid.as_raw_nonzero()))
                .remedy(format!("read {}", layout.log_of("up").display())));
        }
        std::thread::sleep(POLL);
    }
    output::message(&format!("the mesh in {} is stopped", layout.dir.display()));
    Ok(())
}

/// The process that holds the mesh's lock, if one does.
pub(crate) fn supervisor(layout: &Layout) -> Result<Option<Pid>, Failure> {
    let path = layout.lock();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(not_ours(&path, &error));
        }
        Err(_) => return Ok(None),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let text = std::fs::read_to_string(&path)?;
            Ok(text.trim().parse::<i32>().ok().and_then(Pid::from_raw))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// What another user's mesh keeps to itself.
pub(crate) fn not_ours(path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("{} cannot be read: {error}", path.display());
    Failure::refused(Exit::Denied, "LOCAL_ACCESS_DENIED", text)
}

const STOP_WAIT_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
