//! A backup holds everything and proves it; a restore refuses what is not its own and never tells anything twice.

use std::sync::Arc;
use std::time::Duration;

use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;

use super::*;
use crate::key_file;
use crate::testing::database::{self, Kind};
use crate::testing::running::{Running, reason, settings};

const MOVED: RestoreOptions = RestoreOptions { force: false, moved: true };
const SAFE: RestoreOptions = RestoreOptions { force: false, moved: false };

/// Settings of another place with the same key, on a new database of the running test's kind.
async fn elsewhere(ca: &Settings, dir: &Path) -> Settings {
    let place = settings(dir);
    std::fs::create_dir_all(&place.data_dir).unwrap();
    key_file::write_new(&place.key_file(), &std::fs::read(ca.key_file()).unwrap(), 0o600).unwrap();
    Settings { database: database::setting_in(dir).await, ..place }
}

/// Restores where nobody runs. A program that another test is just starting has a copy of the lock until it runs.
async fn restore_at_rest(place: &Settings, file: &Path, options: RestoreOptions) -> Result<BackupReport, BackupError> {
    loop {
        match restore(place, file, options).await {
            Err(error) if error.reason() == "DATA_DIR_IN_USE" => tokio::time::sleep(Duration::from_millis(20)).await,
            done => return done,
        }
    }
}

async fn everything_moves_to_another_database() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let token = ca.token(None).await;
    let file = ca.path("ca.backup");
    // While it runs.
    let made = backup(&ca.settings, &file).await.unwrap();
    assert!(made.rows > 10, "{made:?}");
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let place = elsewhere(&ca.settings, dir.path()).await;
    let before = ca.certifier.authorities.current().bundle.clone();
    let _file_stays = ca.dir();
    ca.stop().await;
    let restored = restore(&place, &file, MOVED).await.unwrap();
    assert_eq!(restored.rows, made.rows);

    let moved = Running::start_in(dir, place).await;
    assert_eq!(*moved.certifier.authorities.current().bundle, *before);
    assert!(moved.certifier.store.registry().entry(&entry).is_some());
    let mut client = EntryClient::new(moved.network(Some(&node)));
    let entries = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap().into_inner();
    assert_eq!(entries.entries.len(), 1, "the node goes on with the SVID it has");
    assert!(moved.join(&token).await.is_ok(), "a token that nobody used is good");
    let issued = moved.certifier.store.issued_count().await.unwrap();
    assert!(issued > 3, "{issued} records");
}

async fn what_the_old_server_may_have_told_is_not_told_again() {
    let ca = Running::start().await;
    let token = ca.token(None).await;
    let file = ca.path("ca.backup");
    backup(&ca.settings, &file).await.unwrap();
    // Unknown to the backup: the token is used, and entries are counted on.
    ca.join(&token).await.unwrap();
    for n in 0..5 {
        ca.entry(&format!("/w{n}"), "/node").await;
    }
    let (sequence, revision) =
        (ca.certifier.authorities.current().bundle.sequence, ca.certifier.store.registry().entries_revision());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let place = elsewhere(&ca.settings, dir.path()).await;
    let _file_stays = ca.dir();
    ca.stop().await;
    restore_at_rest(&place, &file, SAFE).await.unwrap();
    let again = Running::start_in(dir, place).await;
    assert!(again.certifier.authorities.current().bundle.sequence > sequence);
    assert!(again.certifier.store.registry().entries_revision() > revision);
    assert_eq!(reason(again.join(&token).await), "JOIN_TOKEN_UNKNOWN");
    assert!(again.node(None).await.id().path().starts_with("/spire/agent/"));
}

async fn a_full_or_used_database_is_not_overwritten() {
    let ca = Running::start().await;
    let file = ca.path("ca.backup");
    let kept = ca.entry("/kept", "/node").await;
    backup(&ca.settings, &file).await.unwrap();
    let lost = ca.entry("/lost", "/node").await;
    let force = RestoreOptions { force: true, moved: false };
    let busy = restore(&ca.settings, &file, force).await.unwrap_err();
    assert_eq!(busy.reason(), "DATA_DIR_IN_USE");
    let mut beside = ca.settings.clone();
    beside.data_dir = ca.path("beside");
    beside.key_file = Some(ca.settings.key_file());
    if database::kind() == Kind::Postgres {
        let busy = restore(&beside, &file, force).await.unwrap_err();
        assert_eq!(busy.reason(), "DATABASE_IN_USE");
    }
    let (dir, place) = (ca.dir(), ca.settings.clone());
    ca.stop().await;
    let full = restore_at_rest(&place, &file, SAFE).await.unwrap_err();
    assert_eq!(full.reason(), "DATABASE_NOT_EMPTY");
    assert!(full.to_string().contains("--force"), "{full}");
    restore_at_rest(&place, &file, force).await.unwrap();
    let again = Running::start_in(dir, place).await;
    assert!(again.certifier.store.registry().entry(&kept).is_some());
    assert!(again.certifier.store.registry().entry(&lost).is_none());
}

