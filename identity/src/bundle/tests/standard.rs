//! What the SPIFFE bundle standard demands of documents, producers and consumers.

use std::sync::Arc;

use super::*;
use crate::authority::{LeafProfile, X509Authority};
use crate::jwt::{JwtSvidProfile, verify_svid};
use crate::wit::WitAuthorityKey;
use crate::{SpiffeId, digest, unix_time, verify};

fn parse(document: &Value) -> Result<TrustBundle, BundleError> {
    TrustBundle::parse_spiffe_json(td("td"), document.to_string().as_bytes())
}

fn document() -> Value {
    let mut bundle = full();
    bundle.wit_authorities.push(WitAuthorityKey::generate().unwrap().public(None));
    serde_json::from_str(&bundle.to_spiffe_json()).unwrap()
}

#[test]
fn b_01_unknown_members_of_a_bundle_and_of_its_keys_are_ignored() {
    let mut document = document();
    document["vendor_extension"] = json!({"a": [1]});
    document["keys"][0]["vendor"] = json!(1);
    document["keys"][2]["vendor"] = json!(1);
    let bundle = parse(&document).unwrap();
    let counts = (bundle.x509_authorities.len(), bundle.jwt_authorities.len(), bundle.wit_authorities.len());
    assert_eq!(counts, (2, 1, 1));
}

#[test]
fn b_02_the_sequence_has_sixty_four_bits_and_is_whole() {
    let mut document = document();
    for sequence in [0, 1, u64::MAX] {
        document["spiffe_sequence"] = json!(sequence);
        let bundle = parse(&document).unwrap();
        assert_eq!(bundle.sequence, sequence);
        let again: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
        assert_eq!(again["spiffe_sequence"], json!(sequence));
    }
    for bad in [json!(1.5), json!("7"), json!(-1), json!(true)] {
        document["spiffe_sequence"] = bad.clone();
        assert!(parse(&document).is_err(), "{bad}");
    }
}

#[test]
fn b_03_the_refresh_hint_is_whole_seconds() {
    let mut document = document();
    document["spiffe_refresh_hint"] = json!(17);
    assert_eq!(parse(&document).unwrap().refresh_hint, Some(Duration::from_secs(17)));
    document["spiffe_refresh_hint"] = json!(1.5);
    assert!(parse(&document).is_err());
    document.as_object_mut().unwrap().remove("spiffe_refresh_hint");
    assert_eq!(parse(&document).unwrap().refresh_hint, None);
}

#[test]
fn b_05_the_use_of_a_key_is_case_sensitive_and_unknown_uses_are_ignored() {
    for usage in
        [json!("JWT-SVID"), json!("WIT-SVID"), json!("x509-SVID"), json!("sig"), json!(""), json!(null), json!(7)]
    {
        let mut document = document();
        for key in document["keys"].as_array_mut().unwrap() {
            key["use"] = usage.clone();
        }
        let bundle = parse(&document).unwrap();
        let counts = (bundle.x509_authorities.len(), bundle.jwt_authorities.len(), bundle.wit_authorities.len());
        assert_eq!(counts, (0, 0, 0), "{usage}");
    }
}

#[test]
fn b_07_j_11_w_20_every_key_says_its_kind_and_its_use_and_token_keys_their_id() {
    let document = document();
    for key in document["keys"].as_array().unwrap() {
        assert!(key["kty"].is_string() && key["use"].is_string(), "{key}");
        assert_eq!(key.get("kid").is_some(), key["use"] != "x509-svid", "{key}");
    }
}

#[test]
fn w_20_key_ids_are_unique_over_jwt_and_wit_keys_together() {
    let mut document = document();
    document["keys"][3]["kid"] = document["keys"][2]["kid"].clone();
    assert!(matches!(parse(&document), Err(BundleError::KeyIdTwice(_))));
    document["keys"][3].as_object_mut().unwrap().remove("kid");
    assert!(matches!(parse(&document), Err(BundleError::Malformed(_))));
}

