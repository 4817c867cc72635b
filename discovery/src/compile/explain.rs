//! What documents make of each proxy, and which document each part of it comes from: for explanations.
//!
//! What a proxy is given is compiled by [`super::Mesh`], as for a proxy that asks. Beside it stand the questions that
//! resources alone do not answer: file and line of the document behind a policy, an mTLS mode, a token rule, a route.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use envoy_types::pb::envoy::config::core::v3::Node;
use identity::TrustDomain;
use prost::Message;
use serde_json::Value;

use super::authz::{self, Target};
use super::model::{Model, Named, full_host};
use super::peer_authentication::{self, Accepts, Place};
use super::{Mesh, Scope, gateway, inbound, jwt, names, routes};
use crate::documents::rules::host_matches;
use crate::documents::shapes::{Labels, labels_match};
use crate::documents::{Document, Kind, Meta};
use crate::node::{NodeFacts, NodeKind};
use crate::resources::{Resources, Type};

/// Documents with what they mean.
#[derive(Debug)]
pub struct Explainer {
    documents: Vec<Document>,
    mesh: Mesh,
    trust_domain: TrustDomain,
}

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The document's kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u64,
}

/// A proxy that documents, or the proxy itself, tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    facts: NodeFacts,
    /// Other names that it goes by.
    names: Vec<String>,
    assumed: bool,
}

/// One resource that a proxy is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Its xDS type.
    pub type_url: &'static str,
    /// Its name.
    pub name: String,
    /// Hash of its content.
    pub version: String,
    /// The encoded message.
    pub bytes: Vec<u8>,
}

/// What a port of a workload accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualTls {
    /// `STRICT`, `PERMISSIVE`, `DISABLE`.
    pub mode: &'static str,
    /// The policy that says so; none where Istio's default holds.
    pub origin: Option<Origin>,
    /// Whether it is said for this port, this workload, its namespace or the mesh.
    pub level: &'static str,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The workload's own number.
    pub number: u16,
    /// Whether HTTP is spoken.
    pub http: bool,
    /// Hosts that lead to it, each with the port of the service and the server name that the mesh's clients send.
    pub services: Vec<(String, u16, String)>,
}

/// An issuer of tokens that a document trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The issuer.
    pub issuer: String,
    /// Its keys.
    pub jwks: Jwks,
    /// The name of the proxy's provider for it; empty where no workload is meant.
    pub provider: String,
    /// The rule.
    pub origin: Origin,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Jwks {
    /// In the document.
    Inline(String),
    /// To be fetched.
    Uri(String),
}

/// A policy as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// The document.
    pub origin: Origin,
    /// `ALLOW`, `DENY`, `CUSTOM`, `AUDIT`.
    pub action: &'static str,
    /// Whether it is only watched.
    pub dry_run: bool,
    /// The rules with their lines.
    pub rules: Vec<(u64, Value)>,
}

impl Proxy {
    /// `sidecar` or `gateway`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.is_gateway() { "gateway" } else { "sidecar" }
    }

    /// Whether it stands alone, and not beside a workload.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.facts.kind == NodeKind::Router
    }

    /// The workload's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.facts.namespace
    }

    /// The workload's address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.facts.ip
    }

    /// The workload's labels.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.facts.labels
    }

    /// The port that is really bound for one of the documents.
    #[must_use]
    pub fn real_port(&self, port: u16) -> u16 {
        self.facts.port_map.get(&port).copied().unwrap_or(port)
    }

    /// Its SPIFFE ID; none where nothing tells its service account.
    #[must_use]
    pub fn spiffe_id(&self, trust_domain: &TrustDomain) -> Option<String> {
        let known = !self.facts.service_account.is_empty();
        known.then(|| format!("spiffe://{trust_domain}{}", self.facts.spiffe_path()))
    }

    /// Whether its service account is a guess by Istio's habit, because no document names it.
    #[must_use]
    pub fn is_assumed(&self) -> bool {
        self.assumed
    }

    /// Whether somebody means it by this name: `NAME` or `NAMESPACE/NAME`, of the workload, its entry, its service or
    /// its gateway document.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let (namespace, name) = name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
        namespace.is_none_or(|namespace| namespace == self.facts.namespace)
            && (self.facts.name == name || self.names.iter().any(|known| known == name))
    }
}

impl Explainer {
    /// Takes accepted documents in.
    #[must_use]
    pub fn new(documents: Vec<Document>, trust_domain: &TrustDomain) -> Self {
        let mesh = Mesh::build(&documents, trust_domain);
        Self { documents, mesh, trust_domain: trust_domain.clone() }
    }

