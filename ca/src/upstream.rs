//! An authority above ours: it signs our intermediates and publishes the roots that everybody trusts.
//!
//! | kind | the authority above is |
//! |---|---|
//! | [`files`] | a certificate with its key in files, for example written by a secret store; followed as they change |
//! | [`server`] | another server of the same trust domain, Kasbah's or SPIRE's, by `NewDownstreamX509CA` |
//!
//! Its roots stand in our bundle without keys. A new one is published to our nodes first, and an intermediate below it signs
//! only when all have acknowledged it, by the same machine that replaces roots of our own.

pub(crate) mod files;
pub(crate) mod follow;
pub(crate) mod server;
pub(crate) mod settings;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::import::ImportError;
use identity::summary::CertificateSummary;
use proto::spire::api::types;
use tokio::sync::watch;

use crate::settings::Settings;
pub use server::UpstreamServer;
pub use settings::{UpstreamFiles, UpstreamSettings};

/// An authority above ours.
#[tonic::async_trait]
pub(crate) trait Upstream: Send + Sync + fmt::Debug {
    /// Has it sign an intermediate for the key of a CSR (PKCS#10, DER), for at most `ttl`.
    async fn mint(&self, csr: &[u8], ttl: Duration, now: SystemTime) -> Result<Minted, UpstreamError>;

    /// What it publishes, now and later.
    fn published(&self) -> watch::Receiver<Arc<Published>>;

    /// Tells it our keys of tokens, to be trusted everywhere.
    async fn publish(&self, keys: TokenKeys) -> Result<(), UpstreamError>;

    /// Follows it, for ever.
    async fn keep_following(&self);
}

/// A signed intermediate.
#[derive(Clone, Debug)]
pub(crate) struct Minted {
    /// Its own certificate, and what stands between it and its root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Roots, among them its own.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

/// Public keys of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenKeys {
    pub(crate) jwt: Vec<types::JwtKey>,
    pub(crate) wit: Vec<types::WitKey>,
}

/// What the authority above publishes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Published {
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Subject key identifiers (hexadecimal) of roots whose certificates are to be replaced.
    pub(crate) tainted: BTreeSet<String>,
    /// Keys of tokens; none where it has none.
    pub(crate) keys: TokenKeys,
}

impl Published {
    /// The roots by their subject key identifiers.
    pub(crate) fn by_id(&self) -> impl Iterator<Item = (String, &CertificateDer<'static>)> {
        self.roots.iter().filter_map(|root| Some((id_of(root)?, root)))
    }
}

/// The subject key identifier of a certificate, hexadecimal.
pub(crate) fn id_of(certificate: &CertificateDer<'_>) -> Option<String> {
    CertificateSummary::decode(certificate).ok()?.subject_key_id
}

/// Opens what the settings name.
///
/// # Errors
/// When it cannot be used.
pub(crate) fn open(settings: &Settings, now: SystemTime) -> Result<Option<Arc<dyn Upstream>>, UpstreamError> {
    let Some(upstream) = &settings.upstream else { return Ok(None) };
    let trust_domain = &settings.trust_domain;
    if let Some(server) = &upstream.server {
        return Ok(Some(Arc::new(server::ServerUpstream::open(trust_domain, server)?)));
    }
    let Some(files) = &upstream.files else { return Ok(None) };
    Ok(Some(Arc::new(files::FilesUpstream::open(trust_domain, files.clone(), now)?)))
}

/// Why the authority above did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// A file.
    #[error("the file {} of the upstream authority cannot be read", path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The key.
    #[error("the key of the upstream authority cannot be used")]
    Key(#[source] identity::key::KeyError),
    /// A certificate.
    #[error("the upstream authority is not fit")]
    Unfit(#[from] ImportError),
    /// It did not sign.
    #[error("the upstream authority does not sign")]
    Unsigned(#[source] identity::authority::AuthorityError),
    /// The server above is away.
    #[error("the upstream server cannot be reached: {0}")]
    Unreachable(String),
    /// The server above says no.
    #[error("the upstream server refuses ({code:?}): {message}")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
    /// The server above answers nonsense.
    #[error("the upstream server answers what cannot be: {0}")]
    Answer(&'static str),
    /// The CSR.
    #[error("the CSR for the upstream authority is malformed")]
    Csr(#[source] identity::csr::CsrError),
}

impl UpstreamError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "UPSTREAM_FILE_UNREADABLE",
            Self::Key(error) => error.reason(),
            Self::Unfit(error) => error.reason(),
            Self::Unreachable(_) => "UPSTREAM_UNREACHABLE",
            Self::Answer(_) | Self::Refused { .. } | Self::Unsigned(_) | Self::Csr(_) => "UPSTREAM_REFUSED",
        }
    }
}

#[cfg(test)]
mod tests;
