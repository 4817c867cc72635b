//! Why a foreign bundle was not fetched, or not taken.

use std::net::IpAddr;
use std::path::PathBuf;

use http::StatusCode;
use identity::bundle::BundleError;
use identity::spiffe_id::TrustDomain;
use identity::tls::{self, TlsError};

/// Why a bundle does not become the known one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The host.
    #[error("the endpoint's host name cannot be resolved")]
    Name(#[source] std::io::Error),
    /// An address that is not called.
    #[error(
        "the endpoint's host leads to {0}, which is not called; if it is meant, add it to federation.allowed_networks"
    )]
    Address(IpAddr),
    /// Nobody listens there.
    #[error("the endpoint cannot be reached")]
    Connect(#[source] std::io::Error),
    /// The endpoint does not prove who it is.
    #[error("the endpoint does not prove itself")]
    Tls(#[source] std::io::Error),
    /// Our side of it.
    #[error("the endpoint cannot be verified")]
    Config(#[source] TlsError),
    /// The roots of the setting.
    #[error("{}: the roots of federation.web_roots_file cannot be read", file.display())]
    Roots {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// No bundle to verify the endpoint with.
    #[error("the endpoint's SVID is of {0}, whose bundle is not known; set it once with `kasbah bundle set`")]
    NoBundle(TrustDomain),
    /// No HTTP.
    #[error("the endpoint does not answer HTTP")]
    Http(#[source] hyper::Error),
    /// Another status.
    #[error("the endpoint answers {0}; redirects are not followed")]
    Status(StatusCode),
    /// Too much, or broken off.
    #[error("the endpoint's document is longer than a bundle may be, or breaks off")]
    Body,
    /// Too slow.
    #[error("the endpoint does not answer in time")]
    Late,
    /// The document.
    #[error("the endpoint's document is refused")]
    Document(#[source] BundleError),
    /// An older bundle than the known one.
    #[error("the endpoint's bundle has the sequence number {fetched}, the known one has {known}")]
    Backwards {
        /// Of the endpoint.
        fetched: u64,
        /// Ours.
        known: u64,
    },
}

impl FetchError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Connect(_) | Self::Late => "FEDERATION_UNREACHABLE",
            Self::Address(_) => "FEDERATION_ADDRESS_FORBIDDEN",
            Self::Tls(error) => tls::reason_of_io(error).unwrap_or("FEDERATION_TLS_FAILED"),
            Self::Config(error) => error.reason(),
            Self::Roots { .. } => "FEDERATION_ROOTS_UNREADABLE",
            Self::NoBundle(_) => "FEDERATION_BUNDLE_MISSING",
            Self::Http(_) | Self::Status(_) | Self::Body => "FEDERATION_ANSWER_REFUSED",
            Self::Document(error) => error.reason(),
            Self::Backwards { .. } => "FEDERATION_SEQUENCE_BACKWARDS",
        }
    }

    /// Whether it may go away without anybody's doing.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Connect(_) | Self::Late | Self::Http(_))
    }

    /// The error and its causes in one line.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        text.chars().take(TEXT_CHARS_MAX).collect()
    }
}

const TEXT_CHARS_MAX: usize = 1024;
