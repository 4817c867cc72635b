//! Workload attestation: from a connection to the facts (selectors) about the process at its other end.
//!
//! What always holds: the facts were read while a pidfd proved that the process, and no successor with its number,
//! was alive; a fact that cannot be established is left out, never guessed.

mod cgroup;
mod exe;
mod kubelet;
mod launches;
mod peer_pidfd;
mod pidfds;
mod process;
mod tcp;

use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use exe::ExeDigests;
pub use kubelet::KubeletSettings;
pub(crate) use kubelet::{Kubelet, PodReference};
pub use launches::LaunchError;
pub(crate) use launches::Launches;
pub(crate) use process::Process;
pub(crate) use tcp::process_of_peer as process_of_tcp_peer;

use cgroup::Cgroup;

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
    /// The peer is on another machine.
    #[error("the peer is not on this machine's loopback")]
    NotLocal,
    /// Nobody can tell which process speaks.
    #[error("several processes hold the connection; connect over the Unix socket, or open a connection of your own")]
    Ambiguous,
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
            Self::NotLocal => "ATTEST_NOT_LOCAL",
            Self::Ambiguous => "ATTEST_AMBIGUOUS",
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
    /// Supplementary groups.
    pub(crate) groups: bool,
    /// systemd unit, control group and container.
    pub(crate) cgroup: bool,
    /// The Kubernetes pod.
    pub(crate) pod: bool,
    /// The name it was launched under, which may be an ancestor's.
    pub(crate) launch: bool,
}

impl Wanted {
    /// Everything there is.
    pub(crate) const ALL: Self =
        Self { sha256: true, names: true, groups: true, cgroup: true, pod: true, launch: true };
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
    kubelet: Option<Kubelet>,
}

impl Attestor {
    pub(crate) fn new(launches: Arc<Launches>, kubelet: Option<KubeletSettings>) -> Self {
        Self { launches, digests: Arc::default(), kubelet: kubelet.map(Kubelet::new) }
    }

    /// The facts about `process` as of now.
    pub(crate) async fn attest(&self, process: &Arc<Process>, wanted: Wanted) -> Result<Workload, AttestError> {
        let mut workload = self.attest_here(process, wanted).await?;
        if wanted.pod
            && let Some(kubelet) = &self.kubelet
            && let Some(group) = Cgroup::of(process.pid())
            && let Some(pod) = group.pod()
        {
            match kubelet.facts(&pod, group.container()).await {
                Ok(facts) => workload.selectors.extend(facts),
                // The facts that did not come are left out.
                Err(error) => {
                    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                    let error = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                    tracing::warn!(pod, error, reason = "KUBELET_UNAVAILABLE", "the pod's facts are not known");
                }
            }
            process.check_alive()?;
            process.check_program()?;
        }
        Ok(workload)
    }

    /// The facts about a pod that is named from outside; none when it is not there.
    pub(crate) async fn pod(&self, reference: &PodReference) -> Option<BTreeSet<Selector>> {
        let facts = self.kubelet.as_ref()?.pod(reference).await;
        let facts = facts.inspect_err(|error| {
            tracing::warn!(%error, reason = "KUBELET_UNAVAILABLE", "the pod's facts are not known");
        });
        facts.ok()?.map(|facts| facts.into_iter().collect())
    }

    /// Whether pods can be named.
    pub(crate) fn knows_pods(&self) -> bool {
        self.kubelet.is_some()
    }

    async fn attest_here(&self, process: &Arc<Process>, wanted: Wanted) -> Result<Workload, AttestError> {
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
    let groups = if wanted.groups { process.supplementary_gids()? } else { Vec::new() };
    for gid in groups {
        unix(format!("supplementary_gid:{gid}"));
        if wanted.names
            && let Some(name) = process::name_of("/etc/group", gid)
        {
            unix(format!("supplementary_group:{name}"));
        }
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
    if wanted.cgroup
        && let Some(group) = Cgroup::of(process.pid())
    {
        selectors.insert(Selector::new("cgroup", format!("path:{}", group.path())));
        selectors.extend(group.unit().map(|unit| Selector::new("systemd", format!("id:{unit}"))));
        selectors.extend(group.container().map(|id| Selector::new("container", format!("id:{id}"))));
    }
    if wanted.launch
        && let Some(name) = launches.name_of(process)
    {
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
        (Attestor::new(launches.clone(), None), launches)
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
    async fn supplementary_groups_and_the_control_group_are_facts() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::sleeping();
        wait_for_exec(&child.process());
        let values = values(&attestor(&dir).0.attest(&child.process(), Wanted::ALL).await.unwrap());
        let own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(rustix::process::Gid::as_raw).collect();
        for gid in own {
            assert!(values.contains(&format!("unix:supplementary_gid:{gid}")), "{gid} not in {values:?}");
        }
        if let Some(group) = Cgroup::of(child.process().pid()) {
            assert!(values.contains(&format!("cgroup:path:{}", group.path())), "{values:?}");
        }
    }

    #[tokio::test]
    async fn the_next_process_with_the_number_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (attestor, mut child) = (attestor(&dir).0, Child::sleeping());
        let process = child.process();
        child.end();
        // The number is free from here on; whoever gets it, the handle still says that ours has ended.
        let others: Vec<_> = (0..64).map(|_| Child::sleeping()).collect();
        let error = attestor.attest(&process, Wanted::default()).await.unwrap_err();
        assert_eq!(error.reason(), "ATTEST_PROCESS_GONE");
        drop(others);
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
            .stderr(std::process::Stdio::null())
            .spawn()
            .map(Child)
            .unwrap();
        launches.register("helloworld", &parent.process()).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.0.stdout.take().unwrap()), &mut line).unwrap();
        let grandchild = line.trim().parse().unwrap();
        for pid in [parent.process().pid(), grandchild] {
            let workload = loop {
                // The child may be between fork and exec; after that it is another program than the one that was looked up.
                let process = Arc::new(Process::open(pid).unwrap());
                if let Ok(workload) = attestor.attest(&process, Wanted::ALL).await {
                    break workload;
                }
            };
            assert!(values(&workload).contains(&"launch:name:helloworld".to_owned()), "{:?}", values(&workload));
        }
        parent.end();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(grandchild).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }
}
