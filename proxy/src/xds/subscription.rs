//! What one type of resource was asked for and answered, as a state machine without I/O.
//!
//! Speaks the delta and the state-of-the-world form of xDS v3 alike: which names, which versions, which nonce to
//! acknowledge, what to ask again after a reconnect.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use prost::Message;
use serde::{Deserialize, Serialize};

/// Which form of xDS to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdsMode {
    /// Only what changed.
    #[default]
    Delta,
    /// Everything, every time.
    Sotw,
}

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Cluster,
    Endpoint,
    Listener,
    Route,
    Secret,
}

/// What a response says.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) set: Vec<Item>,
    pub(crate) removed: Vec<String>,
    /// What is not named is gone.
    pub(crate) replaces_all: bool,
    pub(crate) version: String,
    pub(crate) nonce: String,
}

/// A resource as it came.
#[derive(Debug)]
pub(crate) struct Item {
    /// The delta form says the name outside of the resource.
    pub(crate) name: Option<String>,
    pub(crate) version: String,
    pub(crate) body: Any,
}

/// What to send.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Delta(Box<DeltaDiscoveryRequest>),
    Sotw(Box<DiscoveryRequest>),
}

/// The state of one type on one stream.
#[derive(Debug)]
pub(crate) struct Subscription {
    kind: Kind,
    mode: XdsMode,
    wanted: BTreeSet<String>,
    /// What is held, by name; asked for again by version after a reconnect.
    held: BTreeMap<String, String>,
    version: String,
    nonce: String,
    begun: bool,
    /// The last answer was not taken.
    refused: bool,
}

impl Kind {
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    pub(crate) fn of_type_url(url: &str) -> Option<Self> {
        [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Secret]
            .into_iter()
            .find(|kind| kind.type_url() == url)
    }

    /// The word for logs and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Secret => "secret",
        }
    }

    /// What discovery calls it in its pages.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
        }
    }

    /// Whether everything of the type is wanted, instead of names.
    pub(crate) fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

impl Update {
    pub(crate) fn of_delta(response: DeltaDiscoveryResponse) -> Self {
        let item = |resource: Resource| {
            let Resource { name, version, resource, .. } = resource;
            Item { name: Some(name), version, body: resource.unwrap_or_default() }
        };
        Self {
            set: response.resources.into_iter().map(item).collect(),
            removed: response.removed_resources,
            replaces_all: false,
            version: response.system_version_info,
            nonce: response.nonce,
        }
    }

    pub(crate) fn of_sotw(kind: Kind, response: DiscoveryResponse) -> Self {
        let version = response.version_info;
        let item = |body: Any| unwrap_resource(body, &version);
        Self {
            set: response.resources.into_iter().map(item).collect(),
            removed: Vec::new(),
            replaces_all: kind.is_wildcard(),
            version: version.clone(),
            nonce: response.nonce,
        }
    }
}

/// The state of the world may wrap a resource, to say its name.
fn unwrap_resource(body: Any, version: &str) -> Item {
    if body.type_url == "type.googleapis.com/envoy.service.discovery.v3.Resource"
        && let Ok(Resource { name, resource: Some(body), .. }) = Resource::decode(body.value.as_slice())
    {
        return Item { name: Some(name), version: version.to_owned(), body };
    }
    Item { name: None, version: version.to_owned(), body }
}

impl Subscription {
    pub(crate) fn new(kind: Kind, mode: XdsMode) -> Self {
        Self {
            kind,
            mode,
            wanted: BTreeSet::new(),
            held: BTreeMap::new(),
            version: String::new(),
            nonce: String::new(),
            begun: false,
            refused: false,
        }
    }

