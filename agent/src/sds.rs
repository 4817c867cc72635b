//! Envoy's secret discovery service: the same identities as the Workload API, as TLS secrets by name.
//!
//! | name | is |
//! |---|---|
//! | `default` | certificate and key of the workload's first identity |
//! | a SPIFFE ID | certificate and key of that identity |
//! | `ROOTCA` | the own trust domain's roots, as plain `trusted_ca`; once something is revoked, the lists as `crl` |
//! | `spiffe://TD` | one trust domain's roots, for Envoy's SPIFFE validator |
//! | `ALL` | all trust domains' roots, for Envoy's SPIFFE validator |
//!
//! The validator's roots have the lists behind them, in the same PEM text. Envoy wants a list of every authority of a path
//! as soon as there is one, so there are all or none.
//!
//! A request without names means everything the workload may have.

mod delta;
mod secrets;
mod sotw;

use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use runtime::refusal;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::caller::{Caller, Desk, Refusal, StreamGuard, name_of};
use crate::enforced::{Level, Standing, Versions};
use crate::metrics::Api;
use secrets::{Rendered, Wish};

/// The service.
pub(crate) struct Sds {
    desk: Arc<Desk>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One side of the protocol: what a request means, and whether the secrets of now are an answer.
trait Dialogue: Default + Send + 'static {
    type Ask: Send + 'static;
    type Answer: Send + 'static;

    /// Takes a request; an error ends the stream.
    fn hear(&mut self, ask: Self::Ask, desk: &Desk) -> Result<(), Status>;
    /// What the client wants; `None` while it wants nothing.
    fn wish(&self) -> Option<Wish>;
    /// Whether the client has all that it wants, as of the last answer that was due, and has acknowledged it.
    fn is_content(&self) -> bool;
    /// Whether the client says that its connections rest on a root which its SVID has left.
    fn is_resting(&self) -> bool {
        false
    }
    /// The configuration that is in force in the client, as far as it says so.
    fn configured(&self) -> Option<&Versions> {
        None
    }
    /// The answer that is due given the secrets of now.
    fn answer(&mut self, rendered: Rendered) -> Result<Option<Self::Answer>, Status>;
}

