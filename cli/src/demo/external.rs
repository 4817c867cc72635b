//! `external`: a service outside the mesh that tells who called, so that one sees whether the egress gateway did.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use runtime::serve::RemoteAddr;
use serde_json::json;

use super::http::{headers_json, json, protocol};

/// Answers every path and method alike.
pub(super) fn router() -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).fallback(describe)
}

async fn describe(Extension(remote): Extension<RemoteAddr>, request: Request) -> Response {
    let answer = json!({
        "service": "external",
        "peer": remote.0.to_string(),
        "path": request.uri().path(),
        "method": request.method().as_str(),
        "protocol": protocol(request.version()),
        "headers": headers_json(request.headers(), |_| true),
    });
    json(StatusCode::OK, &answer)
}
