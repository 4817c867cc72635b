//! Webhooks of Istio: where they lead, and whether two inject the same pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Context;
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use crate::documents::shapes::{Labels, labels_match};

/// Addresses of a control plane elsewhere.
pub(crate) fn control_plane(context: &Context<'_>, report: &mut Report) {
    let validating = context.set.of(What::ValidatingWebhook);
    let validating =
        validating.filter(|one| one.name == "istiod-default-validator" || one.name.starts_with("istio-validator"));
    let mutating = context.set.of(What::MutatingWebhook).filter(|one| one.name.starts_with("istio-sidecar-injector"));
    for config in validating.chain(mutating) {
        for hook in config.root().get("webhooks").items() {
            address(config, hook, report);
        }
    }
}

fn address(config: &Resource, hook: View<'_>, report: &mut Report) {
    let client = hook.get("clientConfig");
    let (url, name) = (client.get("url"), hook.get("name").text());
    if !url.exists() {
        if !client.get("service").exists() {
            report.tell("IST0163", config, client, format!("the webhook {name} leads nowhere"));
        }
        return;
    }
    match host_of(url.text()) {
        None => {
            let text = format!("the webhook {name} leads to `{}`, which is no URL", url.word());
            report.tell("IST0163", config, url, text);
        }
        Some(host) if host.parse::<IpAddr>().is_ok() => {
            let text = format!("the webhook {name} names the control plane by its address {host}");
            report.tell("IST0164", config, url, text);
        }
        Some(_) => {}
    }
}

/// The host of an URL; none when it is no URL.
pub(crate) fn host_of(url: &str) -> Option<&str> {
    let is_printable = url.chars().all(|c| c.is_ascii_graphic());
    let (scheme, rest) = url.split_once("://").filter(|_| is_printable)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (is_scheme && !host.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok())).then_some(host)
}

/// Injectors that meet at the same pods, and services of theirs that do not exist.
pub(crate) fn injectors(context: &Context<'_>, report: &mut Report) {
    let hooks: Vec<(&Resource, View<'_>)> = context
        .set
        .of(What::MutatingWebhook)
        .filter(|config| is_injector(config))
        .flat_map(|config| config.root().get("webhooks").items().map(move |hook| (config, hook)))
        .collect();
    meeting(&hooks, report);
    for (config, hook) in &hooks {
        let service = hook.path("clientConfig.service");
        let (namespace, name) = (service.get("namespace").text(), service.get("name").text());
        if service.exists() && context.set.find(What::Service, namespace, name).is_none() {
            let text = format!(
                "the webhook {} leads to the service {namespace}/{name}, which is not there",
                hook.get("name").text()
            );
            report.tell("IST0139", config, service, text);
        }
    }
}

fn is_injector(config: &Resource) -> bool {
    let hooks = || config.root().get("webhooks").items();
    hooks().any(|hook| hook.get("name").text().ends_with("istio.io")) || !revisions(config).is_empty()
}

/// The revisions that a configuration is for.
fn revisions(config: &Resource) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = config.labels.get(REVISION).cloned().into_iter().collect();
    for hook in config.root().get("webhooks").items() {
        for selector in [hook.get("namespaceSelector"), hook.get("objectSelector")] {
            found.extend(selector.get("matchLabels").labels().get(REVISION).cloned());
            for expression in selector.get("matchExpressions").items() {
                if expression.get("key").text() == REVISION {
                    found.extend(expression.get("values").texts().into_iter().map(str::to_owned));
                }
            }
        }
    }
    found
}

/// Tries every way in which a namespace and a pod can be labelled.
fn meeting(hooks: &[(&Resource, View<'_>)], report: &mut Report) {
    let revisions: BTreeSet<String> =
        hooks.iter().flat_map(|(config, _)| revisions(config)).take(REVISIONS_MAX).collect();
    let mut meet: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for namespace in labelled("istio-injection", ["enabled", "disabled"], &revisions) {
        for pod in labelled("sidecar.istio.io/inject", ["true", "false"], &revisions) {
            let seen: Vec<usize> = (0..hooks.len()).filter(|at| sees(hooks[*at].1, &namespace, &pod)).collect();
            for at in seen.iter().filter(|_| seen.len() > 1) {
                let others = seen.iter().filter(|other| *other != at).map(|other| title(&hooks[*other]));
                meet.entry(*at).or_default().extend(others);
            }
        }
    }
    for (at, others) in meet {
        let (config, hook) = hooks[at];
        let text = format!("the webhook {} injects pods that {} inject, too", hook.get("name").text(), list(others));
        report.tell("IST0139", config, hook, text);
    }
}

fn title((config, hook): &(&Resource, View<'_>)) -> String {
    format!("{}/{}", config.name, hook.get("name").text())
}

fn sees(hook: View<'_>, namespace: &Labels, pod: &Labels) -> bool {
    selector_matches(hook.get("namespaceSelector"), namespace) && selector_matches(hook.get("objectSelector"), pod)
}

fn labelled(name: &str, values: [&str; 2], revisions: &BTreeSet<String>) -> Vec<Labels> {
    let mut found = Vec::new();
    for value in [None, Some(values[0]), Some(values[1])] {
        let base: Labels = value.map(|value| (name.to_owned(), value.to_owned())).into_iter().collect();
        found.push(base.clone());
        for revision in revisions {
            let mut labels = base.clone();
            labels.insert(REVISION.to_owned(), revision.clone());
            found.push(labels);
        }
    }
    found
}

/// Whether labels are as a selector of Kubernetes wants them; one that is absent takes all, one that is none takes nobody.
pub(crate) fn selector_matches(selector: View<'_>, labels: &Labels) -> bool {
    let holds = |expression: View<'_>| {
        let value = labels.get(expression.get("key").text());
        let values = expression.get("values").texts();
        let is_in = value.is_some_and(|value| values.contains(&value.as_str()));
        match expression.get("operator").text() {
            "In" => is_in,
            "NotIn" => !is_in,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    labels_match(&selector.get("matchLabels").labels(), labels) && selector.get("matchExpressions").items().all(holds)
}

const REVISION: &str = "istio.io/rev";
const REVISIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::super::tests::analysis;
    use super::*;

    #[test]
    fn so_many_revisions_are_tried_and_no_more() {
        let hooks = |name: &str, revisions: &str| {
            format!(
                "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {{name: {name}}}\n\
                 webhooks:\n- name: {name}.istio.io\n  namespaceSelector: {{matchExpressions: [{{key: istio.io/rev, operator: In, values: [{revisions}]}}]}}\n---\n"
            )
        };
        let told = |others: usize| {
            let all = (0..others).map(|number| format!("r{number:02}, ")).collect::<String>() + "z";
            analysis(&(hooks("a", &all) + &hooks("b", "z")), &["webhook.Analyzer"]).messages.len()
        };
        assert_eq!(told(REVISIONS_MAX - 1), 2, "one for each");
        assert_eq!(told(REVISIONS_MAX), 0);
    }

    #[test]
    fn hosts_are_found_in_urls() {
        assert_eq!(host_of("https://test.com:15017/inject"), Some("test.com"));
        assert_eq!(host_of("https://[::1]:80/"), Some("::1"));
        for text in ["", "test.com", "https://", "https://a b/", "https://a:x/"] {
            assert_eq!(host_of(text), None, "{text}");
        }
    }
}
