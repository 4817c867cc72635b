//! The Gateway API's own definitions: whether they are new enough to be read.

use super::Context;
use super::message::Report;
use super::resource::What;

/// Definitions below the version that Istio reads.
pub(crate) fn versions(context: &Context<'_>, report: &mut Report) {
    for definition in context.set.of(What::CustomResourceDefinition) {
        let Some((_, least)) = LEAST.iter().find(|(name, _)| *name == definition.name) else { continue };
        let said = definition.root().path("metadata.annotations").get("gateway.networking.k8s.io/bundle-version");
        let Some(version) = version(said.text()) else { continue };
        if version < *least {
            let (major, minor) = least;
            let text = format!("{} is below v{major}.{minor}.0: documents of this kind are not read", said.text());
            report.tell("IST0176", definition, said, text);
        }
    }
}

/// Major and minor number of `v1.2.3-rc.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Kinds that are read from a version on.
const LEAST: &[(&str, (u32, u32))] = &[
    ("backendtlspolicies.gateway.networking.k8s.io", (1, 4)),
    ("grpcroutes.gateway.networking.k8s.io", (1, 1)),
    ("tcproutes.gateway.networking.k8s.io", (1, 6)),
    ("tlsroutes.gateway.networking.k8s.io", (1, 5)),
];
