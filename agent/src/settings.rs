//! The agent's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use identity::TrustDomain;
use serde::{Deserialize, Serialize};

use crate::attest::KubeletSettings;
use crate::broker::BrokerSettings;
use crate::cache::CacheSettings;
use crate::caller::{STREAMS_PER_PROCESS_MAX, STREAMS_PER_USER_MAX};
use crate::files::{FILES_MAX, FilesSettings};
use crate::trust::RootPins;

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
    #[serde(default)]
    pub trust_bundle: Option<PathBuf>,
    /// The CA's roots by fingerprint, instead of or beside `trust_bundle`.
    #[serde(default)]
    pub root_pins: Option<RootPins>,
    /// What is kept for a start while the CA is away.
    #[serde(default)]
    pub cache: CacheSettings,
    /// Holds the one-time join token; read only while the agent has no SVID. One way of joining at most may be set.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// Joins with a device certificate.
    #[serde(default)]
    pub x509pop: Option<X509Pop>,
    /// Joins with a token that Kubernetes projects into the agent's pod.
    #[serde(default)]
    pub k8s_psat: Option<KubernetesPsat>,
    /// Joins with a token of an OIDC issuer.
    #[serde(default)]
    pub oidc_jwt: Option<OidcJwt>,
    /// Joins by answering at the node's own host name.
    #[serde(default)]
    pub http_challenge: Option<HttpChallenge>,
    /// Unix socket of the SPIFFE Workload API, open to every local user.
    pub workload_api: PathBuf,
    /// A loopback address where the Workload API is served as well, for programs that know no Unix sockets.
    #[serde(default)]
    pub workload_api_tcp: Option<SocketAddr>,
    /// Unix socket of Envoy's secret discovery service, open to every local user; none when left out.
    #[serde(default)]
    pub sds: Option<PathBuf>,
    /// Unix socket where `kasbah run` registers launches, for the agent's own user; none when left out.
    #[serde(default)]
    pub launch: Option<PathBuf>,
    /// Identities that are kept as files.
    #[serde(default)]
    pub files: Vec<FilesSettings>,
    /// The kubelet of this node, for selectors of pods.
    #[serde(default)]
    pub kubelet: Option<KubeletSettings>,
    /// Programs that may act for other workloads.
    #[serde(default)]
    pub broker: Option<BrokerSettings>,
    /// Streams that one process may hold open at once: 64 unless a program, such as a proxy with many secrets, needs more.
    #[serde(default = "streams_per_process_max")]
    pub streams_per_process_max: usize,
    /// The admin address.
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    /// How often the CA is asked for changes; it also tells of them at once where it can.
    #[serde(default = "sync_interval", with = "humantime_serde")]
    pub sync_interval: Duration,
}

/// A device certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Pop {
    /// PEM, the device's certificate first, then the intermediates.
    pub certificate_file: PathBuf,
    /// PEM: RSA, P-256 or P-521.
    pub private_key_file: PathBuf,
}

/// A projected service account token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesPsat {
    /// The cluster's name, as the CA's settings have it.
    pub cluster: String,
    /// Where Kubernetes projects the token.
    #[serde(default = "psat_file")]
    pub token_file: PathBuf,
}

/// A token of an OIDC issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcJwt {
    /// Where the token is; read anew for each attempt.
    pub token_file: PathBuf,
}

/// The node's host name, proven by an answer over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpChallenge {
    /// The name that the CA calls.
    pub hostname: String,
    /// Where the challenge is served, only while the agent joins.
    pub listen: SocketAddr,
    /// Tells several agents of one host apart: letters, digits and dashes.
    #[serde(default = "agent_name")]
    pub agent_name: String,
    /// The port that the CA calls, when something stands before `listen`.
    #[serde(default)]
    pub advertised_port: Option<u16>,
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
    /// `streams_per_process_max` is outside its limits.
    #[error("streams_per_process_max: must lie between 1 and {STREAMS_PER_USER_MAX}")]
    StreamsPerProcess,
    /// Nobody would be trusted.
    #[error("trust_bundle or root_pins: one must say whom this agent takes for its CA")]
    NoTrust,
    /// `root_pins` cannot be used.
    #[error("root_pins.{problem}")]
    RootPins {
        /// What is wrong.
        problem: &'static str,
    },
    /// The Workload API would be open to other machines.
    #[error("workload_api_tcp: {addr} is no address of the loopback; other machines cannot be attested")]
    NotLoopback {
        /// What was written.
        addr: SocketAddr,
    },
    /// A part of the settings cannot be used.
    #[error("{part}: {problem}")]
    Part {
        /// Which.
        part: String,
        /// What is wrong.
        problem: String,
    },
    /// More than one way of joining.
    #[error("join_token_file, x509pop, k8s_psat, oidc_jwt, http_challenge: only one may be set")]
    ManyWaysToJoin,
    /// A name that cannot be a part of a path.
    #[error("http_challenge.agent_name: `{name}` is not a letter followed by at most 31 letters, digits and dashes")]
    AgentName {
        /// What was written.
        name: String,
    },
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
        if !(1..=STREAMS_PER_USER_MAX).contains(&self.streams_per_process_max) {
            return Err(SettingsProblem::StreamsPerProcess);
        }
        if self.trust_bundle.is_none() && self.root_pins.is_none() {
            return Err(SettingsProblem::NoTrust);
        }
        if let Some(problem) = self.root_pins.as_ref().and_then(RootPins::problem) {
            return Err(SettingsProblem::RootPins { problem });
        }
        if let Some(addr) = self.workload_api_tcp.filter(|addr| !addr.ip().is_loopback()) {
            return Err(SettingsProblem::NotLoopback { addr });
        }
        self.check_parts()?;
        let ways = [
            self.join_token_file.is_some(),
            self.x509pop.is_some(),
            self.k8s_psat.is_some(),
            self.oidc_jwt.is_some(),
            self.http_challenge.is_some(),
        ];
        if ways.into_iter().filter(|set| *set).count() > 1 {
            return Err(SettingsProblem::ManyWaysToJoin);
        }
        if let Some(HttpChallenge { agent_name: name, .. }) = &self.http_challenge
            && !is_agent_name(name)
        {
            return Err(SettingsProblem::AgentName { name: name.clone() });
        }
        let broker = self.broker.as_ref();
        let sockets = [
            Some(&self.workload_api),
            self.sds.as_ref(),
            self.launch.as_ref(),
            broker.and_then(|broker| broker.socket.as_ref()),
            broker.and_then(|broker| broker.delegated_socket.as_ref()),
        ];
        let sockets: Vec<_> = sockets.into_iter().flatten().collect();
        let twice = sockets.iter().enumerate().find(|(at, path)| sockets[..*at].contains(path));
        twice.map_or(Ok(()), |(_, path)| Err(SettingsProblem::SamePath { path: (*path).clone() }))
    }
}

