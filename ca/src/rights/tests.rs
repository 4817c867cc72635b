//! Rights as they are written, and as callers over TLS and at the local socket meet them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use identity::svid::X509Svid;
use prost::Message as _;
use proto::kasbah::ca::v1::revocation_client::RevocationClient;
use proto::kasbah::ca::v1::revocation_target::Target;
use proto::kasbah::ca::v1::rights_client::RightsClient;
use proto::kasbah::ca::v1::{
    DecideApprovalRequest, ExplainRightsRequest, ListApprovalsRequest, PreviewRequest, RevocationTarget, RevokeRequest,
};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{BanAgentRequest, CreateJoinTokenRequest, ListAgentsRequest};
use proto::spire::api::server::bundle::v1::BatchSetFederatedBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::debug::v1::GetInfoRequest;
use proto::spire::api::server::debug::v1::debug_client::DebugClient;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest, GetEntryRequest,
    ListEntriesRequest,
};
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::localauthority::v1::{GetX509AuthorityStateRequest, PrepareX509AuthorityRequest};
use proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use proto::spire::api::server::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use proto::spire::api::types::{self, LogLevel};
use runtime::logs::LogControl;
use tonic::{Code, Status};

use super::approvals::APPROVALS_MAX;
use super::*;
use crate::api::{Api, Origin, ServerFacts};
use crate::audit::LocalPeer;
use crate::server_svid::ServerSvid;
use crate::store::{Approval, Asked, AuditFilter};
use crate::testing::database;
use crate::testing::id;
use crate::testing::running::{Running, entry_message, id_message, reason, until};

