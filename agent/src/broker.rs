//! Identities for programs that act on behalf of other workloads of this node, such as a node's proxy: the SPIFFE Broker API
//! over mutual TLS, and SPIRE's Delegated Identity API on a local socket.
//!
//! Both answer only those whom the settings name, prove the workload anew for each of its entries, and never hand out an
//! identity that may administer the CA or sign.

mod api;
mod delegated;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use identity::SpiffeId;
use identity::tls::PeerRule;
use serde::{Deserialize, Serialize};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tonic::service::Routes;

use crate::caller::{Caller, Desk, FIRST_WAIT_MAX};
use crate::entry::Entry;
use crate::metrics::Api;
use crate::state::Snapshot;
use crate::workload_api::{self, Render};

/// Who may act for others, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    /// Unix socket of the SPIFFE Broker API; callers prove themselves by X.509-SVIDs.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Who may call it, by SPIFFE ID.
    #[serde(default)]
    pub brokers: Vec<Broker>,
    /// Unix socket of the Delegated Identity API; callers are attested as workloads.
    #[serde(default)]
    pub delegated_socket: Option<PathBuf>,
    /// Who may call that, by SPIFFE ID.
    #[serde(default)]
    pub delegates: Vec<String>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Its SPIFFE ID.
    pub id: String,
    /// How it may name workloads.
    pub references: Vec<ReferenceKind>,
}

/// How a workload is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceKind {
    /// By process number.
    Pid,
    /// As a pod of this node; needs `kubelet`.
    Kubernetes,
}

impl BrokerSettings {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.socket.is_some() == self.brokers.is_empty() {
            return Some("socket and brokers go together".into());
        }
        if self.delegated_socket.is_some() == self.delegates.is_empty() {
            return Some("delegated_socket and delegates go together".into());
        }
        if self.brokers.iter().any(|broker| broker.references.is_empty()) {
            return Some("brokers: each needs references, such as [pid]".into());
        }
        let mut ids = self.brokers.iter().map(|broker| &broker.id).chain(&self.delegates);
        ids.find_map(|id| SpiffeId::parse(id).err().map(|error| format!("`{id}`: {error}")))
    }

    /// Whom the handshake lets in.
    pub(crate) fn peers(&self) -> PeerRule {
        PeerRule::AnyOf(self.brokers.iter().filter_map(|broker| SpiffeId::parse(&broker.id).ok()).collect())
    }
}

/// The Broker API as a router.
pub(crate) fn api(desk: &Arc<Desk>, settings: &BrokerSettings) -> Router {
    Routes::new(api::Service::server(desk.clone(), settings.brokers.clone())).prepare().into_axum_router()
}

/// The Delegated Identity API as a router.
pub(crate) fn delegated(desk: &Arc<Desk>, settings: &BrokerSettings) -> Router {
    Routes::new(delegated::Service::server(desk.clone(), &settings.delegates)).prepare().into_axum_router()
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The workload's state, now and at each change, until it ends.
fn subscribe<M: prost::Message + 'static>(
    desk: &Arc<Desk>,
    caller: Caller,
    with_svid: bool,
    render: Render<M>,
    translate: fn(Status) -> Status,
) -> Result<Answers<M>, Status> {
    let guard = desk.open_stream(&caller, Api::broker).map_err(translate)?;
    let answers = workload_api::answers(desk.clone(), caller, guard, with_svid, render);
    Ok(Box::pin(answers.map(move |answer| answer.map_err(translate))))
}

/// The workload's entries as of now.
async fn entries(desk: &Desk, caller: &mut Caller) -> Result<(Arc<Snapshot>, Vec<Arc<Entry>>), Status> {
    let mut changes = desk.state.subscribe();
    let known = tokio::time::timeout(FIRST_WAIT_MAX, desk.await_entries(caller, &mut changes, false)).await;
    let known = known.map_err(|_| Status::unavailable("the CA has not been reached yet"))?;
    known.map_err(|refused| desk.refuse(&refused, Some(caller)))
}

#[cfg(test)]
mod tests;
