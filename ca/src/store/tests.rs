//! What is written stays; what is no database of ours is refused.

use std::path::Path;

use futures_util::future::join_all;
use runtime::tasks::TaskSet;
use sqlx::Executor;

use super::*;
use crate::entry::Entry;
use crate::testing::{agent, entry, id, trust_domain};

struct Opened {
    store: Store,
    writer: TaskSet,
}

async fn open_in(dir: &Path) -> Result<Opened, OpenError> {
    let (store, writing) = open(&sqlite_url(&dir.join("ca.sqlite")), &trust_domain(), id("/spire/server")).await?;
    let mut writer = TaskSet::new();
    writer.spawn("writer", writing);
    Ok(Opened { store, writer })
}

impl Opened {
    async fn close(mut self) {
        drop(self.store);
        self.writer.finished().await;
    }
}

fn row(serial: &str) -> Issuance {
    Issuance {
        serial: serial.into(),
        kind: IssuanceKind::X509,
        spiffe_id: "spiffe://example.org/web".into(),
        entry_id: "e".into(),
        caller: "local".into(),
        authority_id: "a".into(),
        issued_at: 100,
        not_after: 200,
    }
}

#[tokio::test]
async fn everything_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    let written = Entry { hint: "h".into(), dns_names: vec!["a.b".into()], ..entry("e", "/web", "/node") };
    let Created::New(created) = opened.store.create_entry(written).await.unwrap() else { panic!("not created") };
    assert!(opened.store.add_token("t", 900, None, 1).await.unwrap());
    let node = agent("/spire/agent/join_token/t");
    assert_eq!(opened.store.join("t", node.clone(), 5).await.unwrap(), TokenUse::Joined);
    opened.store.record(vec![row("01"), row("02")]).await.unwrap();
    opened.close().await;

    let again = open_in(dir.path()).await.unwrap();
    let registry = || again.store.registry();
    assert_eq!(registry().entry("e").as_deref(), Some(&*created));
    assert_eq!(registry().agent(&node.id).as_deref(), Some(&node));
    assert_eq!(registry().entries_revision(), 1);
    assert_eq!(again.store.issued_count().await.unwrap(), 2);
}

/// What the disk holds at the moment of the acknowledgement is what a killed process leaves behind.
#[tokio::test]
async fn an_acknowledged_write_is_on_the_disk() {
    let (dir, crash) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let opened = open_in(dir.path()).await.unwrap();
    let create = |n: usize| opened.store.create_entry(entry(&format!("e{n}"), &format!("/w{n}"), "/node"));
    join_all((0..50).map(create)).await.into_iter().for_each(|created| drop(created.unwrap()));
    opened.store.record((0..50).map(|n| row(&format!("{n:02}"))).collect()).await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), crash.path().join(file.file_name())).unwrap();
    }
    let left = open_in(crash.path()).await.unwrap();
    assert_eq!(left.store.registry().entry_count(), 50);
    assert_eq!(left.store.issued_count().await.unwrap(), 50);
}

#[tokio::test]
async fn a_failing_job_spoils_no_other_of_its_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    let bad = || {
        opened.store.write(|conn| {
            Box::pin(async move {
                conn.execute("INSERT INTO meta (name, value) VALUES ('half', '1')").await?;
                conn.execute("INSERT INTO no_such_table VALUES (1)").await?;
                Ok(Done::quiet(()))
            })
        })
    };
    let good = |n: usize| opened.store.create_entry(entry(&format!("e{n}"), &format!("/w{n}"), "/node"));
    let (failed, created) = tokio::join!(join_all((0..10).map(|_| bad())), join_all((0..100).map(good)),);
    assert!(failed.iter().all(Result::is_err));
    assert!(created.iter().all(|created| matches!(created, Ok(Created::New(_)))));
    let count =
        sqlx::query("SELECT count(*) FROM meta WHERE name = 'half'").fetch_one(&opened.store.pool).await.unwrap();
    assert_eq!(count.get::<i64, _>(0), 0, "the failing job leaves nothing");
}

