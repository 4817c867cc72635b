//! The record of everything that was handed out.

use sqlx::{AnyConnection, AssertSqlSafe};

use super::{Done, Store, StoreError, column};

/// One SVID that is about to be handed out.
#[derive(Clone, Debug)]
pub(crate) struct Issuance {
    /// X.509: serial (hex). JWT: SHA-256 of the token.
    pub(crate) serial: String,
    pub(crate) kind: IssuanceKind,
    pub(crate) spiffe_id: String,
    /// Empty when no entry allowed it.
    pub(crate) entry_id: String,
    pub(crate) caller: String,
    pub(crate) authority_id: String,
    pub(crate) issued_at: i64,
    pub(crate) not_after: i64,
}

/// By which way it was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IssuanceKind {
    /// X.509-SVID of an entry.
    X509,
    /// JWT-SVID of an entry.
    Jwt,
    /// X.509-SVID of a node.
    Agent,
    /// X.509-SVID of this server.
    Server,
    /// X.509-SVID of the caller of the mesh CSR API.
    Csr,
    /// X.509-SVID for an administrator.
    MintX509,
    /// JWT-SVID for an administrator.
    MintJwt,
}

impl IssuanceKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Csr => "csr",
            Self::MintX509 => "mint_x509",
            Self::MintJwt => "mint_jwt",
        }
    }
}

/// Writes `rows` with as few statements as the databases' limits on parameters permit.
pub(super) async fn insert(conn: &mut AnyConnection, rows: &[Issuance]) -> Result<(), StoreError> {
    for rows in rows.chunks(ROWS_MAX) {
        let mut query = sqlx::query(AssertSqlSafe(insert_sql(rows.len())));
        for row in rows {
            query = query
                .bind(row.serial.clone())
                .bind(row.kind.as_str())
                .bind(row.spiffe_id.clone())
                .bind(row.entry_id.clone())
                .bind(row.caller.clone())
                .bind(row.authority_id.clone())
                .bind(row.issued_at)
                .bind(row.not_after);
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

fn insert_sql(rows: usize) -> String {
    let mut sql = String::from(
        "INSERT INTO issuance (serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after) VALUES ",
    );
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for place in 1..=COLUMNS {
            let comma = if place == 1 { "" } else { ", " };
            sql.push_str(&format!("{comma}${}", row * COLUMNS + place));
        }
        sql.push(')');
    }
    sql
}

impl Store {
    /// The newest records, newest first, at most `limit`.
    pub(crate) async fn issued(&self, limit: u32) -> Result<Vec<(Issuance, String)>, StoreError> {
        let sql = "SELECT serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after \
                   FROM issuance ORDER BY issued_at DESC, serial LIMIT $1";
        let rows = sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let text = |name| column::<String>(row, name, "issuance record");
                let issuance = Issuance {
                    serial: text("serial")?,
                    kind: IssuanceKind::X509,
                    spiffe_id: text("spiffe_id")?,
                    entry_id: text("entry_id")?,
                    caller: text("caller")?,
                    authority_id: text("authority_id")?,
                    issued_at: column(row, "issued_at", "issuance record")?,
                    not_after: column(row, "not_after", "issuance record")?,
                };
                Ok((issuance, text("kind")?))
            })
            .collect()
    }

    /// How many SVIDs are on record.
    pub(crate) async fn issued_count(&self) -> Result<u64, StoreError> {
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM issuance").fetch_one(&self.pool).await?;
        Ok(count.unsigned_abs())
    }

    /// Forgets what ran out before `moment`.
    pub(crate) async fn forget_issued_before(&self, moment: i64) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM issuance WHERE not_after < $1";
                let gone = sqlx::query(sql).bind(moment).execute(conn).await?.rows_affected();
                Ok(Done::quiet(gone))
            })
        })
        .await
    }
}

const COLUMNS: usize = 8;
/// 8 × 1,000 parameters: below the 32,766 of SQLite and the 65,535 of PostgreSQL.
const ROWS_MAX: usize = 1_000;
