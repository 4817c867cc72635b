//! The state machines against the rules that stock clients rely on.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use super::Heard;
use super::delta::Delta;
use super::sotw::Sotw;
use crate::resources::{Resources, Type};

/// Clusters with endpoints of the same names, and one listener; `alt` makes a version.
fn resources(clusters: &[(&str, &str)]) -> Resources {
    let mut resources = Resources::default();
    for (name, alt) in clusters {
        let cluster = Cluster { name: (*name).into(), alt_stat_name: (*alt).into(), ..Cluster::default() };
        resources.insert(Type::Cluster, name, &cluster);
        let endpoints = ClusterLoadAssignment { cluster_name: (*name).into(), ..ClusterLoadAssignment::default() };
        resources.insert(Type::Endpoints, name, &endpoints);
    }
    resources.insert(Type::Listener, "l", &Listener { name: "l".into(), ..Listener::default() });
    resources
}

fn ask(kind: Type, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.url().into(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

fn rejection() -> Option<Status> {
    Some(Status { code: 3, message: "bad cluster".into(), ..Status::default() })
}

#[test]
fn a_wildcard_gets_all_and_an_acknowledgement_gets_no_answer() {
    let (mut stream, resources) = (Sotw::default(), resources(&[("a", "1"), ("b", "1")]));
    let (heard, answer) = stream.on_request(&ask(Type::Cluster, &[], ""), &resources);
    let answer = answer.unwrap();
    assert_eq!((heard, answer.resources.len()), (Heard::Request, 2));
    let (heard, answer) = stream.on_request(&ask(Type::Cluster, &[], &answer.nonce), &resources);
    assert_eq!((heard, answer), (Heard::Acknowledged, None));
    assert_eq!(stream.acks()[0].sent, stream.acks()[0].acknowledged);
}

#[test]
fn endpoints_without_names_are_no_subscription() {
    let (mut stream, resources) = (Sotw::default(), resources(&[("a", "1")]));
    assert_eq!(stream.on_request(&ask(Type::Endpoints, &[], ""), &resources).1, None);
}

#[test]
fn an_old_nonce_is_ignored_and_a_rejection_remembered() {
    let (mut stream, resources) = (Sotw::default(), resources(&[("a", "1")]));
    let answer = stream.on_request(&ask(Type::Cluster, &[], ""), &resources).1.unwrap();
    assert_eq!(stream.on_request(&ask(Type::Cluster, &[], "77"), &resources).0, Heard::Stale);
    let mut nack = ask(Type::Cluster, &[], &answer.nonce);
    nack.error_detail = rejection();
    assert_eq!(stream.on_request(&nack, &resources), (Heard::Rejected("bad cluster".into()), None));
    assert_eq!(stream.acks()[0].rejected.as_deref(), Some("bad cluster"));
}

#[test]
fn added_names_are_answered_alone() {
    let (mut stream, resources) = (Sotw::default(), resources(&[("a", "1"), ("b", "1")]));
    let first = stream.on_request(&ask(Type::Endpoints, &["a"], ""), &resources).1.unwrap();
    let second = stream.on_request(&ask(Type::Endpoints, &["a", "b"], &first.nonce), &resources).1.unwrap();
    assert_eq!((first.resources.len(), second.resources.len()), (1, 1));
}

#[test]
fn a_changed_cluster_brings_its_endpoints_along() {
    let mut stream = Sotw::default();
    let before = resources(&[("a", "1")]);
    stream.on_request(&ask(Type::Cluster, &[], ""), &before);
    stream.on_request(&ask(Type::Endpoints, &["a"], ""), &before);
    let pushed = stream.on_change(&resources(&[("a", "2")]));
    let types: Vec<&str> = pushed.iter().map(|answer| answer.type_url.as_str()).collect();
    assert_eq!(types, [Type::Cluster.url(), Type::Endpoints.url()]);
    assert!(stream.on_change(&resources(&[("a", "2")])).is_empty(), "nothing new is nothing to push");
}

#[test]
fn a_cluster_is_taken_away_after_everything_else_was_pushed() {
    let mut stream = Sotw::default();
    let before = resources(&[("a", "1"), ("b", "1")]);
    stream.on_request(&ask(Type::Cluster, &[], ""), &before);
    stream.on_request(&ask(Type::Listener, &[], ""), &before);
    let pushed = stream.on_change(&resources(&[("a", "1"), ("c", "1")]));
    let sizes: Vec<usize> = pushed.iter().map(|answer| answer.resources.len()).collect();
    assert_eq!(sizes, [3, 2], "first the union of old and new, then the new set alone");
}

fn subscribe(kind: Type, names: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.into(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn delta_sends_only_what_changed_and_names_what_is_gone_last() {
    let mut stream = Delta::default();
    let before = resources(&[("a", "1"), ("b", "1")]);
    let first = stream.on_request(&subscribe(Type::Cluster, &[], ""), &before).1.unwrap();
    assert_eq!(first.resources.len(), 2);
    assert_eq!(stream.on_request(&subscribe(Type::Cluster, &[], &first.nonce), &before), (Heard::Acknowledged, None));
    let pushed = stream.on_change(&resources(&[("a", "2")]));
    assert_eq!(pushed.len(), 2);
    assert_eq!((pushed[0].resources.len(), pushed[0].removed_resources.len()), (1, 0));
    assert_eq!(pushed[1].removed_resources, ["b"]);
}

#[test]
fn a_returning_delta_client_gets_only_what_it_lacks() {
    let mut stream = Delta::default();
    let now = resources(&[("a", "1"), ("b", "1")]);
    let mut request = subscribe(Type::Cluster, &[], "");
    let version = now.get(Type::Cluster, "a").unwrap().version.clone();
    request.initial_resource_versions.insert("a".into(), version);
    request.initial_resource_versions.insert("gone".into(), "7".into());
    let answer = stream.on_request(&request, &now).1.unwrap();
    assert_eq!(answer.resources.len(), 1);
    assert_eq!(answer.removed_resources, ["gone"]);
}

#[test]
fn a_name_asked_for_again_is_sent_again_and_an_unknown_one_is_named() {
    let mut stream = Delta::default();
    let now = resources(&[("a", "1")]);
    let first = stream.on_request(&subscribe(Type::Endpoints, &["a", "x"], ""), &now).1.unwrap();
    assert_eq!((first.resources.len(), first.removed_resources), (1, vec!["x".to_owned()]));
    let again = stream.on_request(&subscribe(Type::Endpoints, &["a"], ""), &now).1.unwrap();
    assert_eq!(again.resources.len(), 1);
}

#[test]
fn unsubscribing_ends_the_updates() {
    let mut stream = Delta::default();
    let now = resources(&[("a", "1")]);
    stream.on_request(&subscribe(Type::Endpoints, &["a"], ""), &now);
    let mut request = subscribe(Type::Endpoints, &[], "");
    request.resource_names_unsubscribe = vec!["a".into()];
    stream.on_request(&request, &now);
    assert!(stream.on_change(&resources(&[])).is_empty());
}
