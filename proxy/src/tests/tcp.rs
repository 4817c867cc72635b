//! Connections that are not HTTP: plain and mTLS, counted and logged.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{Authority, TestProxy, dial, dial_tls};
use super::protos::{cluster, inbound, listener, mtls_chain, tcp_chain, with_mtls};

pub(super) async fn echo_bytes() -> std::net::SocketAddr {
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

#[tokio::test]
async fn bytes_pass_through_two_proxies_with_mtls_between() {
    let authority = Authority::new();
    let mut server = TestProxy::start().identify(&authority, "helloworld");
    server.clusters(&[cluster("in", &[echo_bytes().await])]).await;
    let inbound_at =
        server.listeners(&[inbound(listener("in", vec![mtls_chain(tcp_chain("in"), &["tcp.sni"])]))]).await;
    let mut client = TestProxy::start().identify(&authority, "test");
    let expected = authority.id("helloworld").to_string();
    client.clusters(&[with_mtls(cluster("out", &[inbound_at]), "tcp.sni", &expected)]).await;
    let entry = client.listeners(&[listener("out", vec![tcp_chain("out")])]).await;

    let mut socket = dial(entry).await;
    let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n * 7) as u8).collect();
    let (mut read, mut write) = socket.split();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, got) = tokio::join!(send, read.read_to_end(&mut back));
    got.unwrap();
    assert!(back == sent);
    let line = &client.log_lines(1).await[0];
    assert!(line.contains("2000000 2000000"), "{line}");
    let metrics = server.metrics();
    assert!(
        metrics.contains("istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"test\""),
        "{metrics}"
    );
    assert!(
        metrics.lines().any(|l| l.starts_with("istio_tcp_received_bytes_total") && l.ends_with(" 2000000")),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_service_outside_of_the_mesh_is_refused_by_name() {
    let mut proxy = TestProxy::start();
    let address = proxy.listeners(&[listener("out", vec![tcp_chain("BlackHoleCluster")])]).await;
    let mut socket = dial(address).await;
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got).await;
    assert!(got.is_empty());
    assert!(proxy.log_lines(1).await[0].contains("BlackHoleCluster"));
    assert!(proxy.metrics().contains("kasbah_refusals_total{reason=\"HOST_NOT_IN_MESH\"} 1\n"));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_on_a_plain_port() {
    let speaker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = speaker.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = speaker.accept().await {
            socket.write_all(b"220 ready\r\n").await.unwrap();
        }
    });
    let mut proxy = TestProxy::start();
    proxy.clusters(&[cluster("mail", &[at])]).await;
    let address = proxy.listeners(&[listener("mail", vec![tcp_chain("mail")])]).await;
    let mut got = String::new();
    dial(address).await.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "220 ready\r\n");
}

#[tokio::test]
async fn server_names_choose_between_chains() {
    let authority = Authority::new();
    let mut proxy = TestProxy::start().identify(&authority, "helloworld");
    let names = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = names.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = names.accept().await {
            socket.write_all(b"named").await.unwrap();
        }
    });
    proxy.clusters(&[cluster("named", &[at]), cluster("echo", &[echo_bytes().await])]).await;
    let chains = vec![mtls_chain(tcp_chain("named"), &["one.test"]), mtls_chain(tcp_chain("echo"), &[])];
    let address = proxy.listeners(&[listener("in", chains)]).await;
    let mut one = dial_tls(address, authority.holder("test"), "one.test", &[]).await.unwrap();
    let mut got = Vec::new();
    one.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"named");
    let mut two = dial_tls(address, authority.holder("test"), "two.test", &[]).await.unwrap();
    two.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    two.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
}
