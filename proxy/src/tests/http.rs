//! Requests through a proxy without TLS: versions, headers, routes, retries, upgrades.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{TestProxy, dial, echo, get, get2, http1, http2, serve};
use super::protos::{
    all_to, cluster, direct, forward, hcm, host, http_chain, listener, retrying, route, route_action, span,
    speaking_http2, table,
};

async fn simple(upstream: std::net::SocketAddr) -> (TestProxy, std::net::SocketAddr) {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[upstream])]).await;
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(all_to("r", "echo")))])]).await;
    (proxy, address)
}

#[tokio::test]
async fn http1_reaches_the_upstream_in_canonical_form() {
    let (proxy, address) = simple(echo().await).await;
    let request = Request::get("/a/./b?q=1")
        .header("host", "HelloWorld.")
        .header("connection", "x-once")
        .header("x-once", "1")
        .header("x-kasbah-reason", "SPOOFED")
        .header("x-forwarded-client-cert", "URI=spiffe://evil")
        .body(Full::default())
        .unwrap();
    let got = http1(dial(address).await, request).await;
    assert_eq!(got.status, 200);
    assert!(got.body.starts_with("GET /a/b?q=1 HTTP/1.1\nhost: helloworld\n"), "{}", got.body);
    for gone in ["x-once", "x-kasbah-reason", "x-forwarded-client-cert", "connection"] {
        assert!(!got.body.contains(&format!("\n{gone}:")), "{gone} in {}", got.body);
    }
    assert!(got.body.contains("\nx-request-id: ") && got.body.contains("\nx-forwarded-proto: http\n"), "{}", got.body);
    assert_eq!(got.header("server"), "kasbah");
    let metrics = proxy.metrics();
    assert!(metrics.contains("istio_requests_total{reporter=\"source\",source_workload=\"helloworld\""), "{metrics}");
    let line = &proxy.log_lines(1).await[0];
    assert!(line.contains("GET /a/./b?q=1") && line.contains(" 200 "), "{line}");
}

#[tokio::test]
async fn http2_is_told_by_its_preface_and_bodies_pass_both_ways() {
    let upstream = echo().await;
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("h1", &[upstream]), speaking_http2(cluster("h2", &[upstream]))]).await;
    let routes = vec![route("/h1", forward("h1")), route("/h2", forward("h2"))];
    let routes = table("r", vec![host("all", &["*"], routes)]);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(routes))])]).await;
    let body = "x".repeat(300_000);
    for (path, version) in [("/h1", "HTTP/1.1"), ("/h2", "HTTP/2.0")] {
        let request = |uri: String| {
            Request::post(uri).header("host", "helloworld").body(Full::new(Bytes::from(body.clone()))).unwrap()
        };
        let got = http2(dial(address).await, request(format!("http://helloworld{path}"))).await;
        assert!(got.body.starts_with(&format!("POST {path} {version}\n")), "{}", &got.body[..60]);
        assert!(got.body.ends_with(&body), "{path} over HTTP/2");
        let got = http1(dial(address).await, request(path.to_owned())).await;
        assert!(got.body.ends_with(&body), "{path} over HTTP/1");
    }
}

#[tokio::test]
async fn a_connection_carries_many_requests_over_few_upstream_connections() {
    let connections = Arc::new(AtomicU32::new(0));
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream_address = upstream.local_addr().unwrap();
    let seen = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = upstream.accept().await {
            seen.fetch_add(1, Ordering::Relaxed);
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    let (_proxy, address) = simple(upstream_address).await;
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(dial(address).await)).await.unwrap();
    tokio::spawn(conn);
    for _ in 0..50 {
        send.ready().await.unwrap();
        let got = super::harness::collect(send.send_request(get("/")).await.unwrap()).await;
        assert_eq!(got.body, "ok");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn refusals_name_their_reason_in_both_languages() {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("empty", &[])]).await;
    let routes =
        vec![route("/nowhere", forward("unknown")), route("/empty", forward("empty")), route("/teapot", direct(418))];
    let outside = host("block_all", &["*"], vec![route("/", direct(502))]);
    let routes = table("r", vec![host("known", &["helloworld"], routes), outside]);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(routes))])]).await;
    for (path, status, reason) in [
        ("/nowhere", 503, "NO_CLUSTER"),
        ("/empty", 503, "NO_HEALTHY_ENDPOINT"),
        ("/missing", 404, "NO_ROUTE"),
        ("/teapot", 418, ""),
        ("/%2e%2e/%00", 400, "PATH_NOT_CANONICAL"),
    ] {
        let got = http1(dial(address).await, get(path)).await;
        assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (status, reason), "{path}");
    }
    let request = Request::get("/").header("host", "elsewhere.test").body(Full::default()).unwrap();
    let got = http1(dial(address).await, request).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (502, "HOST_NOT_IN_MESH"));

    let request = Request::post("http://helloworld/empty")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::default())
        .unwrap();
    let got = http2(dial(address).await, request).await;
    assert_eq!(
        (got.status.as_u16(), got.header("grpc-status"), got.header("content-type")),
        (200, "14", "application/grpc")
    );
    assert!(proxy.metrics().contains("kasbah_refusals_total{reason=\"NO_HEALTHY_ENDPOINT\"} 2\n"));
}

#[tokio::test]
async fn the_reason_header_can_be_switched_off() {
    let mut proxy = TestProxy::with(|settings| settings.reason_header = false);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(table("r", vec![])))])]).await;
    let got = http1(dial(address).await, get("/")).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (404, ""));
}

