//! What virtual services and destination rules do with requests.

use super::super::sample::{Asked, cluster, compile, router, routes, sidecar};
use super::{get, goes};
use crate::resources::Resources;

const SERVICE: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints:
  - {address: 10.0.0.1, labels: {version: v1}, serviceAccount: a}
  - {address: 10.0.0.2, labels: {version: v2}, serviceAccount: b}
---
";

fn with_http(rules: &str) -> Resources {
    let rules: String = rules.lines().map(|line| format!("  {line}\n")).collect();
    let service = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [a]\n  http:\n{rules}"
    );
    let resources = compile(&format!("{SERVICE}{service}"), &sidecar("client", "10.1.1.1"));
    super::assert_accepted(&resources);
    resources
}

fn with_rule(spec: &str) -> Resources {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec:\n  host: a\n{spec}"
    );
    let resources = compile(&format!("{SERVICE}{rule}"), &sidecar("client", "10.1.1.1"));
    super::assert_accepted(&resources);
    resources
}

#[test]
fn every_kind_of_condition_is_tested() {
    let resources = with_http(
        "- {name: uri, match: [{uri: {exact: /one}}], route: [{destination: {host: a, subset: one}}]}
- {name: any-case, match: [{uri: {prefix: /TWO}, ignoreUriCase: true}], route: [{destination: {host: a}}]}
- {name: method, match: [{method: {exact: POST}}], route: [{destination: {host: a}}]}
- {name: header, match: [{headers: {x-user: {regex: 'b.b'}}}], route: [{destination: {host: a}}]}
- {name: present, match: [{headers: {x-there: {}}}], route: [{destination: {host: a}}]}
- {name: query, match: [{queryParams: {q: {prefix: v}}}], route: [{destination: {host: a}}]}
- {name: elsewhere, match: [{sourceLabels: {app: other}}], route: [{destination: {host: a}}]}
- {name: without, match: [{withoutHeaders: {x-not: {exact: really}}}], route: [{destination: {host: a}}]}
- {name: rest, route: [{destination: {host: a}}]}
- {name: unreachable, route: [{destination: {host: a}}]}",
    );
    let route = |asked: Asked| goes(&resources, "http_proxy", &asked).split(" -> ").next().unwrap().to_owned();
    assert_eq!(goes(&resources, "http_proxy", &get("a", "/one")), "uri -> outbound|80|one|a.default.svc.cluster.local");
    assert_eq!(route(get("a", "/two/x")), "any-case");
    assert_eq!(route(Asked::new("POST", "a", "/")), "method");
    assert_eq!(route(get("a", "/").header("x-user", "bob")), "header");
    assert_eq!(route(get("a", "/").header("x-there", "1")), "present");
    assert_eq!(route(get("a", "/?q=value")), "query");
    assert_eq!(route(get("a", "/")), "without");
    assert_eq!(route(get("a", "/").header("x-not", "really")), "rest");
}

#[test]
fn weights_split_and_a_weight_of_zero_gets_nothing() {
    let resources = with_http(
        "- route:
  - {destination: {host: a, subset: v1}, weight: 75}
  - {destination: {host: a, subset: v2}, weight: 25}
  - {destination: {host: a, subset: v3}, weight: 0}",
    );
    let table = routes(&resources, "http_proxy");
    let clusters = table.clusters();
    let of = |subset: &str| format!("outbound|80|{subset}|a.default.svc.cluster.local");
    assert!(clusters.contains(of("v1").as_str()) && clusters.contains(of("v2").as_str()));
    assert!(!clusters.contains(of("v3").as_str()));
}

