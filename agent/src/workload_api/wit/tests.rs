//! WIT-SVIDs over the Workload API's socket; the workload is this test process.

use std::sync::atomic::Ordering;

use identity::jwk::{Jwk, JwkError};
use identity::wit::WitAuthorityKey;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{JwtBundlesRequest, WitBundlesRequest, WitsvidRequest};
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::*;
use crate::fake::{Service, changed, domain, entry, own_entry};
use crate::server::workload_api;

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn client(service: &Service) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(service.channel().await)
}

async fn fetch(service: &Service, id: &str) -> Result<Streaming<WitsvidResponse>, Status> {
    let request = with_header(WitsvidRequest { spiffe_id: id.into() });
    Ok(client(service).await.fetch_witsvid(request).await?.into_inner())
}

async fn code_of(service: &Service, id: &str) -> Code {
    match fetch(service, id).await {
        Ok(mut answers) => answers.message().await.unwrap_err().code(),
        Err(status) => status.code(),
    }
}

/// What a relying party says to the WIT and a proof by the key that came with it.
fn prove_and_verify(service: &Service, svid: &Witsvid) -> Result<String, &'static str> {
    let proof = service.ca.prove(&svid.wit_svid_key, &svid.wit_svid);
    let expect = WitExpectations::at("relying party", runtime::clock::now());
    let verified = wit::verify(&svid.wit_svid, &proof, &service.state.current().bundles, &expect);
    verified.map(|verified| verified.spiffe_id().to_string()).map_err(|error| error.reason())
}

#[tokio::test]
async fn a_21_a_workload_gets_a_wit_of_each_identity_with_a_private_jwk() {
    let service = Service::start(workload_api);
    let hinted = changed(&own_entry("b", "/b"), |entry| entry.hint = "internal".into());
    service.publish([own_entry("a", "/a"), hinted, entry("c", "/c", &["unix:uid:4000000000"])]);
    let answer = fetch(&service, "").await.unwrap().message().await.unwrap().unwrap();
    let shown: Vec<_> = answer.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(shown, [("spiffe://example.org/a", ""), ("spiffe://example.org/b", "internal")]);
    for svid in &answer.svids {
        assert_eq!(prove_and_verify(&service, svid).as_ref(), Ok(&svid.spiffe_id));
        let key: Value = serde_json::from_str(&svid.wit_svid_key).unwrap();
        assert_eq!(Jwk::from_json(&key).unwrap_err(), JwkError::Private);
    }
    assert_ne!(answer.svids[0].wit_svid_key, answer.svids[1].wit_svid_key);
}

#[tokio::test]
async fn one_identity_can_be_asked_for_and_only_an_own_one() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a"), own_entry("b", "/b"), entry("c", "/c", &["unix:uid:4000000000"])]);
    let answer = fetch(&service, "spiffe://example.org/b").await.unwrap().message().await.unwrap().unwrap();
    assert_eq!(answer.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect::<Vec<_>>(), ["spiffe://example.org/b"]);
    assert_eq!(code_of(&service, "spiffe://example.org/c").await, Code::PermissionDenied);
    assert_eq!(code_of(&service, "no id").await, Code::InvalidArgument);
}

