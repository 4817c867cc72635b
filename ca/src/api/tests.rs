//! The services as callers meet them: over TLS and over the local socket.

mod admission;
mod attacks;
mod ending;
mod malformed;
mod policy;
mod registration;
mod rights;
mod rotation;
mod spire;
mod strangers;
mod wit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::tls::Snapshot;
use identity::{jwt, unix_time, verify};
use proto::kasbah::node::v1::node_client::NodeClient;
use proto::kasbah::node::v1::{WatchRequest, WatchResponse};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, BanAgentRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest, PostStatusRequest,
    RenewAgentRequest,
};
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    ListFederatedBundlesRequest, batch_delete_federated_bundle_request,
};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest, GetAuthorizedEntriesRequest,
    ListEntriesRequest, SyncAuthorizedEntriesRequest,
};
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::localauthority::v1::{GetX509AuthorityStateRequest, PrepareX509AuthorityRequest};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, MintJwtsvidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use proto::spire::api::server::trustdomain::v1::ListFederationRelationshipsRequest;
use proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use proto::spire::api::types;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::testing::running::{Running, entry_message, id_message, reason, svid_of};
use crate::testing::{id, trust_domain};

fn params(entry_id: &str, key: &PrivateKey) -> NewX509svidParams {
    NewX509svidParams { entry_id: entry_id.into(), csr: key.csr_der(None).unwrap() }
}

/// What a node gets for entries, one after the other: the SVID or the gRPC code of the refusal.
async fn issue(ca: &Running, node: &Arc<X509Svid>, entries: &[&str]) -> Vec<Result<Arc<X509Svid>, Code>> {
    let keys: Vec<_> = entries.iter().map(|_| PrivateKey::generate_p256().unwrap()).collect();
    let params = entries.iter().zip(&keys).map(|(entry, key)| params(entry, key)).collect();
    let answer = SvidClient::new(ca.network(Some(node))).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    let results = answer.unwrap().into_inner().results;
    let outcome = |(result, key): (proto::spire::api::server::svid::v1::batch_new_x509svid_response::Result, _)| {
        let code = result.status.unwrap().code;
        result.svid.map(|svid| svid_of(svid, key)).ok_or_else(|| Code::from(code))
    };
    results.into_iter().zip(keys).map(outcome).collect()
}

async fn authorized(ca: &Running, node: &Arc<X509Svid>) -> Vec<String> {
    let mut client = EntryClient::new(ca.network(Some(node)));
    let entries = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap().into_inner();
    entries.entries.into_iter().map(|entry| entry.id).collect()
}

async fn a_node_joins_and_its_workloads_get_their_identities() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    assert!(node.id().path().starts_with("/spire/agent/join_token/"), "{}", node.id());
    let web = ca.entry_with("/ns/default/sa/web", "/node/local", |entry| {
        entry.dns_names = vec!["web.default.svc".into()];
        entry.x509_svid_ttl = 60;
        entry.hint = "main".into();
    });
    let web = web.await.unwrap();
    assert_eq!(authorized(&ca, &node).await, std::slice::from_ref(&web));

    let svid = issue(&ca, &node, &[&web]).await.remove(0).unwrap();
    assert_eq!((svid.id(), svid.dns_names()), (&id("/ns/default/sa/web"), &["web.default.svc".to_owned()][..]));
    let now = std::time::SystemTime::now();
    let peer = verify::verify_peer(&svid.to_chain(), &ca.snapshot(None).bundles(), unix_time(now)).unwrap();
    assert_eq!(peer.spiffe_id(), svid.id());
    let life = svid.not_after().duration_since(now).unwrap().as_secs();
    assert!((58..=60).contains(&life), "{life}");

    let recorded = ca.certifier.store.issued(10).await.unwrap();
    let record = recorded.iter().find(|record| record.issuance.serial == svid.serial()).expect("recorded");
    assert_eq!((record.issuance.entry_id.as_str(), record.kind.as_str()), (web.as_str(), "x509"));
    assert_eq!(record.issuance.caller, node.id().to_string());
    ca.stop().await;
}

/// The message of those who know no advice.
#[derive(Clone, PartialEq, prost::Message)]
struct StockSvid {
    #[prost(bytes = "vec", repeated, tag = "1")]
    cert_chain: Vec<Vec<u8>>,
    #[prost(int64, tag = "3")]
    expires_at: i64,
    #[prost(string, tag = "4")]
    hint: String,
}

