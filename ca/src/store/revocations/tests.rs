//! Revocations and lists in the database, on whichever.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use identity::authority::X509Authority;
use identity::key::{KeyKind, PrivateKey};
use identity::revocation::Crl;
use identity::signing_key::{RemoteKey, RemoteKeyError, SigningKey};
use runtime::clock::from_unix_secs;
use runtime::tasks::TaskSet;

use super::*;
use crate::rights::Verb;
use crate::store::{
    AuditFilter, AuditRecord, AuthoritiesChange, AuthorityKind, AuthorityRow, AuthorityState, Issuance, IssuanceKind,
};
use crate::testing::{agent, database, entry, id, trust_domain};

const NOW: i64 = 1_800_000_000;

struct Opened {
    store: Store,
    writer: TaskSet,
    authority: Arc<X509Authority>,
}

async fn open(dir: &Path) -> Opened {
    let url = database::url_in(dir).await;
    let (store, writing) = crate::store::open(&url, &trust_domain(), id("/spire/server")).await.unwrap();
    let mut writer = TaskSet::new();
    writer.spawn("writer", writing);
    let life = Duration::from_secs(86_400);
    let authority = X509Authority::generate_root(&trust_domain(), life, from_unix_secs(NOW)).unwrap();
    Opened { store, writer, authority: Arc::new(authority) }
}

/// Opened, with an authority that may sign.
async fn start(dir: &Path) -> Opened {
    let opened = open(dir).await;
    let row = AuthorityRow {
        id: opened.authority.subject_key_id().to_owned(),
        kind: AuthorityKind::X509,
        state: AuthorityState::Active,
        certificate: String::new(),
        sealed_key: "x".into(),
        not_before: 1,
        not_after: NOW + 86_400,
        created_at: 1,
        issuer_id: String::new(),
        published: 1,
        tainted: 0,
        place: crate::custody::Place::Disk,
        key_name: String::new(),
        public_key: String::new(),
    };
    let change = AuthoritiesChange { put: vec![row], ..AuthoritiesChange::default() };
    opened.store.change_authorities(change, 0).await.unwrap();
    opened
}

impl Opened {
    fn record(&self, serial: &str, path: &str, entry_id: &str, caller: &str) -> Issuance {
        Issuance {
            serial: serial.into(),
            kind: IssuanceKind::X509,
            spiffe_id: id(path).to_string(),
            entry_id: entry_id.into(),
            caller: caller.into(),
            authority_id: self.authority.subject_key_id().to_owned(),
            fingerprint: format!("{serial:0>64}"),
            issued_at: NOW - 10,
            not_after: NOW + 3_600,
            log_index: -1,
        }
    }

    async fn issue(&self, serial: &str, path: &str, entry_id: &str, caller: &str) {
        self.store.record(vec![self.record(serial, path, entry_id, caller)]).await.unwrap();
    }

    async fn revoke(&self, target: RevokeTarget) -> Option<RevokeOutcome> {
        self.revoke_at(target, NOW).await
    }

    async fn revoke_at(&self, target: RevokeTarget, now: i64) -> Option<RevokeOutcome> {
        match self.store.revoke(target, 1, now, &all()).await.unwrap() {
            RevokeAnswer::Done(outcome) => Some(outcome),
            RevokeAnswer::Unknown => None,
            RevokeAnswer::Beyond => panic!("the right is for all"),
        }
    }

    async fn publish(&self, now: i64) -> bool {
        let plan = ListPlan { now, life: 1_000, part_max: 3, url: "http://ca".into() };
        let newest = self.store.crl_number().await.unwrap();
        match self.store.due_lists(newest, vec![self.authority.clone()], plan).await.unwrap() {
            Some(due) => self.store.publish_lists(due.sign()).await.unwrap(),
            None => false,
        }
    }

    async fn serials(&self) -> Vec<String> {
        self.store.lists().await.unwrap().revoked.into_keys().collect()
    }
}

fn all() -> Permit {
    Permit::whole("local", Verb::Revoke)
}

fn serial(text: &str) -> RevokeTarget {
    RevokeTarget::Serial(text.into())
}

