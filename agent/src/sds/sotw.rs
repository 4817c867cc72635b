//! State of the world: each answer holds all secrets that the stream names.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::{Any, value};
use runtime::node_metadata::{CONFIGURED, RESTS_ON_LEFT_ROOT};
use tonic::Status;

use super::secrets::{Rendered, Wish};
use super::{Dialogue, SECRET_TYPE_URL, check_names, check_type_url, new_nonce, unknown};
use crate::caller::Desk;
use crate::enforced::Versions;

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Sotw {
    wish: Option<Wish>,
    nonce: String,
    version: u64,
    sent: BTreeMap<String, Any>,
    /// A request wants an answer even when nothing has changed.
    due: bool,
    /// An SVID of it is still to be issued.
    pending: bool,
    /// The last answer was not acknowledged, or was rejected.
    unheard: bool,
    /// Its connections rest on a root that its SVID has left.
    resting: bool,
    /// The configuration that is in force in it.
    configured: Versions,
}

impl Dialogue for Sotw {
    type Ask = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    fn hear(&mut self, ask: DiscoveryRequest, desk: &Desk) -> Result<(), Status> {
        let rejected = self.read(&ask)?;
        if let Some(error) = rejected {
            desk.numbers.sds_rejects.inc();
            tracing::warn!(error, version = ask.version_info, reason = "SDS_REJECTED", "a proxy rejected its secrets");
        }
        Ok(())
    }

    fn wish(&self) -> Option<Wish> {
        self.wish.clone()
    }

    fn is_content(&self) -> bool {
        !self.pending && !self.unheard && !self.due
    }

    fn is_resting(&self) -> bool {
        self.resting
    }

    fn configured(&self) -> Option<&Versions> {
        Some(&self.configured)
    }

    fn answer(&mut self, rendered: Rendered) -> Result<Option<DiscoveryResponse>, Status> {
        if !rendered.unknown.is_empty() {
            return Err(unknown(&rendered.unknown));
        }
        self.pending = rendered.pending;
        if rendered.pending || (!self.due && rendered.secrets == self.sent) {
            return Ok(None);
        }
        (self.due, self.unheard) = (false, true);
        self.version += 1;
        self.nonce = new_nonce();
        self.sent = rendered.secrets;
        Ok(Some(DiscoveryResponse {
            version_info: self.version.to_string(),
            resources: self.sent.values().cloned().collect(),
            type_url: SECRET_TYPE_URL.into(),
            nonce: self.nonce.clone(),
            ..DiscoveryResponse::default()
        }))
    }
}

impl Sotw {
    /// Takes a request; answers the client's complaint when it rejects what we sent.
    fn read(&mut self, ask: &DiscoveryRequest) -> Result<Option<String>, Status> {
        check_type_url(&ask.type_url)?;
        if !ask.response_nonce.is_empty() && ask.response_nonce != self.nonce {
            // It speaks of an answer that a newer one has overtaken; its verdict on that one will follow.
            return Ok(None);
        }
        if let Some(node) = &ask.node {
            let said = |name| node.metadata.as_ref()?.fields.get(name)?.kind.as_ref();
            self.resting = said(RESTS_ON_LEFT_ROOT) == Some(&value::Kind::BoolValue(true));
            self.configured = said(CONFIGURED).map(versions_of).unwrap_or_default();
        }
        let longest = ask.resource_names.iter().map(String::len).max().unwrap_or(0);
        check_names(ask.resource_names.len(), longest)?;
        let names: BTreeSet<String> = ask.resource_names.iter().cloned().collect();
        let wish = match (&self.wish, names.is_empty()) {
            (None | Some(Wish::Everything), true) => Some(Wish::Everything),
            (Some(Wish::Named(_)), true) => None,
            (_, false) => Some(Wish::Named(names)),
        };
        let first = ask.response_nonce.is_empty();
        if !first {
            self.unheard = ask.error_detail.is_some();
        }
        if first || wish != self.wish {
            self.due = wish.is_some();
            self.wish = wish;
        }
        Ok(ask.error_detail.as_ref().map(|error| error.message.chars().take(COMPLAINT_CHARS_MAX).collect()))
    }
}

