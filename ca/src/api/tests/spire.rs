//! SPIRE's own programs as callers: what `spire-agent` 1.15.3 and the verbs of `spire-server` 1.15.3 send, in their order and
//! with their masks, as both programs were seen to do it. Certificate requests are theirs, byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::csr::Csr;
use proto::spire::api::server::agent::v1::{
    AttestAgentRequest, CountAgentsRequest, attest_agent_request, attest_agent_response, count_agents_request,
    list_agents_request,
};
use proto::spire::api::server::bundle::v1::GetFederatedBundleRequest;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, count_entries_request, list_entries_request};
use tokio::sync::mpsc;

use super::*;

/// What an agent wants to know of its entries.
fn agents_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..types::EntryMask::default()
    }
}

fn recorded(csr: &str) -> Vec<u8> {
    STANDARD.decode(csr).unwrap()
}

/// That the certificate is for the key of this request.
#[track_caller]
fn is_for(chain: &[Vec<u8>], csr: &str) -> bool {
    let request = Csr::decode_der(&recorded(csr)).unwrap();
    let key = request.public_key_spki();
    chain[0].windows(key.len()).any(|window| window == key)
}

/// The stream stays open until the result is there; the same stranger then asks for the bundle.
async fn an_agent_attests_and_fetches_the_bundle_as_a_stranger() {
    let ca = Running::start().await;
    let token = ca.token(Some("/n1")).await;
    let stranger = ca.network(None);
    let (tell, told) = mpsc::channel(1);
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".into(), payload: token.clone().into_bytes() }),
        params: Some(AgentX509svidParams { csr: recorded(NODE_CSR) }),
    };
    tell.send(AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) }).await.unwrap();
    let mut answers =
        AgentClient::new(stranger.clone()).attest_agent(ReceiverStream::new(told)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().step;
    let Some(attest_agent_response::Step::Result(result)) = answer else { panic!("{answer:?}") };
    let svid = result.svid.unwrap();
    let path = format!("/spire/agent/join_token/{token}");
    assert_eq!((svid.id, result.reattestable), (Some(id_message(&path)), false));
    assert!(svid.expires_at > 0 && is_for(&svid.cert_chain, NODE_CSR));
    drop(tell);

    let bundle = BundleClient::new(stranger).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!((bundle.trust_domain.as_str(), bundle.sequence_number), ("example.org", 1));
    let (root, key) = (&bundle.x509_authorities[0], &bundle.jwt_authorities[0]);
    assert!(!root.tainted && !root.asn1.is_empty() && !key.public_key.is_empty() && !key.key_id.is_empty());
}

/// One round of an agent that has an SVID, as often as it has something to do.
async fn an_agent_syncs_gets_svids_for_all_its_entries_and_renews_itself() {
    let ca = Running::start().await;
    let node = ca.node(Some("/n1")).await;
    let foreign = types::Bundle {
        trust_domain: "spiffe://fed.org".into(),
        x509_authorities: BundleClient::new(ca.network(None))
            .get_bundle(GetBundleRequest::default())
            .await
            .unwrap()
            .into_inner()
            .x509_authorities,
        ..types::Bundle::default()
    };
    let set = BatchSetFederatedBundleRequest { bundle: vec![foreign], output_mask: None };
    let set = BundleClient::new(ca.local().await).batch_set_federated_bundle(set).await.unwrap().into_inner();
    assert_eq!(set.results[0].status.as_ref().unwrap().code, 0);
    let work = ca.entry_with("/w", "/n1", |entry| entry.federates_with = vec!["spiffe://fed.org".into()]);
    let work = work.await.unwrap();
    let channel = ca.network(Some(&node));

    let status = PostStatusRequest { agent_version: "1.15.3".into(), ..PostStatusRequest::default() };
    AgentClient::new(channel.clone()).post_status(status).await.unwrap();
    assert_eq!(ca.certifier.store.registry().agent(node.id()).unwrap().version, "1.15.3");

    let entries = sync_whole(&channel).await;
    let [workload] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((workload.id.as_str(), &workload.federates_with[..]), (work.as_str(), &["fed.org".to_owned()][..]));
    assert!(workload.created_at > 0 && workload.parent_id.is_none(), "not asked for: {workload:?}");

    let mut bundles = BundleClient::new(channel.clone());
    bundles.get_bundle(GetBundleRequest::default()).await.unwrap();
    let request = GetFederatedBundleRequest { trust_domain: "fed.org".into(), output_mask: None };
    let foreign = bundles.get_federated_bundle(request).await.unwrap().into_inner();
    assert_eq!((foreign.trust_domain.as_str(), foreign.x509_authorities.len()), ("fed.org", 1));

    let params = vec![NewX509svidParams { entry_id: work.clone(), csr: recorded(WORKLOAD_CSR) }];
    let answer = SvidClient::new(channel.clone()).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    let result = answer.unwrap().into_inner().results.remove(0);
    assert_eq!(result.status.as_ref().unwrap().code, 0, "{result:?}");
    let svid = result.svid.unwrap();
    assert_eq!(svid.id, Some(id_message("/w")));
    assert!(svid.expires_at > 0 && is_for(&svid.cert_chain, WORKLOAD_CSR));

    // An agent takes no token without both moments and the identity.
    let request = NewJwtsvidRequest { entry_id: work, audience: vec!["x".into()] };
    let token = SvidClient::new(channel.clone()).new_jwtsvid(request).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(token.id, Some(id_message("/w")));
    assert!(0 < token.issued_at && token.issued_at < token.expires_at);

    let renew = RenewAgentRequest { params: Some(AgentX509svidParams { csr: recorded(RENEWED_CSR) }) };
    let renewed = AgentClient::new(channel).renew_agent(renew).await.unwrap().into_inner().svid.unwrap();
    assert!(is_for(&renewed.cert_chain, RENEWED_CSR));
}

