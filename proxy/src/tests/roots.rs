//! A root is replaced: every connection that rests on it is left in time, gently, and opened anew below the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::tls::FixedSnapshot;
use identity::{BundleSet, TrustBundle, X509Svid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{Authority, HOUR, TestProxy, dial, dial_tls, get, get2, http1};
use super::pair::{SNI, TCP_SNI, reach, serve};
use super::protos::{cluster, listener, tcp_chain, with_mtls};

/// A pause of a second ends a stream.
const MINUTE: Duration = Duration::from_secs(60);

/// Two roots of one trust domain, both in the bundle.
struct Roots {
    old: Authority,
    new: Authority,
}

impl Roots {
    fn new() -> Self {
        Self { old: Authority::new(), new: Authority::new() }
    }

    fn both(&self) -> Arc<BundleSet> {
        let mut bundle = TrustBundle::clone(&self.old.bundle());
        for root in &self.new.bundle().x509_authorities {
            bundle.add_x509_authority(root.clone()).unwrap();
        }
        Arc::new(BundleSet::new([Arc::new(bundle)]))
    }

    /// A proxy below the old root.
    fn proxy(&self, account: &str, stream_drain: Duration) -> TestProxy {
        let proxy = TestProxy::with(|settings| settings.stream_drain = stream_drain);
        proxy.identity.set_bundles(self.both());
        proxy.identity.set_svid(self.old.svid(account, HOUR));
        proxy
    }

    fn holder(&self, svid: Arc<X509Svid>) -> Arc<FixedSnapshot> {
        Arc::new(FixedSnapshot { svid: Some(svid), bundles: self.both() })
    }

    /// What the agent does after a taint.
    fn renew(&self, proxy: &TestProxy, account: &str) {
        proxy.identity.set_svid(self.new.svid(account, HOUR));
        proxy.workers.judge();
    }
}

/// An inbound sidecar before an HTTP echo server and a TCP one.
async fn server_side(roots: &Roots, stream_drain: Duration) -> (TestProxy, SocketAddr) {
    let mut proxy = roots.proxy("helloworld", stream_drain);
    let address = serve(&mut proxy, answering().await).await;
    (proxy, address)
}

/// Answers each `q` with an `a`, and never answers anything else.
async fn answering() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(byte) = socket.read_u8().await {
                    if byte == b'q' && socket.write_all(b"a").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn ask<S: AsyncReadExt + AsyncWriteExt + Unpin>(stream: &mut S) {
    stream.write_all(b"q").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
}

/// How many connections rest on which root, as the admin page has it.
fn on(proxy: &TestProxy, authority: &Authority) -> u64 {
    let root = root_of(authority);
    let page = proxy.process.counters.rests.page();
    let rows = page["connections"].as_array().unwrap().iter();
    let on = rows.filter(|row| row["own_authority"] == root || row["peer_authority"] == root);
    on.map(|row| row["count"].as_u64().unwrap()).sum()
}

fn root_of(authority: &Authority) -> String {
    let now = identity::unix_time(std::time::SystemTime::now());
    let peer = identity::verify::verify_peer(&authority.svid("x", HOUR).to_chain(), &authority.bundles(), now).unwrap();
    peer.root_id().to_string()
}

async fn nothing_rests(proxy: &TestProxy) {
    let mut resting = proxy.process.counters.rests.resting();
    let gone = resting.wait_for(|resting| !resting);
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .unwrap_or_else(|_| panic!("{:#}", proxy.process.counters.rests.page()))
        .unwrap();
}

async fn drained(proxy: &TestProxy, count: u64) {
    let told = async {
        while proxy.process.counters.drained.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap_or_else(|_| panic!("{}", proxy.metrics()));
}

/// With a farewell: TLS takes an end without one for an error.
async fn closed_in_order<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    assert_eq!(ended.expect("it is closed").expect("in order"), 0);
}

#[tokio::test]
async fn a_server_that_comes_from_another_root_says_goodbye_to_whoever_saw_the_old_one() {
    let roots = Roots::new();
    let (proxy, address) = server_side(&roots, MINUTE).await;
    // A peer that is no proxy of ours keeps its connections as long as it may.
    let peer = || roots.holder(roots.new.svid("test", HOUR));
    let mut tcp = dial_tls(address, peer(), TCP_SNI, &[]).await.unwrap();
    ask(&mut tcp).await;
    let stream = dial_tls(address, peer(), SNI, &[b"h2"]).await.unwrap();
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let conn = tokio::spawn(conn);
    assert_eq!(send.send_request(get2("/")).await.unwrap().status(), 200);
    let stream = dial_tls(address, peer(), SNI, &[b"http/1.1"]).await.unwrap();
    let (mut one, of_one) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(of_one);
    assert_eq!(super::harness::collect(one.send_request(get("/")).await.unwrap()).await.header("connection"), "");
    assert_eq!((on(&proxy, &roots.old), on(&proxy, &roots.new)), (3, 3));

    roots.renew(&proxy, "helloworld");
    assert!(*proxy.process.counters.rests.resting().borrow(), "known before anything is acknowledged");
    drained(&proxy, 3).await;
    let last = super::harness::collect(one.send_request(get("/")).await.unwrap()).await;
    assert_eq!((last.status.as_u16(), last.header("connection")), (200, "close"));
    drop((send, one));
    let said = tokio::time::timeout(Duration::from_secs(10), conn).await.expect("GOAWAY").unwrap();
    assert!(said.is_ok(), "{said:?}");
    closed_in_order(&mut tcp).await;
    nothing_rests(&proxy).await;
    assert_eq!(on(&proxy, &roots.old), 0);
    let mut again = dial_tls(address, peer(), TCP_SNI, &[]).await.unwrap();
    ask(&mut again).await;
    assert_eq!(on(&proxy, &roots.old), 0, "below the new root on both sides");
    let line = proxy.log_lines(4).await.into_iter().find(|line| line.contains("root_replaced"));
    assert!(line.is_some_and(|line| line.contains("DT")));
}

#[tokio::test]
async fn a_client_leaves_its_connections_and_opens_others() {
    let roots = Roots::new();
    let (server, address) = server_side(&roots, MINUTE).await;
    let mut client = roots.proxy("test", MINUTE);
    let expected = roots.old.id("helloworld").to_string();
    let entry = reach(&mut client, address, &expected).await;
    let mut tcp = dial(client.address("tcp")).await;
    ask(&mut tcp).await;
    assert_eq!(http1(dial(entry).await, get("/")).await.status, 200);
    assert_eq!((on(&client, &roots.old), on(&server, &roots.old)), (2, 2));

    roots.renew(&client, "test");
    assert_eq!(http1(dial(entry).await, get("/")).await.status, 200);
    closed_in_order(&mut tcp).await;
    // The server shows the old root still, so that new connections rest on it on that side.
    roots.renew(&server, "helloworld");
    nothing_rests(&server).await;
    nothing_rests(&client).await;
    assert_eq!(http1(dial(entry).await, get("/")).await.status, 200);
    let mut tcp = dial(client.address("tcp")).await;
    ask(&mut tcp).await;
    nothing_rests(&client).await;
    assert_eq!((on(&client, &roots.old), on(&server, &roots.old)), (0, 0));
    assert!(client.metrics().contains("kasbah_mtls_connections{side=\"upstream\",own_authority=\""));
}

#[tokio::test]
async fn a_stream_that_waits_for_an_answer_goes_on_until_its_time_is_over() {
    let roots = Roots::new();
    let (proxy, address) = server_side(&roots, Duration::from_secs(4)).await;
    let peer = roots.holder(roots.new.svid("test", HOUR));
    let mut waiting = dial_tls(address, peer, TCP_SNI, &[]).await.unwrap();
    ask(&mut waiting).await;
    waiting.write_all(b"?").await.unwrap();
    let begun = Instant::now();
    // The question is on its way through.
    tokio::time::sleep(Duration::from_millis(100)).await;
    roots.renew(&proxy, "helloworld");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), waiting.read_to_end(&mut rest)).await;
    let took = begun.elapsed();
    assert!(ended.is_ok() && took >= Duration::from_secs(4), "{ended:?} after {took:?}");
    nothing_rests(&proxy).await;
}