async fn each_svid_of_an_entry_comes_with_advice_on_its_renewal_which_others_skip() {
    use prost::Message as _;
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let web = ca.entry("/web", "/node/local").await;
    let batch = async || {
        let params = (0..20).map(|_| params(&web, &PrivateKey::generate_p256().unwrap())).collect();
        let mut client = SvidClient::new(ca.network(Some(&node)));
        let answer = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
        answer.results.into_iter().map(|result| result.svid.unwrap()).collect::<Vec<_>>()
    };
    let now = ca.certifier.now_secs();
    let share = |svid: &types::X509svid| (svid.kasbah_renew_at - now) as f64 / (svid.expires_at - now) as f64;
    let svids = batch().await;
    assert!(
        svids.iter().all(|svid| (0.44..=0.56).contains(&share(svid))),
        "{:?}",
        svids.iter().map(share).collect::<Vec<_>>()
    );
    let moments: std::collections::BTreeSet<i64> = svids.iter().map(|svid| svid.kasbah_renew_at / 8).collect();
    assert!(moments.len() >= 15, "spread: {moments:?}");
    let stock = StockSvid::decode(&*svids[0].encode_to_vec()).unwrap();
    assert_eq!((stock.cert_chain, stock.expires_at), (svids[0].cert_chain.clone(), svids[0].expires_at));
    let mut tools = LocalAuthorityClient::new(ca.local().await);
    tools.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap();
    let svids = batch().await;
    assert!(
        svids.iter().all(|svid| (0.29..=0.41).contains(&share(svid))),
        "{:?}",
        svids.iter().map(share).collect::<Vec<_>>()
    );
}

async fn the_server_proves_itself_with_a_spiffe_id_and_names() {
    let ca = Running::start().await;
    let stream = runtime::mtls::connect(
        &ca.addresses.grpc.to_string(),
        Arc::new(ca.snapshot(None)),
        identity::tls::PeerRule::exactly(id("/spire/server")),
        &[b"h2"],
    )
    .await;
    let stream = stream.unwrap();
    let tls = stream.get_ref().1;
    assert_eq!(format!("{:?}", tls.protocol_version()), "Some(TLSv1_3)");
    let leaf = &tls.peer_certificates().unwrap()[0];
    let summary = identity::summary::CertificateSummary::decode(leaf).unwrap();
    assert_eq!(summary.uris, ["spiffe://example.org/spire/server"]);
    assert_eq!(summary.dns_names, ["localhost"]);
}

async fn jwt_svids_verify_with_the_published_keys() {
    let ca = Running::start_with(|settings| settings.oidc_issuer = Some("https://oidc.example.org".into())).await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry_with("/web", "/node/local", |entry| {
        entry.additional_attributes =
            Some(types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() });
    });
    let request = NewJwtsvidRequest { entry_id: entry.await.unwrap(), audience: vec!["db".into(), "cache".into()] };
    let answer = SvidClient::new(ca.network(Some(&node))).new_jwtsvid(request).await.unwrap().into_inner();
    let svid = answer.svid.unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 300);
    let bundles = ca.certifier.authorities.current().bundles.clone();
    let verified = jwt::verify_svid(&svid.token, &bundles, "db", std::time::SystemTime::now()).unwrap();
    assert_eq!(verified.spiffe_id(), &id("/web"));
    assert_eq!(verified.claims().audiences(), ["db", "cache"]);
    assert_eq!(verified.claims().issuer(), Some("https://oidc.example.org"));
    assert!(verified.claims().text("jti").is_some());

    let mint = MintJwtsvidRequest { id: Some(id_message("/ops")), audience: vec!["db".into()], ttl: 0 };
    let minted = SvidClient::new(ca.local().await).mint_jwtsvid(mint).await.unwrap().into_inner().svid.unwrap();
    assert!(jwt::verify_svid(&minted.token, &bundles, "db", std::time::SystemTime::now()).is_ok());
    assert_eq!(ca.certifier.store.issued_count().await.unwrap(), 4, "server, node and two tokens");
}

async fn a_renewed_node_may_use_both_svids_until_it_uses_the_new_one() {
    let ca = Running::start().await;
    let old = ca.node(None).await;
    let key = PrivateKey::generate_p256().unwrap();
    let renew = RenewAgentRequest { params: Some(AgentX509svidParams { csr: key.csr_der(None).unwrap() }) };
    let answer = AgentClient::new(ca.network(Some(&old))).renew_agent(renew).await.unwrap().into_inner();
    let new = svid_of(answer.svid.unwrap(), key);
    assert_eq!(new.id(), old.id());
    authorized(&ca, &old).await;
    authorized(&ca, &new).await;
    let refused =
        EntryClient::new(ca.network(Some(&old))).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(reason(refused), "AGENT_NOT_ACTIVE");
    let ca = ca.restart().await;
    authorized(&ca, &new).await;
}

