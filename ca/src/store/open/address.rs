//! Where a database is: the URL of the setting `database`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::OpenError;

/// A URL that was understood.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) kind: Kind,
    /// As the driver takes it, secrets included.
    pub(crate) url: String,
}

/// Which kind of database an address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite(PathBuf),
    Postgres,
}

impl Address {
    /// # Errors
    /// When the URL is of no known kind or has parameters that nobody knows; a mistyped `sslmode` must not mean none.
    pub(crate) fn parse(database: &str) -> Result<Self, OpenError> {
        if let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|scheme| database.strip_prefix(scheme)) {
            check_parameters(rest, database)?;
            return Ok(Self { kind: Kind::Postgres, url: with_tls(rest, database) });
        }
        if !database.starts_with("sqlite:") {
            return Err(OpenError::Unsupported { database: shown(database) });
        }
        let options: sqlx::sqlite::SqliteConnectOptions =
            database.parse().map_err(|_| OpenError::Unsupported { database: shown(database) })?;
        Ok(Self { kind: Kind::Sqlite(options.get_filename().to_path_buf()), url: database.to_owned() })
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.kind, Kind::Sqlite(_))
    }

    /// Without secrets.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

fn check_parameters(rest: &str, database: &str) -> Result<(), OpenError> {
    for parameter in parameters(rest) {
        let name = parameter.split('=').next().unwrap_or_default();
        if !PARAMETERS.contains(&name) {
            return Err(OpenError::Parameter { database: shown(database), parameter: name.to_owned() });
        }
    }
    Ok(())
}

/// A server on another machine is spoken to over TLS and has to prove its name, unless the URL says otherwise.
fn with_tls(rest: &str, database: &str) -> String {
    let says = |name: &str| parameters(rest).any(|parameter| parameter.split('=').next() == Some(name));
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let near = host.is_empty() || says("host") || is_loopback(host) || host.starts_with("%2F");
    if near || says("sslmode") || says("ssl-mode") {
        return database.to_owned();
    }
    let joint = if rest.contains('?') { '&' } else { '?' };
    format!("{database}{joint}sslmode=verify-full")
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn parameters(rest: &str) -> impl Iterator<Item = &str> {
    rest.split_once('?').map_or("", |(_, query)| query).split('&').filter(|parameter| !parameter.is_empty())
}

/// The URL of an SQLite file.
pub(crate) fn sqlite_url(file: &Path) -> String {
    let mut url = String::from("sqlite://");
    for byte in file.to_string_lossy().bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    url
}

/// An address without the password it may hold.
pub(crate) fn shown(database: &str) -> String {
    let Some((scheme, rest)) = database.split_once("://") else { return database.to_owned() };
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None if scheme == "sqlite" => rest.to_owned(),
        None => format!("{scheme}://{rest}"),
    }
}

/// What a PostgreSQL URL may say after its question mark.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_spoken_to_over_tls() {
        let check = |url: &str, tls: bool| {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.url.contains("sslmode=verify-full"), tls, "{url}");
        };
        check("postgres://me:secret@db.example/ca", true);
        check("postgresql://db.example:5432/ca?sslrootcert=/root.pem", true);
        check("postgres://[2001:db8::1]/ca", true);
        check("postgres://localhost.example/ca", true);
        check("postgres://localhost:5433/ca", false);
        check("postgres://[::1]:5433/ca", false);
        check("postgres://127.0.0.1/ca", false);
        check("postgres://localhost/ca?host=/run/postgresql", false);
        check("postgres://db.example/ca?sslmode=require", false);
    }

    #[test]
    fn a_mistyped_parameter_is_refused_without_its_value() {
        for url in ["postgres://db/ca?sslmod=verify-full", "postgres://db/ca?sslmode=require&pasword=secret"] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.reason(), "DATABASE_PARAMETER_UNKNOWN");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_address_is_shown_without_secrets() {
        let check = |url: &str, expected: &str| assert_eq!(shown(url), expected);
        check("postgres://me:sec@ret@db/ca", "postgres://…@db/ca");
        check("postgres://db/ca?password=secret", "postgres://db/ca");
        check("sqlite:///d/ca.sqlite?mode=rwc", "/d/ca.sqlite");
        let address = Address::parse("postgres://me:secret@localhost/ca").unwrap();
        assert!(!format!("{address:?}").contains("secret"));
    }
}