#[test]
fn actions_other_than_forwarding_compile() {
    let resources = with_http(
        "- {name: moved, match: [{uri: {prefix: /old}}], redirect: {uri: /new, authority: b.test, redirectCode: 308}}
- {name: fixed, match: [{uri: {prefix: /fixed}}], directResponse: {status: 418, body: {string: tea}}}
- name: busy
  match: [{uri: {prefix: /busy}}]
  rewrite: {uri: /idle, authority: c.test}
  timeout: 3s
  retries: {attempts: 4, perTryTimeout: 1s, retryOn: 'reset,503', backoff: 10ms}
  fault: {delay: {fixedDelay: 1s, percentage: {value: 0.5}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}
  mirror: {host: a, subset: v2}
  mirrorPercentage: {value: 10}
  corsPolicy: {allowOrigins: [{prefix: 'https://'}], allowMethods: [GET], maxAge: 1h, allowCredentials: true}
  headers: {request: {set: {host: d.test, x-a: '1'}, add: {x-b: '2'}, remove: [x-c]}, response: {remove: [server]}}
  route: [{destination: {host: a}, headers: {response: {add: {x-d: '3'}}}}]",
    );
    let table = routes(&resources, "http_proxy");
    let picked = |path: &str| {
        let asked = get("a", path);
        let selection = table.pick(&asked.request(), 0).unwrap();
        format!("{:?}", selection.route.action)
    };
    assert!(picked("/old").contains("Redirect") && picked("/fixed").contains("418"));
    let busy = picked("/busy");
    for part in ["/idle", "v2", "503"] {
        assert!(busy.contains(part), "{part} in {busy}");
    }
    let asked = get("a", "/busy");
    let selection = table.pick(&asked.request(), 0).unwrap();
    assert!(selection.override_for("envoy.filters.http.cors").is_some());
    assert!(selection.override_for("envoy.filters.http.fault").is_some());
}

#[test]
fn the_mesh_retries_twice_unless_told_otherwise() {
    let retries = |rules: &str| {
        let resources = with_http(rules);
        let table = routes(&resources, "http_proxy");
        let asked = get("a", "/");
        table.pick(&asked.request(), 0).unwrap().forward().unwrap().retry.as_ref().map(|retry| retry.attempts)
    };
    assert_eq!(retries("- route: [{destination: {host: a}}]"), Some(2));
    assert_eq!(retries("- {route: [{destination: {host: a}}], retries: {attempts: 0}}"), None);
    assert_eq!(retries("- {route: [{destination: {host: a}}], retries: {attempts: 5}}"), Some(5));
}

#[test]
fn subsets_have_their_own_endpoints_and_identities() {
    let resources = with_rule(
        "subsets:\n- {name: v1, labels: {version: v1}}\n- {name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: DISABLE}}}",
    );
    let v1 = cluster(&resources, "outbound|80|v1|a.default.svc.cluster.local");
    let tls = v1.tls.as_ref().unwrap();
    assert_eq!(tls.common.validation.exact_uris(), Some(vec!["spiffe://cluster.local/ns/default/sa/a"]));
    assert_eq!(tls.sni.as_deref(), Some("outbound_.80_.v1_.a.default.svc.cluster.local"));
    assert!(cluster(&resources, "outbound|80|v2|a.default.svc.cluster.local").tls.is_none());
    let all = cluster(&resources, "outbound|80||a.default.svc.cluster.local");
    assert_eq!(all.tls.as_ref().unwrap().common.validation.exact_uris().map(|uris| uris.len()), Some(2));
}

#[test]
fn traffic_policies_reach_the_cluster() {
    let resources = with_rule(
        "trafficPolicy:
  loadBalancer: {consistentHash: {httpHeaderName: x-user}}
  connectionPool:
    tcp: {maxConnections: 7, connectTimeout: 2s, tcpKeepalive: {time: 60s}}
    http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, maxRetries: 10, maxRequestsPerConnection: 1, idleTimeout: 5s, h2UpgradePolicy: UPGRADE}
  outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}",
    );
    let cluster = cluster(&resources, "outbound|80||a.default.svc.cluster.local");
    assert_eq!(cluster.connect_timeout.as_secs(), 2);
    assert_eq!((cluster.limits.connections, cluster.limits.pending), (7, 8));
    assert_eq!(cluster.http.protocol, routing::cluster::UpstreamProtocol::Http2);
    assert!(cluster.outlier.is_some());
    let table = routes(&resources, "http_proxy");
    let asked = get("a", "/").header("x-user", "bob");
    let selection = table.pick(&asked.request(), 0).unwrap();
    assert!(selection.forward().unwrap().hash_key(&asked.request(), 0).hash.is_some(), "requests carry their hash");
}

