//! Several replicas on one PostgreSQL: what one does the others know, and none contradicts another.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use proto::spire::api::server::agent::v1::BanAgentRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use sqlx::Executor;

use super::*;
use crate::store::{Issuance, IssuanceKind};
use crate::testing::database::{self, Kind};
use crate::testing::running::{id_message, reason, until};

/// Longer than anybody should wait; what is measured is told on failure.
const KNOWN_MAX: Duration = Duration::from_secs(1);

async fn two() -> (Running, Running) {
    let first = Running::start().await;
    let second = first.replica().await;
    (first, second)
}

macro_rules! on_postgresql {
    ($($test:ident),* $(,)?) => { $(
        mod $test {
            #[tokio::test]
            async fn postgresql() {
                super::database::on(super::Kind::Postgres, super::$test()).await;
            }
        }
    )* };
}

async fn what_is_made_on_one_is_served_by_the_other_within_a_second() {
    let (a, b) = two().await;
    let node = a.node(Some("/node/local")).await;
    let entry = a.entry("/web", "/node/local").await;
    let known = || async { b.certifier.store.registry().entry(&entry).is_some() };
    until("the entry on the other replica", KNOWN_MAX, known).await;
    let mut client = EntryClient::new(b.network(Some(&node)));
    let asked = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    let entries = asked.unwrap().into_inner().entries;
    assert!(entries.iter().any(|found| found.id == entry), "{entries:?}");
    assert_eq!(a.certifier.authorities.current().bundle, b.certifier.authorities.current().bundle);
}

async fn a_ban_on_one_is_enforced_by_the_other() {
    let (a, b) = two().await;
    let node = a.node(None).await;
    let ask = async || {
        EntryClient::new(b.network(Some(&node))).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await
    };
    until("the node on the other replica", KNOWN_MAX, async || ask().await.is_ok()).await;
    let ban = BanAgentRequest { id: Some(id_message(node.id().path())) };
    AgentClient::new(a.local().await).ban_agent(ban).await.unwrap();
    until("the ban on the other replica", KNOWN_MAX, async || ask().await.is_err()).await;
    assert_eq!(reason(ask().await), "AGENT_BANNED");
}

async fn of_64_uses_of_one_token_over_two_replicas_one_succeeds() {
    let (a, b) = two().await;
    let token = a.token(None).await;
    let uses = (0..64).map(|n| if n % 2 == 0 { a.join(&token) } else { b.join(&token) });
    let outcomes = join_all(uses).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let refused: BTreeSet<_> = outcomes.into_iter().filter(Result::is_err).map(reason).collect();
    assert_eq!(refused, BTreeSet::from(["JOIN_TOKEN_UNKNOWN".to_owned()]));
}

async fn writes_on_both_count_without_a_gap_and_the_same_entry_is_one() {
    let (a, b) = two().await;
    let create = async |n: usize| {
        let on = if n.is_multiple_of(2) { &a } else { &b };
        // Every entry is asked for on both.
        on.entry_with(&format!("/w/{}", n / 2), "/node", |_| ()).await
    };
    let outcomes = join_all((0..100).map(create)).await;
    let made: BTreeSet<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(made.len(), 50, "one of each pair");
    for replica in [&a, &b] {
        let revision = async || replica.certifier.store.registry().entries_revision() == 50;
        until("the same revision everywhere", KNOWN_MAX, revision).await;
        assert_eq!(replica.certifier.store.registry().entry_count(), 50);
    }
}

async fn a_rotation_on_one_is_followed_and_nobody_signs_with_what_it_replaced() {
    let (a, b) = two().await;
    let before = b.certifier.authorities.current();
    let later = a.certifier.now() + a.settings.ca_ttl / 2 + Duration::from_secs(3600);
    a.certifier.authorities.keep_fresh(&a.certifier.store, later).await.unwrap();
    // Signed before the other heard of it: what is recorded with the old one is refused.
    let record = Issuance {
        serial: "01".into(),
        kind: IssuanceKind::X509,
        spiffe_id: "spiffe://example.org/web".into(),
        entry_id: String::new(),
        caller: "local".into(),
        authority_id: before.x509_id.clone(),
        fingerprint: String::new(),
        issued_at: 1,
        not_after: 2,
        log_index: -1,
    };
    assert_eq!(b.certifier.store.record(vec![record]).await.unwrap_err().reason(), "AUTHORITY_CHANGED");
    let now = a.certifier.authorities.current();
    assert_ne!(now.x509_id, before.x509_id);
    let follows = async || b.certifier.authorities.current().x509_id == now.x509_id;
    until("the new authority on the other replica", KNOWN_MAX, follows).await;
    let same = async || b.certifier.authorities.current().bundle.sequence == now.bundle.sequence;
    until("the same bundle everywhere", KNOWN_MAX, same).await;
}

