//! Sending a request on: cluster, edits, endpoint, attempts, and the response on its way back.
//!
//! What never reached an endpoint is sent again without asking; everything else is tried again only if the route's
//! policy says so, the budget allows it and the body can be repeated.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{HeaderName, Method, StatusCode, Version};
use routing::cluster::Cluster;
use routing::filters::FilterKind;
use routing::format::ResponseFlags;
use routing::outlier::OutlierEvent;
use routing::request::Scheme;
use routing::retry::{Outcome, RetryPolicy};
use routing::route::{Forward, HostRewrite, PreparedEdits, Selection, WeightedCluster, mix};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::body::Body;
use super::exchange::{Answer, Upgrade, clean_response, edit_response};
use super::hygiene::{X_ENVOY_ATTEMPT_COUNT, X_ENVOY_UPSTREAM_SERVICE_TIME};
use super::record::Record;
use super::replay::ReplaySource;
use super::reply::Reply;
use super::{mirror, tunnel};
use crate::refusal::{self, Refusal};
use crate::upstream::cluster::{Admitted, Chosen, ClusterState};
use crate::upstream::pool::{Pool, Speak};
use crate::upstream::send::{Answered, Failure, Outgoing, Progress, send};

/// Everything about a request that does not change from attempt to attempt.
pub(crate) struct Plan<'t> {
    pub(crate) cluster: Rc<ClusterState>,
    pub(crate) weighted: Option<&'t WeightedCluster>,
    pub(crate) outgoing: Outgoing,
    pub(crate) hash: Option<u64>,
    /// The host becomes the endpoint's own name.
    pub(crate) endpoint_name: bool,
    pub(crate) deadline: Option<Instant>,
    speak: Speak,
    /// How long the stream may be silent.
    idle: Option<Duration>,
    retry: Option<Arc<RetryPolicy>>,
}

/// Sends a request on and answers what came back.
pub(crate) async fn run(
    record: &mut Record,
    selection: &Selection<'_>,
    forward: &Forward,
    body: Body,
    upgrade: Option<Upgrade>,
) -> Result<Answer, Refusal> {
    let mut plan = plan(record, selection, forward)?;
    if let Some(upgrade) = upgrade.filter(|upgrade| upgrade.protocol != "h2c" && !upgrade.protocol.starts_with("h2c,"))
    {
        if !forward.allows_upgrade(&upgrade.protocol, true) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, refusal::UPGRADE_NOT_ALLOWED, ResponseFlags::default()));
        }
        return tunnel::run(record, selection, plan, upgrade).await;
    }
    if plan.cluster.config.endpoints.drops(mix(record.dice)) {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, refusal::UPSTREAM_OVERFLOW, ResponseFlags::DO));
    }
    let admitted = plan.cluster.admit(forward.high_priority).ok_or_else(Refusal::overflow)?;
    mirror::run(record, forward, &plan.outgoing, &body);
    let source = (!body.is_empty()).then(|| Rc::new(ReplaySource::new(body, record.grpc)));
    record.request_body.clone_from(&source);
    let answered = attempts(record, selection, &mut plan, source.as_deref()).await?;
    Ok(relay(record, selection, &plan, answered, admitted))
}

