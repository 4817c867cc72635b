//! The key-encryption key: out of a file, or stretched from a passphrase.
//!
//! The passphrase comes from a file that only its owner reads, or from a systemd credential; never from a flag, the
//! environment or the settings themselves. How it was stretched stands before the check text in the database.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::seal::{PASSPHRASE_BYTES_MAX, SealKey, Stretching};
use zeroize::Zeroizing;

use crate::authorities::AuthoritiesError;
use crate::key_file::{self, KeyFileError};
use crate::settings::Settings;

/// The key, and where it comes from.
#[derive(Debug)]
pub(crate) struct Kek {
    pub(crate) key: SealKey,
    stretching: Option<Stretching>,
    source: PathBuf,
}

impl Kek {
    /// The key of a database with this check text; none: of a new database, for which a key may be made.
    ///
    /// # Errors
    /// When there is no key, it is not kept secret, or it is not the database's.
    pub(crate) fn open(settings: &Settings, key_check: Option<&str>) -> Result<Self, AuthoritiesError> {
        let stretching = key_check.and_then(|text| text.split_once(' ')).map(|(stretching, _)| stretching);
        let kek = Self::load(settings, key_check.is_none(), stretching)?;
        if let Some(text) = key_check {
            kek.check(text)?;
        }
        Ok(kek)
    }

    /// The same without the check, for who has stored parameters elsewhere.
    pub(crate) fn load(settings: &Settings, new: bool, stretching: Option<&str>) -> Result<Self, AuthoritiesError> {
        let Some(file) = passphrase_file(settings)? else {
            let source = settings.key_file();
            if stretching.is_some() {
                return Err(KeyFileError::PassphraseMissing.into());
            }
            return Ok(Self { key: key_file::load(&source, new)?, stretching: None, source });
        };
        if !new && stretching.is_none() {
            return Err(KeyFileError::PassphraseUnused { path: file }.into());
        }
        let stretching = stretching.map_or_else(|| Ok(Stretching::generate()), str::parse)?;
        let passphrase = read(&file, settings.custody.passphrase_file.is_some())?;
        let key = stretching.key(&passphrase)?;
        Ok(Self { key, stretching: Some(stretching), source: file })
    }

    /// The text by which the right key is known, to be stored.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub(crate) fn check_text(&self) -> Result<String, AuthoritiesError> {
        let sealed = STANDARD.encode(self.key.seal(CHECK_PURPOSE, CHECK_TEXT)?);
        Ok(match &self.stretching {
            Some(stretching) => format!("{stretching} {sealed}"),
            None => sealed,
        })
    }

    /// How the passphrase was stretched; none for a key file.
    pub(crate) fn stretching(&self) -> Option<String> {
        self.stretching.as_ref().map(ToString::to_string)
    }

    /// # Errors
    /// When the text was made with another key.
    pub(crate) fn check(&self, text: &str) -> Result<(), AuthoritiesError> {
        let sealed = text.rsplit(' ').next().unwrap_or_default();
        let sealed = STANDARD.decode(sealed).map_err(|_| AuthoritiesError::Unusable("key check"))?;
        match self.key.open(CHECK_PURPOSE, &sealed) {
            Ok(text) if text.as_slice() == CHECK_TEXT => Ok(()),
            _ => Err(KeyFileError::Wrong { path: self.source.clone() }.into()),
        }
    }
}

/// Where the passphrase is, if the settings want one.
fn passphrase_file(settings: &Settings) -> Result<Option<PathBuf>, KeyFileError> {
    match &settings.custody.passphrase_credential {
        None => Ok(settings.custody.passphrase_file.clone()),
        Some(name) => credential(name).map(Some),
    }
}

/// A secret that the settings name.
///
/// # Errors
/// When it cannot be read, or others can read it.
pub(crate) fn secret(source: &super::SecretSource) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    match source {
        super::SecretSource::File(path) => read(path, true),
        super::SecretSource::Credential(name) => read(&credential(name)?, false),
    }
}

fn credential(name: &str) -> Result<PathBuf, KeyFileError> {
    let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Err(KeyFileError::NoCredentials { name: name.to_owned() });
    };
    Ok(Path::new(&dir).join(name))
}

/// Reads a passphrase; `strict`: nobody else may be able to. The folder of credentials is closed to others by itself.
fn read(path: &Path, strict: bool) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let io = |source: io::Error| KeyFileError::Io { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(io)?.permissions().mode();
    if strict && mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned() });
    }
    super::read_file(path, FILE_BYTES_MAX).map(Zeroizing::new).map_err(io)
}

const CHECK_PURPOSE: &[u8] = b"key check";
const CHECK_TEXT: &[u8] = b"kasbah";
/// A passphrase with white space around it.
const FILE_BYTES_MAX: usize = 2 * PASSPHRASE_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::running::settings;

    fn with_passphrase(dir: &Path, text: &str, mode: u32) -> Settings {
        let file = dir.join("passphrase");
        key_file::write_new(&file, text.as_bytes(), mode).unwrap();
        let mut settings = settings(dir);
        settings.custody.passphrase_file = Some(file);
        settings
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let settings = with_passphrase(dir.path(), "correct horse battery staple\n", 0o600);
        let kek = Kek::open(&settings, None).unwrap();
        let text = kek.check_text().unwrap();
        assert!(text.starts_with("scrypt:17:8:1:"), "the parameters are stored: {text}");
        assert!(!settings.key_file().exists(), "no key lies on the disk");
        assert_eq!(Kek::open(&settings, Some(&text)).unwrap().key.expose_bytes(), kek.key.expose_bytes());
        let settings = with_passphrase(dir.path(), "another horse battery staple", 0o600);
        assert_eq!(Kek::open(&settings, Some(&text)).unwrap_err().reason(), "KEY_FILE_WRONG");
        let none = crate::testing::running::settings(dir.path());
        assert_eq!(Kek::open(&none, Some(&text)).unwrap_err().reason(), "KEY_PASSPHRASE_MISSING");
        assert!(!format!("{kek:?}").contains("horse"));
    }

    #[test]
    fn a_passphrase_is_secret_long_and_asked_for_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: &str, mode, check: Option<&str>| {
            Kek::open(&with_passphrase(dir.path(), text, mode), check).unwrap_err().reason()
        };
        assert_eq!(refused("correct horse battery staple", 0o640, None), "KEY_FILE_EXPOSED");
        assert_eq!(refused("short", 0o600, None), "SEAL_KEY_INVALID");
        let by_file = Kek::open(&settings(dir.path()), None).unwrap().check_text().unwrap();
        assert_eq!(refused("correct horse battery staple", 0o600, Some(&by_file)), "KEY_PASSPHRASE_UNUSED");
        let mut settings = settings(dir.path());
        settings.custody.passphrase_credential = Some("kek".into());
        assert_eq!(Kek::open(&settings, None).unwrap_err().reason(), "CREDENTIALS_MISSING");
    }
}