#[tokio::test]
async fn of_many_uses_of_one_token_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    opened.store.add_token("t", 900, None, 1).await.unwrap();
    let uses = (0..64).map(|_| opened.store.join("t", agent("/spire/agent/join_token/t"), 5));
    let outcomes = join_all(uses).await;
    let joined = outcomes.iter().filter(|outcome| matches!(outcome, Ok(TokenUse::Joined))).count();
    assert_eq!((joined, outcomes.len()), (1, 64));
}

#[tokio::test]
async fn a_late_token_is_refused_and_gone_and_a_ban_outlives_a_new_token() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = open_in(dir.path()).await.unwrap();
    let node = agent("/spire/agent/join_token/t");
    store.add_token("t", 10, None, 1).await.unwrap();
    assert!(!store.add_token("t", 10, None, 1).await.unwrap(), "the same token twice");
    assert_eq!(store.token_problem("t", 10).await.unwrap(), Some(TokenUse::Expired));
    assert_eq!(store.join("t", node.clone(), 10).await.unwrap(), TokenUse::Expired);
    assert_eq!(store.join("t", node.clone(), 5).await.unwrap(), TokenUse::Unknown);

    store.add_token("t", 10, None, 1).await.unwrap();
    assert_eq!(store.join("t", node.clone(), 5).await.unwrap(), TokenUse::Joined);
    store.change_agent(&node.id, |node| node.banned = true).await.unwrap().unwrap();
    store.add_token("t", 10, None, 1).await.unwrap();
    assert_eq!(store.join("t", node.clone(), 5).await.unwrap(), TokenUse::Banned);
    assert!(store.registry().agent(&node.id).unwrap().banned);
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
async fn two_entries_that_say_the_same_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = open_in(dir.path()).await.unwrap();
    store.create_entry(entry("a", "/web", "/node")).await.unwrap();
    let again = store.create_entry(entry("b", "/web", "/node")).await.unwrap();
    assert!(matches!(again, Created::Same(same) if same.id == "a"));
    assert_eq!(store.create_entry(entry("a", "/other", "/node")).await.unwrap(), Created::IdTaken);
    store.create_entry(entry("b", "/other", "/node")).await.unwrap();
    let clash = store.update_entry("b", |entry| entry.spiffe_id = id("/web")).await.unwrap();
    assert!(matches!(clash, Updated::Same(same) if same.id == "a"));
    assert_eq!(store.update_entry("zzz", |_| ()).await.unwrap(), Updated::Unknown);
}

#[tokio::test]
async fn every_change_of_an_entry_counts() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = open_in(dir.path()).await.unwrap();
    let mut revision = store.entries_revision();
    store.create_entry(entry("a", "/web", "/node")).await.unwrap();
    assert_eq!(*revision.borrow_and_update(), 1);
    let Updated::Done(updated) = store.update_entry("a", |entry| entry.hint = "x".into()).await.unwrap() else {
        panic!("not updated")
    };
    assert_eq!((updated.revision, *revision.borrow_and_update()), (1, 2));
    assert!(store.delete_entry("a").await.unwrap());
    assert_eq!(*revision.borrow_and_update(), 3);
    assert!(!store.delete_entry("a").await.unwrap());
    assert!(!revision.has_changed().unwrap(), "nothing happened");
    store.create_entry(entry("a", "/web", "/node")).await.unwrap();
    assert_eq!(store.registry().entry("a").unwrap().revision, 0);
}

#[tokio::test]
async fn more_records_than_one_statement_takes_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = open_in(dir.path()).await.unwrap();
    store.record((0..2_500).map(|n| row(&n.to_string())).collect()).await.unwrap();
    assert_eq!(store.issued_count().await.unwrap(), 2_500);
    assert_eq!(store.issued(10).await.unwrap().len(), 10);
    assert!(store.record(vec![row("7")]).await.is_err(), "a serial twice");
    assert_eq!(store.forget_issued_before(201).await.unwrap(), 2_500);
}

