//! Identities as files, for programs that speak no Workload API: certificate, key and bundle in a directory that is swapped
//! as a whole, so that nobody ever sees the key of one SVID beside the certificate of another.
//!
//! | in the directory | is |
//! |---|---|
//! | `current` | a link to the directory of the present version; read through it to see one version |
//! | `svid.pem`, `svid.key`, `bundle.pem`, … | links through `current` |
//!
//! A write that is cut off anywhere leaves the former version in force.

mod change;
mod directory;
mod keeper;

use std::path::PathBuf;

use identity::{SpiffeId, TrustBundle, X509Svid};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use change::{AfterChange, ChangeError};
pub use directory::{Access, FilesError, shows, write};
pub(crate) use keeper::Keeper;

/// One directory of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSettings {
    /// The directory; made when it is missing.
    pub dir: PathBuf,
    /// Whose identity; an entry of this node must give it.
    pub spiffe_id: String,
    /// Who may read the files.
    #[serde(default)]
    pub access: Access,
    /// What the files are called.
    #[serde(default)]
    pub names: Names,
    /// A PKCS#12 file besides.
    #[serde(default)]
    pub pkcs12: Option<Pkcs12>,
    /// JWT-SVIDs besides.
    #[serde(default)]
    pub jwt: Vec<JwtFile>,
    /// What is done after each change of certificate, key or bundle.
    #[serde(default)]
    pub after_change: Option<AfterChange>,
}

/// What the files are called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// The chain, leaf first (PEM).
    pub certificate: String,
    /// The private key (PEM, PKCS#8).
    pub key: String,
    /// The roots of the own trust domain (PEM).
    pub bundle: String,
}

/// A PKCS#12 file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs12 {
    /// What it is called.
    #[serde(default = "pkcs12_name")]
    pub file: String,
    /// Holds its password.
    pub password_file: PathBuf,
}

/// A JWT-SVID in a file, renewed at its half-life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtFile {
    /// What it is called.
    pub file: String,
    /// For whom it is.
    pub audience: Vec<String>,
}

/// One file of a directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Whether only those may read it whom [`Access`] names.
    pub is_secret: bool,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("name", &self.name).field("is_secret", &self.is_secret).finish_non_exhaustive()
    }
}

impl Default for Names {
    fn default() -> Self {
        Self { certificate: "svid.pem".into(), key: "svid.key".into(), bundle: "bundle.pem".into() }
    }
}

impl FilesSettings {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self) -> Option<String> {
        if let Err(error) = SpiffeId::parse(&self.spiffe_id) {
            return Some(format!("spiffe_id: {error}"));
        }
        if let Some(name) = self.file_names().find(|name| !directory::is_file_name(name)) {
            return Some(format!("`{name}` is no name of a file here"));
        }
        let mut names: Vec<&str> = self.file_names().collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(format!("two files are called `{}`", twice[0]));
        }
        if self.jwt.iter().any(|jwt| jwt.audience.is_empty()) {
            return Some("jwt: an audience is needed".into());
        }
        let problem = self.access.problem().map(|problem| format!("access.{problem}"));
        problem.or_else(|| self.after_change.as_ref()?.problem().map(|problem| format!("after_change: {problem}")))
    }

    fn file_names(&self) -> impl Iterator<Item = &str> {
        let Names { certificate, key, bundle } = &self.names;
        let pkcs12 = self.pkcs12.iter().map(|pkcs12| pkcs12.file.as_str());
        let jwt = self.jwt.iter().map(|jwt| jwt.file.as_str());
        [certificate, key, bundle].into_iter().map(String::as_str).chain(pkcs12).chain(jwt)
    }
}

/// The PEM files of an SVID.
pub fn pem_files(names: &Names, svid: &X509Svid, bundle: &TrustBundle) -> Vec<Content> {
    let open = |name: &str, text: String| Content {
        name: name.to_owned(),
        bytes: Zeroizing::new(text.into_bytes()),
        is_secret: false,
    };
    let key = Zeroizing::new(svid.key().pkcs8_pem().as_bytes().to_vec());
    vec![
        open(&names.certificate, svid.chain_pem()),
        Content { name: names.key.clone(), bytes: key, is_secret: true },
        open(&names.bundle, bundle.to_pem()),
    ]
}

/// The PKCS#12 file of an SVID.
///
/// # Errors
/// When the format cannot hold it.
pub fn pkcs12_file(
    name: &str,
    svid: &X509Svid,
    bundle: &TrustBundle,
    password: &str,
) -> Result<Content, identity::pkcs12::Pkcs12Error> {
    let bytes = Zeroizing::new(identity::pkcs12::encode(svid, bundle, password)?);
    Ok(Content { name: name.to_owned(), bytes, is_secret: true })
}

fn pkcs12_name() -> String {
    "svid.p12".into()
}

/// Directories of one agent.
pub(crate) const FILES_MAX: usize = 256;

#[cfg(test)]
mod tests;
