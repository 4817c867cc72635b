//! What somebody tries who should not get it.

use identity::authority::{LeafProfile, X509Authority};
use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::svid::v1::MintX509svidRequest;

use super::*;
use crate::testing::running::join_request;

/// The last byte of a DER-encoded CSR belongs to its signature.
fn forged(mut csr: Vec<u8>) -> Vec<u8> {
    *csr.last_mut().unwrap() ^= 1;
    csr
}

async fn a_node_gets_no_entry_of_another_node() {
    let ca = Running::start().await;
    let (mine, other) = (ca.node(Some("/node/mine")).await, ca.node(Some("/node/other")).await);
    let (own, foreign) = (ca.entry("/web", "/node/mine").await, ca.entry("/db", "/node/other").await);
    let outcomes = issue(&ca, &mine, &[&foreign, &own, "unknown"]).await;
    assert_eq!(outcomes[0].as_ref().err(), Some(&Code::NotFound));
    assert!(outcomes[1].is_ok());
    assert_eq!(outcomes[2].as_ref().err(), Some(&Code::NotFound), "whether it exists is not told");
    let request = NewJwtsvidRequest { entry_id: foreign.clone(), audience: vec!["x".into()] };
    let refused = SvidClient::new(ca.network(Some(&mine))).new_jwtsvid(request).await;
    assert_eq!(reason(refused), "ENTRY_NOT_AUTHORIZED");
    assert_eq!(authorized(&ca, &mine).await, [own]);
    assert!(issue(&ca, &other, &[&foreign]).await[0].is_ok());
}

async fn an_alias_entry_itself_is_nobodys_identity() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/mine")).await;
    let alias = ca.certifier.store.registry().entries_after("").next().unwrap().id.clone();
    assert_eq!(issue(&ca, &node, &[&alias]).await[0].as_ref().err(), Some(&Code::NotFound));
    assert!(authorized(&ca, &node).await.is_empty());
}

async fn a_csr_without_possession_of_the_key_is_refused_everywhere() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let csr = forged(PrivateKey::generate_p256().unwrap().csr_der(None).unwrap());

    let token = ca.token(None).await;
    let joined =
        AgentClient::new(ca.network(None)).attest_agent(tokio_stream::once(join_request(&token, csr.clone()))).await;
    assert_eq!(reason(joined), "CSR_BAD_SIGNATURE");
    assert!(ca.join(&token).await.is_ok(), "the token was not used up");

    let renew = RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr.clone() }) };
    assert_eq!(reason(AgentClient::new(ca.network(Some(&node))).renew_agent(renew).await), "CSR_BAD_SIGNATURE");

    let params = vec![NewX509svidParams { entry_id: entry, csr: csr.clone() }];
    let answer = SvidClient::new(ca.network(Some(&node))).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    let result = answer.unwrap().into_inner().results.remove(0);
    assert_eq!((result.status.unwrap().code, result.svid), (Code::InvalidArgument as i32, None));

    let mint = SvidClient::new(ca.local().await).mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await;
    assert_eq!(reason(mint), "CSR_BAD_SIGNATURE");
}

async fn names_in_a_nodes_csr_do_not_count() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let key = PrivateKey::generate_p256().unwrap();
    let csr = key.csr_der_with(Some(&id("/spire/server")), &["evil.example.org".into()]).unwrap();
    let request = BatchNewX509svidRequest { params: vec![NewX509svidParams { entry_id: entry, csr: csr.clone() }] };
    let answer = SvidClient::new(ca.network(Some(&node))).batch_new_x509svid(request).await.unwrap().into_inner();
    let svid = svid_of(answer.results[0].svid.clone().unwrap(), key);
    assert_eq!((svid.id(), svid.dns_names().len()), (&id("/web"), 0));
    let token = ca.token(None).await;
    let joined = AgentClient::new(ca.network(None)).attest_agent(tokio_stream::once(join_request(&token, csr))).await;
    joined.unwrap();
    let known = ca.certifier.store.registry().agents().map(|agent| agent.id.path().to_owned()).collect::<Vec<_>>();
    assert!(known.iter().all(|path| path.starts_with("/spire/agent/join_token/")), "{known:?}");
}

async fn a_join_token_works_once_even_in_a_race() {
    let ca = Running::start().await;
    let token = ca.token(None).await;
    let attempts = futures_util::future::join_all((0..64).map(|_| ca.join(&token))).await;
    let (joined, refused): (Vec<_>, Vec<_>) = attempts.into_iter().partition(Result::is_ok);
    assert_eq!((joined.len(), refused.len()), (1, 63));
    for attempt in refused {
        assert_eq!(reason(attempt), "JOIN_TOKEN_UNKNOWN");
    }
    let node = joined.into_iter().next().unwrap().unwrap();
    authorized(&ca, &node).await;
}