fn audit(target: &str) -> AuditRecord {
    AuditRecord {
        id: format!("{target:0>20}"),
        at: NOW,
        actor: "local".into(),
        source: "-".into(),
        action: "cert.revoke".into(),
        target: target.into(),
        spiffe_id: String::new(),
        reason: String::new(),
        detail: String::new(),
        times: 1,
    }
}

async fn one_is_revoked_by_serial_or_fingerprint_once_and_what_is_unknown_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.issue("0a01", "/a", "e", "n").await;
    ca.issue("0a02", "/a", "e", "n").await;
    let once = RevokeOutcome { revoked: 1, already: 0, source_ended: false };
    assert_eq!(ca.revoke(serial("0a01")).await, Some(once));
    assert_eq!(ca.revoke(serial("0a01")).await, Some(RevokeOutcome { revoked: 0, already: 1, source_ended: false }));
    assert_eq!(ca.revoke(serial(&format!("{:0>64}", "0a02"))).await, Some(once));
    assert_eq!(ca.revoke(serial("0a03")).await, None);
    assert_eq!(ca.revoke_at(serial("0a01"), NOW + 3_600).await, None, "it has expired");
    assert_eq!(ca.serials().await, ["0a01", "0a02"]);
    let mut listed = ca.store.revoked("", 10).await.unwrap();
    listed.sort_by(|a, b| a.serial.cmp(&b.serial));
    assert_eq!((listed[0].reason, listed[0].revoked_at, listed[0].target.as_str()), (1, NOW, "serial 0a01"));
    assert_eq!(ca.store.revoked(id("/b").as_str(), 10).await.unwrap(), []);
}

async fn an_identity_an_entry_and_a_node_take_what_is_theirs_along() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.store.create_entry(entry("e1", "/a", "/node")).await.unwrap();
    let node = id("/spire/agent/join_token/n");
    ca.store.add_token("t", NOW + 60, None, NOW).await.unwrap();
    ca.issue("01", "/a", "e1", node.as_str()).await;
    ca.issue("02", "/a", "e2", "other").await;
    ca.issue("03", "/b", "e1", "other").await;
    ca.issue("04", "/c", "e3", node.as_str()).await;
    assert_eq!(ca.revoke(RevokeTarget::Identity(id("/a"))).await.unwrap().revoked, 2);
    let of_entry = ca.revoke(RevokeTarget::Entry("e1".into())).await.unwrap();
    assert_eq!(of_entry, RevokeOutcome { revoked: 1, already: 1, source_ended: true });
    assert!(!ca.store.registry().entry("e1").unwrap().is_live(NOW));
    let again = ca.revoke(RevokeTarget::Entry("e1".into())).await.unwrap();
    assert_eq!(again, RevokeOutcome { revoked: 0, already: 2, source_ended: false });
    let of_node = ca.revoke(RevokeTarget::Node(node.clone())).await.unwrap();
    assert_eq!((of_node.revoked, of_node.already), (1, 1));
    assert_eq!(ca.serials().await, ["01", "02", "03", "04"]);
    assert_eq!(ca.revoke(RevokeTarget::Entry("nobody".into())).await, None);
    assert_eq!(ca.revoke(RevokeTarget::Node(id("/spire/agent/x/y"))).await, None);
    assert_eq!(ca.revoke(RevokeTarget::Identity(id("/nobody"))).await, None);
}

async fn act_and_audit_record_are_one_and_an_act_without_effect_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.issue("01", "/a", "e", "n").await;
    for (record, target) in [("1", "01"), ("2", "01"), ("3", "99")] {
        ca.store.audited(audit(record)).revoke(serial(target), 1, NOW, &all()).await.unwrap();
    }
    let too_many = ca.store.audited(audit("4")).revoke_up_to(RevokeTarget::Identity(id("/a")), 1, NOW, &all(), 0).await;
    assert!(matches!(too_many, Err(StoreError::RevokedTooMany)), "{too_many:?}");
    let records = ca.store.audit(&AuditFilter::default(), 10).await.unwrap();
    assert_eq!(records.iter().map(|record| record.target.as_str()).collect::<Vec<_>>(), ["1"]);
}

