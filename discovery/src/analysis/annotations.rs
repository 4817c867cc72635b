//! Annotations of `istio.io`: whether they exist, stand on the right kind, have a value that can be used, and will stay.

use super::Context;
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::INJECT;

/// Unknown, misplaced, deprecated and invalid annotations of Kubernetes documents.
pub(crate) fn kubernetes(context: &Context<'_>, report: &mut Report) {
    for what in JUDGED {
        for resource in context.set.of(*what) {
            for (name, value) in
                resource.root().path("metadata.annotations").entries().filter(|(name, _)| is_ours(name))
            {
                judge(resource, name, value, report);
            }
        }
    }
}

fn judge(resource: &Resource, name: &str, value: View<'_>, report: &mut Report) {
    if SET_BY_CONTROLLERS.contains(&name) {
        return;
    }
    let Some(known) = find(name) else {
        return report.tell("IST0108", resource, value, format!("there is no annotation `{name}`"));
    };
    let has_label = name == INJECT && resource.labels.contains_key(INJECT);
    if known.is_deprecated && !has_label {
        let instead = if name == INJECT { "; a label of the same name has taken its place" } else { "" };
        report.tell("IST0135", resource, value, format!("the annotation `{name}` is deprecated{instead}"));
    }
    if known.kinds == ANY {
        return;
    }
    if !known.kinds.contains(&resource.kind.as_str()) {
        let text = format!("the annotation `{name}` has no effect here; it belongs to {}", list(known.kinds));
        return report.tell("IST0107", resource, value, text);
    }
    if let Some(fault) = fault_of(name, &value.word()) {
        report.tell("IST0125", resource, value, format!("the annotation `{name}`: {fault}"));
    }
}

/// Annotations that may still change.
pub(crate) fn alpha(context: &Context<'_>, report: &mut Report) {
    for what in JUDGED {
        for resource in context.set.of(*what) {
            let begins = || resource.spec().get("initContainers").items();
            // Istio's CNI sets some annotations by itself, and leaves the container out that captures traffic.
            let by_cni = *what == What::Pod && !begins().any(|one| one.get("name").text() == "istio-init");
            for (name, value) in resource.root().path("metadata.annotations").entries() {
                let is_alpha = find(name).is_some_and(|known| known.is_alpha);
                let is_set = SET_BY_CONTROLLERS.contains(&name) || (by_cni && SET_BY_CNI.contains(&name));
                if is_alpha && !is_set {
                    report.tell("IST0136", resource, value, format!("the annotation `{name}` is alpha"));
                }
            }
        }
    }
}

fn is_ours(name: &str) -> bool {
    name == "kubernetes.io/ingress.class" || name.split('/').next().is_some_and(|domain| domain.ends_with("istio.io"))
}

/// What is wrong with a value.
fn fault_of(name: &str, value: &str) -> Option<String> {
    let (_, form) = FORMS.iter().find(|(known, _)| *known == name)?;
    let is_good = match form {
        Form::Mode => ["REDIRECT", "TPROXY", "NONE"].contains(&value),
        Form::Port => is_port(value),
        Form::Number => value.parse::<u32>().is_ok(),
        Form::Truth => {
            ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"].contains(&value)
        }
        Form::Ranges => is_list(value, |range| range.parse::<ipnet::IpNet>().is_ok()),
        Form::RangesOrAll => value == "*" || is_list(value, |range| range.parse::<ipnet::IpNet>().is_ok()),
        Form::Ports => is_list(value, is_port),
        Form::PortsOrAll => value == "*" || is_list(value, is_port),
        Form::Interfaces => is_list(value, |name| !name.trim().is_empty() && name.trim().len() <= INTERFACE_LEN_MAX),
        Form::Quantity => is_quantity(value),
        Form::Mapping => is_mapping(value),
    };
    (!is_good).then(|| format!("`{value}` is not {}", form.text()))
}

fn is_port(text: &str) -> bool {
    text.trim().parse::<u16>().is_ok()
}

fn is_list(text: &str, is_good: impl Fn(&str) -> bool) -> bool {
    text.trim().is_empty() || text.split(',').all(is_good)
}

/// A quantity of Kubernetes, such as `100m`, `1.5`, `128Mi` or `1e3`.
fn is_quantity(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let is_exponent = || unit.strip_prefix(['e', 'E']).is_some_and(|exponent| exponent.parse::<i8>().is_ok());
    number.parse::<f64>().is_ok() && (UNITS.contains(&unit) || is_exponent())
}

fn is_mapping(text: &str) -> bool {
    use crate::documents::tree::{Value, parse_stream};
    parse_stream(text).is_ok_and(|nodes| nodes.iter().all(|node| matches!(node.value, Value::Map(_) | Value::Null)))
}