async fn tokens_that_are_no_tokens_are_refused() {
    let ca = Running::start().await;
    for token in ["", "unknown", "../../server", "a/b", "a%2fb", "ä", &"x".repeat(256), &"x".repeat(100_000)] {
        assert_eq!(reason(ca.join(token).await), "JOIN_TOKEN_UNKNOWN", "{token}");
    }
    let key = PrivateKey::generate_p256().unwrap();
    let mut request = join_request("x", key.csr_der(None).unwrap());
    let Some(proto::spire::api::server::agent::v1::attest_agent_request::Step::Params(params)) = &mut request.step
    else {
        unreachable!("made with params")
    };
    params.data.as_mut().unwrap().r#type = "x509pop".into();
    let attest = AgentClient::new(ca.network(None)).attest_agent(tokio_stream::once(request)).await;
    assert_eq!(reason(attest), "ATTESTOR_UNKNOWN");
    let mut admin = AgentClient::new(ca.local().await);
    for (token, ttl, expected) in [
        ("a/b", 60, "JOIN_TOKEN_INVALID"),
        ("..", 60, "JOIN_TOKEN_INVALID"),
        ("", 0, "TTL_INVALID"),
        ("", -1, "TTL_INVALID"),
    ] {
        let request = CreateJoinTokenRequest { ttl, token: token.into(), agent_id: None };
        assert_eq!(reason(admin.create_join_token(request).await), expected, "{token}");
    }
    let reserved =
        CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id: Some(id_message("/spire/server")) };
    assert_eq!(reason(admin.create_join_token(reserved).await), "SPIFFE_ID_REFUSED");
}

/// The right ID and the right root, but not the SVID that the authority gave to this node.
async fn a_node_id_in_a_certificate_of_another_serial_is_refused() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let key = PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile::new(node.id().clone(), Duration::from_secs(600));
    let signing = ca.certifier.authorities.current();
    let chain = signing.x509.sign_svid(&key.public_key_spki(), &profile, std::time::SystemTime::now()).unwrap();
    let twin = Arc::new(X509Svid::from_parts(chain, key).unwrap());
    let refused =
        EntryClient::new(ca.network(Some(&twin))).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(reason(refused), "AGENT_NOT_ACTIVE");
}

async fn a_certificate_of_another_root_does_not_even_connect() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let now = std::time::SystemTime::now();
    let root = X509Authority::generate_root(&trust_domain(), Duration::from_secs(3600), now).unwrap();
    let key = PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile::new(node.id().clone(), Duration::from_secs(600));
    let chain = root.sign_svid(&key.public_key_spki(), &profile, now).unwrap();
    let fake = Arc::new(X509Svid::from_parts(chain, key).unwrap());
    let status = EntryClient::new(ca.network(Some(&fake)))
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal), "{status:?}");
    assert_eq!(runtime::refusal::reason_of(&status), None, "no service was reached");
}

async fn an_administrator_gives_out_no_reserved_and_no_foreign_identity() {
    let ca = Running::start().await;
    let mut admin = SvidClient::new(ca.local().await);
    let key = PrivateKey::generate_p256().unwrap();
    let elsewhere = identity::SpiffeId::parse("spiffe://elsewhere.org/web").unwrap();
    for (wanted, expected) in [
        (Some(id("/spire/server")), "SPIFFE_ID_REFUSED"),
        (Some(id("/spire/agent/join_token/x")), "SPIFFE_ID_REFUSED"),
        (Some(elsewhere), "SPIFFE_ID_REFUSED"),
        (Some(trust_domain().id()), "SPIFFE_ID_REFUSED"),
        (None, "CSR_NAMES_REFUSED"),
    ] {
        let request = MintX509svidRequest { csr: key.csr_der(wanted.as_ref()).unwrap(), ttl: 0 };
        assert_eq!(reason(admin.mint_x509svid(request).await), expected, "{wanted:?}");
    }
    let request = MintX509svidRequest { csr: key.csr_der(Some(&id("/web"))).unwrap(), ttl: -1 };
    assert_eq!(reason(admin.mint_x509svid(request).await), "TTL_INVALID");
    let request = MintJwtsvidRequest { id: Some(id_message("/web")), audience: vec![], ttl: 0 };
    assert_eq!(reason(admin.mint_jwtsvid(request).await), "AUDIENCE_INVALID");
    assert_eq!(ca.entry_with("/spire/agent/x", "/node", |_| ()).await.unwrap_err().code, Code::InvalidArgument as i32);
}

async fn batches_have_a_limit() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let params = vec![NewX509svidParams::default(); super::super::svid::BATCH_SVIDS_MAX + 1];
    let mut client = SvidClient::new(ca.network(Some(&node)));
    assert_eq!(reason(client.batch_new_x509svid(BatchNewX509svidRequest { params }).await), "BATCH_TOO_LARGE");
    let ids = vec![String::new(); super::super::BATCH_ITEMS_MAX + 1];
    let delete = EntryClient::new(ca.local().await).batch_delete_entry(BatchDeleteEntryRequest { ids }).await;
    assert_eq!(reason(delete), "BATCH_TOO_LARGE");
}

async fn no_secret_shows_in_what_the_services_print() {
    let ca = Running::start().await;
    let shown = format!("{:?} {:?}", ca.certifier, join_request("very-secret", Vec::new()));
    assert!(!shown.contains("very-secret"), "{shown}");
}

crate::testing::database::on_each_database! {
    a_node_gets_no_entry_of_another_node,
    an_alias_entry_itself_is_nobodys_identity,
    a_csr_without_possession_of_the_key_is_refused_everywhere,
    names_in_a_nodes_csr_do_not_count,
    a_join_token_works_once_even_in_a_race,
    tokens_that_are_no_tokens_are_refused,
    a_node_id_in_a_certificate_of_another_serial_is_refused,
    a_certificate_of_another_root_does_not_even_connect,
    an_administrator_gives_out_no_reserved_and_no_foreign_identity,
    batches_have_a_limit,
    no_secret_shows_in_what_the_services_print,
}
