//! Peers that are revoked: refused at the door, and put out when they are inside; nobody else feels it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::X509Svid;
use identity::tls::FixedSnapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{Authority, HOUR, TestProxy, dial, dial_tls, get, http1};
use super::pair::{SNI, TCP_SNI, reach, serve};
use super::protos::{all_to, cluster, hcm, http_chain, inbound, listener, mtls_chain, with_mtls};

/// An inbound sidecar before an HTTP echo server and a TCP one.
async fn server_side(authority: &Authority) -> (TestProxy, SocketAddr, Arc<X509Svid>) {
    let svid = authority.svid("helloworld", HOUR);
    let mut proxy = TestProxy::start();
    proxy.identity.set_bundles(authority.bundles());
    proxy.identity.set_svid(svid.clone());
    let address = serve(&mut proxy, echo_bytes().await).await;
    (proxy, address, svid)
}

async fn echo_bytes() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

fn holder(authority: &Authority, svid: &Arc<X509Svid>) -> Arc<FixedSnapshot> {
    Arc::new(FixedSnapshot { svid: Some(svid.clone()), bundles: authority.bundles() })
}

fn revoke(proxy: &TestProxy, authority: &Authority, svids: &[&X509Svid]) -> Instant {
    proxy.identity.set_bundles(authority.revoking(1, svids));
    proxy.workers.judge();
    Instant::now()
}

async fn counted(proxy: &TestProxy, reason: &str) {
    let wanted = format!("kasbah_refusals_total{{reason=\"{reason}\"}}");
    let found = async {
        while !proxy.metrics().contains(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.unwrap_or_else(|_| panic!("{}", proxy.metrics()));
}

#[tokio::test]
async fn a_revoked_client_does_not_pass_the_handshake_and_another_does() {
    let authority = Authority::new();
    let (proxy, address, _) = server_side(&authority).await;
    let (bad, good) = (authority.svid("test", HOUR), authority.svid("test", HOUR));
    revoke(&proxy, &authority, &[&bad]);
    if let Ok(stream) = dial_tls(address, holder(&authority, &bad), SNI, &[b"http/1.1"]).await {
        let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let _conn = tokio::spawn(conn);
        assert!(send.send_request(get("/")).await.is_err());
    }
    counted(&proxy, "CERT_REVOKED").await;
    let stream = dial_tls(address, holder(&authority, &good), SNI, &[b"http/1.1"]).await.unwrap();
    assert_eq!(http1(stream, get("/")).await.status, 200);
}

#[tokio::test]
async fn live_connections_of_a_revoked_client_are_cut_and_those_of_others_go_on() {
    let authority = Authority::new();
    let (proxy, address, _) = server_side(&authority).await;
    let (bad, good) = (authority.svid("test", HOUR), authority.svid("test", HOUR));
    let mut tcp = Vec::new();
    let mut http2 = Vec::new();
    for svid in [&bad, &good] {
        let mut stream = dial_tls(address, holder(&authority, svid), TCP_SNI, &[]).await.unwrap();
        stream.write_all(b"hi").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        tcp.push(stream);
        let stream = dial_tls(address, holder(&authority, svid), SNI, &[b"h2"]).await.unwrap();
        let (mut send, conn) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let conn = tokio::spawn(conn);
        let ask = Request::get("http://helloworld/").body(Empty::<bytes::Bytes>::new()).unwrap();
        assert_eq!(send.send_request(ask).await.unwrap().status(), 200);
        http2.push((send, conn));
    }
    let generation = proxy.identity.generation();
    let begun = revoke(&proxy, &authority, &[&bad]);
    let mut rest = Vec::new();
    let ended = async {
        // A TLS stream that ends without a farewell is an error to rustls.
        let _ = tcp[0].read_to_end(&mut rest).await;
        let (_send, conn) = http2.remove(0);
        // GOAWAY without an error, then the end.
        conn.await.unwrap()
    };
    let said = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("both are closed");
    println!("live connections of a revoked client closed after {:?}", begun.elapsed());
    assert!(said.is_ok(), "HTTP/2 says goodbye: {said:?}");
    assert_eq!(proxy.identity.generation(), generation, "pools of others are not retired");
    tcp[1].write_all(b"yo").await.unwrap();
    tcp[1].read_exact(&mut [0; 2]).await.unwrap();
    let ask = Request::get("http://helloworld/").body(Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(http2[0].0.send_request(ask).await.unwrap().status(), 200);
    counted(&proxy, "CERT_REVOKED").await;
    let line = proxy.log_lines(2).await.into_iter().find(|line| line.contains("connection cut")).expect("a log line");
    assert!(line.contains("DT"), "{line}");
}

#[tokio::test]
async fn connections_to_a_revoked_server_are_cut_and_no_new_ones_are_made() {
    let authority = Authority::new();
    let (_server, address, server_svid) = server_side(&authority).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let expected = authority.id("helloworld").to_string();
    let entry = reach(&mut client, address, &expected).await;
    let mut tcp = dial(client.address("tcp")).await;
    tcp.write_all(b"hi").await.unwrap();
    tcp.read_exact(&mut [0; 2]).await.unwrap();
    assert_eq!(http1(dial(entry).await, get("/")).await.status, 200);
    // A request that is still being sent.
    let (body, receiver) = tokio::sync::mpsc::channel::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>(1);
    let body_of = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(dial(entry).await)).await.unwrap();
    tokio::spawn(conn);
    let posting = Request::post("/").header("host", "helloworld").body(BodyExt::boxed(body_of)).unwrap();
    let posted = tokio::spawn(async move { send.send_request(posting).await });
    body.send(Ok(http_body::Frame::data("x".into()))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = revoke(&client, &authority, &[&server_svid]);
    let ended = async {
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
        println!("a TCP connection to a revoked server closed after {:?}", begun.elapsed());
        posted.await.unwrap()
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("both have ended");
    println!("a request to a revoked server was answered after {:?}", begun.elapsed());
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 503));
    let refused = http1(dial(entry).await, get("/")).await;
    assert_eq!((refused.status.as_u16(), refused.header("x-kasbah-reason")), (503, "UPSTREAM_TLS_FAILED"));
    counted(&client, "CERT_REVOKED").await;
}

#[tokio::test]
async fn a_websocket_to_a_revoked_server_is_cut() {
    let authority = Authority::new();
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = upstream.accept().await {
            let mut buf = vec![0; 4096];
            let _ = socket.read(&mut buf).await.unwrap();
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            socket.write_all(answer).await.unwrap();
            let _ = socket.read(&mut buf).await;
        }
    });
    let svid = authority.svid("helloworld", HOUR);
    let mut server = TestProxy::start();
    server.identity.set_bundles(authority.bundles());
    server.identity.set_svid(svid.clone());
    server.clusters(&[cluster("in", &[at])]).await;
    let chain = mtls_chain(http_chain(&hcm(all_to("inbound", "in"))), &[]);
    let address = server.listeners(&[inbound(listener("in", vec![chain]))]).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let expected = authority.id("helloworld").to_string();
    client.clusters(&[with_mtls(cluster("out", &[address]), SNI, &expected)]).await;
    let entry = client.listeners(&[listener("out", vec![http_chain(&hcm(all_to("out", "out")))])]).await;
    let mut socket = dial(entry).await;
    let ask = b"GET /ws HTTP/1.1\r\nHost: helloworld\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let begun = revoke(&client, &authority, &[&svid]);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest)).await;
    println!("a WebSocket to a revoked server closed after {:?}", begun.elapsed());
    assert!(ended.is_ok(), "it is still open");
}

