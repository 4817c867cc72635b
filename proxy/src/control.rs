//! The control side: brings what discovery tells, and what names resolve to, into force on all workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use runtime::readiness::{Readiness, ReadyGuard};
use runtime::shutdown::Shutdown;
use std::sync::atomic::Ordering;

use crate::config::{Assembler, Config};
use crate::dns::Resolver;
use crate::listen::Listeners;
use crate::obs::counters::Counters;
use crate::worker::Workers;
use crate::xds::ads::Publish;
use crate::xds::store::Store;

/// The control side; clones share it.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

struct Shared {
    store: Arc<Mutex<Store>>,
    inner: tokio::sync::Mutex<Inner>,
    current: ArcSwap<Config>,
    open: Mutex<serde_json::Value>,
    workers: Workers,
    counters: Arc<Counters>,
    readiness: Readiness,
}

struct Inner {
    assembler: Assembler,
    listeners: Listeners,
    resolver: Resolver,
    /// Held until the first whole configuration is in force.
    first: Option<ReadyGuard>,
    /// Held while a listener's address cannot be opened.
    unopened: Option<ReadyGuard>,
}

impl Control {
    pub(crate) fn new(
        assembler: Assembler,
        listeners: Listeners,
        workers: Workers,
        counters: Arc<Counters>,
        readiness: Readiness,
    ) -> Self {
        let first = Some(readiness.block("configuration from discovery"));
        let inner = Inner { assembler, listeners, resolver: Resolver::default(), first, unopened: None };
        Self(Arc::new(Shared {
            store: Arc::default(),
            inner: tokio::sync::Mutex::new(inner),
            current: ArcSwap::default(),
            open: Mutex::default(),
            workers,
            counters,
            readiness,
        }))
    }

    /// Where discovery's resources are kept.
    pub(crate) fn store(&self) -> Arc<Mutex<Store>> {
        self.0.store.clone()
    }

    /// What is in force.
    pub(crate) fn current(&self) -> Arc<Config> {
        self.0.current.load_full()
    }

    /// The open addresses, for the admin page.
    pub(crate) fn open_addresses(&self) -> serde_json::Value {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn locked_store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the store into force; returns when every worker serves by it.
    async fn bring_into_force(&self) {
        let mut inner = self.0.inner.lock().await;
        let (config, warm) = {
            let store = self.locked_store();
            (inner.assembler.assemble(&store), store.is_warm())
        };
        self.0.workers.configure(&config).await;
        inner.listeners.follow(&config).await;
        inner.resolver.follow(&config, self);
        self.0.counters.config_generation.store(config.generation, Ordering::Relaxed);
        let open = inner
            .listeners
            .addresses()
            .map(|(name, address)| serde_json::json!({"listener": name, "address": address}));
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) = open.collect();
        self.0.current.store(config);
        if warm {
            inner.first = None;
        }
        let unopened = !inner.listeners.failures().is_empty();
        if unopened != inner.unopened.is_some() {
            inner.unopened = unopened.then(|| self.0.readiness.block("listener addresses"));
        }
    }

    /// Takes the addresses that the name of a cluster resolved to.
    pub(crate) async fn resolved(&self, cluster: &str, endpoints: Arc<routing::cluster::Endpoints>) {
        self.0.inner.lock().await.assembler.set_resolved(cluster, endpoints);
        self.bring_into_force().await;
    }

    /// Tries addresses again that could not be opened.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        while shutdown.unless(tokio::time::sleep(OPEN_AGAIN)).await.is_some() {
            if self.0.inner.lock().await.unopened.is_some() {
                self.bring_into_force().await;
            }
        }
    }

    /// Closes all listeners.
    pub(crate) async fn close(&self) {
        let mut inner = self.0.inner.lock().await;
        inner.resolver = Resolver::default();
        inner.listeners.follow(&Config::default()).await;
    }
}

impl Publish for Control {
    async fn publish(&mut self) {
        self.bring_into_force().await;
    }
}

const OPEN_AGAIN: Duration = Duration::from_secs(2);
