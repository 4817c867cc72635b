//! Nodes that come in, come again, or must not; and which entries reach them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::{LeafProfile, WebAuthority, WebCertificate, X509Authority};
use identity::device::{DeviceKey, PossessionProof};
use proptest::prelude::*;
use proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use proto::spire::api::server::agent::v1::{AttestAgentRequest, attest_agent_response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::api::{EntryPatch, entry_message as message_of, whole_mask};
use crate::entry::Selector;
use crate::testing::TokenIssuer;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

struct Devices {
    ca: WebAuthority,
    dir: tempfile::TempDir,
}

impl Devices {
    fn new() -> Self {
        let ca = WebAuthority::generate("devices", YEAR, std::time::SystemTime::now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("roots.pem"), ca.certificate_pem()).unwrap();
        Self { ca, dir }
    }

    fn device(&self, name: &str) -> WebCertificate {
        self.ca.issue_client(name, YEAR / 2, std::time::SystemTime::now()).unwrap()
    }

    async fn authority(&self, more: &str) -> Running {
        let roots = self.dir.path().join("roots.pem");
        let text = format!(
            "x509pop: {{ca_bundles: ['{}'], agent_path_template: '{{{{ .Subject.CommonName }}}}'}}\n{more}",
            roots.display()
        );
        Running::start_with(|settings| settings.node_attestors = serde_saphyr::from_str(&text).unwrap()).await
    }
}

/// Attests over the wire as an agent does; answers the SVID and whether it may come again.
async fn attest(
    ca: &Running,
    kind: &str,
    payload: Vec<u8>,
    answer: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<(Arc<X509Svid>, bool), Status> {
    let key = PrivateKey::generate_p256().unwrap();
    let data = types::AttestationData { r#type: kind.into(), payload };
    let params = Params { data: Some(data), params: Some(AgentX509svidParams { csr: key.csr_der(None).unwrap() }) };
    let (tell, told) = mpsc::channel(4);
    tell.send(AttestAgentRequest { step: Some(Step::Params(params)) }).await.unwrap();
    let mut answers = AgentClient::new(ca.network(None)).attest_agent(ReceiverStream::new(told)).await?.into_inner();
    loop {
        match answers.message().await?.unwrap().step.unwrap() {
            attest_agent_response::Step::Challenge(challenge) => {
                let response = AttestAgentRequest { step: Some(Step::ChallengeResponse(answer(&challenge))) };
                tell.send(response).await.unwrap();
            }
            attest_agent_response::Step::Result(result) => {
                return Ok((svid_of(result.svid.unwrap(), key), result.reattestable));
            }
        }
    }
}

async fn attest_device(ca: &Running, device: &WebCertificate) -> Result<(Arc<X509Svid>, bool), Status> {
    let payload = json!({"certificates": [STANDARD.encode(&device.certificate)]}).to_string().into_bytes();
    let key = DeviceKey::from_pem(device.key_pem().as_bytes()).unwrap();
    attest(ca, "x509pop", payload, move |challenge| {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let theirs = STANDARD.decode(challenge["ecdsa_signature"]["nonce"].as_str().unwrap()).unwrap();
        let PossessionProof::Ecdsa { r, s } = key.prove(&[&theirs[..], &[5; 32]].concat()).unwrap() else {
            panic!("an ECDSA key")
        };
        let (r, s) = (STANDARD.encode(r), STANDARD.encode(s));
        json!({"ecdsa_signature": {"nonce": STANDARD.encode([5; 32]), "r": r, "s": s}}).to_string().into_bytes()
    })
    .await
}

#[tokio::test]
async fn a_device_attests_comes_again_and_serves_what_its_facts_allow() {
    let devices = Devices::new();
    let ca = devices.authority("").await;
    let device = devices.device("rack-7");
    let (first, reattestable) = attest_device(&ca, &device).await.unwrap();
    assert_eq!((first.id().path(), reattestable), ("/spire/agent/x509pop/rack-7", true));
    let known = ca.certifier.store.registry().agent(first.id()).unwrap();
    assert!(known.selectors.contains(&Selector::new("x509pop", "subject:cn:rack-7")) && known.can_reattest);

    let alias = ca.entry_with("/rack/7", "/spire/server", |entry| {
        entry.selectors = vec![types::Selector { r#type: "x509pop".into(), value: "subject:cn:rack-7".into() }];
    });
    alias.await.unwrap();
    let web = ca.entry("/web", "/rack/7").await;
    assert_eq!(authorized(&ca, &first).await, std::slice::from_ref(&web));

    let (second, _) = attest_device(&ca, &device).await.unwrap();
    assert_eq!(authorized(&ca, &second).await, [web]);
    let mut old = EntryClient::new(ca.network(Some(&first)));
    let refused = old.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(reason(refused), "AGENT_NOT_ACTIVE", "the SVID from before counts no more");
    let (other, _) = attest_device(&ca, &devices.device("rack-8")).await.unwrap();
    assert!(authorized(&ca, &other).await.is_empty());
}

/// A node shows its last SVID and proves its key with `key`.
async fn come_back(ca: &Running, shown: &X509Svid, key: &X509Svid) -> Result<(Arc<X509Svid>, bool), Status> {
    let payload = json!({"certificates": [STANDARD.encode(shown.leaf_der())]}).to_string().into_bytes();
    let key = DeviceKey::from_pem(key.key().pkcs8_pem().as_bytes()).unwrap();
    attest(ca, "old_svid", payload, move |challenge| {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let theirs = STANDARD.decode(challenge["ecdsa_signature"]["nonce"].as_str().unwrap()).unwrap();
        let PossessionProof::Ecdsa { r, s } = key.prove(&[&theirs[..], &[5; 32]].concat()).unwrap() else {
            panic!("an ECDSA key")
        };
        let (r, s) = (STANDARD.encode(r), STANDARD.encode(s));
        json!({"ecdsa_signature": {"nonce": STANDARD.encode([5; 32]), "r": r, "s": s}}).to_string().into_bytes()
    })
    .await
}

#[tokio::test]
async fn a_node_comes_back_once_with_its_last_svid_and_the_proof_of_its_key() {
    let ca = Running::start().await;
    let (first, stranger) = (ca.node(Some("/node/local")).await, ca.node(Some("/node/other")).await);
    let web = ca.entry("/web", "/node/local").await;
    assert_eq!(reason(come_back(&ca, &first, &stranger).await), "DEVICE_KEY_NOT_HELD");
    let attempts = futures_util::future::join_all((0..8).map(|_| come_back(&ca, &first, &first))).await;
    let (good, bad): (Vec<_>, Vec<_>) = attempts.into_iter().partition(Result::is_ok);
    assert_eq!(good.len(), 1, "also in a race");
    for refused in bad {
        assert_eq!(reason(refused), "OLD_SVID_UNKNOWN");
    }
    let (second, _) = good.into_iter().next().unwrap().unwrap();
    assert_eq!(second.id(), first.id());
    assert_eq!(authorized(&ca, &second).await, [web], "it is the node that it was");
    assert_eq!(reason(come_back(&ca, &first, &first).await), "OLD_SVID_UNKNOWN", "a copy of the old key is of no use");
    let mut admin = AgentClient::new(ca.local().await);
    let node = || Some(id_message(second.id().path()));
    admin.ban_agent(BanAgentRequest { id: node() }).await.unwrap();
    assert_eq!(reason(come_back(&ca, &second, &second).await), "AGENT_BANNED");
    admin.delete_agent(DeleteAgentRequest { id: node() }).await.unwrap();
    assert_eq!(reason(come_back(&ca, &second, &second).await), "OLD_SVID_UNKNOWN");
}

#[tokio::test]
async fn no_certificate_but_the_one_on_record_brings_a_node_back() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let web = ca.entry("/web", "/node/local").await;
    let workload = issue(&ca, &node, &[&web]).await.remove(0).unwrap();
    assert_eq!(reason(come_back(&ca, &workload, &workload).await), "OLD_SVID_UNKNOWN", "no SVID of a node");
    let forger = X509Authority::generate_root(&trust_domain(), YEAR, std::time::SystemTime::now()).unwrap();
    let key = PrivateKey::generate_p256().unwrap();
    let csr = identity::csr::Csr::decode_der(&key.csr_der(None).unwrap()).unwrap();
    let profile = LeafProfile::new(node.id().clone(), Duration::from_secs(60));
    let chain = forger.sign_svid(csr.public_key_spki(), &profile, std::time::SystemTime::now()).unwrap();
    let forged = X509Svid::from_parts(chain, key).unwrap();
    assert_eq!(reason(come_back(&ca, &forged, &forged).await), "OLD_SVID_UNKNOWN");
    assert_eq!(reason(attest(&ca, "old_svid", b"{}".to_vec(), |_| Vec::new()).await), "EVIDENCE_MALFORMED");
    let off = Running::start_with(|settings| settings.node_attestors.old_svid.age_max = Duration::ZERO).await;
    let node = off.node(Some("/node/local")).await;
    assert_eq!(reason(come_back(&off, &node, &node).await), "ATTESTOR_UNKNOWN");
}

#[tokio::test]
async fn a_ban_holds_against_good_evidence_and_an_eviction_lifts_it() {
    let devices = Devices::new();
    let ca = devices.authority("").await;
    let device = devices.device("rack-7");
    let (svid, _) = attest_device(&ca, &device).await.unwrap();
    let mut admin = AgentClient::new(ca.local().await);
    let node = || Some(id_message(svid.id().path()));
    admin.ban_agent(BanAgentRequest { id: node() }).await.unwrap();
    assert_eq!(reason(attest_device(&ca, &device).await), "AGENT_BANNED");
    assert!(ca.certifier.store.registry().agent(svid.id()).unwrap().banned);
    admin.delete_agent(DeleteAgentRequest { id: node() }).await.unwrap();
    assert!(attest_device(&ca, &device).await.is_ok());
}

#[tokio::test]
async fn who_is_trusted_on_first_use_is_admitted_once() {
    let issuer = TokenIssuer::new();
    let text = format!(
        "oidc_jwt: {{issuers: {{ci: {{issuer: 'https://ci', jwks_file: '{}', audiences: [kasbah], \
         required_claims: {{owner: [us]}}, can_reattest: false}}}}}}",
        issuer.jwks_file().display()
    );
    let ca = Running::start_with(|settings| settings.node_attestors = serde_saphyr::from_str(&text).unwrap()).await;
    let exp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 600;
    let token = issuer.sign(&json!({"iss": "https://ci", "aud": "kasbah", "sub": "n1", "owner": "us", "exp": exp}));
    let come = async || attest(&ca, "oidc_jwt", json!({"token": token}).to_string().into_bytes(), |_| Vec::new()).await;
    let (attempts, mut admitted) = (futures_util::future::join_all((0..16).map(|_| come())).await, Vec::new());
    for attempt in attempts {
        match attempt {
            Ok((svid, reattestable)) => {
                assert!(!reattestable);
                admitted.push(svid);
            }
            refused => assert_eq!(reason(refused), "AGENT_ALREADY_ATTESTED"),
        }
    }
    assert_eq!(admitted.len(), 1, "also in a race");
    authorized(&ca, &admitted[0]).await;
    let mut admin = AgentClient::new(ca.local().await);
    admin.delete_agent(DeleteAgentRequest { id: Some(id_message(admitted[0].id().path())) }).await.unwrap();
    assert!(come().await.is_ok(), "after an eviction");
}

#[tokio::test]
async fn an_exchange_that_breaks_off_or_out_of_order_admits_nobody() {
    let devices = Devices::new();
    let ca = devices.authority("").await;
    let device = devices.device("rack-7");
    let payload = json!({"certificates": [STANDARD.encode(&device.certificate)]}).to_string().into_bytes();
    let junk = attest(&ca, "x509pop", payload.clone(), |_| b"junk".to_vec()).await;
    assert_eq!(reason(junk), "EVIDENCE_MALFORMED");
    let large = attest(&ca, "x509pop", payload, |_| vec![b' '; 100_000]).await;
    assert_eq!(reason(large), "EVIDENCE_MALFORMED");
    for first in [None, Some(Step::ChallengeResponse(Vec::new()))] {
        let request = AttestAgentRequest { step: first };
        let refused = AgentClient::new(ca.network(None)).attest_agent(tokio_stream::once(request)).await;
        assert_eq!(reason(refused), "ATTESTATION_INCOMPLETE");
    }
    assert_eq!(ca.certifier.store.registry().agents().count(), 0);
}

/// {admin, downstream, expired, store_svid} × every call that serves entries. Flags change nothing about who may issue;
/// only the end of an entry does, everywhere.
#[tokio::test]
async fn an_ended_entry_reaches_nobody_by_any_call() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let kinds: [(&str, fn(&mut types::Entry), bool); 5] = [
        ("/plain", |_| (), true),
        ("/admin", |entry| entry.admin = true, true),
        ("/downstream", |entry| entry.downstream = true, true),
        ("/stored", |entry| entry.store_svid = true, true),
        ("/ended", |entry| entry.expires_at = 1, false),
    ];
    for (path, change, live) in kinds {
        let id = ca.entry_with(path, "/node/local", change).await.unwrap();
        assert_eq!(authorized(&ca, &node).await.contains(&id), live, "{path}");
        let first = SyncAuthorizedEntriesRequest::default();
        let mut client = EntryClient::new(ca.network(Some(&node)));
        let mut synced = client.sync_authorized_entries(tokio_stream::once(first)).await.unwrap().into_inner();
        let synced = synced.message().await.unwrap().unwrap().entries;
        assert_eq!(synced.iter().any(|entry| entry.id == id), live, "{path}");
        assert_eq!(issue(&ca, &node, &[&id]).await[0].is_ok(), live, "{path}");
        let request = NewJwtsvidRequest { entry_id: id, audience: vec!["db".into()] };
        let issued = SvidClient::new(ca.network(Some(&node))).new_jwtsvid(request).await;
        assert_eq!(issued.is_ok(), live, "{path}");
    }
}

#[tokio::test]
async fn no_svid_outlives_its_entry() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let end = ca.certifier.now_secs() + 100;
    let id = ca.entry_with("/web", "/node/local", |entry| entry.expires_at = end).await.unwrap();
    let svid = issue(&ca, &node, &[&id]).await.remove(0).unwrap();
    let not_after = svid.not_after().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(i64::try_from(not_after).unwrap() <= end, "{not_after} is after {end}");
    let request = NewJwtsvidRequest { entry_id: id, audience: vec!["db".into()] };
    let token = SvidClient::new(ca.network(Some(&node))).new_jwtsvid(request).await.unwrap().into_inner().svid.unwrap();
    assert!(token.expires_at <= end, "{} is after {end}", token.expires_at);
}

#[tokio::test]
async fn the_largest_page_costs_only_what_there_is() {
    let ca = Running::start().await;
    ca.entry("/web", "/node/local").await;
    let request = ListEntriesRequest { page_size: i32::MAX, ..Default::default() };
    let page = EntryClient::new(ca.local().await).list_entries(request).await.unwrap().into_inner();
    assert_eq!((page.entries.len(), page.next_page_token.as_str()), (1, ""));
    let request = ListAgentsRequest { page_size: i32::MAX, ..Default::default() };
    let page = AgentClient::new(ca.local().await).list_agents(request).await.unwrap().into_inner();
    assert!(page.agents.is_empty() && page.next_page_token.is_empty());
}

proptest! {
    /// Every field of an entry comes out as it went in, through the wire, a change of all fields, and a change of none.
    #[test]
    fn every_field_of_an_entry_survives(
        paths in ("[a-z]{1,8}", "[a-z]{1,8}"),
        selectors in proptest::collection::btree_map("[a-z]{1,6}", "[a-zA-Z0-9:/._-]{1,12}", 1..5),
        (x509_svid_ttl, jwt_svid_ttl, expires_at) in (0..3600_i32, 0..3600_i32, 0..i64::MAX),
        flags in any::<[bool; 5]>(),
        hint in "[a-z ]{0,10}",
        dns_names in proptest::collection::btree_set("[a-z]{1,6}(\\.[a-z]{1,6})?", 0..4),
        federates_with in proptest::collection::btree_set("[a-z]{1,6}\\.net", 0..4),
    ) {
        let [admin, downstream, store_svid, prefetch_off, jti] = flags;
        let attributes = types::entry::AdditionalAttributes { disable_x509_svid_prefetch: prefetch_off, jwt_svid_include_jti: jti };
        let message = types::Entry {
            id: "e".into(),
            spiffe_id: Some(id_message(&format!("/{}", paths.0))),
            parent_id: Some(id_message(&format!("/{}", paths.1))),
            selectors: selectors.into_iter().map(|(kind, value)| types::Selector { r#type: kind, value }).collect(),
            x509_svid_ttl, jwt_svid_ttl, expires_at, admin, downstream, store_svid, hint,
            federates_with: federates_with.into_iter().collect(),
            dns_names: dns_names.into_iter().collect(),
            created_at: 7,
            revision_number: 0,
            additional_attributes: (prefetch_off || jti).then_some(attributes),
        };
        let patch = || EntryPatch::read(&message, &whole_mask(), &trust_domain(), 3600).unwrap();
        let entry = patch().into_entry("e".into(), 7).unwrap();
        prop_assert_eq!(message_of(&entry, None), message.clone());
        let mut other = crate::testing::entry("e", "/x", "/y");
        other.created_at = 7;
        patch().apply(&mut other);
        prop_assert_eq!(&other, &entry);
        let nothing = EntryPatch::read(&message, &types::EntryMask::default(), &trust_domain(), 3600).unwrap();
        let mut same = entry.clone();
        nothing.apply(&mut same);
        prop_assert_eq!(same, entry);
    }
}
