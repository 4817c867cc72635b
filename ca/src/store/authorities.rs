//! Rows of signing authorities, with their sealed keys.

use std::collections::BTreeSet;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::{Done, Store, StoreError, column, meta};
use crate::registry::Change;

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorityKind {
    /// Intermediates; it is the trust anchor.
    Root,
    /// X.509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorityState {
    /// Published, not yet signing.
    Prepared,
    /// Signing.
    Active,
    /// Still trusted, no longer signing.
    Old,
}

/// A signing authority as it is stored.
#[derive(Clone)]
pub(crate) struct AuthorityRow {
    pub(crate) id: String,
    pub(crate) kind: AuthorityKind,
    pub(crate) state: AuthorityState,
    /// PEM; empty for JWT authorities.
    pub(crate) certificate: String,
    pub(crate) sealed_key: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) created_at: i64,
}

/// What is stored about the authority as a whole.
#[derive(Clone)]
pub(crate) struct Authorities {
    pub(crate) rows: Vec<AuthorityRow>,
    pub(crate) bundle_sequence: u64,
    /// Grows with every change; a change is based on the one that its maker has seen.
    pub(crate) revision: u64,
    /// The known text, sealed; none in a new database.
    pub(crate) key_check: Option<String>,
}

impl Store {
    /// Reads all authorities, oldest first.
    pub(crate) async fn authorities(&self) -> Result<Authorities, StoreError> {
        let mut conn = self.pool.acquire().await?;
        // First: when a change comes between, a change based on what is read here is refused.
        let revision = meta::number(&mut conn, meta::AUTHORITIES_REVISION).await?;
        let sql = format!("SELECT {COLUMNS} FROM authority ORDER BY created_at, id");
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *conn).await?;
        Ok(Authorities {
            rows: rows.iter().map(read).collect::<Result<_, _>>()?,
            bundle_sequence: meta::number(&mut conn, meta::BUNDLE_SEQUENCE).await?,
            revision,
            key_check: meta::read(&mut conn, meta::KEY_CHECK).await?,
        })
    }

    /// Writes `put` (new or changed) and deletes `gone`, all or nothing; `published` says that the trust bundle
    /// changes by it. Answers the bundle's sequence number afterwards.
    ///
    /// Refused with [`StoreError::AuthorityChanged`] when somebody, perhaps on another replica, changed an authority
    /// since `based_on` was read.
    pub(crate) async fn change_authorities(
        &self,
        put: Vec<AuthorityRow>,
        gone: Vec<String>,
        published: bool,
        key_check: Option<String>,
        based_on: u64,
    ) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                if meta::number(conn, meta::AUTHORITIES_REVISION).await? != based_on {
                    return Err(StoreError::AuthorityChanged);
                }
                meta::count_up(conn, meta::AUTHORITIES_REVISION).await?;
                for id in gone {
                    sqlx::query("DELETE FROM authority WHERE id = $1").bind(id).execute(&mut *conn).await?;
                }
                for row in put {
                    write(conn, row).await?;
                }
                if let Some(text) = key_check {
                    meta::write(conn, meta::KEY_CHECK, &text).await?;
                }
                let sequence = if published {
                    meta::count_up(conn, meta::BUNDLE_SEQUENCE).await?
                } else {
                    meta::number(conn, meta::BUNDLE_SEQUENCE).await?
                };
                Ok(Done::new(sequence, vec![Change::Authorities]))
            })
        })
        .await
    }
}

/// The ids of those that may sign.
pub(super) async fn active(conn: &mut AnyConnection) -> Result<BTreeSet<String>, StoreError> {
    let rows = sqlx::query("SELECT id FROM authority WHERE state = 'active'").fetch_all(conn).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
}

async fn write(conn: &mut AnyConnection, row: AuthorityRow) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO authority ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (id) DO UPDATE SET state = excluded.state"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(row.id)
        .bind(row.kind.as_str())
        .bind(row.state.as_str())
        .bind(row.certificate)
        .bind(row.sealed_key)
        .bind(row.not_before)
        .bind(row.not_after)
        .bind(row.created_at)
        .execute(conn)
        .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<AuthorityRow, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let damaged = StoreError::Damaged { what: WHAT };
    Ok(AuthorityRow {
        id: text("id")?,
        kind: AuthorityKind::parse(&text("kind")?).ok_or_else(|| damaged.clone())?,
        state: AuthorityState::parse(&text("state")?).ok_or(damaged)?,
        certificate: text("certificate")?,
        sealed_key: text("sealed_key")?,
        not_before: int("not_before")?,
        not_after: int("not_after")?,
        created_at: int("created_at")?,
    })
}

impl AuthorityKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Root, Self::X509, Self::Jwt].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl AuthorityState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Prepared, Self::Active, Self::Old].into_iter().find(|state| state.as_str() == text)
    }
}

const WHAT: &str = "signing authority";
const COLUMNS: &str = "id, kind, state, certificate, sealed_key, not_before, not_after, created_at";
