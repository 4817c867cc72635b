//! Why a backup was not made, or not restored.

use std::path::PathBuf;

use identity::spiffe_id::TrustDomain;

use crate::authorities::AuthoritiesError;
use crate::key_file::KeyFileError;
use crate::server::RunError;
use crate::store::{OpenError, StoreError};

/// Why a backup was not made, or not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database, while it was read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key-encryption key.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The key does not belong to the database.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The directory, or somebody who uses it.
    #[error(transparent)]
    Run(#[from] Box<RunError>),
    /// Nothing to back up.
    #[error("the database holds no authority; there is nothing to back up")]
    Empty,
    /// The file.
    #[error("the backup file {} cannot be used; see that it exists and its directory is writable", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is no backup, or not a whole one.
    #[error("the file {} is damaged or no backup; take another one", file.display())]
    Damaged {
        /// Which.
        file: PathBuf,
    },
    /// The file was made with another key, or changed.
    #[error(
        "the backup {} was not made with this key file, or was changed; name its key file in the setting `key_file`",
        file.display()
    )]
    Unproven {
        /// Which.
        file: PathBuf,
    },
    /// The file comes from a newer version.
    #[error("the backup {} was made by a newer version of kasbah; restore it with that version", file.display())]
    Newer {
        /// Which.
        file: PathBuf,
    },
    /// Another authority.
    #[error("this is the authority of the trust domain {found}, not {wanted}; correct `trust_domain`")]
    OtherTrustDomain {
        /// What is there.
        found: String,
        /// What the settings say.
        wanted: TrustDomain,
    },
    /// Something would be lost.
    #[error("the database {database} is not empty; restore into a new one, or lose what is in it with --force")]
    NotEmpty {
        /// Which.
        database: String,
    },
    /// Somebody uses the database.
    #[error("the database {database} is in use by a running authority; stop every replica first")]
    InUse {
        /// Which.
        database: String,
    },
    /// A column of a type that is not ours.
    #[error("the column {table}.{column} is none of ours; remove it, or name another database")]
    Column {
        /// Of which table.
        table: String,
        /// Which.
        column: String,
    },
    /// A row that does not fit.
    #[error("a row of the backup does not fit the table {table} at {column}; take another backup")]
    Misfit {
        /// Which table.
        table: String,
        /// Where.
        column: String,
    },
    /// The end of the file could not be sealed.
    #[error("the backup cannot be sealed")]
    Sealing,
}

impl BackupError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Open(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::KeyFile(error) => error.reason(),
            Self::Authorities(error) => error.reason(),
            Self::Run(error) => error.reason(),
            Self::Empty => "BACKUP_EMPTY",
            Self::File { .. } => "BACKUP_FILE_UNUSABLE",
            Self::Damaged { .. } => "BACKUP_DAMAGED",
            Self::Unproven { .. } => "BACKUP_UNPROVEN",
            Self::Newer { .. } => "BACKUP_OTHER_VERSION",
            Self::OtherTrustDomain { .. } => "DATABASE_OTHER_TRUST_DOMAIN",
            Self::NotEmpty { .. } => "DATABASE_NOT_EMPTY",
            Self::InUse { .. } => "DATABASE_IN_USE",
            Self::Column { .. } => "DATABASE_FOREIGN",
            Self::Misfit { .. } => "BACKUP_DAMAGED",
            Self::Sealing => "BACKUP_SEAL_FAILED",
        }
    }
}

impl From<sqlx::Error> for BackupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
