//! Node proxies that ask for the certificates of workloads on their own node, as ztunnel does.
//!
//! The caller is one of the trusted node accounts and its token is bound to a node; that node is an attested one of ours, and
//! an entry authorises it for the wanted identity. Whatever fails is refused with one fixed text, as Istio's CA does; the log
//! says what it was.

use std::sync::Arc;

use identity::spiffe_id::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::certifier::Certifier;
use crate::entry::{Entry, Selector};
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::service_account::ServiceAccount;

/// The setting `istio`. Each part has a default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IstioSettings {
    /// Service accounts (`NAMESPACE/NAME`) of node proxies: they get certificates of the workloads on their own node. Istio's
    /// `CA_TRUSTED_NODE_ACCOUNTS`.
    #[serde(default)]
    pub trusted_node_accounts: Vec<String>,
    /// The Kubernetes cluster (as in `node_attestors.k8s_psat`) that an issuer of service account tokens belongs to, by the
    /// issuer's name. Needed when nodes of several clusters have the same names.
    #[serde(default)]
    pub clusters: std::collections::BTreeMap<String, String>,
}

impl IstioSettings {
    /// The first account that is no `NAMESPACE/NAME`.
    pub(crate) fn misfit(&self) -> Option<&String> {
        self.trusted_node_accounts.iter().find(|account| {
            let parts = account.split_once('/');
            !parts.is_some_and(|(namespace, name)| {
                crate::names::is_namespace(namespace) && crate::names::is_service_account(name)
            })
        })
    }

    /// The entry by which `account` gets a certificate for `wanted`.
    ///
    /// # Errors
    /// When it may not have one; the refusal tells the caller nothing about why.
    pub(super) fn judge(
        &self,
        certifier: &Certifier,
        account: &ServiceAccount,
        wanted: &str,
    ) -> Result<Arc<Entry>, Refusal> {
        self.entry(certifier, account, wanted).map_err(|why| {
            tracing::info!(
                account = account.subject(),
                wanted,
                why,
                reason = "IMPERSONATION_REFUSED",
                "impersonation refused"
            );
            Refusal::Impersonation
        })
    }

    fn entry(&self, certifier: &Certifier, account: &ServiceAccount, wanted: &str) -> Result<Arc<Entry>, &'static str> {
        if !self.trusted_node_accounts.iter().any(|trusted| *trusted == account.account()) {
            return Err("the account is not one of istio.trusted_node_accounts");
        }
        let node = account.node().ok_or("the token is not bound to a node")?;
        let wanted = SpiffeId::parse(wanted).map_err(|_| "what is wanted is no SPIFFE ID")?;
        let is_ours = wanted.is_member_of(&certifier.trust_domain) && wanted.namespace_and_service_account().is_some();
        if !is_ours {
            return Err("what is wanted is no service account of this trust domain");
        }
        let (now, registry) = (certifier.now_secs(), certifier.store.registry());
        let agent = self.agent(&registry, account.issuer(), node, now)?;
        let entries = registry.authorized(&agent, now);
        let mut found = entries.into_iter().filter(|entry| entry.spiffe_id == wanted);
        // What gives more than an identity is not handed on.
        found
            .find(|entry| !entry.admin && !entry.downstream && !entry.store_svid)
            .ok_or("no entry authorises the node for it")
    }

    /// The one attested node of this name.
    fn agent(&self, registry: &Registry, issuer: &str, node: &str, now: i64) -> Result<Arc<Agent>, &'static str> {
        let mut wanted = vec![Selector::new(K8S_PSAT, format!("agent_node_name:{node}"))];
        wanted.extend(self.clusters.get(issuer).map(|cluster| Selector::new(K8S_PSAT, format!("cluster:{cluster}"))));
        let fits =
            |agent: &&Arc<Agent>| agent.counts(now) && wanted.iter().all(|selector| agent.selectors.contains(selector));
        let mut found = registry.agents().filter(fits);
        match (found.next(), found.next()) {
            (Some(agent), None) => Ok(agent.clone()),
            (None, _) => Err("no attested node has the name that the token is bound to"),
            (Some(_), Some(_)) => Err("several attested nodes have this name; name the cluster in istio.clusters"),
        }
    }
}

const K8S_PSAT: &str = "k8s_psat";