/// Picks the cluster and brings the request into the form that its endpoints get.
fn plan<'t>(record: &mut Record, selection: &Selection<'t>, forward: &'t Forward) -> Result<Plan<'t>, Refusal> {
    let canonical = record.canonical.take().ok_or_else(Refusal::no_route)?;
    let request = record.request(&canonical);
    let picked = selection.cluster(&request, mix(record.dice));
    let picked = picked.ok_or_else(|| Refusal::no_cluster(forward.cluster_not_found))?;
    let timeout = forward.timeout_for(&request);
    let hash = forward.hash_key(&request, record.dice);
    let rewritten = forward.rewrite_path(&request, selection.route.matches());
    let rewritten = rewritten.map_err(|error| Refusal::malformed(error.reason()))?;
    let host = forward.rewrite_host(&request);
    let (authority, endpoint_name) = match (&host, picked.weighted.and_then(|weighted| weighted.host.as_deref())) {
        (_, Some(host)) => (authority(host)?, false),
        (HostRewrite::To(host), None) => (authority(host)?, false),
        (HostRewrite::Keep, None) => (authority(canonical.host.authority())?, false),
        (HostRewrite::EndpointName, None) => (authority(canonical.host.authority())?, true),
    };
    let scheme = match canonical.scheme {
        Scheme::Https => UriScheme::HTTPS,
        Scheme::Http => UriScheme::HTTP,
    };
    let path: PathAndQuery = rewritten.as_ref().unwrap_or(&canonical.path).path_and_query().clone();
    let changed_host = host != HostRewrite::Keep;
    record.cluster_name = Some(picked.name.as_ref().into());
    if changed_host && forward.append_forwarded_host {
        append(record, X_FORWARDED_HOST, canonical.host.authority());
    }
    record.canonical = Some(canonical);
    let cluster = record.conn.worker.config().cluster(&picked.name);
    let cluster = cluster.ok_or_else(|| no_cluster(forward, &picked.name))?;
    record.cluster = Some(cluster.clone());
    if let Some(cookie) = hash.set_cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        record.add_to_response.push((header::SET_COOKIE, cookie));
    }
    edit_request(record, selection, picked.weighted);
    let came_by_http2 = record.head.version >= Version::HTTP_2;
    Ok(Plan {
        speak: cluster.speak(came_by_http2),
        weighted: picked.weighted,
        outgoing: Outgoing {
            method: record.head.method.clone(),
            scheme,
            authority,
            path,
            headers: record.head.headers.clone(),
        },
        hash: hash.hash,
        endpoint_name,
        cluster: cluster.clone(),
        deadline: longest(record, forward, timeout, cluster.cluster()).map(|timeout| record.started + timeout),
        retry: forward.retry.clone().filter(|policy| policy.concerns(&record.head.headers)),
        idle: forward.idle_timeout.or(record.hcm.config.timeouts.stream_idle),
    })
}

/// How long the whole exchange may take: the shortest of all that limit it.
fn longest(record: &Record, forward: &Forward, timeout: Option<Duration>, cluster: &Cluster) -> Option<Duration> {
    let limits = [timeout, forward.stream_max, record.hcm.config.timeouts.stream, cluster.http.stream_max];
    limits.into_iter().flatten().min()
}

/// Istio's name for "outside of the mesh" is a cluster without endpoints.
fn no_cluster(forward: &Forward, name: &str) -> Refusal {
    if name == "BlackHoleCluster" {
        return Refusal::new(StatusCode::BAD_GATEWAY, refusal::HOST_NOT_IN_MESH, ResponseFlags::NC);
    }
    Refusal::no_cluster(forward.cluster_not_found).with(name)
}

fn authority(host: &str) -> Result<Authority, Refusal> {
    host.parse().map_err(|_| Refusal::malformed("HOST_INVALID"))
}

fn append(record: &mut Record, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        record.head.headers.append(name, value);
    }
}

fn edit_request(record: &mut Record, selection: &Selection<'_>, weighted: Option<&WeightedCluster>) {
    let mut prepared = PreparedEdits::default();
    let mut edits = selection.request_edits(weighted).peekable();
    if edits.peek().is_none() {
        return;
    }
    let context = record.context();
    for edit in edits {
        edit.prepare(&context, &mut prepared);
    }
    prepared.apply(&mut record.head.headers);
}

