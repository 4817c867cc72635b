//! What the audit trail says about acts and refusals.

use proto::kasbah::ca::v1::audit_client::AuditClient;
use proto::kasbah::ca::v1::{self as wire, ListRecordsRequest};
use proto::spire::api::server::agent::v1::BanAgentRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest};
use proto::spire::api::types;

use super::*;
use crate::testing::id;
use crate::testing::running::{Running, id_message};

async fn list(ca: &Running, request: ListRecordsRequest) -> Vec<wire::AuditRecord> {
    AuditClient::new(ca.local().await).list_records(request).await.unwrap().into_inner().records
}

async fn actions(ca: &Running) -> Vec<(String, String)> {
    let records = list(ca, ListRecordsRequest::default()).await;
    records.into_iter().rev().map(|record| (record.action, record.result)).collect()
}

#[track_caller]
fn check(actions: &[(String, String)], expected: &[(&str, &str)]) {
    let seen: Vec<_> = actions.iter().map(|(action, result)| (action.as_str(), result.as_str())).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn every_act_of_an_administrator_is_on_record_with_who_what_and_where_from() {
    let ca = Running::start().await;
    let entry = ca.entry("/web", "/node").await;
    let mut client = EntryClient::new(ca.local().await);
    let mask = types::EntryMask { hint: true, ..Default::default() };
    let change = types::Entry { id: entry.clone(), hint: "new".into(), ..Default::default() };
    let update = BatchUpdateEntryRequest { entries: vec![change], input_mask: Some(mask), output_mask: None };
    client.batch_update_entry(update).await.unwrap();
    client.batch_delete_entry(BatchDeleteEntryRequest { ids: vec![entry.clone()] }).await.unwrap();
    let node = ca.node(None).await;
    let ban = BanAgentRequest { id: Some(id_message(node.id().path())) };
    AgentClient::new(ca.local().await).ban_agent(ban).await.unwrap();
    ca.mint("/ops").await;
    check(
        &actions(&ca).await,
        &[
            ("entry.create", "done"),
            ("entry.update", "done"),
            ("entry.delete", "done"),
            ("token.create", "done"),
            ("node.attest", "done"),
            ("node.ban", "done"),
            ("mint.x509", "done"),
        ],
    );
    let created = list(&ca, ListRecordsRequest { action: "entry.create".into(), ..Default::default() }).await.remove(0);
    assert_eq!((created.actor.as_str(), created.target.as_str()), ("local", entry.as_str()));
    assert_eq!(created.spiffe_id, id("/web").to_string());
    assert!(created.source.starts_with(&format!("pid {}", std::process::id())), "{}", created.source);
    assert!(created.detail.contains("unix:uid:1000"), "{}", created.detail);
    let of_entries = list(&ca, ListRecordsRequest { action: "entry".into(), ..Default::default() }).await;
    assert_eq!(of_entries.len(), 3);
}

#[tokio::test]
async fn an_act_without_effect_is_a_refusal_and_no_act() {
    let ca = Running::start().await;
    ca.entry("/web", "/node").await;
    ca.entry_with("/web", "/node", |_| ()).await.unwrap_err();
    let mut client = EntryClient::new(ca.local().await);
    client.batch_delete_entry(BatchDeleteEntryRequest { ids: vec!["none".into()] }).await.unwrap();
    let records = list(&ca, ListRecordsRequest::default()).await;
    let seen: Vec<_> = records.iter().map(|record| (record.action.as_str(), record.reason.as_str())).collect();
    assert!(seen.contains(&("entry.create", "")) && seen.contains(&("entry.create", "ENTRY_EXISTS")), "{seen:?}");
    assert!(seen.contains(&("entry.delete", "ENTRY_UNKNOWN")) && seen.len() == 3, "{seen:?}");
}

#[tokio::test]
async fn a_flood_of_refusals_is_one_counted_record_with_its_address() {
    let ca = Running::start().await;
    let somebody = ca.mint("/somebody").await;
    let mut client = EntryClient::new(ca.network(Some(&somebody)));
    for _ in 0..200 {
        client.list_entries(ListEntriesRequest::default()).await.unwrap_err();
    }
    let records = list(&ca, ListRecordsRequest { actor: somebody.id().to_string(), ..Default::default() }).await;
    let times: u64 = records.iter().map(|record| record.times).sum();
    assert_eq!(times, 200);
    assert!(records.len() <= 40, "{} rows", records.len());
    assert_eq!((records[0].reason.as_str(), records[0].result.as_str()), ("CALLER_NOT_ADMIN", "refused"));
    assert!(records[0].source.starts_with("127.0.0.1:"), "{}", records[0].source);
}

#[test]
fn many_kinds_of_refusals_become_one() {
    let refusals = Refusals::default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let caller = Caller { who: crate::api::Who::Unknown, source: Source::Unknown, call: None };
    let actions: Vec<&'static str> = (0..1_000).map(|n| &*String::leak(format!("action-{n}"))).collect();
    for action in &actions {
        refusals.add(&caller, action, "", "CALLER_NOT_ADMIN", now);
        refusals.add(&caller, action, "", "CALLER_NOT_ADMIN", now);
    }
    let waiting = refusals.waiting.lock().unwrap();
    assert_eq!(waiting.len(), 2 * KINDS_MAX);
    assert!(waiting.values().all(|record| record.times == 2));
    assert_eq!(waiting.values().filter(|record| record.actor == MANY).count(), KINDS_MAX);
}

#[tokio::test]
async fn old_records_and_too_many_refusals_are_forgotten() {
    let ca = Running::start().await;
    let refusal = |n: u32| AuditRecord {
        id: format!("{n:032}"),
        at: i64::from(n),
        actor: "a".into(),
        source: String::new(),
        action: "x".into(),
        target: String::new(),
        spiffe_id: String::new(),
        reason: "R_X".into(),
        detail: String::new(),
        times: 1,
    };
    let store = &ca.certifier.store;
    store.write_audit((0..50).map(refusal).collect()).await.unwrap();
    let act = AuditRecord { reason: String::new(), id: "0".into(), at: 30, ..refusal(0) };
    store.write_audit(vec![act]).await.unwrap();
    assert_eq!(store.forget_audit(10, 100).await.unwrap(), 10);
    assert_eq!(store.forget_audit(0, 5).await.unwrap(), 35);
    let left = store.audit(&crate::store::AuditFilter::default(), 100).await.unwrap();
    assert_eq!(left.len(), 6, "five refusals, and the act, which is older");
    assert_eq!(left[0].at, 49);
}

#[tokio::test]
async fn issued_svids_stand_among_the_acts_of_an_identity() {
    let ca = Running::start().await;
    let svid = ca.mint("/ops").await;
    let wanted = ListRecordsRequest { spiffe_id: id("/ops").to_string(), with_issuance: true, ..Default::default() };
    let records = list(&ca, wanted).await;
    let seen: Vec<_> = records.iter().map(|record| (record.action.as_str(), record.target.as_str())).collect();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.contains(&("issue.mint_x509", svid.serial())) && seen.contains(&("mint.x509", svid.serial())),
        "{seen:?}"
    );
    let by_action = ListRecordsRequest { action: "issue".into(), with_issuance: true, ..Default::default() };
    let kinds: Vec<String> = list(&ca, by_action).await.into_iter().map(|record| record.action).collect();
    assert!(kinds.contains(&"issue.server".into()) && kinds.contains(&"issue.mint_x509".into()), "{kinds:?}");
}

#[tokio::test]
async fn what_was_refused_before_the_end_is_there_after_the_start() {
    let ca = Running::start().await;
    let mut nobody = EntryClient::new(ca.network(None));
    nobody.list_entries(ListEntriesRequest::default()).await.unwrap_err();
    let ca = ca.restart().await;
    let records = list(&ca, ListRecordsRequest::default()).await;
    assert!(records.iter().any(|record| record.reason == "CLIENT_CERTIFICATE_MISSING"), "{records:?}");
}

#[tokio::test]
async fn the_trail_is_for_administrators() {
    let ca = Running::start().await;
    let somebody = ca.mint("/somebody").await;
    let mut client = AuditClient::new(ca.network(Some(&somebody)));
    let refused = client.list_records(ListRecordsRequest::default()).await.unwrap_err();
    assert_eq!(runtime::refusal::reason_of(&refused).unwrap(), "CALLER_NOT_ADMIN");
}
