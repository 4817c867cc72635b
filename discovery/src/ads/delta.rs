//! Incremental xDS: what one stream has asked for and holds, as a pure state machine.
//!
//! Only what is missing or changed is sent, and what is gone is named. A name that a client subscribes to again is sent
//! again, since the client may wait for it. Clusters are taken away last.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};

use super::{Ack, Heard, Nonces, Progress};
use crate::resources::{Resource, Resources, Type};

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    watched: BTreeMap<Type, Watch>,
    nonces: Nonces,
}

#[derive(Debug, Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client holds, name to version.
    held: BTreeMap<String, String>,
    progress: Progress,
}

impl Delta {
    /// Takes a request and says what to answer, if anything.
    pub(crate) fn on_request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        resources: &Resources,
    ) -> (Heard, Option<DeltaDiscoveryResponse>) {
        let Some(kind) = Type::of_url(&request.type_url) else { return (Heard::UnknownType, None) };
        let first = !self.watched.contains_key(&kind);
        let watch = self.watched.entry(kind).or_default();
        let heard = if first {
            let initial = request.initial_resource_versions.iter().take(super::NAMES_MAX);
            watch.held = initial.map(|(name, version)| (name.clone(), version.clone())).collect();
            watch.wildcard = request.resource_names_subscribe.is_empty() && kind.is_whole_set();
            Heard::Request
        } else if request.response_nonce.is_empty() {
            Heard::Request
        } else if request.response_nonce == watch.progress.nonce {
            watch.progress.hear(request.error_detail.as_ref().map(|status| status.message.as_str()))
        } else if let Some(error) = &request.error_detail {
            // Several answers may be on their way; a rejection of any of them counts.
            watch.progress.hear(Some(&error.message))
        } else {
            Heard::Stale
        };
        let asked_again = watch.subscribe(request);
        if !first && asked_again.is_empty() && request.resource_names_subscribe.is_empty() {
            return (heard, None);
        }
        let answer = self.answer(kind, resources, &asked_again, true, first);
        (heard, answer)
    }

    /// What a new generation makes necessary to send, in push order.
    pub(crate) fn on_change(&mut self, resources: &Resources) -> Vec<DeltaDiscoveryResponse> {
        let mut answers = Vec::new();
        let nothing = BTreeSet::new();
        for kind in Type::ALL {
            if self.watched.contains_key(&kind) {
                // Removals of clusters and endpoints wait until nothing names them any more.
                let with_removals = matches!(kind, Type::Listener | Type::Route);
                answers.extend(self.answer(kind, resources, &nothing, with_removals, false));
            }
        }
        for kind in [Type::Cluster, Type::Endpoints] {
            if self.watched.contains_key(&kind) {
                answers.extend(self.answer(kind, resources, &nothing, true, false));
            }
        }
        answers
    }

    /// What the client lacks; `None` when that is nothing and no answer is owed.
    fn answer(
        &mut self,
        kind: Type,
        resources: &Resources,
        asked_again: &BTreeSet<String>,
        with_removals: bool,
        owed: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watched.get_mut(&kind)?;
        let now = watch.select(kind, resources);
        let to_send: Vec<&Resource> = now
            .values()
            .filter(|r| watch.held.get(&r.name) != Some(&r.version) || asked_again.contains(&r.name))
            .copied()
            .collect();
        let mut removed: BTreeSet<String> = BTreeSet::new();
        if with_removals {
            removed.extend(watch.held.keys().filter(|name| !now.contains_key(*name)).cloned());
        }
        removed.extend(asked_again.iter().filter(|name| !now.contains_key(*name)).cloned());
        if to_send.is_empty() && removed.is_empty() && !owed {
            return None;
        }
        let wire = to_send.iter().map(|resource| to_wire(resource)).collect();
        let held: Vec<(String, String)> = to_send.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        watch.held.extend(held);
        watch.held.retain(|name, _| !removed.contains(name));
        let nonce = self.nonces.next();
        let version = resources.version(kind);
        watch.progress.send(&nonce, &version);
        Some(DeltaDiscoveryResponse {
            system_version_info: version,
            resources: wire,
            type_url: kind.url().to_owned(),
            removed_resources: removed.into_iter().collect(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }

    /// How far the client is, per type.
    pub(crate) fn acks(&self) -> Vec<Ack> {
        self.watched.iter().map(|(kind, watch)| watch.progress.ack(*kind)).collect()
    }
}

impl Watch {
    /// Takes subscriptions in and out; the names that were asked for explicitly are returned.
    fn subscribe(&mut self, request: &DeltaDiscoveryRequest) -> BTreeSet<String> {
        let mut asked = BTreeSet::new();
        for name in &request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
            } else if self.names.len() < super::NAMES_MAX {
                self.names.insert(name.clone());
                asked.insert(name.clone());
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            }
            self.names.remove(name);
            if !self.wildcard {
                self.held.remove(name);
            }
        }
        asked
    }

    fn select<'a>(&self, kind: Type, resources: &'a Resources) -> BTreeMap<String, &'a Resource> {
        resources
            .of(kind)
            .filter(|resource| self.wildcard || self.names.contains(&resource.name))
            .map(|resource| (resource.name.clone(), resource.as_ref()))
            .collect()
    }
}

fn to_wire(resource: &Resource) -> WireResource {
    WireResource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.body.clone()),
        ..WireResource::default()
    }
}
