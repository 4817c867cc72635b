//! One request from its head to the head of its response: canonical form, filters, route, answer. A straight function;
//! what waits is only what must ask somebody else.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use routing::format::{LogContext, ResponseFlags};
use routing::hcm::ServerHeader;
use routing::route::{Action, Direct, NoRoute, PreparedEdits, Redirect, RouteTable, Selection, WeightedCluster};

use super::body::Body;
use super::canonical::canonicalize;
use super::filters::{self, Filtered};
use super::forward;
use super::hcm::HcmState;
use super::hygiene::{X_REQUEST_ID, strip_hop_by_hop};
use super::record::{Hold, Record, Recorded};
use super::reply::{self, Reply};
use crate::conn::Conn;
use crate::refusal::{self, Refusal};

/// How a request wants to leave HTTP.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// What it asked for, lower-case: `websocket`, or `connect` for the method.
    pub(crate) protocol: String,
    pub(crate) on: OnUpgrade,
}

/// An answer with what must live as long as its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) hold: Hold,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, hold: Hold::default() }
    }
}

/// Answers a request that came by HTTP/1.
pub(crate) async fn run_http1(
    conn: &Rc<Conn>,
    hcm: Rc<HcmState>,
    mut request: Request<Incoming>,
) -> Response<Recorded> {
    let protocol = match request.headers().get(header::UPGRADE) {
        _ if request.method() == Method::CONNECT => Some("connect".to_owned()),
        Some(value) => Some(String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()),
        None => None,
    };
    let upgrade = protocol.map(|protocol| Upgrade { protocol, on: hyper::upgrade::on(&mut request) });
    let (head, body) = request.into_parts();
    run(conn, hcm, head, Body::http1(body), upgrade).await
}

/// Answers a request.
pub(crate) async fn run(
    conn: &Rc<Conn>,
    hcm: Rc<HcmState>,
    head: Parts,
    body: Body,
    upgrade: Option<Upgrade>,
) -> Response<Recorded> {
    let version = head.version;
    let mut record = Box::new(Record::begin(conn, hcm, head));
    let answer = match decide(&mut record, body, upgrade).await {
        Ok(answer) => answer,
        Err(refusal) => {
            record.refused(&refusal);
            reply::refuse(&refusal, record.grpc, record.conn.worker.process.settings.reason_header).into()
        }
    };
    finish(record, answer, version)
}

/// The last touches on the head of a response.
fn finish(mut record: Box<Record>, answer: Answer, version: Version) -> Response<Recorded> {
    let Answer { reply: Reply { mut head, body }, hold } = answer;
    let config = &record.hcm.config;
    let server = config.server_name.as_deref().unwrap_or(SERVER_NAME);
    let sets_server = match config.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !head.headers.contains_key(header::SERVER),
        ServerHeader::PassThrough => false,
    };
    if sets_server && let Ok(server) = HeaderValue::from_str(server) {
        head.headers.insert(header::SERVER, server);
    }
    if config.request_id.in_response
        && let Some(id) = record.head.headers.get(&X_REQUEST_ID)
    {
        head.headers.insert(X_REQUEST_ID, id.clone());
    }
    for (name, value) in std::mem::take(&mut record.add_to_response) {
        head.headers.insert(name, value);
    }
    record.answered(head.status.as_u16(), &head.headers);
    head.version = version;
    Response::from_parts(head, Recorded::new(body, record, hold))
}

async fn decide(record: &mut Record, body: Body, upgrade: Option<Upgrade>) -> Result<Answer, Refusal> {
    let hcm = record.hcm.clone();
    let conn = record.conn.clone();
    check_upgrade(&hcm, upgrade.as_ref(), &record.head)?;
    record.canonical = Some(canonicalize(&conn, &hcm.config, &mut record.head)?);
    let table = hcm.table();
    if hcm.config.forwarding.use_remote_address
        && let Some(table) = &table
    {
        for name in table.internal_headers() {
            record.head.headers.remove(name);
        }
    }
    let body = match filters::run(record, table.as_deref(), body).await? {
        Filtered::Pass(body) => body,
        Filtered::Answer(answer) => return Ok(answer),
    };
    let table = table.ok_or_else(Refusal::no_route)?;
    route(record, &table, body, upgrade).await
}