#[tokio::test]
async fn peers_of_another_root_that_was_never_ours_keep_their_connections() {
    let roots = Roots::new();
    let (proxy, address) = server_side(&roots, MINUTE).await;
    let mut tcp = dial_tls(address, roots.holder(roots.new.svid("test", HOUR)), TCP_SNI, &[]).await.unwrap();
    ask(&mut tcp).await;
    // An ordinary renewal.
    proxy.identity.set_svid(roots.old.svid("helloworld", HOUR));
    proxy.workers.judge();
    let ended = tokio::time::timeout(Duration::from_millis(1500), tcp.read_u8()).await;
    assert!(ended.is_err(), "{ended:?}");
    ask(&mut tcp).await;
    assert!(!*proxy.process.counters.rests.resting().borrow());
}

#[tokio::test]
async fn a_connection_to_a_server_whose_root_is_gone_is_left() {
    let roots = Roots::new();
    let (_server, address) = server_side(&roots, MINUTE).await;
    let mut client = roots.proxy("test", MINUTE);
    client.identity.set_svid(roots.new.svid("test", HOUR));
    let expected = roots.old.id("helloworld").to_string();
    client.clusters(&[with_mtls(cluster("tcp", &[address]), TCP_SNI, &expected)]).await;
    let entry = client.listeners(&[listener("tcp", vec![tcp_chain("tcp")])]).await;
    let mut tcp = dial(entry).await;
    ask(&mut tcp).await;
    client.identity.set_bundles(roots.new.bundles());
    client.workers.judge();
    closed_in_order(&mut tcp).await;
}