/// How a value is written.
enum Form {
    Interfaces,
    Mapping,
    Mode,
    Number,
    Port,
    Ports,
    PortsOrAll,
    Quantity,
    Ranges,
    RangesOrAll,
    Truth,
}

impl Form {
    fn text(&self) -> &'static str {
        match self {
            Self::Interfaces => "a list of network interfaces",
            Self::Mapping => "a proxy configuration in YAML",
            Self::Mode => "REDIRECT, TPROXY or NONE",
            Self::Number => "a number that is not negative",
            Self::Port => "a port",
            Self::Ports => "a list of ports",
            Self::PortsOrAll => "`*` or a list of ports",
            Self::Quantity => "a quantity such as 100m or 128Mi",
            Self::Ranges => "a list of networks such as 10.0.0.0/8",
            Self::RangesOrAll => "`*` or a list of networks such as 10.0.0.0/8",
            Self::Truth => "true or false",
        }
    }
}

/// An annotation of Istio.
struct Known {
    name: &'static str,
    is_alpha: bool,
    is_deprecated: bool,
    /// Kinds that it belongs to.
    kinds: &'static [&'static str],
}

fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

const fn stable(name: &'static str, kinds: &'static [&'static str]) -> Known {
    Known { name, is_alpha: false, is_deprecated: false, kinds }
}

const fn early(name: &'static str, kinds: &'static [&'static str]) -> Known {
    Known { name, is_alpha: true, is_deprecated: false, kinds }
}

const fn late(name: &'static str, is_alpha: bool, kinds: &'static [&'static str]) -> Known {
    Known { name, is_alpha, is_deprecated: true, kinds }
}

const JUDGED: &[What] = &[What::Namespace, What::Service, What::Pod, What::Deployment];
const ANY: &[&str] = &["Any"];
const POD: &[&str] = &["Pod"];
const SERVICE: &[&str] = &["Service"];
const GATEWAY: &[&str] = &["Gateway"];
const ENTRY: &[&str] = &["WorkloadEntry"];
const INTERFACE_LEN_MAX: usize = 15;
const UNITS: &[&str] = &["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Nobody wrote them.
const SET_BY_CONTROLLERS: &[&str] = &["gateway.istio.io/controller-version", "istio.io/rev", "sidecar.istio.io/status"];
const SET_BY_CNI: &[&str] = &[
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
];

const FORMS: &[(&str, Form)] = &[
    ("istio.io/reroute-virtual-interfaces", Form::Interfaces),
    ("prometheus.istio.io/merge-metrics", Form::Truth),
    ("proxy.istio.io/config", Form::Mapping),
    ("readiness.status.sidecar.istio.io/failureThreshold", Form::Number),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", Form::Number),
    ("readiness.status.sidecar.istio.io/periodSeconds", Form::Number),
    ("sidecar.istio.io/interceptionMode", Form::Mode),
    ("sidecar.istio.io/proxyCPU", Form::Quantity),
    ("sidecar.istio.io/proxyCPULimit", Form::Quantity),
    ("sidecar.istio.io/proxyMemory", Form::Quantity),
    ("sidecar.istio.io/proxyMemoryLimit", Form::Quantity),
    ("status.sidecar.istio.io/port", Form::Port),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Form::Ports),
    ("traffic.sidecar.istio.io/excludeInterfaces", Form::Interfaces),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", Form::Ranges),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Form::Ports),
    ("traffic.sidecar.istio.io/includeInboundPorts", Form::PortsOrAll),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", Form::RangesOrAll),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", Form::Interfaces),
];

const KNOWN: &[Known] = &[
    late("alpha.istio.io/canonical-serviceaccounts", true, SERVICE),
    late("alpha.istio.io/kubernetes-serviceaccounts", true, SERVICE),
    early("ambient.istio.io/bypass-inbound-capture", POD),
    early("ambient.istio.io/dns-capture", POD),
    stable("ambient.istio.io/redirection", POD),
    early("ambient.istio.io/waypoint-inbound-binding", &["Gateway", "GatewayClass"]),
    early("galley.istio.io/analyze-suppress", ANY),
    early("gateway.istio.io/controller-version", ANY),
    early("gateway.istio.io/name-override", GATEWAY),
    early("gateway.istio.io/service-account", GATEWAY),
    early("inject.istio.io/templates", POD),
    early("istio.io/autoRegistrationGroup", ENTRY),
    early("istio.io/connectedAt", ENTRY),
    early("istio.io/disconnectedAt", ENTRY),
    early("istio.io/dry-run", &["AuthorizationPolicy"]),
    early("istio.io/reroute-virtual-interfaces", POD),
    early("istio.io/rev", POD),
    early("istio.io/use-waypoint-canary-weight", &["Service", "ServiceEntry", "Namespace"]),
    early("istio.io/workloadController", ENTRY),
    stable("kubernetes.io/ingress.class", &["Ingress"]),
    early("networking.istio.io/exportTo", SERVICE),
    early("networking.istio.io/service-type", GATEWAY),
    early("networking.istio.io/traffic-distribution", &["Namespace", "Service", "ServiceEntry"]),
    early("prometheus.istio.io/merge-metrics", POD),
    stable("proxy.istio.io/config", POD),
    early("proxy.istio.io/overrides", POD),
    early("readiness.status.sidecar.istio.io/applicationPorts", POD),
    early("readiness.status.sidecar.istio.io/failureThreshold", POD),
    early("readiness.status.sidecar.istio.io/initialDelaySeconds", POD),
    early("readiness.status.sidecar.istio.io/periodSeconds", POD),
    early("sidecar.istio.io/agentLogLevel", POD),
    early("sidecar.istio.io/bootstrapOverride", POD),
    early("sidecar.istio.io/componentLogLevel", POD),
    late("sidecar.istio.io/discoveryAddress", true, POD),
    late("sidecar.istio.io/extraStatTags", true, POD),
    late(INJECT, false, POD),
    early("sidecar.istio.io/interceptionMode", POD),
    early("sidecar.istio.io/logLevel", POD),
    early("sidecar.istio.io/nativeSidecar", POD),
    early("sidecar.istio.io/proxyCPU", POD),
    early("sidecar.istio.io/proxyCPULimit", POD),
    early("sidecar.istio.io/proxyImage", POD),
    early("sidecar.istio.io/proxyImageType", POD),
    early("sidecar.istio.io/proxyMemory", POD),
    early("sidecar.istio.io/proxyMemoryLimit", POD),
    early("sidecar.istio.io/rewriteAppHTTPProbers", POD),
    late("sidecar.istio.io/statsCompression", true, POD),
    early("sidecar.istio.io/statsEvictionInterval", POD),
    early("sidecar.istio.io/statsFlushInterval", POD),
    early("sidecar.istio.io/statsHistogramBins", POD),
    early("sidecar.istio.io/statsHistogramBuckets", POD),
    late("sidecar.istio.io/statsInclusionPrefixes", true, POD),
    late("sidecar.istio.io/statsInclusionRegexps", true, POD),
    late("sidecar.istio.io/statsInclusionSuffixes", true, POD),
    early("sidecar.istio.io/status", POD),
    early("sidecar.istio.io/userVolume", POD),
    early("sidecar.istio.io/userVolumeMount", POD),
    early("status.sidecar.istio.io/port", POD),
    early("topology.istio.io/controlPlaneClusters", &["Namespace"]),
    stable("traffic.istio.io/nodeSelector", SERVICE),
    early("traffic.sidecar.istio.io/excludeInboundPorts", POD),
    early("traffic.sidecar.istio.io/excludeInterfaces", POD),
    early("traffic.sidecar.istio.io/excludeOutboundIPRanges", POD),
    early("traffic.sidecar.istio.io/excludeOutboundPorts", POD),
    early("traffic.sidecar.istio.io/includeInboundPorts", POD),
    early("traffic.sidecar.istio.io/includeOutboundIPRanges", POD),
    early("traffic.sidecar.istio.io/includeOutboundPorts", POD),
    late("traffic.sidecar.istio.io/kubevirtInterfaces", true, POD),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_by_their_form() {
        for (name, good, bad) in [
            ("sidecar.istio.io/interceptionMode", "NONE", "none"),
            ("status.sidecar.istio.io/port", "15020", "70000"),
            ("prometheus.istio.io/merge-metrics", "true", "yes"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*", "10.0.0.0"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8,::/0", "*"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "*", "80,x"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "80, 90", "*"),
            ("traffic.sidecar.istio.io/excludeInterfaces", "eth0,eth1", "eth0,,eth1"),
            ("traffic.sidecar.istio.io/excludeInterfaces", "a-name-of-15-xx", "a-name-of-16-xxx"),
            ("sidecar.istio.io/proxyCPU", "100m", "100x"),
            ("sidecar.istio.io/proxyMemory", "1.5Gi", ".Gi"),
            ("proxy.istio.io/config", "concurrency: 2", "just text"),
        ] {
            assert_eq!(fault_of(name, good), None, "{name} {good}");
            assert!(fault_of(name, bad).is_some(), "{name} {bad}");
        }
        assert_eq!(fault_of("sidecar.istio.io/logLevel", "anything"), None);
    }

    #[test]
    fn tables_are_in_order() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(FORMS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(FORMS.iter().all(|(name, _)| find(name).is_some()));
    }
}
