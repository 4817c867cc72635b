//! The admin address of a process: health, metrics, what it runs with, and its log filter.
//!
//! It is meant for the machine itself and answers no secrets. What changes the process (`POST /logging`) is refused
//! to browsers: a page of a foreign origin, or one that re-bound its name to this address, must not reach it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::listen::{self, ListenError};
use crate::logs::LogControl;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::readiness::Readiness;
use crate::serve::{self, Limits};
use crate::shutdown::Shutdown;

/// Renders a page when it is asked for.
pub type Page = Arc<dyn Fn() -> Value + Send + Sync>;

/// What the admin address shows.
pub struct AdminParts {
    role: &'static str,
    readiness: Readiness,
    metrics: Metrics,
    logs: LogControl,
    config_dump: Page,
    certs: Page,
    status: Page,
    routes: Router,
}

/// An opened admin address.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    router: Router,
}

impl AdminParts {
    /// Health, metrics and logging; the other pages are empty until set.
    pub fn new(role: &'static str, readiness: Readiness, metrics: Metrics, logs: LogControl) -> Self {
        let empty: Page = Arc::new(|| json!({}));
        let (config_dump, certs, status) = (empty.clone(), empty.clone(), empty);
        Self { role, readiness, metrics, logs, config_dump, certs, status, routes: Router::new() }
    }

    /// What `/config_dump` answers.
    #[must_use]
    pub fn config_dump(mut self, page: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.config_dump = Arc::new(page);
        self
    }

    /// What `/certs` answers.
    #[must_use]
    pub fn certs(mut self, page: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.certs = Arc::new(page);
        self
    }

    /// The role's own members of `/status`: an object.
    #[must_use]
    pub fn status(mut self, page: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.status = Arc::new(page);
        self
    }

    /// The role's own paths.
    #[must_use]
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes = routes;
        self
    }

    /// A further page of the role's own.
    #[must_use]
    pub fn page(mut self, path: &'static str, page: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        let page: Page = Arc::new(page);
        self.routes = std::mem::take(&mut self.routes).route(path, get(|| async move { Json(page()) }));
        self
    }

    /// The whole router, for tests and for serving elsewhere.
    pub fn into_router(mut self) -> Router {
        let own = std::mem::take(&mut self.routes);
        Router::new()
            .route("/healthz/live", get(|| async { "live\n" }))
            .route("/healthz/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/config_dump", get(|State(parts): State<Arc<Self>>| async move { Json((parts.config_dump)()) }))
            .route("/certs", get(|State(parts): State<Arc<Self>>| async move { Json((parts.certs)()) }))
            .route("/status", get(status))
            .route("/logging", get(logging).merge(post(set_logging)))
            .with_state(Arc::new(self))
            .merge(own)
            .layer(axum::middleware::from_fn(refuse_browsers))
    }
}

impl fmt::Debug for AdminParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminParts").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Admin {
    /// Opens `addr`.
    ///
    /// # Errors
    /// When the address cannot be opened.
    pub fn build(addr: SocketAddr, parts: AdminParts) -> Result<Self, ListenError> {
        Ok(Self::on(listen::tcp(addr)?, parts))
    }

    /// Takes an address that is open already.
    pub fn on(listener: TcpListener, parts: AdminParts) -> Self {
        Self { listener, router: parts.into_router() }
    }

    /// The address it serves on.
    ///
    /// # Errors
    /// When the system does not know the socket any more.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: Shutdown) {
        let limits = Limits { connections_max: CONNECTIONS_MAX, ..Limits::default() };
        serve::tcp(self.listener, self.router, limits, shutdown).await;
    }
}

async fn ready(State(parts): State<Arc<AdminParts>>) -> Response {
    let blocked_by = parts.readiness.blocked_by();
    if blocked_by.is_empty() {
        let notes = parts.readiness.notes().into_iter().map(|note| format!("note: {note}\n"));
        format!("ready\n{}", notes.collect::<String>()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(blocked_by)).into_response()
    }
}

async fn metrics(State(parts): State<Arc<AdminParts>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], parts.metrics.encode()).into_response()
}

