//! Lines in, subjects and refusals out: our own tokens, and published ones.

use serde_json::json;

use super::super::jws::tests::Signer;
use super::*;

const NOW: &str = "2026-01-31T12:00:00Z";
const NOW_SECS: u64 = 1_769_860_800;

fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "alice", "aud": ["shop", "bank"], "exp": NOW_SECS + 1, "nbf": NOW_SECS})
}

fn answer(line: &Value) -> String {
    Verifier::default().answer(line.to_string().as_bytes())
}

/// The answer for a token with these claims, and the line's members changed as given.
fn verdict(claims: &Value, changes: Value) -> String {
    let signer = Signer::new();
    let mut line = json!({"keys": [signer.jwk()], "jwt": signer.sign(claims), "now": NOW});
    for (name, value) in changes.as_object().unwrap() {
        line[name] = value.clone();
    }
    answer(&line)
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

#[test]
fn a_good_token_gives_its_subject() {
    assert_eq!(verdict(&claims(), json!({})), "ok alice");
    assert_eq!(verdict(&claims(), json!({"issuer": "https://issuer", "audiences": ["x", "bank"]})), "ok alice");
    assert_eq!(verdict(&claims(), json!({"issuer": null, "audiences": null})), "ok alice");
    assert_eq!(verdict(&claims(), json!({"now": "2026-01-31T13:00:00+01:00"})), "ok alice");
    assert_eq!(verdict(&json!({"exp": NOW_SECS + 1}), json!({})), "ok -");
}

#[test]
fn times_are_judged_to_the_second_at_the_given_moment() {
    assert_eq!(verdict(&with("exp", json!(NOW_SECS)), json!({})), "err JWT_EXPIRED");
    assert_eq!(verdict(&with("nbf", json!(NOW_SECS + 1)), json!({})), "err JWT_NOT_YET_VALID");
    assert_eq!(verdict(&claims(), json!({"now": "2026-01-31T12:00:01Z"})), "err JWT_EXPIRED");
    assert_eq!(verdict(&claims(), json!({"now": "2026-01-31T11:59:59Z"})), "err JWT_NOT_YET_VALID");
    assert_eq!(verdict(&with("exp", Value::Null), json!({})), "err JWT_MALFORMED");
}

#[test]
fn without_a_moment_the_present_counts() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let signer = Signer::new();
    let at = |exp: u64| answer(&json!({"keys": [signer.jwk()], "jwt": signer.sign(&json!({"sub": "a", "exp": exp}))}));
    assert_eq!((at(now + 3600).as_str(), at(now - 1).as_str()), ("ok a", "err JWT_EXPIRED"));
}

#[test]
fn issuer_and_audience_are_judged() {
    assert_eq!(verdict(&claims(), json!({"issuer": "https://other"})), "err JWT_WRONG_ISSUER");
    assert_eq!(verdict(&claims(), json!({"audiences": ["x", "y"]})), "err JWT_WRONG_AUDIENCE");
}

#[test]
fn members_of_the_wrong_kind_are_refused() {
    for change in [
        json!({"issuer": 7}),
        json!({"audiences": "bank"}),
        json!({"audiences": [7]}),
        json!({"now": "yesterday"}),
        json!({"now": "2026-01-31"}),
        json!({"now": NOW_SECS}),
    ] {
        assert_eq!(verdict(&claims(), change.clone()), "err BAD_EXPECTATION", "{change}");
    }
    assert_eq!(verdict(&claims(), json!({"jwt": 7})), "err JWT_MALFORMED");
    assert_eq!(verdict(&claims(), json!({"keys": 7})), "err JWKS_MALFORMED");
    assert_eq!(Verifier::default().answer(b"{"), "err BAD_JSON");
}

#[test]
fn a_subject_cannot_forge_a_second_answer() {
    assert_eq!(
        verdict(&with("sub", json!("a\nok b\r\u{2028}\u{7f}é")), json!({})),
        r"ok a\u000aok b\u000d\u2028\u007fé"
    );
}

#[test]
fn answers_as_the_corpus_expects() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let folder = std::path::Path::new(&corpora).join("jwt");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let attacks: Value = serde_json::from_str(&read("attacks.json")).unwrap();
    let line =
        |token: &str| json!({"keys": attacks["jwks"]["keys"], "jwt": token, "issuer": attacks["issuer"], "now": NOW});
    let subject = "ok testing@secure.istio.io";
    assert_eq!(answer(&line(attacks["valid_token"].as_str().unwrap())), subject);
    for sample in ["istio-samples/demo.jwt", "istio-samples/groups-scope.jwt"] {
        assert_eq!(answer(&line(read(sample).trim())), subject, "{sample}");
    }
    for attack in attacks["must_reject"].as_array().unwrap() {
        let verdict = answer(&line(attack["token"].as_str().unwrap()));
        assert!(verdict.starts_with("err "), "{attack}: {verdict}");
    }
}