async fn banned_and_deleted_nodes_are_refused_at_once() {
    let ca = Running::start().await;
    let (banned, deleted) = (ca.node(None).await, ca.node(None).await);
    let mut admin = AgentClient::new(ca.local().await);
    let message = |svid: &Arc<X509Svid>| Some(id_message(svid.id().path()));
    let mut connection = EntryClient::new(ca.network(Some(&banned)));
    connection.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    admin.ban_agent(BanAgentRequest { id: message(&banned) }).await.unwrap();
    admin.delete_agent(DeleteAgentRequest { id: message(&deleted) }).await.unwrap();
    let refused = connection.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(reason(refused), "AGENT_BANNED", "on a connection that was open before");
    let refused = EntryClient::new(ca.network(Some(&deleted)))
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await;
    assert_eq!(reason(refused), "AGENT_NOT_ATTESTED");
    let listed = admin.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner().agents;
    assert_eq!(listed.iter().map(|agent| agent.banned).collect::<Vec<_>>(), [true]);
    let get = admin.get_agent(GetAgentRequest { id: message(&deleted), output_mask: None }).await;
    assert_eq!(reason(get), "AGENT_UNKNOWN");
}

async fn what_a_node_enforces_is_remembered() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let mut client = AgentClient::new(ca.network(Some(&node)));
    let status = PostStatusRequest { current_bundle_serial: 1, agent_version: "0.1.0".into() };
    client.post_status(status).await.unwrap();
    let known = ca.certifier.store.registry().agent(node.id()).unwrap();
    assert_eq!((known.bundle_sequence, known.version.as_str()), (1, "0.1.0"));
    let boast = PostStatusRequest { current_bundle_serial: 99, agent_version: "0.1.0".into() };
    client.post_status(boast).await.unwrap();
    assert_eq!(ca.certifier.store.registry().agent(node.id()).unwrap().bundle_sequence, 1, "never published");
}

async fn entries_are_listed_by_page_and_filter_changed_and_deleted() {
    let ca = Running::start().await;
    let mut client = EntryClient::new(ca.local().await);
    for n in 0..5 {
        ca.entry(&format!("/w{n}"), "/node").await;
    }
    let count = client.count_entries(CountEntriesRequest::default()).await.unwrap().into_inner().count;
    assert_eq!(count, 5);
    let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let request = ListEntriesRequest { page_size: 2, page_token: token, ..Default::default() };
        let answer = client.list_entries(request).await.unwrap().into_inner();
        assert!(answer.entries.len() <= 2);
        seen.extend(answer.entries.into_iter().map(|entry| entry.id));
        pages += 1;
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len(), pages), (5, 5, 3));

    let huge = ListEntriesRequest { page_size: i32::MAX, ..Default::default() };
    assert_eq!(client.list_entries(huge).await.unwrap().into_inner().entries.len(), 5);

    let hint = types::EntryMask { hint: true, ..Default::default() };
    let change = types::Entry { id: seen[0].clone(), hint: "new".into(), ..Default::default() };
    let update = BatchUpdateEntryRequest { entries: vec![change], input_mask: Some(hint), output_mask: None };
    let results = client.batch_update_entry(update).await.unwrap().into_inner().results;
    let updated = results[0].entry.clone().unwrap();
    assert_eq!((updated.hint.as_str(), updated.revision_number, updated.selectors.len()), ("new", 1, 1));

    let delete = BatchDeleteEntryRequest { ids: vec![seen[0].clone(), "none".into()] };
    let results = client.batch_delete_entry(delete).await.unwrap().into_inner().results;
    let codes: Vec<_> = results.iter().map(|result| result.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, Code::NotFound as i32]);
}

async fn a_duplicate_entry_answers_the_one_that_is_there() {
    let ca = Running::start().await;
    let first = ca.entry("/web", "/node").await;
    let mut client = EntryClient::new(ca.local().await);
    let entries = vec![entry_message("/web", "/node"), entry_message("/db", "/node")];
    let request = proto::spire::api::server::entry::v1::BatchCreateEntryRequest { entries, output_mask: None };
    let results = client.batch_create_entry(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, Code::AlreadyExists as i32);
    assert_eq!(results[0].entry.as_ref().unwrap().id, first);
    assert_eq!(results[1].status.as_ref().unwrap().code, 0);
}

