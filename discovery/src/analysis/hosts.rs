//! Names of services: which hosts the set knows, from where they can be seen, and by which names.
//!
//! A short name means the service of that name in the writer's own namespace. Wildcards overlap as Istio has it.

use std::collections::BTreeMap;

use super::resource::{Resource, What};
use super::set::Set;
use super::view::View;
use crate::compile::model::full_host;
use crate::documents::rules::host_matches;
use crate::documents::shapes::Labels;

/// Name and namespace of a service of the cluster, as somebody in `namespace` wrote it; any other host is its own name there.
pub(crate) fn service_name(host: &str, namespace: &str) -> (String, String) {
    let inside = host.strip_suffix(CLUSTER_SUFFIX).and_then(|rest| rest.strip_suffix('.'));
    match inside.and_then(|inside| inside.rsplit_once('.')) {
        Some((name, of)) if !name.is_empty() && !of.is_empty() => (name.to_owned(), of.to_owned()),
        _ => (host.to_owned(), namespace.to_owned()),
    }
}

/// Whether two hosts overlap, either of which may begin with `*`.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    host_matches(a, b) || host_matches(b, a)
}

/// The namespaces that an `exportTo` means; `*` for all.
pub(crate) fn scopes(export_to: &[&str], namespace: &str) -> Vec<String> {
    if export_to.is_empty() || export_to.contains(&EVERYWHERE) {
        return vec![EVERYWHERE.to_owned()];
    }
    let mut scopes: Vec<String> =
        export_to.iter().map(|scope| if *scope == "." { namespace } else { scope }.to_owned()).collect();
    scopes.sort();
    scopes.dedup();
    scopes
}

/// A service that the set knows.
#[derive(Clone, Debug)]
pub(crate) struct Service<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) ports: Vec<u64>,
    /// Labels of its workloads; none when it does not select.
    pub(crate) selector: Labels,
}

/// All services by scope and host.
#[derive(Debug, Default)]
pub(crate) struct Services<'a> {
    known: BTreeMap<(String, String), Vec<Service<'a>>>,
}

impl<'a> Services<'a> {
    pub(crate) fn of(set: &'a Set) -> Self {
        let mut services = Self::default();
        for entry in set.of(What::ServiceEntry) {
            let spec = entry.spec();
            let hosts = spec.get("hosts").texts();
            let service = Service {
                resource: entry,
                ports: spec.get("ports").items().filter_map(|port| port.get("number").number()).collect(),
                selector: spec.path("workloadSelector.labels").labels(),
            };
            services.add(&hosts, &scopes(&spec.get("exportTo").texts(), &entry.namespace), &service);
        }
        for resource in set.of(What::Service) {
            let spec = resource.spec();
            let annotation = resource.annotations.get("networking.istio.io/exportTo").map_or("", String::as_str);
            let export_to: Vec<&str> = annotation.split(',').map(str::trim).filter(|scope| !scope.is_empty()).collect();
            let service = Service {
                resource,
                ports: spec.get("ports").items().filter_map(|port| port.get("port").number()).collect(),
                selector: spec.get("selector").labels(),
            };
            services.add(&[&resource.name], &scopes(&export_to, &resource.namespace), &service);
        }
        services
    }

    fn add(&mut self, hosts: &[&str], scopes: &[String], service: &Service<'a>) {
        for host in hosts {
            for scope in scopes {
                let key = (scope.clone(), full_host(host, &service.resource.namespace));
                self.known.entry(key).or_default().push(service.clone());
            }
        }
    }

    /// The services that a document in `namespace`, shown to `export_to`, means by `host`; none when nobody serves it.
    pub(crate) fn named(&self, host: &str, namespace: &str, export_to: &[&str]) -> &[Service<'a>] {
        let host = full_host(host, namespace);
        let own = if export_to.is_empty() { vec![namespace.to_owned()] } else { scopes(export_to, namespace) };
        let scopes = std::iter::once(EVERYWHERE.to_owned()).chain(own);
        let exact = scopes.filter_map(|scope| self.known.get(&(scope, host.clone()))).next();
        exact.or_else(|| self.by_wildcard(&host, namespace)).map_or(&[], Vec::as_slice)
    }