#[test]
fn rules_are_found_by_namespace_and_the_most_specific_host() {
    let rule = |name: &str, namespace: &str, host: &str, limit: u32| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  host: '{host}'\n  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {limit}}}}}}}\n---\n"
        )
    };
    let host = "a.default.svc.cluster.local";
    let limit = |rules: &str| {
        let resources = compile(&format!("{SERVICE}{rules}"), &sidecar("client", "10.1.1.1"));
        cluster(&resources, &format!("outbound|80||{host}")).limits.connections
    };
    let root = rule("r", "istio-system", host, 1);
    let (wide, exact) = (rule("w", "default", "*.default.svc.cluster.local", 2), rule("e", "default", host, 3));
    assert_eq!(limit(&root), 1);
    assert_eq!(limit(&format!("{root}{wide}")), 2);
    assert_eq!(limit(&format!("{root}{wide}{exact}")), 3);
}

#[test]
fn gateways_merge_hosts_and_keep_what_takes_everything_last() {
    let text = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: istio-system}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ['shop/a.test']
    tls: {mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca}
  - {port: {number: 443, name: pass, protocol: TLS}, hosts: ['b.test'], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: first, namespace: shop}
spec:
  hosts: [a.test]
  gateways: [istio-system/gw]
  http: [{name: all, route: [{destination: {host: a.default.svc.cluster.local}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second, namespace: shop}
spec:
  hosts: [a.test]
  gateways: [istio-system/gw]
  http: [{name: special, match: [{uri: {prefix: /special}}], route: [{destination: {host: a.default.svc.cluster.local}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other, namespace: elsewhere}
spec:
  hosts: [a.test]
  gateways: [istio-system/gw]
  http: [{name: intruder, match: [{uri: {prefix: /intruder}}], route: [{destination: {host: a.default.svc.cluster.local}}]}]
  tls: [{match: [{sniHosts: [a.test]}], route: [{destination: {host: b, port: {number: 1}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass, namespace: shop}
spec:
  hosts: [b.test]
  gateways: [istio-system/gw]
  tls: [{match: [{sniHosts: [b.test]}], route: [{destination: {host: b, port: {number: 8443}}}]}]
---
";
    let resources = compile(&format!("{SERVICE}{text}"), &router("edge", "127.0.0.1"));
    super::assert_accepted(&resources);
    let table = "https.443.https.gw.istio-system";
    let route = |path: &str| goes(&resources, table, &get("a.test", path)).split(" -> ").next().unwrap().to_owned();
    assert_eq!((route("/special/x"), route("/x")), ("special".to_owned(), "all".to_owned()));
    assert_eq!(route("/intruder"), "all", "the server's hosts belong to the namespace `shop`");
    assert_eq!(goes(&resources, "http.80", &get("a.test", "/")), "TLS_REQUIRED");
    let tls = super::listener(&resources, "127.0.0.1_443");
    let names: Vec<&str> = tls.chains.iter().map(|chain| &*chain.name).collect();
    assert_eq!(names, [table, "shop/pass"]);
    assert!(tls.chains[0].tls.as_ref().unwrap().require_client_certificate && tls.chains[1].tls.is_none());
}

#[test]
fn services_stay_where_they_are_exported_to() {
    let hidden = SERVICE
        .replace("spec:\n", "spec:\n  exportTo: ['.']\n")
        .replace("metadata: {name: a}", "metadata: {name: a, namespace: other}");
    let resources = compile(&hidden, &sidecar("client", "10.1.1.1"));
    assert_eq!(
        goes(&resources, "http_proxy", &get("a.default.svc.cluster.local", "/")),
        "allow_any -> PassthroughCluster"
    );
}