async fn a_sync_sends_all_when_little_and_revisions_when_much() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    ca.entry("/w", "/node/local").await;
    let mut client = EntryClient::new(ca.network(Some(&node)));
    let first = SyncAuthorizedEntriesRequest::default();
    let mut answers = client.sync_authorized_entries(tokio_stream::once(first.clone())).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.entries.len(), answer.entry_revisions.len(), answer.more), (1, 0, false));
    assert!(answers.message().await.unwrap().is_none());

    let many = (0..super::entry::PAGE_ENTRIES).map(|n| entry_message(&format!("/many/{n}"), "/node/local")).collect();
    let request = proto::spire::api::server::entry::v1::BatchCreateEntryRequest { entries: many, output_mask: None };
    EntryClient::new(ca.local().await).batch_create_entry(request).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut revisions = BTreeMap::new();
    loop {
        let answer = answers.message().await.unwrap().unwrap();
        revisions.extend(answer.entry_revisions.into_iter().map(|entry| (entry.id, entry.revision_number)));
        if !answer.more {
            break;
        }
    }
    assert_eq!(revisions.len(), super::entry::PAGE_ENTRIES + 1);
    let ids: Vec<String> = revisions.keys().take(3).cloned().chain(["unknown".into()]).collect();
    sender.send(SyncAuthorizedEntriesRequest { ids, ..Default::default() }).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.entries.len(), answer.more), (3, false));
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
}

struct Watching {
    _reports: tokio::sync::mpsc::Sender<WatchRequest>,
    answers: tonic::Streaming<WatchResponse>,
}

async fn watch(ca: &Running, node: &Arc<X509Svid>) -> Watching {
    let (reports, receiver) = tokio::sync::mpsc::channel(4);
    let report =
        WatchRequest { bundle_sequence_enforced: 1, configured: vec![configured()], ..WatchRequest::default() };
    reports.send(report).await.unwrap();
    let watch = NodeClient::new(ca.network(Some(node))).watch(ReceiverStream::new(receiver)).await;
    Watching { _reports: reports, answers: watch.unwrap().into_inner() }
}

/// What the proxy of a node has in force.
fn configured() -> types::KasbahConfigured {
    let versions = BTreeMap::from([("lds".to_owned(), "1f".to_owned())]);
    types::KasbahConfigured { workload: "spiffe://example.org/w (process 7)".into(), versions }
}

async fn a_change_of_entries_reaches_a_watching_node_at_once() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let mut watching = watch(&ca, &node).await;
    let first = watching.answers.message().await.unwrap().unwrap();
    assert_eq!((first.entries_revision, first.bundle_sequence), (1, 1));
    ca.entry("/w", "/node/local").await;
    // Well within the pause of those who poll; a benchmark measures how fast.
    let next = tokio::time::timeout(Duration::from_secs(4), watching.answers.message()).await;
    assert_eq!(next.expect("an answer before the next poll").unwrap().unwrap().entries_revision, 2);
    let known = || ca.certifier.store.registry().agent(node.id()).unwrap().bundle_sequence;
    let waiting = std::time::Instant::now();
    while known() != 1 {
        assert!(waiting.elapsed() < Duration::from_secs(5), "the report is never heard");
        tokio::task::yield_now().await;
    }
    let mut admin = AgentClient::new(ca.local().await);
    let mut shown = async |output_mask| {
        let id = Some(id_message(node.id().path()));
        admin.get_agent(GetAgentRequest { id, output_mask }).await.unwrap().into_inner().kasbah_configured
    };
    assert_eq!(shown(None).await, [configured()]);
    assert_eq!(shown(Some(types::AgentMask::default())).await, [], "a mask that SPIRE's clients send leaves it out");
}

async fn a_watching_node_that_is_banned_hears_no_more() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let mut watching = watch(&ca, &node).await;
    watching.answers.message().await.unwrap();
    let ban = BanAgentRequest { id: Some(id_message(node.id().path())) };
    AgentClient::new(ca.local().await).ban_agent(ban).await.unwrap();
    assert_eq!(reason(watching.answers.message().await), "AGENT_BANNED");
}

async fn the_end_of_the_server_ends_the_watches() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let mut watching = watch(&ca, &node).await;
    watching.answers.message().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), ca.stop()).await.expect("watches hold up the end");
    let rest: Vec<_> = watching.answers.collect().await;
    assert!(rest.len() <= 1, "{rest:?}");
}

