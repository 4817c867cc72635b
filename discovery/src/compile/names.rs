//! Names that Istio's users know from their proxies: clusters, routes, SNI.

/// `outbound|PORT|SUBSET|HOST`
pub(super) fn outbound_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `inbound|PORT||`
pub(super) fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The SNI by which an inbound listener finds the port: `outbound_.PORT_.SUBSET_.HOST`.
pub(super) fn sni(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

pub(super) const BLACK_HOLE: &str = "BlackHoleCluster";
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
/// The route table of the explicit HTTP proxy port.
pub(super) const HTTP_PROXY: &str = "http_proxy";
pub(super) const OUTBOUND_PORT: u16 = 15001;
pub(super) const INBOUND_PORT: u16 = 15006;
/// The bootstrap cluster of the agent's SDS socket.
pub(super) const SDS_CLUSTER: &str = "sds-grpc";
pub(super) const SECRET_OWN: &str = "default";
pub(super) const SECRET_ROOTS: &str = "ROOTCA";
