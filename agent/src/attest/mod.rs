//! Workload attestation: from a connection to the facts (selectors) about the process at its other end.
//!
//! What always holds: the facts were read while a pidfd proved that the process, and no successor with its number,
//! was alive; a fact that cannot be established is left out, never guessed.

mod exe;
mod launches;
mod peer_pidfd;
mod process;

use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use exe::ExeDigests;
pub use launches::LaunchError;
pub(crate) use launches::Launches;
pub(crate) use process::Process;

use crate::entry::Selector;

/// Why a process could not be attested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// The kernel does not say who is at the other end.
    #[error("the peer's credentials cannot be read")]
    Credentials(#[source] std::io::Error),
    /// The peer lives in another PID namespace.
    #[error("the peer's process is not visible from here (another PID namespace)")]
    Invisible,
    /// The process has ended.
    #[error("the process has ended")]
    Gone,
    /// `/proc` did not answer.
    #[error("the facts of the process cannot be read")]
    Proc(#[source] std::io::Error),
    /// The process runs another program than when it connected.
    #[error("the process runs another program than when it connected; it must connect again")]
    ProgramChanged,
}

impl AttestError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "ATTEST_NO_CREDENTIALS",
            Self::Invisible => "ATTEST_PROCESS_INVISIBLE",
            Self::Gone => "ATTEST_PROCESS_GONE",
            Self::Proc(_) => "ATTEST_PROC_UNREADABLE",
            Self::ProgramChanged => "ATTEST_PROGRAM_CHANGED",
        }
    }
}

/// Facts that cost something to find out; only those that some entry asks for are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The digest of the executable.
    pub(crate) sha256: bool,
    /// User and group names.
    pub(crate) names: bool,
}

impl Wanted {
    /// Everything there is.
    pub(crate) const ALL: Self = Self { sha256: true, names: true };
}

/// What attestation found about one process.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Its number.
    pub(crate) pid: i32,
    /// All facts.
    pub(crate) selectors: BTreeSet<Selector>,
}

/// Attests processes.
#[derive(Debug)]
pub(crate) struct Attestor {
    launches: Arc<Launches>,
    digests: Arc<ExeDigests>,
}

impl Attestor {
    pub(crate) fn new(launches: Arc<Launches>) -> Self {
        Self { launches, digests: Arc::default() }
    }

    /// The facts about `process` as of now.
    pub(crate) async fn attest(&self, process: &Arc<Process>, wanted: Wanted) -> Result<Workload, AttestError> {
        let (process, launches, digests) = (process.clone(), self.launches.clone(), self.digests.clone());
        if !wanted.sha256 {
            return facts(&process, &launches, &digests, wanted);
        }
        // Reading a large executable for the first time takes long enough to leave this thread.
        let read = tokio::task::spawn_blocking(move || facts(&process, &launches, &digests, wanted));
        read.await.unwrap_or(Err(AttestError::Gone))
    }
}

