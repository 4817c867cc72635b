//! Where the Workload API is, as the SPIFFE Workload Endpoint standard writes it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A Workload API address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address, where the network vouches for the caller.
    Tcp(SocketAddr),
}

/// Why a text is no Workload API address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no Workload API address: {what}; write unix:///absolute/path or tcp://IP:PORT")]
pub struct EndpointError {
    text: String,
    what: &'static str,
}

impl EndpointError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "WORKLOAD_ENDPOINT_BAD"
    }
}

impl Endpoint {
    /// Parses `unix:///absolute/path`, `unix:/absolute/path` or `tcp://IP:PORT`.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let bad = |what| EndpointError { text: text.chars().take(TEXT_SHOWN_MAX).collect(), what };
        if text.contains(['?', '#']) {
            return Err(bad("it has a query or fragment"));
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad("the path is not absolute"))
            };
        }
        let addr = text.strip_prefix("tcp://").ok_or_else(|| bad("the scheme is neither unix nor tcp"))?;
        let addr: SocketAddr = addr.parse().map_err(|_| bad("it is not IP:PORT"))?;
        if addr.port() == 0 { Err(bad("it is not IP:PORT")) } else { Ok(Self::Tcp(addr)) }
    }

    /// The address in `SPIFFE_ENDPOINT_SOCKET`; `None` when that is not set.
    ///
    /// # Errors
    /// When it is set to something else than an address.
    pub fn from_env() -> Result<Option<Self>, EndpointError> {
        let set = std::env::var("SPIFFE_ENDPOINT_SOCKET").ok().filter(|text| !text.is_empty());
        set.map(|text| Self::parse(&text)).transpose()
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&Path> for Endpoint {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(addr) => write!(f, "tcp://{addr}"),
        }
    }
}

const TEXT_SHOWN_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_the_standard_are_accepted_and_no_others() {
        for (text, shown) in [
            ("unix:///run/agent.sock", "unix:///run/agent.sock"),
            ("unix:/run/agent.sock", "unix:///run/agent.sock"),
            ("tcp://127.0.0.1:8000", "tcp://127.0.0.1:8000"),
            ("tcp://[::1]:8000", "tcp://[::1]:8000"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "unix:",
            "unix:///",
            "unix://run/a",
            "unix:a",
            "/run/a",
            "unix:///a?b",
            "unix:///a#b",
            "tcp://localhost:1",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://1.2.3.4:1/x",
            "http://127.0.0.1:1",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