    pub(super) fn model(&self) -> &Model {
        &self.mesh.0
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Every proxy that the documents tell of: one beside each workload with an identity, one for each gateway.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        let mut proxies = self.sidecars();
        for gateway in &self.model().gateways {
            let own = proxies.iter().position(|proxy| {
                let labels = &gateway.spec.selector;
                !labels.is_empty() && labels_match(labels, &proxy.facts.labels)
            });
            match own {
                Some(at) => {
                    let proxy = &mut proxies[at];
                    proxy.facts.kind = NodeKind::Router;
                    proxy.names.push(gateway.meta.name.clone());
                }
                None => proxies.push(gateway_proxy(gateway)),
            }
        }
        proxies
    }

    fn sidecars(&self) -> Vec<Proxy> {
        let mut proxies: Vec<Proxy> = Vec::new();
        for service in self.model().services.iter().filter(|service| service.internal) {
            for workload in &service.endpoints {
                let Some(account) = workload.identity.as_deref().and_then(|id| id.rsplit('/').next()) else { continue };
                let Ok(ip) = workload.address.parse::<IpAddr>() else { continue };
                let short = service.host.split('.').next().unwrap_or_default().to_owned();
                let same = |known: &&mut Proxy| {
                    known.facts.ip == ip
                        && known.facts.namespace == workload.namespace
                        && known.facts.service_account == account
                };
                if let Some(known) = proxies.iter_mut().find(same) {
                    known.names.extend([short, service.host.clone()]);
                    continue;
                }
                let app = workload.labels.get("app").cloned();
                let names = [Some(workload.name.clone()), app, Some(short), Some(service.host.clone())];
                let facts = facts(NodeKind::Sidecar, ip, account, &workload.namespace, account, &workload.labels);
                proxies.push(Proxy { facts, names: names.into_iter().flatten().collect(), assumed: false });
            }
        }
        proxies
    }

    /// The proxy that described itself by an encoded xDS `Node`. Names that documents have for it are kept.
    #[must_use]
    pub fn proxy_of_node(&self, node: &[u8]) -> Option<Proxy> {
        let facts = NodeFacts::of(&Node::decode(node).ok()?).ok()?;
        let same = |known: &Proxy| {
            known.facts.namespace == facts.namespace
                && known.facts.kind == facts.kind
                && match facts.kind {
                    NodeKind::Router => labels_match(&known.facts.labels, &facts.labels),
                    _ => known.facts.ip == facts.ip && known.facts.service_account == facts.service_account,
                }
        };
        let known = self.proxies().into_iter().filter(same);
        let names = known.flat_map(|known| known.names.into_iter().chain([known.facts.name])).collect();
        Some(Proxy { facts, names, assumed: false })
    }

    /// What the documents give this proxy.
    #[must_use]
    pub fn resources(&self, proxy: &Proxy) -> Vec<Compiled> {
        let resources = self.mesh.compile(&proxy.facts);
        let of = |kind: Type| {
            resources.of(kind).map(move |resource| Compiled {
                type_url: kind.url(),
                name: resource.name.clone(),
                version: resource.version.clone(),
                bytes: resource.body.value.clone(),
            })
        };
        Type::ALL.into_iter().flat_map(of).collect()
    }

