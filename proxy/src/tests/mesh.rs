//! mTLS on both sides: chains by server name, peers proven, identities told, plain text refused.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use identity::tls::FixedSnapshot;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::harness::{Authority, HOUR, TestProxy, dial, dial_tls, echo, get, get2, http1, http2};
use super::protos::{
    all_to, assignment, cluster, eds_cluster, hcm, http_chain, inbound, listener, mtls_chain, speaking_http2,
    tcp_chain, with_mtls,
};
use super::tcp::echo_bytes;

const SNI: &str = "outbound_.9095_._.helloworld.default.svc.cluster.local";

/// An inbound sidecar before an echo server.
async fn server_side(authority: &Authority) -> (TestProxy, std::net::SocketAddr) {
    let mut proxy = TestProxy::start().identify(authority, "helloworld");
    proxy.clusters(&[cluster("inbound|9095||", &[echo().await])]).await;
    let chain = mtls_chain(http_chain(&hcm(all_to("inbound", "inbound|9095||"))), &[SNI]);
    let address = proxy.listeners(&[inbound(listener("inbound", vec![chain]))]).await;
    (proxy, address)
}

#[tokio::test]
async fn two_sidecars_carry_a_request_and_tell_who_asked() {
    let authority = Authority::new();
    let (server, address) = server_side(&authority).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let expected = authority.id("helloworld").to_string();
    let to_server = with_mtls(eds_cluster("out"), SNI, &expected);
    client.clusters(&[to_server.clone(), speaking_http2(with_mtls(eds_cluster("out2"), SNI, &expected))]).await;
    client.endpoints(&[assignment("out", &[address]), assignment("out2", &[address])]).await;
    for cluster in ["out", "out2"] {
        let entry = client.listeners(&[listener(cluster, vec![http_chain(&hcm(all_to(cluster, cluster)))])]).await;
        let spoofed = Request::get("/who")
            .header("host", "helloworld")
            .header("x-forwarded-client-cert", "URI=spiffe://evil/x")
            .body(Full::default())
            .unwrap();
        let got = http1(dial(entry).await, spoofed).await;
        assert_eq!(got.status, 200, "{got:?}");
        let cert = got.body.lines().find(|line| line.starts_with("x-forwarded-client-cert: ")).unwrap().to_owned();
        assert!(cert.contains("By=spiffe://cluster.local/ns/default/sa/helloworld;Hash="), "{cert}");
        assert!(cert.ends_with(";URI=spiffe://cluster.local/ns/default/sa/test"), "{cert}");
        assert!(!cert.contains("evil"));
        let got = http2(dial(entry).await, get2("/again")).await;
        assert_eq!(got.status, 200);
    }
    let metrics = server.metrics();
    assert!(
        metrics.contains("reporter=\"destination\",source_workload=\"test\"")
            && metrics.contains("source_principal=\"spiffe://cluster.local/ns/default/sa/test\"")
            && metrics.contains("connection_security_policy=\"mutual_tls\""),
        "{metrics}"
    );
}

#[tokio::test]
async fn plain_text_on_a_strict_listener_is_closed_without_an_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let authority = Authority::new();
    let (proxy, address) = server_side(&authority).await;
    let mut socket = dial(address).await;
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    counted(&proxy, &["PLAINTEXT_REFUSED"]).await;
}

/// Waits until refusals for these reasons are counted: a client may hear of one a moment before.
async fn counted(proxy: &TestProxy, reasons: &[&str]) {
    let counts = |reason: &&str| proxy.metrics().contains(&format!("kasbah_refusals_total{{reason=\"{reason}\"}}"));
    let all = async {
        while !reasons.iter().all(counts) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), all).await.is_ok(), "{}", proxy.metrics());
}

