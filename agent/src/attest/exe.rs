//! Facts about the executable of a process: its path, and the SHA-256 of what actually runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use identity::digest::{Sha256, hex};

/// Digests of executables, remembered until the file changes.
#[derive(Debug, Default)]
pub(crate) struct ExeDigests(Mutex<BTreeMap<FileState, String>>);

/// A file and its state. Changing the content changes `ctime`, which no user can set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileState {
    dev: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl ExeDigests {
    /// The digest of the file that process `pid` runs, in hex. Read through `/proc/PID/exe`, so it is the running
    /// file even when its path now names another. `None` when it may not be read or is too large.
    pub(super) fn sha256(&self, pid: i32) -> Option<String> {
        let mut file = File::open(format!("/proc/{pid}/exe")).ok()?;
        let state = FileState::of(&file).ok()?;
        if state.size > EXE_BYTES_MAX {
            tracing::warn!(pid, bytes = state.size, reason = "EXE_TOO_LARGE", "executable not digested");
            return None;
        }
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&state) {
            return Some(known.clone());
        }
        let digest = sha256_of(&mut file).ok()?;
        if FileState::of(&file).ok()? != state {
            return None;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DIGESTS_MAX {
            known.pop_first();
        }
        known.insert(state, digest.clone());
        Some(digest)
    }
}

/// The path of the executable, if that path names the running file here too: a process can arrange its own view of
/// the file system, and what it calls `/usr/bin/trusted` there is no fact.
pub(super) fn path(pid: i32) -> Option<String> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?;
    let (running, named) = (fs::metadata(&link).ok()?, fs::symlink_metadata(&path).ok()?);
    let same = (running.dev(), running.ino()) == (named.dev(), named.ino());
    same.then(|| path.into_os_string().into_string().ok()).flatten()
}

pub(super) fn sha256_of(file: &mut File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        if total > EXE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        digest.update(&buffer[..count]);
    }
    Ok(hex(&digest.finish()))
}

impl FileState {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            dev: found.dev(),
            inode: found.ino(),
            size: found.len(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// The largest executable that is digested.
pub(crate) const EXE_BYTES_MAX: u64 = 1 << 30;
/// Digests remembered.
pub(crate) const DIGESTS_MAX: usize = 1024;
const READ_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_standard_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exe");
        fs::write(&path, "abc").unwrap();
        let digest = sha256_of(&mut File::open(&path).unwrap()).unwrap();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_digest_is_computed_once_per_state_of_the_file() {
        let digests = ExeDigests::default();
        let own = i32::try_from(std::process::id()).unwrap();
        let first = digests.sha256(own).unwrap();
        assert_eq!(digests.sha256(own).unwrap(), first);
        assert_eq!(digests.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_path_of_this_test_is_its_own() {
        let own = fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(path(i32::try_from(std::process::id()).unwrap()).as_deref(), own.to_str());
    }
}
