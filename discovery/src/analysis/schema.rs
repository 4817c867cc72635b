//! What is wrong with single documents: their schema and rules, and fields that are deprecated.

use std::collections::BTreeMap;

use super::Context;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;
use crate::documents::Severity;

/// What `kasbah validate` says of each document.
pub(crate) fn validate(context: &Context<'_>, report: &mut Report) {
    for (index, finding) in &context.set.reviews {
        let Some(resource) = context.set.all().get(*index) else { continue };
        if SAID_ELSEWHERE.contains(&finding.reason) {
            continue;
        }
        let code = if finding.severity == Severity::Error { "IST0106" } else { "IST0133" };
        let line = if finding.line == 0 { 0 } else { finding.line + resource.lines_before };
        report.tell_line(code, resource, line, format!("{}: {}", finding.reason, finding.text));
    }
    duplicates(context, report);
}

/// Documents of one kind and name, of which one serves.
fn duplicates(context: &Context<'_>, report: &mut Report) {
    let mut seen: BTreeMap<(What, &str, &str), &Resource> = BTreeMap::new();
    let is_judged = |one: &&Resource| !one.is_assumed && one.what != What::Other && !one.name.is_empty();
    for resource in context.set.all().iter().filter(is_judged) {
        match seen.get(&(resource.what, &resource.namespace, &resource.name)) {
            Some(first) => {
                let (file, line) = (first.file.display(), first.line(first.root().at()));
                let text = format!("DOCUMENT_DUPLICATE: already defined at {file}:{line}");
                report.tell("IST0133", resource, resource.name_view(), text);
            }
            None => {
                seen.insert((resource.what, &resource.namespace, &resource.name), resource);
            }
        }
    }
}

/// Fields and kinds that are gone or going.
pub(crate) fn deprecated(context: &Context<'_>, report: &mut Report) {
    for service in context.set.of(What::VirtualService) {
        for rule in service.spec().get("http").items() {
            let percent = rule.path("fault.delay.percent");
            if percent.number().is_some_and(|percent| percent > 0) {
                let text = "`fault.delay.percent` is deprecated; `fault.delay.percentage.value` has taken its place";
                report.tell("IST0002", service, percent, text);
            }
        }
    }
    for sidecar in context.set.of(What::Sidecar) {
        let egress = sidecar.spec().path("outboundTrafficPolicy.egressProxy");
        if egress.exists() {
            let text = "`outboundTrafficPolicy.egressProxy` is deprecated and has no effect";
            report.tell("IST0002", sidecar, egress, text);
        }
    }
    for definition in context.set.of(What::CustomResourceDefinition) {
        let spec = definition.spec();
        let kind = spec.path("names.kind");
        if spec.get("group").text() == "rbac.istio.io" && GONE.contains(&kind.text()) {
            let text = format!("the kind {} of rbac.istio.io is gone; use AuthorizationPolicy", kind.text());
            report.tell("IST0002", definition, kind, text);
        }
    }
    gone_documents(context, report);
}

/// Documents of kinds that are gone.
fn gone_documents(context: &Context<'_>, report: &mut Report) {
    for resource in context.set.of(What::Other) {
        let version: View<'_> = resource.root().get("apiVersion");
        if version.text().starts_with("rbac.istio.io/") && GONE.contains(&resource.kind.as_str()) {
            let text = format!("{} is gone and has no effect; use AuthorizationPolicy", resource.kind);
            report.tell("IST0002", resource, version, text);
        }
    }
}

/// Codes of validation that other analyzers tell better, or that say nothing about the document.
const SAID_ELSEWHERE: &[&str] = &["KIND_SKIPPED", "ROUTE_UNREACHABLE"];
const GONE: &[&str] = &["ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding"];
