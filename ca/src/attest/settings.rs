//! Which ways of proving what a node is are open, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::path::is_part;

/// The attestors; what does not stand here is off, but for join tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAttestors {
    /// One-time tokens of `kasbah token create`.
    #[serde(default = "yes")]
    pub join_token: bool,
    /// Device certificates.
    #[serde(default)]
    pub x509pop: Option<X509Pop>,
    /// Projected service account tokens of Kubernetes, verified offline.
    #[serde(default)]
    pub k8s_psat: Option<KubernetesPsat>,
    /// Tokens of OIDC issuers, verified offline.
    #[serde(default)]
    pub oidc_jwt: Option<OidcJwt>,
    /// Host names, proven by an answer over HTTP.
    #[serde(default)]
    pub http_challenge: Option<HttpChallenge>,
    /// Nodes that come back with the last SVID they had, however they once attested.
    #[serde(default)]
    pub old_svid: OldSvid,
}

/// Nodes that come back after their SVID has run out, with a proof of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldSvid {
    /// How long after its end an SVID still brings its node back; `0s` switches this off.
    #[serde(default = "old_svid_age_max", with = "humantime_serde")]
    pub age_max: Duration,
}

impl Default for OldSvid {
    fn default() -> Self {
        Self { age_max: old_svid_age_max() }
    }
}

/// Device certificates, with a proof that the key is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Pop {
    /// Whose certificates count.
    #[serde(default)]
    pub mode: X509PopMode,
    /// Files with the roots of the devices (PEM), read again when they change; for `external_pki`.
    #[serde(default)]
    pub ca_bundles: Vec<PathBuf>,
    /// What the ID of an exchangeable SVID begins with; for `spiffe`.
    #[serde(default = "svid_prefix")]
    pub svid_prefix: String,
    /// The node's ID below `/spire/agent/x509pop/`.
    #[serde(default)]
    pub agent_path_template: Option<String>,
}

/// Whose certificates count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum X509PopMode {
    /// Those of the CAs in `ca_bundles`.
    #[default]
    ExternalPki,
    /// X.509-SVIDs of our own trust domain below `svid_prefix`.
    Spiffe,
}

/// Kubernetes clusters whose agents may attest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesPsat {
    /// By the name that agents give.
    pub clusters: BTreeMap<String, KubernetesCluster>,
}

/// One cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesCluster {
    /// `iss` of its tokens, exactly (`kubectl get --raw /.well-known/openid-configuration`).
    pub issuer: String,
    /// Its keys (`kubectl get --raw /openid/v1/jwks`); read again when the file changes.
    pub jwks_file: PathBuf,
    /// A token must name one of them in `aud`.
    #[serde(default = "server_audience")]
    pub audiences: Vec<String>,
    /// `NAMESPACE:NAME` of those who may attest.
    pub service_accounts: BTreeSet<String>,
    /// What the node's ID comes from.
    #[serde(default)]
    pub agent_id: AgentIdSource,
}

/// What a Kubernetes node's ID comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentIdSource {
    /// The node's UID, which tokens carry from Kubernetes 1.30 on.
    #[default]
    Node,
    /// The pod's UID: a new pod is a new node.
    Pod,
}

/// OIDC issuers whose tokens prove a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcJwt {
    /// By a name of the operator's choice, which is a part of the node's ID.
    pub issuers: BTreeMap<String, OidcIssuer>,
}

/// One issuer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcIssuer {
    /// `iss` of its tokens, exactly.
    pub issuer: String,
    /// Its keys; read again when the file changes.
    pub jwks_file: PathBuf,
    /// A token must name one of them in `aud`.
    pub audiences: Vec<String>,
    /// Claims that must have one of the values: an issuer speaks for more than our nodes.
    pub required_claims: BTreeMap<String, BTreeSet<String>>,
    /// Claim → selector: `repository: repo` makes `oidc_jwt:NAME:repo:VALUE`.
    #[serde(default)]
    pub selectors: BTreeMap<String, String>,
    /// The node's ID below `/spire/agent/oidc_jwt/NAME/`.
    #[serde(default)]
    pub agent_path_template: Option<String>,
    /// Whether a node may attest again with a new token.
    #[serde(default = "yes")]
    pub can_reattest: bool,
}

/// Host names, proven by an answer over HTTP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpChallenge {
    /// Regular expressions, each for a whole host name.
    pub allowed_dns_patterns: Vec<String>,
    /// The lowest port that is called.
    #[serde(default = "port_min")]
    pub port_min: u16,
    /// The highest port that is called.
    #[serde(default = "port_max")]
    pub port_max: u16,
    /// Networks that are called although they are not public, such as `10.0.0.0/8`.
    #[serde(default)]
    pub allowed_networks: Vec<IpNet>,
    /// Whether only the first attestation of a host counts. Without it `port_max` must be below 1024.
    #[serde(default = "yes")]
    pub tofu: bool,
}

