//! What controllers have written into a document's status: that it does not do what it says.

use super::Context;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;

/// Conditions whose status says that something is not well.
pub(crate) fn negative(context: &Context<'_>, report: &mut Report) {
    for (what, kinds) in WATCHED {
        for resource in context.set.of(*what) {
            for condition in conditions(resource) {
                let kind = condition.get("type").text();
                let is_bad = kinds.contains(&kind) && condition.get("status").word() == "False";
                if is_bad || is_partly_invalid(resource, condition) {
                    tell(resource, condition, report);
                }
            }
        }
    }
}

/// A waypoint takes a policy of which it could use a part only.
fn is_partly_invalid(resource: &Resource, condition: View<'_>) -> bool {
    resource.what == What::AuthorizationPolicy
        && condition.get("type").text() == "WaypointAccepted"
        && condition.get("reason").text() == "PartiallyInvalid"
}

/// Of the document itself, and of what a route hangs on.
fn conditions(resource: &Resource) -> Vec<View<'_>> {
    let status = resource.root().get("status");
    let of_parents = status.get("parents").items().flat_map(|parent| parent.get("conditions").items());
    status.get("conditions").items().chain(of_parents).collect()
}

fn tell(resource: &Resource, condition: View<'_>, report: &mut Report) {
    let of = |field| condition.get(field).text();
    let text =
        format!("condition {} is {}: {}: {}", of("type"), condition.get("status").word(), of("reason"), of("message"));
    report.tell("IST0171", resource, condition, text);
}

const OF_GATEWAYS: &[&str] = &["Accepted", "Programmed", "ResolvedRefs"];
const BOUND: &[&str] = &["istio.io/WaypointBound"];

/// Kinds and the conditions of them that count; others belong to other programs.
const WATCHED: &[(What, &[&str])] = &[
    (What::Service, BOUND),
    (What::ServiceEntry, BOUND),
    (What::WorkloadEntry, BOUND),
    (What::AuthorizationPolicy, &["ZtunnelAccepted", "WaypointAccepted"]),
    (What::KubeGateway, OF_GATEWAYS),
    (What::HttpRoute, OF_GATEWAYS),
    (What::GrpcRoute, OF_GATEWAYS),
];
