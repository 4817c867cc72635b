//! Envoy's pair: the stock binary with static files, configured for the same as ours.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use harness::program::Running;
use harness::{Mesh, Program, curl, mesh, tools, wait};
use serde_json::{Value, json};

use crate::Pair;
use crate::ours::HOST;

/// Starts both and waits until a request passes.
pub(crate) fn start(mesh: &Mesh, origin: SocketAddr, client: &Path, server: &Path) -> Result<Pair> {
    let envoy = tools::python_program("envoy")?;
    let scratch = mesh.scratch("bench")?;
    let between = local(mesh::free_port()?);
    let address = local(mesh::free_port()?);
    let start = |name: &str, configuration: &Value| -> Result<Running> {
        let file = scratch.join(format!("envoy-{name}.json"));
        std::fs::write(&file, serde_json::to_vec_pretty(configuration)?)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        Program::new(&envoy)
            .arg("-c")
            .arg(&file)
            .args(["--disable-hot-restart", "-l", "error", "--concurrency", &cores])
            .background(&scratch.join(format!("envoy-{name}.log")))
    };
    let inbound = start("in", &inbound(between, origin, server))?;
    let outbound = start("out", &outbound(address, between, client))?;
    wait::until("a request through Envoy's pair", Duration::from_secs(20), || {
        curl::get(format!("http://{address}/bench")).header("host", HOST).send()?.expect_status(200)
    })?;
    Ok(Pair { name: "Envoy 1.40.0", proxies: vec![outbound, inbound], address })
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn outbound(listen: SocketAddr, to: SocketAddr, identity: &Path) -> Value {
    let mut tls = certificates(identity);
    tls["validation_context"]["match_typed_subject_alt_names"] =
        json!([{"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/default/sa/helloworld"}}]);
    tls["alpn_protocols"] = json!(["h2"]);
    let tls = typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", json!({"common_tls_context": tls}));
    let http2 = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": {}}}),
    );
    let mut cluster = cluster(to);
    cluster["transport_socket"] = json!({"name": "tls", "typed_config": tls});
    cluster["typed_extension_protocol_options"] =
        json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2});
    let filters = json!([router()]);
    let chain = json!({"filters": [connection_manager(&filters, "outbound", &json!({}))]});
    bootstrap(listen, &chain, &cluster)
}

fn inbound(listen: SocketAddr, to: SocketAddr, identity: &Path) -> Value {
    let mut tls = certificates(identity);
    tls["alpn_protocols"] = json!(["h2"]);
    let tls = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"common_tls_context": tls, "require_client_certificate": true}),
    );
    let client = json!({"exact": "spiffe://cluster.local/ns/default/sa/test"});
    let rbac = typed(
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        json!({"rules": {"policies": {"bench": {
            "permissions": [{"any": true}],
            "principals": [{"authenticated": {"principal_name": client}}],
        }}}}),
    );
    let filters = json!([{"name": "rbac", "typed_config": rbac}, router()]);
    let more = json!({
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": true},
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    });
    let chain = json!({
        "filters": [connection_manager(&filters, "inbound", &more)],
        "transport_socket": {"name": "tls", "typed_config": tls},
    });
    bootstrap(listen, &chain, &cluster(to))
}

fn bootstrap(listen: SocketAddr, chain: &Value, cluster: &Value) -> Value {
    json!({"static_resources": {
        "listeners": [{"name": "listener", "address": socket_address(listen), "filter_chains": [chain]}],
        "clusters": [cluster],
    }})
}

fn connection_manager(filters: &Value, prefix: &str, more: &Value) -> Value {
    let mut manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": prefix,
            "http_filters": filters,
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
            }]},
        }),
    );
    if let (Some(into), Some(more)) = (manager.as_object_mut(), more.as_object()) {
        into.extend(more.clone());
    }
    json!({"name": "http", "typed_config": manager})
}

fn router() -> Value {
    json!({"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({}))})
}

fn cluster(to: SocketAddr) -> Value {
    json!({
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(to)}}]}],
        },
    })
}

fn certificates(identity: &Path) -> Value {
    let file = |name: &str| json!({"filename": identity.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("svid.pem"), "private_key": file("svid.key")}],
        "validation_context": {"trusted_ca": file("bundle.pem")},
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn typed(name: &str, mut value: Value) -> Value {
    value["@type"] = format!("type.googleapis.com/{name}").into();
    value
}
