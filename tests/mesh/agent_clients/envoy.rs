//! Stock Envoy on both ends of mutual TLS, with nothing but secrets of our agent: one process takes requests and sends them
//! on as `/client`, another receives them as `/server`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::load::{Load, Plan};
use harness::program::Running;
use harness::{Program, curl, mesh, wait};
use serde_json::{Value, json};

use crate::site::{START_MAX, Site};

/// Load through both until each has taken so many certificates after the first; `mode` is Envoy's word for the variant of
/// the protocol.
pub(super) fn serve_through(site: &Site, envoy: &Path, mode: &str, rotations: usize) -> Result<()> {
    let [front, back, front_admin, back_admin] = [0; 4].map(|_| mesh::free_port());
    let (front, back, front_admin, back_admin) = (front?, back?, front_admin?, back_admin?);
    let tls = |own: &str, peer: &str| common_tls(mode, own, peer);
    let answers = json!({"status": 200, "body": {"inline_string": "behind Envoy"}});
    let server = json!({
        "listener": listener(back, json!({"direct_response": answers}), Some(&tls("server", "client"))),
        "clusters": [],
    });
    let client = json!({
        "listener": listener(front, json!({"route": {"cluster": "back"}}), None),
        "clusters": [cluster("back", back, &tls("client", "server"))],
    });
    let _back = start(site, envoy, &format!("{mode}-back"), back_admin, &server)?;
    let _front = start(site, envoy, &format!("{mode}-front"), front_admin, &client)?;
    let ask = || curl::get(format!("http://127.0.0.1:{front}/")).send()?.expect_status(200).map(drop);
    let log = || format!("{}\n{}", site.log(&format!("{mode}-front")), site.log(&format!("{mode}-back")));
    wait::until("an answer through both Envoys", START_MAX, ask).with_context(log)?;
    let before = [certificates_taken(front_admin)?, certificates_taken(back_admin)?];
    let load = Load::start(Plan {
        address: ([127, 0, 0, 1], front).into(),
        request: "GET / HTTP/1.1\r\nhost: server".into(),
        connections: 4,
        pause: Duration::from_millis(20),
        expect: 200,
    });
    let began = Instant::now();
    let taken = wait::until("the rotations", super::ROTATIONS_MAX, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = [certificates_taken(front_admin)?, certificates_taken(back_admin)?];
        let taken = [now[0] - before[0], now[1] - before[1]];
        ensure!(taken.iter().all(|taken| *taken >= rotations as u64), "{taken:?} after {:?}", began.elapsed());
        Ok(taken)
    });
    let tally = load.stop();
    let taken = taken.with_context(log)?;
    tally.expect_no_failure().with_context(log)?;
    let handshakes = stats(back_admin, "ssl.handshake")?.iter().map(|(_, count)| count).sum::<u64>();
    ensure!(tally.answered > 1_000, "the load was no load: {} requests", tally.answered);
    ensure!(handshakes > 10 * taken[1], "{handshakes} handshakes in {} rotations", taken[1]);
    for admin in [front_admin, back_admin] {
        let rejected: Vec<_> = stats(admin, "update_rejected")?.into_iter().filter(|(_, count)| *count > 0).collect();
        ensure!(rejected.is_empty(), "{rejected:?}");
    }
    Ok(())
}

fn start(site: &Site, envoy: &Path, name: &str, admin: u16, parts: &Value) -> Result<Running> {
    let mut clusters = parts["clusters"].as_array().cloned().unwrap_or_default();
    let pipe = json!({"pipe": {"path": site.path("sds.sock")}});
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    clusters.push(json!({
        "name": "agent",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": assignment("agent", &pipe),
    }));
    let bootstrap = json!({
        "node": {"id": name, "cluster": name},
        "static_resources": {"listeners": [parts["listener"]], "clusters": clusters},
        "admin": {"address": socket_address(admin)},
    });
    let file = site.write(&format!("{name}.json"), &bootstrap.to_string())?;
    let program = Program::new(envoy).arg("-c").arg(&file);
    let program = program.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]);
    program.background(&file.with_extension("log"))
}

/// What both directions share: the own certificate by its SPIFFE ID, and of the peer that it is from the trust domain and who
/// it says it is.
fn common_tls(mode: &str, own: &str, peer: &str) -> Value {
    let source = json!({
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": mode,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        },
    });
    let matcher = json!({"san_type": "URI", "matcher": {"exact": format!("spiffe://example.org/{peer}")}});
    json!({
        "tls_certificate_sds_secret_configs": [{"name": format!("spiffe://example.org/{own}"), "sds_config": source}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": source},
        },
    })
}

fn listener(port: u16, action: Value, tls: Option<&Value>) -> Value {
    let mut route = json!({"match": {"prefix": "/"}});
    route.as_object_mut().into_iter().for_each(|route| route.extend(action.as_object().cloned().unwrap_or_default()));
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    let mut chain = json!({"filters": [{"name": "http", "typed_config": manager}]});
    if let Some(common) = tls {
        chain["transport_socket"] = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common,
            "disable_stateless_session_resumption": true,
        }});
    }
    json!({"name": "listener", "address": socket_address(port), "filter_chains": [chain]})
}

fn cluster(name: &str, port: u16, common: &Value) -> Value {
    let protocol = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        // New connections all the time: a kept one would show nothing of a rotation.
        "common_http_protocol_options": {"max_requests_per_connection": 5},
        "explicit_http_config": {"http_protocol_options": {}},
    });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_assignment": assignment(name, &socket_address(port)),
        "transport_socket": {"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common,
            "max_session_keys": 0,
        }},
    })
}

fn assignment(name: &str, address: &Value) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

fn socket_address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// How many times certificates of the agent were put in force.
fn certificates_taken(admin: u16) -> Result<u64> {
    let taken = stats(admin, "ssl_context_update_by_sds")?;
    Ok(taken.iter().map(|(_, count)| count).sum())
}

fn stats(admin: u16, ending: &str) -> Result<Vec<(String, u64)>> {
    let page = curl::get(format!("http://127.0.0.1:{admin}/stats?filter={}$", ending.replace('.', "%5C."))).send()?;
    let page = page.expect_status(200)?;
    let line = |line: &str| Some((line.rsplit_once(": ")?.0.to_owned(), line.rsplit_once(": ")?.1.parse().ok()?));
    Ok(page.body.lines().filter_map(line).collect())
}