/// An attestor that cannot be as its settings say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub(crate) struct AttestorProblem {
    pub(crate) setting: String,
    pub(crate) problem: String,
}

impl AttestorProblem {
    pub(super) fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }
}

impl Default for NodeAttestors {
    fn default() -> Self {
        Self {
            join_token: true,
            x509pop: None,
            k8s_psat: None,
            oidc_jwt: None,
            http_challenge: None,
            old_svid: OldSvid::default(),
        }
    }
}

impl NodeAttestors {
    /// What can be judged without touching the machine.
    pub(crate) fn check(&self) -> Result<(), AttestorProblem> {
        self.x509pop.as_ref().map_or(Ok(()), X509Pop::check)?;
        self.k8s_psat.as_ref().map_or(Ok(()), KubernetesPsat::check)?;
        self.oidc_jwt.as_ref().map_or(Ok(()), OidcJwt::check)?;
        self.http_challenge.as_ref().map_or(Ok(()), HttpChallenge::check)
    }
}

impl X509Pop {
    fn check(&self) -> Result<(), AttestorProblem> {
        super::x509pop::template(self)?;
        let problem = |setting, problem| Err(AttestorProblem::new(format!("x509pop.{setting}"), problem));
        match self.mode {
            X509PopMode::ExternalPki if self.ca_bundles.is_empty() => {
                problem("ca_bundles", "name at least one file with roots, or set mode: spiffe")
            }
            X509PopMode::Spiffe if !self.ca_bundles.is_empty() => {
                problem("ca_bundles", "the mode spiffe trusts the own trust domain only; remove the files")
            }
            X509PopMode::Spiffe => {
                let segments = self.svid_prefix.strip_prefix('/').map(|path| path.split('/').all(is_part));
                if segments == Some(true) {
                    Ok(())
                } else {
                    problem("svid_prefix", "must be a path such as /spire-exchange")
                }
            }
            X509PopMode::ExternalPki => Ok(()),
        }
    }
}

impl KubernetesPsat {
    fn check(&self) -> Result<(), AttestorProblem> {
        if self.clusters.is_empty() {
            return Err(AttestorProblem::new("k8s_psat.clusters", "names no cluster"));
        }
        for (name, cluster) in &self.clusters {
            let setting = format!("k8s_psat.clusters.{name}");
            check_issuer(&setting, name, &cluster.issuer, &cluster.audiences)?;
            if cluster.service_accounts.is_empty() {
                return Err(AttestorProblem::new(setting, "service_accounts is empty: nobody could attest"));
            }
            let is_account = |text: &String| {
                text.split_once(':').is_some_and(|(namespace, name)| {
                    crate::names::is_namespace(namespace) && crate::names::is_service_account(name)
                })
            };
            if let Some(bad) = cluster.service_accounts.iter().find(|text| !is_account(text)) {
                return Err(AttestorProblem::new(
                    setting,
                    format!("service_accounts holds `{bad}`; write NAMESPACE:NAME"),
                ));
            }
        }
        Ok(())
    }
}

impl OidcJwt {
    fn check(&self) -> Result<(), AttestorProblem> {
        if self.issuers.is_empty() {
            return Err(AttestorProblem::new("oidc_jwt.issuers", "names no issuer"));
        }
        for (name, issuer) in &self.issuers {
            let setting = format!("oidc_jwt.issuers.{name}");
            check_issuer(&setting, name, &issuer.issuer, &issuer.audiences)?;
            super::oidc_jwt::template(name, issuer)?;
            if issuer.required_claims.is_empty() || issuer.required_claims.values().any(BTreeSet::is_empty) {
                let problem = "required_claims must name a claim and its values: otherwise everybody whom the issuer knows is a node";
                return Err(AttestorProblem::new(setting, problem));
            }
            let mut names = BTreeSet::new();
            if let Some(bad) = issuer.selectors.values().find(|name| !is_part(name) || !names.insert(*name)) {
                return Err(AttestorProblem::new(setting, format!("selectors: `{bad}` is no name, or stands twice")));
            }
        }
        let issuers: BTreeSet<&str> = self.issuers.values().map(|issuer| issuer.issuer.as_str()).collect();
        if issuers.len() < self.issuers.len() {
            return Err(AttestorProblem::new("oidc_jwt.issuers", "one issuer stands under two names"));
        }
        Ok(())
    }
}

fn check_issuer(setting: &str, name: &str, issuer: &str, audiences: &[String]) -> Result<(), AttestorProblem> {
    let problem = |problem: &str| Err(AttestorProblem::new(setting, problem));
    if !is_part(name) {
        return problem("the name may hold letters, digits, dash, dot and underscore only, for it is a part of IDs");
    }
    if issuer.is_empty() {
        return problem("issuer is empty");
    }
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return problem("audiences must name at least one: a token for somebody else proves nothing here");
    }
    Ok(())
}

