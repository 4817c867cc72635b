//! WIT-SVIDs with and without proofs, good and forged; each test is a demand of the standard.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::bundle::TrustBundle;
use crate::jwt::{JwtAuthorityKey, JwtSvidProfile, SignError, TokenKey, verify_svid};
use crate::spiffe_id::TrustDomain;

const NOW: u64 = 1_800_000_000;
const AUDIENCE: &str = "https://bank";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// An authority, a workload with its key, and who trusts the authority.
struct World {
    authority: WitAuthorityKey,
    holder: WitKey,
    bundles: BundleSet,
}

impl World {
    fn new() -> Self {
        let authority = WitAuthorityKey::generate().unwrap();
        let mut bundle = TrustBundle::new(td("td"));
        bundle.wit_authorities.push(authority.public(None));
        Self { holder: WitKey::generate().unwrap(), bundles: BundleSet::new([Arc::new(bundle)]), authority }
    }

    fn profile(&self) -> WitSvidProfile {
        WitSvidProfile {
            id: SpiffeId::parse("spiffe://td/cart").unwrap(),
            key: HolderKey::from_spki_der(&self.holder.public_key_spki(), "").unwrap(),
            ttl: secs(300),
            backdate: secs(10),
            token_id: Some("t1".to_owned()),
        }
    }

    fn wit(&self) -> String {
        self.authority.sign_svid(&self.profile(), now()).unwrap().token
    }

    /// The claims of a good WIT.
    fn claims(&self) -> Value {
        part(&self.wit(), 1)
    }

    fn prove(&self, wit: &str) -> String {
        self.holder.prove(wit, AUDIENCE, secs(30), now()).unwrap()
    }

    fn verify(&self, wit: &str, proof: &str) -> Result<VerifiedWit, &'static str> {
        verify(wit, proof, &self.bundles, &WitExpectations::at(AUDIENCE, now())).map_err(|error| error.reason())
    }

    /// The verdict on a WIT with another header and other claims, signed by the authority and proven by the holder.
    fn judge(&self, header: &Value, claims: &Value) -> Option<&'static str> {
        let wit = sign(self.authority.pkcs8_der().unwrap(), header, claims);
        self.verify(&wit, &self.prove(&wit)).err()
    }

    fn header(&self) -> Value {
        json!({"alg": "ES256", "kid": self.authority.key_id(), "typ": "wit+jwt"})
    }

    fn judge_claim(&self, name: &str, value: Option<Value>) -> Option<&'static str> {
        self.judge(&self.header(), &changed(self.claims(), name, value))
    }

    fn judge_header(&self, name: &str, value: Option<Value>) -> Option<&'static str> {
        self.judge(&changed(self.header(), name, value), &self.claims())
    }

    /// The verdict on a proof with another header and other claims, for a good WIT.
    fn judge_proof(&self, header: &Value, name: &str, value: Option<Value>) -> Option<&'static str> {
        let wit = self.wit();
        let claims = changed(part(&self.prove(&wit), 1), name, value);
        self.verify(&wit, &sign(self.holder.pkcs8_der(), header, &claims)).err()
    }
}

fn changed(mut object: Value, name: &str, value: Option<Value>) -> Value {
    match value {
        Some(value) => object[name] = value,
        None => drop(object.as_object_mut().unwrap().remove(name)),
    }
    object
}

