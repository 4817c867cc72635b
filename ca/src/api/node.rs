//! Kasbah's accelerator: tells agents at once that entries or the bundle changed, and hears what they enforce.

use std::sync::Arc;

use proto::kasbah::node::v1::{WatchRequest, WatchResponse, node_server};
use tonic::{Request, Response, Status, Streaming};

use super::agent::report;
use super::{Answers, Api, Caller};
use crate::agent::Agent;
use crate::refusal::Refusal;

#[tonic::async_trait]
impl node_server::Node for Api {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.caller(request.extensions());
        let messages = request.into_inner();
        let work = async {
            self.agent(&caller).await?;
            Ok(Box::pin(watch(self.clone(), caller.clone(), messages)) as Self::WatchStream)
        };
        self.answer("Watch", &caller, work).await
    }
}

/// Answers with the present state, then with each change. Changes that come together arrive as one.
fn watch(
    api: Api,
    caller: Caller,
    mut messages: Streaming<WatchRequest>,
) -> impl futures_util::Stream<Item = Result<WatchResponse, Status>> {
    async_stream::try_stream! {
        let mut entries = api.certifier.store.entries_revision();
        let mut evictions = api.certifier.store.evictions();
        let mut bundle = api.certifier.authorities.bundle_sequence();
        let mut told = None;
        let mut hears = true;
        loop {
            // Also when nothing changed for us: whoever is banned must not hear more.
            let agent = api.agent(&caller).await?;
            let now = WatchResponse {
                entries_revision: *entries.borrow_and_update(),
                bundle_sequence: *bundle.borrow_and_update(),
            };
            if told != Some(now) {
                told = Some(now);
                yield now;
            }
            let message = tokio::select! {
                changed = entries.changed() => if changed.is_ok() { continue } else { return },
                changed = bundle.changed() => if changed.is_ok() { continue } else { return },
                changed = evictions.changed() => if changed.is_ok() { continue } else { return },
                message = messages.message(), if hears => message,
                () = api.certifier.shutdown.requested() => return,
            };
            match message? {
                Some(message) => hear(&api, &agent, message).await?,
                // The agent has no more to say, but may still listen.
                None => hears = false,
            }
        }
    }
}

async fn hear(api: &Api, agent: &Arc<Agent>, message: WatchRequest) -> Result<(), Refusal> {
    tracing::debug!(
        agent = %agent.id,
        entries_revision = message.entries_revision,
        bundle_sequence = message.bundle_sequence_enforced,
        "agent reported"
    );
    let WatchRequest { bundle_sequence_fetched, waiting_for, .. } = &message;
    api.certifier.contacts.said(&agent.id, *bundle_sequence_fetched, waiting_for.clone());
    report(&api.certifier, agent, message.bundle_sequence_enforced, None).await
}