#[test]
fn w_21_each_key_set_holds_the_keys_of_its_own_use_only() {
    let mut bundle = full();
    bundle.wit_authorities.push(WitAuthorityKey::generate().unwrap().public(None));
    let (jwt, wit, oidc) = (bundle.jwt_jwks(), bundle.wit_jwks(), bundle.jwks());
    let ids = |set: &Value| set["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&jwt), [json!(bundle.jwt_authorities[0].key_id)]);
    assert_eq!(ids(&wit), [json!(bundle.wit_authorities[0].key_id)]);
    assert_eq!(ids(&oidc), ids(&jwt), "no relying party of OIDC ever learns a WIT key");
    assert_eq!((&jwt["keys"][0]["use"], &wit["keys"][0]["use"]), (&json!("jwt-svid"), &json!("wit-svid")));
    assert_eq!(parse(&jwt).unwrap().wit_authorities, []);
    assert_eq!(parse(&wit).unwrap().jwt_authorities, []);
}

#[test]
fn b_06_an_emptied_bundle_makes_every_svid_of_its_domain_untrusted_at_once() {
    let root = X509Authority::generate_root(&td("td"), Duration::from_secs(3600), now()).unwrap();
    let jwt_key = JwtAuthorityKey::generate().unwrap();
    let id = SpiffeId::parse("spiffe://td/cart").unwrap();
    let key = crate::PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile {
        id: id.clone(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        ttl: Duration::from_secs(300),
        backdate: Duration::ZERO,
        serial: digest::random_serial(),
        crl_url: None,
    };
    let chain = root.sign_svid(&key.public_key_spki(), &profile, now()).unwrap();
    let audiences = vec!["bank".to_owned()];
    let profile = JwtSvidProfile { id, audiences, ttl: Duration::from_secs(300), issuer: None, token_id: None };
    let token = jwt_key.sign_svid(&profile, now()).unwrap().token;
    let mut bundle = TrustBundle::from_x509_authorities(td("td"), [root.certificate().clone()]).unwrap();
    bundle.jwt_authorities.push(jwt_key.public(None));
    let mut set = BundleSet::new([Arc::new(bundle)]);
    assert!(verify::verify_peer(&chain, &set, unix_time(now())).is_ok());
    assert!(verify_svid(&token, &set, "bank", now()).is_ok());
    let empty = TrustBundle::parse_spiffe_json(td("td"), br#"{"keys":[],"spiffe_sequence":2}"#).unwrap();
    set.insert(Arc::new(empty));
    assert!(verify::verify_peer(&chain, &set, unix_time(now())).is_err());
    assert!(verify_svid(&token, &set, "bank", now()).is_err());
}

#[test]
fn b_08_a_bundle_is_stored_and_found_by_its_own_domain() {
    let a = TrustBundle { trust_domain: td("a"), ..full() };
    let set = BundleSet::new([Arc::new(a.clone())]);
    assert_eq!(set.get(&td("a")).map(|bundle| &**bundle), Some(&a));
    assert!(set.get(&td("td")).is_none());
}

#[test]
fn b_09_bundle_maps_round_trip_without_refresh_hints() {
    let set = BundleSet::new([TrustBundle { trust_domain: td("a"), ..full() }, full()].map(Arc::new));
    let text = set.to_spiffe_map_json();
    assert!(!text.contains("spiffe_refresh_hint"));
    let again = BundleSet::parse_spiffe_map_json(text.as_bytes()).unwrap();
    assert_eq!(again.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "td"]);
    for (name, bundle) in again.iter() {
        assert!(bundle.has_same_keys(set.get(name).unwrap()));
        assert_eq!((bundle.sequence, bundle.refresh_hint), (7, None));
    }
    let hinted = br#"{"trust_domains":{"a":{"keys":[],"spiffe_refresh_hint":5}}}"#;
    let set = BundleSet::parse_spiffe_map_json(hinted).unwrap();
    assert_eq!(set.get(&td("a")).unwrap().refresh_hint, None, "a bundle's own hint does not count in a map");
}

#[test]
fn b_09_bundle_maps_name_each_domain_once() {
    let read = |text: &str| BundleSet::parse_spiffe_map_json(text.as_bytes());
    assert!(read(r#"{"trust_domains":{}}"#).unwrap().is_empty());
    assert_eq!(BundleSet::default().to_spiffe_map_json(), r#"{"trust_domains":{}}"#);
    for bad in [
        "{}",
        "[]",
        r#"{"trust_domains":[]}"#,
        r#"{"trust_domains":{},"trust_domains":{}}"#,
        r#"{"trust_domains":{"a":{"keys":[]},"a":{"keys":[]}}}"#,
        r#"{"trust_domains":{"a":{"keys":[]},"\u0061":{"keys":[]}}}"#,
        r#"{"trust_domains":{"A":{"keys":[]}}}"#,
        r#"{"trust_domains":{"spiffe://a":{"keys":[]}}}"#,
        r#"{"trust_domains":{"a":{}}}"#,
        r#"{"trust_domains":{"a":7}}"#,
    ] {
        assert_eq!(read(bad).unwrap_err().reason(), "BUNDLE_INVALID", "{bad}");
    }
}
