//! What is written stays, on whichever database.

mod layout;
mod postgres;
mod sqlite;

use std::path::Path;

use futures_util::future::join_all;
use runtime::tasks::TaskSet;
use sqlx::Executor;

use super::*;
use crate::agent::Agent;
use crate::entry::Entry;
use crate::testing::{agent, database, entry, id, trust_domain};

struct Opened {
    store: Store,
    writer: TaskSet,
}

async fn open_in(dir: &Path) -> Result<Opened, OpenError> {
    open_url(&database::url_in(dir).await).await
}

async fn open_url(url: &str) -> Result<Opened, OpenError> {
    let (store, writing) = open(url, &trust_domain(), id("/spire/server")).await?;
    let mut writer = TaskSet::new();
    writer.spawn("writer", writing);
    Ok(Opened { store, writer })
}

/// Opened, and with the authority that signed [`row`].
async fn signing_in(dir: &Path) -> Opened {
    let opened = open_in(dir).await.unwrap();
    opened.store.change_authorities(putting("a"), 0).await.unwrap();
    opened
}

fn authority(id: &str) -> AuthorityRow {
    AuthorityRow {
        id: id.into(),
        kind: AuthorityKind::Jwt,
        state: AuthorityState::Active,
        certificate: String::new(),
        place: crate::custody::Place::Disk,
        key_name: String::new(),
        sealed_key: "x".into(),
        public_key: String::new(),
        not_before: 1,
        not_after: 2,
        created_at: 1,
        issuer_id: String::new(),
        published: 1,
        tainted: 0,
    }
}

/// `id` is put there, and the bundle changes by it.
fn putting(id: &str) -> AuthoritiesChange {
    AuthoritiesChange { put: vec![authority(id)], publishes: true, ..AuthoritiesChange::default() }
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
        fingerprint: "f".into(),
        issued_at: 100,
        not_after: 200,
        log_index: -1,
    }
}

async fn everything_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let opened = signing_in(dir.path()).await;
    let written = Entry { hint: "h".into(), dns_names: vec!["a.b".into()], ..entry("e", "/web", "/node") };
    let Created::New(created) = opened.store.create_entry(written).await.unwrap() else { panic!("not created") };
    assert!(opened.store.add_token("t", 900, None, 1).await.unwrap());
    let node = agent("/spire/agent/join_token/t");
    assert_eq!(opened.store.admit(node.clone(), Some("t"), row("n1"), 5).await.unwrap(), Admission::Admitted);
    opened.store.record(vec![row("01"), row("02")]).await.unwrap();
    opened.close().await;

    let again = open_in(dir.path()).await.unwrap();
    let registry = || again.store.registry();
    assert_eq!(registry().entry("e").as_deref(), Some(&*created));
    assert_eq!(registry().agent(&node.id).as_deref(), Some(&node));
    assert_eq!(registry().entries_revision(), 1);
    assert_eq!(again.store.issued_count().await.unwrap(), 3);
}

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

async fn of_many_uses_of_one_token_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let opened = signing_in(dir.path()).await;
    opened.store.add_token("t", 900, None, 1).await.unwrap();
    let uses = (0..64).map(|_| opened.store.admit(agent("/spire/agent/join_token/t"), Some("t"), row("n1"), 5));
    let outcomes = join_all(uses).await;
    let joined = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Admission::Admitted))).count();
    assert_eq!((joined, outcomes.len()), (1, 64));
}

async fn a_late_token_is_refused_and_gone_and_a_ban_outlives_a_new_token() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = signing_in(dir.path()).await;
    let node = agent("/spire/agent/join_token/t");
    store.add_token("t", 10, None, 1).await.unwrap();
    assert!(!store.add_token("t", 10, None, 1).await.unwrap(), "the same token twice");
    assert_eq!(store.admission_problem(&node.id, false, Some("t"), 10).await.unwrap(), Some(Admission::Expired));
    assert_eq!(store.admit(node.clone(), Some("t"), row("n1"), 10).await.unwrap(), Admission::Expired);
    assert_eq!(store.admit(node.clone(), Some("t"), row("n1"), 5).await.unwrap(), Admission::Unknown);

    store.add_token("t", 10, None, 1).await.unwrap();
    assert_eq!(store.admit(node.clone(), Some("t"), row("n1"), 5).await.unwrap(), Admission::Admitted);
    store.change_agent(&node.id, |node| node.banned = true).await.unwrap().unwrap();
    store.add_token("t", 10, None, 1).await.unwrap();
    assert_eq!(store.admit(node.clone(), Some("t"), row("n1"), 5).await.unwrap(), Admission::Banned);
    assert!(store.registry().agent(&node.id).unwrap().banned);
}

