//! Processes that were started by `kasbah run --name NAME`, and so carry the fact `launch:name:NAME`.
//!
//! A launch is a process by number and start time; its children inherit the name through their chain of parents. The
//! table is kept on disk so that an agent that starts again still knows what it launched before, within one boot.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::AttestError;
use super::process::{Process, stat};
use crate::store;

/// Why a launch was not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The name is no name.
    #[error("a launch name has 1 to {LAUNCH_NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`")]
    Name,
    /// The caller is not the agent's user.
    #[error("only the agent's own user and root may launch")]
    Caller,
    /// The caller already is, or descends from, a launched process.
    #[error("this process was launched as `{name}` already and keeps that name")]
    Named {
        /// The name it has.
        name: String,
    },
    /// Too many launches.
    #[error("more than {LAUNCHES_MAX} launched processes are running")]
    TooMany,
    /// The table cannot be kept.
    #[error("the launch cannot be recorded; see that data_dir is writable")]
    Record(#[source] io::Error),
    /// The caller cannot be identified.
    #[error("the caller cannot be identified")]
    Attest(#[source] AttestError),
    /// The request is no line of JSON with a name.
    #[error("the request is not one line of JSON like {{\"name\":\"helloworld\"}}")]
    Request,
}

impl LaunchError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name => "LAUNCH_NAME_BAD",
            Self::Caller => "LAUNCH_CALLER_REFUSED",
            Self::Named { .. } => "LAUNCH_ALREADY_NAMED",
            Self::TooMany => "LAUNCH_TOO_MANY",
            Self::Record(_) => "LAUNCH_NOT_RECORDED",
            Self::Attest(error) => error.reason(),
            Self::Request => "LAUNCH_REQUEST_BAD",
        }
    }
}

/// The table of launched processes.
#[derive(Debug)]
pub(crate) struct Launches {
    file: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Table {
    /// Process numbers and start times mean something only within one boot.
    boot_id: String,
    launches: BTreeMap<i32, Launch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Launch {
    name: String,
    start_ticks: u64,
}

impl Launches {
    /// The table as it was left in `file` during this boot; empty when there is none or it is damaged.
    pub(crate) fn load(file: PathBuf) -> Self {
        let boot_id = boot_id();
        let kept: Option<Table> = read_table(&file);
        let mut table = kept.filter(|table| table.boot_id == boot_id).unwrap_or_default();
        table.boot_id = boot_id;
        table.drop_ended();
        Self { file, table: Mutex::new(table) }
    }

    /// Gives `process` its name for the rest of its life.
    pub(crate) fn register(&self, name: &str, process: &Process) -> Result<(), LaunchError> {
        check_name(name)?;
        if ![0, rustix::process::getuid().as_raw()].contains(&process.uid()) {
            return Err(LaunchError::Caller);
        }
        if let Some(given) = self.name_of(process) {
            return if given == name { Ok(()) } else { Err(LaunchError::Named { name: given }) };
        }
        let start_ticks = process.start_ticks().map_err(LaunchError::Attest)?;
        let mut table = self.lock();
        table.drop_ended();
        if table.launches.len() >= LAUNCHES_MAX {
            return Err(LaunchError::TooMany);
        }
        table.launches.insert(process.pid(), Launch { name: name.to_owned(), start_ticks });
        let written =
            serde_json::to_vec(&*table).map_err(io::Error::other).and_then(|bytes| store::write(&self.file, &bytes));
        if let Err(error) = written {
            table.launches.remove(&process.pid());
            return Err(LaunchError::Record(error));
        }
        drop(table);
        process.check_alive().map_err(LaunchError::Attest)
    }

    /// The name that `process` was launched under, or inherited from the nearest launched ancestor.
    pub(crate) fn name_of(&self, process: &Process) -> Option<String> {
        if self.len() == 0 {
            return None;
        }
        let mut at = (process.pid(), process.start_ticks().ok()?);
        for _ in 0..ANCESTORS_MAX {
            if let Some(name) = self.lock().name(at) {
                return Some(name);
            }
            at = parent_of(at)?;
        }
        None
    }

    /// How many launched processes are known.
    pub(crate) fn len(&self) -> usize {
        self.lock().launches.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn name(&self, (pid, start_ticks): (i32, u64)) -> Option<String> {
        let launch = self.launches.get(&pid)?;
        (launch.start_ticks == start_ticks).then(|| launch.name.clone())
    }

    fn drop_ended(&mut self) {
        self.launches.retain(|pid, launch| stat(*pid).is_ok_and(|found| found.start_ticks == launch.start_ticks));
    }
}

/// The parent of a process by number and start time. `None` at the top, or when the process at hand is no longer the
/// one with that start time, or when what now has the parent's number started later than the child.
fn parent_of((pid, start_ticks): (i32, u64)) -> Option<(i32, u64)> {
    let own = stat(pid).ok()?;
    if own.start_ticks != start_ticks || own.parent <= 1 {
        return None;
    }
    let parent = stat(own.parent).ok()?;
    let still = stat(pid).ok()?;
    (still == own && parent.start_ticks <= start_ticks).then_some((own.parent, parent.start_ticks))
}

fn check_name(name: &str) -> Result<(), LaunchError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = (1..=LAUNCH_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good);
    if fits { Ok(()) } else { Err(LaunchError::Name) }
}

fn read_table(file: &Path) -> Option<Table> {
    let bytes = store::read(file, TABLE_BYTES_MAX).ok()??;
    serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(file = %file.display(), %error, "launch table is damaged, starting with none"),
        )
        .ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Launched processes at once.
pub(crate) const LAUNCHES_MAX: usize = 4096;
/// The longest name.
pub(crate) const LAUNCH_NAME_BYTES_MAX: usize = 128;
/// How far up the chain of parents a name is looked for.
pub(crate) const ANCESTORS_MAX: usize = 32;
const TABLE_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        Process::open(i32::try_from(std::process::id()).unwrap()).unwrap()
    }

    #[test]
    fn a_launch_survives_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("launches.json");
        Launches::load(file.clone()).register("test", &own()).unwrap();
        assert_eq!(Launches::load(file.clone()).name_of(&own()).as_deref(), Some("test"));
        let text = fs::read_to_string(&file).unwrap().replace(&boot_id(), "another boot");
        fs::write(&file, text).unwrap();
        assert_eq!(Launches::load(file).name_of(&own()), None);
    }

    #[test]
    fn a_successor_with_the_number_does_not_inherit_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let launches = Launches::load(dir.path().join("launches.json"));
        launches.register("test", &own()).unwrap();
        launches.lock().launches.values_mut().for_each(|launch| launch.start_ticks -= 1);
        assert_eq!(launches.name_of(&own()), None);
        launches.lock().drop_ended();
        assert_eq!(launches.len(), 0);
    }

    #[test]
    fn a_launched_process_cannot_take_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let launches = Launches::load(dir.path().join("launches.json"));
        launches.register("test", &own()).unwrap();
        launches.register("test", &own()).unwrap();
        assert_eq!(launches.register("policy", &own()).unwrap_err().reason(), "LAUNCH_ALREADY_NAMED");
    }

    #[test]
    fn names_are_checked_at_the_edges() {
        for good in ["a", "istio-ingressgateway", "a.b_c-9", &"x".repeat(LAUNCH_NAME_BYTES_MAX)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "a:b", "é", &"x".repeat(LAUNCH_NAME_BYTES_MAX + 1)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_damaged_table_is_no_table() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("launches.json");
        fs::write(&file, "{").unwrap();
        assert_eq!(Launches::load(file).len(), 0);
    }
}
