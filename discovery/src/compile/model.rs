//! The mesh as documents describe it: services with their endpoints, and every policy in the order that decides.
//!
//! Built once per generation and immutable; what a single node sees of it is computed in the compilers.

use std::collections::BTreeMap;

use identity::TrustDomain;

use crate::documents::mesh::{MeshConfig, RateLimit};
use crate::documents::networking::{
    DestinationRule, Gateway, Location, Resolution, ServiceEntry, Subset, WorkloadEntry,
};
use crate::documents::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::documents::shapes::{Labels, labels_match};
use crate::documents::virtual_service::VirtualService;
use crate::documents::{Document, Meta, Spec};

/// A document's content with its name.
#[derive(Clone, Debug)]
pub(crate) struct Named<T> {
    pub(crate) meta: Meta,
    pub(crate) spec: T,
}

/// Everything that configuration is compiled from.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) config: MeshConfig,
    pub(crate) services: Vec<Service>,
    pub(crate) gateways: Vec<Named<Gateway>>,
    pub(crate) virtual_services: Vec<Named<VirtualService>>,
    pub(crate) destination_rules: Vec<Named<DestinationRule>>,
    pub(crate) peer_authentications: Vec<Named<PeerAuthentication>>,
    pub(crate) request_authentications: Vec<Named<RequestAuthentication>>,
    pub(crate) authorization_policies: Vec<Named<AuthorizationPolicy>>,
    pub(crate) rate_limits: Vec<Named<RateLimit>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) host: String,
    pub(crate) namespace: String,
    pub(crate) internal: bool,
    pub(crate) resolution: Resolution,
    pub(crate) addresses: Vec<String>,
    pub(crate) sans: Vec<String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) endpoints: Vec<Workload>,
    export_to: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct ServicePort {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    target: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Http2,
    Tls,
    Tcp,
    Udp,
}

/// One endpoint of a service.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) address: String,
    pub(crate) labels: Labels,
    pub(crate) locality: String,
    pub(crate) weight: u32,
    /// The SPIFFE ID that it proves; without one it is spoken to in plain text.
    pub(crate) identity: Option<String>,
    pub(crate) name: String,
    pub(crate) namespace: String,
    ports: BTreeMap<String, u32>,
}

impl Model {
    pub(crate) fn build(documents: &[Document], trust_domain: &TrustDomain) -> Self {
        let mut sorted: Vec<&Document> = documents.iter().collect();
        // Where two documents claim the same, the oldest wins; then names decide, so that the answer is stable.
        sorted.sort_by(|a, b| age(&a.meta).cmp(&age(&b.meta)));
        let mut model = Self::empty(trust_domain.clone());
        let (mut entries, mut workloads) = (Vec::new(), Vec::new());
        for document in sorted {
            let meta = document.meta.clone();
            match &*document.spec {
                Spec::MeshConfig(config) => model.config = (**config).clone(),
                Spec::Gateway(spec) => model.gateways.push(Named { meta, spec: spec.clone() }),
                Spec::VirtualService(spec) => model.virtual_services.push(Named { meta, spec: spec.clone() }),
                Spec::DestinationRule(spec) => model.destination_rules.push(Named { meta, spec: (**spec).clone() }),
                Spec::PeerAuthentication(spec) => model.peer_authentications.push(Named { meta, spec: spec.clone() }),
                Spec::RequestAuthentication(spec) => {
                    model.request_authentications.push(Named { meta, spec: spec.clone() });
                }
                Spec::AuthorizationPolicy(spec) => {
                    model.authorization_policies.push(Named { meta, spec: spec.clone() });
                }
                Spec::RateLimit(spec) => model.rate_limits.push(Named { meta, spec: spec.clone() }),
                Spec::ServiceEntry(spec) => entries.push((meta, spec)),
                Spec::WorkloadEntry(spec) => workloads.push((meta, spec)),
            }
        }
        for (meta, entry) in entries {
            model.add_service(&meta, entry, &workloads);
        }
        model
    }

    fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            config: MeshConfig::default(),
            services: Vec::new(),
            gateways: Vec::new(),
            virtual_services: Vec::new(),
            destination_rules: Vec::new(),
            peer_authentications: Vec::new(),
            request_authentications: Vec::new(),
            authorization_policies: Vec::new(),
            rate_limits: Vec::new(),
        }
    }

    fn add_service(&mut self, meta: &Meta, entry: &ServiceEntry, workloads: &[(Meta, &WorkloadEntry)]) {
        let internal = entry.location == Location::MeshInternal;
        let endpoints: Vec<Workload> = match &entry.workload_selector {
            Some(selector) => workloads
                .iter()
                .filter(|(workload, _)| workload.namespace == meta.namespace)
                .filter(|(workload, spec)| labels_match(&selector.labels, &merged_labels(workload, spec)))
                .map(|(workload, spec)| self.workload(workload, spec, internal))
                .collect(),
            None => entry.endpoints.iter().map(|spec| self.workload(meta, spec, internal)).collect(),
        };
        for host in &entry.hosts {
            let host = host.to_ascii_lowercase();
            if self.services.iter().any(|other| other.host == host && other.namespace == meta.namespace) {
                tracing::warn!(
                    host,
                    namespace = meta.namespace,
                    reason = "SERVICE_DUPLICATE",
                    "a host is defined twice, the older stays"
                );
                continue;
            }
            self.services.push(Service {
                host,
                namespace: meta.namespace.clone(),
                internal,
                resolution: entry.resolution,
                addresses: entry.addresses.clone(),
                sans: entry.subject_alt_names.clone(),
                ports: entry.ports.iter().filter_map(ServicePort::of).collect(),
                endpoints: endpoints.clone(),
                export_to: exported(&entry.export_to, &self.config.default_service_export_to),
            });
        }
    }

    fn workload(&self, meta: &Meta, entry: &WorkloadEntry, internal: bool) -> Workload {
        let labels = merged_labels(meta, entry);
        let speaks_mtls = match labels.get("security.istio.io/tlsMode") {
            Some(mode) => mode == "istio",
            None => !entry.service_account.is_empty(),
        };
        let identity = (internal && speaks_mtls)
            .then(|| format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, meta.namespace, entry.service_account));
        Workload {
            address: entry.address.clone(),
            labels,
            locality: entry.locality.clone(),
            weight: entry.weight,
            identity,
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            ports: entry.ports.clone(),
        }
    }

    /// The service of a host as seen from a namespace: its own first, then those exported to it, the oldest first.
    pub(crate) fn service(&self, host: &str, namespace: &str) -> Option<&Service> {
        let mut seen = self.services.iter().filter(|service| service.host == host && service.is_visible_to(namespace));
        let first = seen.next()?;
        Some(std::iter::once(first).chain(seen).find(|service| service.namespace == namespace).unwrap_or(first))
    }

    /// Every service that a namespace sees, one per host.
    pub(crate) fn services_for<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Service> {
        self.services.iter().filter(move |service| {
            self.service(&service.host, namespace).is_some_and(|seen| std::ptr::eq(seen, *service))
        })
    }

    /// The rule for a host: of the client's namespace, else the service's, else the root; the most specific host wins.
    pub(crate) fn destination_rule(
        &self,
        host: &str,
        service_namespace: Option<&str>,
        client: &ClientView<'_>,
    ) -> Option<Rule<'_>> {
        let root = self.config.root_namespace();
        let namespaces = [Some(client.namespace), service_namespace, Some(root)];
        namespaces.into_iter().flatten().find_map(|namespace| self.rule_in(namespace, host, client))
    }

    fn rule_in(&self, namespace: &str, host: &str, client: &ClientView<'_>) -> Option<Rule<'_>> {
        let candidates: Vec<&Named<DestinationRule>> = self
            .destination_rules
            .iter()
            .filter(|rule| rule.meta.namespace == namespace)
            .filter(|rule| {
                let export_to = exported(&rule.spec.export_to, &self.config.default_destination_rule_export_to);
                is_exported(&export_to, namespace, client.namespace)
            })
            .filter(|rule| match &rule.spec.workload_selector {
                Some(selector) => namespace == client.namespace && labels_match(&selector.match_labels, client.labels),
                None => true,
            })
            .filter(|rule| crate::documents::rules::host_matches(&full_host(&rule.spec.host, namespace), host))
            .collect();
        let rank = |rule: &Named<DestinationRule>| {
            let pattern = full_host(&rule.spec.host, namespace);
            (!pattern.starts_with('*'), pattern.len(), rule.spec.workload_selector.is_some())
        };
        let best = candidates.iter().map(|rule| rank(rule)).max()?;
        let mut chosen = candidates.into_iter().filter(|rule| rank(rule) == best);
        let first = chosen.next()?;
        // Rules of one host in one namespace: subsets add up, the oldest traffic policy stays.
        let mut subsets: Vec<&Subset> = first.spec.subsets.iter().collect();
        for subset in chosen.flat_map(|rule| &rule.spec.subsets) {
            if !subsets.iter().any(|known| known.name == subset.name) {
                subsets.push(subset);
            }
        }
        Some(Rule { policy: first.spec.traffic_policy.as_ref(), subsets })
    }

    /// Names of all subsets that any client may ask `host` for.
    pub(crate) fn subset_names(&self, host: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .destination_rules
            .iter()
            .filter(|rule| {
                crate::documents::rules::host_matches(&full_host(&rule.spec.host, &rule.meta.namespace), host)
            })
            .flat_map(|rule| rule.spec.subsets.iter().map(|subset| subset.name.as_str()))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The trust domain and its aliases.
    pub(crate) fn trust_domains(&self) -> Vec<String> {
        let mut domains = vec![self.trust_domain.to_string()];
        domains.extend(self.config.trust_domain_aliases.iter().cloned());
        domains
    }

    pub(crate) fn is_exported_virtual_service(&self, service: &Named<VirtualService>, namespace: &str) -> bool {
        let export_to = exported(&service.spec.export_to, &self.config.default_virtual_service_export_to);
        is_exported(&export_to, &service.meta.namespace, namespace)
    }
}

/// Who asks for a destination rule.
pub(crate) struct ClientView<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
}

