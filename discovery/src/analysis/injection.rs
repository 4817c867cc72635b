//! Sidecars of pods: whether they are put in, and whether they are those of today.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Context;
use super::message::{Report, list};
use super::resource::{ROOT_NAMESPACE, Resource, What};
use super::view::View;
use super::webhooks::selector_matches;
use super::workloads::{INJECT, PROXY_CONTAINER, containers, is_injected, is_proxy};
use crate::documents::shapes::{Labels, labels_match};
use crate::documents::tree;

/// Namespaces and pods without sidecars.
pub(crate) fn namespaces(context: &Context<'_>, report: &mut Report) {
    let own = [ROOT_NAMESPACE, context.set.root_namespace()];
    let namespaces = || context.set.of(What::Namespace).filter(|namespace| !own.contains(&namespace.name.as_str()));
    for namespace in namespaces() {
        several_ways(namespace, report);
        not_injected(context, namespace, report);
    }
    let injected: BTreeSet<&str> = namespaces()
        .filter(|namespace| namespace.labels.get(INJECTION).is_some_and(|value| value == "enabled"))
        .filter(|namespace| namespace.labels.get(MODE).is_none_or(|mode| mode != "ambient"))
        .map(|namespace| namespace.name.as_str())
        .collect();
    for pod in context.set.of(What::Pod).filter(|pod| injected.contains(pod.namespace.as_str())) {
        let said = pod.labels.get(INJECT).or_else(|| pod.annotations.get(INJECT));
        let is_left_out = said.is_some_and(|said| said.eq_ignore_ascii_case("false"));
        if !is_left_out && !pod.spec().get("hostNetwork").is_true() && !containers(pod.spec()).any(is_proxy) {
            let text = format!("the pod has no proxy, though pods of {} get one", pod.namespace);
            report.tell("IST0103", pod, pod.name_view(), text);
        }
    }
}

fn several_ways(namespace: &Resource, report: &mut Report) {
    let injection = namespace.labels.get(INJECTION);
    let others = [REVISION, MODE].into_iter().filter(|name| namespace.labels.contains_key(*name));
    let others = others.filter(|_| injection.is_none_or(|value| value == "enabled"));
    let ways: Vec<&str> = injection.map(|_| INJECTION).into_iter().chain(others).collect();
    if ways.len() > 1 {
        let text = format!("several labels say how pods join the mesh: {}", list(ways));
        report.tell("IST0123", namespace, namespace.root().path("metadata.labels"), text);
    }
}

fn not_injected(context: &Context<'_>, namespace: &Resource, report: &mut Report) {
    let revision = namespace.labels.get(REVISION);
    let is_said = namespace.labels.get(INJECTION).is_some_and(|value| !value.is_empty()) || revision.is_some();
    if is_said || namespace.labels.get(MODE).is_some_and(|mode| mode == "ambient") {
        return;
    }
    let map = context.set.of(What::ConfigMap).find(|map| map.name == injector_map(""));
    let default = map.map(values).unwrap_or_default();
    if default["sidecarInjectorWebhook"]["enableNamespacesByDefault"] == true {
        let text = "no label says that its pods get proxies; they do by the injector's default";
        report.tell("IST0148", namespace, namespace.name_view(), text);
    } else {
        report.tell("IST0102", namespace, namespace.name_view(), "its pods get no proxies");
    }
}

/// Pods with another proxy than the injector gives.
pub(crate) fn images(context: &Context<'_>, report: &mut Report) {
    let maps = context.set.of(What::ConfigMap).filter(|map| map.name.starts_with(INJECTOR));
    let images: BTreeMap<&str, String> = maps.map(|map| (map.name.as_str(), image(&values(map)))).collect();
    let mut other: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pod in context.set.of(What::Pod) {
        let Some(namespace) = context.set.namespace(&pod.namespace).filter(|namespace| is_injected_by_label(namespace))
        else {
            continue;
        };
        let revision = namespace.labels.get(REVISION).map_or("", String::as_str);
        let Some(wanted) = images.get(injector_map(revision).as_str()) else { continue };
        if pod.annotations.get("sidecar.istio.io/proxyImage").is_some_and(|image| !image.is_empty()) {
            continue;
        }
        let variant = format!("{wanted}-{}", image_type(context, pod));
        let mut proxies = containers(pod.spec()).filter(|one| one.get("name").text() == PROXY_CONTAINER);
        if proxies.any(|proxy| ![wanted, &variant].iter().any(|image| *image == proxy.get("image").text())) {
            other.entry(&pod.namespace).or_default().insert(&pod.name);
        }
    }
    for (name, pods) in other {
        if let Some(namespace) = context.set.namespace(name) {
            let text = format!("pods with another proxy than the injector gives today: {}", list(pods));
            report.tell("IST0158", namespace, namespace.name_view(), text);
        }
    }
}

