//! What the operator of an authority decides.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use identity::spiffe_id::TrustDomain;
use serde::{Deserialize, Serialize};

use crate::address_limits::AddressLimitSettings;
use crate::attest::{AttestorProblem, NodeAttestors};
use crate::custody::CustodySettings;
use crate::federation::FederationSettings;
use crate::istio::IstioSettings;
use crate::upstream::UpstreamSettings;

/// Settings of the role `ca`. Each but the first two has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The trust domain whose authority this is.
    pub trust_domain: TrustDomain,
    /// Where the database and the key-encryption key live.
    pub data_dir: PathBuf,
    /// `sqlite:` or `postgres:` URL; an SQLite file in `data_dir` when absent.
    #[serde(default)]
    pub database: Option<String>,
    /// File with the key-encryption key; `key-encryption.key` in `data_dir` when absent.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Where the keys of authorities are kept and come from.
    #[serde(default)]
    pub custody: CustodySettings,
    /// An authority above this one, which signs its intermediates; without it the root is made here.
    #[serde(default)]
    pub upstream: Option<UpstreamSettings>,
    /// The SPIRE server API over TLS, for agents and administrators.
    #[serde(default = "default_grpc")]
    pub grpc: SocketAddr,
    /// Istio's CSR API over TLS; off when absent.
    #[serde(default)]
    pub istio_csr: Option<SocketAddr>,
    /// The same API on a local socket, with all rights; `admin.sock` in `data_dir` when absent.
    #[serde(default)]
    pub admin_socket: Option<PathBuf>,
    /// Where the trust bundle is written as PEM whenever it changes.
    #[serde(default)]
    pub bundle_file: Option<PathBuf>,
    /// SPIFFE bundle endpoint (https, with the server's own SVID); off when absent.
    #[serde(default)]
    pub bundle_endpoint: Option<SocketAddr>,
    /// OIDC discovery document and keys over http; off when absent.
    #[serde(default)]
    pub oidc_listen: Option<SocketAddr>,
    /// The issuer: `iss` of JWT-SVIDs, and what the discovery document says. Without it JWT-SVIDs have no `iss`, and
    /// the document names the address it is served at.
    #[serde(default)]
    pub oidc_issuer: Option<String>,
    /// Health, metrics and status; off when absent.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Life of an X.509-SVID when its entry names none.
    #[serde(default = "default_x509_svid_ttl", with = "humantime_serde")]
    pub x509_svid_ttl: Duration,
    /// Life of a JWT-SVID when its entry names none.
    #[serde(default = "default_jwt_svid_ttl", with = "humantime_serde")]
    pub jwt_svid_ttl: Duration,
    /// Life of WIT-SVIDs when the entry says nothing.
    #[serde(default = "default_wit_svid_ttl", with = "humantime_serde")]
    pub wit_svid_ttl: Duration,
    /// Life of a node's own SVID: how long a node may be away and still come back by itself.
    #[serde(default = "default_agent_svid_ttl", with = "humantime_serde")]
    pub agent_svid_ttl: Duration,
    /// Longest life that a caller or an entry may ask for.
    #[serde(default = "default_svid_ttl_max", with = "humantime_serde")]
    pub svid_ttl_max: Duration,
    /// Life of a signing authority (the intermediate, and the JWT key). A new one takes over at half of it.
    #[serde(default = "default_ca_ttl", with = "humantime_serde")]
    pub ca_ttl: Duration,
    /// Life of the root.
    #[serde(default = "default_root_ttl", with = "humantime_serde")]
    pub root_ttl: Duration,
    /// How far before its issue a certificate begins, for clocks that are behind; a tenth of its life at most.
    #[serde(default = "default_backdate", with = "humantime_serde")]
    pub backdate: Duration,
    /// DNS names and IP addresses in the server's own certificate, beside its SPIFFE ID.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// Issuance policy: who may get which SVIDs. Followed while the authority runs; without it entries decide alone.
    #[serde(default)]
    pub policy_file: Option<PathBuf>,
    /// Rights: who may administer what. Followed while the authority runs; without it only administrators may.
    #[serde(default)]
    pub rights_file: Option<PathBuf>,
    /// Whose service account tokens the CSR API accepts.
    #[serde(default)]
    pub service_account_issuers: Vec<ServiceAccountIssuer>,
    /// Node proxies at the CSR API.
    #[serde(default)]
    pub istio: IstioSettings,
    /// How nodes prove what they are.
    #[serde(default)]
    pub node_attestors: NodeAttestors,
    /// What an address may ask for whose callers have proven nothing yet.
    #[serde(default)]
    pub address_limits: AddressLimitSettings,
    /// Other names of this mesh, while it moves between trust domains: every workload gets their bundles.
    #[serde(default)]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Bundles of other trust domains.
    #[serde(default)]
    pub federation: FederationSettings,
    /// Revocation lists and OCSP.
    #[serde(default)]
    pub revocation: crate::revocation::RevocationSettings,
    /// How long the record of an SVID is kept after its end.
    #[serde(default = "default_record_kept", with = "humantime_serde")]
    pub record_kept: Duration,
    /// How long the audit trail is kept.
    #[serde(default = "default_audit_kept", with = "humantime_serde")]
    pub audit_kept: Duration,
}

