//! Bundles written and read back, and documents that are not bundles.

mod standard;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::authority::X509Authority;
use crate::jwt::JwtAuthorityKey;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn root() -> CertificateDer<'static> {
    X509Authority::generate_root(&td("td"), Duration::from_secs(3600), now()).unwrap().certificate().clone()
}

fn full() -> TrustBundle {
    let mut bundle = TrustBundle::from_x509_authorities(td("td"), [root(), root()]).unwrap();
    bundle.jwt_authorities.push(JwtAuthorityKey::generate().unwrap().public(None));
    bundle.sequence = 7;
    bundle.refresh_hint = Some(Duration::from_secs(300));
    bundle
}

#[track_caller]
fn refuses(document: &str) {
    let error = TrustBundle::parse_spiffe_json(td("td"), document.as_bytes()).unwrap_err();
    assert_eq!(error.reason(), "BUNDLE_INVALID", "{document}");
}

#[test]
fn the_spiffe_format_round_trips() {
    let bundle = full();
    let again = TrustBundle::parse_spiffe_json(td("td"), bundle.to_spiffe_json().as_bytes()).unwrap();
    assert_eq!(again, bundle);
}

#[test]
fn x_18_x_19_x_20_x509_keys_have_one_certificate_and_no_key_id() {
    let document: Value = serde_json::from_str(&full().to_spiffe_json()).unwrap();
    assert_eq!((document["spiffe_sequence"].clone(), document["spiffe_refresh_hint"].clone()), (json!(7), json!(300)));
    let keys = document["keys"].as_array().unwrap();
    for key in &keys[..2] {
        assert_eq!((&key["use"], &key["kty"]), (&json!("x509-svid"), &json!("EC")));
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
        // Base64 with padding, unlike everything else in a JWK.
        let der = STANDARD.decode(key["x5c"][0].as_str().unwrap()).unwrap();
        let summary = crate::summary::CertificateSummary::decode(&der.into()).unwrap();
        assert!(summary.is_authority && summary.subject == summary.issuer);
        assert!(key.get("kid").is_none());
    }
    assert_eq!((&keys[2]["use"], &keys[2]["kty"]), (&json!("jwt-svid"), &json!("EC")));
    assert!(keys[2]["kid"].is_string());
}

