//! Signed objects of any kind, and the keys that somebody hands over with them.

use crate::crypto::hmac;

use super::*;
use crate::jwk::{JwkError, SECRET_BYTES_MAX};

const SECRET: [u8; 64] = [0x5a; 64];

fn secret(len: usize) -> Value {
    json!({"kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode(&[0x5a; SECRET_BYTES_MAX + 1][..len])})
}

/// A MAC over a header and a payload as they stand.
fn mac(header: &str, payload: &str) -> String {
    let input = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), input.as_bytes());
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn check(header: &str, payload: &str) -> Result<Vec<u8>, &'static str> {
    let keys = JwkSet::from_given(&[secret(64)]).unwrap();
    verify_signature(&mac(header, payload), &keys).map_err(|error| error.reason())
}

#[test]
fn an_object_of_any_type_verifies_and_gives_what_was_signed() {
    for header in [r#"{"alg":"HS256"}"#, r#"{"alg":"HS256","typ":"anything"}"#, "{\n\t\"alg\" : \"HS256\"}"] {
        assert_eq!(check(header, "VGVzdA").unwrap(), b"Test");
    }
    assert_eq!(check(r#"{"alg":"HS256"}"#, "").unwrap(), b"");
}

#[test]
fn base64url_has_one_form() {
    for payload in ["VGVzdA==", "VGVzdA=", "VGVzdB", "VGVz dA", " VGVzdA", "VGVzdA\n", "VGVzd+", "VGVzd/", "V", "?"] {
        assert_eq!(check(r#"{"alg":"HS256"}"#, payload), Err("JWT_MALFORMED"), "{payload}");
    }
}

#[test]
fn an_unencoded_payload_must_be_critical_and_printable() {
    let header = r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#;
    assert_eq!(check(header, "$ 02 = ~!").unwrap(), b"$ 02 = ~!");
    for payload in ["\u{1f}", "\u{7f}", "\u{e9}", "a\nb"] {
        assert_eq!(check(header, payload), Err("JWT_MALFORMED"), "{payload:?}");
    }
    assert_eq!(check(header, "a.b"), Err("JWT_MALFORMED"));
    assert_eq!(check(r#"{"alg":"HS256","b64":true,"crit":["b64"]}"#, "VGVzdA").unwrap(), b"Test");
    assert_eq!(check(r#"{"alg":"HS256","b64":true}"#, "VGVzdA").unwrap(), b"Test");
    for header in [
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256","b64":"false","crit":["b64"]}"#,
        r#"{"alg":"HS256","b64":0,"crit":["b64"]}"#,
        r#"{"alg":"HS256","b64":null,"crit":["b64"]}"#,
        r#"{"alg":"HS256","crit":["b64"]}"#,
        r#"{"alg":"HS256","b64":false,"crit":["b64","b64"]}"#,
        r#"{"alg":"HS256","b64":false,"crit":["b64","exp"]}"#,
        r#"{"alg":"HS256","b64":false,"crit":"b64"}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":null}"#,
        r#"{"alg":"HS256","crit":["alg"]}"#,
        r#"{"alg":"HS256","exp":1,"crit":["exp"]}"#,
    ] {
        assert_eq!(check(header, "VGVzdA"), Err("JWT_MALFORMED"), "{header}");
    }
}

#[test]
fn a_token_has_no_unencoded_payload() {
    let payload = r#"{"exp":9999999999}"#;
    let token = mac(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, payload);
    let keys = JwkSet::from_given(&[secret(64)]).unwrap();
    assert!(verify_signature(&token, &keys).is_ok());
    assert_eq!(verify(&token, &keys, &JwtExpectations::at(now())).unwrap_err(), JwtError::Critical);
}

#[test]
fn objects_have_a_limit() {
    let long = "A".repeat(JWS_BYTES_MAX + 1);
    let error = verify_signature(&long, &JwkSet::default()).unwrap_err();
    assert_eq!(error, JwtError::TooLong { len: JWS_BYTES_MAX + 1, max: JWS_BYTES_MAX });
}

#[test]
fn a_shared_secret_is_as_long_as_its_hash_and_not_huge() {
    let algorithms = |len| {
        let set = JwkSet::from_given(&[secret(len)]).unwrap();
        [crate::jwk::Algorithm::HS256, crate::jwk::Algorithm::HS384, crate::jwk::Algorithm::HS512]
            .map(|algorithm| set.candidates(None).any(|key| key.allows(algorithm)))
    };
    assert_eq!(algorithms(0), [false, false, false]);
    assert_eq!(algorithms(31), [false, false, false]);
    assert_eq!(algorithms(32), [true, false, false]);
    assert_eq!(algorithms(47), [true, false, false]);
    assert_eq!(algorithms(48), [true, true, false]);
    assert_eq!(algorithms(64), [true, true, true]);
    assert_eq!(algorithms(SECRET_BYTES_MAX), [true, true, true]);
    assert_eq!(algorithms(SECRET_BYTES_MAX + 1), [false, false, false]);
}

#[test]
fn a_set_that_leaves_the_key_open_is_refused() {
    let public = |key_id: &str| {
        let key = JwtAuthorityKey::generate().unwrap().public(None).jwk.with_key_id(key_id);
        Value::Object(key.to_json())
    };
    let given = |keys: &[Value]| JwkSet::from_given(keys).map(|set| set.len());
    assert_eq!(given(&[public("a"), public("b")]), Ok(2));
    assert_eq!(given(&[public("a"), public("a")]), Err(JwkError::KeyIdTwice));
    let same = public("a");
    assert_eq!(given(&[same.clone(), same]), Err(JwkError::KeyIdTwice));
    assert_eq!(given(&[public("a"), secret(32)]), Err(JwkError::Mixed));
    assert_eq!(given(&[secret(32), public("a")]), Err(JwkError::Mixed));
    assert_eq!(given(&[json!(7)]), Err(JwkError::NotAnObject));
    assert_eq!(given(&vec![json!({}); crate::jwk::JWKS_KEYS_MAX + 1]), Err(JwkError::TooLong));
}

#[test]
fn the_public_half_of_a_given_private_key_is_used() {
    let issuer = Issuer::new();
    let mut key = Value::Object(issuer.key.public(None).jwk.to_json());
    key["d"] = json!("AAAA");
    let keys = JwkSet::from_given(&[key.clone()]).unwrap();
    assert!(verify(&issuer.sign(&claims()), &keys, &JwtExpectations::at(now())).is_ok());
    let published = JwkSet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
    assert_eq!((published.len(), published.ignored()), (0, 1), "who publishes it has lost it");
}

#[test]
fn a_key_does_only_what_it_is_for() {
    let issuer = Issuer::new();
    let token = issuer.sign(&claims());
    let verdict = |change: Value| {
        let mut key = Value::Object(issuer.key.public(None).jwk.to_json());
        for (name, value) in change.as_object().unwrap() {
            key[name] = value.clone();
        }
        let keys = JwkSet::from_given(&[key]).unwrap();
        verify_signature(&token, &keys).map(drop).map_err(|error| error.reason())
    };
    for change in [
        json!({}),
        json!({"use": "sig"}),
        json!({"use": "jwt-svid"}),
        json!({"alg": "ES256"}),
        json!({"key_ops": ["verify"]}),
        json!({"key_ops": ["sign", "verify"], "use": "sig"}),
        json!({"key_ops": ["verify", "vendor:thing"]}),
    ] {
        assert_eq!(verdict(change.clone()), Ok(()), "{change}");
    }
    for change in [
        json!({"use": "enc"}),
        json!({"use": "wit-svid"}),
        json!({"use": "x509-svid"}),
        json!({"use": "SIG"}),
        json!({"use": ""}),
        json!({"use": ["sig"]}),
        json!({"alg": "ES384"}),
        json!({"alg": "ES521"}),
        json!({"alg": "RS256"}),
        json!({"alg": "none"}),
        json!({"alg": null}),
        json!({"key_ops": []}),
        json!({"key_ops": ["sign"]}),
        json!({"key_ops": ["encrypt"]}),
        json!({"key_ops": ["verify", "verify"]}),
        json!({"key_ops": ["verify", "encrypt"], "use": "sig"}),
        json!({"key_ops": "verify"}),
        json!({"key_ops": ["verify", 7]}),
        json!({"kty": "RSA"}),
        json!({"kty": "OKP"}),
        json!({"crv": "P-384"}),
        json!({"crv": "secp256k1"}),
    ] {
        assert_eq!(verdict(change.clone()), Err("JWT_NO_KEY"), "{change}");
    }
}
