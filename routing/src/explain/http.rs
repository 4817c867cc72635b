//! The HTTP part of a walk: canonical form, filters in their order, route. The order is the proxy's.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Map, Value};

use super::steps::{Outcome, StepKind, Steps};
use super::{Configuration, End, Verify, Visit, upstream};
use crate::filters::{CorsDecision, ExtAuthz, Fault, FilterKind, FilterOverride, HttpFilter, RateLimit};
use crate::format::LogContext;
use crate::hcm::{HttpConnectionManager, RouteSource, Underscores};
use crate::jwt::JwtAuthn;
use crate::rbac::RbacFilter;
use crate::request::{CanonicalPath, Host, Metadata, Request, Scheme};
use crate::route::{Action, Forward, HostRewrite, NoRoute, PreparedEdits, RouteTable, Selection};

/// A request on its way through the filters, with what they change about it.
struct Passage<'a> {
    manager: &'a HttpConnectionManager,
    visit: &'a Visit,
    host: Host,
    path: CanonicalPath,
    headers: HeaderMap,
    scheme: Scheme,
    metadata: Metadata,
    /// Claims that are taken to verify, as long as no filter has taken their token away.
    claims: Option<Map<String, Value>>,
}

impl Passage<'_> {
    fn request(&self) -> Request<'_> {
        Request {
            method: &self.visit.method,
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            scheme: self.scheme,
            connection: &self.visit.connection,
            remote: self.remote(),
            metadata: &self.metadata,
        }
    }

    fn remote(&self) -> IpAddr {
        self.visit.connection.source.ip()
    }
}

pub(super) fn exchange(
    configuration: &Configuration,
    manager: &HttpConnectionManager,
    visit: &Visit,
    verify: &mut Verify<'_>,
    steps: &mut Steps,
) -> Result<End, End> {
    let mut passage = canonical(manager, visit, steps)?;
    let table: Option<Arc<RouteTable>> = match &manager.routes {
        RouteSource::Inline(table) => Some(table.clone()),
        RouteSource::Rds(name) => configuration.routes.get(name).cloned(),
    };
    for filter in &manager.filters {
        run(filter, &mut passage, table.as_deref(), verify, steps)?;
    }
    let Some(table) = table else {
        steps.refuses(StepKind::Route, "", "the listener's routes are not there".to_owned());
        return Err(refused(StatusCode::NOT_FOUND, NO_ROUTE));
    };
    route(configuration, &passage, &table, steps)
}

fn refused(status: StatusCode, reason: &'static str) -> End {
    End::Refused { status: Some(status.as_u16()), reason }
}

fn canonical<'a>(manager: &'a HttpConnectionManager, visit: &'a Visit, steps: &mut Steps) -> Result<Passage<'a>, End> {
    let mut refuse = |status: StatusCode, reason: &'static str, text: String| {
        steps.refuses(StepKind::Request, "", text);
        refused(status, reason)
    };
    if visit.method == Method::TRACE {
        let text = "the method TRACE is not answered".to_owned();
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", text));
    }
    let host = Host::parse(&visit.authority)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error.reason(), error.to_string()))?;
    let path = CanonicalPath::parse_raw(&visit.path, &manager.path)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error.reason(), error.to_string()))?;
    let mut headers = visit.headers.clone();
    headers.remove(header::HOST);
    if manager.underscores != Underscores::Allow {
        let odd: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        if let (Some(name), Underscores::Refuse) = (odd.first(), manager.underscores) {
            let text = format!("the header {name} has an underscore");
            return Err(refuse(StatusCode::BAD_REQUEST, "HTTP_MALFORMED", text));
        }
        for name in odd {
            headers.remove(name);
        }
    }
    let edge = manager.forwarding.use_remote_address;
    let scheme = if visit.connection.tls && edge { Scheme::Https } else { Scheme::Http };
    if path.as_str() != visit.path {
        steps.passes(StepKind::Request, "", format!("the path is read as {}", path.as_str()));
    }
    let (metadata, claims) = (Metadata::default(), visit.claims.clone());
    Ok(Passage { manager, visit, host, path, headers, scheme, metadata, claims })
}

