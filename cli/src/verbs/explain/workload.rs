//! What holds for a workload or gateway: ports with their mTLS mode, token rules, policies, routes that lead to it, and
//! who may call it.

use std::collections::BTreeSet;

use discovery::Jwks;
use identity::spiffe_id::SpiffeId;
use routing::explain::Configuration;
use routing::hcm::RouteSource;
use routing::listener::{ListenAddress, Terminal};
use routing::route::{Action, RouteTable};
use serde_json::Value;

use super::follow::source;
use super::report::{Caller, Document, JwtRule, Listener, Policy, Port, Route, Rule, Workload};
use super::world::{Held, World, full_name};
use crate::exit::Failure;
use crate::verbs::blast_radius;

pub(super) fn report(world: &World, name: &str) -> Result<Workload, Failure> {
    let held = world.named(name, |_| true)?;
    Ok(Workload {
        workload: full_name(held),
        kind: held.proxy.kind(),
        spiffe_id: held.spiffe_id.clone(),
        spiffe_id_assumed: held.proxy.is_assumed(),
        source: source(held),
        differs: held.differs.clone(),
        listeners: listeners(world, held),
        ports: ports(world, held),
        jwt: jwt(world, held),
        policies: policies(world, held),
        routes: routes(world, held),
        callers: callers(world, held)?,
    })
}

fn listeners(world: &World, held: &Held) -> Vec<Listener> {
    let of = |listener: &routing::listener::Listener| {
        let address = match &listener.address {
            ListenAddress::Tcp(address) => address.to_string(),
            ListenAddress::Pipe(path) => path.display().to_string(),
        };
        let port = listener.name.rsplit_once('_').and_then(|(_, port)| port.parse().ok());
        let server = port.filter(|_| held.proxy.is_gateway());
        let document = server.and_then(|port| world.explainer.servers(&held.proxy, port).into_iter().next());
        let (name, filter_chains) = (listener.name.to_string(), listener.all_chains().count());
        Listener { name, address, filter_chains, document: document.map(Document::from) }
    };
    held.configuration.listeners.values().map(of).collect()
}

fn ports(world: &World, held: &Held) -> Vec<Port> {
    let of = |port: discovery::Port| {
        let mtls = world.explainer.mutual_tls(&held.proxy, port.number);
        Port {
            port: port.number,
            protocol: if port.http { "http" } else { "tcp" },
            services: port.services.into_iter().map(|(host, port, _)| format!("{host}:{port}")).collect(),
            mtls: mtls.mode,
            mtls_of: mtls.level,
            document: mtls.origin.map(Document::from),
        }
    };
    let ports = if held.proxy.is_gateway() { Vec::new() } else { world.explainer.ports(&held.proxy) };
    ports.into_iter().map(of).collect()
}

fn jwt(world: &World, held: &Held) -> Vec<JwtRule> {
    let of = |issuer: discovery::Issuer| JwtRule {
        issuer: issuer.issuer,
        keys: match issuer.jwks {
            Jwks::Inline(_) => "in the document".to_owned(),
            Jwks::Uri(uri) => uri,
        },
        document: issuer.origin.into(),
    };
    world.explainer.issuers(&held.proxy).into_iter().map(of).collect()
}

fn policies(world: &World, held: &Held) -> Vec<Policy> {
    let of = |policy: discovery::PolicyText| Policy {
        action: policy.action,
        name: format!("{}/{}", policy.origin.namespace, policy.origin.name),
        dry_run: policy.dry_run,
        document: policy.origin.into(),
        rules: policy.rules.into_iter().map(|(line, rule)| Rule { line, rule }).collect(),
    };
    world.explainer.policies(&held.proxy).into_iter().map(of).collect()
}