#[track_caller]
fn check_refused(outcome: Result<Opened, OpenError>, reason: &str, says: &str) {
    let error = outcome.err().expect("refused");
    assert_eq!(error.reason(), reason, "{error:?}");
    assert!(error.to_string().contains(says) && !error.to_string().contains('\n'), "{error}");
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
    let opened = open_in(dir.path()).await.unwrap();
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
async fn another_trust_domain_and_a_newer_version_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
               VALUES (99999999, 'later', true, x'00', 0)";
    let url = sqlite_url(&dir.path().join("ca.sqlite"));
    let elsewhere = identity::TrustDomain::parse("elsewhere.org").unwrap();
    let other = open(&url, &elsewhere, elsewhere.with_path("/spire/server").unwrap()).await.err().unwrap();
    assert_eq!(other.reason(), "DATABASE_OTHER_TRUST_DOMAIN");
    assert!(other.to_string().contains("example.org, not elsewhere.org"), "{other}");
    opened.store.pool.execute(sql).await.unwrap();
    opened.close().await;
    check_refused(open_in(dir.path()).await, "DATABASE_OTHER_VERSION", "start that version");
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

/// `KASBAH_POSTGRES` names an empty database, as in `postgres://user@localhost/empty`.
#[tokio::test]
async fn postgresql_takes_the_same_statements() {
    let Ok(url) = std::env::var("KASBAH_POSTGRES") else {
        println!("skipped: KASBAH_POSTGRES is not set");
        return;
    };
    let (store, writing) = open(&url, &trust_domain(), id("/spire/server")).await.unwrap();
    let mut writer = TaskSet::new();
    writer.spawn("writer", writing);
    let create = |n: usize| store.create_entry(entry(&format!("e{n}"), &format!("/w{n}"), "/node"));
    join_all((0..20).map(create)).await.into_iter().for_each(|created| drop(created.unwrap()));
    assert!(matches!(create(0).await.unwrap(), Created::Same(_)));
    assert!(matches!(store.update_entry("e0", |entry| entry.hint = "h".into()).await.unwrap(), Updated::Done(_)));
    assert!(store.delete_entry("e1").await.unwrap());
    store.add_token("t", 900, None, 1).await.unwrap();
    let uses = (0..8).map(|_| store.join("t", agent("/spire/agent/join_token/t"), 5));
    let joined = join_all(uses).await.into_iter().filter(|outcome| matches!(outcome, Ok(TokenUse::Joined))).count();
    assert_eq!(joined, 1);
    store.record((0..2_500).map(|n| row(&n.to_string())).collect()).await.unwrap();
    assert!(store.record(vec![row("7")]).await.is_err(), "a serial twice");
    assert_eq!(store.issued(3).await.unwrap().len(), 3);
    let authority = AuthorityRow {
        id: "a".into(),
        kind: AuthorityKind::Jwt,
        state: AuthorityState::Active,
        certificate: String::new(),
        sealed_key: "x".into(),
        not_before: 1,
        not_after: 2,
        created_at: 1,
    };
    assert_eq!(store.change_authorities(vec![authority], vec![], true, Some("c".into())).await.unwrap(), 1);
    let bundle = identity::TrustBundle::new(identity::TrustDomain::parse("other.org").unwrap());
    store.set_federated(bundle, 1).await.unwrap();
    drop(store);
    writer.finished().await;

    let (store, writing) = open(&url, &trust_domain(), id("/spire/server")).await.unwrap();
    writer.spawn("writer", writing);
    assert_eq!(store.registry().entry_count(), 19);
    assert_eq!(store.registry().entry("e0").unwrap().hint, "h");
    assert_eq!(store.registry().all_federated().count(), 1);
    assert_eq!(store.authorities().await.unwrap().rows.len(), 1);
    assert_eq!(store.forget_issued_before(201).await.unwrap(), 2_500);
}
