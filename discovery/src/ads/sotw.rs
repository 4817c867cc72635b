//! State-of-the-world xDS: what one stream has asked for and been given, as a pure state machine.
//!
//! Rules (xDS protocol, "Resource updates"): a request with the last nonce acknowledges, one with `error_detail` rejects,
//! an older nonce is ignored; CDS and LDS answers hold the whole set, EDS and RDS answers may hold a part. A cluster is
//! taken away only after the routes that named it were pushed.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::{Ack, Heard, Nonces, Progress};
use crate::resources::{Resource, Resources, Type};

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Sotw {
    watched: BTreeMap<Type, Watch>,
    nonces: Nonces,
}

#[derive(Debug, Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client holds, name to version, as sent.
    sent: BTreeMap<String, String>,
    progress: Progress,
}

impl Sotw {
    /// Takes a request and says what to answer, if anything.
    pub(crate) fn on_request(
        &mut self,
        request: &DiscoveryRequest,
        resources: &Resources,
    ) -> (Heard, Option<DiscoveryResponse>) {
        let Some(kind) = Type::of_url(&request.type_url) else { return (Heard::UnknownType, None) };
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        let Some(watch) = self.watched.get_mut(&kind) else { return self.first(kind, names, resources) };
        if !request.response_nonce.is_empty() && request.response_nonce != watch.progress.nonce {
            return (Heard::Stale, None);
        }
        if request.response_nonce.is_empty() && !watch.progress.nonce.is_empty() {
            // A client that starts over on the same stream.
            return self.first(kind, names, resources);
        }
        let heard = watch.progress.hear(request.error_detail.as_ref().map(|status| status.message.as_str()));
        let wanted = wanted(kind, &names, watch.wildcard);
        if wanted == (watch.wildcard, watch.names.clone()) {
            return (heard, None);
        }
        let added: BTreeSet<String> = wanted.1.difference(&watch.names).cloned().collect();
        (watch.wildcard, watch.names) = wanted;
        watch.sent.retain(|name, _| watch.wildcard || watch.names.contains(name));
        if !watch.wildcard && watch.names.is_empty() {
            self.watched.remove(&kind);
            return (heard, None);
        }
        if added.is_empty() && !watch.wildcard {
            return (heard, None);
        }
        let partial = (!kind.is_whole_set()).then_some(&added);
        let answer = self.answer(kind, resources, partial);
        (heard, Some(answer))
    }

    fn first(
        &mut self,
        kind: Type,
        names: BTreeSet<String>,
        resources: &Resources,
    ) -> (Heard, Option<DiscoveryResponse>) {
        let (wildcard, names) = wanted(kind, &names, false);
        if !wildcard && names.is_empty() {
            return (Heard::Request, None);
        }
        self.watched.insert(kind, Watch { wildcard, names, ..Watch::default() });
        (Heard::Request, Some(self.answer(kind, resources, None)))
    }

    /// What a new generation makes necessary to send, in push order.
    pub(crate) fn on_change(&mut self, resources: &Resources) -> Vec<DiscoveryResponse> {
        let mut answers = Vec::new();
        let mut clusters_pushed = false;
        let mut clusters_to_drop = false;
        for kind in Type::ALL {
            let Some(watch) = self.watched.get(&kind) else { continue };
            let now = watch.select(kind, resources);
            let gone = watch.sent.keys().any(|name| !now.contains_key(name));
            let changed: BTreeSet<String> = now
                .iter()
                .filter(|(name, r)| watch.sent.get(*name) != Some(&r.version))
                .map(|(n, _)| n.clone())
                .collect();
            // Envoy holds a changed cluster back until it hears of its endpoints, changed or not.
            let forced = kind == Type::Endpoints && clusters_pushed;
            match kind {
                Type::Cluster => {
                    clusters_pushed = !changed.is_empty();
                    clusters_to_drop = gone;
                    if changed.is_empty() {
                        continue;
                    }
                    // Clusters on their way out stay in this answer; the one at the end leaves them out.
                    let answer = if gone { self.union(resources) } else { self.answer(kind, resources, None) };
                    answers.push(answer);
                }
                Type::Endpoints if forced && !now.is_empty() => answers.push(self.answer(kind, resources, None)),
                _ if kind.is_whole_set() && (gone || !changed.is_empty()) => {
                    answers.push(self.answer(kind, resources, None));
                }
                _ if !changed.is_empty() => answers.push(self.answer(kind, resources, Some(&changed))),
                _ => self.forget_gone(kind, resources),
            }
        }
        if clusters_to_drop {
            answers.push(self.answer(Type::Cluster, resources, None));
        }
        answers
    }