/// Attempts until one is answered for good.
async fn attempts(
    record: &mut Record,
    selection: &Selection<'_>,
    plan: &mut Plan<'_>,
    source: Option<&ReplaySource>,
) -> Result<Answered, Refusal> {
    let mut tried = SmallVec::<[usize; 4]>::new();
    let (mut retries, mut unsent) = (0, 0);
    let mut retrying: Option<Retrying> = None;
    loop {
        let chosen = choose(record, plan, &tried)?;
        let pool = plan.cluster.pool(&record.conn.worker, &chosen, plan.outgoing.authority.host());
        let body = match source {
            None => Body::Empty,
            // Attempts that cannot repeat the body are not begun, so a reader is there.
            Some(source) => source.reader().map_or(Body::Empty, Body::Replay),
        };
        record.attempts += 1;
        prepare(record, selection, plan, &chosen);
        let outcome = attempt(record, plan, &chosen, &pool, body).await;
        let replayable = source.is_none_or(ReplaySource::is_replayable);
        let decision = match &outcome {
            Ok(answered) => after_response(plan, answered, retries, replayable),
            Err(failure) => after_failure(plan, failure, retries, unsent, replayable),
        };
        match decision {
            Next::Take => {
                drop(retrying);
                return finish(record, outcome, retries, plan);
            }
            Next::Again => unsent += 1,
            Next::Retry => {
                if retrying.is_none() {
                    retrying = Retrying::begin(&plan.cluster);
                    if retrying.is_none() {
                        record.flags.insert(ResponseFlags::UO);
                        return finish(record, outcome, retries, plan);
                    }
                }
                retries += 1;
                record.conn.worker.process.counters.retries.fetch_add(1, Ordering::Relaxed);
                let asked = outcome.as_ref().ok().and_then(|answered| {
                    plan.retry.as_ref().and_then(|policy| policy.asked_backoff(&answered.head.headers))
                });
                drop(outcome);
                if plan.retry.as_ref().is_some_and(|policy| policy.avoid_previous_hosts) {
                    tried.push(chosen.index);
                }
                back_off(record, plan, retries, asked).await?;
            }
        }
    }
}

enum Next {
    /// This is the outcome.
    Take,
    /// At once, because nothing was sent.
    Again,
    /// By the policy.
    Retry,
}

fn choose(record: &Record, plan: &Plan<'_>, tried: &[usize]) -> Result<Chosen, Refusal> {
    let dice = record.conn.worker.random.next();
    let chosen = plan.cluster.pick(dice, plan.hash, tried, record.conn.original);
    chosen.ok_or_else(|| {
        if record.cluster_name.as_deref() == Some("BlackHoleCluster") {
            return Refusal::new(StatusCode::BAD_GATEWAY, refusal::HOST_NOT_IN_MESH, ResponseFlags::UH);
        }
        Refusal::no_endpoint()
    })
}

/// What differs from attempt to attempt.
fn prepare(record: &Record, selection: &Selection<'_>, plan: &mut Plan<'_>, chosen: &Chosen) {
    if selection.host.attempt_count_in_request {
        plan.outgoing.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(record.attempts));
    }
    if plan.endpoint_name
        && let Some(name) = plan.cluster.hostname(chosen.index)
        && let Ok(name) = name.parse()
    {
        plan.outgoing.authority = name;
    }
}

async fn attempt(
    record: &mut Record,
    plan: &Plan<'_>,
    chosen: &Chosen,
    pool: &Rc<Pool>,
    body: Body,
) -> Result<Answered, Failure> {
    record.endpoint = Some(chosen.index);
    let in_flight = plan.cluster.begin(chosen.index);
    let now = Instant::now();
    let per_try = plan.retry.as_ref().and_then(|policy| policy.per_try_timeout).map(|timeout| now + timeout);
    let silent = plan.idle.map(|idle| now + idle);
    let limit = [per_try, plan.deadline, silent].into_iter().flatten().min();
    let sending = send(pool, plan.speak, &plan.outgoing, body);
    let result = match limit {
        None => sending.await,
        Some(limit) => tokio::time::timeout_at(limit, sending).await.unwrap_or_else(|_| Err(Failure::timed_out())),
    };
    let dice = record.conn.worker.random.next();
    match result {
        Ok(mut answered) => {
            record.upstream = Some(answered.facts.clone());
            record.first_byte = Some(record.started.elapsed());
            plan.cluster.judge(chosen.index, OutlierEvent::Status(answered.head.status.as_u16()), dice);
            answered.hold.in_flight = Some(in_flight);
            Ok(answered)
        }
        Err(failure) => {
            let theirs = !matches!(failure.progress, Progress::NotSent | Progress::ClientGone);
            if theirs {
                plan.cluster.judge(chosen.index, OutlierEvent::LocalFailure, dice);
            }
            record.upstream_failure = failure.peer_reason;
            Err(failure)
        }
    }
}

