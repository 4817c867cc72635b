//! Changes under load: listeners, certificates, shutdown. No request may fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};

use super::harness::{Authority, TestProxy, collect, dial, dial_tls, echo, get, get2, http1};
use super::protos::{
    all_to, cluster, hcm, hcm_by_rds, http_chain, inbound, listener, mtls_chain, speaking_http2, with_mtls,
};

#[tokio::test]
async fn a_changed_listener_says_goodbye_to_its_connections() {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let mut manager = hcm(all_to("r", "echo"));
    let address = proxy.listeners(&[listener("http", vec![http_chain(&manager)])]).await;
    let (mut one, conn) = hyper::client::conn::http1::handshake(TokioIo::new(dial(address).await)).await.unwrap();
    tokio::spawn(conn);
    let (mut two, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(dial(address).await)).await.unwrap();
    let ended = tokio::spawn(conn);
    assert_eq!(collect(one.send_request(get("/")).await.unwrap()).await.header("connection"), "");
    assert_eq!(collect(two.send_request(get2("/")).await.unwrap()).await.status, 200);

    manager.server_name = "changed".to_owned();
    let again = proxy.listeners(&[listener("http", vec![http_chain(&manager)])]).await;
    assert_eq!(again, address, "the socket stays open");
    let last = collect(one.send_request(get("/")).await.unwrap()).await;
    assert_eq!((last.status.as_u16(), last.header("connection")), (200, "close"));
    drop(two);
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("GOAWAY").unwrap().unwrap();
    assert_eq!(http1(dial(address).await, get("/")).await.header("server"), "changed");
}

#[tokio::test]
async fn new_routes_apply_to_open_connections() {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("a", &[echo().await]), cluster("b", &[])]).await;
    proxy.listeners_without_routes(&[listener("http", vec![http_chain(&hcm_by_rds("r"))])]).await;
    assert!(proxy.control.open_addresses().as_array().unwrap().is_empty(), "a listener waits for its routes");
    proxy.routes(&[all_to("r", "a")]).await;
    let address = proxy.address("http");
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(dial(address).await)).await.unwrap();
    tokio::spawn(conn);
    assert_eq!(collect(send.send_request(get("/")).await.unwrap()).await.status, 200);
    proxy.routes(&[all_to("r", "b")]).await;
    send.ready().await.unwrap();
    let got = collect(send.send_request(get("/")).await.unwrap()).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (503, "NO_HEALTHY_ENDPOINT"));
}

#[tokio::test]
async fn a_removed_cluster_stays_while_a_route_names_it() {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("a", &[echo().await])]).await;
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(all_to("r", "a")))])]).await;
    proxy.clusters(&[]).await;
    assert_eq!(http1(dial(address).await, get("/")).await.status, 200);
}

#[tokio::test]
async fn rotation_under_load_fails_no_request() {
    let authority = Authority::new();
    let short = Duration::from_secs(6);
    let mut server = TestProxy::start().identify(&authority, "helloworld");
    server.identity.set_svid(authority.svid("helloworld", short));
    server.clusters(&[cluster("in", &[echo().await])]).await;
    let chain = mtls_chain(http_chain(&hcm(all_to("inbound", "in"))), &[]);
    let inbound_at = server.listeners(&[inbound(listener("in", vec![chain]))]).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    client.identity.set_svid(authority.svid("test", short));
    let expected = authority.id("helloworld").to_string();
    let one = with_mtls(cluster("one", &[inbound_at]), "x.test", &expected);
    let two = speaking_http2(with_mtls(cluster("two", &[inbound_at]), "x.test", &expected));
    client.clusters(&[one, two]).await;
    let listeners = ["one", "two"].map(|name| listener(name, vec![http_chain(&hcm(all_to(name, name)))]));
    client.listeners(&listeners).await;

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut users = Vec::new();
    for name in ["one", "two"] {
        let (address, stop, done) = (client.address(name), stop.clone(), done.clone());
        users.push(tokio::spawn(async move {
            let (mut send, conn) =
                hyper::client::conn::http1::handshake(TokioIo::new(dial(address).await)).await.unwrap();
            tokio::spawn(conn);
            while !stop.load(Ordering::Relaxed) {
                send.ready().await.unwrap();
                let mut request = get("/");
                *request.method_mut() = http::Method::POST;
                let got = collect(send.send_request(request).await.unwrap()).await;
                assert_eq!(got.status, 200, "{got:?}");
                done.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    // Several lifetimes of the certificates, renewed at their half-life.
    for _ in 0..4 {
        tokio::time::sleep(short / 2).await;
        client.identity.set_svid(authority.svid("test", short));
        server.identity.set_svid(authority.svid("helloworld", short));
    }
    stop.store(true, Ordering::Relaxed);
    for user in users {
        user.await.unwrap();
    }
    assert!(done.load(Ordering::Relaxed) > 1000);
}

#[tokio::test]
async fn a_connection_ends_before_the_certificate_it_was_opened_with() {
    let authority = Authority::new();
    let mut server = TestProxy::start().identify(&authority, "helloworld");
    server.identity.set_svid(authority.svid("helloworld", Duration::from_secs(4)));
    server.clusters(&[cluster("in", &[echo().await])]).await;
    let chain = mtls_chain(http_chain(&hcm(all_to("inbound", "in"))), &[]);
    let address = server.listeners(&[inbound(listener("in", vec![chain]))]).await;
    let stream = dial_tls(address, authority.holder("test"), "x.test", &[b"http/1.1"]).await.unwrap();
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(conn);
    server.identity.set_svid(authority.svid("helloworld", Duration::from_secs(60)));
    let mut requests = 0;
    let last = loop {
        send.ready().await.unwrap();
        let got = collect(send.send_request(get("/")).await.unwrap()).await;
        assert_eq!(got.status, 200);
        requests += 1;
        if got.header("connection") == "close" {
            break got;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(last.status, 200);
    assert!((20..=80).contains(&requests), "{requests}");
    ended.await.unwrap().unwrap();
    assert!(server.metrics().contains("kasbah_connections_drained_total 1\n"));
}

#[tokio::test]
async fn shutdown_lets_a_running_request_finish() {
    let slow = super::harness::serve(|_| async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        http::Response::new(http_body_util::Full::new(bytes::Bytes::from_static(b"done")))
    })
    .await;
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("slow", &[slow])]).await;
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(all_to("r", "slow")))])]).await;
    let running = tokio::spawn(async move { http1(dial(address).await, get("/")).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.control.close().await;
    proxy.workers.drain(Duration::from_secs(5));
    let got = running.await.unwrap();
    assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "done"));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
