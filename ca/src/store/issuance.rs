//! The record of everything that was handed out.

use identity::transparency::IssuanceLeaf;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe};

use super::{AuditFilter, Done, Store, StoreError, column, number};

/// One SVID that is about to be handed out.
#[derive(Clone, Debug)]
pub(crate) struct Issuance {
    /// X.509: serial (hex). Tokens: SHA-256 of the token.
    pub(crate) serial: String,
    pub(crate) kind: IssuanceKind,
    pub(crate) spiffe_id: String,
    /// Empty when no entry allowed it.
    pub(crate) entry_id: String,
    pub(crate) caller: String,
    pub(crate) authority_id: String,
    /// X.509: SHA-256 of the certificate (hex). Tokens: empty.
    pub(crate) fingerprint: String,
    pub(crate) issued_at: i64,
    pub(crate) not_after: i64,
    /// The record's place in the transparency log, given by the writer.
    pub(crate) log_index: i64,
}

impl Issuance {
    /// What the transparency log says about it.
    pub(crate) fn leaf(&self) -> IssuanceLeaf<'_> {
        leaf(self, self.kind.as_str())
    }

    /// Binds the columns of [`COLUMNS`].
    pub(super) fn bind_to<'q>(&self, query: Query<'q, Any, AnyArguments>) -> Query<'q, Any, AnyArguments> {
        query
            .bind(self.serial.clone())
            .bind(self.kind.as_str())
            .bind(self.spiffe_id.clone())
            .bind(self.entry_id.clone())
            .bind(self.caller.clone())
            .bind(self.authority_id.clone())
            .bind(self.fingerprint.clone())
            .bind(self.issued_at)
            .bind(self.not_after)
            .bind(self.log_index)
    }
}

/// The same for a record that was read back: its kind may be one that this version does not know.
fn leaf<'a>(row: &'a Issuance, kind: &'a str) -> IssuanceLeaf<'a> {
    IssuanceLeaf {
        kind,
        serial: &row.serial,
        spiffe_id: &row.spiffe_id,
        entry_id: &row.entry_id,
        caller: &row.caller,
        authority_id: &row.authority_id,
        fingerprint: &row.fingerprint,
        issued_at: row.issued_at,
        not_after: row.not_after,
    }
}

/// A record as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) issuance: Issuance,
    /// Its kind, which may be one that this version does not know.
    pub(crate) kind: String,
}

impl Recorded {
    /// What the transparency log says about it.
    pub(crate) fn leaf(&self) -> IssuanceLeaf<'_> {
        leaf(&self.issuance, &self.kind)
    }
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
    /// WIT-SVID of an entry.
    Wit,
    /// WIT-SVID for an administrator.
    MintWit,
    /// CA certificate of a server below this one.
    Downstream,
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
            Self::Wit => "wit",
            Self::MintWit => "mint_wit",
            Self::Downstream => "downstream",
        }
    }
}

/// Writes `rows`, some in each statement.
pub(super) async fn insert(conn: &mut AnyConnection, rows: &[Issuance]) -> Result<(), StoreError> {
    for rows in rows.chunks(ROWS_MAX) {
        let mut query = sqlx::query(AssertSqlSafe(insert_sql(rows.len())));
        for row in rows {
            query = row.bind_to(query);
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

fn insert_sql(rows: usize) -> String {
    let mut sql = format!("INSERT INTO issuance ({COLUMNS}) VALUES ");
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for place in 1..=COLUMN_COUNT {
            let comma = if place == 1 { "" } else { ", " };
            sql.push_str(&format!("{comma}${}", row * COLUMN_COUNT + place));
        }
        sql.push(')');
    }
    sql
}

impl Store {
    /// The newest records, newest first, at most `limit`.
    pub(crate) async fn issued(&self, limit: u32) -> Result<Vec<Recorded>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM issuance ORDER BY issued_at DESC, serial LIMIT $1");
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.iter().map(read).collect()
    }

    /// The record of one SVID, while it is kept.
    pub(crate) async fn issued_one(&self, serial: &str) -> Result<Option<Recorded>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM issuance WHERE {}", serial_condition(serial));
        let row = sqlx::query(AssertSqlSafe(sql)).bind(serial.to_owned()).fetch_optional(&self.pool).await?;
        row.as_ref().map(read).transpose()
    }

    /// The records at places `first` up to (without) `end` of the log, as far as they are kept.
    pub(crate) async fn issued_at_log(&self, first: u64, end: u64) -> Result<Vec<Recorded>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM issuance WHERE log_index >= $1 AND log_index < $2 ORDER BY log_index");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(number(first)).bind(number(end));
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// The newest records that an audit filter fits, newest first, at most `limit`.
    pub(crate) async fn issued_by(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<Recorded>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM issuance WHERE ($1 = 0 OR issued_at >= $1) AND ($2 = 0 OR issued_at < $2) \
             AND ($3 = '' OR caller = $3) AND ($4 = '' OR $4 = 'issue' OR 'issue.' || kind = $4) \
             AND ($5 = '' OR spiffe_id = $5) AND ($6 = '' OR serial = $6) ORDER BY log_index DESC LIMIT $7"
        );
        let AuditFilter { since, until, actor, action, spiffe_id, target } = filter.clone();
        let query = sqlx::query(AssertSqlSafe(sql)).bind(since).bind(until).bind(actor).bind(action);
        let query = query.bind(spiffe_id).bind(target).bind(i64::from(limit));
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// When the newest SVID on record was issued; 0 when there is none.
    pub(crate) async fn newest_issue(&self) -> Result<i64, StoreError> {
        let (newest,): (i64,) =
            sqlx::query_as("SELECT COALESCE(MAX(issued_at), 0) FROM issuance").fetch_one(&self.pool).await?;
        Ok(newest)
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

/// Finds the record of `$1`, a `serial`. Those of certificates have an index; for the hash of a token all records are looked through.
pub(super) fn serial_condition(serial: &str) -> &'static str {
    if serial.len() < HASH_DIGITS { "serial = $1 AND length(serial) < 64" } else { "serial = $1" }
}

fn read(row: &AnyRow) -> Result<Recorded, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let issuance = Issuance {
        serial: text("serial")?,
        kind: IssuanceKind::X509,
        spiffe_id: text("spiffe_id")?,
        entry_id: text("entry_id")?,
        caller: text("caller")?,
        authority_id: text("authority_id")?,
        fingerprint: text("fingerprint")?,
        issued_at: int("issued_at")?,
        not_after: int("not_after")?,
        log_index: int("log_index")?,
    };
    Ok(Recorded { issuance, kind: text("kind")? })
}

const WHAT: &str = "issuance record";
pub(super) const COLUMNS: &str =
    "serial, kind, spiffe_id, entry_id, caller, authority_id, fingerprint, issued_at, not_after, log_index";
pub(super) const COLUMN_COUNT: usize = 10;
/// Of a SHA-256.
pub(super) const HASH_DIGITS: usize = 64;
/// SQLite looks through all parameters of a statement for each that is bound: many short statements cost less than a long one.
pub(super) const ROWS_MAX: usize = 32;
