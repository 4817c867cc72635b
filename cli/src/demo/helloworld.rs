//! The workload `helloworld`: HTTP, WebSocket and gRPC on one port, so that every protocol of the mesh has a far end.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use proto::demo::helloworld::greeter_server::{Greeter, GreeterServer};
use proto::demo::helloworld::{HelloReply, HelloRequest};
use runtime::shutdown::Shutdown;
use serde_json::json;
use tonic::service::Routes;
use tonic::{Request as Call, Response as Reply, Status};

use super::http::{headers_json, json, not_found, peer_spiffe_id, protocol};
use super::websocket::{self, WebSockets};

/// Everything on the HTTP port. `instance` tells several of them apart.
pub(super) async fn router(instance: &str, shutdown: Shutdown) -> Router {
    let hello = format!("Hello from helloworld (instance {instance})\n");
    let limited = format!("Hello from helloworld, as long as the quota lasts (instance {instance})\n");
    let pages = Router::new()
        .route("/helloworld", get(|| async { hello }))
        .route("/helloworld/limited", get(|| async { limited }))
        .route("/helloworld/whoami", get(whoami))
        .route("/helloworld/ws", get(upgrade).with_state(WebSockets::new(shutdown)))
        .route("/healthz", get(|| async { "ok\n" }));
    grpc().await.into_axum_router().merge(pages).fallback(unknown)
}

async fn whoami(request: Request) -> Response {
    let headers = request.headers();
    let answer = json!({
        "workload": "helloworld",
        "peer_spiffe_id": peer_spiffe_id(headers),
        "protocol": protocol(request.version()),
        "headers": headers_json(headers, |name| HEADERS_SHOWN.contains(&name)),
    });
    json(StatusCode::OK, &answer)
}

async fn upgrade(State(sockets): State<WebSockets>, request: Request) -> Response {
    websocket::accept(&sockets, request)
}

/// gRPC clients expect their own form of "not found".
async fn unknown(headers: HeaderMap) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/grpc") {
        return Status::unimplemented("no such method").into_http::<axum::body::Body>().into_response();
    }
    not_found().await
}

async fn grpc() -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<GreeterServer<Hello>>().await;
    let routes = Routes::new(GreeterServer::new(Hello)).add_service(health_service);
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("helloworld.Greeter")
            .with_service_name("grpc.health.v1.Health")
    };
    match (described().build_v1(), described().build_v1alpha()) {
        (Ok(current), Ok(alpha)) => routes.add_service(current).add_service(alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "no gRPC reflection");
            routes
        }
    }
}

struct Hello;

#[tonic::async_trait]
impl Greeter for Hello {
    async fn say_hello(&self, call: Call<HelloRequest>) -> Result<Reply<HelloReply>, Status> {
        let name = call.into_inner().name;
        if name.len() > NAME_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a name has at most {NAME_BYTES_MAX} bytes")));
        }
        Ok(Reply::new(HelloReply { message: format!("Hello {name}") }))
    }
}

/// Bytes of the name to greet.
const NAME_BYTES_MAX: usize = 64 << 10;
/// What `whoami` repeats: enough to see what proxies added, nothing that belongs to the user alone.
const HEADERS_SHOWN: [&str; 14] = [
    "host",
    "user-agent",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-client-cert",
    "x-request-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-original-path",
    "traceparent",
    "tracestate",
];
