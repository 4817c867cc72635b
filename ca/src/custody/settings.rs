//! What the operator decides about keys.

use std::path::PathBuf;

use identity::key::KeyKind;
use serde::{Deserialize, Serialize};

use super::vault::check_address;
use super::{ExternalSigner, Place, VaultTransit};
use crate::settings::SettingsProblem;

/// Settings `custody` of the role `ca`. Each has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CustodySettings {
    /// The kind of key of new X.509 authorities: `P-256`, `P-384` or `Ed25519`. JWT and WIT authorities have P-256.
    pub key_type: KeyKind,
    /// Where the keys of new authorities are kept.
    pub keys: KeyPlace,
    /// File with a passphrase that the key-encryption key is stretched from, instead of the key file.
    pub passphrase_file: Option<PathBuf>,
    /// The same, as the name of a systemd credential (a file in `$CREDENTIALS_DIRECTORY`).
    pub passphrase_credential: Option<String>,
    /// The token of `pkcs11`.
    pub pkcs11: Option<Pkcs11Token>,
    /// The engine of `vault_transit`.
    pub vault_transit: Option<VaultTransit>,
    /// The signer of `external_signer`.
    pub external_signer: Option<ExternalSigner>,
    /// The authority that a new database begins with, instead of a self-made root.
    pub import: Option<ImportFiles>,
    /// A new database begins with a CSR for an offline root, instead of a self-made root.
    pub offline_root: bool,
    /// With a root that is not here: the share of the intermediate's life that is left when its renewal is asked for,
    /// between 0 and 1.
    pub renewal_lead: f64,
}

/// Where keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPlace {
    /// In the database, sealed.
    #[default]
    Disk,
    /// In this process alone: they never touch a disk, and each start makes new authorities.
    Memory,
    /// In a PKCS#11 token.
    Pkcs11,
    /// In the transit engine of Vault or OpenBao.
    VaultTransit,
    /// With an external signer.
    ExternalSigner,
}

impl KeyPlace {
    pub(crate) fn place(self) -> Place {
        match self {
            Self::Disk => Place::Disk,
            Self::Memory => Place::Memory,
            Self::Pkcs11 => Place::Pkcs11,
            Self::VaultTransit => Place::VaultTransit,
            Self::ExternalSigner => Place::ExternalSigner,
        }
    }
}

/// A token of a PKCS#11 module.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Token {
    /// The module, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// Where the user's PIN is.
    pub pin: SecretSource,
}

/// Where a secret is: never in the settings themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SecretSource {
    /// A file that only its owner reads.
    File(PathBuf),
    /// A systemd credential (a file in `$CREDENTIALS_DIRECTORY`).
    Credential(String),
}

/// A certificate with its key, as PEM files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportFiles {
    /// The authority's own certificate; others may follow it.
    pub certificate: PathBuf,
    /// Its key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Passphrase of an encrypted key.
    #[serde(default)]
    pub passphrase_file: Option<PathBuf>,
    /// What stands between it and its root.
    #[serde(default)]
    pub chain: Option<PathBuf>,
    /// Its root.
    #[serde(default)]
    pub root: Option<PathBuf>,
}

impl Default for CustodySettings {
    fn default() -> Self {
        Self {
            key_type: KeyKind::P256,
            keys: KeyPlace::Disk,
            passphrase_file: None,
            passphrase_credential: None,
            pkcs11: None,
            vault_transit: None,
            external_signer: None,
            import: None,
            offline_root: false,
            renewal_lead: RENEWAL_LEAD_DEFAULT,
        }
    }
}

