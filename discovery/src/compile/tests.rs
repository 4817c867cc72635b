//! The demo mesh, compiled: what each node is given, judged by our own engine.

use std::path::PathBuf;

use routing::listener::{ConnectionFacts, Listener, Terminal};

use super::Mesh;
use super::sample::{
    Asked, assert_accepted, cluster, compile, decoded, documents, listener, router, routes, sidecar, trust_domain,
    verdict,
};
use crate::node::{NodeFacts, NodeKind};
use crate::resources::{Resources, Type};
use serde_json::json;

/// The demo's documents as `kasbah up` fills them in.
pub(crate) fn demo() -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|suffix| suffix == "yaml"));
    files.sort();
    let text: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let jwk = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    text.join("\n---\n")
        .replace("${HELLOWORLD_ADDRESS}", "127.0.0.2")
        .replace("${TEST_ADDRESS}", "127.0.0.3")
        .replace("${EGRESS_ADDRESS}", "127.0.0.5")
        .replace("${EXTERNAL_ADDRESS}", "127.0.0.4")
        .replace("${POLICY_ADDRESS}", "127.0.0.1")
        .replace("${POLICY_PORT}", "9191")
        .replace("${INGRESS_CERT}", "/etc/ingress/cert.pem")
        .replace("${INGRESS_KEY}", "/etc/ingress/key.pem")
        .replace("${JWKS}", jwk)
}

fn ingress() -> NodeFacts {
    NodeFacts { port_map: [(80, 8080), (443, 8443), (9096, 9096)].into(), ..router("ingressgateway", "127.0.0.1") }
}

fn grpc_client() -> NodeFacts {
    NodeFacts { kind: NodeKind::Grpc, capture: true, ..sidecar("client", "127.0.0.1") }
}

fn names(resources: &Resources, kind: Type) -> Vec<&str> {
    resources.of(kind).map(|resource| resource.name.as_str()).collect()
}

fn chain<'a>(listener: &'a Listener, sni: Option<&str>) -> Option<&'a str> {
    let address = "127.0.0.9:4000".parse().unwrap();
    let facts = ConnectionFacts {
        destination: "127.0.0.2:15006".parse().unwrap(),
        source: address,
        direct_source: address,
        sni,
        alpn: &[],
        transport: if sni.is_some() { "tls" } else { "raw_buffer" },
    };
    listener.pick(&facts).map(|chain| &*chain.name)
}

/// Where a request goes: `ROUTE -> CLUSTER`, or the code of the refusal.
fn goes(resources: &Resources, table: &str, asked: &Asked) -> String {
    let table = routes(resources, table);
    let request = asked.request();
    match table.pick(&request, 0) {
        Ok(selection) => match selection.cluster(&request, 0) {
            Some(pick) => format!("{} -> {}", selection.route.name, pick.name),
            None => selection.route.name.to_string(),
        },
        Err(none) => none.reason().to_owned(),
    }
}

fn get(host: &str, path: &str) -> Asked {
    Asked::new("GET", host, path)
}

#[test]
fn our_own_engine_accepts_everything() {
    let demo = demo();
    let captured = NodeFacts { capture: true, ..sidecar("helloworld", "127.0.0.2") };
    for node in [
        sidecar("helloworld", "127.0.0.2"),
        sidecar("test", "127.0.0.3"),
        captured,
        ingress(),
        router("egressgateway", "127.0.0.5"),
    ] {
        assert_accepted(&compile(&demo, &node));
    }
}

#[test]
fn equal_documents_have_equal_versions() {
    let documents = documents(&demo());
    let version = |node: &NodeFacts| {
        let resources = Mesh::build(&documents, &trust_domain()).compile(node);
        Type::ALL.map(|kind| resources.version(kind))
    };
    for node in [sidecar("test", "127.0.0.3"), ingress(), grpc_client()] {
        assert_eq!(version(&node), version(&node));
    }
}

