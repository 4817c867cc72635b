//! The workloads, each on ports of its own.

use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use proto::demo::helloworld::HelloRequest;
use proto::demo::helloworld::greeter_client::GreeterClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// A running workload; ends with the test.
struct Running {
    http: SocketAddr,
    tcp: Option<SocketAddr>,
    _tasks: TaskSet,
}

async fn start(kind: ServeKind, outbound: Option<SocketAddr>) -> Running {
    let args = ServeArgs { kind, address: Ipv4Addr::LOCALHOST.into(), port: 0, tcp_port: 0, outbound };
    let workload = Workload::build(&args).await.unwrap();
    let (http, tcp) = (workload.http_addr(), matches!(kind, ServeKind::Helloworld).then(|| workload.tcp_addr()));
    let mut tasks = TaskSet::new();
    tasks.spawn("workload", workload.run(Shutdown::new()));
    Running { http, tcp, _tasks: tasks }
}

/// One HTTP/1.1 exchange: status line and headers, then the body.
async fn get(addr: SocketAddr, path: &str, headers: &[&str]) -> (String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let extra: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{extra}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn get_json(addr: SocketAddr, path: &str, headers: &[&str]) -> (String, Value) {
    let (head, body) = get(addr, path, headers).await;
    (head, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn helloworld_greets_and_says_which_instance_it_is() {
    let hello = start(ServeKind::Helloworld, None).await;
    for path in ["/helloworld", "/helloworld/limited", "/helloworld?x=1"] {
        let (head, body) = get(hello.http, path, &[]).await;
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("Hello from helloworld"), "{path}: {head} {body}");
        assert!(body.contains(&format!("(instance {})", hello.http)), "{body}");
    }
    assert!(get(hello.http, "/healthz", &[]).await.0.starts_with("HTTP/1.1 200"));
    assert!(get(hello.http, "/nowhere", &[]).await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn helloworld_repeats_whom_its_sidecar_saw() {
    let hello = start(ServeKind::Helloworld, None).await;
    let headers =
        ["x-forwarded-client-cert: By=spiffe://a/h;Hash=0;URI=spiffe://a/t", "cookie: secret", "x-request-id: 7"];
    let (_, answer) = get_json(hello.http, "/helloworld/whoami", &headers).await;
    assert_eq!((&answer["workload"], &answer["peer_spiffe_id"]), (&json!("helloworld"), &json!("spiffe://a/t")));
    assert_eq!((&answer["protocol"], &answer["headers"]["x-request-id"]), (&json!("HTTP/1.1"), &json!("7")));
    assert!(answer["headers"].get("cookie").is_none());
}

#[tokio::test]
async fn helloworld_echoes_text_and_binary_over_websocket() {
    let hello = start(ServeKind::Helloworld, None).await;
    let url = format!("ws://{}/helloworld/ws", hello.http);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    for message in [Message::text("héllo"), Message::binary(vec![0_u8, 255, 7]), Message::text("x".repeat(200_000))] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("p".into()));
    socket.close(None).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_))) | None));
    assert!(get(hello.http, "/helloworld/ws", &[]).await.0.starts_with("HTTP/1.1 426"));
}

#[tokio::test]
async fn helloworld_answers_grpc_with_health_and_reflection_on_the_same_port() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

    let hello = start(ServeKind::Helloworld, None).await;
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{}", hello.http)).unwrap().connect().await.unwrap();
    let reply = GreeterClient::new(channel.clone()).say_hello(HelloRequest { name: "mesh".into() }).await.unwrap();
    assert_eq!(reply.into_inner().message, "Hello mesh");

    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let status = health.check(HealthCheckRequest { service: "helloworld.Greeter".into() }).await.unwrap().into_inner();
    assert_eq!(status.status(), ServingStatus::Serving);

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"helloworld.Greeter") && !names.iter().any(|name| name.starts_with("spire.")), "{names:?}");
}

#[tokio::test]
async fn helloworld_speaks_http2_without_tls() {
    let hello = start(ServeKind::Helloworld, None).await;
    let stream = TcpStream::connect(hello.http).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let mut tasks = TaskSet::new();
    tasks.spawn("client", async move { _ = connection.await });
    let request = axum::http::Request::get("http://h/helloworld/whoami").body(axum::body::Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["protocol"], json!("HTTP/2"));
}

#[tokio::test]
async fn the_tcp_port_echoes_and_follows_a_half_close() {
    let hello = start(ServeKind::Helloworld, None).await;
    let mut stream = TcpStream::connect(hello.tcp.unwrap()).await.unwrap();
    stream.write_all(b"bytes\0\xff").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"bytes\0\xff");
}

