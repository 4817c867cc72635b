//! What a real OpenBao answers: exchanges that were recorded through this file, played back to our client.
//!
//! `recorded/*.json` holds them, without secrets and without what differs from run to run and is read by nobody. To record
//! anew, against a server in dev mode in which everything may be changed:
//!
//! ```sh
//! bao server -dev -dev-root-token-id=root -dev-listen-address=127.0.0.1:8200     # prints the unseal key
//! bao secrets enable transit && bao auth enable approle
//! KASBAH_RECORD=127.0.0.1:8200 KASBAH_RECORD_UNSEAL=KEY cargo test --release -p ca recorded -- --test-threads 1
//! ```

use std::collections::VecDeque;

use super::*;
use crate::custody::tests::openssl::OpenSsl;

/// A request with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Exchange {
    method: String,
    path: String,
    /// Whose token it bears, by a name.
    token: String,
    body: Value,
    status: u16,
    answer: Value,
}

/// One scene, recorded or played.
struct Scene {
    name: &'static str,
    /// The real server; none when the tape is played.
    real: Option<String>,
    tape: VecDeque<Exchange>,
    /// Secrets and the names that they have on the tape.
    secrets: Vec<(String, String)>,
    trouble: Option<String>,
}

/// The server that our client talks to.
struct Stage {
    scene: Arc<Mutex<Scene>>,
    address: String,
    dir: tempfile::TempDir,
}

impl Stage {
    fn set(name: &'static str) -> Self {
        let real = std::env::var("KASBAH_RECORD").ok();
        let tape = if real.is_some() { VecDeque::new() } else { serde_json::from_slice(&read(name)).unwrap() };
        let secrets = vec![(ROOT.to_owned(), "root".to_owned())];
        let scene = Arc::new(Mutex::new(Scene { name, real, tape, secrets, trouble: None }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serving = scene.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let scene = serving.clone();
                let answer = move |method: &str, path: &str, token: &str, body: &Value| {
                    scene.lock().unwrap().answer(method, path, token, body)
                };
                std::thread::spawn(move || converse(stream, answer));
            }
        });
        Self { scene, address, dir: tempfile::tempdir().unwrap() }
    }

    /// Does something as the administrator while a scene is recorded; the answer is not part of it.
    fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let scene = self.scene.lock().unwrap();
        let Some(real) = &scene.real else { return Value::Null };
        let (status, answer) = ask(real, method, path, ROOT, body);
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// A secret of an administrator's answer, with its name on the tape, which is what it is when the tape is played.
    fn secret(&self, answer: &Value, name: &str) -> String {
        let mut scene = self.scene.lock().unwrap();
        if scene.real.is_none() {
            return name.to_owned();
        }
        let secret = answer.as_str().unwrap_or_else(|| panic!("no {name}: {answer}")).to_owned();
        scene.secrets.push((secret.clone(), name.to_owned()));
        secret
    }

    /// A client with a token of the policy in docs/custody.md.
    fn with_token(&self, ttl: &str, life: &str) -> Vault {
        self.admin("PUT", "sys/policies/acl/kasbah", &json!({ "policy": POLICY }));
        let body = json!({ "policies": ["kasbah"], "ttl": ttl, "explicit_max_ttl": life });
        let made = self.admin("POST", "auth/token/create", &body);
        let token = self.secret(&made["auth"]["client_token"], "the-token");
        self.client(VaultAuth::TokenFile(file(self.dir.path(), "token", &token)))
    }

    fn client(&self, auth: VaultAuth) -> Vault {
        let address = self.address.clone();
        Vault::new(VaultTransit { address, mount: "transit".into(), ca_file: None, auth })
    }

    fn end(self) {
        let scene = self.scene.lock().unwrap();
        assert_eq!(scene.trouble, None, "{}", scene.name);
        if scene.real.is_some() {
            let mut text = serde_json::to_string_pretty(&scene.tape).unwrap();
            text.push('\n');
            std::fs::write(path(scene.name), text).unwrap();
        } else {
            assert!(scene.tape.is_empty(), "{}: not asked: {:?}", scene.name, scene.tape);
        }
    }
}

impl Scene {
    fn answer(&mut self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        match self.real.clone() {
            Some(real) => self.record(&real, method, path, token, body),
            None => self.play(method, path, token, body),
        }
    }

    fn record(&mut self, real: &str, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = ask(real, method, path, token, body);
        if let Some(new) = answer["auth"]["client_token"].as_str().filter(|new| self.named(new) == *new) {
            let name = format!("token-{}", self.secrets.len());
            self.secrets.push((new.to_owned(), name));
        }
        let exchange = Exchange {
            method: method.to_owned(),
            path: path.to_owned(),
            token: self.named(token),
            body: self.cleaned(body),
            status,
            answer: self.cleaned(&answer),
        };
        self.tape.push_back(exchange);
        (status, answer)
    }

