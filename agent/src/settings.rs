//! The agent's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use identity::TrustDomain;
use serde::{Deserialize, Serialize};

/// What the settings file of an agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The trust domain whose identities this agent hands out.
    pub trust_domain: TrustDomain,
    /// Where the agent keeps its own SVID and key, the bundle and the table of launches.
    pub data_dir: PathBuf,
    /// The CA's SPIRE server API, `HOST:PORT`.
    pub server: String,
    /// The CA's roots (PEM) for the first contact; later the bundle that the CA publishes is used.
    pub trust_bundle: PathBuf,
    /// Holds the one-time join token; read only while the agent has no SVID.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// Unix socket of the SPIFFE Workload API, open to every local user.
    pub workload_api: PathBuf,
    /// Unix socket of Envoy's secret discovery service, open to every local user; none when left out.
    #[serde(default)]
    pub sds: Option<PathBuf>,
    /// Unix socket where `kasbah run` registers launches, for the agent's own user; none when left out.
    #[serde(default)]
    pub launch: Option<PathBuf>,
    /// The admin address.
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    /// How often the CA is asked for changes; it also tells of them at once where it can.
    #[serde(default = "sync_interval", with = "humantime_serde")]
    pub sync_interval: Duration,
}

/// Why settings make no agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsProblem {
    /// `server` has no port.
    #[error("server: `{server}` is not HOST:PORT")]
    Server {
        /// What was written.
        server: String,
    },
    /// `sync_interval` is outside its limits.
    #[error("sync_interval: must lie between {} s and {} s", SYNC_INTERVAL_MIN.as_secs(), SYNC_INTERVAL_MAX.as_secs())]
    SyncInterval,
    /// Two sockets have one path.
    #[error("workload_api, sds and launch: {} is named twice", path.display())]
    SamePath {
        /// The path.
        path: PathBuf,
    },
}

impl SettingsProblem {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "SETTINGS_INVALID"
    }
}

impl Settings {
    /// What can be judged without touching the machine (`--check`).
    ///
    /// # Errors
    /// When a value cannot work.
    pub fn validate(&self) -> Result<(), SettingsProblem> {
        let port =
            self.server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(port)) if port > 0) {
            return Err(SettingsProblem::Server { server: self.server.clone() });
        }
        if !(SYNC_INTERVAL_MIN..=SYNC_INTERVAL_MAX).contains(&self.sync_interval) {
            return Err(SettingsProblem::SyncInterval);
        }
        let sockets = [Some(&self.workload_api), self.sds.as_ref(), self.launch.as_ref()];
        let sockets: Vec<_> = sockets.into_iter().flatten().collect();
        let twice = sockets.iter().enumerate().find(|(at, path)| sockets[..*at].contains(path));
        twice.map_or(Ok(()), |(_, path)| Err(SettingsProblem::SamePath { path: (*path).clone() }))
    }
}

fn admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15020))
}

fn sync_interval() -> Duration {
    Duration::from_secs(5)
}

const SYNC_INTERVAL_MIN: Duration = Duration::from_secs(1);
const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            data_dir: "/d".into(),
            server: "127.0.0.1:8081".into(),
            trust_bundle: "/b.pem".into(),
            join_token_file: None,
            workload_api: "/run/agent.sock".into(),
            sds: Some("/run/sds.sock".into()),
            launch: None,
            admin: admin(),
            sync_interval: sync_interval(),
        }
    }

    #[test]
    fn good_settings_pass_and_each_bad_one_is_named() {
        settings().validate().unwrap();
        for server in ["localhost", ":1", "a:0", "a:99999", "a:"] {
            let bad = Settings { server: server.into(), ..settings() };
            assert!(bad.validate().unwrap_err().to_string().contains(server), "{server}");
        }
        assert!(Settings { sync_interval: Duration::ZERO, ..settings() }.validate().is_err());
        let twice = Settings { launch: Some("/run/sds.sock".into()), ..settings() };
        assert!(twice.validate().unwrap_err().to_string().contains("/run/sds.sock"));
    }
}