/// An issuer of service account tokens, verified offline.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountIssuer {
    /// `iss` of the tokens, exactly.
    pub issuer: String,
    /// File with the issuer's keys (JWKS); read again when it changes.
    pub jwks_file: PathBuf,
    /// A token must name one of them in `aud`.
    #[serde(default = "default_audiences")]
    pub audiences: Vec<String>,
}

/// Why settings make no sense together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsProblem {
    /// A life of no length.
    #[error("the setting `{setting}` must be at least 1s")]
    TtlTooShort {
        /// Which.
        setting: &'static str,
    },
    /// A leaf that would outlive its issuer.
    #[error(
        "the setting `{longer}` must be at least twice `{shorter}`, because a new authority takes over at half life"
    )]
    TtlOrder {
        /// Which must be longer.
        longer: &'static str,
        /// Than this one.
        shorter: &'static str,
    },
    /// A name that no certificate can carry.
    #[error("the setting `server_names` holds {name:?}, which is neither a DNS name nor an IP address")]
    ServerName {
        /// The name.
        name: String,
    },
    /// An issuer nobody could be accepted from.
    #[error("the issuer {issuer:?} in `service_account_issuers` needs a name and at least one audience")]
    Issuer {
        /// Its name.
        issuer: String,
    },
    /// The same issuer twice.
    #[error("the issuer {issuer:?} stands twice in `service_account_issuers`")]
    IssuerTwice {
        /// Its name.
        issuer: String,
    },
    /// A node proxy's account that cannot be.
    #[error("`istio.trusted_node_accounts` holds {account:?}, which is not NAMESPACE/NAME")]
    NodeAccount {
        /// The account.
        account: String,
    },
    /// An attestor that cannot be.
    #[error("the setting `node_attestors.{setting}`: {problem}")]
    Attestor {
        /// Which.
        setting: String,
        /// What is wrong.
        problem: String,
    },
    /// Keys that cannot be kept so.
    #[error("the setting `custody.{setting}`: {problem}")]
    Custody {
        /// Which.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Revocation lists that cannot be.
    #[error("the setting `revocation.{setting}` {problem}")]
    Revocation {
        /// Which.
        setting: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// A bundle endpoint that cannot be.
    #[error("the setting `federation.web_endpoint`: {problem}")]
    WebEndpoint {
        /// What is wrong.
        problem: &'static str,
    },
    /// No issuer at all.
    #[error("`istio_csr` is set, but `service_account_issuers` is empty: nobody could be accepted")]
    NoIssuer,
}

impl From<AttestorProblem> for SettingsProblem {
    fn from(AttestorProblem { setting, problem }: AttestorProblem) -> Self {
        Self::Attestor { setting, problem }
    }
}

impl SettingsProblem {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "SETTINGS_INVALID"
    }
}

