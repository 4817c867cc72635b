//! `kasbah check --pre`: whether a mesh can be started on this machine.

use std::net::{Ipv4Addr, TcpListener};
use std::time::SystemTime;

use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use super::Found;
use super::facts::disk;
use super::rules::{Outcome, outcome, space};
use crate::args::DirArg;
use crate::exit::Failure;
use crate::up::layout::Layout;

pub(super) fn look(dir: &DirArg) -> Result<Vec<Outcome>, Failure> {
    let layout = Layout::of(&dir.dir)?;
    let folder = layout.dir.ancestors().find(|folder| folder.exists()).map(ToOwned::to_owned).unwrap_or_default();
    let judged = [
        ("PRE-01", writable(&folder)),
        ("PRE-02", loopback()),
        ("PRE-03", pidfd()),
        ("PRE-04", open_files()),
        ("PRE-05", space(disk(&folder))),
        ("PRE-06", clock(SystemTime::now())),
    ];
    Ok(judged.into_iter().filter_map(|(id, judged)| outcome(id, judged)).collect())
}

fn writable(folder: &std::path::Path) -> (Found, String) {
    let probe = folder.join(format!(".kasbah-check-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    match made {
        Ok(()) => (Found::Ok, folder.display().to_string()),
        Err(error) => (Found::Fail, format!("{}: {error}", folder.display())),
    }
}

fn loopback() -> (Found, String) {
    let wanted = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 200, 1, 2)];
    for address in wanted {
        if let Err(error) = TcpListener::bind((address, 0)) {
            return (Found::Fail, format!("{address}: {error}"));
        }
    }
    (Found::Ok, "127.0.0.0/8".into())
}

fn pidfd() -> (Found, String) {
    match Pid::from_raw(i32::try_from(std::process::id()).unwrap_or(1)).map(|pid| pidfd_open(pid, PidfdFlags::empty()))
    {
        Some(Ok(_)) => (Found::Ok, "pidfds work".into()),
        Some(Err(error)) => (Found::Fail, format!("no pidfd: {error}")),
        None => (Found::Unknown, "no process id".into()),
    }
}

fn open_files() -> (Found, String) {
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < OPEN_FILES_MIN => (Found::Warn, format!("{limit}, at least {OPEN_FILES_MIN} is better")),
        Some(limit) => (Found::Ok, limit.to_string()),
        None => (Found::Ok, "no limit".into()),
    }
}

fn clock(now: SystemTime) -> (Found, String) {
    let text = runtime::clock::rfc3339(now);
    if runtime::clock::unix_secs(now) < EARLIEST { (Found::Fail, text) } else { (Found::Ok, text) }
}

const OPEN_FILES_MIN: u64 = 1024;
/// 2026-01-01: nothing of ours is older.
const EARLIEST: u64 = 1_767_225_600;
