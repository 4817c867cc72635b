//! What others fetch over HTTP: OIDC discovery with the keys of JWT-SVIDs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::certifier::Certifier;

/// `GET /.well-known/openid-configuration` and `GET /keys`. `issuer` is what the document says.
pub(crate) fn oidc(certifier: Arc<Certifier>, issuer: &str) -> Router {
    let document = Arc::new(discovery(issuer));
    Router::new()
        .route("/.well-known/openid-configuration", get(|| async move { Json(Value::clone(&document)) }))
        .route("/keys", get(keys))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(|| async { "ready\n" }))
        .with_state(certifier)
}

async fn keys(State(certifier): State<Arc<Certifier>>) -> Response {
    let keys = certifier.authorities.current().bundle.jwks();
    ([(CACHE_CONTROL, KEYS_CACHE)], Json(keys)).into_response()
}

fn discovery(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{}/keys", issuer.trim_end_matches('/')),
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// A new key is published long before it signs, so that a minute of caching does no harm.
const KEYS_CACHE: &str = "public, max-age=60";