impl Settings {
    /// Settings with every default, for a trust domain and a directory.
    pub fn new(trust_domain: TrustDomain, data_dir: PathBuf) -> Self {
        Self {
            trust_domain,
            data_dir,
            database: None,
            key_file: None,
            custody: CustodySettings::default(),
            upstream: None,
            grpc: default_grpc(),
            istio_csr: None,
            admin_socket: None,
            bundle_file: None,
            bundle_endpoint: None,
            oidc_listen: None,
            oidc_issuer: None,
            admin: None,
            x509_svid_ttl: default_x509_svid_ttl(),
            jwt_svid_ttl: default_jwt_svid_ttl(),
            wit_svid_ttl: default_wit_svid_ttl(),
            agent_svid_ttl: default_agent_svid_ttl(),
            svid_ttl_max: default_svid_ttl_max(),
            ca_ttl: default_ca_ttl(),
            root_ttl: default_root_ttl(),
            backdate: default_backdate(),
            server_names: Vec::new(),
            policy_file: None,
            rights_file: None,
            service_account_issuers: Vec::new(),
            istio: IstioSettings::default(),
            node_attestors: NodeAttestors::default(),
            address_limits: AddressLimitSettings::default(),
            trust_domain_aliases: Vec::new(),
            federation: FederationSettings::default(),
            revocation: crate::revocation::RevocationSettings::default(),
            record_kept: default_record_kept(),
            audit_kept: default_audit_kept(),
        }
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be.
    pub fn check(&self) -> Result<(), SettingsProblem> {
        let ttls = [
            ("x509_svid_ttl", self.x509_svid_ttl),
            ("jwt_svid_ttl", self.jwt_svid_ttl),
            ("wit_svid_ttl", self.wit_svid_ttl),
            ("agent_svid_ttl", self.agent_svid_ttl),
            ("svid_ttl_max", self.svid_ttl_max),
        ];
        for (setting, ttl) in ttls {
            if ttl < TTL_MIN {
                return Err(SettingsProblem::TtlTooShort { setting });
            }
            if self.ca_ttl < ttl * 2 {
                return Err(SettingsProblem::TtlOrder { longer: "ca_ttl", shorter: setting });
            }
        }
        if self.root_ttl < self.ca_ttl * 2 {
            return Err(SettingsProblem::TtlOrder { longer: "root_ttl", shorter: "ca_ttl" });
        }
        self.custody.check(self.database.as_ref().is_some_and(|url| url.starts_with("postgres")))?;
        if let Some(upstream) = &self.upstream {
            if upstream.files.is_some() == upstream.server.is_some() {
                let problem = "give either `files` or `server`".to_owned();
                return Err(SettingsProblem::Custody { setting: "upstream", problem });
            }
            self.custody.check_below_upstream()?;
        }
        self.node_attestors.check()?;
        self.revocation.check()?;
        if let Some(problem) = self.federation.problem() {
            return Err(SettingsProblem::WebEndpoint { problem });
        }
        self.check_names()?;
        self.check_issuers()
    }

    /// The database's URL.
    pub fn database_url(&self) -> String {
        self.database.clone().unwrap_or_else(|| crate::store::sqlite_url(&self.data_dir.join("ca.sqlite")))
    }

    /// Where the key-encryption key is.
    pub fn key_file(&self) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| self.data_dir.join("key-encryption.key"))
    }

    /// Where the local socket is.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| self.data_dir.join("admin.sock"))
    }

    fn check_names(&self) -> Result<(), SettingsProblem> {
        for name in &self.server_names {
            if name.parse::<std::net::IpAddr>().is_err() && !crate::names::is_dns_name(name) {
                return Err(SettingsProblem::ServerName { name: name.clone() });
            }
        }
        Ok(())
    }

    fn check_issuers(&self) -> Result<(), SettingsProblem> {
        if self.istio_csr.is_some() && self.service_account_issuers.is_empty() {
            return Err(SettingsProblem::NoIssuer);
        }
        if let Some(account) = self.istio.misfit() {
            return Err(SettingsProblem::NodeAccount { account: account.clone() });
        }
        let mut seen = std::collections::BTreeSet::new();
        for ServiceAccountIssuer { issuer, audiences, .. } in &self.service_account_issuers {
            if issuer.is_empty() || audiences.is_empty() || audiences.iter().any(String::is_empty) {
                return Err(SettingsProblem::Issuer { issuer: issuer.clone() });
            }
            if !seen.insert(issuer) {
                return Err(SettingsProblem::IssuerTwice { issuer: issuer.clone() });
            }
        }
        Ok(())
    }
}

