//! The Workload API over its socket; the workload is this test process.

mod standard;

use std::sync::atomic::Ordering;

use identity::jwt::{JwtAuthorityKey, JwtSvidProfile};
use identity::svid::split_concatenated_der;
use identity::{PrivateKey, X509Svid};
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use runtime::workload_api::fetch_x509;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::*;
use crate::caller::STREAMS_PER_PROCESS_MAX;
use crate::fake::{Service, changed, domain, entry, own_entry};
use crate::server::workload_api;

fn service() -> Service {
    Service::start(workload_api)
}

async fn client(service: &Service) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(service.channel().await)
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HEADER, MetadataValue::from_static("true"));
    request
}

async fn refusal_of_fetch(service: &Service) -> (Code, Option<String>) {
    let answers = client(service).await.fetch_x509svid(with_header(X509svidRequest {})).await;
    let status = match answers {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    (status.code(), refusal::reason_of(&status))
}

#[tokio::test]
async fn a_workload_gets_its_svids_key_and_bundle() {
    let service = service();
    let hinted = changed(&own_entry("b", "/b"), |entry| entry.hint = "internal".into());
    service.publish([own_entry("a", "/a"), hinted, entry("c", "/c", &["unix:uid:4000000000"])]).rotate();
    let mut answers =
        client(&service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let shown: Vec<_> = answer.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(shown, [("spiffe://example.org/a", ""), ("spiffe://example.org/b", "internal")]);
    let first = &answer.svids[0];
    let chain = split_concatenated_der(&first.x509_svid).unwrap();
    let key = PrivateKey::from_pkcs8_der(&first.x509_svid_key).unwrap();
    assert_eq!(X509Svid::from_parts(chain, key).unwrap().id().as_str(), first.spiffe_id);
    assert_eq!(first.bundle, service.state.current().bundles.get(&domain()).unwrap().to_concatenated_der());
    assert!(answer.federated_bundles.is_empty() && answer.crl.is_empty());
}

#[tokio::test]
async fn a_rotation_is_pushed_on_the_open_stream_and_nothing_twice() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let mut answers =
        client(&service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    // A change that is none of this workload's business, then one that is.
    service.publish([own_entry("a", "/a"), entry("c", "/c", &["unix:uid:4000000000"])]);
    service.rotate();
    let second = answers.message().await.unwrap().unwrap();
    assert_ne!(first.svids[0].x509_svid, second.svids[0].x509_svid);
    assert_ne!(first.svids[0].x509_svid_key, second.svids[0].x509_svid_key);
}

#[tokio::test]
async fn an_identity_that_is_taken_away_ends_the_stream() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let mut answers =
        client(&service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    service.publish([]);
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test]
async fn a_call_waits_for_the_first_sync_and_the_first_svid() {
    let service = service();
    let endpoint = service.socket.clone().into();
    let fetching = fetch_x509(&endpoint);
    tokio::pin!(fetching);
    tokio::select! {
        biased;
        _ = &mut fetching => panic!("answered before anything was known"),
        () = async { for _ in 0..100 { tokio::task::yield_now().await } } => (),
    }
    service.publish([own_entry("a", "/a")]);
    service.rotate();
    assert_eq!(fetching.await.unwrap().svid().id().path(), "/a");
}

#[tokio::test]
async fn an_expired_svid_is_never_answered() {
    let service = service();
    *service.ca.ttl.lock().unwrap() = std::time::Duration::from_secs(1);
    service.publish([own_entry("a", "/a")]).rotate();
    let snapshot = service.state.current();
    let entries: Vec<_> = snapshot.entries.iter().cloned().collect();
    let expiry = snapshot.held["a"].svid.not_after();
    assert_eq!(snapshot.svids_of(&entries, expiry - std::time::Duration::from_millis(1)).len(), 1);
    assert_eq!(snapshot.svids_of(&entries, expiry).len(), 0);
}

#[tokio::test]
async fn a_process_without_an_entry_is_refused() {
    let service = service();
    service.publish([entry("a", "/a", &["unix:uid:4000000000"])]).rotate();
    assert_eq!(refusal_of_fetch(&service).await, (Code::PermissionDenied, Some("NO_IDENTITY_ISSUED".into())));
}

#[tokio::test]
async fn the_header_is_mandatory_exact_and_single() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    for values in [&[][..], &["True"], &["false"], &["true", "true"]] {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request.metadata_mut().append(HEADER, value.parse().unwrap());
        }
        let status = client(&service).await.fetch_x509svid(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{values:?}");
    }
}

#[tokio::test]
async fn streams_of_one_process_are_limited_and_given_back() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let mut client = client(&service).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS_PER_PROCESS_MAX {
        open.push(client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap());
    }
    assert_eq!(refusal_of_fetch(&service).await, (Code::Unavailable, Some("TOO_MANY_STREAMS".into())));
    drop(open.pop());
    while client.fetch_x509svid(with_header(X509svidRequest {})).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bundles_hold_the_own_domain_and_the_federated_ones() {
    let service = service();
    let foreign = TrustDomain::parse("other.org").unwrap();
    let unrelated = TrustDomain::parse("unrelated.org").unwrap();
    service.ca.federated.lock().unwrap().extend([TrustBundle::new(foreign.clone()), TrustBundle::new(unrelated)]);
    let federated = changed(&own_entry("a", "/a"), |entry| {
        entry.federates_with.insert(foreign.clone());
    });
    service.publish([federated]);
    let mut client = client(&service).await;
    let mut x509 = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let names: Vec<_> = x509.message().await.unwrap().unwrap().bundles.into_keys().collect();
    assert_eq!(names, ["spiffe://example.org", "spiffe://other.org"]);
    let mut jwt = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let bundles = jwt.message().await.unwrap().unwrap().bundles;
    let own: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap();
    assert_eq!(own["keys"].as_array().unwrap().len(), 1);
    assert_eq!((&own["keys"][0]["use"], own["keys"][0].get("x5c")), (&"jwt-svid".into(), None));
}

#[tokio::test]
async fn jwt_svids_are_issued_kept_and_validated() {
    let service = service();
    service.publish([own_entry("a", "/a"), own_entry("b", "/b")]);
    let mut client = client(&service).await;
    let ask = |id: &str| with_header(JwtsvidRequest { audience: vec!["db".into()], spiffe_id: id.into() });
    let both = client.fetch_jwtsvid(ask("")).await.unwrap().into_inner().svids;
    assert_eq!(both.len(), 2);
    let one = client.fetch_jwtsvid(ask("spiffe://example.org/b")).await.unwrap().into_inner().svids;
    assert_eq!((one.len(), &one[0].svid), (1, &both[1].svid), "the young token is given again");
    assert_eq!(service.ca.jwts.load(Ordering::SeqCst), 2);
    let validate = |audience: &str, svid: &str| {
        with_header(ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() })
    };
    let valid = client.validate_jwtsvid(validate("db", &one[0].svid)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/b");
    let audience = valid.claims.unwrap().fields["aud"].kind.clone().unwrap();
    assert!(matches!(audience, prost_types::value::Kind::ListValue(list) if list.values.len() == 1));
    for (audience, svid) in [("other", one[0].svid.as_str()), ("db", "nonsense"), ("", "x"), ("db", "")] {
        let status = client.validate_jwtsvid(validate(audience, svid)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_jwt_svid_needs_an_audience_and_an_identity_of_the_workload() {
    let service = service();
    service.publish([own_entry("a", "/a"), entry("c", "/c", &["unix:uid:4000000000"])]);
    let mut client = client(&service).await;
    let mut ask = async |audience: &[&str], id: &str| {
        let audience = audience.iter().map(ToString::to_string).collect();
        let request = with_header(JwtsvidRequest { audience, spiffe_id: id.into() });
        client.fetch_jwtsvid(request).await.unwrap_err().code()
    };
    assert_eq!(ask(&[], "").await, Code::InvalidArgument);
    assert_eq!(ask(&[""], "").await, Code::InvalidArgument);
    assert_eq!(ask(&["x"; AUDIENCES_MAX + 1], "").await, Code::InvalidArgument);
    assert_eq!(ask(&["db"], "not an id").await, Code::InvalidArgument);
    assert_eq!(ask(&["db"], "spiffe://example.org/c").await, Code::PermissionDenied);
    service.ca.set_down(true);
    assert_eq!(ask(&["db"], "").await, Code::Unavailable);
}

#[tokio::test]
async fn a_foreign_jwt_svid_counts_only_where_the_entry_federates() {
    let service = service();
    let (foreign, key) = (TrustDomain::parse("other.org").unwrap(), JwtAuthorityKey::generate().unwrap());
    let mut bundle = TrustBundle::new(foreign.clone());
    bundle.jwt_authorities.push(key.public(None));
    service.ca.federated.lock().unwrap().push(bundle);
    let profile = JwtSvidProfile {
        id: foreign.with_path("/x").unwrap(),
        audiences: vec!["db".into()],
        ttl: std::time::Duration::from_secs(60),
        issuer: Some("https://other.org".into()),
        token_id: None,
    };
    let token = key.sign_svid(&profile, runtime::clock::now()).unwrap().token;
    let mut client = client(&service).await;
    let ask = || with_header(ValidateJwtsvidRequest { audience: "db".into(), svid: token.clone() });
    service.publish([own_entry("a", "/a")]);
    assert_eq!(client.validate_jwtsvid(ask()).await.unwrap_err().code(), Code::InvalidArgument);
    let federated = changed(&own_entry("a", "/a"), |entry| {
        entry.federates_with.insert(foreign.clone());
    });
    service.publish([federated]);
    let valid = client.validate_jwtsvid(ask()).await.unwrap().into_inner();
    let names: Vec<_> = valid.claims.unwrap().fields.into_keys().collect();
    assert_eq!(names, ["aud", "exp", "sub"]);
}

/// What the CA says is revoked comes into force, as a sync does it.
fn revoke(service: &Service, serials: &[&str], tokens: &[&str]) {
    let mut news = service.ca.revoke(serials);
    let hash = |token: &&str| (identity::digest::sha256(token.as_bytes()), i64::MAX);
    news.tokens = tokens.iter().map(hash).collect();
    let revocations = service.state.current().revocations.with(news, 0).unwrap();
    service.state.put_revocations(revocations);
}

#[tokio::test]
async fn lists_are_pushed_with_svids_and_bundles_and_peers_are_judged_by_them() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let mut client = client(&service).await;
    let mut svids = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let mut bundles = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let (first, none) = (svids.message().await.unwrap().unwrap(), bundles.message().await.unwrap().unwrap());
    assert!(first.crl.is_empty() && none.crl.is_empty());
    let chain = split_concatenated_der(&first.svids[0].x509_svid).unwrap();
    revoke(&service, &["0a"], &[]);
    let (second, some) = (svids.message().await.unwrap().unwrap(), bundles.message().await.unwrap().unwrap());
    assert_eq!((second.crl.len(), &some.crl), (1, &second.crl));
    assert!(identity::revocation::Crl::decode(&second.crl[0]).unwrap().find(&[0x0a]).is_some());
    // Our own client heeds them: a peer on the list is refused.
    let serial = service.state.current().held["a"].svid.serial().to_owned();
    let now = identity::unix_time(runtime::clock::now());
    let fetched = fetch_x509(&service.socket.clone().into()).await.unwrap();
    assert!(identity::verify::verify_peer(&chain, fetched.bundles(), now).is_ok());
    revoke(&service, &[&serial], &[]);
    service.rotate();
    let fetched = fetch_x509(&service.socket.clone().into()).await.unwrap();
    let refused = identity::verify::verify_peer(&chain, fetched.bundles(), now).unwrap_err();
    assert_eq!(refused.reason(), "CERT_REVOKED");
}

#[tokio::test]
async fn a_revoked_svid_is_handed_out_no_more() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let serial = service.state.current().held["a"].svid.serial().to_owned();
    revoke(&service, &[&serial], &[]);
    assert!(service.state.current().held.is_empty());
    let mut client = client(&service).await;
    let mut answers = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let nothing = tokio::time::timeout(std::time::Duration::from_millis(200), answers.message()).await;
    assert!(nothing.is_err(), "it waits for another one: {nothing:?}");
    // Its entry ends: the standard's refusal.
    service.publish([]);
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_revoked_jwt_svid_is_not_valid() {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    let mut client = client(&service).await;
    let request = || with_header(JwtsvidRequest { audience: vec!["me".into()], spiffe_id: String::new() });
    let token = client.fetch_jwtsvid(request()).await.unwrap().into_inner().svids.remove(0).svid;
    let validate = || with_header(ValidateJwtsvidRequest { audience: "me".into(), svid: token.clone() });
    assert!(client.validate_jwtsvid(validate()).await.is_ok());
    revoke(&service, &[], &[&token]);
    let refused = client.validate_jwtsvid(validate()).await.unwrap_err();
    assert_eq!(refusal::reason_of(&refused).as_deref(), Some("TOKEN_REVOKED"));
    let next = client.fetch_jwtsvid(request()).await.unwrap().into_inner().svids.remove(0).svid;
    assert_ne!(next, token, "it is not given out again");
}
