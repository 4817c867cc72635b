//! A server that answers as Vault's documentation of the transit engine has it (API v1), and what a real OpenBao answered.

mod recorded;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use identity::key::PrivateKey;
use identity::signing_key::SigningKey;

use super::*;
use crate::custody::tests::{KINDS, signs_is_replaced_and_survives_a_restart};
use crate::custody::{CustodySettings, KeyPlace, Place};
use crate::testing::database::on_each_database;
use crate::testing::running::settings;

/// What it has and what it was asked.
#[derive(Default)]
struct State {
    keys: BTreeMap<String, (PrivateKey, KeyKind)>,
    asked: Vec<String>,
    /// Seconds that a token lives.
    ttl: u64,
    /// The token that is good.
    token: String,
}

#[derive(Clone)]
struct FakeVault {
    state: Arc<Mutex<State>>,
    address: String,
}

impl FakeVault {
    fn start(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { token: token.to_owned(), ttl: 3600, ..State::default() }));
        let vault = Self { state, address };
        let serving = vault.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let vault = serving.clone();
                std::thread::spawn(move || vault.serve(stream));
            }
        });
        vault
    }

    fn serve(&self, stream: TcpStream) {
        converse(stream, |method, path, token, body| self.answer(method, path, token, body));
    }

    fn answer(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let mut state = self.state.lock().unwrap();
        state.asked.push(format!("{method} {path}"));
        if path == "auth/approle/login" {
            let good = body["role_id"] == "role" && body["secret_id"] == "secret";
            let auth = json!({ "client_token": state.token, "lease_duration": state.ttl, "renewable": true });
            return if good { (200, json!({ "auth": auth })) } else { (400, json!({ "errors": ["invalid role"] })) };
        }
        if token != state.token {
            return (403, json!({ "errors": ["permission denied"] }));
        }
        match (method, path.split('/').collect::<Vec<_>>().as_slice()) {
            ("GET", ["auth", "token", "lookup-self"]) => (200, json!({ "data": { "ttl": state.ttl } })),
            ("POST", ["auth", "token", "renew-self"]) => (200, json!({ "auth": { "lease_duration": 3600 } })),
            ("POST", ["transit", "keys", name]) => {
                assert_eq!(body["exportable"], false);
                let kind = match body["type"].as_str().unwrap() {
                    "ecdsa-p256" => KeyKind::P256,
                    "ecdsa-p384" => KeyKind::P384,
                    "ed25519" => KeyKind::Ed25519,
                    other => panic!("{other}"),
                };
                state.keys.insert((*name).to_owned(), (PrivateKey::generate_kind(kind).unwrap(), kind));
                (200, json!({ "data": { "latest_version": 1 } }))
            }
            ("GET", ["transit", "keys", name]) => {
                let Some((key, kind)) = state.keys.get(*name) else { return (404, json!({ "errors": [] })) };
                let spki = key.public_key_spki();
                let text = match kind {
                    KeyKind::Ed25519 => STANDARD.encode(&spki[spki.len() - 32..]),
                    _ => pem::encode("PUBLIC KEY", &spki),
                };
                (200, json!({ "data": { "latest_version": 1, "keys": { "1": { "public_key": text } } } }))
            }
            ("POST", ["transit", "sign", name]) => sign(&state, name, body),
            other => panic!("{other:?}"),
        }
    }
}

/// Reads requests and writes what is answered to method, path below `/v1/`, token and body, until the client closes.
fn converse(stream: TcpStream, answer: impl Fn(&str, &str, &str, &Value) -> (u16, Value)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let (mut first, mut token, mut len) = (String::new(), String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            match name {
                "x-vault-token" => value.clone_into(&mut token),
                "content-length" => len = value.parse().unwrap(),
                _ => (),
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).unwrap();
        let (method, path) = first.split_once(' ').unwrap();
        let path = path.split(' ').next().unwrap().strip_prefix("/v1/").unwrap();
        let (status, answer) = answer(method, path, &token, &serde_json::from_slice(&body).unwrap_or_default());
        let text = if answer.is_null() { String::new() } else { answer.to_string() };
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        writer.write_all(head.as_bytes()).unwrap();
    }
}

fn sign(state: &State, name: &str, body: &Value) -> (u16, Value) {
    let Some((key, kind)) = state.keys.get(name) else {
        return (400, json!({ "errors": ["signing key not found"] }));
    };
    let input = STANDARD.decode(body["input"].as_str().unwrap()).unwrap();
    assert_eq!(body["key_version"], 1);
    if *kind != KeyKind::Ed25519 {
        assert_eq!((&body["prehashed"], &body["marshaling_algorithm"]), (&json!(false), &json!("asn1")));
        let hash = if *kind == KeyKind::P256 { "sha2-256" } else { "sha2-384" };
        assert_eq!(body["hash_algorithm"], hash);
    }
    let signature = SigningKey::from(key.clone()).sign(&input).unwrap();
    (200, json!({ "data": { "signature": format!("vault:v1:{}", STANDARD.encode(signature)) } }))
}

fn file(dir: &std::path::Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    crate::key_file::write_new(&path, text.as_bytes(), 0o600).unwrap();
    path
}

