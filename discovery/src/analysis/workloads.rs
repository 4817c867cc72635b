//! Everything of a set that has labels for selectors: pods, templates of pods, workload entries and endpoints.

use super::resource::{Resource, What};
use super::set::Set;
use super::view::View;
use crate::documents::shapes::{Labels, labels_match};

/// Something that runs, or will run.
#[derive(Clone, Debug)]
pub(crate) struct Workload<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    /// The pod's own spec; nothing for what is no pod.
    pub(crate) pod: View<'a>,
    pub(crate) service_account: String,
}

impl<'a> Workload<'a> {
    fn of_pod(resource: &'a Resource, template: View<'a>) -> Self {
        let meta = template.get("metadata");
        let pod = template.get("spec");
        let account = [pod.get("serviceAccountName"), pod.get("serviceAccount")].map(View::text);
        Self {
            resource,
            labels: meta.get("labels").labels(),
            annotations: meta.get("annotations").labels(),
            pod,
            service_account: account.into_iter().find(|name| !name.is_empty()).unwrap_or("default").to_owned(),
        }
    }

    fn of_entry(resource: &'a Resource, entry: View<'a>, mut labels: Labels) -> Self {
        labels.extend(entry.get("labels").labels());
        let service_account = entry.get("serviceAccount").text().to_owned();
        Self { resource, labels, annotations: resource.annotations.clone(), pod: View::nothing(), service_account }
    }

    pub(crate) fn namespace(&self) -> &'a str {
        &self.resource.namespace
    }

    pub(crate) fn is_pod(&self) -> bool {
        self.pod.exists() || self.resource.what == What::Pod
    }

    /// All containers, with those that begin first.
    pub(crate) fn containers(&self) -> impl Iterator<Item = View<'a>> {
        containers(self.pod)
    }

    pub(crate) fn is_ambient(&self) -> bool {
        self.annotations.get("ambient.istio.io/redirection").is_some_and(|value| value == "enabled")
    }

    /// Whether a proxy stands before it. Templates are taken to be in the mesh where nothing says that they are not; of a
    /// pod, the proxy can be seen.
    pub(crate) fn is_in_mesh(&self, set: &Set) -> bool {
        if !self.is_pod() || self.containers().any(is_proxy) {
            return true;
        }
        let said = self.labels.get(INJECT).or_else(|| self.annotations.get(INJECT));
        match (said, set.namespace(self.namespace())) {
            (Some(said), _) => said == "true",
            (None, Some(namespace)) => is_injected(namespace),
            (None, None) => self.resource.what != What::Pod,
        }
    }
}

/// Containers of a pod's spec, with those that begin first.
pub(crate) fn containers(pod: View<'_>) -> impl Iterator<Item = View<'_>> {
    pod.get("containers").items().chain(pod.get("initContainers").items())
}

/// Whether the container is Istio's proxy, with an image.
pub(crate) fn is_proxy(container: View<'_>) -> bool {
    container.get("name").text() == PROXY_CONTAINER && !container.get("image").text().is_empty()
}

/// Whether pods of the namespace get sidecars.
pub(crate) fn is_injected(namespace: &Resource) -> bool {
    match namespace.labels.get("istio-injection") {
        Some(value) => value == "enabled",
        None => namespace.labels.contains_key("istio.io/rev"),
    }
}

/// Whether pods of the namespace are captured without sidecars.
pub(crate) fn is_ambient(namespace: &Resource) -> bool {
    let has_sidecars = namespace.labels.get("istio-injection").is_some_and(|value| value == "enabled")
        || namespace.labels.get("istio.io/rev").is_some_and(|value| !value.is_empty());
    !has_sidecars && namespace.labels.get("istio.io/dataplane-mode").is_some_and(|value| value == "ambient")
}

/// Every workload of the set.
pub(crate) fn all(set: &Set) -> Vec<Workload<'_>> {
    let mut workloads = Vec::new();
    for (what, path) in TEMPLATES {
        workloads.extend(set.of(*what).map(|resource| Workload::of_pod(resource, template(resource, path))));
    }
    for entry in set.of(What::WorkloadEntry) {
        workloads.push(Workload::of_entry(entry, entry.spec(), entry.labels.clone()));
    }
    for group in set.of(What::WorkloadGroup) {
        let labels = group.spec().path("metadata.labels").labels();
        workloads.push(Workload::of_entry(group, group.spec().get("template"), labels));
    }
    for service in set.of(What::ServiceEntry) {
        let endpoints = service.spec().get("endpoints").items().filter(|endpoint| endpoint.get("labels").exists());
        workloads.extend(endpoints.map(|endpoint| Workload::of_entry(service, endpoint, Labels::new())));
    }
    workloads
}

fn template<'a>(resource: &'a Resource, path: &str) -> View<'a> {
    if path.is_empty() { resource.root() } else { resource.root().path(path) }
}

/// Those of a namespace (of all when there is none) that have the labels.
pub(crate) fn selected<'a, 'b>(
    workloads: &'b [Workload<'a>],
    namespace: Option<&'b str>,
    labels: &'b Labels,
) -> impl Iterator<Item = &'b Workload<'a>> {
    workloads
        .iter()
        .filter(move |workload| namespace.is_none_or(|namespace| workload.namespace() == namespace))
        .filter(move |workload| labels_match(labels, &workload.labels))
}

/// Whether the labels are as a selector wants them.
pub(crate) fn is_selected(selector: View<'_>, labels: &Labels) -> bool {
    selector.entries().all(|(name, value)| labels.get(name).is_some_and(|label| value.is(label)))
}

/// Labels as a selector writes them.
pub(crate) fn selector_text(labels: &Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

pub(crate) const PROXY_CONTAINER: &str = "istio-proxy";
pub(crate) const INJECT: &str = "sidecar.istio.io/inject";

/// Where kinds have the pod that they make.
pub(crate) const TEMPLATES: &[(What, &str)] = &[
    (What::Pod, ""),
    (What::Deployment, "spec.template"),
    (What::StatefulSet, "spec.template"),
    (What::DaemonSet, "spec.template"),
    (What::ReplicaSet, "spec.template"),
    (What::Job, "spec.template"),
    (What::CronJob, "spec.jobTemplate.spec.template"),
];
