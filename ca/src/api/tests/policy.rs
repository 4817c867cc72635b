//! The issuance policy as those meet it who ask for SVIDs.

use std::path::Path;

use proto::kasbah::ca::v1::issuance_policy_client::IssuancePolicyClient;
use proto::kasbah::ca::v1::{ExplainRequest, ListRecordsRequest, audit_client::AuditClient};
use tonic_types::StatusExt;

use super::*;

const POLICY: &str = "\
default: deny
rules:
  - name: web
    ids: [/web]
    callers: [/node/local]
    ttl: {max: 1m}
    dns_names: ['*.svc']
  - name: ops
    ids: [/ops]
    callers: [local]
quotas:
  - {name: per-identity, by: identity, ids: [/web], limit: 3, per: 1h}
";

/// An authority with this policy, and the policy's file.
async fn start(policy: &str) -> (Running, std::path::PathBuf) {
    let ca = Running::start_with(|settings| {
        let file = settings.data_dir.parent().unwrap().join("policy.yaml");
        std::fs::write(&file, policy).unwrap();
        settings.policy_file = Some(file);
    });
    let ca = ca.await;
    let file = ca.path("policy.yaml");
    (ca, file)
}

#[tokio::test]
async fn nodes_get_what_a_rule_gives_them_and_no_more() {
    let (ca, _) = start(POLICY).await;
    let (local, other) = (ca.node(Some("/node/local")).await, ca.node(Some("/node/other")).await);
    let web = ca.entry_with("/web", "/node/local", |entry| entry.dns_names = vec!["web.svc".into()]).await.unwrap();
    let elsewhere = ca.entry("/web", "/node/other").await;
    let named = ca.entry_with("/web", "/node/local", |entry| {
        entry.dns_names = vec!["bank.example.org".into()];
        entry.selectors = vec![types::Selector { r#type: "unix".into(), value: "uid:7".into() }];
    });
    let (named, unruled) = (named.await.unwrap(), ca.entry("/db", "/node/local").await);
    let mut outcomes = issue(&ca, &local, &[&web, &named, &unruled]).await;
    assert_eq!(
        outcomes.split_off(1).into_iter().map(Result::unwrap_err).collect::<Vec<_>>(),
        [Code::PermissionDenied; 2]
    );
    let svid = outcomes.remove(0).unwrap();
    let life = svid.not_after().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(life <= Duration::from_secs(60), "the rule's maximum: {life:?}");
    assert_eq!(issue(&ca, &other, &[&elsewhere]).await.remove(0).unwrap_err(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_used_up_quota_names_itself_and_says_when_to_ask_again() {
    let (ca, _) = start(POLICY).await;
    let node = ca.node(Some("/node/local")).await;
    let web = ca.entry("/web", "/node/local").await;
    let outcomes = issue(&ca, &node, &[&web, &web, &web, &web]).await;
    assert!(outcomes[..3].iter().all(Result::is_ok));
    assert_eq!(*outcomes[3].as_ref().unwrap_err(), Code::ResourceExhausted);
    let request = NewJwtsvidRequest { entry_id: web, audience: vec!["db".into()] };
    let refused = SvidClient::new(ca.network(Some(&node))).new_jwtsvid(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(runtime::refusal::reason_of(&refused).as_deref(), Some("ISSUANCE_QUOTA_EXCEEDED"));
    let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_secs(1_100)..=Duration::from_secs(1_200)).contains(&wait), "{wait:?}");
    assert!(refused.message().contains("quota `per-identity` of 3 in 1h"), "{}", refused.message());
}

/// The cores share a large batch; the quota counts as if one did it all, and each item has its own outcome at its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_is_answered_in_order_and_counted_in_order() {
    let quota = "default: allow\nquotas:\n  - {name: per-node, by: node, limit: 60, per: 1h}\n";
    let (ca, _) = start(quota).await;
    let node = ca.node(Some("/node/local")).await;
    let (web, db) = (ca.entry("/web", "/node/local").await, ca.entry("/db", "/node/local").await);
    let before = ca.certifier.store.issued_count().await.unwrap();
    let entries: Vec<&str> = (0..100).map(|n| [web.as_str(), db.as_str(), "nobody", web.as_str()][n % 4]).collect();
    let outcomes = issue(&ca, &node, &entries).await;
    let mut given = 0;
    for (entry, outcome) in entries.into_iter().zip(outcomes) {
        if entry == "nobody" {
            assert_eq!(outcome.unwrap_err(), Code::NotFound, "it uses up nothing");
            continue;
        }
        given += 1;
        if given > 60 {
            assert_eq!(outcome.unwrap_err(), Code::ResourceExhausted, "the first sixty have it");
            continue;
        }
        let expected = if entry == web { id("/web") } else { id("/db") };
        assert_eq!(*outcome.unwrap().id(), expected);
    }
    assert_eq!(
        ca.certifier.store.issued_count().await.unwrap(),
        before + 60,
        "what was given is on record, nothing else"
    );
}

#[tokio::test]
async fn administrators_are_judged_too_and_refusals_are_on_record() {
    let (ca, _) = start(POLICY).await;
    ca.mint("/ops").await;
    let key = PrivateKey::generate_p256().unwrap();
    let csr = key.csr_der(Some(&id("/db"))).unwrap();
    let request = proto::spire::api::server::svid::v1::MintX509svidRequest { csr, ttl: 0 };
    let refused = SvidClient::new(ca.local().await).mint_x509svid(request).await;
    assert_eq!(reason(refused), "ISSUANCE_NOT_ALLOWED");
    let mut audit = AuditClient::new(ca.local().await);
    let records = audit.list_records(ListRecordsRequest::default()).await.unwrap().into_inner().records;
    assert!(records.iter().any(|record| record.reason == "ISSUANCE_NOT_ALLOWED" && record.action == "issue.mint_x509"));
}

#[tokio::test]
async fn a_policy_is_followed_and_a_bad_one_is_not() {
    let (ca, file) = start(POLICY).await;
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let status = || async {
        let (_, body) = runtime::ask::get(ca.addresses.admin.unwrap(), "/status").await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()["issuance_policy"].as_str().unwrap().to_owned()
    };
    let wait_for = async |wanted: &dyn Fn(&str) -> bool| {
        let begun = std::time::Instant::now();
        loop {
            let seen = status().await;
            if wanted(&seen) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{seen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    write("default: deny\nrules: nonsense\n");
    wait_for(&|seen| seen.contains("policy.yaml:2:")).await;
    ca.mint("/ops").await;
    write("default: allow\n");
    wait_for(&|seen| seen == "OK").await;
    ca.mint("/db").await;
}

#[tokio::test]
async fn an_authority_does_not_start_with_a_policy_that_says_nothing_possible() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = crate::testing::running::settings(dir.path());
    settings.policy_file = Some(Path::new("/nonexistent/policy.yaml").into());
    let built = settings.build(runtime::logs::LogControl::detached(), runtime::shutdown::Shutdown::new()).await;
    assert_eq!(built.unwrap_err().reason(), "ISSUANCE_POLICY_UNREADABLE");
}

#[tokio::test]
async fn an_explanation_says_what_would_happen() {
    let (ca, _) = start(POLICY).await;
    let node = ca.node(Some("/node/local")).await;
    let mut client = IssuancePolicyClient::new(ca.local().await);
    let ask = |caller: String, dns: &str| ExplainRequest {
        spiffe_id: id("/web").to_string(),
        caller,
        dns_names: vec![dns.into()],
        ..Default::default()
    };
    let answer = client.explain(ask(node.id().to_string(), "a.svc")).await.unwrap().into_inner();
    assert!(answer.allowed && answer.rule == "web" && answer.ttl == 60, "by the alias of the node: {answer:?}");
    let answer = client.explain(ask(node.id().to_string(), "a.org")).await.unwrap().into_inner();
    assert_eq!((answer.allowed, answer.reason.as_str()), (false, "ISSUANCE_DNS_NAME_NOT_ALLOWED"));
    let answer = client.explain(ask("local".into(), "a.svc")).await.unwrap().into_inner();
    assert!(!answer.allowed && answer.text.contains("rule `web` gives it to /node/local"), "{answer:?}");
    let mut node = IssuancePolicyClient::new(ca.network(Some(&node)));
    assert_eq!(reason(node.explain(ask("local".into(), "a.svc")).await), "CALLER_NOT_ADMIN");
}