fn run(
    filter: &HttpFilter,
    passage: &mut Passage<'_>,
    table: Option<&RouteTable>,
    verify: &mut Verify<'_>,
    steps: &mut Steps,
) -> Result<(), End> {
    let selection = table.and_then(|table| table.pick(&passage.request(), DICE).ok());
    let Some(changed) = filter.on_route(selection.as_ref()) else { return Ok(()) };
    match (&filter.kind, changed) {
        (FilterKind::JwtAuthn(jwt), changed) => tokens(jwt, changed, passage, verify, steps),
        (FilterKind::Rbac(_), Some(FilterOverride::Rbac(rbac))) | (FilterKind::Rbac(rbac), _) => {
            policies(rbac, passage, steps)
        }
        (FilterKind::ExtAuthz(service), _) => ask_service(service, passage, steps),
        (FilterKind::RateLimit(limit), _) => {
            ask_quota(limit, passage, selection.as_ref(), steps);
            Ok(())
        }
        (FilterKind::LocalRateLimit(_), _) => {
            steps.add(
                StepKind::RateLimit,
                &filter.name,
                Outcome::Unknown,
                "the proxy counts; taken to be within".into(),
            );
            Ok(())
        }
        (FilterKind::Fault(_), Some(FilterOverride::Fault(fault))) | (FilterKind::Fault(fault), _) => {
            faults(fault, passage, selection.as_ref(), steps)
        }
        (FilterKind::Cors, Some(FilterOverride::Cors(policy))) => match policy.decide(&passage.request(), DICE) {
            CorsDecision::Preflight(_) | CorsDecision::Refuse => {
                steps.passes(StepKind::Cors, &filter.name, "a browser's question is answered here".to_owned());
                Err(End::Answered { status: 200 })
            }
            CorsDecision::Pass | CorsDecision::Annotate(_) => Ok(()),
        },
        (FilterKind::Cors | FilterKind::Router(_), _) => Ok(()),
    }
}

fn tokens(
    jwt: &JwtAuthn,
    changed: Option<&FilterOverride>,
    passage: &mut Passage<'_>,
    verify: &mut Verify<'_>,
    steps: &mut Steps,
) -> Result<(), End> {
    let changed = match changed {
        Some(FilterOverride::Jwt(changed)) => Some(changed),
        _ => None,
    };
    let outcome = match &passage.claims {
        Some(claims) => jwt.danger_assume(claims),
        None => jwt.evaluate(&passage.request(), changed, DICE, verify),
    };
    let grant = match outcome {
        Ok(grant) => grant,
        Err(refusal) => {
            let provider = refusal.provider.as_deref().unwrap_or_default();
            steps.refuses(StepKind::Jwt, provider, format!("{refusal}"));
            return Err(refused(StatusCode::UNAUTHORIZED, refusal.reason()));
        }
    };
    grant.note(&mut passage.metadata);
    for token in &grant.tokens {
        let principal = format!("{}/{}", token.claims.issuer().unwrap_or("-"), token.claims.subject().unwrap_or("-"));
        let how = if passage.visit.claims.is_some() { "claims are taken as verified" } else { "verified" };
        steps.passes(StepKind::Jwt, &token.provider.name, format!("{how}: request principal {principal}"));
    }
    if !grant.tokens.is_empty() && !grant.tokens.iter().any(|token| token.provider.forward) {
        passage.claims = None;
    }
    if grant.tokens.is_empty() {
        steps.passes(StepKind::Jwt, "", "no token; a request without one goes on without claims".to_owned());
    }
    for name in &grant.remove_headers {
        passage.headers.remove(name);
    }
    for (name, value) in &grant.set_headers {
        passage.headers.insert(name.clone(), value.clone());
    }
    for name in &grant.remove_params {
        passage.path = passage.path.without_param(name);
    }
    Ok(())
}

fn policies(rbac: &RbacFilter, passage: &mut Passage<'_>, steps: &mut Steps) -> Result<(), End> {
    let decision = rbac.decide(&passage.request());
    steps.policies(rbac.action(), &rbac.try_all(&passage.request()), &decision);
    if let Some(shadow) = rbac.shadow(&passage.request()) {
        steps.watched(&rbac.try_all_watched(&passage.request()));
        rbac.note_shadow(&shadow, &mut passage.metadata);
    }
    if decision.allowed { Ok(()) } else { Err(refused(decision.status(), decision.reason())) }
}

