//! Incremental: each answer holds only the secrets that changed, and the names that are gone.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::Any;
use tonic::Status;

use super::secrets::{Rendered, Wish};
use super::{Dialogue, SECRET_TYPE_URL, check_names, check_type_url, new_nonce};
use crate::caller::Desk;

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Delta {
    begun: bool,
    everything: bool,
    names: BTreeSet<String>,
    nonce: String,
    /// What the client has: version by name. An empty version is a name we said is gone.
    has: BTreeMap<String, String>,
    round: u64,
    /// An SVID of it is still to be issued.
    pending: bool,
    /// The last answer was not acknowledged, or was rejected.
    unheard: bool,
}

impl Dialogue for Delta {
    type Ask = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    fn hear(&mut self, ask: DeltaDiscoveryRequest, desk: &Desk) -> Result<(), Status> {
        if let Some(error) = self.read(ask)? {
            desk.numbers.sds_rejects.inc();
            tracing::warn!(error, reason = "SDS_REJECTED", "a proxy rejected its secrets");
        }
        Ok(())
    }

    fn wish(&self) -> Option<Wish> {
        match (self.begun, self.everything) {
            (true, true) => Some(Wish::Everything),
            (true, false) if !self.names.is_empty() => Some(Wish::Named(self.names.clone())),
            _ => None,
        }
    }

    fn is_content(&self) -> bool {
        !self.pending && !self.unheard
    }

    fn answer(&mut self, rendered: Rendered) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        self.pending = rendered.pending;
        let mut answer =
            DeltaDiscoveryResponse { type_url: SECRET_TYPE_URL.into(), ..DeltaDiscoveryResponse::default() };
        let gone: Vec<String> =
            self.has.keys().filter(|name| self.everything && !rendered.secrets.contains_key(*name)).cloned().collect();
        for (name, secret) in rendered.secrets {
            let version = version_of(&secret);
            if self.has.get(&name) != Some(&version) {
                self.has.insert(name.clone(), version.clone());
                answer.resources.push(Resource { name, version, resource: Some(secret), ..Resource::default() });
            }
        }
        // A name that does not exist (yet, or any more) is told once; should it come to be, it is sent.
        for name in rendered.unknown.into_iter().chain(gone) {
            if self.has.get(&name).is_none_or(|version| !version.is_empty()) {
                self.has.insert(name.clone(), String::new());
                answer.removed_resources.push(name);
            }
        }
        if answer.resources.is_empty() && answer.removed_resources.is_empty() {
            return Ok(None);
        }
        self.round += 1;
        self.unheard = true;
        self.nonce = new_nonce();
        (answer.nonce, answer.system_version_info) = (self.nonce.clone(), self.round.to_string());
        Ok(Some(answer))
    }
}

impl Delta {
    /// Takes a request; answers the client's complaint when it rejects what we sent.
    fn read(&mut self, ask: DeltaDiscoveryRequest) -> Result<Option<String>, Status> {
        check_type_url(&ask.type_url)?;
        let longest = ask.resource_names_subscribe.iter().map(String::len).max().unwrap_or(0);
        check_names(ask.resource_names_subscribe.len().max(ask.initial_resource_versions.len()), longest)?;
        if !self.begun {
            self.has = ask.initial_resource_versions.into_iter().collect();
            self.everything = ask.resource_names_subscribe.is_empty();
            self.begun = true;
        }
        for name in ask.resource_names_subscribe {
            if name == WILDCARD {
                self.everything = true;
            } else {
                // Asked for anew means sent anew, but for what a reconnecting client says it has.
                if self.nonce_known(&ask.response_nonce) {
                    self.has.remove(&name);
                }
                self.names.insert(name);
            }
        }
        for name in ask.resource_names_unsubscribe {
            if name == WILDCARD {
                self.everything = false;
            }
            self.names.remove(&name);
            self.has.remove(&name);
        }
        check_names(self.names.len(), 0)?;
        let fresh = ask.response_nonce == self.nonce;
        if fresh && self.round > 0 {
            self.unheard = ask.error_detail.is_some();
        }
        Ok(ask.error_detail.filter(|_| fresh).map(|error| error.message.chars().take(COMPLAINT_CHARS_MAX).collect()))
    }

