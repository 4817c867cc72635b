//! The certificate authority of a trust domain.
//!
//! It knows which nodes exist and who may get which identity, signs X.509- and JWT-SVIDs for them, and publishes the
//! trust bundle. Its faces are the SPIRE server API (with Kasbah's node stream beside it), Istio's CSR API, the SPIFFE
//! bundle endpoint and OIDC discovery.
//!
//! What always holds:
//!
//! - An identity comes from a registration entry or from the caller's own proven credential, never from a CSR.
//! - A CSR whose sender does not hold the key is refused.
//! - What is handed out was recorded before; what was acknowledged survives the loss of process and power.
//! - Private keys of authorities are on the disk only in sealed form.

mod address_limits;
mod agent;
mod api;
mod attest;
mod audit;
mod authorities;
mod backup;
mod certifier;
mod clock_watch;
mod cores;
mod custody;
pub mod document;
mod entry;
pub mod explain;
mod federation;
mod housekeeping;
mod issue;
mod istio;
mod jwks_file;
mod key_file;
mod log;
mod metrics;
mod names;
mod pace;
mod pages;
pub mod policy;
mod random;
mod reasons;
mod refusal;
mod registry;
mod renewals;
mod revocation;
pub mod rights;
mod rotation;
mod server;
mod server_svid;
mod service_account;
mod settings;
mod signer;
mod stamp;
mod store;
#[cfg(test)]
mod testing;
mod upstream;
mod web;

use runtime::logs::LogControl;
use runtime::shutdown::Shutdown;

pub use address_limits::AddressLimitSettings;
pub use attest::{
    AgentIdSource, AttestError, HttpChallenge, KubernetesCluster, KubernetesPsat, NodeAttestors, OidcIssuer, OidcJwt,
    OldSvid, X509Pop, X509PopMode,
};
pub use authorities::AuthoritiesError;
pub use backup::{BackupError, BackupReport, RestoreOptions, backup, restore};
pub use clock_watch::ClockJump;
pub use custody::offline::{offline_csr, offline_install};
pub use custody::{
    CustodySettings, ExternalSigner, ImportFiles, KeeperError, KeyPlace, Pkcs11Token, SecretSource, VaultAuth,
    VaultTransit,
};
pub use federation::acme::AcmeError;
pub use federation::endpoint::CertificateError;
pub use federation::{AcmeSettings, FederationSettings, FetchError, WebEndpoint};
pub use istio::IstioSettings;
pub use jwks_file::KeysError;
pub use key_file::KeyFileError;
pub use reasons::REASONS;
pub use refusal::Refusal;
pub use revocation::RevocationSettings;
pub use server::{Addresses, RunError, SERVER_PATH, Server};
pub use service_account::TokenError;
pub use settings::{ServiceAccountIssuer, Settings, SettingsProblem};
pub use signer::{SignerError, serve_signer};
pub use store::{OpenError, StoreError};
pub use upstream::{UpstreamError, UpstreamFiles, UpstreamServer, UpstreamSettings};

/// Builds the authority and runs it until `shutdown`.
///
/// # Errors
/// When it cannot start, or a part of it ends by itself.
pub async fn run(settings: Settings, logs: LogControl, shutdown: Shutdown) -> Result<(), RunError> {
    settings.build(logs, shutdown).await?.run().await
}