fn ask_service(service: &ExtAuthz, passage: &Passage<'_>, steps: &mut Steps) -> Result<(), End> {
    let name = service.service.authority.as_deref().unwrap_or(&service.service.cluster);
    if service.enabled(&passage.request(), DICE) {
        steps.add(StepKind::Service, name, Outcome::Unknown, "it is asked; its answer is taken to be yes".to_owned());
        return Ok(());
    }
    if service.denies_when_disabled() {
        steps.refuses(StepKind::Service, name, "it is switched off, and refuses then".to_owned());
        return Err(refused(StatusCode::FORBIDDEN, "EXT_AUTHZ_DENIED"));
    }
    steps.add(StepKind::Service, name, Outcome::NoMatch, "it is not asked about this request".to_owned());
    Ok(())
}

fn ask_quota(limit: &RateLimit, passage: &Passage<'_>, selection: Option<&Selection<'_>>, steps: &mut Steps) {
    let request = passage.request();
    let internal = !passage.manager.forwarding.use_remote_address;
    let cluster = selection.and_then(|selection| selection.cluster(&request, DICE));
    let cluster = cluster.as_ref().map_or("", |cluster| &cluster.name);
    let asked = limit.enabled(internal, DICE) && !limit.descriptors(selection, None, &request, cluster, "").is_empty();
    let (outcome, text) = match asked {
        true => (Outcome::Unknown, "it is asked; the request is taken to be within its quota"),
        false => (Outcome::NoMatch, "it is not asked about this request"),
    };
    steps.add(StepKind::RateLimit, &limit.domain, outcome, text.to_owned());
}

/// Certain if it happens whatever the dice say.
fn faults(
    fault: &Fault,
    passage: &Passage<'_>,
    selection: Option<&Selection<'_>>,
    steps: &mut Steps,
) -> Result<(), End> {
    let request = passage.request();
    let cluster = selection.and_then(|selection| selection.cluster(&request, DICE));
    let cluster = cluster.as_ref().map_or("", |cluster| &cluster.name);
    let aborts = |dice| fault.decide(&request, cluster, dice).abort.is_some();
    let thrown: Vec<bool> = (0..FAULT_THROWS).map(|at| aborts(crate::route::mix(at))).collect();
    if thrown.iter().all(|aborts| *aborts) {
        steps.refuses(StepKind::Fault, "", "every request of this route is aborted on purpose".to_owned());
        return Err(refused(StatusCode::SERVICE_UNAVAILABLE, "FAULT_INJECTED"));
    }
    if thrown.iter().any(|aborts| *aborts) {
        let text = "some requests of this route are aborted on purpose; taken to be none of them".to_owned();
        steps.add(StepKind::Fault, "", Outcome::Unknown, text);
    }
    Ok(())
}

fn route(
    configuration: &Configuration,
    passage: &Passage<'_>,
    table: &RouteTable,
    steps: &mut Steps,
) -> Result<End, End> {
    let request = passage.request();
    let selection = match table.pick(&request, DICE) {
        Ok(selection) => selection,
        Err(NoRoute::TlsRequired) => {
            steps.passes(StepKind::Route, "", "the host is only reached over TLS: redirected to https".to_owned());
            return Err(End::Answered { status: StatusCode::MOVED_PERMANENTLY.as_u16() });
        }
        Err(none) => {
            tell_passed(table, &request, steps);
            steps.refuses(StepKind::Route, "", format!("{none} ({})", none.reason()));
            return Err(refused(StatusCode::NOT_FOUND, NO_ROUTE));
        }
    };
    tell_passed(table, &request, steps);
    let text = format!("virtual host {}, {}", selection.host.name, selection.route.matches());
    match &selection.route.action {
        Action::Forward(forward) => {
            steps.passes(StepKind::Route, &selection.route.name, text);
            forwarded(configuration, passage, &selection, forward, steps)
        }
        Action::Redirect(redirect) => {
            let location = redirect.location(&request, selection.route.matches());
            steps.passes(StepKind::Route, &selection.route.name, format!("{text}: redirected to {location}"));
            Err(End::Answered { status: redirect.status.as_u16() })
        }
        // How Istio writes "this host is not in the registry".
        Action::Direct(direct) if direct.status == StatusCode::BAD_GATEWAY && &*selection.host.name == "block_all" => {
            let text = format!("{text}: the mesh does not know this host");
            steps.refuses(StepKind::Route, &selection.route.name, text);
            Err(refused(direct.status, "HOST_NOT_IN_MESH"))
        }
        Action::Direct(direct) => {
            steps.passes(StepKind::Route, &selection.route.name, format!("{text}: answered by the proxy itself"));
            Err(End::Answered { status: direct.status.as_u16() })
        }
        Action::NonForwarding => {
            steps.refuses(StepKind::Route, &selection.route.name, "the route is for filters only".to_owned());
            Err(refused(StatusCode::NOT_FOUND, NO_ROUTE))
        }
    }
}

