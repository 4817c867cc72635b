//! Asking an external authorization service (`envoy.service.auth.v3`) about a request.
//!
//! No answer is a refusal, unless the configuration says otherwise. The service sees the canonical request, the same
//! that is forwarded; what it may change about it is limited by the filter's rules.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HeaderValueOption, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request as RequestContext};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use routing::filters::{ExtAuthz, ExtAuthzOverride, MutationRules};
use routing::format::ResponseFlags;
use routing::request::Request;

use super::{RpcError, call};
use crate::http::record::Record;
use crate::http::reply::{self, Reply};
use crate::refusal::{self, Refusal};
use crate::worker::state::Worker;

/// What the service said.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Go on, with these changes.
    Allowed(Changes),
    /// This is the answer.
    Denied(Reply),
    /// Nothing usable; the filter fails closed.
    Refused(Refusal),
    /// Nothing usable; the filter fails open.
    Skipped,
}

/// Changes to the request and its response.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) remove: Vec<HeaderName>,
    /// Name, value, and whether others of the name stay.
    pub(crate) set: Vec<(HeaderName, HeaderValue, bool)>,
    pub(crate) response: Vec<(HeaderName, HeaderValue)>,
    pub(crate) metadata: Option<serde_json::Value>,
}

/// Asks the service. `body` is as much of the request's body as it is to see.
pub(crate) async fn check(
    worker: &Rc<Worker>,
    filter: &ExtAuthz,
    changed: Option<&ExtAuthzOverride>,
    question: CheckRequest,
) -> Verdict {
    let service = changed.and_then(|changed| changed.service.as_ref()).unwrap_or(&filter.service);
    let answer: Result<CheckResponse, RpcError> = call(worker, service, CHECK, &question, filter.timeout).await;
    match answer {
        Ok(answer) => read(filter, answer),
        Err(error) => {
            tracing::warn!(reason = refusal::EXT_AUTHZ_UNAVAILABLE, cluster = &*service.cluster, %error, open = filter.failure_mode_allow, "authorization service gave no answer");
            unavailable(filter)
        }
    }
}

fn unavailable(filter: &ExtAuthz) -> Verdict {
    if filter.failure_mode_allow {
        return Verdict::Skipped;
    }
    Verdict::Refused(Refusal::new(filter.status_on_error, refusal::EXT_AUTHZ_UNAVAILABLE, ResponseFlags::UAEX))
}

/// The question about a request.
pub(crate) fn question(
    record: &Record,
    request: &Request<'_>,
    filter: &ExtAuthz,
    changed: Option<&ExtAuthzOverride>,
    body: &Bytes,
) -> CheckRequest {
    let facts = &record.conn.facts;
    let principal = |peer: Option<String>| peer.unwrap_or_default();
    let own = record.conn.worker.process.identity.svid_now();
    let source = Peer {
        address: Some(address(SocketAddr::new(request.remote, facts.source.port()))),
        principal: principal(facts.peer.as_ref().map(|peer| peer.uri().to_owned())),
        ..Peer::default()
    };
    let destination = Peer {
        address: Some(address(facts.destination)),
        principal: principal(own.map(|svid| svid.id().to_string())),
        ..Peer::default()
    };
    let as_bytes = filter.body.as_ref().is_some_and(|limit| limit.as_bytes);
    let http = HttpRequest {
        id: request.header("x-request-id").unwrap_or_default().to_owned(),
        method: request.method.as_str().to_owned(),
        headers: told_headers(request, filter),
        path: request.path.as_str().to_owned(),
        host: request.host.authority().to_owned(),
        scheme: request.scheme.as_str().to_owned(),
        protocol: crate::http::record::protocol(record.head.version).to_owned(),
        size: i64::try_from(body.len()).unwrap_or(-1),
        body: if as_bytes { String::new() } else { String::from_utf8_lossy(body).into_owned() },
        raw_body: if as_bytes { body.to_vec() } else { Vec::new() },
        ..HttpRequest::default()
    };
    let extensions = changed.map(|changed| changed.context_extensions.clone()).unwrap_or_default();
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(RequestContext { time: Some(runtime_now()), http: Some(http) }),
            context_extensions: extensions.into_iter().collect(),
            ..AttributeContext::default()
        }),
    }
}

