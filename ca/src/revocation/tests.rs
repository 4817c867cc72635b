//! Revocation as callers meet it: over the API, in lists and OCSP answers that OpenSSL reads, and between replicas.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use identity::CertificateDer;
use identity::key::PrivateKey;
use identity::pem;
use identity::revocation::Crl;
use identity::svid::X509Svid;
use proto::kasbah::ca::v1::revocation_client::RevocationClient;
use proto::kasbah::ca::v1::revocation_target::Target;
use proto::kasbah::ca::v1::{ListRevocationsRequest, PreviewRequest, RevocationTarget, RevokeRequest, RevokeResponse};
use proto::kasbah::node::v1::node_client::NodeClient;
use proto::kasbah::node::v1::{RevocationsRequest, RevocationsResponse, WatchRequest};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{AgentX509svidParams, RenewAgentRequest};
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;

use crate::testing::database::{self, Kind};
use crate::testing::running::{Running, reason, svid_of, until};

const KEY_COMPROMISE: u32 = 1;

async fn revoke(ca: &Running, target: Target) -> Result<RevokeResponse, Status> {
    let target = Some(RevocationTarget { target: Some(target) });
    let request = RevokeRequest { target, reason: KEY_COMPROMISE };
    Ok(RevocationClient::new(ca.local().await).revoke(request).await?.into_inner())
}

async fn issue(ca: &Running, node: &std::sync::Arc<X509Svid>, entry_id: &str) -> Option<std::sync::Arc<X509Svid>> {
    let key = PrivateKey::generate_p256().unwrap();
    let params = vec![NewX509svidParams { entry_id: entry_id.into(), csr: key.csr_der(None).unwrap() }];
    let mut client = SvidClient::new(ca.network(Some(node)));
    let answer = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
    answer.results.into_iter().next().unwrap().svid.map(|svid| svid_of(svid, key))
}

async fn fetch(ca: &Running, node: &std::sync::Arc<X509Svid>, known: u64) -> RevocationsResponse {
    let request = RevocationsRequest { known_generation: known };
    NodeClient::new(ca.network(Some(node))).fetch_revocations(request).await.unwrap().into_inner()
}

fn serving(settings: &mut crate::Settings) {
    settings.revocation.listen = Some("127.0.0.1:0".parse().unwrap());
}

async fn every_authority_has_a_list_from_the_start_and_a_revoked_leaf_stands_on_it() {
    let ca = Running::start_with(serving).await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let svid = issue(&ca, &node, &entry).await.unwrap();
    let before = fetch(&ca, &node, 0).await;
    assert!(before.whole && before.lists.len() == 2, "root and intermediate: {before:?}");
    assert!(before.lists.iter().all(|list| Crl::decode(&list.crl).unwrap().is_empty()));
    let done = revoke(&ca, Target::Serial(svid.serial().to_owned())).await.unwrap();
    assert_eq!((done.revoked, done.already, done.crl_number), (1, 0, before.generation + 1));
    let news = fetch(&ca, &node, before.generation).await;
    assert_eq!((news.whole, news.lists.len(), news.issuers.len()), (false, 1, 2));
    let crl = Crl::decode(&news.lists[0].crl).unwrap();
    assert!(crl.find(&identity::revocation::serial_bytes(svid.serial()).unwrap()).is_some());
    assert_eq!(crl.verify(&svid.issuers()[0]), Ok(()));
    let again = revoke(&ca, Target::Serial(svid.serial().to_owned())).await.unwrap();
    assert_eq!((again.revoked, again.already, again.crl_number), (0, 1, done.crl_number));
    let ahead = fetch(&ca, &node, done.crl_number + 1_000).await;
    assert!(ahead.whole, "who knows more than there is gets everything");
}