#[test]
fn a_sidecar_takes_mtls_only_and_finds_the_port_by_sni() {
    let resources = compile(&demo(), &sidecar("helloworld", "127.0.0.2"));
    let inbound = listener(&resources, "virtualInbound");
    let host = "helloworld.default.svc.cluster.local";
    assert_eq!(chain(&inbound, Some(&format!("outbound_.9095_._.{host}"))), Some("inbound|9095||"));
    assert_eq!(chain(&inbound, Some(&format!("outbound_.9096_._.{host}"))), Some("inbound|9096||"));
    assert_eq!(chain(&inbound, Some(host)), Some("default|inbound|9095||"), "a gRPC library's SNI");
    assert_eq!(chain(&inbound, None), None, "plain text is refused");
    let tls = inbound.chains[0].tls.as_ref().unwrap();
    assert!(tls.require_client_certificate);
    assert_eq!(tls.common.min_version, Some(routing::tls::TlsVersion::V1_3));
    let own = cluster(&resources, "inbound|9095||");
    assert!(own.tls.is_none());
}

#[test]
fn what_callers_upgrade_reaches_the_program_as_http1() {
    use routing::cluster::UpstreamProtocol::{Http1, Http2, UseDownstream};
    let protocols = |pool: &str| {
        let resources =
            compile(&demo().replace("{useClientProtocol: true}", pool), &sidecar("helloworld", "127.0.0.2"));
        let of = |name: &str| cluster(&resources, name).http.protocol;
        (of("outbound|9095||helloworld.default.svc.cluster.local"), of("inbound|9095||"))
    };
    assert_eq!(protocols("{useClientProtocol: true}"), (UseDownstream, UseDownstream));
    assert_eq!(protocols("{h2UpgradePolicy: UPGRADE}"), (Http2, Http1));
    assert_eq!(protocols("{maxRetries: 3}"), (Http1, UseDownstream));
}

#[test]
fn permissive_and_disable_open_plain_text() {
    let with = |mode: &str| {
        compile(
            &demo().replace("mtls: {mode: STRICT}", &format!("mtls: {{mode: {mode}}}")),
            &sidecar("helloworld", "127.0.0.2"),
        )
    };
    let sni = Some("outbound_.9095_._.helloworld.default.svc.cluster.local");
    let permissive = listener(&with("PERMISSIVE"), "virtualInbound");
    assert_eq!(
        (chain(&permissive, None), chain(&permissive, sni)),
        (Some("plain|inbound|9095||"), Some("inbound|9095||"))
    );
    let disabled = with("DISABLE");
    let open = listener(&disabled, "virtualInbound");
    assert_eq!((chain(&open, None), chain(&open, sni)), (Some("plain|inbound|9095||"), None));
    let client = cluster(&disabled, "outbound|9095||test.default.svc.cluster.local");
    assert!(client.tls.is_none(), "clients follow the mesh's policy");
}

#[test]
fn clusters_name_the_identities_they_expect() {
    let resources = compile(&demo(), &sidecar("test", "127.0.0.3"));
    let to = cluster(&resources, "outbound|9095||helloworld.default.svc.cluster.local");
    let tls = to.tls.as_ref().unwrap();
    assert_eq!(tls.sni.as_deref(), Some("outbound_.9095_._.helloworld.default.svc.cluster.local"));
    let expected = vec!["spiffe://cluster.local/ns/default/sa/helloworld"];
    assert_eq!(tls.common.validation.exact_uris(), Some(expected));
    assert_eq!(to.http.protocol, routing::cluster::UpstreamProtocol::UseDownstream);
    assert_eq!(to.bind.map(|bind| bind.ip().to_string()), Some("127.0.0.3".to_owned()));
    let egress = cluster(&resources, "outbound|8443||istio-egressgateway.istio-system.svc.cluster.local");
    assert_eq!(egress.tls.as_ref().unwrap().sni.as_deref(), Some("external.example.com"));
    assert!(cluster(&resources, "outbound|9095||external.example.com").tls.is_none());
    let policy = cluster(&resources, "outbound|9191||policy.kasbah-system.svc.cluster.local");
    assert_eq!(policy.http.protocol, routing::cluster::UpstreamProtocol::Http2);
}

