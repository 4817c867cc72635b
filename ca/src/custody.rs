//! Where the keys of authorities are kept, and how they come there.
//!
//! | place | the key |
//! |---|---|
//! | `disk` | in the database, sealed by the key-encryption key ([`kek`]) |
//! | `memory` | in this process alone: each start makes new authorities |
//! | `pkcs11` | in a token, made there and never extractable ([`pkcs11`]) |
//! | `vault_transit` | in the transit engine of Vault or OpenBao ([`vault`]) |
//! | `external_signer` | with another program, asked over a Unix socket ([`external`]) |
//! | `offline` | not here: the root of an intermediate that was imported, or that a CSR was signed for |

mod desk;
mod external;
pub(crate) mod kek;
pub(crate) mod offline;
#[cfg(feature = "pkcs11")]
mod pkcs11;
pub(crate) mod places;
pub(crate) mod renewal;
pub(crate) mod settings;
mod vault;
pub(crate) mod watch;

use std::path::Path;

pub(crate) use desk::Desk;
pub use desk::KeeperError;
pub use external::ExternalSigner;
pub(crate) use places::{Made, Places};
pub use settings::{CustodySettings, ImportFiles, KeyPlace, Pkcs11Token, SecretSource};
pub use vault::{VaultAuth, VaultTransit};

/// Where a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Disk,
    Memory,
    Pkcs11,
    VaultTransit,
    ExternalSigner,
    Offline,
}

impl Place {
    const ALL: [Self; 6] =
        [Self::Disk, Self::Memory, Self::Pkcs11, Self::VaultTransit, Self::ExternalSigner, Self::Offline];

    /// As it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Pkcs11 => "pkcs11",
            Self::VaultTransit => "vault_transit",
            Self::ExternalSigner => "external_signer",
            Self::Offline => "offline",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.as_str() == text)
    }
}

/// The user of this process, as the owner of its own files in /proc.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
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
pub(crate) mod tests;
