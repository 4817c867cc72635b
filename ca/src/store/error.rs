//! Why a write or a read did not happen.

use std::sync::Arc;

use super::revocations::REVOKED_MAX;

/// Why a write or a read did not happen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database refused.
    #[error("the database does not take the request")]
    Sql(#[source] Arc<sqlx::Error>),
    /// The database server does not answer.
    #[error("the database server does not answer")]
    Silent,
    /// A row does not say what it should.
    #[error("the database holds a damaged {what}")]
    Damaged {
        /// Kind of the row.
        what: &'static str,
    },
    /// More is asked for than can be written.
    #[error("too many writes wait already")]
    Busy,
    /// The authority that signed may not sign any more.
    #[error("the signing authority was replaced meanwhile")]
    AuthorityChanged,
    /// The entry or node that it was signed for is revoked.
    #[error("the entry or node was revoked meanwhile")]
    Revoked,
    /// More would be revoked than a list can hold.
    #[error("more than {REVOKED_MAX} SVIDs of one authority would be revoked; replace the authority instead")]
    RevokedTooMany,
    /// The authority is ending.
    #[error("the authority is shutting down")]
    Closed,
}

impl StoreError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sql(error) => reason_of(error),
            Self::Silent => UNAVAILABLE,
            Self::Damaged { .. } => "STORE_DAMAGED",
            Self::Busy => "STORE_BUSY",
            Self::AuthorityChanged => "AUTHORITY_CHANGED",
            Self::Revoked => "SOURCE_REVOKED",
            Self::RevokedTooMany => "REVOCATIONS_TOO_MANY",
            Self::Closed => "SHUTTING_DOWN",
        }
    }

    /// Whether it may hit every write, and not just this one.
    pub(crate) fn is_trouble(&self) -> bool {
        matches!(self, Self::Sql(_) | Self::Silent)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

/// SQLite's codes are numbers, those of PostgreSQL five characters.
fn reason_of(error: &sqlx::Error) -> &'static str {
    let sqlx::Error::Database(told) = error else { return UNAVAILABLE };
    let code = told.code().unwrap_or_default();
    match code.as_ref() {
        "53100" | "53200" => return FULL,
        "25006" => return READ_ONLY,
        _ => (),
    }
    if code.len() == POSTGRES_CODE_LENGTH {
        return UNAVAILABLE;
    }
    match code.parse::<u32>() {
        Ok(SQLITE_FULL | SQLITE_IOERR_WRITE) => FULL,
        // The low byte of an extended code is the primary one.
        Ok(code) if code & 0xff == SQLITE_READONLY => READ_ONLY,
        _ => UNAVAILABLE,
    }
}

const UNAVAILABLE: &str = "STORE_UNAVAILABLE";
const FULL: &str = "STORE_FULL";
const READ_ONLY: &str = "STORE_READ_ONLY";
const POSTGRES_CODE_LENGTH: usize = 5;
const SQLITE_READONLY: u32 = 8;
const SQLITE_FULL: u32 = 13;
/// What the system answers to a write beyond a limit of file sizes.
const SQLITE_IOERR_WRITE: u32 = 778;