#[tokio::test]
async fn external_tells_who_called() {
    let external = start(ServeKind::External, None).await;
    let (_, answer) = get_json(external.http, "/any/path?q=1", &["authorization: Bearer x", "x-a: 1"]).await;
    assert_eq!(
        (&answer["service"], &answer["path"], &answer["method"]),
        (&json!("external"), &json!("/any/path"), &json!("GET"))
    );
    assert!(answer["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!((&answer["headers"]["authorization"], &answer["headers"]["x-a"]), (&json!("(hidden)"), &json!("1")));
}

/// Stands for the sidecar: sends `helloworld` to the real one, refuses the unknown host, remembers the hosts.
async fn sidecar(hello: SocketAddr, external: SocketAddr) -> (SocketAddr, TaskSet) {
    let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let relay = move |request: axum::extract::Request| async move {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
        let path = request.uri().path().to_owned();
        let (target, identity) = match host.as_str() {
            "helloworld.default.svc.cluster.local:9095" => (hello, "spiffe://a/helloworld"),
            "external.example.com:9095" => (external, "-"),
            _ => {
                return (
                    axum::http::StatusCode::BAD_GATEWAY,
                    [("x-kasbah-reason", "HOST_NOT_IN_MESH")],
                    "not in mesh\n".to_owned(),
                );
            }
        };
        let (_, body) = get(target, &path, &["x-forwarded-client-cert: URI=spiffe://a/test"]).await;
        (axum::http::StatusCode::OK, [("x-peer-spiffe-id", identity)], body)
    };
    let mut tasks = TaskSet::new();
    tasks.spawn("sidecar", runtime::serve::tcp(listener, Router::new().fallback(relay), LIMITS, Shutdown::new()));
    (addr, tasks)
}

#[tokio::test]
async fn test_calls_through_its_sidecar_and_shows_both_identities() {
    let (hello, external) = (start(ServeKind::Helloworld, None).await, start(ServeKind::External, None).await);
    let (sidecar, _tasks) = sidecar(hello.http, external.http).await;
    let test = start(ServeKind::Test, Some(sidecar)).await;

    let (head, answer) = get_json(test.http, "/test", &["x-forwarded-client-cert: URI=spiffe://a/gateway"]).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(
        (&answer["workload"], &answer["caller"]["peer_spiffe_id"]),
        (&json!("test"), &json!("spiffe://a/gateway"))
    );
    let callee = &answer["helloworld"];
    assert_eq!((&callee["status"], &callee["body"]["workload"]), (&json!(200), &json!("helloworld")));
    assert_eq!(
        (&callee["client_spiffe_id"], &callee["server_spiffe_id"]),
        (&json!("spiffe://a/test"), &json!("spiffe://a/helloworld"))
    );

    let (_, egress) = get_json(test.http, "/test/egress", &[]).await;
    assert_eq!((&egress["external"]["status"], &egress["external"]["body"]["path"]), (&json!(200), &json!("/")));
    let (_, direct) = get_json(test.http, "/test/egress-direct", &[]).await;
    assert_eq!(direct["external"]["body"]["path"], json!("/direct"));
}

#[tokio::test]
async fn test_passes_a_refusal_of_its_sidecar_on_with_the_reason() {
    let hello = start(ServeKind::Helloworld, None).await;
    let (sidecar, _tasks) = sidecar(hello.http, hello.http).await;
    let test = start(ServeKind::Test, Some(sidecar)).await;
    let (head, answer) = get_json(test.http, "/test/egress-denied", &[]).await;
    assert!(head.starts_with("HTTP/1.1 502") && head.contains("x-kasbah-reason: HOST_NOT_IN_MESH"), "{head}");
    assert_eq!((&answer["reason"], &answer["external"]["body"]), (&json!("HOST_NOT_IN_MESH"), &json!("not in mesh")));
}

#[tokio::test]
async fn a_sidecar_that_is_away_is_told_as_such() {
    let gone = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = gone.local_addr().unwrap();
    drop(gone);
    let test = start(ServeKind::Test, Some(addr)).await;
    let (head, answer) = get_json(test.http, "/test", &[]).await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(answer["reason"], json!("SIDECAR_UNREACHABLE"));
}

#[tokio::test]
async fn a_workload_ends_when_asked() {
    let args = ServeArgs {
        kind: ServeKind::Helloworld,
        address: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        tcp_port: 0,
        outbound: None,
    };
    let workload = Workload::build(&args).await.unwrap();
    let shutdown = Shutdown::new();
    shutdown.trigger();
    workload.run(shutdown).await;
}
