//! What tests of several modules need.

use std::path::PathBuf;

/// The folder with test data of other projects, from `KASBAH_CORPORA`.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn corpora() -> Option<PathBuf> {
    let folder = std::env::var_os("KASBAH_CORPORA").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        eprintln!("skipped: KASBAH_CORPORA names no folder");
    }
    folder
}
