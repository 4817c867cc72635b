//! What tells one content of a file from another without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Time of the last change, size and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl Stamp {
    /// Of the file as it is now; `None` when there is none.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        std::fs::metadata(file).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Stamp {
    fn from(found: &Metadata) -> Self {
        Self { modified: (found.mtime(), found.mtime_nsec()), bytes: found.len(), inode: found.ino() }
    }
}