impl HttpChallenge {
    fn check(&self) -> Result<(), AttestorProblem> {
        let problem = |setting, problem| Err(AttestorProblem::new(format!("http_challenge.{setting}"), problem));
        super::http_challenge::patterns(self)?;
        if self.allowed_dns_patterns.is_empty() {
            return problem("allowed_dns_patterns", "is empty: no host could attest");
        }
        if self.port_min == 0 || self.port_min > self.port_max {
            return problem("port_min", "must be at least 1 and not above port_max");
        }
        if !self.tofu && self.port_max >= PRIVILEGED_PORTS_END {
            return problem(
                "tofu",
                "may be off only with port_max below 1024, where only the host's administrator listens",
            );
        }
        Ok(())
    }
}

/// A machine that slept for a week comes back by itself.
const fn old_svid_age_max() -> Duration {
    Duration::from_secs(14 * 86_400)
}

const fn yes() -> bool {
    true
}

const fn port_min() -> u16 {
    1
}

const fn port_max() -> u16 {
    u16::MAX
}

fn svid_prefix() -> String {
    "/spire-exchange".into()
}

fn server_audience() -> Vec<String> {
    vec!["spire-server".into()]
}

const PRIVILEGED_PORTS_END: u16 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> String {
        match serde_saphyr::from_str::<NodeAttestors>(text) {
            Ok(settings) => settings.check().map_or_else(|problem| problem.to_string(), |()| "good".into()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn good_settings_pass() {
        let settings: NodeAttestors = serde_saphyr::from_str("{}").unwrap();
        assert!(settings.join_token && settings.x509pop.is_none());
        for good in [
            "join_token: false",
            "x509pop: {ca_bundles: [/r.pem]}",
            "x509pop: {ca_bundles: [/r.pem], agent_path_template: 'cn/{{ .Subject.CommonName }}'}",
            "x509pop: {mode: spiffe}",
            "k8s_psat: {clusters: {prod: {issuer: 'https://k', jwks_file: /k, service_accounts: ['spire:agent']}}}",
            "oidc_jwt: {issuers: {gh: {issuer: 'https://g', jwks_file: /g, audiences: [kasbah], required_claims: {owner: [us]}}}}",
            "http_challenge: {allowed_dns_patterns: ['n[0-9]+\\.example\\.org'], allowed_networks: [10.0.0.0/8]}",
            "http_challenge: {allowed_dns_patterns: ['n'], tofu: false, port_max: 80}",
        ] {
            assert_eq!(check(good), "good", "{good}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (bad, word) in [
            ("x509: {}", "x509"),
            ("x509pop: {}", "ca_bundles"),
            ("x509pop: {ca_bundles: [/r], cert: 1}", "cert"),
            ("x509pop: {mode: spiffe, ca_bundles: [/r]}", "ca_bundles"),
            ("x509pop: {mode: spiffe, svid_prefix: ''}", "svid_prefix"),
            ("x509pop: {mode: spiffe, svid_prefix: /a/../b}", "svid_prefix"),
            ("x509pop: {ca_bundles: [/r], agent_path_template: '../{{ .Fingerprint }}'}", "agent_path_template"),
            ("x509pop: {ca_bundles: [/r], agent_path_template: '{{ .SVIDPathTrimmed }}'}", "SVIDPathTrimmed"),
            ("k8s_psat: {clusters: {}}", "no cluster"),
            ("k8s_psat: {clusters: {a/b: {issuer: i, jwks_file: /k, service_accounts: ['a:b']}}}", "name"),
            ("k8s_psat: {clusters: {a: {issuer: i, jwks_file: /k, service_accounts: []}}}", "service_accounts"),
            ("k8s_psat: {clusters: {a: {issuer: i, jwks_file: /k, service_accounts: ['a']}}}", "NAMESPACE:NAME"),
            (
                "k8s_psat: {clusters: {a: {issuer: i, jwks_file: /k, audiences: [], service_accounts: ['a:b']}}}",
                "audiences",
            ),
            (
                "oidc_jwt: {issuers: {g: {issuer: i, jwks_file: /g, audiences: [a], required_claims: {}}}}",
                "required_claims",
            ),
            (
                "oidc_jwt: {issuers: {g: {issuer: i, jwks_file: /g, audiences: [a], required_claims: {o: []}}}}",
                "required_claims",
            ),
            (
                "oidc_jwt: {issuers: {g: {issuer: i, jwks_file: /g, audiences: [a], required_claims: {o: [u]}, selectors: {a: x, b: x}}}}",
                "twice",
            ),
            ("http_challenge: {allowed_dns_patterns: []}", "allowed_dns_patterns"),
            ("http_challenge: {allowed_dns_patterns: ['[']}", "allowed_dns_patterns"),
            ("http_challenge: {allowed_dns_patterns: [a], port_min: 9, port_max: 8}", "port_min"),
            ("http_challenge: {allowed_dns_patterns: [a], tofu: false}", "port_max"),
        ] {
            let problem = check(bad);
            assert!(problem.contains(word), "{bad}: {problem}");
        }
    }
}