async fn status(State(parts): State<Arc<AdminParts>>) -> Json<Value> {
    let blocked_by = parts.readiness.blocked_by();
    let mut answer = Map::new();
    answer.insert("role".into(), parts.role.into());
    answer.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    answer.insert("pid".into(), std::process::id().into());
    answer.insert("ready".into(), blocked_by.is_empty().into());
    answer.insert("blocked_by".into(), blocked_by.into());
    answer.insert("notes".into(), parts.readiness.notes().into());
    answer.insert("memory_bytes".into(), crate::process::resident_bytes().into());
    if let Value::Object(own) = (parts.status)() {
        answer.extend(own);
    }
    Json(Value::Object(answer))
}

async fn logging(State(parts): State<Arc<AdminParts>>) -> Json<Value> {
    Json(json!({ "filter": parts.logs.current() }))
}

#[derive(Deserialize)]
struct NewFilter {
    level: String,
}

async fn set_logging(State(parts): State<Arc<AdminParts>>, Query(new): Query<NewFilter>) -> Response {
    match parts.logs.set(&new.level) {
        Ok(()) => Json(json!({ "filter": parts.logs.current() })).into_response(),
        Err(error) => {
            let body = json!({ "reason": error.reason(), "error": error.to_string() });
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
    }
}

/// Requests that change something must not come from a web page: no `Origin`, and a `Host` that is no DNS name.
async fn refuse_browsers(request: Request, next: Next) -> Response {
    if request.method().is_safe() || from_no_browser(request.headers()) {
        return next.run(request).await;
    }
    let body = json!({ "reason": "ADMIN_FOREIGN_ORIGIN", "error": "admin changes are refused to web pages" });
    (StatusCode::FORBIDDEN, Json(body)).into_response()
}

fn from_no_browser(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let name = if host.parse::<SocketAddr>().is_ok() {
        "localhost"
    } else {
        host.rsplit_once(':').map_or(host, |(name, _)| name)
    };
    let local = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    local && !headers.contains_key(header::ORIGIN)
}

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::util::ServiceExt;

    use super::*;

    struct Answer {
        status: StatusCode,
        body: String,
    }

    async fn ask(parts: AdminParts, request: http::request::Builder) -> Answer {
        let response = parts.into_router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    fn parts(readiness: &Readiness) -> AdminParts {
        AdminParts::new("agent", readiness.clone(), Metrics::new(), LogControl::detached())
    }

    #[tokio::test]
    async fn readiness_says_what_blocks() {
        let readiness = Readiness::new();
        let guard = readiness.block("own SVID");
        let answer = ask(parts(&readiness), http::Request::get("/healthz/ready")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "[\"own SVID\"]"));
        drop(guard);
        assert_eq!(ask(parts(&readiness), http::Request::get("/healthz/ready")).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn status_carries_the_members_of_the_role() {
        let with = parts(&Readiness::new()).status(|| json!({ "entries": 3 }));
        let answer: Value = serde_json::from_str(&ask(with, http::Request::get("/status")).await.body).unwrap();
        assert_eq!((&answer["role"], &answer["ready"], &answer["entries"]), (&json!("agent"), &json!(true), &json!(3)));
    }

    #[tokio::test]
    async fn the_log_filter_is_changed_by_programs_and_not_by_web_pages() {
        let readiness = Readiness::new();
        let post = || http::Request::post("/logging?level=debug");
        assert_eq!(ask(parts(&readiness), post().header("host", "127.0.0.1:15000")).await.status, StatusCode::OK);
        assert_eq!(ask(parts(&readiness), post().header("host", "[::1]:15000")).await.status, StatusCode::OK);
        for (name, value) in [("origin", "http://evil.example"), ("host", "rebound.example:15000")] {
            assert_eq!(ask(parts(&readiness), post().header(name, value)).await.status, StatusCode::FORBIDDEN);
        }
        let bad = ask(parts(&readiness), http::Request::post("/logging?level=%3D%3D")).await;
        assert!(bad.status == StatusCode::BAD_REQUEST && bad.body.contains("LOG_FILTER_BAD"), "{}", bad.body);
    }
}