impl CustodySettings {
    /// Checks what the types alone cannot. `shared`: several replicas may use the database.
    pub(crate) fn check(&self, shared: bool) -> Result<(), SettingsProblem> {
        let refuse = |setting: &'static str, problem: &str| {
            Err(SettingsProblem::Custody { setting, problem: problem.to_owned() })
        };
        if self.key_type == KeyKind::Rsa {
            return refuse("key_type", "RSA keys are imported, never made; choose P-256, P-384 or Ed25519");
        }
        if !(self.renewal_lead > 0.0 && self.renewal_lead < 1.0) {
            return refuse("renewal_lead", "a share of a life lies between 0 and 1");
        }
        if self.passphrase_file.is_some() && self.passphrase_credential.is_some() {
            return refuse("passphrase_file", "give this or `passphrase_credential`, not both");
        }
        if self.passphrase_credential.as_ref().is_some_and(|name| !is_credential_name(name)) {
            return refuse("passphrase_credential", "the name of a credential is a file name without a folder");
        }
        if self.import.is_some() && self.offline_root {
            return refuse("import", "give this or `offline_root`, not both");
        }
        if self.keys == KeyPlace::Pkcs11 && (self.pkcs11.is_none() || !cfg!(feature = "pkcs11")) {
            return refuse("keys", "`pkcs11` needs the section `pkcs11`, and a program built with that feature");
        }
        if self.keys == KeyPlace::VaultTransit && self.vault_transit.is_none() {
            return refuse("keys", "`vault_transit` needs the section `vault_transit`");
        }
        if let Some(Err(problem)) = self.vault_transit.as_ref().map(check_address) {
            return refuse("vault_transit", &problem);
        }
        if self.keys == KeyPlace::ExternalSigner && self.external_signer.is_none() {
            return refuse("keys", "`external_signer` needs the section `external_signer`");
        }
        if self.keys == KeyPlace::Memory && shared {
            return refuse("keys", "`memory` serves one process; with PostgreSQL replicas need keys that all can use");
        }
        if self.keys == KeyPlace::Memory && (self.import.is_some() || self.offline_root) {
            return refuse(
                "keys",
                "keys in memory are lost at the end, and neither import nor offline root survives that",
            );
        }
        Ok(())
    }

    /// The same for an authority below another.
    pub(crate) fn check_below_upstream(&self) -> Result<(), SettingsProblem> {
        let begins_otherwise = self.import.is_some() || self.offline_root || self.keys == KeyPlace::Memory;
        if !begins_otherwise {
            return Ok(());
        }
        let problem = "`upstream` goes with neither `import` nor `offline_root` nor keys in memory".to_owned();
        Err(SettingsProblem::Custody { setting: "import", problem })
    }
}

fn is_credential_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// As early as an authority whose root is here replaces its intermediate.
const RENEWAL_LEAD_DEFAULT: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let problem = |change: fn(&mut CustodySettings), shared| {
            let mut settings = CustodySettings::default();
            settings.check(shared).unwrap();
            change(&mut settings);
            settings.check(shared).unwrap_err().to_string()
        };
        assert!(problem(|it| it.key_type = KeyKind::Rsa, false).contains("key_type"));
        for lead in [0.0, 1.0, -1.0, f64::NAN] {
            let settings = CustodySettings { renewal_lead: lead, ..CustodySettings::default() };
            assert!(settings.check(false).unwrap_err().to_string().contains("renewal_lead"), "{lead}");
        }
        assert!(problem(|it| it.keys = KeyPlace::Pkcs11, false).contains("section `pkcs11`"));
        assert!(problem(|it| it.keys = KeyPlace::ExternalSigner, false).contains("section `external_signer`"));
        assert!(problem(|it| it.keys = KeyPlace::Memory, true).contains("one process"));
        assert!(problem(|it| it.passphrase_credential = Some("../x".into()), false).contains("credential"));
        let both = |it: &mut CustodySettings| {
            (it.passphrase_file, it.passphrase_credential) = (Some("/x".into()), Some("x".into()));
        };
        assert!(problem(both, false).contains("not both"));
        assert!(problem(|it| (it.keys, it.offline_root) = (KeyPlace::Memory, true), false).contains("offline"));
    }

    #[test]
    fn the_words_of_a_file_are_understood() {
        let text = "pkcs11: {module: /m.so, token_label: ca, pin: {file: /pin}}\nexternal_signer: {socket: /s}\n";
        let settings: CustodySettings = serde_saphyr::from_str(text).unwrap();
        assert!(settings.pkcs11.is_some() && settings.external_signer.is_some_and(|signer| signer.owner.is_none()));
        let text = "key_type: P-384\nkeys: memory\npassphrase_credential: kek\n";
        let settings: CustodySettings = serde_saphyr::from_str(text).unwrap();
        assert_eq!((settings.key_type, settings.keys), (KeyKind::P384, KeyPlace::Memory));
        assert!(serde_saphyr::from_str::<CustodySettings>("passphrase: secret\n").is_err(), "never in the file itself");
    }
}
