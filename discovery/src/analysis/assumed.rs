//! What Istio installs and nobody writes down: the ingress gateway with its Service. Documents may name it; nothing is told
//! about it.

use std::path::Path;
use std::sync::Arc;

use super::resource::Resource;
use super::set::Set;
use crate::documents::tree;

/// Adds the ingress gateway of the mesh.
pub(crate) fn add(set: &mut Set) {
    let named = set.mesh().map(|mesh| mesh.root().get("ingressService").text()).unwrap_or_default();
    let name = if named.is_empty() { "istio-ingressgateway" } else { named };
    let text = INGRESS.replace("IN", &format!("{:?}", set.root_namespace())).replace("NAME", &format!("{name:?}"));
    let file: Arc<Path> = Path::new("").into();
    for node in tree::parse_stream(&text).unwrap_or_default() {
        if let Some(mut resource) = Resource::read(node, &file, 0) {
            resource.is_assumed = true;
            if set.find(resource.what, &resource.namespace, &resource.name).is_none() {
                set.add(resource);
            }
        }
    }
}

const INGRESS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: IN, labels: {istio: ingressgateway, app: istio-ingressgateway}}
spec:
  containers:
  - {name: istio-proxy, image: proxy}
---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: IN, labels: {istio: ingressgateway}}
spec:
  selector: {istio: ingressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 80, protocol: TCP}
  - {name: https, port: 443, targetPort: 443, protocol: TCP}
  - {name: tcp, port: 31400, targetPort: 31400, protocol: TCP}
  - {name: tls, port: 15443, targetPort: 15443, protocol: TCP}
";
