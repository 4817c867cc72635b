//! `http_challenge`: hosts of this machine, and the traps a host can set.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Serves one HTTP answer made of the challenge; what it was asked for is kept.
struct Host {
    port: u16,
    nonce: Arc<Mutex<String>>,
    asked: Arc<Mutex<String>>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

impl Host {
    async fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (nonce, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(String::new())));
        let (told, seen) = (nonce.clone(), asked.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                *seen.lock().unwrap() = String::from_utf8_lossy(&head[..read]).into_owned();
                let answer = answer(&told.lock().unwrap());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { port, nonce, asked, _serving: tokio_util::task::AbortOnDropHandle::new(serving) }
    }

    async fn attest(&self, settings: &str) -> Result<Attested, &'static str> {
        self.attest_as(settings, &json!({"hostname": "localhost", "agentname": "default", "port": self.port})).await
    }

    async fn attest_as(&self, settings: &str, payload: &Value) -> Result<Attested, &'static str> {
        let attestors = build(settings);
        let nonce = self.nonce.clone();
        let mut node = Answering(move |challenge: Vec<u8>| {
            let challenge: Value = serde_json::from_slice(&challenge).unwrap();
            *nonce.lock().unwrap() = challenge["nonce"].as_str().unwrap().to_owned();
            b"{}".to_vec()
        });
        attest(&attestors, "http_challenge", payload.to_string().as_bytes(), &mut node).await
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

const LOCAL: &str = "http_challenge: {allowed_dns_patterns: [localhost], allowed_networks: [127.0.0.0/8, '::1/128']}";

#[tokio::test]
async fn a_host_that_serves_the_challenge_is_its_name() {
    let host = Host::start(|nonce| ok(&format!("{nonce}\n"))).await;
    let attested = host.attest(LOCAL).await.unwrap();
    assert_eq!((attested.id().path(), attested.can_reattest()), ("/spire/agent/http_challenge/localhost", false));
    assert_eq!(values(&attested), BTreeSet::from(["hostname:localhost"]));
    let asked = host.asked.lock().unwrap().clone();
    assert!(
        asked.starts_with("GET /.well-known/spiffe/nodeattestor/http_challenge/default/challenge HTTP/1.1"),
        "{asked}"
    );
}

#[tokio::test]
async fn without_leave_no_inner_address_is_called() {
    let host = Host::start(ok).await;
    assert_eq!(host.attest("http_challenge: {allowed_dns_patterns: ['.*']}").await.unwrap_err(), "ADDRESS_FORBIDDEN");
    assert!(host.asked.lock().unwrap().is_empty(), "nothing was sent");
    for name in [
        "127.0.0.1",
        "::1",
        "[::1]",
        "169.254.169.254",
        "0x7f000001",
        "2130706433",
        "127.1",
        "a.0x7f",
        "*",
        "",
        "-a",
        "LOCALHOST",
        "localhost.",
        "a/b",
        "a:b",
        "a@b",
        "localhost#",
        &"a".repeat(64),
    ] {
        let payload = json!({"hostname": name, "agentname": "default", "port": host.port});
        let settings = "http_challenge: {allowed_dns_patterns: ['.*'], allowed_networks: ['0.0.0.0/0', '::/0']}";
        assert_eq!(host.attest_as(settings, &payload).await.unwrap_err(), "HOST_NOT_ALLOWED", "{name}");
    }
    assert!(host.asked.lock().unwrap().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_pattern_is_for_the_whole_name() {
    let host = Host::start(ok).await;
    for pattern in ["local", "ocalhost", "localhos.example", "a|local"] {
        let settings =
            format!("http_challenge: {{allowed_dns_patterns: ['{pattern}'], allowed_networks: [127.0.0.0/8]}}");
        assert_eq!(host.attest(&settings).await.unwrap_err(), "HOST_NOT_ALLOWED", "{pattern}");
    }
}

#[tokio::test]
async fn ports_and_agent_names_are_limited() {
    let host = Host::start(ok).await;
    let low = format!("{}, port_max: 1023}}", LOCAL.trim_end_matches('}'));
    assert_eq!(host.attest(&low).await.unwrap_err(), "PORT_NOT_ALLOWED");
    for port in [0_u64, 65_536, 4_294_967_295] {
        let payload = json!({"hostname": "localhost", "agentname": "default", "port": port});
        assert_eq!(host.attest_as(LOCAL, &payload).await.unwrap_err(), "PORT_NOT_ALLOWED", "{port}");
    }
    for agent in ["", "a/b", "..", "a.b", "1a", "a b", "a\r\nx: y", &"a".repeat(33)] {
        let payload = json!({"hostname": "localhost", "agentname": agent, "port": host.port});
        assert_eq!(host.attest_as(LOCAL, &payload).await.unwrap_err(), "EVIDENCE_MALFORMED", "{agent}");
    }
    let longest = json!({"hostname": "localhost", "agentname": "a".repeat(32), "port": host.port});
    assert!(host.attest_as(LOCAL, &longest).await.is_ok());
}

#[tokio::test]
async fn redirects_are_not_followed_and_long_answers_not_read() {
    let target = Host::start(ok).await;
    let location = format!("http://localhost:{}/", target.port);
    let redirecting =
        Host::start(move |_| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")).await;
    assert_eq!(redirecting.attest(LOCAL).await.unwrap_err(), "CHALLENGE_WRONG");
    assert!(target.asked.lock().unwrap().is_empty(), "the redirect was not followed");
    let wrong = Host::start(|_| ok("something else")).await;
    assert_eq!(wrong.attest(LOCAL).await.unwrap_err(), "CHALLENGE_WRONG");
    let long = Host::start(|nonce| ok(&format!("{nonce}{}", " ".repeat(100_000)))).await;
    assert_eq!(long.attest(LOCAL).await.unwrap_err(), "CHALLENGE_WRONG");
    let headers = Host::start(|nonce| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n{nonce}", "y".repeat(100_000))).await;
    assert_eq!(headers.attest(LOCAL).await.unwrap_err(), "HOST_UNREACHABLE");
    let junk = Host::start(|_| "SSH-2.0-OpenSSH\r\n".to_owned()).await;
    assert_eq!(junk.attest(LOCAL).await.unwrap_err(), "HOST_UNREACHABLE");
}

#[tokio::test]
async fn a_host_that_never_answers_costs_a_limited_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::start(ok).await;
    let port = silent.local_addr().unwrap().port();
    let payload = json!({"hostname": "localhost", "agentname": "default", "port": port});
    assert_eq!(host.attest_as(LOCAL, &payload).await.unwrap_err(), "HOST_UNREACHABLE");
    drop(silent);
    assert_eq!(host.attest_as(LOCAL, &payload).await.unwrap_err(), "HOST_UNREACHABLE", "nobody listens");
}

#[tokio::test]
async fn without_trust_on_first_use_a_host_may_come_again() {
    let host = Host::start(ok).await;
    let settings = format!("{}, port_max: 80, tofu: false}}", LOCAL.trim_end_matches('}'));
    // A port below 1024 cannot be bound here, so only the refusal of the port shows that the settings pass.
    assert_eq!(host.attest(&settings).await.unwrap_err(), "PORT_NOT_ALLOWED");
}