fn after_response(plan: &Plan<'_>, answered: &Answered, retries: u32, replayable: bool) -> Next {
    let Some(policy) = plan.retry.as_ref().filter(|policy| replayable && retries < policy.attempts) else {
        return Next::Take;
    };
    let grpc_status = answered.head.headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    let outcome = Outcome::Response { status: answered.head.status, headers: &answered.head.headers, grpc_status };
    if policy.retries(&outcome) { Next::Retry } else { Next::Take }
}

fn after_failure(plan: &Plan<'_>, failure: &Failure, retries: u32, unsent: u32, replayable: bool) -> Next {
    if !replayable || plan.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        return Next::Take;
    }
    let harmless = match failure.progress {
        Progress::NotSent | Progress::Refused => true,
        // A pooled connection that broke just when it was used again: the endpoint was closing it.
        Progress::Sent { reused: true } => is_idempotent(&plan.outgoing.method),
        _ => false,
    };
    if harmless && unsent < UNSENT_MAX {
        return Next::Again;
    }
    let outcome = match failure.progress {
        Progress::ClientGone => return Next::Take,
        Progress::NotConnected => Outcome::ConnectFailure,
        Progress::Refused => Outcome::RefusedStream,
        Progress::NotSent => Outcome::ResetBeforeRequest,
        Progress::Sent { .. } => Outcome::Reset,
        Progress::TimedOut => Outcome::TryTimeout,
    };
    let policy = plan.retry.as_ref().filter(|policy| retries < policy.attempts);
    if policy.is_some_and(|policy| policy.retries(&outcome)) { Next::Retry } else { Next::Take }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

async fn back_off(record: &Record, plan: &Plan<'_>, retries: u32, asked: Option<Duration>) -> Result<(), Refusal> {
    let Some(policy) = &plan.retry else { return Ok(()) };
    let pause = asked.unwrap_or_else(|| policy.backoff(retries, record.conn.worker.random.next()));
    let end = Instant::now() + pause;
    if plan.deadline.is_some_and(|deadline| end >= deadline) {
        return Err(Refusal::timeout());
    }
    if !pause.is_zero() {
        tokio::time::sleep_until(end).await;
    }
    Ok(())
}

fn finish(
    record: &mut Record,
    outcome: Result<Answered, Failure>,
    retries: u32,
    plan: &Plan<'_>,
) -> Result<Answered, Refusal> {
    let exhausted = plan.retry.as_ref().is_some_and(|policy| retries > 0 && retries >= policy.attempts);
    outcome.map_err(|failure| {
        if exhausted {
            record.flags.insert(ResponseFlags::URX);
        }
        let status = match failure.progress {
            Progress::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Progress::Sent { .. } if failure.reason == refusal::UPSTREAM_RESPONSE_INVALID => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let details = match failure.peer_reason {
            Some(peer) => format!("{peer}: {}", failure.details),
            None => failure.details,
        };
        Refusal::new(status, failure.reason, failure.flags).with(details)
    })
}

/// Brings a response into the form that the client gets.
fn relay(
    record: &Record,
    selection: &Selection<'_>,
    plan: &Plan<'_>,
    answered: Answered,
    admitted: Admitted,
) -> Answer {
    let Answered { mut head, body, mut hold, .. } = answered;
    clean_response(&mut head);
    let suppress = record.hcm.config.filters.iter().any(|filter| match &filter.kind {
        FilterKind::Router(router) => router.suppress_envoy_headers,
        _ => false,
    });
    if !suppress {
        let millis = record.first_byte.unwrap_or_default().as_millis();
        let millis = HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX));
        head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, millis);
    }
    if selection.host.attempt_count_in_response {
        head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(record.attempts));
    }
    hold.admitted = Some(admitted);
    hold.deadline = plan.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
    hold.idle = plan.idle;
    let mut reply = Reply { head, body };
    edit_response(record, selection, plan.weighted, &mut reply);
    Answer { reply, hold }
}

/// A retry that the cluster's budget admits.
struct Retrying(Rc<ClusterState>);

impl Retrying {
    fn begin(cluster: &Rc<ClusterState>) -> Option<Self> {
        cluster.admit_retry().then(|| Self(cluster.clone()))
    }
}

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retry_ended();
    }
}

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Times that a request which never left is sent again without a policy.
const UNSENT_MAX: u32 = 3;
