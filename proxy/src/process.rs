//! What all workers of a proxy share, made once at start.

use std::sync::{Arc, Mutex, PoisonError};

use crate::jwks::RemoteKeys;
use crate::obs::counters::Counters;
use crate::obs::labels::WorkloadLabels;
use crate::obs::log::LogWriter;
use crate::obs::shard::Shard;
use crate::quotas::Quotas;
use crate::settings::Settings;
use crate::tls::own::OwnIdentity;

/// The shared parts.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) settings: Settings,
    pub(crate) identity: Arc<OwnIdentity>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) logs: LogWriter,
    pub(crate) keys: RemoteKeys,
    pub(crate) quotas: Quotas,
    /// What the node's metadata says of the workload beside us.
    pub(crate) own_labels: WorkloadLabels,
    shards: Mutex<Vec<Arc<Shard>>>,
}

impl Process {
    pub(crate) fn new(
        settings: Settings,
        identity: Arc<OwnIdentity>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let logs = LogWriter::start(counters.clone())?;
        let own_labels = own_labels(&settings);
        Ok(Self {
            settings,
            identity,
            counters,
            logs,
            keys: RemoteKeys::default(),
            quotas: Quotas::default(),
            own_labels,
            shards: Mutex::default(),
        })
    }

    /// A metric shard for one worker.
    pub(crate) fn new_shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::default());
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard.clone());
        shard
    }

    /// All metric families of the proxy.
    pub(crate) fn render_metrics(&self, out: &mut String) {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        crate::obs::shard::render(&shards, out);
        self.counters.render(out);
    }
}

fn own_labels(settings: &Settings) -> WorkloadLabels {
    let node = &settings.node;
    let text = |text: Option<&str>| text.map(Arc::from);
    let service = node.label("service.istio.io/canonical-name").or_else(|| node.label("app"));
    let revision = node.label("service.istio.io/canonical-revision").or_else(|| node.label("version"));
    WorkloadLabels {
        workload: text(node.text("WORKLOAD_NAME").or_else(|| node.text("NAME"))),
        namespace: text(node.text("NAMESPACE")),
        principal: None,
        app: text(node.label("app")),
        version: text(node.label("version")),
        canonical_service: text(service.or_else(|| node.text("WORKLOAD_NAME"))),
        canonical_revision: text(Some(revision.unwrap_or("latest"))),
        cluster: text(Some(node.text("CLUSTER_ID").unwrap_or("Kubernetes"))),
    }
}
