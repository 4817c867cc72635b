//! The file of a backup: written whole or not at all, and read only when its last line proves it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::digest::{self, Sha256, hex};
use identity::seal::SealKey;
use serde::Serialize;

use super::{BackupError, End, FORMAT, Header, Line, SEAL_PURPOSE};

/// A file while it is written: under another name, for its owner alone, with a running digest.
pub(super) struct Output {
    file: BufWriter<File>,
    digest: Sha256,
    temporary: PathBuf,
    path: PathBuf,
}

impl Output {
    pub(super) fn create(path: &Path) -> Result<Self, BackupError> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
        let open = |name: &std::ffi::OsStr| {
            let unique = crate::random::uuid();
            let temporary = path.with_file_name(format!(".{}.{unique}", name.to_string_lossy()));
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            Ok((temporary, file))
        };
        let (temporary, file) = name.and_then(open).map_err(|source| unusable(path, source))?;
        Ok(Self { file: BufWriter::new(file), digest: Sha256::new(), temporary, path: path.to_owned() })
    }

    pub(super) fn line(&mut self, line: &impl Serialize) -> Result<(), BackupError> {
        let mut text = serde_json::to_vec(line).map_err(|error| unusable(&self.path, error.into()))?;
        text.push(b'\n');
        self.digest.update(&text);
        self.file.write_all(&text).map_err(|source| unusable(&self.path, source))
    }

    /// Of every line so far.
    pub(super) fn digest(&mut self) -> [u8; 32] {
        std::mem::take(&mut self.digest).finish()
    }

    /// Gives the file its name when it is on the disk.
    pub(super) fn finish(mut self) -> Result<(), BackupError> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut finish = || {
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)?;
            File::open(dir)?.sync_all()
        };
        finish().map_err(|source| unusable(&self.path, source))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After the end there is nothing of this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A backup whose last line was checked.
pub(super) struct Input {
    path: PathBuf,
    pub(super) header: Header,
    pub(super) rows: u64,
}

impl Input {
    /// Reads the whole file once; `key` answers what sealed it.
    pub(super) fn check(
        path: &Path,
        key: impl FnOnce(&Header) -> Result<SealKey, BackupError>,
    ) -> Result<Self, BackupError> {
        let damaged = || BackupError::Damaged { file: path.to_owned() };
        let mut lines = Lines::open(path)?;
        let first = lines.next()?.ok_or_else(damaged)?;
        let header: Header = serde_json::from_slice(&first).map_err(|_| damaged())?;
        if header.kasbah_backup != FORMAT {
            return Err(BackupError::Newer { file: path.to_owned() });
        }
        let key = key(&header)?;
        let mut digest = Sha256::new();
        let (mut last, mut count) = (first, 0_u64);
        while let Some(line) = lines.next()? {
            digest.update(&last);
            last = line;
            count += 1;
        }
        let end: End = serde_json::from_slice(&last).map_err(|_| damaged())?;
        let digest = digest.finish();
        if end.sha256 != hex(&digest) || end.rows + 1 != count {
            return Err(damaged());
        }
        let seal = STANDARD.decode(&end.seal).map_err(|_| damaged())?;
        match key.open(SEAL_PURPOSE, &seal) {
            Ok(sealed) if digest::equal(&sealed, &digest) => (),
            _ => return Err(BackupError::Unproven { file: path.to_owned() }),
        }
        Ok(Self { path: path.to_owned(), header, rows: end.rows })
    }

    /// Its rows, from the first on.
    pub(super) fn rows(&self) -> Result<impl Iterator<Item = Result<Line, BackupError>>, BackupError> {
        let mut lines = Lines::open(&self.path)?;
        lines.next()?;
        let path = self.path.clone();
        let count = usize::try_from(self.rows).unwrap_or(usize::MAX);
        let rows = std::iter::from_fn(move || lines.next().transpose()).take(count);
        Ok(rows
            .map(move |line| serde_json::from_slice(&line?).map_err(|_| BackupError::Damaged { file: path.clone() })))
    }
}

struct Lines {
    file: BufReader<File>,
    path: PathBuf,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(|source| unusable(path, source))?;
        Ok(Self { file: BufReader::new(file), path: path.to_owned() })
    }

    /// With its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.file).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut line).map_err(|source| unusable(&self.path, source))?;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err(BackupError::Damaged { file: self.path.clone() }),
        }
    }
}

fn unusable(path: &Path, source: io::Error) -> BackupError {
    BackupError::File { file: path.to_owned(), source }
}

/// The longest row: a foreign bundle of the greatest length, with room.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
