//! Published vectors: Wycheproof, the JOSE cookbook (RFC 7520, RFC 7797, RFC 8037), and attacks on real tokens.

use super::*;
use crate::jwk::Algorithm;

/// Wycheproof's JSON Web Signature cases that are not judged, each with its reason.
const DOUBTFUL: [(u64, &str); 8] = [
    (346, "the key's alg is a misspelling, ES521"),
    (347, "the key's alg is a misspelling, ES521"),
    (350, "the key is for PS256 alone, the token is signed with PS384"),
    (351, "the key is for PS256 alone, the token is signed with PS384"),
    (367, "byte for byte the token and the key of 357, which is valid"),
    (370, "byte for byte the token and the key of 357, which is valid"),
    (372, "labelled doubtful by the corpus"),
    (373, "labelled doubtful by the corpus"),
];

pub(super) fn corpus(path: &str) -> Option<Value> {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA is not set");
        return None;
    };
    let text = std::fs::read(std::path::Path::new(&corpora).join(path)).unwrap();
    Some(serde_json::from_slice(&text).unwrap())
}

/// Whether the object verifies with the key, or the set of keys, as they are given.
fn verifies(object: &str, keys: &Value) -> bool {
    let keys = keys.get("keys").map_or_else(|| vec![keys.clone()], |keys| keys.as_array().unwrap().clone());
    JwkSet::from_given(&keys).is_ok_and(|keys| verify_signature(object, &keys).is_ok())
}

fn groups(vectors: &Value) -> &[Value] {
    vectors["testGroups"].as_array().unwrap()
}

fn tests(group: &Value) -> &[Value] {
    group["tests"].as_array().unwrap()
}

