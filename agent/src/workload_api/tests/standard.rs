//! Each rule of the SPIFFE Workload Endpoint and Workload API standards that this agent answers for, by its number in our list:
//! A-01 is the first rule of the two documents, A-23 the last.

use runtime::workload_api::{Endpoint, IdentityStream};

use super::*;

/// One identity and its SVID.
fn one() -> Service {
    let service = service();
    service.publish([own_entry("a", "/a")]).rotate();
    service
}

async fn first_x509(service: &Service) -> X509svidResponse {
    let answers = client(service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_01_a_03_the_api_is_served_as_plain_grpc_over_a_unix_socket() {
    assert_eq!(first_x509(&one()).await.svids.len(), 1);
}

#[tokio::test]
async fn a_02_every_call_needs_the_header_exactly_once() {
    let service = one();
    let mut client = client(&service).await;
    for values in [&[][..], &["True"], &["false"], &["1"], &["true", "true"]] {
        macro_rules! refused {
            ($call:ident, $message:expr) => {{
                let mut request = Request::new($message);
                for value in values {
                    request.metadata_mut().append(HEADER, value.parse().unwrap());
                }
                let status = client.$call(request).await.map(drop).unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{} with {values:?}", stringify!($call));
            }};
        }
        refused!(fetch_x509svid, X509svidRequest {});
        refused!(fetch_x509_bundles, X509BundlesRequest {});
        refused!(fetch_jwtsvid, JwtsvidRequest { audience: vec!["db".into()], ..Default::default() });
        refused!(fetch_jwt_bundles, JwtBundlesRequest {});
        refused!(validate_jwtsvid, ValidateJwtsvidRequest { audience: "db".into(), svid: "x".into() });
        refused!(fetch_witsvid, WitsvidRequest::default());
        refused!(fetch_wit_bundles, WitBundlesRequest {});
    }
}

#[test]
fn a_04_a_05_a_06_addresses_are_unix_with_an_absolute_path_or_tcp_with_ip_and_port() {
    for good in ["unix:///run/a.sock", "unix:/run/a.sock", "tcp://127.0.0.1:8000", "tcp://[::1]:8000"] {
        assert!(Endpoint::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "unix://run/a.sock",
        "unix:run/a.sock",
        "unix:///run/a.sock?x=1",
        "unix:///run/a.sock#x",
        "tcp://localhost:1",
        "tcp://1.2.3.4",
        "tcp://1.2.3.4:1/x",
        "http://1.2.3.4:1",
        "/run/a.sock",
        "",
    ] {
        assert!(Endpoint::parse(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_07_the_caller_shows_nothing_but_itself() {
    // No credential is sent in this call, and the identity is that of the process.
    assert_eq!(first_x509(&one()).await.svids[0].spiffe_id, "spiffe://example.org/a");
}

#[tokio::test]
async fn a_08_a_10_the_socket_has_the_whole_workload_api_and_nothing_is_added_to_it() {
    let service = one();
    let mut client = client(&service).await;
    assert_eq!(first_x509(&service).await.svids.len(), 1);
    let ask = with_header(JwtsvidRequest { audience: vec!["db".into()], spiffe_id: String::new() });
    assert_eq!(client.fetch_jwtsvid(ask).await.unwrap().into_inner().svids.len(), 1);
    // What is not of the standard has services, and sockets, of its own.
    for path in ["/SpiffeWorkloadAPI/FetchSecret", "/kasbah.launch.v1.Launch/Register", "/grpc.health.v1.Health/Check"]
    {
        let mut other = tonic::client::Grpc::new(service.channel().await);
        other.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidResponse>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let status = other.unary(with_header(X509svidRequest {}), path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_09_codes_tell_waiting_from_refusal() {
    let service = service();
    assert_eq!(
        {
            service.publish([]);
            refusal_of_fetch(&service).await.0
        },
        Code::PermissionDenied
    );
    let mut unknown = tonic::client::Grpc::new(service.channel().await);
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/Nothing");
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidResponse>::default();
    let status = unknown.unary(with_header(X509svidRequest {}), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    service.desk.shutdown.trigger();
    // Whoever is told that the agent ends may come again.
    let desk = &service.desk;
    assert_eq!(desk.refuse(&Refusal::ShuttingDown, None).code(), Code::Unavailable);
    assert_eq!(desk.refuse(&Refusal::NotReady { what: "x" }, None).code(), Code::Unavailable);
    assert_eq!(desk.refuse(&Refusal::TooManyStreams { of: "x" }, None).code(), Code::Unavailable);
}

#[tokio::test]
async fn a_11_a_12_each_message_is_the_whole_state_and_the_first_comes_at_once() {
    let service = one();
    let mut stream = client(&service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
    service.publish([own_entry("a", "/a"), own_entry("b", "/b")]).rotate();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        assert!(message.svids.iter().any(|svid| svid.spiffe_id == "spiffe://example.org/a"), "not a difference");
        if message.svids.len() == 2 {
            break;
        }
    }
}

#[tokio::test]
async fn a_13_a_bundle_that_is_federated_no_more_leaves_the_next_message() {
    let service = service();
    let foreign = TrustDomain::parse("partner.org").unwrap();
    let root = identity::authority::X509Authority::generate_root(
        &foreign,
        std::time::Duration::from_secs(3600),
        std::time::SystemTime::now(),
    )
    .unwrap();
    let bundle = TrustBundle::from_x509_authorities(foreign.clone(), [root.certificate().clone()]).unwrap();
    service.ca.federated.lock().unwrap().push(bundle);
    let federating = changed(&own_entry("a", "/a"), |entry| {
        entry.federates_with.insert(foreign);
    });
    service.publish([federating]).rotate();
    let mut stream = IdentityStream::open(&service.socket.clone().into()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().bundles().len(), 2);
    service.publish([own_entry("a", "/a")]);
    while stream.next().await.unwrap().unwrap().bundles().len() != 1 {}
}

#[tokio::test]
async fn a_14_mandatory_fields_left_empty_are_refused() {
    let service = one();
    let mut client = client(&service).await;
    let jwt = client.fetch_jwtsvid(with_header(JwtsvidRequest::default())).await.unwrap_err();
    let nobody = ValidateJwtsvidRequest { audience: String::new(), svid: "x".into() };
    let nothing = ValidateJwtsvidRequest { audience: "db".into(), svid: String::new() };
    let validations =
        [client.validate_jwtsvid(with_header(nobody)).await, client.validate_jwtsvid(with_header(nothing)).await];
    for status in validations.into_iter().map(Result::unwrap_err).chain([jwt]) {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
}

#[tokio::test]
async fn a_15_every_field_of_an_x509_svid_is_set_leaf_first_with_an_open_pkcs8_key() {
    let answer = first_x509(&one()).await;
    let svid = &answer.svids[0];
    let chain = split_concatenated_der(&svid.x509_svid).unwrap();
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
    assert_eq!(X509Svid::from_parts(chain, key).unwrap().id().as_str(), svid.spiffe_id);
    assert!(!split_concatenated_der(&svid.bundle).unwrap().is_empty());
}

#[tokio::test]
async fn a_16_a_hint_is_given_once_in_one_answer_and_the_oldest_entry_keeps_it() {
    let service = service();
    let aged = |id: &str, created_at| {
        changed(&own_entry(id, &format!("/{id}")), |entry| (entry.hint, entry.created_at) = ("db".into(), created_at))
    };
    service.publish([aged("new", 20), aged("old", 10)]).rotate();
    let answer = first_x509(&service).await;
    let hinted: Vec<_> =
        answer.svids.iter().filter(|svid| svid.hint == "db").map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(hinted, ["spiffe://example.org/old"]);
}

#[tokio::test]
async fn a_17_the_own_bundle_is_always_there_and_holds_keys_of_its_use_only() {
    let service = one();
    let mut client = client(&service).await;
    let x509 =
        client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner().message().await;
    assert!(!x509.unwrap().unwrap().bundles["spiffe://example.org"].is_empty());
    let jwt = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner().message().await;
    let document = jwt.unwrap().unwrap().bundles.remove("spiffe://example.org").unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let keys = document["keys"].as_array().unwrap();
    assert!(
        !keys.is_empty() && keys.iter().all(|key| key["use"] == "jwt-svid" && key["kid"].is_string()),
        "{document}"
    );
}

#[tokio::test]
async fn a_18_without_an_id_every_identity_gets_a_token_and_a_foreign_id_gets_none() {
    let service = service();
    service.publish([own_entry("a", "/a"), own_entry("b", "/b")]).rotate();
    let mut client = client(&service).await;
    let ask = |id: &str| with_header(JwtsvidRequest { audience: vec!["db".into()], spiffe_id: id.into() });
    assert_eq!(client.fetch_jwtsvid(ask("")).await.unwrap().into_inner().svids.len(), 2);
    let one = client.fetch_jwtsvid(ask("spiffe://example.org/b")).await.unwrap().into_inner().svids;
    assert_eq!((one.len(), one[0].spiffe_id.as_str()), (1, "spiffe://example.org/b"));
    let other = client.fetch_jwtsvid(ask("spiffe://example.org/other")).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_19_a_20_a_token_is_judged_by_the_bundle_of_its_own_domain_and_its_claims_come_back() {
    let service = one();
    let mut client = client(&service).await;
    let ask = with_header(JwtsvidRequest { audience: vec!["db".into()], spiffe_id: String::new() });
    let token = client.fetch_jwtsvid(ask).await.unwrap().into_inner().svids.remove(0).svid;
    let judge = |audience: &str, token: &str| {
        with_header(ValidateJwtsvidRequest { audience: audience.into(), svid: token.into() })
    };
    let valid = client.validate_jwtsvid(judge("db", &token)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/a");
    assert!(valid.claims.unwrap().fields.contains_key("exp"));
    assert_eq!(client.validate_jwtsvid(judge("other", &token)).await.unwrap_err().code(), Code::InvalidArgument);
    let stranger = JwtAuthorityKey::generate().unwrap();
    let profile = JwtSvidProfile {
        id: SpiffeId::parse("spiffe://nowhere.org/a").unwrap(),
        audiences: vec!["db".into()],
        ttl: std::time::Duration::from_secs(60),
        issuer: None,
        token_id: None,
    };
    let foreign = stranger.sign_svid(&profile, std::time::SystemTime::now()).unwrap().token;
    assert_eq!(client.validate_jwtsvid(judge("db", &foreign)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_22_the_first_identity_stays_the_first() {
    let service = service();
    let aged = |id: &str, created_at| changed(&own_entry(id, &format!("/{id}")), |entry| entry.created_at = created_at);
    service.publish([aged("z-old", 10), aged("a-new", 20)]).rotate();
    for _ in 0..5 {
        assert_eq!(first_x509(&service).await.svids[0].spiffe_id, "spiffe://example.org/z-old");
        service.rotate();
    }
}

#[tokio::test]
async fn a_23_an_identity_that_is_withdrawn_ends_the_stream_with_permission_denied() {
    let service = one();
    let mut stream = client(&service).await.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    service.publish([]);
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::PermissionDenied);
}
