//! What is particular to SQLite: one file, which may be damaged or somebody else's.

use super::*;
use crate::store::sqlite_url;

/// What the disk holds at the moment of the acknowledgement is what a killed process leaves behind.
#[tokio::test]
async fn an_acknowledged_write_is_on_the_disk() {
    let (dir, crash) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let opened = signing_in(dir.path()).await;
    let create = |n: usize| opened.store.create_entry(entry(&format!("e{n}"), &format!("/w{n}"), "/node"));
    join_all((0..50).map(create)).await.into_iter().for_each(|created| drop(created.unwrap()));
    opened.store.record((0..50).map(|n| row(&format!("{n:02}"))).collect()).await.unwrap();
    // Few go to the driver in one piece.
    opened.store.record(vec![row("50"), row("51")]).await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), crash.path().join(file.file_name())).unwrap();
    }
    let left = open_in(crash.path()).await.unwrap();
    assert_eq!(left.store.registry().entry_count(), 50);
    assert_eq!(left.store.issued_count().await.unwrap(), 52);
    assert_eq!(left.store.log_frontier().await.unwrap().size(), 52);
}

/// Nobody should do that; a log that says two things about one place would be worse than a late answer.
#[tokio::test]
async fn two_processes_on_one_file_do_not_fork_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (signing_in(dir.path()).await, open_in(dir.path()).await.unwrap());
    for round in 0..10 {
        for (name, opened) in [("a", &one), ("b", &other)] {
            opened.store.record(vec![row(&format!("{name}{round}"))]).await.unwrap();
        }
    }
    let log = one.store.log_frontier().await.unwrap();
    let mut leaves = identity::transparency::Frontier::new();
    one.store.log_leaves(0, 100).await.unwrap().into_iter().for_each(|leaf| leaves.append(leaf, |_, _| ()));
    assert_eq!((log.size(), log.root()), (20, leaves.root()));
    let places = one.store.issued_at_log(0, 100).await.unwrap();
    let serials = places.iter().map(|recorded| recorded.issuance.serial.clone()).collect::<Vec<_>>();
    assert_eq!((serials.len(), &serials[..3]), (20, &["a0".to_owned(), "b0".into(), "a1".into()][..]));
}

#[tokio::test]
async fn a_record_that_cannot_be_written_spoils_nothing_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let opened = signing_in(dir.path()).await;
    opened.store.record(vec![row("1")]).await.unwrap();
    assert!(opened.store.record(vec![row("2"), row("1")]).await.is_err(), "a serial twice");
    opened.store.record(vec![row("3")]).await.unwrap();
    let places = opened.store.issued_at_log(0, 100).await.unwrap();
    let found = places.iter().map(|recorded| (recorded.issuance.serial.as_str(), recorded.issuance.log_index));
    assert_eq!(found.collect::<Vec<_>>(), [("1", 0), ("3", 1)]);
    assert_eq!(opened.store.log_frontier().await.unwrap().size(), 2);
}

#[tokio::test]
async fn no_token_is_stored_in_readable_form() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    opened.store.add_token("very-secret-token", 900, None, 1).await.unwrap();
    opened.close().await;
    let stored = std::fs::read(dir.path().join("ca.sqlite")).unwrap();
    assert!(!stored.windows(17).any(|bytes| bytes == b"very-secret-token"));
}

#[tokio::test]
async fn what_is_no_database_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    for content in [&b"not a database at all, really"[..], b"short"] {
        std::fs::write(dir.path().join("ca.sqlite"), content).unwrap();
        check_refused(open_in(dir.path()).await, "DATABASE_CORRUPT", "restore it from a backup");
    }
}

#[tokio::test]
async fn a_damaged_database_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let opened = signing_in(dir.path()).await;
    opened.store.record((0..3_000).map(|n| row(&n.to_string())).collect()).await.unwrap();
    opened.close().await;
    let file = dir.path().join("ca.sqlite");
    let mut content = std::fs::read(&file).unwrap();
    let (from, to) = (content.len() / 3, content.len() * 2 / 3);
    content[from..to].fill(0xa5);
    std::fs::write(&file, &content).unwrap();
    check_refused(open_in(dir.path()).await, "DATABASE_CORRUPT", "restore it from a backup");
    content.truncate(100);
    std::fs::write(&file, &content).unwrap();
    check_refused(open_in(dir.path()).await, "DATABASE_CORRUPT", "restore it from a backup");
}

#[tokio::test]
async fn a_database_of_somebody_else_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let url = sqlite_url(&dir.path().join("ca.sqlite"));
    sqlx::any::install_default_drivers();
    let pool = AnyPool::connect(&url).await.unwrap();
    pool.execute("CREATE TABLE orders (id BIGINT)").await.unwrap();
    check_refused(open_in(dir.path()).await, "DATABASE_FOREIGN", "name another one");
    let tables = sqlx::query("SELECT count(*) FROM sqlite_master").fetch_one(&pool).await.unwrap();
    assert_eq!(tables.get::<i64, _>(0), 1);
}

#[tokio::test]
async fn addresses_are_told_without_their_passwords() {
    let server_id = id("/spire/server");
    let error = open("mysql://me:secret@db/x", &trust_domain(), server_id.clone()).await.err().unwrap();
    assert_eq!(error.reason(), "DATABASE_UNSUPPORTED");
    assert!(!error.to_string().contains("secret"), "{error}");
    let error = open("sqlite:///no/such/dir/x.sqlite?mode=rwc", &trust_domain(), server_id).await.err().unwrap();
    assert_eq!(error.reason(), "DATABASE_UNAVAILABLE");
    assert!(error.to_string().contains("/no/such/dir/x.sqlite"), "{error}");
}

#[tokio::test]
async fn the_disk_is_told_to_keep_what_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(&dir.path().join("a b?c%d")).await;
    assert!(opened.is_err(), "the directory does not exist");
    std::fs::create_dir(dir.path().join("a b?c%d")).unwrap();
    let opened = open_in(&dir.path().join("a b?c%d")).await.unwrap();
    assert!(dir.path().join("a b?c%d/ca.sqlite").exists(), "any path works");
    let ask = |sql: &'static str| sqlx::query(sql).fetch_one(&opened.store.pool);
    assert_eq!(ask("PRAGMA journal_mode").await.unwrap().get::<String, _>(0), "wal");
    assert_eq!(ask("PRAGMA synchronous").await.unwrap().get::<i64, _>(0), 2, "FULL");
}