fn runtime_now() -> envoy_types::pb::google::protobuf::Timestamp {
    let since = runtime::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    envoy_types::pb::google::protobuf::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// The headers that the service may see; values of one name are joined, as the map has one per name.
fn told_headers(request: &Request<'_>, filter: &ExtAuthz) -> HashMap<String, String> {
    let mut told = HashMap::with_capacity(request.headers.len() + 4);
    for (name, value) in request.headers {
        if filter.tells(name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            told.entry(name.as_str().to_owned())
                .and_modify(|all: &mut String| {
                    all.push(',');
                    all.push_str(&value);
                })
                .or_insert_with(|| value.into_owned());
        }
    }
    told.insert(":authority".to_owned(), request.host.authority().to_owned());
    told.insert(":method".to_owned(), request.method.as_str().to_owned());
    told.insert(":path".to_owned(), request.path.as_str().to_owned());
    told.insert(":scheme".to_owned(), request.scheme.as_str().to_owned());
    told
}

pub(crate) fn address(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

fn read(filter: &ExtAuthz, answer: CheckResponse) -> Verdict {
    let allowed = answer.status.as_ref().is_none_or(|status| status.code == 0);
    match (allowed, answer.http_response) {
        (true, Some(HttpResponse::OkResponse(ok))) => {
            let mut changes = changes(&filter.mutations, ok);
            changes.metadata = answer.dynamic_metadata.map(|metadata| struct_to_json(&metadata));
            Verdict::Allowed(changes)
        }
        (true, None) => Verdict::Allowed(Changes::default()),
        // An answer that says yes and no at once is a no.
        (_, Some(HttpResponse::DeniedResponse(denied))) => Verdict::Denied(denied_reply(denied)),
        (false, _) => Verdict::Denied(reply::text(
            StatusCode::FORBIDDEN,
            Bytes::from_static(refusal::EXT_AUTHZ_DENIED.as_bytes()),
        )),
        (true, Some(HttpResponse::ErrorResponse(_))) => unavailable(filter),
    }
}

fn changes(rules: &MutationRules, ok: OkHttpResponse) -> Changes {
    let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| rules.permits(name));
    Changes {
        remove: ok.headers_to_remove.iter().filter_map(|text| name(text)).collect(),
        set: ok.headers.iter().filter_map(|option| option_of(option, rules)).collect(),
        response: ok
            .response_headers_to_add
            .iter()
            .filter_map(|option| {
                let header = option.header.as_ref()?;
                Some((HeaderName::from_bytes(header.key.as_bytes()).ok()?, value_of(header)?))
            })
            .collect(),
        metadata: None,
    }
}

fn option_of(option: &HeaderValueOption, rules: &MutationRules) -> Option<(HeaderName, HeaderValue, bool)> {
    let header = option.header.as_ref()?;
    let name = HeaderName::from_bytes(header.key.as_bytes()).ok().filter(|name| rules.permits(name))?;
    #[allow(deprecated, reason = "services in the field still answer in this form")]
    let append = option.append.as_ref().map_or(
        option.append_action == HeaderAppendAction::AppendIfExistsOrAdd as i32 && option.append_action != 0,
        |append| append.value,
    );
    Some((name, value_of(header)?, append))
}

fn value_of(header: &envoy_types::pb::envoy::config::core::v3::HeaderValue) -> Option<HeaderValue> {
    let bytes = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    HeaderValue::from_bytes(bytes).ok()
}

fn denied_reply(denied: DeniedHttpResponse) -> Reply {
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.and_then(|code| StatusCode::from_u16(code).ok()).filter(|status| *status != StatusCode::OK);
    let mut reply = reply::text(status.unwrap_or(StatusCode::FORBIDDEN), denied.body.into());
    let headers: &mut HeaderMap = &mut reply.head.headers;
    for option in &denied.headers {
        let Some(header) = &option.header else { continue };
        let name = HeaderName::from_bytes(header.key.as_bytes()).ok();
        if let (Some(name), Some(value)) = (name, value_of(header)) {
            // The length and framing of the answer are ours.
            if name != http::header::CONTENT_LENGTH
                && name != http::header::TRANSFER_ENCODING
                && name != http::header::CONNECTION
            {
                headers.insert(name, value);
            }
        }
    }
    reply
}

/// A protobuf struct as JSON.
pub(crate) fn struct_to_json(value: &envoy_types::pb::google::protobuf::Struct) -> serde_json::Value {
    value.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value, 0))).collect()
}

fn value_to_json(value: &envoy_types::pb::google::protobuf::Value, depth: u32) -> serde_json::Value {
    use envoy_types::pb::google::protobuf::value::Kind;
    match &value.kind {
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => {
            serde_json::Number::from_f64(*value).map_or(serde_json::Value::Null, Into::into)
        }
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::ListValue(list)) if depth < DEPTH_MAX => {
            list.values.iter().map(|value| value_to_json(value, depth + 1)).collect()
        }
        Some(Kind::StructValue(object)) if depth < DEPTH_MAX => {
            object.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value, depth + 1))).collect()
        }
        _ => serde_json::Value::Null,
    }
}

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The deepest metadata that is taken over.
const DEPTH_MAX: u32 = 16;