/// The versions that a client says are in force, cut to size.
fn versions_of(said: &value::Kind) -> Versions {
    let value::Kind::StructValue(said) = said else { return Versions::new() };
    let versions = said.fields.iter().filter_map(|(kind, version)| match &version.kind {
        Some(value::Kind::StringValue(version)) => Some((kind, version)),
        _ => None,
    });
    let short = |text: &String| text.chars().take(VERSION_CHARS_MAX).collect();
    versions.take(KINDS_MAX).map(|(kind, version)| (short(kind), short(version))).collect()
}

/// Kinds of resources whose versions are heard.
const KINDS_MAX: usize = 8;
const VERSION_CHARS_MAX: usize = 64;
const COMPLAINT_CHARS_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::rpc;

    use super::*;

    fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
        let resource_names = names.iter().map(ToString::to_string).collect();
        DiscoveryRequest { resource_names, response_nonce: nonce.into(), ..DiscoveryRequest::default() }
    }

    fn secrets(of: &[(&str, u8)]) -> Rendered {
        let any = |value: u8| Any { type_url: SECRET_TYPE_URL.into(), value: vec![value] };
        Rendered {
            secrets: of.iter().map(|(name, value)| ((*name).to_owned(), any(*value))).collect(),
            ..Rendered::default()
        }
    }

    fn named(names: &[&str]) -> Option<Wish> {
        Some(Wish::Named(names.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn the_first_request_is_answered_and_its_ack_is_not() {
        let mut stream = Sotw::default();
        stream.read(&ask(&["default"], "")).unwrap();
        let answer = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        assert_eq!((answer.version_info.as_str(), answer.resources.len()), ("1", 1));
        assert!(!stream.is_content(), "not acknowledged");
        assert_eq!(stream.read(&ask(&["default"], &answer.nonce)).unwrap(), None);
        assert!(stream.answer(secrets(&[("default", 1)])).unwrap().is_none());
        assert!(stream.is_content());
    }

    #[test]
    fn a_rotation_is_pushed_with_the_next_version() {
        let mut stream = Sotw::default();
        stream.read(&ask(&["default"], "")).unwrap();
        let first = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        let second = stream.answer(secrets(&[("default", 2)])).unwrap().unwrap();
        assert_eq!(second.version_info, "2");
        assert_ne!(first.nonce, second.nonce);
    }

    #[test]
    fn a_stale_nonce_is_ignored_and_a_rejection_reported_without_an_answer() {
        let mut stream = Sotw::default();
        stream.read(&ask(&["default"], "")).unwrap();
        let answer = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        stream.read(&ask(&["ROOTCA"], "stale")).unwrap();
        assert_eq!(stream.wish(), named(&["default"]));
        let error_detail = Some(rpc::Status { message: "no good".into(), ..rpc::Status::default() });
        let complaint = stream.read(&DiscoveryRequest { error_detail, ..ask(&["default"], &answer.nonce) }).unwrap();
        assert_eq!(complaint.as_deref(), Some("no good"));
        assert!(!stream.is_content(), "a rejected answer is not in force");
        assert!(stream.answer(secrets(&[("default", 1)])).unwrap().is_none());
    }

    #[test]
    fn a_client_says_that_it_rests_on_a_root_that_it_left_until_it_says_otherwise() {
        use envoy_types::pb::envoy::config::core::v3::Node;
        use envoy_types::pb::google::protobuf::{Struct, Value};
        let node = |resting| {
            let kind = Some(value::Kind::BoolValue(resting));
            let fields = [(RESTS_ON_LEFT_ROOT.to_owned(), Value { kind })].into();
            Some(Node { metadata: Some(Struct { fields }), ..Node::default() })
        };
        let mut stream = Sotw::default();
        stream.read(&ask(&["default"], "")).unwrap();
        let answer = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        let ask = |resting| DiscoveryRequest { node: node(resting), ..ask(&["default"], &answer.nonce) };
        stream.read(&ask(true)).unwrap();
        assert!(stream.is_resting() && stream.is_content());
        stream.read(&DiscoveryRequest { node: None, ..ask(true) }).unwrap();
        assert!(stream.is_resting(), "who says nothing has changed nothing");
        stream.read(&ask(false)).unwrap();
        assert!(!stream.is_resting() && stream.is_content());
        assert!(stream.answer(secrets(&[("default", 1)])).unwrap().is_none(), "it is no question");
    }

    #[test]
    fn a_client_says_which_configuration_is_in_force_in_it_and_not_more_than_is_heard() {
        use envoy_types::pb::google::protobuf::{Struct, Value};
        let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.into())) };
        let said = |fields: &[(&str, Value)]| {
            let fields = fields.iter().map(|(kind, version)| ((*kind).to_owned(), version.clone())).collect();
            versions_of(&value::Kind::StructValue(Struct { fields }))
        };
        let odd = Value { kind: Some(value::Kind::BoolValue(true)) };
        let versions = said(&[("listener", text("1f")), ("cluster", text("2e")), ("route", odd)]);
        assert_eq!(versions, Versions::from([("cluster".into(), "2e".into()), ("listener".into(), "1f".into())]));
        assert_eq!(versions_of(&value::Kind::BoolValue(true)), Versions::new());
        let names: Vec<String> = (0..100).map(|at| format!("{at}{}", "x".repeat(1000))).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), text(name))).collect();
        let heard = said(&many);
        assert_eq!(heard.len(), KINDS_MAX);
        assert!(
            heard.iter().all(|(kind, version)| kind.len() == VERSION_CHARS_MAX && version.len() == VERSION_CHARS_MAX)
        );
    }

    #[test]
    fn more_names_are_answered_and_no_names_end_the_subscription() {
        let mut stream = Sotw::default();
        stream.read(&ask(&["default"], "")).unwrap();
        let answer = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        stream.read(&ask(&["default", "ROOTCA"], &answer.nonce)).unwrap();
        let answer = stream.answer(secrets(&[("ROOTCA", 1), ("default", 1)])).unwrap().unwrap();
        assert_eq!(answer.resources.len(), 2);
        stream.read(&ask(&[], &answer.nonce)).unwrap();
        assert_eq!(stream.wish(), None);
    }

    #[test]
    fn a_first_request_without_names_wants_everything() {
        let mut stream = Sotw::default();
        stream.read(&ask(&[], "")).unwrap();
        assert_eq!(stream.wish(), Some(Wish::Everything));
        let answer = stream.answer(secrets(&[("default", 1)])).unwrap().unwrap();
        stream.read(&ask(&[], &answer.nonce)).unwrap();
        assert_eq!(stream.wish(), Some(Wish::Everything));
    }

    #[test]
    fn an_unknown_name_ends_the_stream_and_a_pending_one_waits() {
        let mut stream = Sotw::default();
        stream.read(&ask(&["x"], "")).unwrap();
        assert!(stream.answer(Rendered { pending: true, ..Rendered::default() }).unwrap().is_none());
        assert!(!stream.is_content());
        let refused = stream.answer(Rendered { unknown: vec!["x".into()], ..Rendered::default() }).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn names_are_limited_at_the_edge() {
        let names = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        let request = |count| DiscoveryRequest { resource_names: names(count), ..DiscoveryRequest::default() };
        assert!(Sotw::default().read(&request(super::super::NAMES_MAX)).is_ok());
        assert!(Sotw::default().read(&request(super::super::NAMES_MAX + 1)).is_err());
        let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..DiscoveryRequest::default() };
        assert!(Sotw::default().read(&other).is_err());
    }
}