impl Sds {
    pub(crate) fn server(desk: Arc<Desk>) -> SecretDiscoveryServiceServer<Self> {
        SecretDiscoveryServiceServer::new(Self { desk }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn open<D: Dialogue>(&self, request: Request<Streaming<D::Ask>>) -> Result<Response<Answers<D::Answer>>, Status> {
        let caller = self.desk.caller(request.extensions())?;
        let guard = self.desk.open_stream(&caller, Api::sds)?;
        Ok(Response::new(talk::<D>(self.desk.clone(), caller, guard, request.into_inner())))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.open::<sotw::Sotw>(request)
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.open::<delta::Delta>(request)
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let mut caller = self.desk.caller(request.extensions())?;
        let mut dialogue = sotw::Sotw::default();
        dialogue.hear(request.into_inner(), &self.desk)?;
        let mut changes = self.desk.state.subscribe();
        let known = Box::pin(self.desk.await_entries(&mut caller, &mut changes, true)).await;
        let (snapshot, entries) = known.map_err(|refused| self.desk.refuse(&refused, Some(&caller)))?;
        let wish = dialogue.wish().unwrap_or(Wish::Everything);
        let answer = dialogue.answer(secrets::render(&self.desk, &snapshot, &entries, &wish))?;
        answer.map(Response::new).ok_or_else(|| Status::unavailable("the secrets have not been issued yet"))
    }
}

/// What wakes a stream.
enum Heard<T> {
    Ask(Result<T, Status>),
    Change,
    End,
    Shutdown,
}

/// Hears requests and sees changes, and answers whatever is due. Ends when the client does, when the workload loses its
/// identity, or when it asks for what it may not have.
fn talk<D: Dialogue>(
    desk: Arc<Desk>,
    mut caller: Caller,
    guard: StreamGuard,
    mut asks: Streaming<D::Ask>,
) -> Answers<D::Answer> {
    Box::pin(async_stream::try_stream! {
        let (mut dialogue, mut changes) = (D::default(), desk.state.subscribe());
        let mut free = None;
        changes.mark_changed();
        loop {
            let heard = tokio::select! {
                () = desk.shutdown.requested() => Heard::Shutdown,
                ask = asks.next() => ask.map_or(Heard::End, Heard::Ask),
                _ = changes.changed() => Heard::Change,
            };
            match heard {
                Heard::Shutdown => Err(desk.refuse(&Refusal::ShuttingDown, Some(&caller)))?,
                Heard::End => return,
                Heard::Ask(ask) => dialogue.hear(ask?, &desk)?,
                Heard::Change => (),
            }
            let snapshot = changes.borrow_and_update().clone();
            let Some(wish) = dialogue.wish() else {
                guard.presence.set(Standing::Idle);
                continue;
            };
            guard.presence.expect();
            if !snapshot.is_known() {
                continue;
            }
            let entries = match desk.entries(&mut caller, &snapshot).await {
                Ok(entries) if entries.is_empty() => Err(desk.refuse(&Refusal::NoIdentity, Some(&caller)))?,
                Ok(entries) => entries,
                Err(refused) => Err(desk.refuse(&refused, Some(&caller)))?,
            };
            let rendered = secrets::render(&desk, &snapshot, &entries, &wish);
            let settled = snapshot.level();
            let waits = dialogue.is_resting() && snapshot.has_tainted_root(desk.state.trust_domain());
            guard.presence.name(name_of(&entries));
            if let Some(versions) = dialogue.configured() {
                guard.presence.configured(versions);
            }
            drop(snapshot);
            if let Some(answer) = dialogue.answer(rendered)? {
                yield answer;
            } else if dialogue.is_content() {
                // What it has acknowledged is what there is now.
                guard.presence.set(standing(settled, waits, &mut free));
            }
        }
    })
}

/// What a client that has acknowledged everything enforces. One whose connections rest on the tainted root stays with the
/// bundle of before, so that the root is not dropped; lists count at once. `free` is the newest bundle without such connections.
fn standing(settled: Level, waits: bool, free: &mut Option<u64>) -> Standing {
    match (waits, *free) {
        (false, _) => {
            *free = Some(settled.bundle);
            Standing::Enforces(settled)
        }
        (true, Some(bundle)) => Standing::Drains(Level { bundle, ..settled }),
        (true, None) => Standing::Unknown,
    }
}

fn check_type_url(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET_TYPE_URL {
        return Ok(());
    }
    Err(refusal::status(Code::InvalidArgument, "SDS_TYPE_UNKNOWN", format!("only `{SECRET_TYPE_URL}` is served here")))
}

fn unknown(names: &[String]) -> Status {
    let message = format!("this workload has no secret named `{}`", names.join("`, `"));
    refusal::status(Code::InvalidArgument, "SDS_SECRET_UNKNOWN", message)
}

fn check_names(count: usize, longest: usize) -> Result<(), Status> {
    if count <= NAMES_MAX && longest <= NAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!("at most {NAMES_MAX} secrets with names of at most {NAME_BYTES_MAX} bytes may be subscribed");
    Err(refusal::status(Code::InvalidArgument, "SDS_TOO_MANY_NAMES", message))
}

/// A nonce nobody guesses, so that a late answer is never taken for a fresh one.
fn new_nonce() -> String {
    identity::digest::hex(&identity::digest::random::<8>())
}

/// The resource type.
pub(crate) const SECRET_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Secrets that one stream may name.
pub(crate) const NAMES_MAX: usize = 128;
/// A SPIFFE ID is at most this long.
const NAME_BYTES_MAX: usize = 2048;
const REQUEST_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests;
