//! Following a request from proxy to proxy.

use std::net::{IpAddr, SocketAddr};

use identity::jwk::JwkSet;
use routing::explain::{End, Outcome, Sent, StepKind, Visit, Walk};
use routing::jwt::{Expect, JwtFailure, KeySource};
use routing::listener::{Direction, ListenAddress, Listener};
use routing::request::{Connection, PeerIdentity, TokenClaims};

use super::question::{Asked, Scheme};
use super::report::{Decision, Document, Hop, Request, Step};
use super::world::{Held, World, full_name};
use crate::args::ExplainMeshArgs;
use crate::exit::{Exit, Failure};

/// Where a request is, and what it looks like there.
struct Arrival<'w> {
    held: &'w Held,
    listener: &'w Listener,
    visit: Visit,
    /// The workload's port that is meant, at a sidecar.
    port: Option<u16>,
}

pub(super) fn follow(world: &World, args: &ExplainMeshArgs, asked: &Asked) -> Result<Request, Failure> {
    let mut assumed = Vec::new();
    let mut arrival = enter(world, args, asked, &mut assumed)?;
    let mut hops: Vec<Hop> = Vec::new();
    let end = loop {
        let walk = routing::explain::walk(&arrival.held.configuration, arrival.listener, &arrival.visit, &mut verify);
        hops.push(hop(world, &arrival, &walk));
        let End::Sent(sent) = &walk.end else { break walk.end };
        match next(world, &arrival, sent, &mut assumed) {
            Some(following) if hops.len() < HOPS_MAX => arrival = following,
            _ => break walk.end,
        }
    };
    Ok(request(asked, hops, &end, assumed))
}

fn request(asked: &Asked, mut hops: Vec<Hop>, end: &End, mut assumed: Vec<String>) -> Request {
    let (answer, status, reason) = match end {
        End::Sent(_) => ("allow", None, None),
        End::Answered { status } => (if *status < 400 { "allow" } else { "deny" }, Some(*status), None),
        End::Refused { status, reason } => ("deny", *status, Some((*reason).to_owned())),
    };
    let wanted = if reason.is_some() { Outcome::Refuses } else { Outcome::Allows };
    let mut decided_by = None;
    if let Some(hop) = hops.last_mut()
        && let Some(step) = hop.steps.iter_mut().rev().find(|step| step.outcome == wanted.word())
    {
        step.decides = true;
        let Step { step, name, why, document, .. } = step.clone();
        decided_by = Some(Decision { proxy: hop.proxy.clone(), step, name, why, document });
    }
    for hop in &hops {
        let unknown = hop.steps.iter().filter(|step| step.outcome == Outcome::Unknown.word());
        assumed.extend(unknown.map(|step| format!("{}: {} {}: {}", hop.proxy, step.step, step.name, step.why)));
    }
    let (method, url, peer) = (asked.method.to_string(), asked.url(), asked.peer.clone());
    Request { method, url, peer, answer, status, reason, decided_by, assumed, hops }
}

/// Where the request comes in.
fn enter<'w>(
    world: &'w World,
    args: &ExplainMeshArgs,
    asked: &Asked,
    assumed: &mut Vec<String>,
) -> Result<Arrival<'w>, Failure> {
    if let Some(name) = &args.from {
        return outbound(world.named(name, |held| !held.proxy.is_gateway())?, asked);
    }
    if let Some(name) = &args.to {
        let held = world.named(name, |_| true)?;
        return if held.proxy.is_gateway() { gateway(held, asked, assumed) } else { inbound(world, held, asked) };
    }
    if let Some(name) = &args.gateway {
        return gateway(world.named(name, |held| held.proxy.is_gateway())?, asked, assumed);
    }
    let serves = |held: &&Held| {
        let ports = world.explainer.ports(&held.proxy);
        ports.iter().flat_map(|port| &port.services).any(|(host, ..)| host.eq_ignore_ascii_case(asked.host()))
    };
    if let Some(held) = world.held.iter().filter(|held| !held.proxy.is_gateway()).find(serves) {
        return inbound(world, held, asked);
    }
    let gateways = || world.held.iter().filter(|held| held.proxy.is_gateway());
    let port = asked.port.or_else(|| asked.scheme.default_port());
    let open = |held: &&Held| port.is_some_and(|port| by_port(held, port).is_some());
    let names: Vec<String> = gateways().map(full_name).collect();
    // Which port is really bound may be known to the proxy only.
    let usual = |held: &&Held| asked.scheme.default_port().is_some_and(|port| by_port(held, port).is_some());
    match gateways().find(open).or_else(|| gateways().find(usual)) {
        Some(held) => gateway(held, asked, assumed),
        None => Err(Failure::new(Exit::Usage, format!("no gateway opens the port of {}", asked.url()))
            .remedy(format!("name one with --gateway ({}), or --to or --from a workload", names.join(", ")))),
    }
}