fn facts(
    process: &Process,
    launches: &Launches,
    digests: &ExeDigests,
    wanted: Wanted,
) -> Result<Workload, AttestError> {
    process.check_alive()?;
    process.check_program()?;
    let mut selectors = BTreeSet::new();
    let mut unix = |value: String| selectors.insert(Selector::new("unix", value));
    unix(format!("uid:{}", process.uid()));
    unix(format!("gid:{}", process.gid()));
    for gid in process.supplementary_gids()? {
        unix(format!("supplementary_gid:{gid}"));
    }
    if wanted.names {
        if let Some(name) = process::name_of("/etc/passwd", process.uid()) {
            unix(format!("user:{name}"));
        }
        if let Some(name) = process::name_of("/etc/group", process.gid()) {
            unix(format!("group:{name}"));
        }
    }
    // An executable that this user may not look at yields no facts about it; the others hold all the same.
    if let Some(path) = exe::path(process.pid()) {
        unix(format!("path:{path}"));
    }
    if wanted.sha256
        && let Some(digest) = digests.sha256(process.pid())
    {
        unix(format!("sha256:{digest}"));
    }
    if let Some(name) = launches.name_of(process) {
        selectors.insert(Selector::new("launch", format!("name:{name}")));
    }
    // The process lived at the end, so nothing above was read from a successor with its number.
    process.check_alive()?;
    process.check_program()?;
    Ok(Workload { pid: process.pid(), selectors })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attestor(dir: &tempfile::TempDir) -> (Attestor, Arc<Launches>) {
        let launches = Arc::new(Launches::load(dir.path().join("launches.json")));
        (Attestor::new(launches.clone()), launches)
    }

    fn values(workload: &Workload) -> Vec<String> {
        workload.selectors.iter().map(ToString::to_string).collect()
    }

    struct Child(std::process::Child);

    impl Child {
        fn sleeping() -> Self {
            Self(std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap())
        }

        fn process(&self) -> Arc<Process> {
            Arc::new(Process::open(i32::try_from(self.0.id()).unwrap()).unwrap())
        }

        fn end(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The child has left our own program when its executable is no longer ours.
    fn wait_for_exec(process: &Process) {
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        while std::fs::read_link(format!("/proc/{}/exe", process.pid())).is_ok_and(|exe| exe == own) {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_process_is_known_by_user_group_path_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::sleeping();
        wait_for_exec(&child.process());
        let workload = attestor(&dir).0.attest(&child.process(), Wanted::ALL).await.unwrap();
        let values = values(&workload);
        let path = std::fs::canonicalize("/bin/sleep").unwrap();
        let digest = exe::sha256_of(&mut std::fs::File::open(&path).unwrap()).unwrap();
        for expected in [
            format!("unix:uid:{}", rustix::process::getuid().as_raw()),
            format!("unix:gid:{}", rustix::process::getgid().as_raw()),
            format!("unix:path:{}", path.display()),
            format!("unix:sha256:{digest}"),
        ] {
            assert!(values.contains(&expected), "{expected} not in {values:?}");
        }
        assert!(!values.iter().any(|value| value.starts_with("launch:")));
    }

    #[tokio::test]
    async fn costly_facts_are_left_out_unless_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::sleeping();
        wait_for_exec(&child.process());
        let workload = attestor(&dir).0.attest(&child.process(), Wanted::default()).await.unwrap();
        assert!(!values(&workload).iter().any(|value| value.contains("sha256") || value.contains("user:")));
    }

    #[tokio::test]
    async fn a_process_that_ended_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Child::sleeping();
        let process = child.process();
        child.end();
        let error = attestor(&dir).0.attest(&process, Wanted::default()).await.unwrap_err();
        assert_eq!(error.reason(), "ATTEST_PROCESS_GONE");
    }

    #[tokio::test]
    async fn a_process_that_changed_its_program_must_connect_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line; exec sleep 600"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .map(Child)
            .unwrap();
        wait_for_exec(&child.process());
        let (attestor, process) = (attestor(&dir).0, child.process());
        assert!(attestor.attest(&process, Wanted::default()).await.is_ok());
        drop(child.0.stdin.take());
        let error = loop {
            match attestor.attest(&process, Wanted::default()).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), "ATTEST_PROGRAM_CHANGED");
    }

    #[tokio::test]
    async fn a_launched_process_and_its_children_carry_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (attestor, launches) = attestor(&dir);
        let mut parent = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .map(Child)
            .unwrap();
        launches.register("helloworld", &parent.process()).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.0.stdout.take().unwrap()), &mut line).unwrap();
        let grandchild = Arc::new(Process::open(line.trim().parse().unwrap()).unwrap());
        for process in [parent.process(), grandchild.clone()] {
            let workload = loop {
                // The child may be between fork and exec.
                if let Ok(workload) = attestor.attest(&process, Wanted::default()).await {
                    break workload;
                }
            };
            assert!(values(&workload).contains(&"launch:name:helloworld".to_owned()), "{:?}", values(&workload));
        }
        parent.end();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(grandchild.pid()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }
}
