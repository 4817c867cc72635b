//! What this node shows to the CA to prove what it is: one of a join token, a device certificate, a token that Kubernetes
//! or another issuer gave it, or its host name. The messages are those of SPIRE's attestors of these names.
//!
//! Files are read anew for each attempt, because certificates and tokens are replaced while the agent runs.

mod device;
mod host;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::X509Svid;
use identity::device::DeviceKey;
use serde_json::json;

use crate::ca::CaError;
use crate::node::JoinError;
use crate::settings::{HttpChallenge, KubernetesPsat, Settings, X509Pop};
use crate::store;

/// Where the evidence comes from, by the settings.
#[derive(Debug)]
pub(crate) enum Source {
    Nothing,
    JoinToken { file: PathBuf, shown: Mutex<Option<[u8; 32]>> },
    X509Pop(X509Pop),
    K8sPsat(KubernetesPsat),
    OidcJwt { token_file: PathBuf },
    HttpChallenge(HttpChallenge),
}

/// Evidence for one attempt. It holds secrets, so it is never printed.
pub(crate) struct Evidence {
    pub(crate) kind: &'static str,
    pub(crate) payload: Vec<u8>,
    answering: Answering,
}

enum Answering {
    Nothing,
    Device(DeviceKey),
    Host(Box<host::Host>),
}

impl Source {
    pub(crate) fn of(settings: &Settings) -> Self {
        if let Some(x509pop) = &settings.x509pop {
            Self::X509Pop(x509pop.clone())
        } else if let Some(psat) = &settings.k8s_psat {
            Self::K8sPsat(psat.clone())
        } else if let Some(oidc) = &settings.oidc_jwt {
            Self::OidcJwt { token_file: oidc.token_file.clone() }
        } else if let Some(challenge) = &settings.http_challenge {
            Self::HttpChallenge(challenge.clone())
        } else {
            settings.join_token_file.clone().map_or(Self::Nothing, Self::join_token)
        }
    }

    pub(crate) fn join_token(file: PathBuf) -> Self {
        Self::JoinToken { file, shown: Mutex::default() }
    }

    /// The attestor's name; empty when there is none.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::JoinToken { .. } => "join_token",
            Self::X509Pop(_) => "x509pop",
            Self::K8sPsat(_) => "k8s_psat",
            Self::OidcJwt { .. } => "oidc_jwt",
            Self::HttpChallenge(_) => "http_challenge",
        }
    }

    /// Evidence for an attempt.
    pub(crate) async fn gather(&self) -> Result<Evidence, JoinError> {
        let (payload, answering) = match self {
            Self::Nothing => return Err(JoinError::NoToken),
            Self::JoinToken { file, shown } => {
                let token = join_token(file)?;
                let digest = identity::digest::sha256(token.as_bytes());
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
                (token.into_bytes(), Answering::Nothing)
            }
            Self::X509Pop(settings) => {
                let (payload, key) = device::gather(settings)?;
                (payload, Answering::Device(key))
            }
            Self::K8sPsat(KubernetesPsat { cluster, token_file }) => {
                let token = text("k8s_psat.token_file", token_file)?;
                (json!({"cluster": cluster, "token": token}).to_string().into_bytes(), Answering::Nothing)
            }
            Self::OidcJwt { token_file } => {
                let token = text("oidc_jwt.token_file", token_file)?;
                (json!({"token": token}).to_string().into_bytes(), Answering::Nothing)
            }
            Self::HttpChallenge(settings) => {
                let host = host::Host::listen(settings)?;
                (host.payload(), Answering::Host(Box::new(host)))
            }
        };
        Ok(Evidence { kind: self.kind(), payload, answering })
    }

    /// Whether another attempt, without a person, could have another outcome than the last.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::JoinToken { file, shown } => {
                let shown = *shown.lock().unwrap_or_else(PoisonError::into_inner);
                join_token(file).is_ok_and(|token| shown != Some(identity::digest::sha256(token.as_bytes())))
            }
            Self::X509Pop(_) | Self::K8sPsat(_) | Self::OidcJwt { .. } | Self::HttpChallenge(_) => true,
        }
    }
}

impl Evidence {
    /// The node's last SVID, and the proof that its key is here: a way back for a node whose SVID has run out.
    pub(crate) fn old_svid(svid: &X509Svid) -> Option<Self> {
        let key = DeviceKey::from_pem(svid.key().pkcs8_pem().as_bytes()).ok()?;
        let payload = json!({"certificates": [STANDARD.encode(svid.leaf_der())]}).to_string().into_bytes();
        Some(Self { kind: OLD_SVID, payload, answering: Answering::Device(key) })
    }

    /// Evidence that takes no challenge.
    #[cfg(test)]
    pub(crate) fn plain(kind: &'static str, payload: &[u8]) -> Self {
        Self { kind, payload: payload.to_vec(), answering: Answering::Nothing }
    }

    /// The answer to a challenge of the CA.
    pub(crate) fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, CaError> {
        match &mut self.answering {
            Answering::Nothing => Err(CaError::BadAnswer { what: "a challenge to evidence that takes none" }),
            Answering::Device(key) => device::answer(key, challenge),
            Answering::Host(host) => host.answer(challenge),
        }
    }
}

fn join_token(file: &Path) -> Result<String, JoinError> {
    let unreadable = |source| JoinError::TokenFile { file: file.to_owned(), source };
    let bytes = store::read(file, JOIN_TOKEN_BYTES_MAX).map_err(unreadable)?.ok_or(JoinError::NoToken)?;
    let token = String::from_utf8_lossy(&bytes).trim().to_owned();
    if token.is_empty() { Err(JoinError::NoToken) } else { Ok(token) }
}

/// A file named in the settings.
fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, JoinError> {
    let unreadable = |source| JoinError::EvidenceFile { setting, file: file.to_owned(), source };
    let found = store::read(file, EVIDENCE_BYTES_MAX).map_err(unreadable)?;
    found.ok_or_else(|| unreadable(std::io::ErrorKind::NotFound.into()))
}

fn text(setting: &'static str, file: &Path) -> Result<String, JoinError> {
    let bad = |problem| JoinError::EvidenceBad { setting, file: file.to_owned(), problem };
    let text = String::from_utf8(read(setting, file)?).map_err(|_| bad("holds no text"))?;
    let text = text.trim();
    if text.is_empty() { Err(bad("is empty")) } else { Ok(text.to_owned()) }
}

/// The attestor of nodes that come back with their last SVID.
pub(crate) const OLD_SVID: &str = "old_svid";
const JOIN_TOKEN_BYTES_MAX: u64 = 4096;
const EVIDENCE_BYTES_MAX: u64 = 128 << 10;

#[cfg(test)]
mod tests;
