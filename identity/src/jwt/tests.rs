//! Tokens, good and forged.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::bundle::TrustBundle;
use crate::crypto::{P256Signer, hmac};
use crate::jwk::Jwk;

mod signed_objects;
mod svid_standard;
mod vectors;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "alice", "aud": ["shop", "bank"], "exp": NOW + 300, "iat": NOW})
}

struct Issuer {
    key: JwtAuthorityKey,
    keys: JwkSet,
}

impl Issuer {
    fn new() -> Self {
        let key = JwtAuthorityKey::generate().unwrap();
        let keys = JwkSet::from_keys([&key.public(None).jwk]);
        Self { key, keys }
    }

    fn sign(&self, claims: &Value) -> String {
        self.key.sign(claims.as_object().unwrap()).unwrap()
    }

    fn verify(&self, claims: &Value) -> Result<VerifiedClaims, JwtError> {
        verify(&self.sign(claims), &self.keys, &JwtExpectations::at(now()))
    }

    /// Signs with a header that the issuer itself would not write.
    fn sign_with_header(&self, header: &str, claims: &Value) -> String {
        let pair = P256Signer::from_pkcs8_der(self.key.pkcs8_der().unwrap()).unwrap();
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = pair.sign(input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn verify_header(&self, header: &str) -> Result<VerifiedClaims, JwtError> {
        verify(&self.sign_with_header(header, &claims()), &self.keys, &JwtExpectations::at(now()))
    }
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[test]
fn verified_claims_say_what_was_signed() {
    let issuer = Issuer::new();
    let token = issuer.sign(&claims());
    let expect = JwtExpectations::at(now()).with_issuer("https://issuer").with_audiences(["bank"]);
    let verified = verify(&token, &issuer.keys, &expect).unwrap();
    assert_eq!((verified.subject(), verified.issuer()), (Some("alice"), Some("https://issuer")));
    assert_eq!(verified.audiences(), ["shop", "bank"]);
    assert_eq!(verified.expires_at(), Some(now() + Duration::from_secs(300)));
    assert_eq!(verified.issued_at(), Some(now()));
    assert_eq!(verified.request_principal().unwrap(), "https://issuer/alice");
    assert_eq!(verified.encoded_payload(), token.split('.').nth(1).unwrap());
    assert_eq!(Value::Object(verified.claims().clone()), claims());
}

#[test]
fn times_are_checked_with_leeway() {
    let issuer = Issuer::new();
    let reason = |claims: &Value| issuer.verify(claims).map_err(|error| error.reason()).err();
    assert_eq!(reason(&with("exp", json!(NOW - 59))), None);
    assert_eq!(reason(&with("exp", json!(NOW - 60))), Some("JWT_EXPIRED"));
    assert_eq!(reason(&with("nbf", json!(NOW + 60))), None);
    assert_eq!(reason(&with("nbf", json!(NOW + 61))), Some("JWT_NOT_YET_VALID"));
    assert_eq!(reason(&without("exp")), Some("JWT_MALFORMED"));
    let lenient = JwtExpectations { expiry_required: false, ..JwtExpectations::at(now()) };
    let verified = verify(&issuer.sign(&without("exp")), &issuer.keys, &lenient).unwrap();
    assert_eq!(verified.expires_at(), None);
}

#[test]
fn strange_dates_never_panic() {
    let issuer = Issuer::new();
    let reason = |name: &str, value: Value| issuer.verify(&with(name, value)).map_err(|error| error.reason()).err();
    for past in [json!(-1), json!(0), json!(-1.5e300), json!(i64::MIN), json!(0.5)] {
        assert_eq!(reason("exp", past), Some("JWT_EXPIRED"));
    }
    for future in [json!(1e18), json!(u64::MAX), json!(i64::MAX), json!(1.7e308), json!(NOW as f64 + 0.5)] {
        assert_eq!(reason("exp", future), None);
    }
    for future in [json!(1e18), json!(u64::MAX)] {
        assert_eq!(reason("nbf", future), Some("JWT_NOT_YET_VALID"));
    }
    for wrong in [json!("1800000300"), json!(null), json!([]), json!(true)] {
        assert_eq!(reason("exp", wrong.clone()), Some("JWT_MALFORMED"));
        assert_eq!(reason("iat", wrong), Some("JWT_MALFORMED"));
    }
}

#[test]
fn issuer_and_audience_must_match() {
    let issuer = Issuer::new();
    let reason = |claims: &Value, expect: JwtExpectations| {
        verify(&issuer.sign(claims), &issuer.keys, &expect).map_err(|error| error.reason()).err()
    };
    let expect = || JwtExpectations::at(now());
    assert_eq!(reason(&claims(), expect().with_issuer("https://issuer/")), Some("JWT_WRONG_ISSUER"));
    assert_eq!(reason(&without("iss"), expect().with_issuer("https://issuer")), Some("JWT_WRONG_ISSUER"));
    assert_eq!(reason(&with("aud", json!("bank")), expect().with_audiences(["bank"])), None);
    for aud in [json!("ban"), json!([]), json!(["x"])] {
        assert_eq!(reason(&with("aud", aud), expect().with_audiences(["bank", "y"])), Some("JWT_WRONG_AUDIENCE"));
    }
    assert_eq!(reason(&without("aud"), expect().with_audiences(["bank"])), Some("JWT_WRONG_AUDIENCE"));
    assert_eq!(reason(&without("aud"), expect()), None);
    for aud in [json!(7), json!([7]), json!({})] {
        assert_eq!(reason(&with("aud", aud), expect()), Some("JWT_MALFORMED"));
    }
    assert_eq!(reason(&with("sub", json!(7)), expect()), Some("JWT_MALFORMED"));
}

#[test]
fn the_key_decides_the_algorithm() {
    let issuer = Issuer::new();
    for algorithm in ["none", "None", "nOnE", "es256", "HS256", "RS256", "ES384", "ES256K", "EdDSA", ""] {
        let header = json!({"alg": algorithm}).to_string();
        assert_eq!(issuer.verify_header(&header).unwrap_err().reason(), "JWT_ALG_NOT_ALLOWED", "{algorithm}");
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let issuer = Issuer::new();
    let public = issuer.key.public(None);
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": issuer.key.key_id()}).to_string());
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims().to_string()));
    let pem = crate::pem::encode("PUBLIC KEY", &public.spki_der());
    for secret in [public.spki_der(), pem.into_bytes()] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let tag = hmac::sign(&key, input.as_bytes());
        let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag));
        let error = verify(&token, &issuer.keys, &JwtExpectations::at(now())).unwrap_err();
        assert_eq!(error, JwtError::AlgorithmNotAllowed);
    }
}