async fn a_list_has_room_for_so_many_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    for n in 1..=3 {
        ca.issue(&format!("0{n}"), &format!("/{n}"), "e", "n").await;
    }
    let revoke = async |n: u8, most| ca.store.revoke_up_to(serial(&format!("0{n}")), 1, NOW, &all(), most).await;
    let one = RevokeAnswer::Done(RevokeOutcome { revoked: 1, already: 0, source_ended: false });
    assert_eq!(revoke(1, 2).await.unwrap(), one);
    assert_eq!(revoke(2, 2).await.unwrap(), one, "at the edge");
    assert!(matches!(revoke(3, 2).await, Err(StoreError::RevokedTooMany)));
    assert_eq!(ca.serials().await, ["01", "02"], "what is refused leaves nothing");
}

async fn what_was_signed_before_a_revocation_is_not_handed_out_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    let node = agent("/spire/agent/join_token/n");
    ca.store.create_entry(entry("e1", "/a", "/node")).await.unwrap();
    ca.store.create_entry(entry("e2", "/b", "/node")).await.unwrap();
    ca.revoke(RevokeTarget::Entry("e1".into())).await.unwrap();
    let late = ca.store.record(vec![ca.record("01", "/a", "e1", "n")]).await;
    assert!(matches!(late, Err(StoreError::Revoked)), "{late:?}");
    ca.issue("02", "/b", "e2", node.id.as_str()).await;
    let deleted = ca.store.delete_entry("e1").await.unwrap();
    let late = ca.store.record(vec![ca.record("03", "/a", "e1", "n")]).await;
    assert!(deleted && matches!(late, Err(StoreError::Revoked)), "{late:?}");
    // An administrator may make it anew.
    ca.store.create_entry(entry("e1", "/a", "/node")).await.unwrap();
    ca.issue("04", "/a", "e1", "n").await;
}

async fn lists_are_signed_when_something_is_new_and_at_half_of_their_life_with_growing_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    assert!(ca.publish(NOW).await, "an empty list");
    assert!(!ca.publish(NOW).await);
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    assert!(ca.store.has_unlisted().await.unwrap());
    assert!(ca.publish(NOW + 1).await);
    assert!(!ca.store.has_unlisted().await.unwrap());
    assert!(!ca.publish(NOW + 500).await);
    assert!(ca.publish(NOW + 501).await, "half of its life is over");
    let lists = ca.store.lists().await.unwrap();
    assert_eq!((lists.number, lists.lists.len(), lists.revoked["01"].number), (3, 1, 2));
    let crl = Crl::decode(&lists.lists[0].der).unwrap();
    assert_eq!((crl.number(), crl.len()), (&[3][..], 1));
    assert_eq!(crl.verify(ca.authority.certificate()), Ok(()));
    assert!(crl.next_update() > from_unix_secs(NOW + 501 + 500));
}

async fn numbers_go_on_after_a_restart_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.publish(NOW).await;
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    // It ends between the revocation and the list.
    let Opened { store, mut writer, authority } = ca;
    drop(store);
    writer.finished().await;
    let ca = Opened { authority, ..open(dir.path()).await };
    assert!(ca.store.has_unlisted().await.unwrap());
    assert!(ca.publish(NOW + 1).await);
    let lists = ca.store.lists().await.unwrap();
    assert_eq!((lists.number, lists.revoked.len()), (2, 1));
    assert_eq!(Crl::decode(&lists.lists[0].der).unwrap().len(), 1);
}

async fn a_long_list_comes_whole_and_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    for n in 1..=4 {
        ca.issue(&format!("0{n}"), "/a", "e", "n").await;
    }
    ca.revoke(RevokeTarget::Identity(id("/a"))).await.unwrap();
    ca.publish(NOW).await;
    let lists = ca.store.lists().await.unwrap().lists;
    let decoded: Vec<Crl> = lists.iter().map(|list| Crl::decode(&list.der).unwrap()).collect();
    assert_eq!(decoded.iter().map(Crl::len).collect::<Vec<_>>(), [4, 2, 2]);
    assert_eq!(decoded.iter().map(Crl::is_partial).collect::<Vec<_>>(), [false, true, true]);
    let index = identity::revocation::RevocationIndex::decode(lists[1..].iter().map(|list| &list.der)).unwrap();
    assert_eq!(index.lists().count(), 2, "parts stand side by side");
}