#[tokio::test]
async fn a_changed_cut_or_foreign_backup_is_refused() {
    let ca = Running::start().await;
    let file = ca.path("ca.backup");
    ca.entry("/web", "/node").await;
    backup(&ca.settings, &file).await.unwrap();
    let good = std::fs::read_to_string(&file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = elsewhere(&ca.settings, dir.path()).await;
    let check = async |content: &str, expected: &str| {
        let bad = dir.path().join("bad.backup");
        std::fs::write(&bad, content).unwrap();
        assert_eq!(restore(&place, &bad, SAFE).await.unwrap_err().reason(), expected, "{content:.60}");
    };
    check("", "BACKUP_DAMAGED").await;
    check("not a backup\n", "BACKUP_DAMAGED").await;
    check(&good[..good.len() - 1], "BACKUP_DAMAGED").await;
    check(&good.replace("/web", "/abc"), "BACKUP_DAMAGED").await;
    let lines: Vec<&str> = good.lines().collect();
    check(&(lines[..lines.len() - 1].join("\n") + "\n"), "BACKUP_DAMAGED").await;
    check(&(lines[..3].join("\n") + "\n" + lines[lines.len() - 1] + "\n"), "BACKUP_DAMAGED").await;
    // With a digest that fits, but without the key.
    let changed = good.replace("/web", "/abc");
    let body = &changed[..changed.trim_end().rfind('\n').unwrap() + 1];
    let mut end: Value = serde_json::from_str(lines[lines.len() - 1]).unwrap();
    end["sha256"] = hex(&identity::digest::sha256(body.as_bytes())).into();
    check(&format!("{body}{end}\n"), "BACKUP_UNPROVEN").await;
    // By another authority of the same name.
    let other = Running::start().await;
    let theirs = other.path("other.backup");
    backup(&other.settings, &theirs).await.unwrap();
    check(&std::fs::read_to_string(&theirs).unwrap(), "BACKUP_UNPROVEN").await;
    let foreign = Settings { trust_domain: TrustDomain::parse("other.org").unwrap(), ..place.clone() };
    assert_eq!(restore(&foreign, &file, SAFE).await.unwrap_err().reason(), "DATABASE_OTHER_TRUST_DOMAIN");
    assert_eq!(backup(&place, &theirs).await.unwrap_err().reason(), "BACKUP_EMPTY");
}

#[tokio::test]
async fn no_key_and_no_token_is_in_a_backup_and_it_belongs_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let ca = Running::start().await;
    let token = ca.token(None).await;
    let file = ca.path("ca.backup");
    backup(&ca.settings, &file).await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let key = std::fs::read_to_string(ca.settings.key_file()).unwrap();
    assert!(!text.contains(&token) && !text.contains(key.trim()) && !text.contains("PRIVATE KEY"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let names = std::fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().starts_with(".ca.backup")), "no temporary file stays");
}

const DIR: &str = "KASBAH_RESTORE_TEST_CHILD";

/// Not a test by itself: the process that restores, and is killed.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let place = Settings { database: std::fs::read_to_string(dir.join("database-url")).ok(), ..settings(dir) };
    std::fs::write(dir.join("begun"), "").unwrap();
    restore(&place, &dir.join("ca.backup"), RestoreOptions { force: true, moved: true }).await.unwrap();
}

/// Killed at any moment, it leaves what was there before, or what the backup has, and never anything between.
async fn a_restore_that_is_killed_changes_nothing() {
    let ca = Running::start().await;
    let kept = ca.entry("/kept", "/node").await;
    for n in 0..300 {
        ca.entry(&format!("/w{n}"), "/node").await;
    }
    backup(&ca.settings, &ca.path("ca.backup")).await.unwrap();
    let lost = ca.entry("/lost", "/node").await;
    let (dir, place) = (ca.dir(), ca.settings.clone());
    ca.stop().await;
    let (mut before, mut after) = (0, 0);
    for round in 0..KILLS {
        let _ = std::fs::remove_file(dir.path().join("begun"));
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "backup::tests::child"]).env(DIR, dir.path());
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        while !dir.path().join("begun").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Longer each time: from before it connects until after it is done.
        tokio::time::sleep(Duration::from_millis(round * round * 2)).await;
        if round + 1 < KILLS {
            child.kill().unwrap();
            child.wait().unwrap();
        } else {
            assert!(child.wait().unwrap().success());
        }
        let (store, writing) =
            crate::store::open(&place.database_url(), &place.trust_domain, crate::testing::id("/spire/server"))
                .await
                .expect("opens by itself");
        let registry_has = |id: &str| store.registry().entry(id).is_some();
        assert!(registry_has(&kept), "neither the old database nor the backup");
        let count = store.registry().entry_count();
        match registry_has(&lost) {
            true => before += usize::from(count == 302),
            false => after += usize::from(count == 301),
        }
        drop(store);
        writing.await;
    }
    assert_eq!(before + after, usize::try_from(KILLS).unwrap(), "a part of something");
    assert!(before > 0 && after > 0, "{before} before, {after} after: no kill came in the middle");
    println!("{KILLS} restores, {before} killed before the end");
    let again = Running::start_in(dir, place).await;
    assert!(again.certifier.store.registry().entry(&kept).is_some());
}

const KILLS: u64 = 16;

/// The way of an installation that grows.
#[tokio::test]
async fn an_authority_moves_from_sqlite_to_postgresql() {
    let Some(cluster) = database::cluster() else { return };
    let ca = Running::start().await;
    let entry = ca.entry("/web", "/node").await;
    let file = ca.path("ca.backup");
    backup(&ca.settings, &file).await.unwrap();
    let (dir, mut place) = (ca.dir(), ca.settings.clone());
    ca.stop().await;
    place.database = Some(cluster.create().await);
    restore(&place, &file, MOVED).await.unwrap();
    let moved = Running::start_in(dir, place).await;
    assert!(moved.certifier.store.registry().entry(&entry).is_some());
    let replica = moved.replica().await;
    assert!(replica.certifier.store.registry().entry(&entry).is_some());
}

database::on_each_database! {
    everything_moves_to_another_database,
    what_the_old_server_may_have_told_is_not_told_again,
    a_full_or_used_database_is_not_overwritten,
    a_restore_that_is_killed_changes_nothing,
}
