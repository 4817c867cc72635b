//! The workload `test`: calls others through its sidecar and shows who saw whom.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use super::http::{json, not_found, peer_spiffe_id};
use super::outbound::{Answer, Outbound};

/// Everything on the HTTP port; `sidecar` is the sidecar's outbound address.
pub(super) fn router(sidecar: SocketAddr) -> Router {
    Router::new()
        .route("/test", get(helloworld))
        .route("/test/egress", get(|outbound, headers| external(outbound, headers, EGRESS)))
        .route("/test/egress-direct", get(|outbound, headers| external(outbound, headers, EGRESS_DIRECT)))
        .route("/test/egress-denied", get(|outbound, headers| external(outbound, headers, EGRESS_DENIED)))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(not_found)
        .with_state(Outbound::new(sidecar))
}

async fn helloworld(State(outbound): State<Outbound>, headers: HeaderMap) -> Response {
    let answer = outbound.get(HELLOWORLD, &headers).await;
    let mut callee = describe(&answer);
    callee["client_spiffe_id"] = answer.body.get("peer_spiffe_id").cloned().unwrap_or(Value::Null);
    callee["server_spiffe_id"] = answer.server_spiffe_id.clone().into();
    pass_on(&answer, &headers, "helloworld", &callee)
}

async fn external(State(outbound): State<Outbound>, headers: HeaderMap, url: &'static str) -> Response {
    let answer = outbound.get(url, &headers).await;
    let mut callee = describe(&answer);
    callee["url"] = url.into();
    pass_on(&answer, &headers, "external", &callee)
}

fn describe(answer: &Answer) -> Value {
    let mut callee = json!({ "status": answer.status.as_u16(), "body": answer.body });
    if let Some(reason) = answer.reason() {
        callee["reason"] = reason.into();
    }
    callee
}

/// The callee's status and reason are ours, too: who asked us can see what went wrong behind us.
fn pass_on(answer: &Answer, headers: &HeaderMap, name: &str, callee: &Value) -> Response {
    let mut document = json!({ "workload": "test", "caller": { "peer_spiffe_id": peer_spiffe_id(headers) } });
    document[name] = callee.clone();
    if let Some(reason) = answer.reason() {
        document["reason"] = reason.into();
    }
    let mut response = json(answer.status, &document);
    if let Some(reason) = &answer.reason {
        response.headers_mut().insert("x-kasbah-reason", reason.clone());
    }
    response
}

const HELLOWORLD: &str = "http://helloworld.default.svc.cluster.local:9095/helloworld/whoami";
const EGRESS: &str = "http://external.example.com:9095/";
const EGRESS_DIRECT: &str = "http://external.example.com:9095/direct";
const EGRESS_DENIED: &str = "http://not-in-mesh.example.org/";