#[tokio::test]
async fn a_list_of_another_issuer_with_the_same_serial_number_cuts_nobody() {
    let authority = Authority::new();
    let (proxy, address, _) = server_side(&authority).await;
    let client = authority.svid("test", HOUR);
    let mut stream = dial_tls(address, holder(&authority, &client), TCP_SNI, &[]).await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    let other = Authority::new();
    let mut bundles = identity::BundleSet::clone(&authority.bundles());
    let foreign = other.revoking(1, &[&client]);
    let domain = client.id().trust_domain();
    bundles.set_revocations(domain.clone(), foreign.revocations(&domain).unwrap().clone());
    proxy.identity.set_bundles(Arc::new(bundles));
    proxy.workers.judge();
    stream.write_all(b"yo").await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
}

#[tokio::test]
async fn the_same_bundles_again_change_nothing() {
    let authority = Authority::new();
    let proxy = TestProxy::start().identify(&authority, "test");
    let generation = proxy.identity.generation();
    proxy.identity.set_bundles(authority.bundles());
    assert_eq!(proxy.identity.generation(), generation);
    proxy.identity.set_bundles(Authority::new().bundles());
    assert_eq!(proxy.identity.generation(), generation + 1, "other roots");
}

/// What a worker spends on a new list, while it serves nobody else: 10,000 connections and a list of 10,000.
#[test]
fn ten_thousand_connections_are_judged_in_no_time() {
    let authority = Authority::new();
    let now = identity::unix_time(std::time::SystemTime::now());
    let svids: Vec<_> = (0..100).map(|_| authority.svid("test", HOUR)).collect();
    let peers: Vec<_> = svids
        .iter()
        .map(|svid| identity::verify::verify_peer(&svid.to_chain(), &authority.bundles(), now).unwrap())
        .collect();
    let serials: Vec<String> = (0..9_999).map(|_| identity::digest::hex(&identity::digest::random_serial())).collect();
    let bundles = authority.revoking_serials(1, serials.iter().map(String::as_str).chain([svids[7].serial()]));
    let begun = Instant::now();
    let refused = |peer| identity::verify::check_revocation(peer, &bundles, now).is_err();
    let count: usize = (0..100).map(|_| peers.iter().filter(|peer| refused(peer)).count()).sum();
    let took = begun.elapsed();
    println!("10,000 connections judged by a list of 10,000 in {took:?}");
    assert_eq!(count, 100);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
