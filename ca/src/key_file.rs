//! The key-encryption key: a file that only its owner reads, beside (and not inside) the database it protects.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::seal::SealKey;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The database needs a key that is not there.
    #[error(
        "the key file {} is missing, and the keys in the database cannot be read without it; restore it from the \
         backup, or move the database away to start a new authority",
        path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Others may read the key.
    #[error("the key file {} can be read by other users; run `chmod 600` on it", path.display())]
    Exposed {
        /// Where it is.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("the key file {} does not hold a key; restore it from the backup", path.display())]
    Malformed {
        /// Where it is.
        path: PathBuf,
    },
    /// The database was sealed by a passphrase.
    #[error("the keys in the database are sealed by a passphrase; name its file in `custody.passphrase_file`")]
    PassphraseMissing,
    /// The database was sealed by a key file.
    #[error(
        "the keys in the database are sealed by a key file and not by the passphrase in {}; a passphrase is for new \
         databases, so take it out of `custody`",
        path.display()
    )]
    PassphraseUnused {
        /// Where the passphrase is.
        path: PathBuf,
    },
    /// No service manager gave credentials.
    #[error(
        "there is no $CREDENTIALS_DIRECTORY for the credential {name:?}; start the authority by systemd with LoadCredential="
    )]
    NoCredentials {
        /// The credential.
        name: String,
    },
    /// The key opens nothing in this database.
    #[error("the key in {} does not belong to this database; name the right file", path.display())]
    Wrong {
        /// Where it is.
        path: PathBuf,
    },
    /// The file cannot be read or made.
    #[error("the key file {} cannot be used; see that its directory exists and is writable", path.display())]
    Io {
        /// Where it is.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl KeyFileError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "KEY_FILE_MISSING",
            Self::Exposed { .. } => "KEY_FILE_EXPOSED",
            Self::Malformed { .. } => "KEY_FILE_MALFORMED",
            Self::PassphraseMissing => "KEY_PASSPHRASE_MISSING",
            Self::PassphraseUnused { .. } => "KEY_PASSPHRASE_UNUSED",
            Self::NoCredentials { .. } => "CREDENTIALS_MISSING",
            Self::Wrong { .. } => "KEY_FILE_WRONG",
            Self::Io { .. } => "KEY_FILE_UNUSABLE",
        }
    }
}

/// Reads the key. When the file does not exist and nothing was sealed yet (`create`), makes one.
///
/// # Errors
/// When there is no key, or it is not kept secret.
pub(crate) fn load(path: &Path, create: bool) -> Result<SealKey, KeyFileError> {
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => make(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeyFileError::Missing { path: path.to_owned() }),
        Err(source) => Err(KeyFileError::Io { path: path.to_owned(), source }),
    }
}

fn read(path: &Path, file: File) -> Result<SealKey, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let malformed = || KeyFileError::Malformed { path: path.to_owned() };
    let found = file.metadata().map_err(io)?;
    if !found.is_file() {
        return Err(malformed());
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned() });
    }
    tracing::debug!(path = %path.display(), owner = found.uid(), "key file found");
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|_| malformed())?;
    let bytes = STANDARD.decode(text.trim()).map_err(|_| malformed())?;
    SealKey::from_slice(&bytes).map_err(|_| malformed())
}

/// The file appears under its name only when it is whole and on the disk.
fn make(path: &Path) -> Result<SealKey, KeyFileError> {
    let key = SealKey::generate();
    let text = STANDARD.encode(key.expose_bytes()) + "\n";
    match create_new(path, text.as_bytes(), 0o600) {
        // Another replica that shares the file was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return load(path, false),
        written => written.map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?,
    }
    tracing::info!(path = %path.display(), "key-encryption key made; back it up apart from the database");
    Ok(key)
}

/// Writes a whole file or nothing, and returns when it is on the disk. An existing file is replaced.
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |temporary| fs::rename(temporary, path))
}

/// The same for a file that must not exist yet.
pub(crate) fn create_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |temporary| fs::hard_link(temporary, path))
}

/// `place` gives the whole file its name.
fn write(path: &Path, content: &[u8], mode: u32, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(dir)?;
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let unique = crate::random::uuid();
    let temporary = dir.join(format!(".{}.{unique}", name.to_string_lossy()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| place(&temporary));
    // After a rename there is nothing to remove.
    let _ = fs::remove_file(&temporary);
    written?;
    File::open(dir)?.sync_all()
}

const FILE_BYTES_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/kek");
        assert_eq!(load(&path, false).unwrap_err().reason(), "KEY_FILE_MISSING");
        let made = load(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path, true).unwrap().expose_bytes(), made.expose_bytes());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        load(&path, true).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load(&path, true).unwrap_err();
            assert_eq!(error.reason(), "KEY_FILE_EXPOSED");
            assert!(error.to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn of_many_that_make_a_key_at_once_all_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let make = || {
            std::thread::scope(|scope| {
                let makers: Vec<_> =
                    (0..8).map(|_| scope.spawn(|| *load(&path, true).unwrap().expose_bytes())).collect();
                makers.into_iter().map(|maker| maker.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
            })
        };
        assert_eq!(make().len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        for text in ["", "not base64!", "c2hvcnQ=", "\u{fffd}"] {
            write_new(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(load(&path, true).unwrap_err().reason(), "KEY_FILE_MALFORMED", "{text:?}");
        }
        assert!(load(dir.path(), true).is_err(), "a directory");
    }
}
