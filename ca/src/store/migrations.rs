//! The schema's migrations, embedded: forward only, applied in the order of their numbers.
//!
//! Listed by hand and not by sqlx's macro, which would compile both database drivers a second time for the compiler.

use std::sync::LazyLock;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// What brings a database of any earlier version to the present one.
pub(crate) static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(ALL.iter().map(migration).collect())
});

/// Number, name and statements of each file in `migrations/`.
const ALL: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("../../../migrations/0001_start.sql")),
    (2, "rotation", include_str!("../../../migrations/0002_rotation.sql")),
    (3, "log_and_audit", include_str!("../../../migrations/0003_log_and_audit.sql")),
    (4, "replicas", include_str!("../../../migrations/0004_replicas.sql")),
    (5, "custody", include_str!("../../../migrations/0005_custody.sql")),
    (6, "revocation", include_str!("../../../migrations/0006_revocation.sql")),
    (7, "federation", include_str!("../../../migrations/0007_federation.sql")),
    (8, "approvals", include_str!("../../../migrations/0008_approvals.sql")),
    (10, "rotation_steps", include_str!("../../../migrations/0010_rotation_steps.sql")),
    (11, "issuance_in_time_order", include_str!("../../../migrations/0011_issuance_in_time_order.sql")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed_under_its_number_and_name() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".sql"))
            .collect();
        files.sort();
        let listed: Vec<_> = ALL.iter().map(|(number, name, _)| format!("{number:04}_{name}.sql")).collect();
        assert_eq!(listed, files);
    }
}
