//! Files as OpenSSL writes them. The keys are of these tests alone.

use super::*;
use crate::key::KeyKind;
use crate::signing_key::SigningKey;

const P256: &[u8] = include_bytes!("../vectors/p256-sec1.pem");
const PBKDF2: &[u8] = include_bytes!("../vectors/p256-pbkdf2.pem");

#[test]
fn every_usual_form_is_read() {
    for (text, kind) in [
        (P256, KeyKind::P256),
        (include_bytes!("../vectors/p384-sec1.pem"), KeyKind::P384),
        (include_bytes!("../vectors/rsa2048-pkcs1.pem"), KeyKind::Rsa),
        (include_bytes!("../vectors/ed25519.pem"), KeyKind::Ed25519),
    ] {
        let key = PrivateKey::from_pem(text, None).unwrap();
        assert_eq!(KeyKind::of_spki(&key.public_key_spki()), Some(kind));
        let again = PrivateKey::from_pem(key.pkcs8_pem().as_bytes(), None).unwrap();
        assert_eq!(again.public_key_spki(), key.public_key_spki());
        SigningKey::from(again).sign(b"message").unwrap();
    }
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let plain = PrivateKey::from_pem(P256, None).unwrap();
    for text in [PBKDF2, include_bytes!("../vectors/p256-scrypt.pem")] {
        let key = PrivateKey::from_pem(text, Some(b"correct-horse")).unwrap();
        assert_eq!(key.public_key_spki(), plain.public_key_spki());
        for passphrase in [None, Some(&b""[..]), Some(b"wrong horse")] {
            let error = PrivateKey::from_pem(text, passphrase).unwrap_err();
            assert_eq!(error.reason(), "KEY_PASSPHRASE_WRONG", "{error}");
        }
    }
    let weak = include_bytes!("../vectors/p256-pbes1.pem");
    assert_eq!(PrivateKey::from_pem(weak, Some(b"correct-horse")).unwrap_err().reason(), "KEY_PASSPHRASE_WRONG");
}

#[test]
fn a_file_cannot_ask_for_endless_work() {
    let der = encrypted(PBKDF2).unwrap();
    let info = ::pkcs8::EncryptedPrivateKeyInfoRef::try_from(der.as_slice()).unwrap();
    assert!(is_affordable(&info.encryption_algorithm));
    let ::pkcs8::pkcs5::EncryptionScheme::Pbes2(mut parameters) = info.encryption_algorithm else { panic!("PBES2") };
    for (iterations, good) in [(PBKDF2_ITERATIONS_MAX, true), (PBKDF2_ITERATIONS_MAX + 1, false)] {
        let Kdf::Pbkdf2(kdf) = &mut parameters.kdf else { panic!("PBKDF2") };
        kdf.iteration_count = iterations;
        assert_eq!(is_affordable(&EncryptionScheme::Pbes2(parameters.clone())), good);
    }
}

#[test]
fn garbage_is_refused() {
    let cut = &P256[..P256.len() / 2];
    let sec1_of_no_curve = b"-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n";
    for text in [&b""[..], b"hello", cut, sec1_of_no_curve, b"-----BEGIN ENCRYPTED PRIVATE KEY-----"] {
        assert!(PrivateKey::from_pem(text, Some(b"x")).is_err());
    }
    assert!(PrivateKey::from_pem(&vec![b'x'; KEY_FILE_BYTES_MAX + 1], None).is_err());
}
