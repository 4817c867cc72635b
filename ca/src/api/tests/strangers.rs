//! What an address may ask for without a certificate.

use super::*;
use crate::address_limits::AddressLimitSettings;
use crate::testing::running::join_request;

async fn limited(requests_per_minute: u32, refusals_per_minute: u32) -> Running {
    let limits = AddressLimitSettings { requests_per_minute, refusals_per_minute, ..Default::default() };
    Running::start_with(|settings| settings.address_limits = limits).await
}

async fn bundle(ca: &Running, svid: Option<&Arc<X509Svid>>) -> Result<(), Status> {
    BundleClient::new(ca.network(svid)).get_bundle(GetBundleRequest::default()).await.map(drop)
}

fn retry_hint(status: &Status) -> Duration {
    tonic_types::StatusExt::get_details_retry_info(status).and_then(|hint| hint.retry_delay).expect("a hint")
}

#[tokio::test]
async fn whoever_guesses_tokens_is_stopped_and_those_who_are_known_go_on() {
    let ca = limited(1_000, 20).await;
    let (node, token) = (ca.node(Some("/node/local")).await, ca.token(None).await);
    for guess in 0..20 {
        assert_eq!(reason(ca.join(&format!("guess-{guess}")).await), "JOIN_TOKEN_UNKNOWN", "{guess}");
    }
    let refused = ca.join("guess-20").await.unwrap_err();
    assert_eq!(
        (reason(Err::<(), _>(refused.clone())), refused.code()),
        ("ADDRESS_RATE_LIMITED".into(), Code::ResourceExhausted)
    );
    assert!((1..=3).contains(&retry_hint(&refused).as_secs()), "{:?}", retry_hint(&refused));
    assert_eq!(reason(ca.join(&token).await), "ADDRESS_RATE_LIMITED", "what is shown is not looked at");
    // Calls for which a certificate is missing count as guesses.
    let count = EntryClient::new(ca.network(None)).count_entries(CountEntriesRequest::default()).await;
    assert_eq!(reason(count), "ADDRESS_RATE_LIMITED");

    assert!(bundle(&ca, None).await.is_ok(), "the bundle is for everybody");
    assert_eq!(authorized(&ca, &node).await, Vec::<String>::new(), "who has a certificate goes on");
    assert!(bundle(&ca, Some(&node)).await.is_ok());
    let mut local = EntryClient::new(ca.local().await);
    assert!(local.count_entries(CountEntriesRequest::default()).await.is_ok(), "and so do local administrators");
    let metrics = runtime::metrics::Metrics::new();
    ca.certifier.counts.register(&metrics, crate::metrics::Gauges::default);
    let text = metrics.encode();
    assert!(text.contains("ca_address_limited_total{limit=\"refusals\"} 3"), "{text}");
    assert!(text.contains("ca_requests_total{rpc=\"AttestAgent\",reason=\"ADDRESS_RATE_LIMITED\"} 2"), "{text}");

    tokio::time::sleep(retry_hint(&refused)).await;
    ca.join(&token).await.unwrap();
}

#[tokio::test]
async fn calls_without_a_certificate_count_as_guesses() {
    let ca = limited(1_000, 3).await;
    let count = || async { EntryClient::new(ca.network(None)).count_entries(CountEntriesRequest::default()).await };
    for _ in 0..3 {
        assert_eq!(reason(count().await), "CLIENT_CERTIFICATE_MISSING");
    }
    assert_eq!(reason(count().await), "ADDRESS_RATE_LIMITED");
}

#[tokio::test]
async fn requests_without_a_certificate_are_counted_those_with_one_are_not() {
    let ca = limited(30, 0).await;
    let node = ca.node(None).await;
    for n in 0..30 {
        assert!(bundle(&ca, None).await.is_ok(), "{n}");
    }
    let refused = bundle(&ca, None).await.unwrap_err();
    assert_eq!(reason(Err::<(), _>(refused.clone())), "ADDRESS_RATE_LIMITED");
    assert!(refused.message().contains("try again in 2 s"), "{}", refused.message());
    let token = ca.token(None).await;
    assert_eq!(reason(ca.join(&token).await), "ADDRESS_RATE_LIMITED");
    for _ in 0..100 {
        assert!(bundle(&ca, Some(&node)).await.is_ok());
    }
}

