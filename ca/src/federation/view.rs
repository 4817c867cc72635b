//! How federation stands, for the admin address.

use std::fmt::Write as _;

use identity::spiffe_id::TrustDomain;
use runtime::clock::{from_unix_secs, rfc3339};
use serde_json::{Value, json};

use super::Relationship;
use crate::certifier::Certifier;
use crate::registry::Registry;

/// Each relationship with its state, for `/status`.
pub(crate) fn status(certifier: &Certifier) -> Value {
    let registry = certifier.store.registry();
    registry.relationships().map(|relationship| document(relationship, &registry)).collect()
}

fn document(relationship: &Relationship, registry: &Registry) -> Value {
    let state = &relationship.state;
    json!({
        "trust_domain": relationship.trust_domain,
        "url": relationship.url.as_str(),
        "profile": relationship.profile.as_str(),
        "bundle_sequence": registry.federated(&relationship.trust_domain).map(|bundle| bundle.sequence),
        "succeeded_at": time(state.succeeded_at),
        "next_at": time(state.next_at),
        "failures": state.failures,
        "reason": state.reason,
        "problem": state.problem,
    })
}

/// RFC 3339; nothing for never.
fn time(secs: i64) -> Option<String> {
    (secs > 0).then(|| rfc3339(from_unix_secs(secs)))
}

/// Age and failures of each relationship, as OpenMetrics. Names of trust domains need no escaping.
pub(crate) fn write_metrics(certifier: &Certifier, out: &mut String) {
    let (now, registry) = (certifier.now_secs(), certifier.store.registry());
    let mut family = |name: &str, value: &dyn Fn(&Relationship) -> i64| {
        let _ = writeln!(out, "# TYPE {name} gauge");
        for relationship in registry.relationships() {
            let domain: &TrustDomain = &relationship.trust_domain;
            let _ = writeln!(out, "{name}{{trust_domain=\"{domain}\"}} {}", value(relationship));
        }
    };
    let age = |relationship: &Relationship| match relationship.state.succeeded_at {
        0 => now - relationship.created_at,
        at => now - at,
    };
    family("ca_federation_bundle_age_seconds", &age);
    family("ca_federation_failures", &|relationship| i64::from(relationship.state.failures));
}