async fn only_what_has_not_expired_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    assert_eq!(ca.store.forget_revoked_before(NOW + 3_601).await.unwrap(), 0, "no list has told it yet");
    ca.publish(NOW).await;
    assert_eq!(ca.store.forget_revoked_before(NOW + 3_600).await.unwrap(), 0);
    assert_eq!(ca.store.forget_revoked_before(NOW + 3_601).await.unwrap(), 1);
    assert_eq!(ca.serials().await, [] as [&str; 0]);
}

async fn a_right_for_some_identities_revokes_these_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    let node = id("/spire/agent/join_token/n");
    ca.store.create_entry(entry("e1", "/pay/a", "/node")).await.unwrap();
    ca.store.create_entry(entry("e2", "/pay/b", "/node")).await.unwrap();
    ca.store.create_entry(entry("e3", "/other", "/node")).await.unwrap();
    ca.store.add_token("t", NOW + 60, None, NOW).await.unwrap();
    ca.issue("01", "/pay/a", "e1", node.as_str()).await;
    ca.issue("02", "/other", "e3", node.as_str()).await;
    // The entry was of another identity once.
    ca.issue("03", "/other", "e2", "n").await;
    ca.issue("04", "/pay/c", "e4", "n").await;
    let pay = Permit::of_paths("pay", Verb::Revoke, &["/pay/**"]);
    let revoke = async |target: RevokeTarget| {
        let preview = ca.store.may_revoke(&target, NOW, &pay).await.unwrap();
        let answer = ca.store.revoke(target, 1, NOW, &pay).await.unwrap();
        assert_eq!(preview, answer != RevokeAnswer::Beyond, "the preview says the same");
        answer
    };
    let once = RevokeAnswer::Done(RevokeOutcome { revoked: 1, already: 0, source_ended: false });
    for beyond in [
        serial("02"),
        RevokeTarget::Identity(id("/other")),
        RevokeTarget::Identity(id("/pay")),
        RevokeTarget::Entry("e3".into()),
        RevokeTarget::Entry("e2".into()),
        RevokeTarget::Node(node),
    ] {
        assert_eq!(revoke(beyond.clone()).await, RevokeAnswer::Beyond, "{beyond:?}");
    }
    assert_eq!(ca.serials().await, [] as [&str; 0]);
    assert!(ca.store.registry().entry("e2").unwrap().is_live(NOW), "nothing was done");
    assert_eq!(revoke(serial("04")).await, once);
    assert_eq!(revoke(serial("99")).await, RevokeAnswer::Unknown);
    let ended = RevokeAnswer::Done(RevokeOutcome { revoked: 1, already: 0, source_ended: true });
    assert_eq!(revoke(RevokeTarget::Entry("e1".into())).await, ended);
    ca.issue("05", "/pay/d", "e5", "n").await;
    assert_eq!(revoke(RevokeTarget::Identity(id("/pay/d"))).await, once);
    assert_eq!(ca.serials().await, ["01", "04", "05"]);
}

/// A keeper that answers when it is let, or not at all.
struct Keeper {
    key: PrivateKey,
    spki: Vec<u8>,
    asked: std::sync::mpsc::Sender<()>,
    let_go: std::sync::Mutex<std::sync::mpsc::Receiver<bool>>,
}

impl RemoteKey for Keeper {
    fn public_key_spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, _kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        self.asked.send(()).unwrap();
        let good = self.let_go.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
        if good { SigningKey::from(self.key.clone()).sign(message) } else { Err(RemoteKeyError) }
    }
}