#[test]
fn a_workload_reaches_what_the_mesh_knows_and_nothing_else() {
    let resources = compile(&demo(), &sidecar("test", "127.0.0.3"));
    let goes = |host: &str, path: &str| goes(&resources, "http_proxy", &get(host, path));
    let helloworld = "default -> outbound|9095||helloworld.default.svc.cluster.local";
    for host in ["helloworld", "helloworld.default", "helloworld.default.svc.cluster.local:9095", "helloworld:9095"] {
        assert_eq!(goes(host, "/"), helloworld, "{host}");
    }
    assert_eq!(goes("external.example.com", "/direct/x"), "direct -> outbound|9095||external.example.com");
    assert_eq!(
        goes("external.example.com:9095", "/"),
        "through-egress -> outbound|8443||istio-egressgateway.istio-system.svc.cluster.local"
    );
    assert_eq!(goes("elsewhere.example", "/"), "block_all");
    assert_eq!(goes("helloworld:9999", "/"), "block_all");
}

#[test]
fn the_caller_learns_who_answered() {
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    let resources = compile(&demo(), &sidecar("test", "127.0.0.3"));
    let table: RouteConfiguration = decoded(&resources, Type::Route, "http_proxy");
    let host = table.virtual_hosts.iter().find(|host| host.name.starts_with("helloworld")).unwrap();
    let edits = super::route_action::names(&host.routes[0].response_headers_to_add);
    assert_eq!(edits["x-peer-spiffe-id"], "%UPSTREAM_PEER_URI_SAN%");
}

#[test]
fn the_ingress_gateway_routes_and_guards() {
    let resources = compile(&demo(), &ingress());
    assert_eq!(names(&resources, Type::Listener), ["127.0.0.1_443", "127.0.0.1_80", "127.0.0.1_9096"]);
    let http = listener(&resources, "127.0.0.1_80");
    assert_eq!(format!("{:?}", http.address), "Tcp(127.0.0.1:8080)");
    for path in ["/helloworld", "/helloworld/ws", "/helloworld.Greeter/SayHello", "/grpc.health.v1.Health/Check"] {
        let to = "helloworld -> outbound|9095||helloworld.default.svc.cluster.local";
        assert_eq!(goes(&resources, "http.80", &get("localhost:8080", path)), to, "{path}");
        assert_eq!(goes(&resources, "https.443.https.ingress.istio-system", &get("localhost", path)), to, "{path}");
        assert_eq!(verdict(&http.chains[0], &get("localhost", path)), (200, false), "{path}");
    }
    let verdict = |asked: Asked| verdict(&http.chains[0], &asked);
    let token = |groups: &str| json!({"iss": "https://issuer.example.com", "sub": "u", "groups": [groups]});
    assert_eq!(verdict(get("a", "/test")), (401, false));
    assert_eq!(verdict(get("a", "/test").claims(token("others"))), (403, false));
    assert_eq!(verdict(get("a", "/test").claims(token("testers"))), (200, false));
    assert_eq!(verdict(get("a", "/test/egress").claims(token("testers"))), (200, false));
    assert_eq!(verdict(get("a", "/unknown").claims(token("testers"))), (403, false));
    assert_eq!(verdict(get("a", "/helloworld").header("x-demo-deny", "true")), (200, true), "the service is asked");
    let https = listener(&resources, "127.0.0.1_443");
    assert!(https.chains[0].tls.is_some());
    let tcp = listener(&resources, "127.0.0.1_9096");
    let Terminal::Tcp(relay) = &tcp.chains[0].terminal else { panic!("no TCP chain") };
    assert_eq!(&**relay.cluster(0), "outbound|9096||helloworld.default.svc.cluster.local");
}

