//! The policy service's own settings.

use std::net::SocketAddr;
use std::path::PathBuf;

use identity::TrustDomain;
use runtime::workload_api::{Endpoint, EndpointError};
use serde::{Deserialize, Serialize};

/// Settings as they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The own trust domain; only its workloads are answered.
    pub trust_domain: TrustDomain,
    /// Where proxies ask (gRPC, mTLS).
    pub grpc: SocketAddr,
    /// Health, metrics, status.
    pub admin: SocketAddr,
    /// The agent's Workload API: a socket's path, `unix:///path` or `tcp://IP:PORT`.
    pub workload_api: String,
    /// The rules file (YAML), watched.
    pub rules: PathBuf,
    /// The file that takes the proxies' access logs, a JSON object a line.
    pub access_log: PathBuf,
    /// Its size at which it is put aside as `FILE.1`.
    #[serde(default = "access_log_bytes_max")]
    pub access_log_bytes_max: u64,
    /// How many of these files are kept, the current one included.
    #[serde(default = "access_log_files_max")]
    pub access_log_files_max: u32,
}

impl Settings {
    /// Where the identity comes from.
    ///
    /// # Errors
    /// When `workload_api` is neither a path nor an address.
    pub fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        if self.workload_api.starts_with('/') {
            return Ok(PathBuf::from(&self.workload_api).into());
        }
        Endpoint::parse(&self.workload_api)
    }
}

fn access_log_bytes_max() -> u64 {
    64 << 20
}

fn access_log_files_max() -> u32 {
    5
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
trust_domain: cluster.local
grpc: 127.0.0.1:1
admin: 127.0.0.1:2
workload_api: /run/agent.sock
rules: rules.yaml
access_log: access.jsonl
";

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let settings: Settings = serde_saphyr::from_str(MINIMAL).unwrap();
        assert_eq!((settings.access_log_bytes_max, settings.access_log_files_max), (64 << 20, 5));
        assert_eq!(settings.endpoint().unwrap().to_string(), "unix:///run/agent.sock");
    }

    #[test]
    fn unknown_keys_and_bad_addresses_are_refused() {
        assert!(serde_saphyr::from_str::<Settings>(&format!("{MINIMAL}rule: x\n")).is_err());
        assert!(serde_saphyr::from_str::<Settings>(&MINIMAL.replace("cluster.local", "Not A Domain")).is_err());
        let bad: Settings = serde_saphyr::from_str(&MINIMAL.replace("/run/agent.sock", "run/agent.sock")).unwrap();
        assert!(bad.endpoint().is_err());
    }
}