async fn bad_input_is_refused_with_its_place() {
    let ca = Running::start().await;
    let code = async |target| reason(revoke(&ca, target).await);
    assert_eq!(code(Target::Serial("xyz".into())).await, "REVOCATION_INVALID");
    assert_eq!(code(Target::Serial("0".into())).await, "REVOCATION_INVALID");
    assert_eq!(code(Target::Serial("ab12".into())).await, "ISSUANCE_UNKNOWN");
    assert_eq!(code(Target::SpiffeId("spiffe://elsewhere/a".into())).await, "SPIFFE_ID_REFUSED");
    assert_eq!(code(Target::SpiffeId("spiffe://example.org/spire/server".into())).await, "SPIFFE_ID_REFUSED");
    assert_eq!(code(Target::EntryId("nobody".into())).await, "ENTRY_UNKNOWN");
    assert_eq!(code(Target::EntryId(String::new())).await, "REVOCATION_INVALID");
    assert_eq!(code(Target::NodeId("spiffe://example.org/web".into())).await, "SPIFFE_ID_REFUSED");
    assert_eq!(code(Target::NodeId("spiffe://example.org/spire/agent/x/y".into())).await, "AGENT_UNKNOWN");
    let mut client = RevocationClient::new(ca.local().await);
    assert_eq!(reason(client.revoke(RevokeRequest::default()).await), "REVOCATION_INVALID");
    let target = Some(RevocationTarget { target: Some(Target::Serial("ab".into())) });
    assert_eq!(reason(client.revoke(RevokeRequest { target, reason: 8 }).await), "REVOCATION_INVALID");
}

async fn a_preview_says_what_is_hit_and_what_would_be_issued_again() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let (one, two) = (
        ca.entry("/web", "/node/local").await,
        ca.entry_with("/web", "/node/local", |entry| {
            entry.selectors[0].value = "uid:7".into();
        })
        .await
        .unwrap(),
    );
    issue(&ca, &node, &one).await.unwrap();
    issue(&ca, &node, &two).await.unwrap();
    let target = Some(RevocationTarget { target: Some(Target::EntryId(one.clone())) });
    let mut client = RevocationClient::new(ca.local().await);
    let preview = client.preview(PreviewRequest { target }).await.unwrap().into_inner();
    assert_eq!((preview.total, preview.already, preview.items.len()), (1, 0, 1));
    assert_eq!(preview.spiffe_ids, ["spiffe://example.org/web"]);
    assert_eq!((preview.entries, preview.nodes), (vec![two.clone()], vec![node.id().to_string()]));
    assert!(issue(&ca, &node, &one).await.is_some(), "a preview changes nothing");
    revoke(&ca, Target::EntryId(one.clone())).await.unwrap();
    assert!(issue(&ca, &node, &one).await.is_none() && issue(&ca, &node, &two).await.is_some());
    let listed = client.list_revocations(ListRevocationsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.items.len(), listed.nodes), (2, 1));
    assert!(listed.items.iter().all(|item| item.entry_id == one && item.reason == KEY_COMPROMISE));
}

async fn a_revoked_node_is_out_at_once_and_its_stream_ends() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    issue(&ca, &node, &entry).await.unwrap();
    let (_open, asks) = tokio::sync::mpsc::channel::<WatchRequest>(1);
    let asks = tokio_stream::wrappers::ReceiverStream::new(asks);
    let mut watch = NodeClient::new(ca.network(Some(&node))).watch(asks).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let done = revoke(&ca, Target::NodeId(node.id().to_string())).await.unwrap();
    assert_eq!((done.revoked, done.source_ended), (2, true), "its own SVID, and what it had issued");
    let ended = async { while watch.message().await.is_ok_and(|message| message.is_some()) {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the stream ends");
    let mut client = EntryClient::new(ca.network(Some(&node)));
    assert!(client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.is_err());
    assert!(ca.certifier.store.registry().agent(node.id()).unwrap().banned);
}

/// The certificate alone is revoked: neither a new connection nor one that is open already renews it.
async fn a_revoked_certificate_of_a_node_renews_nothing() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    let open = ca.network(Some(&node));
    let renew = async |channel| {
        let key = PrivateKey::generate_p256().unwrap();
        let params = Some(AgentX509svidParams { csr: key.csr_der(None).unwrap() });
        AgentClient::new(channel).renew_agent(RenewAgentRequest { params }).await
    };
    // Opens the connection.
    EntryClient::new(open.clone()).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    revoke(&ca, Target::Serial(node.serial().to_owned())).await.unwrap();
    assert_eq!(reason(renew(open).await), "CERT_REVOKED");
    let anew = renew(ca.network(Some(&node))).await.unwrap_err();
    let error = runtime::mtls::connect_error_of(&anew).map(runtime::mtls::ConnectError::reason);
    assert!(runtime::refusal::reason_of(&anew).is_none(), "refused in the handshake: {anew:?} {error:?}");
}

