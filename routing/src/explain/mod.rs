//! What becomes of a request at one proxy, step by step, for explanations.
//!
//! The resources are those that the proxy holds and every decision is made by what decides there; only asking others (an
//! authorization service, a quota) is left out and said to be so. Nothing is sent.

mod configuration;
mod http;
mod steps;
mod upstream;

use std::net::SocketAddr;

use ::http::{HeaderMap, Method};
use serde_json::{Map, Value};

use crate::jwt::{Expect, JwtFailure};
use crate::listener::{ConnectionFacts, FilterChain, Listener, NetworkFilter, Terminal};
use crate::request::{Connection, TokenClaims};

pub use configuration::Configuration;
use steps::Steps;
pub use steps::{Outcome, Step, StepKind};

/// A request, or a connection, as it arrives at a proxy.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Addresses, server name and proven peer.
    pub connection: Connection,
    /// The method; none for a connection that carries no HTTP.
    pub method: Method,
    /// The authority that is asked for.
    pub authority: String,
    /// Path and query as they are sent.
    pub path: String,
    /// Headers but `host`.
    pub headers: HeaderMap,
    /// Claims of a token that is taken to verify.
    pub claims: Option<Map<String, Value>>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Walk {
    /// Each decision in its order.
    pub steps: Vec<Step>,
    /// The end.
    pub end: End,
}

/// How a walk ends.
#[derive(Clone, Debug)]
pub enum End {
    /// The proxy refuses.
    Refused {
        /// The answer; none where the connection is closed without one.
        status: Option<u16>,
        /// The stable code.
        reason: &'static str,
    },
    /// The proxy itself answers.
    Answered {
        /// The status.
        status: u16,
    },
    /// It is sent on.
    Sent(Box<Sent>),
}

/// Where and how it is sent on.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The cluster's name.
    pub cluster: String,
    /// The address; none where it is a name or is not known before.
    pub address: Option<SocketAddr>,
    /// Whether TLS is spoken, and if it is that of the mesh, by which both prove who they are.
    pub tls: Option<SentTls>,
    /// The request as it leaves; the connection is left to the next.
    pub visit: Visit,
}

/// TLS towards an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentTls {
    /// Whether the own SVID is shown and the other side's is asked for.
    pub mesh: bool,
    /// The server name.
    pub sni: Option<String>,
}

/// Verifies a token as the proxy would.
pub type Verify<'v> = dyn FnMut(&Expect<'_>) -> Result<TokenClaims, JwtFailure> + 'v;

/// Follows a request through a listener to where it leaves the proxy.
pub fn walk(configuration: &Configuration, listener: &Listener, visit: &Visit, verify: &mut Verify<'_>) -> Walk {
    let mut steps = Steps::default();
    let end = through(configuration, listener, visit, verify, &mut steps).unwrap_or_else(|end| end);
    Walk { steps: steps.list, end }
}

fn through(
    configuration: &Configuration,
    listener: &Listener,
    visit: &Visit,
    verify: &mut Verify<'_>,
    steps: &mut Steps,
) -> Result<End, End> {
    steps.passes(StepKind::Listener, &listener.name, configuration::address_text(&listener.address));
    let chain = chain_of(listener, visit, steps)?;
    check_tls(chain, visit, steps)?;
    for filter in &chain.network {
        if let NetworkFilter::Rbac(rbac) = filter {
            let decision = rbac.decide_connection(&visit.connection);
            steps.policies(rbac.action(), &rbac.try_all_on_connection(&visit.connection), &decision);
            if !decision.allowed {
                return Err(End::Refused { status: None, reason: decision.reason() });
            }
        }
    }
    match &chain.terminal {
        Terminal::Http(manager) => http::exchange(configuration, manager, visit, verify, steps),
        Terminal::Tcp(proxy) => {
            steps.passes(StepKind::Route, "", "bytes are relayed".to_owned());
            let name = proxy.cluster(0).to_string();
            upstream::send(configuration, &name, None, visit.clone(), steps)
        }
    }
}

fn chain_of<'l>(listener: &'l Listener, visit: &Visit, steps: &mut Steps) -> Result<&'l FilterChain, End> {
    let connection = &visit.connection;
    let facts = ConnectionFacts {
        destination: connection.destination,
        source: connection.source,
        direct_source: connection.direct_source,
        sni: connection.sni.as_deref(),
        alpn: &[],
        transport: if connection.tls { "tls" } else { "raw_buffer" },
    };
    if let Some(chain) = listener.pick(&facts) {
        return Ok(chain.as_ref());
    }
    let has_tls = listener.all_chains().any(|chain| chain.tls.is_some());
    let (reason, text) = match connection.tls {
        false if has_tls => ("PLAINTEXT_REFUSED", "plain text where TLS is required".to_owned()),
        _ => ("NO_FILTER_CHAIN", format!("no filter chain for server name {:?}", facts.sni.unwrap_or_default())),
    };
    steps.refuses(StepKind::Tls, "", text);
    Err(End::Refused { status: None, reason })
}

fn check_tls(chain: &FilterChain, visit: &Visit, steps: &mut Steps) -> Result<(), End> {
    let connection = &visit.connection;
    let (outcome, text, reason) = match (&chain.tls, connection.tls, &connection.peer) {
        (None, false, _) => (Outcome::Passes, "plain text; nobody is proven".to_owned(), ""),
        (None, true, _) => (Outcome::Passes, "TLS is passed on as it is".to_owned(), ""),
        (Some(_), false, _) => (Outcome::Refuses, "plain text where TLS is required".to_owned(), "PLAINTEXT_REFUSED"),
        (Some(_), true, Some(peer)) => (Outcome::Passes, format!("mTLS; the peer is {peer}"), ""),
        (Some(tls), true, None) if tls.require_client_certificate => {
            (Outcome::Refuses, "the client shows no certificate".to_owned(), "TLS_PEER_CERT_MISSING")
        }
        (Some(_), true, None) => (Outcome::Passes, "TLS; the client shows no certificate".to_owned(), ""),
    };
    steps.add(StepKind::Tls, &chain.name, outcome, text);
    if outcome == Outcome::Refuses { Err(End::Refused { status: None, reason }) } else { Ok(()) }
}