impl Settings {
    fn check_parts(&self) -> Result<(), SettingsProblem> {
        let problem = |part: String, problem: String| Err(SettingsProblem::Part { part, problem });
        if self.files.len() > FILES_MAX {
            return problem("files".into(), format!("at most {FILES_MAX} directories can be kept"));
        }
        for (at, files) in self.files.iter().enumerate() {
            let twice = self.files[..at].iter().any(|other| other.dir == files.dir);
            let found = twice.then(|| "the directory is kept twice".to_owned()).or_else(|| files.problem());
            if let Some(found) = found {
                return problem(format!("files[{at}]"), found);
            }
        }
        if let Some(found) = self.kubelet.as_ref().and_then(KubeletSettings::problem) {
            return problem("kubelet".into(), found.into());
        }
        match self.broker.as_ref().and_then(BrokerSettings::problem) {
            Some(found) => problem("broker".into(), found),
            None => Ok(()),
        }
    }
}

fn is_agent_name(name: &str) -> bool {
    name.len() <= AGENT_NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn psat_file() -> PathBuf {
    "/var/run/secrets/tokens/spire-agent".into()
}

fn agent_name() -> String {
    "default".into()
}

fn admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15020))
}

fn streams_per_process_max() -> usize {
    STREAMS_PER_PROCESS_MAX
}

fn sync_interval() -> Duration {
    Duration::from_secs(5)
}

const AGENT_NAME_BYTES_MAX: usize = 32;
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
            trust_bundle: Some("/b.pem".into()),
            root_pins: None,
            cache: CacheSettings::default(),
            join_token_file: None,
            x509pop: None,
            k8s_psat: None,
            oidc_jwt: None,
            http_challenge: None,
            workload_api: "/run/agent.sock".into(),
            workload_api_tcp: None,
            sds: Some("/run/sds.sock".into()),
            launch: None,
            files: Vec::new(),
            kubelet: None,
            broker: None,
            streams_per_process_max: STREAMS_PER_PROCESS_MAX,
            admin: admin(),
            sync_interval: sync_interval(),
        }
    }

    #[test]
    fn one_way_to_join_is_enough() {
        let http = |agent_name: &str| HttpChallenge {
            hostname: "n1.example.org".into(),
            listen: "0.0.0.0:80".parse().unwrap(),
            agent_name: agent_name.into(),
            advertised_port: None,
        };
        let token = Settings { join_token_file: Some("/t".into()), ..settings() };
        token.validate().unwrap();
        let both = Settings { oidc_jwt: Some(OidcJwt { token_file: "/o".into() }), ..token };
        assert!(both.validate().unwrap_err().to_string().contains("only one"));
        Settings { http_challenge: Some(http("default")), ..settings() }.validate().unwrap();
        for bad in ["", "../x", "a.b", "1", &"a".repeat(33)] {
            assert!(Settings { http_challenge: Some(http(bad)), ..settings() }.validate().is_err(), "{bad}");
        }
    }

    #[test]
    fn good_settings_pass_and_each_bad_one_is_named() {
        settings().validate().unwrap();
        for server in ["localhost", ":1", "a:0", "a:99999", "a:"] {
            let bad = Settings { server: server.into(), ..settings() };
            assert!(bad.validate().unwrap_err().to_string().contains(server), "{server}");
        }
        let nobody = Settings { trust_bundle: None, ..settings() };
        assert!(nobody.validate().unwrap_err().to_string().contains("root_pins"));
        let pins = RootPins { fingerprints: ["xy".to_owned()].into(), url: None };
        let bad = Settings { root_pins: Some(pins), ..settings() };
        assert!(bad.validate().unwrap_err().to_string().contains("root_pins.fingerprints"));
        let open = Settings { workload_api_tcp: Some("0.0.0.0:1234".parse().unwrap()), ..settings() };
        assert!(open.validate().unwrap_err().to_string().contains("loopback"));
        assert!(Settings { sync_interval: Duration::ZERO, ..settings() }.validate().is_err());
        for (streams, good) in [(0, false), (1, true), (STREAMS_PER_USER_MAX, true), (STREAMS_PER_USER_MAX + 1, false)]
        {
            let found = Settings { streams_per_process_max: streams, ..settings() }.validate();
            assert_eq!(found.is_ok(), good, "{streams}: {found:?}");
        }
        let twice = Settings { launch: Some("/run/sds.sock".into()), ..settings() };
        assert!(twice.validate().unwrap_err().to_string().contains("/run/sds.sock"));
    }
}