#[test]
fn the_egress_gateway_lets_only_test_out() {
    let resources = compile(&demo(), &router("egressgateway", "127.0.0.5"));
    let out = listener(&resources, "127.0.0.5_8443");
    assert_eq!(format!("{:?}", out.address), "Tcp(127.0.0.5:8443)");
    let chain = out.chains.first().unwrap();
    assert!(chain.tls.as_ref().unwrap().require_client_certificate);
    let table = "https.8443.https.egress.istio-system";
    assert_eq!(
        goes(&resources, table, &get("external.example.com", "/")),
        "out -> outbound|9095||external.example.com"
    );
    let routes: envoy_types::pb::envoy::config::route::v3::RouteConfiguration = decoded(&resources, Type::Route, table);
    let removed = &routes.virtual_hosts[0].routes[0].request_headers_to_remove;
    assert_eq!(removed, &["x-forwarded-client-cert"], "nobody outside learns who called");
    let from = |who: &str| {
        verdict(chain, &get("external.example.com", "/").peer(&format!("spiffe://cluster.local/ns/default/sa/{who}")))
    };
    assert_eq!((from("test").0, from("helloworld").0), (200, 403));
}

#[test]
fn workloads_answer_whom_their_policies_name() {
    let resources = compile(&demo(), &sidecar("helloworld", "127.0.0.2"));
    let inbound = listener(&resources, "virtualInbound");
    let http = inbound.chains.iter().find(|chain| &*chain.name == "inbound|9095||").unwrap();
    let from = |who: &str| verdict(http, &get("helloworld", "/").peer(&format!("spiffe://cluster.local/ns/{who}"))).0;
    assert_eq!(from("default/sa/test"), 200);
    assert_eq!(from("istio-system/sa/istio-ingressgateway"), 200);
    assert_eq!(from("default/sa/other"), 403);
}

#[test]
fn a_grpc_library_gets_a_listener_per_target() {
    let resources = compile(&demo(), &grpc_client());
    let target = "helloworld.default.svc.cluster.local:9095";
    assert!(names(&resources, Type::Listener).contains(&target));
    let listener: envoy_types::pb::envoy::config::listener::v3::Listener = decoded(&resources, Type::Listener, target);
    assert!(listener.api_listener.is_some() && listener.address.is_none());
    let name = "outbound|9095||helloworld.default.svc.cluster.local";
    assert_eq!(goes(&resources, name, &get(target, "/helloworld.Greeter/SayHello")), format!("default -> {name}"));
    let cluster: envoy_types::pb::envoy::config::cluster::v3::Cluster = decoded(&resources, Type::Cluster, name);
    assert_eq!(cluster.lb_policy, 0, "round robin is what every library knows");
    let context = format!("{:?}", cluster.transport_socket);
    assert!(context.contains("UpstreamTlsContext"));
    let endpoints: envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment =
        decoded(&resources, Type::Endpoints, name);
    assert!(endpoints.endpoints[0].locality.is_some() && endpoints.endpoints[0].load_balancing_weight.is_some());
}

#[test]
fn with_capture_listeners_go_by_destination() {
    let captured = NodeFacts { capture: true, ..sidecar("helloworld", "127.0.0.2") };
    let resources = compile(&demo(), &captured);
    let all = names(&resources, Type::Listener);
    for name in ["virtualInbound", "virtualOutbound", "0.0.0.0_9095", "0.0.0.0_9096"] {
        assert!(all.contains(&name), "{name} in {all:?}");
    }
    assert!(!listener(&resources, "0.0.0.0_9095").bind);
    assert!(listener(&resources, "virtualInbound").use_original_dst);
    let helloworld = get("helloworld.default.svc.cluster.local:9095", "/");
    assert_eq!(goes(&resources, "9095", &helloworld), "default -> outbound|9095||helloworld.default.svc.cluster.local");
}

mod traffic;
