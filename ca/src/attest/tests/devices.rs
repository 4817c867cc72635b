//! `x509pop`: device certificates of a small CA.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::{LeafProfile, WebAuthority, WebCertificate, X509Authority};
use identity::device::{DeviceKey, PossessionProof};
use identity::key::PrivateKey;
use serde_json::{Value, json};

use super::*;
use crate::testing::id;

struct Devices {
    dir: tempfile::TempDir,
    ca: WebAuthority,
}

impl Devices {
    fn new() -> Self {
        let ca = WebAuthority::generate("device CA", Duration::from_secs(3600), SystemTime::now()).unwrap();
        let devices = Self { dir: tempfile::tempdir().unwrap(), ca };
        std::fs::write(devices.root_file(), devices.ca.certificate_pem()).unwrap();
        devices
    }

    fn root_file(&self) -> std::path::PathBuf {
        self.dir.path().join("roots.pem")
    }

    fn attestors(&self, more: &str) -> Attestors {
        build(&format!("x509pop: {{ca_bundles: ['{}']{more}}}", self.root_file().display()))
    }

    fn device(&self, name: &str) -> WebCertificate {
        self.ca.issue_client(name, Duration::from_secs(600), SystemTime::now()).unwrap()
    }
}

fn payload(certificates: &[&CertificateDer<'_>]) -> Vec<u8> {
    let certificates: Vec<String> = certificates.iter().map(|der| STANDARD.encode(der.as_ref())).collect();
    json!({"certificates": certificates}).to_string().into_bytes()
}

/// What SPIRE's agent answers with this key.
fn answer(key: &PrivateKey, challenge: &[u8]) -> Value {
    let challenge: Value = serde_json::from_slice(challenge).unwrap();
    assert!(challenge["rsa_signature"].is_null());
    let theirs = STANDARD.decode(challenge["ecdsa_signature"]["nonce"].as_str().unwrap()).unwrap();
    let ours = [7_u8; 32];
    let key = DeviceKey::from_pem(key.pkcs8_pem().as_bytes()).unwrap();
    let PossessionProof::Ecdsa { r, s } = key.prove(&[&theirs[..], &ours].concat()).unwrap() else { panic!("ECDSA") };
    json!({"ecdsa_signature": {"nonce": STANDARD.encode(ours), "r": STANDARD.encode(r), "s": STANDARD.encode(s)}})
}

fn honest(key: PrivateKey) -> Answering<impl FnMut(Vec<u8>) -> Vec<u8> + Send> {
    Answering(move |challenge: Vec<u8>| answer(&key, &challenge).to_string().into_bytes())
}

#[tokio::test]
async fn a_device_proves_itself_and_its_facts_become_selectors() {
    let devices = Devices::new();
    let device = devices.device("rack-7");
    let payload = payload(&[&device.certificate]);
    let attested = attest(&devices.attestors(""), "x509pop", &payload, &mut honest(device.key.clone())).await.unwrap();
    let name = attested.id().path().rsplit('/').next().unwrap();
    assert!(name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "SHA-1: {name}");
    assert!(attested.can_reattest());
    let values = values(&attested);
    assert!(values.contains("subject:cn:rack-7"), "{values:?}");
    for prefix in ["ca:fingerprint:", "serialnumber:", "fingerprint:sha256:"] {
        assert!(values.iter().any(|value| value.starts_with(prefix)), "{prefix} in {values:?}");
    }
    let named = devices.attestors(", agent_path_template: 'cn/{{ .Subject.CommonName }}'");
    let attested = attest(&named, "x509pop", &payload, &mut honest(device.key)).await.unwrap();
    assert_eq!(attested.id().path(), "/spire/agent/x509pop/cn/rack-7");
}

#[tokio::test]
async fn a_common_name_cannot_leave_its_place() {
    let devices = Devices::new();
    let attestors = devices.attestors(", agent_path_template: '{{ .Subject.CommonName }}'");
    for name in ["..", "../join_token/x", "a/b", "a b", ".", "spire/server"] {
        let device = devices.device(name);
        let outcome = attest(&attestors, "x509pop", &payload(&[&device.certificate]), &mut honest(device.key)).await;
        assert_eq!(outcome.unwrap_err(), "NODE_NAME_UNUSABLE", "{name}");
    }
}

#[tokio::test]
async fn a_foreign_certificate_or_key_proves_nothing() {
    let (devices, others) = (Devices::new(), Devices::new());
    let attestors = devices.attestors("");
    let (device, foreign) = (devices.device("a"), others.device("a"));
    let check = async |certificates: &[&CertificateDer<'_>], key: &PrivateKey| {
        attest(&attestors, "x509pop", &payload(certificates), &mut honest(key.clone())).await.unwrap_err()
    };
    assert_eq!(check(&[&foreign.certificate], &foreign.key).await, "DEVICE_CHAIN_UNTRUSTED");
    let smuggled = [&foreign.certificate, others.ca.certificate()];
    assert_eq!(check(&smuggled, &foreign.key).await, "DEVICE_CHAIN_UNTRUSTED", "a root of their own");
    assert_eq!(check(&[&device.certificate], &foreign.key).await, "DEVICE_KEY_NOT_HELD", "somebody else's certificate");
    assert_eq!(
        check(&[devices.ca.certificate()], devices.ca.key()).await,
        "DEVICE_CERTIFICATE_REFUSED",
        "the CA itself"
    );
    assert_eq!(check(&[], &device.key).await, "DEVICE_CERTIFICATE_MISSING");
    let junk = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(check(&[&junk], &device.key).await, "DEVICE_CERTIFICATE_REFUSED");
    let long = vec![&device.certificate; 100];
    assert_eq!(check(&long, &device.key).await, "DEVICE_CHAIN_TOO_LONG");
}

#[tokio::test]
async fn an_answer_of_another_time_or_shape_is_refused() {
    let devices = Devices::new();
    let (attestors, device) = (devices.attestors(""), devices.device("a"));
    let payload = payload(&[&device.certificate]);
    let mut recorded = Vec::new();
    let mut listening = Answering(|challenge: Vec<u8>| {
        recorded = answer(&device.key, &challenge).to_string().into_bytes();
        recorded.clone()
    });
    assert!(attest(&attestors, "x509pop", &payload, &mut listening).await.is_ok());
    let check = async |change: &(dyn Fn(&mut Value) + Sync)| {
        let mut replaying = Answering(|challenge: Vec<u8>| {
            let mut answer = answer(&device.key, &challenge);
            change(&mut answer);
            answer.to_string().into_bytes()
        });
        attest(&attestors, "x509pop", &payload, &mut replaying)
            .await
            .map(|_| "accepted")
            .unwrap_or_else(|reason| reason)
    };
    assert_eq!(check(&|_| ()).await, "accepted");
    let old: Value = serde_json::from_slice(&recorded).unwrap();
    assert_eq!(check(&|answer| *answer = old.clone()).await, "DEVICE_KEY_NOT_HELD", "a replay");
    assert_eq!(check(&|answer| answer["ecdsa_signature"]["nonce"] = json!("AAAA")).await, "EVIDENCE_MALFORMED");
    assert_eq!(check(&|answer| answer["ecdsa_signature"]["r"] = json!("")).await, "DEVICE_KEY_NOT_HELD");
    assert_eq!(check(&|answer| answer["ecdsa_signature"]["s"] = json!("?")).await, "EVIDENCE_MALFORMED");
    assert_eq!(check(&|answer| *answer = json!({})).await, "DEVICE_KEY_NOT_HELD");
    assert_eq!(check(&|answer| *answer = json!([])).await, "EVIDENCE_MALFORMED");
    assert_eq!(attest(&attestors, "x509pop", &payload, &mut Silent).await.unwrap_err(), "CHALLENGE_UNANSWERED");
    for junk in [&b""[..], b"[", b"{\"certificates\": [\"?\"]}", b"{\"certificates\": 7}"] {
        assert_eq!(attest(&attestors, "x509pop", junk, &mut Silent).await.unwrap_err(), "EVIDENCE_MALFORMED");
    }
}

#[tokio::test]
async fn in_the_mode_spiffe_only_svids_below_the_prefix_are_exchanged() {
    let now = SystemTime::now();
    let own = X509Authority::generate_root(&trust_domain(), Duration::from_secs(3600), now).unwrap();
    let (attestors, domain) = (build("x509pop: {mode: spiffe}"), trust_domain());
    let roots = [own.certificate().clone()];
    let world = World { trust_domain: &domain, roots: &roots, now };
    let exchange = async |path: &str| {
        let key = PrivateKey::generate_p256().unwrap();
        let profile = LeafProfile::new(id(path), Duration::from_secs(600));
        let chain = own.sign_svid(&key.public_key_spki(), &profile, now).unwrap();
        let payload = payload(&[&chain[0]]);
        let attested = attestors.attest("x509pop", &payload, &world, &mut honest(key)).await;
        attested.map(|attested| attested.id().path().to_owned()).map_err(|error| error.reason())
    };
    assert_eq!(exchange("/spire-exchange/host-1").await.unwrap(), "/spire/agent/x509pop/host-1");
    assert_eq!(exchange("/spire-exchange/rack/host-1").await.unwrap(), "/spire/agent/x509pop/rack/host-1");
    for other in ["/spire-exchange", "/spire-exchanged/host-1", "/ns/default/sa/web", "/spire/agent/x509pop/host-1"] {
        assert_eq!(exchange(other).await.unwrap_err(), "SVID_NOT_EXCHANGEABLE", "{other}");
    }
}

#[test]
fn roots_that_cannot_be_read_stop_the_start() {
    for (content, word) in [(None, "No such file"), (Some(""), "no certificate"), (Some("junk"), "no certificate")] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("roots.pem");
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let settings = format!("x509pop: {{ca_bundles: ['{}']}}", file.display());
        let problem = Attestors::build(&serde_saphyr::from_str(&settings).unwrap()).unwrap_err().to_string();
        assert!(problem.contains(word) && problem.contains("roots.pem"), "{problem}");
    }
}
