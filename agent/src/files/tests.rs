//! Files that change as a whole, whatever happens in between.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use runtime::clock::Clock;
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;

use super::*;
use crate::fake::{FakeCa, entry};
use crate::metrics::Numbers;
use crate::rotation::Prepared;
use crate::state::{Held, State};

fn content(name: &str, text: &str, is_secret: bool) -> Content {
    Content { name: name.into(), bytes: Zeroizing::new(text.as_bytes().to_vec()), is_secret }
}

fn pair(version: usize) -> Vec<Content> {
    vec![
        content("svid.pem", &format!("certificate {version}"), false),
        content("svid.key", &format!("key {version}"), true),
    ]
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_are_swapped_as_a_whole_and_secrets_kept_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("web");
    assert!(write(&at, &pair(1), &Access::default()).unwrap());
    assert!(!write(&at, &pair(1), &Access::default()).unwrap(), "nothing new");
    let open = fs::File::open(at.join("current")).unwrap();
    assert!(write(&at, &pair(2), &Access::default()).unwrap());
    assert_eq!(fs::read_to_string(at.join("svid.pem")).unwrap(), "certificate 2");
    assert_eq!(fs::read_to_string(at.join("current/svid.key")).unwrap(), "key 2");
    assert_eq!((mode(&at.join("svid.key")), mode(&at.join("svid.pem"))), (0o600, 0o644));
    let left: BTreeSet<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "current, its version and two links: {left:?}");
    drop(open);
    assert!(write(&at, &pair(2)[..1], &Access::default()).unwrap(), "one file less is a change");
    assert!(!at.join("svid.key").exists() && fs::symlink_metadata(at.join("svid.key")).is_err());
}

#[test]
fn owner_group_and_mode_are_as_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let access = |mode: &str| Access { mode: Some(mode.into()), ..Access::default() };
    write(dir.path(), &pair(1), &access("0640")).unwrap();
    assert_eq!(mode(&dir.path().join("svid.key")), 0o640);
    for bad in ["0644", "0641", "1777", "x", "00600", ""] {
        assert!(access(bad).problem().is_some(), "{bad}");
    }
    assert!(access("600").problem().is_none() && Access::default().problem().is_none());
    let unknown = Access { owner: Some("nobody-of-this-name".into()), ..Access::default() };
    assert_eq!(write(dir.path(), &pair(2), &unknown).unwrap_err().reason(), "FILES_OWNER_UNKNOWN");
    assert_eq!(fs::read_to_string(dir.path().join("svid.key")).unwrap(), "key 1", "the former version stays");
    if rustix::process::getuid().is_root() {
        let daemon = Access { owner: Some("daemon".into()), group: Some("1".into()), ..Access::default() };
        write(dir.path(), &pair(3), &daemon).unwrap();
        let found = fs::metadata(dir.path().join("svid.key")).unwrap();
        assert_eq!((found.uid(), found.gid()), (1, 1));
    } else {
        println!("skipped: only root gives files away");
    }
}

#[test]
fn plain_files_of_before_are_replaced_and_directories_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("svid.pem"), "old").unwrap();
    write(dir.path(), &pair(1), &Access::default()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("svid.pem")).unwrap(), "certificate 1");
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("svid.key")).unwrap();
    assert_eq!(write(other.path(), &pair(1), &Access::default()).unwrap_err().reason(), "FILES_IN_THE_WAY");
}

/// Not a test: what [`a_writer_killed_at_any_moment_leaves_a_whole_version`] starts as a process of its own.
#[test]
fn writing_child() {
    let Some(dir) = std::env::var_os("KASBAH_TEST_FILES_DIR") else { return };
    println!("\nWRITING");
    for version in 0.. {
        write(Path::new(&dir), &pair(version), &Access::default()).unwrap();
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_version() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::tests::writing_child", "--nocapture", "--test-threads=1"])
            .env("KASBAH_TEST_FILES_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.map_while(Result::ok).find(|line| line.contains("WRITING")).unwrap();
        while !dir.path().join("current/svid.key").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Another moment in each round.
        std::thread::sleep(Duration::from_micros(700 * (1 + round)));
        child.kill().unwrap();
        child.wait().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("current").join(name)).unwrap();
        let version = read("svid.pem").replace("certificate ", "");
        assert_eq!(read("svid.key"), format!("key {version}"), "round {round}");
    }
    assert!(write(dir.path(), &pair(usize::MAX), &Access::default()).unwrap());
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 4, "halves of killed writers are gone");
}

#[test]
fn what_cannot_work_is_named() {
    let good = FilesSettings {
        dir: "/d".into(),
        spiffe_id: "spiffe://example.org/web".into(),
        access: Access::default(),
        names: Names::default(),
        pkcs12: None,
        jwt: Vec::new(),
        after_change: None,
    };
    assert_eq!(good.problem(), None);
    let names = |certificate: &str| FilesSettings {
        names: Names { certificate: certificate.into(), ..Names::default() },
        ..good.clone()
    };
    for bad in ["", "../x", "a/b", ".hidden", "current", "svid.key"] {
        assert!(names(bad).problem().is_some(), "{bad}");
    }
    assert!(FilesSettings { spiffe_id: "web".into(), ..good.clone() }.problem().unwrap().contains("spiffe_id"));
    let after = |command: &[&str], signal: &str| FilesSettings {
        after_change: Some(AfterChange {
            command: command.iter().map(ToString::to_string).collect(),
            pid_file: None,
            signal: signal.into(),
        }),
        ..good.clone()
    };
    assert!(after(&[], "HUP").problem().unwrap().contains("command"));
    assert!(after(&["true"], "KILL").problem().unwrap().contains("signal"));
    assert_eq!(after(&["true"], "SIGUSR1").problem(), None);
    let jwt = JwtFile { file: "t.jwt".into(), audience: Vec::new() };
    assert!(FilesSettings { jwt: vec![jwt], ..good }.problem().unwrap().contains("audience"));
}

