//! A small ACME server, a stand-in for a real one: it verifies the signature, address and nonce of each request, calls for the proof,
//! and signs with openssl. It knows one order at a time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use identity::digest::{hex, random, sha256};
use identity::jwk::JwkSet;
use runtime::shutdown::Shutdown;
use serde_json::{Value, json};

/// What the server does otherwise than it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Well,
    /// Too many orders.
    Busy,
    /// The certificate is for another domain.
    WrongDomain,
    /// It offers no proof over HTTP.
    DnsOnly,
    /// The account is not known any more.
    Forgetful,
}

pub(super) struct StandIn {
    addr: SocketAddr,
    /// Where the proof is fetched.
    pub(super) proof_at: Mutex<Option<SocketAddr>>,
    pub(super) mood: Mutex<Mood>,
    inner: Mutex<Inner>,
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct Inner {
    nonces: BTreeSet<String>,
    /// The public keys of accounts; their place is the account's number.
    accounts: Vec<Value>,
    contacts: Vec<Value>,
    order: Order,
    orders: usize,
}

#[derive(Default)]
struct Order {
    domain: String,
    token: String,
    status: &'static str,
    problem: Option<Value>,
    chain: String,
}

/// Kind and words of a refusal.
type Refused = (&'static str, &'static str);

impl StandIn {
    pub(super) async fn start(shutdown: &Shutdown) -> Arc<Self> {
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let server =
            Arc::new(Self { addr, proof_at: Mutex::default(), mood: Mutex::default(), inner: Mutex::default(), dir });
        server.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "365",
            "-subj",
            "/CN=stand-in",
        ]);
        let router = Router::new()
            .route("/dir", get(directory))
            .route("/nonce", get(nonce).head(nonce))
            .route("/acme/{what}", post(serve))
            .route("/acme/{what}/{number}", post(serve_one))
            .with_state(server.clone());
        tokio::spawn(runtime::serve::tcp(listener, router, runtime::serve::Limits::default(), shutdown.clone()));
        server
    }

    pub(super) fn directory_url(&self) -> String {
        format!("http://{}/dir", self.addr)
    }

    pub(super) fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// How many accounts there are, and how many orders were made.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock().unwrap();
        (inner.accounts.len(), inner.orders)
    }

    pub(super) fn contacts(&self) -> Vec<Value> {
        self.inner.lock().unwrap().contacts.clone()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn new_nonce(&self) -> String {
        let nonce = URL_SAFE_NO_PAD.encode(random::<16>());
        self.inner.lock().unwrap().nonces.insert(nonce.clone());
        nonce
    }

    fn answer(&self, status: StatusCode, location: Option<String>, body: String) -> Response {
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert("replay-nonce", self.new_nonce().parse().unwrap());
        if let Some(location) = location {
            headers.insert("location", self.url(&location).parse().unwrap());
        }
        response
    }

    fn problem(&self, (kind, detail): Refused) -> Response {
        let body = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": 400});
        self.answer(StatusCode::BAD_REQUEST, None, body.to_string())
    }

    /// The payload of a request to `path`, whose signature, nonce and address are right, and the account that it is from.
    fn opened(&self, path: &str, body: &[u8]) -> Result<(Value, Option<usize>), Refused> {
        let malformed = || ("malformed", "no request");
        let jws: Value = serde_json::from_slice(body).map_err(|_| malformed())?;
        let part = |name: &str| jws[name].as_str().unwrap_or_default().to_owned();
        let header = URL_SAFE_NO_PAD.decode(part("protected")).map_err(|_| malformed())?;
        let header: Value = serde_json::from_slice(&header).map_err(|_| malformed())?;
        assert_eq!(header["url"], self.url(path));
        if !self.inner.lock().unwrap().nonces.remove(header["nonce"].as_str().unwrap_or_default()) {
            return Err(("badNonce", "used"));
        }
        let account = header["kid"].as_str().and_then(|kid| kid.rsplit('/').next()?.parse::<usize>().ok());
        let key = match account {
            Some(number) => self.inner.lock().unwrap().accounts.get(number).cloned(),
            None => Some(header["jwk"].clone()),
        };
        let forgetful = *self.mood.lock().unwrap() == Mood::Forgetful;
        let Some(key) = key.filter(|_| account.is_none() || !forgetful) else {
            return Err(("accountDoesNotExist", "no such account"));
        };
        let compact = format!("{}.{}.{}", part("protected"), part("payload"), part("signature"));
        let keys = JwkSet::parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
        let payload = identity::jwt::verify_signature(&compact, &keys).expect("a signature of the account's key");
        let payload = if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap() };
        if account.is_none() {
            self.inner.lock().unwrap().order.token.clear();
            return Ok((json!({"payload": payload, "jwk": header["jwk"]}), None));
        }
        Ok((payload, account))
    }

    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(self.dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{args:?}");
    }

    fn order_body(&self) -> String {
        let inner = self.inner.lock().unwrap();
        let mut body = json!({
            "status": inner.order.status,
            "identifiers": [{"type": "dns", "value": inner.order.domain}],
            "authorizations": [self.url("/acme/authz/1")],
            "finalize": self.url("/acme/finalize/1"),
        });
        if inner.order.status == "valid" {
            body["certificate"] = self.url("/acme/cert/1").into();
        }
        body.to_string()
    }

    fn challenge(&self) -> Value {
        let inner = self.inner.lock().unwrap();
        let status = match inner.order.status {
            "pending" => "pending",
            "invalid" => "invalid",
            _ => "valid",
        };
        let kind = if *self.mood.lock().unwrap() == Mood::DnsOnly { "dns-01" } else { "http-01" };
        let mut challenge =
            json!({"type": kind, "url": self.url("/acme/challenge/1"), "token": inner.order.token, "status": status});
        if let Some(problem) = &inner.order.problem {
            challenge["error"] = problem.clone();
        }
        challenge
    }

    fn sign(&self, csr: &str) {
        std::fs::write(self.dir.path().join("csr.der"), URL_SAFE_NO_PAD.decode(csr).unwrap()).unwrap();
        let sign = [
            "x509",
            "-req",
            "-inform",
            "DER",
            "-in",
            "csr.der",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "90",
            "-out",
            "leaf.pem",
        ];
        if *self.mood.lock().unwrap() == Mood::WrongDomain {
            std::fs::write(self.dir.path().join("ext"), "subjectAltName=DNS:other.example.org\n").unwrap();
            self.openssl(&[&sign[..], &["-extfile", "ext"]].concat());
        } else {
            self.openssl(&[&sign[..], &["-copy_extensions", "copy"]].concat());
        }
        let chain = std::fs::read_to_string(self.dir.path().join("leaf.pem")).unwrap();
        self.inner.lock().unwrap().order.chain = chain;
    }
}

