//! Secrets in, none out; and what is no secret stays.

use super::*;

fn clean(text: &str) -> String {
    Redactor::with_known(vec!["known-join-token".into(), "short".into()]).clean(text)
}

#[test]
fn secrets_of_every_shape_and_place_are_removed() {
    let planted = [
        "-----BEGIN PRIVATE KEY-----\nPLANTED\n-----END PRIVATE KEY-----",
        "\"key\": \"-----BEGIN EC PRIVATE KEY-----\\nPLANTED\\n-----END EC PRIVATE KEY-----\\n\"",
        "-----BEGIN PRIVATE KEY-----\nPLANTED without an end",
        "got eyJhbGciOiJub25lIn0.eyJQTEFOVEVEIjoxfQ.PLANTED from a peer",
        "database: postgres://kasbah:PLANTED@db.example/kasbah",
        "database=postgres://kasbah:PLA@NTED/PLANTED@db.example/kasbah and more",
        "authorization: Bearer PLANTED",
        "header \"Authorization\": \"Basic PLANTED\"",
        "sent bearer PLANTED to it",
        "password: PLANTED",
        "db_password='PLANTED'",
        "\"clientSecret\" : \"a\\\"PLANTED\"",
        "{\\\"token\\\":\\\"PLANTED\\\",\\\"x\\\":1}",
        "postgres://db/kasbah?user=a&password=PLANTED&x=1",
        "passphrase: |-\n  PLANTED\n  PLANTED\nnext: 1",
        "token:\n  PLANTED",
        "{\"kty\":\"EC\",\"x\":\"public\",\"d\":\"PLANTED\"}",
        "{\"kty\": \"oct\", \"k\": \"PLANTED\"}",
        "x: MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wPLANTED",
        "apiVersion: v1\nkind: Secret\ndata:\n  anything: PLANTED",
        "joined with known-join-token today",
    ];
    for text in planted {
        let clean = clean(text);
        assert!(!clean.contains("PLANTED") && !clean.contains("known-join-token"), "{text}\n  became {clean}");
        assert!(clean.contains("removed"), "{clean}");
    }
}

#[test]
fn what_is_no_secret_stays() {
    let harmless = [
        "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIQ\n-----END CERTIFICATE-----",
        "spiffe://cluster.local/ns/default/sa/helloworld",
        "join_token_file: /tmp/mesh/run/join-token",
        "https://user@host/path and https://issuer.example.com",
        "{\"kty\":\"EC\",\"kid\":\"k1\",\"x\":\"abc\",\"y\":\"def\"}",
        "level=info message=\"the short word stays\"\n\nnext",
    ];
    for text in harmless {
        assert_eq!(clean(text), text);
    }
    assert_eq!(clean("password: secret, host: db\nnext: 1"), "password: [removed], host: db\nnext: 1");
}

#[test]
fn any_text_can_be_cleaned() {
    let odd = ["", "\"", "://", "://@", "token", "token:", "token=\"", "bearer", "-----BEGIN ", "-----BEGIN x-----"];
    for text in odd.iter().chain(&["é://ü:ö@ä", "d:\\", "token: é", "-----BEGIN x-----é-----END é"]) {
        clean(text);
    }
}
