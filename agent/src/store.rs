//! Small files of ours in `data_dir`: only this user may read them, and a reader sees the old or the new content,
//! never a half.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Replaces the content of `file`.
pub(crate) fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    write_with(file, |out| out.write_all(content))
}

/// The same with a content that is written piece by piece.
pub(crate) fn write_with(file: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let fresh = file.with_extension("new");
    // A leftover of a killed predecessor, possibly with another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    if let Err(error) = write_new(&fresh, content).and_then(|()| fs::rename(&fresh, file)) {
        // A half takes room from whatever else is to be written; when it cannot go either, the next attempt tries.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    // The rename itself must survive a power cut.
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn write_new(file: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    content(&mut out)?;
    out.sync_all()
}

/// Removes what a killed predecessor began to write in `dir`. What cannot go now goes with the next write.
pub(crate) fn sweep(dir: &Path) {
    let Ok(found) = fs::read_dir(dir) else { return };
    for path in found.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "new") {
            let _ = fs::remove_file(path);
        }
    }
}

/// The content of `file`; `None` when there is no such file.
pub(crate) fn read(file: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut content = Vec::new();
    opened.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(content))
}

/// Makes `dir`, for this user alone, when it is missing.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn content_is_replaced_whole_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("svid.pem");
        assert!(read(&file, 10).unwrap().is_none());
        write(&file, b"one").unwrap();
        fs::write(dir.path().join("svid.new"), "half of a killed write").unwrap();
        write(&file, b"two").unwrap();
        assert_eq!(read(&file, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&file, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn halves_are_swept_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let [half, whole] = ["svid.new", "svid.pem"].map(|name| dir.path().join(name));
        for file in [&half, &whole] {
            fs::write(file, "x").unwrap();
        }
        sweep(dir.path());
        sweep(&dir.path().join("missing"));
        assert!(!half.exists() && whole.exists());
    }
}
