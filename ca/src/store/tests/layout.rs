//! The layout moves forward: from nothing and from the first one, on both databases, and nothing is lost on the way.

use super::*;
use crate::authorities::Authorities;
use crate::store::open::address::Address;
use crate::testing::running::settings;

/// What an authority of the first layout left behind.
const FIRST: &str = include_str!("layout_0001.sql");
const KEY: &str = "wIH3j6zfwDYDj2fxYRO3q8gSHZQufXixTCG1iSe30gs=";

/// The database of `dir` as the first version left it.
async fn first(dir: &Path) -> String {
    let url = database::url_in(dir).await;
    let address = Address::parse(&url).unwrap();
    let mut conn = sound(&address).await.unwrap();
    MIGRATIONS.run_to(1, &mut conn).await.unwrap();
    for statement in FIRST.split(";\n").filter(|statement| statement.contains("INSERT")) {
        conn.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
    sqlx::Connection::close(conn).await.unwrap();
    url
}

async fn the_first_layout_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let url = first(dir.path()).await;
    let opened = open_url(&url).await.unwrap();
    let settings = settings(dir.path());
    crate::key_file::write_new(&settings.key_file(), KEY.as_bytes(), 0o600).unwrap();
    let now = runtime::clock::from_unix_secs(1_795_867_200);
    let authorities = Authorities::load(&opened.store, &settings, now).await.unwrap();
    assert_eq!(authorities.current().bundle.x509_authorities.len(), 1);
    {
        let registry = opened.store.registry();
        assert_eq!((registry.entry_count(), registry.agents().count(), registry.entries_revision()), (2, 1, 2));
        let web = registry.entries_after("").find(|entry| entry.spiffe_id.path() == "/web").unwrap();
        assert_eq!((web.hint.as_str(), web.x509_svid_ttl, web.dns_names.len()), ("main", 1800, 1));
        assert_eq!(registry.all_federated().count(), 1);
    }
    assert_eq!(opened.store.issued_count().await.unwrap(), 3);
    // And it goes on: what is new is written into the old tables.
    assert!(matches!(opened.store.create_entry(entry("n", "/new", "/node")).await.unwrap(), Created::New(_)));
    opened.close().await;
    assert_eq!(open_url(&url).await.unwrap().store.registry().entry_count(), 3);
}

/// Both ways end in the same tables with the same columns.
async fn from_nothing_and_from_the_first_the_layout_is_the_same() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut layouts = Vec::new();
    let urls = [first(old.path()).await, database::url_in(new.path()).await];
    for url in urls {
        open_url(&url).await.unwrap().close().await;
        let mut conn = database::connect(&url).await;
        let sql = match database::kind() {
            database::Kind::Sqlite => {
                "SELECT m.name, c.name, c.type FROM sqlite_master m JOIN pragma_table_info(m.name) c ORDER BY 1, c.cid"
            }
            database::Kind::Postgres => {
                "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), CAST(data_type AS TEXT) \
                 FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
            }
        };
        let rows = conn.fetch_all(sql).await.unwrap();
        let text = |row: &AnyRow, at: usize| row.get::<String, _>(at);
        layouts.push(rows.iter().map(|row| (text(row, 0), text(row, 1), text(row, 2))).collect::<Vec<_>>());
    }
    assert!(layouts[0].len() > 50, "{layouts:?}");
    assert_eq!(layouts[0], layouts[1]);
}

database::on_each_database! {
    the_first_layout_is_brought_up_to_date,
    from_nothing_and_from_the_first_the_layout_is_the_same,
}