/// The stream is left, not closed, when the answer was whole.
async fn sync_whole(channel: &tonic::transport::Channel) -> Vec<types::Entry> {
    let (tell, told) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest { output_mask: Some(agents_mask()), ids: Vec::new() };
    tell.send(first).await.unwrap();
    let mut client = EntryClient::new(channel.clone());
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(told)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(!answer.more && answer.entry_revisions.is_empty());
    answer.entries
}

/// 1,103 entries: revisions in three pages, then three requests for at most 500 by sorted ids, and SVIDs by 500.
async fn an_agent_with_many_entries_fetches_them_by_pages() {
    let ca = Running::start().await;
    let node = ca.node(Some("/n1")).await;
    for from in [0, 600] {
        let entries = (from..from + 600).take_while(|n| *n < 1_103);
        let entries = entries.map(|n| entry_message(&format!("/m{n}"), "/n1")).collect();
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        EntryClient::new(ca.local().await).batch_create_entry(request).await.unwrap();
    }
    let (tell, told) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest { output_mask: Some(agents_mask()), ids: Vec::new() };
    tell.send(first).await.unwrap();
    let mut client = EntryClient::new(ca.network(Some(&node)));
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(told)).await.unwrap().into_inner();
    let (mut ids, mut pages) = (Vec::new(), Vec::new());
    loop {
        let page = answers.message().await.unwrap().unwrap();
        pages.push(page.entry_revisions.len());
        ids.extend(page.entry_revisions.into_iter().map(|revision| revision.id));
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [500, 500, 103]);
    ids.sort();
    for wanted in ids.chunks(500) {
        tell.send(SyncAuthorizedEntriesRequest { ids: wanted.to_vec(), output_mask: None }).await.unwrap();
        let page = answers.message().await.unwrap().unwrap();
        let sent: Vec<_> = page.entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!((sent, page.more), (wanted.iter().map(String::as_str).collect(), false));
        assert!(page.entries.iter().all(|entry| !entry.selectors.is_empty() && entry.created_at > 0));
    }
    let params = |id: &String| NewX509svidParams { entry_id: id.clone(), csr: recorded(NODE_CSR) };
    let request = BatchNewX509svidRequest { params: ids[..500].iter().map(params).collect() };
    let results = SvidClient::new(ca.network(Some(&node))).batch_new_x509svid(request).await.unwrap().into_inner();
    assert!(results.results.iter().all(|result| result.svid.is_some()));
}

/// `entry show`, `entry count`: they say `by_downstream: false` when nobody asked for that.
async fn the_verbs_for_entries_find_all_of_them() {
    let ca = Running::start().await;
    ca.entry("/w", "/n1").await;
    ca.entry_with("/d", "/n1", |entry| (entry.downstream, entry.admin, entry.store_svid) = (true, true, true))
        .await
        .unwrap();
    let mut client = EntryClient::new(ca.local().await);
    let filter = list_entries_request::Filter { by_downstream: Some(false), ..Default::default() };
    let list = ListEntriesRequest { filter: Some(filter), page_size: 500, ..ListEntriesRequest::default() };
    let listed = client.list_entries(list.clone()).await.unwrap().into_inner();
    assert_eq!((listed.entries.len(), listed.next_page_token.as_str()), (2, ""));
    let filter = count_entries_request::Filter { by_downstream: Some(false), ..Default::default() };
    let count = CountEntriesRequest { filter: Some(filter) };
    assert_eq!(client.count_entries(count).await.unwrap().into_inner().count, 2);
    let filter = list_entries_request::Filter { by_downstream: Some(true), ..Default::default() };
    let only = client.list_entries(ListEntriesRequest { filter: Some(filter), ..list }).await.unwrap().into_inner();
    assert_eq!(only.entries.iter().map(|entry| entry.spiffe_id.clone()).collect::<Vec<_>>(), [Some(id_message("/d"))]);
}