async fn tokens_are_revoked_by_their_hash() {
    use proto::spire::api::server::svid::v1::NewJwtsvidRequest;
    let ca = Running::start_with(serving).await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let request = NewJwtsvidRequest { entry_id: entry, audience: vec!["a".into()] };
    let token = SvidClient::new(ca.network(Some(&node))).new_jwtsvid(request).await.unwrap().into_inner().svid;
    let hash = identity::digest::sha256(token.unwrap().token.as_bytes());
    let done = revoke(&ca, Target::Serial(identity::digest::hex(&hash))).await.unwrap();
    assert_eq!(done.revoked, 1);
    let news = fetch(&ca, &node, done.crl_number - 1).await;
    assert_eq!(news.tokens.iter().map(|token| token.sha256.as_slice()).collect::<Vec<_>>(), [hash]);
    assert!(news.lists.is_empty(), "no certificate was revoked");
    let (_, page) = get(&ca, "/tokens").await;
    assert!(String::from_utf8(page).unwrap().contains(&identity::digest::hex(&hash)));
}

async fn get(ca: &Running, path: &str) -> (http::StatusCode, Vec<u8>) {
    let (status, body) = runtime::ask::get(ca.addresses.revocation.unwrap(), path).await.unwrap();
    (status, body.to_vec())
}

