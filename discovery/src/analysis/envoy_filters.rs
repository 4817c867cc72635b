//! Patches of Envoy's configuration: operations that have no effect, or depend on the order of patches.

use super::Context;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;

/// Patches, in the order of the documents.
pub(crate) fn patches(context: &Context<'_>, report: &mut Report) {
    let mut versioned: Vec<String> = Vec::new();
    for filter in context.set.of(What::EnvoyFilter) {
        for patch in filter.spec().get("configPatches").items() {
            if !patch.get("patch").exists() {
                break;
            }
            let name = name_of(patch);
            judge(filter, patch, versioned.contains(&name), report);
            if !patch.path("match.proxy.proxyVersion").text().is_empty() {
                versioned.push(name);
            }
        }
    }
}

/// The name of what is patched; empty when it is not known.
fn name_of(patch: View<'_>) -> String {
    let value = patch.path("patch.value");
    if value.entries().next().is_none() {
        return String::new();
    }
    match value.get("name").word() {
        name if name.is_empty() => patch.path("match.listener.filterChain.filter.name").word(),
        name => name,
    }
}

fn judge(filter: &Resource, patch: View<'_>, is_versioned: bool, report: &mut Report) {
    let operation = patch.path("patch.operation");
    let target = patch.get("applyTo").text();
    let is_whole = ["ROUTE_CONFIGURATION", "HTTP_ROUTE"].contains(&target);
    let wrong = match operation.text() {
        "ADD" => is_whole.then_some("IST0153"),
        "REMOVE" if is_whole => Some("IST0154"),
        "REPLACE" if !REPLACED.contains(&target) => Some("IST0152"),
        "REMOVE" | "REPLACE" | "INSERT_BEFORE" | "INSERT_AFTER" => {
            return relative(filter, operation, is_versioned, report);
        }
        _ => None,
    };
    if let Some(code) = wrong {
        report.tell(
            code,
            filter,
            operation,
            format!("{} has no effect on what the patch is applied to", operation.text()),
        );
    }
}

/// An operation whose effect depends on the patches before it.
fn relative(filter: &Resource, operation: View<'_>, is_versioned: bool, report: &mut Report) {
    if filter.spec().get("priority").number().is_some_and(|priority| priority != 0)
        || filter.spec().get("priority").word().starts_with('-')
    {
        return;
    }
    if is_versioned {
        let text = "a patch depends on another that only some versions of the proxy get, and there is no priority";
        report.tell("IST0155", filter, operation, text);
    } else {
        report.tell("IST0151", filter, operation, "a patch depends on the patches before it, and there is no priority");
    }
}

const REPLACED: &[&str] = &["HTTP_FILTER", "NETWORK_FILTER", "VIRTUAL_HOST"];