async fn one_holds_the_lease_and_its_death_hands_it_on() {
    let (a, b) = two().await;
    let leads = |replica: &Running| replica.certifier.store.lease().is_held();
    until("a holder", TAKEN_MAX, async || leads(&a) != leads(&b)).await;
    let (holder, other) = if leads(&a) { (a, b) } else { (b, a) };
    assert!(!leads(&other));
    // The other one needs the key file of the first, and that stays.
    let _dir = holder.dir();
    holder.kill().await;
    until("the next holder", TAKEN_MAX, async || leads(&other)).await;
    assert!(other.entry_with("/later", "/node", |_| ()).await.is_ok());
}

async fn two_that_start_at_once_are_one_authority() {
    let dirs = [0, 1].map(|_| Arc::new(tempfile::tempdir().unwrap()));
    let database = database::setting_in(dirs[0].path()).await;
    let starts = dirs.iter().map(|dir| {
        let key_file = Some(dirs[0].path().join("shared.key"));
        let settings = Settings { database: database.clone(), key_file, ..settings(dir.path()) };
        Running::start_in(dir.clone(), settings)
    });
    let replicas = join_all(starts).await;
    let [a, b] = [0, 1].map(|n| replicas[n].certifier.authorities.current());
    assert_eq!((&a.bundle, &a.facts), (&b.bundle, &b.facts));
}

/// A notification may be lost; the change is not.
async fn what_nobody_was_told_is_found() {
    let (a, b) = two().await;
    let entry = a.entry("/web", "/node").await;
    until("the entry", KNOWN_MAX, async || b.certifier.store.registry().entry(&entry).is_some()).await;
    let mut conn = database::connect(a.settings.database.as_deref().unwrap()).await;
    let sql = format!(
        "BEGIN; SELECT CAST(pg_advisory_xact_lock(1263747656, 1) AS TEXT); DELETE FROM entry WHERE id = '{entry}'; \
         UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE name = 'change_number'; \
         INSERT INTO change (number, kind, name, made_at) \
         SELECT CAST(value AS BIGINT), 'entry', '{entry}', 1 FROM meta WHERE name = 'change_number'; COMMIT"
    );
    conn.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    for replica in [&a, &b] {
        let gone = async || replica.certifier.store.registry().entry(&entry).is_none();
        until("the silent change", TAKEN_MAX, gone).await;
    }
}

/// Lines of the feed are removed after a while; who was away for longer reads everything.
async fn who_was_away_for_long_reads_everything() {
    let (a, b) = two().await;
    let entry = a.entry("/web", "/node").await;
    until("the entry", KNOWN_MAX, async || b.certifier.store.registry().entry(&entry).is_some()).await;
    let mut conn = database::connect(a.settings.database.as_deref().unwrap()).await;
    // As if hundreds of lines had come and gone.
    let sql = format!(
        "BEGIN; SELECT CAST(pg_advisory_xact_lock(1263747656, 1) AS TEXT); DELETE FROM entry WHERE id = '{entry}'; \
         UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 500 AS TEXT) WHERE name = 'change_number'; \
         INSERT INTO change (number, kind, name, made_at) \
         SELECT CAST(value AS BIGINT), 'agent', 'spiffe://example.org/none', 1 FROM meta WHERE name = 'change_number'; \
         COMMIT; NOTIFY kasbah_change"
    );
    conn.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    for replica in [&a, &b] {
        let gone = async || replica.certifier.store.registry().entry(&entry).is_none();
        until("everything read", TAKEN_MAX, gone).await;
    }
    let again = a.entry("/web", "/node").await;
    until("the next entry", KNOWN_MAX, async || b.certifier.store.registry().entry(&again).is_some()).await;
}

/// How long a lease, or a look without a notification, may take on a busy machine.
const TAKEN_MAX: Duration = Duration::from_secs(10);

on_postgresql! {
    what_is_made_on_one_is_served_by_the_other_within_a_second,
    a_ban_on_one_is_enforced_by_the_other,
    of_64_uses_of_one_token_over_two_replicas_one_succeeds,
    writes_on_both_count_without_a_gap_and_the_same_entry_is_one,
    a_rotation_on_one_is_followed_and_nobody_signs_with_what_it_replaced,
    one_holds_the_lease_and_its_death_hands_it_on,
    two_that_start_at_once_are_one_authority,
    what_nobody_was_told_is_found,
    who_was_away_for_long_reads_everything,
}