async fn the_bundle_is_open_to_everyone_and_foreign_ones_are_kept() {
    let ca = Running::start().await;
    let mut anyone = BundleClient::new(ca.network(None));
    let own = anyone.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        (own.trust_domain.as_str(), own.x509_authorities.len(), own.jwt_authorities.len()),
        ("example.org", 1, 1)
    );
    let foreign = types::Bundle { trust_domain: "other.org".into(), sequence_number: 7, ..own.clone() };
    let mut admin = BundleClient::new(ca.local().await);
    let set = BatchSetFederatedBundleRequest { bundle: vec![foreign, own], output_mask: None };
    let results = admin.batch_set_federated_bundle(set).await.unwrap().into_inner().results;
    let codes: Vec<_> = results.iter().map(|result| result.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, Code::InvalidArgument as i32], "the own bundle cannot be set");

    let entry = ca.entry_with("/web", "/node", |entry| entry.federates_with = vec!["other.org".into()]).await.unwrap();
    let unknown = ca.entry_with("/db", "/node", |entry| entry.federates_with = vec!["third.org".into()]).await;
    assert!(unknown.unwrap_err().message.contains("bundle is not known"));
    let ca = ca.restart().await;
    let mut admin = BundleClient::new(ca.local().await);
    let listed =
        admin.list_federated_bundles(ListFederatedBundlesRequest::default()).await.unwrap().into_inner().bundles;
    assert_eq!((listed.len(), listed[0].sequence_number), (1, 7));
    assert_eq!(admin.count_bundles(CountBundlesRequest {}).await.unwrap().into_inner().count, 2);

    use batch_delete_federated_bundle_request::Mode;
    let delete =
        |mode: Mode| BatchDeleteFederatedBundleRequest { trust_domains: vec!["other.org".into()], mode: mode.into() };
    let results = admin.batch_delete_federated_bundle(delete(Mode::Restrict)).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, Code::FailedPrecondition as i32);
    let results = admin.batch_delete_federated_bundle(delete(Mode::Dissociate)).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, 0);
    assert!(ca.certifier.store.registry().entry(&entry).unwrap().federates_with.is_empty());
}

async fn rotation_tools_see_the_state_and_a_clear_word() {
    let ca = Running::start().await;
    let mut client = LocalAuthorityClient::new(ca.local().await);
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    let root = ca.certifier.authorities.current().line(crate::store::AuthorityKind::Root).active().unwrap().id.clone();
    assert_eq!(state.active.unwrap().authority_id, root);
    client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap();
    let refused = client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let relationships = TrustDomainClient::new(ca.local().await)
        .list_federation_relationships(ListFederationRelationshipsRequest::default())
        .await;
    assert!(relationships.unwrap().into_inner().federation_relationships.is_empty());
}

async fn an_entry_makes_an_administrator_and_its_end_unmakes_him() {
    let ca = Running::start().await;
    let ops = ca.mint("/ops").await;
    let mut client = EntryClient::new(ca.network(Some(&ops)));
    let refused = client.list_entries(ListEntriesRequest::default()).await;
    assert_eq!(reason(refused), "CALLER_NOT_ADMIN");
    let entry = ca.entry_with("/ops", "/node", |entry| entry.admin = true).await.unwrap();
    client.list_entries(ListEntriesRequest::default()).await.unwrap();
    let delete = BatchDeleteEntryRequest { ids: vec![entry] };
    client.batch_delete_entry(delete).await.unwrap();
    let refused = client.list_entries(ListEntriesRequest::default()).await;
    assert_eq!(reason(refused), "CALLER_NOT_ADMIN", "he has deleted himself");
}

crate::testing::database::on_each_database! {
    a_node_joins_and_its_workloads_get_their_identities,
    each_svid_of_an_entry_comes_with_advice_on_its_renewal_which_others_skip,
    the_server_proves_itself_with_a_spiffe_id_and_names,
    jwt_svids_verify_with_the_published_keys,
    a_renewed_node_may_use_both_svids_until_it_uses_the_new_one,
    banned_and_deleted_nodes_are_refused_at_once,
    what_a_node_enforces_is_remembered,
    entries_are_listed_by_page_and_filter_changed_and_deleted,
    a_duplicate_entry_answers_the_one_that_is_there,
    a_sync_sends_all_when_little_and_revisions_when_much,
    a_change_of_entries_reaches_a_watching_node_at_once,
    a_watching_node_that_is_banned_hears_no_more,
    the_end_of_the_server_ends_the_watches,
    the_bundle_is_open_to_everyone_and_foreign_ones_are_kept,
    rotation_tools_see_the_state_and_a_clear_word,
    an_entry_makes_an_administrator_and_its_end_unmakes_him,
}