#[tokio::test]
async fn the_header_is_mandatory_for_wit_calls_too() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let mut client = client(&service).await;
    let status = client.fetch_witsvid(Request::new(WitsvidRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.fetch_wit_bundles(Request::new(WitBundlesRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_young_wit_is_given_again_and_kept_while_the_ca_is_away() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let first = fetch(&service, "").await.unwrap().message().await.unwrap().unwrap();
    service.ca.set_down(true);
    let again = fetch(&service, "").await.unwrap().message().await.unwrap().unwrap();
    assert_eq!((first, service.ca.wits.load(Ordering::SeqCst)), (again, 1));
    service.publish([own_entry("a", "/a"), own_entry("b", "/b")]);
    assert_eq!(code_of(&service, "spiffe://example.org/b").await, Code::Unavailable);
}

#[tokio::test]
async fn a_new_authority_in_the_place_of_the_old_is_pushed_as_a_new_wit() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let mut answers = fetch(&service, "").await.unwrap();
    let first = answers.message().await.unwrap().unwrap();
    let next = WitAuthorityKey::generate().unwrap();
    service.ca.bundle.lock().unwrap().wit_authorities = vec![next.public(None)];
    *service.ca.wit_key.lock().unwrap() = next;
    service.publish([own_entry("a", "/a")]);
    let second = answers.message().await.unwrap().unwrap();
    assert_ne!(first.svids[0].wit_svid_key, second.svids[0].wit_svid_key);
    assert_eq!(prove_and_verify(&service, &first.svids[0]), Err("JWT_NO_KEY"));
    assert!(prove_and_verify(&service, &second.svids[0]).is_ok());
}

#[tokio::test]
async fn an_identity_that_is_taken_away_ends_the_wit_stream() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let mut answers = fetch(&service, "").await.unwrap();
    answers.message().await.unwrap().unwrap();
    service.publish([]);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_wit_of_another_identity_or_of_an_unknown_authority_is_not_passed_on() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    service.ca.wrong_id.store(true, Ordering::SeqCst);
    assert_eq!(code_of(&service, "").await, Code::Unavailable);
    service.ca.wrong_id.store(false, Ordering::SeqCst);
    *service.ca.wit_key.lock().unwrap() = WitAuthorityKey::generate().unwrap();
    assert_eq!(code_of(&service, "").await, Code::Unavailable);
}

#[tokio::test]
async fn w_21_a_17_wit_bundles_and_jwt_bundles_hold_their_own_keys_only() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let mut client = client(&service).await;
    let mut wit = client.fetch_wit_bundles(with_header(WitBundlesRequest {})).await.unwrap().into_inner();
    let wit = wit.message().await.unwrap().unwrap().bundles;
    let mut jwt = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let jwt = jwt.message().await.unwrap().unwrap().bundles;
    let keys = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap()["keys"].clone();
    let own = domain().id().to_string();
    let (wit, jwt) = (keys(wit[&own].as_bytes()), keys(&jwt[&own]));
    let bundle = service.ca.bundle.lock().unwrap().clone();
    let expected = serde_json::json!([["wit-svid", bundle.wit_authorities[0].key_id]]);
    let shown =
        |keys: &Value| keys.as_array().unwrap().iter().map(|k| serde_json::json!([k["use"], k["kid"]])).collect();
    assert_eq!(Value::Array(shown(&wit)), expected);
    let expected = serde_json::json!([["jwt-svid", bundle.jwt_authorities[0].key_id]]);
    assert_eq!(Value::Array(shown(&jwt)), expected);
}

#[tokio::test]
async fn a_21_without_a_wit_authority_both_calls_are_unimplemented() {
    let service = Service::start(workload_api);
    service.ca.bundle.lock().unwrap().wit_authorities.clear();
    service.publish([own_entry("a", "/a")]);
    assert_eq!(code_of(&service, "").await, Code::Unimplemented);
    let status = client(&service).await.fetch_wit_bundles(with_header(WitBundlesRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_tainted_authority_has_its_wits_replaced() {
    let service = Service::start(workload_api);
    service.publish([own_entry("a", "/a")]);
    let mut answers = fetch(&service, "").await.unwrap();
    let first = answers.message().await.unwrap().unwrap();
    let next = WitAuthorityKey::generate().unwrap();
    {
        let mut bundle = service.ca.bundle.lock().unwrap();
        let old = bundle.wit_authorities[0].key_id.clone();
        bundle.taint_key(&old);
        bundle.wit_authorities.push(next.public(None));
    }
    *service.ca.wit_key.lock().unwrap() = next;
    service.publish([own_entry("a", "/a")]);
    let second = answers.message().await.unwrap().unwrap();
    assert_ne!(first.svids[0].wit_svid, second.svids[0].wit_svid);
    assert!(prove_and_verify(&service, &first.svids[0]).is_ok(), "a tainted authority still counts");
    assert!(prove_and_verify(&service, &second.svids[0]).is_ok());
}
