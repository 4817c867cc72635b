//! What the JWT-SVID standard demands of issuers and verifiers.

use crate::crypto::hmac;

use super::*;
use crate::jwk::Algorithm;

struct Domain {
    issuer: Issuer,
    bundles: BundleSet,
}

impl Domain {
    fn new() -> Self {
        let issuer = Issuer::new();
        Self { bundles: bundle_set(&[("td", &issuer.key)]), issuer }
    }

    fn claims() -> Value {
        json!({"sub": "spiffe://td/cart", "aud": ["bank"], "exp": NOW + 300})
    }

    fn verify(&self, token: &str) -> Option<&'static str> {
        verify_svid(token, &self.bundles, "bank", now()).map_err(|error| error.reason()).err()
    }

    fn judge(&self, header: &str, claims: &Value) -> Option<&'static str> {
        self.verify(&self.issuer.sign_with_header(header, claims))
    }

    fn judge_claim(&self, name: &str, value: Value) -> Option<&'static str> {
        let mut claims = Self::claims();
        claims[name] = value;
        self.judge(r#"{"alg":"ES256"}"#, &claims)
    }
}

#[test]
fn j_01_a_jwt_svid_has_the_compact_form_only() {
    let domain = Domain::new();
    let token = domain.issuer.sign(&Domain::claims());
    assert_eq!(domain.verify(&token), None);
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let flat = json!({"payload": payload, "protected": header, "signature": signature});
    let general = json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]});
    for form in [flat, general] {
        assert_eq!(domain.verify(&form.to_string()), Some("JWT_MALFORMED"));
    }
}

#[test]
fn j_02_issued_jwt_svids_have_no_header_but_alg_kid_and_typ() {
    let key = JwtAuthorityKey::generate().unwrap();
    let token = key.sign_svid(&svid_profile("spiffe://td/cart"), now()).unwrap().token;
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Map<String, Value> = serde_json::from_slice(&header).unwrap();
    assert_eq!(header.keys().map(String::as_str).collect::<Vec<_>>(), ["alg", "kid", "typ"]);
}

#[test]
fn j_03_only_the_nine_algorithms_sign_jwt_svids() {
    let nine = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];
    for algorithm in nine {
        assert!(Algorithm::parse(algorithm).unwrap().is_for_svids());
    }
    let domain = Domain::new();
    for algorithm in ["none", "NONE", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "Es256", "RS256 ", ""] {
        let header = json!({"alg": algorithm}).to_string();
        assert_eq!(domain.judge(&header, &Domain::claims()), Some("JWT_ALG_NOT_ALLOWED"), "{algorithm}");
    }
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": domain.issuer.key.key_id()}).to_string());
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(Domain::claims().to_string()));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &domain.issuer.key.public(None).spki_der());
    let forged = format!("{input}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes())));
    assert_eq!(domain.verify(&forged), Some("JWT_ALG_NOT_ALLOWED"), "the public key as a secret");
}

#[test]
fn j_04_without_a_kid_the_keys_of_the_subjects_domain_are_tried() {
    let domain = Domain::new();
    assert_eq!(domain.judge(r#"{"alg":"ES256"}"#, &Domain::claims()), None);
    let stranger = Issuer::new().sign_with_header(r#"{"alg":"ES256"}"#, &Domain::claims());
    assert_eq!(domain.verify(&stranger), Some("JWT_BAD_SIGNATURE"));
}

#[test]
fn j_09_the_algorithm_is_checked_before_anything_else() {
    let domain = Domain::new();
    let nonsense = json!({"sub": 7, "exp": "never"});
    assert_eq!(domain.judge(r#"{"alg":"none"}"#, &nonsense), Some("JWT_ALG_NOT_ALLOWED"));
}

#[test]
fn j_12_x509_and_wit_keys_never_verify_a_jwt_svid() {
    let issuer = Issuer::new();
    let token = issuer.sign(&Domain::claims());
    let mut key = Value::Object(issuer.key.public(None).jwk.to_json());
    let mut verdict = |usage: &str| {
        key["use"] = json!(usage);
        let document = json!({ "keys": [key] }).to_string();
        let bundle = TrustBundle::parse_spiffe_json(td("td"), document.as_bytes()).unwrap();
        let set = BundleSet::new([Arc::new(bundle)]);
        verify_svid(&token, &set, "bank", now()).map_err(|error| error.reason()).err()
    };
    assert_eq!(verdict("jwt-svid"), None);
    for usage in ["x509-svid", "wit-svid", "sig", "JWT-SVID"] {
        assert_eq!(verdict(usage), Some("JWT_NO_KEY"), "{usage}");
    }
}

#[test]
fn j_07_the_audience_may_be_a_text_or_a_list_and_must_hold_the_verifier() {
    let domain = Domain::new();
    for audience in [json!("bank"), json!(["bank"]), json!(["x", "bank"])] {
        assert_eq!(domain.judge_claim("aud", audience), None);
    }
    for audience in [json!([]), json!("Bank"), json!(["bank2", "ban"]), json!("")] {
        assert_eq!(domain.judge_claim("aud", audience), Some("JWT_WRONG_AUDIENCE"));
    }
}

#[test]
fn j_14_dates_of_any_size_are_judged_and_never_panic() {
    let domain = Domain::new();
    for date in [json!(-1), json!(0.5), json!(i64::MIN), json!(-1e300)] {
        assert_eq!(domain.judge_claim("exp", date), Some("JWT_EXPIRED"));
    }
    for date in [json!(1e18), json!(u64::MAX), json!(1.7e308)] {
        assert_eq!(domain.judge_claim("exp", date.clone()), None);
        assert_eq!(domain.judge_claim("nbf", date.clone()), Some("JWT_NOT_YET_VALID"));
        assert_eq!(domain.judge_claim("iat", date), None);
    }
}
