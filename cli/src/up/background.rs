//! `up --detach`: the same supervisor as a background process. The caller follows its messages until the mesh is ready
//! or has failed.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::layout::Layout;
use super::supervise::MeshState;
use crate::exit::{Exit, Failure};
use crate::output;

/// Whether this process is the background supervisor.
pub(super) fn is_background() -> bool {
    std::env::var_os(BACKGROUND).is_some()
}

/// The background supervisor leaves the terminal's session, so that closing it does no harm.
pub(super) fn leave_terminal() {
    if is_background() {
        let _ = rustix::process::setsid();
    }
}

/// Starts the background supervisor with the same arguments and waits for it to be ready.
pub(super) fn start(layout: &Layout) -> Result<(), Failure> {
    layout.create()?;
    let log = layout.log_of("up");
    let sink = File::options().create(true).append(true).open(&log)?;
    let mut follow = File::open(&log)?;
    follow.seek(std::io::SeekFrom::End(0))?;
    let child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND, "1")
        .env_remove("KASBAH_SUPERVISOR_PID")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(sink)
        .process_group(0)
        .spawn()?;
    wait(layout, child, &mut follow)
}

fn wait(layout: &Layout, mut child: Child, follow: &mut File) -> Result<(), Failure> {
    loop {
        relay(follow);
        if let Some(state) = read_state(layout).filter(|s| s.supervisor_pid == child.id())
            && state.ready_after_ms.is_some()
        {
            relay(follow);
            output::line(&super::summary(layout, &state)?);
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            relay(follow);
            let exit = match status.code() {
                Some(64) => Exit::Usage,
                Some(65) => Exit::Data,
                Some(69) => Exit::Unavailable,
                Some(77) => Exit::Denied,
                _ => Exit::Failed,
            };
            return Err(Failure::new(exit, "the mesh did not start"));
        }
        std::thread::sleep(POLL);
    }
}

/// Passes new messages of the supervisor on.
fn relay(follow: &mut File) {
    let mut text = String::new();
    if follow.read_to_string(&mut text).is_ok() && !text.is_empty() {
        output::message(text.trim_end());
    }
}

/// The supervisor's notes, if there are any.
pub(crate) fn read_state(layout: &Layout) -> Option<MeshState> {
    serde_json::from_slice(&std::fs::read(layout.state()).ok()?).ok()
}

const BACKGROUND: &str = "KASBAH_UP_BACKGROUND";
const POLL: Duration = Duration::from_millis(20);
