//! The filters of a listener, in its order: tokens, policy, services that are asked, quotas, faults, origins.
//!
//! Each filter is one arm of a match. Only those that ask a service or delay on purpose wait.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use routing::filters::{
    Abort, CorsDecision, ExtAuthz, Fault, FilterKind, FilterOverride, HttpFilter, LocalRateLimit, RateLimit,
};
use routing::format::ResponseFlags;
use routing::jwt::{JwtAuthn, JwtGrant, JwtOverride};
use routing::rbac::RbacFilter;
use routing::route::{HeaderEdits, PreparedEdits, RouteTable, Selection, mix};

use super::body::Body;
use super::exchange::Answer;
use super::record::Record;
use super::reply;
use crate::refusal::{self, Refusal};
use crate::rpc::{ext_authz, rate_limit};

/// How a request came through the filters.
#[allow(clippy::large_enum_variant, reason = "moved once a request; a box would cost an allocation")]
pub(crate) enum Filtered {
    /// On to its route, with its body.
    Pass(Body),
    /// A filter answered it.
    Answer(Answer),
}

#[allow(clippy::large_enum_variant, reason = "moved once a request; a box would cost an allocation")]
enum Step {
    Pass,
    Answer(Answer),
}

/// Runs all filters.
pub(crate) async fn run(record: &mut Record, table: Option<&RouteTable>, mut body: Body) -> Result<Filtered, Refusal> {
    let hcm = record.hcm.clone();
    let mut selection = select(record, table);
    for filter in &hcm.config.filters {
        let Some(changed) = filter.on_route(selection.as_ref()) else { continue };
        let step = match &filter.kind {
            FilterKind::JwtAuthn(jwt) => {
                if authenticate(record, jwt, changed)? {
                    selection = select(record, table);
                }
                Step::Pass
            }
            FilterKind::Rbac(rbac) => authorize(record, rbac, changed)?,
            FilterKind::ExtAuthz(filter) => {
                let step = ask_authz(record, filter, changed, &mut body).await?;
                if filter.clear_route_cache {
                    selection = select(record, table);
                }
                step
            }
            FilterKind::RateLimit(filter) => ask_quota(record, filter, changed, selection.as_ref()).await?,
            FilterKind::LocalRateLimit(limit) => {
                let limit = match changed {
                    Some(FilterOverride::LocalRateLimit(changed)) => changed,
                    _ => limit,
                };
                count_locally(record, limit, selection.as_ref())?
            }
            FilterKind::Fault(fault) => {
                let fault = match changed {
                    Some(FilterOverride::Fault(changed)) => changed,
                    _ => fault,
                };
                inject(record, fault, selection.as_ref()).await?
            }
            FilterKind::Cors => answer_origin(record, filter, changed),
            FilterKind::Router(_) => Step::Pass,
        };
        if let Step::Answer(answer) = step {
            return Ok(Filtered::Answer(answer));
        }
    }
    Ok(Filtered::Pass(body))
}

/// The route that the request would take now; filters may depend on it and may change it.
fn select<'t>(record: &Record, table: Option<&'t RouteTable>) -> Option<Selection<'t>> {
    let canonical = record.canonical.as_ref()?;
    table?.pick(&record.request(canonical), record.dice).ok()
}

/// Verifies tokens. Answers whether the route is to be picked again.
fn authenticate(record: &mut Record, jwt: &JwtAuthn, changed: Option<&FilterOverride>) -> Result<bool, Refusal> {
    let changed: Option<&JwtOverride> = match changed {
        Some(FilterOverride::Jwt(changed)) => Some(changed),
        _ => None,
    };
    let worker = record.conn.worker.clone();
    let Some(canonical) = record.canonical.take() else { return Ok(false) };
    let outcome = jwt.evaluate(&record.request(&canonical), changed, record.dice, &mut |expect| {
        worker.tokens.verify(&worker, expect)
    });
    record.canonical = Some(canonical);
    let grant = outcome.map_err(|refused| {
        let details = refused.provider.as_deref().unwrap_or_default();
        Refusal::new(StatusCode::UNAUTHORIZED, refused.reason(), ResponseFlags::default()).with(details)
    })?;
    Ok(apply_grant(record, &grant))
}

