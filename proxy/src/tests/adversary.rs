//! What hostile clients and broken servers send, and what must come of it.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{TestProxy, dial, echo, get, get2, http1, http2};
use super::protos::{all_to, cluster, hcm, http_chain, listener};

async fn proxy_to(upstream: std::net::SocketAddr) -> (TestProxy, std::net::SocketAddr) {
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("echo", &[upstream])]).await;
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(all_to("r", "echo")))])]).await;
    (proxy, address)
}

/// Sends bytes as they are and answers all that comes back.
async fn raw(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut socket = dial(address).await;
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn smuggling_is_answered_400_and_nothing_reaches_the_upstream() {
    let (proxy, address) = proxy_to(echo().await).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    for attack in [
        format!(
            "{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        format!("{post}Content-Length: +1\r\n\r\na"),
        "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nx: a\r\n b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nx y: 1\r\n\r\n".to_owned(),
        "GET /#fragment HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
    ] {
        let answer = raw(address, attack.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{attack:?}: {answer:?}");
        assert!(!answer.contains("smuggled"), "{attack:?}: {answer:?}");
    }
    // An answer may be read before it is counted.
    let counted = || proxy.metrics().contains("kasbah_refusals_total{reason=\"HTTP_MALFORMED\"} 12\n");
    for _ in 0..500 {
        if counted() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(counted(), "{}", proxy.metrics());
}

#[tokio::test]
async fn bad_chunks_end_the_connection_without_a_second_request() {
    let (_proxy, address) = proxy_to(echo().await).await;
    let attack = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw(address, attack.as_bytes()).await;
    assert!(!answer.contains(" 200 ") && !answer.contains("smuggled"), "{answer:?}");
}

#[tokio::test]
async fn hosts_and_paths_that_hide_are_refused() {
    let (_proxy, address) = proxy_to(echo().await).await;
    for (target, host, expected) in [
        ("/", "u@a.test", 400),
        ("/", "a b", 400),
        ("/", "a.test:99999", 400),
        ("/a%2fb", "a.test", 400),
        ("/a%5cb", "a.test", 400),
        ("/..", "a.test", 400),
        ("//a//b", "a.test", 200),
        ("/%61", "a.test", 200),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(address, head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{target} {host}: {answer:?}");
    }
    let answer = raw(address, b"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    let answer = raw(address, b"TRACE / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer:?}");
    let answer = raw(address, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer:?}");
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let (_proxy, address) = proxy_to(echo().await).await;
    let many = |count: usize| {
        (0..count)
            .fold(Request::get("/").header("host", "a"), |r, n| r.header(format!("x-{n}"), "1"))
            .body(Full::default())
            .unwrap()
    };
    assert_eq!(http1(dial(address).await, many(90)).await.status, 200);
    assert_eq!(http1(dial(address).await, many(110)).await.status, 431);
    let got = http2(dial(address).await, {
        let mut request = many(110);
        request.headers_mut().remove("host");
        *request.uri_mut() = "http://a/".parse().unwrap();
        request
    })
    .await;
    assert_eq!((got.status.as_u16(), got.header("x-kasbah-reason")), (431, "HEADERS_TOO_MANY"));
    let huge = Request::get("/").header("host", "a").header("x", "y".repeat(100_000)).body(Full::default()).unwrap();
    assert_eq!(http1(dial(address).await, huge).await.status, 431);
}

#[tokio::test]
async fn an_early_answer_does_not_let_the_body_become_a_request() {
    let (_proxy, address) = proxy_to(echo().await).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let body = smuggled.repeat(1000);
    let attack = format!("POST /%00 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = raw(address, attack.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains(" 200 "), "{answer:?}");
}

#[tokio::test]
async fn broken_answers_become_502_and_are_not_pooled() {
    for answer in [
        "NONSENSE\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
    ] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = upstream.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = upstream.accept().await {
                let mut buf = [0; 1024];
                let _ = socket.read(&mut buf).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let (_proxy, address) = proxy_to(at).await;
        let got = http1(dial(address).await, get("/")).await;
        assert_eq!(
            (got.status.as_u16(), got.header("x-kasbah-reason")),
            (502, "UPSTREAM_RESPONSE_INVALID"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_others_go_on() {
    let (_proxy, address) = proxy_to(echo().await).await;
    let (send, conn) = h2::client::handshake(dial(address).await).await.unwrap();
    let driver = tokio::spawn(conn);
    let mut send = send;
    let mut sent = 0;
    for _ in 0..20_000 {
        let Ok(ready) = std::future::poll_fn(|cx| send.poll_ready(cx)).await.map(|()| &mut send) else { break };
        let request = Request::get("http://a/").body(()).unwrap();
        let Ok((_, mut stream)) = ready.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        sent += 1;
        if sent % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(send);
    let ended = tokio::time::timeout(Duration::from_secs(10), driver).await.expect("ends").unwrap();
    assert!(ended.is_err() || sent < 20_000, "all {sent} were taken");
    assert_eq!(http2(dial(address).await, get2("/")).await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request_and_is_logged() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = upstream.local_addr().unwrap();
    let gone = tokio::spawn(async move {
        let (mut socket, _) = upstream.accept().await.unwrap();
        let mut buf = [0; 1024];
        while socket.read(&mut buf).await.unwrap_or(0) > 0 {}
    });
    let (proxy, address) = proxy_to(at).await;
    let mut socket = dial(address).await;
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(socket);
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the upstream connection is closed").unwrap();
    assert!(proxy.log_lines(1).await[0].contains(" DC "));
}

#[tokio::test]
async fn connections_over_the_limit_are_closed() {
    let mut proxy = TestProxy::with(|settings| settings.connections_max = 2);
    proxy.clusters(&[cluster("echo", &[echo().await])]).await;
    let address = proxy.listeners(&[listener("http", vec![http_chain(&hcm(all_to("r", "echo")))])]).await;
    let _one = dial(address).await;
    let _two = dial(address).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(raw(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    assert!(proxy.metrics().contains("CONNECTIONS_EXHAUSTED"));
}
