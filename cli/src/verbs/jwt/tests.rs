//! Tokens shown and judged: our own, and what strangers may write.

use super::super::filters::jws::tests::Signer;
use super::*;

const NOW_SECS: u64 = 1_769_860_800;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_SECS)
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "alice", "aud": ["db"], "exp": NOW_SECS + 3600, "iat": NOW_SECS})
}

fn shown_of(claims: &Value) -> Shown {
    let (header, claims) = jwt::danger_unverified(&Signer::new().sign(claims)).unwrap();
    Shown::of(header, claims, now())
}

fn codes(token: &str, keys: &Value, issuer: Option<&str>, audiences: &[&str]) -> Vec<&'static str> {
    let keys = JwkSet::from_given(std::slice::from_ref(keys)).unwrap();
    let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
    let judged = judge(token, &keys, issuer, &audiences, now());
    judged.iter().filter_map(|one| Some(one.found.as_ref().err()?.reason())).collect()
}

#[test]
fn a_token_is_shown_with_readable_times_and_never_called_good() {
    let text = shown_of(&claims()).text();
    for words in ["  alg        ES256", "  sub        alice", "2026-01-31T13:00:00Z", "life left    1h", "not verified"]
    {
        assert!(text.contains(words), "no `{words}` in {text}");
    }
    let never_said = ["valid", "it holds"];
    assert!(never_said.iter().all(|word| !text.contains(word)), "{text}");
    let ended = shown_of(&json!({"exp": NOW_SECS}));
    assert!(ended.text().contains("it has expired") && ended.expired == Some(true));
    assert!(shown_of(&json!({})).text().contains("it says no end"));
}

#[test]
fn the_document_of_a_token_is_golden() {
    let (_, claims) = jwt::danger_unverified(&Signer::new().sign(&claims())).unwrap();
    let header = json!({"alg": "ES256"}).as_object().unwrap().clone();
    let document = serde_json::to_value(Shown::of(header, claims, now())).unwrap();
    let expected = json!({
        "verified": false,
        "header": {"alg": "ES256"},
        "claims": {"iss": "https://issuer", "sub": "alice", "aud": ["db"], "exp": NOW_SECS + 3600, "iat": NOW_SECS},
        "times": {"exp": "2026-01-31T13:00:00Z", "iat": "2026-01-31T12:00:00Z"},
        "life_left": "1h",
        "expired": false,
    });
    assert_eq!(document, expected);
}

#[test]
fn what_strangers_write_steers_no_terminal_and_breaks_nothing() {
    let text =
        shown_of(&json!({"sub": "a\u{1b}[2J\nb\u{202e}c\u{9b}", "exp": 1e300, "nbf": -1e15, "iat": "soon"})).text();
    assert!(text.contains(r"a\u001b[2J\u000ab\u202ec\u009b"), "{text}");
    for bad in ["", ".", "..", "a.b.c", "e30.e30", "e30.e30.e30.e30", "eyJhIjoxLCJhIjoyfQ.e30."] {
        assert!(jwt::danger_unverified(bad).is_err(), "{bad}");
    }
    assert!(jwt::danger_unverified("e30.e30.").is_ok(), "also what nobody signed can be looked at");
    let edge = |bytes: usize| format!("e30.e30.{}", "A".repeat(bytes - "e30.e30.".len()));
    assert!(jwt::danger_unverified(&edge(TOKEN_BYTES_MAX)).is_ok());
    assert!(matches!(jwt::danger_unverified(&edge(TOKEN_BYTES_MAX + 1)), Err(JwtError::TooLong { .. })));
}

#[test]
fn every_reason_is_named() {
    let signer = Signer::new();
    let good = signer.sign(&claims());
    assert!(codes(&good, &signer.jwk(), Some("https://issuer"), &["x", "db"]).is_empty());
    let mut late = claims();
    late["exp"] = json!(NOW_SECS - 3600);
    let all = codes(&signer.sign(&late), &signer.jwk(), Some("https://other"), &["shop"]);
    assert_eq!(all, ["JWT_EXPIRED", "JWT_WRONG_ISSUER", "JWT_WRONG_AUDIENCE"]);
    let mut early = claims();
    early["nbf"] = json!(NOW_SECS + 3600);
    assert_eq!(codes(&signer.sign(&early), &signer.jwk(), None, &[]), ["JWT_NOT_YET_VALID"]);
    assert_eq!(codes(&signer.sign(&json!({"sub": "a"})), &signer.jwk(), None, &[]), ["JWT_MALFORMED"]);
}

#[test]
fn nothing_is_judged_or_believed_before_the_signature() {
    let (signer, other) = (Signer::new(), Signer::new());
    let token = signer.sign(&claims());
    let keys = JwkSet::from_given(&[other.jwk()]).unwrap();
    let judged = judge(&token, &keys, Some("https://other"), &["shop".to_owned()], now());
    assert_eq!(judged.len(), 1);
    let (_, claims) = jwt::danger_unverified(&token).unwrap();
    let document = document(&judged, &claims, "jwks.json");
    assert_eq!((&document["verdict"], &document["subject"]), (&json!("JWT_NO_KEY"), &Value::Null));
    assert!(document["reasons"][0]["remedy"].is_string(), "{document}");
    let text = text(&judged, &claims, "jwks.json");
    assert!(text.ends_with("it does not hold") && !text.contains("alice") && !text.contains(&token), "{text}");
}