/// Routes of the virtual host that were looked at before and do not match.
fn tell_passed(table: &RouteTable, request: &Request<'_>, steps: &mut Steps) {
    let Some(host) = table.host(request) else { return };
    let passed: Vec<_> = host.routes.iter().take_while(|route| !route.matches().matches(request, DICE)).collect();
    for route in passed.iter().take(PASSED_TOLD_MAX) {
        steps.add(StepKind::Route, &route.name, Outcome::NoMatch, route.matches().to_string());
    }
    if let Some(more) = passed.len().checked_sub(PASSED_TOLD_MAX).filter(|more| *more > 0) {
        steps.add(StepKind::Route, "", Outcome::NoMatch, format!("and {more} further routes"));
    }
}

fn forwarded(
    configuration: &Configuration,
    passage: &Passage<'_>,
    selection: &Selection<'_>,
    forward: &Forward,
    steps: &mut Steps,
) -> Result<End, End> {
    let request = passage.request();
    let Some(picked) = selection.cluster(&request, DICE) else {
        steps.refuses(StepKind::Cluster, "", "the route names no cluster".to_owned());
        return Err(refused(forward.cluster_not_found, "NO_CLUSTER"));
    };
    let path = forward.rewrite_path(&request, selection.route.matches()).map_err(|error| {
        steps.refuses(StepKind::Route, &selection.route.name, format!("the rewritten path cannot be used: {error}"));
        refused(StatusCode::BAD_REQUEST, error.reason())
    })?;
    let rewritten = match (forward.rewrite_host(&request), picked.weighted.and_then(|one| one.host.as_deref())) {
        (_, Some(host)) => host.to_owned(),
        (HostRewrite::To(host), None) => host.into_owned(),
        (HostRewrite::Keep | HostRewrite::EndpointName, None) => passage.host.authority().to_owned(),
    };
    let weighted = forward.target.choices();
    if weighted.len() > 1 {
        let shares: Vec<String> = weighted.iter().map(|(name, weight)| format!("{name} ({weight})")).collect();
        let text = format!("one of several by weight: {}; the first is followed", shares.join(", "));
        steps.add(StepKind::Route, &selection.route.name, Outcome::Unknown, text);
    }
    let path = path.as_ref().unwrap_or(&passage.path).as_str().to_owned();
    let mut prepared = PreparedEdits::default();
    let context = LogContext {
        method: Some(passage.visit.method.as_str()),
        path: Some(&path),
        authority: Some(passage.host.authority()),
        request_headers: Some(&passage.headers),
        downstream_peer: passage.visit.connection.peer.as_ref(),
        downstream_remote: Some(passage.visit.connection.source),
        metadata: Some(&passage.metadata),
        ..LogContext::default()
    };
    for edits in selection.request_edits(picked.weighted) {
        edits.prepare(&context, &mut prepared);
    }
    let mut headers = passage.headers.clone();
    prepared.apply(&mut headers);
    let visit = Visit { authority: rewritten, path, headers, claims: passage.claims.clone(), ..passage.visit.clone() };
    upstream::send(configuration, &picked.name, Some(forward), visit, steps)
}

const NO_ROUTE: &str = "NO_ROUTE";
/// Where a share decides, the first part of it is meant.
const DICE: u64 = 0;
/// Throws by which certain faults are told from possible ones.
const FAULT_THROWS: u64 = 64;
/// Routes that do not match and are told all the same.
const PASSED_TOLD_MAX: usize = 20;
