//! What the operator decides about the authority above.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::UpstreamServer;

/// Settings `upstream` of the role `ca`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// A certificate with its key in files.
    #[serde(default)]
    pub files: Option<UpstreamFiles>,
    /// Another server of the same trust domain.
    #[serde(default)]
    pub server: Option<UpstreamServer>,
}

/// An authority in files, PEM. They are followed: a change is taken over whole, or not at all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamFiles {
    /// Its certificate; others may follow it.
    pub certificate: PathBuf,
    /// Its key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Passphrase of an encrypted key.
    #[serde(default)]
    pub passphrase_file: Option<PathBuf>,
    /// The roots that everybody trusts, among them that of the certificate.
    pub bundle: PathBuf,
}