fn part(token: &str, at: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

fn part_of(object: &str, name: &str) -> Value {
    serde_json::from_str::<Value>(object).unwrap()[name].clone()
}

/// Signs what nobody would sign.
fn sign(pkcs8: &[u8], header: &Value, claims: &Value) -> String {
    let pair = crate::crypto::P256Signer::from_pkcs8_der(pkcs8).unwrap();
    let input = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = pair.sign(input.as_bytes()).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn proof_header() -> Value {
    json!({"alg": "ES256", "typ": "wpt+jwt"})
}

#[test]
fn a_wit_with_its_proof_names_the_workload_and_its_key() {
    let world = World::new();
    let wit = world.wit();
    let verified = world.verify(&wit, &world.prove(&wit)).unwrap();
    assert_eq!(verified.spiffe_id().as_str(), "spiffe://td/cart");
    assert_eq!(verified.key().spki_der().unwrap(), world.holder.public_key_spki());
    assert_eq!(verified.claims().expires_at(), Some(now() + secs(300)));
    assert_eq!(verified.proof().audiences(), [AUDIENCE]);
}

#[test]
fn w_15_issued_wits_carry_what_the_standard_demands_and_no_more() {
    let world = World::new();
    let wit = world.authority.sign_svid(&world.profile(), now()).unwrap();
    assert_eq!(part(&wit.token, 0), world.header());
    let claims = part(&wit.token, 1);
    let names: Vec<&str> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["cnf", "exp", "iat", "jti", "nbf", "sub"]);
    assert_eq!((&claims["exp"], &claims["iat"], &claims["nbf"]), (&json!(NOW + 300), &json!(NOW), &json!(NOW - 10)));
    let key = claims["cnf"]["jwk"].as_object().unwrap();
    assert_eq!(key.keys().map(String::as_str).collect::<Vec<_>>(), ["alg", "crv", "kty", "x", "y"]);
    assert_eq!(key["alg"], "ES256");
    assert_eq!((wit.issued_at, wit.expires_at), (now(), now() + secs(300)));
    let without = WitSvidProfile { token_id: None, ..world.profile() };
    assert!(part(&world.authority.sign_svid(&without, now()).unwrap().token, 1).get("jti").is_none());
}

#[test]
fn w_01_a_wit_needs_a_kid_that_matches_exactly() {
    let world = World::new();
    assert_eq!(world.judge_header("kid", None), Some("WIT_MALFORMED"));
    assert_eq!(world.judge_header("kid", Some(json!(""))), Some("WIT_MALFORMED"));
    assert_eq!(world.judge_header("kid", Some(json!(7))), Some("JWT_MALFORMED"));
    let other_case = world.authority.key_id().chars().map(|c| if c.is_ascii_lowercase() { 'X' } else { c });
    assert_eq!(world.judge_header("kid", Some(json!(other_case.collect::<String>()))), Some("JWT_NO_KEY"));
}

#[test]
fn w_02_the_type_of_a_wit_is_exact() {
    let world = World::new();
    assert_eq!(world.judge_header("typ", Some(json!("wit+jwt"))), None);
    for kind in [None, Some(json!("JWT")), Some(json!("WIT+JWT")), Some(json!("application/wit+jwt")), Some(json!(""))]
    {
        assert_eq!(world.judge_header("typ", kind.clone()), Some("WIT_MALFORMED"), "{kind:?}");
    }
}

#[test]
fn w_03_only_the_nine_algorithms_sign_wits() {
    let world = World::new();
    for algorithm in ["none", "EdDSA", "HS256", "ES256K", "es256", "", "RS256", "ES384"] {
        assert_eq!(world.judge_header("alg", Some(json!(algorithm))), Some("JWT_ALG_NOT_ALLOWED"), "{algorithm}");
    }
}

#[test]
fn w_04_unknown_header_members_are_ignored_unless_critical() {
    let world = World::new();
    assert_eq!(world.judge_header("x", Some(json!(1))), None);
    assert_eq!(world.judge_header("crit", Some(json!(["x"]))), Some("JWT_MALFORMED"));
}

#[test]
fn w_05_the_subject_of_a_wit_is_a_spiffe_id() {
    let world = World::new();
    assert_eq!(world.judge_claim("sub", None), Some("JWT_MALFORMED"));
    assert_eq!(world.judge_claim("sub", Some(json!("alice"))), Some("JWT_SUBJECT_NOT_SPIFFE_ID"));
    assert_eq!(world.judge_claim("sub", Some(json!("spiffe://other/a"))), Some("JWT_TRUST_DOMAIN_UNKNOWN"));
}

#[test]
fn w_06_a_wit_without_a_confirmation_key_is_refused() {
    let world = World::new();
    for cnf in [None, Some(json!(null)), Some(json!({})), Some(json!({"kid": "k"})), Some(json!([]))] {
        assert_eq!(world.judge_claim("cnf", cnf.clone()), Some("WIT_MALFORMED"), "{cnf:?}");
    }
}

#[test]
fn w_07_the_confirmation_key_is_public_and_for_one_of_the_nine_algorithms() {
    let world = World::new();
    let good = world.claims()["cnf"]["jwk"].clone();
    let with = |name, value| world.judge_claim("cnf", Some(json!({"jwk": changed(good.clone(), name, value)})));
    assert_eq!(with("alg", Some(json!("ES256"))), None);
    assert_eq!(with("kid", Some(json!("any"))), None, "the key's ID is its holder's affair");
    let bad =
        [("alg", None), ("alg", Some(json!("EdDSA"))), ("alg", Some(json!("ES384"))), ("alg", Some(json!("none")))];
    for (name, value) in bad.into_iter().chain([("d", Some(json!("AA"))), ("x", None), ("kty", Some(json!("oct")))]) {
        assert_eq!(with(name, value.clone()), Some("WIT_KEY_REFUSED"), "{name} {value:?}");
    }
    let off_curve = json!({"alg": "ES256", "crv": "P-256", "kty": "EC", "x": good["x"], "y": good["x"]});
    assert_eq!(world.judge_claim("cnf", Some(json!({ "jwk": off_curve }))), Some("WIT_KEY_REFUSED"));
    let secret = json!({"alg": "HS256", "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32])});
    assert_eq!(world.judge_claim("cnf", Some(json!({ "jwk": secret }))), Some("WIT_KEY_REFUSED"));
}

#[test]
fn w_08_the_token_id_of_a_wit_says_nothing_about_replay() {
    let world = World::new();
    assert_eq!(world.judge_claim("jti", None), None);
    let (wit, mut window) = (world.wit(), ProofWindow::default());
    for _ in 0..2 {
        let verified = world.verify(&wit, &world.prove(&wit)).unwrap();
        window.admit(&verified, &WitExpectations::at(AUDIENCE, now())).unwrap();
    }
}

#[test]
fn w_09_a_wit_must_end_and_not_have_ended() {
    let world = World::new();
    assert_eq!(world.judge_claim("exp", None), Some("JWT_MALFORMED"));
    assert_eq!(world.judge_claim("exp", Some(json!(NOW - 59))), None, "clocks may differ by a minute");
    assert_eq!(world.judge_claim("exp", Some(json!(NOW - 60))), Some("JWT_EXPIRED"));
}

#[test]
fn w_10_w_11_a_wit_is_not_valid_before_its_time_whenever_it_was_issued() {
    let world = World::new();
    assert_eq!(world.judge_claim("nbf", Some(json!(NOW + 61))), Some("JWT_NOT_YET_VALID"));
    assert_eq!(world.judge_claim("nbf", None), None);
    assert_eq!(world.judge_claim("iat", Some(json!(NOW + 10_000))), None, "iat bounds nothing");
}

#[test]
fn w_10_a_verifier_may_limit_the_life_of_a_wit() {
    let world = World::new();
    let wit = world.wit();
    let verdict = |max| {
        let expect = WitExpectations { life_max: Some(secs(max)), ..WitExpectations::at(AUDIENCE, now()) };
        verify(&wit, &world.prove(&wit), &world.bundles, &expect).map_err(|error| error.reason()).err()
    };
    assert_eq!((verdict(310), verdict(309)), (None, Some("WIT_LIFE_TOO_LONG")));
}

#[test]
fn w_12_w_13_issued_wits_have_no_issuer_and_no_audience_and_one_with_an_audience_is_refused() {
    let world = World::new();
    assert!(world.claims().get("iss").is_none() && world.claims().get("aud").is_none());
    for audience in [json!("x"), json!([]), json!([AUDIENCE])] {
        assert_eq!(world.judge_claim("aud", Some(audience)), Some("WIT_MALFORMED"));
    }
}

#[test]
fn w_14_unknown_claims_of_a_wit_are_ignored() {
    assert_eq!(World::new().judge_claim("vendor", Some(json!({"a": 1}))), None);
}

#[test]
fn w_15_the_issuer_refuses_keys_that_no_wit_may_name() {
    let spki =
        |algorithm| rcgen::PublicKeyData::subject_public_key_info(&rcgen::KeyPair::generate_for(algorithm).unwrap());
    let key = |spki: &[u8], algorithm| HolderKey::from_spki_der(spki, algorithm).map_err(|error| error.reason()).err();
    let p256 = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
    assert_eq!((key(&p256, ""), key(&p256, "ES256")), (None, None));
    for algorithm in ["ES384", "RS256", "HS256", "none", "es256"] {
        assert_eq!(key(&p256, algorithm), Some("WIT_KEY_REFUSED"), "{algorithm}");
    }
    if cfg!(feature = "aws-lc-rs") {
        let rsa = spki(&rcgen::PKCS_RSA_SHA256);
        assert_eq!((key(&rsa, ""), key(&rsa, "PS512"), key(&rsa, "ES256")), (None, None, Some("WIT_KEY_REFUSED")));
    }
    let ed25519 = spki(&rcgen::PKCS_ED25519);
    assert_eq!((key(&ed25519, ""), key(&ed25519, "EdDSA")), (Some("WIT_KEY_REFUSED"), Some("WIT_KEY_REFUSED")));
    assert_eq!(key(b"junk", ""), Some("WIT_KEY_REFUSED"));
}

#[test]
fn w_16_a_wit_without_a_proof_by_its_own_key_is_refused() {
    let world = World::new();
    let wit = world.wit();
    for proof in ["", "x", &wit] {
        assert_eq!(world.verify(&wit, proof).unwrap_err(), "WIT_PROOF_REFUSED", "{proof}");
    }
    let thief = WitKey::generate().unwrap();
    let forged = thief.prove(&wit, AUDIENCE, secs(30), now()).unwrap();
    assert_eq!(world.verify(&wit, &forged).unwrap_err(), "WIT_PROOF_REFUSED");
}

#[test]
fn a_proof_is_for_one_wit() {
    let world = World::new();
    let (wit, mut other) = (world.wit(), world.profile());
    other.token_id = Some("t2".to_owned());
    let other = world.authority.sign_svid(&other, now()).unwrap().token;
    assert_eq!(world.verify(&other, &world.prove(&wit)).unwrap_err(), "WIT_PROOF_OF_ANOTHER");
    assert_eq!(world.judge_proof(&proof_header(), "wth", None), Some("WIT_PROOF_OF_ANOTHER"));
}

#[test]
fn a_proof_is_for_one_audience_and_of_its_own_type() {
    let world = World::new();
    assert_eq!(world.judge_proof(&proof_header(), "x", Some(json!(1))), None);
    for audience in [None, Some(json!("https://other")), Some(json!([])), Some(json!([AUDIENCE, "https://other"]))] {
        assert_eq!(world.judge_proof(&proof_header(), "aud", audience), Some("WIT_PROOF_REFUSED"));
    }
    for id in [None, Some(json!("")), Some(json!(7))] {
        assert_eq!(world.judge_proof(&proof_header(), "jti", id), Some("WIT_PROOF_REFUSED"));
    }
    for kind in [json!("JWT"), json!("dpop+jwt"), json!("wit+jwt"), json!(null)] {
        let header = json!({"alg": "ES256", "typ": kind});
        assert_eq!(world.judge_proof(&header, "x", Some(json!(1))), Some("WIT_PROOF_REFUSED"), "{kind}");
    }
    for algorithm in ["none", "ES384", "HS256"] {
        let header = json!({"alg": algorithm, "typ": "wpt+jwt"});
        assert_eq!(world.judge_proof(&header, "x", Some(json!(1))), Some("WIT_PROOF_REFUSED"), "{algorithm}");
    }
}

#[test]
fn w_18_the_life_of_a_proof_is_short() {
    let world = World::new();
    let with = |exp: Option<Value>| world.judge_proof(&proof_header(), "exp", exp);
    let longest = NOW + PROOF_LIFE_MAX.as_secs() + LEEWAY_DEFAULT.as_secs();
    assert_eq!((with(Some(json!(longest))), with(Some(json!(longest + 1)))), (None, Some("WIT_PROOF_REFUSED")));
    assert_eq!((with(Some(json!(NOW - 59))), with(Some(json!(NOW - 60)))), (None, Some("WIT_PROOF_REFUSED")));
    assert_eq!(with(None), Some("WIT_PROOF_REFUSED"));
}

#[test]
fn w_18_a_proof_used_twice_is_refused_within_its_life() {
    let world = World::new();
    let (wit, mut window) = (world.wit(), ProofWindow::default());
    let expect = WitExpectations::at(AUDIENCE, now());
    let verified = world.verify(&wit, &world.prove(&wit)).unwrap();
    assert_eq!(window.admit(&verified, &expect), Ok(()));
    assert_eq!(window.admit(&verified, &expect), Err(WitError::ProofReplayed));
    let again = world.verify(&wit, &world.prove(&wit)).unwrap();
    assert_eq!(window.admit(&again, &expect), Ok(()), "another proof of the same key");
}

#[test]
fn a_full_window_forgets_only_what_has_ended() {
    let world = World::new();
    let wit = world.wit();
    let mut window = ProofWindow::full(now() + secs(10));
    let verified = world.verify(&wit, &world.prove(&wit)).unwrap();
    assert_eq!(window.admit(&verified, &WitExpectations::at(AUDIENCE, now())), Err(WitError::ProofsTooMany));
    assert_eq!(window.admit(&verified, &WitExpectations::at(AUDIENCE, now() + secs(10))), Ok(()));
}

#[test]
fn w_17_a_wit_is_never_a_bearer_token() {
    let world = World::new();
    let wit = world.wit();
    let keys = JwkSet::from_keys([&world.authority.public(None).jwk]);
    let error = crate::jwt::verify(&wit, &keys, &JwtExpectations::at(now())).unwrap_err();
    assert_eq!(error, JwtError::Type);
    assert_eq!(verify_svid(&wit, &world.bundles, AUDIENCE, now()).unwrap_err(), JwtError::Type);
}

#[test]
fn w_21_wit_keys_and_jwt_keys_never_stand_in_for_each_other() {
    let world = World::new();
    // The same key as JWT key only: the WIT is not verified by it.
    let mut bundle = TrustBundle::new(td("td"));
    bundle.jwt_authorities.push(world.authority.public(None));
    let as_jwt = BundleSet::new([Arc::new(bundle)]);
    let wit = world.wit();
    let error = verify(&wit, &world.prove(&wit), &as_jwt, &WitExpectations::at(AUDIENCE, now())).unwrap_err();
    assert_eq!(error, WitError::Wit(JwtError::NoKey));
    // A JWT-SVID signed with a WIT key, under the WIT key's ID.
    let key = JwtAuthorityKey::from_pkcs8_der(world.authority.key_id(), world.authority.pkcs8_der().unwrap()).unwrap();
    let profile = JwtSvidProfile {
        id: SpiffeId::parse("spiffe://td/cart").unwrap(),
        audiences: vec![AUDIENCE.to_owned()],
        ttl: secs(300),
        issuer: None,
        token_id: None,
    };
    let token = key.sign_svid(&profile, now()).unwrap().token;
    assert_eq!(verify_svid(&token, &world.bundles, AUDIENCE, now()).unwrap_err(), JwtError::NoKey);
    assert!(verify_svid(&token, &as_jwt, AUDIENCE, now()).is_ok());
}

#[test]
fn wits_do_not_cross_trust_domains() {
    let (a, b) = (World::new(), WitAuthorityKey::generate().unwrap());
    let same_id = WitAuthorityKey::from_pkcs8_der(a.authority.key_id(), b.pkcs8_der().unwrap()).unwrap();
    let mut other = TrustBundle::new(td("other"));
    other.wit_authorities.push(same_id.public(None));
    let bundles = BundleSet::new([a.bundles.get(&td("td")).unwrap().clone(), Arc::new(other)]);
    let wit = same_id.sign_svid(&a.profile(), now()).unwrap().token;
    let error = verify(&wit, &a.prove(&wit), &bundles, &WitExpectations::at(AUDIENCE, now())).unwrap_err();
    assert_eq!(error, WitError::Wit(JwtError::BadSignature));
}

#[test]
fn the_holders_key_is_written_as_a_private_jwk_and_never_printed() {
    let holder = WitKey::generate().unwrap();
    let text = holder.private_jwk().unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["alg", "crv", "d", "kid", "kty", "x", "y"]);
    let secret = URL_SAFE_NO_PAD.decode(json["d"].as_str().unwrap()).unwrap();
    assert_eq!(secret.len(), 32);
    assert!(holder.pkcs8_der().windows(32).any(|window| window == secret), "the number of the PKCS#8 key");
    assert_eq!(Jwk::from_json(&json), Err(JwkError::Private));
    let public = Jwk::from_json(&changed(json, "d", None)).unwrap();
    assert_eq!(public.spki_der().unwrap(), holder.public_key_spki());
    assert_eq!(format!("{holder:?}"), "WitKey(redacted)");
    for again in [WitKey::from_pkcs8_der(holder.pkcs8_der()), WitKey::from_private_jwk(&text)] {
        let again = again.unwrap();
        assert_eq!(again.public_key_spki(), holder.public_key_spki());
        assert_eq!(again.private_jwk().unwrap(), text);
    }
    let other = WitKey::generate().unwrap().private_jwk().unwrap();
    let mixed = changed(serde_json::from_str(&text).unwrap(), "d", Some(part_of(&other, "d")));
    for bad in ["", "{}", &mixed.to_string(), &changed(mixed, "d", None).to_string()] {
        assert!(WitKey::from_private_jwk(bad).is_err(), "{bad}");
    }
    assert!(matches!(WitKey::from_pkcs8_der(b"junk"), Err(SignError::Key(_))));
}

#[test]
fn no_changed_bit_of_a_wit_or_a_proof_is_accepted() {
    let world = World::new();
    let wit = world.wit();
    let proof = world.prove(&wit);
    let flips = |text: &str| {
        let text = text.to_owned();
        (0..text.len()).step_by(3).map(move |at| {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            String::from_utf8(bytes).unwrap()
        })
    };
    assert!(flips(&wit).all(|changed| world.verify(&changed, &proof).is_err()));
    assert!(flips(&proof).all(|changed| world.verify(&wit, &changed).is_err()));
}

#[test]
fn stored_authorities_sign_on_under_their_id() {
    let key = WitAuthorityKey::generate().unwrap();
    let again = WitAuthorityKey::from_pkcs8_der("stored", key.pkcs8_der().unwrap()).unwrap();
    assert_eq!((again.key_id(), again.public(None).spki_der()), ("stored", key.public(None).spki_der()));
    assert!(!format!("{key:?}").contains("pkcs8"));
    assert!(TokenKey::load(b"junk", None, |_| json!({})).is_err());
}
