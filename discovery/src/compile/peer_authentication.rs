//! Which ports of a workload take plain text, mTLS, or both (`PeerAuthentication`).

use super::model::{Model, Named};
use crate::documents::security::{MutualTlsMode, PeerAuthentication};
use crate::documents::shapes::labels_match;
use crate::node::NodeFacts;

/// What a port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepts {
    PlainOnly,
    Both,
    MutualTlsOnly,
}

/// A mode, the policy that says it, and where in the policy it stands.
pub(crate) type Said<'a> = (MutualTlsMode, &'a Named<PeerAuthentication>, Place);

/// Where in a policy a mode stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `portLevelMtls`.
    Port(u16),
    /// `mtls`.
    Whole,
}

/// The mode of one workload port: port, workload, namespace, mesh, in this order; `UNSET` asks the next.
pub(crate) fn accepts(model: &Model, node: &NodeFacts, port: u16) -> Accepts {
    accepts_by(model, node, port).0
}

/// As [`accepts`], with what decides; nothing where no policy says anything.
pub(crate) fn accepts_by<'a>(model: &'a Model, node: &'a NodeFacts, port: u16) -> (Accepts, Option<Said<'a>>) {
    let own = workload_policy(model, node);
    let of_port = own.and_then(|policy| {
        let mode = policy.spec.port_level_mtls.as_ref()?.get(&port.to_string())?.mode;
        Some((mode, policy, Place::Port(port)))
    });
    let modes = [of_port, own.map(whole)].into_iter().flatten().chain(inherited(model, &node.namespace));
    resolve(modes)
}

/// Whether clients speak plain text to a whole namespace. Policies of single workloads do not concern clients.
pub(crate) fn is_disabled_for(model: &Model, namespace: &str) -> bool {
    resolve(inherited(model, namespace)).0 == Accepts::PlainOnly
}

fn resolve<'a>(modes: impl Iterator<Item = Said<'a>>) -> (Accepts, Option<Said<'a>>) {
    for said in modes {
        match said.0 {
            MutualTlsMode::Unset => {}
            MutualTlsMode::Disable => return (Accepts::PlainOnly, Some(said)),
            MutualTlsMode::Permissive => return (Accepts::Both, Some(said)),
            MutualTlsMode::Strict => return (Accepts::MutualTlsOnly, Some(said)),
        }
    }
    (Accepts::Both, None)
}

fn workload_policy<'a>(model: &'a Model, node: &NodeFacts) -> Option<&'a Named<PeerAuthentication>> {
    model.peer_authentications.iter().find(|policy| {
        policy.meta.namespace == node.namespace
            && has_selector(policy)
            && policy.spec.selector.as_ref().is_some_and(|selector| labels_match(&selector.match_labels, &node.labels))
    })
}

fn inherited<'a>(model: &'a Model, namespace: &'a str) -> impl Iterator<Item = Said<'a>> {
    [namespace, model.config.root_namespace()].into_iter().filter_map(|namespace| {
        let of_all = |policy: &&Named<PeerAuthentication>| policy.meta.namespace == namespace && !has_selector(policy);
        model.peer_authentications.iter().find(of_all).map(whole)
    })
}

fn has_selector(policy: &Named<PeerAuthentication>) -> bool {
    policy.spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
}

fn whole(policy: &Named<PeerAuthentication>) -> Said<'_> {
    (policy.spec.mtls.as_ref().map_or(MutualTlsMode::Unset, |mtls| mtls.mode), policy, Place::Whole)
}