#[tokio::test]
async fn a_failing_endpoint_is_retried_as_the_policy_says() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let flaky = serve(move |_| {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut response = Response::new(Full::new(Bytes::from(format!("try {n}"))));
            *response.status_mut() = if n % 3 == 2 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            response
        }
    })
    .await;
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("flaky", &[flaky])]).await;
    let routes = vec![route("/retried", retrying("flaky", "5xx", 2)), route("/", forward("flaky"))];
    let routes = table("r", vec![host("all", &["*"], routes)]);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(routes))])]).await;
    let request = Request::post("/retried").header("host", "a").body(Full::new(Bytes::from_static(b"again"))).unwrap();
    let got = http1(dial(address).await, request).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "try 2"));
    let got = http1(dial(address).await, get("/once")).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (503, "try 3"));
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("mixed", &[dead, echo().await]), cluster("dead", &[dead])]).await;
    let routes = vec![route("/dead", forward("dead")), route("/", retrying("mixed", "connect-failure", 5))];
    let routes = table("r", vec![host("all", &["*"], routes)]);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(routes))])]).await;
    for _ in 0..10 {
        assert_eq!(http1(dial(address).await, get("/")).await.status, 200);
    }
    let got = http1(dial(address).await, get("/dead")).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (503, "UPSTREAM_CONNECT_FAILED"));
}

#[tokio::test]
async fn a_pooled_connection_that_was_closed_is_replaced_without_a_failed_request() {
    // A server that closes after each response without saying so.
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream_address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = upstream.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                let _ = socket.read(&mut buf).await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            });
        }
    });
    let (_proxy, address) = simple(upstream_address).await;
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(dial(address).await)).await.unwrap();
    tokio::spawn(conn);
    for _ in 0..30 {
        send.ready().await.unwrap();
        let got = super::harness::collect(send.send_request(get("/")).await.unwrap()).await;
        assert_eq!(got.status, 200);
    }
}

#[tokio::test]
async fn a_slow_endpoint_ends_in_a_timeout() {
    let slow = serve(|_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Response::new(Full::default())
    })
    .await;
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("slow", &[slow]), speaking_http2(cluster("slow2", &[slow]))]).await;
    let timed = |cluster: &str| {
        use envoy_types::pb::envoy::config::route::v3::RouteAction;
        let action = RouteAction { timeout: Some(span(Duration::from_millis(100))), ..route_action(cluster) };
        envoy_types::pb::envoy::config::route::v3::route::Action::Route(action)
    };
    let routes = vec![route("/2", timed("slow2")), route("/", timed("slow"))];
    let routes = table("r", vec![host("all", &["*"], routes)]);
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(routes))])]).await;
    for path in ["/1", "/2"] {
        let got = http1(dial(address).await, get(path)).await;
        assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (504, "UPSTREAM_TIMEOUT"));
    }
    let got = http2(dial(address).await, get2("/2")).await;
    assert_eq!(got.status, 504);
}

#[tokio::test]
async fn explicit_proxying_follows_the_absolute_target() {
    let (_proxy, address) = simple(echo().await).await;
    let mut socket = dial(address).await;
    socket
        .write_all(b"GET http://helloworld:9095/x HTTP/1.1\r\nHost: helloworld:9095\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("GET /x HTTP/1.1\nhost: helloworld:9095\n"), "{answer}");
}

#[tokio::test]
async fn a_websocket_echoes_after_101_and_is_logged_at_its_end() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream_address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = upstream.accept().await {
            tokio::spawn(async move {
                let mut buf = vec![0; 4096];
                let n = socket.read(&mut buf).await.unwrap();
                let head = String::from_utf8_lossy(&buf[..n]).to_ascii_lowercase();
                assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
                let answer =
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
                socket.write_all(answer).await.unwrap();
                loop {
                    match socket.read(&mut buf).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => socket.write_all(&buf[..n]).await.unwrap(),
                    }
                }
            });
        }
    });
    let (proxy, address) = simple(upstream_address).await;
    let mut socket = dial(address).await;
    let ask = b"GET /ws HTTP/1.1\r\nHost: helloworld\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(ask).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        let mut buf = [0; 1024];
        let n = socket.read(&mut buf).await.unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buf[..n]);
    }
    assert!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen));
    // Not HTTP at all, with line ends and zeros that the auditor would refuse.
    let frame = b"\x81\x05\n\0\r\nx".repeat(1000);
    socket.write_all(&frame).await.unwrap();
    let mut back = vec![0; frame.len()];
    socket.read_exact(&mut back).await.unwrap();
    assert_eq!(back, frame);
    drop(socket);
    let line = &proxy.log_lines(1).await[0];
    assert!(line.contains(" 101 ") && line.contains(&format!(" {} ", frame.len() + 5)), "{line}");
}

#[tokio::test]
async fn an_upgrade_that_is_not_admitted_is_refused_and_h2c_is_ignored() {
    let (_proxy, address) = simple(echo().await).await;
    let ask = |token: &str| {
        Request::get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", token)
            .body(Full::default())
            .unwrap()
    };
    let got = http1(dial(address).await, ask("foo")).await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (403, "UPGRADE_NOT_ALLOWED"));
    let got = http1(dial(address).await, ask("h2c")).await;
    assert_eq!(got.status, 200);
    assert!(!got.body.contains("upgrade"), "{}", got.body);
}