    /// Every service with its host; one that several namespaces see is there several times.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Service<'a>)> {
        self.known.iter().flat_map(|((_, host), services)| services.iter().map(move |service| (host.as_str(), service)))
    }

    /// Whether a host with `*` is for some service.
    pub(crate) fn is_pattern_of_some(&self, host: &str) -> bool {
        host.starts_with('*') && self.known.keys().any(|(_, known)| overlap(host, known))
    }

    fn by_wildcard(&self, host: &str, namespace: &str) -> Option<&Vec<Service<'a>>> {
        let host = host.trim_start_matches('*');
        let is_for = |(scope, known): &(String, String)| {
            (scope == EVERYWHERE || scope == namespace)
                && known.strip_prefix('*').is_some_and(|suffix| host.ends_with(suffix))
        };
        self.known.iter().find(|(key, _)| is_for(key)).map(|(_, services)| services)
    }
}

/// A destination of a VirtualService.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination<'a> {
    /// `destination` itself.
    pub(crate) view: View<'a>,
    pub(crate) is_mirror: bool,
}

impl<'a> Destination<'a> {
    pub(crate) fn host(&self) -> &'a str {
        self.view.get("host").text()
    }

    pub(crate) fn subset(&self) -> &'a str {
        self.view.get("subset").text()
    }
}

/// Where the rules of a VirtualService send to.
pub(crate) fn destinations<'a>(spec: View<'a>) -> Vec<Destination<'a>> {
    let mut found = Vec::new();
    for protocol in ["tcp", "tls", "http"] {
        for rule in spec.get(protocol).items() {
            let routes = rule.get("route").items().map(|route| route.get("destination"));
            found.extend(routes.map(|view| Destination { view, is_mirror: false }));
        }
    }
    for rule in spec.get("http").items() {
        let mirrors = rule.get("mirrors").items().map(|mirror| mirror.get("destination"));
        let mirrors = std::iter::once(rule.get("mirror")).chain(mirrors).filter(|view| view.exists());
        found.extend(mirrors.map(|view| Destination { view, is_mirror: true }));
    }
    found
}

pub(crate) const EVERYWHERE: &str = "*";
pub(crate) const CLUSTER_SUFFIX: &str = "svc.cluster.local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_overlap_as_istio_has_it() {
        for (a, b, expected) in [
            ("foo.com", "foo.com", true),
            ("foo.com", "bar.com", false),
            ("*.com", "foo.com", true),
            ("bar.com", "*.com", true),
            ("*.foo.com", "foo.com", false),
            ("*", "foo.com", true),
            ("*", "*.com", true),
            ("*.a.com", "*.com", true),
            ("*.a.com", "*.b.com", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn short_names_mean_the_own_namespace() {
        assert_eq!(full_host("a", "n"), "a.n.svc.cluster.local");
        assert_eq!(full_host("a.b", "n"), "a.b");
        let of = |host| service_name(host, "n");
        assert_eq!(of("a"), ("a".to_owned(), "n".to_owned()));
        assert_eq!(of("a.b.svc.cluster.local"), ("a".to_owned(), "b".to_owned()));
        assert_eq!(of("a.com"), ("a.com".to_owned(), "n".to_owned()));
        assert_eq!(of(".svc.cluster.local"), (".svc.cluster.local".to_owned(), "n".to_owned()));
    }

    #[test]
    fn exports_say_who_sees_it() {
        assert_eq!(scopes(&[], "n"), ["*"]);
        assert_eq!(scopes(&["a", "*"], "n"), ["*"]);
        assert_eq!(scopes(&[".", "a", "n"], "n"), ["a", "n"]);
    }
}
