//! The tables of a database, whatever their number: those that a later version adds are part of a backup by themselves.

use serde_json::{Map, Value};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::BackupError;
use crate::store::Address;

/// A table of ours.
pub(super) struct Table {
    pub(super) name: String,
    columns: Vec<Column>,
}

struct Column {
    name: String,
    number: bool,
}

/// Every table that belongs into a backup, in the order of the names.
pub(super) async fn all(conn: &mut AnyConnection, address: &Address) -> Result<Vec<Table>, BackupError> {
    let sql = if address.is_sqlite() { COLUMNS_SQLITE } else { COLUMNS_POSTGRES };
    let mut tables: Vec<Table> = Vec::new();
    for row in sqlx::query(sql).fetch_all(conn).await? {
        let (table, name, kind): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if PASSING.contains(&table.as_str()) {
            continue;
        }
        let number = match kind.to_ascii_uppercase().as_str() {
            "TEXT" => false,
            "BIGINT" => true,
            _ => return Err(BackupError::Column { table, column: name }),
        };
        // They come from the database and go into statements: nothing but our own kind of names.
        if ![&table, &name]
            .into_iter()
            .all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        {
            return Err(BackupError::Column { table, column: name });
        }
        match tables.last_mut().filter(|last| last.name == table) {
            Some(last) => last.columns.push(Column { name, number }),
            None => tables.push(Table { name: table, columns: vec![Column { name, number }] }),
        }
    }
    Ok(tables)
}

impl Table {
    pub(super) fn column_list(&self) -> String {
        self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn read(&self, row: &AnyRow) -> Result<Map<String, Value>, BackupError> {
        let mut map = Map::new();
        for (at, column) in self.columns.iter().enumerate() {
            let value = if column.number {
                Value::from(row.try_get::<Option<i64>, _>(at)?)
            } else {
                Value::from(row.try_get::<Option<String>, _>(at)?)
            };
            map.insert(column.name.clone(), value);
        }
        Ok(map)
    }

    /// How many rows one statement takes.
    pub(super) fn rows_max(&self) -> usize {
        PARAMETERS_MAX / self.columns.len().max(1)
    }

    /// Writes rows that [`Table::read`] made; each must name exactly the columns of the table.
    pub(super) async fn insert(
        &self,
        conn: &mut AnyConnection,
        rows: &[Map<String, Value>],
    ) -> Result<(), BackupError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut query = sqlx::query(AssertSqlSafe(self.insert_sql(rows.len())));
        for row in rows {
            for column in &self.columns {
                let misfit = || BackupError::Misfit { table: self.name.clone(), column: column.name.clone() };
                let value = row.get(&column.name).filter(|_| row.len() == self.columns.len()).ok_or_else(misfit)?;
                query = match (value, column.number) {
                    (Value::Number(number), true) => query.bind(number.as_i64().ok_or_else(misfit)?),
                    (Value::String(text), false) => query.bind(text.clone()),
                    (Value::Null, true) => query.bind(None::<i64>),
                    (Value::Null, false) => query.bind(None::<String>),
                    _ => return Err(misfit()),
                };
            }
        }
        query.execute(conn).await?;
        Ok(())
    }

    fn insert_sql(&self, rows: usize) -> String {
        let width = self.columns.len();
        let row = |row: usize| {
            let places: Vec<String> = (1..=width).map(|place| format!("${}", row * width + place)).collect();
            format!("({})", places.join(", "))
        };
        let rows: Vec<String> = (0..rows).map(row).collect();
        format!("INSERT INTO {} ({}) VALUES {}", self.name, self.column_list(), rows.join(", "))
    }
}

/// What is no part of the authority: the bookkeeping of the layout, and what replicas tell each other.
const PASSING: [&str; 2] = ["_sqlx_migrations", "change"];
const COLUMNS_SQLITE: &str = "SELECT m.name, c.name, c.type FROM sqlite_master m JOIN pragma_table_info(m.name) c \
                              WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid";
const COLUMNS_POSTGRES: &str = "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), CAST(data_type AS TEXT) \
                                FROM information_schema.columns WHERE table_schema = current_schema() \
                                ORDER BY table_name COLLATE \"C\", ordinal_position";
/// Below the 32,766 of SQLite and the 65,535 of PostgreSQL.
const PARAMETERS_MAX: usize = 8_000;
