//! TLS on both sides, from the proxy's own identity or from files.

pub(crate) mod downstream;
pub(crate) mod files;
pub(crate) mod own;
pub(crate) mod rests;
pub(crate) mod upstream;

use std::path::PathBuf;
use std::sync::Arc;

use identity::tls::{PeerRule, TlsError};
use routing::tls::{CertificateRef, RootsRef, TlsCommon, Validation};

/// Why the TLS of a configuration cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("the TLS context is not possible")]
    Tls(#[from] TlsError),
    #[error("{}: cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} is not supported here")]
    NotSupported(&'static str),
}

/// Whether what is shown is our own SVID. Other secrets are not fetched, and nothing else may be shown in their place.
fn is_own(certificate: Option<&CertificateRef>) -> Result<bool, SetupError> {
    match certificate {
        Some(CertificateRef::Sds { name }) if &**name == "default" || name.starts_with("spiffe://") => Ok(true),
        Some(CertificateRef::Sds { .. }) => Err(SetupError::NotSupported("a secret other than `default`")),
        Some(CertificateRef::Files { .. } | CertificateRef::Inline { .. }) | None => Ok(false),
    }
}

/// The SPIFFE IDs that a validation context expects.
fn peer_rule(validation: &Validation) -> PeerRule {
    if validation.sans.is_empty() {
        return PeerRule::AnyTrusted;
    }
    let exact = validation.exact_uris().map(|uris| uris.iter().map(|uri| identity::SpiffeId::parse(uri)).collect());
    if let Some(Ok(ids)) = exact {
        return PeerRule::AnyOf(ids);
    }
    let validation = validation.clone();
    PeerRule::Matching(Arc::new(move |id| validation.allows(&[id.as_str()], &[])))
}

/// The roots in PEM, for validation that is not by SPIFFE.
fn roots_pem(common: &TlsCommon) -> Result<Vec<u8>, SetupError> {
    match &common.validation.roots {
        RootsRef::File(path) => files::read(path),
        RootsRef::Inline(pem) => Ok(pem.to_vec()),
        RootsRef::System | RootsRef::Unset => files::system_roots(),
        RootsRef::Sds { .. } => Err(SetupError::NotSupported("a certificate from files with roots from SDS")),
    }
}