const FILE: &str = "
roles:
  payments:
    entry.read: [/ns/payments/**]
    entry.write: [/ns/payments/**]
    node.read: [/**]
    token.create: [/node/payments/*]
  rotator:
    authority.rotate:
    authority.read: []
grants:
  - {ids: [/ops/pay], roles: [payments]}
  - {ids: [/ops/root/*], users: [1000], roles: [rotator]}
  - {groups: [50], roles: [payments]}
";

fn parse(text: &str) -> Result<Rights, String> {
    Rights::parse(Path::new("r.yaml"), text).map_err(|error| error.to_string())
}

#[test]
fn roles_are_verbs_for_identities() {
    let rights = parse(FILE).unwrap();
    assert_eq!(rights.counts(), (2, 3));
    let allowed = |subject: &str, verb: &str, spiffe_id: Option<&str>| {
        let subject = Subject::parse(subject).unwrap();
        let verdict = rights.explain(&subject, Verb::parse(verb).unwrap(), spiffe_id.map(id).as_ref());
        assert_eq!(verdict.allowed, !verdict.role.is_empty(), "{verdict:?}");
        verdict.allowed
    };
    let pay = "spiffe://example.org/ops/pay";
    assert!(allowed(pay, "entry.write", Some("/ns/payments/sa/api")));
    assert!(!allowed(pay, "entry.write", Some("/ns/payments")) && !allowed(pay, "entry.write", Some("/ns/other/sa/x")));
    assert!(!allowed(pay, "entry.write", None), "for certain ones is not for all");
    assert!(allowed(pay, "node.read", None) && !allowed(pay, "node.ban", None));
    assert!(allowed("spiffe://example.org/ops/root/a", "authority.rotate", None));
    assert!(!allowed("spiffe://example.org/ops/root", "authority.rotate", None));
    assert!(allowed("uid:1000", "authority.rotate", None) && !allowed("uid:1001", "authority.rotate", None));
    assert!(allowed("gid:50", "entry.read", Some("/ns/payments/x")) && !allowed("gid:1000", "authority.rotate", None));
    for bad in ["", "local", "uid:", "uid:-1", "uid:x", "ops", "gid:4294967296"] {
        assert_eq!(Subject::parse(bad), None, "{bad}");
    }
}

#[test]
fn nodes_and_servers_are_nobodys_administrators() {
    let rights = parse("roles: {all: {authority.rotate: }}\ngrants: [{ids: [/**], roles: [all]}]").unwrap();
    let may = |path: &str| rights.permit(&Subject::Id(id(path)), "x", Verb::AuthorityRotate).is_some();
    assert!(may("/ops") && !may("/spire/agent/join_token/a") && !may("/spire/server"));
}

#[test]
fn what_is_unclear_is_refused_with_its_place() {
    for (text, expected) in [
        ("roles: {a: {entry.write: }}", "r.yaml:1:13: `entry.write` needs the identities"),
        ("roles: {a: {entry.write: []}}", "needs the identities"),
        ("roles: {a: {authority.rotate: [/x]}}", "`authority.rotate` is not for identities"),
        ("roles:\n  a:\n    entry.wirte: [/**]", "r.yaml:3:5: there is no verb \"entry.wirte\"; there are entry.read"),
        ("roles: {a: {mint: [/ns/pay-*]}}", "a star beside other letters"),
        ("roles: {}\ngrants: [{ids: [/x], roles: [a]}]", "there is no role \"a\""),
        ("roles: {a: {audit.read: }}\ngrants: [{roles: [a]}]", "a grant needs `ids`, `users` or `groups`"),
        ("roles: {}\ntwo_person: [authority]", "there is no verb"),
        ("roles: {}\napproval_life: 59s", "`approval_life` must be from 1m to 24h"),
        ("roles: {}\nrole: {}", "role"),
        ("grants: []", "roles"),
        ("roles: {\"\": {}}", "a role's name has 1 to 128 bytes"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let named = |bytes: usize| parse(&format!("roles: {{{}: {{}}}}", "x".repeat(bytes)));
    assert!(named(128).is_ok() && named(129).is_err());
    assert!(parse("roles: {}\napproval_life: 1m").is_ok() && parse("roles: {}\napproval_life: 24h").is_ok());
}

#[test]
fn the_file_has_a_size() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.yaml");
    let write = |bytes: u64| {
        let text = "roles: {}\n#";
        let rest = usize::try_from(bytes).unwrap() - text.len();
        std::fs::write(&file, format!("{text}{}", "x".repeat(rest))).unwrap();
        Rights::load(&file)
    };
    assert!(write(document::KIND.bytes_max).is_ok());
    let refused = write(document::KIND.bytes_max + 1).unwrap_err();
    assert_eq!(refused.reason(), "RIGHTS_UNREADABLE");
    assert!(
        refused.to_string().ends_with("r.yaml: the rights file cannot be read: it has more than 1048576 bytes"),
        "{refused}"
    );
    std::fs::write(&file, b"roles: {}\n# \xff\n").unwrap();
    let refused = Rights::load(&file).unwrap_err().to_string();
    assert!(refused.ends_with("the rights file cannot be read: it is not UTF-8"), "{refused}");
}

#[test]
fn verbs_have_one_name_each() {
    for verb in Verb::ALL {
        assert_eq!(Verb::parse(verb.as_str()), Some(verb));
    }
    assert_eq!(Verb::ALL.into_iter().collect::<BTreeSet<_>>().len(), Verb::ALL.len());
}

/// An authority with a rights file, which is at `rights.yaml` of its folder.
async fn with_rights(text: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.keep().join("rights.yaml");
    std::fs::write(&file, text).unwrap();
    Running::start_with(|settings| settings.rights_file = Some(file)).await
}

async fn create(ca: &Running, who: &Arc<X509Svid>, entry: types::Entry) -> (i32, String) {
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let answer = EntryClient::new(ca.network(Some(who))).batch_create_entry(request).await.unwrap().into_inner();
    let result = answer.results.into_iter().next().unwrap();
    let status = result.status.unwrap();
    (status.code, result.entry.map_or(status.message, |entry| entry.id))
}

async fn whoever_has_some_entries_has_no_others() {
    let ca = with_rights(FILE).await;
    let pay = ca.mint("/ops/pay").await;
    let denied = Code::PermissionDenied as i32;
    let (code, own) = create(&ca, &pay, entry_message("/ns/payments/sa/api", "/node")).await;
    assert_eq!(code, 0, "{own}");
    let (code, text) = create(&ca, &pay, entry_message("/ns/other/sa/api", "/node")).await;
    assert_eq!(code, denied);
    assert!(
        text.contains(
            "spiffe://example.org/ops/pay lacks the right `entry.write` for spiffe://example.org/ns/other/sa/api"
        ),
        "{text}"
    );
    let mut rises = entry_message("/ns/payments/sa/boss", "/node");
    rises.admin = true;
    let (code, text) = create(&ca, &pay, rises.clone()).await;
    assert!(code == denied && text.contains("`entry.admin`"), "{text}");

    let foreign = ca.entry("/ns/other/sa/web", "/node").await;
    let boss = ca.entry_with("/ns/payments/sa/chief", "/node", |entry| entry.admin = true).await.unwrap();
    let mut client = EntryClient::new(ca.network(Some(&pay)));
    let listed = client.list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries;
    let mut seen: Vec<_> = listed.iter().map(|entry| entry.id.clone()).collect();
    seen.sort();
    let mut expected = vec![own.clone(), boss.clone()];
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(client.count_entries(CountEntriesRequest::default()).await.unwrap().into_inner().count, 2);
    let get = GetEntryRequest { id: foreign.clone(), output_mask: None };
    assert_eq!(reason(client.get_entry(get).await), "RIGHT_MISSING");
    let delete = BatchDeleteEntryRequest { ids: vec![foreign.clone(), boss.clone()] };
    let results = client.batch_delete_entry(delete).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| result.status.as_ref().unwrap().code == denied), "{results:?}");
    // Neither out of what is his, nor into it, nor up.
    let moved = types::Entry { id: own.clone(), ..entry_message("/ns/other/sa/x", "/node") };
    let taken = types::Entry { id: foreign, ..entry_message("/ns/payments/sa/x", "/node") };
    let raised = types::Entry { id: own.clone(), ..rises };
    let update = BatchUpdateEntryRequest { entries: vec![moved, taken, raised], input_mask: None, output_mask: None };
    let results = client.batch_update_entry(update).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| result.status.as_ref().unwrap().code == denied), "{results:?}");

    let mut agents = AgentClient::new(ca.network(Some(&pay)));
    agents.list_agents(ListAgentsRequest::default()).await.unwrap();
    let ban = BanAgentRequest { id: Some(id_message("/spire/agent/join_token/x")) };
    assert_eq!(reason(agents.ban_agent(ban).await), "RIGHT_MISSING");
    let token =
        |alias: Option<&str>| CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id: alias.map(id_message) };
    agents.create_join_token(token(Some("/node/payments/a"))).await.unwrap();
    for alias in [None, Some("/node/a")] {
        assert_eq!(reason(agents.create_join_token(token(alias)).await), "RIGHT_MISSING", "{alias:?}");
    }
    ca.certifier.refusals.flush(&ca.certifier.store).await.unwrap();
    let filter = AuditFilter { actor: pay.id().to_string(), ..AuditFilter::default() };
    let audit = ca.certifier.store.audit(&filter, 100).await.unwrap();
    for action in ["entry.create", "entry.delete", "entry.update", "node.ban", "token.create"] {
        let refused = audit.iter().any(|record| record.action == action && record.reason == "RIGHT_MISSING");
        assert!(refused, "{action}: {audit:?}");
    }
    let stranger = ca.mint("/ns/default/sa/web").await;
    let refused = EntryClient::new(ca.network(Some(&stranger))).list_entries(ListEntriesRequest::default()).await;
    assert_eq!(reason(refused), "CALLER_NOT_ADMIN");
}

async fn a_new_file_is_followed_and_a_bad_one_changes_nothing() {
    let ca = with_rights(FILE).await;
    let pay = ca.mint("/ops/pay").await;
    let file = ca.settings.rights_file.clone().unwrap();
    let list = async || EntryClient::new(ca.network(Some(&pay))).list_entries(ListEntriesRequest::default()).await;
    list().await.unwrap();
    std::fs::write(&file, "roles: {a: {entry.read: }}").unwrap();
    let told = async || ca.certifier.rights.problem().is_some();
    until("the bad file is noticed", Duration::from_secs(30), told).await;
    list().await.unwrap();
    std::fs::write(&file, "roles: {}").unwrap();
    until("the right is gone", Duration::from_secs(30), async || list().await.is_err()).await;
    assert!(ca.certifier.rights.problem().is_none());
    assert_eq!(reason(list().await), "CALLER_NOT_ADMIN");
}

/// The API as a process of this user meets it at the local socket.
fn local_user(ca: &Running, uid: u32, gid: u32) -> axum::Router {
    let svid = Arc::new(ServerSvid::new(ca.certifier.clone(), &[]));
    let facts = Arc::new(ServerFacts::new(svid, LogControl::detached()));
    let api = Api::new(ca.certifier.clone(), Origin::Local, facts);
    api.router().layer(axum::Extension(LocalPeer { pid: 1, uid, gid }))
}

async fn local_users_have_what_is_granted_to_them() {
    let ca = with_rights(FILE).await;
    let mode = std::fs::metadata(&ca.addresses.admin_socket).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o666, "the kernel tells who each is");
    let entries =
        async |uid, gid| EntryClient::new(local_user(&ca, uid, gid)).list_entries(ListEntriesRequest::default()).await;
    entries(0, 7).await.unwrap();
    entries(4_000, 50).await.unwrap();
    assert_eq!(reason(entries(1_000, 7).await), "RIGHT_MISSING");
    assert_eq!(reason(entries(1_001, 7).await), "CALLER_NOT_ADMIN");
    let mut rotator = LocalAuthorityClient::new(local_user(&ca, 1_000, 7));
    rotator.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap();
}

async fn whoever_may_revoke_some_identities_revokes_no_others() {
    let file = "roles: {pay: {revoke: [/ns/payments/**]}}\ngrants: [{ids: [/ops/pay], roles: [pay]}]";
    let ca = with_rights(file).await;
    let pay = ca.mint("/ops/pay").await;
    let (own, other) = (ca.mint("/ns/payments/sa/api").await, ca.mint("/ns/other/sa/api").await);
    let entry = ca.entry("/ns/other/sa/web", "/node").await;
    let target = |target| Some(RevocationTarget { target: Some(target) });
    let revoke = async |wanted: Target| {
        let mut client = RevocationClient::new(ca.network(Some(&pay)));
        let preview = client.preview(PreviewRequest { target: target(wanted.clone()) }).await;
        let done = client.revoke(RevokeRequest { target: target(wanted), reason: 1 }).await;
        assert_eq!(preview.is_ok(), done.is_ok());
        done
    };
    for beyond in [
        Target::Serial(other.serial().into()),
        Target::SpiffeId(other.id().to_string()),
        Target::EntryId(entry),
        Target::NodeId(id("/spire/agent/x/y").to_string()),
    ] {
        assert_eq!(reason(revoke(beyond).await), "RIGHT_MISSING");
    }
    assert!(!ca.certifier.revocations.current().is_revoked(other.serial()));
    assert_eq!(revoke(Target::Serial(own.serial().into())).await.unwrap().into_inner().revoked, 1);
    assert!(ca.certifier.revocations.current().is_revoked(own.serial()));
}

async fn prepare(ca: &Running, who: &Arc<X509Svid>) -> Result<(), Status> {
    let mut client = LocalAuthorityClient::new(ca.network(Some(who)));
    client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.map(|_| ())
}

async fn decide(ca: &Running, who: &Arc<X509Svid>, id: &str, approve: bool) -> Result<(), Status> {
    let request = DecideApprovalRequest { id: id.into(), approve };
    RightsClient::new(ca.network(Some(who))).decide_approval(request).await.map(|_| ())
}

async fn waiting(ca: &Running, who: &Arc<X509Svid>) -> Vec<proto::kasbah::ca::v1::Approval> {
    let answer = RightsClient::new(ca.network(Some(who))).list_approvals(ListApprovalsRequest {}).await;
    answer.unwrap().into_inner().approvals
}

async fn what_needs_two_persons_waits_for_the_second() {
    let ca = with_rights(&format!("{FILE}two_person: [authority.rotate]\n")).await;
    let (one, two, pay) = (ca.mint("/ops/root/one").await, ca.mint("/ops/root/two").await, ca.mint("/ops/pay").await);
    let refused = prepare(&ca, &one).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let told = refused.message().to_owned();
    assert_eq!(reason::<()>(Err(refused)), "APPROVAL_NEEDED");
    assert_eq!(prepare(&ca, &one).await.unwrap_err().message(), told, "asked again it is the same request");
    assert_eq!(reason(prepare(&ca, &pay).await), "RIGHT_MISSING", "who may not, cannot ask either");
    let listed = waiting(&ca, &two).await;
    assert_eq!(
        (listed.len(), listed[0].requester.as_str(), listed[0].verb.as_str()),
        (1, one.id().as_str(), "authority.rotate")
    );
    assert!(listed[0].call.ends_with("LocalAuthority/PrepareX509Authority") && told.contains(&listed[0].id));
    assert!(waiting(&ca, &pay).await.is_empty(), "who has not the right sees nothing of it");
    let id = listed[0].id.clone();
    assert_eq!(reason(decide(&ca, &one, &id, true).await), "APPROVAL_SAME_PERSON");
    assert_eq!(reason(decide(&ca, &pay, &id, true).await), "RIGHT_MISSING");
    assert_eq!(reason(decide(&ca, &two, "nothing", true).await), "APPROVAL_UNKNOWN");
    decide(&ca, &two, &id, true).await.unwrap();
    assert_eq!(reason(decide(&ca, &two, &id, true).await), "APPROVAL_DECIDED");
    assert_eq!(reason(prepare(&ca, &two).await), "APPROVAL_NEEDED", "it is the first one's approval");
    prepare(&ca, &one).await.unwrap();
    assert_eq!(reason(prepare(&ca, &one).await), "APPROVAL_NEEDED", "once");
    let mine = waiting(&ca, &one).await.into_iter().find(|approval| approval.requester == one.id().as_str()).unwrap();
    decide(&ca, &two, &mine.id, false).await.unwrap();
    assert!(waiting(&ca, &two).await.iter().all(|approval| approval.id != mine.id));
    // Root is bound by it too.
    let mut local = LocalAuthorityClient::new(ca.local().await);
    assert_eq!(reason(local.prepare_x509_authority(PrepareX509AuthorityRequest {}).await), "APPROVAL_NEEDED");
    let audit = ca.certifier.store.audit(&AuditFilter::default(), 100).await.unwrap();
    let done = |action: &str, actor: &str| audit.iter().any(|record| record.action == action && record.actor == actor);
    assert!(done("approval.request", one.id().as_str()) && done("approval.approve", two.id().as_str()));
    assert!(done("approval.use", one.id().as_str()) && done("rotation.prepare", one.id().as_str()));
    assert!(done("approval.deny", two.id().as_str()));
    let used = audit.iter().find(|record| record.action == "approval.use").unwrap();
    assert!(used.detail.starts_with(&format!("approved by {}", two.id())), "{used:?}");
}

async fn a_request_that_waits_has_a_size() {
    let ca = with_rights("roles: {}\ntwo_person: [bundle.write]").await;
    let request = |asn1: usize| {
        let root = types::X509Certificate { asn1: vec![0; asn1], tainted: false };
        let bundle = types::Bundle { x509_authorities: vec![root], ..types::Bundle::default() };
        BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None }
    };
    let frame = 5;
    let around = request(3 << 20).encoded_len() - (3 << 20);
    let fits = gate::MESSAGE_BYTES_MAX - frame - around;
    for (asn1, expected) in [(fits, "APPROVAL_NEEDED"), (fits + 1, "REQUEST_TOO_LARGE")] {
        let answer = BundleClient::new(ca.local().await).batch_set_federated_bundle(request(asn1)).await;
        assert_eq!(reason(answer), expected, "{asn1}");
    }
}

async fn requests_for_approval_are_limited_and_end() {
    let ca = Running::start().await;
    let caller = crate::api::Caller { who: crate::api::Who::Local, source: crate::audit::Source::Unknown, call: None };
    let ask = async |number: usize, now: i64| {
        let approval = Approval {
            id: format!("id-{number}"),
            verb: "mint".into(),
            call: "/x/y".into(),
            digest: format!("digest-{number}"),
            requester: "local".into(),
            source: "-".into(),
            request: String::new(),
            approver: String::new(),
            requested_at: now,
            expires_at: now + 60,
        };
        let record = || ca.certifier.record_of(&caller, crate::audit::Act::new("approval.request", "x"));
        ca.certifier.store.ask_approval(approval, [record(), record()], now).await.unwrap()
    };
    for number in 0..APPROVALS_MAX {
        assert_eq!(ask(number, 100).await, Asked::Waits { id: format!("id-{number}") });
    }
    assert_eq!(ask(APPROVALS_MAX, 100).await, Asked::Full);
    assert_eq!(ask(0, 159).await, Asked::Waits { id: "id-0".into() });
    assert_eq!(ca.certifier.store.approvals(160).await.unwrap().len(), 0);
    assert_eq!(ask(APPROVALS_MAX, 160).await, Asked::Waits { id: format!("id-{APPROVALS_MAX}") });
}

async fn rights_are_explained_over_the_api() {
    let ca = with_rights(FILE).await;
    ca.entry_with("/ops/chief", "/node", |entry| entry.admin = true).await.unwrap();
    let mut client = RightsClient::new(ca.local().await);
    let mut ask = async |subject: &str, verb: &str, spiffe_id: &str| {
        let request = ExplainRightsRequest { subject: subject.into(), verb: verb.into(), spiffe_id: spiffe_id.into() };
        client.explain(request).await.map(|answer| answer.into_inner())
    };
    let pay = "spiffe://example.org/ops/pay";
    let yes = ask(pay, "entry.write", "spiffe://example.org/ns/payments/sa/x").await.unwrap();
    assert_eq!((yes.allowed, yes.role.as_str()), (true, "payments"));
    let no = ask(pay, "entry.write", "spiffe://example.org/ns/other/sa/x").await.unwrap();
    assert!(!no.allowed && no.text.contains("but not for"), "{no:?}");
    assert!(ask("spiffe://example.org/ops/chief", "authority.revoke", "").await.unwrap().allowed);
    assert!(ask("local", "authority.revoke", "").await.unwrap().allowed);
    assert_eq!(reason(ask(pay, "everything", "").await), "FILTER_INVALID");
    assert_eq!(reason(ask("nobody", "mint", "").await), "FILTER_INVALID");
}

async fn the_server_tells_of_itself_and_its_log_level_is_set() {
    let ca = Running::start().await;
    ca.node(Some("/node/local")).await;
    let info = DebugClient::new(ca.local().await).get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.agents_count, info.entries_count, info.federated_bundles_count), (1, 1, 0));
    let server = info.svid_chain[0].id.clone().unwrap();
    assert_eq!((server.trust_domain.as_str(), server.path.as_str()), ("example.org", "/spire/server"));
    assert!(info.svid_chain.len() > 1 && info.svid_chain[0].expires_at > 0);
    let mut client = LoggerClient::new(ca.local().await);
    let logger = client.get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!((logger.current_level(), logger.launch_level()), (LogLevel::Info, LogLevel::Info));
    let set = |level: LogLevel| SetLogLevelRequest { new_level: level.into() };
    for (level, expected) in [
        (LogLevel::Trace, LogLevel::Trace),
        (LogLevel::Debug, LogLevel::Debug),
        (LogLevel::Warn, LogLevel::Warn),
        (LogLevel::Fatal, LogLevel::Error),
    ] {
        let logger = client.set_log_level(set(level)).await.unwrap().into_inner();
        assert_eq!((logger.current_level(), logger.launch_level()), (expected, LogLevel::Info));
    }
    assert_eq!(reason(client.set_log_level(set(LogLevel::Unspecified)).await), "FILTER_INVALID");
    assert_eq!(reason(client.set_log_level(SetLogLevelRequest { new_level: 99 }).await), "FILTER_INVALID");
    let logger = client.reset_log_level(ResetLogLevelRequest {}).await.unwrap().into_inner();
    assert_eq!(logger.current_level(), LogLevel::Info);
}

async fn health_and_reflection_include_every_service() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ca = Running::start().await;
    let mut health = HealthClient::new(ca.network(None));
    for service in std::iter::once("").chain(table::services()) {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        tokio_stream::once(ServerReflectionRequest { host: String::new(), message_request })
    };
    let refused = ServerReflectionClient::new(ca.network(None)).server_reflection_info(request()).await;
    assert_eq!(reason(refused.map(|_| ())), "CLIENT_CERTIFICATE_MISSING");
    let answer = ServerReflectionClient::new(ca.local().await).server_reflection_info(request()).await;
    let answer = answer.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else { panic!("{answer:?}") };
    let listed: BTreeSet<String> = listed.service.into_iter().map(|service| service.name).collect();
    for service in table::services() {
        assert!(listed.contains(service), "{service} in {listed:?}");
    }
}

database::on_each_database! {
    whoever_has_some_entries_has_no_others,
    whoever_may_revoke_some_identities_revokes_no_others,
    a_new_file_is_followed_and_a_bad_one_changes_nothing,
    local_users_have_what_is_granted_to_them,
    what_needs_two_persons_waits_for_the_second,
    a_request_that_waits_has_a_size,
    requests_for_approval_are_limited_and_end,
    rights_are_explained_over_the_api,
    the_server_tells_of_itself_and_its_log_level_is_set,
    health_and_reflection_include_every_service,
}
