//! Networks of a mesh: whether the registries that they name exist.

use super::Context;
use super::message::Report;
use super::resource::What;

/// Networks with endpoints from registries that nobody has.
pub(crate) fn registries(context: &Context<'_>, report: &mut Report) {
    let mut known: Vec<&str> = vec!["Kubernetes", "External", "Mock"];
    for secret in context.set.of(What::Secret) {
        if secret.labels.get("istio/multiCluster").is_some_and(|value| value == "true") {
            let root = secret.root();
            known.extend(root.get("data").entries().chain(root.get("stringData").entries()).map(|(name, _)| name));
        }
    }
    for networks in context.set.of(What::MeshNetworks) {
        for (name, network) in networks.root().get("networks").entries() {
            for endpoint in network.get("endpoints").items() {
                let registry = endpoint.get("fromRegistry");
                if registry.exists() && !known.contains(&registry.text()) {
                    let text =
                        format!("the network {name} takes endpoints from `{}`, which is no cluster", registry.text());
                    report.tell("IST0126", networks, registry, text);
                }
            }
        }
    }
}