/// A root whose key signs as it is told, who hears that it is asked, and who tells it.
fn kept_elsewhere() -> (Arc<X509Authority>, std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<bool>) {
    let ((asked, hears), (tells, let_go)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let key = PrivateKey::generate_p256().unwrap();
    let keeper = Keeper { spki: key.public_key_spki(), key, asked, let_go: std::sync::Mutex::new(let_go) };
    let key = SigningKey::elsewhere(Box::new(keeper)).unwrap();
    tells.send(true).unwrap();
    let root = X509Authority::root_of(&trust_domain(), key, Duration::from_secs(86_400), from_unix_secs(NOW)).unwrap();
    hears.recv().unwrap();
    (Arc::new(root), hears, tells)
}

fn plan(now: i64) -> ListPlan {
    ListPlan { now, life: 1_000, part_max: 3, url: "http://ca".into() }
}

async fn nobody_waits_for_a_slow_keeper_of_keys() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    let (slow, hears, tells) = kept_elsewhere();
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    let issuers = vec![ca.authority.clone(), slow.clone()];
    let due = ca.store.due_lists(0, issuers.clone(), plan(NOW)).await.unwrap().unwrap();
    let signing = tokio::task::spawn_blocking(move || due.sign());
    tokio::task::spawn_blocking(move || (hears.recv().unwrap(), hears)).await.unwrap();
    // It holds the signature back, and everything goes on: issuance, revocation, and lists of others.
    ca.issue("02", "/a", "e", "n").await;
    ca.revoke(serial("02")).await.unwrap();
    tells.send(true).unwrap();
    let signed = signing.await.unwrap();
    assert!(ca.store.publish_lists(signed).await.unwrap());
    let lists = ca.store.lists().await.unwrap();
    assert_eq!((lists.number, lists.lists.len()), (1, 2));
    assert_eq!((lists.revoked["01"].number, lists.revoked["02"].number), (1, 0), "what came later waits for the next");
    assert!(ca.publish(NOW).await);
    let lists = ca.store.lists().await.unwrap();
    assert_eq!((lists.number, lists.revoked["02"].number), (2, 2));
}

async fn lists_whose_number_is_taken_meanwhile_are_never_told() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    let early = ca.store.due_lists(0, vec![ca.authority.clone()], plan(NOW)).await.unwrap().unwrap().sign();
    ca.issue("02", "/a", "e", "n").await;
    ca.revoke(serial("02")).await.unwrap();
    assert!(ca.publish(NOW).await);
    assert!(!ca.store.publish_lists(early).await.unwrap());
    let lists = ca.store.lists().await.unwrap();
    assert_eq!((lists.number, Crl::decode(&lists.lists[0].der).unwrap().len()), (1, 2), "the list with both stands");
}

async fn a_key_that_is_away_holds_up_no_other_list() {
    let dir = tempfile::tempdir().unwrap();
    let ca = start(dir.path()).await;
    let (away, _hears, tells) = kept_elsewhere();
    ca.issue("01", "/a", "e", "n").await;
    ca.revoke(serial("01")).await.unwrap();
    for number in [1, 2] {
        tells.send(number == 2).unwrap();
        let issuers = vec![away.clone(), ca.authority.clone()];
        let due = ca.store.due_lists(number - 1, issuers, plan(NOW)).await.unwrap().unwrap();
        let signed = due.sign();
        assert_eq!(
            signed.failed.as_ref().map(|error| error.reason()),
            (number == 1).then_some("AUTHORITY_KEY_UNAVAILABLE")
        );
        assert!(ca.store.publish_lists(signed).await.unwrap());
        let lists = ca.store.lists().await.unwrap();
        assert_eq!((lists.number, lists.lists.len() as u64), (number, number));
        assert_eq!(lists.revoked["01"].number, 1);
    }
}

database::on_each_database! {
    a_right_for_some_identities_revokes_these_and_no_others,
    nobody_waits_for_a_slow_keeper_of_keys,
    lists_whose_number_is_taken_meanwhile_are_never_told,
    a_key_that_is_away_holds_up_no_other_list,
    one_is_revoked_by_serial_or_fingerprint_once_and_what_is_unknown_is_said,
    an_identity_an_entry_and_a_node_take_what_is_theirs_along,
    act_and_audit_record_are_one_and_an_act_without_effect_leaves_none,
    a_list_has_room_for_so_many_and_no_more,
    what_was_signed_before_a_revocation_is_not_handed_out_after_it,
    lists_are_signed_when_something_is_new_and_at_half_of_their_life_with_growing_numbers,
    numbers_go_on_after_a_restart_and_nothing_acknowledged_is_lost,
    a_long_list_comes_whole_and_in_parts,
    only_what_has_not_expired_is_kept,
}
