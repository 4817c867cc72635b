//! Two sidecars: a server's before an HTTP server and a TCP one, and a client's that speaks to both over mTLS.

use std::net::SocketAddr;

use super::harness::{TestProxy, echo};
use super::protos::{
    all_to, cluster, hcm, http_chain, inbound, listener, mtls_chain, speaking_http2, tcp_chain, with_mtls,
};

pub(super) const SNI: &str = "outbound_.9095_._.helloworld.default.svc.cluster.local";
pub(super) const TCP_SNI: &str = "tcp.sni";

/// Has `proxy` take what is for [`SNI`] to an HTTP echo server and what is for [`TCP_SNI`] to `tcp`; answers its address.
pub(super) async fn serve(proxy: &mut TestProxy, tcp: SocketAddr) -> SocketAddr {
    proxy.clusters(&[cluster("http", &[echo().await]), cluster("tcp", &[tcp])]).await;
    let chains =
        vec![mtls_chain(http_chain(&hcm(all_to("inbound", "http"))), &[SNI]), mtls_chain(tcp_chain("tcp"), &[TCP_SNI])];
    proxy.listeners(&[inbound(listener("inbound", chains))]).await
}

/// Has `proxy` take HTTP (at the address that is answered) and TCP (at its listener `tcp`) to the sidecar of `expected`.
pub(super) async fn reach(proxy: &mut TestProxy, server: SocketAddr, expected: &str) -> SocketAddr {
    proxy
        .clusters(&[
            speaking_http2(with_mtls(cluster("http", &[server]), SNI, expected)),
            with_mtls(cluster("tcp", &[server]), TCP_SNI, expected),
        ])
        .await;
    let listeners =
        [listener("http", vec![http_chain(&hcm(all_to("http", "http")))]), listener("tcp", vec![tcp_chain("tcp")])];
    proxy.listeners(&listeners).await
}