fn connection(asked: &Asked, destination: SocketAddr) -> Connection {
    let mut connection = Connection::plain(SocketAddr::new(asked.source, 0), destination);
    connection.peer = asked.peer.as_deref().map(PeerIdentity::danger_assume);
    connection.tls = connection.peer.is_some();
    connection
}

fn visit(asked: &Asked, connection: Connection) -> Visit {
    Visit {
        connection,
        method: asked.method.clone(),
        authority: asked.authority.clone(),
        path: asked.path.clone(),
        headers: asked.headers.clone(),
        claims: asked.claims.clone(),
    }
}

fn gateway<'w>(held: &'w Held, asked: &Asked, assumed: &mut Vec<String>) -> Result<Arrival<'w>, Failure> {
    let port = asked.port.or_else(|| asked.scheme.default_port());
    let found = port.and_then(|port| by_port(held, port));
    let found = found.or_else(|| {
        // What is bound for a port of the documents is the proxy's own setting.
        let listener = by_port(held, asked.scheme.default_port()?)?;
        assumed.push(format!(
            "port {} stands for {}, which the documents open",
            port.unwrap_or_default(),
            document_port(listener).unwrap_or_default()
        ));
        Some(listener)
    });
    let Some(listener) = found else {
        let open: Vec<String> =
            held.configuration.listeners.values().filter_map(|one| Some(document_port(one)?.to_string())).collect();
        let text = format!(
            "{} opens no port {}",
            full_name(held),
            port.map_or_else(|| "at all".to_owned(), |port| port.to_string())
        );
        return Err(Failure::new(Exit::Usage, text).remedy(format!("it opens {}", open.join(", "))));
    };
    let mut connection = connection(asked, address_of(listener, held));
    connection.tls |= asked.scheme == Scheme::Https;
    let host = asked.host().to_owned();
    connection.sni = (connection.tls && host.parse::<IpAddr>().is_err()).then(|| host.into());
    Ok(Arrival { held, listener, visit: visit(asked, connection), port: None })
}

/// The listener for a port, as documents or as the system number it.
fn by_port(held: &Held, port: u16) -> Option<&Listener> {
    let real = |listener: &&Listener| match &listener.address {
        ListenAddress::Tcp(address) => address.port() == port,
        ListenAddress::Pipe(_) => false,
    };
    let listeners = || held.configuration.listeners.values();
    listeners().find(real).or_else(|| listeners().find(|listener| document_port(listener) == Some(port)))
}

/// The port in a listener's name, `ADDRESS_PORT`.
fn document_port(listener: &Listener) -> Option<u16> {
    listener.name.rsplit_once('_')?.1.parse().ok()
}

fn address_of(listener: &Listener, held: &Held) -> SocketAddr {
    match &listener.address {
        ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
            SocketAddr::new(held.proxy.address(), address.port())
        }
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Pipe(_) => SocketAddr::new(held.proxy.address(), 0),
    }
}

