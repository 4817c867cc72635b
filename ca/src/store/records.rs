//! Records of what was signed, with their leaves of the transparency log, in a transaction that holds nothing else: as all but
//! every transaction of a busy authority does.
//!
//! SQLite's driver hands each statement to a thread of its own and waits for the answer, which costs more than a short statement
//! does. Here the whole transaction goes there in one piece. A statement that fails ends it before its `COMMIT`.

use std::sync::LazyLock;

use sqlx::AnyConnection;

use super::issuance::{COLUMN_COUNT, COLUMNS, ROWS_MAX};
use super::log::{self, Grown, Tail};
use super::{Issuance, StoreError, number};

/// Writes `rows` in a transaction of their own, if they fit into one of few kinds; whether they did. Otherwise nothing has happened,
/// but that `rows` may have been given places that count no more.
///
/// Only for SQLite, which alone takes several statements with values at once.
pub(super) async fn write_alone(
    conn: &mut AnyConnection,
    tail: &mut Tail,
    rows: &mut [Issuance],
) -> Result<bool, StoreError> {
    let (Some(known), Some(sql)) = (tail.clone(), rows.len().checked_sub(1).and_then(|place| SQL.get(place))) else {
        return Ok(false);
    };
    let old = number(known.size());
    let Grown { next, leaves, nodes } = log::place(known, rows);
    // The end of a block has more to write.
    let ([leaves], []) = (&leaves[..], &nodes[..]) else { return Ok(false) };
    let mut query = sqlx::query(sql.as_str());
    query = query.bind(old).bind(number(next.size())).bind(log::state_text(&next));
    query = query.bind(leaves.first()).bind(leaves.text());
    for row in rows {
        query = row.bind_to(query);
    }
    match query.execute(&mut *conn).await {
        Ok(_) => {
            *tail = Some(next);
            Ok(true)
        }
        Err(sqlx::Error::Database(error)) if error.kind() == sqlx::error::ErrorKind::NotNullViolation => {
            // Another writer of this database was quicker: the log has to be read again.
            sqlx::query("ROLLBACK").execute(conn).await?;
            *tail = None;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// By the number of rows, beginning with one. Places without numbers: SQLite would look for each among all.
static SQL: LazyLock<Vec<String>> = LazyLock::new(|| (1..=ROWS_MAX).map(sql).collect());

/// The one row of the log's state decides: when it does not say what we know it becomes null, which it must not be. Where a bad row
/// takes the whole transaction back, SQLite keeps no copies of pages to take back those before it.
fn sql(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMN_COUNT].join(", "));
    format!(
        "BEGIN IMMEDIATE; \
         UPDATE log_state SET size = CASE WHEN size = ? THEN ? END, frontier = ? WHERE id = 1; \
         INSERT INTO log_leaves (first_leaf, hashes) VALUES (?, ?); \
         INSERT OR ROLLBACK INTO issuance ({COLUMNS}) VALUES {}; \
         COMMIT",
        vec![row; rows].join(", ")
    )
}