fn apply_grant(record: &mut Record, grant: &JwtGrant) -> bool {
    grant.note(&mut record.metadata);
    for name in &grant.remove_headers {
        record.head.headers.remove(name);
    }
    for (name, value) in &grant.set_headers {
        record.head.headers.insert(name.clone(), value.clone());
    }
    if let Some(canonical) = &mut record.canonical {
        for name in &grant.remove_params {
            canonical.path = canonical.path.without_param(name);
        }
    }
    grant.clear_route_cache
}

fn authorize(record: &mut Record, rbac: &RbacFilter, changed: Option<&FilterOverride>) -> Result<Step, Refusal> {
    let rbac = match changed {
        Some(FilterOverride::Rbac(changed)) => changed,
        _ => rbac,
    };
    let Some(canonical) = record.canonical.take() else { return Ok(Step::Pass) };
    let decision = rbac.decide(&record.request(&canonical));
    let shadow = rbac.shadow(&record.request(&canonical));
    record.canonical = Some(canonical);
    if let Some(shadow) = shadow {
        rbac.note_shadow(&shadow, &mut record.metadata);
    }
    if let Some(policy) = &decision.policy {
        record.policy = Some(policy.clone());
    }
    if decision.allowed {
        return Ok(Step::Pass);
    }
    let policy = decision.policy.as_deref().unwrap_or("none");
    let details = format!("rbac_access_denied_matched_policy[{policy}]");
    Err(Refusal::new(decision.status(), decision.reason(), ResponseFlags::default()).with(details))
}

async fn ask_authz(
    record: &mut Record,
    filter: &ExtAuthz,
    changed: Option<&FilterOverride>,
    body: &mut Body,
) -> Result<Step, Refusal> {
    let changed = match changed {
        Some(FilterOverride::ExtAuthz(changed)) => Some(changed),
        _ => None,
    };
    let Some(canonical) = &record.canonical else { return Ok(Step::Pass) };
    if !filter.enabled(&record.request(canonical), record.dice) {
        if filter.denies_when_disabled() {
            return Err(Refusal::new(StatusCode::FORBIDDEN, refusal::EXT_AUTHZ_DENIED, ResponseFlags::UAEX));
        }
        return Ok(Step::Pass);
    }
    let limit = changed.and_then(|changed| changed.body).or(filter.body);
    let limit = limit.filter(|_| !changed.is_some_and(|changed| changed.without_body));
    let shown = match limit {
        Some(limit) => look_at_body(body, limit.bytes_max as usize, limit.partial).await?,
        None => Bytes::new(),
    };
    let question = ext_authz::question(record, &record.request(canonical), filter, changed, &shown);
    let worker = record.conn.worker.clone();
    match ext_authz::check(&worker, filter, changed, question).await {
        ext_authz::Verdict::Allowed(changes) => {
            apply_changes(record, changes);
            Ok(Step::Pass)
        }
        ext_authz::Verdict::Denied(mut reply) => {
            let refusal = Refusal::new(reply.head.status, refusal::EXT_AUTHZ_DENIED, ResponseFlags::UAEX);
            record.refused(&refusal);
            if record.grpc {
                let say = worker.process.settings.reason_header;
                return Ok(Step::Answer(reply::refuse(&refusal, true, say).into()));
            }
            reply::say_reason(&mut reply, refusal.reason, worker.process.settings.reason_header);
            Ok(Step::Answer(reply.into()))
        }
        ext_authz::Verdict::Refused(refusal) => Err(refusal),
        ext_authz::Verdict::Skipped => {
            if filter.failure_mode_header {
                let allowed = http::HeaderValue::from_static("true");
                record.head.headers.insert("x-envoy-auth-failure-mode-allowed", allowed);
            }
            Ok(Step::Pass)
        }
    }
}