/// Who only connects makes work too; a place is free again when a connection ends.
#[tokio::test]
async fn an_address_holds_so_many_connections_without_a_certificate() {
    let limits = AddressLimitSettings { connections: 4, ..Default::default() };
    let ca = Running::start_with(|settings| settings.address_limits = limits).await;
    let node = ca.node(None).await;
    let connect = async || tokio::net::TcpStream::connect(ca.addresses.grpc).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(connect().await);
    }
    let open = async |wanted: usize| {
        let until = |ca: &Running| ca.certifier.address_limits.open_at("127.0.0.1".parse().unwrap()) as usize == wanted;
        crate::testing::running::until("so many", Duration::from_secs(5), async || until(&ca)).await;
    };
    open(4).await;
    assert!(bundle(&ca, None).await.is_err(), "closed before the handshake");
    drop(idle.pop());
    open(3).await;
    // With a certificate the place is only held during the handshake.
    let known: Vec<_> = (0..3).map(|_| ca.network(Some(&node))).collect();
    for channel in &known {
        BundleClient::new(channel.clone()).get_bundle(GetBundleRequest::default()).await.unwrap();
    }
    open(3).await;
    let stranger = ca.network(None);
    BundleClient::new(stranger.clone()).get_bundle(GetBundleRequest::default()).await.unwrap();
    open(4).await;
    drop((stranger, idle));
    open(0).await;
}

/// The public pages are of the same share.
#[tokio::test]
async fn pages_without_a_certificate_say_when_to_come_again() {
    let ca = limited(5, 0).await;
    let address = ca.addresses.oidc.unwrap();
    let url = format!("http://{address}/keys");
    let get = async || runtime::fetch::Fetch { url: &url, tls: None, bearer: None, bytes_max: 1 << 20 }.get().await;
    for _ in 0..5 {
        assert!(get().await.is_ok());
    }
    let refused = get().await.unwrap_err().to_string();
    assert!(refused.contains("429"), "{refused}");
    assert_eq!(reason(bundle(&ca, None).await), "ADDRESS_RATE_LIMITED");
}

/// A thousand nodes behind one address join at once, with what is set by default: whoever proves itself does not count.
#[tokio::test]
async fn a_fleet_behind_one_address_joins_at_once() {
    let ca = Running::start().await;
    let request = |n: usize| {
        let value = format!("token-{n}");
        proto::spire::api::server::agent::v1::CreateJoinTokenRequest { ttl: 600, token: value, agent_id: None }
    };
    let admin = AgentClient::new(ca.local().await);
    let create = |n: usize| {
        let mut admin = admin.clone();
        async move { admin.create_join_token(request(n)).await.unwrap() }
    };
    futures_util::stream::iter((0..1_000).map(create)).buffer_unordered(100).collect::<Vec<_>>().await;
    let csr = PrivateKey::generate_p256().unwrap().csr_der(None).unwrap();
    let join = |n: usize| {
        let (ca, csr) = (&ca, csr.clone());
        async move {
            bundle(ca, None).await?;
            let request = tokio_stream::once(join_request(&format!("token-{n}"), csr));
            AgentClient::new(ca.network(None)).attest_agent(request).await?.into_inner().message().await
        }
    };
    // A few at a time have a socket: each is a connection of its own.
    let joined = futures_util::stream::iter((0..1_000).map(join)).buffer_unordered(100);
    let outcomes: Vec<_> = joined.collect().await;
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(refused.is_empty(), "{} refused: {:?}", refused.len(), refused.first());
}