#[test]
fn agrees_with_wycheproof_on_signed_objects() {
    let mut seen = 0;
    for file in ["json_web_signature_test", "json_web_key_test", "json_web_crypto_test"] {
        let Some(vectors) = corpus(&format!("wycheproof/{file}.json")) else { return };
        for group in groups(&vectors) {
            for test in tests(group) {
                let id = test["tcId"].as_u64().unwrap();
                let doubtful =
                    file == "json_web_signature_test" && DOUBTFUL.iter().any(|(doubtful, _)| *doubtful == id);
                let Some(object) = test["jws"].as_str().filter(|_| !doubtful) else { continue };
                let keys = group.get("public").unwrap_or_else(|| &group["private"]);
                let verdict = verifies(object, keys);
                assert_eq!(verdict, test["result"] == "valid", "{file} {} {test} {keys}", group["comment"]);
                seen += 1;
            }
        }
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn agrees_with_the_jose_cookbook() {
    let mut seen = 0;
    for folder in ["jws", "rfc7797", "curve25519"] {
        let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
            println!("skipped: KASBAH_CORPORA is not set");
            return;
        };
        let folder = std::path::Path::new(&corpora).join("jose-cookbook").join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let example: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let keys = &example["input"]["key"];
            if let Some(object) = example["output"]["compact"].as_str() {
                // A detached payload is not in the object, so nothing can be verified.
                let detached = object.contains("..");
                assert_eq!(verifies(object, keys), !detached, "{}", path.display());
                seen += 1;
            }
            for form in ["json", "json_flat"].iter().filter_map(|form| example["output"].get(form)) {
                assert!(!verifies(&form.to_string(), keys), "{}", path.display());
            }
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn the_cookbooks_keys_are_read() {
    for file in ["3_1.ec_public_key", "3_2.ec_private_key", "3_4.rsa_private_key", "3_5.symmetric_key_mac_computation"]
    {
        let Some(key) = corpus(&format!("jose-cookbook/jwk/{file}.json")) else { return };
        let usable = key["crv"] != "P-521" || crate::crypto::ECDSA_P521_SHA512_FIXED.is_some();
        let set = JwkSet::from_given(&[key]).unwrap();
        assert_eq!(set.len(), usize::from(usable), "{file}");
    }
}

#[test]
fn refuses_known_attacks() {
    let Some(attacks) = corpus("jwt/attacks.json") else { return };
    let expect = JwtExpectations::at(now()).with_issuer(attacks["issuer"].as_str().unwrap());
    let given = JwkSet::from_given(attacks["jwks"]["keys"].as_array().unwrap()).unwrap();
    for keys in [JwkSet::parse(attacks["jwks"].to_string().as_bytes()).unwrap(), given] {
        verify(attacks["valid_token"].as_str().unwrap(), &keys, &expect).unwrap();
        for attack in attacks["must_reject"].as_array().unwrap() {
            let token = attack["token"].as_str().unwrap();
            assert!(verify(token, &keys, &expect).is_err(), "{attack}");
            assert!(verify_signature(token, &keys).is_err(), "{attack}");
        }
    }
}

// Raw signatures: what a key says about bytes, without any envelope.

fn raw_verifies(spki: &[u8], algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
    Jwk::from_spki_der(None, spki).is_ok_and(|jwk| {
        let keys = JwkSet::from_keys([&jwk]);
        keys.candidates(None).any(|key| key.verifies(algorithm, message, signature))
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Runs one file of raw signatures; all groups of which are for the algorithm.
fn check_raw(file: &str, algorithm: Algorithm) {
    let Some(vectors) = corpus(&format!("wycheproof/{file}.json")) else { return };
    for group in groups(&vectors) {
        let spki = bytes(&group["publicKeyDer"]);
        for test in tests(group) {
            let verdict = raw_verifies(&spki, algorithm, &bytes(&test["msg"]), &bytes(&test["sig"]));
            // "acceptable" is a signature without the NULL of its DigestInfo; ours is the strict answer.
            assert_eq!(verdict, test["result"] == "valid", "{file} {test}");
        }
    }
}

#[test]
fn agrees_with_wycheproof_on_fixed_length_ecdsa() {
    check_raw("ecdsa_secp256r1_sha256_p1363_test", Algorithm::ES256);
    check_raw("ecdsa_secp384r1_sha384_p1363_test", Algorithm::ES384);
}

#[test]
fn agrees_with_wycheproof_on_ed25519() {
    check_raw("ed25519_test", Algorithm::EdDSA);
}

#[test]
fn agrees_with_wycheproof_on_rsa() {
    for (file, algorithm) in [
        ("rsa_signature_2048_sha256_test", Algorithm::RS256),
        ("rsa_signature_2048_sha384_test", Algorithm::RS384),
        ("rsa_signature_2048_sha512_test", Algorithm::RS512),
        ("rsa_signature_3072_sha256_test", Algorithm::RS256),
        ("rsa_signature_4096_sha256_test", Algorithm::RS256),
        ("rsa_signature_4096_sha384_test", Algorithm::RS384),
        ("rsa_signature_4096_sha512_test", Algorithm::RS512),
        ("rsa_pss_2048_sha256_mgf1_32_test", Algorithm::PS256),
        ("rsa_pss_2048_sha384_mgf1_48_test", Algorithm::PS384),
        ("rsa_pss_3072_sha256_mgf1_32_test", Algorithm::PS256),
        ("rsa_pss_4096_sha256_mgf1_32_test", Algorithm::PS256),
        ("rsa_pss_4096_sha384_mgf1_48_test", Algorithm::PS384),
        ("rsa_pss_4096_sha512_mgf1_64_test", Algorithm::PS512),
    ] {
        check_raw(file, algorithm);
    }
}

#[test]
fn pss_with_any_other_parameters_is_refused() {
    let Some(vectors) = corpus("wycheproof/rsa_pss_misc_test.json") else { return };
    for group in groups(&vectors) {
        let hash = (group["sha"].as_str().unwrap(), group["mgfSha"].as_str().unwrap(), group["sLen"].as_u64().unwrap());
        let own = match hash {
            ("SHA-256", "SHA-256", 32) => Some(Algorithm::PS256),
            ("SHA-384", "SHA-384", 48) => Some(Algorithm::PS384),
            ("SHA-512", "SHA-512", 64) => Some(Algorithm::PS512),
            _ => None,
        };
        for test in tests(group) {
            for algorithm in [Algorithm::PS256, Algorithm::PS384, Algorithm::PS512] {
                let spki = bytes(&group["publicKeyDer"]);
                let verdict = raw_verifies(&spki, algorithm, &bytes(&test["msg"]), &bytes(&test["sig"]));
                assert_eq!(verdict, own == Some(algorithm), "{hash:?} {test}");
            }
        }
    }
}

/// Certificates carry ECDSA signatures as DER; these are the algorithms that judge them.
#[test]
fn agrees_with_wycheproof_on_the_ecdsa_of_certificates() {
    use rustls_pki_types::alg_id::{ECDSA_P256, ECDSA_P384, ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512};
    for (file, curve, hash) in [
        ("ecdsa_secp256r1_sha256_test", ECDSA_P256, ECDSA_SHA256),
        ("ecdsa_secp256r1_sha512_test", ECDSA_P256, ECDSA_SHA512),
        ("ecdsa_secp384r1_sha256_test", ECDSA_P384, ECDSA_SHA256),
        ("ecdsa_secp384r1_sha384_test", ECDSA_P384, ECDSA_SHA384),
    ] {
        let Some(vectors) = corpus(&format!("wycheproof/{file}.json")) else { return };
        let algorithm = webpki::ALL_VERIFICATION_ALGS
            .iter()
            .find(|algorithm| (algorithm.public_key_alg_id(), algorithm.signature_alg_id()) == (curve, hash));
        for group in groups(&vectors) {
            let point = bytes(&group["publicKey"]["uncompressed"]);
            for test in tests(group) {
                let (message, signature) = (bytes(&test["msg"]), bytes(&test["sig"]));
                let verdict = algorithm.is_some_and(|a| a.verify_signature(&point, &message, &signature).is_ok());
                assert_eq!(verdict, test["result"] == "valid" && algorithm.is_some(), "{file} {test}");
            }
        }
    }
}
