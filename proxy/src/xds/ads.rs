//! The ADS client: one stream to discovery, on which everything but secrets is subscribed.
//!
//! Order is make-before-break: clusters, their endpoints, listeners, their routes. A response is decoded and compiled
//! as a whole; then it is published to all workers and acknowledged, or it is refused with the reason and the last
//! good state keeps serving. While discovery is away the proxy serves what it has and tries again with jittered waits.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::backoff::Backoff;
use super::store::Store;
use super::subscription::{Kind, Request, Subscription, Update, XdsMode};
use crate::obs::counters::Counters;

/// Opens the way to discovery.
pub(crate) trait Connect: Send {
    /// Opens it; the text says what was wrong.
    fn connect(&mut self) -> impl Future<Output = Result<Channel, String>> + Send;
}

/// Where a changed store goes.
pub(crate) trait Publish: Send {
    /// Makes the store what the workers serve from; returns when they do.
    fn publish(&mut self) -> impl Future<Output = ()> + Send;
}

/// The client.
pub(crate) struct Ads<C, P> {
    connect: C,
    publish: P,
    node: Node,
    mode: XdsMode,
    store: Arc<Mutex<Store>>,
    subscriptions: [Subscription; 4],
    counters: Arc<Counters>,
}

impl<C: Connect, P: Publish> Ads<C, P> {
    pub(crate) fn new(
        connect: C,
        publish: P,
        store: Arc<Mutex<Store>>,
        node: Node,
        mode: XdsMode,
        counters: Arc<Counters>,
    ) -> Self {
        let subscriptions = ORDER.map(|kind| Subscription::new(kind, mode));
        Self { connect, publish, node, mode, store, subscriptions, counters }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes for ever.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(std::process::id().into());
        while !shutdown.is_requested() {
            if let Some(error) = shutdown.unless(self.stream(&mut backoff)).await {
                self.counters.discovery_connected.store(0, Ordering::Relaxed);
                tracing::warn!(reason = "DISCOVERY_UNAVAILABLE", %error, "no discovery stream, serving what is held");
                shutdown.unless(tokio::time::sleep(backoff.wait())).await;
            }
        }
    }

    /// One stream, to its end. Answers why it ended.
    async fn stream(&mut self, backoff: &mut Backoff) -> String {
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return error,
            Err(_) => return "connecting took too long".to_owned(),
        };
        let client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let result = match self.mode {
            XdsMode::Delta => self.delta(client, backoff).await,
            XdsMode::Sotw => self.sotw(client, backoff).await,
        };
        result.map_or_else(|status| status.to_string(), |()| "discovery ended the stream".to_owned())
    }

    async fn delta(
        &mut self,
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        backoff: &mut Backoff,
    ) -> Result<(), Status> {
        let (requests, outbound) = unbounded_channel();
        let mut sender = Sender { node: Some(self.node.clone()), requests: Requests::Delta(requests) };
        self.begin(&mut sender);
        let stream = client.delta_aggregated_resources(UnboundedReceiverStream::new(outbound)).await?.into_inner();
        self.serve(stream, sender, backoff, |response| {
            Kind::of_type_url(&response.type_url).map(|kind| (kind, Update::of_delta(response)))
        })
        .await
    }

    async fn sotw(
        &mut self,
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        backoff: &mut Backoff,
    ) -> Result<(), Status> {
        let (requests, outbound) = unbounded_channel();
        let mut sender = Sender { node: Some(self.node.clone()), requests: Requests::Sotw(requests) };
        self.begin(&mut sender);
        let stream = client.stream_aggregated_resources(UnboundedReceiverStream::new(outbound)).await?.into_inner();
        self.serve(stream, sender, backoff, |response| {
            Kind::of_type_url(&response.type_url).map(|kind| (kind, Update::of_sotw(kind, response)))
        })
        .await
    }

    /// Asks for clusters; for the rest as well when they are known from before.
    fn begin(&mut self, sender: &mut Sender) {
        let known = self.store().has_answered(Kind::Cluster);
        for subscription in &mut self.subscriptions {
            subscription.restart();
        }
        for subscription in self.subscriptions.iter_mut().take(if known { ORDER.len() } else { 1 }) {
            sender.send(subscription.begin());
        }
    }

    async fn serve<R>(
        &mut self,
        mut stream: Streaming<R>,
        mut sender: Sender,
        backoff: &mut Backoff,
        read: fn(R) -> Option<(Kind, Update)>,
    ) -> Result<(), Status> {
        self.counters.discovery_connected.store(1, Ordering::Relaxed);
        tracing::info!(mode = ?self.mode, "discovery stream open");
        loop {
            let patience = if self.store().is_warm() { PATIENCE_MAX } else { WARMING_MAX };
            match tokio::time::timeout(patience, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    backoff.reset();
                    if let Some((kind, update)) = read(response) {
                        self.take(kind, &update, &mut sender).await;
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(status)) => return Err(status),
                Err(_) => {
                    let gave_up = self.store().stop_waiting();
                    if gave_up {
                        self.publish.publish().await;
                    }
                }
            }
        }
    }

    async fn take(&mut self, kind: Kind, update: &Update, sender: &mut Sender) {
        let applied = self.store().apply(kind, update);
        let (names, refusal) = match applied {
            Ok(names) => {
                self.publish.publish().await;
                self.counters.configured(kind.short(), &update.version);
                tracing::debug!(
                    kind = kind.word(),
                    version = update.version,
                    resources = names.len(),
                    "configuration taken"
                );
                (names, None)
            }
            Err(error) => {
                tracing::warn!(reason = "CONFIG_REFUSED", kind = kind.word(), version = update.version, %error, "configuration refused");
                (Vec::new(), Some(error))
            }
        };
        self.counters.xds_answered(kind.word(), refusal.is_none());
        let wanted = ORDER.map(|kind| self.store().wanted(kind));
        for (subscription, wanted) in self.subscriptions.iter_mut().zip(wanted) {
            let of = subscription.kind();
            if of == kind {
                sender.send(Some(subscription.answer(update, &names, refusal.as_deref())));
            } else if of.is_wildcard() {
                sender.send(subscription.begin());
            }
            if !of.is_wildcard() && (subscription.is_begun() || !wanted.is_empty()) {
                sender.send(subscription.want(wanted));
            }
        }
    }
}

/// Requests on their way, the first of them with the node.
struct Sender {
    node: Option<Node>,
    requests: Requests,
}

enum Requests {
    Delta(UnboundedSender<envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest>),
    Sotw(UnboundedSender<envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest>),
}

impl Sender {
    /// A stream that has ended is noticed by the reader, so a failed send is not looked at.
    fn send(&mut self, request: Option<Request>) {
        let Some(mut request) = request else { return };
        if let Some(node) = self.node.take() {
            request = request.with_node(&node);
        }
        match (request, &self.requests) {
            (Request::Delta(request), Requests::Delta(requests)) => drop(requests.send(*request)),
            (Request::Sotw(request), Requests::Sotw(requests)) => drop(requests.send(*request)),
            _ => {}
        }
    }
}

const ORDER: [Kind; 4] = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long something named but not delivered holds back what depends on it.
const WARMING_MAX: Duration = Duration::from_secs(5);
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