/// SHA-256 of a key in its canonical form (RFC 7638).
fn thumbprint(jwk: &Value) -> String {
    let canonical = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
    URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()))
}

async fn directory(State(server): State<Arc<StandIn>>) -> Response {
    let urls = json!({
        "newNonce": server.url("/nonce"),
        "newAccount": server.url("/acme/account"),
        "newOrder": server.url("/acme/order"),
        "revokeCert": server.url("/acme/revoke"),
        "keyChange": server.url("/acme/key"),
        "meta": {"termsOfService": "https://acme.example/terms"},
    });
    axum::Json(urls).into_response()
}

async fn nonce(State(server): State<Arc<StandIn>>) -> Response {
    server.answer(StatusCode::OK, None, String::new())
}

async fn serve(State(server): State<Arc<StandIn>>, UrlPath(what): UrlPath<String>, body: Bytes) -> Response {
    let answered = match what.as_str() {
        "account" => account(&server, &body),
        "order" => order(&server, &body),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    answered.unwrap_or_else(|refused| server.problem(refused))
}

fn account(server: &StandIn, body: &[u8]) -> Result<Response, Refused> {
    let (asked, _) = server.opened("/acme/account", body)?;
    assert_eq!(asked["payload"]["termsOfServiceAgreed"], true);
    let mut inner = server.inner.lock().unwrap();
    inner.accounts.push(asked["jwk"].clone());
    inner.contacts.push(asked["payload"]["contact"].clone());
    let location = format!("/acme/account/{}", inner.accounts.len() - 1);
    drop(inner);
    Ok(server.answer(StatusCode::CREATED, Some(location), json!({"status": "valid"}).to_string()))
}

fn order(server: &StandIn, body: &[u8]) -> Result<Response, Refused> {
    let (asked, _) = server.opened("/acme/order", body)?;
    if *server.mood.lock().unwrap() == Mood::Busy {
        return Err(("rateLimited", "too many certificates for this domain"));
    }
    let domain = asked["identifiers"][0]["value"].as_str().unwrap().to_owned();
    let mut inner = server.inner.lock().unwrap();
    inner.orders += 1;
    inner.order = Order { domain, token: hex(&random::<16>()), status: "pending", ..Order::default() };
    drop(inner);
    Ok(server.answer(StatusCode::CREATED, Some("/acme/order/1".into()), server.order_body()))
}

async fn serve_one(
    State(server): State<Arc<StandIn>>,
    UrlPath((what, number)): UrlPath<(String, String)>,
    body: Bytes,
) -> Response {
    let (asked, account) = match server.opened(&format!("/acme/{what}/{number}"), &body) {
        Ok(opened) => opened,
        Err(refused) => return server.problem(refused),
    };
    let body = match what.as_str() {
        "order" => server.order_body(),
        "authz" => {
            let (challenge, domain) = (server.challenge(), server.inner.lock().unwrap().order.domain.clone());
            json!({"status": challenge["status"], "identifier": {"type": "dns", "value": domain}, "challenges": [challenge]})
                .to_string()
        }
        "challenge" => {
            // As real servers do: the answer comes before the proof is looked at.
            let answer = server.challenge().to_string();
            tokio::spawn(prove(server.clone(), account.unwrap()));
            answer
        }
        "finalize" => {
            let csr = asked["csr"].as_str().unwrap().to_owned();
            let signer = server.clone();
            tokio::task::spawn_blocking(move || signer.sign(&csr)).await.unwrap();
            server.inner.lock().unwrap().order.status = "valid";
            server.order_body()
        }
        "cert" => server.inner.lock().unwrap().order.chain.clone(),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    server.answer(StatusCode::OK, None, body)
}

/// Calls for the proof, as a real server calls port 80 of the domain.
async fn prove(server: Arc<StandIn>, account: usize) {
    let (token, key) = {
        let inner = server.inner.lock().unwrap();
        (inner.order.token.clone(), inner.accounts[account].clone())
    };
    let at = server.proof_at.lock().unwrap().unwrap();
    let url = format!("http://{at}/.well-known/acme-challenge/{token}");
    let found = runtime::fetch::Fetch { url: &url, tls: None, bearer: None, bytes_max: 1 << 10 }.get().await;
    let found = found.map(|text| String::from_utf8_lossy(&text).into_owned());
    let mut inner = server.inner.lock().unwrap();
    if found.as_ref().is_ok_and(|found| *found == format!("{token}.{}", thumbprint(&key))) {
        inner.order.status = "ready";
    } else {
        inner.order.status = "invalid";
        let detail = format!("wrong answer at {url}");
        inner.order.problem =
            Some(json!({"type": "urn:ietf:params:acme:error:unauthorized", "detail": detail, "status": 403}));
    }
}