#[test]
fn shared_secrets_beside_public_keys_are_ignored() {
    let secret = json!({"kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode([7; 32])});
    let public = Value::Object(Issuer::new().key.public(None).jwk.to_json());
    let set = |keys: Value| JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    assert_eq!(set(json!([secret])).len(), 1);
    assert_eq!((set(json!([secret, public])).len(), set(json!([public, secret])).ignored()), (1, 1));
}

#[test]
fn headers_are_strict() {
    let issuer = Issuer::new();
    let reason = |header: &str| issuer.verify_header(header).map_err(|error| error.reason()).err();
    assert_eq!(reason(r#"{"alg":"ES256"}"#), None);
    for header in [
        r#"{"alg":"ES256","crit":["exp"]}"#,
        r#"{"alg":"ES256","crit":[]}"#,
        r#"{"alg":"ES256","b64":false}"#,
        r#"{"alg":"ES256","alg":"ES256"}"#,
        r#"{"alg":"none","alg":"ES256"}"#,
        r#"{"alg":["ES256"]}"#,
        r#"{"alg":"ES256","kid":7}"#,
        r#"{"typ":"JWT"}"#,
        r#"["ES256"]"#,
        "",
    ] {
        assert_eq!(reason(header), Some("JWT_MALFORMED"), "{header}");
    }
    let kid = issuer.key.key_id();
    assert_eq!(reason(&json!({"alg": "ES256", "kid": kid}).to_string()), None);
    assert_eq!(reason(r#"{"alg":"ES256","kid":"other"}"#), Some("JWT_NO_KEY"));
    assert_eq!(reason(r#"{"alg":"ES256","jwk":{"kty":"EC"},"jku":"https://evil"}"#), None, "and never used");
}

#[test]
fn tokens_of_another_kind_are_refused() {
    let issuer = Issuer::new();
    let verdict = |kind: &str| issuer.verify_header(&json!({"alg": "ES256", "typ": kind}).to_string());
    for kind in ["JWT", "jwt", "JOSE", "at+jwt", "application/at+jwt"] {
        assert!(verdict(kind).is_ok(), "{kind}");
    }
    for kind in ["wit+jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", ""] {
        assert_eq!(verdict(kind).unwrap_err(), JwtError::Type, "{kind}");
    }
}

#[test]
fn only_the_compact_form_is_read() {
    let issuer = Issuer::new();
    let token = issuer.sign(&claims());
    let reason =
        |token: &str| verify(token, &issuer.keys, &JwtExpectations::at(now())).map_err(|error| error.reason()).err();
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let json_form = json!({"payload": payload, "protected": header, "signature": signature}).to_string();
    for bad in [
        "",
        ".",
        "..",
        "...",
        &json_form,
        &format!("{header}.{payload}"),
        &format!("{token}."),
        &format!("{token}.x"),
        &format!(" {token}"),
        &format!("{token}\n"),
        &format!("{header}=.{payload}.{signature}"),
        &format!("{header}.{payload}.{signature}=="),
        &format!("{header}.{payload}.{signature}+"),
    ] {
        assert_eq!(reason(bad), Some("JWT_MALFORMED"), "{bad}");
    }
    assert_eq!(reason(&format!("{header}.{payload}.")), Some("JWT_BAD_SIGNATURE"));
    assert_eq!(reason(&"a".repeat(TOKEN_BYTES_MAX + 1)), Some("JWT_MALFORMED"));
}

#[test]
fn payloads_are_one_object_without_doubles() {
    let issuer = Issuer::new();
    for payload in ["[]", "7", "{", r#"{"exp":9999999999,"exp":9999999999}"#, r#"{"exp":9999999999} "x""#] {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(payload));
        let pair = P256Signer::from_pkcs8_der(issuer.key.pkcs8_der().unwrap()).unwrap();
        let signature = pair.sign(input.as_bytes()).unwrap();
        let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
        let error = verify(&token, &issuer.keys, &JwtExpectations::at(now())).unwrap_err();
        assert_eq!(error.reason(), "JWT_MALFORMED", "{payload}");
    }
}

#[test]
fn no_changed_bit_is_accepted() {
    let issuer = Issuer::new();
    let token = issuer.sign(&claims());
    for at in 0..token.len() {
        for bit in 0..7 {
            let mut changed = token.clone().into_bytes();
            changed[at] ^= 1 << bit;
            let changed = String::from_utf8(changed).unwrap();
            assert!(verify(&changed, &issuer.keys, &JwtExpectations::at(now())).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn keys_without_an_id_are_tried_for_any_token() {
    let issuer = Issuer::new();
    let jwk = Jwk { key_id: None, ..issuer.key.public(None).jwk };
    let keys = JwkSet::from_keys([&jwk]);
    assert!(verify(&issuer.sign(&claims()), &keys, &JwtExpectations::at(now())).is_ok());
    let other = Issuer::new();
    let error = verify(&other.sign(&claims()), &keys, &JwtExpectations::at(now())).unwrap_err();
    assert_eq!(error, JwtError::BadSignature);
    let error = verify(&other.sign(&claims()), &JwkSet::default(), &JwtExpectations::at(now())).unwrap_err();
    assert_eq!(error, JwtError::NoKey);
}

// JWT-SVIDs.

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn bundle_set(domains: &[(&str, &JwtAuthorityKey)]) -> BundleSet {
    domains
        .iter()
        .map(|(name, key)| {
            let mut bundle = TrustBundle::new(td(name));
            bundle.jwt_authorities.push(key.public(None));
            Arc::new(bundle)
        })
        .collect()
}

fn svid_profile(id: &str) -> JwtSvidProfile {
    JwtSvidProfile {
        id: SpiffeId::parse(id).unwrap(),
        audiences: vec!["bank".to_owned()],
        ttl: Duration::from_secs(300),
        issuer: None,
        token_id: None,
    }
}

#[test]
fn a_jwt_svid_verifies_with_its_own_trust_domain() {
    let key = JwtAuthorityKey::generate().unwrap();
    let svid = key.sign_svid(&svid_profile("spiffe://td/cart"), now()).unwrap();
    let verified = verify_svid(&svid.token, &bundle_set(&[("td", &key)]), "bank", now()).unwrap();
    assert_eq!(verified.spiffe_id().as_str(), "spiffe://td/cart");
    assert_eq!(verified.claims().expires_at(), Some(svid.expires_at));
    assert_eq!((svid.issued_at, svid.expires_at), (now(), now() + Duration::from_secs(300)));
    let names: Vec<_> = verified.claims().claims().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let header = URL_SAFE_NO_PAD.decode(svid.token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header, json!({"alg": "ES256", "kid": key.key_id(), "typ": "JWT"}));
}

#[test]
fn j_13_jwt_svids_do_not_cross_trust_domains() {
    let (a, b) = (JwtAuthorityKey::generate().unwrap(), JwtAuthorityKey::generate().unwrap());
    let forged = b.sign_svid(&svid_profile("spiffe://a/cart"), now()).unwrap();
    let set = bundle_set(&[("a", &a), ("b", &b)]);
    assert_eq!(verify_svid(&forged.token, &set, "bank", now()).unwrap_err(), JwtError::NoKey);
    let same_id = JwtAuthorityKey::from_pkcs8_der(a.key_id(), b.pkcs8_der().unwrap()).unwrap();
    let forged = same_id.sign_svid(&svid_profile("spiffe://a/cart"), now()).unwrap();
    assert_eq!(verify_svid(&forged.token, &set, "bank", now()).unwrap_err(), JwtError::BadSignature);
    let foreign = a.sign_svid(&svid_profile("spiffe://c/cart"), now()).unwrap();
    assert_eq!(verify_svid(&foreign.token, &set, "bank", now()).unwrap_err().reason(), "JWT_TRUST_DOMAIN_UNKNOWN");
}

#[test]
fn j_05_j_06_j_07_j_08_jwt_svids_are_stricter_than_other_tokens() {
    let issuer = Issuer::new();
    let set = bundle_set(&[("td", &issuer.key)]);
    let base = json!({"sub": "spiffe://td/cart", "aud": "bank", "exp": NOW + 300});
    let reason = |header: &str, change: &dyn Fn(&mut Map<String, Value>)| {
        let mut claims = base.clone();
        change(claims.as_object_mut().unwrap());
        let token = issuer.sign_with_header(header, &claims);
        verify_svid(&token, &set, "bank", now()).map_err(|error| error.reason()).err()
    };
    let plain = r#"{"alg":"ES256"}"#;
    assert_eq!(reason(plain, &|_| {}), None);
    assert_eq!(reason(r#"{"alg":"ES256","typ":"JOSE"}"#, &|_| {}), None);
    assert_eq!(reason(r#"{"alg":"ES256","typ":"at+jwt"}"#, &|_| {}), Some("JWT_MALFORMED"));
    assert_eq!(reason(r#"{"alg":"EdDSA"}"#, &|_| {}), Some("JWT_ALG_NOT_ALLOWED"));
    assert_eq!(reason(r#"{"alg":"HS256"}"#, &|_| {}), Some("JWT_ALG_NOT_ALLOWED"));
    assert_eq!(reason(plain, &|c| drop(c.remove("exp"))), Some("JWT_MALFORMED"));
    assert_eq!(reason(plain, &|c| drop(c.remove("sub"))), Some("JWT_MALFORMED"));
    assert_eq!(reason(plain, &|c| drop(c.insert("sub".into(), json!("alice")))), Some("JWT_SUBJECT_NOT_SPIFFE_ID"));
    assert_eq!(reason(plain, &|c| drop(c.remove("aud"))), Some("JWT_WRONG_AUDIENCE"));
    assert_eq!(reason(plain, &|c| drop(c.insert("aud".into(), json!([])))), Some("JWT_WRONG_AUDIENCE"));
    assert_eq!(reason(plain, &|c| drop(c.insert("aud".into(), json!(["bank2"])))), Some("JWT_WRONG_AUDIENCE"));
    let token = issuer.sign_with_header(plain, &json!({"sub": "spiffe://td/a", "aud": "", "exp": NOW + 300}));
    assert_eq!(verify_svid(&token, &set, "", now()).unwrap_err(), JwtError::WrongAudience);
}

#[test]
fn j_07_a_jwt_svid_needs_an_audience() {
    let key = JwtAuthorityKey::generate().unwrap();
    for audiences in [vec![], vec![String::new()]] {
        let profile = JwtSvidProfile { audiences, ..svid_profile("spiffe://td/cart") };
        assert_eq!(key.sign_svid(&profile, now()).unwrap_err().reason(), "JWT_AUDIENCE_MISSING");
    }
}

#[test]
fn stored_keys_sign_on_under_their_id() {
    let key = JwtAuthorityKey::generate().unwrap();
    let again = JwtAuthorityKey::from_pkcs8_der("stored", key.pkcs8_der().unwrap()).unwrap();
    assert_eq!((again.key_id(), again.public(None).spki_der()), ("stored", key.public(None).spki_der()));
    assert!(JwtAuthorityKey::from_pkcs8_der("x", b"junk").is_err());
    assert!(!format!("{key:?}").contains("pkcs8"));
}

#[test]
fn the_unverified_issuer_only_chooses_keys() {
    let issuer = Issuer::new();
    assert_eq!(danger_unverified_issuer(&issuer.sign(&claims())).as_deref(), Some("https://issuer"));
    assert_eq!(danger_unverified_issuer("junk"), None);
}

proptest! {
    #[test]
    fn any_text_is_handled(text in ".{0,200}") {
        prop_assert!(verify(&text, &JwkSet::default(), &JwtExpectations::at(now())).is_err());
    }

    #[test]
    fn any_header_and_payload_are_handled(header in any::<Vec<u8>>(), payload in any::<Vec<u8>>()) {
        let token = format!("{}.{}.AA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        prop_assert!(verify(&token, &JwkSet::default(), &JwtExpectations::at(now())).is_err());
    }
}