/// Every route of every proxy whose cluster has this workload as an endpoint.
fn routes(world: &World, held: &Held) -> Vec<Route> {
    let mut found = Vec::new();
    for other in world.held.iter().filter(|other| !std::ptr::eq(*other, held)) {
        let leads = |cluster: &str| leads_to(&other.configuration, cluster, held);
        for table in tables(&other.configuration) {
            for host in &table.hosts {
                for route in &host.routes {
                    let Action::Forward(forward) = &route.action else { continue };
                    for cluster in forward.cluster_names().filter(|cluster| leads(cluster)) {
                        let name = host.name.rsplit_once(':').map_or(&*host.name, |(name, _)| name);
                        found.push(Route {
                            proxy: full_name(other),
                            host: host.name.to_string(),
                            route: route.name.to_string(),
                            matches: route.matches().to_string(),
                            cluster: cluster.to_owned(),
                            document: world.explainer.route(&route.name, name).map(Document::from),
                        });
                    }
                }
            }
        }
        found.extend(tcp(other).into_iter().filter(|(_, cluster)| leads(cluster)).map(|(listener, cluster)| Route {
            proxy: full_name(other),
            host: listener,
            route: "tcp".to_owned(),
            matches: "every connection".to_owned(),
            cluster,
            document: None,
        }));
    }
    found
}

fn tables(configuration: &Configuration) -> Vec<&RouteTable> {
    let chains = configuration.listeners.values().flat_map(routing::listener::Listener::all_chains);
    let inline = chains.filter_map(|chain| match &chain.terminal {
        Terminal::Http(manager) => match &manager.routes {
            RouteSource::Inline(table) => Some(&**table),
            RouteSource::Rds(_) => None,
        },
        Terminal::Tcp(_) => None,
    });
    configuration.routes.values().map(|table| &**table).chain(inline).collect()
}

/// Listeners that relay bytes, with their clusters.
fn tcp(held: &Held) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for listener in held.configuration.listeners.values() {
        for chain in listener.all_chains() {
            if let Terminal::Tcp(proxy) = &chain.terminal {
                found.extend(proxy.clusters().map(|cluster| (listener.name.to_string(), cluster.to_string())));
            }
        }
    }
    found
}

fn leads_to(configuration: &Configuration, cluster: &str, held: &Held) -> bool {
    let endpoints = configuration.clusters.get(cluster).and_then(|cluster| configuration.endpoints_of(cluster));
    let is_own = |endpoint: &routing::endpoint::Endpoint| matches!(&endpoint.address, routing::endpoint::EndpointAddress::Ip(address) if address.ip() == held.proxy.address());
    !held.proxy.address().is_unspecified() && endpoints.is_some_and(|endpoints| endpoints.all().iter().any(is_own))
}

/// Every identity that is known, and what policies say of it.
fn callers(world: &World, held: &Held) -> Result<Vec<Caller>, Failure> {
    if held.proxy.is_gateway() {
        return Ok(Vec::new());
    }
    let documents = blast_radius::read(&world.paths)?;
    let mut ids: BTreeSet<String> = world.held.iter().filter_map(|one| one.spiffe_id.clone()).collect();
    for policy in world.explainer.policies(&held.proxy) {
        for (_, rule) in &policy.rules {
            let principals = rule["from"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|from| from["source"]["principals"].as_array());
            let exact = principals.flatten().filter_map(Value::as_str).filter(|name| !name.contains('*'));
            ids.extend(exact.map(|name| format!("spiffe://{name}")));
        }
    }
    if let Some(own) = &held.spiffe_id {
        ids.remove(own);
    }
    let labels = held.proxy.labels().iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let trust_domain = world.explainer.trust_domain().to_string();
    let mut callers = Vec::new();
    for id in ids.iter().filter_map(|id| SpiffeId::parse(id).ok()) {
        let (may_call, decided_by) =
            blast_radius::may_call(&id, &trust_domain, held.proxy.namespace(), &labels, &documents)?;
        callers.push(Caller { spiffe_id: id.to_string(), may_call, decided_by });
    }
    Ok(callers)
}