/// Only what the listener admits may leave HTTP; everything else that asks is refused before it can smuggle.
fn check_upgrade(hcm: &HcmState, upgrade: Option<&Upgrade>, head: &Parts) -> Result<(), Refusal> {
    let Some(upgrade) = upgrade else { return Ok(()) };
    if hcm.config.allows_upgrade(&upgrade.protocol) {
        return Ok(());
    }
    // `h2c` is offered by some clients with every request and need not be taken up.
    if upgrade.protocol == "h2c" || upgrade.protocol.starts_with("h2c,") {
        return Ok(());
    }
    let (status, reason) = match head.method {
        Method::CONNECT => (StatusCode::METHOD_NOT_ALLOWED, refusal::METHOD_NOT_ALLOWED),
        _ => (StatusCode::FORBIDDEN, refusal::UPGRADE_NOT_ALLOWED),
    };
    Err(Refusal::new(status, reason, ResponseFlags::DPE))
}

async fn route(
    record: &mut Record,
    table: &RouteTable,
    body: Body,
    upgrade: Option<Upgrade>,
) -> Result<Answer, Refusal> {
    let canonical = record.canonical.take().ok_or_else(Refusal::no_route)?;
    let picked = table.pick(&record.request(&canonical), record.dice);
    record.canonical = Some(canonical);
    let selection = match picked {
        Ok(selection) => selection,
        Err(NoRoute::TlsRequired) => return Ok(to_https(record)),
        Err(other) => return Err(Refusal::no_route().with(other.reason())),
    };
    record.route = Some(selection.route.name.clone());
    record.virtual_host = Some(selection.host.name.clone());
    match &selection.route.action {
        Action::Forward(forward) => forward::run(record, &selection, forward, body, upgrade).await,
        Action::Redirect(redirect) => redirected(record, &selection, redirect),
        Action::Direct(direct) => Ok(direct_response(record, &selection, direct)),
        Action::NonForwarding => Err(Refusal::no_route()),
    }
}

/// Sends the client to the same place over TLS.
fn to_https(record: &mut Record) -> Answer {
    let refusal = Refusal::new(StatusCode::MOVED_PERMANENTLY, refusal::TLS_REQUIRED, ResponseFlags::default());
    record.refused(&refusal);
    let mut reply = reply::empty(refusal.status);
    let canonical = record.canonical.as_ref();
    let location = canonical.map(|found| format!("https://{}{}", found.host.name(), found.path.as_str()));
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        reply.head.headers.insert(header::LOCATION, location);
    }
    reply.into()
}

fn redirected(record: &Record, selection: &Selection<'_>, redirect: &Redirect) -> Result<Answer, Refusal> {
    let canonical = record.canonical.as_ref().ok_or_else(Refusal::no_route)?;
    let location = redirect.location(&record.request(canonical), selection.route.matches());
    let mut reply = reply::empty(redirect.status);
    let location = HeaderValue::from_str(&location).map_err(|_| Refusal::malformed("PATH_NOT_CANONICAL"))?;
    reply.head.headers.insert(header::LOCATION, location);
    edit_response(record, selection, None, &mut reply);
    Ok(reply.into())
}

fn direct_response(record: &mut Record, selection: &Selection<'_>, direct: &Direct) -> Answer {
    // How Istio writes "this host is not in the registry".
    let outside = direct.status == StatusCode::BAD_GATEWAY && &*selection.host.name == "block_all";
    let mut reply = if outside {
        let refusal = Refusal::new(direct.status, refusal::HOST_NOT_IN_MESH, ResponseFlags::default());
        record.refused(&refusal);
        reply::refuse(&refusal, record.grpc, record.conn.worker.process.settings.reason_header)
    } else {
        let body: Bytes = direct.body.clone();
        reply::text(direct.status, body)
    };
    edit_response(record, selection, None, &mut reply);
    reply.into()
}

/// The route's own edits of a response.
pub(crate) fn edit_response(
    record: &Record,
    selection: &Selection<'_>,
    weighted: Option<&WeightedCluster>,
    reply: &mut Reply,
) {
    let mut prepared = PreparedEdits::default();
    let context = LogContext { response_headers: Some(&reply.head.headers), ..record.context() };
    for edits in selection.response_edits(weighted) {
        edits.prepare(&context, &mut prepared);
    }
    prepared.apply(&mut reply.head.headers);
}

/// Removes from an upstream's response what is between us and it only.
pub(crate) fn clean_response(head: &mut http::response::Parts) {
    if head.version < Version::HTTP_2 {
        strip_hop_by_hop(&mut head.headers);
    }
}

const SERVER_NAME: &str = "kasbah";