/// A node without the record of its SVID would be a hole in the trail, and its token lost.
async fn a_node_is_admitted_with_its_record_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = signing_in(dir.path()).await;
    let node = agent("/spire/agent/join_token/t");
    store.add_token("t", 900, None, 1).await.unwrap();
    let stale = Issuance { authority_id: "replaced".into(), ..row("n1") };
    assert_eq!(store.admit(node.clone(), Some("t"), stale, 5).await.unwrap_err().reason(), "AUTHORITY_CHANGED");
    assert!(store.registry().agent(&node.id).is_none());
    assert_eq!(store.admission_problem(&node.id, false, Some("t"), 5).await.unwrap(), None, "the token is still good");
    assert_eq!(store.admit(node.clone(), Some("t"), row("n1"), 5).await.unwrap(), Admission::Admitted);
    let stale = Issuance { authority_id: "replaced".into(), ..row("n2") };
    let renewal = store.renew_agent(&node.id, stale, |node| node.new_serial = "n2".into()).await;
    assert_eq!(renewal.unwrap_err().reason(), "AUTHORITY_CHANGED");
    assert_eq!(store.registry().agent(&node.id).unwrap().new_serial, "");
    let renewed = store.renew_agent(&node.id, row("n2"), |node| node.new_serial = "n2".into()).await.unwrap();
    assert_eq!(renewed.unwrap().new_serial, "n2");
    assert_eq!(store.issued_count().await.unwrap(), 2);
}

async fn a_known_node_comes_again_only_where_its_attestor_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = signing_in(dir.path()).await;
    let first = agent("/spire/agent/http_challenge/a");
    assert_eq!(store.admit(first.clone(), None, row("k1"), 1).await.unwrap(), Admission::Admitted);
    assert_eq!(store.admit(first.clone(), None, row("k2"), 1).await.unwrap(), Admission::Known);
    assert_eq!(store.admission_problem(&first.id, false, None, 1).await.unwrap(), Some(Admission::Known));
    let again = Agent { can_reattest: true, serial: "02".into(), ..first.clone() };
    assert_eq!(store.admit(again, None, row("k3"), 1).await.unwrap(), Admission::Admitted);
    assert_eq!(store.registry().agent(&first.id).unwrap().serial, "02");
    store.add_token("t", 10, None, 1).await.unwrap();
    assert_eq!(
        store.admit(agent("/spire/agent/join_token/t"), Some("t"), row("k4"), 5).await.unwrap(),
        Admission::Admitted
    );
    store.add_token("t", 10, None, 1).await.unwrap();
    let second = store.admit(agent("/spire/agent/join_token/t"), Some("t"), row("k5"), 5).await.unwrap();
    assert_eq!(second, Admission::Known, "a second token of the same value");
}

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

async fn more_records_than_one_statement_takes_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, writer: _writer } = signing_in(dir.path()).await;
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

async fn another_trust_domain_and_a_newer_version_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
               SELECT 99999999, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
    let url = database::url_in(dir.path()).await;
    let elsewhere = identity::TrustDomain::parse("elsewhere.org").unwrap();
    let other = open(&url, &elsewhere, elsewhere.with_path("/spire/server").unwrap()).await.err().unwrap();
    assert_eq!(other.reason(), "DATABASE_OTHER_TRUST_DOMAIN");
    assert!(other.to_string().contains("example.org, not elsewhere.org"), "{other}");
    opened.store.pool.execute(sql).await.unwrap();
    opened.close().await;
    check_refused(open_in(dir.path()).await, "DATABASE_OTHER_VERSION", "start that version");
}

async fn of_two_changes_based_on_the_same_state_one_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_in(dir.path()).await.unwrap();
    let before = opened.store.authorities().await.unwrap();
    opened.store.change_authorities(putting("b"), before.revision).await.unwrap();
    let refused = opened.store.change_authorities(putting("c"), before.revision).await.unwrap_err();
    assert_eq!(refused.reason(), "AUTHORITY_CHANGED");
    let after = opened.store.authorities().await.unwrap();
    assert_eq!((after.revision, after.bundle_sequence), (before.revision + 1, before.bundle_sequence + 1));
    assert!(after.rows.iter().all(|row| row.id != "c"));
}

database::on_each_database! {
    of_two_changes_based_on_the_same_state_one_is_written,
    everything_written_is_there_after_a_restart,
    a_failing_job_spoils_no_other_of_its_transaction,
    of_many_uses_of_one_token_one_succeeds,
    a_late_token_is_refused_and_gone_and_a_ban_outlives_a_new_token,
    two_entries_that_say_the_same_are_one,
    a_node_is_admitted_with_its_record_or_not_at_all,
    every_change_of_an_entry_counts,
    more_records_than_one_statement_takes_are_written,
    another_trust_domain_and_a_newer_version_are_refused,
    a_known_node_comes_again_only_where_its_attestor_allows_it,
}