    /// Clusters of the new set together with those the client still holds: nothing is taken away.
    fn union(&mut self, resources: &Resources) -> DiscoveryResponse {
        let kept = self.watched.get(&Type::Cluster).map(|watch| watch.sent.clone()).unwrap_or_default();
        let mut answer = self.answer(Type::Cluster, resources, None);
        if let Some(watch) = self.watched.get_mut(&Type::Cluster) {
            for (name, version) in kept {
                if let std::collections::btree_map::Entry::Vacant(entry) = watch.sent.entry(name) {
                    entry.insert(version);
                }
            }
            answer.resources.extend(watch.progress.retired.values().cloned());
        }
        answer
    }

    fn forget_gone(&mut self, kind: Type, resources: &Resources) {
        if let Some(watch) = self.watched.get_mut(&kind) {
            let now: BTreeSet<String> = watch.select(kind, resources).into_keys().collect();
            watch.sent.retain(|name, _| now.contains(name));
        }
    }

    fn answer(&mut self, kind: Type, resources: &Resources, only: Option<&BTreeSet<String>>) -> DiscoveryResponse {
        let nonce = self.nonces.next();
        let watch = self.watched.entry(kind).or_default();
        let mut selected = watch.select(kind, resources);
        watch.sent = selected.iter().map(|(name, r)| (name.clone(), r.version.clone())).collect();
        if let Some(only) = only {
            selected.retain(|name, _| only.contains(name));
        }
        let bodies: BTreeMap<String, _> = selected.iter().map(|(name, r)| (name.clone(), r.body.clone())).collect();
        if kind == Type::Cluster {
            // Kept for one more push, see `union`.
            let held = std::mem::replace(&mut watch.progress.held, bodies.clone());
            watch.progress.retired = held.into_iter().filter(|(name, _)| !bodies.contains_key(name)).collect();
        }
        let version = resources.version(kind);
        watch.progress.send(&nonce, &version);
        DiscoveryResponse {
            version_info: version,
            resources: bodies.into_values().collect(),
            type_url: kind.url().to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        }
    }

    /// How far the client is, per type.
    pub(crate) fn acks(&self) -> Vec<Ack> {
        self.watched.iter().map(|(kind, watch)| watch.progress.ack(*kind)).collect()
    }
}

impl Watch {
    fn select<'a>(&self, kind: Type, resources: &'a Resources) -> BTreeMap<String, &'a Resource> {
        resources
            .of(kind)
            .filter(|resource| self.wildcard || self.names.contains(&resource.name))
            .map(|resource| (resource.name.clone(), resource.as_ref()))
            .collect()
    }
}

/// Wildcard and names that a request asks for. An empty list is the wildcard for CDS and LDS, and nothing for others.
fn wanted(kind: Type, names: &BTreeSet<String>, was_wildcard: bool) -> (bool, BTreeSet<String>) {
    let star = names.contains("*");
    let names: BTreeSet<String> = names.iter().filter(|name| *name != "*").take(super::NAMES_MAX).cloned().collect();
    let wildcard = star || (names.is_empty() && kind.is_whole_set()) || (was_wildcard && names.is_empty());
    (wildcard, names)
}
