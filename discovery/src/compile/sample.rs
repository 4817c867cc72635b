//! Nodes, meshes and requests to test with; what is compiled is judged by our own engine.

use std::path::Path;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use identity::TrustDomain;
use prost::Message;
use routing::request::{
    CanonicalPath, Connection, EscapedSlashes, Host, Metadata, PathOptions, PeerIdentity, Request, Scheme, TokenClaims,
};

use super::Mesh;
use crate::documents::{Document, parse};
use crate::node::{NodeFacts, NodeKind};
use crate::resources::{Resources, Type};

/// Parses documents that must all be accepted.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let parsed = parse(Path::new("test.yaml"), text);
    assert!(parsed.refused.is_empty(), "{:?}", parsed.findings);
    parsed.documents
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// A sidecar without capture.
pub(crate) fn sidecar(name: &str, ip: &str) -> NodeFacts {
    NodeFacts {
        id: format!("sidecar~{ip}~{name}.default~default.svc.cluster.local"),
        kind: NodeKind::Sidecar,
        ip: ip.parse().unwrap(),
        namespace: "default".to_owned(),
        service_account: name.to_owned(),
        name: name.to_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        capture: false,
        bind_address: None,
        port_map: [].into(),
    }
}

/// A gateway of `istio-system` with the label `istio: NAME`.
pub(crate) fn router(name: &str, ip: &str) -> NodeFacts {
    NodeFacts {
        id: format!("router~{ip}~istio-{name}.istio-system~istio-system.svc.cluster.local"),
        kind: NodeKind::Router,
        namespace: "istio-system".to_owned(),
        service_account: format!("istio-{name}"),
        labels: [("istio".to_owned(), name.to_owned())].into(),
        bind_address: Some(ip.parse().unwrap()),
        ..sidecar(name, ip)
    }
}

pub(crate) fn compile(text: &str, node: &NodeFacts) -> Resources {
    Mesh::build(&documents(text), &trust_domain()).compile(node)
}

pub(crate) fn decoded<T: Message + Default>(resources: &Resources, kind: Type, name: &str) -> T {
    let resource = resources.get(kind, name).unwrap_or_else(|| {
        let names: Vec<&str> = resources.of(kind).map(|resource| resource.name.as_str()).collect();
        panic!("no {name} among {names:?}")
    });
    T::decode(resource.body.value.as_slice()).unwrap()
}

pub(crate) fn listener(resources: &Resources, name: &str) -> routing::listener::Listener {
    routing::listener::Listener::compile(&decoded::<Listener>(resources, Type::Listener, name)).unwrap()
}

pub(crate) fn routes(resources: &Resources, name: &str) -> routing::route::RouteTable {
    routing::route::RouteTable::compile(&decoded::<RouteConfiguration>(resources, Type::Route, name)).unwrap()
}

pub(crate) fn cluster(resources: &Resources, name: &str) -> routing::cluster::Cluster {
    routing::cluster::Cluster::compile(&decoded::<Cluster>(resources, Type::Cluster, name)).unwrap()
}

/// Everything compiles for our own engine.
pub(crate) fn assert_accepted(resources: &Resources) {
    for resource in resources.of(Type::Cluster) {
        cluster(resources, &resource.name);
    }
    for resource in resources.of(Type::Endpoints) {
        let assignment = decoded::<ClusterLoadAssignment>(resources, Type::Endpoints, &resource.name);
        routing::endpoint::Endpoints::compile(&assignment).unwrap();
    }
    for resource in resources.of(Type::Listener) {
        listener(resources, &resource.name);
    }
    for resource in resources.of(Type::Route) {
        routes(resources, &resource.name);
    }
}

/// A request, owned.
#[derive(Debug)]
pub(crate) struct Asked {
    method: Method,
    host: Host,
    path: CanonicalPath,
    headers: HeaderMap,
    connection: Connection,
    metadata: Metadata,
}

impl Asked {
    pub(crate) fn new(method: &str, host: &str, path: &str) -> Self {
        Self::parse(method, host, path).unwrap()
    }

    /// `None` when our engine refuses the request before any policy sees it.
    pub(crate) fn parse(method: &str, host: &str, path: &str) -> Option<Self> {
        let as_sent = PathOptions { normalize: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
        Some(Self {
            method: method.parse().ok()?,
            host: Host::parse(host).ok()?,
            path: CanonicalPath::parse_raw(path, &as_sent).ok()?,
            headers: HeaderMap::new(),
            connection: Connection::plain("127.0.0.1:4000".parse().unwrap(), "127.0.0.1:8080".parse().unwrap()),
            metadata: Metadata::default(),
        })
    }

    pub(crate) fn peer(mut self, uri: &str) -> Self {
        self.connection.peer = Some(PeerIdentity::danger_assume(uri));
        self.connection.tls = true;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        self
    }

    pub(crate) fn claims(mut self, claims: serde_json::Value) -> Self {
        self.metadata.insert_claims(&Arc::from(super::CLAIMS_KEY), TokenClaims::danger_assume(claims));
        self
    }

    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            scheme: Scheme::Http,
            connection: &self.connection,
            remote: self.connection.source.ip(),
            metadata: &self.metadata,
        }
    }
}

/// The status that the authorization filters of a chain give a request, asking no service: 200 if all let it pass, and
/// whether an ext_authz service would be asked.
pub(crate) fn verdict(chain: &routing::listener::FilterChain, asked: &Asked) -> (u16, bool) {
    let routing::listener::Terminal::Http(manager) = &chain.terminal else { panic!("no HTTP chain") };
    verdict_of(&manager.filters, asked)
}

pub(crate) fn verdict_of(filters: &[routing::filters::HttpFilter], asked: &Asked) -> (u16, bool) {
    let said = routing::filters::authorize(filters, &asked.request());
    (said.refused.map_or(200, |status| status.as_u16()), said.asks_service)
}

/// The filters as our engine has them.
pub(crate) fn engine(
    filters: Vec<envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter>,
) -> Vec<routing::filters::HttpFilter> {
    filters.iter().filter_map(|filter| routing::filters::HttpFilter::compile(filter).unwrap()).collect()
}