fn default_grpc() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8081))
}

const fn default_x509_svid_ttl() -> Duration {
    Duration::from_secs(HOUR)
}

const fn default_wit_svid_ttl() -> Duration {
    Duration::from_secs(3600)
}

const fn default_jwt_svid_ttl() -> Duration {
    Duration::from_secs(5 * 60)
}

const fn default_agent_svid_ttl() -> Duration {
    Duration::from_secs(24 * HOUR)
}

const fn default_svid_ttl_max() -> Duration {
    Duration::from_secs(24 * HOUR)
}

const fn default_ca_ttl() -> Duration {
    Duration::from_secs(30 * 24 * HOUR)
}

const fn default_root_ttl() -> Duration {
    Duration::from_secs(3650 * 24 * HOUR)
}

const fn default_backdate() -> Duration {
    Duration::from_secs(2 * 60)
}

const fn default_record_kept() -> Duration {
    Duration::from_secs(30 * 24 * HOUR)
}

const fn default_audit_kept() -> Duration {
    Duration::from_secs(365 * 24 * HOUR)
}

fn default_audiences() -> Vec<String> {
    vec!["istio-ca".into()]
}

const HOUR: u64 = 3600;
const TTL_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trust_domain;

    fn parse(text: &str) -> Result<Settings, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn two_settings_suffice() {
        let settings = parse("trust_domain: example.org\ndata_dir: /tmp/x\n").unwrap();
        assert!(settings.check().is_ok());
        assert_eq!(settings.admin_socket(), PathBuf::from("/tmp/x/admin.sock"));
        assert_eq!(settings.database_url(), "sqlite:///tmp/x/ca.sqlite?mode=rwc");
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(parse("trust_domain: example.org\ndata_dir: /tmp/x\nx509_ttl: 1h\n").unwrap_err().contains("x509_ttl"));
    }

    #[test]
    fn the_issuers_of_tokens_have_an_audience_by_default() {
        let text = "trust_domain: td\ndata_dir: /d\nistio_csr: 127.0.0.1:0\nx509_svid_ttl: 20s\n\
                    service_account_issuers: [{issuer: 'https://k', jwks_file: /k.json}]\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.service_account_issuers[0].audiences, ["istio-ca"]);
        assert_eq!(settings.x509_svid_ttl, Duration::from_secs(20));
        assert!(settings.check().is_ok());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |change: fn(&mut Settings)| {
            let mut settings = Settings::new(trust_domain(), "/d".into());
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(check(|s| s.ca_ttl = Duration::from_secs(3600)).contains("ca_ttl"));
        assert!(check(|s| s.root_ttl = s.ca_ttl).contains("root_ttl"));
        assert!(check(|s| s.jwt_svid_ttl = Duration::ZERO).contains("jwt_svid_ttl"));
        assert!(check(|s| s.server_names = vec!["a b".into()]).contains("a b"));
        assert!(check(|s| s.istio_csr = Some(default_grpc())).contains("nobody"));
    }
}