fn apply_changes(record: &mut Record, changes: ext_authz::Changes) {
    let headers: &mut HeaderMap = &mut record.head.headers;
    for name in changes.remove {
        headers.remove(name);
    }
    for (name, value, append) in changes.set {
        if append {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
    record.add_to_response.extend(changes.response);
    if let Some(metadata) = changes.metadata {
        record.metadata.insert_json("envoy.filters.http.ext_authz", metadata);
    }
}

/// Reads the beginning of the body for a service; all of it goes on to the upstream afterwards.
async fn look_at_body(body: &mut Body, max: usize, partial: bool) -> Result<Bytes, Refusal> {
    let max = max.min(BODY_SHOWN_MAX);
    let mut read = BytesMut::new();
    let mut rest = std::mem::take(body);
    while read.len() <= max {
        match rest.frame().await {
            None => {
                let all = read.freeze();
                *body = if all.is_empty() { Body::Empty } else { Body::Full(all.clone()) };
                return Ok(all);
            }
            Some(Err(_)) => return Err(Refusal::malformed(refusal::HTTP_MALFORMED)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                // Trailers of a request that is looked at end here.
                Err(_) => continue,
            },
        }
    }
    if !partial {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, refusal::BODY_TOO_LARGE, ResponseFlags::default()));
    }
    let begun = read.freeze();
    let shown = begun.slice(..max);
    *body = Body::Begun(begun, Box::new(rest));
    Ok(shown)
}

async fn ask_quota(
    record: &mut Record,
    filter: &RateLimit,
    changed: Option<&FilterOverride>,
    selection: Option<&Selection<'_>>,
) -> Result<Step, Refusal> {
    let changed = match changed {
        Some(FilterOverride::RateLimit(changed)) => Some(changed),
        _ => None,
    };
    let worker = record.conn.worker.clone();
    let internal = !record.hcm.config.forwarding.use_remote_address;
    let Some(canonical) = record.canonical.as_ref().filter(|_| filter.enabled(internal, record.dice)) else {
        return Ok(Step::Pass);
    };
    let request = record.request(canonical);
    let cluster = selection.and_then(|selection| selection.cluster(&request, mix(record.dice)));
    let cluster = cluster.as_ref().map_or("", |cluster| &cluster.name);
    let own = &worker.process.settings.node.cluster;
    let descriptors = filter.descriptors(selection, changed, &request, cluster, own);
    if descriptors.is_empty() {
        return Ok(Step::Pass);
    }
    let domain = changed.and_then(|changed| changed.domain.as_deref()).unwrap_or(&filter.domain);
    match rate_limit::check(&worker, filter, domain, descriptors).await {
        rate_limit::Verdict::Within => Ok(Step::Pass),
        rate_limit::Verdict::Over(_) if !filter.enforced(record.dice) => Ok(Step::Pass),
        rate_limit::Verdict::Over(told) => {
            record.add_to_response.extend(told);
            edit_own_response(record, &filter.response_edits);
            Err(Refusal::new(filter.status, refusal::RATE_LIMITED, ResponseFlags::RL))
        }
        rate_limit::Verdict::Unavailable if filter.failure_mode_deny => {
            Err(Refusal::new(filter.status_on_error, refusal::RATE_LIMIT_UNAVAILABLE, ResponseFlags::RLSE))
        }
        rate_limit::Verdict::Unavailable => Ok(Step::Pass),
    }
}

