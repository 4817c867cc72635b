//! Why a database cannot be used, each with what to do.

use identity::spiffe_id::TrustDomain;
use sqlx::migrate::MigrateError;

use crate::store::StoreError;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is damaged.
    #[error("the database {database} is damaged; restore it from a backup, or move it away to start a new authority")]
    Corrupt {
        /// Which.
        database: String,
        /// What the check found.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The database belongs to another program.
    #[error("the database {database} was not made by kasbah; name another one in the setting `database`")]
    Foreign {
        /// Which.
        database: String,
    },
    /// The database belongs to a newer version.
    #[error("the database {database} was written by another version of kasbah; start that version")]
    Newer {
        /// Which.
        database: String,
        /// What does not fit.
        #[source]
        source: Box<MigrateError>,
    },
    /// The database belongs to another trust domain.
    #[error(
        "the database {database} holds the authority of the trust domain {found}, not {wanted}; \
         correct `trust_domain` or name another database"
    )]
    OtherTrustDomain {
        /// Which.
        database: String,
        /// What it holds.
        found: String,
        /// What the settings say.
        wanted: TrustDomain,
    },
    /// The database cannot be reached or written.
    #[error("the database {database} cannot be opened; see that it exists, is reachable and writable")]
    Unavailable {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server knows no such user, or another password.
    #[error("the database {database} refuses the user or the password; correct them in the setting `database`")]
    AccessDenied {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server has no database of this name.
    #[error("the database {database} does not exist on its server; create it there with CREATE DATABASE")]
    Missing {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The user may connect, and not more.
    #[error(
        "the user of the database {database} may not create and change tables; \
         make it the owner of the database, or GRANT it CREATE and USAGE on the schema"
    )]
    NoRights {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A standby, or a disk that is mounted read-only.
    #[error("the database {database} can only be read; name the primary server, or make the file's disk writable")]
    ReadOnly {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server does not prove who it is, or does not speak TLS.
    #[error(
        "the server of the database {database} cannot be verified; \
         name its root certificate with `sslrootcert=FILE`, and the host name that its certificate carries"
    )]
    Unverified {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A restore is under way, or ended before its end.
    #[error(
        "the database {database} is being restored, or its restore did not end; \
         wait for it, or restore again with --force"
    )]
    Restoring {
        /// Which.
        database: String,
    },
    /// A parameter of the URL.
    #[error("the address {database} has the unknown parameter `{parameter}`; correct it in the setting `database`")]
    Parameter {
        /// Which.
        database: String,
        /// Its name.
        parameter: String,
    },
    /// The address is of no known kind.
    #[error("the setting `database` must begin with sqlite: or postgres://, not {database}")]
    Unsupported {
        /// What was given.
        database: String,
    },
    /// What is in it cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "DATABASE_CORRUPT",
            Self::Foreign { .. } => "DATABASE_FOREIGN",
            Self::Newer { .. } => "DATABASE_OTHER_VERSION",
            Self::OtherTrustDomain { .. } => "DATABASE_OTHER_TRUST_DOMAIN",
            Self::Unavailable { .. } => "DATABASE_UNAVAILABLE",
            Self::AccessDenied { .. } => "DATABASE_ACCESS_DENIED",
            Self::Missing { .. } => "DATABASE_MISSING",
            Self::NoRights { .. } => "DATABASE_NO_RIGHTS",
            Self::ReadOnly { .. } => "DATABASE_READ_ONLY",
            Self::Unverified { .. } => "DATABASE_UNVERIFIED",
            Self::Restoring { .. } => "DATABASE_RESTORING",
            Self::Parameter { .. } => "DATABASE_PARAMETER_UNKNOWN",
            Self::Unsupported { .. } => "DATABASE_UNSUPPORTED",
            Self::Store(error) => error.reason(),
        }
    }
}