    fn target<'a>(proxy: &'a Proxy) -> Target<'a> {
        Target { namespace: &proxy.facts.namespace, labels: &proxy.facts.labels, port: None }
    }

    /// The document of this kind and name, with the line of a part of it.
    fn origin(&self, kind: Kind, meta: &Meta, path: &str) -> Option<Origin> {
        let named = |document: &&Document| {
            document.kind == kind && document.meta.name == meta.name && document.meta.namespace == meta.namespace
        };
        self.documents.iter().find(named).map(|document| Origin {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            file: document.file.to_path_buf(),
            line: document.line_of(path),
        })
    }

    pub(super) fn policy_origin(
        &self,
        policy: &Named<crate::documents::security::AuthorizationPolicy>,
        path: &str,
    ) -> Option<Origin> {
        self.origin(Kind::AuthorizationPolicy, &policy.meta, path)
    }

    /// The ports that a proxy opens, with whether HTTP is spoken.
    pub(super) fn open_ports(&self, proxy: &Proxy) -> Vec<(u16, bool)> {
        if !proxy.is_gateway() {
            return self.ports(proxy).iter().map(|port| (port.number, port.http)).collect();
        }
        let scope = self.scope(proxy);
        let gateways = self.model().gateways.iter().filter(|gateway| gateway::selects(&scope, gateway));
        let of = |server: &crate::documents::networking::Server| {
            let ends = server.tls.as_ref().is_some_and(|_| server.port.protocol.eq_ignore_ascii_case("https"));
            let http = ends || super::model::Protocol::of(&server.port.protocol, &server.port.name).is_http();
            Some((u16::try_from(server.port.number).ok()?, http))
        };
        gateways.flat_map(|gateway| gateway.spec.servers.iter().filter_map(of)).collect()
    }

    /// The policy behind the name of an RBAC rule, and the rule's number in the policy.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<(Origin, usize)> {
        let rest = name.get(name.find("ns[")? + "ns[".len()..)?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let index: usize = rest.split(']').next()?.parse().ok()?;
        let meta = Meta { namespace: namespace.to_owned(), name: policy.to_owned(), ..Meta::default() };
        Some((self.origin(Kind::AuthorizationPolicy, &meta, &format!("spec.rules[{index}]"))?, index))
    }

    /// The mode of a port, and the policy that says so.
    #[must_use]
    pub fn mutual_tls(&self, proxy: &Proxy, port: u16) -> MutualTls {
        let model = self.model();
        let (accepts, said) = peer_authentication::accepts_by(model, &proxy.facts, port);
        let mode = match accepts {
            Accepts::PlainOnly => "DISABLE",
            Accepts::Both => "PERMISSIVE",
            Accepts::MutualTlsOnly => "STRICT",
        };
        let Some((_, policy, place)) = said else { return MutualTls { mode, origin: None, level: "default" } };
        let (path, level) = match place {
            Place::Port(port) => (format!("spec.portLevelMtls.{port}"), "port"),
            Place::Whole if policy.spec.selector.is_some() => ("spec.mtls.mode".to_owned(), "workload"),
            Place::Whole if policy.meta.namespace == model.config.root_namespace() => {
                ("spec.mtls.mode".to_owned(), "mesh")
            }
            Place::Whole => ("spec.mtls.mode".to_owned(), "namespace"),
        };
        MutualTls { mode, origin: self.origin(Kind::PeerAuthentication, &policy.meta, &path), level }
    }

    /// The token rules of a workload, with the providers that proxies know them by.
    #[must_use]
    pub fn issuers(&self, proxy: &Proxy) -> Vec<Issuer> {
        let rules = jwt::rules(self.model(), Self::target(proxy)).into_iter().enumerate();
        let of = |(at, own): (usize, jwt::OwnRule<'_>)| self.issuer(own.policy, own.index, jwt::provider_name(at));
        rules.filter_map(of).collect()
    }

    /// Every token rule of every document.
    #[must_use]
    pub fn all_issuers(&self) -> Vec<Issuer> {
        let policies = self.model().request_authentications.iter();
        let of = |policy| (0..).map_while(move |at| self.issuer(policy, at, String::new()));
        policies.flat_map(of).collect()
    }

    fn issuer(
        &self,
        policy: &Named<crate::documents::security::RequestAuthentication>,
        index: usize,
        provider: String,
    ) -> Option<Issuer> {
        let rule = policy.spec.jwt_rules.get(index)?;
        let jwks = match rule.jwks.is_empty() {
            true => Jwks::Uri(rule.jwks_uri.clone()),
            false => Jwks::Inline(rule.jwks.clone()),
        };
        let path = format!("spec.jwtRules[{index}]");
        let origin = self.origin(Kind::RequestAuthentication, &policy.meta, &path)?;
        Some(Issuer { issuer: rule.issuer.clone(), jwks, provider, origin })
    }

    /// The authorization policies of a workload, in the order in which they decide.
    #[must_use]
    pub fn policies(&self, proxy: &Proxy) -> Vec<PolicyText> {
        use crate::documents::security::Action;
        let mut policies = authz::selected(self.model(), Self::target(proxy));
        let rank = |action: Action| match action {
            Action::Custom => (0, "CUSTOM"),
            Action::Deny => (1, "DENY"),
            Action::Allow => (2, "ALLOW"),
            Action::Audit => (3, "AUDIT"),
        };
        policies.sort_by_key(|policy| rank(policy.spec.action).0);
        let text = |policy: &Named<crate::documents::security::AuthorizationPolicy>| {
            let origin = self.origin(Kind::AuthorizationPolicy, &policy.meta, "")?;
            let document = self.document(&origin)?;
            let rule = |at: usize| {
                let written = document.json_at(&format!("/spec/rules/{at}")).unwrap_or_default();
                (document.line_of(&format!("spec.rules[{at}]")), written)
            };
            let rules = (0..policy.spec.rules.len()).map(rule).collect();
            let (action, dry_run) = (rank(policy.spec.action).1, authz::is_dry_run(policy));
            Some(PolicyText { origin, action, dry_run, rules })
        };
        policies.into_iter().filter_map(text).collect()
    }

    fn document(&self, origin: &Origin) -> Option<&Document> {
        self.documents.iter().find(|one| {
            one.kind == origin.kind && one.meta.name == origin.name && one.meta.namespace == origin.namespace
        })
    }

    /// The rule of a virtual service that a route of this name, for this host, comes from.
    #[must_use]
    pub fn route(&self, name: &str, host: &str) -> Option<Origin> {
        let model = self.model();
        let mut found = Vec::new();
        for service in &model.virtual_services {
            let full = |own: &String| full_host(own, &service.meta.namespace);
            let is_host = service.spec.hosts.iter().map(full).any(|own| own == host || host_matches(&own, host));
            for (index, rule) in service.spec.http.iter().enumerate() {
                let is_named = |matcher| routes::name(service, &rule.name, matcher, index) == name;
                let named = is_named(None) || rule.matches.iter().any(|matcher| is_named(Some(matcher)));
                if named && is_host {
                    found.push((service, index));
                }
            }
        }
        let (service, index) = found.first()?;
        self.origin(Kind::VirtualService, &service.meta, &format!("spec.http[{index}]"))
    }

    /// The documents behind a cluster `outbound|PORT|SUBSET|HOST`: its service, and what destination rules say of it.
    #[must_use]
    pub fn cluster(&self, name: &str, proxy: &Proxy) -> Vec<Origin> {
        let mut parts = name.splitn(4, '|');
        let (Some("outbound"), Some(_), Some(_), Some(host)) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Vec::new();
        };
        let model = self.model();
        let Some(service) = model.service(host, &proxy.facts.namespace) else { return Vec::new() };
        let entry = self.documents.iter().find(|document| match &*document.spec {
            crate::documents::Spec::ServiceEntry(entry) => {
                document.meta.namespace == service.namespace
                    && entry.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
            }
            _ => false,
        });
        let rules = model
            .destination_rules
            .iter()
            .filter(|rule| host_matches(&full_host(&rule.spec.host, &rule.meta.namespace), host));
        let entry = entry.and_then(|entry| self.origin(Kind::ServiceEntry, &entry.meta, ""));
        entry.into_iter().chain(rules.filter_map(|rule| self.origin(Kind::DestinationRule, &rule.meta, ""))).collect()
    }

    /// The document with the settings of the whole mesh.
    #[must_use]
    pub fn mesh_config(&self) -> Option<Origin> {
        let document = self.documents.iter().find(|document| document.kind == Kind::MeshConfig)?;
        self.origin(Kind::MeshConfig, &document.meta, "data.mesh")
    }

    /// The gateway documents that open this port of a proxy.
    #[must_use]
    pub fn servers(&self, proxy: &Proxy, port: u16) -> Vec<Origin> {
        let scope = self.scope(proxy);
        let mut found = Vec::new();
        for gateway in self.model().gateways.iter().filter(|gateway| gateway::selects(&scope, gateway)) {
            for (at, server) in gateway.spec.servers.iter().enumerate() {
                if server.port.number == u32::from(port) {
                    found.extend(self.origin(Kind::Gateway, &gateway.meta, &format!("spec.servers[{at}]")));
                }
            }
        }
        found
    }

    /// The ports of a workload.
    #[must_use]
    pub fn ports(&self, proxy: &Proxy) -> Vec<Port> {
        let scope = self.scope(proxy);
        let ports = inbound::ports(&scope);
        let of = |port: &inbound::Port<'_>| Port {
            number: port.number,
            http: port.protocol.is_http(),
            services: port
                .services
                .iter()
                .map(|(service, port)| (service.host.clone(), port.number, names::sni(port.number, "", &service.host)))
                .collect(),
        };
        ports.values().map(of).collect()
    }

    fn scope<'a>(&'a self, proxy: &'a Proxy) -> Scope<'a> {
        Scope { model: self.model(), node: &proxy.facts, resources: Resources::default() }
    }
}

/// A gateway that no workload entry describes.
fn gateway_proxy(gateway: &Named<crate::documents::networking::Gateway>) -> Proxy {
    let labels = &gateway.spec.selector;
    let habit = labels.get("app").cloned().or_else(|| labels.get("istio").map(|name| format!("istio-{name}")));
    let account = habit.unwrap_or_default();
    let name = if account.is_empty() { gateway.meta.name.as_str() } else { &account };
    let ip = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let facts = facts(NodeKind::Router, ip, name, &gateway.meta.namespace, &account, labels);
    let names = labels.values().cloned().chain([gateway.meta.name.clone()]).collect();
    Proxy { facts, names, assumed: true }
}

fn facts(kind: NodeKind, ip: IpAddr, name: &str, namespace: &str, account: &str, labels: &Labels) -> NodeFacts {
    NodeFacts {
        id: format!("{name}.{namespace}"),
        kind,
        ip,
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        name: name.to_owned(),
        labels: labels.clone(),
        // How `kasbah` runs proxies; with capture the chains are the same, told apart by the port.
        capture: false,
        bind_address: None,
        port_map: [].into(),
    }
}
