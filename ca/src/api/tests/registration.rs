//! Many changes of entries at once: all, or none.

use proto::kasbah::ca::v1::ApplyEntriesRequest;
use proto::kasbah::ca::v1::registration_client::RegistrationClient;

use super::*;
use crate::api::registration::APPLY_ITEMS_MAX;
use crate::store::AuditFilter;

fn named(id: &str, path: &str) -> types::Entry {
    types::Entry { id: id.into(), ..entry_message(path, "/node") }
}

async fn apply(ca: &Running, request: ApplyEntriesRequest) -> Vec<(String, Code)> {
    let answer = RegistrationClient::new(ca.local().await).apply_entries(request).await.unwrap().into_inner();
    answer.refused.into_iter().map(|refused| (refused.id, Code::from(refused.status.unwrap().code))).collect()
}

fn there(ca: &Running) -> BTreeMap<String, String> {
    let registry = ca.certifier.store.registry();
    registry.entries_after("").map(|entry| (entry.id.clone(), entry.spiffe_id.path().to_owned())).collect()
}

async fn changes_are_made_together_or_not_at_all() {
    let ca = Running::start().await;
    let wanted = |names: &[(&str, &str)]| -> BTreeMap<String, String> {
        names.iter().map(|(id, path)| ((*id).to_owned(), (*path).to_owned())).collect()
    };
    let create = vec![named("a", "/a"), named("b", "/b"), named("c", "/c")];
    assert_eq!(apply(&ca, ApplyEntriesRequest { create, ..Default::default() }).await, []);
    let before = there(&ca);
    assert_eq!(before, wanted(&[("a", "/a"), ("b", "/b"), ("c", "/c")]));
    let revision = ca.certifier.store.registry().entries_revision();
    let audited = acts(&ca).await;
    let whole = ApplyEntriesRequest {
        update: vec![named("a", "/a2")],
        create: vec![named("d", "/d"), named("e", "/e")],
        delete: vec!["b".into()],
    };
    // Each is refused by another rule, and each after something that would be good.
    let refusals = [
        (
            ApplyEntriesRequest { create: vec![named("d", "/d"), named("e", "/c")], ..whole.clone() },
            "e",
            Code::AlreadyExists,
        ),
        (
            ApplyEntriesRequest { create: vec![named("d", "/d"), named("c", "/x")], ..whole.clone() },
            "c",
            Code::AlreadyExists,
        ),
        (
            ApplyEntriesRequest { update: vec![named("a", "/a2"), named("b", "/c")], ..whole.clone() },
            "b",
            Code::AlreadyExists,
        ),
        (
            ApplyEntriesRequest { update: vec![named("a", "/a2"), named("z", "/z")], ..whole.clone() },
            "z",
            Code::NotFound,
        ),
        (ApplyEntriesRequest { delete: vec!["b".into(), "z".into()], ..whole.clone() }, "z", Code::NotFound),
        (ApplyEntriesRequest { delete: vec!["b".into(), "b".into()], ..whole.clone() }, "b", Code::NotFound),
        (
            ApplyEntriesRequest { create: vec![named("d", "/d"), named("e", "no path")], ..whole.clone() },
            "e",
            Code::InvalidArgument,
        ),
    ];
    for (request, id, code) in refusals {
        assert_eq!(apply(&ca, request.clone()).await, [(id.to_owned(), code)], "{request:?}");
        assert_eq!(there(&ca), before, "{request:?}");
    }
    assert_eq!(ca.certifier.store.registry().entries_revision(), revision, "nothing was counted");
    assert_eq!(acts(&ca).await, audited, "no act without effect");
    assert_eq!(apply(&ca, whole).await, []);
    let after = wanted(&[("a", "/a2"), ("c", "/c"), ("d", "/d"), ("e", "/e")]);
    assert_eq!(there(&ca), after);
    assert_eq!(acts(&ca).await, audited + 4, "each act is on record");
    assert_eq!(there(&ca.restart().await), after);
}

/// How many acts on entries the audit trail has that were done.
async fn acts(ca: &Running) -> usize {
    let trail = ca.certifier.store.audit(&AuditFilter { action: "entry".into(), ..Default::default() }, 1_000).await;
    trail.unwrap().iter().filter(|record| !record.is_refusal()).count()
}

async fn a_request_has_a_size() {
    let ca = Running::start().await;
    let many = |count: usize| ApplyEntriesRequest {
        create: (0..count).map(|n| named(&format!("e{n}"), &format!("/w/{n}"))).collect(),
        ..Default::default()
    };
    let answer = RegistrationClient::new(ca.local().await).apply_entries(many(APPLY_ITEMS_MAX + 1)).await;
    assert_eq!(reason(answer), "BATCH_TOO_LARGE");
    assert_eq!(apply(&ca, many(APPLY_ITEMS_MAX)).await, []);
    assert_eq!(there(&ca).len(), APPLY_ITEMS_MAX);
}

crate::testing::database::on_each_database! {
    changes_are_made_together_or_not_at_all,
    a_request_has_a_size,
}