/// `agent count`, `agent list` with every filter, `agent purge`.
async fn the_verbs_for_agents_find_them() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let mut client = AgentClient::new(ca.local().await);
    let count = CountAgentsRequest { filter: Some(count_agents_request::Filter::default()) };
    assert_eq!(client.count_agents(count).await.unwrap().into_inner().count, 1);
    let find = async |client: &mut AgentClient<tonic::transport::Channel>, filter| {
        let request = ListAgentsRequest { filter: Some(filter), page_size: 1_000, ..ListAgentsRequest::default() };
        client.list_agents(request).await.unwrap().into_inner().agents
    };
    let found = find(&mut client, list_agents_request::Filter::default()).await;
    assert_eq!(
        (found[0].id.clone(), found[0].x509svid_serial_number.as_str()),
        (Some(id_message(node.id().path())), node.serial())
    );
    let all = list_agents_request::Filter {
        by_attestation_type: "join_token".into(),
        by_banned: Some(false),
        by_can_reattest: Some(false),
        by_expires_before: "2999-01-01 00:00:00 +0000 +00".into(),
        ..list_agents_request::Filter::default()
    };
    assert_eq!(find(&mut client, all).await.len(), 1);
    let purged = list_agents_request::Filter { by_can_reattest: Some(true), ..list_agents_request::Filter::default() };
    let mask = types::AgentMask { x509svid_expires_at: true, ..types::AgentMask::default() };
    let request = ListAgentsRequest { filter: Some(purged), output_mask: Some(mask), ..ListAgentsRequest::default() };
    assert!(client.list_agents(request).await.unwrap().into_inner().agents.is_empty());
}

crate::testing::database::on_each_database! {
    an_agent_attests_and_fetches_the_bundle_as_a_stranger,
    an_agent_syncs_gets_svids_for_all_its_entries_and_renews_itself,
    an_agent_with_many_entries_fetches_them_by_pages,
    the_verbs_for_entries_find_all_of_them,
    the_verbs_for_agents_find_them,
}

/// Subject `C=US, O=SPIRE`, no names: of the agent itself.
const NODE_CSR: &str = concat!(
    "MIHYMH8CAQAwHTELMAkGA1UEBhMCVVMxDjAMBgNVBAoTBVNQSVJFMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3I3f88uQODlLDXPCT4wglF",
    "9yBBb+Wr8ONmZFKajEr/5sTxydZU80FkCBOwgxXd7wsm6H3KPUD1yj+xhBs+adoaAAMAoGCCqGSM49BAMCA0kAMEYCIQDHxbStaiNtK0bNVVRq",
    "5Nr2d6whyNgIRDIctlieU+9NvgIhALtUG2twHYZSggxfBLNS2dfXWLG+tJJmok6WRohnpOxb",
);
const RENEWED_CSR: &str = concat!(
    "MIHWMH8CAQAwHTELMAkGA1UEBhMCVVMxDjAMBgNVBAoTBVNQSVJFMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElrZQ5SwijXVEgN8A/FScep",
    "L2kkNkNaNcq9YsnZpAw7ZobKPQyfsw7R4ipgZ10GogQtBKQCnfHsC9xDxXYq//eaAAMAoGCCqGSM49BAMCA0cAMEQCIE9dSh12wkSUS1T9UwJt",
    "nwkgjjigjG4uIx9FlgtqJ2wFAiA2nL0TD0S/0qOCcW/g0ZhekxcJihLFnpYTjMoLk2bmpw==",
);
/// The same subject, and the identity of the entry as its one name.
const WORKLOAD_CSR: &str = concat!(
    "MIIBDDCBswIBADAdMQswCQYDVQQGEwJVUzEOMAwGA1UEChMFU1BJUkUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASSQYKkpet0DuUKMwZJx+",
    "ixAtnMpYT8iK17fiNgVw4fEymXKc+oN6F8Zb32wQonyKb5au5Xw68fwSGaEngERvixoDQwMgYJKoZIhvcNAQkOMSUwIzAhBgNVHREEGjAYhhZz",
    "cGlmZmU6Ly9leGFtcGxlLm9yZy93MAoGCCqGSM49BAMCA0gAMEUCIQCXyvNidP1Gz04Ikx8QgVoUfSX1Wf1wVv8RZxlIesWwWgIgVo2WyBI+5p",
    "g4nq7fnTN5qYcYyA+ZrnwLbgPS2n8+eF4=",
);