fn count_locally(
    record: &mut Record,
    limit: &LocalRateLimit,
    selection: Option<&Selection<'_>>,
) -> Result<Step, Refusal> {
    let Some(canonical) = record.canonical.as_ref().filter(|_| limit.enabled(record.dice)) else {
        return Ok(Step::Pass);
    };
    let request = record.request(canonical);
    let cluster = selection.and_then(|selection| selection.cluster(&request, mix(record.dice)));
    let cluster = cluster.as_ref().map_or("", |cluster| &cluster.name);
    let own = limit.own_bucket(selection, &request, cluster, &record.conn.worker.process.settings.node.cluster);
    let quotas = &record.conn.worker.process.quotas;
    let mut allowed = own.is_none_or(|index| {
        limit.buckets.get(index).is_none_or(|bucket| quotas.take(limit, Some(index), bucket.bucket))
    });
    if let Some(spec) = limit.bucket.filter(|_| own.is_none() || limit.always_count) {
        allowed &= quotas.take(limit, None, spec);
    }
    if allowed {
        return Ok(Step::Pass);
    }
    if !limit.enforced(record.dice) {
        let mut prepared = PreparedEdits::default();
        limit.request_edits.prepare(&record.context(), &mut prepared);
        prepared.apply(&mut record.head.headers);
        return Ok(Step::Pass);
    }
    edit_own_response(record, &limit.response_edits);
    Err(Refusal::new(limit.status, refusal::RATE_LIMITED, ResponseFlags::RL).with("local_rate_limited"))
}

/// Headers that a filter adds to its own refusal.
fn edit_own_response(record: &mut Record, edits: &HeaderEdits) {
    if edits.is_empty() {
        return;
    }
    let (mut prepared, mut headers) = (PreparedEdits::default(), HeaderMap::new());
    edits.prepare(&record.context(), &mut prepared);
    prepared.apply(&mut headers);
    let named = headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    record.add_to_response.extend(named);
}

async fn inject(record: &mut Record, fault: &Fault, selection: Option<&Selection<'_>>) -> Result<Step, Refusal> {
    let Some(canonical) = &record.canonical else { return Ok(Step::Pass) };
    let request = record.request(canonical);
    let cluster = selection.and_then(|selection| selection.cluster(&request, mix(record.dice)));
    let decision = fault.decide(&request, cluster.as_ref().map_or("", |cluster| &cluster.name), mix(mix(record.dice)));
    if let Some(delay) = decision.delay {
        record.flags.insert(ResponseFlags::DI);
        tokio::time::sleep(delay.min(FAULT_DELAY_MAX)).await;
    }
    match decision.abort {
        None => Ok(Step::Pass),
        Some(Abort::Http(status)) => Err(Refusal::new(status, refusal::FAULT_INJECTED, ResponseFlags::FI)),
        Some(Abort::Grpc(code)) => {
            let refusal = Refusal::new(StatusCode::OK, refusal::FAULT_INJECTED, ResponseFlags::FI);
            record.refused(&refusal);
            Ok(Step::Answer(reply::grpc_status(u16::try_from(code).unwrap_or(2), refusal::FAULT_INJECTED).into()))
        }
    }
}

fn answer_origin(record: &mut Record, _filter: &HttpFilter, changed: Option<&FilterOverride>) -> Step {
    let Some(FilterOverride::Cors(policy)) = changed else { return Step::Pass };
    let Some(canonical) = &record.canonical else { return Step::Pass };
    match policy.decide(&record.request(canonical), record.dice) {
        CorsDecision::Pass => Step::Pass,
        CorsDecision::Annotate(headers) => {
            record.add_to_response.extend(headers);
            Step::Pass
        }
        CorsDecision::Preflight(headers) => {
            let mut reply = reply::empty(StatusCode::OK);
            reply.head.headers.insert(header::CONTENT_LENGTH, 0.into());
            for (name, value) in headers {
                reply.head.headers.insert(name, value);
            }
            Step::Answer(reply.into())
        }
        CorsDecision::Refuse => {
            let mut reply = reply::empty(StatusCode::OK);
            reply.head.headers.insert(header::CONTENT_LENGTH, 0.into());
            Step::Answer(reply.into())
        }
    }
}

/// The most of a body that a service is shown.
const BODY_SHOWN_MAX: usize = 1024 * 1024;
/// The longest delay that is injected.
const FAULT_DELAY_MAX: std::time::Duration = std::time::Duration::from_secs(3600);