    /// Whether the stream is past its first request.
    fn nonce_known(&self, nonce: &str) -> bool {
        self.round > 0 || !nonce.is_empty()
    }
}

/// The version says what the content is, so it means the same on every agent and after a restart.
fn version_of(secret: &Any) -> String {
    identity::digest::hex(&identity::digest::sha256(&secret.value)[..8])
}

const WILDCARD: &str = "*";
const COMPLAINT_CHARS_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn secrets(of: &[(&str, u8)]) -> Rendered {
        let any = |value: u8| Any { type_url: SECRET_TYPE_URL.into(), value: vec![value] };
        Rendered {
            secrets: of.iter().map(|(name, value)| ((*name).to_owned(), any(*value))).collect(),
            ..Rendered::default()
        }
    }

    fn names(answer: &DeltaDiscoveryResponse) -> Vec<&str> {
        answer.resources.iter().map(|resource| resource.name.as_str()).collect()
    }

    #[test]
    fn only_what_changed_is_sent() {
        let mut stream = Delta::default();
        assert_eq!(stream.wish(), None);
        stream.read(subscribe(&["default", "ROOTCA"])).unwrap();
        let answer = stream.answer(secrets(&[("ROOTCA", 1), ("default", 1)])).unwrap().unwrap();
        assert_eq!(names(&answer), ["ROOTCA", "default"]);
        assert!(stream.answer(secrets(&[("ROOTCA", 1), ("default", 1)])).unwrap().is_none());
        let answer = stream.answer(secrets(&[("ROOTCA", 1), ("default", 2)])).unwrap().unwrap();
        assert_eq!(names(&answer), ["default"]);
    }

    #[test]
    fn a_reconnecting_client_is_sent_only_what_it_lacks() {
        let mut stream = Delta::default();
        let mut again = subscribe(&["default", "ROOTCA"]);
        let version = version_of(&Any { value: vec![1], ..Any::default() });
        again.initial_resource_versions = [("ROOTCA".to_owned(), version)].into_iter().collect();
        stream.read(again).unwrap();
        let answer = stream.answer(secrets(&[("ROOTCA", 1), ("default", 1)])).unwrap().unwrap();
        assert_eq!(names(&answer), ["default"]);
    }

    #[test]
    fn an_unknown_name_is_told_once_and_sent_when_it_comes_to_be() {
        let mut stream = Delta::default();
        stream.read(subscribe(&["x"])).unwrap();
        let unknown = || Rendered { unknown: vec!["x".into()], ..Rendered::default() };
        assert_eq!(stream.answer(unknown()).unwrap().unwrap().removed_resources, ["x"]);
        assert!(stream.answer(unknown()).unwrap().is_none());
        assert_eq!(names(&stream.answer(secrets(&[("x", 1)])).unwrap().unwrap()), ["x"]);
    }

    #[test]
    fn names_are_unsubscribed_and_asked_for_again() {
        let mut stream = Delta::default();
        stream.read(subscribe(&["default"])).unwrap();
        let nonce = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap().nonce;
        let leave = DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec!["default".into()],
            response_nonce: nonce,
            ..DeltaDiscoveryRequest::default()
        };
        stream.read(leave).unwrap();
        assert_eq!(stream.wish(), None);
        stream.read(subscribe(&["default"])).unwrap();
        assert_eq!(names(&stream.answer(secrets(&[("default", 1)])).unwrap().unwrap()), ["default"]);
    }

    #[test]
    fn a_wildcard_follows_what_the_workload_has() {
        let mut stream = Delta::default();
        stream.read(DeltaDiscoveryRequest::default()).unwrap();
        assert_eq!(stream.wish(), Some(Wish::Everything));
        stream.answer(secrets(&[("a", 1), ("b", 1)])).unwrap().unwrap();
        assert_eq!(stream.answer(secrets(&[("a", 1)])).unwrap().unwrap().removed_resources, ["b"]);
    }

    #[test]
    fn names_are_limited_over_the_whole_stream() {
        let mut stream = Delta::default();
        let many: Vec<String> = (0..super::super::NAMES_MAX).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        stream.read(subscribe(&many)).unwrap();
        assert!(stream.read(subscribe(&["one more"])).is_err());
    }
}