/// What destination rules say about one host.
#[derive(Clone, Debug)]
pub(crate) struct Rule<'a> {
    pub(crate) policy: Option<&'a crate::documents::shapes::TrafficPolicy>,
    pub(crate) subsets: Vec<&'a Subset>,
}

impl Service {
    pub(crate) fn is_visible_to(&self, namespace: &str) -> bool {
        is_exported(&self.export_to, &self.namespace, namespace)
    }

    /// The names under which a client of `namespace` may call it.
    pub(crate) fn aliases(&self, namespace: &str) -> Vec<String> {
        let mut names = vec![self.host.clone()];
        let suffix = format!(".svc.{DOMAIN}");
        if let Some((name, own)) = self.host.strip_suffix(&suffix).and_then(|short| short.split_once('.')) {
            names.push(format!("{name}.{own}.svc"));
            names.push(format!("{name}.{own}"));
            if own == namespace {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The endpoints of a subset; of all without one.
    pub(crate) fn endpoints_of<'a>(&'a self, subset: Option<&'a Subset>) -> impl Iterator<Item = &'a Workload> {
        self.endpoints.iter().filter(move |workload| {
            !workload.address.is_empty() && subset.is_none_or(|subset| labels_match(&subset.labels, &workload.labels))
        })
    }
}

impl ServicePort {
    fn of(port: &crate::documents::networking::Port) -> Option<Self> {
        let number = u16::try_from(port.number).ok()?;
        let target = port.target_port.and_then(|target| u16::try_from(target).ok()).unwrap_or(number);
        Some(Self { number, name: port.name.clone(), protocol: Protocol::of(&port.protocol, &port.name), target })
    }

    /// The port of the workload's own program.
    pub(crate) fn target(&self) -> u16 {
        self.target
    }
}

impl Protocol {
    /// The declared protocol, else the port name's part before the first `-`.
    pub(crate) fn of(declared: &str, name: &str) -> Self {
        let word = if declared.is_empty() { name.split('-').next().unwrap_or_default() } else { declared };
        match word.to_ascii_lowercase().as_str() {
            "http" | "grpc-web" | "http_proxy" => Self::Http,
            "http2" | "grpc" | "hbone" => Self::Http2,
            "https" | "tls" => Self::Tls,
            "udp" => Self::Udp,
            _ => Self::Tcp,
        }
    }

    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

impl Workload {
    /// Where it takes connections for a port of the service.
    pub(crate) fn port(&self, port: &ServicePort) -> u16 {
        let named = self.ports.get(&port.name).and_then(|number| u16::try_from(*number).ok());
        named.unwrap_or(port.target)
    }
}

fn age(meta: &Meta) -> (&str, &str, &str) {
    (&meta.created, &meta.name, &meta.namespace)
}

fn merged_labels(meta: &Meta, entry: &WorkloadEntry) -> Labels {
    let mut labels = meta.labels.clone();
    labels.extend(entry.labels.clone());
    labels
}

fn exported(own: &[String], default: &[String]) -> Vec<String> {
    if own.is_empty() { default.to_vec() } else { own.to_vec() }
}

fn is_exported(export_to: &[String], own: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|entry| match entry.as_str() {
            "*" => true,
            "." => own == namespace,
            name => name == namespace,
        })
}

/// A host as a document in `namespace` writes it, in full: short names belong to that namespace.
pub(crate) fn full_host(host: &str, namespace: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    if host.contains('.') || host == "*" { host.to_owned() } else { format!("{host}.{namespace}.svc.{DOMAIN}") }
}

/// The DNS domain of services.
pub(crate) const DOMAIN: &str = "cluster.local";