fn inbound<'w>(world: &World, held: &'w Held, asked: &Asked) -> Result<Arrival<'w>, Failure> {
    let none = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", full_name(held)));
    let listeners = || held.configuration.listeners.values();
    let listener = listeners().find(|listener| listener.direction == Direction::Inbound);
    let listener = listener.ok_or_else(|| none("no service leads to it".to_owned()))?;
    let ports = world.explainer.ports(&held.proxy);
    let mut ways: Vec<(u16, bool, &String, u16, &String)> = Vec::new();
    for port in &ports {
        ways.extend(port.services.iter().map(|(host, of, sni)| (port.number, port.http, host, *of, sni)));
    }
    let http = asked.scheme != Scheme::Tcp;
    let host = asked.host();
    let fits = |way: &&(u16, bool, &String, u16, &String)| match asked.port {
        Some(port) => way.3 == port || way.0 == port,
        None => way.1 == http,
    };
    let best = ways.iter().filter(fits).find(|way| way.2.eq_ignore_ascii_case(host)).or_else(|| ways.iter().find(fits));
    let Some((number, _, _, _, sni)) = best.copied() else {
        let open: Vec<String> = ways.iter().map(|way| way.3.to_string()).collect();
        return Err(none("it has no such port".to_owned()).remedy(format!("it has {}", open.join(", "))));
    };
    let captured = listener.use_original_dst;
    let address = if captured { SocketAddr::new(held.proxy.address(), number) } else { address_of(listener, held) };
    let mut connection = connection(asked, address);
    connection.sni = connection.tls.then(|| sni.as_str().into());
    Ok(Arrival { held, listener, visit: visit(asked, connection), port: Some(number) })
}

fn outbound<'w>(held: &'w Held, asked: &Asked) -> Result<Arrival<'w>, Failure> {
    let listeners = || held.configuration.listeners.values();
    let listener = listeners().find(|listener| listener.direction == Direction::Outbound);
    let listener = listener.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("the sidecar of {} opens nothing towards the mesh", full_name(held)))
    })?;
    let own = SocketAddr::new(held.proxy.address(), 0);
    let connection = Connection::plain(own, address_of(listener, held));
    Ok(Arrival { held, listener, visit: visit(asked, connection), port: None })
}

/// The proxy behind the endpoint, if there is one.
fn next<'w>(world: &'w World, from: &Arrival<'w>, sent: &Sent, assumed: &mut Vec<String>) -> Option<Arrival<'w>> {
    let address = sent.address?;
    let listens = |held: &&Held| held.configuration.listeners.values().any(|one| address_of(one, held) == address);
    let held = world.held.iter().find(listens)?;
    if std::ptr::eq(held, from.held) {
        return None;
    }
    let listener = held.configuration.listeners.values().find(|one| address_of(one, held) == address)?;
    let mut connection = Connection::plain(SocketAddr::new(from.held.proxy.address(), 0), address);
    if let Some(tls) = &sent.tls {
        connection.tls = true;
        connection.sni = tls.sni.as_deref().map(Into::into);
        if tls.mesh {
            connection.peer = from.held.spiffe_id.as_deref().map(PeerIdentity::danger_assume);
            if from.held.proxy.is_assumed() {
                let id = from.held.spiffe_id.as_deref().unwrap_or("nobody");
                assumed.push(format!("{} is {id}: no document names its service account", full_name(from.held)));
            }
        }
    }
    let sni = connection.sni.clone();
    let ports = world.explainer.ports(&held.proxy);
    let port = ports.iter().find(|port| port.services.iter().any(|(_, _, name)| Some(name.as_str()) == sni.as_deref()));
    Some(Arrival {
        held,
        listener,
        visit: Visit { connection, ..sent.visit.clone() },
        port: port.map(|port| port.number),
    })
}

/// Verifies as the proxy does. Keys that would have to be fetched are not.
fn verify(expect: &Expect<'_>) -> Result<TokenClaims, JwtFailure> {
    let text = match &expect.provider.keys {
        KeySource::Inline(text) => Some(text.as_bytes().to_vec()),
        KeySource::File(path) => std::fs::read(path).ok(),
        KeySource::Remote { .. } => None,
    };
    let keys = text.and_then(|text| JwkSet::parse(&text).ok()).ok_or(JwtFailure { reason: "JWKS_UNAVAILABLE" })?;
    let verified = expect.verify(&keys, runtime::clock::now());
    verified.map(TokenClaims::from).map_err(|error| JwtFailure { reason: error.reason() })
}