#[test]
fn b_01_b_04_only_the_list_of_keys_is_required() {
    let bundle = TrustBundle::parse_spiffe_json(td("td"), br#"{"keys":[]}"#).unwrap();
    assert_eq!(bundle, TrustBundle::new(td("td")));
    refuses("{}");
    refuses("[]");
    refuses(r#"{"keys":[],"keys":[]}"#);
    refuses(r#"{"keys":[],"spiffe_sequence":-1}"#);
    refuses(r#"{"keys":[],"spiffe_refresh_hint":"5m"}"#);
    refuses(r#"{"keys":[1]}"#);
}

#[test]
fn x_21_b_05_keys_of_unknown_type_or_use_are_passed_over() {
    let mut document: Value = serde_json::from_str(&full().to_spiffe_json()).unwrap();
    for (name, value) in
        [("use", json!("X509-SVID")), ("use", Value::Null), ("kty", json!("future")), ("x5c", json!([]))]
    {
        document["keys"][0][name] = value;
        let bundle = TrustBundle::parse_spiffe_json(td("td"), document.to_string().as_bytes()).unwrap();
        assert_eq!(bundle.x509_authorities.len(), 1, "{name}");
        document["keys"][0]["use"] = json!("x509-svid");
    }
    document["keys"][2]["use"] = json!("wit-svid");
    let bundle = TrustBundle::parse_spiffe_json(td("td"), document.to_string().as_bytes()).unwrap();
    assert!(bundle.jwt_authorities.is_empty());
    document["keys"][1].as_object_mut().unwrap().remove("x5c");
    let bundle = TrustBundle::parse_spiffe_json(td("td"), document.to_string().as_bytes()).unwrap();
    assert!(bundle.x509_authorities.is_empty());
}

#[test]
fn x_22_of_several_certificates_in_a_key_the_first_counts() {
    let mut document: Value = serde_json::from_str(&full().to_spiffe_json()).unwrap();
    document["keys"][0]["x5c"].as_array_mut().unwrap().push(json!("not read"));
    assert!(TrustBundle::parse_spiffe_json(td("td"), document.to_string().as_bytes()).is_ok());
    document["keys"][0]["x5c"][0] = json!("AAAA");
    refuses(&document.to_string());
}

#[test]
fn jwt_keys_need_an_id_of_their_own() {
    let mut bundle = full();
    bundle.jwt_authorities.push(bundle.jwt_authorities[0].clone());
    refuses(&bundle.to_spiffe_json());
    let mut document: Value = serde_json::from_str(&full().to_spiffe_json()).unwrap();
    document["keys"][2].as_object_mut().unwrap().remove("kid");
    refuses(&document.to_string());
}

#[test]
fn key_sets_hold_only_the_jwt_keys() {
    let bundle = full();
    assert_eq!(bundle.jwt_jwks()["keys"].as_array().unwrap().len(), 1);
    assert_eq!(bundle.jwt_jwks()["keys"][0]["use"], "jwt-svid");
    let oidc = bundle.jwks();
    assert_eq!((&oidc["keys"][0]["use"], &oidc["keys"][0]["alg"]), (&json!("sig"), &json!("ES256")));
    assert!(oidc["keys"][0].get("d").is_none());
}

#[test]
fn pem_and_der_round_trip() {
    let bundle = full();
    let again = TrustBundle::from_pem(td("td"), bundle.to_pem().as_bytes()).unwrap();
    assert_eq!(again.x509_authorities, bundle.x509_authorities);
    let split = crate::svid::split_concatenated_der(&bundle.to_concatenated_der()).unwrap();
    assert_eq!(split, bundle.x509_authorities);
    assert!(crate::svid::split_concatenated_der(&bundle.to_concatenated_der()[1..]).is_err());
    assert!(TrustBundle::from_pem(td("td"), b"").is_err());
    let twice = [bundle.x509_authorities[0].clone(), bundle.x509_authorities[0].clone()];
    assert_eq!(TrustBundle::from_x509_authorities(td("td"), twice).unwrap().x509_authorities.len(), 1);
}

#[test]
fn jwt_authorities_go_through_spki() {
    let authority = JwtAuthorityKey::generate().unwrap().public(Some(now()));
    let again = JwtAuthority::from_spki_der(&authority.key_id, &authority.spki_der(), Some(now())).unwrap();
    assert_eq!(again, authority);
}

#[test]
fn sameness_ignores_order_and_numbers() {
    let bundle = full();
    let mut other = bundle.clone();
    other.x509_authorities.reverse();
    other.sequence = 99;
    assert!(bundle.has_same_keys(&other));
    other.jwt_authorities.clear();
    assert!(!bundle.has_same_keys(&other));
}

#[test]
fn sets_keep_bundles_apart_by_name() {
    let set = BundleSet::new([TrustBundle::new(td("a")), TrustBundle::new(td("b"))].map(std::sync::Arc::new));
    assert_eq!(set.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(set.get(&td("c")).is_none() && set.jwt_keys(&td("a")).unwrap().is_empty());
    assert_eq!(set, set.clone());
}

#[test]
fn what_an_endpoint_publishes_must_not_contradict_the_name() {
    let read = |name: &str, text: &str| TrustBundle::parse_published(td(name), text.as_bytes());
    let own = full().to_spiffe_json();
    assert_eq!(read("td", &own).unwrap(), full_of(&own));
    assert_eq!(read("other", &own).unwrap_err().reason(), "BUNDLE_OTHER_TRUST_DOMAIN", "roots of td");
    let other = json!({ "keys": [], "spiffe_sequence": 3, "spiffe_refresh_hint": 5 });
    let map = json!({ "trust_domains": { "td": serde_json::from_str::<Value>(&own).unwrap(), "b": other } });
    assert!(read("td", &map.to_string()).unwrap().has_same_keys(&full_of(&own)));
    let found = read("b", &map.to_string()).unwrap();
    assert_eq!((found.sequence, found.refresh_hint), (3, None), "a bundle's own hint does not count in a map");
    let mut hinted = map.clone();
    hinted["spiffe_refresh_hint"] = json!(90);
    assert_eq!(read("b", &hinted.to_string()).unwrap().refresh_hint, Some(Duration::from_secs(90)));
    assert_eq!(read("c", &map.to_string()).unwrap_err(), BundleError::NotInMap(td("c")));
    for bad in
        ["", "[]", "{}", r#"{"trust_domains":1}"#, r#"{"trust_domains":{"td":1}}"#, r#"{"trust_domains":{"td":{}}}"#]
    {
        assert_eq!(read("td", bad).unwrap_err().reason(), "BUNDLE_INVALID", "{bad}");
    }
}

fn full_of(document: &str) -> TrustBundle {
    TrustBundle::parse_spiffe_json(td("td"), document.as_bytes()).unwrap()
}

#[test]
fn agrees_with_the_corpus() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return;
    };
    let folder = std::path::Path::new(&corpora).join("spiffe/go-spiffe/bundle/spiffebundle/testdata");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".json") {
            continue;
        }
        let parsed = TrustBundle::parse_spiffe_json(td("td"), &std::fs::read(&path).unwrap());
        let should_parse = name.contains("valid") || name.contains("multiple_x509");
        assert_eq!(parsed.is_ok(), should_parse, "{name}: {parsed:?}");
        seen += 1;
    }
    assert!(seen > 0);
}