    fn play(&mut self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let next = self.tape.pop_front();
        let is_it = |next: &Exchange| {
            (&*next.method, &*next.path, &*next.token, &next.body) == (method, path, token, &self.cleaned(body))
        };
        match next.filter(is_it) {
            Some(next) => (next.status, next.answer),
            None => {
                self.trouble.get_or_insert_with(|| format!("not on the tape at this place: {method} {path} {body}"));
                (500, Value::Null)
            }
        }
    }

    fn named(&self, text: &str) -> String {
        let known = self.secrets.iter().find(|(secret, _)| secret == text);
        known.map_or(text, |(_, name)| name).to_owned()
    }

    /// Without secrets, and without what nobody reads.
    fn cleaned(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.named(text)),
            Value::Array(all) => all.iter().map(|one| self.cleaned(one)).collect(),
            Value::Object(all) => {
                let kept = all.iter().filter(|(name, value)| !UNREAD.contains(&name.as_str()) && !value.is_null());
                kept.map(|(name, value)| (name.clone(), self.cleaned(value))).collect()
            }
            other => other.clone(),
        }
    }
}

/// One request to the real server.
fn ask(real: &str, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(real).unwrap();
    let head =
        format!("{method} /v1/{path} HTTP/1.0\r\nhost: {real}\r\nx-vault-request: true\r\nx-vault-token: {token}");
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn path(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/custody/vault/tests/recorded/{name}.json"))
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{}: {error}", path(name).display()))
}

/// OpenSSL's verdict on a signature.
fn verify(kind: KeyKind, spki: &[u8], signature: &[u8]) {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.write("key.pem", pem::encode("PUBLIC KEY", spki).as_bytes());
    openssl.write("message", MESSAGE);
    openssl.write("signature", signature);
    let hash = if kind == KeyKind::P384 { "sha384" } else { "sha256" };
    openssl.run(&match kind {
        KeyKind::Ed25519 => "pkeyutl -verify -pubin -inkey key.pem -rawin -in message -sigfile signature".to_owned(),
        _ => format!("dgst -{hash} -verify key.pem -signature signature message"),
    });
}

fn expect_refused<T: std::fmt::Debug>(outcome: Result<T, KeeperError>, words: &str) {
    match outcome {
        Err(KeeperError::Refused(why)) if why.contains(words) => (),
        other => panic!("not refused with `{words}`: {other:?}"),
    }
}

#[test]
fn keys_of_each_kind_are_made_and_sign() {
    let stage = Stage::set("keys");
    let mut vault = stage.with_token("1h", "");
    for (name, kind) in [("p256", KeyKind::P256), ("p384", KeyKind::P384), ("ed25519", KeyKind::Ed25519)] {
        let name = format!("kasbah-{name}");
        let spki = vault.create(&name, kind).unwrap();
        verify(kind, &spki, &vault.sign(&name, kind, MESSAGE).unwrap());
    }
    // Not ours to make; one that somebody made there signs all the same.
    expect_refused(vault.create("kasbah-rsa", KeyKind::Rsa), "RSA");
    stage.admin("POST", "transit/keys/kasbah-rsa", &json!({ "type": "rsa-3072" }));
    let spki = vault.public_key("kasbah-rsa", KeyKind::Rsa).unwrap();
    verify(KeyKind::Rsa, &spki, &vault.sign("kasbah-rsa", KeyKind::Rsa, MESSAGE).unwrap());
    assert!(vault.public_key("kasbah-rsa", KeyKind::P256).is_err(), "a key of another kind");
    stage.end();
}

#[test]
fn a_key_that_was_made_before_stays_as_it_is_and_does_not_leave() {
    let stage = Stage::set("again");
    let mut vault = stage.with_token("1h", "");
    let first = vault.create("kasbah-again", KeyKind::P256).unwrap();
    // The answer to the first may have been lost.
    assert_eq!(vault.create("kasbah-again", KeyKind::P256).unwrap(), first);
    let export = "transit/export/signing-key/kasbah-again";
    expect_refused(vault.call(Method::GET, export, None), "permission denied");
    let real = stage.scene.lock().unwrap().real.clone();
    if let Some(real) = real {
        let (status, answer) = ask(&real, "GET", export, ROOT, &Value::Null);
        assert_eq!(status, 400, "not even the administrator gets it: {answer}");
    }
    stage.end();
}

#[test]
fn a_key_that_is_not_there_is_refused() {
    let stage = Stage::set("missing");
    let mut vault = stage.with_token("1h", "");
    expect_refused(vault.sign("kasbah-missing", KeyKind::P256, MESSAGE), "400 signing key not found");
    expect_refused(vault.public_key("kasbah-missing", KeyKind::P256), "404");
    stage.end();
}

#[test]
fn what_the_policy_does_not_permit_is_refused_after_one_more_look_at_the_token() {
    let stage = Stage::set("denied");
    let mut vault = stage.with_token("1h", "");
    expect_refused(vault.sign("another", KeyKind::P256, MESSAGE), "permission denied");
    vault.check().unwrap();
    stage.end();
}

#[test]
fn a_token_is_renewed_at_half_of_its_life() {
    let stage = Stage::set("renewed");
    let mut vault = stage.with_token("4s", "");
    vault.check().unwrap();
    std::thread::sleep(Duration::from_millis(2_100));
    vault.check().unwrap();
    vault.check().unwrap();
    stage.end();
}

#[test]
fn a_token_that_has_ended_is_refused() {
    let stage = Stage::set("ended");
    let mut vault = stage.with_token("2s", "2s");
    vault.check().unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    expect_refused(vault.check(), "403");
    stage.end();
}

#[test]
fn an_app_role_logs_in_and_again_when_its_token_is_revoked() {
    let stage = Stage::set("approle");
    stage.admin("PUT", "sys/policies/acl/kasbah", &json!({ "policy": POLICY }));
    stage.admin("POST", "auth/approle/role/kasbah", &json!({ "token_policies": "kasbah", "token_ttl": "1h" }));
    let role = stage.admin("GET", "auth/approle/role/kasbah/role-id", &Value::Null);
    let role = stage.secret(&role["data"]["role_id"], "the-role");
    let secret = stage.admin("POST", "auth/approle/role/kasbah/secret-id", &json!({}));
    let secret = stage.secret(&secret["data"]["secret_id"], "the-secret");
    let auth = |name: &str, secret: &str| VaultAuth::AppRole {
        role_id_file: file(stage.dir.path(), &format!("role-{name}"), &role),
        secret_id_file: file(stage.dir.path(), name, secret),
    };
    let mut vault = stage.client(auth("secret", &secret));
    vault.create("kasbah-role", KeyKind::P256).unwrap();
    let token = vault.token.as_ref().unwrap().text.to_string();
    stage.admin("POST", "auth/token/revoke", &json!({ "token": token }));
    vault.sign("kasbah-role", KeyKind::P256, MESSAGE).unwrap();
    expect_refused(stage.client(auth("wrong", "wrong")).check(), "400 invalid role or secret ID");
    stage.end();
}

#[test]
fn a_key_that_is_rotated_there_goes_on_in_its_first_version_until_that_is_forbidden() {
    let stage = Stage::set("rotated");
    let mut vault = stage.with_token("1h", "");
    let spki = vault.create("kasbah-rotated", KeyKind::P256).unwrap();
    stage.admin("POST", "transit/keys/kasbah-rotated/rotate", &json!({}));
    verify(KeyKind::P256, &spki, &vault.sign("kasbah-rotated", KeyKind::P256, MESSAGE).unwrap());
    assert_eq!(vault.public_key("kasbah-rotated", KeyKind::P256).unwrap(), spki);
    let least = json!({ "min_decryption_version": 2, "min_encryption_version": 2 });
    stage.admin("POST", "transit/keys/kasbah-rotated/config", &least);
    expect_refused(vault.sign("kasbah-rotated", KeyKind::P256, MESSAGE), "minimum encryption key version");
    stage.end();
}

#[test]
fn a_sealed_server_is_away_until_it_is_unsealed() {
    let stage = Stage::set("sealed");
    let mut vault = stage.with_token("1h", "");
    vault.create("kasbah-sealed", KeyKind::P256).unwrap();
    stage.admin("PUT", "sys/seal", &Value::Null);
    match vault.sign("kasbah-sealed", KeyKind::P256, MESSAGE) {
        Err(KeeperError::Away(why)) => assert!(why.contains("503") && why.contains("sealed"), "{why}"),
        other => panic!("{other:?}"),
    }
    let key = std::env::var("KASBAH_RECORD_UNSEAL").unwrap_or_default();
    stage.admin("PUT", "sys/unseal", &json!({ "key": key }));
    wait_until_active(&stage);
    vault.sign("kasbah-sealed", KeyKind::P256, MESSAGE).unwrap();
    stage.end();
}

/// An unsealed server takes a moment before it answers.
fn wait_until_active(stage: &Stage) {
    let real = stage.scene.lock().unwrap().real.clone();
    while real.as_ref().is_some_and(|real| ask(real, "GET", "sys/health", "", &Value::Null).0 != 200) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As docs/custody.md has it.
const POLICY: &str = r#"
path "transit/keys/kasbah-*" { capabilities = ["create", "update", "read"] }
path "transit/sign/kasbah-*" { capabilities = ["update"] }
"#;
const ROOT: &str = "root";
const MESSAGE: &[u8] = b"what is to be signed";
/// Members that differ from run to run.
const UNREAD: [&str; 11] = [
    "request_id",
    "accessor",
    "entity_id",
    "creation_time",
    "expire_time",
    "issue_time",
    "last_renewal",
    "last_renewal_time",
    "lease_id",
    "wrap_info",
    "warnings",
];