/// An agent's state whose directory is kept.
struct Scene {
    ca: Arc<FakeCa>,
    state: Arc<State>,
    dir: tempfile::TempDir,
    tasks: TaskSet,
}

impl Scene {
    fn start(after: &[&str]) -> Self {
        let clock = Clock::system();
        let ca = FakeCa::new(clock, Duration::from_secs(600));
        let state = ca.synced_state([entry("a", "/web", &["unix:uid:1"])]);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("password"), "secret\n").unwrap();
        let command = after.iter().map(|word| word.replace("DIR", dir.path().to_str().unwrap())).collect();
        let settings = FilesSettings {
            dir: dir.path().join("web"),
            spiffe_id: "spiffe://example.org/web".into(),
            access: Access::default(),
            names: Names::default(),
            pkcs12: Some(Pkcs12 { file: "svid.p12".into(), password_file: dir.path().join("password") }),
            jwt: vec![JwtFile { file: "db.jwt".into(), audience: vec!["db".into()] }],
            after_change: Some(AfterChange { command, pid_file: None, signal: "HUP".into() }),
        };
        assert_eq!(settings.problem(), None);
        let keeper = Keeper { settings, state: state.clone(), ca: ca.clone(), clock, numbers: Numbers::default() };
        let mut tasks = TaskSet::new();
        tasks.spawn("files", keeper.run(Shutdown::new()));
        Self { ca, state, dir, tasks }
    }

    fn rotate(&self) -> String {
        let entries = self.state.current().entries.clone();
        let entry = entries.iter().next().unwrap();
        let prepared = Prepared::new().unwrap();
        let chain = self.ca.sign(&entry.spiffe_id, &prepared.csr());
        let svid = Arc::new(prepared.into_svid(chain).unwrap());
        let serial = svid.serial().to_owned();
        self.state.put_held(vec![("a".into(), Held { renew_at: svid.not_after(), svid, revision: 0 })]);
        serial
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap_or_default()
    }

    async fn until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..2000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come");
    }

    /// The serial of the certificate on disk, which must be for the key beside it.
    fn serial_on_disk(&self) -> Option<String> {
        let key = identity::PrivateKey::from_pkcs8_pem(&self.read("web/current/svid.key")).ok()?;
        let chain = identity::pem::decode_certificates(&self.read("web/current/svid.pem")).ok()?;
        Some(X509Svid::from_parts(chain, key).expect("a pair").serial().to_owned())
    }
}

#[tokio::test]
async fn certificate_key_bundle_pkcs12_and_token_follow_the_rotation_and_somebody_is_told() {
    let scene = Scene::start(&["sh", "-c", "echo told >> DIR/told"]);
    for round in 1..=3 {
        let serial = scene.rotate();
        scene.until("the new version", || scene.serial_on_disk().as_deref() == Some(&serial)).await;
        scene.until("the word", || scene.read("told").len() == 5 * round).await;
    }
    assert!(scene.read("web/bundle.pem").starts_with(b"-----BEGIN CERTIFICATE"));
    assert!(scene.read("web/db.jwt").starts_with(b"ey"));
    assert_eq!(scene.ca.jwts.load(std::sync::atomic::Ordering::SeqCst), 1, "one token serves until its half-life");
    assert!(scene.read("web/svid.p12").len() > 500);
    drop(scene.tasks);
}

#[tokio::test]
async fn an_identity_that_is_withdrawn_leaves_the_disk() {
    let scene = Scene::start(&["true"]);
    let serial = scene.rotate();
    scene.until("the files", || scene.serial_on_disk().as_deref() == Some(&serial)).await;
    scene.ca.entries.lock().unwrap().clear();
    scene.ca.publish(&scene.state);
    scene.until("the end of the key", || scene.read("web/svid.key").is_empty()).await;
    assert!(scene.read("web/svid.p12").is_empty() && scene.read("web/db.jwt").is_empty());
    assert!(!scene.read("web/bundle.pem").is_empty());
}

#[tokio::test]
async fn who_cannot_be_told_is_named() {
    let after = |command: &[&str]| AfterChange {
        command: command.iter().map(ToString::to_string).collect(),
        pid_file: None,
        signal: "HUP".into(),
    };
    let failed = after(&["sh", "-c", "echo broken >&2; exit 3"]).tell().await.unwrap_err();
    assert!(failed.to_string().contains("broken"), "{failed}");
    assert_eq!(after(&["/nonexistent"]).tell().await.unwrap_err().reason(), "AFTER_CHANGE_FAILED");
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let signal = AfterChange { command: Vec::new(), pid_file: Some(pid_file.clone()), signal: "TERM".into() };
    assert!(signal.tell().await.is_err());
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(&pid_file, format!("{}\nmore\n", child.id())).unwrap();
    signal.tell().await.unwrap();
    assert!(!child.wait().unwrap().success());
}
