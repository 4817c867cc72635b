//! Kasbah's accelerator: tells agents at once that entries or the bundle changed, and hears what they enforce.

use std::sync::Arc;

use proto::kasbah::node::v1::{
    RevocationList, RevocationsRequest, RevocationsResponse, RevokedToken, WatchRequest, WatchResponse, node_server,
};
use proto::spire::api::types::KasbahConfigured;
use tonic::{Request, Response, Status, Streaming};

use super::agent::report;
use super::{Answers, Api, Caller};
use crate::agent::Agent;
use crate::refusal::Refusal;
use crate::revocation::Current;
use crate::rotation::contacts::Configured;

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

    async fn fetch_revocations(
        &self,
        request: Request<RevocationsRequest>,
    ) -> Result<Response<RevocationsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.agent(&caller).await?;
            Ok(news(&self.certifier.revocations.current(), request.get_ref().known_generation))
        };
        self.answer("FetchRevocations", &caller, work).await
    }
}

/// What a node lacks that knows everything up to `known`. Who knows more than there is has it from a database that was
/// restored since, and gets the whole.
fn news(current: &Current, known: u64) -> RevocationsResponse {
    let generation = current.lists.number;
    let known = if known > generation { 0 } else { known };
    let lists = current.for_nodes().filter(|list| list.number > known);
    let mut issuers: Vec<String> = current.for_nodes().map(|list| list.issuer_id.clone()).collect();
    issuers.dedup();
    let token = |(hash, not_after): (&str, i64)| {
        let sha256 = identity::revocation::serial_bytes(hash)?;
        Some(RevokedToken { sha256, not_after })
    };
    RevocationsResponse {
        generation,
        whole: known == 0,
        lists: lists.map(|list| RevocationList { issuer_id: list.issuer_id.clone(), crl: list.der.clone() }).collect(),
        issuers,
        tokens: current.tokens_since(known).filter_map(token).collect(),
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
        let mut revocations = api.certifier.revocations.generation();
        let mut told = None;
        let mut hears = true;
        loop {
            // Also when nothing changed for us: whoever is banned must not hear more.
            let agent = api.agent(&caller).await?;
            let now = WatchResponse {
                entries_revision: *entries.borrow_and_update(),
                bundle_sequence: *bundle.borrow_and_update(),
                revocation_generation: *revocations.borrow_and_update(),
            };
            if told != Some(now) {
                told = Some(now);
                yield now;
            }
            let message = tokio::select! {
                changed = entries.changed() => if changed.is_ok() { continue } else { return },
                changed = bundle.changed() => if changed.is_ok() { continue } else { return },
                changed = revocations.changed() => if changed.is_ok() { continue } else { return },
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
    let WatchRequest { bundle_sequence_fetched, waiting_for, revocations_enforced, configured, .. } = &message;
    let configured =
        configured.iter().cloned().map(|KasbahConfigured { workload, versions }| Configured { workload, versions });
    api.certifier.contacts.configured(&agent.id, configured.collect());
    let revocations = (*revocations_enforced).min(api.certifier.revocations.current().lists.number);
    api.certifier.contacts.said(&agent.id, *bundle_sequence_fetched, revocations, waiting_for.clone());
    report(&api.certifier, agent, message.bundle_sequence_enforced, None).await
}
