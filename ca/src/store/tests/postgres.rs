//! What is particular to PostgreSQL: a server with users and rights, reached over TLS.

use super::*;
use crate::testing::database::Kind;

/// A role of its own with the password `right`, and a database that it owns.
async fn owned(cluster: &database::Cluster) -> (String, String) {
    let name = format!("u{}", crate::random::uuid().replace('-', ""));
    cluster.sql(&format!("CREATE ROLE {name} LOGIN PASSWORD 'right'")).await;
    cluster.sql(&format!("CREATE DATABASE {name} OWNER {name}")).await;
    (format!("postgres://{name}:right@localhost:{}/{name}", cluster.port), name)
}

fn in_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

#[tokio::test]
async fn a_server_that_proves_its_name_is_used_over_tls() {
    let Some(cluster) = database::cluster() else { return };
    let (url, _) = owned(cluster).await;
    let root = cluster.folder.join("root.pem");
    let opened = open_url(&format!("{url}?sslmode=verify-full&sslrootcert={}", root.display())).await.unwrap();
    let sql = "SELECT CAST(ssl AS TEXT) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = sqlx::query(sql).fetch_one(&opened.store.pool).await.unwrap();
    assert_eq!(row.get::<String, _>(0), "true");
    opened.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_is_refused() {
    let Some(cluster) = database::cluster() else { return };
    let (url, _) = owned(cluster).await;
    let by_address = url.replace("localhost", "127.0.0.1");
    let root = cluster.folder.join("root.pem");
    let foreign = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(foreign.path(), other_root()).unwrap();
    for url in [
        format!("{by_address}?sslmode=verify-full&sslrootcert={}", root.display()),
        format!("{url}?sslmode=verify-full&sslrootcert={}", foreign.path().display()),
        format!("{url}?sslmode=verify-full"),
    ] {
        check_refused(open_url(&url).await, "DATABASE_UNVERIFIED", "sslrootcert");
    }
}

fn other_root() -> String {
    let day = std::time::Duration::from_secs(86_400);
    let now = std::time::SystemTime::now();
    let root = identity::authority::X509Authority::generate_root(&trust_domain(), day, now).unwrap();
    identity::pem::certificate(root.certificate())
}

#[tokio::test]
async fn each_mistake_of_an_address_is_one_sentence_without_the_password() {
    let Some(cluster) = database::cluster() else { return };
    let (url, name) = owned(cluster).await;
    let check = async |url: String, reason: &str, says: &str| {
        let outcome = open_url(&url).await;
        let told = outcome.as_ref().err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
        assert!(!told.contains("right") && !told.contains("wrong"), "{told}");
        check_refused(outcome, reason, says);
    };
    check(url.replace(":right@", ":wrong@"), "DATABASE_ACCESS_DENIED", "correct them").await;
    check(url.replace(&format!("//{name}:"), "//nobody:"), "DATABASE_ACCESS_DENIED", "correct them").await;
    check(in_database(&url, "missing"), "DATABASE_MISSING", "CREATE DATABASE").await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = url.replace(&format!(":{}/", cluster.port), &format!(":{unused}/"));
    check(away, "DATABASE_UNAVAILABLE", "reachable").await;
    check(format!("{url}?sslmod=require"), "DATABASE_PARAMETER_UNKNOWN", "`sslmod`").await;
}

#[tokio::test]
async fn a_user_without_rights_and_a_standby_are_told_apart() {
    let Some(cluster) = database::cluster() else { return };
    let (url, name) = owned(cluster).await;
    let (_, other) = owned(cluster).await;
    cluster.sql(&format!("GRANT CONNECT ON DATABASE {other} TO {name}")).await;
    let theirs = in_database(&url, &other);
    check_refused(open_url(&theirs).await, "DATABASE_NO_RIGHTS", "GRANT");
    cluster.sql(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    check_refused(open_url(&url).await, "DATABASE_READ_ONLY", "primary");
}

#[tokio::test]
async fn tables_of_somebody_else_are_refused_and_untouched() {
    let Some(cluster) = database::cluster() else { return };
    let url = cluster.create().await;
    let mut conn = database::connect(&url).await;
    conn.execute("CREATE TABLE orders (id BIGINT)").await.unwrap();
    check_refused(open_url(&url).await, "DATABASE_FOREIGN", "name another one");
    let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(conn.fetch_one(sql).await.unwrap().get::<i64, _>(0), 1);
}

/// A default of the database must not make acknowledged writes less than durable.
#[tokio::test]
async fn a_commit_is_durable_whatever_the_default() {
    let Some(cluster) = database::cluster() else { return };
    database::on(Kind::Postgres, async {
        let (url, name) = owned(cluster).await;
        cluster.sql(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
        let opened = open_url(&url).await.unwrap();
        let row = sqlx::query("SHOW synchronous_commit").fetch_one(&opened.store.pool).await.unwrap();
        assert_eq!(row.get::<String, _>(0), "on");
    })
    .await;
}
