//! What a process's control group says: its systemd unit, its container, its Kubernetes pod.
//!
//! Users may make groups of any name below one that was delegated to them. So the outermost name counts and never an inner one,
//! and nothing below a user's own slice counts as a container or pod.

use std::fs;
use std::path::Path;

/// Where a process is grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    path: String,
}

impl Cgroup {
    /// The group of process `pid`; `None` when it cannot be read.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Self::parse(&text)
    }

    /// The line of version 2, unless that says nothing; then systemd's own of version 1, then the longest.
    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            path.starts_with('/').then_some((controllers, path))
        });
        let lines: Vec<(&str, &str)> = lines.take(LINES_MAX).collect();
        let named = |wanted: &str| lines.iter().find(|(name, path)| *name == wanted && *path != "/");
        let found =
            named("").or_else(|| named("name=systemd")).or_else(|| lines.iter().max_by_key(|(_, path)| path.len()));
        let path = found.map(|(_, path)| (*path).to_owned()).filter(|path| path.len() <= PATH_BYTES_MAX)?;
        // A group outside of what this agent sees is no fact here.
        (!path.starts_with("/..")).then_some(Self { path })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The system's unit, as `systemctl status PID` names it; `None` where systemd does not run the machine.
    pub(super) fn unit(&self) -> Option<&str> {
        if Path::new(SYSTEMD_RUNS).is_dir() { self.unit_name() } else { None }
    }

    fn unit_name(&self) -> Option<&str> {
        let first = self.names().find(|name| !name.ends_with(".slice"))?;
        UNIT_ENDS.iter().any(|end| first.ends_with(end)).then_some(first)
    }

    /// The id that the container runtime gave.
    pub(super) fn container(&self) -> Option<&str> {
        if self.is_of_user() {
            return None;
        }
        self.names().find_map(|name| {
            let name = name.strip_suffix(".scope").unwrap_or(name);
            let id = RUNTIMES.iter().find_map(|runtime| name.strip_prefix(runtime)).unwrap_or(name);
            let is_id = id.len() == CONTAINER_ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_id.then_some(id)
        })
    }

    /// The UID of the Kubernetes pod.
    pub(super) fn pod(&self) -> Option<String> {
        if self.is_of_user() {
            return None;
        }
        self.names().find_map(|name| {
            let name = name.strip_suffix(".slice").unwrap_or(name);
            let uid = match name.strip_prefix("pod") {
                Some(uid) => uid,
                None if name.starts_with("kubepods") => name.rsplit_once("-pod")?.1,
                None => return None,
            };
            let uid = uid.replace('_', "-");
            let is_uid = uid.len() == POD_UID_LEN && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
            is_uid.then_some(uid)
        })
    }

    fn is_of_user(&self) -> bool {
        self.names().next() == Some("user.slice")
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter(|name| !name.is_empty())
    }
}

const SYSTEMD_RUNS: &str = "/run/systemd/system";
const UNIT_ENDS: [&str; 4] = [".service", ".scope", ".socket", ".mount"];
const RUNTIMES: [&str; 5] = ["docker-", "cri-containerd-", "crio-", "libpod-", "containerd-"];
const CONTAINER_ID_LEN: usize = 64;
const POD_UID_LEN: usize = 36;
const LINES_MAX: usize = 64;
/// The longest path that is looked at.
pub(crate) const PATH_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2c0a9d8b7e6f5a4c3b2a1908f7e6d5c4b3a29180f7e6d5c4b3a2918f7e6d5c";
    const POD: &str = "0f6a1f3c-7d2b-4b1e-9a53-2d9a6a1b7c11";

    fn at(path: &str) -> Cgroup {
        Cgroup::parse(&format!("0::{path}\n")).unwrap()
    }

    #[test]
    fn the_outermost_unit_is_the_one() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            ("/system.slice/nginx.service/inner.service", Some("nginx.service")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", Some("user@1000.service")),
            ("/user.slice/user-1000.slice/session-2.scope", Some("session-2.scope")),
            ("/docker/x/nginx.service", None),
            ("/system.slice", None),
            ("/", None),
        ] {
            assert_eq!(at(path).unit_name(), unit, "{path}");
        }
    }

    #[test]
    fn containers_of_every_runtime_are_known_and_users_make_none() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/kubepods/burstable/pod{POD}/{ID}"),
            format!("/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope", POD.replace('-', "_")),
        ] {
            assert_eq!(at(&path).container(), Some(ID), "{path}");
        }
        let other = ID.replace('3', "9");
        assert_eq!(
            at(&format!("/docker/{ID}/docker-{other}.scope")).container(),
            Some(ID),
            "an inner name is a user's"
        );
        for path in [
            format!("/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope"),
            format!("/docker/{}", &ID[1..]),
            format!("/docker/{}g", &ID[1..]),
            "/system.slice/docker.service".to_owned(),
        ] {
            assert_eq!(at(&path).container(), None, "{path}");
        }
    }

    #[test]
    fn pods_are_known_by_both_drivers() {
        let scope = POD.replace('-', "_");
        for path in [
            format!("/kubepods/pod{POD}/{ID}"),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{scope}.slice/crio-{ID}.scope"),
            format!("/kubelet.slice/kubepods-burstable-pod{scope}.slice"),
        ] {
            assert_eq!(at(&path).pod().as_deref(), Some(POD), "{path}");
        }
        for path in [format!("/user.slice/kubepods/pod{POD}"), "/kubepods/podx".to_owned(), "/podman".to_owned()] {
            assert_eq!(at(&path).pod(), None, "{path}");
        }
    }

    #[test]
    fn version_2_counts_before_version_1_and_nonsense_is_nothing() {
        let mixed = "12:pids:/a/longer/path\n1:name=systemd:/system.slice/x.service\n0::/\n";
        assert_eq!(Cgroup::parse(mixed).unwrap().path(), "/system.slice/x.service");
        assert_eq!(Cgroup::parse("2:cpu:/short\n3:memory:/longer/one\n").unwrap().path(), "/longer/one");
        for text in ["", "0::", "no colons", "0::../x", "0::/../x"] {
            assert_eq!(Cgroup::parse(text), None, "{text}");
        }
        assert!(Cgroup::parse(&format!("0::/{}", "x".repeat(PATH_BYTES_MAX - 1))).is_some());
        assert_eq!(Cgroup::parse(&format!("0::/{}", "x".repeat(PATH_BYTES_MAX))), None);
    }
}