#[tokio::test]
async fn strangers_do_not_pass_the_handshake() {
    let authority = Authority::new();
    let (proxy, address) = server_side(&authority).await;
    let without = FixedSnapshot { svid: None, bundles: authority.bundles() };
    // Somebody with the right name from a trust domain whose bundle we do not hold.
    let stranger = Authority::of("elsewhere.test");
    let foreign = FixedSnapshot { svid: Some(stranger.svid("test", HOUR)), bundles: authority.bundles() };
    // Somebody who claims our trust domain with another root.
    let forged = FixedSnapshot { svid: Some(Authority::new().svid("test", HOUR)), bundles: authority.bundles() };
    for holder in [without, foreign, forged] {
        if let Ok(stream) = dial_tls(address, holder.into(), SNI, &[b"http/1.1"]).await {
            // In TLS 1.3 the client learns of the refusal when it first reads.
            let (mut send, conn) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
            let _conn = tokio::spawn(conn);
            assert!(send.send_request(get("/")).await.is_err());
        }
    }
    counted(&proxy, &["TLS_PEER_CERT_MISSING", "TLS_PEER_UNTRUSTED"]).await;
    let friend = dial_tls(address, authority.holder("test"), SNI, &[b"http/1.1"]).await.unwrap();
    assert_eq!(http1(friend, get("/")).await.status, 200);
}

#[tokio::test]
async fn permissive_serves_both_and_names_only_the_proven() {
    let authority = Authority::new();
    let mut proxy = TestProxy::start().identify(&authority, "helloworld");
    proxy.clusters(&[cluster("in", &[echo().await])]).await;
    let manager = hcm(all_to("inbound", "in"));
    let chains = vec![mtls_chain(http_chain(&manager), &[]), http_chain(&manager)];
    let address = proxy.listeners(&[inbound(listener("inbound", chains))]).await;
    let plain = http1(dial(address).await, get("/")).await;
    assert_eq!(plain.status, 200);
    assert!(!plain.body.contains("x-forwarded-client-cert"), "{}", plain.body);
    let proven = dial_tls(address, authority.holder("test"), SNI, &[b"h2"]).await.unwrap();
    let proven = http2(proven, get2("/")).await;
    assert!(proven.body.contains("sa/test"), "{}", proven.body);
}

#[tokio::test]
async fn an_unexpected_server_identity_is_not_talked_to() {
    let authority = Authority::new();
    let (_server, address) = server_side(&authority).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let wrong = authority.id("somebody-else").to_string();
    client.clusters(&[with_mtls(cluster("out", &[address]), SNI, &wrong)]).await;
    let entry = client.listeners(&[listener("out", vec![http_chain(&hcm(all_to("out", "out")))])]).await;
    let got = http1(dial(entry).await, get("/")).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (503, "UPSTREAM_TLS_FAILED"));
    let line = &client.log_lines(1).await[0];
    assert!(line.contains("UF"), "{line}");
}

#[tokio::test]
async fn a_new_svid_is_used_at_once_and_no_request_fails() {
    let authority = Authority::new();
    let (server, address) = server_side(&authority).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let expected = authority.id("helloworld").to_string();
    client.clusters(&[speaking_http2(with_mtls(cluster("out", &[address]), SNI, &expected))]).await;
    let entry = client.listeners(&[listener("out", vec![http_chain(&hcm(all_to("out", "out")))])]).await;
    let hash_of = |body: &str| {
        let cert = body.lines().find(|line| line.starts_with("x-forwarded-client-cert")).unwrap();
        cert.split("Hash=").nth(1).unwrap()[..64].to_owned()
    };
    let mut hashes = std::collections::BTreeSet::new();
    for _ in 0..5 {
        for _ in 0..10 {
            let got = http1(dial(entry).await, get("/")).await;
            assert_eq!(got.status, 200);
            hashes.insert(hash_of(&got.body));
        }
        client.identity.set_svid(authority.svid("test", HOUR));
        server.identity.set_svid(authority.svid("helloworld", HOUR));
    }
    assert_eq!(hashes.len(), 5);
}