fn hop(world: &World, arrival: &Arrival<'_>, walk: &Walk) -> Hop {
    let held = arrival.held;
    let mut allow_rules: Vec<String> = Vec::new();
    let steps = walk.steps.iter().map(|step| {
        let mut shown = self::step(world, arrival, step);
        if step.kind == StepKind::Policy && step.outcome == Outcome::NoMatch {
            allow_rules.push(shown.name.clone());
        }
        if step.kind == StepKind::Policy && step.name.is_empty() && !allow_rules.is_empty() {
            shown.name = "(all ALLOW rules)".to_owned();
        }
        shown
    });
    let steps: Vec<Step> = steps.collect();
    Hop {
        proxy: full_name(held),
        kind: held.proxy.kind(),
        source: source(held),
        differs: held.differs.clone(),
        steps: with_nearest_document(steps),
    }
}

/// A refusal by no rule at all stands where the last rule stands that could have allowed.
fn with_nearest_document(mut steps: Vec<Step>) -> Vec<Step> {
    for at in 1..steps.len() {
        let is_end = steps[at].step == "policy" && steps[at].document.is_none();
        if is_end {
            let before = steps[..at].iter().rev().find(|step| step.step == "policy");
            let document = before.and_then(|step| step.document.clone());
            steps[at].document = document;
        }
    }
    steps
}

pub(super) fn source(held: &Held) -> String {
    held.admin.map_or_else(|| "documents".to_owned(), |admin| admin.to_string())
}

fn step(world: &World, arrival: &Arrival<'_>, step: &routing::explain::Step) -> Step {
    let (explainer, proxy) = (&world.explainer, &arrival.held.proxy);
    let (mut name, mut why) = (step.name.clone(), step.text.clone());
    let document = match step.kind {
        StepKind::Listener if proxy.is_gateway() => {
            document_port(arrival.listener).and_then(|port| explainer.servers(proxy, port).into_iter().next())
        }
        StepKind::Tls => match (arrival.port, proxy.is_gateway()) {
            (Some(port), false) => {
                let mtls = explainer.mutual_tls(proxy, port);
                why = format!("{why} ({} by {})", mtls.mode, level(mtls.level));
                mtls.origin
            }
            (_, true) => {
                document_port(arrival.listener).and_then(|port| explainer.servers(proxy, port).into_iter().next())
            }
            _ => None,
        },
        StepKind::Jwt => {
            let issuers = explainer.issuers(proxy);
            let own = issuers.iter().find(|issuer| issuer.provider == step.name).or_else(|| issuers.first());
            if let Some(own) = own.filter(|own| own.provider == step.name) {
                name.clone_from(&own.issuer);
            }
            own.map(|own| own.origin.clone())
        }
        StepKind::Policy => explainer.policy(&step.name).map(|(origin, rule)| {
            name = format!("{}/{} rule {rule}", origin.namespace, origin.name);
            // A CUSTOM rule is watched to know whether its service is asked; one of another port was left out when the
            // policy was compiled.
            if step.name.starts_with(CUSTOM_PREFIX) {
                why = why.replacen("only watched: ", "CUSTOM: ", 1);
            }
            if why == "it matches nothing" {
                "it never matches on this port".clone_into(&mut why);
            }
            origin
        }),
        // What becomes of hosts that the mesh does not know is a setting of the mesh.
        StepKind::Route if ["block_all", "allow_any"].contains(&step.name.as_str()) => explainer.mesh_config(),
        StepKind::Route if arrival.listener.direction != Direction::Inbound && !step.name.is_empty() => {
            let host = arrival.visit.authority.rsplit_once(':').map_or(arrival.visit.authority.as_str(), |(h, _)| h);
            explainer.route(&step.name, host)
        }
        StepKind::Cluster => explainer.cluster(&step.name, proxy).into_iter().next(),
        _ => None,
    };
    let document = document.map(Document::from);
    Step { step: step.kind.word(), outcome: step.outcome.word(), name, why, document, decides: false }
}

/// Where a mode is said, in words.
pub(super) fn level(level: &str) -> &str {
    match level {
        "port" => "the port's own rule",
        "workload" => "the workload's policy",
        "namespace" => "the namespace's policy",
        "mesh" => "the mesh's policy",
        _ => "default: no policy says anything",
    }
}

/// How the rules of CUSTOM policies are named in proxies.
const CUSTOM_PREFIX: &str = "istio-ext-authz-";
/// Proxies that a request is followed through.
const HOPS_MAX: usize = 8;
