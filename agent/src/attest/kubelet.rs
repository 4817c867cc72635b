//! Facts about a Kubernetes pod, from the kubelet of this node (`GET /pods`). The container is found by the ids that the
//! kernel tells, never by what the workload says. Selectors are those of SPIRE's attestor `k8s`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::fetch::{Fetch, FetchError};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::entry::Selector;
use crate::store;

/// Where the kubelet is, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubeletSettings {
    /// Its address; `https://127.0.0.1:10250` when left out.
    #[serde(default = "url")]
    pub url: String,
    /// The roots (PEM) that vouch for its certificate.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Does without that proof: whoever holds the port may then name any pod.
    #[serde(default)]
    pub danger_skip_verification: bool,
    /// The service account token that it is shown; read anew each time.
    #[serde(default = "token_file")]
    pub token_file: PathBuf,
}

/// A pod as it is named from outside: by namespace and name, by UID, or by both, which then must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodReference {
    pub(crate) key: Option<(String, String)>,
    pub(crate) uid: Option<String>,
}

/// Why the kubelet told nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    #[error("{}: cannot be read", file.display())]
    File {
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("ca_file holds no usable roots")]
    Roots,
    #[error("the kubelet cannot be asked")]
    Fetch(#[source] FetchError),
    #[error("the kubelet's answer is no list of pods")]
    Answer(#[source] serde_json::Error),
}

/// Asks the kubelet, and remembers its answer for a moment.
#[derive(Debug)]
pub(crate) struct Kubelet {
    settings: KubeletSettings,
    known: Mutex<Option<(Instant, Arc<Vec<Pod>>)>>,
}

#[derive(Debug, Deserialize)]
struct PodList {
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    service_account_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    container_statuses: Vec<Container>,
    init_container_statuses: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    #[serde(rename = "containerID")]
    container_id: String,
}

impl Kubelet {
    pub(crate) fn new(settings: KubeletSettings) -> Self {
        Self { settings, known: Mutex::default() }
    }

    /// The facts of a pod and one of its containers. Right after its start a container is not listed yet, so this asks again
    /// for a while; none when it is not found then.
    pub(super) async fn facts(&self, pod_uid: &str, container: Option<&str>) -> Result<Vec<Selector>, KubeletError> {
        let mut pods = self.pods(fresh_enough()).await?;
        for attempt in 0..=RETRIES_MAX {
            if let Some(facts) = facts_of(&pods, pod_uid, container) {
                return Ok(facts);
            }
            if attempt < RETRIES_MAX {
                tokio::time::sleep(RETRY_PAUSE).await;
                pods = self.pods(fresh_enough()).await?;
            }
        }
        Ok(Vec::new())
    }

    /// The facts of a pod that somebody names; `None` when it is not on this node.
    pub(super) async fn pod(&self, reference: &PodReference) -> Result<Option<Vec<Selector>>, KubeletError> {
        let pods = self.pods(fresh_enough()).await?;
        let named = |pod: &&Pod| {
            let by_key = reference
                .key
                .as_ref()
                .is_none_or(|(namespace, name)| pod.metadata.namespace == *namespace && pod.metadata.name == *name);
            by_key && reference.uid.as_ref().is_none_or(|uid| pod.metadata.uid == *uid)
        };
        let found = pods.iter().find(named).filter(|_| reference.key.is_some() || reference.uid.is_some());
        Ok(found.and_then(|pod| facts_of(&pods, &pod.metadata.uid, None)))
    }

    /// The pods of this node as of `not_before` or later. Callers at the same time share one question.
    async fn pods(&self, not_before: Instant) -> Result<Arc<Vec<Pod>>, KubeletError> {
        let mut known = self.known.lock().await;
        if let Some((asked, pods)) = &*known
            && *asked >= not_before
        {
            return Ok(pods.clone());
        }
        let asked = Instant::now();
        let pods = Arc::new(self.ask().await?);
        *known = Some((asked, pods.clone()));
        Ok(pods)
    }

    async fn ask(&self) -> Result<Vec<Pod>, KubeletError> {
        let alpn: &[&[u8]] = &[identity::tls::ALPN_HTTP11];
        let tls = match (&self.settings.ca_file, self.settings.danger_skip_verification) {
            (Some(file), _) => {
                identity::tls::web::client_config(&read(file)?, None, alpn).map_err(|_| KubeletError::Roots)?
            }
            (None, true) => identity::tls::danger::unverified_client_config(alpn).map_err(|_| KubeletError::Roots)?,
            (None, false) => return Err(KubeletError::Roots),
        };
        let token = zeroize::Zeroizing::new(read(&self.settings.token_file)?);
        let token = std::str::from_utf8(&token).unwrap_or_default().trim();
        let url = format!("{}/pods", self.settings.url.trim_end_matches('/'));
        let fetch = Fetch { url: &url, tls: Some(tls), bearer: Some(token), bytes_max: ANSWER_BYTES_MAX };
        let answer = fetch.get().await.map_err(KubeletError::Fetch)?;
        Ok(serde_json::from_slice::<PodList>(&answer).map_err(KubeletError::Answer)?.items)
    }
}

impl KubeletSettings {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if runtime::fetch::check_url(&self.url).is_err() || !self.url.starts_with("https://") {
            return Some("url: write https://IP:PORT");
        }
        let unproven = self.ca_file.is_none() && !self.danger_skip_verification;
        unproven.then_some("ca_file: name the roots of the kubelet's certificate, or set danger_skip_verification")
    }
}

fn fresh_enough() -> Instant {
    let now = Instant::now();
    now.checked_sub(FRESH).unwrap_or(now)
}

fn facts_of(pods: &[Pod], uid: &str, container: Option<&str>) -> Option<Vec<Selector>> {
    let pod = pods.iter().find(|pod| pod.metadata.uid == uid)?;
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            facts.push(Selector::new(KIND, format!("{name}:{value}")));
        }
    };
    if let Some(id) = container {
        let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        let found =
            all.into_iter().find(|found| found.container_id.rsplit_once("//").is_some_and(|(_, known)| known == id))?;
        fact("container-name", &found.name);
        fact("container-image", &found.image);
        fact("container-image", &found.image_id);
    }
    let Pod { metadata, spec, status } = pod;
    fact("ns", &metadata.namespace);
    fact("sa", &spec.service_account_name);
    fact("node-name", &spec.node_name);
    fact("pod-uid", &metadata.uid);
    fact("pod-name", &metadata.name);
    for (key, value) in metadata.labels.iter().take(LISTED_MAX) {
        fact(&format!("pod-label:{key}"), value);
    }
    for owner in metadata.owner_references.iter().take(LISTED_MAX) {
        fact(&format!("pod-owner:{}", owner.kind), &owner.name);
        fact(&format!("pod-owner-uid:{}", owner.kind), &owner.uid);
    }
    fact("pod-image-count", &status.container_statuses.len().to_string());
    for container in status.container_statuses.iter().take(LISTED_MAX) {
        fact("pod-image", &container.image);
        fact("pod-image", &container.image_id);
    }
    Some(facts)
}

fn read(file: &Path) -> Result<Vec<u8>, KubeletError> {
    let failed = |source| KubeletError::File { file: file.to_owned(), source };
    store::read(file, FILE_BYTES_MAX).map_err(failed)?.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

fn url() -> String {
    "https://127.0.0.1:10250".into()
}

fn token_file() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

const KIND: &str = "k8s";
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The largest list of pods.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Labels, owners and images of one pod that become facts.
const LISTED_MAX: usize = 64;
const FRESH: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const RETRIES_MAX: usize = 6;

#[cfg(test)]
mod tests;
