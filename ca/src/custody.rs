//! Where the keys of authorities are kept, and how they come there.
//!
//! | place | the key |
//! |---|---|
//! | `disk` | in the database, sealed by the key-encryption key ([`kek`]) |
//! | `memory` | in this process alone: each start makes new authorities |
//! | `offline` | not here: the root of an intermediate that was imported, or that a CSR was signed for |

pub(crate) mod kek;
pub(crate) mod offline;
pub(crate) mod places;
pub(crate) mod renewal;
pub(crate) mod settings;
pub(crate) mod watch;

use std::path::Path;

pub(crate) use places::{Made, Places};
pub use settings::{CustodySettings, ImportFiles, KeyPlace};

/// Where a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Disk,
    Memory,
    Offline,
}

impl Place {
    const ALL: [Self; 3] = [Self::Disk, Self::Memory, Self::Offline];

    /// As it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Offline => "offline",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.as_str() == text)
    }
}

/// A file that an operator named, read whole.
///
/// # Errors
/// When it cannot be read, or is longer than `max` bytes.
pub(crate) fn read_file(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests;