    /// A new stream begins: nothing was asked on it yet.
    pub(crate) fn restart(&mut self) {
        (self.begun, self.nonce) = (false, String::new());
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Names the resources that are wanted. Answers what must be sent for it, if anything.
    pub(crate) fn want(&mut self, names: BTreeSet<String>) -> Option<Request> {
        if self.begun && names == self.wanted {
            return None;
        }
        if !self.begun {
            self.wanted = names;
            return self.begin();
        }
        let request = match self.mode {
            XdsMode::Delta => {
                let added = names.difference(&self.wanted).cloned().collect();
                let dropped: Vec<String> = self.wanted.difference(&names).cloned().collect();
                for name in &dropped {
                    self.held.remove(name);
                }
                self.delta(added, dropped)
            }
            XdsMode::Sotw => {
                self.held.retain(|name, _| names.contains(name));
                self.wanted = names.clone();
                self.sotw(None)
            }
        };
        self.wanted = names;
        Some(request)
    }

    /// The first request of a stream; nothing when nothing is wanted.
    pub(crate) fn begin(&mut self) -> Option<Request> {
        if self.begun || (self.wanted.is_empty() && !self.kind.is_wildcard()) {
            return None;
        }
        self.begun = true;
        Some(match self.mode {
            XdsMode::Sotw => self.sotw(None),
            XdsMode::Delta => {
                let names =
                    if self.kind.is_wildcard() { vec!["*".to_owned()] } else { self.wanted.iter().cloned().collect() };
                let mut request = self.delta_request(names, Vec::new());
                request.initial_resource_versions = self.held.clone().into_iter().collect();
                Request::Delta(Box::new(request))
            }
        })
    }

    /// Acknowledges `update`, or refuses it and says why. `names` are those of its resources, in its order.
    pub(crate) fn answer(&mut self, update: &Update, names: &[String], refusal: Option<&str>) -> Request {
        self.nonce.clone_from(&update.nonce);
        self.refused = refusal.is_some();
        if refusal.is_none() {
            self.hold(update, names);
        }
        let error = refusal.map(|text| {
            let message = text.chars().take(ERROR_CHARS_MAX).collect();
            Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
        });
        match self.mode {
            XdsMode::Sotw => self.sotw(error),
            XdsMode::Delta => {
                let mut request = self.delta_request(Vec::new(), Vec::new());
                request.response_nonce.clone_from(&self.nonce);
                request.error_detail = error;
                Request::Delta(Box::new(request))
            }
        }
    }

    /// The last request of a state-of-the-world stream once more, for what is said beside it; nothing before an answer has come
    /// or after it was refused.
    pub(crate) fn again(&self) -> Option<Request> {
        let said = self.begun && self.mode == XdsMode::Sotw && !self.nonce.is_empty() && !self.refused;
        said.then(|| self.sotw(None))
    }

    fn hold(&mut self, update: &Update, names: &[String]) {
        self.version.clone_from(&update.version);
        if update.replaces_all {
            self.held.clear();
        }
        for (name, item) in names.iter().zip(&update.set) {
            self.held.insert(name.clone(), item.version.clone());
        }
        for name in &update.removed {
            self.held.remove(name);
        }
    }

    fn delta(&self, added: Vec<String>, dropped: Vec<String>) -> Request {
        Request::Delta(Box::new(self.delta_request(added, dropped)))
    }

    fn delta_request(&self, subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.kind.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn sotw(&self, error_detail: Option<Status>) -> Request {
        Request::Sotw(Box::new(DiscoveryRequest {
            version_info: self.version.clone(),
            resource_names: self.wanted.iter().cloned().collect(),
            type_url: self.kind.type_url().to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail,
            ..DiscoveryRequest::default()
        }))
    }
}

impl Request {
    /// Adds who is asking; the first request of a stream must say it.
    pub(crate) fn with_node(mut self, node: &Node) -> Self {
        match &mut self {
            Self::Delta(request) => request.node = Some(node.clone()),
            Self::Sotw(request) => request.node = Some(node.clone()),
        }
        self
    }
}

const INVALID_ARGUMENT: i32 = 3;
/// The longest explanation of a refusal.
const ERROR_CHARS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn delta(request: Option<Request>) -> DeltaDiscoveryRequest {
        match request {
            Some(Request::Delta(request)) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn sotw(request: Option<Request>) -> DiscoveryRequest {
        match request {
            Some(Request::Sotw(request)) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn update(nonce: &str, version: &str, items: &[&str]) -> Update {
        let item =
            |name: &&str| Item { name: Some((*name).to_owned()), version: version.to_owned(), body: Any::default() };
        Update {
            set: items.iter().map(item).collect(),
            version: version.to_owned(),
            nonce: nonce.to_owned(),
            ..Update::default()
        }
    }

    #[test]
    fn delta_asks_for_differences_and_remembers_versions_over_a_reconnect() {
        let mut eds = Subscription::new(Kind::Endpoint, XdsMode::Delta);
        assert_eq!(eds.begin(), None);
        assert_eq!(delta(eds.want(names(&["a", "b"]))).resource_names_subscribe, ["a", "b"]);
        assert_eq!(eds.want(names(&["a", "b"])), None);
        let ack = delta(Some(eds.answer(&update("n1", "7", &["a"]), &["a".to_owned()], None)));
        assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
        assert!(ack.resource_names_subscribe.is_empty());

        let change = delta(eds.want(names(&["a", "c"])));
        assert_eq!(change.resource_names_subscribe, ["c"]);
        assert_eq!(change.resource_names_unsubscribe, ["b"]);

        eds.restart();
        let again = delta(eds.begin());
        assert_eq!(again.resource_names_subscribe, ["a", "c"]);
        assert_eq!(again.initial_resource_versions.get("a").map(String::as_str), Some("7"));
    }

    #[test]
    fn a_refusal_names_the_nonce_and_keeps_the_last_good_version() {
        let mut cds = Subscription::new(Kind::Cluster, XdsMode::Sotw);
        let first = sotw(cds.begin());
        assert!(first.resource_names.is_empty() && first.version_info.is_empty());
        cds.answer(&update("n1", "1", &[]), &[], None);
        let nack = sotw(Some(cds.answer(&update("n2", "2", &[]), &[], Some("x: y: bad"))));
        assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "n2"));
        assert_eq!(nack.error_detail.unwrap().message, "x: y: bad");
    }

    #[test]
    fn wildcards_begin_with_a_star_in_delta() {
        let mut lds = Subscription::new(Kind::Listener, XdsMode::Delta);
        assert_eq!(delta(lds.begin()).resource_names_subscribe, ["*"]);
        assert_eq!(lds.begin(), None);
    }

    #[test]
    fn sotw_names_the_whole_set_each_time() {
        let mut rds = Subscription::new(Kind::Route, XdsMode::Sotw);
        assert_eq!(sotw(rds.want(names(&["r1"]))).resource_names, ["r1"]);
        assert_eq!(sotw(rds.want(names(&["r1", "r2"]))).resource_names, ["r1", "r2"]);
    }

    #[test]
    fn a_request_is_said_again_only_for_an_answer_that_was_taken() {
        let mut stream = Subscription::new(Kind::Secret, XdsMode::Sotw);
        stream.want(names(&["default"]));
        assert_eq!(stream.again(), None, "nothing to speak of");
        stream.answer(&update("n1", "1", &["default"]), &[], None);
        let again = sotw(stream.again());
        assert_eq!((again.response_nonce.as_str(), again.version_info.as_str()), ("n1", "1"));
        stream.answer(&update("n2", "2", &["default"]), &[], Some("no good"));
        assert_eq!(stream.again(), None, "it would read as consent");
    }
}