fn openssl(folder: &Path, args: &str) -> Option<(bool, String)> {
    let output = match Command::new("openssl").args(args.split(' ')).current_dir(folder).output() {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has openssl: {error}");
            println!("skipped: openssl is not installed");
            return None;
        }
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Lists, root, intermediate and leaves as files for OpenSSL.
async fn files_of(ca: &Running, folder: &Path, leaves: &[(&str, &X509Svid)]) {
    let intermediate = leaves[0].1.issuers()[0].clone();
    let skid = ca.certifier.authorities.current().x509_id.clone();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("issuer.pem", &pem::certificate(&intermediate));
    std::fs::copy(ca.path("bundle.pem"), folder.join("root.pem")).unwrap();
    for (name, leaf) in leaves {
        write(name, &pem::certificate(leaf.leaf_der()));
    }
    let current = ca.certifier.revocations.current();
    let mut all = String::new();
    for list in &current.lists.lists {
        let (status, text) = get(ca, &format!("/crl/{}.pem", list.issuer_id)).await;
        assert_eq!(status, 200);
        all.push_str(std::str::from_utf8(&text).unwrap());
    }
    write("crls.pem", &all);
    let (_, der) = get(ca, &format!("/crl/{skid}.crl")).await;
    std::fs::write(folder.join("issuer.crl"), der).unwrap();
}

#[tokio::test]
async fn openssl_reads_the_lists_and_judges_by_them() {
    let ca = Running::start_with(|settings| {
        serving(settings);
        settings.revocation.url = Some("http://ca.example".into());
        settings.revocation.in_certificates = true;
    })
    .await;
    let (good, bad) = (ca.mint("/good").await, ca.mint("/bad").await);
    revoke(&ca, Target::Serial(bad.serial().to_owned())).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    files_of(&ca, dir.path(), &[("good.pem", &good), ("bad.pem", &bad)]).await;
    let crl = "crl -in issuer.crl -inform DER -CAfile issuer.pem -noout -text";
    let Some((_, said)) = openssl(dir.path(), crl) else { return };
    for part in ["verify OK", "X509v3 CRL Number", "Key Compromise", "Next Update"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let verify = |leaf: &str| {
        format!("verify -crl_check_all -CRLfile crls.pem -CAfile root.pem -untrusted issuer.pem -x509_strict {leaf}")
    };
    let (ok, said) = openssl(dir.path(), &verify("good.pem")).unwrap();
    assert!(ok, "{said}");
    let (ok, said) = openssl(dir.path(), &verify("bad.pem")).unwrap();
    assert!(!ok && said.contains("certificate revoked"), "{said}");
    let (_, text) = openssl(dir.path(), "x509 -in good.pem -noout -text").unwrap();
    let skid = &ca.certifier.authorities.current().x509_id;
    assert!(text.contains(&format!("URI:http://ca.example/crl/{skid}.crl")), "{text}");
}

#[tokio::test]
async fn openssl_asks_about_single_certificates() {
    let ca = Running::start_with(serving).await;
    let (good, bad) = (ca.mint("/good").await, ca.mint("/bad").await);
    revoke(&ca, Target::Serial(bad.serial().to_owned())).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    files_of(&ca, dir.path(), &[("good.pem", &good), ("bad.pem", &bad)]).await;
    let address = ca.addresses.revocation.unwrap();
    let ask = |which: &str| {
        let what = format!(
            "ocsp -issuer issuer.pem {which} -url http://{address}/ocsp -CAfile root.pem -verify_other issuer.pem"
        );
        let (dir, what) = (dir.path().to_owned(), what);
        tokio::task::spawn_blocking(move || openssl(&dir, &what))
    };
    for nonce in ["-nonce", "-no_nonce"] {
        let Some((ok, said)) = ask(&format!("{nonce} -cert good.pem")).await.unwrap() else { return };
        assert!(ok && said.contains("Response verify OK") && said.contains("good.pem: good"), "{said}");
        assert!(!said.contains("WARNING: no nonce"), "{said}");
        let (_, said) = ask(&format!("{nonce} -cert bad.pem")).await.unwrap().unwrap();
        assert!(said.contains("bad.pem: revoked") && said.contains("keyCompromise"), "{said}");
    }
    let (_, said) = ask("-serial 0x1234 -cert good.pem").await.unwrap().unwrap();
    assert!(said.contains("0x1234: unknown") && said.contains("good.pem: good"), "{said}");
    let (_, said) = openssl(dir.path(), "ocsp -issuer issuer.pem -cert bad.pem -no_nonce -reqout request.der").unwrap();
    let request = std::fs::read(dir.path().join("request.der")).unwrap_or_else(|_| panic!("{said}"));
    // The same question as a GET, twice: the second answer is the remembered one.
    use base64::Engine as _;
    let path = base64::engine::general_purpose::STANDARD.encode(&request).replace('+', "%2B").replace('/', "%2F");
    let first = get(&ca, &format!("/ocsp/{path}")).await;
    let second = get(&ca, &format!("/ocsp/{path}")).await;
    assert_eq!((first.0.as_u16(), first.1 == second.1), (200, true));
    assert!(ca.certifier.revocations.answers_remembered() >= 1);
    // Nonsense, and somebody else's certificate.
    assert_eq!(get(&ca, "/ocsp/AAAA").await.1, [0x30, 3, 0x0a, 1, 1]);
    std::fs::write(dir.path().join("other.pem"), pem::certificate(&foreign())).unwrap();
    let what = format!("ocsp -issuer other.pem -serial 5 -url http://{address}/ocsp");
    let folder = dir.path().to_owned();
    let (_, said) = tokio::task::spawn_blocking(move || openssl(&folder, &what)).await.unwrap().unwrap();
    assert!(said.contains("unauthorized"), "{said}");
}

fn foreign() -> CertificateDer<'static> {
    let domain = identity::TrustDomain::parse("other.org").unwrap();
    let life = Duration::from_secs(3600);
    let root = identity::authority::X509Authority::generate_root(&domain, life, runtime::clock::now()).unwrap();
    root.certificate().clone()
}

#[tokio::test]
async fn remembered_answers_are_limited_and_end_with_a_revocation() {
    let ca = Running::start_with(serving).await;
    let revocations = &ca.certifier.revocations;
    let answer = super::ocsp::Answer { der: vec![1], until: i64::MAX };
    let number = revocations.current().lists.number;
    for n in 0..super::ocsp::ANSWERS_MAX {
        revocations.remember(&n.to_be_bytes(), number, &answer);
    }
    assert_eq!(revocations.answers_remembered(), super::ocsp::ANSWERS_MAX, "at the edge");
    assert!(revocations.remembered(&0_usize.to_be_bytes(), number, 0).is_some());
    revocations.remember(b"one more", number, &answer);
    assert_eq!(revocations.answers_remembered(), 1);
    assert!(revocations.remembered(b"one more", number + 1, 0).is_none(), "the lists are other ones now");
}

#[tokio::test]
async fn a_list_that_is_known_is_not_sent_again() {
    let ca = Running::start_with(serving).await;
    let skid = ca.certifier.authorities.current().x509_id.clone();
    let address = ca.addresses.revocation.unwrap();
    let ask = async |more: &str| {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET /crl/{skid}.pem HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n{more}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let first = ask("").await;
    let etag = first.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap_or_else(|| panic!("{first}"));
    assert!(first.contains("cache-control: public, max-age=60") && first.contains("BEGIN X509 CRL"), "{first}");
    assert!(ask(&format!("if-none-match: {etag}\r\n")).await.starts_with("HTTP/1.1 304"));
    revoke(&ca, Target::Serial(ca.mint("/x").await.serial().to_owned())).await.unwrap();
    assert!(ask(&format!("if-none-match: {etag}\r\n")).await.starts_with("HTTP/1.1 200"), "it is another list now");
    assert_eq!(get(&ca, "/crl/ffff.crl").await.0, 404);
    assert_eq!(get(&ca, "/crl").await.0, 200);
}

async fn replicas_agree_on_numbers_and_revoke_for_each_other() {
    let a = Running::start().await;
    let b = a.replica().await;
    let svids = futures_util::future::join_all((0..8).map(async |n| a.mint(&format!("/w/{n}")).await)).await;
    let numbers = futures_util::future::join_all(svids.iter().enumerate().map(|(n, svid)| {
        let on = if n % 2 == 0 { &a } else { &b };
        revoke(on, Target::Serial(svid.serial().to_owned()))
    }))
    .await;
    assert!(numbers.into_iter().all(|done| done.unwrap().crl_number > 0));
    let same = async || {
        let (a, b) = (a.certifier.revocations.current(), b.certifier.revocations.current());
        a.lists.number == b.lists.number
            && a.lists.lists == b.lists.lists
            && a.lists.revoked.len() == 8
            && b.lists.revoked.len() == 8
    };
    until("the same lists on both", Duration::from_secs(10), same).await;
    let lists = a.certifier.revocations.current();
    let signed = lists.list(&a.certifier.authorities.current().x509_id, 0).unwrap();
    let crl = Crl::decode(&signed.der).unwrap();
    let number = crl.number().iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
    assert_eq!((number, crl.len()), (signed.number, 8), "the number in the list is the one that is stored");
}

/// It dies without a farewell right after it has answered.
async fn what_was_acknowledged_survives_a_kill_and_numbers_go_on() {
    let ca = Running::start().await;
    let svid = ca.mint("/bad").await;
    let done = revoke(&ca, Target::Serial(svid.serial().to_owned())).await.unwrap();
    let (dir, settings) = (ca.dir(), ca.settings.clone());
    ca.kill().await;
    let ca = Running::start_in(dir, settings).await;
    let current = ca.certifier.revocations.current();
    assert!(current.is_revoked(svid.serial()));
    let list = current.list(&ca.certifier.authorities.current().x509_id, 0).unwrap();
    assert_eq!((list.number, Crl::decode(&list.der).unwrap().len()), (done.crl_number, 1));
    let next = ca.mint("/next").await;
    let next = revoke(&ca, Target::Serial(next.serial().to_owned())).await.unwrap();
    assert_eq!(next.crl_number, done.crl_number + 1);
}

async fn a_new_intermediate_has_a_list_at_once() {
    let ca = Running::start().await;
    let before = ca.certifier.revocations.current().lists.lists.len();
    let certifier = &ca.certifier;
    certifier.authorities.renew_intermediate_now(&certifier.store, certifier.now()).await;
    let there = async || {
        let current = certifier.revocations.current();
        current.list(&certifier.authorities.current().x509_id, 0).is_some() && current.lists.lists.len() == before + 1
    };
    until("a list of the new intermediate", Duration::from_secs(5), there).await;
}

/// A root that an operator revokes leaves a list behind on which its intermediates stand.
async fn a_compromised_root_says_with_its_last_list_that_its_intermediates_are_revoked() {
    use proto::kasbah::ca::v1::rotation_client::RotationClient;
    use proto::kasbah::ca::v1::{StartRequest, StatusRequest};
    let ca = Running::start_with(serving).await;
    let svid = ca.mint("/before").await;
    let root = std::fs::read(ca.path("bundle.pem")).unwrap();
    let root = pem::decode_certificates(&root).unwrap().remove(0);
    let mut rotations = RotationClient::new(ca.local().await);
    let before = rotations.status(StatusRequest::default()).await.unwrap().into_inner();
    let old = before.authorities[0].id.clone();
    // A rotation in peace leaves no such list: see `a_rotation_in_peace_revokes_nothing`.
    rotations.start(StartRequest { compromised: true, ..StartRequest::default() }).await.unwrap();
    let there = async || ca.certifier.revocations.current().last_list(&old).is_some();
    until("the last list", Duration::from_secs(90), there).await;
    let (status, der) = get(&ca, &format!("/crl/{old}.crl")).await;
    assert_eq!(status, 200);
    let crl = Crl::decode(&der).unwrap();
    assert_eq!((crl.verify(&root), crl.len()), (Ok(()), 1));
    let intermediate = identity::summary::CertificateSummary::decode(&svid.issuers()[0]).unwrap();
    assert!(crl.find(&identity::revocation::serial_bytes(&intermediate.serial).unwrap()).is_some());
    let current = ca.certifier.revocations.current();
    assert!(current.for_nodes().any(|list| list.issuer_id == old), "nodes cut what the root had proven");
}

async fn a_rotation_in_peace_revokes_nothing() {
    use proto::kasbah::ca::v1::rotation_client::RotationClient;
    use proto::kasbah::ca::v1::{StartRequest, StatusRequest};
    let ca = Running::start_with(serving).await;
    ca.mint("/before").await;
    let mut rotations = RotationClient::new(ca.local().await);
    let old = rotations.status(StatusRequest::default()).await.unwrap().into_inner().authorities[0].id.clone();
    rotations.start(StartRequest::default()).await.unwrap();
    let over = async || {
        let status = RotationClient::new(ca.local().await).status(StatusRequest::default()).await.unwrap().into_inner();
        status.phase == "idle" && status.authorities.iter().all(|authority| authority.id != old)
    };
    until("the end of the rotation", Duration::from_secs(90), over).await;
    // Its own list stays for connections that are open yet, and says nothing against them.
    let current = ca.certifier.revocations.current();
    assert!(current.last_list(&old).is_none());
    let lists = current.for_nodes().filter(|list| list.issuer_id == old);
    assert!(lists.into_iter().all(|list| Crl::decode(&list.der).unwrap().is_empty()));
}

/// Once the key's row, which has no certificate, kept every list from being signed.
async fn a_key_that_waits_for_its_certificate_stops_no_list() {
    use proto::kasbah::ca::v1::MakeCsrRequest;
    use proto::kasbah::ca::v1::custody_client::CustodyClient;
    let ca = Running::start_with(serving).await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let svid = issue(&ca, &node, &entry).await.unwrap();
    CustodyClient::new(ca.local().await).make_csr(MakeCsrRequest { another: false }).await.unwrap();
    let done = revoke(&ca, Target::Serial(svid.serial().to_owned())).await.unwrap();
    assert!(done.revoked == 1 && done.crl_number > 0, "{done:?}");
    let serial = identity::revocation::serial_bytes(svid.serial()).unwrap();
    let lists = fetch(&ca, &node, 0).await.lists;
    assert!(lists.iter().any(|list| Crl::decode(&list.crl).unwrap().find(&serial).is_some()));
}

database::on_each_database! {
    a_compromised_root_says_with_its_last_list_that_its_intermediates_are_revoked,
    a_rotation_in_peace_revokes_nothing,
    every_authority_has_a_list_from_the_start_and_a_revoked_leaf_stands_on_it,
    bad_input_is_refused_with_its_place,
    a_preview_says_what_is_hit_and_what_would_be_issued_again,
    a_revoked_node_is_out_at_once_and_its_stream_ends,
    a_key_that_waits_for_its_certificate_stops_no_list,
    a_revoked_certificate_of_a_node_renews_nothing,
    tokens_are_revoked_by_their_hash,
    a_new_intermediate_has_a_list_at_once,
    what_was_acknowledged_survives_a_kill_and_numbers_go_on,
}

mod between_replicas {
    #[tokio::test]
    async fn postgresql() {
        super::database::on(super::Kind::Postgres, super::replicas_agree_on_numbers_and_revoke_for_each_other()).await;
    }
}