fn is_injected_by_label(namespace: &Resource) -> bool {
    is_injected(namespace) || namespace.labels.contains_key(REVISION)
}

/// The injector's settings, which are JSON (or YAML) inside a ConfigMap.
fn values(map: &Resource) -> Value {
    let text = map.root().path("data.values").text();
    let nodes = tree::parse_stream(text).unwrap_or_default();
    nodes.first().map(tree::Node::to_json).unwrap_or_default()
}

fn image(values: &Value) -> String {
    let global = &values["global"];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let image = text(&global["proxy"]["image"]);
    if image.contains('/') { image } else { format!("{}/{image}:{}", text(&global["hub"]), text(&global["tag"])) }
}

fn injector_map(revision: &str) -> String {
    if revision.is_empty() || revision == "default" { INJECTOR.to_owned() } else { format!("{INJECTOR}-{revision}") }
}

/// The kind of image that a pod is to have: by the mesh, its namespace, its labels or itself; the last of them counts.
fn image_type(context: &Context<'_>, pod: &Resource) -> String {
    let root = context.set.root_namespace();
    let mut said: Vec<String> = Vec::new();
    said.extend(context.set.mesh().map(|mesh| mesh.root().path("defaultConfig.image.imageType").word()));
    let configs = |namespace: &str, with_selector: bool| {
        let configs = context
            .set
            .of(What::ProxyConfig)
            .filter(move |config| config.spec().get("selector").exists() == with_selector);
        let namespace = namespace.to_owned();
        configs.filter(move |config| config.namespace == namespace)
    };
    let kind = |config: &Resource| config.spec().path("image.imageType").word();
    said.extend(configs(root, false).map(kind));
    said.extend(configs(&pod.namespace, false).map(kind));
    let is_meant = |config: &&Resource| {
        let labels: Labels = config.spec().path("selector.matchLabels").labels();
        labels_match(&labels, &pod.labels)
    };
    said.extend(configs(&pod.namespace, true).filter(is_meant).map(kind));
    let own = pod.annotations.get("proxy.istio.io/config").and_then(|text| tree::parse_stream(text).ok());
    said.extend(own.iter().flatten().map(|node| View::of(node).path("image.imageType").word()));
    said.into_iter().rfind(|kind| !kind.is_empty()).filter(|kind| kind != "default").unwrap_or_default()
}

/// Proxies left to an injector that does not see them.
pub(crate) fn automatic(context: &Context<'_>, report: &mut Report) {
    for pod in context.set.of(What::Pod) {
        if let Some(image) = automatic_image(pod.spec()) {
            report.tell("IST0147", pod, image, "the pod runs with the image `auto`, which is none");
        }
    }
    for deployment in context.set.of(What::Deployment) {
        let template = deployment.spec().get("template");
        let Some(image) = automatic_image(template.get("spec")) else { continue };
        let namespace = context.set.namespace(&deployment.namespace).map(|one| one.labels.clone()).unwrap_or_default();
        let labels = template.path("metadata.labels").labels();
        let hooks = context.set.of(What::MutatingWebhook).flat_map(|config| config.root().get("webhooks").items());
        let mut hooks = hooks.filter(|hook| hook.get("name").text().ends_with("istio.io"));
        let is_seen = hooks.any(|hook| {
            selector_matches(hook.get("namespaceSelector"), &namespace)
                && selector_matches(hook.get("objectSelector"), &labels)
        });
        if !is_seen {
            report.tell("IST0146", deployment, image, "the image `auto` is left to an injector that does not see this");
        }
    }
}

fn automatic_image(pod: View<'_>) -> Option<View<'_>> {
    let mut containers = pod.get("containers").items().filter(|one| one.get("name").text() == PROXY_CONTAINER);
    containers.find(|one| one.get("image").text() == "auto").map(|one| one.get("image"))
}

const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
const MODE: &str = "istio.io/dataplane-mode";
const INJECTOR: &str = "istio-sidecar-injector";