#[tokio::test]
async fn a_peer_that_is_not_trusted_any_more_loses_its_connection() {
    let authority = Authority::new();
    let (server, address) = server_side(&authority).await;
    let stream = dial_tls(address, authority.holder("test"), SNI, &[b"http/1.1"]).await.unwrap();
    let (mut send, conn) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(conn);
    let got = send.send_request(get("/")).await.unwrap();
    assert_eq!(super::harness::collect(got).await.status, 200);
    server.identity.set_bundles(Arc::default());
    server.workers.judge();
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the connection is closed").unwrap().ok();
    assert!(server.metrics().contains("TLS_PEER_TRUST_DOMAIN_UNKNOWN"));
}

async fn echoed(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), sent: &[u8]) -> Vec<u8> {
    let mut back = vec![0; sent.len()];
    stream.write_all(sent).await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    back
}

#[tokio::test]
async fn a_root_that_is_replaced_drains_requests_and_leaves_streams_some_time() {
    let authority = Authority::new();
    let (server, address) = server_side(&authority).await;
    let stream = dial_tls(address, authority.holder("test"), SNI, &[b"http/1.1"]).await.unwrap();
    let (mut send, conn) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(conn);
    let got = send.send_request(get("/")).await.unwrap();
    assert_eq!(super::harness::collect(got).await.status, 200);
    let mut tcp = TestProxy::start().identify(&authority, "helloworld");
    tcp.clusters(&[cluster("echo", &[echo_bytes().await])]).await;
    let chain = mtls_chain(tcp_chain("echo"), &[]);
    let tcp_address = tcp.listeners(&[inbound(listener("tcp", vec![chain]))]).await;
    let mut long = dial_tls(tcp_address, authority.holder("test"), SNI, &[]).await.unwrap();
    assert_eq!(echoed(&mut long, b"before").await, b"before");
    for proxy in [&server, &tcp] {
        proxy.identity.set_bundles(Authority::new().bundles());
        proxy.workers.judge();
    }
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the idle connection is closed").unwrap().ok();
    assert!(!server.metrics().contains("TLS_PEER_UNTRUSTED"), "nobody was refused");
    assert_eq!(echoed(&mut long, b"after").await, b"after");
    tcp.identity.set_bundles(Arc::default());
    tcp.workers.judge();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), long.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty(), "no trust at all cuts streams, too");
}

#[tokio::test]
async fn a_proxy_without_an_identity_says_so() {
    let authority = Authority::new();
    let mut client = TestProxy::start();
    client.clusters(&[with_mtls(cluster("out", &["127.0.0.1:9".parse().unwrap()]), SNI, "spiffe://a/b")]).await;
    let entry = client.listeners(&[listener("out", vec![http_chain(&hcm(all_to("out", "out")))])]).await;
    let got = http1(dial(entry).await, get("/")).await;
    assert_eq!(got.status, 503);
    drop(authority);
}

/// Two sidecars with HTTP/2 and mTLS between them, before this upstream.
async fn chain_to(
    authority: &Authority,
    upstream: std::net::SocketAddr,
    http2: bool,
) -> (TestProxy, TestProxy, std::net::SocketAddr) {
    let mut server = TestProxy::start().identify(authority, "helloworld");
    let inside = cluster("in", &[upstream]);
    server.clusters(&[if http2 { speaking_http2(inside) } else { inside }]).await;
    let chain = mtls_chain(http_chain(&hcm(all_to("inbound", "in"))), &[]);
    let address = server.listeners(&[inbound(listener("in", vec![chain]))]).await;
    let mut client = TestProxy::start().identify(authority, "test");
    let expected = authority.id("helloworld").to_string();
    client.clusters(&[speaking_http2(with_mtls(cluster("out", &[address]), SNI, &expected))]).await;
    let entry = client.listeners(&[listener("out", vec![http_chain(&hcm(all_to("out", "out")))])]).await;
    (client, server, entry)
}

