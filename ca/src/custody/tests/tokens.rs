//! Keys in a token of SoftHSM. Its module reads its configuration from the environment, so that the work is done by a process
//! of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{KINDS, signs_is_replaced_and_survives_a_restart};
use crate::custody::{CustodySettings, KeyPlace, Pkcs11Token, Place, SecretSource};

const DIR: &str = "KASBAH_CA_TEST_TOKEN";
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
];

fn module() -> Option<PathBuf> {
    MODULES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Not a test by itself: the process that the other test starts.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let token = Pkcs11Token {
        module: module().unwrap(),
        token_label: "kasbah".into(),
        pin: SecretSource::File(Path::new(&dir).join("pin")),
    };
    for key_type in KINDS {
        let custody = CustodySettings {
            key_type,
            keys: KeyPlace::Pkcs11,
            pkcs11: Some(token.clone()),
            ..CustodySettings::default()
        };
        signs_is_replaced_and_survives_a_restart(custody, Place::Pkcs11).await;
        println!("done with {key_type:?}");
    }
}

#[test]
fn keys_of_each_kind_in_a_token_sign_are_replaced_and_survive_a_restart() {
    let tool = Command::new("softhsm2-util").arg("--version").output();
    if module().is_none() || !tool.is_ok_and(|out| out.status.success()) {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI runs every test: softhsm2 is missing");
        println!("skipped: softhsm2 is missing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, tokens) = (dir.path().join("softhsm2.conf"), dir.path().join("tokens"));
    std::fs::create_dir(&tokens).unwrap();
    std::fs::write(&config, format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display()))
        .unwrap();
    crate::key_file::write_new(&dir.path().join("pin"), b"pin-84c1f0\n", 0o600).unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "kasbah", "--pin", "pin-84c1f0", "--so-pin", "567890"])
        .env("SOFTHSM2_CONF", &config)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "custody::tests::tokens::child", "--nocapture"])
        .env(DIR, dir.path())
        .env("SOFTHSM2_CONF", &config)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && text.contains("done with Ed25519"), "{text}");
    assert!(!text.contains("pin-84c1f0"), "the PIN shows nowhere");
}
