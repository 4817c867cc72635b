//! Pilot's compiler: from the mesh's documents to the xDS resources of one node.
//!
//! Pure: no files, no sockets, no clock. Stock Envoy and gRPC libraries accept what comes out; names are Istio's.

pub(crate) mod authz;
mod canonical;
mod clusters;
mod endpoints;
mod explain;
mod gateway;
mod grpc;
mod hcm;
mod idle;
mod inbound;
mod jwt;
mod logs;
pub(crate) mod model;
mod names;
mod outbound;
mod pb;
pub(crate) mod peer_authentication;
mod rate_limit;
mod route_action;
mod route_match;
mod routes;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::google::protobuf::Any;
use identity::TrustDomain;
use prost::Message;

use crate::documents::Document;
use crate::documents::shapes::Labels;
use crate::node::{NodeFacts, NodeKind};
use crate::resources::{Resources, Type};
use model::Model;

pub(crate) use canonical::canonical_bytes;
pub use explain::{Compiled, Explainer, Issuer, Jwks, MutualTls, Origin, PolicyText, Port, Proxy};
pub use idle::{Idle, Known};

/// The mesh of one generation, ready to be compiled for any node.
#[derive(Clone, Debug)]
pub(crate) struct Mesh(Arc<Model>);

impl Mesh {
    pub(crate) fn build(documents: &[Document], trust_domain: &TrustDomain) -> Self {
        Self(Arc::new(Model::build(documents, trust_domain)))
    }

    /// Everything that this node is to be given.
    pub(crate) fn compile(&self, node: &NodeFacts) -> Resources {
        let mut scope = Scope { model: &self.0, node, resources: Resources::default() };
        clusters::compile(&mut scope);
        match node.kind {
            NodeKind::Sidecar => {
                inbound::compile(&mut scope);
                outbound::compile(&mut scope);
            }
            NodeKind::Router => gateway::compile(&mut scope),
            NodeKind::Grpc => grpc::compile(&mut scope),
        }
        scope.resources
    }
}

/// The authorization filters that a workload's HTTP traffic passes, in the order in which they decide.
///
/// For evaluating policies without a mesh: the RBAC filters are those that a proxy of that workload is given.
#[must_use]
pub fn authorization_filters(
    documents: &[Document],
    trust_domain: &TrustDomain,
    trust_domain_aliases: &[String],
    namespace: &str,
    labels: &Labels,
) -> Vec<HttpFilter> {
    let mut model = Model::build(documents, trust_domain);
    model.config.trust_domain_aliases.extend_from_slice(trust_domain_aliases);
    let (mut filters, after) = authz::http_filters(&model, authz::Target { namespace, labels, port: None });
    filters.extend(after);
    filters
}

/// What one compilation reads and writes.
struct Scope<'a> {
    model: &'a Model,
    node: &'a NodeFacts,
    resources: Resources,
}

impl Scope<'_> {
    fn insert(&mut self, kind: Type, name: &str, message: &impl Message) {
        self.resources.insert(kind, name, message);
    }
}

/// The key under which the token filter notes a verified token's claims for policies and routes.
pub const CLAIMS_KEY: &str = "payload";

fn network_filter(name: &str, config: Any) -> listener::Filter {
    let config_type = Some(listener::filter::ConfigType::TypedConfig(config));
    listener::Filter { name: name.to_owned(), config_type }
}

fn listener_filter(name: &str, config: Any) -> listener::ListenerFilter {
    let config_type = Some(listener::listener_filter::ConfigType::TypedConfig(config));
    listener::ListenerFilter { name: name.to_owned(), config_type, ..Default::default() }
}

fn tls_inspector() -> listener::ListenerFilter {
    use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
    listener_filter("envoy.filters.listener.tls_inspector", canonical::pack(&TlsInspector::default()))
}

fn original_dst() -> listener::ListenerFilter {
    use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
    listener_filter("envoy.filters.listener.original_dst", canonical::pack(&OriginalDst::default()))
}
