//! Keys and key sets, good and sloppy.

use super::*;
use rcgen::PublicKeyData as _;

fn spki(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    rcgen::KeyPair::generate_for(algorithm).unwrap().subject_public_key_info()
}

#[test]
fn keys_go_from_spki_to_json_and_back() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        #[cfg(feature = "aws-lc-rs")]
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        #[cfg(feature = "aws-lc-rs")]
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let der = spki(algorithm);
        let jwk = Jwk::from_spki_der(Some("k1"), &der).unwrap().with_usage("sig");
        let json = Value::Object(jwk.to_json());
        let again = Jwk::from_json(&json).unwrap();
        assert_eq!(again, jwk);
        assert_eq!(again.spki_der().unwrap(), der);
        assert_eq!(JwkSet::from_keys([&again]).len(), 1);
    }
}

#[test]
fn the_thumbprint_is_the_rfc_7638_example() {
    let json = json!({
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs\
    tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbI\
    SD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
    });
    let jwk = Jwk::from_json(&json).unwrap();
    assert_eq!(thumbprint(jwk.public_key().unwrap()), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

#[test]
fn sloppy_keys_are_refused() {
    let good = Value::Object(Jwk::from_spki_der(None, &spki(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap().to_json());
    let changed = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut json = good.clone();
        change(json.as_object_mut().unwrap());
        Jwk::from_json(&json)
    };
    assert!(changed(&|_| {}).is_ok());
    assert_eq!(changed(&|m| drop(m.insert("d".into(), json!("AA")))), Err(JwkError::Private));
    assert_eq!(changed(&|m| drop(m.insert("kty".into(), json!("ec")))), Err(JwkError::Unsupported("kty")));
    assert_eq!(changed(&|m| drop(m.insert("crv".into(), json!("secp256k1")))), Err(JwkError::Unsupported("crv")));
    assert_eq!(changed(&|m| drop(m.insert("crv".into(), json!("P-384")))), Err(JwkError::Member("x")));
    assert_eq!(changed(&|m| drop(m.insert("x".into(), json!("AA==")))), Err(JwkError::Member("x")));
    assert_eq!(changed(&|m| drop(m.insert("kid".into(), json!(7)))), Err(JwkError::Member("kid")));
    assert_eq!(
        changed(&|m| drop(m.insert("key_ops".into(), json!(["encrypt"])))),
        Err(JwkError::Unsupported("key_ops"))
    );
    assert_eq!(changed(&|m| drop(m.remove("y"))), Err(JwkError::Member("y")));
}

#[test]
fn a_point_off_the_curve_verifies_nothing() {
    let mut point = vec![4_u8];
    point.extend([1; 64]);
    let jwk = Jwk::from_public_key(None, PublicKey::ec(Curve::P256, &point).unwrap());
    let set = JwkSet::from_keys([&jwk]);
    assert_eq!((set.len(), set.ignored()), (0, 1));
}

#[test]
fn sets_pass_over_what_they_cannot_use() {
    let good = Value::Object(Jwk::from_spki_der(Some("a"), &spki(&rcgen::PKCS_ED25519)).unwrap().to_json());
    let mut encryption = good.clone();
    encryption["use"] = json!("enc");
    let text = json!({ "keys": [good, encryption, {"kty": "future"}, 7] }).to_string();
    let set = JwkSet::parse(text.as_bytes()).unwrap();
    assert_eq!((set.len(), set.ignored(), set.key_ids().collect::<Vec<_>>()), (1, 3, vec!["a"]));
}

#[test]
fn broken_sets_are_errors() {
    for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
        assert_eq!(JwkSet::parse(text.as_bytes()).unwrap_err(), JwkError::NotASet, "{text}");
    }
    let many = json!({ "keys": vec![json!({}); JWKS_KEYS_MAX + 1] }).to_string();
    assert_eq!(JwkSet::parse(many.as_bytes()).unwrap_err(), JwkError::TooLong);
    assert!(JwkSet::parse(br#"{"keys":[]}"#).unwrap().is_empty());
}

#[test]
fn shared_secrets_are_not_printed_nor_written() {
    let jwk = Jwk::from_json(&json!({"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"})).unwrap();
    assert!(!format!("{jwk:?}").contains("c2Vj"));
    assert!(!Value::Object(jwk.to_json()).to_string().contains("c2Vj"));
}
