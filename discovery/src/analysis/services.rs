//! Services of Kubernetes: whether the names of their ports say the protocol.

use super::Context;
use super::message::Report;
use super::resource::{Resource, What};
use super::view::View;

/// Ports whose protocol has to be guessed.
pub(crate) fn port_names(context: &Context<'_>, report: &mut Report) {
    for service in context.set.of(What::Service) {
        let by = service.labels.get("gateway.istio.io/managed").map_or("", String::as_str);
        if service.is_control_plane() || MADE_BY.contains(&by) {
            continue;
        }
        for port in service.spec().get("ports").items() {
            judge(service, port, report);
        }
    }
}

fn judge(service: &Resource, port: View<'_>, report: &mut Report) {
    let name = port.get("name").text();
    let is_alias = service.spec().get("type").text() == "ExternalName";
    if says_protocol(port) && !(is_alias && name == "tcp") {
        return;
    }
    if is_alias {
        let text = "it stands for a name outside, and the name of a port makes it take the traffic of every address";
        return report.tell("IST0150", service, port.get("port"), text);
    }
    let number = port.get("port").word();
    let named = if name.is_empty() { "has no name".to_owned() } else { format!("is called `{name}`") };
    let target = port.get("targetPort").word();
    let to = if target.is_empty() { String::new() } else { format!(" (to {target})") };
    let text = format!("port {number}{to} {named}, which says no protocol");
    report.tell("IST0118", service, port.get("port"), text);
}

/// Whether the protocol of a port is known without guessing.
fn says_protocol(port: View<'_>) -> bool {
    let said = port.get("appProtocol");
    let name = if said.exists() { said.text() } else { port.get("name").text() };
    if port.get("protocol").text() == "UDP" || (said.exists() && OF_KUBERNETES.contains(&name)) {
        return true;
    }
    let name = name.to_ascii_lowercase();
    let protocol = name.split('-').next().unwrap_or_default();
    name.starts_with("grpc-web")
        || PROTOCOLS.contains(&protocol)
        || port.get("port").number().is_some_and(|number| NEVER_GUESSED.contains(&number))
}

const PROTOCOLS: &[&str] =
    &["grpc", "http", "http2", "http_proxy", "https", "mongo", "mysql", "redis", "tcp", "tls", "udp"];
const OF_KUBERNETES: &[&str] = &["kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"];
/// SMTP, DNS, MySQL and MongoDB are always plain TCP: their servers speak first.
const NEVER_GUESSED: &[u64] = &[25, 53, 3306, 27017];
/// Services that a controller makes for gateways.
const MADE_BY: &[&str] = &["istio.io-eastwest-controller", "istio.io-gateway-controller", "istio.io-mesh-controller"];
