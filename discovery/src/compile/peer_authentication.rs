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

/// The mode of one workload port: port, workload, namespace, mesh, in this order; `UNSET` asks the next.
pub(crate) fn accepts(model: &Model, node: &NodeFacts, port: u16) -> Accepts {
    let own = workload_policy(model, node);
    let of_port =
        own.and_then(|policy| policy.spec.port_level_mtls.as_ref()?.get(&port.to_string()).map(|mtls| mtls.mode));
    let modes = [of_port, own.map(mode)].into_iter().flatten().chain(inherited(model, &node.namespace));
    resolve(modes)
}

/// Whether clients speak plain text to a whole namespace. Policies of single workloads do not concern clients.
pub(crate) fn is_disabled_for(model: &Model, namespace: &str) -> bool {
    resolve(inherited(model, namespace)) == Accepts::PlainOnly
}

fn resolve(modes: impl Iterator<Item = MutualTlsMode>) -> Accepts {
    for mode in modes {
        match mode {
            MutualTlsMode::Unset => {}
            MutualTlsMode::Disable => return Accepts::PlainOnly,
            MutualTlsMode::Permissive => return Accepts::Both,
            MutualTlsMode::Strict => return Accepts::MutualTlsOnly,
        }
    }
    Accepts::Both
}

fn workload_policy<'a>(model: &'a Model, node: &NodeFacts) -> Option<&'a Named<PeerAuthentication>> {
    model.peer_authentications.iter().find(|policy| {
        policy.meta.namespace == node.namespace
            && has_selector(policy)
            && policy.spec.selector.as_ref().is_some_and(|selector| labels_match(&selector.match_labels, &node.labels))
    })
}

fn inherited<'a>(model: &'a Model, namespace: &'a str) -> impl Iterator<Item = MutualTlsMode> + 'a {
    [namespace, model.config.root_namespace()].into_iter().filter_map(|namespace| {
        let of_all = |policy: &&Named<PeerAuthentication>| policy.meta.namespace == namespace && !has_selector(policy);
        model.peer_authentications.iter().find(of_all).map(mode)
    })
}

fn has_selector(policy: &Named<PeerAuthentication>) -> bool {
    policy.spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
}

fn mode(policy: &Named<PeerAuthentication>) -> MutualTlsMode {
    policy.spec.mtls.as_ref().map_or(MutualTlsMode::Unset, |mtls| mtls.mode)
}
