//! `k8s_psat`: a service account token that Kubernetes projected into the agent's pod, verified with the cluster's keys
//! from a file. The payload is that of SPIRE's attestor of that name. Nothing is asked of the cluster, so a pod that was
//! deleted can attest until its token runs out: keep `expirationSeconds` of the projection short.

use std::collections::BTreeMap;

use identity::jwt::{JwtExpectations, VerifiedClaims};
use serde::Deserialize;

use super::path::{PathTemplate, Value};
use super::settings::AttestorProblem;
use super::{AgentIdSource, AttestError, Attested, KubernetesCluster, KubernetesPsat, World, selectors};
use crate::jwks_file::JwksFile;
use crate::service_account;

/// The attestor with the keys of its clusters.
#[derive(Debug)]
pub(super) struct Attestor {
    clusters: BTreeMap<String, Cluster>,
    template: PathTemplate,
}

#[derive(Debug)]
struct Cluster {
    settings: KubernetesCluster,
    keys: JwksFile,
}

/// The token is a secret, so this has no `Debug`.
#[derive(Deserialize)]
struct Payload {
    cluster: String,
    token: String,
}

impl Attestor {
    pub(super) fn build(settings: &KubernetesPsat) -> Result<Self, AttestorProblem> {
        let template = PathTemplate::parse("{{ .UID }}", &["UID"]);
        let template = template.map_err(|problem| AttestorProblem::new(NAME, problem))?;
        let build = |(name, settings): (&String, &KubernetesCluster)| {
            (name.clone(), Cluster { settings: settings.clone(), keys: JwksFile::new(&settings.jwks_file) })
        };
        Ok(Self { clusters: settings.clusters.iter().map(build).collect(), template })
    }

    pub(super) fn attest(&self, payload: &[u8], world: &World<'_>) -> Result<Attested, AttestError> {
        let Payload { cluster: name, token } =
            serde_json::from_slice(payload).map_err(|_| AttestError::Malformed("is not JSON of its kind"))?;
        let cluster = self.clusters.get(&name).ok_or(AttestError::ClusterUnknown)?;
        let expect = JwtExpectations::at(world.now)
            .with_issuer(&cluster.settings.issuer)
            .with_audiences(cluster.settings.audiences.clone());
        let claims = cluster.keys.verify(&token, &expect).map_err(|why| AttestError::of(&cluster.keys, why))?;
        let (namespace, account) = service_account::account_of(&claims).map_err(AttestError::Account)?;
        if !cluster.settings.service_accounts.contains(&format!("{namespace}:{account}")) {
            return Err(AttestError::AccountNotAllowed);
        }
        let told = |path: &str| told(&claims, path);
        let (uid, unbound) = match cluster.settings.agent_id {
            AgentIdSource::Node => (told("/node/uid"), AttestError::Unbound(NO_NODE)),
            AgentIdSource::Pod => (told("/pod/uid"), AttestError::Unbound("pod")),
        };
        let uid = Value::Part(uid.ok_or(unbound)?.to_owned());
        let id = self.template.fill(world.trust_domain, &format!("{NAME}/{name}"), |_| Some(uid.clone()))?;
        let facts = [
            ("cluster", Some(name.as_str())),
            ("agent_ns", Some(namespace)),
            ("agent_sa", Some(account)),
            ("agent_pod_name", told("/pod/name")),
            ("agent_pod_uid", told("/pod/uid")),
            ("agent_node_name", told("/node/name")),
            ("agent_node_uid", told("/node/uid")),
        ];
        Ok(Attested { id, kind: NAME, selectors: selectors(NAME, facts), can_reattest: true, token: None })
    }
}

fn told<'a>(claims: &'a VerifiedClaims, path: &str) -> Option<&'a str> {
    claims.claims().get("kubernetes.io")?.pointer(path)?.as_str()
}

pub(super) const NAME: &str = "k8s_psat";
const NO_NODE: &str = "node (Kubernetes 1.30 and later write it; or set agent_id: pod)";
