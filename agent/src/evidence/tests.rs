//! Evidence as the CA will read it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::WebAuthority;
use identity::device::{PossessionProof, VerifiedDevice};
use identity::{CertificateDer, unix_time};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_device_shows_its_chain_and_proves_its_key() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = WebAuthority::generate("devices", Duration::from_secs(3600), now).unwrap();
    let device = ca.issue_client("n1", Duration::from_secs(600), now).unwrap();
    let (certificate_file, private_key_file) = (dir.path().join("n1.pem"), dir.path().join("n1.key"));
    std::fs::write(&certificate_file, device.certificate_pem()).unwrap();
    std::fs::write(&private_key_file, device.key_pem().as_bytes()).unwrap();
    let source = Source::X509Pop(X509Pop { certificate_file: certificate_file.clone(), private_key_file });
    let mut evidence = source.gather().await.unwrap();
    let shown = CertificateDer::from(decoded(&json_of(&evidence.payload)["certificates"][0]));
    let verified = VerifiedDevice::verify(&[shown], &[ca.certificate().clone()], unix_time(now)).unwrap();

    let theirs = [9_u8; 32];
    let challenge = json!({"rsa_signature": null, "ecdsa_signature": {"nonce": STANDARD.encode(theirs)}});
    let answer = json_of(&evidence.answer(challenge.to_string().as_bytes()).unwrap());
    let answer = &answer["ecdsa_signature"];
    let message = [&theirs[..], &decoded(&answer["nonce"])].concat();
    let proof = PossessionProof::Ecdsa { r: decoded(&answer["r"]), s: decoded(&answer["s"]) };
    assert_eq!(verified.check_possession(&message, &proof), Ok(()));

    for bad in [json!({}), json!([]), json!({"rsa_signature": {"nonce": STANDARD.encode([1; 31])}})] {
        assert!(evidence.answer(bad.to_string().as_bytes()).is_err(), "{bad}");
    }
    std::fs::write(&certificate_file, "").unwrap();
    let error = source.gather().await.map(drop).unwrap_err();
    assert_eq!(error.reason(), "JOIN_EVIDENCE_BAD");
    assert!(error.to_string().contains("x509pop.certificate_file"), "{error}");
}

#[tokio::test]
async fn tokens_are_read_anew_for_each_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    let source = Source::K8sPsat(KubernetesPsat { cluster: "prod".into(), token_file: token_file.clone() });
    for token in ["one", "two"] {
        std::fs::write(&token_file, format!("{token}\n")).unwrap();
        let mut evidence = source.gather().await.unwrap();
        assert_eq!(json_of(&evidence.payload), json!({"cluster": "prod", "token": token}));
        assert!(evidence.answer(b"{}").is_err(), "it takes no challenge");
    }
    let source = Source::OidcJwt { token_file };
    assert_eq!(json_of(&source.gather().await.unwrap().payload), json!({"token": "two"}));
}

#[tokio::test]
async fn a_host_serves_the_challenge_while_the_attempt_lasts() {
    let settings = HttpChallenge {
        hostname: "n1.example.org".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        agent_name: "default".into(),
        advertised_port: None,
    };
    let mut evidence = Source::HttpChallenge(settings).gather().await.unwrap();
    let payload = json_of(&evidence.payload);
    assert_eq!(
        (payload["hostname"].as_str(), payload["agentname"].as_str()),
        (Some("n1.example.org"), Some("default"))
    );
    let port = u16::try_from(payload["port"].as_u64().unwrap()).unwrap();
    assert_eq!(evidence.answer(b"{\"nonce\":\"abc=\"}").unwrap(), b"{}");
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    let answer = ask("/.well-known/spiffe/nodeattestor/http_challenge/default/challenge").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("abc=\n"), "{answer}");
    assert!(ask("/").await.unwrap().starts_with("HTTP/1.1 404"));
    for bad in [&b"{}"[..], b"{\"nonce\":\"\"}", b"{\"nonce\":\"a b\"}"] {
        assert!(evidence.answer(bad).is_err());
    }
    drop(evidence);
    while ask("/").await.is_some() {
        tokio::task::yield_now().await;
    }
}