fn transit(vault: &FakeVault, auth: VaultAuth) -> VaultTransit {
    VaultTransit { address: vault.address.clone(), mount: "transit".into(), ca_file: None, auth }
}

fn by_token(vault: &FakeVault, dir: &std::path::Path) -> VaultTransit {
    transit(vault, VaultAuth::TokenFile(file(dir, "token", "s.token\n")))
}

async fn keys_of_each_kind_in_transit_sign_are_replaced_and_survive_a_restart() {
    for key_type in KINDS {
        let (dir, vault) = (tempfile::tempdir().unwrap(), FakeVault::start("s.token"));
        let custody = CustodySettings {
            key_type,
            keys: KeyPlace::VaultTransit,
            vault_transit: Some(by_token(&vault, dir.path())),
            ..CustodySettings::default()
        };
        signs_is_replaced_and_survives_a_restart(custody, Place::VaultTransit).await;
    }
}

#[test]
fn an_app_role_logs_in_and_again_when_its_token_is_refused() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeVault::start("s.first"));
    let auth = VaultAuth::AppRole {
        role_id_file: file(dir.path(), "role", "role"),
        secret_id_file: file(dir.path(), "secret", "secret"),
    };
    let mut vault = Vault::new(transit(&server, auth));
    vault.create("a", KeyKind::P256).unwrap();
    server.state.lock().unwrap().token = "s.second".into();
    vault.sign("a", KeyKind::P256, b"message").unwrap();
    let asked = server.state.lock().unwrap().asked.clone();
    assert_eq!(asked.iter().filter(|call| call.contains("approle/login")).count(), 2);
    let auth = VaultAuth::AppRole {
        role_id_file: file(dir.path(), "role", "role"),
        secret_id_file: file(dir.path(), "wrong", "wrong"),
    };
    assert!(matches!(Vault::new(transit(&server, auth)).check(), Err(KeeperError::Refused(_))));
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeVault::start("s.token"));
    server.state.lock().unwrap().ttl = 1;
    let mut vault = Vault::new(by_token(&server, dir.path()));
    vault.check().unwrap();
    std::thread::sleep(Duration::from_millis(600)); // More than half of its life.
    vault.check().unwrap();
    vault.check().unwrap();
    let asked = server.state.lock().unwrap().asked.clone();
    assert_eq!(asked.iter().filter(|call| call.contains("renew-self")).count(), 1);
}

/// Two threads of the desk looked at the token in turn, each found that it had half of the rest of its life, and it ended.
#[test]
fn a_token_that_is_past_the_half_of_its_life_when_it_is_found_is_renewed_at_once() {
    let at = |ttl: u64, life: u64| renewal_of_found(&json!({ "ttl": ttl, "creation_ttl": life }));
    let soon = |at: Option<Instant>| at.unwrap().saturating_duration_since(Instant::now()).as_secs();
    assert_eq!((soon(at(60, 60)), soon(at(40, 60)), soon(at(20, 60))), (29, 9, 0));
    assert_eq!(at(0, 0), None, "a root token has no end");
    assert!(renewal_of_found(&json!({ "ttl": 10 })).is_some());
}

#[test]
fn refusals_last_and_outages_do_not() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeVault::start("s.token"));
    let mut vault = Vault::new(by_token(&server, dir.path()));
    assert!(matches!(vault.sign("unknown", KeyKind::P256, b"m"), Err(KeeperError::Refused(_))));
    let mut stranger = Vault::new(transit(&server, VaultAuth::TokenFile(file(dir.path(), "other", "s.other"))));
    assert!(matches!(stranger.check(), Err(KeeperError::Refused(why)) if why.contains("403")));
    let nobody = VaultTransit { address: "http://127.0.0.1:1".into(), ..by_token(&server, dir.path()) };
    assert!(matches!(Vault::new(nobody).check(), Err(KeeperError::Away(_))));
}

#[test]
fn secrets_travel_over_tls_or_not_at_all() {
    assert_eq!(wire::place("https://vault.example:8200").unwrap(), ("vault.example".into(), 8200, true));
    assert_eq!(wire::place("http://127.0.0.1:8200/").unwrap(), ("127.0.0.1".into(), 8200, false));
    assert_eq!(wire::place("http://[::1]:1").unwrap(), ("[::1]".into(), 1, false));
    for address in ["http://vault.example:8200", "vault.example", "ftp://127.0.0.1", ""] {
        assert!(wire::place(address).is_err(), "{address}");
    }
    let mut settings = settings(std::path::Path::new("/nowhere"));
    let auth = VaultAuth::TokenFile("/token".into());
    let vault = VaultTransit { address: "http://vault.example".into(), mount: "transit".into(), ca_file: None, auth };
    let keys = KeyPlace::VaultTransit;
    settings.custody = CustodySettings { keys, vault_transit: Some(vault), ..CustodySettings::default() };
    assert!(settings.check().unwrap_err().to_string().contains("loopback"));
}

on_each_database! {
    keys_of_each_kind_in_transit_sign_are_replaced_and_survive_a_restart,
}
