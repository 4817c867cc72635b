//! Discovery's own settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use identity::TrustDomain;
use serde::{Deserialize, Serialize};

/// What a discovery process is told. Unknown keys are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Folder of operators' documents.
    pub config_dir: PathBuf,
    /// Plain-text xDS. No authentication: loopback only.
    pub xds: Option<SocketAddr>,
    /// xDS over mTLS, with this process's own SVID.
    pub xds_tls: Option<SocketAddr>,
    /// Admin address.
    pub admin: SocketAddr,
    /// The agent's Workload API socket; needed for `xds_tls`.
    pub workload_api: Option<PathBuf>,
    /// How long the folder must be quiet before a change is taken in.
    #[serde(default = "debounce_default", with = "humantime_serde")]
    pub debounce: Duration,
}

fn debounce_default() -> Duration {
    Duration::from_millis(100)
}
