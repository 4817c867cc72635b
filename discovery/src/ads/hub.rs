//! The current generation of configuration, and who is connected.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Ack, Heard};
use crate::compile::Mesh;
use crate::node::NodeFacts;
use crate::resources::Resources;

/// One immutable state of the mesh's configuration. Nodes with equal facts share what was compiled for them.
pub(crate) struct Generation {
    pub(crate) number: u64,
    mesh: Mesh,
    compiled: Mutex<BTreeMap<NodeFacts, Arc<Resources>>>,
}

impl Generation {
    pub(crate) fn new(number: u64, mesh: Mesh) -> Self {
        Self { number, mesh, compiled: Mutex::default() }
    }

    /// What this node is to be given.
    pub(crate) fn resources(&self, node: &NodeFacts) -> Arc<Resources> {
        if let Some(known) = locked(&self.compiled).get(node) {
            return Arc::clone(known);
        }
        let compiled = Arc::new(self.mesh.compile(node));
        let mut cache = locked(&self.compiled);
        if cache.len() < COMPILED_NODES_MAX {
            cache.insert(node.clone(), Arc::clone(&compiled));
        }
        compiled
    }
}

/// Shared by all streams and the admin page.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Shared>);

struct Shared {
    generation: watch::Sender<Arc<Generation>>,
    clients: Mutex<BTreeMap<u64, Client>>,
    next_client: AtomicU64,
    metrics: HubMetrics,
}

#[derive(Clone, Debug)]
struct Client {
    node: String,
    peer: Option<String>,
    delta: bool,
    generation: u64,
    acks: Vec<Ack>,
}

#[derive(Clone, Debug, Default)]
struct HubMetrics {
    clients: Gauge,
    pushes: Family<TypeLabel, Counter>,
    rejects: Family<TypeLabel, Counter>,
    stale: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

impl Hub {
    pub(crate) fn new(first: Generation, metrics: &runtime::metrics::Metrics) -> Self {
        let own = HubMetrics::default();
        metrics.register(|registry| {
            registry.register("pilot_xds", "Connected xDS clients", own.clients.clone());
            registry.register("pilot_xds_pushes", "Answers sent, by type", own.pushes.clone());
            registry.register("pilot_total_xds_rejects", "Answers that a client refused, by type", own.rejects.clone());
            registry.register("pilot_xds_expired_nonce", "Requests that answered something older", own.stale.clone());
        });
        let generation = watch::Sender::new(Arc::new(first));
        let shared = Shared { generation, clients: Mutex::default(), next_client: AtomicU64::new(1), metrics: own };
        Self(Arc::new(shared))
    }

    /// Makes a new generation the current one.
    pub(crate) fn publish(&self, mesh: Mesh) -> u64 {
        let number = self.current().number + 1;
        self.0.generation.send_replace(Arc::new(Generation::new(number, mesh)));
        number
    }

    pub(crate) fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.0.generation.borrow())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Generation>> {
        self.0.generation.subscribe()
    }

    /// Registers a stream; it is forgotten when the guard is dropped. `None` when there are too many.
    pub(crate) fn join(&self, node: &NodeFacts, peer: Option<String>, delta: bool) -> Option<ClientGuard> {
        let mut clients = locked(&self.0.clients);
        if clients.len() >= CLIENTS_MAX {
            return None;
        }
        let id = self.0.next_client.fetch_add(1, Ordering::Relaxed);
        clients.insert(id, Client { node: node.id.clone(), peer, delta, generation: 0, acks: Vec::new() });
        self.0.metrics.clients.inc();
        Some(ClientGuard { hub: self.clone(), id })
    }

    /// Connected clients and how far each is.
    pub(crate) fn status(&self) -> Value {
        let current = self.current().number;
        let clients: Vec<Value> = locked(&self.0.clients).values().map(|client| client.to_json(current)).collect();
        json!({"generation": current, "clients": clients})
    }
}

/// One stream's place in the hub.
pub(crate) struct ClientGuard {
    hub: Hub,
    id: u64,
}

impl ClientGuard {
    /// Notes what a request said.
    pub(crate) fn heard(&self, node: &NodeFacts, type_url: &str, heard: &Heard, acks: Vec<Ack>) {
        let metrics = &self.hub.0.metrics;
        let short = crate::resources::Type::of_url(type_url).map_or("other", crate::resources::Type::short);
        match heard {
            Heard::Rejected(text) => {
                metrics.rejects.get_or_create(&TypeLabel { r#type: short }).inc();
                tracing::warn!(
                    node = node.id,
                    r#type = short,
                    reason = "XDS_REJECTED",
                    text,
                    "a client refused its configuration"
                );
            }
            Heard::Stale => {
                metrics.stale.inc();
            }
            Heard::UnknownType => {
                tracing::debug!(node = node.id, type_url, "a client asks for a type that is not served");
            }
            Heard::Request | Heard::Acknowledged => {}
        }
        self.update(|client| client.acks = acks);
    }

    /// Notes that an answer is being sent.
    pub(crate) fn sent(&self, type_url: &str, generation: u64) {
        let short = crate::resources::Type::of_url(type_url).map_or("other", crate::resources::Type::short);
        self.hub.0.metrics.pushes.get_or_create(&TypeLabel { r#type: short }).inc();
        self.update(|client| client.generation = generation);
    }

    fn update(&self, change: impl FnOnce(&mut Client)) {
        if let Some(client) = locked(&self.hub.0.clients).get_mut(&self.id) {
            change(client);
        }
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        locked(&self.hub.0.clients).remove(&self.id);
        self.hub.0.metrics.clients.dec();
    }
}

impl Client {
    fn to_json(&self, current: u64) -> Value {
        let types: serde_json::Map<String, Value> = self
            .acks
            .iter()
            .map(|ack| {
                let state = match (&ack.rejected, ack.sent == ack.acknowledged) {
                    (Some(_), _) => "ERROR",
                    (None, true) => "SYNCED",
                    (None, false) => "STALE",
                };
                let value =
                    json!({"state": state, "sent": ack.sent, "acknowledged": ack.acknowledged, "error": ack.rejected});
                (ack.kind.short().to_owned(), value)
            })
            .collect();
        json!({
            "node": self.node,
            "peer": self.peer,
            "mode": if self.delta { "delta" } else { "sotw" },
            "generation": self.generation,
            "behind": current.saturating_sub(self.generation),
            "types": types,
        })
    }
}

/// A lock whose holder panicked still guards whole values here: each is replaced in one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Streams at once.
pub(crate) const CLIENTS_MAX: usize = 20_000;
/// Nodes whose compiled configuration is kept; further ones are compiled for each stream.
const COMPILED_NODES_MAX: usize = 20_000;
