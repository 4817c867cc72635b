//! The gRPC service: reads requests, asks the state machine, writes answers.

use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::Stream;
use identity::VerifiedPeer;
use runtime::refusal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::delta::Delta;
use super::hub::{ClientGuard, Hub};
use super::sotw::Sotw;
use super::{Ack, Heard};
use crate::node::NodeFacts;
use crate::resources::Resources;

/// ADS on one listener.
#[derive(Clone)]
pub(crate) struct AdsServer {
    hub: Hub,
    /// Whether the client's certificate must name the node's namespace and service account.
    peers_checked: bool,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl AdsServer {
    pub(crate) fn new(hub: Hub, peers_checked: bool) -> Self {
        Self { hub, peers_checked }
    }

    /// The state machine's side of a stream, for either variant.
    fn serve<M: Machine>(
        &self,
        requests: Streaming<M::Request>,
        peer: Option<VerifiedPeer>,
    ) -> Response<Answers<M::Response>> {
        let (sender, receiver) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let stream = StreamTask::<M> { server: self.clone(), peer, machine: M::default(), sender };
        // The task ends with its stream: when the client goes, `requests` ends and the sender closes.
        tokio::spawn(stream.run(requests));
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }

    fn admit(&self, node: Option<&Node>, peer: Option<&VerifiedPeer>) -> Result<NodeFacts, Status> {
        let missing =
            || refusal::status(Code::InvalidArgument, "XDS_NODE_MISSING", "the first request must carry `node.id`");
        let facts = NodeFacts::of(node.ok_or_else(missing)?)
            .map_err(|error| refusal::status(Code::InvalidArgument, "XDS_NODE_INVALID", error.to_string()))?;
        if !self.peers_checked {
            return Ok(facts);
        }
        let Some(peer) = peer else {
            return Err(refusal::status(
                Code::Unauthenticated,
                "TLS_PEER_CERT_MISSING",
                "a client certificate is needed",
            ));
        };
        if peer.spiffe_id().path() == facts.spiffe_path() {
            return Ok(facts);
        }
        let text = format!("{} may not act as node {} of {}", peer.spiffe_id(), facts.id, facts.spiffe_path());
        tracing::warn!(peer = %peer.spiffe_id(), node = facts.id, reason = "XDS_NODE_NOT_ALLOWED", "an xDS client was refused");
        Err(refusal::status(Code::PermissionDenied, "XDS_NODE_NOT_ALLOWED", text))
    }
}

/// What both variants of the protocol have in common.
trait Machine: Default + Send + Sync + 'static {
    type Request: Send + Sync + 'static;
    type Response: Send + 'static;
    fn is_delta() -> bool;
    fn node(request: &Self::Request) -> Option<&Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn url_of(response: &Self::Response) -> &str;
    fn request(&mut self, request: &Self::Request, resources: &Resources) -> (Heard, Option<Self::Response>);
    fn change(&mut self, resources: &Resources) -> Vec<Self::Response>;
    fn acks(&self) -> Vec<Ack>;
}

macro_rules! machine {
    ($machine:ty, $request:ty, $response:ty, $delta:literal) => {
        impl Machine for $machine {
            type Request = $request;
            type Response = $response;
            fn is_delta() -> bool {
                $delta
            }
            fn node(request: &Self::Request) -> Option<&Node> {
                request.node.as_ref()
            }
            fn type_url(request: &Self::Request) -> &str {
                &request.type_url
            }
            fn url_of(response: &Self::Response) -> &str {
                &response.type_url
            }
            fn request(&mut self, request: &Self::Request, resources: &Resources) -> (Heard, Option<Self::Response>) {
                self.on_request(request, resources)
            }
            fn change(&mut self, resources: &Resources) -> Vec<Self::Response> {
                self.on_change(resources)
            }
            fn acks(&self) -> Vec<Ack> {
                Self::acks(self)
            }
        }
    };
}
machine!(Sotw, DiscoveryRequest, DiscoveryResponse, false);
machine!(Delta, DeltaDiscoveryRequest, DeltaDiscoveryResponse, true);

struct StreamTask<M: Machine> {
    server: AdsServer,
    peer: Option<VerifiedPeer>,
    machine: M,
    sender: mpsc::Sender<Result<M::Response, Status>>,
}

impl<M: Machine> StreamTask<M> {
    async fn run(mut self, mut requests: Streaming<M::Request>) {
        let Ok(Some(first)) = requests.message().await else { return };
        let (node, guard) = match self.begin(&first) {
            Ok(begun) => begun,
            Err(status) => {
                let _ = self.sender.send(Err(status)).await;
                return;
            }
        };
        let mut generations = self.server.hub.subscribe();
        let mut generation = Arc::clone(&generations.borrow_and_update());
        let mut resources = generation.resources(&node);
        let mut request = Some(first);
        loop {
            if let Some(request) = request.take() {
                let (heard, answer) = self.machine.request(&request, &resources);
                guard.heard(&node, M::type_url(&request), &heard, self.machine.acks());
                if self.send(answer, &guard, generation.number).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(next)) => request = Some(next),
                    Ok(None) | Err(_) => return,
                },
                changed = generations.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    generation = Arc::clone(&generations.borrow_and_update());
                    resources = generation.resources(&node);
                    let answers = self.machine.change(&resources);
                    if self.send(answers, &guard, generation.number).await.is_err() {
                        return;
                    }
                }
                () = self.sender.closed() => return,
            }
        }
    }

    fn begin(&self, first: &M::Request) -> Result<(NodeFacts, ClientGuard), Status> {
        let node = self.server.admit(M::node(first), self.peer.as_ref())?;
        let peer = self.peer.as_ref().map(|peer| peer.spiffe_id().to_string());
        let guard = self.server.hub.join(&node, peer, M::is_delta()).ok_or_else(|| {
            refusal::status(Code::ResourceExhausted, "XDS_CLIENTS_MAX", "too many xDS clients are connected")
        })?;
        tracing::info!(node = node.id, delta = M::is_delta(), "an xDS client connected");
        Ok((node, guard))
    }

    async fn send(
        &self,
        answers: impl IntoIterator<Item = M::Response>,
        guard: &ClientGuard,
        generation: u64,
    ) -> Result<(), ()> {
        for answer in answers {
            guard.sent(M::url_of(&answer), generation);
            self.sender.send(Ok(answer)).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peer = runtime::mtls::peer_of(&request).cloned();
        Ok(self.serve::<Sotw>(request.into_inner(), peer))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = runtime::mtls::peer_of(&request).cloned();
        Ok(self.serve::<Delta>(request.into_inner(), peer))
    }
}

/// Answers that may wait for a slow client before its stream pauses.
const ANSWERS_QUEUED_MAX: usize = 8;