#[tokio::test]
async fn grpc_passes_with_its_status_and_is_counted_by_message() {
    use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
    let authority = Authority::new();
    let service = super::policy::Service::default();
    let (client, server, entry) = chain_to(&authority, service.start().await, true).await;
    let mut calls = RateLimitServiceClient::connect(format!("http://{entry}")).await.unwrap();
    for _ in 0..3 {
        calls.should_rate_limit(RateLimitRequest { domain: "d".to_owned(), ..Default::default() }).await.unwrap();
    }
    let mut unknown = tonic::client::Grpc::new(
        tonic::transport::Endpoint::from_shared(format!("http://{entry}")).unwrap().connect().await.unwrap(),
    );
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/no.such.Service/Call");
    let codec = tonic_prost::ProstCodec::<RateLimitRequest, RateLimitRequest>::default();
    let status = unknown.unary(tonic::Request::new(RateLimitRequest::default()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    for metrics in [client.metrics(), server.metrics()] {
        let count = |name: &str, status: &str| {
            let of = format!("grpc_response_status=\"{status}\"");
            metrics
                .lines()
                .find(|l| l.starts_with(name) && l.contains("request_protocol=\"grpc\"") && l.contains(&of))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(count("istio_requests_total", "0").ends_with(" 3"), "{metrics}");
        assert!(count("istio_requests_total", "12").ends_with(" 1"), "{metrics}");
        assert!(count("istio_request_messages_total", "0").ends_with(" 3"), "{metrics}");
        assert!(count("istio_response_messages_total", "0").ends_with(" 3"), "{metrics}");
    }
}

#[tokio::test]
async fn a_websocket_passes_between_sidecars_that_otherwise_speak_http2() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let authority = Authority::new();
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = upstream.accept().await {
            let mut buf = vec![0; 4096];
            let _ = socket.read(&mut buf).await.unwrap();
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            socket.write_all(answer).await.unwrap();
            let n = socket.read(&mut buf).await.unwrap();
            socket.write_all(&buf[..n]).await.unwrap();
        }
    });
    let (_client, server, entry) = chain_to(&authority, at, false).await;
    let mut socket = dial(entry).await;
    let ask = b"GET /ws HTTP/1.1\r\nHost: helloworld\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket.write_all(b"\x81\x02hi").await.unwrap();
    let mut back = [0; 4];
    socket.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\x81\x02hi");
    // A stream is not cut by a rotation.
    server.identity.set_svid(authority.svid("helloworld", HOUR));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(socket);
    assert!(server.log_lines(1).await[0].contains(" 101 "));
}

#[tokio::test]
async fn a_gateway_shows_a_certificate_from_files_and_notices_a_new_one() {
    use identity::authority::WebAuthority;
    use std::time::SystemTime;
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let authority = WebAuthority::generate("test", HOUR, SystemTime::now()).unwrap();
    let issue = || {
        let issued = authority.issue_server(&["localhost".to_owned()], &[], HOUR, SystemTime::now()).unwrap();
        std::fs::write(&key, issued.key.pkcs8_pem().as_bytes()).unwrap();
        std::fs::write(&cert, identity::pem::certificate(&issued.certificate)).unwrap();
        issued.certificate
    };
    let first = issue();
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let mut manager = hcm(all_to("r", "echo"));
    manager.use_remote_address = Some(envoy_types::pb::google::protobuf::BoolValue { value: true });
    let chain = super::protos::file_tls_chain(http_chain(&manager), &cert, &key);
    let address = proxy.listeners(&[listener("https", vec![chain])]).await;
    let connect = async |alpn: &'static [u8]| {
        let roots = authority.certificate_pem();
        let config = identity::tls::web::client_config(roots.as_bytes(), None, &[alpn]).unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(config).connect(name, dial(address).await).await.unwrap()
    };
    let stream = connect(b"h2").await;
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], first);
    let got = http2(stream, Request::get("https://localhost/x").body(Full::default()).unwrap()).await;
    assert!(
        got.body.contains("x-forwarded-proto: https") && got.body.contains("x-forwarded-for: 127.0.0.1"),
        "{}",
        got.body
    );
    let got = http1(connect(b"http/1.1").await, get("/x")).await;
    assert_eq!(got.status, 200);
    // Modification times may have whole seconds only.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = issue();
    proxy.files.refresh_all();
    let stream = connect(b"h2").await;
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], second);
}
